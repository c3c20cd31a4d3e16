"""Verifies an audit trail: what an auditor runs, with the vault's keys or with a public key alone."""

from __future__ import annotations

from tokenvault.audit import succession
from tokenvault.audit.acknowledgement import Acknowledged
from tokenvault.audit.event import leaf_of
from tokenvault.audit.verify.event_index import IndexAudit
from tokenvault.audit.verify.misplaced import InvalidMacs, find_origins
from tokenvault.audit.verify.report import AnchorEntry, AuditReport, FindingKind, Findings, parse_anchor
from tokenvault.audit.verify.revisions import Revisions
from tokenvault.audit.verify.signatures import check_signed, vouch
from tokenvault.audit.verify.stream import StreamAudit
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.errors import IntegrityError, boundary
from tokenvault.keys.port import KeyStore
from tokenvault.model import checks
from tokenvault.stores.port import MALFORMED_EVENT, STREAM_BYTES, SealedEvent, TokenStore


@boundary
def verify_audit(
    store: TokenStore,
    *,
    keys: KeyStore | None = None,
    public_key: str | None = None,
    since: AuditReport | str | None = None,
) -> AuditReport:
    """Verify the whole audit trail of a database, its records and its index against it. Vaults may go on meanwhile.

    Memory: two pages of events, each of 16 MiB (PAGE_BYTES) and one event at most, and for each event 4 bytes, for
    each token 150, for each checkpoint 700 and 56 for each of its cross-references, for each stream 2,000. A page has
    that bound where the store keeps to it, as those of the library do (`TokenStore.events`).

    Args:
        store: the database.
        keys: a key store with its AUDIT keys: every event is authenticated.
        public_key: what `audit_public_key` returned, PEM. Without keys, signed checkpoints are authenticated, and by
            them the checkpoints that they refer to and the events that they commit to (`AuditReport.covered`); an
            edit is then located between two checkpoints. With or without keys, every stream must then end with a
            checkpoint that is signed, or that a signed one refers to. A key is trusted too that a trusted one
            introduced (`maintenance.introduce_signer`).
        since: an earlier report, or what its `anchor()` returned: all that was there then must be there still.

    Raises:
        InvalidInputError: neither keys nor a public key, or an argument of another form.
        KeyStoreError, TokenStoreError: the key store or the database can not be reached.
    """
    checks.blocking_store("store", store)
    trusted = TrustedKeys(keys, public_key)
    trusted.learn(succession.stored(store.get_meta))
    before: dict[bytes, AnchorEntry] = {}
    if since is not None:
        before = dict(since.anchor_entries) if isinstance(since, AuditReport) else parse_anchor(since)
    findings, revisions, invalid_macs, index = Findings(), Revisions(), InvalidMacs(), IndexAudit()
    acknowledged = Acknowledged()
    audits = {}
    for name in sorted(store.streams()):
        if len(name) == STREAM_BYTES:
            audit = StreamAudit(
                store, name, trusted, findings, before.get(name), revisions, invalid_macs, index, acknowledged
            )
            audits[name] = audit
        else:
            findings.add(FindingKind.EDITED, "an event's stream has a name of another length", name)
    for audit in audits.values():
        audit.find_checkpoints()
    vouch(audits)
    for audit in audits.values():
        audit.check_unauthenticated_rows()
        audit.read()
    index.check(store, trusted, {name: audit.last for name, audit in audits.items()}, findings)
    find_origins(invalid_macs, trusted, store, findings)
    _check_cross_references(audits, before, store, findings)
    if public_key is not None:
        check_signed(audits, findings)
    records = revisions.check(store, trusted, findings)
    entries = _anchor_entries(audits, before, keys is not None)
    return _report(audits, findings, acknowledged, records, entries)


def _report(
    audits: dict[bytes, StreamAudit],
    findings: Findings,
    acknowledged: Acknowledged,
    records: int,
    anchor_entries: dict[bytes, AnchorEntry],
) -> AuditReport:
    covered = {name: min(audit.committed, audit.events) for name, audit in audits.items()}
    checkpoints = [found for audit in audits.values() for found in audit.checkpoints.values()]
    known = {each for each in (*findings.found, *findings.open) if acknowledged.covers(each)}
    return AuditReport(
        findings=tuple(each for each in findings.found if each not in known),
        findings_omitted=findings.omitted,
        streams=len(audits),
        events=sum(audit.events for audit in audits.values()),
        records=records,
        checkpoints=len(checkpoints) + sum(len(audit.unauthenticated) for audit in audits.values()),
        signed=sum(found.signed for found in checkpoints),
        covered=sum(covered.values()),
        uncovered={name.hex(): audit.events - covered[name] for name, audit in audits.items()},
        gaps=sum(audit.gaps for audit in audits.values()),
        open_findings=tuple(each for each in findings.open if each not in known),
        acknowledged=tuple(each for each in (*findings.found, *findings.open) if each in known),
        anchor_entries=anchor_entries,
    )


def _anchor_entries(
    audits: dict[bytes, StreamAudit], before: dict[bytes, AnchorEntry], with_keys: bool
) -> dict[bytes, AnchorEntry]:
    """The state of each stream, as far as it is authenticated; of one that lost events, as it was before."""
    entries = dict(before)
    for name, audit in audits.items():
        states = [AnchorEntry(audit.tree.size, audit.tree.root())]
        if not with_keys:
            states = [
                AnchorEntry(each.size, each.root)
                for each in audit.checkpoints.values()
                if each.size <= audit.tree.size
            ]
        newest = max(states, key=lambda state: (state.size, state.root), default=None)
        if newest is not None and newest.size > audit.size_before:
            entries[name] = newest
    return entries


def _check_cross_references(
    audits: dict[bytes, StreamAudit],
    before: dict[bytes, AnchorEntry],
    store: TokenStore,
    findings: Findings,
) -> None:
    """Note streams that are missing, and checkpoints that others refer to and that are missing or other ones."""
    referenced: dict[
        bytes, dict[int, bytes]
    ] = {}  # but for checkpoints that are there: the leaf of each event
    for audit in audits.values():
        for found in audit.checkpoints.values():
            for reference in found.cross_references():
                other = audits.get(reference.stream)
                if other is None or not other.has_checkpoint(reference):
                    referenced.setdefault(reference.stream, {})[reference.number] = reference.leaf
    missing = {*referenced, *before} - audits.keys()
    if missing:
        missing -= set(store.streams())  # some are younger than the first list
    for name in sorted(missing):
        how = (
            "other streams refer to it"
            if name in referenced
            else "it was there when the trail was verified before"
        )
        known = max((*referenced.get(name, ()), *([before[name].size] if name in before else ())))
        findings.add(FindingKind.STREAM_DROPPED, f"this stream is not there, and {how}", name, None, known)
    for name in sorted(referenced.keys() & audits.keys()):
        for number, leaf in sorted(referenced[name].items()):
            _check_cross_reference(number, leaf, audits[name], store, findings)


def _check_cross_reference(
    number: int, leaf: bytes, audit: StreamAudit, store: TokenStore, findings: Findings
) -> None:
    stream = audit.stream
    now = _event_now(store, stream, number)
    if number > audit.last:
        if now is None:
            findings.add(
                FindingKind.TRUNCATED,
                "another stream refers to an event of this one that is not there",
                stream,
                audit.last + 1,
                number,
            )
    elif now is None:
        message = "another stream refers to an event here, which is not there"
        findings.add(FindingKind.REMOVED, message, stream, number)
    elif leaf_of(now) != leaf:
        findings.add(
            FindingKind.EDITED, "another stream refers to an event here, which is another one", stream, number
        )


def _event_now(store: TokenStore, stream: bytes, number: int) -> SealedEvent | None:
    """The event of a number, which may be there by now; MALFORMED_EVENT for a row that is none."""
    try:
        found = store.events(stream=stream, after=number - 1, limit=1)
    except IntegrityError:
        return MALFORMED_EVENT
    return found[0] if found and found[0].number == number else None
