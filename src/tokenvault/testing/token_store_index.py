"""Conformance of token stores: events that the index leads to, and how much one write may hold."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import pytest

from tokenvault.errors import InvalidInputError, TokenStoreError
from tokenvault.stores.index_rows import NO_USE, IndexPlace, IndexRow
from tokenvault.stores.new_records import IndexColumns
from tokenvault.stores.port import PAGE_MAX, SealedEvent, SealedRecord, TokenStore
from tokenvault.stores.write_limits import BODY_BYTES_MAX, ROW_BYTES
from tokenvault.testing.token_store_freshness import FreshnessContract
from tokenvault.testing.token_store_harness import (
    PROCESS_SECONDS_MAX,
    StoreHarness,
    a_record,
    an_event,
    as_read,
    most,
    replaced,
)
from tokenvault.testing.token_store_writes import MANY

_BY_ARRIVAL: Final = (
    "events of a reference are not in the order of the index (use id, stream, number): where they come in the order "
    "of arrival, a replica gives another history"
)
_SKIPPED: Final = (
    "reading page by page gives other events than reading at once: a cursor takes use id, stream and number "
    "together"
)
_INDEX_ORDER: Final = (
    "the rows of the index do not come once each and in its order: by reference, use id, stream and number "
    "together"
)
_INDEX_PAGE: Final = "a page of the index has not as many rows as its limit, though there are more"
_STALE: Final = (
    "an event was written behind a fence whose revision a replacement had moved before: the fence is looked at "
    "outside the transaction of the events, or without holding its records"
)
_CHANGES: Final = 100
_CHANGES_OF_MANY: Final = 20
_NOT_TAKEN: Final = "the store does not take the write that its write_limits say it takes: {}"


class IndexContract(FreshnessContract):
    """Events are found by their rows of the index, and a store takes what it says it takes."""

    # Events that the index leads to.

    def test_events_about_a_reference(self, store: TokenStore) -> None:
        """Events of a reference from all streams in the order of use id, stream and number, whenever they came."""
        reference, other = b"r" * 16, b"s" * 16
        uses = [NO_USE, b"\x01" * 16, b"\xff" * 16]
        rows = [
            (
                use,
                an_event(number, stream=stream)._replace(
                    index_rows=(IndexRow(reference, use), IndexRow(other))
                ),
            )
            for number, (use, stream) in enumerate(itertools.product(uses, (3, 2**127, 1)), 1)
            for number in (number, 100 - number, 256 * number)
        ]
        for _, event in [*rows[1::2], *rows[::2]]:
            store.append([event, an_event(event.number, stream=100 + event.number)])
        expected = as_read(*(event for _, event in sorted(rows, key=lambda row: (row[0], *row[1][:2]))))
        assert store.events_about(reference) == (expected, b""), _BY_ARRIVAL
        for limit in (1, 2, 3, 5, len(rows)):
            assert _paged(store, reference, limit) == expected, _SKIPPED
        assert store.events_about(b"?" * 16) == ([], b"")
        assert store.events_about(other).events == sorted(expected)

    def test_an_event_under_several_names(self, store: TokenStore) -> None:
        """An event is found by each of its names, and one without a name by its stream alone."""
        first, second = b"r" * 16, b"s" * 16
        names = (IndexRow(first, b"u" * 16), IndexRow(first), IndexRow(second, b"v" * 16))
        event = an_event(1)._replace(index_rows=names)
        nameless = an_event(2)
        store.insert([a_record(1)], [event, nameless])
        assert store.events(event.stream) == as_read(event, nameless)
        assert store.events_about(first).events == as_read(event, event)
        assert store.events_about(second).events == as_read(event)
        assert store.events_about(bytes(16)).events == []
        changed = an_event(3)._replace(index_rows=(IndexRow(second),))
        assert store.replace([replaced(a_record(1))], [changed]) == []
        assert store.events_about(second).events == as_read(changed, event)

    def test_an_event_of_a_batch(self, store: TokenStore) -> None:
        """Rows of the index that come as columns lead to their event as others do, however they were ordered."""
        count = most(store, 2)
        source = np.random.default_rng(1)
        references = source.integers(0, 256, (count, 16), np.uint8)
        use_ids = source.integers(0, 256, (count, 16), np.uint8)
        repeated = [np.concatenate((column, column[:1])) for column in (references, use_ids)]
        plain = an_event(1)._replace(index_rows=IndexColumns.of(references))
        used = an_event(2)._replace(index_rows=IndexColumns.of(*repeated))
        store.append([plain])
        assert store.replace([], [used]) == []
        for row in (0, 1, count // 2, count - 1):
            assert store.events_about(references[row].tobytes()).events == as_read(plain, used)

    def test_rows_of_the_index(self, store: TokenStore) -> None:
        """The index is read from its beginning or from any row on, in its order, by pages of any length."""
        assert store.index_rows() == []
        events = [
            an_event(number, stream=stream)._replace(
                index_rows=(IndexRow(reference * 16, use), IndexRow(reference * 16))
            )
            for number, (stream, reference, use) in enumerate(
                itertools.product((3, 2**127, 1), (b"\xff", b"\x01", b"r"), (b"\xff" * 16, b"\x01" * 16)), 250
            )
        ]
        for event in [*events[1::2], *events[::2]]:
            store.append([event, an_event(event.number, stream=7)])
        expected = sorted(
            IndexPlace(*name, event.stream, event.number) for event in events for name in event.index_rows
        )
        assert store.index_rows() == expected, _INDEX_ORDER
        for limit in (1, 2, 5, len(expected)):
            found = store.index_rows(limit=limit)
            while len(found) < len(expected) and (page := store.index_rows(after=found[-1], limit=limit)):
                assert len(found) % limit == 0, _INDEX_PAGE
                found += page
            assert found == expected, _INDEX_ORDER
            assert len(store.index_rows(limit=limit)) == limit, _INDEX_PAGE
        assert store.index_rows(after=expected[-1]) == []

    def test_an_index_of_a_refused_write(self, store: TokenStore) -> None:
        """Where a token is in the way nothing is indexed."""
        record = a_record(1)
        event = an_event(1, reference=record.reference)
        assert store.insert([record], []) == []
        assert store.insert([record], [event]) == [record.token]
        assert store.insert([record, a_record(2)], [event]) == [record.token]
        assert store.replace([record._replace(revision=3)], [event]) == [record.token]
        assert store.events_about(record.reference) == ([], b"")

    # Fences.

    def test_a_fence(self, store: TokenStore, harness: StoreHarness) -> None:
        """Events are written where every revision is as stated; otherwise those that moved are named."""
        records = [a_record(n) for n in range(4)]
        store.insert(records, [])
        fence = [(record.token, 1) for record in records]
        assert store.append([an_event(1)], fence[:1]) == store.append([an_event(2)], fence) == []
        assert store.replace([replaced(records[0])], [an_event(3)], fence[1:]) == []
        for moved in (fence[:1], [(records[1].token, 2)], [(a_record(9).token, 1)]):
            for others in ([], fence[2:]):
                assert store.append([an_event(4, reference=b"r" * 16)], [*moved, *others]) == [moved[0][0]]
                assert store.append([an_event(1)], [*moved, *others]) == [moved[0][0]]
                assert store.replace([replaced(records[3])], [an_event(4)], [*moved, *others[:1]]) == [
                    moved[0][0]
                ]
        assert harness.raw_counts() == (4, 3)
        assert store.events_about(b"r" * 16).events == []

    @pytest.mark.parametrize("count", [1, MANY])
    def test_a_fence_holds_from_the_moment_a_replacement_returns(self, store: TokenStore, count: int) -> None:
        """No event that was fenced by a revision is written after a replacement of it was acknowledged."""
        records = [a_record(n) for n in range(min(count, most(store)))]
        changes = _CHANGES if count == 1 else _CHANGES_OF_MANY
        store.insert(records, [])
        acknowledged: list[tuple[int, int]] = []  # the revision, and how many events stood when it was

        def events() -> int:
            return len(store.events(bytes(16)))

        def replace() -> None:
            for revision in range(2, changes + 2):
                assert store.replace([record._replace(revision=revision) for record in records], []) == []
                acknowledged.append((revision, events()))

        def use() -> list[int]:
            written: list[int] = []
            while len(acknowledged) < changes and len(written) < PAGE_MAX:  # so that `events` sees them all
                revision = store.get([records[0].token])[0].revision
                fence = [(record.token, revision) for record in records]
                if not store.append([an_event(len(written) + 1)], fence):
                    written.append(revision)
            return written

        with ThreadPoolExecutor(2) as pool:
            using, changing = pool.submit(use), pool.submit(replace)
            changing.result(PROCESS_SECONDS_MAX)
            written = using.result(PROCESS_SECONDS_MAX)
        for revision, count_then in acknowledged:
            assert all(each >= revision for each in written[count_then:]), _STALE

    # How much one write may hold.

    def test_the_write_of_most_rows(self, store: TokenStore, harness: StoreHarness) -> None:
        """A write of as many rows as the store says is taken whole, and of one row more is refused."""
        limits = store.write_limits
        rows = min(limits.rows, limits.bytes // (ROW_BYTES + BODY_BYTES_MAX // 4))
        records = [a_record(n) for n in range(min(PAGE_MAX, rows // 2))]
        names = tuple(IndexRow(n.to_bytes(16)) for n in range(rows - len(records) - 1))
        event = an_event(1)._replace(index_rows=names)
        assert _taken(store, records, [event]), _NOT_TAKEN.format(f"{rows} rows")
        assert harness.raw_counts() == (len(records), 1)
        for name in (names[0], names[-1]):
            assert store.events_about(name.reference).events == as_read(event)
        more = tuple(IndexRow(n.to_bytes(16)) for n in range(limits.rows))
        with pytest.raises(InvalidInputError):
            store.append([an_event(2)._replace(index_rows=more)])
        assert harness.raw_counts() == (len(records), 1)

    def test_the_write_of_most_bytes(self, store: TokenStore, harness: StoreHarness) -> None:
        """A write of as many bytes as the store says is taken whole, and of one more is refused."""
        limits = store.write_limits
        events = [
            an_event(n + 1)._replace(body=bytes([n % 256]) * limits.event_bytes)
            for n in range(min(limits.rows // 2, limits.bytes // (limits.event_bytes + ROW_BYTES)))
        ]
        left = limits.bytes - len(events) * (limits.event_bytes + ROW_BYTES)
        count = min(limits.rows - len(events), left // (BODY_BYTES_MAX + ROW_BYTES))
        records = [a_record(n, body=bytes([n % 256]) * BODY_BYTES_MAX) for n in range(count)]
        assert _taken(store, records, events), _NOT_TAKEN.format(f"{limits.bytes} bytes")
        assert harness.raw_counts() == (len(records), len(events))
        assert store.events(events[-1].stream, after=len(events) - 1) == as_read(events[-1])
        with pytest.raises(InvalidInputError):
            store.append([an_event(1, stream=1)._replace(body=bytes(limits.event_bytes + 1))])
        many = [an_event(n + 1, stream=1)._replace(body=bytes(limits.event_bytes)) for n in range(1_000)]
        with pytest.raises(InvalidInputError):
            store.append(many)
        assert harness.raw_counts() == (len(records), len(events))


def _taken(store: TokenStore, records: list[SealedRecord], events: list[SealedEvent]) -> bool:
    try:
        return store.insert(records, events) == []
    except TokenStoreError:
        return False


def _paged(store: TokenStore, reference: bytes, limit: int) -> list[SealedEvent]:
    """What pages give together."""
    found: list[SealedEvent] = []
    cursor, more = b"", True
    while more:
        events, cursor = store.events_about(reference, after=cursor, limit=limit)
        assert len(events) <= limit
        found += events
        more = bool(cursor) and len(found) < PAGE_MAX
    return found
