"""What the audit trail says of one token."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from tokenvault.audit.export import AuditEvent, audit_events
from tokenvault.errors import IntegrityError, TokenNotFoundError
from tokenvault.records.record import TokenRecord
from tokenvault.stores.port import MALFORMED_EVENT
from tokenvault.vault.core import Core, not_found

PAGE: Final = 16
"""Events read at once: one of a batch may be 1 MiB."""

PAGES_MAX: Final = 40_000


async def history(core: Core, name: str | bytes, after: int, limit: int) -> list[AuditEvent]:
    """The events of a token, given the token or its reference, authenticated, by time, stream and number.

    The index leads to them, and the record to the batch that issued it, if one did: what is read depends on this
    token's events alone, and what is kept meanwhile on `after` and `limit`. In which order they reached the database
    makes no difference. Rows that the vault did not write are left out: verification reports them.
    """
    record = await _record(core, name)
    reference = name if isinstance(name, bytes) else record.reference if record is not None else b""
    earliest = _Earliest(after + limit)
    await _read(core, reference, reference, earliest)
    if record is not None and record.batch:
        await _read(core, record.batch, reference, earliest)
    if not earliest.events and record is None:
        raise not_found(name)
    return earliest.listed()[after : after + limit]


class _Earliest:
    """Events of a token by time, stream and number: at least the first so many of all that are added.

    Attributes:
        events: by these, what each row says of the token.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.events: dict[
            tuple[datetime, str, int], list[AuditEvent]
        ] = {}  # a use's event may have two index rows

    def add(self, said: list[AuditEvent]) -> None:
        """Add what one row says."""
        for event in said[:1]:
            self.events[event.time, event.stream, event.number] = said
        if len(self.events) > 2 * self._count:
            self.events = {place: self.events[place] for place in sorted(self.events)[: self._count]}

    def listed(self) -> list[AuditEvent]:
        """All that is kept, in order."""
        return [event for place in sorted(self.events) for event in self.events[place]]


async def _record(core: Core, name: str | bytes) -> TokenRecord | None:
    """The record of a token; None where there is none of a reference: its events may be there still."""
    try:
        return (await core.read(name, None)).record
    except (TokenNotFoundError, IntegrityError):
        if isinstance(name, str):
            raise
        return None


async def _read(core: Core, indexed_by: bytes, reference: bytes, earliest: _Earliest) -> None:
    """Add what the events that the index leads to from one reference say of a token."""
    cursor = b""
    for _ in range(PAGES_MAX):
        page = await core.store.events_about(indexed_by, after=cursor, limit=PAGE)
        rows = [row for row in page.events if row != MALFORMED_EVENT]
        for row in await core.runtime.block(core.keys.audit.genuine, rows):
            earliest.add(audit_events(row, reference))
        cursor = page.next
        if not cursor:
            return
    raise IntegrityError(
        "too many audit events stand for this token: verify the trail", code="TOO_MANY_EVENTS"
    )
