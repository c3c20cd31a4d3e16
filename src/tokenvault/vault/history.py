"""What the audit trail says of one token."""

from __future__ import annotations

import heapq
from operator import attrgetter
from typing import Final

from tokenvault.audit.batch_event import BATCH
from tokenvault.audit.export import AuditEvent, audit_events
from tokenvault.errors import IntegrityError, TokenNotFoundError
from tokenvault.vault.core import Core

BATCH_PAGE: Final = 16
"""Events of batches read at once: each may be 1 MiB."""

READS_MAX: Final = 100_000


async def history(core: Core, name: str | bytes, after: int, limit: int) -> list[AuditEvent]:
    """The events of a token, given the token or its reference, authenticated, in the order of writing.

    Those of batches are looked through one after the other, and put among the token's own by their time.
    Rows that the vault did not write are left out: verification reports them.
    """
    reference = name if isinstance(name, bytes) else (await core.read(name, None)).record.reference
    own = await _about(core, reference, reference, after + limit)
    batches = await _about(core, BATCH, reference, after + limit)
    if not own and not batches and isinstance(name, bytes):
        raise TokenNotFoundError("no token with this reference in this vault")
    return list(heapq.merge(own, batches, key=attrgetter("time", "stream", "number")))[after : after + limit]


async def _about(core: Core, stored_under: bytes, reference: bytes, count: int) -> list[AuditEvent]:
    """What the events stored under one reference say of a token: the first `count` of them."""
    found: list[AuditEvent] = []
    start, size = 0, BATCH_PAGE
    for _ in range(READS_MAX):
        try:
            rows = await core.store.events(reference=stored_under, after=start, limit=size)
        except IntegrityError:  # one is malformed: look for it, and pass it over
            start, size = start + (size == 1), max(size // 2, 1)
            continue
        found += [
            event
            for row in await core.runtime.block(core.keys.audit.genuine, rows)
            if row.reference == stored_under
            for event in audit_events(row)
            if event.reference == reference.hex()
        ]
        if len(rows) < size or len(found) >= count:
            return found[:count]
        start, size = start + len(rows), min(2 * size, BATCH_PAGE)
    raise IntegrityError(
        "too many audit events stand for this token: verify the trail", code="TOO_MANY_EVENTS"
    )
