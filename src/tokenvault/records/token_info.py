"""What the vault returns of a token. Never its PAN."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final

import attrs

from tokenvault.errors import boundary_init
from tokenvault.model.counters import NONE
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
        card_expiry: the last month that the card is valid in; None where none was given, and once deleted.
        bin: first six digits of the PAN, or eight where it has 16 or more (PCI DSS 3.4.1); None once deleted.
        last4: last four digits of the PAN; None once deleted.
        par: payment account reference; None if none was given.
        assurance: token assurance method; None if none was given.
        purge_after: when a token that winds down may be purged, UTC; None where it does not wind down.
        customer: the caller's own id of whom the token is for; None if none was given.
        metadata: the caller's own pairs; not in `repr`.
        created: UTC, to the millisecond.
        updated: likewise; the last change, or `created`.
        last_used: likewise; the last use that was counted or changed the record; None before the first. A convergent
            token counts on from its card's former ones: their uses, made before it was issued, are among these.
        revision: 1 at issue, one more with each change.
    """

    token: str = attrs.field(repr=_masked)
    reference: str
    program: str
    requestor: str
    status: TokenStatus
    suspended_by: frozenset[Actor]
    token_expiry: CardExpiry | None
    card_expiry: CardExpiry | None
    bin: str | None
    last4: str | None
    par: str | None
    assurance: str | None
    purge_after: datetime | None
    customer: str | None
    metadata: Mapping[str, str] = attrs.field(repr=False, hash=False)
    created: datetime
    updated: datetime
    last_used: datetime | None
    revision: int


NO_METADATA: Final[Mapping[str, str]] = MappingProxyType({})


def info_of(record: TokenRecord, card: Card | None, metadata: Mapping[str, str] = NO_METADATA) -> TokenInfo:
    """What the vault returns of a record, and of the pairs that are sealed in it."""
    last_used_ms, winds_down = record.usage.last_used_ms, record.status is TokenStatus.WINDING_DOWN
    return TokenInfo(
        token=record.token,
        reference=record.reference.hex(),
        program=record.program,
        requestor=record.requestor,
        status=record.status,
        suspended_by=record.suspended_by,
        token_expiry=effective_expiry(record, card),
        card_expiry=None if card is None else card.expiry,
        bin=None if card is None else card.pan.bin,
        last4=None if card is None else card.pan.last4,
        par=record.par,
        assurance=record.assurance,
        purge_after=instant(record.purge_after_ms) if winds_down else None,
        customer=record.customer or None,
        metadata=metadata,
        created=instant(record.created_ms),
        updated=instant(record.updated_ms),
        last_used=None if last_used_ms == NONE else instant(last_used_ms),
        revision=record.revision,
    )


def instant(time_ms: int) -> datetime:
    """The instant, in UTC, of milliseconds of the Unix epoch."""
    return _EPOCH + time_ms * _MILLISECOND


def effective_expiry(record: TokenRecord, card: Card | None) -> CardExpiry | None:
    """The token's own expiry, or else its card's."""
    return record.token_expiry or (None if card is None else card.expiry)
