"""Brings records under the primary keys, page by page, beside running vaults and beside other processes that do so.

What is done stands in the records themselves, so a task that was cut short is taken up by calling it again. A page is
written by compare and swap with its one event, as every change is: a record that a vault changed meanwhile is left as
the vault wrote it, and looked at again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import attrs

from tokenvault.audit.batch_event import Kind
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Action, Outcome
from tokenvault.errors import ConflictError, asked, shown_float
from tokenvault.maintenance.upkeep import Upkeep
from tokenvault.stores.port import PAGE_MAX, SealedRecord

PAGE: Final = 1_000
"""Records written in one step. A larger one is quicker, and keeps a database's writers waiting for longer."""

PASSES_MAX: Final = 1_000
"""How often all records are gone through until none is left."""

SKIPPED_PAGES_MAX: Final = 8
"""Pages left to another process that is found at work on the same ones."""

ATTEMPTS_MAX: Final = 8
"""How often a page is written again without the records that others changed first."""


@attrs.frozen
class Progress:
    """How far a task has come.

    Attributes:
        done: records renewed by this call.
        looked_at: records read in this pass, of `total`, which were there when the call began.
        seconds: since the first page was begun.
        unreadable: records that are not what a vault wrote: they stay as they are, and no version that they may be
            under can be retired.
    """

    done: int
    looked_at: int
    total: int
    seconds: float = attrs.field(repr=shown_float)
    unreadable: int = 0

    @property
    def seconds_left(self) -> float | None:
        """How long this pass will take, going on as so far; None before there is anything to go by."""
        if not self.looked_at or not self.total:
            return None
        return max(self.total - self.looked_at, 0) * self.seconds / self.looked_at


Report = Callable[[Progress], object]


@attrs.define
class _Task:
    """A call of `renew`, and what it has done so far."""

    at: Upkeep
    action: Action
    page: int
    rest: float
    report: Report | None
    begun: float = attrs.field(factory=time.monotonic)
    done: int = 0
    total: int = 0


async def renew(
    action: Action,
    page: int,
    rest: float,
    report: Report | None,
    at: Upkeep,
) -> Progress:
    """Bring all records under the primary SEAL key, or with REFINGERPRINT under the primary FINGERPRINT key too.

    Args:
        action: RESEAL or REFINGERPRINT.
        page: records written in one step.
        rest: pause after each page, as a share of the time that the page took.
        report: called after each page.
        at: the database, and the keys in force.
    """
    # Else a vault that has not noticed the primary key writes behind this pass, under the former one.
    await at.until_noticed()
    task = _Task(at, action, page, rest, report)
    if report is not None:
        task.total = await _count(at)
    for _ in range(PASSES_MAX):
        complete, progress = await _pass(task)
        if complete:
            return progress
    raise ConflictError("others keep changing records that are to be renewed: call again")


async def _count(at: Upkeep) -> int:
    count, after = 0, ""
    while rows := await at.store.scan(after=after, limit=PAGE_MAX):
        count, after = count + len(rows), rows[-1].token
    return count


async def _pass(task: _Task) -> tuple[bool, Progress]:
    """Go through all records once; whether none was left to others."""
    at = task.at
    complete, after, looked_at, unreadable, skip = True, "", 0, 0, 0
    while rows := await at.store.scan(after=after, limit=task.page):
        begun = time.monotonic()
        after, looked_at = rows[-1].token, looked_at + len(rows)
        if skip:
            skip -= 1
            continue
        done, left, doubtful = await _renew_page(task, rows)
        task.done += done
        unreadable += doubtful
        if left:
            complete = False
            # A process that comes behind another one all the time would only undo its own work.
            skip = secrets.randbelow(SKIPPED_PAGES_MAX) if left > done else 0
        if task.report is not None:
            problem = "progress failed; what was done so far stays done: call again"
            asked(problem, task.report, _progress(task, looked_at, unreadable))
        if done and task.rest:
            await at.runtime.sleep(task.rest * (time.monotonic() - begun))
    return complete, _progress(task, looked_at, unreadable)


def _progress(task: _Task, looked_at: int, unreadable: int) -> Progress:
    return Progress(task.done, looked_at, task.total, time.monotonic() - task.begun, unreadable)


async def _renew_page(task: _Task, rows: list[SealedRecord]) -> tuple[int, int, int]:
    """Renew what is to be renewed of a page: how many are done, left because others changed them, not genuine."""
    at = task.at
    if at.versions.stale:
        await at.versions.refresh()
    work = partial(at.versions.ring.renew_many, refingerprint=task.action is Action.REFINGERPRINT)
    renewed, unreadable = await at.runtime.block(work, rows)
    left = 0
    for _ in range(ATTEMPTS_MAX):
        if not renewed:
            return 0, left, unreadable
        in_the_way = set(await _write(task, renewed))
        if not in_the_way:
            return len(renewed), left, unreadable
        left += len(in_the_way)
        renewed = [row for row in renewed if row.token not in in_the_way]
    return 0, left + len(renewed), unreadable


async def _write(task: _Task, rows: list[SealedRecord]) -> list[str]:
    """Write rows with their event, all or none; returns the tokens of those that others changed first."""
    at = task.at
    notes = BatchEventBuilder(len(rows), at.trail.ids.kept)
    for place, row in enumerate(rows):
        notes.note(place, row.reference, row.revision, Kind(Outcome.DONE))
    event = notes.event(at.clock.now_ms(), task.action)
    if event is None:
        return []
    return await at.trail.write(event, lambda: rows, lambda events, sealed: at.store.replace(sealed, events))
