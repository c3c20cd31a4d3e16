"""The part of the conformance kit about uses, and about lists, customers and last four digits."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

import pytest

from tokenvault.errors import IntegrityError, InvalidInputError
from tokenvault.stores.index_rows import NO_USE, IndexRow
from tokenvault.stores.port import (
    USE_IDS_MAX,
    USE_PAIRS_MAX,
    FoundUse,
    SealedEvent,
    TokenGroup,
    TokenStore,
)
from tokenvault.testing.token_store_harness import (
    PROCESS_SECONDS_MAX,
    StoreHarness,
    a_record,
    an_event,
    as_read,
    fill,
    most,
    paged,
    replaced,
)
from tokenvault.testing.token_store_prune import PruneContract

_CHANGES: Final = 100
_READS_MAX: Final = 50_000
_OTHER_USES: Final = "events of other uses or tokens came with a use, or one of them came twice"
_CROSSED: Final = "a pair of reference and use id was looked for as a reference and, apart from it, a use id"
_OLD_USES: Final = (
    "events of a use are older than its record: read both in one transaction, or the record first"
)
_LISTED: Final = "a list is not in the order of created_ms and token, or skips records of one millisecond"
_GROUPED: Final = "groups are not those that have records now, ascending"
_CUSTOMERS: Final = "a customer is found by another text, or its records are not in the order of tokens"
_LAST4: Final = "the records of several keys are not, all together, in the order of tokens"
_USES = [bytes([n]) * 16 for n in range(1, 9)]


def a_use(number: int, reference: bytes, *use_ids: bytes) -> SealedEvent:
    """An event of a record that is found by use ids."""
    rows = tuple(IndexRow(reference, use_id) for use_id in use_ids)
    return an_event(number, reference=reference)._replace(index_rows=rows)


class UsesContract(PruneContract):
    """A use is found with its record, and tokens by what they have in common."""

    def test_the_columns_of_a_record(self, store: TokenStore) -> None:
        """Customer, last four, status and time of issue come back as they were written, and change with a record."""
        record = a_record(1, customer="~ c" * 21, last4_key=b"\xff" * 16, status=127, created_ms=2**63 - 1)
        plain = a_record(2, customer="", last4_key=b"", status=1, created_ms=0)
        assert store.insert([record, plain], []) == []
        assert store.get([record.token, plain.token]) in ([record, plain], [plain, record])
        changed = replaced(record)._replace(customer="", last4_key=b"", status=4)
        assert store.replace([changed], [an_event(1)]) == []
        assert store.by_reference(record.reference) == changed
        assert store.find_customer(record.customer) == store.find_last4([record.last4_key]) == []

    def test_a_use_with_its_record(self, store: TokenStore) -> None:
        """The record by token or reference, with the events of its own uses that are asked for, each once."""
        record, other = a_record(1), a_record(2)
        store.insert([record, other], [])
        own = [
            a_use(1, record.reference, _USES[0]),
            a_use(2, record.reference, _USES[1], _USES[0]),
            a_use(3, record.reference, _USES[2]),
            a_use(4, record.reference, NO_USE),
        ]
        store.append([*own, a_use(5, other.reference, _USES[0])])
        for asked, expected in (
            ([], []),
            (_USES[:1], own[:2]),
            (_USES[:2], own[:2]),
            (_USES[1:3], own[1:3]),
            (_USES[3:], []),
        ):
            for name in (record.token, record.reference):
                found = store.get_use(name, asked)
                assert found.record == record
                assert sorted(found.events) == as_read(*expected), _OTHER_USES
        assert (
            store.get_use(a_record(7).token, _USES) == store.get_use(bytes(16), _USES) == FoundUse(None, [])
        )

    def test_a_use_is_not_older_than_its_record(self, store: TokenStore) -> None:
        """The events are those of the record that comes with them, or later ones, while others write both at once."""
        record, use_id = a_record(1), _USES[0]
        store.insert([record], [a_use(1, record.reference, use_id)])

        def write() -> None:
            for revision in range(2, _CHANGES + 2):
                event = a_use(revision, record.reference, use_id)
                assert store.replace([record._replace(revision=revision)], [event]) == []

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            for name in (record.token, record.reference) * _READS_MAX:
                found = store.get_use(name, [use_id])
                assert found.record is not None
                assert len(found.events) >= found.record.revision, _OLD_USES
                if writing.done():
                    break
            writing.result(PROCESS_SECONDS_MAX)

    def test_many_uses(self, store: TokenStore) -> None:
        """The events of pairs of reference and use id, each once, however many pairs have none."""
        records = [a_record(n) for n in range(3)]
        events = [
            a_use(1, records[0].reference, _USES[0], _USES[1]),
            a_use(2, records[1].reference, _USES[0]),
            a_use(3, records[2].reference, _USES[2]),
        ]
        store.append(events)
        none = [(n.to_bytes(16, "big"), _USES[0]) for n in range(2_000)]
        pairs = [
            (records[0].reference, _USES[0]),
            (records[0].reference, _USES[1]),
            (records[1].reference, _USES[0]),
        ]
        assert sorted(store.uses([*none, *pairs, *pairs])) == as_read(*events[:2]), _OTHER_USES
        crossed = [(records[1].reference, _USES[2]), (records[2].reference, _USES[0])]
        assert store.uses(crossed) == [], _CROSSED
        assert store.uses([]) == []

    def test_lists_in_the_order_of_issue(self, store: TokenStore) -> None:
        """Each group's records by time of issue and token, in pages; groups and counts are of what there is."""
        assert store.groups() == [], _GROUPED
        records = [
            a_record(
                n,
                requestor=str(1 + n % 2) * 11,
                program=f"p{n // 2 % 2}",
                status=1 + n // 4 % 3,
                created_ms=(100, 100, 99, 99, 9)[n // 12],  # 12 groups
            )
            for n in range(60)
        ]
        fill(store, records)
        groups = sorted({TokenGroup(each.requestor, each.program, each.status) for each in records})
        assert store.groups() == groups, _GROUPED
        for group in [*groups, TokenGroup("3" * 11, "p0", 1), TokenGroup("1" * 11, "p0", 9)]:
            expected = sorted(
                (each for each in records if (each.requestor, each.program, each.status) == group),
                key=lambda each: (each.created_ms, each.token),
            )
            assert store.count(*group) == len(expected)
            assert store.list_tokens(*group) == expected, _LISTED
            read = functools.partial(store.list_tokens, *group)
            assert paged(read, 4, lambda each: (each.created_ms, each.token), (-1, "")) == expected, _LISTED
        moved = replaced(records[0])._replace(status=9)
        store.replace([moved], [])
        assert store.list_tokens(moved.requestor, moved.program, 9) == [moved]
        assert store.groups() == sorted({*groups, TokenGroup(moved.requestor, moved.program, 9)}), _GROUPED
        assert store.count(moved.requestor, moved.program, 9) == 1

    def test_customers_and_last_four(self, store: TokenStore) -> None:
        """The records of a customer, and of one or several keys, by token, in pages; empty ones are nobody's."""
        keys = [bytes([n]) * 16 for n in range(4)]
        records = [
            a_record(n, customer=("", "ann", "Ann", "bob")[n % 4], last4_key=(b"", *keys[:3])[n // 4 % 4])
            for n in range(min(48, most(store)))
        ]
        store.insert(list(reversed(records)), [])
        for customer in ("ann", "Ann", "bob", "an"):
            expected = [each for each in records if each.customer == customer]
            find = functools.partial(store.find_customer, customer)
            assert paged(find, 4) == expected, _CUSTOMERS
        for asked in ([], keys[:1], keys[1:3], keys):
            expected = [each for each in records if each.last4_key in asked]
            find_any = functools.partial(store.find_last4, asked)
            assert paged(find_any, 4) == expected, _LAST4

    def test_limits_of_uses_and_lists(self, store: TokenStore, harness: StoreHarness) -> None:
        """What is beyond the port's limits is InvalidInputError, and nothing is done."""
        record = a_record(1)
        group: tuple[Any, ...] = (record.requestor, record.program, 1)
        for call in (
            lambda: store.get_use("4" * 12, []),
            lambda: store.get_use(record.token, [NO_USE]),
            lambda: store.get_use(record.token, [b"short"]),
            lambda: store.get_use(record.token, _USES * (USE_IDS_MAX // len(_USES) + 1)),
            lambda: store.uses([(record.reference, NO_USE)]),
            lambda: store.uses([(b"short", _USES[0])]),
            lambda: store.uses([(record.reference, _USES[0])] * (USE_PAIRS_MAX + 1)),
            lambda: store.list_tokens("1", record.program, 1),
            lambda: store.list_tokens(record.requestor, record.program, 0),
            lambda: store.list_tokens(*group, limit=0),
            lambda: store.list_tokens(*group, after=cast(Any, "1")),
            lambda: store.count(record.requestor, record.program, 128),
            lambda: store.count(record.requestor, "", 1),
            lambda: store.find_customer(""),
            lambda: store.find_customer("c" * 65),
            lambda: store.find_customer("\n"),
            lambda: store.find_customer("c", limit=0),
            lambda: store.find_last4([b"short"]),
            lambda: store.find_last4(_USES[:1] * (USE_IDS_MAX + 1)),
            lambda: store.insert([record._replace(customer="\xe4")], []),
            lambda: store.insert([record._replace(customer="c" * 65)], []),
            lambda: store.insert([record._replace(last4_key=b"short")], []),
            lambda: store.insert([record._replace(status=0)], []),
            lambda: store.insert([record._replace(created_ms=-1)], []),
        ):
            with pytest.raises(InvalidInputError):
                call()
        assert harness.raw_counts() == (0, 0)

    def test_an_edited_customer(self, store: TokenStore, harness: StoreHarness) -> None:
        """A row whose new columns have another shape is IntegrityError."""
        harness.raw_write(a_record(1, last4_key=b"short"))
        with pytest.raises(IntegrityError):
            store.get_use(a_record(1).token, [])
