"""What a refused use answers: one table of every control and every state, and that it is complete."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from tests.pure_token import OWNER, PureToken
from tests.strategies import NOW_MS
from tokenvault.errors import InvalidInputError, Violation
from tokenvault.model import decision, follow_ups
from tokenvault.model.authentication import Authentication, Factor
from tokenvault.model.control import Control
from tokenvault.model.controls import CONTROLS, CryptogramRule
from tokenvault.model.counters import COUNTERS_MAX, Counter, Usage
from tokenvault.model.domain import Domain
from tokenvault.model.kinds import Kind
from tokenvault.model.ledger import FOLLOW_UPS_MAX
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.limits import Limit
from tokenvault.model.money import MINOR_UNITS_MAX, Money
from tokenvault.model.pan import CardExpiry
from tokenvault.model.transaction import Channel, Transaction

NOW = datetime.fromtimestamp(NOW_MS / 1_000, UTC)
OTHER = "40087654321"
EUR = functools.partial(Money, currency="EUR")
SECOND = timedelta(seconds=1)
PAID: dict[str, Any] = {"id": "use", "amount": EUR(100)}
FULL = Usage(tuple(Counter(number.to_bytes(16), 0, 1) for number in range(COUNTERS_MAX)))
"""Of limits that are not set any more, for a token's life."""


class Case(NamedTuple):
    """A use that is refused for one reason alone.

    Attributes:
        domain: the token's controls.
        use: fields of what is refused.
        answer: control, code and response code.
        before: fields of each use that was allowed before.
        token: attributes of the token.
        says: what the message has to say.
    """

    domain: dict[str, Any]
    use: dict[str, Any]
    answer: tuple[str, str, str]
    before: tuple[dict[str, Any], ...] = ()
    token: Mapping[str, Any] = MappingProxyType({})
    says: str = ""


def follow_up(kind: Kind, cents: int | None = None, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "original": "use", "amount": None if cents is None else EUR(cents), **fields}


LISTED = [
    Case({"requestors": {OTHER}}, {}, ("requestors", "REQUESTOR_NOT_ALLOWED", "57")),
    Case({"merchants": {"M"}}, {"merchant": "N"}, ("merchants", "MERCHANT_NOT_ALLOWED", "57")),
    Case({"merchants": {"M"}}, {}, ("merchants", "MERCHANT_NOT_ALLOWED", "57"), says="transaction names none"),
    Case({"merchant_categories": {"3000-3999"}}, {"merchant_category": "4000"},
         ("merchant_categories", "MERCHANT_CATEGORY_NOT_ALLOWED", "57")),
    Case({"channels": {Channel.CHIP}}, {"channel": Channel.ATM}, ("channels", "CHANNEL_NOT_ALLOWED", "57")),
    Case({"countries": {"FR"}}, {"country": "DE"}, ("countries", "COUNTRY_NOT_ALLOWED", "62")),
    Case({"currencies": {"EUR"}}, {"amount": Money(1, "USD")}, ("currencies", "CURRENCY_NOT_ALLOWED", "57")),
    Case({"devices": {"D"}}, {"device": "E"}, ("devices", "DEVICE_NOT_ALLOWED", "57")),
    Case({"kinds": {Kind.CASH}}, {}, ("kinds", "KIND_NOT_ALLOWED", "57")),
    Case({"references": {"R"}}, {"reference": "S"}, ("references", "REFERENCE_NOT_ALLOWED", "57")),
    Case({"agents": {"A"}}, {"agent": "B"}, ("agents", "AGENT_NOT_ALLOWED", "57")),
    Case({"assurances": {"10"}}, {}, ("assurances", "ASSURANCE_NOT_ALLOWED", "57"), says="identify and verify"),
    Case({"assurances": {"10"}}, {}, ("assurances", "ASSURANCE_NOT_ALLOWED", "57"), token={"assurance": "11"}),
]  # fmt: skip
MEASURED = [
    Case({"valid_from": NOW + SECOND}, {}, ("valid_from", "NOT_YET_VALID", "57"), says="retry then"),
    Case({"valid_until": NOW}, {}, ("valid_until", "NO_LONGER_VALID", "54"), says="valid until"),
    Case({"min_amount": EUR(5)}, {"amount": EUR(4)}, ("min_amount", "AMOUNT_TOO_LOW", "13"), says="at least 5"),
    Case({"min_amount": EUR(5)}, {}, ("min_amount", "AMOUNT_TOO_LOW", "13")),
    Case({"min_amount": EUR(5)}, {"amount": Money(6, "USD")}, ("min_amount", "AMOUNT_TOO_LOW", "13")),
    Case({"max_amount": EUR(5)}, {}, ("max_amount", "AMOUNT_TOO_HIGH", "61")),
    Case({"max_amount": EUR(5)}, {"amount": Money(4, "USD")}, ("max_amount", "AMOUNT_TOO_HIGH", "61")),
    Case({"strong_above": EUR(5)}, {}, ("strong_above", "STRONG_AUTHENTICATION_REQUIRED", "1A")),
    Case({"limits": (Limit(amount=EUR(9)),)}, {}, ("limits", "AMOUNT_EXCEEDED", "61")),
    Case({"limits": (Limit(amount=EUR(9)),)}, {"amount": Money(1, "USD")}, ("limits", "AMOUNT_EXCEEDED", "61")),
    Case({"max_amount": EUR(5)}, {"amount": EUR(6)}, ("max_amount", "AMOUNT_TOO_HIGH", "61"), says="at most 5"),
    Case({"cryptogram": CryptogramRule.REQUIRED}, {}, ("cryptogram", "CRYPTOGRAM_REQUIRED", "82")),
    Case({"min_interval": SECOND}, {}, ("min_interval", "TOO_SOON", "65"), (PAID,), says="0:00:01"),
    Case({"limits": (Limit(uses=1),)}, {}, ("limits", "USES_EXCEEDED", "65"), (PAID,), says="at most 1 uses"),
    Case({"limits": (Limit(amount=EUR(100)),)}, {"amount": EUR(1)}, ("limits", "AMOUNT_EXCEEDED", "61"), (PAID,)),
    Case({"limits": (Limit(uses=1),)}, {}, ("limits", "COUNTERS_EXCEEDED", "65"), token={"usage": FULL},
         says="at most 64 limits"),
    Case({"limits": (Limit(uses=1, since_authentication=True),)}, {},
         ("limits", "STRONG_AUTHENTICATION_REQUIRED", "1A"), (PAID,), says="beyond it present an authentication"),
    Case({"strong_above": EUR(5)}, {"amount": EUR(6)},
         ("strong_above", "STRONG_AUTHENTICATION_REQUIRED", "1A"), says="above 5 minor units of EUR present"),
]  # fmt: skip
OF_THE_TOKEN = [
    Case({}, {}, ("status", "TOKEN_INACTIVE", "57"), token={"status": TokenStatus.INACTIVE}, says="activate"),
    Case({}, {}, ("status", "TOKEN_SUSPENDED", "62"), token={"status": TokenStatus.SUSPENDED}, says="suspended"),
    Case({}, {}, ("status", "TOKEN_WINDING_DOWN", "57"), token={"status": TokenStatus.WINDING_DOWN}),
    Case({}, {}, ("status", "TOKEN_DELETED", "14"), token={"status": TokenStatus.DELETED}),
    Case({}, follow_up(Kind.CAPTURE), ("status", "TOKEN_SUSPENDED", "62"), (PAID,),
         {"status": TokenStatus.WINDING_DOWN, "suspended_by": frozenset({Actor.VAULT})}),
    Case({}, {}, ("token_expiry", "TOKEN_EXPIRED", "54"), token={"expiry": CardExpiry(2020, 1)}, says="2020-01"),
    Case({}, {"token_expiry": CardExpiry(2090, 1)}, ("token_expiry", "TOKEN_EXPIRY_DIFFERS", "54"),
         token={"expiry": CardExpiry(2090, 2)}),
    Case({}, {"requestor": OTHER}, ("requestors", "REQUESTOR_NOT_ALLOWED", "57")),
    Case({}, {"authentication": Authentication(factors={Factor.POSSESSION}, at=NOW + timedelta(minutes=1))},
         ("authentication", "AUTHENTICATION_IN_FUTURE", "1A"), says="set the clocks"),
]  # fmt: skip
OF_THE_LEDGER = [
    Case({}, {"id": "use"}, ("transaction", "TRANSACTION_ID_REUSED", "94"), (PAID,)),
    Case({}, PAID, ("transaction", "TRANSACTION_REVERSED", "94"), (PAID, follow_up(Kind.REVERSAL, id="r"))),
    Case({}, {"kind": Kind.REFUND}, ("original", "ORIGINAL_REQUIRED", "12")),
    Case({}, follow_up(Kind.REFUND), ("original", "ORIGINAL_UNKNOWN", "12")),
    Case({}, follow_up(Kind.REFUND, original="c"), ("original", "ORIGINAL_NOT_A_USE", "12"),
         (PAID, follow_up(Kind.CAPTURE, id="c"))),
    Case({}, follow_up(Kind.DISPUTE), ("original", "FOLLOW_UPS_EXCEEDED", "65"),
         (PAID, *(follow_up(Kind.DISPUTE, id=f"d{place}") for place in range(FOLLOW_UPS_MAX)))),
    Case({}, follow_up(Kind.REFUND, amount=Money(1, "USD")), ("original", "CURRENCY_DIFFERS", "13"), (PAID,)),
    Case({}, follow_up(Kind.CAPTURE), ("original", "ORIGINAL_CLOSED", "12"), (PAID, follow_up(Kind.CAPTURE, id="c"))),
    Case({}, follow_up(Kind.INCREMENT, MINOR_UNITS_MAX), ("original", "INCREMENT_EXCEEDS", "13"), (PAID,)),
    Case({}, follow_up(Kind.CAPTURE, 101), ("original", "CAPTURE_EXCEEDS", "13"), (PAID,)),
    Case({}, follow_up(Kind.REVERSAL, 101), ("original", "REVERSAL_EXCEEDS", "13"), (PAID,)),
    Case({}, follow_up(Kind.REFUND, 101), ("original", "REFUND_EXCEEDS", "13"), (PAID,)),
]  # fmt: skip
CASES = [*LISTED, *MEASURED, *OF_THE_TOKEN, *OF_THE_LEDGER]


ALLOWED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"min_amount": EUR(5)}, {"amount": EUR(5)}),
    ({"max_amount": EUR(5)}, {"amount": EUR(5)}),
    ({"strong_above": EUR(5)}, {"amount": EUR(5)}),
    ({"limits": (Limit(amount=EUR(5)),)}, {"amount": EUR(5)}),
    ({"valid_from": NOW}, {}),
    ({"valid_until": NOW + timedelta(milliseconds=1)}, {}),
    ({"cryptogram": CryptogramRule.REQUIRED}, {"cryptogram_counter": 0}),
]


@pytest.mark.parametrize(("domain", "use"), ALLOWED)
def test_a_use_at_the_border_of_a_control_is_allowed(domain: dict[str, Any], use: dict[str, Any]) -> None:
    assert PureToken(Domain(**domain)).check(told(use), NOW_MS).violations == ()


def test_the_first_millisecond_before_a_control_s_border_is_refused() -> None:
    token = PureToken(Domain(valid_from=NOW))
    assert not token.check(told({}), NOW_MS - 1).allowed


def told(fields: dict[str, Any]) -> Transaction:
    return Transaction(**{"id": "refused", "requestor": OWNER, **fields})


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.answer[0]}-{case.answer[1]}")
def test_a_use_that_fails_one_control_answers_with_its_code_alone(case: Case) -> None:
    token = PureToken(Domain(**case.domain))
    for fields in case.before:
        assert token.do(told(fields), NOW_MS).allowed
    for name, value in case.token.items():
        setattr(token, name, value)
    (violation,) = token.check(told(case.use), NOW_MS).violations
    assert (violation.control, violation.code, violation.response_code) == case.answer
    assert case.says in violation.message


def test_the_table_has_every_control_and_every_answer_of_the_model() -> None:
    controls = {control.name for control in CONTROLS.values() if isinstance(control, Control)}
    assert controls <= {case.answer[0] for case in [*LISTED, *MEASURED]}
    constants = [*vars(decision).values(), *vars(follow_ups).values()]
    groups = [each.values() if isinstance(each, dict) else [each] for each in constants]
    every = {
        (each.control, each.code, each.response_code)
        for group in groups
        for each in group
        if isinstance(each, Violation)
    }
    assert len(every) > 15
    assert every <= {case.answer for case in CASES}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_of_another_form_is_refused_under_its_own_name(name: str) -> None:
    wrong: dict[str, Any] = {name: object()}
    with pytest.raises(InvalidInputError, match=rf"\b{name}\b"):
        Domain(**wrong)
