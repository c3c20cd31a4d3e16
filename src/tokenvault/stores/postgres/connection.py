"""Connections to PostgreSQL: one text that runs statements on them, and how threads and tasks wait for answers.

What threads and tasks do differently is in `BlockingConnection` and `LoopConnection`, and nowhere else but in `pool`.
The coroutines of the first never suspend.
"""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

import psycopg
from psycopg import AsyncRawCursor, RawCursor, generators, waiting
from psycopg.abc import RV, PQGen
from psycopg.conninfo import make_conninfo
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import tuple_row

from tokenvault.errors import TokenStoreError
from tokenvault.stores.postgres import session
from tokenvault.stores.postgres.address import ANSWER_MARGIN_SECONDS, STATEMENT_SECONDS, PostgresAddress
from tokenvault.stores.postgres.answers import CANCEL_SECONDS_MAX, Answers
from tokenvault.stores.postgres.copy import Copy
from tokenvault.stores.postgres.errors import UNPREPARED, unconnected
from tokenvault.stores.postgres.refusals import READ_ONLY_SESSIONS
from tokenvault.stores.postgres.statements import Statement, in_schema, prepared_name, sound_result

Rows = list[tuple[Any, ...]]

_TRANSACTION: Final = (b"BEGIN", b"ROLLBACK", b"COMMIT")
_SAVEPOINT: Final = (
    b"SAVEPOINT tokenvault",
    b"ROLLBACK TO SAVEPOINT tokenvault; RELEASE SAVEPOINT tokenvault",
    b"RELEASE SAVEPOINT tokenvault",
)
_CAN_UNDO: Final = (TransactionStatus.INTRANS, TransactionStatus.INERROR)
_COPY_BYTES: Final = 2**17
"""What is sent before the socket is waited for: in larger pieces libpq takes longer."""

_INTERVAL_SECONDS: Final = 0.1  # between looks at signals while waiting; psycopg's own


class Connection(ABC):
    """A connection to PostgreSQL, for one caller at a time.

    Attributes:
        connection: psycopg's.
        opened: when, in seconds of the monotonic clock.
        used: when the last caller was done.
    """

    def __init__(self, connection: psycopg.BaseConnection[Any], address: PostgresAddress) -> None:
        self.connection = connection
        self.opened = self.used = time.monotonic()
        self._schema: Final = address.schema
        self._answer_seconds: Final = address.answer_seconds
        self._prepares = False  # until `open` knows better
        self._prepared: dict[Statement, bytes] = {}  # their names
        self._checked: set[Statement] = set()  # a prepared statement keeps its types
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(connection.fileno(), select.POLLIN)
            self._poll = poll.poll

    @classmethod
    async def open(cls, address: PostgresAddress) -> Self:
        """Connect, and see that the session fits. Raises TokenStoreError, which says what is wrong."""
        try:
            connection = await cls._open(make_conninfo("", **address.parameters), address)
        except psycopg.Error as error:
            failure = unconnected(error)
        else:
            try:
                await connection._set_up(address)
            except BaseException:
                connection.close()
                raise
            return connection
        if failure.code == "STORE_READ_ONLY" and await cls._finds_primary(address):
            failure = TokenStoreError(READ_ONLY_SESSIONS, code=failure.code)
        raise failure

    @classmethod
    async def _finds_primary(cls, address: PostgresAddress) -> bool:
        """Whether a server is no standby: libpq does not say why one takes no writes."""
        parameters = {**address.parameters, "target_session_attrs": "primary"}
        try:
            connection = await cls._open(make_conninfo("", **parameters), address)
        except psycopg.Error:
            return False
        connection.close()
        return True

    async def _set_up(self, address: PostgresAddress) -> None:
        # psycopg would prepare what runs often, under names of its own.
        self.connection.prepare_threshold = None
        ((version, *row),) = await self.rows(session.question(self.connection.pgconn.backend_pid))
        session.check_server(version)
        if session.is_own(row, address.options):
            await self.rows(session.setting(address.options, address.statement_seconds))
            self._prepares = True

    async def run(self, statement: Statement, values: Sequence[bytes | None]) -> PGresult:
        """Run a statement, with values in binary format. Raises psycopg.Error, and IntegrityError.

        Not in a transaction: there, use `run_unprepared`.
        """
        if self._prepares:
            try:
                return await self._run_prepared(statement, values)
            except UNPREPARED:
                # A pooler that looked like the server. The statement was not executed: either its text was not
                # parsed or its values were not taken.
                self._prepares = False
        return await self.run_unprepared(statement, values)

    async def run_unprepared(self, statement: Statement, values: Sequence[bytes | None]) -> PGresult:
        """As `run`, but the statement is parsed in the round trip that executes it, without a name.

        That needs nothing which was there before: every pooler passes it on, and no transaction can fail for want of
        a prepared statement.
        """
        sql = in_schema(statement.sql, self._schema)
        self.connection.pgconn.send_query_params(
            sql, values, statement.types, statement.formats, Format.BINARY
        )
        result = sound_result(await self._results())
        statement.check_types(result)
        return result

    async def _run_prepared(self, statement: Statement, values: Sequence[bytes | None]) -> PGresult:
        pgconn = self.connection.pgconn
        name = self._prepared.get(statement)
        if name is None:
            sql = in_schema(statement.sql, self._schema)
            name = prepared_name(sql)
            pgconn.send_prepare(name, sql, statement.types)
            sound_result(await self._results())
            self._prepared[statement] = name
        pgconn.send_query_prepared(name, values, statement.formats, Format.BINARY)
        result = sound_result(await self._results())
        if statement not in self._checked:
            statement.check_types(result)
            self._checked.add(statement)
        return result

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """A transaction, in an `async with` block: undone where that fails. In one of the host's, a savepoint.

        This and `copy` are not psycopg's, which hold its connection's lock while they hand over to the block: what
        interrupts them there leaves the connection locked, and whoever uses it next waits for ever.
        """
        inside = self.connection.pgconn.transaction_status != TransactionStatus.IDLE
        begin, undo, end = _SAVEPOINT if inside else _TRANSACTION
        await self._tell(begin)
        try:
            yield
        except BaseException:
            if inside:  # any other connection is closed now
                await self.give_up()
            if self.connection.pgconn.transaction_status in _CAN_UNDO:
                await self._tell(undo)
            raise
        await self._tell(end)

    async def give_up(self) -> None:
        """End what an interrupt left under way, so that the host's connection can be used again."""
        pgconn = self.connection.pgconn
        if pgconn.transaction_status != TransactionStatus.ACTIVE:
            return
        try:
            pgconn.put_copy_end(b"given up")
        except psycopg.OperationalError:  # what is under way is no copy, or its end was sent
            with suppress(psycopg.Error):
                await self._cancel()
        with suppress(psycopg.Error, TimeoutError):
            await self._results()

    async def _tell(self, command: bytes) -> None:
        """Have the server execute what gives no rows."""
        self.connection.pgconn.send_query(command)
        # By psycopg's generator: it has a pooler's refusal also where that disconnects at once.
        for result in await self._wait(generators.execute(self.connection.pgconn)):
            sound_result([result])

    async def copy(self, copy: Copy) -> None:
        """Copy rows into a table. Raises psycopg.Error."""
        pgconn = self.connection.pgconn
        pgconn.send_query(in_schema(copy.sql, self._schema))
        (begun,) = await self._wait(generators.execute(pgconn))
        if begun.status != ExecStatus.COPY_IN:
            raise psycopg.errors.error_from_result(begun)
        for start in range(0, len(copy.rows), _COPY_BYTES):
            await self._wait(generators.copy_to(pgconn, copy.rows[start : start + _COPY_BYTES]))
        await self._wait(generators.copy_end(pgconn, None))

    def is_told(self, setting: str) -> bool:
        """Whether the server has told, as it does from version 14 on, that a setting of its own is on.

        A pooler may pass on what was so when it connected, or nothing.
        """
        return self.connection.pgconn.parameter_status(setting.encode()) == b"on"

    def server_speaks(self) -> bool:
        """Whether the server has sent something unasked: to an idle client that is only that it disconnects."""
        return self._poll is not None and bool(self._poll(0))

    def close(self) -> None:
        """Close the connection for good; the server undoes what it had not committed."""
        self.connection.pgconn.finish()

    # How to wait.

    @classmethod
    @abstractmethod
    async def _open(cls, conninfo: str, address: PostgresAddress) -> Self: ...

    @abstractmethod
    async def _results(self) -> list[PGresult]:
        """The results of what was just sent. Raises psycopg.Error."""

    @abstractmethod
    async def rows(self, sql: str) -> Rows:
        """The rows of a statement that a connection runs once; none of a statement that gives none."""

    @abstractmethod
    async def _cancel(self) -> None:
        """Have the server cancel the statement under way. Raises psycopg.Error."""

    @abstractmethod
    async def _wait(self, generator: PQGen[RV]) -> RV:
        """What a generator of psycopg's returns, which says what its socket is to wait for."""


class BlockingConnection(Connection):
    """A connection that blocks the thread that waits for it."""

    connection: psycopg.Connection

    @classmethod
    async def _open(cls, conninfo: str, address: PostgresAddress) -> Self:
        connection = _BlockingPsycopg.connect(conninfo, autocommit=True)
        connection.answer_seconds = address.answer_seconds
        return cls(connection, address)

    async def _results(self) -> list[PGresult]:
        return await self._wait(generators.execute(self.connection.pgconn))

    async def _wait(self, generator: PQGen[RV]) -> RV:
        # Not Connection.wait: an interrupted connection is closed, so that nothing needs to be cancelled.
        socket = self.connection.pgconn.socket
        return waiting.wait(generator, socket, _INTERVAL_SECONDS, self._answer_seconds)

    async def _cancel(self) -> None:
        self.connection.cancel_safe(timeout=CANCEL_SECONDS_MAX)

    async def rows(self, sql: str) -> Rows:
        """As in Connection."""
        cursor = RawCursor(self.connection, row_factory=tuple_row)
        cursor.execute(in_schema(sql, self._schema))
        return [] if cursor.rownumber is None else cursor.fetchall()


class LoopConnection(Connection):
    """A connection whose socket stays with an event loop.

    Attributes:
        answers: what the server answers on it.
    """

    connection: psycopg.AsyncConnection

    def __init__(self, connection: _LoopPsycopg, address: PostgresAddress) -> None:
        super().__init__(connection, address)
        self.answers: Final = Answers(connection, address.answer_seconds)
        connection.answers = self.answers

    @classmethod
    async def _open(cls, conninfo: str, address: PostgresAddress) -> Self:
        connection = await _LoopPsycopg.connect(conninfo, autocommit=True)
        connection.answer_seconds = address.answer_seconds
        return cls(connection, address)

    async def _results(self) -> list[PGresult]:
        return await self.answers.next()

    async def rows(self, sql: str) -> Rows:
        """As in Connection."""
        cursor = AsyncRawCursor(self.connection, row_factory=tuple_row)
        await cursor.execute(in_schema(sql, self._schema))
        return [] if cursor.rownumber is None else await cursor.fetchall()

    async def _wait(self, generator: PQGen[RV]) -> RV:
        return await self.connection.wait(generator)

    async def _cancel(self) -> None:
        await self.connection.cancel_safe(timeout=CANCEL_SECONDS_MAX)

    def server_speaks(self) -> bool:
        """As in Connection; the loop may have read it already, before the server disconnects."""
        return self.answers.unasked or super().server_speaks()

    def close(self) -> None:
        """As in Connection."""
        self.answers.leave()
        super().close()


class _BlockingPsycopg(psycopg.Connection):
    """Waits for an answer for so long and no longer.

    Attributes:
        answer_seconds: until it is connected, the time that connecting takes bounds it too.
    """

    answer_seconds: float = STATEMENT_SECONDS + ANSWER_MARGIN_SECONDS

    def wait(self, gen: PQGen[RV], interval: float = _INTERVAL_SECONDS, timeout: float | None = None) -> RV:
        return super().wait(gen, interval, self.answer_seconds if timeout is None else timeout)


class _LoopPsycopg(psycopg.AsyncConnection):
    """Waits for an answer so long and no longer, with the socket for itself."""

    answers: Answers | None = None
    answer_seconds: float = STATEMENT_SECONDS + ANSWER_MARGIN_SECONDS

    async def wait(
        self, gen: PQGen[RV], interval: float = _INTERVAL_SECONDS, timeout: float | None = None
    ) -> RV:
        if self.answers is not None:
            self.answers.leave()
        return await super().wait(gen, interval, self.answer_seconds if timeout is None else timeout)
