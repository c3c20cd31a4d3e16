"""Audit events as they leave the library."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import attrs

from tokenvault.audit.batch_event import BatchEvent, items, parse
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.use_note import UseNote
from tokenvault.errors import boundary_init
from tokenvault.model.kinds import Kind
from tokenvault.model.money import Money, recorded_money
from tokenvault.stores.port import SealedEvent

HISTORY_MAX: Final = 1_000
"""The most events that `Vault.history` returns at once."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MS_MAX: Final = 253_402_300_799_999
"""The last of the year 9999."""


@boundary_init
@attrs.frozen(kw_only=True)
class AuditEvent:
    """One event of the audit trail. Never a PAN, never a whole token.

    Attributes:
        time: by the vault's clock, UTC, to the millisecond.
        action: what the vault was called to do.
        outcome: how the action ended.
        requestor: id of the calling requestor, 11 digits; None for the host application itself.
        reference: of the token, 32 hexadecimal digits; None where none was found. Of a checkpoint, its stream.
        transaction_id: of the use of a token; a keyed digest where it could hold a number.
        operator: the person behind a management call, as the host named them; None where it named none.
        kind: of the use of a token; None for other actions, and where there is no such token.
        amount: of the use, if it named one; of a capture, reversal or refund without one, all that there was.
        retry: whether the use repeats one that was allowed before.
        score: of the risk control, where it was asked about a use and gave one.
        codes: of the controls that failed, or the actor who suspends or resumes.
        revision: of the token's record that was written with this event; 0 where none was.
        locked_until: of a lock-out, until when the requestor is locked out; None for other actions.
        stream: of the event, 32 hexadecimal digits.
        number: of the event in its stream, from 1.
    """

    time: datetime
    action: Action
    outcome: Outcome
    requestor: str | None
    reference: str | None
    transaction_id: str | None
    operator: str | None
    kind: Kind | None
    amount: Money | None
    retry: bool
    score: int | None
    codes: tuple[str, ...]
    revision: int
    locked_until: datetime | None
    stream: str
    number: int


def audit_events(row: SealedEvent, reference: bytes | None = None) -> list[AuditEvent]:
    """The event of a row; of a batch, one for each item. With a reference, only what it says of that token.

    Raises IntegrityError for what is no event.
    """
    return events_of(row, parse(row), reference)


def events_of(
    row: SealedEvent, event: Event | BatchEvent, reference: bytes | None = None
) -> list[AuditEvent]:
    """As `audit_events`, of what the row was parsed to."""
    return [
        AuditEvent(
            time=_instant(event.time_ms),
            action=event.action,
            outcome=item.outcome,
            requestor=item.requestor,
            reference=item.reference.hex() or None,
            transaction_id=item.transaction_id,
            operator=item.operator,
            kind=None if item.use is None else item.use.kind,
            amount=None if item.use is None else _amount(item.use),
            retry=item.use is not None and item.use.retry,
            score=None if item.use is None else item.use.score,
            codes=item.codes,
            revision=item.revision,
            locked_until=None if item.lock_out is None else _instant(item.lock_out.until_ms),
            stream=row.stream.hex(),
            number=row.number,
        )
        for item in items(event, None if reference is None else (reference,))
    ]


def _instant(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=min(milliseconds, TIME_MS_MAX))


def _amount(use: UseNote) -> Money | None:
    return recorded_money(use.amount, use.currency) if use.currency else None
