"""Whether a use of a token is allowed: one pure function, and its result.

- Every control of every document must hold: the program's domain, the owner's, the acting requestor's, the token's.
- Every control that fails is reported; nothing is short-cut.
- An unset control does not restrict; a set one that the transaction says nothing about fails.
- Only the token's own document can let in a requestor other than the one it was issued to.
- What a kind of transaction needs, and which controls bind it, stands in one table (`kinds`). A follow-up that names
  its original is bound by what its use has left, and by who may do what kind: the domain may have changed since.
- A retry (same transaction id and content, allowed before) is not held against limits, ledger or authentication
  again.
"""

from __future__ import annotations

from typing import Final

import attrs

from tokenvault.errors import Violation, boundary_init
from tokenvault.model.accounting import has_room
from tokenvault.model.control import TokenState, Use
from tokenvault.model.controls import STEP_UP
from tokenvault.model.counters import COUNTERS_MAX
from tokenvault.model.disclosure import EXPIRY_DIFFERS_CODE, told
from tokenvault.model.follow_ups import id_violations, is_retry, original_violations
from tokenvault.model.kinds import KINDS, Kind
from tokenvault.model.ledger import NO_USES, UseLedger, Uses
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.money import MINOR_UNITS_MAX, Money
from tokenvault.model.pan import CardExpiry
from tokenvault.model.restrictions import Restrictions
from tokenvault.model.transaction import Transaction

__all__ = ["Decision", "Restrictions", "decide"]

_STATUS_VIOLATIONS: Final = {
    TokenStatus.INACTIVE: Violation(
        "status", "TOKEN_INACTIVE", "the token is not active yet; activate it first", "57"
    ),
    TokenStatus.SUSPENDED: Violation(
        "status", "TOKEN_SUSPENDED", "the token is suspended; whoever suspended it can resume it", "62"
    ),
    TokenStatus.WINDING_DOWN: Violation(
        "status", "TOKEN_WINDING_DOWN", "the token takes no new payments, only follow-ups of its uses", "57"
    ),
    TokenStatus.DELETED: Violation("status", "TOKEN_DELETED", "the token is deleted; issue a new one", "14"),
}
_EXPIRY_DIFFERS: Final = Violation(
    "token_expiry", EXPIRY_DIFFERS_CODE, "the expiry that was presented is not the token's", "54"
)
_NOT_OWNER: Final = Violation(
    "requestors",
    "REQUESTOR_NOT_ALLOWED",
    "only the requestor that the token was issued to may use it; its domain names no others",
    "57",
)
_COUNTERS: Final = Violation(
    "limits",
    "COUNTERS_EXCEEDED",
    f"a token counts for at most {COUNTERS_MAX} limits whose windows are not over; issue a new token",
    "65",
)
_AHEAD: Final = Violation(
    "authentication",
    "AUTHENTICATION_IN_FUTURE",
    "the authentication lies in the future: set the clocks, and authenticate again",
    STEP_UP,
)


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


def decide(
    state: TokenState,
    expiry: CardExpiry | None,
    restrictions: Restrictions,
    transaction: Transaction,
    now_ms: int,
    uses: Uses = NO_USES,
) -> Decision:
    """Whether a use is allowed.

    Args:
        state: the token.
        expiry: the last month that it is valid in, if any.
        restrictions: the documents that apply to it and to who uses it.
        transaction: the use.
        now_ms: the time, in milliseconds of the Unix epoch.
        uses: what the ledger has on the transaction.
    """
    rule = KINDS[transaction.kind]
    violations = _token_violations(state, expiry, restrictions, transaction, now_ms, live=rule.live)
    retry, ledger = False, None
    if uses.own or transaction.original is not None or transaction.kind is not Kind.PURCHASE:
        ledger, retry = uses.ledger, is_retry(transaction, uses.before)
        violations += id_violations(transaction, uses)
        if not retry:
            violations += original_violations(transaction, uses, ledger, restrictions)
    if transaction.authentication is not None and not retry and transaction.authentication.lies_ahead(now_ms):
        violations.append(_AHEAD)
    kind = ledger.use.kind if ledger is not None and rule.follow_up else transaction.kind
    use = Use(state, transaction, now_ms, kind, _amount(transaction, ledger))
    for control, value in restrictions.checks_of(transaction):
        given = control.given(use)
        if control.holds(value, given) or (retry and control.once):
            continue
        violations.append(control.violation(value, given))
    if rule.live and not retry and not has_room(state.usage, restrictions, transaction, kind, now_ms):
        violations.append(_COUNTERS)
    return Decision(told(tuple(dict.fromkeys(violations)))) if violations else _ALLOWED


def _amount(transaction: Transaction, ledger: UseLedger | None) -> Money | None:
    """What one use is of: an increment makes it larger."""
    amount = transaction.amount
    if amount is None or ledger is None or transaction.kind is not Kind.INCREMENT:
        return amount
    return Money(min(MINOR_UNITS_MAX, ledger.authorised + amount.amount), amount.currency)


def _token_violations(
    state: TokenState,
    expiry: CardExpiry | None,
    restrictions: Restrictions,
    transaction: Transaction,
    now_ms: int,
    *,
    live: bool,
) -> list[Violation]:
    violations: list[Violation] = []
    if state.status is not TokenStatus.ACTIVE:
        status = state.status if live else _status_of_follow_ups(state)
        if status is not TokenStatus.ACTIVE:
            violations.append(_STATUS_VIOLATIONS[status])
    if live and expiry is not None and expiry.passed(now_ms, restrictions.expiry_zone):
        message = f"the token was valid through {expiry}; update the card or issue a new token"
        violations.append(Violation("token_expiry", "TOKEN_EXPIRED", message, "54"))
    if live and transaction.token_expiry is not None and transaction.token_expiry != expiry:
        violations.append(_EXPIRY_DIFFERS)
    if restrictions.token.requestors is None and transaction.requestor != state.requestor:
        violations.append(_NOT_OWNER)
    return violations


def _status_of_follow_ups(state: TokenState) -> TokenStatus:
    """The status that captures, reversals, refunds and disputes are held against.

    They go on while a token is suspended by others than the vault, or winds down. One that waits for verification
    has another card behind it than its uses had.
    """
    if state.status in (TokenStatus.SUSPENDED, TokenStatus.WINDING_DOWN):
        stopped = Actor.VAULT in state.suspended_by
        return TokenStatus.SUSPENDED if stopped else TokenStatus.ACTIVE
    return state.status
