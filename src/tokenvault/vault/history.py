"""What the audit trail says of one token."""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from tokenvault.audit.export import AuditEvent, audit_events
from tokenvault.errors import IntegrityError, TokenNotFoundError
from tokenvault.records.record import TokenRecord
from tokenvault.stores.port import MALFORMED_EVENT, SealedEvent
from tokenvault.vault.core import Core, not_found

PAGE: Final = 64
"""Events read at once: one of a batch may be 1 MiB."""

PAGES_MAX: Final = 10_000


async def history(core: Core, name: str | bytes, after: int, limit: int) -> list[AuditEvent]:
    """The events of a token, given the token or its reference, authenticated, by time, stream and number.

    The index leads to them, and the record to the batch that issued it, if one did: what is read depends on this
    token's events alone. In which order they reached the database makes no difference. Rows that the vault did not
    write are left out: verification reports them.
    """
    record = await _record(core, name)
    reference = name if isinstance(name, bytes) else record.reference if record is not None else b""
    found = await _about(core, reference, reference)
    if record is not None and record.batch:
        found += await _about(core, record.batch, reference)
    if not found and record is None:
        raise not_found(name)
    found.sort(key=attrgetter("time", "stream", "number"))
    return found[after : after + limit]


async def _record(core: Core, name: str | bytes) -> TokenRecord | None:
    """The record of a token; None where there is none of a reference: its events may be there still."""
    try:
        return (await core.read(name, None)).record
    except (TokenNotFoundError, IntegrityError):
        if isinstance(name, str):
            raise
        return None


async def _about(core: Core, indexed_by: bytes, reference: bytes) -> list[AuditEvent]:
    """What the events that the index leads to from one reference say of a token."""
    found: dict[SealedEvent, list[AuditEvent]] = {}  # an event of a use may have two rows
    cursor = b""
    for _ in range(PAGES_MAX):
        page = await core.store.events_about(indexed_by, after=cursor, limit=PAGE)
        rows = [row for row in page.events if row != MALFORMED_EVENT and row not in found]
        for row in await core.runtime.block(core.keys.audit.genuine, rows):
            found[row] = audit_events(row, reference)
        cursor = page.next
        if not cursor:
            return [event for events in found.values() for event in events]
    raise IntegrityError(
        "too many audit events stand for this token: verify the trail", code="TOO_MANY_EVENTS"
    )
