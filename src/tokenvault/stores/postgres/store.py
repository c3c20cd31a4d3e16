"""The token stores in PostgreSQL: one text, whose coroutines never suspend in the blocking store.

Every call is one statement and one round trip, but for batches that are inserted (see `copy`). A connection that has
a session of the server for itself prepares a statement when it first runs it, which costs one round trip more, once.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Awaitable, Callable, Sequence
from itertools import starmap
from typing import Any, ClassVar, Final, Self, TypeVar

import psycopg
from psycopg.pq.abc import PGresult

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import run
from tokenvault.stores.adapter import Adapter
from tokenvault.stores.forks import Forkable, hold_still_at_forks
from tokenvault.stores.guard import AsyncTokenStoreBase, TokenStoreBase
from tokenvault.stores.index_rows import IndexPlace, cursor_of, place_of
from tokenvault.stores.port import (
    PAGE_MAX,
    USE_EVENTS_MAX,
    EventPage,
    Fence,
    FoundUse,
    SealedEvent,
    SealedRecord,
    TokenGroup,
    digest_of,
)
from tokenvault.stores.postgres import sql
from tokenvault.stores.postgres.address import parse_address
from tokenvault.stores.postgres.arguments import columns_of, event_columns, event_values
from tokenvault.stores.postgres.connection import BlockingConnection, Connection, LoopConnection
from tokenvault.stores.postgres.copy import copy_of, tokens_of
from tokenvault.stores.postgres.errors import explanation
from tokenvault.stores.postgres.pool import BlockingPool, LoopPool, Pool
from tokenvault.stores.postgres.schema import check_version, provision
from tokenvault.stores.postgres.statements import RECORD, TOKEN_COUNT, Statement, read_record_columns
from tokenvault.stores.postgres.within import Held, HeldLoopConnection, hold
from tokenvault.stores.token_counts import counts_of, sorted_changes

T = TypeVar("T")


class _PostgresStore(Adapter, Forkable):
    """What the blocking store and the one with coroutines share."""

    _connection_type: ClassVar[type[Connection]]
    _held_type: ClassVar[type[BlockingConnection | HeldLoopConnection]]
    _held: Held | None = None
    _pool_type: ClassVar[type[BlockingPool | LoopPool]]

    def __init__(
        self,
        url: str,
        *,
        schema: str | None = None,
        partitions: int | None = None,
        connections: int | None = None,
        wait_seconds: int | None = None,
        statement_seconds: int | None = None,
    ) -> None:
        self._address: Final = parse_address(
            url,
            schema,
            partitions=partitions,
            connections=connections,
            wait_seconds=wait_seconds,
            statement_seconds=statement_seconds,
        )
        self._pools: dict[int, Pool] = {}  # by process
        self._abandoned: list[Pool] = []
        hold_still_at_forks(self)

    def after_fork_in_child(self) -> None:
        """Let go of the parent's connections."""
        inherited = list(self._pools.values())
        self._abandoned += inherited
        for pool in inherited:
            pool.abandon()
        self._pools = {}

    # Connections and statements.

    async def _use(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        return await (self._held or self._pool_here()).use(work)

    def _pool_here(self) -> Pool:
        pid = os.getpid()  # another one also after a fork that Python did not see
        pool = self._pools.get(pid)
        if pool is not None and pool.is_over():
            pool.close()
            del self._pools[pid]
            pool = None
        return pool or self._pools.setdefault(pid, self._new_pool())

    def _new_pool(self) -> Pool:
        return self._pool_type(self._open, self._address.connections, self._address.wait_seconds)

    async def _within(self, connection: object) -> Self:
        """A store over a connection of the host's, in its transaction."""
        try:
            held = await hold(connection, self._held_type, self._address)
        except psycopg.Error as error:
            failure = TokenStoreError(self._explain(error), code=self._code(error))
        else:
            inside = copy.copy(self)
            inside._held = held
            return inside
        raise failure

    async def _writers(self) -> list[str]:
        """The transactions that have written records or events and are not over."""
        return await self._firsts(sql.WRITERS)

    async def _open(self) -> Connection:
        connection = await self._connection_type.open(self._address)
        try:
            await check_version(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _run(self, statement: Statement, *values: Any) -> PGresult:
        packed = statement.packed(values)
        return await self._use(lambda connection: connection.run(statement, packed))

    async def _firsts(self, statement: Statement, *values: Any) -> list[Any]:
        """The values of a statement that gives one column."""
        return [value for (value,) in statement.rows(await self._run(statement, *values))]

    async def _records(self, statement: Statement, *values: Any) -> list[SealedRecord]:
        return list(map(SealedRecord._make, statement.rows(await self._run(statement, *values))))

    async def _events(self, statement: Statement, *values: Any) -> list[SealedEvent]:
        return list(starmap(SealedEvent, statement.rows(await self._run(statement, *values))))

    async def _insert_batch(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]
    ) -> list[str]:
        """Insert by COPY, in one transaction; returns the tokens that existed.

        PostgreSQL would log the token of a unique violation, so COPY is tried only where a look finds no token that
        exists. A token that another writer puts in between is a unique violation: nothing is written, and the batch
        done again finds that token.
        """
        copy, tokens = copy_of(records), tokens_of(records)
        note, values = _appending(events, ())
        noted = note.packed(values)
        groups = sorted_changes(counts_of(records))
        counted = sql.ADD_TO_COUNTS.packed(
            columns_of([(*group, number) for group, number in groups], TOKEN_COUNT)
        )

        async def copy_all(connection: Connection) -> list[str]:
            async with connection.transaction():
                look = sql.EXISTING
                found = look.rows(await connection.run_unprepared(look, look.packed([tokens])))
                existing = [token for (token,) in found]
                if existing:
                    return existing
                await connection.copy(copy)
                if events:
                    await connection.run_unprepared(note, noted)
                await connection.run_unprepared(sql.ADD_TO_COUNTS, counted)
            return []

        try:
            return await self._use(copy_all)
        except psycopg.errors.UniqueViolation:
            pass
        return await self._use(copy_all)

    # The port.

    async def _provision(self) -> None:
        connection = await self._connection_type.open(self._address)
        try:
            await provision(connection, self._address.partitions)
        finally:
            connection.close()

    async def _check_schema(self) -> None:
        await self._use(check_version)

    async def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        if len(tokens) == 1:
            return await self._records(sql.GET_ONE, tokens[0])
        # In order, as PostgreSQL walks its index: neighbours lie in the same pages.
        return read_record_columns(await self._run(sql.GET_MANY, sorted(tokens)))

    async def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> list[SealedRecord]:
        rest = requestor, program, after, limit
        if len(pan_fingerprints) == 1:
            return await self._records(sql.FIND_ONE, pan_fingerprints[0], *rest)
        return await self._records(sql.FIND_MANY, pan_fingerprints, *rest)

    async def _by_reference(self, reference: bytes) -> SealedRecord | None:
        return next(iter(await self._records(sql.BY_REFERENCE, reference)), None)

    async def _get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> FoundUse:
        statement = sql.USE_OF_TOKEN if isinstance(name, str) else sql.USE_OF_REFERENCE
        rows = statement.rows(await self._run(statement, name, use_ids, USE_EVENTS_MAX + 1))
        if not rows:
            return FoundUse(None, [])
        width = len(RECORD)
        events = [SealedEvent(*row[width:]) for row in rows]
        return FoundUse(SealedRecord._make(rows[0][:width]), [event for event in events if event.number])

    async def _uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
        return await self._events(sql.USES, *columns_of(pairs, ("reference", "use_id")), PAGE_MAX + 1)

    async def _list_tokens(
        self, requestor: str, program: str, status: int, after: tuple[int, str], limit: int
    ) -> list[SealedRecord]:
        return await self._records(sql.LIST, requestor, program, status, *after, limit)

    async def _groups(self) -> list[TokenGroup]:
        return list(starmap(TokenGroup, sql.GROUPS.rows(await self._run(sql.GROUPS))))

    async def _count(self, requestor: str, program: str, status: int) -> int:
        (count,) = await self._firsts(sql.COUNT, requestor, program, status)
        return int(count)

    async def _find_customer(self, customer: str, after: str, limit: int) -> list[SealedRecord]:
        return await self._records(sql.FIND_CUSTOMER, customer, after, limit)

    async def _find_last4(self, last4_keys: Sequence[bytes], after: str, limit: int) -> list[SealedRecord]:
        return await self._records(sql.FIND_LAST4, last4_keys, after, limit)

    async def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        if len(records) == 1 and len(events) in sql.FEW_EVENTS:
            if document is None:
                return await self._firsts(sql.INSERT[len(events)], *records[0], *event_values(events))
            kept = digest_of(document), document
            statement = sql.INSERT_WITH_DOCUMENT[len(events)]
            return await self._firsts(statement, *records[0], *kept, *event_values(events))
        if document is not None:
            await self._put_domain(digest_of(document), document)
        if records:
            return await self._insert_batch(records, events)
        return await self._append(events, ()) if events else []

    async def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        if len(records) == 1 and len(events) in sql.FEW_EVENTS and not fence:
            unmoved = await self._firsts(sql.REPLACE_ONE[len(events)], *records[0], *event_values(events))
            if not any(unmoved):
                return [records[0].token for _ in unmoved]
        columns = (
            *columns_of(records, RECORD),
            *event_columns(events),
            *columns_of(fence, ("token", "revision")),
        )
        return await self._firsts(sql.REPLACE_MANY, *columns)

    async def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        statement, values = _appending(events, fence)
        return await self._firsts(statement, *values)

    async def _prune(self, events: Sequence[SealedEvent], records: Fence) -> None:
        streams, numbers, *_, references, use_ids, of_streams, of_numbers = event_columns(events)
        named = columns_of(records, ("token", "revision"))
        await self._run(sql.PRUNE, *named, streams, numbers, references, use_ids, of_streams, of_numbers)

    async def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        return await self._events(sql.EVENTS_OF_STREAM, stream, first, limit)

    async def _events_about(self, reference: bytes, after: bytes, limit: int) -> EventPage:
        about = sql.EVENTS_ABOUT
        rows = about.rows(await self._run(about, reference, *place_of(after), limit))
        events = [SealedEvent(*fields) for _, *fields in rows]
        return EventPage(events, cursor_of(*rows[-1][:3]) if len(rows) == limit else b"")

    async def _index_rows(self, after: IndexPlace, limit: int) -> list[IndexPlace]:
        return list(
            map(IndexPlace._make, sql.INDEX_ROWS.rows(await self._run(sql.INDEX_ROWS, *after, limit)))
        )

    async def _streams(self) -> list[bytes]:
        return await self._firsts(sql.STREAMS)

    async def _latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        return await self._events(sql.LATEST_CHECKPOINTS, limit)

    async def _put_domain(self, digest: bytes, document: bytes) -> None:
        await self._run(sql.PUT_DOMAIN, digest, document)

    async def _get_domain(self, digest: bytes) -> bytes | None:
        return next(iter(await self._firsts(sql.GET_DOMAIN, digest)), None)

    async def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]:
        if key_version is None:
            return await self._records(sql.SCAN, after, limit)
        return await self._records(sql.SCAN_KEY_VERSION, after, limit, key_version)

    async def _get_meta(self, name: str) -> bytes | None:
        return next(iter(await self._firsts(sql.GET_META, name)), None)

    async def _put_meta(self, name: str, value: bytes) -> bytes:
        written = await self._firsts(sql.PUT_META, name, value)
        existing: bytes | None = written[0] if written else await self._get_meta(name)
        return value if existing is None else existing

    async def _close(self) -> None:
        # Made where there is none yet, so that a call under way finds it closed.
        self._pools.setdefault(os.getpid(), self._new_pool()).close()

    def _explain(self, error: Exception) -> str:
        explained = explanation(error)
        return super()._explain(error) if explained is None else explained.text

    def _code(self, error: Exception) -> str:
        explained = explanation(error)
        return super()._code(error) if explained is None else explained.code


class PostgresTokenStore(_PostgresStore, TokenStoreBase):
    """Token records, events and documents in a PostgreSQL database.

    Opening does not connect. A forked child opens connections of its own.

    What an operator needs to know:

    - The role that provisions owns the schema, or is given an empty one. Another role may run the vault with USAGE on
      the schema and SELECT, INSERT and UPDATE on its tables. One that purges needs DELETE, too.
    - What is acknowledged is as durable as the server's `synchronous_commit` says; where it is off, the store refuses
      to work unless its own address sets it.
    - A pooler may stand in between that hands out connections by session or by transaction (PgBouncer's
      `pool_mode`), with prepared statements or without. `default_transaction_isolation` then has to be "read
      committed", which is the server's default.
    - Where the table of tokens is partitioned, a token is looked for in one partition; `find`, `by_reference` and
      `scan` look in all.

    Args:
        url: "postgresql://user:password@host:port/database", with options of libpq after a '?', and
            those of the arguments below that are not given among them, such as "schema=..." and "connections=...".
        schema: the schema of the tables; "tokenvault" unless set.
        partitions: how many the table of tokens is divided into, by a hash of the token, when provisioning makes it;
            0 for a plain table.
        connections: the most that are open at once, for each process, from 1 to 1,000; 16 unless set.
        wait_seconds: how long a caller waits for one of them to come free, from 0 to 3,600; 10 unless set.
        statement_seconds: how long the server works on one statement, waiting for locks included, from 1 to 3,600;
            20 unless set. The call waits 5 seconds longer, in case the server hangs.

    Raises:
        InvalidInputError: the address is of another form.
    """

    def writers(self) -> set[str]:
        """The transactions that have written and are not over: a rotation of keys waits for them."""
        return set(run(self._writers()))

    _connection_type = BlockingConnection
    _held_type = BlockingConnection
    _pool_type = BlockingPool

    def within(self, connection: object) -> PostgresTokenStore:
        """The same store over a connection of the host's own, in its transaction: see `Vault.within`.

        Args:
            connection: psycopg's, or SQLAlchemy's connection or session over it, with a transaction.

        Raises:
            InvalidInputError: it is none of these.
            ConfigurationError: it has no transaction, or one that is not durable or only reads.
            TokenStoreError: the server can not be asked.
        """
        return run(self._within(connection))


class AsyncPostgresTokenStore(_PostgresStore, AsyncTokenStoreBase):
    """As PostgresTokenStore, with coroutines, for the tasks of one event loop.

    A call that is cancelled is done wholly or not at all. Close it: its event loop keeps its connections until then.
    """

    async def writers(self) -> set[str]:
        """As `PostgresTokenStore.writers`."""
        return set(await self._writers())

    _connection_type = LoopConnection
    _held_type = HeldLoopConnection
    _pool_type = LoopPool

    async def within(self, connection: object) -> AsyncPostgresTokenStore:
        """As `PostgresTokenStore.within`, for connections with coroutines."""
        return await self._within(connection)


def _appending(events: Sequence[SealedEvent], fence: Fence) -> tuple[Statement, list[Any]]:
    """The statement that appends events alone, and its values."""
    if len(events) in sql.FEW_EVENTS and not fence:
        return sql.APPEND[len(events)], event_values(events)
    if len(events) in sql.FEW_EVENTS and len(fence) == 1:
        return sql.APPEND_FENCED[len(events)], [*fence[0], *event_values(events)]
    columns = *columns_of([], RECORD), *event_columns(events), *columns_of(fence, ("token", "revision"))
    return sql.APPEND_MANY, list(columns)
