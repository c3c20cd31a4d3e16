"""Money: an amount in minor units of one currency."""

from __future__ import annotations

from typing import Final

import attrs

from tokenvault.errors import boundary_init
from tokenvault.model import checks
from tokenvault.model.plain_text import plain_field

MINOR_UNITS_MAX: Final = 10**15


@boundary_init
@attrs.frozen
class Money:
    """An amount in minor units (cents of EUR, yen of JPY) of an ISO 4217 currency, from 0 to 10**15."""

    amount: int
    currency: str = attrs.field(converter=plain_field)

    def __attrs_post_init__(self) -> None:
        checks.whole_number("an amount in minor units", self.amount, 0, MINOR_UNITS_MAX)
        checks.currency(self.currency)

    def __str__(self) -> str:
        return f"{self.amount} minor units of {self.currency}"


def recorded_money(amount: int, currency: str) -> Money:
    """The money that an event tells of, as it stands there: a trail is read whichever codes a process knows."""
    money = object.__new__(Money)
    object.__setattr__(money, "amount", amount)
    object.__setattr__(money, "currency", currency)
    return money
