"""The decision function: what it must never do, and what each control means."""

from __future__ import annotations

from collections import Counter as Tally
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pure_token import PureToken
from tests.strategies import (
    DAY_MS,
    NOW_MS,
    REQUESTORS,
    any_transactions,
    controls,
    domains,
    expiries,
    limits,
    transactions,
    usages,
)
from tokenvault.model.accounting import record
from tokenvault.model.authentication import Authentication, Factor
from tokenvault.model.controls import CONTROLS, CryptogramRule
from tokenvault.model.counters import COUNTERS_MAX, Usage
from tokenvault.model.decision import Decision, Restrictions, decide
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.kinds import Kind
from tokenvault.model.ledger import Uses
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.limits import Limit
from tokenvault.model.listing import AllBut
from tokenvault.model.money import Money
from tokenvault.model.pan import CardExpiry
from tokenvault.model.transaction import Channel, Transaction

OWNER, OTHER = REQUESTORS[:2]


class State(NamedTuple):
    """A token, as far as a decision has to know it."""

    requestor: str
    status: TokenStatus
    expiry: CardExpiry | None
    assurance: str | None
    usage: Usage
    suspended_by: frozenset[Actor] = frozenset()


def decided(state: State, documents: Restrictions, use_: Transaction, now_ms: int) -> Decision:
    return decide(state, state.expiry, documents, use_, now_ms)


states = st.builds(
    State,
    requestor=st.sampled_from(REQUESTORS),
    status=st.sampled_from(TokenStatus) | st.just(TokenStatus.ACTIVE),
    expiry=st.none() | expiries,
    assurance=st.none() | st.sampled_from(["00", "10", "B2"]),
    usage=st.just(Usage()) | usages,
)
ACTIVE = State(OWNER, TokenStatus.ACTIVE, None, None, Usage())
restrictions = st.builds(Restrictions, domains, domains, domains, st.none() | domains, st.just(OTHER))
times = st.integers(NOW_MS, NOW_MS + 400 * DAY_MS)


def one(**arguments: Any) -> Restrictions:
    return Restrictions(NO_RESTRICTION, NO_RESTRICTION, Domain(**arguments))


def use(**arguments: Any) -> Transaction:
    return Transaction(**{"id": "tx", "requestor": OWNER, **arguments})


def after(usage: Usage, transaction: Transaction, documents: Restrictions, now_ms: int = NOW_MS) -> Usage:
    """The usage after a new use."""
    return record(usage, documents, transaction, now_ms, Uses()).usage


def authenticated(seconds_ahead: float = 0, factors: int = 2) -> Authentication:
    at = datetime.fromtimestamp(NOW_MS // 1_000 + seconds_ahead, UTC)
    return Authentication(factors=list(Factor)[:factors], at=at)


def codes(decision: Decision) -> set[str]:
    return {violation.code for violation in decision.violations}


def kinds(decision: Decision) -> set[tuple[str, str, str]]:
    return {(each.control, each.code, each.response_code) for each in decision.violations}


@given(
    states,
    restrictions,
    any_transactions,
    times,
    st.sampled_from(["program", "requestor", "token", "acting"]),
    st.data(),
)
def test_adding_a_control_never_allows_more(
    state: State, before: Restrictions, use_: Transaction, now_ms: int, where: str, data: st.DataObject
) -> None:
    """But for `requestors` in the token's own domain, which is how a token lets in others than its own."""
    domain: Domain | None = getattr(before, where)
    if domain is None:
        return
    terms = {name for name, control in CONTROLS.items() if not hasattr(control, "holds")}
    unset = [name for name in controls.keys() - terms if getattr(domain, name) in (None, ())]
    if where == "token":
        unset = [name for name in unset if name != "requestors"]
    if not unset:
        return
    name = data.draw(st.sampled_from(sorted(unset)))
    value = data.draw(controls[name].filter(lambda drawn: drawn is not None))
    if (name == "min_amount" and domain.max_amount) or (name == "max_amount" and domain.min_amount):
        return
    if name in {"valid_from", "valid_until"} and (domain.valid_from or domain.valid_until):
        return
    fields = {key: getattr(domain, key) for key in controls}
    changed: dict[str, Any] = {where: Domain(**{**fields, name: value})}
    narrower = attrs.evolve(before, **changed)
    was, now = decided(state, before, use_, now_ms), decided(state, narrower, use_, now_ms)
    # Texts may tell less then; and who may not use the token is not told that an expiry differs.
    stranger = "REQUESTOR_NOT_ALLOWED" in codes(now)
    untold = {each for each in kinds(was) if stranger and each[1] == "TOKEN_EXPIRY_DIFFERS"}
    assert kinds(was) - untold <= kinds(now)
    assert was.allowed or not now.allowed


@given(states, restrictions, any_transactions, times)
def test_a_decision_is_the_same_however_often_it_is_asked_for(
    state: State, documents: Restrictions, use_: Transaction, now_ms: int
) -> None:
    first = decided(state, documents, use_, now_ms)
    assert all(decided(state, documents, use_, now_ms) == first for _ in range(3))
    assert first.allowed == (first.violations == ())


@given(states, restrictions, transactions, times)
def test_every_violation_is_one_that_the_rules_name(
    state: State, documents: Restrictions, use_: Transaction, now_ms: int
) -> None:
    """Compared with the rules written out one by one, without sharing any code."""
    expected: set[str] = set()
    if state.status is not TokenStatus.ACTIVE:
        expected.add(f"TOKEN_{state.status.name}")
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ms)
    last_zone = now - timedelta(hours=12)
    if state.expiry and (last_zone.year, last_zone.month) > (state.expiry.year, state.expiry.month):
        expected.add("TOKEN_EXPIRED")
    if use_.token_expiry and use_.token_expiry != state.expiry:
        expected.add("TOKEN_EXPIRY_DIFFERS")
    if use_.authentication and use_.authentication.at > now + timedelta(seconds=30):
        expected.add("AUTHENTICATION_IN_FUTURE")
    if not documents.token.requestors and use_.requestor != state.requestor:
        expected.add("REQUESTOR_NOT_ALLOWED")
    for domain in (documents.program, documents.requestor, documents.token, documents.acting):
        if domain is None:
            continue
        for allowed, given_, code in (
            (domain.requestors, use_.requestor, "REQUESTOR_NOT_ALLOWED"),
            (domain.merchants, use_.merchant, "MERCHANT_NOT_ALLOWED"),
            (domain.channels, use_.channel, "CHANNEL_NOT_ALLOWED"),
            (domain.countries, use_.country, "COUNTRY_NOT_ALLOWED"),
            (domain.currencies, use_.amount and use_.amount.currency, "CURRENCY_NOT_ALLOWED"),
            (domain.devices, use_.device, "DEVICE_NOT_ALLOWED"),
            (domain.kinds, use_.kind, "KIND_NOT_ALLOWED"),
            (domain.references, use_.reference, "REFERENCE_NOT_ALLOWED"),
            (domain.agents, use_.agent, "AGENT_NOT_ALLOWED"),
            (domain.assurances, state.assurance, "ASSURANCE_NOT_ALLOWED"),
        ):
            if allowed and not lets(allowed, given_):
                expected.add(code)
        categories, category = domain.merchant_categories, use_.merchant_category
        if categories:
            listed = categories.values if isinstance(categories, AllBut) else categories
            within = category is not None and any(
                int(item[:4]) <= int(category) <= int(item[-4:]) for item in listed
            )
            if category is None or within == isinstance(categories, AllBut):
                expected.add("MERCHANT_CATEGORY_NOT_ALLOWED")
        if domain.valid_from and now < domain.valid_from:
            expected.add("NOT_YET_VALID")
        if domain.valid_until and now >= domain.valid_until:
            expected.add("NO_LONGER_VALID")
        for bound, code in ((domain.max_amount, "AMOUNT_TOO_HIGH"), (domain.min_amount, "AMOUNT_TOO_LOW")):
            if bound is None:
                continue
            paid = use_.amount.amount if use_.amount and use_.amount.currency == bound.currency else None
            low = code == "AMOUNT_TOO_LOW"
            if paid is None or (paid < bound.amount if low else paid > bound.amount):
                expected.add(code)
        above = domain.strong_above
        if above and not (
            use_.amount and use_.amount.currency == above.currency and use_.amount.amount <= above.amount
        ):
            shown = use_.authentication
            fresh = shown is not None and shown.at <= now + timedelta(seconds=30)
            if shown is not None and domain.strong_max_age is not None:
                fresh = fresh and now - shown.at <= domain.strong_max_age
            if shown is None or len(shown.factors) < domain.strong_factors or not fresh:
                expected.add("STRONG_AUTHENTICATION_REQUIRED")
    found = codes(decided(state, documents, use_, now_ms))
    counted = {"CRYPTOGRAM_REQUIRED", "USES_EXCEEDED", "AMOUNT_EXCEEDED", "TOO_SOON"}
    if any(limit.limit.light for limit in documents.velocity_limits):
        counted.add("STRONG_AUTHENTICATION_REQUIRED")
    assert found - counted == expected - counted
    assert expected <= found


def lets(allowed: Any, value: object) -> bool:
    if isinstance(allowed, AllBut):
        return value is not None and value not in set(allowed.values)
    return value in set(allowed)


uses = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.none() | st.builds(Money, st.integers(0, 60), st.sampled_from(["EUR", "USD"])),
        st.integers(0, 3 * DAY_MS),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(st.lists(limits, min_size=1, max_size=4).map(tuple), st.booleans(), uses)
def test_no_order_of_uses_passes_a_limit(found: tuple[Limit, ...], split: bool, wanted: list[Any]) -> None:
    """Uses, retries and clashing ids in any order, at any times, against plain sums over what was allowed."""
    token = PureToken(Domain(limits=found))
    if split:
        token = PureToken(Domain(limits=found[1:]), program=Domain(limits=found[:1]))
    counted, now_ms = dict[str, tuple[Transaction, int]](), NOW_MS
    for number, amount, later_ms in wanted:
        now_ms += later_ms
        transaction = use(id=f"tx-{number}", amount=amount)
        decision = token.do(transaction, now_ms)
        before = counted.get(transaction.id)
        if before is not None:
            assert decision.allowed == (before[0] == transaction)
        elif decision.allowed:
            counted[transaction.id] = (transaction, now_ms)
        for limit in found:
            totals: Tally[int] = Tally()
            for transaction, at_ms in counted.values():
                spent = transaction.amount.amount if limit.amount and transaction.amount else 1
                seconds = limit.per.total_seconds() if isinstance(limit.per, timedelta) else 0
                totals[int(at_ms // (seconds * 1000)) if seconds else 0] += spent
            most = limit.uses or (limit.amount and limit.amount.amount) or 0
            assert max(totals.values(), default=0) <= most


@given(
    st.lists(limits, min_size=1, max_size=3).map(tuple), transactions.filter(lambda found: bool(found.amount))
)
def test_a_use_within_every_limit_is_allowed(found: tuple[Limit, ...], transaction: Transaction) -> None:
    """A limit refuses nothing that it has room for."""
    roomy = tuple(
        limit
        for limit in found
        if limit.amount is None
        or (
            transaction.amount is not None
            and limit.amount.currency == transaction.amount.currency
            and transaction.amount.amount <= limit.amount.amount
        )
    )
    state = ACTIVE._replace(requestor=transaction.requestor)
    assert decided(state, one(limits=roomy), attrs.evolve(transaction, authentication=None), NOW_MS).allowed


def test_a_limit_in_another_currency_is_a_violation() -> None:
    documents = one(limits=(Limit(amount=Money(10, "EUR")),))
    assert codes(decided(ACTIVE, documents, use(amount=Money(1, "USD")), NOW_MS)) == {"AMOUNT_EXCEEDED"}
    assert codes(decided(ACTIVE, documents, use(), NOW_MS)) == {"AMOUNT_EXCEEDED"}


def test_limits_in_two_currencies_allow_nothing_unless_their_scopes_keep_them_apart() -> None:
    both = one(limits=(Limit(amount=Money(10, "EUR")), Limit(amount=Money(10, "USD"))))
    for amount in (Money(1, "EUR"), Money(1, "USD"), None):
        assert codes(decided(ACTIVE, both, use(amount=amount), NOW_MS)) == {"AMOUNT_EXCEEDED"}
    apart = one(
        limits=(
            Limit(amount=Money(10, "EUR"), merchants={"M-1"}),
            Limit(amount=Money(10, "USD"), merchants={"M-2"}),
        )
    )
    for merchant, amount in (("M-1", Money(1, "EUR")), ("M-2", Money(1, "USD"))):
        assert not codes(decided(ACTIVE, apart, use(merchant=merchant, amount=amount), NOW_MS))


def test_a_raised_limit_leaves_what_was_used_as_used() -> None:
    usage = Usage()
    for number in range(10):
        usage = after(usage, use(id=f"tx-{number}"), one(limits=(Limit(uses=10),)))
    raised = one(limits=(Limit(uses=11),))
    state = ACTIVE._replace(usage=usage)
    assert decided(state, raised, use(id="more"), NOW_MS).allowed
    usage = after(usage, use(id="more"), raised)
    assert not decided(ACTIVE._replace(usage=usage), raised, use(id="most"), NOW_MS).allowed


def test_a_clock_set_back_gives_no_window_again() -> None:
    """One before the first use was never given: the clock may have been ahead then. It is given once."""
    token = PureToken(Domain(limits=(Limit(uses=1, per=timedelta(days=1)),)))
    for days, allowed in (
        (0, True),
        (0, False),
        (-2, True),
        (-2, False),
        (-3, False),
        (0, False),
        (-1, True),
    ):
        assert token.do(use(id=f"{days}-{allowed}"), NOW_MS + days * DAY_MS).allowed == allowed, days
    assert token.do(use(id="later"), NOW_MS + DAY_MS).allowed


def test_windows_are_aligned_to_the_epoch() -> None:
    documents = one(limits=(Limit(uses=1, per=timedelta(days=1)),))
    midnight_ms = NOW_MS - NOW_MS % DAY_MS + DAY_MS
    usage = after(Usage(), use(id="a"), documents, midnight_ms - 1)
    state = ACTIVE._replace(usage=usage)
    assert not decided(state, documents, use(id="b"), midnight_ms - 1).allowed
    assert decided(state, documents, use(id="b"), midnight_ms).allowed


@given(st.integers(0, 200))
@settings(max_examples=20)
def test_a_retry_counts_once_however_many_uses_later(later: int) -> None:
    """For as long as its event is kept."""
    token = PureToken(Domain(limits=(Limit(uses=later + 1),)))
    assert token.do(use(id="first"), NOW_MS).allowed
    for number in range(later):
        assert token.do(use(id=f"tx-{number}"), NOW_MS).allowed
    usage = token.usage
    assert token.do(use(id="first"), NOW_MS).allowed
    assert codes(token.do(use(id="first", merchant="M"), NOW_MS)) == {
        "TRANSACTION_ID_REUSED",
        "USES_EXCEEDED",
    }
    assert codes(token.do(use(id="second"), NOW_MS)) == {"USES_EXCEEDED"}
    assert token.usage is usage


def test_an_id_is_its_requestor_s_own() -> None:
    """What one requestor used can neither burn an id for another nor pass as its retry."""
    token = PureToken(Domain(limits=(Limit(uses=1),), requestors={OWNER, OTHER}))
    assert token.do(use(), NOW_MS).allowed
    assert codes(token.do(use(requestor=OTHER), NOW_MS)) == {"USES_EXCEEDED"}


def test_the_highest_cryptogram_counter_is_kept() -> None:
    """Also where a use in between gives a lower one, which a domain without the rule lets pass."""
    documents = one(limits=(Limit(uses=9),))
    usage = Usage()
    for number, counter in enumerate((50, 0, None)):
        usage = after(usage, use(id=str(number), cryptogram_counter=counter), documents)
    assert usage.cryptogram_counter == 50


def test_an_id_with_other_content_is_refused_whether_a_limit_counts_or_not() -> None:
    for limits_ in ((), (Limit(uses=10),)):
        token = PureToken(Domain(limits=limits_))
        assert token.do(use(amount=Money(1, "EUR")), NOW_MS).allowed
        decision = token.do(use(amount=Money(2, "EUR")), NOW_MS)
        assert codes(decision) == {"TRANSACTION_ID_REUSED"}
        assert decision.violations[0].response_code == "94"
        assert token.do(use(amount=Money(1, "EUR")), NOW_MS).allowed


def test_a_cryptogram_counter_must_rise() -> None:
    token = PureToken(Domain(cryptogram=CryptogramRule.REQUIRED))
    assert codes(token.do(use(), NOW_MS)) == {"CRYPTOGRAM_REQUIRED"}
    first = use(id="a", cryptogram_counter=5)
    assert token.do(first, NOW_MS).allowed
    for counter, allowed in ((4, False), (5, False), (6, True)):
        assert token.check(use(id="b", cryptogram_counter=counter), NOW_MS).allowed == allowed
    assert token.check(first, NOW_MS).allowed, "a retry of the same use"


@pytest.mark.parametrize(
    ("documents", "state", "transaction", "code", "response_code"),
    [
        (one(), ACTIVE._replace(status=TokenStatus.SUSPENDED), use(), "TOKEN_SUSPENDED", "62"),
        (one(), ACTIVE._replace(status=TokenStatus.WINDING_DOWN), use(), "TOKEN_WINDING_DOWN", "57"),
        (one(), ACTIVE._replace(status=TokenStatus.DELETED), use(), "TOKEN_DELETED", "14"),
        (one(), ACTIVE._replace(status=TokenStatus.INACTIVE), use(), "TOKEN_INACTIVE", "57"),
        (one(), ACTIVE._replace(expiry=CardExpiry(2025, 12)), use(), "TOKEN_EXPIRED", "54"),
        (one(), ACTIVE, use(requestor=OTHER), "REQUESTOR_NOT_ALLOWED", "57"),
        (one(requestors={OTHER}), ACTIVE, use(), "REQUESTOR_NOT_ALLOWED", "57"),
        (one(merchants={"M"}), ACTIVE, use(), "MERCHANT_NOT_ALLOWED", "57"),
        (one(channels={Channel.ATM}), ACTIVE, use(channel=Channel.CHIP), "CHANNEL_NOT_ALLOWED", "57"),
        (one(countries={"FR"}), ACTIVE, use(country="DE"), "COUNTRY_NOT_ALLOWED", "62"),
        (one(max_amount=Money(5, "EUR")), ACTIVE, use(amount=Money(6, "EUR")), "AMOUNT_TOO_HIGH", "61"),
        (one(max_amount=Money(5, "EUR")), ACTIVE, use(amount=Money(5, "USD")), "AMOUNT_TOO_HIGH", "61"),
        (one(limits=(Limit(amount=Money(5, "EUR")),)), ACTIVE, use(amount=Money(6, "EUR")), "AMOUNT_EXCEEDED", "61"),
        (one(valid_until=datetime(2026, 1, 1, tzinfo=UTC)), ACTIVE, use(), "NO_LONGER_VALID", "54"),
        (one(min_amount=Money(5, "EUR")), ACTIVE, use(amount=Money(4, "EUR")), "AMOUNT_TOO_LOW", "13"),
        (one(kinds={Kind.CASH}), ACTIVE, use(), "KIND_NOT_ALLOWED", "57"),
        (one(kinds=AllBut({Kind.CASH})), ACTIVE, use(kind=Kind.CASH), "KIND_NOT_ALLOWED", "57"),
        (one(references={"order-1"}), ACTIVE, use(), "REFERENCE_NOT_ALLOWED", "57"),
        (one(agents=AllBut({"agent-1"})), ACTIVE, use(), "AGENT_NOT_ALLOWED", "57"),
        (one(assurances={"10", "11"}), ACTIVE._replace(assurance="13"), use(), "ASSURANCE_NOT_ALLOWED", "57"),
        (one(assurances={"10", "11"}), ACTIVE, use(), "ASSURANCE_NOT_ALLOWED", "57"),
        (one(merchant_categories={"3000-3999"}), ACTIVE, use(merchant_category="4000"),
         "MERCHANT_CATEGORY_NOT_ALLOWED", "57"),
        (one(strong_above=Money(5, "EUR")), ACTIVE, use(amount=Money(6, "EUR")),
         "STRONG_AUTHENTICATION_REQUIRED", "1A"),
        (one(strong_above=Money(5, "EUR")), ACTIVE, use(amount=Money(1, "USD")),
         "STRONG_AUTHENTICATION_REQUIRED", "1A"),
        (one(), ACTIVE._replace(expiry=CardExpiry(2030, 1)), use(token_expiry="2030-02"),
         "TOKEN_EXPIRY_DIFFERS", "54"),
        (one(), ACTIVE, use(authentication=authenticated(31)), "AUTHENTICATION_IN_FUTURE", "1A"),
    ],
)  # fmt: skip
def test_a_violation_carries_its_iso_8583_answer(
    documents: Restrictions, state: State, transaction: Transaction, code: str, response_code: str
) -> None:
    decision = decided(state, documents, transaction, NOW_MS)
    assert [(violation.code, violation.response_code) for violation in decision.violations] == [
        (code, response_code)
    ]


def test_a_message_names_what_is_allowed_and_how_many_more() -> None:
    documents = one(merchants={f"M-{number}" for number in range(9)})
    said = "allowed merchants: M-0, M-1, M-2, M-3, M-4 and 4 more"
    for merchant, message in ((None, f"{said}; the transaction names none"), ("M-9", said)):
        (violation,) = decided(ACTIVE, documents, use(merchant=merchant), NOW_MS).violations
        assert violation.message == message


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 90 * DAY_MS)), max_size=100))
def test_usage_stays_within_its_bounds(steps: list[tuple[int, int]]) -> None:
    """However limits come and go: those that are over go first, and none that is set."""
    usage, now_ms = Usage(), NOW_MS
    for seconds, later_ms in steps:
        now_ms += later_ms
        limit = Limit(uses=5, per=timedelta(seconds=seconds) if seconds else None)
        documents = one(limits=(limit,))
        usage = after(usage, use(), documents, now_ms)
        assert len(usage.counters) <= COUNTERS_MAX
        assert list(usage.counters) == sorted(usage.counters)
        assert documents.velocity_limits[0].key in {counter.key for counter in usage.counters}


def test_a_decision_is_true_exactly_where_no_control_failed() -> None:
    for status, allowed in ((TokenStatus.ACTIVE, True), (TokenStatus.INACTIVE, False)):
        token = PureToken()
        token.status = status
        decision = token.check(Transaction(id="t", requestor=token.owner), NOW_MS)
        assert bool(decision) is decision.allowed is allowed
        assert (decision.violations == ()) is allowed
