"""Records, events and rows of the index as the values that statements take."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

from tokenvault.stores.new_records import IndexColumns
from tokenvault.stores.port import SealedEvent
from tokenvault.stores.postgres.statements import EVENT, INDEX


def columns_of(rows: Sequence[tuple[Any, ...]], names: Collection[str]) -> list[Sequence[Any]]:
    """The fields of rows, a column each."""
    return list(zip(*rows, strict=True)) or [()] * len(names)


def event_values(events: Sequence[SealedEvent]) -> list[Any]:
    """Few events, one after the other, and their rows in the index as columns."""
    return [*chain.from_iterable(event[: len(EVENT)] for event in events), *_index_columns(events)]


def event_columns(events: Sequence[SealedEvent]) -> list[Sequence[Any]]:
    """Any number of events as columns, and their rows in the index as well."""
    return [*columns_of([event[: len(EVENT)] for event in events], EVENT), *_index_columns(events)]


def _index_columns(events: Sequence[SealedEvent]) -> list[Sequence[Any]]:
    """Of each event's rows: references, use ids, streams, numbers."""
    rows: list[tuple[Any, ...]] = []
    for event in events:
        index = event.index_rows
        names = index.names() if isinstance(index, IndexColumns) else index
        rows += [(reference, use_id, event.stream, event.number) for reference, use_id in names]
    return columns_of(rows, INDEX)
