"""Kinds of use: what each does to the money, to limits and to what may follow."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from tests.pure_token import OWNER, PureToken, use_id
from tests.strategies import DAY_MS, NOW_MS
from tokenvault.errors import InvalidInputError
from tokenvault.model.authentication import Authentication, Factor
from tokenvault.model.controls import LIMITS_MAX, CryptogramRule
from tokenvault.model.counters import COUNTERS_MAX, UNUSED, Counter, Usage
from tokenvault.model.domain import Domain
from tokenvault.model.kinds import KINDS, Kind
from tokenvault.model.ledger import FOLLOW_UPS_MAX, UseLedger
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.limits import Limit
from tokenvault.model.listing import AllBut
from tokenvault.model.money import MINOR_UNITS_MAX, Money
from tokenvault.model.pan import CardExpiry
from tokenvault.model.periods import Period
from tokenvault.model.remaining import Remaining, remaining
from tokenvault.model.restrictions import Restrictions
from tokenvault.model.transaction import Channel, Transaction

OTHER = "40087654321"
NEW = [kind for kind, rule in KINDS.items() if not rule.follow_up]
PAYMENTS = [kind for kind, rule in KINDS.items() if rule.counts_use]
FOLLOW_UPS = [kind for kind, rule in KINDS.items() if rule.follow_up]
LATE = [kind for kind in FOLLOW_UPS if not KINDS[kind].live]
CHANNELS = [Channel.CHIP, Channel.CONTACTLESS, Channel.QR_CONSUMER, Channel.MAGSTRIPE]
ids = itertools.count()


def euros(cents: int | None) -> Money | None:
    return None if cents is None else Money(cents, "EUR")


class Shop(PureToken):
    """A token that a shop uses; a transaction is told by its kind and amount in cents."""

    def told(self, kind: Kind, cents: int | None = None, *, days: float = 0, **fields: Any) -> str:
        """The codes of what was refused; "" where it was allowed."""
        fields.setdefault("id", f"id-{next(ids)}")
        fields.setdefault("requestor", OWNER)
        fields.setdefault("amount", euros(cents))
        decision = self.do(Transaction(kind=kind, **fields), NOW_MS + int(days * DAY_MS))
        return ",".join(violation.code for violation in decision.violations)

    def pay(self, cents: int | None = None, **fields: Any) -> str:
        return self.told(Kind.PURCHASE, cents, **fields)

    def left(self, days: float = 0) -> list[int]:
        return [found.left for found in self.left_of(days)]

    def left_of(self, days: float = 0) -> tuple[Remaining, ...]:
        return remaining(self.restrictions(OWNER), self.usage, NOW_MS + int(days * DAY_MS))


def monthly(cents: int = 100_00) -> Limit:
    return Limit(amount=Money(cents, "EUR"), per=Period.MONTH)


def strong(days: float = 0, factors: int = 2) -> Authentication:
    at = datetime.fromtimestamp(NOW_MS / 1_000, UTC) + timedelta(days=days)
    return Authentication(factors=list(Factor)[:factors], at=at)


# A payment and what becomes of it.


def test_a_declined_payment_is_given_back_and_the_next_attempt_passes() -> None:
    shop = Shop(Domain(limits=(Limit(uses=1, per=Period.MONTH), monthly()), min_interval=timedelta(days=1)))
    assert shop.pay(100_00, id="a") == ""
    assert shop.pay(100_00) == "TOO_SOON,USES_EXCEEDED,AMOUNT_EXCEEDED"
    assert shop.told(Kind.REVERSAL, original="a") == ""
    assert shop.left() == [1, 100_00]
    assert shop.pay(100_00, id="b") == ""
    assert shop.told(Kind.REVERSAL, original="b") == ""
    assert shop.pay(100_00) == ""


def test_a_late_retry_of_a_reversed_payment_is_refused() -> None:
    """It would be a use that no limit counts."""
    shop = Shop(Domain(limits=(Limit(uses=1),)))
    assert shop.pay(5, id="a") == ""
    assert shop.told(Kind.REVERSAL, original="a") == ""
    assert shop.pay(5, id="b") == ""
    assert shop.pay(5, id="a") == "TRANSACTION_REVERSED"
    assert shop.pay(5, id="b") == ""


def test_a_late_retry_of_an_increment_of_a_reversed_payment_is_refused() -> None:
    shop = Shop(Domain(limits=(monthly(),)))
    assert shop.pay(50_00, id="a") == ""
    assert shop.told(Kind.INCREMENT, 10_00, id="i", original="a") == ""
    assert shop.told(Kind.REVERSAL, 20_00, original="a") == ""
    assert shop.told(Kind.INCREMENT, 10_00, id="i", original="a") == ""
    assert shop.told(Kind.REVERSAL, original="a") == ""
    assert shop.told(Kind.INCREMENT, 10_00, id="i", original="a") == "TRANSACTION_REVERSED"


def test_captures_in_parts_count_once_and_the_last_releases_the_rest() -> None:
    shop = Shop(Domain(limits=(Limit(uses=1), monthly())))
    assert shop.pay(100_00, id="a") == ""
    assert shop.told(Kind.CAPTURE, 30_00, original="a", final=False) == ""
    assert shop.left() == [0, 0]
    assert shop.told(Kind.CAPTURE, 70_01, original="a") == "CAPTURE_EXCEEDS"
    assert shop.told(Kind.CAPTURE, 30_00, original="a") == ""
    assert shop.left() == [0, 40_00]
    assert shop.told(Kind.CAPTURE, 1, original="a") == "ORIGINAL_CLOSED"
    assert shop.told(Kind.REVERSAL, original="a") == "ORIGINAL_CLOSED"
    assert shop.told(Kind.INCREMENT, 1, original="a") == "ORIGINAL_CLOSED"


def test_increments_add_to_what_is_authorised_and_to_limits_of_money_only() -> None:
    shop = Shop(Domain(limits=(Limit(uses=1), monthly()), max_amount=Money(90_00, "EUR")))
    assert shop.pay(50_00, id="a") == ""
    assert shop.told(Kind.INCREMENT, 40_01, original="a") == "AMOUNT_TOO_HIGH"
    assert shop.told(Kind.INCREMENT, 40_00, original="a") == ""
    assert shop.left() == [0, 10_00]
    assert shop.told(Kind.CAPTURE, 90_01, original="a") == "CAPTURE_EXCEEDS"
    assert shop.told(Kind.CAPTURE, 60_00, original="a") == ""
    assert shop.left() == [0, 40_00]


def test_a_part_that_is_given_back_stays_authorised_for_the_rest() -> None:
    shop = Shop(Domain(limits=(Limit(uses=1), monthly())))
    assert shop.pay(100_00, id="a") == ""
    assert shop.told(Kind.REVERSAL, 60_00, original="a") == ""
    assert shop.left() == [0, 60_00]
    assert shop.told(Kind.CAPTURE, 40_01, original="a") == "CAPTURE_EXCEEDS"
    assert shop.told(Kind.REVERSAL, 40_01, original="a") == "REVERSAL_EXCEEDS"
    assert shop.told(Kind.CAPTURE, original="a") == ""
    assert shop.told(Kind.REFUND, 40_01, original="a") == "REFUND_EXCEEDS"
    assert shop.told(Kind.REFUND, 40_00, original="a") == ""


def test_what_is_captured_can_not_be_reversed_and_the_rest_can() -> None:
    shop = Shop(Domain(limits=(Limit(uses=1), monthly())))
    assert shop.pay(100_00, id="a") == ""
    assert shop.told(Kind.CAPTURE, 60_00, original="a", final=False) == ""
    assert shop.told(Kind.REVERSAL, 40_01, original="a") == "REVERSAL_EXCEEDS"
    assert shop.told(Kind.REVERSAL, original="a") == ""
    assert shop.left() == [0, 40_00], "the use itself stays: it was captured in part"
    assert shop.told(Kind.REVERSAL, original="a") == "ORIGINAL_CLOSED"


def test_refunds_are_at_most_what_was_captured_less_what_was_refunded() -> None:
    shop = Shop(Domain(limits=(Limit(uses=1), monthly())))
    assert shop.pay(100_00, id="a") == ""
    assert shop.told(Kind.CAPTURE, 80_00, original="a") == ""
    left = shop.left()
    assert shop.told(Kind.REFUND, 50_00, original="a") == ""
    assert shop.told(Kind.REFUND, 30_01, original="a") == "REFUND_EXCEEDS"
    assert shop.told(Kind.REFUND, original="a") == ""
    assert shop.told(Kind.REFUND, original="a") == "REFUND_EXCEEDS"
    assert shop.told(Kind.REFUND, 1, original="a") == "REFUND_EXCEEDS"
    assert shop.left() == left, "limits count no refund"


def test_a_refund_of_what_was_never_captured_in_words_says_that_it_was() -> None:
    shop = Shop(Domain(limits=(monthly(),)))
    assert shop.pay(100_00, id="a") == ""
    assert shop.told(Kind.REFUND, 40_00, original="a") == ""
    for kind in (Kind.CAPTURE, Kind.REVERSAL):
        assert shop.told(kind, 10_00, original="a") == "ORIGINAL_CLOSED"
    assert shop.told(Kind.REFUND, 60_01, original="a") == "REFUND_EXCEEDS"
    assert shop.told(Kind.REFUND, 60_00, original="a") == ""


@pytest.mark.parametrize("cents", [1, 100_00])
def test_of_a_use_that_was_captured_at_nothing_there_is_nothing_to_refund(cents: int) -> None:
    shop = Shop()
    assert shop.pay(cents, id="a") == ""
    assert shop.told(Kind.CAPTURE, 0, original="a") == ""
    for refunded in (None, 0, 1):
        assert shop.told(Kind.REFUND, refunded, original="a") == "REFUND_EXCEEDS"
    assert shop.pay(cents, id="a") == "TRANSACTION_REVERSED"


def test_a_dispute_of_a_reversed_use_gives_nothing_back() -> None:
    shop = Shop(Domain(limits=(Limit(uses=2), monthly())))
    assert shop.pay(10_00, id="a") == ""
    assert shop.told(Kind.REVERSAL, original="a") == ""
    assert shop.pay(10_00) == ""
    assert shop.told(Kind.DISPUTE, 10_00, original="a") == ""
    assert shop.left() == [1, 90_00]


def test_a_refund_may_be_of_nothing_while_there_is_something_to_refund() -> None:
    shop = Shop()
    assert shop.pay(100_00, id="a") == ""
    for refunded, told in ((0, ""), (100_00, ""), (0, "REFUND_EXCEEDS")):
        assert shop.told(Kind.REFUND, refunded, original="a") == told


def test_a_refund_of_a_reversed_use_is_refused() -> None:
    shop = Shop()
    assert shop.pay(100_00, id="a") == ""
    assert shop.told(Kind.REVERSAL, original="a") == ""
    assert shop.told(Kind.REFUND, 1, original="a") == "REFUND_EXCEEDS"
    assert shop.told(Kind.REFUND, original="a") == "REFUND_EXCEEDS"


def test_money_is_given_back_to_the_window_in_which_it_was_counted() -> None:
    shop = Shop(Domain(limits=(Limit(amount=Money(100, "EUR"), per=timedelta(days=1)),)))
    assert shop.pay(70, id="a") == ""
    assert shop.told(Kind.INCREMENT, 60, original="a", days=1) == ""
    assert shop.left(1) == [40]
    assert shop.told(Kind.REVERSAL, 80, original="a", days=1) == ""
    assert shop.left(1) == [100], "the increment's first: it came last"
    assert shop.left(0) == [50]
    assert shop.pay(100, days=2) == ""
    assert shop.told(Kind.REVERSAL, original="a", days=2) == ""
    assert shop.left(2) == [0], "what an older window counted is given back to none"


def test_a_limit_that_came_after_a_use_gives_nothing_back_for_it() -> None:
    """It was never counted there."""
    shop = Shop()
    assert shop.pay(50_00, id="a") == ""
    shop.domain = Domain(limits=(Limit(uses=1), monthly()))
    assert shop.pay(90_00) == ""
    assert shop.told(Kind.REVERSAL, original="a") == ""
    assert shop.left() == [0, 10_00]


def test_a_use_without_an_amount_is_followed_up_without_one() -> None:
    shop = Shop(Domain(limits=(Limit(uses=1),)))
    assert shop.pay(id="a") == ""
    for kind in (Kind.CAPTURE, Kind.REVERSAL, Kind.REFUND):
        assert shop.told(kind, 1, original="a") == "CURRENCY_DIFFERS"
    assert shop.told(Kind.REVERSAL, original="a") == ""
    assert shop.left() == [1]
    assert shop.pay(id="b") == ""
    assert shop.told(Kind.CAPTURE, original="b") == ""
    assert shop.told(Kind.REFUND, original="b") == ""


@pytest.mark.parametrize("cents", [None, 0])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("captured", [True, False])
def test_a_use_of_no_amount_is_captured_once_and_refunded_once(
    cents: int | None, final: bool, captured: bool
) -> None:
    """Nobody can measure parts of it: the first capture takes all of it, the first refund pays all of it back."""
    shop = Shop()
    assert shop.pay(cents, id="a") == ""
    if captured:
        assert shop.told(Kind.CAPTURE, cents, id="c", original="a", final=final) == ""
        for again in (True, False):
            assert shop.told(Kind.CAPTURE, cents, original="a", final=again) == "ORIGINAL_CLOSED"
        assert shop.told(Kind.CAPTURE, cents, id="c", original="a", final=final) == "", "a retry"
        assert shop.told(Kind.REVERSAL, original="a") == "ORIGINAL_CLOSED"
    assert shop.told(Kind.REFUND, 1, original="a") == (
        "CURRENCY_DIFFERS" if cents is None else "REFUND_EXCEEDS"
    )
    assert shop.told(Kind.REFUND, cents, id="r", original="a") == ""
    assert shop.told(Kind.REFUND, cents, original="a") == "REFUND_EXCEEDS"
    assert shop.told(Kind.REFUND, original="a") == "REFUND_EXCEEDS"
    assert shop.told(Kind.REFUND, cents, id="r", original="a") == "", "a retry"
    assert shop.told(Kind.CAPTURE, original="a") == "ORIGINAL_CLOSED"
    assert shop.told(Kind.DISPUTE, original="a") == ""


def test_what_was_raised_from_nothing_is_measured() -> None:
    shop = Shop()
    assert shop.pay(0, id="a") == ""
    assert shop.told(Kind.INCREMENT, 50, original="a") == ""
    assert [shop.told(Kind.CAPTURE, part, original="a", final=False) for part in (20, 20)] == ["", ""]
    assert [shop.told(Kind.REFUND, part, original="a") for part in (15, None, None)] == [
        "",
        "",
        "REFUND_EXCEEDS",
    ]


@pytest.mark.parametrize("kind", [Kind.INCREMENT, Kind.CAPTURE, Kind.REVERSAL, Kind.REFUND])
def test_a_follow_up_in_another_currency_is_refused(kind: Kind) -> None:
    shop = Shop()
    assert shop.pay(100_00, id="a") == ""
    assert shop.told(kind, amount=Money(1, "USD"), original="a") == "CURRENCY_DIFFERS"


def test_a_verification_takes_no_money_and_counts_nowhere() -> None:
    limits = (Limit(uses=1), monthly())
    shop = Shop(Domain(limits=limits, min_amount=Money(1, "EUR"), min_interval=timedelta(days=1),
                       strong_above=Money(0, "EUR"), currencies={"EUR"}))  # fmt: skip
    for _ in range(3):
        assert shop.told(Kind.VERIFICATION, id="v") == ""
    assert shop.left() == [1, 100_00]
    assert shop.usage.last_used_ms == -1
    assert shop.told(Kind.VERIFICATION, 0) == ""
    for kind in (Kind.CAPTURE, Kind.REVERSAL):
        assert shop.told(kind, original="v") == "ORIGINAL_CLOSED"
    assert "ORIGINAL_CLOSED" in shop.told(Kind.INCREMENT, 1, original="v")
    for cents in (None, 1):
        assert shop.told(Kind.REFUND, cents, original="v") == "ORIGINAL_CLOSED"
    assert shop.told(Kind.DISPUTE, original="v") == ""


def test_a_verification_answers_to_all_other_controls() -> None:
    shop = Shop(Domain(merchants={"M-1"}, cryptogram=CryptogramRule.REQUIRED, kinds=AllBut({Kind.CASH})))
    assert shop.told(Kind.VERIFICATION) == "MERCHANT_NOT_ALLOWED,CRYPTOGRAM_REQUIRED"
    assert shop.told(Kind.VERIFICATION, merchant="M-1", cryptogram_counter=4) == ""
    assert shop.told(Kind.VERIFICATION, merchant="M-1", cryptogram_counter=4) == "CRYPTOGRAM_REQUIRED"


def test_a_verification_is_bound_by_who_may_ask_and_for_what() -> None:
    assert Shop(Domain(kinds={Kind.PURCHASE})).told(Kind.VERIFICATION) == "KIND_NOT_ALLOWED"
    assert Shop(Domain(requestors={OTHER})).told(Kind.VERIFICATION) == "REQUESTOR_NOT_ALLOWED"


# What a kind needs.


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("status", TokenStatus)
def test_a_token_s_status_stops_payments_and_lets_follow_ups_go_on(kind: Kind, status: TokenStatus) -> None:
    shop = Shop()
    assert shop.pay(100_00, id="a") == ""
    shop.status = status
    if status is TokenStatus.SUSPENDED:
        shop.suspended_by = frozenset(Actor) - {Actor.VAULT}
    follows: dict[str, Any] = {"original": "a"} if KINDS[kind].follow_up else {}
    cents = None if kind is Kind.VERIFICATION else 1
    going_on = (TokenStatus.ACTIVE, TokenStatus.SUSPENDED, TokenStatus.WINDING_DOWN)
    allowed = status is TokenStatus.ACTIVE or (kind in LATE and status in going_on)
    assert shop.told(kind, cents, **follows) == ("" if allowed else f"TOKEN_{status.name}")


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize("status", [TokenStatus.SUSPENDED, TokenStatus.WINDING_DOWN])
def test_a_suspension_by_the_vault_stops_follow_ups_too(kind: Kind, status: TokenStatus) -> None:
    shop = Shop()
    assert shop.pay(100_00, id="a") == ""
    shop.status, shop.suspended_by = status, frozenset({Actor.VAULT, Actor.ISSUER})
    assert shop.told(kind, original="a") == "TOKEN_SUSPENDED"


@pytest.mark.parametrize("kind", Kind)
def test_an_expiry_that_is_presented_is_compared_but_for_what_comes_after_a_payment(kind: Kind) -> None:
    shop = Shop()
    shop.expiry = CardExpiry(2090, 1)
    cents = None if kind is Kind.VERIFICATION else 1
    for month, told in ((1, ""), (2, "TOKEN_EXPIRY_DIFFERS" if KINDS[kind].live else "")):
        assert shop.pay(100_00, id=f"a{month}") == ""
        follows: dict[str, Any] = {"original": f"a{month}"} if KINDS[kind].follow_up else {}
        assert shop.told(kind, cents, token_expiry=CardExpiry(2090, month), **follows) == told


@pytest.mark.parametrize("kind", Kind)
def test_an_expired_token_takes_follow_ups_only(kind: Kind) -> None:
    shop = Shop(Domain(valid_until=datetime.fromtimestamp(NOW_MS / 1_000 + 86_400, UTC)))
    shop.expiry = CardExpiry(2026, 5)
    assert shop.pay(100_00, id="a") == ""
    follows: dict[str, Any] = {"original": "a"} if KINDS[kind].follow_up else {}
    cents = None if kind is Kind.VERIFICATION else 1
    expected = "" if kind in LATE else "TOKEN_EXPIRED,NO_LONGER_VALID"
    assert shop.told(kind, cents, days=30, **follows) == expected


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize("named", [True, False])
def test_a_follow_up_that_names_what_its_use_said_is_judged_as_one_that_leaves_it_out(
    kind: Kind, named: bool
) -> None:
    """Whatever the domain lists by then; but who may do it, and what kind, binds it always."""
    said: dict[str, Any] = {
        "merchant": "M-1", "merchant_category": "5411", "channel": Channel.ECOMMERCE, "country": "FR",
        "device": "D-1", "reference": "order", "agent": "agent",
    }  # fmt: skip
    shop = Shop(Domain(merchants={"M-1"}, max_amount=Money(10, "EUR"), channels={Channel.ECOMMERCE}))
    assert shop.pay(10, id="a", **said) == ""
    shop.domain = Domain(
        merchants={"M-2"}, merchant_categories={"1000-1999"}, channels={Channel.ATM}, countries={"DE"},
        devices={"D-2"}, references={"other"}, agents={"other"}, max_amount=Money(1, "EUR"),
        limits=[Limit(uses=1)], kinds=set(Kind),
    )  # fmt: skip
    told = said if named else {}
    assert shop.told(kind, id="f", original="a", **told) == ""
    shop = Shop()
    assert shop.pay(10, id="b", **said) == ""
    shop.domain = Domain(kinds={Kind.PURCHASE})
    assert shop.told(kind, original="b", **told) == "KIND_NOT_ALLOWED"
    shop.domain = Domain(requestors={OTHER})
    assert shop.told(kind, original="b", **told) == "REQUESTOR_NOT_ALLOWED"


@pytest.mark.parametrize("kind", [Kind.REFUND, Kind.DISPUTE])
def test_a_refund_and_a_dispute_name_their_original_unless_a_domain_lets_them(kind: Kind) -> None:
    assert Shop().told(kind, 1) == "ORIGINAL_REQUIRED"
    lets = Domain(follow_ups_without_original=True)
    assert Shop(program=lets).told(kind, 1) == ""
    bound = Shop(Domain(merchants={"M-1"}, max_amount=Money(5, "EUR")), program=lets)
    assert bound.told(kind, 6) == "MERCHANT_NOT_ALLOWED,AMOUNT_TOO_HIGH"
    assert Shop(Domain(requestors={OTHER}), program=lets).told(kind, 1) == "REQUESTOR_NOT_ALLOWED"
    assert Shop(program=lets).told(kind, 1, original="never") == "ORIGINAL_UNKNOWN"


@pytest.mark.parametrize("kind", [Kind.REFUND, Kind.DISPUTE])
def test_a_token_s_own_domain_lets_no_follow_up_name_no_original(kind: Kind) -> None:
    """Its requestor writes it, and limits, expiry and suspensions do not bind such a use."""
    lets, bare = Domain(follow_ups_without_original=True), Domain()
    assert Shop(lets).told(kind, 1) == "ORIGINAL_REQUIRED"
    for program, owner, acting in ((lets, bare, None), (bare, lets, None), (bare, bare, lets)):
        assert Restrictions(program, owner, bare, acting).follow_ups_without_original
    assert not Restrictions(bare, bare, lets, bare).follow_ups_without_original


@pytest.mark.parametrize("kind", FOLLOW_UPS)
def test_an_original_is_a_use_of_this_token_by_this_requestor(kind: Kind) -> None:
    shop = Shop(Domain(requestors={OWNER, OTHER}))
    assert shop.pay(100_00, id="a") == ""
    assert shop.told(kind, 1, original="b") == "ORIGINAL_UNKNOWN"
    assert shop.told(kind, 1, original="a", requestor=OTHER) == "ORIGINAL_UNKNOWN"
    assert shop.told(Kind.CAPTURE, 1, id="c", original="a", final=False) == ""
    assert shop.told(kind, 1, original="c") == "ORIGINAL_NOT_A_USE"
    assert (
        Shop(Domain(kinds={Kind.PURCHASE})).told(kind, 1, original="a") == "ORIGINAL_UNKNOWN,KIND_NOT_ALLOWED"
    )


def test_a_merchant_s_payment_may_rest_on_the_cardholder_s() -> None:
    """It is no follow-up of it: it counts for itself, and gives back nothing of the other."""
    shop = Shop(Domain(limits=(Limit(uses=2), monthly()), max_amount=Money(10_00, "EUR")))
    mit = {"channel": Channel.MERCHANT_INITIATED, "original": "cit"}
    assert shop.pay(10_00, **mit) == "ORIGINAL_UNKNOWN"
    assert shop.told(Kind.VERIFICATION, id="cit") == ""
    assert shop.pay(10_00, id="mit", **mit) == ""
    assert shop.told(Kind.REVERSAL, original="mit") == ""
    assert shop.left() == [2, 100_00]
    assert shop.pay(10_00, id="paid") == ""
    assert shop.pay(10_00, channel=Channel.MERCHANT_INITIATED, original="paid") == ""


@pytest.mark.parametrize("cents", [None, 0, 10_00])
def test_a_merchant_s_payment_rests_on_none_that_was_given_back_as_a_whole(cents: int | None) -> None:
    """As after a decline; what was paid back, in part given back, or disputed was agreed to all the same."""
    shop = Shop()
    mit = {"channel": Channel.MERCHANT_INITIATED, "original": "cit"}
    assert shop.pay(cents, id="cit") == ""
    assert shop.pay(5, id="before", **mit) == ""
    assert shop.told(Kind.REVERSAL, original="cit") == ""
    assert shop.pay(5, id="after", **mit) == "ORIGINAL_CLOSED"
    assert shop.pay(5, id="before", **mit) == "", "a retry is answered as it was"
    assert shop.pay(5, channel=Channel.MERCHANT_INITIATED, original="before") == ""
    shop.pay(10_00, id="kept")
    for kind, of in ((Kind.REVERSAL, 1), (Kind.REFUND, None), (Kind.DISPUTE, None)):
        assert shop.told(kind, of, original="kept") == ""
        assert shop.pay(5, **mit | {"original": "kept"}) == ""


def test_a_use_whose_last_capture_is_of_nothing_was_given_back_as_a_whole() -> None:
    """Its id is spent, as those of its increments are; no payment rests on it. What took a part of it stands."""
    shop = Shop(Domain(limits=(monthly(),)))
    assert (shop.pay(60_00, id="a"), shop.told(Kind.INCREMENT, 40_00, id="i", original="a")) == ("", "")
    assert shop.told(Kind.CAPTURE, 0, original="a", final=True) == ""
    assert shop.pay(60_00, id="a") == "TRANSACTION_REVERSED"
    assert shop.told(Kind.INCREMENT, 40_00, id="i", original="a") == "TRANSACTION_REVERSED"
    assert shop.pay(5, channel=Channel.MERCHANT_INITIATED, original="a") == "ORIGINAL_CLOSED"
    assert shop.pay(50_00, id="b") == "", "all of its money is there again"
    assert shop.told(Kind.CAPTURE, 1, original="b", final=True) == ""
    assert shop.pay(50_00, id="b") == ""
    assert shop.pay(5, channel=Channel.MERCHANT_INITIATED, original="b") == ""


@pytest.mark.parametrize("kind", FOLLOW_UPS)
def test_a_follow_up_is_idempotent_by_its_own_id(kind: Kind) -> None:
    shop = Shop(Domain(limits=(monthly(),)))
    assert shop.pay(50_00, id="a") == ""
    assert shop.told(kind, 10_00, id="f", original="a") == ""
    usage, entries = shop.usage, list(shop.entries)
    assert shop.told(kind, 10_00, id="f", original="a") == ""
    assert (shop.usage, shop.entries) == (usage, entries)
    assert "TRANSACTION_ID_REUSED" in shop.told(kind, 10_01, id="f", original="a")
    assert "TRANSACTION_ID_REUSED" in shop.pay(10_00, id="f")
    assert (shop.usage, shop.entries) == (usage, entries)


def test_a_use_has_a_bounded_number_of_follow_ups() -> None:
    shop = Shop()
    assert shop.pay(100_00, id="a") == ""
    for _ in range(FOLLOW_UPS_MAX):
        assert shop.told(Kind.DISPUTE, original="a") == ""
    for kind in LATE:
        assert shop.told(kind, 1, original="a") == "FOLLOW_UPS_EXCEEDED"


def test_no_use_grows_past_what_an_amount_can_say() -> None:
    shop = Shop()
    assert shop.pay(MINOR_UNITS_MAX - 1, id="a") == ""
    assert shop.told(Kind.INCREMENT, 1, original="a") == ""
    assert shop.told(Kind.INCREMENT, 1, original="a") == "INCREMENT_EXCEEDS"


# Limits with scopes, strong authentication, and several documents.


def test_once_with_the_cardholder_then_monthly_by_the_merchant_is_one_domain() -> None:
    first, then = {Channel.ECOMMERCE}, {Channel.MERCHANT_INITIATED}
    shop = Shop(
        Domain(
            channels=first | then,
            limits=(
                Limit(uses=1, channels=first),
                Limit(amount=Money(100_00, "EUR"), channels=first),
                Limit(amount=Money(20_00, "EUR"), per=Period.MONTH, channels=then),
            ),
        )
    )
    assert shop.pay(100_00, channel=Channel.ECOMMERCE) == ""
    assert shop.pay(1, channel=Channel.ECOMMERCE) == "USES_EXCEEDED,AMOUNT_EXCEEDED"
    assert shop.pay(20_00, channel=Channel.MERCHANT_INITIATED) == ""
    assert shop.pay(1, channel=Channel.MERCHANT_INITIATED) == "AMOUNT_EXCEEDED"
    assert shop.pay(20_00, channel=Channel.MERCHANT_INITIATED, days=31) == ""


def test_a_use_that_does_not_say_its_channel_is_within_every_scope() -> None:
    shop = Shop(
        Domain(limits=(Limit(uses=1, channels={Channel.ATM}), Limit(uses=1, merchants=AllBut({"M-1"}))))
    )
    assert shop.pay(channel=Channel.CHIP, merchant="M-1") == ""
    assert shop.left() == [1, 1]
    assert shop.pay() == ""
    assert shop.pay() == "USES_EXCEEDED,USES_EXCEEDED"
    assert shop.left() == [0, 0]


@pytest.mark.parametrize("per", [None, Period.DAY])
def test_limits_that_come_and_go_push_no_other_out_whose_window_is_not_over(per: Period | None) -> None:
    """Neither the program's nor that of another requestor. Uses that would are refused until windows are over."""
    program = Domain(limits=(Limit(uses=1, per=Period.MONTH, channels={Channel.ATM}),))
    both = frozenset({OWNER, OTHER})
    shop = Shop(Domain(requestors=both), program=program, acting={OTHER: Domain(limits=[Limit(uses=1)])})
    assert shop.pay(channel=Channel.ATM) == ""
    assert shop.pay(requestor=OTHER, channel=Channel.ECOMMERCE) == ""
    answers = []
    for turn in range(2 * COUNTERS_MAX // LIMITS_MAX):
        names = [f"M-{turn}-{place}" for place in range(LIMITS_MAX)]
        shop.domain = Domain(limits=[Limit(uses=9, per=per, merchants={name}) for name in names])
        answers.append(shop.pay(channel=Channel.ECOMMERCE))
        assert len(shop.usage.counters) <= COUNTERS_MAX
    assert answers == [""] * 3 + ["COUNTERS_EXCEEDED"] * 5
    assert shop.pay(channel=Channel.ATM) == "USES_EXCEEDED,COUNTERS_EXCEEDED"
    assert shop.pay(channel=Channel.ECOMMERCE, days=1) == ("COUNTERS_EXCEEDED" if per is None else "")
    shop.domain = Domain(requestors=both)
    assert shop.pay(requestor=OTHER, channel=Channel.ECOMMERCE) == "USES_EXCEEDED"
    assert shop.pay(channel=Channel.ATM) == "USES_EXCEEDED"


@pytest.mark.parametrize(
    ("limit", "counted", "uncounted"),
    [
        (Limit(uses=1, kinds={Kind.CASH}), {"kind": Kind.CASH}, {}),
        (Limit(uses=1, without_authentication=True), {}, {"authentication": strong()}),
    ],
)
def test_a_token_whose_counters_are_full_takes_uses_that_no_limit_counts(
    limit: Limit, counted: dict[str, Any], uncounted: dict[str, Any]
) -> None:
    shop = Shop()
    assert shop.told(**{"kind": Kind.PURCHASE, "id": "before", **counted}) == ""
    shop.domain = Domain(limits=[limit])
    shop.usage = Usage(tuple(Counter(number.to_bytes(16), 0, 1) for number in range(COUNTERS_MAX)))
    assert shop.told(**{"kind": Kind.PURCHASE, **counted}) == "COUNTERS_EXCEEDED"
    assert shop.told(**{"kind": Kind.PURCHASE, **uncounted}) == ""
    assert shop.told(**{"kind": Kind.PURCHASE, "id": "before", **counted}) == "", "a retry"


def test_an_increment_is_within_the_scope_of_its_use() -> None:
    shop = Shop(Domain(limits=(Limit(amount=Money(100, "EUR"), kinds={Kind.PURCHASE}),)))
    assert shop.pay(90, id="a") == ""
    assert shop.told(Kind.CASH, 90, id="b") == ""
    assert shop.told(Kind.INCREMENT, 11, original="a") == "AMOUNT_EXCEEDED"
    assert shop.told(Kind.INCREMENT, 11, original="b") == ""


def test_a_strong_use_passes_and_starts_the_limit_again() -> None:
    shop = Shop(Domain(limits=(Limit(uses=2, since_authentication=True),)))
    assert [shop.pay(1), shop.pay(1), shop.pay(1)] == ["", "", "STRONG_AUTHENTICATION_REQUIRED"]
    assert shop.pay(1, authentication=strong(factors=1)) == "STRONG_AUTHENTICATION_REQUIRED"
    assert shop.pay(1, authentication=strong()) == ""
    assert shop.left() == [2]


def test_a_use_before_a_strong_one_is_not_given_back_to_what_came_after() -> None:
    shop = Shop(Domain(limits=(Limit(uses=2, since_authentication=True),)))
    assert shop.pay(1, id="a") == ""
    assert shop.pay(1, authentication=strong(), days=1) == ""
    assert shop.pay(1, id="b", days=2) == ""
    assert shop.told(Kind.REVERSAL, original="a", days=2) == ""
    assert shop.left() == [1]
    assert shop.told(Kind.REVERSAL, original="b", days=2) == ""
    assert shop.left() == [2]


def test_a_clock_set_back_gives_no_use_before_a_strong_one_back_to_what_came_after() -> None:
    shop = Shop(Domain(limits=(Limit(uses=2, since_authentication=True),)))
    assert shop.pay(1, id="a", days=5) == ""
    assert shop.pay(1, authentication=strong(1), days=1) == ""
    assert shop.pay(1, days=2) == ""
    assert shop.pay(1, days=2) == ""
    assert shop.told(Kind.REVERSAL, original="a", days=2) == ""
    assert shop.pay(1, days=2) == "STRONG_AUTHENTICATION_REQUIRED"


def test_a_refused_use_tells_what_to_present_and_passes_with_it() -> None:
    shop = Shop(Domain(strong_above=Money(50, "EUR"), strong_max_age=timedelta(minutes=5)))
    transaction = Transaction(id="a", requestor=OWNER, amount=Money(51, "EUR"))
    (violation,) = shop.do(transaction, NOW_MS).violations
    assert (violation.code, violation.response_code) == ("STRONG_AUTHENTICATION_REQUIRED", "1A")
    assert violation.message == (
        "above 50 minor units of EUR present an authentication of the cardholder with 2 different factors of"
        " possession, knowledge, inherence, no older than 0:05:00"
    )
    for days, told in ((-5.1 / 1_440, violation.code), (-5 / 1_440, ""), (1, "AUTHENTICATION_IN_FUTURE")):
        assert shop.pay(51, authentication=strong(days)).startswith(told)
    assert shop.pay(50) == ""
    assert shop.pay(51, id="a", authentication=strong()) == ""
    assert shop.pay(51, id="a", authentication=strong(), days=1) == "", "a retry is not held against its age"


def test_what_is_strong_for_one_domain_starts_no_limit_of_a_stricter_one() -> None:
    limit = Limit(uses=2, since_authentication=True)
    shop = Shop(Domain(limits=(limit,), strong_factors=1), program=Domain(limits=(limit,), strong_factors=3))
    assert shop.pay() == ""
    assert shop.pay(authentication=strong(factors=2)) == ""
    assert shop.left() == [0, 2]
    assert shop.pay(authentication=strong(factors=2)) == "STRONG_AUTHENTICATION_REQUIRED"
    assert shop.pay(authentication=strong(factors=3)) == ""


def test_who_uses_another_s_token_is_bound_by_its_own_domain() -> None:
    """And its limits count its own uses, not those of others."""
    agent = Domain(channels={Channel.AGENT}, max_amount=Money(50_00, "EUR"), limits=(Limit(uses=1),))
    shop = Shop(Domain(requestors={OWNER, OTHER}, limits=(Limit(uses=3),)), acting={OTHER: agent})
    assert shop.pay(900_00, channel=Channel.ECOMMERCE) == ""
    told = shop.pay(900_00, channel=Channel.ECOMMERCE, requestor=OTHER)
    assert told == "CHANNEL_NOT_ALLOWED,AMOUNT_TOO_HIGH"
    assert shop.pay(50_00, channel=Channel.AGENT, requestor=OTHER) == ""
    assert shop.pay(50_00, channel=Channel.AGENT, requestor=OTHER) == "USES_EXCEEDED"
    assert shop.pay(50_00) == ""
    assert shop.pay(50_00) == "USES_EXCEEDED"


def test_a_restricted_interval_is_kept_between_uses() -> None:
    shop = Shop(Domain(min_interval=timedelta(hours=1)))
    assert [shop.pay(days=hour / 24) for hour in (0, 0.99, 1, 1.5, 2)] == ["", "TOO_SOON", "", "TOO_SOON", ""]


def test_an_interval_holds_up_neither_an_increment_of_a_use_nor_a_retry() -> None:
    shop = Shop(Domain(min_interval=timedelta(hours=1)))
    assert shop.pay(90, id="a") == ""
    assert shop.told(Kind.INCREMENT, 10, original="a") == ""
    assert shop.pay(90, id="a") == ""
    assert shop.pay(90) == "TOO_SOON"


def test_a_retry_passes_no_control_that_has_come_since_but_those_of_what_was_counted() -> None:
    shop = Shop()
    assert shop.pay(90, id="a", merchant="M-1") == ""
    for later, told in (
        ({"limits": [Limit(uses=1, kinds={Kind.CASH}), Limit(amount=Money(1, "EUR"))]}, ""),
        ({"cryptogram": CryptogramRule.REQUIRED}, ""),
        ({"strong_above": Money(1, "EUR")}, ""),
        ({"merchants": {"M-2"}}, "MERCHANT_NOT_ALLOWED"),
        ({"max_amount": Money(1, "EUR")}, "AMOUNT_TOO_HIGH"),
        ({"valid_from": datetime(2100, 1, 1, tzinfo=UTC)}, "NOT_YET_VALID"),
    ):
        domain: dict[str, Any] = later
        shop.domain = Domain(**domain)
        assert shop.pay(90, id="a", merchant="M-1") == told


def test_a_use_is_remembered_only_under_controls_that_look_back() -> None:
    for fields, kept in (
        ({"merchants": {"M-1"}, "max_amount": Money(90, "EUR"), "strong_above": Money(90, "EUR")}, False),
        ({"limits": [Limit(uses=1)]}, True),
        ({"min_interval": timedelta(hours=1)}, True),
        ({"cryptogram": CryptogramRule.REQUIRED}, True),
    ):
        domain: dict[str, Any] = fields
        shop = Shop(Domain(**domain))
        assert shop.pay(90, merchant="M-1", cryptogram_counter=1) == ""
        assert (shop.usage != UNUSED) is kept


def test_remaining_tells_what_is_left_and_until_when() -> None:
    shop = Shop(Domain(limits=(Limit(uses=3, per=timedelta(days=1)), Limit(amount=Money(10, "EUR")))))
    assert shop.pay(4) == ""
    by_uses, by_amount = remaining(shop.restrictions(OWNER), shop.usage, NOW_MS)
    assert (by_uses.used, by_uses.left, by_uses.limit) == (1, 2, Limit(uses=3, per=timedelta(days=1)))
    assert (by_amount.used, by_amount.left, by_amount.resets_at) == (4, 6, None)
    midnight = datetime.fromtimestamp((NOW_MS // DAY_MS + 1) * DAY_MS / 1_000, UTC)
    assert by_uses.resets_at == midnight


# What is refused where it is written.


CONTRADICTORY: Final = {
    Kind.CASH: (
        Channel.ECOMMERCE, Channel.TRANSFER, Channel.MAIL_TELEPHONE, Channel.MERCHANT_INITIATED, Channel.AGENT,
    ),
    Kind.TRANSFER: (Channel.MERCHANT_INITIATED, Channel.MAIL_TELEPHONE),
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        *(({"kind": kind, "channel": channel}, "KIND_CONTRADICTS_CHANNEL")
          for kind, channels in CONTRADICTORY.items() for channel in channels),
        *(({"kind": kind}, "ORIGINAL_REQUIRED") for kind in (Kind.CAPTURE, Kind.REVERSAL)),
        ({"kind": Kind.INCREMENT, "amount": Money(1, "EUR")}, "ORIGINAL_REQUIRED"),
        ({"kind": Kind.INCREMENT, "original": "a"}, "AMOUNT_REQUIRED"),
        ({"kind": Kind.INCREMENT, "original": "a", "amount": Money(0, "EUR")}, "AMOUNT_REQUIRED"),
        ({"kind": Kind.VERIFICATION, "amount": Money(1, "EUR")}, "KIND_TAKES_NO_AMOUNT"),
        ({"kind": Kind.REFUND, "original": "tx"}, "ORIGINAL_IS_ITSELF"),
        ({"original": "a"}, "KIND_TAKES_NO_ORIGINAL"),
        ({"original": "a", "channel": Channel.ECOMMERCE}, "KIND_TAKES_NO_ORIGINAL"),
        ({"kind": Kind.CASH, "original": "a"}, "KIND_TAKES_NO_ORIGINAL"),
        ({"kind": Kind.VERIFICATION, "original": "a", "channel": Channel.MERCHANT_INITIATED},
         "KIND_TAKES_NO_ORIGINAL"),
        *(({"kind": kind, "original": "a", "final": False}, "KIND_TAKES_NO_FINAL")
          for kind in (Kind.REFUND, Kind.REVERSAL)),
        ({"final": False}, "KIND_TAKES_NO_FINAL"),
        ({"kind": "refund"}, "INVALID_INPUT"),
        ({"final": 0}, "INVALID_INPUT"),
        ({"token_expiry": "2030-13"}, "EXPIRY_FORM"),
        ({"authentication": True}, "INVALID_INPUT"),
        ({"reference": "x" * 257}, "INVALID_INPUT"),
        ({"agent": ""}, "INVALID_INPUT"),
    ],
)  # fmt: skip
def test_a_transaction_that_contradicts_itself_is_refused(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        Transaction(**{"id": "tx", "requestor": OWNER, **fields})
    assert refused.value.code == code


@pytest.mark.parametrize(
    "fields",
    [
        {"factors": [], "at": datetime.now(UTC)}, {"factors": ["pin"], "at": datetime.now(UTC)},
        {"factors": [Factor.KNOWLEDGE], "at": datetime(2026, 1, 1)}, {"factors": [Factor.KNOWLEDGE], "at": None},
        {"factors": [Factor.KNOWLEDGE], "at": datetime.now(UTC), "method": "x" * 65},
    ],
)  # fmt: skip
def test_an_authentication_of_another_form_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Authentication(**fields)


def test_the_table_of_kinds_is_the_design_s() -> None:
    counts = {
        kind: (rule.counts_use, rule.counts_money, rule.follow_up, rule.live) for kind, rule in KINDS.items()
    }
    assert counts == {
        Kind.PURCHASE: (True, True, False, True),
        Kind.CASH: (True, True, False, True),
        Kind.TRANSFER: (True, True, False, True),
        Kind.VERIFICATION: (False, False, False, True),
        Kind.INCREMENT: (False, True, True, True),
        Kind.CAPTURE: (False, False, True, False),
        Kind.REVERSAL: (False, False, True, False),
        Kind.REFUND: (False, False, True, False),
        Kind.DISPUTE: (False, False, True, False),
    }


def test_a_ledger_of_no_use_is_none() -> None:
    assert UseLedger.of([], bytes(16)) is None


def test_a_ledger_is_of_one_use_and_its_own_follow_ups() -> None:
    """A payment that rests on it is none of them."""
    shop = Shop()
    assert shop.pay(10, id="a") == ""
    assert shop.told(Kind.CAPTURE, 4, id="c", original="a") == ""
    assert shop.pay(20, id="b", channel=Channel.MERCHANT_INITIATED, original="a") == ""
    assert shop.told(Kind.REFUND, 5, original="b") == ""
    found = {}
    for name in "abcd":
        ledger = UseLedger.of(shop.entries, use_id(OWNER, name))
        found[name] = ledger and (ledger.use.amount, ledger.captured, ledger.refundable, ledger.follow_ups)
    assert found == {"a": (10, 4, 4, 1), "b": (20, 20, 15, 1), "c": None, "d": None}


# What is kept of a use, and of what follows it.


def test_a_merchant_s_own_payment_is_kept_as_itself_whatever_it_rests_on() -> None:
    """Its currency and its kind are its own, and it is counted as that."""
    cash = Limit(uses=1, kinds={Kind.CASH})
    shop = Shop(Domain(limits=(cash, Limit(uses=9, kinds={Kind.PURCHASE}))))
    assert shop.told(Kind.CASH, 50, id="cit", channel=Channel.ATM) == ""
    resting: dict[str, Any] = {"channel": Channel.MERCHANT_INITIATED, "original": "cit"}
    assert shop.pay(amount=Money(7, "USD"), **resting) == ""
    assert shop.pay(**resting) == ""
    assert [(entry.amount, entry.currency) for entry in shop.entries] == [(50, "EUR"), (7, "USD"), (0, None)]
    assert shop.left() == [0, 7]


@pytest.mark.parametrize(
    ("limits", "kept"),
    [((), False), ([Limit(uses=9)], False), ([Limit(uses=9, since_authentication=True)], True)],
)
def test_a_use_is_kept_as_strong_where_it_started_a_counter_again(limits: list[Limit], kept: bool) -> None:
    shop = Shop(Domain(limits=limits))
    assert shop.pay(50, id="use", authentication=strong()) == ""
    assert shop.told(Kind.REFUND, original="use", authentication=strong()) == ""
    assert [entry.strong for entry in shop.entries] == [kept, False]


def test_a_dispute_is_kept_in_its_own_currency_and_without_an_amount_in_that_of_its_use() -> None:
    shop = Shop()
    assert shop.pay(50, id="use") == ""
    for amount in (Money(3, "USD"), Money(4, "EUR"), None):
        assert shop.told(Kind.DISPUTE, original="use", amount=amount) == ""
    kept = [(entry.amount, entry.currency) for entry in shop.entries[1:]]
    assert kept == [(3, "USD"), (4, "EUR"), (0, "EUR")]


def test_a_reversal_gives_back_its_own_use_and_no_other() -> None:
    shop = Shop(Domain(limits=(Limit(uses=5), Limit(uses=5, per=Period.DAY), monthly())))
    for name in ("a", "b", "c"):
        assert shop.pay(10_00, id=name) == ""
    assert shop.told(Kind.REVERSAL, original="b") == ""
    assert shop.left() == [3, 3, 80_00]


def test_what_is_given_back_goes_to_every_limit_that_still_counts_it() -> None:
    """Not to one that a strong authentication has begun anew since, wherever that stands among the others."""
    light = [
        Limit(uses=9, since_authentication=True, channels={channel, Channel.ATM}) for channel in CHANNELS
    ]
    plain = [Limit(uses=9, channels={channel, Channel.ATM}) for channel in CHANNELS]
    shop = Shop(Domain(limits=(*light, *plain)))
    assert shop.pay(id="use", amount=euros(1), channel=Channel.ATM) == ""
    assert shop.left() == [8] * len(shop.domain.limits)
    assert shop.pay(channel=Channel.ATM, authentication=strong(1), days=1) == ""
    assert shop.pay(channel=Channel.ATM, days=2) == ""
    assert shop.told(Kind.REVERSAL, original="use", days=3) == ""
    left = {(found.limit.since_authentication, found.left) for found in shop.left_of(days=3)}
    assert left == {(True, 8), (False, 7)}


def test_a_reversal_passes_where_the_limit_that_counted_its_use_was_taken_away() -> None:
    shop = Shop(Domain(limits=(Limit(uses=5), monthly())))
    assert shop.pay(10_00, id="use") == ""
    shop.domain = Domain(limits=(monthly(),))
    assert shop.told(Kind.REVERSAL, original="use") == ""
    assert shop.left() == [100_00]


def test_an_authentication_lies_ahead_by_no_more_than_clocks_differ() -> None:
    at = datetime.fromtimestamp(NOW_MS / 1_000, UTC)
    for ahead_ms, refused in ((30_000, ""), (30_001, "AUTHENTICATION_IN_FUTURE")):
        told = Authentication(factors=list(Factor)[:2], at=at + timedelta(milliseconds=ahead_ms))
        assert Shop().pay(5, authentication=told) == refused


def test_an_authentication_s_age_is_bounded_by_up_to_a_leap_year() -> None:
    year = timedelta(days=366)
    assert Domain(strong_max_age=year).strong_max_age == year
    with pytest.raises(InvalidInputError, match="366 days"):
        Domain(strong_max_age=year + timedelta(seconds=1))


def test_a_retry_passes_by_a_clock_behind_that_of_its_authentication() -> None:
    """It was not ahead when the use was allowed."""
    shop = Shop()
    assert shop.pay(5, id="use", authentication=strong()) == ""
    assert shop.pay(5, id="use", authentication=strong(), days=-1) == ""
    assert shop.pay(5, authentication=strong(), days=-1) == "AUTHENTICATION_IN_FUTURE"


def test_what_was_given_back_is_not_refunded_even_where_it_named_no_amount() -> None:
    shop = Shop()
    for name, cents in (("none", None), ("some", 5)):
        assert shop.pay(cents, id=name) == ""
        assert shop.told(Kind.REVERSAL, original=name) == ""
        assert shop.told(Kind.REFUND, original=name) == "REFUND_EXCEEDS"
    assert shop.pay(id="kept") == ""
    assert shop.told(Kind.REFUND, original="kept") == ""
