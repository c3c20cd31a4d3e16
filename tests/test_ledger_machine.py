"""Payments of every kind in any order, by two requestors, on one token: against a ledger of plain sums."""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.pure_token import OWNER, PureToken
from tests.strategies import DAY_MS, NOW_MS
from tokenvault.model.decision import Decision
from tokenvault.model.domain import Domain
from tokenvault.model.kinds import KINDS, Kind
from tokenvault.model.ledger import UseLedger, Uses
from tokenvault.model.limits import Limit
from tokenvault.model.money import Money
from tokenvault.model.periods import Period
from tokenvault.model.transaction import Channel, Transaction

ACQUIRER = "40087654321"
ECOMMERCE = frozenset({Channel.ECOMMERCE})
EUR_100 = Money(100, "EUR")
LIMITS = (
    Limit(uses=3),
    Limit(uses=2, per=Period.DAY, zone="Asia/Shanghai"),
    Limit(amount=EUR_100),
    Limit(amount=EUR_100, per=Period.MONTH),
    Limit(amount=EUR_100, per=Period.DAY, channels=ECOMMERCE),
    Limit(uses=2, kinds=frozenset({Kind.CASH})),
    Limit(amount=Money(150, "EUR"), requestors=frozenset({ACQUIRER})),
)


@attrs.define
class Known:
    """A use that was allowed, in the plainest of words: its money by the day on which it came."""

    transaction: Transaction
    time_ms: int
    limits: set[Limit]
    authorised: list[tuple[int, int, set[Limit]]]
    captured: int = 0
    told: bool = False
    refunded: int = 0
    open: bool = True
    gone: bool = False
    ids: set[str] = attrs.field(factory=set)

    @property
    def total(self) -> int:
        return sum(amount for amount, _, _ in self.authorised)

    @property
    def spent(self) -> bool:
        """Whether nothing of it is left, so that its id is of no more use."""
        of = self.transaction.amount
        return self.gone or (of is not None and of.amount > 0 and self.total == 0)

    def give_back(self, amount: int) -> None:
        for place in reversed(range(len(self.authorised))):
            held, time_ms, limits = self.authorised[place]
            taken = min(held, amount)
            self.authorised[place] = (held - taken, time_ms, limits)
            amount -= taken


class LedgerMachine(RuleBasedStateMachine):
    """Tells one token of payments, and keeps what every limit counts by itself."""

    @initialize(limits=st.lists(st.sampled_from(LIMITS), max_size=4, unique=True), split=st.booleans())
    def begin(self, limits: list[Limit], split: bool) -> None:
        both = frozenset({OWNER, ACQUIRER})
        place = len(limits) // 2 if split else 0
        self.token = PureToken(
            Domain(requestors=both, limits=limits[place:]), program=Domain(limits=limits[:place])
        )
        self.limits = limits
        self.now_ms = NOW_MS
        self.known: dict[tuple[str, str], Known] = {}
        self.told: dict[tuple[str, str], Transaction] = {}

    def tell(self, transaction: Transaction) -> Decision | None:
        """The decision; None where it was a retry, which changes nothing and is answered as before."""
        name = (transaction.requestor, transaction.id)
        before = copy.deepcopy((self.token.usage, self.token.entries))
        first = self.token.check(transaction, self.now_ms)
        decision = self.token.do(transaction, self.now_ms)
        assert first == decision, "asking changes nothing"
        if not decision.allowed:
            assert (self.token.usage, self.token.entries) == before, "what is refused leaves nothing"
        if name in self.told:
            same = self.told[name] == transaction
            raised = transaction.kind is Kind.INCREMENT  # which goes the way of its use
            use = (transaction.requestor, transaction.original or "") if raised else name
            spent = use in self.known and self.known[use].spent
            assert decision.allowed == (same and not spent)
            assert (self.token.usage, self.token.entries) == before, "a retry counts nothing"
            return None
        if decision.allowed:
            self.told[name] = transaction
        return decision

    def within(self, transaction: Transaction) -> set[Limit]:
        """The limits whose scope a transaction is in, by its own words or its original's."""
        of = transaction
        if transaction.kind is Kind.INCREMENT:
            of = self.known[transaction.requestor, transaction.original or ""].transaction
        return {
            limit
            for limit in self.limits
            if (
                limit.channels is None or transaction.channel is None or transaction.channel in limit.channels
            )
            and (limit.kinds is None or of.kind in limit.kinds)
            and (limit.requestors is None or transaction.requestor in limit.requestors)
        }

    def used(self, limit: Limit) -> dict[int, int]:
        found: dict[int, int] = defaultdict(int)
        for known in self.known.values():
            if limit.amount is None:
                if limit in known.limits and not known.gone:
                    found[limit.window(known.time_ms).number] += 1
                continue
            for amount, time_ms, limits in known.authorised:
                if limit in limits:
                    found[limit.window(time_ms).number] += amount
        return found

    def has_room(self, limit: Limit, transaction: Transaction) -> bool:
        rule_ = KINDS[transaction.kind]
        used = self.used(limit)[limit.window(self.now_ms).number]
        if limit.amount is None:
            return not rule_.counts_use or used < (limit.uses or 0)
        assert transaction.amount is not None
        return used + transaction.amount.amount <= limit.amount.amount

    payments = st.sampled_from([kind for kind, rule_ in KINDS.items() if rule_.counts_use])
    requestors = st.sampled_from([OWNER, OWNER, ACQUIRER])
    names = st.integers(0, 15).map(lambda number: f"use-{number}")
    amounts = st.sampled_from([1, 10, 25, 40, 60, 100, 101])

    @rule(
        kind=payments,
        requestor=requestors,
        name=names,
        amount=amounts,
        online=st.sampled_from([True, False, None]),
    )
    def pay(self, kind: Kind, requestor: str, name: str, amount: int, online: bool | None) -> None:
        channel = (
            Channel.ECOMMERCE if online and kind is not Kind.CASH else None if online is None else Channel.ATM
        )
        transaction = Transaction(
            id=name, requestor=requestor, kind=kind, amount=Money(amount, "EUR"), channel=channel
        )
        decision = self.tell(transaction)
        if decision is None:
            return
        bound = self.within(transaction)
        assert decision.allowed == all(self.has_room(limit, transaction) for limit in bound)
        codes = sorted(violation.message for violation in decision.violations)
        assert codes == sorted(f"at most {limit}" for limit in bound if not self.has_room(limit, transaction))
        if decision.allowed:
            self.known[requestor, name] = Known(
                transaction, self.now_ms, bound, [(amount, self.now_ms, bound)]
            )

    follow_ups = st.sampled_from([kind for kind, rule_ in KINDS.items() if rule_.follow_up])

    @rule(
        kind=follow_ups,
        requestor=requestors,
        name=names,
        number=st.integers(0, 30),
        amount=st.none() | amounts,
        final=st.booleans(),
        pick=st.integers(0, 100),
    )
    def follow_up(
        self, kind: Kind, requestor: str, name: str, number: int, amount: int | None, final: bool, pick: int
    ) -> None:
        if self.known and pick % 5:  # mostly a use that there is
            requestor, name = sorted(self.known)[pick % len(self.known)]
        if kind is Kind.INCREMENT and amount is None:
            amount = 1
        transaction = Transaction(
            id=f"follow-{number}",
            requestor=requestor,
            kind=kind,
            original=name,
            final=final or kind is not Kind.CAPTURE,
            amount=None if amount is None else Money(amount, "EUR"),
        )
        known = self.known.get((requestor, name))
        if known is None:
            if (requestor, transaction.id) not in self.told:
                decision = self.token.do(transaction, self.now_ms)
                assert "ORIGINAL_UNKNOWN" in {violation.code for violation in decision.violations}
            return
        if (requestor, transaction.id) in self.told:
            self.tell(transaction)
            return
        step = {
            Kind.INCREMENT: self._increment,
            Kind.CAPTURE: self._capture,
            Kind.REVERSAL: self._reverse,
            Kind.REFUND: self._refund,
            Kind.DISPUTE: lambda *_: functools.partial(int),
        }[kind]
        change = step(known, transaction, amount)
        decision_ = self.tell(transaction)
        assert decision_ is not None
        assert decision_.allowed == (change is not None)
        if change is not None:
            change()

    def _increment(self, known: Known, transaction: Transaction, amount: int | None) -> Any:
        bound = self.within(transaction)
        if not known.open or not all(self.has_room(limit, transaction) for limit in bound):
            return None
        return functools.partial(known.authorised.append, (amount or 0, self.now_ms, bound))

    def _capture(self, known: Known, transaction: Transaction, amount: int | None) -> Any:
        amount = known.total - known.captured if amount is None else amount
        if not known.open or known.captured + amount > known.total:
            return None

        def change() -> None:
            known.told = True
            known.captured += amount
            if transaction.final:
                known.open = False
                known.give_back(known.total - known.captured)

        return change

    def _reverse(self, known: Known, _transaction: Transaction, amount: int | None) -> Any:
        amount = known.total - known.captured if amount is None else amount
        if not known.open or known.captured + amount > known.total:
            return None

        def change() -> None:
            known.give_back(amount)
            known.gone = known.total == 0
            known.open = known.total > known.captured

        return change

    def _refund(self, known: Known, _transaction: Transaction, amount: int | None) -> Any:
        most = (known.captured if known.told else known.total) - known.refunded
        amount = most if amount is None else amount
        if known.gone or amount > most or amount == 0:
            return None

        def change() -> None:
            if not known.told:
                known.told, known.captured, known.open = True, known.total, False
            known.refunded += amount

        return change

    @rule(days=st.sampled_from([0.3, 1, 20]))
    def time_passes(self, days: float) -> None:
        self.now_ms += int(days * DAY_MS)

    @invariant()
    def no_limit_is_exceeded_and_none_counts_less_than_was_used(self) -> None:
        restrictions = self.token.restrictions(OWNER)
        for velocity in restrictions.velocity_limits:
            used = self.used(velocity.limit)
            assert max(used.values(), default=0) <= velocity.most
            number = velocity.limit.window(self.now_ms).number
            assert self.token.usage.used(velocity.key, number) == used[number]

    @invariant()
    def no_use_pays_back_more_than_it_took(self) -> None:
        for (requestor, name), known in self.known.items():
            transaction = attrs.evolve(known.transaction, id=name, requestor=requestor)
            uses: Uses = self.token.uses(transaction)
            ledger = UseLedger.of(uses.own, uses.use_id)
            assert ledger is not None
            assert (ledger.authorised, ledger.captured, ledger.open, ledger.reversed) == (
                known.total, known.captured, known.open, known.gone
            )  # fmt: skip
            assert 0 <= known.refunded <= (known.captured if known.told else 0) <= known.total
            assert ledger.refundable == (known.captured if known.told else known.total) - known.refunded


def test_no_order_of_payments_and_follow_ups_exceeds_a_limit_or_gives_back_too_much() -> None:
    run(examples=60, steps=40)


@pytest.mark.nightly
def test_no_order_of_payments_and_follow_ups_does_all_night() -> None:
    run(examples=5_000, steps=80)


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        LedgerMachine, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    )
