"""The host's own judgment of a use: asked once the domain allows it, before the card is handed out.

What is asked can hang, fail and hold anything. So it has a deadline, by which a declared answer takes its place; it
is asked outside every lock, and what it raises is dropped where it was raised. A retry of a use that was allowed is
not asked about again: its answer stands.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable
from datetime import timedelta
from typing import Final, NamedTuple, Protocol

import attrs

from tokenvault.errors import InvalidInputError, Violation, boundary_init
from tokenvault.model import checks
from tokenvault.model.authentication import Strength
from tokenvault.model.controls import STEP_UP, STRONG_AUTHENTICATION_REQUIRED
from tokenvault.model.pan import Card
from tokenvault.model.transaction import Transaction
from tokenvault.model.words import Words
from tokenvault.records.record import TokenRecord
from tokenvault.records.token_info import TokenInfo, info_of
from tokenvault.runtime import BlockingRuntime, Runtime

DEADLINE_MAX: Final = timedelta(seconds=30)
SCORE_MAX: Final = 999

CHUNK_DEADLINES: Final = 10
"""How many deadlines all answers for a chunk of a batch may take; then the declared answer takes their place."""

RISK_UNANSWERED: Final = "RISK_UNANSWERED"
_STRENGTH: Final = Strength(max_age=timedelta(minutes=15))
"""What satisfies a risk control that requires strong authentication."""


class RiskDecision(Words):
    """What comes of a use: it is allowed, needs strong authentication, or is refused."""

    ALLOW = "allow"
    AUTHENTICATE = "authenticate"
    REFUSE = "refuse"


@boundary_init
@attrs.frozen
class RiskAnswer:
    """What a risk control answers.

    Attributes:
        decision: what comes of the use. Strong authentication of two factors, at most 15 minutes old, satisfies
            AUTHENTICATE.
        score: of the control's own, 0 to 999; the event of the use keeps it.

    Raises:
        InvalidInputError: a value is of another form.
    """

    decision: RiskDecision
    score: int | None = None

    def __attrs_post_init__(self) -> None:
        checks.instance("a risk answer's decision", self.decision, RiskDecision)
        if self.score is not None:
            checks.whole_number("score", self.score, 0, SCORE_MAX)


@boundary_init
@attrs.frozen(kw_only=True)
class RiskRequest:
    """A use that a risk control is asked about.

    Attributes:
        transaction: the use; the card number stands in none of its fields.
        token: the token, without metadata; never its PAN.
        checking: whether it is by `check`: no card is handed out.
    """

    transaction: Transaction
    token: TokenInfo
    checking: bool


class RiskControl(Protocol):
    """Judges uses that a domain allows. Safe to call from several threads."""

    def assess(self, request: RiskRequest) -> RiskAnswer | Awaitable[RiskAnswer]:
        """Judge a use: a method for `Vault`, called in a thread of its own; a coroutine method for `AsyncVault`."""
        ...


@boundary_init
@attrs.frozen
class RiskPolicy:
    """A risk control, and what is done where it gives no answer.

    Attributes:
        control: is asked about each use that the domain allows.
        deadline: how long an answer may take, 1 millisecond to 30 seconds.
        otherwise: what comes of a use where the answer takes longer, or is none.

    Raises:
        InvalidInputError: a value is of another form.
    """

    control: RiskControl
    deadline: timedelta = attrs.field(default=timedelta(milliseconds=500), kw_only=True)
    otherwise: RiskDecision = attrs.field(default=RiskDecision.REFUSE, kw_only=True)

    def __attrs_post_init__(self) -> None:
        checks.offers("control", self.control, "assess", "a risk control: an object with a method assess")
        deadline = checks.instance("deadline", self.deadline, timedelta)
        if not timedelta(milliseconds=1) <= deadline <= DEADLINE_MAX:
            raise InvalidInputError("deadline is from 1 millisecond to 30 seconds")
        checks.instance("otherwise", self.otherwise, RiskDecision)

    def fits(self, runtime: Runtime) -> None:
        """Raise InvalidInputError if the control has coroutines for a vault without, or none for one with them."""
        if inspect.iscoroutinefunction(self.control.assess) == isinstance(runtime, BlockingRuntime):
            raise InvalidInputError(
                "assess of a risk control is a method for a Vault, and a coroutine method for an AsyncVault"
            )


class Verdict(NamedTuple):
    """What comes of a use.

    Attributes:
        violation: why it is not allowed; None where it is.
        score: as of the answer.
        answered: whether there was an answer in time.
    """

    violation: Violation | None
    score: int | None
    answered: bool


_REFUSED: Final = Violation("risk", "RISK_REFUSED", "the risk control refuses this use", "59")
_UNANSWERED: Final = Violation(
    "risk", RISK_UNANSWERED, "the risk control gave no answer in time, and no use is allowed without", "91"
)
_STEP_UP: Final = Violation(
    "risk",
    STRONG_AUTHENTICATION_REQUIRED,
    f"the risk control asks for more: present {_STRENGTH}",
    STEP_UP,
)


class RiskDesk:
    """Asks about the uses of one call, about each once, all in a time that has a bound."""

    def __init__(self, policy: RiskPolicy, runtime: Runtime, deadlines: int = 1) -> None:
        self._policy = policy
        self._runtime = runtime
        self._seconds_left = deadlines * policy.deadline.total_seconds()
        self._verdicts: dict[tuple[bytes, int], Verdict] = {}

    async def verdict(
        self, record: TokenRecord, card: Card | None, transaction: Transaction, now_ms: int, *, checking: bool
    ) -> Verdict:
        """What comes of a use that the domain allows. A call that starts over gets the same."""
        key = (record.reference, id(transaction))
        if key not in self._verdicts:
            request = RiskRequest(transaction=transaction, token=info_of(record, card), checking=checking)
            self._verdicts[key] = self._of(await self._answer(request), transaction, now_ms)
        return self._verdicts[key]

    async def _answer(self, request: RiskRequest) -> RiskAnswer | None:
        seconds = min(self._policy.deadline.total_seconds(), self._seconds_left)
        if seconds <= 0:
            return None
        begun = time.monotonic()
        answers = await self._runtime.ask(seconds, self._policy.control.assess, request)
        self._seconds_left -= time.monotonic() - begun
        answer = answers[0] if answers else None
        return answer if isinstance(answer, RiskAnswer) else None

    def _of(self, answer: RiskAnswer | None, transaction: Transaction, now_ms: int) -> Verdict:
        decision = self._policy.otherwise if answer is None else answer.decision
        violation = None
        if decision is RiskDecision.REFUSE:
            violation = _UNANSWERED if answer is None else _REFUSED
        elif decision is RiskDecision.AUTHENTICATE and not _STRENGTH.met_by(
            transaction.authentication, now_ms
        ):
            violation = _STEP_UP
        return Verdict(violation, None if answer is None else answer.score, answer is not None)
