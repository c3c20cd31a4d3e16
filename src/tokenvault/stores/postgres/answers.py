"""Waiting for PostgreSQL's answers on an event loop.

psycopg registers a socket with the loop anew for each statement, and runs a generator over it. Here it
stays registered while the connection lives, and data is read when the loop reports it: that takes half the work.
"""

from __future__ import annotations

import asyncio
from typing import Final

import psycopg
from psycopg import generators
from psycopg.pq.abc import PGresult

from tokenvault.interrupts import ignoring

CANCEL_SECONDS_MAX: Final = 5.0
"""How long a statement that was cancelled is waited for: first for the server to take it, then for its end."""

_LATE: Final = "no answer came in time"


class Answers:
    """The answers on one connection, for one task at a time.

    While the socket is registered, psycopg must not wait on it: its connection calls `leave` before.

    Attributes:
        unasked: whether the server has sent something between statements.
    """

    __slots__ = ("_came", "_connection", "_loop", "_seconds_max", "_socket", "unasked")

    def __init__(self, connection: psycopg.AsyncConnection, seconds_max: float) -> None:
        self._connection = connection
        self._seconds_max = seconds_max
        self._socket = connection.pgconn.socket
        self._loop: asyncio.AbstractEventLoop | None = None  # where the socket is registered
        self._came: asyncio.Future[None] | None = None
        self.unasked = False

    async def next(self) -> list[PGresult]:
        """The results of the statement that was just sent. Raises psycopg.Error.

        Cancelled, it has the server cancel the statement and waits for its end.
        """
        pgconn = self._connection.pgconn
        if pgconn.flush():  # more than the socket takes at once
            return await self._connection.wait(generators.execute(pgconn), timeout=self._seconds_max)
        results: list[PGresult] = []
        while True:
            if pgconn.is_busy():
                await self._more()
            result = pgconn.get_result()
            if result is None:
                return results
            results.append(result)

    def leave(self) -> None:
        """Take the socket from the loop, until the next statement."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._socket)

    async def _more(self) -> None:
        """Wait until a whole result is there."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
            loop.add_reader(self._socket, self._read)
        came = self._came = loop.create_future()
        late = loop.call_later(self._seconds_max, _give_up, came)
        try:
            await came
        except asyncio.CancelledError:
            self.leave()
            await self._end()
            raise
        finally:
            late.cancel()
            self._came = None

    def _read(self) -> None:
        pgconn, came = self._connection.pgconn, self._came
        self.unasked = self.unasked or came is None
        try:
            pgconn.consume_input()
            if came is not None and not pgconn.is_busy() and not came.done():
                came.set_result(None)
        except psycopg.Error:  # the server is gone, during a statement or before it
            self.leave()
            if came is not None and not came.done():
                came.set_result(None)  # its last words, and libpq's that it is gone, are results

    async def _end(self) -> None:
        """Have the server end the statement under way. Where that fails, the caller closes the connection."""
        with ignoring(psycopg.Error, TimeoutError):
            await self._connection.cancel_safe(timeout=CANCEL_SECONDS_MAX)
            await self._connection.wait(
                generators.execute(self._connection.pgconn), timeout=CANCEL_SECONDS_MAX
            )


def _give_up(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_exception(psycopg.OperationalError(_LATE))
