"""What a rule returns: arguments of a domain."""

from __future__ import annotations

from typing import TypedDict

from tokenvault.errors import InvalidInputError, boundary
from tokenvault.model.authentication import FACTORS_DEFAULT
from tokenvault.model.limits import Limit
from tokenvault.model.money import Money


class Controls(TypedDict, total=False):
    """Arguments of `Domain`: when a use needs strong authentication, and how much there may be."""

    limits: tuple[Limit, ...]
    strong_above: Money
    strong_factors: int


@boundary
def combined(*rules: Controls) -> Controls:
    """Several rules together: all their limits, the lowest amount that needs strong authentication, the most factors.

    Raises:
        InvalidInputError: they speak of amounts in different currencies.
    """
    together = Controls(limits=tuple(limit for rule in rules for limit in rule.get("limits", ())))
    bounds = [rule["strong_above"] for rule in rules if "strong_above" in rule]
    if len({bound.currency for bound in bounds}) > 1:
        raise InvalidInputError("rules that are combined speak of one currency")
    if bounds:
        together["strong_above"] = min(bounds, key=lambda bound: bound.amount)
    factors = max((rule.get("strong_factors", FACTORS_DEFAULT) for rule in rules), default=FACTORS_DEFAULT)
    if factors != FACTORS_DEFAULT:
        together["strong_factors"] = factors
    return together
