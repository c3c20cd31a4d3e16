"""What verifying an audit trail found, and the anchor by which a later one proves that the trail only grew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import attrs

from tokenvault.audit.merkle import HASH_BYTES
from tokenvault.errors import InvalidInputError, boundary_init
from tokenvault.model.words import Words
from tokenvault.stores.port import INTEGER_MAX, STREAM_BYTES

FINDINGS_MAX: Final = 10_000
ANCHOR_FORMAT: Final = "tokenvault-anchor-1"
ANCHOR_CHARACTERS_MAX: Final = 2**28


class Grade(Words):
    """How sure it is that somebody changed the database.

    WRONG: no vault leaves a trail like this.
    OPEN: a vault that was killed leaves the same; an auditor compares it with what is known of the process.
    """

    WRONG = "wrong"
    OPEN = "open"


class FindingKind(Words):
    """What was done to the trail or to a record.

    EDITED: an event is not the one that the vault wrote there.
    REMOVED: an event is missing that was there.
    MOVED: an event stands in another place than the vault wrote it in.
    INSERTED: an event or a record is there that the vault did not write.
    TRUNCATED: the end of a stream is missing.
    STREAM_DROPPED: a whole stream is missing.
    REVISION_FELL: an older row of a record was put back: its events state a newer revision, or one revision twice.
    RECORD_REMOVED: a record that events are about is missing.
    UNSIGNED: with a public key: nothing that is signed speaks for the last checkpoint of a stream, or it has none.
    GAP: no event has this number, and no checkpoint commits to it: a process that was killed may not have written it,
        or it was removed since. The one kind of grade OPEN.
    """

    EDITED = "edited"
    REMOVED = "removed"
    MOVED = "moved"
    INSERTED = "inserted"
    TRUNCATED = "truncated"
    STREAM_DROPPED = "stream dropped"
    REVISION_FELL = "revision fell"
    RECORD_REMOVED = "record removed"
    UNSIGNED = "unsigned"
    GAP = "gap"


@boundary_init
@attrs.frozen(kw_only=True)
class AuditFinding:
    """One thing that is wrong.

    Attributes:
        kind: what was done.
        message: the same in words, with what is known of how it was found.
        stream: of the event, hexadecimal.
        number: of the event; last: the number of the last one, where the finding is about several in a row. About a
            record, the revisions that no event tells of; where it fell, how many events tell of the revision, or of
            the record where an older row was put back.
        reference: of the token whose record it is about, hexadecimal.
        revision: of that record.
    """

    kind: FindingKind
    message: str
    stream: str | None = None
    number: int | None = None
    last: int | None = None
    reference: str | None = None
    revision: int | None = None

    @property
    def grade(self) -> Grade:
        """How sure it is that somebody changed the database."""
        return Grade.OPEN if self.kind is FindingKind.GAP else Grade.WRONG


@attrs.frozen
class AnchorEntry:
    """The state of one stream: the root of the Merkle tree over its first `size` events."""

    size: int
    root: bytes


@boundary_init
@attrs.frozen(kw_only=True)
class AuditReport:
    """The outcome of a verification.

    Attributes:
        findings: what is wrong, of grade WRONG, at most 10,000.
        findings_omitted: how many more there were.
        streams, events, records: how many were read.
        checkpoints: how many of the events are checkpoints; with keys, only those with a right MAC.
        signed: how many of these have a right signature.
        covered: events that an authenticated checkpoint commits to. Each of the others is authenticated too if keys
            were given, but only records, other streams and `since` show whether some are missing.
        uncovered: how many others each stream has, by its name in hexadecimal.
        gaps: numbers above the last checkpoint of their stream that no event has. A process that is killed leaves
            such, and one that is at work for the moment.
        purged: events that purges deleted; archived: how many of these the archives hold that were given.
        open_findings: the same as findings of grade OPEN, at most 10,000; runs of numbers are one.
        anchor_entries: for `anchor`, by stream.
        acknowledged: what would be findings, had no operator acknowledged it (`Vault.acknowledge`).
    """

    findings: tuple[AuditFinding, ...]
    findings_omitted: int
    streams: int
    events: int
    records: int
    checkpoints: int
    signed: int
    covered: int
    uncovered: Mapping[str, int] = attrs.field(repr=False)
    gaps: int
    open_findings: tuple[AuditFinding, ...]
    anchor_entries: Mapping[bytes, AnchorEntry] = attrs.field(repr=False)
    acknowledged: tuple[AuditFinding, ...] = ()
    purged: int = 0
    archived: int = 0

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong but what was acknowledged. What `open_findings` names may be there."""
        return not self.findings

    def anchor(self) -> str:
        """The state of every stream as JSON: kept elsewhere, it is `since` of a later verification."""
        return json.dumps({"format": ANCHOR_FORMAT, "streams": _streams(self.anchor_entries)})


def parse_anchor(text: str) -> dict[bytes, AnchorEntry]:
    """Read what `AuditReport.anchor` wrote. Raises InvalidInputError."""
    entries: dict[bytes, AnchorEntry] | None = None
    if isinstance(text, str) and len(text) <= ANCHOR_CHARACTERS_MAX:
        with suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
            entries = _entries(json.loads(text))
    if entries is None:
        raise InvalidInputError("since is an AuditReport, or what its anchor() returned")
    return entries


def _entries(document: Mapping[str, Any]) -> dict[bytes, AnchorEntry] | None:
    """The anchor entries of a document; None, or an error of any kind, where it is no anchor."""
    streams = document["streams"]
    entries = {
        bytes.fromhex(name): AnchorEntry(entry["size"], bytes.fromhex(entry["root"]))
        for name, entry in streams.items()
    }
    fit = all(
        len(name) == STREAM_BYTES
        and type(entry.size) is int
        and 0 <= entry.size <= INTEGER_MAX
        and len(entry.root) == HASH_BYTES
        for name, entry in entries.items()
    )
    as_written = document["format"] == ANCHOR_FORMAT and streams == _streams(entries)
    return entries if fit and as_written else None


def _streams(entries: Mapping[bytes, AnchorEntry]) -> dict[str, dict[str, object]]:
    return {
        name.hex(): {"size": entry.size, "root": entry.root.hex()} for name, entry in sorted(entries.items())
    }


class Findings:
    """The findings of a verification under way."""

    def __init__(self) -> None:
        self.found: list[AuditFinding] = []
        self.open: list[AuditFinding] = []
        self.omitted = 0

    def add(
        self,
        kind: FindingKind,
        message: str,
        stream: bytes | None = None,
        number: int | None = None,
        last: int | None = None,
        *,
        reference: bytes | None = None,
        revision: int | None = None,
    ) -> None:
        """Note a finding, with attributes as in AuditFinding; past FINDINGS_MAX, only count it."""
        found = self.open if kind is FindingKind.GAP else self.found
        if len(found) >= FINDINGS_MAX:
            self.omitted += found is self.found
            return
        finding = AuditFinding(
            kind=kind,
            message=message,
            stream=None if stream is None else stream.hex(),
            number=number,
            last=None if last == number else last,
            reference=None if reference is None else reference.hex(),
            revision=revision,
        )
        found.append(finding)
