"""Limits of a domain, and the velocity counters that they read."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import Final, NamedTuple

import attrs

from tokenvault.errors import InvalidInputError, boundary_init
from tokenvault.model import checks
from tokenvault.model.money import Money

LIMIT_USES_MAX: Final = 10**9
WINDOW_SECONDS_MAX: Final = 10 * 366 * 86_400


class VelocityCounter(NamedTuple):
    """What is counted of a token's uses: their number, or money in a currency; per window or for life.

    Limits that count the same thing read one counter, whichever document they stand in and whatever their
    maximum: a limit that is raised from 10 uses to 20 leaves what was used as used.

    Attributes:
        currency: ISO 4217 code of the money counted; empty for uses.
        window_seconds: 0 for the token's life.
    """

    currency: str
    window_seconds: int

    def window(self, now_ms: int) -> int:
        """Number of the window that an instant lies in: whole windows since the Unix epoch."""
        return now_ms // (1_000 * self.window_seconds) if self.window_seconds else 0


def _duration(seconds: int) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds % length == 0:
            count = seconds // length
            return unit if count == 1 else f"{count} {unit}s"
    return f"{seconds} seconds"


@boundary_init
@attrs.frozen(kw_only=True)
class Limit:
    """At most so many uses, or so much money, per window or for the token's life.

    Attributes:
        uses: 1 to 10**9; or
        amount: more than 0, in the one currency that it counts; exactly one of the two is set. A use of amount 0
            never exceeds it: set a limit of uses too where that matters.
        per: whole seconds, up to ten years. Windows tumble: they are aligned to the Unix epoch, UTC.
            Unset, the limit is for the token's life.
    """

    uses: int | None = None
    amount: Money | None = None
    per: timedelta | None = None

    def __attrs_post_init__(self) -> None:
        if (self.uses is None) == (self.amount is None):
            raise InvalidInputError("a limit counts either uses or an amount")
        if self.uses is not None:
            checks.whole_number("a limit of uses", self.uses, 1, LIMIT_USES_MAX)
        if self.amount is not None and checks.instance("a limit's amount", self.amount, Money).amount == 0:
            raise InvalidInputError("a limit's amount is more than 0")
        if self.per is not None:
            per = checks.instance("a limit's window", self.per, timedelta)
            if per.microseconds or not 1 <= per.total_seconds() <= WINDOW_SECONDS_MAX:
                raise InvalidInputError("a limit's window is whole seconds, from 1 second to 10 years")

    @cached_property
    def _counter(self) -> VelocityCounter:
        """The velocity counter that it reads."""
        seconds = 0 if self.per is None else self.per.days * 86_400 + self.per.seconds
        return VelocityCounter("" if self.amount is None else self.amount.currency, seconds)

    def __str__(self) -> str:
        counted = f"{self.uses} uses" if self.amount is None else str(self.amount)
        if self.per is None:
            return f"{counted} in a token's life"
        return f"{counted} per {_duration(self._counter.window_seconds)}"
