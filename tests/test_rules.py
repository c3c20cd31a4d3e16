"""Rules of law and of card schemes: each row of their tables, and where it comes from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.pure_token import PureToken
from tokenvault.errors import InvalidInputError
from tokenvault.model.authentication import Authentication, Factor
from tokenvault.model.domain import Domain
from tokenvault.model.money import Money
from tokenvault.model.transaction import Transaction
from tokenvault.rules import Controls, combined, pboc, psd2

NOON = datetime(2026, 4, 1, 12, tzinfo=UTC)
STEP_UP = "STRONG_AUTHENTICATION_REQUIRED 1A"


class Token(PureToken):
    """A token under a rule, used one payment after the other."""

    def __init__(self, rule: Controls, currency: str = "EUR") -> None:
        super().__init__(Domain(**rule))
        self.currency = currency

    def pay(self, amount: int, factors: int = 0, at: datetime = NOON) -> str:
        """What is answered to a payment: "" where it is allowed."""
        found = frozenset(list(Factor)[:factors])
        decision = self.do(
            Transaction(
                id=f"tx-{len(self.entries)}",
                requestor=self.owner,
                amount=Money(amount, self.currency),
                authentication=Authentication(factors=found, at=at) if found else None,
            ),
            int(at.timestamp() * 1_000),
        )
        return ", ".join(f"{violation.code} {violation.response_code}" for violation in decision.violations)


def test_contactless_is_light_up_to_50_euros_and_150_together() -> None:
    """Regulation (EU) 2018/389, article 11 (a) and (b)."""
    token = Token(psd2.contactless())
    assert token.pay(50_01) == STEP_UP
    assert [token.pay(50_00) for _ in range(4)] == ["", "", "", STEP_UP]
    assert token.pay(10, factors=1) == STEP_UP
    assert token.pay(50_01, factors=2) == ""
    assert [token.pay(50_00) for _ in range(4)] == ["", "", "", STEP_UP]


def test_contactless_is_light_for_five_uses_in_a_row() -> None:
    """Regulation (EU) 2018/389, article 11 (a) and (c)."""
    token = Token(psd2.contactless(psd2.Counting.USES))
    assert [token.pay(50_00) for _ in range(6)] == [*[""] * 5, STEP_UP]
    assert token.pay(50_00, factors=2) == ""
    assert [token.pay(1) for _ in range(6)] == [*[""] * 5, STEP_UP]


def test_remote_low_value_counts_money() -> None:
    """Regulation (EU) 2018/389, article 16 (a) and (b); one of two countings, EBA-Op-2018-04, paragraph 43."""
    token = Token(psd2.remote_low_value())
    assert token.pay(30_01) == STEP_UP
    assert [token.pay(25_00) for _ in range(5)] == ["", "", "", "", STEP_UP]
    assert token.pay(200_00, factors=3) == ""
    assert [token.pay(10_00) for _ in range(11)] == [*[""] * 10, STEP_UP]


def test_remote_low_value_counts_uses_however_long_ago() -> None:
    """Regulation (EU) 2018/389, article 16 (a) and (c); EBA Q&A 2018_4225."""
    token = Token(psd2.remote_low_value(psd2.Counting.USES))
    months = [NOON + timedelta(days=60 * month) for month in range(6)]
    assert [token.pay(30_00, at=month) for month in months] == [*[""] * 5, STEP_UP]
    assert token.pay(30_00, factors=2, at=months[-1]) == ""
    assert token.pay(30_00, at=months[-1]) == ""


@pytest.mark.parametrize(
    ("basis_points", "exempt"),
    [(0, 500_00), (1, 500_00), (2, 250_00), (6, 250_00), (7, 100_00), (13, 100_00), (14, 0), (10_000, 0)],
)
def test_risk_analysis_exempts_by_the_rate_of_fraud(basis_points: int, exempt: int) -> None:
    """Regulation (EU) 2018/389, article 18 and its annex, remote card payments; EBA Q&A 2018_4043."""
    token = Token(psd2.transaction_risk_analysis(basis_points))
    assert token.pay(exempt) == ""
    assert token.pay(exempt + 1) == STEP_UP
    assert token.pay(exempt + 1, factors=2) == ""


def test_level_a_is_strong_and_as_agreed() -> None:
    """Yinfa [2017] 296: two factors or more with a certificate or a signature; the limit is agreed on."""
    token = Token(pboc.level_a(Money(20_000_00, "CNY")), "CNY")
    assert token.pay(1) == STEP_UP
    assert token.pay(20_000_00, factors=2) == ""
    assert token.pay(1, factors=2) == "AMOUNT_EXCEEDED 61"


def test_level_b_is_strong_and_5000_a_day() -> None:
    """Yinfa [2017] 296: two factors or more without a certificate, 5,000 CNY a natural day."""
    token = Token(pboc.level_b(), "CNY")
    assert token.pay(1) == STEP_UP
    assert token.pay(5_000_00, factors=2) == ""
    assert token.pay(1, factors=2) == "AMOUNT_EXCEEDED 61"


def test_level_c_is_1000_a_day_of_beijing() -> None:
    """Yinfa [2017] 296: fewer than two factors, 1,000 CNY a natural day, which begins at 16:00 UTC."""
    token = Token(pboc.level_c(), "CNY")
    midnight = datetime(2026, 4, 1, 16, tzinfo=UTC)
    assert token.pay(1_000_00, at=midnight - timedelta(milliseconds=1)) == ""
    assert token.pay(1, at=midnight - timedelta(milliseconds=1)) == "AMOUNT_EXCEEDED 61"
    assert token.pay(1_000_00, at=midnight) == ""
    assert token.pay(1, at=midnight + timedelta(hours=23, minutes=59)) == "AMOUNT_EXCEEDED 61"


def test_level_d_is_500_a_day_even_with_a_pin() -> None:
    """Yinfa [2017] 296: static codes, 500 CNY a natural day."""
    token = Token(pboc.level_d(), "CNY")
    assert token.pay(500_00) == ""
    assert token.pay(1, factors=3) == "AMOUNT_EXCEEDED 61"


def test_levels_b_and_c_share_a_day() -> None:
    """Yinfa [2017] 296: 1,000 CNY with fewer than two factors, 5,000 in all: a strong payment adds none."""
    token = Token(pboc.levels_b_and_c(), "CNY")
    assert token.pay(1_000_00) == ""
    assert token.pay(1) == STEP_UP
    assert token.pay(3_999_99, factors=2) == ""
    assert token.pay(1) == STEP_UP
    assert token.pay(1, factors=2) == ""
    assert token.pay(1, factors=2) == "AMOUNT_EXCEEDED 61"


def test_without_a_pin_up_to_1000_and_the_bank_s_total_of_a_day_of_beijing() -> None:
    """UnionPay, 8 April 2018: 1,000 CNY each without PIN and signature; the day's total is the bank's."""
    token = Token(pboc.no_pin(Money(3_000_00, "CNY")), "CNY")
    assert token.pay(1_000_01) == STEP_UP
    assert [token.pay(1_000_00) for _ in range(4)] == ["", "", "", STEP_UP]
    assert token.pay(5_000_00, factors=2) == ""
    assert token.pay(1) == STEP_UP
    assert token.pay(1, at=datetime(2026, 4, 1, 16, tzinfo=UTC)) == ""


def test_rules_together_are_the_stricter_of_each() -> None:
    together = combined(psd2.contactless(), psd2.remote_low_value(psd2.Counting.USES))
    assert together == Controls(
        strong_above=Money(30_00, "EUR"),
        limits=(*psd2.contactless()["limits"], *psd2.remote_low_value(psd2.Counting.USES)["limits"]),
    )
    assert combined() == Controls(limits=())
    assert combined(Controls(strong_factors=3), psd2.contactless())["strong_factors"] == 3
    with pytest.raises(InvalidInputError, match="one currency"):
        combined(psd2.contactless(), pboc.no_pin(Money(1, "CNY")))


def test_a_rule_of_another_form_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        psd2.contactless("uses")  # type: ignore[arg-type] # the wrong type is the point
    with pytest.raises(InvalidInputError):
        psd2.transaction_risk_analysis(-1)
    for rule in (pboc.level_a, pboc.no_pin):
        with pytest.raises(InvalidInputError, match="CNY"):
            rule(Money(1, "EUR"))
