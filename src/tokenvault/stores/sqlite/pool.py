"""The connections of one process to one SQLite file, and the turn of its writers.

Rules, all of them SQLite's or its file locks':
- a connection is used by one thread at a time, and by no process but the one that opened it;
- none is open while the process forks (see `forks`): the pool closes them before and opens others after;
- threads check connections out, so those of threads that end are not lost.

A signal's handler may raise at any instruction. So what is taken is always in a place that the pool knows (see
`runtime`): a connection is idle or in a slot, a slot is free or held. Nothing is counted, and no lock can stay held.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias, TypeVar

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import close_all, give_all, put_result
from tokenvault.stores.forks import end_interrupted_hold
from tokenvault.stores.guard import CLOSED
from tokenvault.stores.sqlite.file import BUSY, Connection

T = TypeVar("T")

CONNECTIONS_MAX: Final = 16
"""Per process, one of them for writing. More threads than this wait for one another; SQLite's reads are short."""

_SHUT_SECONDS: Final = 0.001
"""How often callers look whether a fork is over."""

_STALLED: Final = "no database connection came free in time; the process reads and writes more than it can"

Slot: TypeAlias = list[Connection]
"""Holds the connection that a caller uses. One that is left in a free slot is of a caller that was interrupted."""

Opening: TypeAlias = Callable[[Slot], None]
"""Opens a connection into a slot. Where it raises, the caller closes what is there."""


class _Slots:
    """Slots that callers take, use and give back: one caller each.

    Args:
        count: how many there are.
        stalled: what an error says where none came free in time.
        code: of that error.
    """

    def __init__(self, count: int, stalled: str, code: str) -> None:
        self._every: Final[tuple[Slot, ...]] = tuple([] for _ in range(count))
        self._free: Final[queue.SimpleQueue[Slot]] = queue.SimpleQueue()
        self._held: Final[list[Slot]] = []  # by a fork
        self._shut = False  # for a fork: who gives a slot back could take it again before the fork gets it
        self._stalled: Final = stalled
        self._code: Final = code
        for slot in self._every:
            self._free.put(slot)

    @property
    def open_count(self) -> int:
        """Connections in slots."""
        return sum(map(len, self._every))

    def use(self, work: Callable[[Slot], T], seconds_max: float) -> T:
        """What a piece of work returns, which has a slot for itself; there is no connection in it.

        Raises:
            TokenStoreError: none came free for so long.
        """
        until = time.monotonic() + seconds_max
        while self._shut and time.monotonic() < until:
            time.sleep(_SHUT_SECONDS)
            end_interrupted_hold()
        taken: list[Slot] = []
        try:
            try:
                put_result(taken, self._free.get, True, max(until - time.monotonic(), 0))
            except queue.Empty:
                raise TokenStoreError(self._stalled, code=self._code) from None
            slot = taken[0]
            if slot:
                close_all(slot)
            return work(slot)
        finally:
            if taken:
                self._free.put(taken[0])

    def sweep(self) -> None:
        """Close what interrupted callers left in free slots."""
        for _ in range(self._free.qsize()):
            with suppress(TokenStoreError):  # in use by now
                self.use(_nothing, 0)

    def hold(self, until: float) -> None:
        """Let nobody use a slot before `release`; wait for those in use, until that time of the monotonic clock."""
        self._shut = True
        with suppress(queue.Empty):
            while len(self._held) < len(self._every):
                put_result(self._held, self._free.get, True, max(until - time.monotonic(), 0))
                close_all(self._held[-1])

    def release(self) -> None:
        """End `hold`."""
        with suppress(IndexError):
            give_all(self._held, self._free.put)
        self._shut = False


class Pool:
    """The connections of one process: SQLite has one writer at a time.

    Args:
        open_connection: opens one.
        wait_seconds_max: how long a caller waits for its turn.
    """

    def __init__(self, open_connection: Opening, wait_seconds_max: float) -> None:
        self.pid: Final = os.getpid()
        self._open: Final = open_connection
        self._wait_seconds_max: Final = wait_seconds_max
        self._writers: Final = _Slots(1, BUSY, "STORE_BUSY")
        self._readers: Final = _Slots(CONNECTIONS_MAX - 1, _STALLED, "STORE_POOL_EXHAUSTED")
        self._idle: Final[Slot] = []  # the last one given back goes first: its page cache is warm
        self._unwanted: Final[Slot] = []  # to be closed
        self._closed = False

    def read(self, work: Callable[[Connection], T], open_other: Opening | None = None) -> T:
        """What a piece of work that reads returns, with a connection of its own.

        Args:
            work: a connection with which it fails is closed.
            open_other: opens one that is not like the pool's, and is closed after use.
        """
        return self._readers.use(lambda slot: self._in_slot(slot, work, open_other), self._wait_seconds_max)

    def write(self, work: Callable[[Connection], T], open_other: Opening | None = None) -> T:
        """As `read`, for work that writes; an open transaction is undone where it fails."""
        return self._writers.use(lambda slot: self._in_slot(slot, work, open_other), self._wait_seconds_max)

    def _in_slot(self, slot: Slot, work: Callable[[Connection], T], open_other: Opening | None) -> T:
        if self._closed:
            raise TokenStoreError(CLOSED, code="STORE_CLOSED")
        try:
            if open_other is None and self._idle:
                self._take_idle(slot)
            if not slot:
                (open_other or self._open)(slot)
            result = work(slot[0])
        except BaseException:
            close_all(slot)
            raise
        if open_other is None:
            put_result(self._idle, slot.pop)
        else:
            close_all(slot)
        if self._closed:  # looked at after it was given back: a thread that closes meanwhile finds it
            self._close_idle()
        return result

    def _take_idle(self, slot: Slot) -> None:
        try:  # noqa: SIM105  a context manager takes longer than all the rest
            put_result(slot, self._idle.pop)
        except IndexError:  # another thread took it
            pass

    def close(self) -> None:
        """Close idle connections now and the others as they come back."""
        self._closed = True
        self._close_idle()
        self._readers.sweep()
        self._writers.sweep()

    def close_own(self) -> None:
        """As `close`, unless the connections are the parent's."""
        if self.pid == os.getpid():
            self.close()

    def hold(self, seconds_max: float) -> None:
        """Close every connection and open none until `release`; wait for those in use."""
        until = time.monotonic() + seconds_max
        self._writers.hold(until)
        self._readers.hold(until)
        self._close_idle()

    def release(self) -> None:
        """End `hold`."""
        self._writers.release()
        self._readers.release()

    @property
    def open_count(self) -> int:
        """Connections open now, in use or idle."""
        return len(self._idle) + len(self._unwanted) + self._readers.open_count + self._writers.open_count

    def _close_idle(self) -> None:
        with suppress(IndexError):
            give_all(self._idle, self._unwanted.append)
        close_all(self._unwanted)


def _nothing(_: Slot) -> None:
    return None
