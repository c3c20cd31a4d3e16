"""Bar codes and payments without a PIN in mainland China, by the natural day of Beijing.

Levels of verification: People's Bank of China, notice Yinfa [2017] 296, in force since 1 April 2018. Payments without
PIN and signature: UnionPay's notice of 8 April 2018, in force since 1 June 2018.
"""

from __future__ import annotations

from typing import Final

from tokenvault.errors import InvalidInputError, boundary
from tokenvault.model import checks
from tokenvault.model.limits import Limit
from tokenvault.model.money import Money
from tokenvault.model.periods import Period
from tokenvault.rules.controls import Controls

__all__ = ["level_a", "level_b", "level_c", "level_d", "levels_b_and_c", "no_pin"]

BEIJING: Final = "Asia/Shanghai"
CURRENCY: Final = "CNY"
NO_PIN_FEN: Final = 1_000_00
"""One payment without PIN and signature may be of so many fen."""


def _per_day(amount: Money, *, without_authentication: bool = False) -> Limit:
    return Limit(amount=amount, per=Period.DAY, zone=BEIJING, without_authentication=without_authentication)


def _renminbi(name: str, amount: Money) -> Money:
    if checks.instance(name, amount, Money).currency != CURRENCY:
        raise InvalidInputError(f"{name} is in {CURRENCY}")
    return amount


def _always_strong(limit: Limit) -> Controls:
    return Controls(strong_above=Money(0, CURRENCY), limits=(limit,))


@boundary
def level_a(per_day: Money) -> Controls:
    """Level A: two factors or more, among them a digital certificate or an electronic signature.

    Args:
        per_day: what the institution and its customer agreed on.

    Raises:
        InvalidInputError: it is not in CNY.
    """
    return _always_strong(_per_day(_renminbi("per_day", per_day)))


@boundary
def level_b() -> Controls:
    """Level B: two factors or more, none of them a certificate or a signature. Up to 5,000 CNY a day."""
    return _always_strong(_per_day(Money(5_000_00, CURRENCY)))


@boundary
def level_c() -> Controls:
    """Level C: fewer than two factors. Up to 1,000 CNY a day; the institution bears the loss."""
    return Controls(limits=(_per_day(Money(1_000_00, CURRENCY)),))


@boundary
def level_d() -> Controls:
    """Level D: static bar codes. Up to 500 CNY a day, however verified."""
    return Controls(limits=(_per_day(Money(500_00, CURRENCY)),))


@boundary
def levels_b_and_c() -> Controls:
    """A code that takes both: up to 1,000 CNY a day with fewer than two factors, and 5,000 CNY a day in all."""
    light = _per_day(Money(1_000_00, CURRENCY), without_authentication=True)
    return Controls(limits=(_per_day(Money(5_000_00, CURRENCY)), light))


@boundary
def no_pin(per_day: Money) -> Controls:
    """Contactless without PIN and signature: up to 1,000 CNY each, and what the bank allows without a PIN in a day.

    Args:
        per_day: the bank's total, such as 3,000 CNY. A payment with PIN is neither counted nor bound by it.

    Raises:
        InvalidInputError: it is not in CNY.
    """
    light = _per_day(_renminbi("per_day", per_day), without_authentication=True)
    return Controls(strong_above=Money(NO_PIN_FEN, CURRENCY), limits=(light,))
