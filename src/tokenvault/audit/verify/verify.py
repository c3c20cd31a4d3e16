"""Verifying an audit trail: what an auditor runs, with the vault's keys or with a public key alone."""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from tokenvault.audit.checkpoint import Named
from tokenvault.audit.event import STREAM_BYTES, leaf_of
from tokenvault.audit.export import json_lines
from tokenvault.audit.verify import pages as reading
from tokenvault.audit.verify.misplaced import look_into
from tokenvault.audit.verify.pages import stream_pages
from tokenvault.audit.verify.report import AuditReport, FindingKind, Findings, Pin, parse_anchor
from tokenvault.audit.verify.revisions import Revisions
from tokenvault.audit.verify.signatures import check_signed, vouch
from tokenvault.audit.verify.stream import StreamAudit, Suspects
from tokenvault.audit.verify.trusted_keys import Proof
from tokenvault.errors import IntegrityError, boundary
from tokenvault.keys.port import KeyStore
from tokenvault.stores.port import SealedEvent, TokenStore


@boundary
def verify_audit(
    store: TokenStore,
    *,
    keys: KeyStore | None = None,
    public_key: str | None = None,
    since: AuditReport | str | None = None,
) -> AuditReport:
    """Verify the whole audit trail of a database, and its records against it. Vaults may go on meanwhile.

    Events are read in pages; in memory stay checkpoints and, for each token, which revisions events tell of: about
    150 bytes a token.

    Args:
        store: the database.
        keys: a key store with its AUDIT keys: every event is authenticated.
        public_key: what `audit_public_key` returned, PEM; without keys, signed checkpoints are authenticated, and by
            them what they name and the events that they commit to (`AuditReport.covered`); an edit is then located
            between two of them. With or without keys, every stream must then end with a checkpoint that is signed, or
            that a signed one names.
        since: an earlier report, or what its `anchor()` returned: all that was there then must be there still.

    Raises:
        InvalidInputError: neither keys nor a public key, or an argument of another form.
        KeyStoreError, TokenStoreError: the key store or the database can not be reached.
    """
    proof = Proof(keys, public_key)
    pins = (
        dict(since.pins) if isinstance(since, AuditReport) else {} if since is None else parse_anchor(since)
    )
    findings, revisions, suspects = Findings(), Revisions(), Suspects()
    audits = {}
    for name in sorted(store.streams()):
        if len(name) == STREAM_BYTES:
            audits[name] = StreamAudit(store, name, proof, findings, pins.get(name))
        else:
            findings.add(FindingKind.EDITED, "an event's stream has a name of another length", stream=name)
    for audit in audits.values():
        audit.mark()
    vouched = vouch(audits)
    for audit in audits.values():
        audit.check_strangers()
        audit.read(revisions, suspects)
    look_into(suspects, proof, store, findings)
    _check_named(audits, pins, store, findings)
    if public_key is not None:
        check_signed(audits, vouched, store, proof, findings)
    records = revisions.check(store, proof, findings)
    marks = [each for audit in audits.values() for each in audit.marks.values()]
    return AuditReport(
        findings=tuple(findings.found),
        findings_omitted=findings.omitted,
        streams=len(audits),
        events=sum(audit.events for audit in audits.values()),
        records=records,
        checkpoints=len(marks) + sum(len(audit.unproved) for audit in audits.values()),
        signed=sum(each.signed for each in marks),
        covered=sum(min(audit.committed, audit.events) for audit in audits.values()),
        uncovered={
            name.hex(): audit.events - min(audit.committed, audit.events) for name, audit in audits.items()
        },
        gaps=sum(audit.gaps for audit in audits.values()),
        pins=_pins(audits, pins, keys is not None),
    )


def _check_named(
    audits: dict[bytes, StreamAudit], pins: dict[bytes, Pin], store: TokenStore, findings: Findings
) -> None:
    """Note streams, and ends of streams, that others or the verification before tell of and that are missing."""
    named: dict[bytes, dict[int, Named]] = {}
    for audit in audits.values():
        for mark in audit.marks.values():
            for each in mark.named:
                named.setdefault(each.stream, {})[each.number] = each
    for name in sorted({*named, *pins} - audits.keys()):
        if not _there(store, name, 0):  # it may be younger than the list of streams
            told = (
                "other streams name it"
                if name in named
                else "it was there when the trail was verified before"
            )
            findings.add(FindingKind.STREAM_DROPPED, f"this stream is not there, and {told}", stream=name)
    for name in sorted(named.keys() & audits.keys()):
        audit = audits[name]
        for number, each in sorted(named[name].items()):
            found = audit.marks.get(number)
            if found is not None and found.leaf == each.leaf:
                continue
            if number > audit.last and not _there(store, name, number):
                findings.add(
                    FindingKind.TRUNCATED,
                    "another stream names a checkpoint of this one that is not there",
                    stream=name,
                    number=audit.last + 1,
                    last=number,
                )
            elif number <= audit.last and not _is(store, each):
                findings.add(
                    FindingKind.EDITED,
                    "another stream names a checkpoint here, which is not there, or another one",
                    stream=name,
                    number=number,
                )


def _there(store: TokenStore, stream: bytes, number: int) -> bool:
    """Whether an event stands at a number, or for 0 anywhere in its stream."""
    try:
        found = store.events(stream=stream, after=max(0, number - 1), limit=1)
    except IntegrityError:
        return True  # reading the stream has told
    return bool(found) and number in (0, found[0].number)


def _is(store: TokenStore, named: Named) -> bool:
    try:
        found = store.events(stream=named.stream, after=named.number - 1, limit=1)
    except IntegrityError:
        return False
    return bool(found) and found[0].number == named.number and leaf_of(found[0]) == named.leaf


def _pins(audits: dict[bytes, StreamAudit], before: dict[bytes, Pin], all_of_it: bool) -> dict[bytes, Pin]:
    """The state of each stream, as far as it is authenticated; of one that lost events, as it was before."""
    pins = dict(before)
    for name, audit in audits.items():
        size, root = audit.tree.size, audit.tree.root()
        if not all_of_it:
            size, root = max(
                ((mark.size, mark.root) for mark in audit.marks.values() if mark.size <= audit.tree.size),
                default=(0, b""),
            )
        if size > (before[name].size if name in before else 0):
            pins[name] = Pin(size, root)
    return pins


@boundary
def audit_public_key(keys: KeyStore) -> str | None:
    """The public key that the vaults of a key store sign checkpoints for, PEM; None where they sign none.

    Raises KeyStoreError.
    """
    signer = keys.signer()
    if signer is None:
        return None
    key = load_der_public_key(signer.public_key)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def export_audit(store: TokenStore, *, keys: KeyStore | None = None) -> Iterator[str]:
    """All events of a database as JSON Lines: a line of ASCII for each, or each item of a batch, without its end.

    By stream, oldest name first, and number. docs/audit.md has the names and values. "genuine" tells whether the MAC
    is right, and is null without keys. An event that can not be read has "stream", "number" and "genuine" only.

    Raises:
        KeyStoreError, TokenStoreError: as lines are asked for.
        IntegrityError: in a stream with 10,000 malformed rows, after the lines of these.
    """
    proof = None if keys is None else Proof(keys, None)
    for stream in sorted(name for name in store.streams() if len(name) == STREAM_BYTES):
        malformed = 0
        for page in stream_pages(store, stream):
            if isinstance(page, int):
                yield _unreadable(stream, page)
                malformed += 1
                continue
            genuine = (
                [None] * len(page) if proof is None else proof.genuine(page, [leaf_of(row) for row in page])
            )
            for row, right in zip(page, genuine, strict=True):
                yield from _lines(row, right)
        if malformed >= reading.MALFORMED_MAX:
            raise IntegrityError("too many rows of a stream are malformed: what follows them was not read")


def _lines(row: SealedEvent, genuine: bool | None) -> list[str]:
    try:
        return json_lines(row, genuine)
    except IntegrityError:
        return [_unreadable(row.stream, row.number)]


def _unreadable(stream: bytes, number: int) -> str:
    return f'{{"stream": "{stream.hex()}", "number": {number}, "genuine": false}}'
