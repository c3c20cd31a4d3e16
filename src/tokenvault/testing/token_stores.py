"""The conformance kit of token stores: run it over an adapter to know that a vault may rely on it.

    class MyHarness(StoreHarness):
        ...                                     # how to open the store, and how to go around it

    class TestMyStore(TokenStoreContract):
        capabilities = frozenset({Capability.DURABLE, Capability.PROCESSES, Capability.FORKS})

        @pytest.fixture
        def harness(self, tmp_path):
            return MyHarness(tmp_path)          # a fresh, empty database for every test

For the values of a failed assertion, call `pytest.register_assert_rewrite("tokenvault.testing")`
in a conftest.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import closing
from typing import Any, cast

import pytest

from tokenvault.errors import IntegrityError, InvalidInputError, TokenStoreError, TokenVaultError
from tokenvault.stores.index_rows import CURSOR_BYTES, IndexRow
from tokenvault.stores.port import (
    INTEGER_MAX,
    META_VALUE_BYTES_MAX,
    PAGE_MAX,
    TokenStore,
    digest_of,
)
from tokenvault.stores.write_limits import BODY_BYTES_MAX, DOCUMENT_BYTES_MAX, EVENT_BODY_BYTES_MAX
from tokenvault.testing.token_store_counts import CountsContract
from tokenvault.testing.token_store_harness import (
    Capability,
    StoreHarness,
    a_record,
    an_event,
    as_read,
    fill,
    most,
    paged,
    race,
    replaced,
)


class TokenStoreContract(CountsContract):
    """One test for each promise of `TokenStore`. A subclass overrides the fixture `harness`."""

    # Records that are looked up and scanned.

    def test_look_ups_leave_out_what_is_unknown(self, store: TokenStore) -> None:
        """A token asked for twice comes once; nothing asked, nothing read; None for a reference that is not there."""
        store.insert([a_record(1), a_record(2)], [])
        assert sorted(store.get([a_record(n).token for n in (1, 7, 2, 1)])) == [a_record(1), a_record(2)]
        assert store.get([a_record(7).token]) == store.get([]) == []
        assert store.by_reference(a_record(2).reference) == a_record(2)
        assert store.by_reference(bytes(16)) is None

    def test_get_of_a_full_batch(self, store: TokenStore) -> None:
        """As many records as one call takes, at most PAGE_MAX, are written, read and replaced by one call each."""
        records = [a_record(n) for n in range(most(store, 2))]
        assert store.insert(records, [an_event(n + 1) for n in range(len(records))]) == []
        assert sorted(store.get([record.token for record in records])) == records
        assert store.replace([replaced(record) for record in records], []) == []
        assert store.scan() == [replaced(record) for record in records]

    def test_tokens_are_whole_strings(self, store: TokenStore) -> None:
        """Tokens that differ in length only, or in leading zeros, are different tokens."""
        tokens = ["0" * 13, "0" * 14, "0" * 19, "1" + "0" * 12]
        records = [a_record(n, token=token) for n, token in enumerate(tokens)]
        store.insert(records, [])
        for record in records:
            assert store.get([record.token]) == [record]
        assert store.scan() == records

    def test_find(self, store: TokenStore) -> None:
        """All records of one PAN fingerprint or of many, each once, by token as a string, also in pages.

        The limit counts what passes the filters.
        """
        pan_fingerprints = [bytes([n]) * 16 for n in range(40)]
        records = [
            a_record(
                n,
                token=f"{n * 37 % 120:03}".ljust(13 + n % 7, "5"),
                pan_fingerprint=pan_fingerprints[n % 10],
                requestor=str(n // 60 + 1) * 11,
                program=f"p{n // 10 % 2}",
            )
            for n in range(120)
        ]
        fill(store, [*records, a_record(777)])
        for asked in (
            pan_fingerprints[0],
            pan_fingerprints[39],
            [],
            pan_fingerprints[5:22],
            pan_fingerprints * 3,
        ):
            of_these = [r for r in records if r.pan_fingerprint in asked or r.pan_fingerprint == asked]
            for requestor in (None, "1" * 11, "2" * 11, "3" * 11):
                for program in (None, "p0", "p1", "three"):
                    expected = [
                        record
                        for record in sorted(of_these)
                        if requestor in (None, record.requestor) and program in (None, record.program)
                    ]
                    find = functools.partial(store.find, asked, requestor=requestor, program=program)
                    assert find() == expected
                    assert paged(find, limit=5) == expected

    def test_scan(self, store: TokenStore) -> None:
        """Every record by token, in pages; with a key version, only its records and full pages of them."""
        records = [a_record(n, key_version=1 + n % 3) for n in range(20)]
        fill(store, records[::-1])
        assert store.scan() == store.scan(after="9") == records
        assert store.scan(after=records[-1].token) == []
        for key_version in (None, 1, 2, 3, 4):
            expected = [record for record in records if key_version in (None, record.key_version)]
            assert paged(functools.partial(store.scan, key_version=key_version), limit=3) == expected

    # Events.

    def test_events_of_a_stream(self, store: TokenStore) -> None:
        """By number, after a number, in pages; other streams apart, and each stream named once."""
        assert store.streams() == []
        events = [an_event(n) for n in range(1, 8)]
        others = [an_event(n, stream=2**128 - 1) for n in range(1, 4)]
        store.append([events[6], events[0], *others, an_event(1, stream=5)])
        store.append(events[1:6])
        assert store.events(stream=events[0].stream) == events
        assert store.events(stream=others[0].stream) == others
        assert store.events(stream=events[0].stream, after=2, limit=3) == events[2:5]
        assert store.events(stream=events[0].stream, after=7) == []
        assert store.events(stream=b"?" * 16) == []
        assert sorted(store.streams()) == [an_event(1, stream=n).stream for n in (0, 5, 2**128 - 1)]

    def test_append_is_all_or_nothing(self, store: TokenStore, harness: StoreHarness) -> None:
        """One event that exists fails the whole call with TokenStoreError and stays as it was."""
        store.append([an_event(2)])
        changed = an_event(2)._replace(body=b"changed")
        for batch in ([changed], [an_event(1), changed], [changed, an_event(3)], [an_event(4), an_event(4)]):
            with pytest.raises(TokenStoreError):
                store.append(batch)
        assert harness.raw_counts() == (0, 1)
        assert store.events(stream=changed.stream) == [an_event(2)]

    def test_extreme_events(self, store: TokenStore) -> None:
        """The largest number, and empty and full bodies, come back the same."""
        events = [
            an_event(1)._replace(body=b""),
            an_event(2)._replace(body=b"\xff" * store.write_limits.event_bytes, number=INTEGER_MAX),
        ]
        store.append(events)
        assert store.events(stream=events[0].stream) == events

    def test_latest_checkpoints(self, store: TokenStore) -> None:
        """Of the streams with the greatest names, each one's last checkpoint, or its first event."""
        assert store.latest_checkpoints(10) == []
        names = {n: an_event(1, stream=n).stream for n in (3, 5, 7, 2**127)}
        for n, name in names.items():
            store.append([an_event(2, stream=n), an_event(1, stream=n, reference=b"r" * 16)])
            if n != 5:
                store.append([an_event(9, stream=n, reference=name), an_event(10, stream=n)])
                store.append([an_event(3, stream=n, reference=name)])  # which waited, and comes later
        expected = as_read(*(an_event(9, stream=n, reference=names[n]) for n in (2**127, 7, 5, 3)))
        (expected[2],) = as_read(an_event(1, stream=5, reference=b"r" * 16))
        for limit, count in ((1, 1), (2, 2), (3, 3), (4, 4), (PAGE_MAX, 4)):
            found = sorted(store.latest_checkpoints(limit), key=lambda event: event.stream, reverse=True)
            assert found == expected[:count]

    # Documents and named values.

    def test_domains(self, store: TokenStore) -> None:
        """A document is kept under its SHA-256, once; another document under that digest is refused."""
        documents = [b"", b"{}", bytes(DOCUMENT_BYTES_MAX)]
        for document in documents * 2:
            store.put_domain(digest_of(document), document)
        for document in documents:
            assert store.get_domain(digest_of(document)) == document
        assert store.get_domain(b"?" * 32) is None
        with pytest.raises(TokenVaultError):
            store.put_domain(digest_of(b"{}"), b"[]")
        assert store.get_domain(digest_of(b"{}")) == b"{}"

    def test_meta_first_wins(self, store: TokenStore) -> None:
        """A named value is set once; later calls get the value that is set."""
        assert store.get_meta("a") is None
        assert store.put_meta("a", b"first") == b"first"
        assert store.put_meta("a", b"second") == b"first"
        assert store.get_meta("a") == b"first"
        assert store.put_meta("A", b"") == b""
        assert store.put_meta("A", b"late") == b""
        assert store.put_meta("~ " * 32, bytes(META_VALUE_BYTES_MAX)) == bytes(META_VALUE_BYTES_MAX)

    def test_meta_by_threads(self, store: TokenStore) -> None:
        """Threads that set one name at once all learn the same value."""
        values = race(lambda n: store.put_meta("a", bytes([n])))
        assert len(set(values)) == 1
        assert store.get_meta("a") == values[0]

    # Limits, close, durability.

    def test_limits(self, store: TokenStore, harness: StoreHarness) -> None:
        """What is beyond the port's limits is InvalidInputError, and nothing is done."""
        record, event = a_record(1), an_event(1)
        too_many = PAGE_MAX + 1
        too_long = bytes(DOCUMENT_BYTES_MAX + 1)
        _all_refused(
            lambda: store.get([record.token] * too_many),
            lambda: store.get(record.token),
            lambda: store.get(["4" * 12]),
            lambda: store.get(["4" * 20]),
            lambda: store.get(["\u0664" * 16]),
            lambda: store.find(b"short"),
            lambda: store.find(record.pan_fingerprint, limit=0),
            lambda: store.find(record.pan_fingerprint, limit=too_many),
            lambda: store.find(record.pan_fingerprint, after="x"),
            lambda: store.find(record.pan_fingerprint, requestor="1"),
            lambda: store.find(record.pan_fingerprint, program=""),
            lambda: store.by_reference(b""),
            lambda: store.insert([a_record(n) for n in range(too_many)], []),
            lambda: store.insert([], [an_event(n + 1) for n in range(too_many)]),
            lambda: store.insert([record, record], []),
            lambda: store.insert([record._replace(revision=2)], []),
            lambda: store.insert([record._replace(body=bytes(BODY_BYTES_MAX + 1))], []),
            lambda: store.find([record.pan_fingerprint, b"short"]),
            lambda: store.find([record.pan_fingerprint] * too_many),
            lambda: store.insert([record._replace(seal=b"")], [event]),
            lambda: store.insert([record._replace(program="p\u00e4")], [event]),
            lambda: store.insert([record], [event._replace(number=0)]),
            lambda: store.insert([record], [event._replace(number=INTEGER_MAX + 1)]),
            lambda: store.insert([record], [event], too_long),
            lambda: store.insert([record], [event], cast(bytes, "{}")),
            lambda: store.insert([], [], cast(bytes, bytearray(b"{}"))),
            lambda: store.replace([record], []),
            lambda: store.replace([record._replace(revision=INTEGER_MAX + 1)], []),
            lambda: store.latest_checkpoints(0),
            lambda: store.latest_checkpoints(too_many),
            lambda: store.put_domain(digest_of(too_long), too_long),
            lambda: store.get_domain(b""),
            lambda: store.scan(limit=too_many),
            lambda: store.scan(key_version=0),
            lambda: store.get_meta(""),
            lambda: store.put_meta("n" * 65, b""),
            lambda: store.put_meta("n", bytes(META_VALUE_BYTES_MAX + 1)),
        )
        assert harness.raw_counts() == (0, 0)

    def test_limits_of_events(self, store: TokenStore, harness: StoreHarness) -> None:
        """Likewise what is beyond the limits of events, of their index and of a fence."""
        record, event = a_record(1), an_event(1)
        too_many = PAGE_MAX + 1
        _all_refused(
            lambda: store.append([event._replace(body=bytes(EVENT_BODY_BYTES_MAX + 1))]),
            lambda: store.append([event._replace(mac=b"")]),
            lambda: store.append([event._replace(index_rows=cast(Any, [IndexRow(record.reference)]))]),
            lambda: store.append([event._replace(index_rows=(IndexRow(record.reference),) * 2)]),
            lambda: store.append([event._replace(index_rows=(IndexRow(b"short"),))]),
            lambda: store.append([event._replace(index_rows=(IndexRow(record.reference, b"short"),))]),
            lambda: store.append([event], [("4" * 12, 1)]),
            lambda: store.append([event], [(record.token, 0)]),
            lambda: store.append([event], [(record.token, 1), (record.token, 2)]),
            lambda: store.append([event], [(record.token, 1)] * too_many),
            lambda: store.replace([record._replace(revision=2)], [event], [(record.token, 1)]),
            lambda: store.events(b"short"),
            lambda: store.events(event.stream, after=-2),
            lambda: store.events(event.stream, limit=0),
            lambda: store.events_about(b"short"),
            lambda: store.events_about(record.reference, after=b"short"),
            lambda: store.events_about(record.reference, after=b"\xff" * CURSOR_BYTES),
            lambda: store.events_about(record.reference, limit=0),
            lambda: store.events_about(record.reference, limit=too_many),
            lambda: store.prune([event._replace(number=0)]),
            lambda: store.prune([an_event(n + 1) for n in range(too_many)]),
            lambda: store.prune([], [("4" * 12, 1)]),
            lambda: store.prune([], [(record.token, 0)]),
        )
        assert harness.raw_counts() == (0, 0)

    def test_empty_arguments(self, store: TokenStore, harness: StoreHarness) -> None:
        """Nothing to write is nothing done; events alone are written, and any sequence will do."""
        assert store.insert([], []) == []
        assert store.replace((), ()) == []
        store.append([])
        assert harness.raw_counts() == (0, 0)
        assert store.insert([], (an_event(1),)) == []
        assert store.replace([], [an_event(2)]) == []
        assert harness.raw_counts() == (0, 2)

    def test_close(self, harness: StoreHarness) -> None:
        """Closing is idempotent, and whatever comes later is TokenStoreError."""
        store = harness.open()
        store.provision()
        store.close()
        store.close()
        calls: list[Callable[[], object]] = [
            store.provision,
            store.check_schema,
            lambda: store.get([a_record(1).token]),
            lambda: store.find(a_record(1).pan_fingerprint),
            lambda: store.by_reference(a_record(1).reference),
            lambda: store.get_use(a_record(1).token, []),
            lambda: store.uses([(bytes(16), b"u" * 16)]),
            lambda: store.list_tokens("1" * 11, "p", 1),
            store.groups,
            lambda: store.count("1" * 11, "p", 1),
            lambda: store.find_customer("c"),
            lambda: store.find_last4([bytes(16)]),
            lambda: store.insert([a_record(1)], []),
            lambda: store.replace([replaced(a_record(1))], []),
            lambda: store.append([an_event(1)]),
            lambda: store.prune([an_event(1)]),
            lambda: store.events(stream=bytes(16)),
            lambda: store.events_about(bytes(16)),
            store.index_rows,
            store.streams,
            lambda: store.latest_checkpoints(1),
            lambda: store.put_domain(digest_of(b""), b""),
            lambda: store.get_domain(bytes(32)),
            store.scan,
            lambda: store.get_meta("a"),
            lambda: store.put_meta("a", b""),
        ]
        for call in calls:
            with pytest.raises(TokenStoreError):
                call()
        harness.close()

    def test_reopening_sees_everything(self, harness: StoreHarness, store: TokenStore) -> None:
        """A store opened again on the database has all that was acknowledged."""
        self.require(Capability.DURABLE)
        store.insert([a_record(1)], [an_event(1)])
        store.replace([replaced(a_record(1))], [])
        store.put_meta("a", b"value")
        store.put_domain(digest_of(b"{}"), b"{}")
        store.close()
        with closing(harness.open()) as again:
            again.check_schema()
            assert again.get([a_record(1).token]) == [replaced(a_record(1))]
            assert again.events(stream=an_event(1).stream) == [an_event(1)]
            assert again.get_meta("a") == b"value"
            assert again.get_domain(digest_of(b"{}")) == b"{}"

    def test_rows_of_another_shape(self, store: TokenStore, harness: StoreHarness) -> None:
        """An edited row is handed over where it has a record's shape, else it is IntegrityError."""
        harness.raw_write(a_record(1, body=b"edited", revision=7))
        assert store.get([a_record(1).token]) == [a_record(1, body=b"edited", revision=7)]
        token = a_record(2).token
        harness.raw_write(a_record(2, seal=b"short"))
        reads: list[Callable[[], object]] = [
            lambda: store.get([token]),
            lambda: store.find(a_record(2).pan_fingerprint),
            lambda: store.by_reference(a_record(2).reference),
            store.scan,
        ]
        for read in reads:
            with pytest.raises(IntegrityError):
                read()
        assert store.get([a_record(1).token]) != []


def _all_refused(*calls: Callable[[], object]) -> None:
    for number, call in enumerate(calls):
        with pytest.raises(InvalidInputError):
            _ = (number, call())
