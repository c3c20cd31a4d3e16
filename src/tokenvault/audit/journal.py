"""Gives events their number in this vault's stream, their MAC, and checkpoints between them.

How an event gets its number: `begin` takes the lowest number that no event has, under the stream's lock, before the
event is written. No lock is held during the write. Afterwards the caller reports how the write ended:

- `written`: the number is settled; the event's leaf hash goes into the Merkle tree once all numbers before it are
  settled too, and the next checkpoint commits to the events in the tree;
- `withdraw`: nothing was written; the number is free for the next event;
- `doubt`: unknown; `doubts` hands the entry to the caller, which reads the database before it takes the next number.

Nothing here waits for anything but the key store, and only `seal` calls it.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
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
from tokenvault.stores.port import STREAM_BYTES, SealedEvent

_TIME_BYTES: Final = 6
_TIME_MAX: Final = 2 ** (8 * _TIME_BYTES) - 1

_LEAVES_AT_ONCE: Final = 64
"""Leaves added to the tree at once: one by one, between waits for the database, each costs more."""

_REFERENCED_MAX: Final = 16 * CROSS_REFERENCES_MAX
"""Other streams whose last cross-reference is remembered."""


class _Stream:
    """A stream of one process. It is changed under its lock only.

    Attributes:
        name: 16 bytes; empty before the first event.
        pid: of the process that writes it.
        successors: by process id, the streams that forked children write instead, and this process after closing.
        last: the highest number taken; free: lower ones that were given back.
        tree: over the settled events 1 to n.
        settled: leaf hashes of settled numbers that are not in the tree yet.
        due_number, due_ms: the next checkpoint is due once `last` or the time is there.
        referenced: by other stream, the number of its checkpoint last referred to.
        doubtful: entries of which it is not known whether they were written.
    """

    def __init__(self) -> None:
        self.name = b""
        self.pid = os.getpid()
        self.successors: dict[int, _Stream] = {}
        self.lock = threading.Lock()
        self.closed = False
        self.last = 0
        self.free: list[int] = []
        self.tree = Tree()
        self.settled: dict[int, bytes] = {}
        self.due_number = 0
        self.due_ms = 0
        self.referenced: dict[bytes, int] = {}
        self.doubtful: list[Entry] = []

    def due(self, time_ms: int) -> bool:
        """Whether a checkpoint is due."""
        return self.last >= self.due_number or time_ms >= self.due_ms

    def take(self) -> int:
        """The lowest number that no event has."""
        if self.free:
            return heapq.heappop(self.free)
        self.last += 1
        return self.last

    def settle(self, number: int, leaf: bytes) -> None:
        """Note that the event of a number is written."""
        self.settled[number] = leaf
        if len(self.settled) >= _LEAVES_AT_ONCE:
            self.grow()

    def grow(self) -> Tree:
        """The tree, with the leaf of every settled number that has no unsettled one before it."""
        while (leaf := self.settled.pop(self.tree.size + 1, None)) is not None:
            self.tree.append(leaf)
        return self.tree


@attrs.define(eq=False)
class Entry:
    """An event on its way into its stream, with the checkpoint that is written before it if one was due.

    Attributes:
        event: None of a checkpoint alone, which closes the stream.
        number: of the event, or of the checkpoint alone.
        checkpoint: what it commits to; `seal` adds the cross-references, unless they are to be repeated.
        checkpoint_number: of the checkpoint.
        rows: to be written in one atomic step; `seal` makes them, with the leaf hash of each number.
    """

    stream: _Stream
    event: Event | BatchEvent | None
    number: int = 0
    checkpoint: Checkpoint | None = None
    checkpoint_number: int = 0
    rows: tuple[SealedEvent, ...] = ()
    leaves: dict[int, bytes] = attrs.field(factory=dict)


class Journal:
    """Streams of events with consecutive numbers. A forked child goes on with a stream of its own."""

    def __init__(self, keys: AuditKeys, policy: CheckpointPolicy | None = None) -> None:
        self.keys: Final = keys
        self._policy = policy or CheckpointPolicy()
        self._stream = _Stream()

    # Numbers.

    def begin(self, event: Event | BatchEvent, *, checkpoint: bool = False) -> Entry:
        """Give an event its number; with `checkpoint`, after one if that is due."""
        while True:
            stream = self._current()
            with stream.lock:
                if stream.closed:  # by another thread meanwhile
                    continue
                if not stream.name:
                    stream.name = _new_name(event.time_ms)
                entry = Entry(stream, event)
                if checkpoint and stream.due(event.time_ms):
                    self._begin_checkpoint(entry, event.time_ms)
                entry.number = stream.take()
                return entry

    def begin_closing(self) -> Entry | None:
        """A checkpoint alone, which closes the stream if no number is missing; None if no event was ever written."""
        while True:
            stream = self._current()
            with stream.lock:
                if stream.closed:
                    continue
                if not (stream.tree.size or stream.settled):
                    return None
                entry = Entry(stream, None)
                checkpoint = self._begin_checkpoint(entry, _TIME_MAX)
                entry.number = entry.checkpoint_number
                if stream.last == entry.number == checkpoint.size + 1:
                    stream.closed = True
                    entry.checkpoint = attrs.evolve(checkpoint, closes=True)
                return entry

    def _begin_checkpoint(self, entry: Entry, time_ms: int) -> Checkpoint:
        stream = entry.stream
        entry.checkpoint_number = stream.take()
        stream.due_number = stream.last + self._policy.events
        stream.due_ms = time_ms + 1_000 * self._policy.seconds
        tree = stream.grow()
        entry.checkpoint = checkpoint = Checkpoint(size=tree.size, root=tree.root())
        return checkpoint

    def _current(self) -> _Stream:
        stream, pid = self._stream, os.getpid()
        if stream.pid != pid or stream.closed:
            # Several threads may come here at once: setdefault is one step for all of them.
            stream = self._stream = stream.successors.setdefault(pid, _Stream())
        return stream

    # Rows.

    def seal(
        self, entry: Entry, time_ms: int, latest_checkpoints: Sequence[SealedEvent] = ()
    ) -> tuple[SealedEvent, ...]:
        """The rows of an entry, each with its MAC. Raises KeyStoreError: withdraw the entry then.

        Its checkpoint gets this time, and refers to the genuine ones of the latest checkpoints of other streams.
        """
        if entry.checkpoint is not None:
            event = self._checkpoint_event(entry, entry.checkpoint, time_ms, latest_checkpoints)
            self._add_row(entry, entry.checkpoint_number, event)
        if entry.event is not None:
            self._add_row(entry, entry.number, entry.event)
        return entry.rows

    def _add_row(self, entry: Entry, number: int, event: Event | BatchEvent) -> None:
        stream, reference, body = entry.stream.name, event.reference, event.body()
        entry.leaves[number] = leaf = leaf_hash(stream, number, reference, body)
        entry.rows += (SealedEvent(stream, number, reference, body, self.keys.tag(leaf), event.index_rows()),)

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
            if row.reference == row.stream  # of a stream that has no checkpoint yet, another event may come
            and row.number > stream.referenced.get(row.stream, 0)
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
        with stream.lock:
            for number, leaf in entry.leaves.items():
                stream.settle(number, leaf)
            references = entry.checkpoint.cross_references if entry.checkpoint else ()
            if len(stream.referenced) + len(references) > _REFERENCED_MAX:
                stream.referenced.clear()  # the next checkpoints then repeat some cross-references
            stream.referenced.update((each.stream, each.number) for each in references)

    def withdraw(self, entry: Entry, found: Sequence[SealedEvent] = ()) -> None:
        """Free the numbers of an entry that was not written, except those where other events were `found`."""
        stream = entry.stream
        numbers = {entry.number}
        with stream.lock:
            if entry.checkpoint is not None:
                stream.due_number = 0
                stream.closed = stream.closed and not entry.checkpoint.closes
                numbers.add(entry.checkpoint_number)
            for row in found:
                numbers.discard(row.number)
                stream.settle(row.number, leaf_of(row))
            for number in numbers:
                heapq.heappush(stream.free, number)

    def doubt(self, entry: Entry) -> None:
        """Note that it is not known whether an entry was written."""
        entry.stream.doubtful.append(entry)

    def doubts(self) -> list[Entry]:
        """The entries noted by `doubt`, each handed out once."""
        stream = self._current()
        doubtful = []
        while stream.doubtful:
            with suppress(IndexError):  # another thread took the last one
                doubtful.append(stream.doubtful.pop())
        return doubtful


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
