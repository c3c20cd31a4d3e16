"""Which checkpoints signatures speak for: signed ones, those that a signed one refers to, and so on."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from tokenvault.audit.verify.report import FindingKind, Findings
from tokenvault.audit.verify.stream import FoundCheckpoint, StreamAudit


def vouch(audits: Mapping[bytes, StreamAudit]) -> None:
    """Find the checkpoints that signatures speak for; this authenticates those that nothing else does."""
    ahead: list[tuple[StreamAudit, FoundCheckpoint]] = [
        (audit, found) for audit in audits.values() for found in audit.checkpoints.values() if found.signed
    ]
    while ahead:
        audit, found = ahead.pop()
        if found.number in audit.vouched:
            continue
        audit.vouched.add(found.number)
        for reference in found.cross_references():
            other, number = audits.get(reference.stream), reference.number
            if other is None:
                continue
            referenced = other.checkpoints.get(number) or other.unauthenticated.get(number)
            if referenced is not None and referenced.leaf == reference.leaf:
                other.checkpoints[number] = referenced
                other.unauthenticated.pop(number, None)
                ahead.append((other, referenced))


def check_signed(audits: Mapping[bytes, StreamAudit], findings: Findings) -> None:
    """Note streams that do not end with a checkpoint that a signature speaks for.

    The next signature, in the same stream or in another one, speaks for a checkpoint that was left unsigned because
    the module was away.
    """
    for name, audit in audits.items():
        last = max((*audit.checkpoints, *audit.unauthenticated), default=None)
        if last is None and not _is_signed_by_now(audit):
            findings.add(FindingKind.UNSIGNED, "no checkpoint of this stream is there", name)
        elif last is not None and last not in audit.vouched:
            message = "the last checkpoint of this stream is not signed, and no signed one refers to it"
            findings.add(FindingKind.UNSIGNED, message, name, last)


def _is_signed_by_now(audit: StreamAudit) -> bool:
    """Whether a stream has a signed checkpoint: as it begins, another thread's event may be there before it."""
    again = attrs.evolve(audit, findings=Findings(), checkpoints={}, unauthenticated={}, vouched=set())
    again.find_checkpoints()
    return any(found.signed for found in again.checkpoints.values())
