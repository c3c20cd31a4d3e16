"""The life of a token: one table of transitions."""

from __future__ import annotations

import enum
from typing import Final

from tokenvault.errors import LifecycleError
from tokenvault.model.words import Words


class TokenStatus(Words):
    """Status of a token. Expired is not one: it follows from the clock.

    WINDING_DOWN: no new payments; captures, reversals, refunds and disputes of those that were made.
    """

    INACTIVE = "inactive"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    WINDING_DOWN = "winding down"
    DELETED = "deleted"


class Actor(Words):
    """Who suspends or resumes a token. Each lifts only its own suspension.

    REQUESTOR: whom the token was issued to. GRANTOR: whoever holds a token that it was issued from.
    """

    ISSUER = "issuer"
    REQUESTOR = "requestor"
    CARDHOLDER = "cardholder"
    VAULT = "vault"
    GRANTOR = "grantor"


class Change(enum.Enum):
    """What changes a token's status."""

    ACTIVATE = "activate"
    SUSPEND = "suspend"
    RESUME = "resume"
    WIND_DOWN = "wind down"
    DELETE = "delete"
    NEW_CARD = "take another card"
    UPDATE_ASSURANCE = "update its assurance"


_TRANSITIONS: Final = {
    (TokenStatus.INACTIVE, Change.ACTIVATE): TokenStatus.ACTIVE,
    (TokenStatus.INACTIVE, Change.DELETE): TokenStatus.DELETED,
    (TokenStatus.ACTIVE, Change.SUSPEND): TokenStatus.SUSPENDED,
    (TokenStatus.ACTIVE, Change.WIND_DOWN): TokenStatus.WINDING_DOWN,
    (TokenStatus.ACTIVE, Change.DELETE): TokenStatus.DELETED,
    (TokenStatus.SUSPENDED, Change.SUSPEND): TokenStatus.SUSPENDED,
    (TokenStatus.SUSPENDED, Change.RESUME): TokenStatus.ACTIVE,  # once the last suspension is lifted
    (TokenStatus.SUSPENDED, Change.WIND_DOWN): TokenStatus.WINDING_DOWN,
    (TokenStatus.SUSPENDED, Change.DELETE): TokenStatus.DELETED,
    # One that winds down stays so: it is suspended beside that, and resumed; until when, is said again.
    (TokenStatus.WINDING_DOWN, Change.WIND_DOWN): TokenStatus.WINDING_DOWN,
    (TokenStatus.WINDING_DOWN, Change.SUSPEND): TokenStatus.WINDING_DOWN,
    (TokenStatus.WINDING_DOWN, Change.RESUME): TokenStatus.WINDING_DOWN,
    (TokenStatus.WINDING_DOWN, Change.DELETE): TokenStatus.DELETED,
    # Whoever lost the answer asks again: it is final, so nothing came in between that this would undo.
    (TokenStatus.DELETED, Change.DELETE): TokenStatus.DELETED,
    # What was verified was another card: it starts over.
    (TokenStatus.INACTIVE, Change.NEW_CARD): TokenStatus.INACTIVE,
    (TokenStatus.ACTIVE, Change.NEW_CARD): TokenStatus.INACTIVE,
    (TokenStatus.SUSPENDED, Change.NEW_CARD): TokenStatus.INACTIVE,
    (TokenStatus.INACTIVE, Change.UPDATE_ASSURANCE): TokenStatus.INACTIVE,
    (TokenStatus.ACTIVE, Change.UPDATE_ASSURANCE): TokenStatus.ACTIVE,
    (TokenStatus.SUSPENDED, Change.UPDATE_ASSURANCE): TokenStatus.SUSPENDED,
    (TokenStatus.WINDING_DOWN, Change.UPDATE_ASSURANCE): TokenStatus.WINDING_DOWN,
}


def may_be_suspended(status: TokenStatus, suspended_by: frozenset[Actor]) -> bool:
    """Whether a token of a status can have these suspenders: SUSPENDED has some, ACTIVE and DELETED have none."""
    if status in (TokenStatus.INACTIVE, TokenStatus.WINDING_DOWN):
        return True
    return bool(suspended_by) == (status is TokenStatus.SUSPENDED)


def transition(
    status: TokenStatus, suspended_by: frozenset[Actor], change: Change, actor: Actor | None = None
) -> tuple[TokenStatus, frozenset[Actor]]:
    """The status and suspenders after a change.

    A suspension outlives what is not its lifting: a token that takes another card, or winds down, stays suspended by
    whom it was, and is SUSPENDED once it is activated.

    Raises:
        LifecycleError: the table has no such transition, or the actor lifts a suspension that is not its own.
    """
    to = _TRANSITIONS.get((status, change))
    if to is None:
        raise LifecycleError(f"a token that is {status.value} can not {change.value}")
    if to is TokenStatus.DELETED:
        return to, frozenset()
    if change is Change.SUSPEND and actor is not None:
        suspended_by |= {actor}
    if change is Change.RESUME:
        if not suspended_by:
            raise LifecycleError(f"a token that is {status.value} can not resume: nobody has suspended it")
        if actor not in suspended_by:
            names = ", ".join(sorted(suspender.value for suspender in suspended_by))
            raise LifecycleError(
                f"the token is suspended by: {names}; each lifts only its own suspension",
                code="SUSPENDED_BY_OTHERS",
            )
        suspended_by -= {actor}
    return (TokenStatus.SUSPENDED if to is TokenStatus.ACTIVE and suspended_by else to), suspended_by
