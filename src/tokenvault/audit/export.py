"""Audit events as they leave the library: for `Vault.history`, and as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import attrs

from tokenvault.audit.acknowledgement import described
from tokenvault.audit.batch_event import BATCH, items, parse
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.macs import AuditKeys, check_events
from tokenvault.audit.use_note import UseNote
from tokenvault.audit.verify import pages
from tokenvault.errors import IntegrityError, boundary_init, iterator_boundary
from tokenvault.keys.port import KeyStore
from tokenvault.model import checks
from tokenvault.model.kinds import Kind
from tokenvault.model.money import Money
from tokenvault.stores.port import STREAM_BYTES, SealedEvent, TokenStore

HISTORY_MAX: Final = 1_000
"""The most events that `Vault.history` returns at once."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS_MAX: Final = 253_402_300_799_999  # the last of the year 9999


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
        codes: of the controls that failed, or the actor who suspends or resumes.
        revision: of the token's record that was written with this event; 0 where none was.
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
    codes: tuple[str, ...]
    revision: int
    stream: str
    number: int


def audit_events(row: SealedEvent, reference: bytes | None = None) -> list[AuditEvent]:
    """The event of a row; of a batch, one for each item. With a reference, only what it says of that token.

    Raises IntegrityError for what is no event.
    """
    event = parse(row)
    return [
        AuditEvent(
            time=_EPOCH + timedelta(milliseconds=min(event.time_ms, _MS_MAX)),
            action=event.action,
            outcome=item.outcome,
            requestor=item.requestor,
            reference=item.reference.hex() or None,
            transaction_id=item.transaction_id,
            operator=item.operator,
            kind=None if item.use is None else item.use.kind,
            amount=None if item.use is None else _amount(item.use),
            retry=item.use is not None and item.use.retry,
            codes=item.codes,
            revision=item.revision,
            stream=row.stream.hex(),
            number=row.number,
        )
        for item in items(event, None if reference is None else (reference,))
    ]


def _amount(use: UseNote) -> Money | None:
    return Money(use.amount, use.currency) if use.currency else None


@iterator_boundary
def export_audit(store: TokenStore, *, keys: KeyStore | None = None) -> Iterator[str]:
    """All events of a database as JSON Lines: a line of ASCII for each, or each item of a batch, without its end.

    By stream, oldest name first, and number. docs/audit.md has the names and values. "genuine" states whether the MAC
    is right, and is null without keys. An event that can not be read has "stream", "number" and "genuine" only.

    Raises:
        InvalidInputError: an argument is of another kind.
        KeyStoreError, TokenStoreError: as lines are read.
        IntegrityError: in a stream with 10,000 malformed rows, after the lines of these.
    """
    checks.blocking_store("store", store)
    audit_keys = None if keys is None else AuditKeys(keys)
    for stream in sorted(name for name in store.streams() if len(name) == STREAM_BYTES):
        malformed = 0
        for page in pages.stream_pages(store, stream):
            if isinstance(page, int):
                yield _unreadable(stream, page)
                malformed += 1
                continue
            for row, _, genuine in check_events(audit_keys, page):
                yield from _lines(row, genuine)
        if malformed >= pages.MALFORMED_MAX:
            raise IntegrityError(
                "too many rows of a stream are malformed: what follows them was not read",
                code="TOO_MANY_EVENTS",
            )


def _lines(row: SealedEvent, genuine: bool | None) -> list[str]:
    try:
        return [_json_line(row, event, genuine) for event in audit_events(row)]
    except IntegrityError:
        return [_unreadable(row.stream, row.number)]


def _unreadable(stream: bytes, number: int) -> str:
    return f'{{"stream": "{stream.hex()}", "number": {number}, "genuine": false}}'


def _json_line(row: SealedEvent, event: AuditEvent, genuine: bool | None) -> str:
    line: dict[str, object] = {
        "stream": event.stream,
        "number": event.number,
        "time": event.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "action": event.action.name,
        "outcome": event.outcome.name,
        "requestor": event.requestor,
        "reference": event.reference,
        "transaction_id": event.transaction_id,
        "operator": event.operator,
        "kind": None if event.kind is None else event.kind.name,
        "amount": None if event.amount is None else event.amount.amount,
        "currency": None if event.amount is None else event.amount.currency,
        "retry": event.retry,
        "codes": list(event.codes),
        "revision": event.revision,
        "genuine": genuine,
    }
    checkpoint = None if row.reference == BATCH else Event.parse(row).checkpoint
    if checkpoint is not None:
        line["checkpoint"] = {
            "size": checkpoint.size,
            "root": checkpoint.root.hex(),
            "closes": checkpoint.closes,
            "unauthenticated_rows": checkpoint.unauthenticated_rows,
            "cross_references": [
                {"stream": each.stream.hex(), "number": each.number, "leaf": each.leaf.hex()}
                for each in checkpoint.cross_references
            ],
            "key_id": checkpoint.key_id.hex() or None,
            "signature": checkpoint.signature.hex() or None,
        }
    acknowledgement = None if row.reference == BATCH else Event.parse(row).acknowledgement
    if acknowledgement is not None:
        line["acknowledged"] = described(acknowledgement)
    return json.dumps(line, ensure_ascii=True)
