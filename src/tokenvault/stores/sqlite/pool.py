"""Connections of one process to one SQLite file, and the turns of its threads at writing.

Rules, all of them SQLite's or its file locks':
- a connection is used by one thread at a time, and by no process but the one that opened it;
- none is open while the process forks (see `_forks`): the pool closes them before and opens others after;
- threads check connections out, so those of threads that end are not lost.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from tokenvault.errors import TokenStoreError
from tokenvault.stores.sqlite.file import Connection

CONNECTIONS_MAX: Final = 16
"""Per process. More threads than this wait for one another; SQLite's reads are short."""

_CLOSED: Final = "the token store is closed; open it again with open_token_store"
_STALLED: Final = "no database connection came free in time; the process reads and writes more than it can"


class Turns:
    """A lock that its waiters get in the order of asking.

    A plain lock goes to whoever grabs first: under load, one that has just released it gets it again, and
    another may wait past any deadline.
    """

    def __init__(self) -> None:
        # One entry while it is nobody's turn; `pop` and `append` are one step each.
        self._free: list[None] = [None]
        self._guard = threading.Lock()
        self._waiting: collections.deque[threading.Lock] = collections.deque()

    def take(self, seconds_max: float) -> bool:
        """Whether the turn came in time."""
        if not self._waiting:
            try:
                self._free.pop()
            except IndexError:
                pass
            else:
                return True
        mine = threading.Lock()
        mine.acquire()
        with self._guard:
            self._waiting.append(mine)
            self._hand_on()  # it may have come free meanwhile
        try:
            came = mine.acquire(timeout=seconds_max)
        except BaseException:  # a signal's handler raised
            if not self._withdraw(mine):
                self.give()
            raise
        return came or not self._withdraw(mine)

    def give(self) -> None:
        """End a turn."""
        self._free.append(None)
        if self._waiting:  # looked at after the append: whoever begins to wait later finds the entry
            with self._guard:
                self._hand_on()

    def _hand_on(self) -> None:
        """Give the turn, if it is free, to who has waited longest."""
        if self._waiting:
            try:
                self._free.pop()
            except IndexError:
                return  # taken: who gives it back hands it on
            self._waiting.popleft().release()

    def _withdraw(self, mine: threading.Lock) -> bool:
        """Stop waiting; False where the turn has come in the meantime."""
        with self._guard:
            try:
                self._waiting.remove(mine)
            except ValueError:
                return False
            return True


class Pool:
    """The connections of one process."""

    def __init__(self, open_connection: Callable[[], Connection], wait_seconds_max: float) -> None:
        self.pid: Final = os.getpid()
        self.turns: Final = Turns()
        self._open = open_connection
        self._wait_seconds_max = wait_seconds_max
        self._changed = threading.Condition(threading.Lock())
        self._idle: list[Connection] = []  # last in, first out: the warm page cache is used again
        self._open_count = 0
        self._waiting = 0
        self._holding = False
        self._closed = False
        self._alert = False  # someone waits, holds or has closed; read without the lock

    def take(self) -> Connection:
        """A connection for this thread alone; give it back, or discard it after an error."""
        if not self._alert:
            try:
                return self._idle.pop()  # atomic, hence without the lock
            except IndexError:
                pass
        return self._take_or_open()

    def take_new(self, open_connection: Callable[[], Connection]) -> Connection:
        """A connection that is opened otherwise than the pool's; to be discarded after use."""
        return self._take_or_open(open_connection)

    def give(self, connection: Connection) -> None:
        """Back to the pool."""
        self._idle.append(connection)
        if self._alert:  # looked at after the append, so that whoever sets it first sees the connection
            with self._changed:
                self._attend()

    def discard(self, connection: Connection) -> None:
        """Close a connection in doubt; an open transaction is rolled back by that."""
        try:
            connection.close()
        finally:
            with self._changed:
                self._open_count -= 1
                self._attend()

    def close(self) -> None:
        """Close idle connections now and the others as they come back."""
        with self._changed:
            self._closed = True
            self._attend()

    def close_own(self) -> None:
        """As `close`, unless the connections are the parent's."""
        if self.pid == os.getpid():
            self.close()

    def hold(self, seconds_max: float) -> None:
        """Close every connection and open none until `release`; wait for those in use."""
        deadline = time.monotonic() + seconds_max
        with self._changed:
            self._holding = True
            self._attend()
            while self._open_count and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def release(self) -> None:
        """End `hold`."""
        with self._changed:
            self._holding = False
            self._attend()

    @property
    def open_count(self) -> int:
        """Connections open now, in use or idle."""
        return self._open_count

    def _attend(self) -> None:
        self._alert = self._closed or self._holding or self._waiting > 0
        if self._closed or self._holding:
            while self._idle:
                self._open_count -= 1
                self._idle.pop().close()
        self._changed.notify_all()

    def _take_or_open(self, open_new: Callable[[], Connection] | None = None) -> Connection:
        deadline = time.monotonic() + self._wait_seconds_max
        with self._changed:
            self._waiting += 1
            self._attend()
            try:
                while True:
                    if self._closed:
                        raise TokenStoreError(_CLOSED)
                    if not self._holding:
                        if open_new is None:
                            with contextlib.suppress(IndexError):
                                return self._idle.pop()
                        if self._open_count < CONNECTIONS_MAX:
                            self._open_count += 1
                            break
                    if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                        raise TokenStoreError(_STALLED)
            finally:
                self._waiting -= 1
                self._alert = self._closed or self._holding or self._waiting > 0
        try:
            return (open_new or self._open)()
        except BaseException:
            with self._changed:
                self._open_count -= 1
                self._attend()
            raise
