"""What the vault returns of a token. Never its PAN."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import attrs

from tokenvault.errors import boundary_init
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.pan import Card, CardExpiry
from tokenvault.records.record import TokenRecord

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def _masked(token: str) -> str:
    return f"'{'*' * (len(token) - 4)}{token[-4:]}'"


@boundary_init
@attrs.frozen(kw_only=True, slots=False)  # without slots it is made in half the time, at each issue
class TokenInfo:
    """A token as the vault has it.

    Attributes:
        token: 13 to 19 digits; masked in `repr`.
        reference: 32 hexadecimal digits; for logs, and for callers that must not hold the token.
        program: name of its program.
        requestor: id of the requestor it was issued to.
        status: where it is in its lifecycle.
        suspended_by: the actors who suspended it and have not resumed it.
        token_expiry: the last month that it is valid in; None: no limit.
        last4: last four digits of the PAN; None once deleted.
        par: payment account reference; None if none was given.
        assurance: token assurance method; None if none was given.
        created: UTC, to the millisecond.
        updated: likewise; the last change, or `created`.
        revision: 1 at issue, one more with each change.
    """

    token: str = attrs.field(repr=_masked)
    reference: str
    program: str
    requestor: str
    status: TokenStatus
    suspended_by: frozenset[Actor]
    token_expiry: CardExpiry | None
    last4: str | None
    par: str | None
    assurance: str | None
    created: datetime
    updated: datetime
    revision: int


def info_of(record: TokenRecord, card: Card | None) -> TokenInfo:
    """What the vault returns of a record."""
    return TokenInfo(
        token=record.token,
        reference=record.reference.hex(),
        program=record.program,
        requestor=record.requestor,
        status=record.status,
        suspended_by=record.suspended_by,
        token_expiry=effective_expiry(record, card),
        last4=None if card is None else card.pan.last4,
        par=record.par,
        assurance=record.assurance,
        created=instant(record.created_ms),
        updated=instant(record.updated_ms),
        revision=record.revision,
    )


def instant(time_ms: int) -> datetime:
    """The instant, in UTC, of milliseconds of the Unix epoch."""
    return _EPOCH + time_ms * _MILLISECOND


def effective_expiry(record: TokenRecord, card: Card | None) -> CardExpiry | None:
    """The token's own expiry, or else its card's."""
    return record.token_expiry or (None if card is None else card.expiry)
