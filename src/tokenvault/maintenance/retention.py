"""What a vault need not keep: the cards of customers who leave, and of tokens whose winding down is over.

Both become tombstones, as deletion makes them, page by page and beside running vaults. What is done stands in the
records, so a task that was cut short is taken up by calling it again. A purge then deletes what a policy says:
`tombstones` and events (`purging`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Final

import attrs
import numpy as np

from tokenvault.audit.batch_event import Kind
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Action, Outcome
from tokenvault.errors import ConflictError, IntegrityError
from tokenvault.maintenance.archiving import open_archive
from tokenvault.maintenance.policy import Retention
from tokenvault.maintenance.purging import Deadlines, Deletions, EventPurge
from tokenvault.maintenance.tombstones import TombstonePurge
from tokenvault.maintenance.upkeep import Upkeep
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.records.record import STATUS_CODES, TokenRecord
from tokenvault.stores.port import SealedRecord
from tokenvault.vault.alterations import tombstone

PASSES_MAX: Final = 1_000
"""How often the records are gone through until none is left."""

ATTEMPTS_MAX: Final = 8
"""How often a page is written again without the records that others changed first."""


@attrs.frozen
class Purged:
    """What `forget` or `purge` did.

    Attributes:
        done: tokens whose card is gone by this call; they are deleted.
        unreadable: records and events that are not what a vault wrote: they stay as they are.
        tombstones: records of deleted tokens that a policy let go.
        events: events that a policy let go; uses: how many of them were of uses.
    """

    done: int
    unreadable: int
    tombstones: int = 0
    uses: int = 0
    events: int = 0


@attrs.frozen
class _Task:
    at: Upkeep
    action: Action
    operator: str | None
    wanted: Callable[[TokenRecord], bool]
    pages: Callable[[], AsyncIterator[list[SealedRecord]]]


async def forget(customer: str, operator: str | None, page: int, at: Upkeep) -> Purged:
    """Delete every token of a customer."""

    async def pages() -> AsyncIterator[list[SealedRecord]]:
        after = ""
        while rows := await at.store.find_customer(customer, after=after, limit=page):
            yield rows
            after = rows[-1].token

    def wanted(record: TokenRecord) -> bool:
        return record.customer == customer

    return await _until_none_is_left(_Task(at, Action.FORGET, operator, wanted, pages))


async def purge(
    policy: Retention, archive: Path | None, operator: str | None, page: int, at: Upkeep
) -> Purged:
    """Delete every token whose winding down is over, and then what a policy says."""
    began_ms = at.clock.now_ms()
    purged = await _wound_down(operator, page, at)
    deletions = Deletions(at)
    if policy.tombstones is not None:
        before_ms = _before(policy.tombstones, at) or 0
        tombstones = TombstonePurge(deletions, before_ms, policy.random_programs, operator, page)
        purged = attrs.evolve(purged, tombstones=await tombstones.run())
        purged = attrs.evolve(purged, unreadable=purged.unreadable + tombstones.unreadable)
    if policy.uses is not None or policy.events is not None:
        deadlines = Deadlines(_before(policy.uses, at), _before(policy.events, at))
        with ExitStack() as opened:
            file = None
            if archive is not None:
                file = await at.runtime.block(open_archive, archive, at)
                opened.callback(file.close)
            gone = await EventPurge(deletions, deadlines, file, operator, page).run(began_ms)
        purged = attrs.evolve(
            purged, events=gone.events, uses=gone.uses, unreadable=purged.unreadable + gone.unreadable
        )
    await deletions.finish()
    return purged


def _before(age: timedelta | None, at: Upkeep) -> int | None:
    return None if age is None else at.clock.now_ms() - age // timedelta(milliseconds=1)


async def _wound_down(operator: str | None, page: int, at: Upkeep) -> Purged:
    """Delete every token whose winding down is over."""
    now_ms = at.clock.now_ms()

    async def pages() -> AsyncIterator[list[SealedRecord]]:
        for group in await at.store.groups():
            after = (-1, "")
            while group.status == STATUS_CODES[TokenStatus.WINDING_DOWN]:
                rows = await at.store.list_tokens(*group, after=after, limit=page)
                if not rows:
                    break
                yield rows
                after = (rows[-1].created_ms, rows[-1].token)

    def wanted(record: TokenRecord) -> bool:
        return record.status is TokenStatus.WINDING_DOWN and 0 <= record.purge_after_ms <= now_ms

    return await _until_none_is_left(_Task(at, Action.PURGE, operator, wanted, pages))


async def _until_none_is_left(task: _Task) -> Purged:
    """Go through the records until a pass finds none to delete: vaults may issue tokens meanwhile."""
    done = 0
    for _ in range(PASSES_MAX):
        found = unreadable = 0
        async for rows in task.pages():
            written, left, doubtful = await _delete_page(task, rows)
            done += written
            found += written + left
            unreadable += doubtful
        if not found:
            return Purged(done, unreadable)
    raise ConflictError("others keep changing records that are to be deleted: call again")


async def _delete_page(task: _Task, rows: list[SealedRecord]) -> tuple[int, int, int]:
    """Delete what is to be deleted of a page: how many are done, left because others changed them, not genuine."""
    at = task.at
    if at.versions.stale:
        await at.versions.refresh()
    changed, unreadable = await at.runtime.block(_tombstones, task, rows)
    left = 0
    for _ in range(ATTEMPTS_MAX):
        if not changed:
            break
        in_the_way = set(await _write(task, changed))
        if not in_the_way:
            return len(changed), left, unreadable
        left += len(in_the_way)
        changed = [row for row in changed if row.token not in in_the_way]
    return 0, left + len(changed), unreadable


def _tombstones(task: _Task, rows: list[SealedRecord]) -> tuple[list[SealedRecord], int]:
    """The tombstones of those that are to be deleted, and how many of a page are not genuine."""
    keys, now_ms = task.at.versions.ring, task.at.clock.now_ms()
    cards, genuine = keys.unseal_many(rows)
    found = []
    unreadable = len(rows) - int(genuine.sum())
    for place in np.flatnonzero(genuine & (cards.pans.lengths > 0)).tolist():
        try:
            record = TokenRecord.parse(rows[place])
        except IntegrityError:  # a genuine row that no vault of this release writes
            unreadable += 1
            continue
        card = cards.card(place)
        if card is not None and task.wanted(record):
            deleted = tombstone(keys, record, card.pan)
            later = deleted._replace(updated_ms=now_ms, revision=record.revision + 1)
            found.append(keys.seal(later, None))
    return found, unreadable


async def _write(task: _Task, rows: list[SealedRecord]) -> list[str]:
    """Write tombstones with their event, all or none; returns the tokens of those that others changed first."""
    at = task.at
    notes = BatchEventBuilder(len(rows), at.trail.ids.kept)
    for place, row in enumerate(rows):
        notes.note(place, row.reference, row.revision, Kind(Outcome.DONE, operator=task.operator))
    event = notes.event(at.clock.now_ms(), task.action)
    if event is None:
        return []
    return await at.trail.write(event, lambda: rows, lambda events, sealed: at.store.replace(sealed, events))
