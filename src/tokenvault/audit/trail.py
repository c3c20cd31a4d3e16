"""How events get into the store: numbered, sealed, and written with the change that they tell of.

A flow never waits for another's event: no lock is held while the store is asked. A write that failed is in doubt
until the store has been asked again; that comes before the next event.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import attrs

from tokenvault.audit.batch_event import BatchEvent
from tokenvault.audit.checkpoint import NAMED_MAX
from tokenvault.audit.event import Event
from tokenvault.audit.journal import Entry, Journal
from tokenvault.errors import IntegrityError
from tokenvault.runtime import Runtime
from tokenvault.stores.port import MALFORMED_EVENT, AsyncTokenStore, SealedEvent

T = TypeVar("T")

CLOSING_MAX: Final = 1_000
"""Checkpoints that closing writes at most, one for each number that was given back and not used again."""


@attrs.frozen
class Trail:
    """The audit trail as this vault writes it."""

    store: AsyncTokenStore
    runtime: Runtime
    journal: Journal

    async def note(self, event: Event) -> None:
        """Write an event that goes with no change. Raises TokenStoreError, KeyStoreError."""
        await self.write(event, _nothing, lambda events, _: self.store.append(events))

    async def write(
        self,
        event: Event | BatchEvent,
        seal: Callable[[], T],
        change: Callable[[tuple[SealedEvent, ...], T], Coroutine[Any, Any, list[str] | None]],
    ) -> list[str]:
        """Write an event by a change of the store that takes it along; returns the tokens in the way of that.

        Args:
            event: what is changed.
            seal: what else is to be asked of the key store.
            change: writes the event's rows, with what `seal` gave, in one atomic step.

        Raises:
            KeyStoreError: nothing was written.
            TokenStoreError: the change may have been made or not: it is found out before the next event.
        """
        journal = self.journal
        latest_checkpoints: Sequence[SealedEvent] = ()
        entry = journal.begin_at_once(event)
        if entry is None:
            checkpoint, latest_checkpoints = await self._tended(event.time_ms)
            entry = journal.begin(event, checkpoint=checkpoint)
        runtime = self.runtime
        try:
            if entry.due is not None:  # a checkpoint may be signed
                rows, sealed = await runtime.block(self._seal, entry, event.time_ms, latest_checkpoints, seal)
            elif runtime.inline:
                rows, sealed = self._seal(entry, event.time_ms, latest_checkpoints, seal)
            else:
                rows, sealed = await runtime.call(self._seal, entry, event.time_ms, latest_checkpoints, seal)
        except BaseException:
            journal.withdraw(entry)
            raise
        try:
            in_the_way = await change(rows, sealed)
        except BaseException:
            journal.doubt(entry)
            raise
        if in_the_way:
            journal.withdraw(entry)
            return in_the_way
        journal.written(entry)
        return []

    def _seal(
        self, entry: Entry, time_ms: int, latest_checkpoints: Sequence[SealedEvent], seal: Callable[[], T]
    ) -> tuple[tuple[SealedEvent, ...], T]:
        return self.journal.seal(entry, time_ms, latest_checkpoints), seal()

    async def close(self, time_ms: int) -> None:
        """Close this process's stream, if it wrote one, by a checkpoint that commits to all of it.

        While flows of other threads are under way, or after a write of which nothing is known, the stream stays as
        one that ended without closing. Raises TokenStoreError, KeyStoreError.
        """
        await self._settle()
        for _ in range(CLOSING_MAX):
            entry = self.journal.begin_closing()
            if entry is None:
                return
            try:
                latest_checkpoints = await self._latest_checkpoints()
                rows, _ = await self.runtime.block(self._seal, entry, time_ms, latest_checkpoints, _nothing)
            except BaseException:
                self.journal.withdraw(entry)
                raise
            try:
                await self.store.append(rows)
            except BaseException:
                self.journal.doubt(entry)
                raise
            self.journal.written(entry)
            if entry.ends:
                return

    async def _tended(self, time_ms: int) -> tuple[bool, Sequence[SealedEvent]]:
        """Settle doubts; whether a checkpoint is due, and the latest_checkpoints that it may name."""
        await self._settle()
        if not self.journal.due(time_ms):
            return False, ()
        return True, await self._latest_checkpoints()

    async def _latest_checkpoints(self) -> Sequence[SealedEvent]:
        try:
            return await self.store.latest_checkpoints(NAMED_MAX)
        except IntegrityError:
            return (MALFORMED_EVENT,)  # the checkpoint will tell; events are to be written all the same

    async def _settle(self) -> None:
        """Find out which failed writes were done after all, so that no number is left out or given twice."""
        doubts = self.journal.doubts()
        while doubts:
            entry = doubts[-1]
            written = asked = False
            there: list[SealedEvent] = []
            try:
                written = await self._found(entry, there)
                asked = True
            except IntegrityError:
                written = asked = True  # something stands there: verifying the events will tell
            finally:
                if not asked:
                    for doubtful in doubts:
                        self.journal.doubt(doubtful)
            doubts.pop()
            if written:
                self.journal.written(entry)
            else:
                self.journal.withdraw(entry, there)

    async def _found(self, entry: Entry, there: list[SealedEvent]) -> bool:
        """Whether an entry was written; if not, what stands `there` in its place.

        That is a write that was given up too early: it landed after its numbers were given to this entry.
        """
        for row in entry.rows:
            found = await self.store.events(stream=row.stream, after=row.number - 1, limit=1)
            there += [each for each in found if each.number == row.number]
        if tuple(there) == entry.rows:
            return True
        genuine = await self.runtime.block(self.journal.genuine, there)
        if len(there) == len(entry.rows) and not all(genuine):
            return True  # someone else's hand: verifying will tell
        there[:] = [row for row, right in zip(there, genuine, strict=True) if right]
        return False


def _nothing() -> None:
    return None
