"""The life of a token: one table of transitions."""

from __future__ import annotations

import enum
from typing import Final

from tokenvault.errors import LifecycleError
from tokenvault.model.words import Words


class TokenStatus(Words):
    """Status of a token. Expired is not one: it follows from the clock."""

    INACTIVE = "inactive"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELETED = "deleted"


class Actor(Words):
    """Who suspends or resumes a token. Each lifts only its own suspension."""

    ISSUER = "issuer"
    REQUESTOR = "requestor"
    CARDHOLDER = "cardholder"
    VAULT = "vault"


class Change(enum.Enum):
    """What changes a token's status."""

    ACTIVATE = "activate"
    SUSPEND = "suspend"
    RESUME = "resume"
    DELETE = "delete"


_TRANSITIONS: Final = {
    (TokenStatus.INACTIVE, Change.ACTIVATE): TokenStatus.ACTIVE,
    (TokenStatus.INACTIVE, Change.DELETE): TokenStatus.DELETED,
    (TokenStatus.ACTIVE, Change.SUSPEND): TokenStatus.SUSPENDED,
    (TokenStatus.ACTIVE, Change.DELETE): TokenStatus.DELETED,
    (TokenStatus.SUSPENDED, Change.SUSPEND): TokenStatus.SUSPENDED,
    (TokenStatus.SUSPENDED, Change.RESUME): TokenStatus.ACTIVE,  # once the last suspension is lifted
    (TokenStatus.SUSPENDED, Change.DELETE): TokenStatus.DELETED,
}


def transition(
    status: TokenStatus, suspended_by: frozenset[Actor], change: Change, actor: Actor | None = None
) -> tuple[TokenStatus, frozenset[Actor]]:
    """The status and suspenders after a change.

    Raises:
        LifecycleError: the table has no such transition, or the actor lifts a suspension that is not its own.
    """
    to = _TRANSITIONS.get((status, change))
    if to is None:
        raise LifecycleError(f"a token that is {status.value} can not {change.value}")
    if change is Change.SUSPEND and actor is not None:
        return to, suspended_by | {actor}
    if change is Change.RESUME:
        if actor not in suspended_by:
            names = ", ".join(sorted(suspender.value for suspender in suspended_by))
            raise LifecycleError(
                f"the token is suspended by: {names}; each lifts only its own suspension",
                code="SUSPENDED_BY_OTHERS",
            )
        remaining = suspended_by - {actor}
        return (TokenStatus.SUSPENDED if remaining else to), remaining
    return to, frozenset()
