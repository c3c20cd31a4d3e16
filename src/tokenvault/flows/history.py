"""What the audit trail says of one token."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from operator import attrgetter
from typing import Final

from tokenvault.audit.event import AuditEvent
from tokenvault.batch_events import BATCH
from tokenvault.errors import IntegrityError, TokenNotFoundError
from tokenvault.flows.core import Core
from tokenvault.stores.port import SealedEvent

BATCH_PAGE: Final = 16
"""Events of batches read at once: each may be 1 MiB."""


async def history(
    core: Core, token: str | None, reference: bytes, after: int, limit: int
) -> list[AuditEvent]:
    """The events of a token, found by itself or by its reference, authenticated, in the order of writing.

    Those of batches are looked through one after the other, and put among the token's own by their time.
    """
    if token is not None:
        reference = (await core.read(token, None)).record.reference
    own = [event async for event in _about(core, reference, reference, after + limit)]
    listed = [event async for event in _about(core, BATCH, reference, after + limit)]
    if not own and not listed and token is None:
        raise TokenNotFoundError("no token with this reference in this vault")
    return list(heapq.merge(own, listed, key=attrgetter("time", "stream", "number")))[after : after + limit]


async def _about(core: Core, named: bytes, reference: bytes, count: int) -> AsyncIterator[AuditEvent]:
    """What the events of one reference say of a token, at most so much."""
    passed = told = 0
    while told < count:
        rows = await core.store.events(reference=named, after=passed, limit=BATCH_PAGE)
        await _authenticate(core, rows, named)
        for event in (event for row in rows for event in AuditEvent.all_of(row)):
            if event.reference == reference.hex() and told < count:
                told += 1
                yield event
        passed += len(rows)
        if len(rows) < BATCH_PAGE:
            return


async def _authenticate(core: Core, rows: list[SealedEvent], named: bytes) -> None:
    genuine = await core.runtime.block(core.keys.genuine, rows)
    if not all(genuine) or any(row.reference != named for row in rows):
        raise IntegrityError("an audit event of this token is not one that the vault wrote: verify the trail")
