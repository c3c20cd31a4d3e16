"""Gives events their place in this vault instance's stream, and their MAC."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable

from tokenvault.events import STREAM_BYTES, Event, authenticated
from tokenvault.stores.port import SealedEvent


class _Stream:
    """What is known of one stream in the process that writes it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.name = os.urandom(STREAM_BYTES)
        self.lock = threading.Lock()
        self.last = 0
        self.free: list[int] = []
        self.doubtful: list[SealedEvent] = []
        self.heirs: dict[int, _Stream] = {}


class Journal:
    """One stream of events with consecutive numbers. A forked child goes on with a stream of its own."""

    def __init__(self, tag: Callable[[bytes], bytes]) -> None:
        self._tag = tag
        self._current = _Stream(os.getpid())

    def seal(self, event: Event) -> SealedEvent:
        """Number and authenticate an event. Raises KeyStoreError; the number is then free again."""
        stream, number = self._take()
        body = event.body()
        try:
            mac = self._tag(authenticated(stream, number, event.reference, body))
        except BaseException:
            self._release(stream, number)
            raise
        return SealedEvent(stream, number, event.reference, body, mac)

    def withdraw(self, row: SealedEvent) -> None:
        """Free the number of an event that is known not to be written."""
        self._release(row.stream, row.number)

    def doubt(self, row: SealedEvent) -> None:
        """Note that it is not known whether an event was written: `doubts` gives it to who can find out."""
        here = self._here()
        if row.stream == here.name:
            with here.lock:
                here.doubtful.append(row)

    def doubts(self) -> list[SealedEvent]:
        """The events noted by `doubt`, each given once."""
        here = self._here()
        if not here.doubtful:
            return []
        with here.lock:
            doubtful, here.doubtful = here.doubtful, []
        return doubtful

    def _release(self, stream: bytes, number: int) -> None:
        here = self._here()
        if stream == here.name:
            with here.lock:
                heapq.heappush(here.free, number)

    def _take(self) -> tuple[bytes, int]:
        here = self._here()
        with here.lock:
            if here.free:
                return here.name, heapq.heappop(here.free)
            here.last += 1
            return here.name, here.last

    def _here(self) -> _Stream:
        current, pid = self._current, os.getpid()
        if current.pid != pid:
            # In a forked child. A new lock too: a thread of the parent may have held the other. Several threads
            # may come here at once; setdefault is one step for all of them.
            current = self._current = current.heirs.setdefault(pid, _Stream(pid))
        return current
