"""Conformance of token stores: writes of many records keep the promises that a write of one keeps."""

from __future__ import annotations

from typing import Final

from tokenvault.stores.port import TokenStore
from tokenvault.testing.token_store_harness import StoreHarness, a_record, an_event, most, replaced
from tokenvault.testing.token_store_writes import WritingContract, a_batch

_MANY: Final = 6_000
"""How many records are written at once: more than a statement of any database takes values for."""

_TAKEN: Final = (
    "an insertion of many records does not name each token that exists: it looks for some, or for none"
)
_MOVED: Final = (
    "a replacement of many records does not name each whose revision has moved: it compares some revisions, or "
    "none, and undoes what others wrote"
)
_UNFENCED: Final = (
    "a fence of many tokens does not name each whose revision has moved: it looks at some of them"
)
_PRUNED: Final = "a prune of many records does not leave those that have another revision than was stated"
_PART: Final = "a write of many that was refused left something of itself"


class ManyContract(WritingContract):
    """An adapter that has another path for many looks at each of them there too."""

    def test_each_of_many_is_looked_at(self, store: TokenStore, harness: StoreHarness) -> None:
        """Of many, the two that are not as stated are named, and nothing is written.

        They stand in the middle and at the end: a path that looks at the first, or at so many, does not see them.
        """
        records = [a_record(n) for n in range(min(most(store), _MANY))]
        two = [records[len(records) // 2], records[-1]]
        others = [record for record in records if record not in two]
        names = sorted(record.token for record in two)
        assert store.insert(two, []) == []
        assert sorted(store.insert(records, [an_event(1)])) == names, _TAKEN
        assert harness.raw_counts() == (2, 0), _PART
        assert store.insert(others, []) == store.replace(list(map(replaced, two)), []) == []
        assert sorted(store.replace(list(map(replaced, records)), [an_event(1)])) == names, _MOVED
        stated = [(record.token, 1) for record in records]
        assert sorted(store.append([an_event(1)], stated)) == names, _UNFENCED
        assert harness.raw_counts() == (len(records), 0), _PART
        assert store.scan() == sorted([*others, *map(replaced, two)]), _PART
        store.prune([], stated)
        assert store.scan() == sorted(map(replaced, two)), _PRUNED

    def test_each_of_a_record_batch_is_looked_at(self, store: TokenStore, harness: StoreHarness) -> None:
        """Likewise where the records that are inserted come as columns."""
        batch = a_batch(range(min(most(store), _MANY)))
        two = [batch[len(batch) // 2], batch[-1]]
        assert store.insert(two, []) == []
        assert sorted(store.insert(batch, [an_event(1)])) == sorted(record.token for record in two), _TAKEN
        assert harness.raw_counts() == (2, 0), _PART
