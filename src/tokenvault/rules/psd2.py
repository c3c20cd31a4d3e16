"""Exemptions from strong customer authentication in the EU: Commission Delegated Regulation (EU) 2018/389.

An issuer that counts picks one of two countings, money or uses (EBA Opinion EBA-Op-2018-04, paragraph 43; EBA Q&A
2018_4225). Both count since the last strong authentication, however long ago. The use that would pass the bound is
the first that needs authentication.
"""

from __future__ import annotations

import enum
from typing import Final

from tokenvault.errors import boundary
from tokenvault.model import checks
from tokenvault.model.limits import Limit
from tokenvault.model.money import Money
from tokenvault.rules.controls import Controls

__all__ = ["Counting", "contactless", "remote_low_value", "transaction_risk_analysis"]

BASIS_POINTS_MAX: Final = 10_000
CONSECUTIVE_USES: Final = 5
"""Articles 11(c) and 16(c)."""

RISK_TIERS: Final = ((1, 500_00), (6, 250_00), (13, 100_00))
"""Remote card payments (annex of the regulation): rate of fraud in basis points, and what it exempts in cents."""


class Counting(enum.Enum):
    """What an issuer counts since the last strong authentication."""

    MONEY = "money"
    USES = "uses"


def _low_value(one_cents: int, all_cents: int, counting: Counting) -> Controls:
    checks.instance("counting", counting, Counting)
    if counting is Counting.USES:
        limit = Limit(uses=CONSECUTIVE_USES, since_authentication=True)
    else:
        limit = Limit(amount=Money(all_cents, "EUR"), since_authentication=True)
    return Controls(strong_above=Money(one_cents, "EUR"), limits=(limit,))


@boundary
def contactless(counting: Counting = Counting.MONEY) -> Controls:
    """Article 11, contactless at the point of sale: up to 50 EUR each; 150 EUR together, or 5 uses.

    Raises:
        InvalidInputError: `counting` is none.
    """
    return _low_value(50_00, 150_00, counting)


@boundary
def remote_low_value(counting: Counting = Counting.MONEY) -> Controls:
    """Article 16, remote payments of low value: up to 30 EUR each; 100 EUR together, or 5 uses.

    Raises:
        InvalidInputError: `counting` is none.
    """
    return _low_value(30_00, 100_00, counting)


@boundary
def transaction_risk_analysis(fraud_basis_points: int) -> Controls:
    """Article 18, remote card payments with transaction risk analysis (EBA Q&A 2018_4043).

    Args:
        fraud_basis_points: the provider's fraud rate, rounded up to whole basis points, 0 to 10,000. Up to 1 exempts
            500 EUR, up to 6 exempts 250 EUR, up to 13 exempts 100 EUR; above that, nothing is exempt.

    Raises:
        InvalidInputError: the rate is no such number.
    """
    rate = checks.whole_number("fraud_basis_points", fraud_basis_points, 0, BASIS_POINTS_MAX)
    exempt_cents = next((cents for most, cents in RISK_TIERS if rate <= most), 0)
    return Controls(strong_above=Money(exempt_cents, "EUR"))
