"""Verifies an audit trail: what an auditor runs, with the vault's keys or with a public key alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tokenvault.audit import succession
from tokenvault.audit.acknowledgement import Acknowledged
from tokenvault.audit.archive import archive_path
from tokenvault.audit.event import leaf_of
from tokenvault.audit.verify.archived import Archives
from tokenvault.audit.verify.event_index import IndexAudit
from tokenvault.audit.verify.misplaced import InvalidMacs, find_origins
from tokenvault.audit.verify.purged import Purges
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
    archive: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
) -> AuditReport:
    """Verify the whole audit trail of a database, its records and its index against it. Vaults may go on meanwhile.

    Memory: two pages of events, each of 16 MiB (PAGE_BYTES) and one event at most, and for each event 4 bytes, for
    each token 150, for each checkpoint 700 and 56 for each of its cross-references, for each stream 2,000, for each
    run of events that a purge took out 300. The page has that bound where the store keeps to it, as those of the
    library do (`TokenStore.events`).

    Args:
        store: the database.
        keys: a key store with its AUDIT keys: every event is authenticated.
        public_key: what `audit_public_key` returned, PEM. Without keys, signed checkpoints are authenticated, and by
            them the checkpoints that they refer to and the events that they commit to (`AuditReport.covered`); an
            edit is then located between two checkpoints. With or without keys, every stream must then end with a
            checkpoint that is signed, or that a signed one refers to. A key is trusted too that a trusted one
            introduced (`maintenance.introduce_signer`).
        since: an earlier report, or what its `anchor()` returned: all that was there then must be there still, or
            gone by a purge. What an anchor states of the middle of a purged run is compared with an archive only.
        archive: archives of `maintenance.archive_events` or `purge`, one path or several: what purges took out is
            read there and compared with what they said of it.

    Raises:
        InvalidInputError: neither keys nor a public key, an archive can not be read, or an argument of another form.
        IntegrityError: an archive has a line that was not written so.
        KeyStoreError, TokenStoreError: the key store or the database can not be reached.
    """
    checks.blocking_store("store", store)
    trusted = TrustedKeys(keys, public_key)
    trusted.learn(succession.stored(store.get_meta))
    before: dict[bytes, AnchorEntry] = {}
    if since is not None:
        before = dict(since.anchor_entries) if isinstance(since, AuditReport) else parse_anchor(since)
    with closing(Archives(_paths(archive))) as archives:
        return _verify(store, trusted, before, archives, (keys is not None, public_key is not None))


def _paths(archive: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    if not isinstance(archive, list | tuple):
        return [archive_path("archive", archive)]
    return [archive_path("archive", each) for each in archive]


def _verify(
    store: TokenStore,
    trusted: TrustedKeys,
    before: dict[bytes, AnchorEntry],
    archives: Archives,
    given: tuple[bool, bool],
) -> AuditReport:
    """Verify all streams, and what the events say of records and the index; given: keys, and a public key."""
    with_keys, with_public_key = given
    findings, revisions, invalid_macs, index = Findings(), Revisions(), InvalidMacs(), IndexAudit()
    acknowledged = Acknowledged()
    named_by_purges: set[bytes] = set()
    audits: dict[bytes, StreamAudit] = {}
    purges = Purges(store, trusted, lambda name: _signed_roots(audits, new_audit(name)))

    def new_audit(name: bytes) -> StreamAudit:
        return StreamAudit(
            store=store,
            stream=name,
            trusted=trusted,
            findings=findings,
            purged=purges.of(name),
            archives=archives,
            anchor_entry=before.get(name),
            revisions=revisions,
            invalid_macs=invalid_macs,
            index=index,
            acknowledged=acknowledged,
            named_by_purges=named_by_purges,
        )

    for name in sorted(store.streams()):
        if len(name) == STREAM_BYTES:
            audits[name] = new_audit(name)
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
    _check_cross_references(audits, before, named_by_purges, store, findings)
    if with_public_key:
        check_signed(audits, findings)
    records = revisions.check(store, trusted, findings, purges)
    entries = _anchor_entries(audits, before, with_keys)
    return _report(audits, findings, acknowledged, records, entries)


def _signed_roots(audits: dict[bytes, StreamAudit], again: StreamAudit) -> dict[int, bytes]:
    """What the checkpoints of a stream commit to for which signatures speak, also those that came since."""
    again.findings = Findings()  # of its own: they are in the report already
    again.find_checkpoints()
    vouched = audits[again.stream].checkpoints if again.stream in audits else {}
    found = [*vouched.values(), *again.checkpoints.values()]
    return {each.size: each.root for each in found}


def _report(
    audits: dict[bytes, StreamAudit],
    findings: Findings,
    acknowledged: Acknowledged,
    records: int,
    anchor_entries: dict[bytes, AnchorEntry],
) -> AuditReport:
    covered = {
        name: max(min(audit.committed, audit.events + audit.gone) - audit.gone, 0)
        for name, audit in audits.items()
    }
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
        purged=sum(audit.gone for audit in audits.values()),
        archived=sum(audit.archived for audit in audits.values()),
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
    named_by_purges: set[bytes],
    store: TokenStore,
    findings: Findings,
) -> None:
    """Note streams that are missing, and checkpoints that others refer to and that are missing or other ones."""
    referenced: dict[
        bytes, dict[int, bytes]
    ] = {}  # the leaf of each event, but for checkpoints that are there
    for audit in audits.values():
        for found in audit.checkpoints.values():
            for reference in found.cross_references():
                other = audits.get(reference.stream)
                if other is None or not other.has_checkpoint(reference):
                    referenced.setdefault(reference.stream, {})[reference.number] = reference.leaf
    missing = {*referenced, *before, *named_by_purges} - audits.keys()
    if missing:
        missing -= set(store.streams())  # some are younger than the first list
    for name in sorted(missing):
        how = (
            "other streams refer to it"
            if name in referenced
            else "a purge left its last checkpoint"
            if name in named_by_purges
            else "it was there when the trail was verified before"
        )
        known = max(
            (*referenced.get(name, ()), *([before[name].size] if name in before else ())), default=None
        )
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
        if now is None and not audit.is_gone(number):
            findings.add(
                FindingKind.TRUNCATED,
                "another stream refers to an event of this one that is not there",
                stream,
                audit.last + 1,
                number,
            )
    elif now is None and audit.is_gone(number):
        return
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
