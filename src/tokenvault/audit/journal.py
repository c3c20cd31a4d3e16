"""Gives events their number in this vault's stream, their MAC, and checkpoints between them.

How an event gets its number: `begin` takes the lowest number that no event has, before the event is written.
Afterwards the caller reports how the write ended:

- `written`: the number is settled; the event's leaf hash goes into the Merkle tree once all numbers before it are
  settled too, and the next checkpoint commits to the events in the tree;
- `withdraw`: nothing was written; the number is free for the next event.

An entry that is `over` and of which neither was reported may have been written or not: `doubts` gives it to the next
caller, which reads the database before it takes a number.

A signal's handler may raise at any instruction, and threads meet here without a lock: there is nothing to wait for,
and nothing that could stay held. Each number above the tree stands in one place at any instant, in an open entry or
among those that are free or settled, and goes from one to the other in one step (see `runtime`).

Nothing here waits for anything but the key store, and only `seal` calls it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from typing import Final

import attrs

from tokenvault.audit.batch_event import BatchEvent
from tokenvault.audit.checkpoint import (
    CROSS_REFERENCES_MAX,
    SIGNATURE_BYTES,
    Checkpoint,
    CheckpointPolicy,
    CrossReference,
    key_id_of,
    signed_message,
)
from tokenvault.audit.event import Action, Event, Outcome, leaf_hash, leaf_of
from tokenvault.audit.macs import AuditKeys
from tokenvault.audit.merkle import Tree
from tokenvault.errors import KeyStoreError
from tokenvault.keys.port import Signer
from tokenvault.runtime import move, move_all
from tokenvault.stores.port import STREAM_BYTES, SealedEvent

_TIME_BYTES: Final = 6
_TIME_MAX: Final = 2 ** (8 * _TIME_BYTES) - 1

_LEAVES_AT_ONCE: Final = 64
"""Leaves added to the tree at once: one by one, between waits for the database, each costs more."""

_REFERENCED_MAX: Final = 16 * CROSS_REFERENCES_MAX
"""Other streams whose last cross-reference is remembered."""

_UNSEALED: Final = b""
"""In place of a leaf hash: of a number whose event is not sealed yet."""


@attrs.define(eq=False)
class _Grown:
    """A tree of the stream, and the one that its next leaf makes: two threads that grow it make the same one."""

    tree: Tree
    following: dict[int, _Grown] = attrs.field(factory=dict)


class _Stream:
    """A stream of one process.

    Attributes:
        name: 16 bytes.
        pid: of the process that writes it.
        successors: by process id, the streams that forked children write instead, and this process after closing.
        numbers: gives those that were never taken.
        open: entries that may hold numbers; each is noted here before it takes one.
        free: numbers that were given back.
        settled: leaf hashes of settled numbers that are not in the tree yet.
        closing: the number of the checkpoint that closes the stream; None while events may be added.
        due_count, due_ms: the next checkpoint is due once so many numbers are settled, or the time is there.
        referenced: by other stream, the number of its event last referred to.
        looked_behind: by other stream, the number of its latest checkpoint when its end was looked for last.
    """

    def __init__(self, name: bytes) -> None:
        self.name: Final = name
        self.pid: Final = os.getpid()
        self.successors: Final[dict[int, _Stream]] = {}
        self.numbers: Final[Iterator[int]] = count(1)
        self.open: Final[dict[Entry, None]] = {}
        self.free: Final[dict[int, bytes]] = {}
        self.settled: Final[dict[int, bytes]] = {}
        self.closing: int | None = None
        self.due_count = 0
        self.due_ms = 0
        self.referenced: dict[bytes, int] = {}
        self.looked_behind: dict[bytes, int] = {}
        self._grown = _Grown(Tree())

    @property
    def count(self) -> int:
        """How many numbers are settled."""
        return self._grown.tree.size + len(self.settled)

    def due(self, time_ms: int) -> bool:
        """Whether a checkpoint is due."""
        return self.count >= self.due_count or time_ms >= self.due_ms

    def take(self, entry: Entry) -> int:
        """Give an entry the lowest number that no event has."""
        while self.free:
            with suppress(ValueError, KeyError):  # another thread took it
                lowest = min(self.free)
                move(lowest, self.free, entry.leaves)
                return lowest
        entry.leaves.update(zip(islice(self.numbers, 1), (_UNSEALED,), strict=True))  # one step
        return next(reversed(entry.leaves))

    def grow(self) -> Tree:
        """The tree, with the leaf of every settled number that has no unsettled one before it."""
        grown = self._grown
        while (following := self._following(grown)) is not None:
            grown = following
            self.settled.pop(grown.tree.size, None)
        # Another thread may be ahead, or behind: either tree leads to those that follow.
        self._grown = grown
        return grown.tree

    def _following(self, grown: _Grown) -> _Grown | None:
        number = grown.tree.size + 1
        leaf = self.settled.get(number)
        if leaf is None:  # or another thread was faster
            return grown.following.get(number)
        return grown.following.setdefault(number, _Grown(grown.tree.with_leaf(leaf)))

    def is_whole_but_for(self, entry: Entry) -> bool:
        """Whether all numbers are in the tree, but for an entry's."""
        return not (self.free or self.settled) and tuple(self.open) == (entry,)


@attrs.define(eq=False)
class Entry:
    """An event on its way into its stream, with the checkpoint that is written before it if one was due.

    Attributes:
        event: None of a checkpoint alone, which closes the stream.
        number: of the event, or of the checkpoint alone.
        checkpoint: what it commits to; `seal` adds the cross-references, unless they are to be repeated.
        checkpoint_number: of the checkpoint.
        leaves: by each number that it holds, the leaf hash, once sealed.
        rows: to be written in one atomic step, once sealed.
        looked_behind: as of its stream, by its own checkpoint.
        repeated: the streams of which its checkpoint refers to events that were referred to before.
        over: whether nobody works on it any more.
    """

    stream: _Stream
    event: Event | BatchEvent | None
    number: int = 0
    checkpoint: Checkpoint | None = None
    checkpoint_number: int = 0
    leaves: dict[int, bytes] = attrs.field(factory=dict)
    rows: tuple[SealedEvent, ...] = ()
    looked_behind: dict[bytes, int] = attrs.field(factory=dict)
    repeated: frozenset[bytes] = frozenset()
    over: bool = False

    @property
    def at_an_edge(self) -> bool:
        """Whether its checkpoint is the first of its stream, or may close it."""
        return self.event is None or self.checkpoint_number == 1


class Journal:
    """Streams of events with consecutive numbers. A forked child goes on with a stream of its own.

    Who works on an entry makes it by `entry`, `closing_entry` or `heir`, none of which takes a number, and sets
    `over` in the end, whatever happens. So a `try` comes before `begin`, `begin_closing` and `take_over`.
    """

    def __init__(self, keys: AuditKeys, policy: CheckpointPolicy | None = None) -> None:
        self.keys: Final = keys
        self._policy = policy or CheckpointPolicy()
        self._stream: _Stream | None = None
        self._first_streams: Final[dict[int, _Stream]] = {}  # by process id

    # Numbers.

    def entry(self, event: Event | BatchEvent) -> Entry:
        """An entry for an event, without a number yet."""
        return Entry(self._current(event.time_ms), event)

    def begin(self, entry: Entry, time_ms: int, *, checkpoint: bool = False) -> Entry:
        """Give an entry of an event its number; with `checkpoint`, after one if that is due."""
        while True:
            stream = entry.stream
            stream.open[entry] = None
            if stream.closing is None:
                break
            # Who closes it sets that first, and then looks for open entries: one of the two sees the other.
            stream.open.pop(entry, None)
            entry.stream = self._current(time_ms)
        if checkpoint and stream.due(time_ms):
            self._begin_checkpoint(entry, time_ms)
        entry.number = stream.take(entry)
        return entry

    def closing_entry(self) -> Entry | None:
        """An entry for a checkpoint alone, without a number yet; None if no event was ever written."""
        stream = self._stream
        if stream is None or stream.pid != os.getpid() or not stream.count or stream.closing is not None:
            return None
        return Entry(stream, None)

    def begin_closing(self, entry: Entry) -> Entry:
        """Give a checkpoint alone its number. It closes the stream if no number is missing."""
        stream = entry.stream
        stream.open[entry] = None
        checkpoint = self._begin_checkpoint(entry, _TIME_MAX)
        entry.number = entry.checkpoint_number
        if entry.number == checkpoint.size + 1:
            stream.closing = entry.number
            if stream.is_whole_but_for(entry):
                entry.checkpoint = attrs.evolve(checkpoint, closes=True)
            else:
                stream.closing = None
        return entry

    def filled_a_gap(self, entry: Entry) -> bool:
        """Whether a checkpoint alone took a number that was given back, so that another one may close the stream."""
        return entry.stream.grow().size > entry.number or bool(entry.stream.free)

    def _begin_checkpoint(self, entry: Entry, time_ms: int) -> Checkpoint:
        stream = entry.stream
        entry.checkpoint_number = stream.take(entry)
        tree = stream.grow()
        entry.checkpoint = checkpoint = Checkpoint(size=tree.size, root=tree.root())
        stream.due_count = stream.count + 1 + self._policy.events  # 1 for the checkpoint itself
        stream.due_ms = time_ms + 1_000 * self._policy.seconds
        return checkpoint

    def _current(self, time_ms: int) -> _Stream:
        stream, pid = self._stream, os.getpid()
        if stream is None or stream.pid != pid or stream.closing is not None:
            # Several threads may come here at once: setdefault is one step for all of them.
            successors = self._first_streams if stream is None else stream.successors
            stream = self._stream = successors.setdefault(pid, _Stream(_new_name(time_ms)))
        return stream

    # Rows.

    def seal(
        self, entry: Entry, time_ms: int, latest_checkpoints: Sequence[SealedEvent] = ()
    ) -> tuple[SealedEvent, ...]:
        """The rows of an entry, each with its MAC. Raises KeyStoreError: withdraw the entry then.

        Its checkpoint gets this time, and refers to the genuine ones of the latest checkpoints of other streams.
        """
        rows: list[SealedEvent] = []
        if entry.checkpoint is not None:
            event = self._checkpoint_event(entry, entry.checkpoint, time_ms, latest_checkpoints)
            rows.append(self._row(entry, entry.checkpoint_number, event))
        if entry.event is not None:
            rows.append(self._row(entry, entry.number, entry.event))
        entry.rows = tuple(rows)
        return entry.rows

    def _row(self, entry: Entry, number: int, event: Event | BatchEvent) -> SealedEvent:
        stream, reference, body = entry.stream.name, event.reference, event.body()
        entry.leaves[number] = leaf = leaf_hash(stream, number, reference, body)
        return SealedEvent(stream, number, reference, body, self.keys.tag(leaf), event.index_rows())

    def _checkpoint_event(
        self, entry: Entry, checkpoint: Checkpoint, time_ms: int, latest_checkpoints: Sequence[SealedEvent]
    ) -> Event:
        """The event of an entry's checkpoint, with cross-references, and signed where there is a signer."""
        stream = entry.stream
        others = [row for row in latest_checkpoints[:CROSS_REFERENCES_MAX] if row.stream != stream.name]
        genuine = self.keys.genuine(others)
        references = tuple(
            CrossReference(row.stream, row.number, leaf_of(row))
            for row in genuine
            if row.number > stream.referenced.get(row.stream, 0) or row.stream in entry.repeated
        )
        complete = attrs.evolve(
            checkpoint, cross_references=references, unauthenticated_rows=len(others) - len(genuine)
        )
        event = Event(
            time_ms=time_ms,
            action=Action.CHECKPOINT,
            outcome=Outcome.DONE,
            reference=stream.name,
            checkpoint=complete,
        )
        signer = self.keys.signer
        # Where the module is away for the moment, the checkpoint stays unsigned: the next signature covers it too.
        with suppress(KeyStoreError):
            signed = event if signer is None else _signed(event, complete, entry.checkpoint_number, signer)
            entry.checkpoint = complete
            return signed
        # Its cross-references are to be repeated: a signature speaks for those of its own checkpoint.
        return event

    # How an entry ended.

    def written(self, entry: Entry) -> None:
        """Note that an entry was written."""
        stream = entry.stream
        move_all(entry.leaves, stream.settled)
        stream.open.pop(entry, None)
        if len(stream.settled) >= _LEAVES_AT_ONCE:
            stream.grow()
        if entry.checkpoint is not None:
            references = {each.stream: each.number for each in entry.checkpoint.cross_references}
            looked_behind = entry.looked_behind
            if len(stream.referenced) + len(references) > _REFERENCED_MAX:
                stream.referenced = references  # the next checkpoints then repeat some cross-references
                stream.looked_behind = looked_behind
            else:
                stream.referenced.update(references)
                stream.looked_behind.update(looked_behind)

    def withdraw(self, entry: Entry, found: Sequence[SealedEvent] = ()) -> None:
        """Free the numbers of an entry that was not written, except those where other events were `found`."""
        stream = entry.stream
        if entry.checkpoint is not None:
            stream.due_count = 0
            if stream.closing == entry.checkpoint_number:
                stream.closing = None
        for row in found:
            if row.number in entry.leaves:
                entry.leaves[row.number] = leaf_of(row)
                move(row.number, entry.leaves, stream.settled)
        move_all(entry.leaves, stream.free)
        stream.open.pop(entry, None)

    def doubts(self) -> list[Entry]:
        """Entries that are over, and of which nobody said how they ended."""
        stream = self._stream
        if stream is None or not stream.open or stream.pid != os.getpid():
            return []
        return [entry for entry in tuple(stream.open) if entry.over]

    def heir(self, entry: Entry) -> Entry:
        """An entry like another, without its numbers yet."""
        return attrs.evolve(entry, leaves={}, over=False)

    def take_over(self, entry: Entry, heir: Entry) -> bool:
        """Give the numbers of an entry that is over to its heir; False where another thread's heir has them."""
        stream = entry.stream
        stream.open[heir] = None
        with suppress(KeyError):
            move_all(entry.leaves, heir.leaves)
        stream.open.pop(entry, None)
        if not heir.leaves:
            stream.open.pop(heir, None)
        return bool(heir.leaves)


def _signed(event: Event, checkpoint: Checkpoint, number: int, signer: Signer) -> Event:
    """The event of a checkpoint with its signature. Raises KeyStoreError."""
    key_id = key_id_of(signer.public_key)
    unsigned = attrs.evolve(checkpoint, key_id=key_id, signature=bytes(SIGNATURE_BYTES))
    body = event._replace(checkpoint=unsigned).body()[:-SIGNATURE_BYTES]
    signature = signer.sign(signed_message(event.reference, number, body))
    return event._replace(checkpoint=attrs.evolve(unsigned, signature=signature))


def _new_name(time_ms: int) -> bytes:
    """16 bytes: time and randomness, so that younger streams have greater names (as UUID version 7 of RFC 9562)."""
    return min(max(time_ms, 0), _TIME_MAX).to_bytes(_TIME_BYTES) + os.urandom(STREAM_BYTES - _TIME_BYTES)
