"""What is counted since the last strong authentication, and given back of it: against a plain list of uses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tokenvault as tv
from tests import vaults
from tests.pure_token import OWNER, PureToken
from tests.strategies import DAY_MS, NOW_MS
from tests.vaults import SHOP, issue
from tokenvault.keys import KeyStore
from tokenvault.model.authentication import Authentication, Factor
from tokenvault.model.counters import NAME_BYTES, Counter
from tokenvault.model.domain import Domain
from tokenvault.model.kinds import Kind
from tokenvault.model.limits import Limit
from tokenvault.model.money import Money
from tokenvault.model.periods import Period
from tokenvault.model.remaining import remaining
from tokenvault.model.transaction import Transaction
from tokenvault.stores.memory import MemoryTokenStore

LIMITS = (
    Limit(uses=3, since_authentication=True),
    Limit(uses=2, per=Period.DAY, since_authentication=True),
    Limit(amount=Money(100, "EUR"), since_authentication=True),
    Limit(uses=9),
)
FACTORS = {"program": 1, "token": 2}
"""How many make an authentication strong, by the domain."""


def shown(factors: int, now_ms: int) -> Authentication | None:
    at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=now_ms)
    return Authentication(factors=list(Factor)[:factors], at=at) if factors else None


class Step(NamedTuple):
    """A payment, an increment of one, or a reversal of one (all of it where no amount is said)."""

    kind: Kind
    amount: int | None = None
    factors: int = 0
    of: int = 0
    wait_ms: int = 0


@attrs.define
class Part:
    """Money that was allowed: of a payment or of an increment; and by whom it is counted as a use."""

    payment: int
    left: int
    use: bool
    place: int
    time_ms: int
    factors: int


class Plain:
    """A list of all that was allowed, in order. Each limit is a sum over it."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.strong: list[tuple[int, int]] = []  # place and factors of each
        self.place = 0

    def used(self, limit: Limit, needed: int, now_ms: int) -> int:
        restarts = [place for place, factors in self.strong if factors >= needed]
        since = max(restarts, default=-1) if limit.since_authentication else -1
        return sum(
            (part.use if limit.amount is None else part.left)
            for part in self.parts
            if part.place > since
            and limit.window(part.time_ms) == limit.window(now_ms)
            and not (limit.since_authentication and part.factors >= needed)
        )

    def take(self, step: Step, payment: int, now_ms: int) -> None:
        self.place += 1
        if step.factors:
            self.strong.append((self.place, step.factors))
        new = Part(payment, step.amount or 0, step.kind is Kind.PURCHASE, self.place, now_ms, step.factors)
        self.parts.append(new)

    def give_back(self, payment: int, amount: int | None) -> None:
        own = [part for part in self.parts if part.payment == payment]
        amount = sum(part.left for part in own) if amount is None else amount
        for part in reversed(own):
            taken = min(part.left, amount)
            part.left -= taken
            amount -= taken
        if not any(part.left for part in own):
            own[0].use = False


steps = st.lists(
    st.one_of(
        st.builds(
            Step,
            st.just(Kind.PURCHASE),
            st.sampled_from([1, 30, 60]),
            st.integers(0, 2),
            st.just(0),
            st.sampled_from([0, 0, 1, DAY_MS]),
        ),
        st.builds(
            Step, st.just(Kind.INCREMENT), st.just(20), st.integers(0, 2), st.integers(0, 20), st.just(0)
        ),
        st.builds(
            Step, st.just(Kind.REVERSAL), st.none() | st.just(1), st.just(0), st.integers(0, 20), st.just(0)
        ),
    ),
    max_size=25,
)
PAY, BACK = Kind.PURCHASE, Kind.REVERSAL


@settings(max_examples=300, deadline=None)
@example([Step(PAY, 1), Step(PAY, 1, factors=1, wait_ms=1), Step(BACK)])
@example([Step(PAY, 1, factors=2), Step(PAY, 1), Step(BACK, of=1)])
@example([Step(PAY, 1), Step(PAY, 1, factors=2), Step(PAY, 1), Step(BACK)])
@given(steps)
def test_exactly_what_is_counted_is_given_back(told: list[Step]) -> None:
    """To each limit by what its own domain takes for strong, in one millisecond too; nothing that came before."""
    token = PureToken(
        Domain(strong_factors=FACTORS["token"], limits=LIMITS),
        program=Domain(strong_factors=FACTORS["program"], limits=LIMITS),
    )
    plain, now_ms, payments = Plain(), NOW_MS, 0
    for number, step in enumerate(told):
        now_ms += step.wait_ms
        payment = payments if step.kind is PAY else step.of % max(payments, 1)
        transaction = Transaction(
            id=f"pay-{payment}" if step.kind is PAY else f"step-{number}",
            requestor=OWNER,
            kind=step.kind,
            original=None if step.kind is PAY else f"pay-{payment}",
            amount=None if step.amount is None else Money(step.amount, "EUR"),
            authentication=shown(step.factors, now_ms),
        )
        if token.do(transaction, now_ms).allowed:
            if step.kind is BACK:
                plain.give_back(payment, step.amount)
            else:
                plain.take(step, payment, now_ms)
                payments += step.kind is PAY
        restrictions = token.restrictions(OWNER)
        for velocity in restrictions.velocity_limits:
            expected = plain.used(velocity.limit, velocity.strength.factors, now_ms)
            (found,) = {
                left.used
                for left, each in zip(
                    remaining(restrictions, token.usage, now_ms), restrictions.velocity_limits, strict=True
                )
                if each == velocity
            }
            assert found == expected, (velocity, step)


@pytest.mark.parametrize(
    ("times", "following"), [(0, 1), (1_023, 1_024), (2**32 - 2, 2**32 - 1), (2**32 - 1, 0)]
)
def test_a_counter_starts_again_under_its_next_key_of_four_bytes(times: int, following: int) -> None:
    """Without what was counted in a window that is kept; all else of it stays."""
    name = bytes(range(1, NAME_BYTES + 1))
    counter = Counter(name + times.to_bytes(4), 5, 7, 3, 2, ends_ms=9)
    again = counter._replace(key=name + following.to_bytes(4))
    for window, value, previous_value in ((5, 0, 2), (3, 7, 0), (4, 7, 2), (2, 7, 2), (6, 7, 2)):
        kept = again._replace(value=value, previous_value=previous_value)
        assert counter.started_again(window) == kept


def test_a_light_use_beside_a_strong_one_in_a_batch_is_given_back(local_keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        limit = tv.Limit(uses=1, since_authentication=True)
        token = issue(vault, domain=tv.Domain(limits=[limit])).token
        two = shown(2, NOW_MS)
        strong = tv.Transaction(id="strong", requestor=SHOP, authentication=two)
        light = tv.Transaction(id="light", requestor=SHOP)
        results = vault.detokenize_many(
            [(token, light), (token, strong), (token, attrs.evolve(light, id="next"))]
        )
        assert not results.errors
        assert [left.used for left in vault.remaining(token)] == [1]
        for original, used in (("light", 1), ("next", 0)):
            vault.detokenize(
                token,
                tv.Transaction(
                    id=f"void-{original}", requestor=SHOP, kind=tv.Kind.REVERSAL, original=original
                ),
            )
            assert [left.used for left in vault.remaining(token)] == [used]
        vault.detokenize(token, attrs.evolve(light, id="again"))


def test_the_time_of_the_last_strong_use_is_kept_and_lies_behind_no_use_before_it() -> None:
    token = PureToken(Domain(limits=[Limit(uses=9, since_authentication=True)]))
    steps = [(1, 0, -1), (3, 2, 3), (9, 0, 3), (7, 2, 9), (20, 2, 20), (10, 2, 20), (30, 1, 20), (31, 3, 31)]
    for number, (after_ms, factors, kept_ms) in enumerate(steps):
        now_ms = NOW_MS + after_ms
        light = Transaction(id=f"{number}", requestor=OWNER, authentication=shown(factors, now_ms))
        assert token.do(light, now_ms).allowed
        assert token.usage.authenticated_ms == (kept_ms if kept_ms < 0 else NOW_MS + kept_ms)
        assert token.entries[-1].strong is (factors >= 2)
