"""What a purge took out of a stream: which events, what they hash to, and which changes of records they told of.

Layout of the payload of an event of action PURGE_EVENTS, which follows its body, big endian. Its reference is the
stream:

    4   number of runs, 1 or more; each, ascending and without overlap:
        8   first number, 8 last number
        ..  the roots of the complete subtrees that the leaves of these events make up in the Merkle tree of their
            stream, from left to right, 32 bytes each (`merkle.levels`)
    ..  to the end, the changes of records; each, ascending by reference and revision:
        16  reference of the record
        8   first revision, 8 last revision that these events told of

So the roots of checkpoints are found without the events, and no revision of a record is missing where its event is
gone. The event is written before what it names is deleted: what stands in a run may be there still.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from tokenvault.audit.merkle import HASH_BYTES, Tree, levels, subtrees

_COUNT: Final = struct.Struct(">I")
_RUN: Final = struct.Struct(">QQ")
_CHANGE: Final = struct.Struct(">16sQQ")
CHANGE_BYTES: Final = _CHANGE.size
EVENT_BYTES_MAX: Final = _RUN.size + HASH_BYTES
"""What an event takes in a note, but for its changes: that of a run of its own."""


class Run(NamedTuple):
    """Events that are gone, first to last, and the roots of the subtrees that their leaves make up."""

    first: int
    last: int
    roots: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """How many events."""
        return self.last - self.first + 1

    def after(self, tree: Tree) -> Tree:
        """A tree of the events before these, with these."""
        for node, level in zip(self.roots, levels(self.first, self.last), strict=True):
            tree = tree.with_subtree(node, level)
        return tree


class Changes(NamedTuple):
    """Revisions of one record, first to last."""

    reference: bytes
    first: int
    last: int


class PurgeNote(NamedTuple):
    """What one event of a purge names."""

    runs: tuple[Run, ...]
    changes: tuple[Changes, ...] = ()

    @property
    def events(self) -> int:
        """How many events."""
        return sum(run.size for run in self.runs)

    @classmethod
    def of(cls, leaves: Sequence[tuple[int, bytes]], changes: Iterable[tuple[bytes, int]]) -> PurgeNote:
        """Of events by number, ascending, with their leaf hashes, and the revisions that they tell of."""
        grouped = groupby(enumerate(leaves), key=lambda each: each[1][0] - each[0])
        runs = [[pair for _, pair in group] for _, group in grouped]
        return cls(
            tuple(
                [Run(run[0][0], run[-1][0], subtrees(run[0][0], [leaf for _, leaf in run])) for run in runs]
            ),
            tuple(_joined(sorted(changes))),
        )

    def payload(self) -> bytes:
        """The canonical encoding."""
        parts = [_COUNT.pack(len(self.runs))]
        for first, last, roots in self.runs:
            parts += [_RUN.pack(first, last), *roots]
        parts += [_CHANGE.pack(*each) for each in self.changes]
        return b"".join(parts)

    @classmethod
    def parse(cls, payload: bytes) -> PurgeNote:
        """Read a payload. Raises struct.error or ValueError; the caller compares the encoding."""
        (count,), at = _COUNT.unpack_from(payload), _COUNT.size
        runs, before = [], 0
        for _ in range(count):
            first, last = _RUN.unpack_from(payload, at)
            if not before < first <= last < 2**63:
                raise ValueError(first)
            at += _RUN.size
            end = at + HASH_BYTES * sum(1 for _ in levels(first, last))
            if end > len(payload):
                raise ValueError(end)
            hashes = payload[at:end]
            runs.append(
                Run(
                    first,
                    last,
                    tuple([hashes[n : n + HASH_BYTES] for n in range(0, len(hashes), HASH_BYTES)]),
                )
            )
            at, before = end, last
        changes = tuple([Changes(*values) for values in _CHANGE.iter_unpack(payload[at:])])
        if not runs or any(each.first > each.last for each in changes) or list(changes) != sorted(changes):
            raise ValueError(count)
        return cls(tuple(runs), changes)


class PurgedRuns:
    """What purges took out of one stream, by the notes of their events.

    Each is counted once: after a kill it is written again. Two purges at once may name the same events in runs that
    overlap: what is new in the second stands without roots then, as a part of a subtree has none.
    """

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def add(self, note: PurgeNote) -> int:
        """Note what an event of a purge names. Returns how many numbers are new."""
        parts = [part for run in note.runs for part in self._new_parts(run)]
        for part in parts:
            bisect.insort(self._runs, part)
        return sum(part.size for part in parts)

    def _new_parts(self, run: Run) -> list[Run]:
        first, parts = run.first, list[Run]()
        for known in self.between(run.first, run.last):
            if first < known.first:
                parts.append(Run(first, known.first - 1, ()))
            first = max(first, known.last + 1)
        if first == run.first:
            return [run]
        return [*parts, Run(first, run.last, ())] if first <= run.last else parts

    @property
    def last(self) -> int:
        """The greatest number that is gone."""
        return self._runs[-1].last if self._runs else 0

    def at(self, number: int) -> Run | None:
        """The run that a number is of."""
        place = bisect.bisect(self._runs, number, key=lambda run: run.first) - 1
        return self._runs[place] if place >= 0 and number <= self._runs[place].last else None

    def between(self, first: int, last: int) -> Iterator[Run]:
        """The runs that any number from first to last is of."""
        place = bisect.bisect_left(self._runs, first, key=lambda run: run.last)
        while place < len(self._runs) and self._runs[place].first <= last:
            yield self._runs[place]
            place += 1

    def covers(self, first: int, last: int) -> bool:
        """Whether all numbers from first to last are of runs."""
        while first <= last:
            run = self.at(first)
            if run is None:
                return False
            first = run.last + 1
        return True


def _joined(changes: Iterable[tuple[bytes, int]]) -> list[Changes]:
    """Revisions in runs. One that two events tell of stands twice."""
    joined: list[Changes] = []
    for reference, revision in changes:
        if joined and joined[-1].reference == reference and joined[-1].last + 1 == revision:
            joined[-1] = joined[-1]._replace(last=revision)
        else:
            joined.append(Changes(reference, revision, revision))
    return joined
