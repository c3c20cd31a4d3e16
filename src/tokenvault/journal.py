"""Gives events their place in this vault instance's stream, and their MAC."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from tokenvault.events import STREAM_BYTES, Event, authenticated
from tokenvault.stores.port import SealedEvent


class _Stream:
    """A stream of one process."""

    def __init__(self) -> None:
        self.name = os.urandom(STREAM_BYTES)
        self.pid = os.getpid()
        self.heirs: dict[int, _Stream] = {}  # of forked children, by process id
        self._lock = threading.Lock()
        self._last = 0
        self._free: list[int] = []
        self.doubtful: list[SealedEvent] = []

    def take(self) -> int:
        """The lowest number that no event has."""
        with self._lock:
            if self._free:
                return heapq.heappop(self._free)
            self._last += 1
            return self._last

    def release(self, number: int) -> None:
        """Free the number of an event that was not written."""
        with self._lock:
            heapq.heappush(self._free, number)


class Journal:
    """Streams of events with consecutive numbers. A forked child goes on with a stream of its own."""

    def __init__(self, tag: Callable[[bytes], bytes]) -> None:
        self._tag = tag
        self._stream = _Stream()

    def seal(self, event: Event) -> SealedEvent:
        """Number and authenticate an event. Raises KeyStoreError; the number is then free again."""
        body = event.body()
        stream, pid = self._stream, os.getpid()
        if stream.pid != pid:
            # Several threads of a child may come here at once: setdefault is one step for all of them.
            stream = self._stream = stream.heirs.setdefault(pid, _Stream())
        number = stream.take()
        try:
            mac = self._tag(authenticated(stream.name, number, event.reference, body))
        except BaseException:
            stream.release(number)
            raise
        return SealedEvent(stream.name, number, event.reference, body, mac)

    def withdraw(self, row: SealedEvent) -> None:
        """Free the number of an event that is known not to be written."""
        stream = self._stream
        if stream.name == row.stream:
            stream.release(row.number)

    def doubt(self, row: SealedEvent) -> None:
        """Note that it is not known whether an event was written: `doubts` gives it to who can find out."""
        stream = self._stream
        if stream.name == row.stream:
            stream.doubtful.append(row)

    @property
    def doubtful(self) -> bool:
        """Whether `doubts` has any to give."""
        return bool(self._stream.doubtful)

    def doubts(self) -> list[SealedEvent]:
        """The events noted by `doubt`, each given once."""
        stream = self._stream
        if not stream.doubtful or stream.pid != os.getpid():
            return []
        doubtful = []
        while stream.doubtful:
            with suppress(IndexError):  # another thread took the last one
                doubtful.append(stream.doubtful.pop())
        return doubtful
