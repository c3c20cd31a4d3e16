"""What purges took out of streams, as far as it is proved: by the MAC of the event that says so, or by a signature.

Without AUDIT keys an event of a purge counts once a checkpoint of its stream, for which a signature speaks, commits
to it. A purge names streams that are older than its own, so that one proof rests on younger streams only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from tokenvault.audit.batch_event import purged_by
from tokenvault.audit.event import Event, is_of_purge, leaf_of
from tokenvault.audit.merkle import Tree
from tokenvault.audit.purge_note import Changes, PurgedRuns, Run
from tokenvault.audit.verify.pages import pages_about, stream_pages
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.errors import IntegrityError
from tokenvault.stores.index_rows import NO_USE, cursor_of
from tokenvault.stores.port import INTEGER_MAX, SealedEvent, TokenStore

Roots: TypeAlias = Callable[[bytes], Mapping[int, bytes]]
"""Gives, of a stream, the root of each size that a checkpoint commits to for which a signature speaks."""


class Purges:
    """What events of purges say, as far as they are genuine."""

    def __init__(self, store: TokenStore, trusted: TrustedKeys, roots: Roots) -> None:
        self._store: Final = store
        self._trusted: Final = trusted
        self._roots: Final = roots
        self._proved: Final[dict[bytes, dict[int, bytes]]] = {}  # by stream and number, the leaf hash

    def of(self, stream: bytes) -> Purged:
        """What purges took out of a stream; nothing of it is read yet."""
        return Purged(self._store, stream, self)

    def genuine(self, rows: Sequence[SealedEvent]) -> list[SealedEvent]:
        """Those of some events of purges that a vault wrote."""
        return [
            row
            for row, leaf, genuine in self._trusted.check(rows)
            if genuine or (genuine is None and self._leaf(row.stream, row.number) == leaf)
        ]

    def record_is_gone(self, reference: bytes, revision: int) -> bool:
        """Whether a purge deleted a record that had this revision, or a later one."""
        for page in pages_about(self._store, reference):
            for row in self.genuine([row for row in page if is_of_purge(row)]):
                if any(name == reference and revision <= last for name, last in purged_by(row)):
                    return True
        return False

    def _leaf(self, stream: bytes, number: int) -> bytes | None:
        proved = self._proved.get(stream, {})
        if number not in proved:  # or it is younger than what was proved
            proved = self._proved[stream] = self._prove(stream)
        return proved.get(number)

    def _prove(self, stream: bytes) -> dict[int, bytes]:
        """The leaf hashes of the events of purges of a stream, by their number."""
        roots, purged = self._roots(stream), self.of(stream)
        purged.look()
        proved: dict[int, bytes] = {}
        waiting: dict[int, bytes] = {}
        tree = Tree()
        for item in purged.walk():
            if isinstance(item, Run):
                tree = item.after(tree)
            else:
                leaf = leaf_of(item)
                tree = tree.with_leaf(leaf)
                if is_of_purge(item):
                    waiting[item.number] = leaf
            root = roots.get(tree.size)
            if root is not None and root != tree.root():
                break
            if root is not None:
                proved |= waiting
                waiting = {}
        return proved


class Purged(PurgedRuns):
    """What purges took out of one stream."""

    def __init__(self, store: TokenStore, stream: bytes, purges: Purges) -> None:
        super().__init__()
        self._store: Final = store
        self._stream: Final = stream
        self._purges: Final = purges
        self._known: Final[set[tuple[bytes, int]]] = set()

    def look(self) -> list[tuple[Changes, bool]]:
        """Read the events of purges that are not known yet.

        Returns the changes of records that these tell of, and whether events before told of some of them too.
        """
        changes: list[tuple[Changes, bool]] = []
        behind_its_own = cursor_of(NO_USE, self._stream, INTEGER_MAX)
        for page in pages_about(self._store, self._stream, behind_its_own):
            new = [row for row in page if row[:2] not in self._known and row.reference == self._stream]
            for row in self._purges.genuine([row for row in new if is_of_purge(row)]):
                with suppress(IntegrityError):
                    note = Event.parse(row).purge
                    self._known.add(row[:2])
                    if note is not None and (count := self.add(note)):
                        changes += [(each, count < note.events) for each in note.changes]
        return changes

    def walk(self) -> Iterator[Run | SealedEvent]:
        """The stream from its begin to the first gap: its events, and in place of those in a run, the run."""
        following = 1
        for page in stream_pages(self._store, self._stream):
            for row in [] if isinstance(page, int) else page:
                runs = [run for run in self.between(following, row.number) if run.first >= following]
                for run in runs:
                    if run.first != following or not run.roots:
                        return
                    yield run
                    following = run.last + 1
                if row.number == following:
                    yield row
                    following += 1
                elif row.number > following:
                    return
            if isinstance(page, int):
                return
        while (run_at := self.at(following)) is not None and run_at.roots:
            yield run_at
            following = run_at.last + 1
