"""What a decision tells: to a requestor that may not use a token, nothing of its card, and no text of its domain."""

from __future__ import annotations

from typing import Final

import attrs

from tokenvault.errors import Violation

STRANGER_CODE: Final = "REQUESTOR_NOT_ALLOWED"
EXPIRY_DIFFERS_CODE: Final = "TOKEN_EXPIRY_DIFFERS"
_UNTOLD: Final = "another control failed too; what it allows is told to a requestor that may use the token"
_STRANGER: Final = (
    "this requestor may not use the token: its owner's domain, or the token's, does not name it"
)


def told(violations: tuple[Violation, ...]) -> tuple[Violation, ...]:
    """The violations that the requestor may know, with the texts that it may read.

    The texts of a token's controls name merchants, limits and the sealed expiry of its card. Who is named in no
    domain of the token is told the codes alone, and not the one that compares an expiry with the sealed one: its
    absence would confirm a guess.
    """
    if all(violation.code != STRANGER_CODE for violation in violations):
        return violations
    return tuple(
        attrs.evolve(violation, message=_STRANGER if violation.code == STRANGER_CODE else _UNTOLD)
        for violation in violations
        if violation.code != EXPIRY_DIFFERS_CODE
    )
