"""How events get into the store: numbered, sealed, and written in one step with the change that they record.

A flow never waits for another's event: no lock is held while the store works. After a write that failed, the store
is read to find out whether it happened after all; that comes before the next event.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import attrs

from tokenvault.audit.batch_event import BatchEvent
from tokenvault.audit.event import Event
from tokenvault.audit.journal import Entry, Journal
from tokenvault.audit.open_ends import candidates, view_of, with_open_ends
from tokenvault.errors import IntegrityError
from tokenvault.model.clear_ids import ClearIds
from tokenvault.runtime import Runtime
from tokenvault.stores.port import MALFORMED_EVENT, AsyncTokenStore, Fence, SealedEvent

T = TypeVar("T")
Change: TypeAlias = Callable[[tuple[SealedEvent, ...], T], Coroutine[Any, Any, list[str] | None]]

CLOSING_MAX: Final = 1_000
"""Checkpoints that closing writes at most, one for each number that was given back and not used again."""


@attrs.frozen
class Trail:
    """The audit trail as this vault writes it. No event gets into it but by `write`, with ids that may be kept."""

    store: AsyncTokenStore
    runtime: Runtime
    journal: Journal
    ids: ClearIds

    async def note(self, event: Event | BatchEvent, fence: Fence = ()) -> list[str]:
        """Write an event alone, if the records of a fence have its revisions still. Returns the tokens that moved.

        Raises TokenStoreError, KeyStoreError.
        """
        return await self.write(event, _nothing, lambda rows, _: self.store.append(rows, fence))

    async def write(self, event: Event | BatchEvent, seal: Callable[[], T], change: Change[T]) -> list[str]:
        """Write an event together with a change of the store.

        Args:
            event: what is changed.
            seal: makes what else the change needs of the key store.
            change: writes the event's rows, with what `seal` made, in one atomic step.

        Returns:
            The tokens in the way of the change: then nothing was written.

        Raises:
            KeyStoreError: nothing was written.
            TokenStoreError: the change may have been made or not: it is found out before the next event.
        """
        if doubts := self.journal.doubts():
            await self._settle(doubts)
        if isinstance(event, Event):  # of a batch, the builder sees to it
            event = event.with_ids(self.ids.kept)
        entry = self.journal.entry(event)
        try:
            self.journal.begin(entry, event.time_ms, checkpoint=True)
            return await self._complete(entry, event.time_ms, seal, change)
        finally:
            entry.over = True

    async def close(self, time_ms: int) -> None:
        """Close this process's stream, if it wrote one, by a checkpoint that commits to all of it.

        While flows of other threads are under way, or after a write of unknown outcome, the stream stays as one that
        ended without closing. Raises TokenStoreError, KeyStoreError.
        """
        await self._settle(self.journal.doubts())
        for _ in range(CLOSING_MAX):
            entry = self.journal.closing_entry()
            if entry is None:
                return
            try:
                self.journal.begin_closing(entry)
                await self._complete(entry, time_ms, _nothing, self._append)
            finally:
                entry.over = True
            if not self.journal.filled_a_gap(entry):
                return

    async def _complete(
        self, entry: Entry, time_ms: int, seal: Callable[[], T], change: Change[T]
    ) -> list[str]:
        """Seal an entry and write it, and report to the journal how that ended, where it is known."""
        journal = self.journal
        try:
            if entry.checkpoint is None:
                rows, sealed = await self.runtime.call(self._seal, entry, time_ms, (), seal)
            else:  # it may be signed by the module, also where the other keys work in this process
                others = await self._others(entry)
                rows, sealed = await self.runtime.block(self._seal, entry, time_ms, others, seal)
        except BaseException:
            journal.withdraw(entry)
            raise
        in_the_way = await change(rows, sealed) or []
        if in_the_way:
            journal.withdraw(entry)
        else:
            self._done(entry)
        return in_the_way

    def _done(self, entry: Entry) -> None:
        self.journal.written(entry)

    def _seal(
        self, entry: Entry, time_ms: int, latest_checkpoints: Sequence[SealedEvent], seal: Callable[[], T]
    ) -> tuple[tuple[SealedEvent, ...], T]:
        return self.journal.seal(entry, time_ms, latest_checkpoints), seal()

    async def _append(self, rows: tuple[SealedEvent, ...], _: None) -> None:
        await self.store.append(rows)

    async def _others(self, entry: Entry) -> Sequence[SealedEvent]:
        """The events of other streams that the checkpoint of an entry refers to, and rows that no vault wrote."""
        try:
            latest = await self.store.latest_checkpoints(view_of(entry))
        except IntegrityError:
            return (MALFORMED_EVENT,)  # the checkpoint counts it; events are to be written all the same
        if not candidates(entry, latest):
            return sorted(latest, key=lambda row: row.stream, reverse=True)
        genuine = await self.runtime.block(self.journal.keys.genuine, latest)
        return await with_open_ends(self.store, entry, latest, genuine)

    async def _settle(self, doubts: list[Entry]) -> None:
        """Find out which failed writes happened after all, so that no number is left out or used twice."""
        for doubtful in doubts:
            entry = self.journal.heir(doubtful)
            try:
                if self.journal.take_over(doubtful, entry):
                    await self._settle_one(entry)
            finally:
                entry.over = True

    async def _settle_one(self, entry: Entry) -> None:
        found = await self._found_instead(entry)
        if found is None:
            self.journal.written(entry)
        else:
            self.journal.withdraw(entry, found)

    async def _found_instead(self, entry: Entry) -> Sequence[SealedEvent] | None:
        """None if an entry was written; otherwise the genuine events that have its numbers.

        Such an event is a write that was given up too early: it landed after its number was given to this entry.
        Rows in the entry's place that no vault wrote count as the entry: verification reports them.
        """
        found: list[SealedEvent] = []
        if not entry.rows:  # interrupted before it was sealed
            return found
        try:
            for row in entry.rows:
                page = await self.store.events(stream=row.stream, after=row.number - 1, limit=1)
                found += [each for each in page if each.number == row.number]
        except IntegrityError:  # a malformed row
            return None
        if found == [row._replace(index_rows=()) for row in entry.rows]:
            return None
        genuine = await self.runtime.block(self.journal.keys.genuine, found)
        return None if len(genuine) < len(found) == len(entry.rows) else genuine


def _nothing() -> None:
    return None
