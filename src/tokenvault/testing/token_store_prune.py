"""Conformance of token stores: what a purge deletes."""

from __future__ import annotations

from typing import Final

from tokenvault.stores.index_rows import IndexRow
from tokenvault.stores.port import TokenStore
from tokenvault.testing.token_store_harness import (
    StoreHarness,
    a_record,
    an_event,
    as_read,
    assert_counted,
    fill,
    most,
    replaced,
)
from tokenvault.testing.token_store_index import IndexContract

_LEFT: Final = "prune left a row of the index of an event that it deleted, or took one of another event"
_OTHERS: Final = "prune deletes the events of the streams and numbers that it names, and no others"
_STALE: Final = "prune deleted a record that has another revision than was stated"


class PruneContract(IndexContract):
    """A purge deletes what it names, and nothing else."""

    def test_pruned_events(self, store: TokenStore, harness: StoreHarness) -> None:
        """Events go with their rows of the index, and those of other numbers and streams stay, however often."""
        reference, use_id = b"r" * 16, b"u" * 16
        names = (IndexRow(reference), IndexRow(reference, use_id), IndexRow(b"s" * 16))
        events = [
            an_event(number, stream=stream)._replace(index_rows=names)
            for stream in (1, 2)
            for number in (1, 2, 3)
        ]
        fill(store, [a_record(1, reference=reference)], events)
        for _ in range(2):
            store.prune([events[1], events[3], an_event(9, stream=1)])
            kept = [events[0], events[2], *events[4:]]
            assert store.events(events[0].stream) == as_read(*kept[:2]), _OTHERS
            assert store.events(events[3].stream) == as_read(*kept[2:]), _OTHERS
            assert [row[2:] for row in store.index_rows()] == sorted(each[:2] for each in kept) * 3, _LEFT
            assert sorted(store.uses([(reference, use_id)])) == as_read(*kept)
            assert harness.raw_counts() == (1, 4)
        store.append([events[1]])
        assert store.events(events[0].stream) == as_read(*events[:3])

    def test_pruned_records(self, store: TokenStore, harness: StoreHarness) -> None:
        """Records go if they have the stated revision still, counts follow, and their tokens are free again."""
        records = [a_record(n) for n in range(6)]
        store.insert(records, [])
        store.replace([replaced(records[2])], [])
        named = [(each.token, 1) for each in records[:3]]
        for _ in range(2):
            store.prune([], [*named, (a_record(9).token, 1)])
            left = store.get([record.token for record in records])
            assert sorted(left) == sorted([replaced(records[2]), *records[3:]]), _STALE
            assert_counted(store)
        assert harness.raw_counts() == (4, 0)
        assert store.insert([records[0]], []) == []
        store.prune([])
        assert_counted(store)

    def test_a_prune_of_many(self, store: TokenStore, harness: StoreHarness) -> None:
        """As many as one write takes go at once."""
        count = most(store, 3) // 2
        events = [an_event(n + 1)._replace(index_rows=(IndexRow(n.to_bytes(16)),)) for n in range(count)]
        records = [a_record(n) for n in range(count)]
        store.insert(records, [])
        store.append(events)
        store.prune(events, [(record.token, 1) for record in records])
        assert harness.raw_counts() == (0, 0)
        assert (store.index_rows(), store.groups(), store.streams()) == ([], [], [])
