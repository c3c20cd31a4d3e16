"""Gives events their place in this vault instance's stream, and their MAC."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable

from tokenvault.events import STREAM_BYTES, Event, authenticated
from tokenvault.stores.port import SealedEvent


class Journal:
    """One stream of events with consecutive numbers. A forked child goes on with a stream of its own."""

    def __init__(self, tag: Callable[[bytes], bytes]) -> None:
        self._tag = tag
        self._begin()

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

    def _release(self, stream: bytes, number: int) -> None:
        if os.getpid() == self._pid and stream == self._stream:
            with self._lock:
                heapq.heappush(self._free, number)

    def _take(self) -> tuple[bytes, int]:
        if os.getpid() != self._pid:
            self._begin()  # the lock too: a thread of the parent may have held it
        with self._lock:
            if self._free:
                return self._stream, heapq.heappop(self._free)
            self._last += 1
            return self._stream, self._last

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._stream = os.urandom(STREAM_BYTES)
        self._last = 0
        self._free: list[int] = []
        self._pid = os.getpid()
