"""How full each program is, and when it will be, at the rate of late."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Final

import attrs

from tokenvault.errors import boundary_init, shown_float
from tokenvault.model import checks
from tokenvault.runtime import NOW_MS_MAX
from tokenvault.stores.port import TOKEN_DIGITS_MAX, TokenGroup
from tokenvault.vault.core import Core

RECENT_DAYS: Final = 30
RECENT_DAYS_MAX: Final = 3_650

SAMPLE: Final = 200
"""Records that one read of a group takes at most: fewer in the recent time are counted exactly."""

PARTS: Final = 8
"""Into how many shorter parts of the recent time it is looked, each four times as long as the one before."""

_COMMON_PAN_LENGTH: Final = 16
_DAY_MS: Final = 86_400_000
_LAST: Final = "9" * TOKEN_DIGITS_MAX
"""No token comes after it."""


@boundary_init
@attrs.frozen(kw_only=True)
class Capacity:
    """How full a program is.

    Attributes:
        program: its name.
        issued: tokens that there are, deleted ones too: they are never issued again.
        expected: tokens that it is planned for.
        space: different tokens that there could be, for card numbers of 16 digits unless the format says the length.
        per_day: tokens issued on a day of the recent time: exact where a requestor has few, else an estimate by
            the latest of them.
        expected_at: when it has the tokens that it is planned for, at this rate; None: it has them, or never.
        full_at: when it has all that there could be, at this rate; None: it has them, or never.
    """

    program: str
    issued: int
    expected: int
    space: int
    per_day: float = attrs.field(default=0.0, repr=shown_float)
    expected_at: datetime | None = None
    full_at: datetime | None = None

    @property
    def density(self) -> float:
        """The chance that a guess hits a token: issued ones for each that there could be."""
        return self.issued / self.space


async def capacity(core: Core, recent_days: int) -> tuple[Capacity, ...]:
    """Each program of the vault, in the order of its configuration. Raises InvalidInputError.

    Read are counts by an index, and of each group of tokens at most (PARTS + 1) * SAMPLE
    records, where they came evenly a third more than SAMPLE and the last read.
    """
    days = checks.whole_number("recent_days", recent_days, 1, RECENT_DAYS_MAX)
    await core.parties.refresh()
    programs = core.parties.known.by_name
    now_ms = core.clock.now_ms()
    issued: Counter[str] = Counter()
    recent: Counter[str] = Counter()
    for group in await core.store.groups():
        if group.program in programs:
            have = await core.store.count(*group)
            issued[group.program] += have
            recent[group.program] += await _recent(core, group, have, days * _DAY_MS, now_ms)
    found = []
    for program in programs.values():
        have, rate = issued[program.name], recent[program.name] / days
        space = program.format.capacity(program.format.length or _COMMON_PAN_LENGTH)
        found.append(
            Capacity(
                program=program.name,
                issued=have,
                expected=program.expected_tokens,
                space=space,
                per_day=rate,
                expected_at=_when(now_ms, program.expected_tokens - have, rate),
                full_at=_when(now_ms, space - have, rate),
            )
        )
    return tuple(found)


async def _recent(core: Core, group: TokenGroup, have: int, span_ms: int, now_ms: int) -> int:
    """How many tokens of a group were issued in a time until now.

    Exact where its first one is of that time, or SAMPLE are not. Otherwise by the longest part of the time that has
    fewer, where that is more than the mean since the first one: tokens that come in bursts, as from a nightly import,
    may all stand outside of that part. No fewer than were seen, no more than the group has.
    """
    first = await core.store.list_tokens(*group, limit=1)
    if not first:
        return 0
    age_ms = now_ms - first[0].created_ms
    if age_ms <= span_ms:
        return have
    estimate = 0
    for part in range(PARTS, -1, -1):
        begin_ms = now_ms - (span_ms >> 2 * part)
        rows = await core.store.list_tokens(*group, after=(max(begin_ms, 0) - 1, _LAST), limit=SAMPLE)
        if len(rows) == SAMPLE:
            return min(have, max(estimate, SAMPLE, round(have * span_ms / age_ms)))
        estimate = len(rows) << 2 * part
    return estimate


def _when(now_ms: int, free: int, per_day: float) -> datetime | None:
    """When so many more tokens are issued; None of none, or where that is beyond the year 9999."""
    if free <= 0 or per_day <= 0:
        return None
    at_ms = now_ms + free / per_day * _DAY_MS
    return checks.utc(int(at_ms)) if at_ms <= NOW_MS_MAX else None
