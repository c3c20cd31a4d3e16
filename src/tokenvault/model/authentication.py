"""Strong authentication of a cardholder: what a transaction states of it, and what a domain takes for strong."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, cast

import attrs

from tokenvault.errors import boundary_init
from tokenvault.model import checks
from tokenvault.model.plain_text import plain_optional
from tokenvault.model.words import Words

AHEAD_MS_MAX: Final = 30_000
"""How far an authentication may lie in the future: the clocks of two hosts are never quite the same."""

MAX_AGE_SECONDS_MAX: Final = 366 * 86_400
FACTORS_DEFAULT: Final = 2


class Factor(Words):
    """What shows that it is the cardholder (Commission Delegated Regulation (EU) 2018/389, articles 6 to 8).

    POSSESSION: something that only the cardholder has, such as a device.
    KNOWLEDGE: something that only the cardholder knows, such as a PIN.
    INHERENCE: something that the cardholder is, such as a fingerprint.
    """

    POSSESSION = "possession"
    KNOWLEDGE = "knowledge"
    INHERENCE = "inherence"


def _factors(values: Iterable[Factor]) -> frozenset[Factor]:
    return cast("frozenset[Factor]", values)


@boundary_init
@attrs.frozen(kw_only=True)
class Authentication:
    """What the host has verified of the cardholder for one transaction.

    Attributes:
        factors: the different factors that were presented; one or more.
        at: when, with a time zone; rounded down to the millisecond. A use is refused while it lies more than 30
            seconds ahead.
        method: how, in the host's words: 1 to 64 printable ASCII characters.

    Raises:
        InvalidInputError: a value is of another form.
    """

    factors: frozenset[Factor] = attrs.field(converter=_factors)
    at: datetime
    method: str | None = attrs.field(default=None, converter=plain_optional)

    def __attrs_post_init__(self) -> None:
        name = "an authentication's factors"
        factors = checks.set_of(name, self.factors, lambda value: checks.instance(name, value, Factor))
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "at", checks.instant("an authentication's time", self.at))
        if self.method is not None:
            checks.text("an authentication's method", self.method)

    @property
    def at_ms(self) -> int:
        """When, in milliseconds of the Unix epoch."""
        return checks.milliseconds(self.at)

    def lies_ahead(self, now_ms: int) -> bool:
        """Whether it is from the future, by more than clocks differ."""
        return self.at_ms > now_ms + AHEAD_MS_MAX


@attrs.frozen
class Strength:
    """What a domain takes for strong authentication.

    Attributes:
        factors: how many different factors at least.
        max_age: how old it may be; None: of any age.
    """

    factors: int = FACTORS_DEFAULT
    max_age: timedelta | None = None

    def met_by(self, authentication: Authentication | None, now_ms: int) -> bool:
        """Whether an authentication is strong at a time in milliseconds of the Unix epoch."""
        if authentication is None or len(authentication.factors) < self.factors:
            return False
        age = timedelta(milliseconds=now_ms - authentication.at_ms)
        return not authentication.lies_ahead(now_ms) and (self.max_age is None or age <= self.max_age)

    def __str__(self) -> str:
        factors = "1 factor" if self.factors == 1 else f"{self.factors} different factors"
        names = ", ".join(factor.value for factor in Factor)
        age = "" if self.max_age is None else f", no older than {self.max_age}"
        return f"an authentication of the cardholder with {factors} of {names}{age}"


def factor_count(value: object) -> int:
    """How many different factors: 1 to 3. Raises InvalidInputError."""
    return checks.whole_number("strong_factors", value, 1, len(Factor))


def max_age(value: object) -> timedelta:
    """How old an authentication may be: whole seconds up to 366 days. Raises InvalidInputError."""
    return checks.whole_seconds("strong_max_age", value, MAX_AGE_SECONDS_MAX)
