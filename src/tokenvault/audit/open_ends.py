"""The ends of streams that no checkpoint closes: found, so that a checkpoint of another stream can name them.

A stream that ended without closing ends in events that none of its own checkpoints covers. Once another stream
names the last of them, it can not be taken away unseen. A stream is known by its latest checkpoint, or its first
event. Where it ends is looked for

- by the first checkpoint of a stream and by the one that closes it: for each of the VIEW_MAX newest streams that is
  open, and behind the end that is named already, if one is;
- by the checkpoints between: for each of the newest that has written no checkpoint since the one before, once.

Oldest streams come first, at most OPEN_ENDS_MAX ends a checkpoint. What the latest checkpoints of other streams name
is not named again by a first one, so that vaults which open and close in turn name the ends of ever more streams; one
that closes repeats what there is room for, as it is the one that stays in sight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from tokenvault.audit.checkpoint import CROSS_REFERENCES_MAX
from tokenvault.audit.event import Event, is_open
from tokenvault.audit.journal import Entry
from tokenvault.errors import IntegrityError
from tokenvault.stores.port import AsyncTokenStore, SealedEvent

VIEW_MAX: Final = 256
"""The newest streams whose ends a first checkpoint, and one that closes, looks for."""

OPEN_ENDS_MAX: Final = 32
"""Ends of open streams that one checkpoint names: half of its cross-references."""

SEARCH_STEPS_MAX: Final = 128
"""Reads that look for the last event of a stream, one event each."""


def view_of(entry: Entry) -> int:
    """How many streams the checkpoint of an entry looks at."""
    return VIEW_MAX if entry.at_an_edge else CROSS_REFERENCES_MAX


def candidates(entry: Entry, latest: Iterable[SealedEvent]) -> list[SealedEvent]:
    """Of the latest checkpoints of streams, those behind which the checkpoint of an entry looks, oldest first."""
    stream = entry.stream
    others = [row for row in latest if row.stream != stream.name and is_open(row)]
    if not entry.at_an_edge:
        others = [
            row
            for row in others
            if stream.looked_behind.get(row.stream) != row.number <= stream.referenced.get(row.stream, 0)
        ]
    return sorted(others, key=lambda row: row.stream)


async def with_open_ends(
    store: AsyncTokenStore, entry: Entry, latest: Sequence[SealedEvent], genuine: Sequence[SealedEvent]
) -> list[SealedEvent]:
    """What the checkpoint of an entry refers to: the latest checkpoints of other streams, and the ends of open ones.

    Args:
        store: where the ends are.
        entry: of the checkpoint; it notes where was looked.
        latest: the latest checkpoints of streams.
        genuine: those that a vault wrote.
    """
    named = _named(genuine)
    closes = entry.event is None
    ends: list[SealedEvent] = []
    again: list[SealedEvent] = []
    for row in candidates(entry, genuine):
        if len(ends) == OPEN_ENDS_MAX:
            break
        known = max(entry.stream.referenced.get(row.stream, 0), named.get(row.stream, 0))
        behind = max(row.number, known - closes)  # to be named again, the end has to be read
        end = await _last_behind(store, row.stream, behind)
        entry.looked_behind[row.stream] = row.number
        if end is None and known < row.number:
            end = row
        if end is not None:
            (ends if end.number > known else again).append(end)
    again = again[: OPEN_ENDS_MAX - len(ends)]
    entry.repeated = frozenset(row.stream for row in again)
    ends += again
    youngest = sorted((row for row in latest if row not in ends), key=lambda row: row.stream, reverse=True)
    return [*youngest[: CROSS_REFERENCES_MAX - len(ends)], *ends]


def _named(genuine: Iterable[SealedEvent]) -> Mapping[bytes, int]:
    """By stream, the last event that a checkpoint among these refers to."""
    named: dict[bytes, int] = {}
    for row in genuine:
        with suppress(IntegrityError):  # of an event of a batch, which is no checkpoint
            checkpoint = Event.parse(row).checkpoint
            for each in () if checkpoint is None else checkpoint.cross_references:
                named[each.stream] = max(each.number, named.get(each.stream, 0))
    return named


async def _last_behind(store: AsyncTokenStore, stream: bytes, number: int) -> SealedEvent | None:
    """The last event of a stream behind a number, found in at most SEARCH_STEPS_MAX reads."""
    last, step = None, 1
    with suppress(IntegrityError):  # a malformed row: verification reports it
        for _ in range(SEARCH_STEPS_MAX):
            page = await store.events(stream=stream, after=number + step - 1, limit=1)
            if page:
                last, number, step = page[0], page[0].number, 2 * step
            elif step == 1:
                break
            else:
                step //= 2
    return last
