"""The token store in PostgreSQL with coroutines: the statements and rules of `postgres`, awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Final, TypeVar

import psycopg
from psycopg import AsyncRawCursor
from psycopg.abc import RV, PQGen
from psycopg.conninfo import make_conninfo
from psycopg.pq import Format
from psycopg.pq.abc import PGresult

from tokenvault.errors import TokenStoreError
from tokenvault.stores.forks import hold_still_at_forks
from tokenvault.stores.guard import AsyncTokenStoreBase
from tokenvault.stores.port import SealedEvent, SealedRecord, digest_of
from tokenvault.stores.postgres.address import ANSWER_SECONDS_MAX, parse_address
from tokenvault.stores.postgres.errors import MISSING, PRESENT, explanation, unconnected
from tokenvault.stores.postgres.pool import AsyncHeld, AsyncPool
from tokenvault.stores.postgres.schema import (
    Rows,
    check_version,
    following,
    foreign,
    provisioning,
    unprovisioned,
    version_statement,
)
from tokenvault.stores.postgres.statements import FEW_EVENTS, Batch, Statement, Statements
from tokenvault.stores.postgres.values import check_types, sound_result

_T = TypeVar("_T")

_INTERVAL_SECONDS: Final = 0.1  # between looks while waiting; psycopg's own
_OTHER_LOOP: Final = (
    "the token store is in use by another event loop: open one for each with open_async_token_store"
)


class _AsyncConnection(psycopg.AsyncConnection):
    """Waits for an answer so long and no longer."""

    async def wait(
        self, gen: PQGen[RV], interval: float = _INTERVAL_SECONDS, timeout: float | None = None
    ) -> RV:
        return await super().wait(gen, interval, ANSWER_SECONDS_MAX if timeout is None else timeout)


class AsyncPostgresTokenStore(AsyncTokenStoreBase):
    """As PostgresTokenStore, with coroutines, for the tasks of one event loop.

    A call that is cancelled is done wholly or not at all. Close it: its event loop keeps its connections until then.
    """

    def __init__(self, url: str, *, schema: str | None = None, partitions: int | None = None) -> None:
        self._address: Final = parse_address(url, schema, partitions)
        self._statements: Final = Statements(self._address.schema)
        self._pool: AsyncPool | None = None
        self._former: list[AsyncPool] = []
        hold_still_at_forks(self)

    # Around a fork.

    def before_fork(self, seconds_max: float) -> None:
        """Nothing: calls under way go on in the parent."""

    def after_fork_in_parent(self) -> None:
        """Nothing."""

    def after_fork_in_child(self) -> None:
        """Let go of the parent's connections."""
        if self._pool is not None:
            self._pool.abandon()

    def _pool_here(self) -> AsyncPool:
        pool = self._pool
        inherited = pool is not None and pool.pid != os.getpid()
        if pool is not None and not inherited:
            if pool.loop is asyncio.get_running_loop():
                return pool
            if not pool.loop.is_closed():
                raise TokenStoreError(_OTHER_LOOP)
            pool.close()
        elif pool is not None:
            self._former.append(pool)
        self._pool = pool = AsyncPool(self._open)
        return pool

    # Connections and statements.

    async def _connect(self) -> psycopg.AsyncConnection:
        try:
            return await _AsyncConnection.connect(
                make_conninfo("", **self._address.parameters), autocommit=True
            )
        except psycopg.Error as error:
            failure = unconnected(error)
        raise failure

    async def _open(self) -> psycopg.AsyncConnection:
        connection = await self._connect()
        try:
            check_version(await _fetch(connection, version_statement(self._address.schema)))
        except BaseException as error:
            connection.pgconn.finish()
            if isinstance(error, MISSING):
                raise unprovisioned() from None
            raise
        return connection

    async def _run(self, statement: Statement[_T]) -> _T:
        with await self._pool_here().take() as held:
            result = await _answer(held, statement)
        return statement.result(result)

    async def _run_batch(self, batch: Batch) -> list[str]:
        try:
            return await self._run_batch_once(batch, None if batch.looked_for else batch.existing)
        except psycopg.errors.UniqueViolation:
            if batch.existing is None:
                raise
        return await self._run_batch_once(batch, batch.existing)

    async def _run_batch_once(self, batch: Batch, look: Statement[list[str]] | None) -> list[str]:
        with await self._pool_here().take() as held:
            async with held.for_psycopg().transaction():
                existing = look.result(await _answer(held, look)) if look else []
                connection = held.for_psycopg()
                for copy in [] if existing else batch.copies():
                    async with AsyncRawCursor(connection).copy(copy.sql) as rows:
                        await rows.write(copy.rows)
        return existing

    # The port.

    async def _provision(self) -> None:
        connection = await self._connect()
        try:
            async with connection.transaction():
                steps = provisioning(self._address.schema, self._address.partitions)
                sql: bytes | None = next(steps)
                while sql is not None:
                    sql = following(steps, await _fetch(connection, sql))
        except PRESENT:
            raise foreign() from None
        finally:
            connection.pgconn.finish()

    async def _check_schema(self) -> None:
        try:
            with await self._pool_here().take() as held:
                check_version(await _fetch(held.for_psycopg(), version_statement(self._address.schema)))
        except MISSING:
            raise unprovisioned() from None

    async def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        return await self._run(self._statements.get(tokens))

    async def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> list[SealedRecord]:
        return await self._run(self._statements.find(pan_fingerprints, requestor, program, after, limit))

    async def _by_reference(self, reference: bytes) -> SealedRecord | None:
        return await self._run(self._statements.by_reference(reference))

    async def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        if len(records) == 1 and len(events) in FEW_EVENTS:
            return await self._run(self._statements.insert_one(records[0], events, document))
        if document is not None:
            await self._put_domain(digest_of(document), document)
        return await self._run_batch(self._statements.insert_many(records, events))

    async def _replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        return await self._run(self._statements.replace(records, events))

    async def _append(self, events: Sequence[SealedEvent]) -> None:
        if len(events) in FEW_EVENTS:
            await self._run(self._statements.append_few(events))
        else:
            await self._run_batch(self._statements.insert_many((), events))

    async def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        return await self._run(self._statements.events_of_stream(stream, first, limit))

    async def _events_about(self, reference: bytes, after: int, limit: int) -> list[SealedEvent]:
        return await self._run(self._statements.events_about(reference, after, limit))

    async def _streams(self) -> list[bytes]:
        return await self._run(self._statements.streams())

    async def _latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        return await self._run(self._statements.latest_checkpoints(limit))

    async def _put_domain(self, digest: bytes, document: bytes) -> None:
        await self._run(self._statements.put_domain(digest, document))

    async def _get_domain(self, digest: bytes) -> bytes | None:
        return await self._run(self._statements.get_domain(digest))

    async def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]:
        return await self._run(self._statements.scan(after, limit, key_version))

    async def _get_meta(self, name: str) -> bytes | None:
        return await self._run(self._statements.get_meta(name))

    async def _put_meta(self, name: str, value: bytes) -> bytes:
        standing = await self._run(self._statements.put_meta(name, value))
        if standing is None:
            standing = await self._run(self._statements.get_meta(name))
        return value if standing is None else standing

    async def _close(self) -> None:
        if self._pool is not None and self._pool.pid == os.getpid():
            self._pool.close()

    def _explain(self, error: Exception) -> str:
        return explanation(error) or super()._explain(error)


async def _answer(held: AsyncHeld, statement: Statement[_T]) -> PGresult:
    query, values, _ = statement
    pgconn, answers = held.connection.pgconn, held.answers
    if query not in held.checked:
        pgconn.send_prepare(query.name, query.sql, query.takes)
        sound_result(await answers.next())
        held.checked[query] = False
    pgconn.send_query_prepared(query.name, values, query.formats, Format.BINARY)
    result = sound_result(await answers.next())
    if not held.checked[query]:
        check_types(query, result)
        held.checked[query] = True
    return result


async def _fetch(connection: psycopg.AsyncConnection, sql: bytes) -> Rows:
    """The rows of a statement that a connection runs once."""
    cursor = AsyncRawCursor(connection)
    await cursor.execute(sql)
    return [] if cursor.rownumber is None else await cursor.fetchall()
