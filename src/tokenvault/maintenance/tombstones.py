"""Tombstones past their time: named by an event, to which a checkpoint commits, and then deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np

from tokenvault.audit.batch_event import Kind
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Action, Event, Outcome, source_of
from tokenvault.errors import IntegrityError
from tokenvault.maintenance.purging import Deletions
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.records.record import STATUS_CODES, TokenRecord
from tokenvault.stores.port import SealedRecord

ABOUT_PAGE: Final = 64


class _Tombstone(NamedTuple):
    record: TokenRecord
    row: SealedRecord


class TombstonePurge:
    """Deletes the records of tokens that were deleted long ago.

    Args:
        deletions: names and deletes.
        deleted_before_ms: what was deleted since stays.
        random_programs: of which nothing is counted on.
        operator: who stands in the events.
        page: records of one step.
    """

    def __init__(
        self,
        deletions: Deletions,
        deleted_before_ms: int,
        random_programs: frozenset[str],
        operator: str | None,
        page: int,
    ) -> None:
        self._deletions: Final = deletions
        self._at: Final = deletions.at
        self._before_ms: Final = deleted_before_ms
        self._random_programs: Final = random_programs
        self._operator: Final = operator
        self._page: Final = self._at.store.write_limits.items(2, page)
        self.unreadable = 0

    async def run(self) -> int:
        """Go through all tombstones. Returns how many it deleted."""
        done = 0
        async for rows in self._pages():
            if self._at.versions.stale:
                await self._at.versions.refresh()
            old = await self._at.runtime.block(self._old, rows)
            gone = [each.row for each in old if not await self._leads_on(each.record.reference)]
            if not gone:
                continue
            notes = BatchEventBuilder(len(gone), self._at.trail.ids.kept)
            for place, row in enumerate(gone):
                notes.note(place, row.reference, row.revision, Kind(Outcome.DONE, operator=self._operator))
            event = notes.event(self._at.clock.now_ms(), Action.PURGE_TOKENS)
            if event is not None:
                await self._deletions.note(event, records=[(row.token, row.revision) for row in gone])
            done += len(gone)
        return done

    async def _pages(self) -> AsyncIterator[list[SealedRecord]]:
        for group in await self._at.store.groups():
            after = (-1, "")
            while group.status == STATUS_CODES[TokenStatus.DELETED]:
                rows = await self._at.store.list_tokens(*group, after=after, limit=self._page)
                if not rows:
                    break
                yield rows
                after = (rows[-1].created_ms, rows[-1].token)

    def _old(self, rows: list[SealedRecord]) -> list[_Tombstone]:
        """Those of a page that are past their time."""
        cards, genuine = self._at.versions.ring.unseal_many(rows)
        self.unreadable += len(rows) - int(genuine.sum())
        found = []
        for place in np.flatnonzero(genuine & (cards.pans.lengths == 0)).tolist():
            try:
                record = TokenRecord.parse(rows[place])
            except IntegrityError:  # a genuine row that no vault of this release writes
                self.unreadable += 1
                continue
            if (
                record.status is TokenStatus.DELETED
                and record.updated_ms < self._before_ms
                and not self._counts_on(record)
            ):
                found.append(_Tombstone(record, rows[place]))
        return found

    def _counts_on(self, record: TokenRecord) -> bool:
        """Whether limits may still count for the card of a tombstone, if its program gives it a token again."""
        now_ms = self._at.clock.now_ms()
        lasting = any(counter.ends_ms >= now_ms for counter in record.usage.counters)
        lasting = lasting or record.usage.cryptogram_counter >= 0
        return lasting and record.program not in self._random_programs

    async def _leads_on(self, reference: bytes) -> bool:
        """Whether a token that was issued from this one has a record: it is found by this one's."""
        cursor, more = b"", True
        while more:
            page = await self._at.store.events_about(reference, after=cursor, limit=ABOUT_PAGE)
            for row in await self._at.runtime.block(self._at.versions.ring.audit.genuine, page.events):
                with suppress(IntegrityError):  # the event of a batch
                    event = Event.parse(row)
                    if source_of(event) == reference and await self._at.store.by_reference(event.reference):
                        return True
            cursor = page.next
            more = bool(cursor)
        return False
