"""Verifies one stream: each event by itself, and all of them by what the checkpoints commit to."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from tokenvault.audit.acknowledgement import Acknowledged, Loss
from tokenvault.audit.batch_event import changes_of
from tokenvault.audit.checkpoint import Checkpoint, CrossReference, packed_references, read_references
from tokenvault.audit.event import ACTION, Action, Event
from tokenvault.audit.macs import CheckedEvent
from tokenvault.audit.merkle import Tree
from tokenvault.audit.verify.event_index import IndexAudit
from tokenvault.audit.verify.misplaced import InvalidMac, InvalidMacs
from tokenvault.audit.verify.pages import begins_below_one, pages_about, stream_pages
from tokenvault.audit.verify.report import AnchorEntry, FindingKind, Findings
from tokenvault.audit.verify.revisions import Revisions
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.errors import IntegrityError
from tokenvault.stores.port import SealedEvent, TokenStore


@attrs.frozen
class FoundCheckpoint:
    """A checkpoint as it stands in its stream: some 500 bytes, and 56 for each cross-reference.

    Attributes:
        number, leaf: of its event.
        signed: whether it has a right signature.
        size, root, closes: as in Checkpoint.
        met_planted_rows: whether it counts rows that no vault wrote.
        packed: its cross-references.
    """

    number: int
    leaf: bytes
    signed: bool
    size: int
    root: bytes
    closes: bool
    met_planted_rows: bool
    packed: bytes = attrs.field(repr=False)

    @classmethod
    def of(cls, event: CheckedEvent, checkpoint: Checkpoint, signed: bool) -> FoundCheckpoint:
        """A checkpoint and the event that it stands in."""
        return cls(
            number=event.row.number,
            leaf=event.leaf,
            signed=signed,
            size=checkpoint.size,
            root=checkpoint.root,
            closes=checkpoint.closes,
            met_planted_rows=bool(checkpoint.unauthenticated_rows),
            packed=packed_references(checkpoint.cross_references),
        )

    def cross_references(self) -> Iterator[CrossReference]:
        """Which events of other streams it refers to."""
        return read_references(self.packed)


@attrs.define(eq=False)
class StreamAudit:
    """One stream: first `find_checkpoints`, then `read`.

    Attributes:
        anchor_entry: the state of the stream when it was verified before.
        revisions, invalid_macs, index, acknowledged: collected over all streams, for the checks that follow.
        checkpoints: the authenticated ones by number.
        unauthenticated: other checkpoints by number: without AUDIT keys, those without a right signature.
        vouched: numbers of the checkpoints that signatures speak for.
        events: how many were read; last: the number of the last one.
        gaps: missing numbers that no checkpoint commits to.
        tree: over the events from 1 on up to the first that is missing or wrong.
        whole: so far, no event is missing or wrong.
    """

    store: TokenStore
    stream: bytes
    trusted: TrustedKeys
    findings: Findings
    anchor_entry: AnchorEntry | None = None
    revisions: Revisions = attrs.field(factory=Revisions)
    invalid_macs: InvalidMacs = attrs.field(factory=InvalidMacs)
    index: IndexAudit = attrs.field(factory=IndexAudit)
    acknowledged: Acknowledged = attrs.field(factory=Acknowledged)
    checkpoints: dict[int, FoundCheckpoint] = attrs.field(factory=dict)
    unauthenticated: dict[int, FoundCheckpoint] = attrs.field(factory=dict)
    vouched: set[int] = attrs.field(factory=set)
    events: int = 0
    last: int = 0
    gaps: int = 0
    tree: Tree = attrs.field(factory=Tree)
    whole: bool = True
    _invalid: list[InvalidMac] = attrs.field(factory=list)
    _roots: dict[int, set[bytes]] = attrs.field(factory=dict)
    _uncertain: tuple[Loss, ...] = ()  # without keys: until a root shows that the events are those signed for

    @property
    def committed(self) -> int:
        """The number of events that a checkpoint commits to."""
        return max((each.size for each in self.checkpoints.values()), default=0)

    @property
    def size_before(self) -> int:
        """The number of events that were verified before."""
        return self.anchor_entry.size if self.anchor_entry else 0

    def find_checkpoints(self) -> None:
        """Find the checkpoints. They are read before the events, so all that they commit to is there by then."""
        for page in pages_about(self.store, self.stream):
            own = [row for row in page if row.stream == row.reference == self.stream]
            for event in self.trusted.check(own):
                if event.genuine is not False:
                    self._note_checkpoint(event)

    def _note_checkpoint(self, event: CheckedEvent) -> None:
        row, _, genuine = event
        try:
            checkpoint = Event.parse(row).checkpoint
        except IntegrityError:
            checkpoint = None
        if checkpoint is None:
            return
        signature = self.trusted.signature(row, checkpoint)
        if signature is False:
            self._note(FindingKind.EDITED, "the signature of this checkpoint is wrong", row.number)
            return
        found = self.checkpoints if signature or genuine else self.unauthenticated
        found[row.number] = FoundCheckpoint.of(event, checkpoint, bool(signature))

    def has_checkpoint(self, reference: CrossReference) -> bool:
        """Whether an authenticated checkpoint is the event that another stream refers to."""
        found = self.checkpoints.get(reference.number)
        return found is not None and found.leaf == reference.leaf

    def check_unauthenticated_rows(self) -> None:
        """Note that checkpoints met rows that no vault wrote, unless the verification before has noted it."""
        numbers = [
            each.number
            for each in self.checkpoints.values()
            if each.met_planted_rows and each.number > self.size_before
        ]
        if numbers:
            self._note(
                FindingKind.INSERTED,
                "when this checkpoint was written, the youngest streams had rows that no vault wrote, "
                "so that it refers to fewer streams: they may have been removed since",
                min(numbers),
                max(numbers),
            )

    def read(self) -> None:
        """Read all events, in order of their numbers, and note what is wrong with them."""
        if begins_below_one(self.store, self.stream):
            self._note(FindingKind.INSERTED, "a row of this stream has a number below 1: no event has")
        found = self.checkpoints.values()
        closed_at = min((each.number for each in found if each.closes), default=None)
        for commitment in (*found, self.anchor_entry):
            if commitment is not None and commitment.size:
                self._roots.setdefault(commitment.size, set()).add(commitment.root)
        for page in stream_pages(self.store, self.stream):
            if isinstance(page, int):
                self._advance(page)
                self.whole = False
                self._note(FindingKind.EDITED, "this row has another shape than was written", page)
                continue
            for event in self.trusted.check(page):
                self._read_event(event, closed_at is not None and event.row.number > closed_at)
            self.events += len(page)
        self._end()

    def _read_event(self, event: CheckedEvent, after_end: bool) -> None:
        row, leaf, genuine = event
        self._advance(row.number)
        if genuine is False or after_end:
            self._note_invalid(row, after_end)
            return
        for reference, revision in changes_of(row):
            self.revisions.add(reference, revision)
        self.index.add(row)
        if self.whole:
            self._uncertain += acknowledged_by(row) if genuine is None else ()
            self._append(leaf)
        if genuine:
            self.acknowledged.add(acknowledged_by(row))

    def _advance(self, number: int) -> None:
        """Go on to a number; those in between are missing, unless a killed process may have left them out."""
        first, last = self.last + 1, number - 1
        self.last = number
        if first > last:
            return
        self.whole = False
        committed = max(self.committed, self.size_before)
        if first <= committed:
            self._note(
                FindingKind.REMOVED,
                "a checkpoint commits to this event, which is not there",
                first,
                min(last, committed),
            )
        open_from = max(first, committed + 1)
        if open_from <= last:
            self.gaps += last - open_from + 1
            self._note(
                FindingKind.GAP,
                "no event has this number: a killed process left it out, or the event was removed before a checkpoint"
                " committed to it",
                open_from,
                last,
            )
        self.invalid_macs.note_missing(self.stream, first, last)

    def _note_invalid(self, row: SealedEvent, after_end: bool) -> None:
        """Note an event that is not genuine; past a limit its origin is not looked for."""
        self.whole = False
        self.revisions.explain(row)
        if self.invalid_macs.takes(row, len(self._invalid)):
            self._invalid.append(InvalidMac(row, expected=not after_end))
        else:
            kind = FindingKind.INSERTED if after_end else FindingKind.EDITED
            self._note(kind, "the MAC of this event is wrong", row.number)

    def _append(self, leaf: bytes) -> None:
        """Add an event to the tree, and compare its root where something commits to the events up to here."""
        self.tree = self.tree.with_leaf(leaf)
        size = self.tree.size
        roots = self._roots.get(size)
        if roots is None:
            return
        uncertain, self._uncertain = self._uncertain, ()
        if roots == {self.tree.root()}:
            self.acknowledged.add(uncertain)
            return
        self.whole = False
        before = max((each for each in self._roots if each < size), default=0)
        self._note(
            FindingKind.EDITED,
            "of these events one was edited, removed or inserted: they are not those that a checkpoint, or the "
            "verification before, committed to",
            before + 1,
            size,
        )

    def _end(self) -> None:
        """Note what is missing after the last event."""
        # A stream without anything genuine is not the vault's.
        own = len(self._invalid) < self.events or bool(self.checkpoints) or self.anchor_entry is not None
        self.invalid_macs.found += [each if own else each._replace(expected=False) for each in self._invalid]
        committed = max(self._roots, default=0)
        if self.last < committed:
            self._note(
                FindingKind.TRUNCATED,
                "a checkpoint, or the verification before, commits to more events of this stream",
                self.last + 1,
                committed,
            )
            self.invalid_macs.note_missing(self.stream, self.last + 1, committed)
        self._roots.clear()  # nothing of it is needed for the streams that follow

    def _note(
        self, kind: FindingKind, message: str, number: int | None = None, last: int | None = None
    ) -> None:
        self.findings.add(kind, message, self.stream, number, last)


def acknowledged_by(row: SealedEvent) -> tuple[Loss, ...]:
    """What an event acknowledges."""
    if row.body[ACTION : ACTION + 1] != bytes((Action.ACKNOWLEDGE,)):
        return ()
    try:
        acknowledgement = Event.parse(row).acknowledgement
    except IntegrityError:  # of an event of a batch, that is another byte
        return ()
    return () if acknowledgement is None else acknowledgement.losses
