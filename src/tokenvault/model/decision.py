"""Whether a use of a token is allowed: one pure function, and its result.

- Every control of every document must hold: the program's domain, the requestor's, the token's own.
- Every control that fails is reported; nothing is short-cut.
- An unset control does not restrict; a set one that the transaction says nothing about fails.
- Only the token's own document can let in a requestor other than the one it was issued to.
- A retry (same transaction id, same content, counted before) is not held against the limits again.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import attrs

from tokenvault.errors import Violation, boundary_init
from tokenvault.model.controls import Control, TokenState, Use
from tokenvault.model.counters import Seen
from tokenvault.model.disclosure import told
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.limits import VelocityCounter
from tokenvault.model.pan import CardExpiry
from tokenvault.model.transaction import Transaction

_STATUS_VIOLATIONS: Final = {
    TokenStatus.INACTIVE: Violation(
        "status", "TOKEN_INACTIVE", "the token is not active yet; activate it first", "57"
    ),
    TokenStatus.SUSPENDED: Violation(
        "status", "TOKEN_SUSPENDED", "the token is suspended; whoever suspended it can resume it", "62"
    ),
    TokenStatus.DELETED: Violation("status", "TOKEN_DELETED", "the token is deleted; issue a new one", "14"),
}


@boundary_init
@attrs.frozen
class Decision:
    """The decision on one use.

    Attributes:
        allowed: whether the use is allowed.
        violations: every control that failed, in a stable order; empty when allowed.
    """

    violations: tuple[Violation, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the use is allowed: no control failed."""
        return not self.violations

    def __bool__(self) -> bool:
        return self.allowed


_ALLOWED: Final = Decision()


@attrs.frozen
class Restrictions:
    """The three documents that a use must satisfy.

    Attributes:
        program, requestor, token: from the widest scope to the narrowest.
    """

    program: Domain
    requestor: Domain
    token: Domain

    @cached_property
    def checks(self) -> tuple[tuple[Control, object], ...]:
        """Every control that is set, with its value, document by document."""
        return self.program._checks + self.requestor._checks + self.token._checks

    @cached_property
    def velocity_counters(self) -> tuple[VelocityCounter, ...]:
        """The counters that each use is added to, sorted; none when no limit is set."""
        limits = self.program.limits + self.requestor.limits + self.token.limits
        return tuple(sorted({limit._counter for limit in limits}))

    @cached_property
    def counted(self) -> bool:
        """Whether a use has to be recorded in the token record."""
        return any(control.counted for control, _ in self.checks)


def decide(
    state: TokenState,
    expiry: CardExpiry | None,
    restrictions: Restrictions,
    transaction: Transaction,
    now_ms: int,
) -> Decision:
    """Whether a use is allowed.

    Args:
        state: the token.
        expiry: the last month that it is valid in, if any.
        restrictions: the documents that apply to it.
        transaction: the use.
        now_ms: the time, in milliseconds of the Unix epoch.
    """
    violations = _token_violations(state, expiry, restrictions, transaction, now_ms)
    retry = False
    if restrictions.counted:
        seen = state.usage.seen(transaction)
        retry = seen is Seen.SAME
        if seen is Seen.OTHER_CONTENT:
            message = "this transaction id was used before with other content; a new use needs a new id"
            violations.append(Violation("transaction", "TRANSACTION_ID_REUSED", message, "94"))
    use = Use(token=state, transaction=transaction, now_ms=now_ms)
    for control, value in restrictions.checks:
        given = control.given(use)
        if not control.holds(value, given) and not (retry and control.counted):
            violations.append(control.violation(value, given))
    return Decision(told(tuple(dict.fromkeys(violations)))) if violations else _ALLOWED


def _token_violations(
    state: TokenState,
    expiry: CardExpiry | None,
    restrictions: Restrictions,
    transaction: Transaction,
    now_ms: int,
) -> list[Violation]:
    violations: list[Violation] = []
    if state.status is not TokenStatus.ACTIVE:
        violations.append(_STATUS_VIOLATIONS[state.status])
    if expiry is not None and expiry.passed(now_ms):
        message = f"the token was valid through {expiry}; update the card or issue a new token"
        violations.append(Violation("token_expiry", "TOKEN_EXPIRED", message, "54"))
    if restrictions.token.requestors is None and transaction.requestor != state.requestor:
        message = "only the requestor that the token was issued to may use it; its domain names no others"
        violations.append(Violation("requestors", "REQUESTOR_NOT_ALLOWED", message, "57"))
    return violations
