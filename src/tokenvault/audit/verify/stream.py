"""Verifying one stream: each event for itself, and all of them by what the checkpoints commit to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from tokenvault.audit.batch_event import changes_of
from tokenvault.audit.checkpoint import Named
from tokenvault.audit.event import Event, leaf_of
from tokenvault.audit.merkle import Tree
from tokenvault.audit.verify.pages import about_pages, begins_below_one, stream_pages
from tokenvault.audit.verify.report import FindingKind, Findings, Pin
from tokenvault.audit.verify.revisions import Revisions
from tokenvault.audit.verify.trusted_keys import Proof
from tokenvault.errors import IntegrityError
from tokenvault.stores.port import SealedEvent, TokenStore

SUSPECTS_MAX: Final = 100
"""Events of a stream with a wrong MAC of which it is looked into where they come from; and numbers missing."""

SUSPECTS_OF_ALL_STREAMS_MAX: Final = 300
"""Each is tried in the places of all others."""


@attrs.frozen
class Mark:
    """A checkpoint that is authenticated."""

    number: int
    leaf: bytes
    size: int
    root: bytes
    closes: bool
    signed: bool
    named: tuple[Named, ...]
    strangers: int


@attrs.define(eq=False)
class Suspects:
    """Events with a wrong MAC, and places where one is missing."""

    rows: list[tuple[SealedEvent, bool]] = attrs.field(factory=list)  # and whether one may be there
    missing: list[tuple[bytes, int, int]] = attrs.field(factory=list)


@attrs.define(eq=False)
class StreamAudit:
    """One stream; `mark`, then `read`.

    Attributes:
        pin: what it was when it was verified before.
        marks: its checkpoints by number; unproved: those that nothing authenticates, as without keys unsigned ones.
        events: how many were read; last: the number of the last one.
        tree: over the events from 1 on up to the first that is missing or wrong.
    """

    store: TokenStore
    stream: bytes
    proof: Proof
    findings: Findings
    pin: Pin | None = None
    marks: dict[int, Mark] = attrs.field(factory=dict)
    unproved: dict[int, Mark] = attrs.field(factory=dict)
    events: int = 0
    last: int = 0
    gaps: int = 0
    tree: Tree = attrs.field(factory=Tree)

    @property
    def committed(self) -> int:
        """So many events a checkpoint commits to."""
        return max((mark.size for mark in self.marks.values()), default=0)

    def mark(self) -> None:
        """Find the checkpoints. They come first: all that they commit to is then there to be read afterwards."""
        for page in about_pages(self.store, self.stream):
            own = [row for row in page if row.stream == self.stream]
            leaves = [leaf_of(row) for row in own]
            for row, leaf, genuine in zip(own, leaves, self.proof.genuine(own, leaves), strict=True):
                if genuine is not False:
                    self._mark(row, leaf, genuine)

    def _mark(self, row: SealedEvent, leaf: bytes, genuine: bool | None) -> None:
        try:
            checkpoint = Event.parse(row).checkpoint
        except IntegrityError:
            checkpoint = None
        if checkpoint is None:
            return
        signature = self.proof.signature(row, checkpoint)
        if signature is False:
            self.findings.add_event(FindingKind.EDITED, "the signature of this checkpoint is wrong", row)
        else:
            marks = self.marks if signature or genuine else self.unproved
            marks[row.number] = Mark(
                row.number,
                leaf,
                checkpoint.size,
                checkpoint.root,
                checkpoint.closes,
                bool(signature),
                checkpoint.named,
                checkpoint.strangers,
            )

    def read(self, revisions: Revisions, suspects: Suspects) -> None:
        """Read all events and note what is wrong with them."""
        if begins_below_one(self.store, self.stream):
            self.findings.add(
                FindingKind.INSERTED,
                "a row of this stream has a number below 1: no event has",
                stream=self.stream,
            )
        pin, expected, whole = self.pin, 1, True
        roots: dict[int, list[bytes]] = {}
        for mark in self.marks.values():
            roots.setdefault(mark.size, []).append(mark.root)
        if pin is not None:
            roots.setdefault(pin.size, []).append(pin.root)
        roots.pop(0, None)
        closed = min((mark.number for mark in self.marks.values() if mark.closes), default=None)
        tree, stream, findings = self.tree, self.stream, self.findings
        wrong: list[tuple[SealedEvent, bool]] = []
        wrong_max = min(SUSPECTS_MAX, SUSPECTS_OF_ALL_STREAMS_MAX - len(suspects.rows))
        for page in stream_pages(self.store, stream):
            if isinstance(page, int):
                self._missing(expected, page - 1, suspects)
                whole = False
                findings.add(
                    FindingKind.EDITED,
                    "this row has another shape than was written",
                    stream=stream,
                    number=page,
                )
                expected = page + 1
                continue
            leaves = [leaf_of(row) for row in page]
            for row, leaf, genuine in zip(page, leaves, self.proof.genuine(page, leaves), strict=True):
                number = row.number
                if number != expected:
                    self._missing(expected, number - 1, suspects)
                    whole = False
                expected = number + 1
                beyond = closed is not None and number > closed
                if genuine is False or beyond:
                    if len(wrong) < wrong_max:
                        wrong.append((row, not beyond))
                    else:
                        findings.add_event(
                            FindingKind.INSERTED if beyond else FindingKind.EDITED,
                            "the MAC of this event is wrong",
                            row,
                        )
                    revisions.explain(row)
                    whole = False
                    continue
                for reference, change in changes_of(row):
                    revisions.add(reference, change)
                if whole:
                    tree.append(leaf)
                    if tree.size in roots:
                        whole = self._matches(roots, tree)
            self.events += len(page)
        self.last = expected - 1
        # A stream of which nothing is genuine is not the vault's.
        own = len(wrong) < self.events or bool(self.marks) or pin is not None
        suspects.rows += [(row, there and own) for row, there in wrong]
        self._end(roots, suspects)

    def check_strangers(self) -> None:
        """Note that checkpoints met rows that no vault wrote, but for what the verification before has told."""
        before = self.pin.size if self.pin else 0
        met = sorted(mark.number for mark in self.marks.values() if mark.strangers and mark.number > before)
        if met:
            self.findings.add(
                FindingKind.INSERTED,
                "when this checkpoint was written, there were rows among the youngest streams that no vault wrote, "
                "and that kept it from naming what they stood for: they may have been taken back since",
                stream=self.stream,
                number=met[0],
                last=met[-1],
            )

    def _matches(self, roots: dict[int, list[bytes]], tree: Tree) -> bool:
        """Whether the events up to here are those that were committed to."""
        root = tree.root()
        if all(each == root for each in roots[tree.size]):
            return True
        before = max((size for size in roots if size < tree.size), default=0)
        self.findings.add(
            FindingKind.EDITED,
            "of these events one was edited, removed or inserted: they are not those that a checkpoint, or the "
            "verification before, committed to",
            stream=self.stream,
            number=before + 1,
            last=tree.size,
        )
        return False

    def _missing(self, first: int, last: int, suspects: Suspects) -> None:
        """Note that the numbers from first to last are missing, unless a killed process may have left them out."""
        there = max(self.committed, self.pin.size if self.pin else 0)
        if first <= min(last, there):
            end = min(last, there)
            self.findings.add(
                FindingKind.REMOVED,
                "a checkpoint commits to this event, which is not there",
                stream=self.stream,
                number=first,
                last=end,
            )
        self.gaps += max(0, last - max(first - 1, there))
        if first <= last and len(suspects.missing) < SUSPECTS_MAX:
            suspects.missing.append((self.stream, first, last))

    def _end(self, roots: Iterable[int], suspects: Suspects) -> None:
        there = max(roots, default=0)
        if self.last < there:
            self.findings.add(
                FindingKind.TRUNCATED,
                "a checkpoint, or the verification before, commits to more events of this stream",
                stream=self.stream,
                number=self.last + 1,
                last=there,
            )
            if len(suspects.missing) < SUSPECTS_MAX:
                suspects.missing.append((self.stream, self.last + 1, there))
