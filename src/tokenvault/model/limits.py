"""Limits of a domain: how often, and for how much money, in which windows, and which uses they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cached_property, partial
from typing import Final, cast

import attrs

from tokenvault.errors import InvalidInputError, boundary_init
from tokenvault.model import checks
from tokenvault.model.kinds import Kind
from tokenvault.model.listing import AllBut, Listing, listing_of
from tokenvault.model.money import Money
from tokenvault.model.periods import FOR_LIFE, Period, Window, calendar_window, fixed_window
from tokenvault.model.plain_text import plain_field
from tokenvault.model.transaction import FIELD_CHECKS, Channel, Transaction
from tokenvault.model.zones import zone_of

LIMIT_USES_MAX: Final = 10**9
WINDOW_SECONDS_MAX: Final = 10 * 366 * 86_400
UTC_ZONE: Final = "UTC"

SCOPES: Final[dict[str, tuple[str, Callable[[object], object]]]] = {
    "channels": ("channel", FIELD_CHECKS["channel"]),
    "merchants": ("merchant", FIELD_CHECKS["merchant"]),
    "requestors": ("requestor", partial(checks.requestor_id, "a requestor")),
    "kinds": ("kind", partial(checks.instance, "a kind", kind=Kind)),
}
"""The scopes of a limit: the field of a transaction that each reads, and the check of its values."""


# Converters tell type checkers what the constructor takes, and convert nothing: `__attrs_post_init__` does.
def _texts(values: Iterable[str] | AllBut[str] | None) -> Listing[str] | None:
    return cast("Listing[str] | None", values)


def _channels(values: Iterable[Channel] | AllBut[Channel] | None) -> Listing[Channel] | None:
    return cast("Listing[Channel] | None", values)


def _kinds(values: Iterable[Kind] | AllBut[Kind] | None) -> Listing[Kind] | None:
    return cast("Listing[Kind] | None", values)


@boundary_init
@attrs.frozen(kw_only=True)
class Limit:
    """At most so many uses, or so much money, per window or for the token's life, of the uses within its scope.

    Attributes:
        uses: 1 to 10**9; or
        amount: more than 0, in the one currency that it counts; exactly one of the two is set. A use of another
            currency, or of no amount, is refused: two limits of money in different currencies that bind the same
            uses allow none. A use of amount 0 never exceeds it: set a limit of uses too where that matters.
        per: a calendar period, or whole seconds up to ten years. The latter's windows tumble: they are aligned to
            the Unix epoch, UTC. Unset, the limit is for the token's life.
        zone: name of the time zone that calendar periods follow, daylight saving included.
        since_authentication: whether only what came since the last use with strong authentication counts. Where the
            limit is used up, a use with strong authentication is still allowed, is not counted, and starts it again.
        without_authentication: whether only uses without strong authentication count and are bound. A use with it
            starts nothing again: the window goes on.
        channels, merchants, requestors, kinds: which uses are counted and bound; unset, all. A use that does not
            say its channel or merchant is within every scope of them. An increment is of its use's kind.

    Raises:
        InvalidInputError: a value is of another form, or the time zone does not exist.
    """

    uses: int | None = None
    amount: Money | None = None
    per: timedelta | Period | None = None
    zone: str = attrs.field(default=UTC_ZONE, converter=plain_field)
    since_authentication: bool = False
    without_authentication: bool = False
    channels: Listing[Channel] | None = attrs.field(default=None, converter=_channels)
    merchants: Listing[str] | None = attrs.field(default=None, converter=_texts)
    requestors: Listing[str] | None = attrs.field(default=None, converter=_texts)
    kinds: Listing[Kind] | None = attrs.field(default=None, converter=_kinds)

    def __attrs_post_init__(self) -> None:
        if (self.uses is None) == (self.amount is None):
            raise InvalidInputError("a limit counts either uses or an amount")
        if self.uses is not None:
            checks.whole_number("a limit of uses", self.uses, 1, LIMIT_USES_MAX)
        if self.amount is not None and checks.instance("a limit's amount", self.amount, Money).amount == 0:
            raise InvalidInputError("a limit's amount is more than 0")
        if self.per is not None and not isinstance(self.per, Period):
            checks.whole_seconds("a limit's window that is no Period", self.per, WINDOW_SECONDS_MAX)
        zone_of(self.zone)
        if self.zone != UTC_ZONE and not isinstance(self.per, Period):
            raise InvalidInputError("a limit's zone is for a calendar period, such as per=Period.DAY")
        checks.true_or_false("since_authentication", self.since_authentication)
        checks.true_or_false("without_authentication", self.without_authentication)
        if self.since_authentication and self.without_authentication:
            raise InvalidInputError("since_authentication and without_authentication are two kinds of limit")
        for name, (_, check) in SCOPES.items():
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, listing_of(f"a limit's {name}", values, check))

    @property
    def light(self) -> bool:
        """Whether it binds only uses without strong authentication."""
        return self.since_authentication or self.without_authentication

    @cached_property
    def _scope(self) -> tuple[tuple[str, Listing[object]], ...]:
        """The scopes that are set, each by the field of a transaction that it reads; but for kinds."""
        fields = ((field, getattr(self, name)) for name, (field, _) in SCOPES.items() if name != "kinds")
        return tuple((field, values) for field, values in fields if values is not None)

    def concerns(self, transaction: Transaction, kind: Kind) -> bool:
        """Whether a transaction is within its scope; `kind` is that of the use it belongs to."""
        if self.kinds is not None and kind not in self.kinds:
            return False
        for field, values in self._scope:
            value = getattr(transaction, field)
            if value is not None and value not in values:
                return False
        return True

    def window(self, now_ms: int) -> Window:
        """The window that an instant lies in."""
        if self.per is None:
            return FOR_LIFE
        if isinstance(self.per, Period):
            return calendar_window(self.per, self.zone, now_ms)
        return fixed_window(self.per, now_ms)

    def __str__(self) -> str:
        return f"{self._counted()} {self._per()}{self._scoped()}"

    def _counted(self) -> str:
        return f"{self.uses} uses" if self.amount is None else str(self.amount)

    def _per(self) -> str:
        since = " since the last strong authentication" if self.since_authentication else ""
        if self.per is None:
            return since.strip() or "in a token's life"
        if isinstance(self.per, Period):
            zone = "" if self.zone == UTC_ZONE else f" of {self.zone}"
            return f"per calendar {self.per.value}{zone}{since}"
        return f"per {_duration(checks.seconds(self.per))}{since}"

    def _scoped(self) -> str:
        without = " without strong authentication" if self.without_authentication else ""
        scopes = [name for name in SCOPES if getattr(self, name) is not None]
        return without + (f", of its {' and '.join(scopes)}" if scopes else "")


def _duration(seconds: int) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds % length == 0:
            count = seconds // length
            return unit if count == 1 else f"{count} {unit}s"
    return f"{seconds} seconds"
