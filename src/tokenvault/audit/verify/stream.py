"""Verifies one stream: each event by itself, and all of them by what the checkpoints commit to."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from tokenvault.audit.acknowledgement import Acknowledged, Loss
from tokenvault.audit.batch_event import BATCH, changes_of, purged_by
from tokenvault.audit.checkpoint import Checkpoint, CrossReference, packed_references, read_references
from tokenvault.audit.event import ACTION, Action, Event, is_of_purge, leaf_of
from tokenvault.audit.macs import CheckedEvent
from tokenvault.audit.merkle import Tree, subtrees
from tokenvault.audit.purge_note import Changes, Run
from tokenvault.audit.verify.archived import Archives
from tokenvault.audit.verify.event_index import IndexAudit
from tokenvault.audit.verify.misplaced import InvalidMac, InvalidMacs
from tokenvault.audit.verify.pages import begins_below_one, pages_about, stream_pages
from tokenvault.audit.verify.purged import Purged
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
        purged: what purges took out of it.
        archives: where that may be read still.
        revisions, invalid_macs, index, acknowledged, named_by_purges: collected over all streams, for the checks that
            follow.
        checkpoints: the authenticated ones by number.
        unauthenticated: other checkpoints by number: without AUDIT keys, those without a right signature.
        vouched: numbers of the checkpoints that signatures speak for.
        events: how many were read; last: the number of the last one.
        gaps: missing numbers that no checkpoint commits to.
        gone: how many a purge deleted; archived: how many of these the archives hold.
        tree: over the events from 1 on up to the first that is missing or wrong.
        whole: so far, no event is missing or wrong.
    """

    store: TokenStore
    stream: bytes
    trusted: TrustedKeys
    findings: Findings
    purged: Purged
    archives: Archives
    anchor_entry: AnchorEntry | None = None
    revisions: Revisions = attrs.field(factory=Revisions)
    invalid_macs: InvalidMacs = attrs.field(factory=InvalidMacs)
    index: IndexAudit = attrs.field(factory=IndexAudit)
    acknowledged: Acknowledged = attrs.field(factory=Acknowledged)
    named_by_purges: set[bytes] = attrs.field(factory=set)
    checkpoints: dict[int, FoundCheckpoint] = attrs.field(factory=dict)
    unauthenticated: dict[int, FoundCheckpoint] = attrs.field(factory=dict)
    vouched: set[int] = attrs.field(factory=set)
    events: int = 0
    last: int = 0
    gaps: int = 0
    gone: int = 0
    archived: int = 0
    tree: Tree = attrs.field(factory=Tree)
    whole: bool = True
    _invalid: list[InvalidMac] = attrs.field(factory=list)
    _roots: dict[int, set[bytes]] = attrs.field(factory=dict)
    _passed: int = 0  # the last number of the runs that were passed
    _present: list[bytes] = attrs.field(factory=list)  # leaves of events of the last one that are there still
    _is_archived: bool = False  # and whether an archive holds it
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
        self._count(self.purged.look(), again=False)
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
        run = self.purged.at(row.number)
        if run is not None:
            self.index.add(row)
            self._note_present(run, leaf)
            return
        if is_of_purge(row):
            self._read_purge(row, genuine)
        for reference, revision in changes_of(row):
            self.revisions.add(reference, revision)
        self.index.add(row)
        if self.whole:
            self._uncertain += acknowledged_by(row) if genuine is None else ()
            self._append(leaf)
        if genuine:
            self.acknowledged.add(acknowledged_by(row))

    def _read_purge(self, row: SealedEvent, genuine: bool | None) -> None:
        """Note what an event of a purge names: records, or a stream, of which the last checkpoint stayed."""
        for reference, revision in purged_by(row) if genuine else ():
            self.revisions.add_purged(reference, revision)
        if row.reference != BATCH:
            self.named_by_purges.add(row.reference)

    def _advance(self, number: int) -> None:
        """Go on to a number; those in between are gone by a purge, missing, or left out by a killed process."""
        first, self.last = self.last + 1, number
        if not self.purged.covers(first, number - 1):
            self._count(self.purged.look(), again=True)  # a purge may be under way
        for run in self.purged.between(first, number):
            self._note_missing(first, run.first - 1)
            self._pass(run)
            first = max(first, run.last + 1)
        self._note_missing(first, number - 1)

    def is_gone(self, number: int) -> bool:
        """Whether a purge took an event out."""
        if self.purged.at(number) is None:
            self._count(self.purged.look(), again=True)
        return self.purged.at(number) is not None

    def _count(self, changes: list[tuple[Changes, bool]], *, again: bool) -> None:
        """Note the changes of records that events told of which are gone; `again` where some of these were read."""
        for (reference, first, last), known in changes:
            for revision in range(first, last + 1):
                self.revisions.add(reference, revision, again=again or known)

    def _pass(self, run: Run) -> None:
        """Put what is gone into the tree by its hashes, or by what an archive holds of it."""
        if run.last <= self._passed:
            return
        self._passed, self._present = run.last, []
        self.gone += run.size
        self.whole = self.whole and bool(run.roots)
        if self.whole and self.tree.size != run.first - 1:
            self._rebuild(run.first - 1)
        leaves = self.archives.leaves(self.stream, run)
        if leaves and run.roots and subtrees(run.first, leaves) != run.roots:
            message = "an archive holds other events than those that a purge took out here"
            self._note(FindingKind.EDITED, message, run.first, run.last)
            leaves = []
        self.archived += len(leaves)
        self._is_archived = bool(leaves)
        for leaf in leaves if self.whole else ():
            self._append(leaf)
        if self.whole and not leaves:
            self.tree = run.after(self.tree)
            self._compare_root()

    def _rebuild(self, size: int) -> None:
        """Make the tree of so many events anew: some were read before a purge took them out."""
        tree = Tree()
        for item in self.purged.walk():
            if tree.size >= size:
                break
            tree = item.after(tree) if isinstance(item, Run) else tree.with_leaf(leaf_of(item))
        self.tree, self.whole = tree, tree.size == size

    def _note_present(self, run: Run, leaf: bytes) -> None:
        """Note an event that a purge names and that is there still; all of them are what the purge saw."""
        self.gone -= 1
        self.archived -= self._is_archived
        self._present.append(leaf)
        if len(self._present) == run.size and run.roots and subtrees(run.first, self._present) != run.roots:
            message = "of these events one is not what it was when a purge named them"
            self._note(FindingKind.EDITED, message, run.first, run.last)

    def _note_missing(self, first: int, last: int) -> None:
        """Note numbers that are missing, unless a killed process may have left them out."""
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
        self._compare_root()

    def _compare_root(self) -> None:
        """Compare the root of the tree with what commits to as many events."""
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
            self._count(self.purged.look(), again=True)
        if self.last < self.purged.last:
            self._advance(self.purged.last)
        if self.last < committed:
            self._note(
                FindingKind.TRUNCATED,
                "a checkpoint, or the verification before, commits to more events of this stream",
                self.last + 1,
                committed,
            )
            self.invalid_macs.note_missing(self.stream, self.last + 1, committed)
        elif self.purged.last and not (self.checkpoints or self.unauthenticated):
            message = "the last checkpoint of this stream is not there, which every purge leaves"
            self._note(FindingKind.TRUNCATED, message, self.last + 1)
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
