"""Which checkpoints signatures speak for: those that are signed, those that a signed one names, and so on."""

from __future__ import annotations

from collections.abc import Mapping

from tokenvault.audit.verify.report import FindingKind, Findings
from tokenvault.audit.verify.stream import Mark, StreamAudit
from tokenvault.audit.verify.trusted_keys import Proof
from tokenvault.stores.port import TokenStore

Vouched = dict[bytes, set[int]]
"""Numbers of checkpoints by stream."""


def vouch(audits: Mapping[bytes, StreamAudit]) -> Vouched:
    """The checkpoints that signatures speak for; those that nothing else authenticates become marks."""
    vouched: Vouched = {name: set() for name in audits}
    ahead: list[tuple[bytes, Mark]] = []
    for name, audit in audits.items():
        ahead += [(name, mark) for mark in audit.marks.values() if mark.signed]
    while ahead:
        name, mark = ahead.pop()
        if mark.number in vouched[name]:
            continue
        vouched[name].add(mark.number)
        for named in mark.named:
            other = audits.get(named.stream)
            if other is None:
                continue
            found = other.marks.get(named.number) or other.unproved.get(named.number)
            if found is not None and found.leaf == named.leaf:
                other.marks[found.number] = found
                other.unproved.pop(found.number, None)
                ahead.append((named.stream, found))
    return vouched


def check_signed(
    audits: Mapping[bytes, StreamAudit], vouched: Vouched, store: TokenStore, proof: Proof, findings: Findings
) -> None:
    """Note streams that do not end with a checkpoint that a signature speaks for.

    One that was left unsigned because the module was away is spoken for by the next signature, in its own stream or
    in another one.
    """
    for name, audit in audits.items():
        if not audit.marks and not audit.unproved:
            # Of a stream that begins, another thread's event may have been there before its first checkpoint.
            again = StreamAudit(store, name, proof, Findings())
            again.mark()
            if any(mark.signed for mark in again.marks.values()):
                continue
        last = max((*audit.marks, *audit.unproved), default=0)
        if last not in vouched[name]:
            findings.add(
                FindingKind.UNSIGNED,
                "the last checkpoint of this stream is not signed, and no signed one names it"
                if last
                else "no checkpoint of this stream is there",
                stream=name,
                number=last or None,
            )
