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
        self._changed = threading.Condition(threading.Lock())
        self._idle: list[Connection] = []  # the last one given back goes first: its page cache is warm
        self._open_count = 0
        self._holding = False
        self._closed = False

    def take(self) -> Connection:
        """A connection for this thread alone; give it back, or discard it after an error."""
        return self._idle_connection() or self._opened(self._open)

    def take_new(self, open_connection: Callable[[], Connection]) -> Connection:
        """A connection that is opened otherwise than the pool's; to be discarded after use."""
        idle = self._idle_connection()

        def in_place_of_idle() -> Connection:
            if idle is not None:
                idle.close()
            return open_connection()

        return self._opened(in_place_of_idle)

    def give(self, connection: Connection) -> None:
        """Back to the pool."""
        with self._changed:
            self._idle.append(connection)
            self._close_idle_where_due()
            self._changed.notify_all()

    def discard(self, connection: Connection) -> None:
        """Close a connection in doubt; an open transaction is rolled back by that."""
        try:
            connection.close()
        finally:
            self._count_down()

    def close(self) -> None:
        """Close idle connections now and the others as they come back."""
        with self._changed:
            self._closed = True
            self._close_idle_where_due()
            self._changed.notify_all()

    def close_own(self) -> None:
        """As `close`, unless the connections are the parent's."""
        if self.pid == os.getpid():
            self.close()

    def hold(self, seconds_max: float) -> None:
        """Close every connection and open none until `release`; wait for those in use."""
        with self._changed:
            self._holding = True
            self._close_idle_where_due()
            self._changed.wait_for(lambda: not self._open_count, seconds_max)

    def release(self) -> None:
        """End `hold`."""
        with self._changed:
            self._holding = False
            self._changed.notify_all()

    @property
    def open_count(self) -> int:
        """Connections open now, in use or idle. Without the lock: in a forked child it may be held for good."""
        return self._open_count

    def _idle_connection(self) -> Connection | None:
        """An idle connection; None where there is none, and the caller is to open one, which counts already."""
        with self._changed:
            if not self._changed.wait_for(self._can_take, self._wait_seconds_max):
                raise TokenStoreError(_STALLED)
            if self._closed:
                raise TokenStoreError(CLOSED)
            if self._idle:
                return self._idle.pop()
            self._open_count += 1
            return None

    def _can_take(self) -> bool:
        free = self._idle or self._open_count < CONNECTIONS_MAX
        return self._closed or (bool(free) and not self._holding)

    def _opened(self, open_connection: Callable[[], Connection]) -> Connection:
        try:
            return open_connection()
        except BaseException:
            self._count_down()
            raise

    def _count_down(self) -> None:
        with self._changed:
            self._open_count -= 1
            self._changed.notify_all()

    def _close_idle_where_due(self) -> None:
        while self._idle and (self._closed or self._holding):
            self._open_count -= 1
            self._idle.pop().close()
