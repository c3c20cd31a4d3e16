"""Which checkpoints signatures speak for: signed ones, those that a signed one refers to, and so on."""

from __future__ import annotations

from collections.abc import Mapping

from tokenvault.audit.verify.report import FindingKind, Findings
from tokenvault.audit.verify.stream import FoundCheckpoint, StreamAudit
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.stores.port import TokenStore

Vouched = dict[bytes, set[int]]
"""By stream, the numbers of the checkpoints that signatures speak for."""


def vouch(audits: Mapping[bytes, StreamAudit]) -> Vouched:
    """The checkpoints that signatures speak for; this authenticates those that nothing else does."""
    vouched: Vouched = {name: set() for name in audits}
    ahead: list[tuple[bytes, FoundCheckpoint]] = [
        (name, found)
        for name, audit in audits.items()
        for found in audit.checkpoints.values()
        if found.signed
    ]
    while ahead:
        name, found = ahead.pop()
        if found.number in vouched[name]:
            continue
        vouched[name].add(found.number)
        for reference in found.checkpoint.cross_references:
            other = audits.get(reference.stream)
            if other is None:
                continue
            number = reference.number
            referenced = other.checkpoints.get(number) or other.unauthenticated.get(number)
            if referenced is not None and referenced.leaf == reference.leaf:
                other.checkpoints[number] = referenced
                other.unauthenticated.pop(number, None)
                ahead.append((reference.stream, referenced))
    return vouched


def check_signed(
    audits: Mapping[bytes, StreamAudit],
    vouched: Vouched,
    store: TokenStore,
    trusted: TrustedKeys,
    findings: Findings,
) -> None:
    """Note streams that do not end with a checkpoint that a signature speaks for.

    The next signature, in the same stream or in another one, speaks for a checkpoint that was left unsigned because
    the module was away.
    """
    for name, audit in audits.items():
        last = max((*audit.checkpoints, *audit.unauthenticated), default=0)
        if last in vouched[name] or (not last and _is_signed_by_now(store, name, trusted)):
            continue
        findings.add_stream(
            FindingKind.UNSIGNED,
            "the last checkpoint of this stream is not signed, and no signed one refers to it"
            if last
            else "no checkpoint of this stream is there",
            name,
            last or None,
        )


def _is_signed_by_now(store: TokenStore, name: bytes, trusted: TrustedKeys) -> bool:
    """Whether a stream has a signed checkpoint: as it begins, another thread's event may be there before it."""
    again = StreamAudit(store, name, trusted, Findings())
    again.find_checkpoints()
    return any(found.signed for found in again.checkpoints.values())
