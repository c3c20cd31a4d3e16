"""The connections of one process to one SQLite file, and the lock of its writers.

Rules, all of them SQLite's or its file locks':
- a connection is used by one thread at a time, and by no process but the one that opened it;
- none is open while the process forks (see `forks`): the pool closes them before and opens others after;
- threads check connections out, so those of threads that end are not lost.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from tokenvault.errors import TokenStoreError
from tokenvault.stores.guard import CLOSED
from tokenvault.stores.sqlite.file import Connection

CONNECTIONS_MAX: Final = 16
"""Per process. More threads than this wait for one another; SQLite's reads are short."""

_STALLED: Final = "no database connection came free in time; the process reads and writes more than it can"


class Pool:
    """The connections of one process.

    Attributes:
        write_lock: held by the thread that writes; SQLite has one writer at a time.
    """

    def __init__(self, open_connection: Callable[[], Connection], wait_seconds_max: float) -> None:
        self.pid: Final = os.getpid()
        self.write_lock: Final = threading.Lock()
        self._open = open_connection
        self._wait_seconds_max = wait_seconds_max
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._idle: list[Connection] = []  # the last one given back goes first: its page cache is warm
        self._open_count = 0
        self._waiting = 0  # threads, for a change
        self._holding = False
        self._closed = False

    def take(self, open_other: Callable[[], Connection] | None = None) -> Connection:
        """A connection for this thread alone; give it back, or discard it after an error.

        Args:
            open_other: opens one that is not like the pool's, and is to be discarded after use.
        """
        with self._lock:
            if not self._idle:  # as always while the pool is closed or on hold
                self._wait(self._can_take, self._wait_seconds_max)
                if not self._can_take():
                    raise TokenStoreError(_STALLED, code="STORE_POOL_EXHAUSTED")
                if self._closed:
                    raise TokenStoreError(CLOSED, code="STORE_CLOSED")
            idle = self._idle.pop() if self._idle else None
            if idle is None:
                self._open_count += 1
        if idle is not None and open_other is None:
            return idle
        try:
            if idle is not None:
                idle.close()
            return (open_other or self._open)()
        except BaseException:
            self._count_down()
            raise

    def give(self, connection: Connection) -> None:
        """Give a connection back to the pool."""
        with self._lock:
            self._idle.append(connection)
            self._attend()

    def discard(self, connection: Connection) -> None:
        """Close a connection in doubt; an open transaction is rolled back by that."""
        try:
            connection.close()
        finally:
            self._count_down()

    def close(self) -> None:
        """Close idle connections now and the others as they come back."""
        with self._lock:
            self._closed = True
            self._attend()

    def close_own(self) -> None:
        """As `close`, unless the connections are the parent's."""
        if self.pid == os.getpid():
            self.close()

    def hold(self, seconds_max: float) -> None:
        """Close every connection and open none until `release`; wait for those in use."""
        with self._lock:
            self._holding = True
            self._attend()
            self._wait(lambda: not self._open_count, seconds_max)

    def release(self) -> None:
        """End `hold`."""
        with self._lock:
            self._holding = False
            self._attend()

    @property
    def open_count(self) -> int:
        """Connections open now, in use or idle. Without the lock: in a forked child it may be held for good."""
        return self._open_count

    def _wait(self, condition: Callable[[], bool], seconds_max: float) -> None:
        """Wait until a condition holds, but not for longer."""
        self._waiting += 1
        try:
            self._changed.wait_for(condition, seconds_max)
        finally:
            self._waiting -= 1

    def _can_take(self) -> bool:
        free = self._idle or self._open_count < CONNECTIONS_MAX
        return self._closed or (bool(free) and not self._holding)

    def _count_down(self) -> None:
        with self._lock:
            self._open_count -= 1
            self._attend()

    def _attend(self) -> None:
        """Close idle connections where they are to be closed, and wake whoever waits for a change."""
        while self._idle and (self._closed or self._holding):
            self._open_count -= 1
            self._idle.pop().close()
        if self._waiting:
            self._changed.notify_all()
