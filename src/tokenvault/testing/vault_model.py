"""A plain model of a vault whose answers may be lost: a token has every state that it may be in.

A call that is answered leaves the states that would give this answer; one that failed may have happened or not, so it
leaves both. Written from the documentation alone: sums over lists, where the library keeps counters and seals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from itertools import chain
from typing import Final

import attrs

from tokenvault.errors import LifecycleError, TokenVaultError
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.limits import Limit
from tokenvault.model.money import Money
from tokenvault.model.programs import Making, TokenProgram, TokenRequestor
from tokenvault.model.token_format import TokenFormat
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import TokenInfo

HOUR: Final = timedelta(hours=1)
PROGRAMS: Final = {
    program.name: program
    for program in (
        TokenProgram(
            "limited",
            format=TokenFormat(bin="999913"),
            domain=Domain(limits=(Limit(uses=3, per=HOUR), Limit(amount=Money(400, "EUR")))),
        ),
        TokenProgram("convergent", format=TokenFormat(bin="999912"), making=Making.CONVERGENT),
    )
}
REQUESTOR: Final = TokenRequestor("40012345678", programs=set(PROGRAMS))

_Counter = tuple[str, int]
_TOO_MUCH: Final = 2**62
UNKNOWN: Final = "unknown"
"""The answer of a call that a fault met: it may have happened or not."""


@attrs.frozen
class Shown:
    """What a vault returns of a token, without what is drawn at random and the time."""

    status: TokenStatus
    suspended_by: frozenset[Actor]
    last4: str | None
    revision: int

    @classmethod
    def of(cls, info: TokenInfo) -> Shown:
        return cls(info.status, info.suspended_by, info.last4, info.revision)


Answer = str | frozenset[str] | Shown | type[TokenVaultError]
"""UNKNOWN, a PAN, the codes of a decision, what is shown of a token, or the class of an error."""


@attrs.frozen
class Use:
    """An allowed use, and on which velocity counters it counted."""

    transaction: Transaction
    time_ms: int
    velocity_counters: frozenset[_Counter]


@attrs.frozen
class State:
    """One state that a token may be in."""

    program: str
    pan: str
    domain: Domain
    status: TokenStatus = TokenStatus.ACTIVE
    suspended_by: frozenset[Actor] = frozenset()
    used: tuple[Use, ...] = ()
    inherited: tuple[
        tuple[Use, ...], ...
    ] = ()  # what each of the card's former convergent tokens had counted
    revision: int = 1
    issued_for: str = ""

    @property
    def live(self) -> bool:
        return self.status is not TokenStatus.DELETED

    @property
    def counted(self) -> tuple[tuple[Use, ...], ...]:
        """What the card's next convergent token takes over, where this one is not its token any more."""
        return tuple((*before, *self.used) for before in self.inherited or ((),))

    @property
    def latest_counted_ms(self) -> int:
        """When the latest use was made that a limit counted here, or before; -1: none was."""
        uses = chain(self.used, *self.inherited)
        return max((use.time_ms for use in uses if use.velocity_counters), default=-1)

    def left(self, pan: str) -> bool:
        """Whether it was a convergent token of a card: it is deleted, or has another card now."""
        return self.program == "convergent" and (
            (not self.live and self.pan == pan) or (self.issued_for == pan != self.pan)
        )

    @property
    def shown(self) -> Shown:
        return Shown(self.status, self.suspended_by, self.pan[-4:] if self.live else None, self.revision)

    def _limits(self) -> list[Limit]:
        return [*PROGRAMS[self.program].domain.limits, *self.domain.limits]

    def _spent(self, counter: _Counter, now_ms: int) -> int:
        def window(time_ms: int) -> int:
            return time_ms // 1000 // counter[1] if counter[1] else 0

        each = [
            [use for use in uses if counter in use.velocity_counters] for uses in (self.used, *self.inherited)
        ]
        latest = previous = -1
        for at in (window(use.time_ms) for uses in each for use in uses):
            if at > latest:
                latest, previous = at, latest
            elif at < latest:
                previous = max(at, previous)
        if (
            window(now_ms) < previous
        ):  # a clock that was set back so far gets nothing, lest it got a window twice
            return _TOO_MUCH
        own, *before = (
            sum(
                _money(use.transaction) if counter[0] else 1
                for use in uses
                if window(use.time_ms) == window(now_ms)
            )
            for uses in each
        )
        return own + max(before, default=0)

    def _known(self, transaction: Transaction) -> Transaction | None:
        """The one that was allowed before under its id; of two that came at once, the one that it repeats."""
        same = [use.transaction for use in self.used if use.transaction.id == transaction.id]
        return transaction if transaction in same else next(iter(same), None)

    def codes(self, transaction: Transaction, now_ms: int) -> frozenset[str]:
        """The code of every control that fails."""
        found = set()
        if self.status is not TokenStatus.ACTIVE:
            found.add(f"TOKEN_{self.status.name}")
        known = self._known(transaction)
        if known is not None and known != transaction:
            found.add("TRANSACTION_ID_REUSED")
        for limit in self._limits() if known != transaction else ():
            spent = self._spent(_counter(limit), now_ms)
            if limit.uses is not None and spent + 1 > limit.uses:
                found.add("USES_EXCEEDED")
            if limit.amount is not None and spent + _money(transaction) > limit.amount.amount:
                found.add("AMOUNT_EXCEEDED")
        return frozenset(found)

    # What each call answers, and the state after it.

    def checked(self, transaction: Transaction, now_ms: int) -> tuple[Answer, State]:
        return self.codes(transaction, now_ms), self

    def looked_at(self) -> tuple[Answer, State]:
        return self.shown, self

    def detokenized(self, transaction: Transaction, now_ms: int) -> tuple[Answer, State]:
        codes = self.codes(transaction, now_ms)
        if codes:
            return codes, self
        if self._known(transaction) is not None:
            return self.pan, self
        counters = frozenset(map(_counter, self._limits()))
        used = (*self.used, Use(transaction, now_ms, counters))
        return self.pan, self._changed(used=used)[1] if counters else self.noted(transaction, now_ms)

    def noted(self, transaction: Transaction, now_ms: int) -> State:
        """After a use that no limit counts."""
        return attrs.evolve(self, used=(*self.used, Use(transaction, now_ms, frozenset())))

    def suspended(self, by: Actor) -> tuple[Answer, State]:
        if not self.live:
            return LifecycleError, self
        return self._changed(status=TokenStatus.SUSPENDED, suspended_by=self.suspended_by | {by})

    def resumed(self, by: Actor) -> tuple[Answer, State]:
        if by not in self.suspended_by:
            return LifecycleError, self
        left = self.suspended_by - {by}
        status = TokenStatus.SUSPENDED if left else TokenStatus.ACTIVE
        return self._changed(status=status, suspended_by=left)

    def deleted(self) -> tuple[Answer, State]:
        if not self.live:  # it stands: an answer that was lost is asked for again
            return self.shown, self
        return self._changed(status=TokenStatus.DELETED, suspended_by=frozenset())

    def restricted(self, domain: Domain) -> tuple[Answer, State]:
        return self._changed(domain=domain) if self.live else (LifecycleError, self)

    def renewed(self, pan: str, new_pan: str) -> tuple[Answer | None, State]:
        """None for a token of another card, which is not in the answer of a card update."""
        if not self.live or self.pan != pan:
            return None, self
        return self._changed(pan=new_pan)

    def listed(self, pan: str) -> tuple[Answer | None, State]:
        return (self.shown if self.live and self.pan == pan else None), self

    def _changed(self, **changes: object) -> tuple[Answer, State]:
        state = attrs.evolve(self, revision=self.revision + 1, **changes)  # type: ignore[arg-type] # fields of State
        return state.shown, state


Step = Callable[[State], tuple[Answer | None, State]]


@attrs.define(eq=False)
class ModelToken:
    """A token, and what came of the uses that were tried with it.

    Attributes:
        states: that it may be in; never empty.
        given: by transaction id, how often its card was handed out; lost: how often its answer was lost.
    """

    token: str
    reference: str
    states: set[State]
    given: Counter[str] = attrs.field(factory=Counter)
    lost: Counter[str] = attrs.field(factory=Counter)

    def learn(self, step: Step, answer: Answer | None) -> None:
        """Keep the states that the answer of a call allows."""
        outcomes = [step(state) for state in self.states]
        after = {state for expected, state in outcomes if answer in (UNKNOWN, expected)}
        assert after, f"{answer} is none of {[expected for expected, _ in outcomes]}"
        self.states = after | self.states if answer == UNKNOWN else after

    def suspenders(self) -> list[Actor]:
        """Who may have suspended it."""
        return [by for by in Actor if any(by in state.suspended_by for state in self.states)]

    def keep(self, holds: Callable[[State], bool]) -> None:
        self.states = {state for state in self.states if holds(state)}
        assert self.states, "no state of the token allows this answer"


def longest(lines: Iterable[tuple[Use, ...]]) -> tuple[tuple[Use, ...], ...]:
    """Lines of uses without those that others hold: these never count more."""
    distinct = {frozenset(line): line for line in lines}
    return tuple(line for uses, line in distinct.items() if not any(uses < others for others in distinct))


def a_use(transaction_id: str, merchant: str = "M-1") -> Transaction:
    """The transaction of an id, which says how much it is of: events keep ids, not amounts.

    Args:
        transaction_id: it ends in "-" and the amount in minor units.
        merchant: the same id with another one is another transaction, and is refused.
    """
    amount = Money(int(transaction_id.rpartition("-")[2]), "EUR")
    return Transaction(id=transaction_id, requestor=REQUESTOR.id, merchant=merchant, amount=amount)


def refused(program: str, uses: Iterable[tuple[str, int]]) -> frozenset[str]:
    """The codes by which a program forbids the first of these uses that it forbids; none where all may be.

    Args:
        program: name of the program.
        uses: transaction id and time in milliseconds of each, in their order.
    """
    state = State(program, pan="", domain=Domain())
    for transaction_id, time_ms in uses:
        codes = state.codes(a_use(transaction_id), time_ms)
        if codes:
            return codes
        _, state = state.detokenized(a_use(transaction_id), time_ms)
    return frozenset()


def _counter(limit: Limit) -> _Counter:
    seconds = int(limit.per.total_seconds()) if isinstance(limit.per, timedelta) else 0
    return limit.amount.currency if limit.amount else "", seconds


def _money(transaction: Transaction) -> int:
    return transaction.amount.amount if transaction.amount else 0
