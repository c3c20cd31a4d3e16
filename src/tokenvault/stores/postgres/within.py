"""A connection of the host's own, in whose transaction a store works: the host commits it, or rolls it back.

The connection is psycopg's, or SQLAlchemy's over psycopg. It is used as it comes: nothing is set, nothing prepared,
and it is never closed.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import psycopg
from psycopg import generators
from psycopg.abc import RV, PQGen
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from tokenvault.errors import ConfigurationError, InvalidInputError, TokenStoreError
from tokenvault.stores.postgres import session
from tokenvault.stores.postgres.address import PostgresAddress
from tokenvault.stores.postgres.connection import BlockingConnection, Connection, LoopConnection
from tokenvault.stores.turns import in_turn

T = TypeVar("T")

_STEPS_MAX: Final = 4
"""From a session of SQLAlchemy down to psycopg's connection."""

_QUESTION: Final = "SELECT current_setting('synchronous_commit'), current_setting('transaction_read_only')"
_OVER: Final = (
    "the transaction of the host is over, or has failed: leave 'within' before you commit, and roll back after"
    " an error"
)


class HeldLoopConnection(LoopConnection):
    """A psycopg.AsyncConnection of the host's."""

    def __init__(self, connection: psycopg.AsyncConnection, address: PostgresAddress) -> None:
        Connection.__init__(self, connection, address)  # its socket stays with psycopg

    async def _results(self) -> list[PGresult]:
        return await self._wait(generators.execute(self.connection.pgconn))

    async def _wait(self, generator: PQGen[RV]) -> RV:
        async with asyncio.timeout(self._answer_seconds):
            return await self.connection.wait(generator)


class Held:
    """Stands where a store has its pool: gives the host's connection to one caller after the other.

    A session of SQLAlchemy sends a SAVEPOINT only once it is asked for its connection. So it is asked before each
    piece of work: else that would stand before the savepoint, and outlive it.

    Attributes:
        pid: of the process whose connection it is.
    """

    def __init__(self, connection: Connection, given: object) -> None:
        self._connection: Final = connection
        self._given: Final = given
        self._turn: Final[list[None]] = [None]
        self.pid: Final = os.getpid()

    async def use(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a piece of work in the host's transaction. Raises TokenStoreError where that is over."""
        return await in_turn(self._turn, partial(self._use, work))

    async def _use(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        if self.pid != os.getpid() or not self.in_transaction:
            raise TokenStoreError(_OVER, code="TRANSACTION_OVER")
        if await _driver_connection(self._given) is not self._connection.connection:
            raise TokenStoreError(_OVER, code="TRANSACTION_OVER")
        try:
            return await work(self._connection)
        except BaseException:
            await self._connection.give_up()
            raise

    @property
    def in_transaction(self) -> bool:
        """Whether the connection is in a transaction that can go on."""
        connection = self._connection.connection
        plain = connection.pgconn.pipeline_status == PipelineStatus.OFF
        return plain and connection.info.transaction_status == TransactionStatus.INTRANS


async def hold(
    given: object,
    kind: type[BlockingConnection | HeldLoopConnection],
    address: PostgresAddress,
) -> Held:
    """Hold a connection of the host's, once it is looked at.

    Raises:
        InvalidInputError: it is none of psycopg, or of the other face.
        ConfigurationError: it has no transaction, or one that a vault can not work in.
        psycopg.Error: the server can not be asked.
    """
    wanted = psycopg.Connection if kind is BlockingConnection else psycopg.AsyncConnection
    found = await _driver_connection(given)
    if not isinstance(found, wanted):
        raise InvalidInputError(
            f"connection is a psycopg.{wanted.__name__}, or SQLAlchemy's over one, with a transaction of the host's"
        )
    if found.pgconn.pipeline_status != PipelineStatus.OFF:
        raise ConfigurationError(
            "the connection is in pipeline mode: leave that first", code="NO_TRANSACTION"
        )
    connection = kind(found, address)  # type: ignore[arg-type] # which of both it is was just looked at
    ((synchronous_commit, read_only),) = await connection.rows(
        _QUESTION
    )  # psycopg begins a transaction by it
    held = Held(connection, given)
    if not held.in_transaction:
        raise ConfigurationError(
            "the connection commits by itself: begin a transaction", code="NO_TRANSACTION"
        )
    session.is_own((True, synchronous_commit, ""), address.options)
    if read_only == "on":
        raise ConfigurationError("the transaction is read only", code="NO_TRANSACTION")
    return held


async def _driver_connection(given: Any) -> object:
    """What psycopg made, below SQLAlchemy's session, connection, and member of a pool."""
    for _ in range(_STEPS_MAX):
        if isinstance(given, psycopg.BaseConnection):
            break
        if hasattr(given, "driver_connection"):
            given = given.driver_connection
        elif hasattr(given, "sync_connection"):  # of an AsyncConnection, whose `connection` is none
            given = given.sync_connection
        elif hasattr(given, "connection"):  # a method of sessions
            found = given.connection() if callable(given.connection) else given.connection
            given = await found if inspect.isawaitable(found) else found
    return given
