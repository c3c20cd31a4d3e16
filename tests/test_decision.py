"""The decision function: what it must never do, and what each control means."""

from __future__ import annotations

from collections import Counter as Tally
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import (
    DAY_MS,
    NOW_MS,
    REQUESTORS,
    controls,
    domains,
    expiries,
    limits,
    transactions,
    usages,
)
from tokenvault.model.controls import CryptogramRule
from tokenvault.model.counters import REMEMBERED_USES_MAX, Seen, Usage
from tokenvault.model.decision import Decision, Restrictions, decide
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.limits import Limit
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
restrictions = st.builds(Restrictions, domains, domains, domains)
times = st.integers(NOW_MS, NOW_MS + 400 * DAY_MS)


def one(**arguments: Any) -> Restrictions:
    return Restrictions(NO_RESTRICTION, NO_RESTRICTION, Domain(**arguments))


def use(**arguments: Any) -> Transaction:
    return Transaction(**{"id": "tx", "requestor": OWNER, **arguments})


def codes(decision: Decision) -> set[str]:
    return {violation.code for violation in decision.violations}


def kinds(decision: Decision) -> set[tuple[str, str, str]]:
    return {(each.control, each.code, each.response_code) for each in decision.violations}


@given(
    states, restrictions, transactions, times, st.sampled_from(["program", "requestor", "token"]), st.data()
)
def test_adding_a_control_never_allows_more(
    state: State, before: Restrictions, use_: Transaction, now_ms: int, where: str, data: st.DataObject
) -> None:
    """But for `requestors` in the token's own domain, which is how a token lets in others than its own."""
    domain: Domain = getattr(before, where)
    unset = [name for name in controls if getattr(domain, name) in (None, ())]
    if where == "token":
        unset = [name for name in unset if name != "requestors"]
    if not unset:
        return
    name = data.draw(st.sampled_from(unset))
    value = data.draw(controls[name].filter(lambda drawn: drawn is not None))
    if name in {"valid_from", "valid_until"} and (domain.valid_from or domain.valid_until):
        return
    fields = {key: getattr(domain, key) for key in controls}
    after = attrs.evolve(before, **{where: Domain(**{**fields, name: value})})
    was, now = decided(state, before, use_, now_ms), decided(state, after, use_, now_ms)
    if after.counted == before.counted:
        assert kinds(was) <= kinds(now)  # texts may tell less then
    assert was.allowed or not now.allowed


@given(states, restrictions, transactions, times)
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
    names = {TokenStatus.INACTIVE: "TOKEN_INACTIVE", TokenStatus.SUSPENDED: "TOKEN_SUSPENDED"}
    if state.status is not TokenStatus.ACTIVE:
        expected.add(names.get(state.status, "TOKEN_DELETED"))
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ms)
    if state.expiry and (now.year, now.month) > (state.expiry.year, state.expiry.month):
        expected.add("TOKEN_EXPIRED")
    if not documents.token.requestors and use_.requestor != state.requestor:
        expected.add("REQUESTOR_NOT_ALLOWED")
    for domain in (documents.program, documents.requestor, documents.token):
        for allowed, given_, code in (
            (domain.requestors, use_.requestor, "REQUESTOR_NOT_ALLOWED"),
            (domain.merchants, use_.merchant, "MERCHANT_NOT_ALLOWED"),
            (domain.merchant_categories, use_.merchant_category, "MERCHANT_CATEGORY_NOT_ALLOWED"),
            (domain.channels, use_.channel, "CHANNEL_NOT_ALLOWED"),
            (domain.countries, use_.country, "COUNTRY_NOT_ALLOWED"),
            (domain.currencies, use_.amount and use_.amount.currency, "CURRENCY_NOT_ALLOWED"),
            (domain.devices, use_.device, "DEVICE_NOT_ALLOWED"),
        ):
            if allowed and (given_ is None or given_ not in allowed):
                expected.add(code)
        if domain.valid_from and now < domain.valid_from:
            expected.add("NOT_YET_VALID")
        if domain.valid_until and now >= domain.valid_until:
            expected.add("NO_LONGER_VALID")
        most = domain.max_amount
        if most and not (
            use_.amount and use_.amount.currency == most.currency and use_.amount.amount <= most.amount
        ):
            expected.add("AMOUNT_TOO_HIGH")
        if domain.min_assurance and not (state.assurance and state.assurance >= domain.min_assurance):
            expected.add("ASSURANCE_TOO_LOW")
    found = codes(decided(state, documents, use_, now_ms))
    counted = {"CRYPTOGRAM_REQUIRED", "USES_EXCEEDED", "AMOUNT_EXCEEDED", "TRANSACTION_ID_REUSED"}
    assert found - counted == expected


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
    documents = one(limits=found)
    if split:
        documents = Restrictions(Domain(limits=found[:1]), NO_RESTRICTION, Domain(limits=found[1:]))
    usage, counted, now_ms = Usage(), dict[str, tuple[Transaction, int]](), NOW_MS
    for number, amount, later_ms in wanted:
        now_ms += later_ms
        transaction = use(id=f"tx-{number}", amount=amount)
        decision = decided(ACTIVE._replace(usage=usage), documents, transaction, now_ms)
        before = counted.get(transaction.id)
        if before is not None:
            assert decision.allowed == (before[0] == transaction)
        elif decision.allowed:
            usage = usage.after(transaction, documents.velocity_counters, now_ms)
            counted[transaction.id] = (transaction, now_ms)
        for limit in found:
            seconds = limit._counter.window_seconds
            totals: Tally[int] = Tally()
            for transaction, at_ms in counted.values():
                spent = transaction.amount.amount if limit.amount and transaction.amount else 1
                totals[at_ms // (seconds * 1000) if seconds else 0] += spent
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
    assert decided(state, one(limits=roomy), transaction, NOW_MS).allowed


def test_a_limit_in_another_currency_is_a_violation() -> None:
    documents = one(limits=(Limit(amount=Money(10, "EUR")),))
    assert codes(decided(ACTIVE, documents, use(amount=Money(1, "USD")), NOW_MS)) == {"AMOUNT_EXCEEDED"}
    assert codes(decided(ACTIVE, documents, use(), NOW_MS)) == {"AMOUNT_EXCEEDED"}


def test_a_raised_limit_leaves_what_was_used_as_used() -> None:
    usage = Usage()
    for number in range(10):
        usage = usage.after(use(id=f"tx-{number}"), one(limits=(Limit(uses=10),)).velocity_counters, NOW_MS)
    raised = one(limits=(Limit(uses=11),))
    state = ACTIVE._replace(usage=usage)
    assert decided(state, raised, use(id="more"), NOW_MS).allowed
    after = usage.after(use(id="more"), raised.velocity_counters, NOW_MS)
    assert not decided(ACTIVE._replace(usage=after), raised, use(id="most"), NOW_MS).allowed


def test_a_clock_set_back_does_not_open_a_window_again() -> None:
    documents = one(limits=(Limit(uses=1, per=timedelta(days=1)),))
    usage = Usage().after(use(id="a"), documents.velocity_counters, NOW_MS)
    state = ACTIVE._replace(usage=usage)
    assert not decided(state, documents, use(id="b"), NOW_MS - 2 * DAY_MS).allowed
    assert decided(state, documents, use(id="b"), NOW_MS + DAY_MS).allowed


def test_windows_are_aligned_to_the_epoch() -> None:
    documents = one(limits=(Limit(uses=1, per=timedelta(days=1)),))
    midnight_ms = NOW_MS - NOW_MS % DAY_MS + DAY_MS
    usage = Usage().after(use(id="a"), documents.velocity_counters, midnight_ms - 1)
    state = ACTIVE._replace(usage=usage)
    assert not decided(state, documents, use(id="b"), midnight_ms - 1).allowed
    assert decided(state, documents, use(id="b"), midnight_ms).allowed


@given(st.integers(0, REMEMBERED_USES_MAX - 1))
def test_a_retry_counts_once_while_it_is_remembered(later: int) -> None:
    documents = one(limits=(Limit(uses=1_000),))
    usage = Usage().after(use(id="first"), documents.velocity_counters, NOW_MS)
    for number in range(later):
        usage = usage.after(use(id=f"tx-{number}"), documents.velocity_counters, NOW_MS)
    assert usage.seen(use(id="first")) is Seen.SAME
    assert usage.seen(use(id="first", merchant="M")) is Seen.OTHER_CONTENT
    assert usage.seen(use(id="second")) is Seen.NEW


def test_an_id_is_its_requestor_s_own() -> None:
    """What one requestor used can neither burn an id for another nor pass as its retry."""
    documents = one(limits=(Limit(uses=1),), requestors={OWNER, OTHER})
    usage = Usage().after(use(), documents.velocity_counters, NOW_MS)
    decision = decided(ACTIVE._replace(usage=usage), documents, use(requestor=OTHER), NOW_MS)
    assert codes(decision) == {"USES_EXCEEDED"}


def test_the_highest_cryptogram_counter_is_kept() -> None:
    """Also where a use in between gives a lower one, which a domain without the rule lets pass."""
    documents = one(limits=(Limit(uses=9),))
    usage = Usage()
    for number, counter in enumerate((50, 0, None)):
        usage = usage.after(
            use(id=str(number), cryptogram_counter=counter), documents.velocity_counters, NOW_MS
        )
    assert usage.cryptogram_counter == 50


def test_an_id_with_other_content_is_refused() -> None:
    documents = one(limits=(Limit(uses=10),))
    usage = Usage().after(use(amount=Money(1, "EUR")), documents.velocity_counters, NOW_MS)
    decision = decided(ACTIVE._replace(usage=usage), documents, use(amount=Money(2, "EUR")), NOW_MS)
    assert codes(decision) == {"TRANSACTION_ID_REUSED"}
    assert decision.violations[0].response_code == "94"


def test_a_cryptogram_counter_must_rise() -> None:
    documents = one(cryptogram=CryptogramRule.REQUIRED)
    assert codes(decided(ACTIVE, documents, use(), NOW_MS)) == {"CRYPTOGRAM_REQUIRED"}
    first = use(id="a", cryptogram_counter=5)
    assert decided(ACTIVE, documents, first, NOW_MS).allowed
    state = ACTIVE._replace(usage=Usage().after(first, documents.velocity_counters, NOW_MS))
    for counter, allowed in ((4, False), (5, False), (6, True)):
        assert decided(state, documents, use(id="b", cryptogram_counter=counter), NOW_MS).allowed == allowed
    assert decided(state, documents, first, NOW_MS).allowed, "a retry of the same use"


@pytest.mark.parametrize(
    ("documents", "state", "transaction", "code", "response_code"),
    [
        (one(), ACTIVE._replace(status=TokenStatus.SUSPENDED), use(), "TOKEN_SUSPENDED", "62"),
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
    (violation,) = decided(ACTIVE, documents, use(), NOW_MS).violations
    assert (
        violation.message
        == "allowed merchants: M-0, M-1, M-2, M-3, M-4 and 4 more; the transaction names none"
    )


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 90 * DAY_MS)), max_size=100))
def test_usage_stays_within_its_bounds(steps: list[tuple[int, int]]) -> None:
    """However limits come and go."""
    usage, now_ms = Usage(), NOW_MS
    for seconds, later_ms in steps:
        now_ms += later_ms
        limit = Limit(uses=5, per=timedelta(seconds=seconds) if seconds else None)
        usage = usage.after(use(), one(limits=(limit,)).velocity_counters, now_ms)
        assert len(usage.counters) <= 64
        assert len(usage.memories) <= 32 * REMEMBERED_USES_MAX
