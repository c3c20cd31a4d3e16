"""The lines of an export in the library's own schema: JSON, whose names and values docs/audit.md has."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from tokenvault.audit.acknowledgement import described
from tokenvault.audit.event import Event
from tokenvault.audit.export import AuditEvent

SCHEMA_VERSION: Final = 1
"""Grows where a name goes or a value changes its meaning; names that are added leave it."""


def unreadable_line(stream: bytes, number: int) -> dict[str, object]:
    """Of an event that can not be read."""
    return {
        "schema_version": SCHEMA_VERSION,
        "stream": stream.hex(),
        "number": number,
        "item": 0,
        "genuine": False,
    }


def event_line(event: AuditEvent, item: int, genuine: bool | None, single: Event | None) -> dict[str, object]:
    """Of an event, or of an item of a batch, which are counted from 0 and of which `single` is None."""
    line: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "stream": event.stream,
        "number": event.number,
        "item": item,
        "time": _text(event.time),
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
        "score": event.score,
        "codes": list(event.codes),
        "revision": event.revision,
        "locked_until": None if event.locked_until is None else _text(event.locked_until),
        "genuine": genuine,
    }
    if single is not None and single.checkpoint is not None:
        checkpoint = single.checkpoint
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
    if single is not None and single.acknowledgement is not None:
        line["acknowledged"] = described(single.acknowledgement)
    return line


def _text(instant: datetime) -> str:
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")
