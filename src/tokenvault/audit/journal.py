"""Gives events their place in this vault instance's stream, their MAC, and checkpoints among them.

A number is taken before its event is written, and no lock is held meanwhile. So the journal keeps account: a number
is *settled* once it is known to be written, and a checkpoint commits to the longest run 1 to n of settled ones.

Nothing here waits for anything but the key store, and `seal` alone asks that.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

import attrs

from tokenvault.audit.batch_event import BatchEvent
from tokenvault.audit.checkpoint import (
    NAMED_MAX,
    SIGNATURE_BYTES,
    Checkpoint,
    CheckpointPolicy,
    Named,
    key_id_of,
    signed,
)
from tokenvault.audit.event import (
    AUTHENTICATED_BYTES,
    STREAM_BYTES,
    Action,
    Event,
    Outcome,
    leaf_hash,
    leaf_of,
)
from tokenvault.audit.merkle import Tree
from tokenvault.errors import KeyStoreError
from tokenvault.keys.port import Signer
from tokenvault.stores.port import SealedEvent

_TIME_BYTES: Final = 6
_LOT: Final = 64
"""How many leaves the tree grows by at once: one by one, between waits for the database, each costs more."""

_TIME_MAX: Final = 2 ** (8 * _TIME_BYTES) - 1


class JournalKeys(Protocol):
    """What a journal needs of the vault's keys."""

    def audit_tag(self, message: bytes) -> bytes:
        """16 bytes, AES-CMAC under the newest AUDIT key."""
        ...

    def genuine(self, rows: Sequence[SealedEvent]) -> list[bool]:
        """Which of these events have a right MAC under any AUDIT key."""
        ...

    def signer(self) -> Signer | None:
        """Signs checkpoints; None where the key store can not."""
        ...


class _Stream:
    """A stream of one process. What changes it holds its lock."""

    def __init__(self) -> None:
        self.name = b""  # with the first event
        self.pid = os.getpid()
        self.heirs: dict[
            int, _Stream
        ] = {}  # by process id: of forked children, and of this one after closing
        self.lock = threading.Lock()
        self.closed = False
        self.last = 0
        self.free: list[int] = []
        self.tree = Tree()
        self.ahead: dict[int, bytes] = {}  # leaf hashes of what is written and not in the tree yet
        self.due_number = 0
        self.due_ms = 0
        self.named: dict[bytes, int] = {}  # the last checkpoint of each other stream that is named already
        self.doubtful: list[Entry] = []

    def take(self) -> int:
        """The lowest number that no event has."""
        if self.free:
            return heapq.heappop(self.free)
        self.last += 1
        return self.last

    def settle(self, number: int, leaf: bytes) -> None:
        """Note that a number is written."""
        self.ahead[number] = leaf
        if len(self.ahead) >= _LOT:
            self.grow()

    def grow(self) -> Tree:
        """The tree with every leaf that has all others before it."""
        tree, ahead = self.tree, self.ahead
        while (leaf := ahead.pop(tree.size + 1, None)) is not None:
            tree.append(leaf)
        return tree


@attrs.frozen
class _Due:
    """A checkpoint on its way: its place, and what it commits to."""

    number: int
    size: int
    root: bytes
    closes: bool


@attrs.define(eq=False)
class Entry:
    """An event on its way into its stream, with the checkpoint that goes before it, if one was due.

    Attributes:
        rows: to be written in one atomic step; there once it is sealed, with the leaf of each number.
    """

    stream: _Stream
    event: Event | BatchEvent | None
    number: int
    due: _Due | None
    rows: tuple[SealedEvent, ...] = ()
    leaves: tuple[tuple[int, bytes], ...] = ()
    named: tuple[Named, ...] = ()

    @property
    def ends(self) -> bool:
        """Whether closing the stream is done: by this checkpoint, or as far as it goes while others still write."""
        return self.due is not None and (self.due.closes or self.number == self.stream.last)


class Journal:
    """Streams of events with consecutive numbers. A forked child goes on with a stream of its own."""

    def __init__(self, keys: JournalKeys, policy: CheckpointPolicy | None = None) -> None:
        self._keys = keys
        self._policy = policy or CheckpointPolicy()
        self._stream = _Stream()

    def due(self, time_ms: int) -> bool:
        """Whether a checkpoint is due."""
        return _due(self._here(), time_ms)

    def begin_at_once(self, event: Event | BatchEvent) -> Entry | None:
        """Give an event its place; None where doubts are to be settled or a checkpoint is due before it."""
        stream = self._here()
        with stream.lock:
            if stream.closed or stream.doubtful or _due(stream, event.time_ms):
                return None
            # It has a name: where none was given yet, a checkpoint is due.
            return Entry(stream, event, stream.take(), None)

    def begin(self, event: Event | BatchEvent, *, checkpoint: bool = False) -> Entry:
        """Give an event its place; with `checkpoint`, behind one, unless another thread was faster with it."""
        while True:
            stream = self._here()
            with stream.lock:
                if not stream.closed:  # by another thread meanwhile
                    return self._begun(stream, event, checkpoint=checkpoint)

    def begin_closing(self) -> Entry | None:
        """A checkpoint alone, which closes the stream if nothing is missing; None where no event was ever written."""
        while True:
            stream = self._here()
            with stream.lock:
                if not stream.closed:
                    return self._closing(stream)

    def _closing(self, stream: _Stream) -> Entry | None:
        if not (stream.tree.size or stream.ahead):
            return None
        due = self._checkpoint(stream, _TIME_MAX)
        if stream.last == due.number == due.size + 1:
            stream.closed = True
            due = attrs.evolve(due, closes=True)
        return Entry(stream, None, due.number, due)

    def _begun(self, stream: _Stream, event: Event | BatchEvent, *, checkpoint: bool) -> Entry:
        due = None
        if not stream.name:
            stream.name = _name(event.time_ms)
        if checkpoint and _due(stream, event.time_ms):  # another thread may have been faster
            due = self._checkpoint(stream, event.time_ms)
        return Entry(stream, event, stream.take(), due)

    def _checkpoint(self, stream: _Stream, time_ms: int) -> _Due:
        number = stream.take()
        stream.due_number = stream.last + self._policy.events
        stream.due_ms = time_ms + 1_000 * self._policy.seconds
        tree = stream.grow()
        return _Due(number, tree.size, tree.root(), closes=False)

    def seal(
        self, entry: Entry, time_ms: int, latest_checkpoints: Sequence[SealedEvent] = ()
    ) -> tuple[SealedEvent, ...]:
        """The rows of an entry, authenticated.

        Args:
            entry: from `begin` or `begin_closing`.
            time_ms: of a checkpoint.
            latest_checkpoints: of other streams, as the store has them; the genuine ones are named.

        Raises:
            KeyStoreError: withdraw the entry then.
        """
        if entry.due is not None:
            entry.named, strangers = self._named(entry.stream, latest_checkpoints)
            self._seal(entry, entry.due.number, self._noted(entry, entry.due, time_ms, strangers))
        if entry.event is not None:
            self._seal(entry, entry.number, entry.event)
        return entry.rows

    def _seal(self, entry: Entry, number: int, event: Event | BatchEvent) -> None:
        stream, reference, body = entry.stream.name, event.reference, event.body()
        leaf = leaf_hash(stream, number, reference, body)
        mac = self._keys.audit_tag(leaf[:AUTHENTICATED_BYTES])
        entry.rows += (SealedEvent(stream, number, reference, body, mac),)
        entry.leaves += ((number, leaf),)

    def _noted(self, entry: Entry, due: _Due, time_ms: int, strangers: int) -> Event:
        checkpoint = Checkpoint(
            size=due.size, root=due.root, closes=due.closes, named=entry.named, strangers=strangers
        )
        event = Event(
            time_ms=time_ms,
            action=Action.CHECKPOINT,
            outcome=Outcome.DONE,
            reference=entry.stream.name,
            checkpoint=checkpoint,
        )
        signer = self._keys.signer()
        if signer is None:
            return event
        # Signed by a module that is away for the moment, or not at all: the next signature covers this one too.
        with suppress(KeyStoreError):
            key_id = key_id_of(signer.public_key)
            empty = attrs.evolve(checkpoint, key_id=key_id, signature=bytes(SIGNATURE_BYTES))
            body = event._replace(checkpoint=empty).body()[:-SIGNATURE_BYTES]
            signature = signer.sign(signed(entry.stream.name, due.number, body))
            return event._replace(checkpoint=attrs.evolve(empty, signature=signature))
        entry.named = ()  # to be named once more: a signature speaks for what its own checkpoint names
        return event

    def _named(
        self, stream: _Stream, latest_checkpoints: Sequence[SealedEvent]
    ) -> tuple[tuple[Named, ...], int]:
        """What a checkpoint names, and how many rows no vault wrote. Of a stream that begins, an event may come."""
        others = [row for row in latest_checkpoints[:NAMED_MAX] if row.stream != stream.name]
        genuine = [row for row, right in zip(others, self._keys.genuine(others), strict=True) if right]
        named = tuple(
            Named(row.stream, row.number, leaf_of(row))
            for row in genuine
            if row.stream == row.reference and row.number > stream.named.get(row.stream, 0)
        )
        return named, len(others) - len(genuine)

    # What became of an entry.

    def written(self, entry: Entry) -> None:
        """Note that an entry was written."""
        stream = entry.stream
        with stream.lock:
            for number, leaf in entry.leaves:
                stream.settle(number, leaf)
            if entry.named:
                if len(stream.named) + len(entry.named) > 16 * NAMED_MAX:
                    stream.named.clear()  # some are named once more then
                stream.named.update((each.stream, each.number) for each in entry.named)

    def withdraw(self, entry: Entry, there: Sequence[SealedEvent] = ()) -> None:
        """Free the numbers of an entry that is known not to be written, but for those of events that are `there`."""
        stream = entry.stream
        numbers = {entry.number}
        with stream.lock:
            if entry.due is not None:
                stream.due_number = 0
                stream.closed = stream.closed and not entry.due.closes
                numbers.add(entry.due.number)
            for row in there:
                numbers.discard(row.number)
                stream.settle(row.number, leaf_of(row))
            for number in numbers:
                heapq.heappush(stream.free, number)

    def genuine(self, rows: Sequence[SealedEvent]) -> list[bool]:
        """Which of these events have a right MAC. Raises KeyStoreError."""
        return self._keys.genuine(rows)

    def doubt(self, entry: Entry) -> None:
        """Note that it is not known whether an entry was written: `doubts` gives it to who can find out."""
        entry.stream.doubtful.append(entry)

    def doubts(self) -> list[Entry]:
        """The entries noted by `doubt`, each given once."""
        stream = self._here()
        doubtful = []
        while stream.doubtful:
            with suppress(IndexError):  # another thread took the last one
                doubtful.append(stream.doubtful.pop())
        return doubtful

    def _here(self) -> _Stream:
        stream, pid = self._stream, os.getpid()
        if stream.pid != pid or stream.closed:
            # Several threads may come here at once: setdefault is one step for all of them.
            stream = self._stream = stream.heirs.setdefault(pid, _Stream())
        return stream


def _due(stream: _Stream, time_ms: int) -> bool:
    return stream.last >= stream.due_number or time_ms >= stream.due_ms


def _name(time_ms: int) -> bytes:
    """16 bytes: time and randomness, so that younger streams have greater names (as UUID version 7 of RFC 9562)."""
    return min(max(time_ms, 0), _TIME_MAX).to_bytes(_TIME_BYTES) + os.urandom(STREAM_BYTES - _TIME_BYTES)
