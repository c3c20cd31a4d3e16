"""What a purge takes out of the trail: events past their time, uses among them, page by page.

Each page goes in this order, so that a kill at any point loses nothing and leaves a trail that verifies:

1. The archive, if there is one, holds its events and is on the disk.
2. An event of the purge names them, with their hashes and the changes that they tell of (`purge_note`).
3. A checkpoint commits to that event.
4. They are deleted, in one atomic step.

What an event named and is there still, after a kill between 2 and 4, is named by another event with the same text,
and then deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import attrs

from tokenvault.audit.archive import ArchiveFile
from tokenvault.audit.batch_event import BatchEvent, changes_of, items, parse
from tokenvault.audit.event import Action, Event, Outcome, is_of_purge, leaf_of, source_of
from tokenvault.audit.purge_note import CHANGE_BYTES, EVENT_BYTES_MAX, PurgedRuns, PurgeNote
from tokenvault.errors import IntegrityError
from tokenvault.maintenance.archiving import event_pages
from tokenvault.maintenance.upkeep import Upkeep
from tokenvault.stores.index_rows import NO_USE, cursor_of
from tokenvault.stores.port import INTEGER_MAX, PAGE_MAX, STREAM_BYTES, Fence, SealedEvent
from tokenvault.stores.write_limits import ROW_BYTES

KEPT: Final = frozenset(
    {
        Action.ACKNOWLEDGE,
        Action.PURGE_EVENTS,
        Action.PURGE_TOKENS,
        Action.ADD_KEY_VERSION,
        Action.MAKE_PRIMARY,
        Action.RETIRE_KEY,
        Action.DESTROY_KEY,
        Action.INTRODUCE_SIGNER,
    }
)
"""What later verifications, and the history of the keys, rest on. Few, and without persons or payments."""

ABOUT_PAGE: Final = 64
USES_AT_ONCE: Final = 200
"""Uses whose other events are looked up at once: those of batches may be 1 MiB each."""

_BODY_BYTES: Final = 1_000
"""What an event of a purge takes beside its note."""

_TIME_BYTES: Final = 6


@attrs.frozen
class Deadlines:
    """Before when what has happened is past its time, in milliseconds of the Unix epoch; None: it stays."""

    uses_ms: int | None
    events_ms: int | None

    def of(self, event: Event | BatchEvent) -> int:
        """That of an event; 0 where it stays."""
        return (self.uses_ms if event.action is Action.DETOKENIZE else self.events_ms) or 0


@attrs.define
class Gone:
    """What a purge took out of the trail, and the rows that it left because no vault wrote them."""

    events: int = 0
    uses: int = 0
    unreadable: int = 0


class _Old(NamedTuple):
    """An event past its time."""

    row: SealedEvent
    event: Event | BatchEvent
    changes: frozenset[tuple[bytes, int]]

    @property
    def rows(self) -> int:
        """Rows of the database that go with it."""
        return 1 + len(self.row.index_rows)


class Deletions:
    """Names what is to go by events of a trail that writes a checkpoint before each, and deletes it then."""

    def __init__(self, at: Upkeep) -> None:
        self.at: Final = at
        self._events: tuple[SealedEvent, ...] = ()  # named by an event that no checkpoint commits to yet
        self._records: Fence = ()

    async def note(
        self, event: Event | BatchEvent, *, events: tuple[SealedEvent, ...] = (), records: Fence = ()
    ) -> None:
        """Write an event that names events or records, and delete what the one before named."""
        await self.at.trail.note(event)
        await self._delete(events, records)

    async def finish(self) -> None:
        """Close the trail, and delete what is left."""
        await self.at.trail.close(self.at.clock.now_ms())
        await self._delete((), ())

    async def _delete(self, events: tuple[SealedEvent, ...], records: Fence) -> None:
        (named, fence), self._events, self._records = (self._events, self._records), events, records
        if named or fence:
            await self.at.store.prune(named, fence)


class EventPurge:
    """Takes events out of all streams that are older than its own.

    Args:
        deletions: names and deletes.
        deadlines: what is past its time.
        archive: where events go before; None: nowhere.
        operator: who stands in the events.
        page: events of one step, at most.
    """

    def __init__(
        self,
        deletions: Deletions,
        deadlines: Deadlines,
        archive: ArchiveFile | None,
        operator: str | None,
        page: int,
    ) -> None:
        self._deletions: Final = deletions
        self._at: Final = deletions.at
        self._deadlines: Final = deadlines
        self._archive: Final = archive
        self._operator: Final = operator
        self._page: Final = page
        self._not_vouched: frozenset[tuple[bytes, int]] = frozenset()
        self.gone: Final = Gone()

    async def run(self, began_ms: int) -> Gone:
        """Go through all streams that are older than a time, before which the trail of the purge did not begin."""
        self._not_vouched = await self._unsigned()
        for stream in sorted(await self._at.store.streams()):
            if len(stream) == STREAM_BYTES and int.from_bytes(stream[:_TIME_BYTES]) < began_ms:
                await self._stream(stream)
        return self.gone

    async def _unsigned(self) -> frozenset[tuple[bytes, int]]:
        """The last checkpoints of streams that no signature of their own speaks for: who refers to them stays."""
        if self._at.versions.ring.audit.signer is None:
            return frozenset()
        found = set()
        for row in await self._at.store.latest_checkpoints(PAGE_MAX):
            with suppress(IntegrityError):
                event = parse(row)
                if isinstance(event, Event) and event.checkpoint is not None and not event.checkpoint.key_id:
                    found.add((row.stream, row.number))
        return frozenset(found)

    async def _stream(self, stream: bytes) -> None:
        """Take out what is past its time of one stream; its last checkpoint stays."""
        runs, notes = await self._named_before(stream)
        last: _Old | None = None
        newest = 0  # checkpoint of the stream, by its number
        waiting: list[_Old] = []
        async for rows, malformed in event_pages(stream, 0, self._at):
            self.gone.unreadable += malformed
            genuine = await self._at.runtime.block(self._at.versions.ring.audit.genuine, rows)
            self.gone.unreadable += len(rows) - len(genuine)
            again = [row for row in genuine if runs.at(row.number)]
            await self._name_again(stream, again, notes)
            old, young = self._by_age([row for row in genuine if not runs.at(row.number)])
            newest = max([newest, *(row.number for row in genuine if row.reference == stream == row.stream)])
            for each in await self._not_needed(old):
                if each.row.reference == stream:  # a checkpoint has to wait for the next one
                    waiting += [] if last is None else [last]
                    last = each
                else:
                    waiting.append(each)
            waiting = await self._take_out(stream, waiting, all_of_it=False)
            if young and not old and not again:
                break
        if last is not None and last.row.number < newest:
            waiting.append(last)
        await self._take_out(stream, waiting, all_of_it=True)

    def _by_age(self, rows: Sequence[SealedEvent]) -> tuple[list[_Old], int]:
        """The events that are past their time, and how many others there are that are not."""
        old, young = [], 0
        for row in rows:
            try:
                event = parse(row)
            except IntegrityError:  # a newer release wrote it
                self.gone.unreadable += 1
                continue
            if event.time_ms >= max(self._deadlines.uses_ms or 0, self._deadlines.events_ms or 0):
                young += 1
            elif event.time_ms < self._deadlines.of(event) and not self._stays(event):
                rows_of_index = event.index_rows()
                old.append(_Old(row._replace(index_rows=rows_of_index), event, frozenset(changes_of(row))))
        return old, young

    def _stays(self, event: Event | BatchEvent) -> bool:
        """Whether an event is needed however old it is."""
        if event.action in KEPT:
            return True
        if isinstance(event, BatchEvent):
            return False
        if event.lock_out is not None:
            return event.lock_out.until_ms >= self._at.clock.now_ms()
        if event.checkpoint is not None:
            named = {(each.stream, each.number) for each in event.checkpoint.cross_references}
            return not named.isdisjoint(self._not_vouched)
        return bool(source_of(event))

    async def _not_needed(self, old: list[_Old]) -> list[_Old]:
        """Those that are no part of a use of which something is not past its time."""
        uses = [each for each in old if each.event.action is Action.DETOKENIZE]
        pairs = {pair for each in uses for pair in _uses_of(each.event)}
        needed: set[tuple[bytes, bytes]] = set()
        listed = sorted(pairs)
        for start in range(0, len(listed), USES_AT_ONCE):
            asked = listed[start : start + USES_AT_ONCE]
            for row in await self._at.store.uses(asked):
                with suppress(IntegrityError):
                    event = parse(row)
                    if event.time_ms >= (self._deadlines.uses_ms or 0):
                        needed.update(_uses_of(event, {reference for reference, _ in asked}))
        return [each for each in old if needed.isdisjoint(_uses_of(each.event))]

    async def _named_before(self, stream: bytes) -> tuple[PurgedRuns, list[PurgeNote]]:
        """What purges before this one named of a stream."""
        runs, notes, more = PurgedRuns(), [], True
        cursor = cursor_of(NO_USE, stream, INTEGER_MAX)
        while more:
            page = await self._at.store.events_about(stream, after=cursor, limit=ABOUT_PAGE)
            named = [row for row in page.events if is_of_purge(row)]
            for row in await self._at.runtime.block(self._at.versions.ring.audit.genuine, named):
                with suppress(IntegrityError):
                    note = Event.parse(row).purge
                    if note is not None and runs.add(note):
                        notes.append(note)
            cursor = page.next
            more = bool(cursor)
        return runs, notes

    async def _name_again(self, stream: bytes, rows: list[SealedEvent], notes: list[PurgeNote]) -> None:
        """Name what was named and is there still: nothing may commit to the event that did so."""
        left = {row.number: row for row in rows}
        for note in notes if rows else ():
            own = [n for run in note.runs for n in left if run.first <= n <= run.last]
            if own:
                whole = [left[number] for number in sorted(own)]
                await self._note(
                    stream, note, [row._replace(index_rows=parse(row).index_rows()) for row in whole]
                )

    async def _take_out(self, stream: bytes, waiting: list[_Old], *, all_of_it: bool) -> list[_Old]:
        """Take out events by steps as large as the store takes; returns those that are too few for one."""
        waiting.sort(key=lambda each: each.row.number)
        while waiting and (all_of_it or len(waiting) >= self._page):
            step = waiting[: self._fitting(waiting)]
            waiting = waiting[len(step) :]
            rows = [each.row for each in step]
            if self._archive is not None:
                await self._at.runtime.block(
                    self._archive.append, [row._replace(index_rows=()) for row in rows]
                )
            note = PurgeNote.of(
                [(row.number, leaf_of(row)) for row in rows], (pair for each in step for pair in each.changes)
            )
            await self._note(stream, note, rows)
            self.gone.events += len(step)
            self.gone.uses += sum(each.event.action is Action.DETOKENIZE for each in step)
        return waiting

    def _fitting(self, waiting: Sequence[_Old]) -> int:
        """How many events go in one step, at least one."""
        limits = self._at.store.write_limits
        rows = size = note = 0
        for count, each in enumerate(waiting[: self._page]):
            rows += each.rows
            size += len(each.row.body) + ROW_BYTES * each.rows
            note += EVENT_BYTES_MAX + CHANGE_BYTES * len(each.changes)
            if count and (
                rows > limits.rows or size > limits.bytes or note + _BODY_BYTES > limits.event_bytes
            ):
                return count
        return min(len(waiting), self._page)

    async def _note(self, stream: bytes, note: PurgeNote, rows: Sequence[SealedEvent]) -> None:
        """Name events, and then delete them."""
        event = Event(
            time_ms=self._at.clock.now_ms(),
            action=Action.PURGE_EVENTS,
            outcome=Outcome.DONE,
            reference=stream,
            operator=self._operator,
            purge=note,
        )
        await self._deletions.note(event, events=tuple(rows))


def _uses_of(event: Event | BatchEvent, only: set[bytes] | None = None) -> Iterator[tuple[bytes, bytes]]:
    """The uses that an event is part of: a reference with the use id of the use, or of the one that it follows."""
    if event.action is not Action.DETOKENIZE:
        return
    for item in items(event, only):
        use = item.use
        if use is not None and item.outcome is Outcome.DONE and not use.retry:
            yield item.reference, use.original or use.use_id
