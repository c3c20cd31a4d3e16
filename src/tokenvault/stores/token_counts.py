"""How many records each group has, which a store keeps beside them: counting them takes longer the more there are.

A write changes the counts in the atomic step in which it changes the records, and last: whoever waits for a count
holds all else that it needs, so that two writers can not wait for each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenvault.stores.new_records import RecordBatch
from tokenvault.stores.port import SealedRecord, TokenGroup


def group_of(record: SealedRecord) -> TokenGroup:
    """The group of a record."""
    return TokenGroup(record.requestor, record.program, record.status)


def counts_of(records: Sequence[SealedRecord]) -> Counter[TokenGroup]:
    """How many of these records each group has."""
    if isinstance(records, RecordBatch):  # all of one group
        return Counter({TokenGroup(records.requestor, records.program, records.status): len(records)})
    return Counter(map(group_of, records))


def changes(old: Iterable[TokenGroup], new: Iterable[TokenGroup]) -> Counter[TokenGroup]:
    """By how much the counts change where records go from old groups to new ones."""
    found = Counter(new)
    found.subtract(Counter(old))
    return found


def sorted_changes(found: Counter[TokenGroup]) -> list[tuple[TokenGroup, int]]:
    """The groups whose count changes, in the order in which every writer takes them."""
    return sorted((group, number) for group, number in found.items() if number)
