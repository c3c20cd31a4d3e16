"""Connections of one process to PostgreSQL: taken by one caller at a time, opened where none is idle.

Not psycopg_pool: that connects in threads of its own, so a caller waits for a time-out and never learns that the
password is wrong; it comes back seconds after the server does; and its threads do not live through a fork.
docs/decisions/09-postgresql.md has the figures. Here, whoever needs a connection opens it and gets its error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import psycopg

from tokenvault.errors import TokenStoreError
from tokenvault.stores.postgres.connection import Connection

T = TypeVar("T")

CONNECTIONS_MAX: Final = 16
"""Per store and process. More callers than this wait for one another."""

WAIT_SECONDS_MAX: Final = 10.0
"""How long a caller waits for a connection to come free."""

IDLE_SECONDS_MAX: Final = 300.0
"""A connection that was idle for longer is closed instead of used again: a firewall may have forgotten it."""

LOOKED_AT_SECONDS: Final = 0.001
"""A connection that was used so lately is used again without a look at its socket, which costs a system call."""

AGE_SECONDS_MAX: Final = 3_600.0
"""A connection is closed after so long: addresses, certificates and passwords change."""

_STALLED: Final = "no database connection came free in time; the process reads and writes more than it can"
_OTHER_LOOP: Final = (
    "the token store is in use by another event loop: open one for each with open_async_token_store"
)


class Pool(ABC):
    """The connections of one process.

    At most CONNECTIONS_MAX callers are inside at once; each holds one connection, and one is opened only where none
    is idle, so there are never more. The connection that was used last is used first: where fewer are needed than
    before, the others grow old and are closed.

    No method needs a lock: each takes from the lists, and puts into them, in one atomic step.

    Args:
        open_connection: opens one that is fit for use, or raises.
    """

    def __init__(self, open_connection: Callable[[], Awaitable[Connection]]) -> None:
        self._open_connection: Final = open_connection
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._closed = False

    @property
    def open_count(self) -> int:
        """Connections open now, in use or idle."""
        return len(self._open)

    async def use(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a piece of work with a connection of its own, and return what it returns.

        The connection is kept only where nothing is in doubt: after an error other than a unique violation it is
        closed.
        """
        if not await self._enter():
            raise TokenStoreError(_STALLED, code="STORE_POOL_EXHAUSTED")
        try:
            connection = self._take_idle() or await self._open_new()
            try:
                result = await work(connection)
            except psycopg.errors.UniqueViolation:
                self._keep(connection)
                raise
            except BaseException:
                self._drop(connection)
                raise
            self._keep(connection)
            return result
        finally:
            self._leave()

    def close(self) -> None:
        """Close idle connections now and the others as they come back."""
        self._closed = True
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self._drop(connection)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets, without disconnecting from the server.

        Their descriptors then lead to the null device. Keep this pool: Python warns of connections that it collects.
        """
        nowhere = os.open(os.devnull, os.O_RDWR)
        for connection in self._open:
            with contextlib.suppress(OSError, psycopg.Error):
                os.dup2(nowhere, connection.connection.fileno(), inheritable=False)
        os.close(nowhere)

    @abstractmethod
    def is_over(self) -> bool:
        """Whether a new pool has to replace this one. Raises TokenStoreError where another event loop uses it."""

    @abstractmethod
    async def _enter(self) -> bool:
        """Wait until fewer than CONNECTIONS_MAX callers are inside; False where that took too long."""

    @abstractmethod
    def _leave(self) -> None:
        """Let another caller in."""

    async def _open_new(self) -> Connection:
        connection = await self._open_connection()
        self._open.add(connection)
        return connection

    def _take_idle(self) -> Connection | None:
        """An idle connection that is fit for use."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if _usable(connection):
                return connection
            self._drop(connection)

    def _keep(self, connection: Connection) -> None:
        """Keep a connection for the next caller, and close one that has been idle for too long."""
        now = connection.used = time.monotonic()
        self._idle.append(connection)
        try:
            if now - self._idle[0].used > IDLE_SECONDS_MAX:
                self._drop(self._idle.pop(0))
        except IndexError:
            pass  # others take and keep meanwhile; dropping any one will do
        if self._closed:  # checked after the append: a thread that closes meanwhile sees the connection
            self.close()

    def _drop(self, connection: Connection) -> None:
        """Close a connection for good."""
        self._open.discard(connection)
        connection.close()


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

    def __init__(self, open_connection: Callable[[], Awaitable[Connection]]) -> None:
        super().__init__(open_connection)
        # A semaphore, but in C: that takes a fifth of the time of `threading.Semaphore`.
        self._tickets: Final[queue.SimpleQueue[None]] = queue.SimpleQueue()
        for _ in range(CONNECTIONS_MAX):
            self._tickets.put(None)

    def is_over(self) -> bool:
        """Never."""
        return False

    async def _enter(self) -> bool:
        try:
            self._tickets.get(timeout=WAIT_SECONDS_MAX)
        except queue.Empty:
            return False
        return True

    def _leave(self) -> None:
        self._tickets.put(None)


class LoopPool(Pool):
    """The connections for the tasks of one event loop: the one that runs when the pool is made."""

    def __init__(self, open_connection: Callable[[], Awaitable[Connection]]) -> None:
        super().__init__(open_connection)
        self._semaphore: Final = asyncio.Semaphore(CONNECTIONS_MAX)
        self._loop: Final = asyncio.get_running_loop()

    def is_over(self) -> bool:
        """Whether its event loop is closed. Raises TokenStoreError where it is not, and another one runs."""
        if self._loop is asyncio.get_running_loop():
            return False
        if self._loop.is_closed():
            return True
        raise TokenStoreError(_OTHER_LOOP, code="STORE_OTHER_LOOP")

    async def _enter(self) -> bool:
        if not self._semaphore.locked():  # at once; a timer would take a fourth of the time of a look-up
            return await self._semaphore.acquire()
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                return await self._semaphore.acquire()
        except TimeoutError:
            return False

    def _leave(self) -> None:
        self._semaphore.release()
