"""Verifies one stream: each event by itself, and all of them by what the checkpoints commit to."""

from __future__ import annotations

import attrs

from tokenvault.audit.batch_event import changes_of
from tokenvault.audit.checkpoint import Checkpoint
from tokenvault.audit.event import Event
from tokenvault.audit.merkle import Tree
from tokenvault.audit.verify.misplaced import InvalidMac, InvalidMacs
from tokenvault.audit.verify.pages import begins_below_one, reference_pages, stream_pages
from tokenvault.audit.verify.report import AnchorEntry, FindingKind, Findings
from tokenvault.audit.verify.revisions import Revisions
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.errors import IntegrityError
from tokenvault.stores.port import SealedEvent, TokenStore


@attrs.frozen
class FoundCheckpoint:
    """A checkpoint as it stands in its stream; signed: with a right signature."""

    number: int
    leaf: bytes
    signed: bool
    checkpoint: Checkpoint


@attrs.define(eq=False)
class StreamAudit:
    """One stream: first `find_checkpoints`, then `read`.

    Attributes:
        anchor_entry: the state of the stream when it was verified before.
        checkpoints: the authenticated ones by number.
        unauthenticated: other checkpoints by number: without AUDIT keys, those without a right signature.
        events: how many were read; last: the number of the last one.
        gaps: missing numbers that no checkpoint commits to.
        tree: over the events from 1 on up to the first that is missing or wrong.
    """

    store: TokenStore
    stream: bytes
    trusted: TrustedKeys
    findings: Findings
    anchor_entry: AnchorEntry | None = None
    checkpoints: dict[int, FoundCheckpoint] = attrs.field(factory=dict)
    unauthenticated: dict[int, FoundCheckpoint] = attrs.field(factory=dict)
    events: int = 0
    last: int = 0
    gaps: int = 0
    tree: Tree = attrs.field(factory=Tree)

    @property
    def committed(self) -> int:
        """The number of events that a checkpoint commits to."""
        return max((each.checkpoint.size for each in self.checkpoints.values()), default=0)

    @property
    def size_before(self) -> int:
        """The number of events that were verified before."""
        return self.anchor_entry.size if self.anchor_entry else 0

    def find_checkpoints(self) -> None:
        """Find the checkpoints. They are read before the events, so all that they commit to is there by then."""
        for page in reference_pages(self.store, self.stream):
            own = [row for row in page if row.stream == self.stream]
            for row, leaf, genuine in self.trusted.check(own):
                if genuine is not False:
                    self._note_checkpoint(row, leaf, genuine)

    def _note_checkpoint(self, row: SealedEvent, leaf: bytes, genuine: bool | None) -> None:
        try:
            checkpoint = Event.parse(row).checkpoint
        except IntegrityError:
            checkpoint = None
        if checkpoint is None:
            return
        signature = self.trusted.signature(row, checkpoint)
        if signature is False:
            self.findings.add_event(FindingKind.EDITED, "the signature of this checkpoint is wrong", row)
            return
        found = self.checkpoints if signature or genuine else self.unauthenticated
        found[row.number] = FoundCheckpoint(row.number, leaf, bool(signature), checkpoint)

    def check_unauthenticated_rows(self) -> None:
        """Note that checkpoints met rows that no vault wrote, unless the verification before has noted it."""
        numbers = [
            each.number
            for each in self.checkpoints.values()
            if each.checkpoint.unauthenticated_rows and each.number > self.size_before
        ]
        if numbers:
            self.findings.add_stream(
                FindingKind.INSERTED,
                "when this checkpoint was written, the youngest streams had rows that no vault wrote, "
                "so that it refers to fewer streams: they may have been removed since",
                self.stream,
                min(numbers),
                max(numbers),
            )

    def read(self, revisions: Revisions, invalid_macs: InvalidMacs) -> None:
        """Read all events and note what is wrong with them."""
        if begins_below_one(self.store, self.stream):
            self.findings.add_stream(
                FindingKind.INSERTED, "a row of this stream has a number below 1: no event has", self.stream
            )
        reader = _Reader(self, revisions, invalid_macs)
        for page in stream_pages(self.store, self.stream):
            if isinstance(page, int):
                reader.malformed(page)
            else:
                reader.read(page)
        reader.end()


class _Reader:
    """One pass over the events of a stream, in order of their numbers."""

    def __init__(self, audit: StreamAudit, revisions: Revisions, invalid_macs: InvalidMacs) -> None:
        self._audit = audit
        self._revisions = revisions
        self._invalid_macs = invalid_macs
        self._invalid: list[InvalidMac] = []
        self._invalid_max = invalid_macs.room()
        self._expected = 1
        self._whole = True  # so far, no event is missing or wrong
        checkpoints = [each.checkpoint for each in audit.checkpoints.values()]
        self._roots: dict[int, set[bytes]] = {}  # by size, what the tree's root should be
        for commitment in [*checkpoints, *([audit.anchor_entry] if audit.anchor_entry else ())]:
            if commitment.size:
                self._roots.setdefault(commitment.size, set()).add(commitment.root)
        closing = [each.number for each in audit.checkpoints.values() if each.checkpoint.closes]
        self._closed_at = min(closing, default=None)

    def read(self, rows: list[SealedEvent]) -> None:
        """Read the next events."""
        for row, leaf, genuine in self._audit.trusted.check(rows):
            self._advance(row.number)
            after_end = self._closed_at is not None and row.number > self._closed_at
            if genuine is False or after_end:
                self._wrong(row, after_end)
                continue
            for reference, revision in changes_of(row):
                self._revisions.add(reference, revision)
            if self._whole:
                self._append(leaf)
        self._audit.events += len(rows)

    def malformed(self, number: int) -> None:
        """Note a row that the store refuses to return."""
        self._advance(number)
        self._whole = False
        self._audit.findings.add_stream(
            FindingKind.EDITED, "this row has another shape than was written", self._audit.stream, number
        )

    def end(self) -> None:
        """Note what is missing after the last event."""
        audit = self._audit
        audit.last = self._expected - 1
        # A stream without anything genuine is not the vault's.
        own = len(self._invalid) < audit.events or bool(audit.checkpoints) or audit.anchor_entry is not None
        self._invalid_macs.found += [each if own else each._replace(expected=False) for each in self._invalid]
        committed = max(self._roots, default=0)
        if audit.last < committed:
            audit.findings.add_stream(
                FindingKind.TRUNCATED,
                "a checkpoint, or the verification before, commits to more events of this stream",
                audit.stream,
                audit.last + 1,
                committed,
            )
            self._invalid_macs.note_missing(audit.stream, audit.last + 1, committed)

    def _advance(self, number: int) -> None:
        """Go on to a number: those in between are missing, unless a killed process may have left them out."""
        first, last = self._expected, number - 1
        self._expected = number + 1
        if first > last:
            return
        self._whole = False
        audit = self._audit
        committed = max(audit.committed, audit.size_before)
        if first <= committed:
            audit.findings.add_stream(
                FindingKind.REMOVED,
                "a checkpoint commits to this event, which is not there",
                audit.stream,
                first,
                min(last, committed),
            )
        audit.gaps += max(0, last - max(first - 1, committed))
        self._invalid_macs.note_missing(audit.stream, first, last)

    def _wrong(self, row: SealedEvent, after_end: bool) -> None:
        """Note an event that is not genuine; past a limit its origin is not looked for."""
        self._whole = False
        self._revisions.explain(row)
        if len(self._invalid) < self._invalid_max:
            self._invalid.append(InvalidMac(row, expected=not after_end))
        else:
            self._audit.findings.add_event(
                FindingKind.INSERTED if after_end else FindingKind.EDITED,
                "the MAC of this event is wrong",
                row,
            )

    def _append(self, leaf: bytes) -> None:
        """Add an event to the tree, and compare its root where something commits to the events up to here."""
        tree = self._audit.tree
        tree.append(leaf)
        roots = self._roots.get(tree.size)
        if roots is None or roots == {tree.root()}:
            return
        self._whole = False
        before = max((size for size in self._roots if size < tree.size), default=0)
        self._audit.findings.add_stream(
            FindingKind.EDITED,
            "of these events one was edited, removed or inserted: they are not those that a checkpoint, or the "
            "verification before, committed to",
            self._audit.stream,
            before + 1,
            tree.size,
        )
