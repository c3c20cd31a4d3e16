"""Connections of one process to PostgreSQL: checked out by one caller at a time, opened where they are missing.

Not psycopg_pool: that connects in threads of its own, so a caller waits for a time-out and never learns that the
password is wrong; it comes back seconds after the server does; and its threads do not live through a fork.
docs/decisions/09-postgresql.md has the figures. Here, whoever needs a connection opens it and gets
its error.

- At most `connections_max` callers are inside at once; each holds one connection, and a connection is
  opened only when none is idle, so there are never more.
- Before it is used again, a connection that was idle for a while is looked at without asking the server: a server has
  nothing to say to an idle client but good-bye.
- A forked child must not say anything on its parent's connections, not even good-bye: `abandon`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, Self, TypeVar

import psycopg

from tokenvault.errors import TokenStoreError
from tokenvault.stores.postgres.answers import Answers
from tokenvault.stores.postgres.values import Query

CONNECTIONS_MAX: Final = 16
"""Per store and process. More callers than this wait for one another."""

WAIT_SECONDS_MAX: Final = 10.0
"""How long a caller waits for a connection to come free."""

IDLE_SECONDS_MAX: Final = 300.0
"""A connection that nobody has used for longer is closed instead of used again: what lies between may have
forgotten it."""

AGE_SECONDS_MAX: Final = 3_600.0
"""A connection is closed after so long: addresses, certificates and passwords change."""

LOOKED_AT_SECONDS: Final = 0.001
"""A connection that was used so lately is used again without a look at its socket, which costs a system call."""

_STALLED: Final = "no database connection came free in time; the process reads and writes more than it can"

_Connection = TypeVar("_Connection", psycopg.Connection, psycopg.AsyncConnection)


class Held(Generic[_Connection]):
    """A connection of the pool, for the caller alone who took it: in a `with` block, at whose end it goes back.

    It goes back only where nothing is in doubt: after an error other than a unique violation it is closed.

    Attributes:
        connection: the connection.
        opened: when, in seconds of the monotonic clock.
        used: when it was last given back.
        checked: the statements that are prepared on it, and whether the types of their columns were looked at.
    """

    __slots__ = ("_poll", "_shelf", "checked", "connection", "opened", "used")
    connection: _Connection

    def __init__(self, connection: _Connection, shelf: _Shelf[Any]) -> None:
        self._shelf = shelf
        self.connection = connection
        self.checked: dict[Query, bool] = {}
        self.opened = self.used = time.monotonic()
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(connection.fileno(), select.POLLIN)
            self._poll = poll.poll

    def usable(self, now: float) -> bool:
        """Whether the connection is young and the server has not said good-bye."""
        idle_seconds = now - self.used
        return (
            idle_seconds <= IDLE_SECONDS_MAX
            and now - self.opened <= AGE_SECONDS_MAX
            and (idle_seconds < LOOKED_AT_SECONDS or not self._speaks())
        )

    def _speaks(self) -> bool:
        return self._poll is not None and bool(self._poll(0))

    def close(self) -> None:
        """Close the connection for good; the server undoes what it had not committed."""
        self.connection.pgconn.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        shelf = self._shelf
        if kind is None or issubclass(kind, psycopg.errors.UniqueViolation):
            shelf.put(self)
        else:
            shelf.drop(self)
        shelf.slots.release()


class AsyncHeld(Held[psycopg.AsyncConnection]):
    """A connection for the tasks of an event loop.

    Attributes:
        answers: what the server answers on it.
    """

    __slots__ = ("answers",)

    def __init__(self, connection: psycopg.AsyncConnection, shelf: AsyncPool) -> None:
        super().__init__(connection, shelf)
        self.answers = Answers(connection)

    def usable(self, now: float) -> bool:
        """As in Held; the loop may have read the server's good-bye already."""
        return not self.connection.closed and super().usable(now)

    def for_psycopg(self) -> psycopg.AsyncConnection:
        """The connection for what psycopg waits for itself, until `answers` is used again."""
        self.answers.leave()
        return self.connection

    def close(self) -> None:
        """As in Held."""
        self.answers.leave()
        super().close()


_AnyHeld = TypeVar("_AnyHeld", Held[psycopg.Connection], AsyncHeld)


class _Shelf(Generic[_AnyHeld]):
    """Idle connections; last in, first out, so that those above need grow old and are closed.

    Attributes:
        slots: one for each connection that may be in use.
    """

    def __init__(self, slots: Slots | asyncio.Semaphore) -> None:
        self.slots: Final = slots
        self.pid: Final = os.getpid()
        self._idle: list[_AnyHeld] = []
        self._open: set[_AnyHeld] = set()
        self._abandoned: set[_AnyHeld] = set()
        self._closed = False

    @property
    def open_count(self) -> int:
        """Connections open now, in use or idle."""
        return len(self._open)

    def idle(self) -> _AnyHeld | None:
        """An idle connection that is fit for use."""
        while True:
            try:
                held = self._idle.pop()  # atomic, hence without a lock
            except IndexError:
                return None
            if held.usable(time.monotonic()):
                return held
            self.drop(held)

    def keep(self, held: _AnyHeld) -> _AnyHeld:
        """Count a new connection."""
        self._open.add(held)
        return held

    def put(self, held: _AnyHeld) -> None:
        """Back on the shelf."""
        now = held.used = time.monotonic()
        self._idle.append(held)
        try:
            if now - self._idle[0].used > IDLE_SECONDS_MAX:
                self.drop(self._idle.pop(0))
        except IndexError:
            pass  # others take and give meanwhile; dropping any one will do
        if self._closed:  # looked at after the append: whoever closes meanwhile sees the connection
            self.close()

    def drop(self, held: _AnyHeld) -> None:
        """Close a connection for good."""
        self._open.discard(held)
        held.close()

    def close(self) -> None:
        """Close idle connections now and the others as they come back."""
        self._closed = True
        while True:
            try:
                held = self._idle.pop()
            except IndexError:
                return
            self.drop(held)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets without a word to the server.

        Their numbers then lead nowhere. The connections stay referenced: Python warns of those that it collects.
        """
        self._abandoned, self._open = self._open, set()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for held in self._abandoned:
            with contextlib.suppress(OSError, psycopg.Error):
                os.dup2(nowhere, held.connection.fileno(), inheritable=False)
        os.close(nowhere)


class Pool(_Shelf[Held[psycopg.Connection]]):
    """For threads."""

    def __init__(self, open_connection: Callable[[], psycopg.Connection]) -> None:
        self._slots = Slots(CONNECTIONS_MAX)
        super().__init__(self._slots)
        self._open_connection = open_connection

    def take(self) -> Held[psycopg.Connection]:
        """A connection for this thread alone."""
        if not self._slots.acquire(WAIT_SECONDS_MAX):
            raise TokenStoreError(_STALLED)
        try:
            return self.idle() or self.keep(Held(self._open_connection(), self))
        except BaseException:
            self._slots.release()
            raise


class Slots:
    """A semaphore that takes no lock while there are slots: a tenth of the time of `threading.Semaphore`."""

    def __init__(self, count: int) -> None:
        self._free: Final = deque(range(count))
        self._wanted = threading.Condition()
        self._waiting = 0

    def acquire(self, seconds_max: float) -> bool:
        """Take a slot; False where none came free in time."""
        try:
            self._free.pop()  # atomic, as append is
        except IndexError:
            return self._wait(time.monotonic() + seconds_max)
        return True

    def _wait(self, until: float) -> bool:
        with self._wanted:
            self._waiting += 1  # before the look: whoever releases after it sees that somebody waits
            try:
                while True:
                    with contextlib.suppress(IndexError):
                        self._free.pop()
                        return True
                    if not self._wanted.wait(until - time.monotonic()):
                        return False
            finally:
                self._waiting -= 1

    def release(self) -> None:
        """Give a slot back."""
        self._free.append(0)
        if self._waiting:
            with self._wanted:
                self._wanted.notify()


class AsyncPool(_Shelf[AsyncHeld]):
    """For the tasks of one event loop."""

    def __init__(self, open_connection: Callable[[], Awaitable[psycopg.AsyncConnection]]) -> None:
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)
        super().__init__(self._slots)
        self.loop: Final = asyncio.get_running_loop()
        self._open_connection = open_connection

    async def take(self) -> AsyncHeld:
        """A connection for this task alone."""
        await self._take_slot()
        try:
            return self.idle() or self.keep(AsyncHeld(await self._open_connection(), self))
        except BaseException:
            self._slots.release()
            raise

    async def _take_slot(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()  # at once
            return
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await self._slots.acquire()
        except TimeoutError:
            pass
        else:
            return
        raise TokenStoreError(_STALLED)
