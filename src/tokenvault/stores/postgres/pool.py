"""Connections of one process to PostgreSQL: taken by one caller at a time, opened where none is idle.

Not psycopg_pool: that connects in threads of its own, so a caller waits for a time-out and never learns that the
password is wrong; it comes back seconds after the server does; and its threads do not live through a fork.
docs/decisions/09-postgresql.md has the figures. Here, whoever needs a connection opens it and gets its error.
"""

from __future__ import annotations

import asyncio
import os
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import islice
from typing import Final, TypeAlias, TypeVar

import psycopg

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import close_all, give_all, put_result
from tokenvault.stores.postgres.address import CONNECTIONS, WAIT_SECONDS
from tokenvault.stores.postgres.connection import Connection
from tokenvault.stores.postgres.errors import read_only

T = TypeVar("T")

IDLE_SECONDS_MAX: Final = 300.0
"""A connection that was idle for longer is closed instead of used again: a firewall may have forgotten it."""

LOOKED_AT_SECONDS: Final = 0.001
"""A connection that was used so lately is used again without a look at its socket, which costs a system call."""

AGE_SECONDS_MAX: Final = 3_600.0
"""A connection is closed after so long: addresses, certificates and passwords change."""

_UNCALLED_SECONDS: Final = 0.1
"""How often one of the tasks that wait looks for itself: who should have called it may have been interrupted."""

_STALLED: Final = "no database connection came free in time; the process reads and writes more than it can"
_OTHER_LOOP: Final = (
    "the token store is in use by another event loop: open one for each with open_async_token_store"
)


Opening: TypeAlias = Callable[[], Awaitable[Connection]]
Slot: TypeAlias = list[Connection]
"""Holds the connection that a caller uses. One that is left in a free slot is of a caller that was interrupted."""


class Pool(ABC):
    """The connections of one process.

    Each caller has a slot for itself, of `connections`; it takes an idle connection into it, or opens one where
    none is idle, so there are never more. The connection that was used last is used first: where fewer are needed
    than before, the others grow old and are closed.

    No method needs a lock: each takes from the lists, and puts into them, in one step. A connection is idle or in a
    slot at any instant, and a slot is free or has a caller who gives it back: a signal's handler may raise anywhere.

    Args:
        open_connection: opens one that is fit for use, or raises.
        connections: the most that are open; more callers than this wait for one another.
        wait_seconds: how long a caller waits for its turn.
    """

    def __init__(
        self, open_connection: Opening, connections: int = CONNECTIONS, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self._open_connection: Final = open_connection
        self._wait_seconds: Final = wait_seconds
        self._slots: Final[tuple[Slot, ...]] = tuple([] for _ in range(connections))
        self._idle: Final[list[Connection]] = []
        self._unwanted: Final[list[Connection]] = []  # to be closed
        self._closed = False

    @property
    def open_count(self) -> int:
        """Connections open now, in use or idle."""
        return len(self._open)

    @property
    def _open(self) -> set[Connection]:
        return {*self._idle, *self._unwanted, *(connection for slot in self._slots for connection in slot)}

    async def use(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a piece of work with a connection of its own, and return what it returns.

        The connection is kept only where nothing is in doubt: after an error other than a unique violation it is
        closed.
        """
        taken: list[Slot] = []
        try:
            await self._take(taken)
            return await self._use(taken[0], work)
        finally:
            if taken:
                self._give(taken[0])
                self._call_next()

    async def _use(self, slot: Slot, work: Callable[[Connection], Awaitable[T]]) -> T:
        if slot:
            close_all(slot)
        try:
            self._take_idle(slot)
            if not slot:
                slot.append(await self._open_connection())
            result = await _explained(work, slot[0])
        except psycopg.errors.UniqueViolation:
            self._keep(slot)
            raise
        except BaseException:
            close_all(slot)
            raise
        self._keep(slot)
        return result

    def close(self) -> None:
        """Close idle connections now and the others as they come back."""
        self._closed = True
        self._close_idle()
        self._sweep()

    def _close_idle(self) -> None:
        with suppress(IndexError):
            give_all(self._idle, self._unwanted.append)
        close_all(self._unwanted)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets, without disconnecting from the server.

        Their descriptors then lead to the null device. Keep this pool: Python warns of connections that it collects.
        """
        nowhere = os.open(os.devnull, os.O_RDWR)
        for connection in self._open:
            with suppress(OSError, psycopg.Error):
                os.dup2(nowhere, connection.connection.fileno(), inheritable=False)
        os.close(nowhere)

    @abstractmethod
    def is_over(self) -> bool:
        """Whether a new pool has to replace this one. Raises TokenStoreError where another event loop uses it."""

    @abstractmethod
    async def _take(self, taken: list[Slot]) -> None:
        """Put a free slot into a list. Raises TokenStoreError where none came free in time."""

    _give: Callable[[Slot], None]
    """Puts a slot among the free ones."""

    @abstractmethod
    def _call_next(self) -> None:
        """Tell who waits that a slot is free."""

    @abstractmethod
    def _sweep(self) -> None:
        """Close what interrupted callers left in free slots."""

    def _take_idle(self, slot: Slot) -> None:
        """Put an idle connection that is fit for use into a slot, if there is one."""
        while self._idle and not slot:
            try:
                put_result(slot, self._idle.pop)
            except IndexError:
                return  # another thread took it
            if slot and not _usable(slot[0]):
                close_all(slot)

    def _keep(self, slot: Slot) -> None:
        """Keep a connection for the next caller, and close one that has been idle for too long."""
        now = slot[0].used = time.monotonic()
        put_result(self._idle, slot.pop)
        try:
            if now - self._idle[0].used > IDLE_SECONDS_MAX:
                put_result(self._unwanted, self._idle.pop, 0)
                close_all(self._unwanted)
        except IndexError:
            pass  # others take and keep meanwhile; closing any one will do
        if self._closed:  # looked at after it was given back: a thread that closes meanwhile finds it
            self._close_idle()


async def _explained(work: Callable[[Connection], Awaitable[T]], connection: Connection) -> T:
    """What a piece of work returns. A refusal to write is explained while the connection knows why."""
    try:
        return await work(connection)
    except psycopg.errors.ReadOnlySqlTransaction as error:
        standby = connection.is_told("in_hot_standby")
        refusal = read_only(error, standby, connection.is_told("default_transaction_read_only"))
    raise refusal


def _usable(connection: Connection) -> bool:
    """Whether a connection is young and the server has not disconnected, as far as the client knows."""
    now = time.monotonic()
    idle_seconds = now - connection.used
    return (
        idle_seconds <= IDLE_SECONDS_MAX
        and now - connection.opened <= AGE_SECONDS_MAX
        and not connection.connection.closed  # an event loop may have read already that it is
        and (idle_seconds < LOOKED_AT_SECONDS or not connection.server_speaks())
    )


class BlockingPool(Pool):
    """For threads."""

    def __init__(
        self, open_connection: Opening, connections: int = CONNECTIONS, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        super().__init__(open_connection, connections, wait_seconds)
        # In C, unlike `threading.Semaphore`: that takes a fifth of its time, and no interrupt leaves it half done.
        self._free: Final[queue.SimpleQueue[Slot]] = queue.SimpleQueue()
        self._give = self._free.put
        for slot in self._slots:
            self._free.put(slot)

    def is_over(self) -> bool:
        """Never."""
        return False

    async def _take(self, taken: list[Slot]) -> None:
        try:
            put_result(taken, self._free.get, True, self._wait_seconds)
        except queue.Empty:
            raise TokenStoreError(_STALLED, code="STORE_POOL_EXHAUSTED") from None

    def _call_next(self) -> None:
        """Nothing: the queue does."""

    def _sweep(self) -> None:
        for _ in range(self._free.qsize()):
            taken: list[Slot] = []
            try:
                with suppress(queue.Empty):  # in use by now
                    put_result(taken, self._free.get, False)
                    close_all(taken[0])
            finally:
                if taken:
                    self._give(taken[0])


class LoopPool(Pool):
    """The connections for the tasks of one event loop: the one that runs when the pool is made."""

    def __init__(
        self, open_connection: Opening, connections: int = CONNECTIONS, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        super().__init__(open_connection, connections, wait_seconds)
        self._free: Final = list(self._slots)
        self._waiting: Final[dict[asyncio.Future[None], None]] = {}  # first come, first served
        self._give = self._free.append
        self._loop: Final = asyncio.get_running_loop()

    def is_over(self) -> bool:
        """Whether its event loop is closed. Raises TokenStoreError where it is not, and another one runs."""
        if self._loop is asyncio.get_running_loop():
            return False
        if self._loop.is_closed():
            return True
        raise TokenStoreError(_OTHER_LOOP, code="STORE_OTHER_LOOP")

    async def _take(self, taken: list[Slot]) -> None:
        if self._free and not self._waiting:
            put_result(taken, self._free.pop)
            return
        until = time.monotonic() + self._wait_seconds
        called = self._loop.create_future()
        try:
            self._waiting[called] = None
            while called not in self._next():
                left_seconds = until - time.monotonic()
                if left_seconds <= 0:
                    raise TokenStoreError(_STALLED, code="STORE_POOL_EXHAUSTED")
                pause = _UNCALLED_SECONDS * (1 + len(self._waiting) // len(self._slots))
                # Not `asyncio.timeout`: a time limit of the application may be a TimeoutError as well.
                await asyncio.wait((called,), timeout=min(left_seconds, pause))
            put_result(taken, self._free.pop)
        finally:
            self._waiting.pop(called, None)
            self._call_next()  # who was called and goes without a slot leaves it to another

    def _next(self) -> Iterable[asyncio.Future[None]]:
        """Those who wait and whose turn it is: as many of the first as there are free slots."""
        return islice(self._waiting, len(self._free))

    def _call_next(self) -> None:
        for called in self._next():
            if not called.done():
                called.set_result(None)

    def _sweep(self) -> None:
        for slot in self._free:
            close_all(slot)
