"""What the audit trail says of one token."""

from __future__ import annotations

from tokenvault.audit.event import AuditEvent
from tokenvault.errors import IntegrityError, TokenNotFoundError
from tokenvault.flows.core import Core


async def history(
    core: Core, token: str | None, reference: bytes, after: int, limit: int
) -> list[AuditEvent]:
    """The events of a token, found by itself or by its reference, authenticated, in the order of writing."""
    if token is not None:
        reference = (await core.read(token, None)).record.reference
    rows = await core.store.events(reference=reference, after=after, limit=limit)
    if not rows and not after and token is None:
        raise TokenNotFoundError("no token with this reference in this vault")
    genuine = await core.runtime.block(core.keys.genuine, rows)
    if not all(genuine) or any(row.reference != reference for row in rows):
        raise IntegrityError("an audit event of this token is not one that the vault wrote: verify the trail")
    return [AuditEvent.of(row) for row in rows]
