"""The token store in PostgreSQL; `postgres_async` has the one with coroutines.

Every call is one statement and one round trip, but for batches that are inserted (see `statements`). A
connection prepares a statement when it first runs it, which costs one round trip more, once.

What an operator needs to know:
- The role that provisions owns the schema, or is given an empty one. Another role may run the vault with USAGE on the
  schema and SELECT, INSERT and UPDATE on its tables; nothing is ever deleted.
- What is acknowledged is as durable as the server's `synchronous_commit` says; leave it on.
- Behind a pooler that hands out connections by transaction: it has to pass on prepared statements (pgbouncer
  from 1.21, with `max_prepared_statements`) and to let the startup parameter `options` through or ignore it.
- A row that is partitioned by its token is found by it in one partition; `find`, `by_reference` and `scan` ask all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, TypeVar

import psycopg
from psycopg import RawCursor, generators, waiting
from psycopg.abc import RV, PQGen
from psycopg.conninfo import make_conninfo
from psycopg.pq import Format
from psycopg.pq.abc import PGconn, PGresult

from tokenvault.stores.forks import hold_still_at_forks
from tokenvault.stores.guard import TokenStoreBase
from tokenvault.stores.port import SealedEvent, SealedRecord, digest_of
from tokenvault.stores.postgres.address import ANSWER_SECONDS_MAX, parse_address
from tokenvault.stores.postgres.errors import MISSING, PRESENT, explanation, unconnected
from tokenvault.stores.postgres.pool import Held, Pool
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

_INTERVAL_SECONDS: Final = 0.1  # between looks at signals while waiting; psycopg's own


class _Connection(psycopg.Connection):
    """Waits for an answer so long and no longer."""

    def wait(self, gen: PQGen[RV], interval: float = _INTERVAL_SECONDS, timeout: float | None = None) -> RV:
        return super().wait(gen, interval, ANSWER_SECONDS_MAX if timeout is None else timeout)


class PostgresTokenStore(TokenStoreBase):
    """Token records, events and documents in a PostgreSQL database.

    Opening does not reach out for the server. A forked child opens connections of its own.

    Args:
        url: "postgresql://user:password@host:port/database", with options of libpq after a '?', and
            "schema=..." and "partitions=..." among them where the arguments are not given.
        schema: that the tables lie in; "tokenvault" unless set.
        partitions: where provisioning makes the tables, that of tokens is partitioned by a hash of the token into so
            many; 0 for a plain table.

    Raises:
        InvalidInputError: the address is of another form.
    """

    def __init__(self, url: str, *, schema: str | None = None, partitions: int | None = None) -> None:
        self._address: Final = parse_address(url, schema, partitions)
        self._statements: Final = Statements(self._address.schema)
        self._pools: dict[int, Pool] = {}  # by process
        self._former: list[Pool] = []
        hold_still_at_forks(self)

    # Around a fork.

    def before_fork(self, seconds_max: float) -> None:
        """Nothing: calls under way go on in the parent."""

    def after_fork_in_parent(self) -> None:
        """Nothing."""

    def after_fork_in_child(self) -> None:
        """Let go of the parent's connections."""
        inherited, self._pools = list(self._pools.values()), {}
        self._former += inherited
        for pool in inherited:
            pool.abandon()

    def _pool_here(self) -> Pool:
        pid = os.getpid()  # another one also after a fork that Python did not see
        return self._pools.get(pid) or self._pools.setdefault(pid, Pool(self._open))

    # Connections and statements.

    def _connect(self) -> psycopg.Connection:
        try:
            return _Connection.connect(make_conninfo("", **self._address.parameters), autocommit=True)
        except psycopg.Error as error:
            failure = unconnected(error)
        raise failure

    def _open(self) -> psycopg.Connection:
        connection = self._connect()
        try:
            check_version(_fetch(connection, version_statement(self._address.schema)))
        except BaseException as error:
            connection.close()
            if isinstance(error, MISSING):
                raise unprovisioned() from None
            raise
        return connection

    def _run(self, statement: Statement[_T]) -> _T:
        with self._pool_here().take() as held:
            result = _answer(held, statement)
        return statement.result(result)

    def _run_batch(self, batch: Batch) -> list[str]:
        try:
            return self._run_batch_once(batch, None if batch.looked_for else batch.existing)
        except psycopg.errors.UniqueViolation:
            if batch.existing is None:
                raise
        return self._run_batch_once(batch, batch.existing)

    def _run_batch_once(self, batch: Batch, look: Statement[list[str]] | None) -> list[str]:
        with self._pool_here().take() as held, held.connection.transaction():
            existing = look.result(_answer(held, look)) if look else []
            for copy in [] if existing else batch.copies():
                with RawCursor(held.connection).copy(copy.sql) as rows:
                    rows.write(copy.rows)
        return existing

    # The port.

    def _provision(self) -> None:
        connection = self._connect()
        try:
            with connection.transaction():
                steps = provisioning(self._address.schema, self._address.partitions)
                sql: bytes | None = next(steps)
                while sql is not None:
                    sql = following(steps, _fetch(connection, sql))
        except PRESENT:
            raise foreign() from None
        finally:
            connection.close()

    def _check_schema(self) -> None:
        try:
            with self._pool_here().take() as held:
                check_version(_fetch(held.connection, version_statement(self._address.schema)))
        except MISSING:
            raise unprovisioned() from None

    def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        return self._run(self._statements.get(tokens))

    def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> list[SealedRecord]:
        return self._run(self._statements.find(pan_fingerprints, requestor, program, after, limit))

    def _by_reference(self, reference: bytes) -> SealedRecord | None:
        return self._run(self._statements.by_reference(reference))

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        if len(records) == 1 and len(events) in FEW_EVENTS:
            return self._run(self._statements.insert_one(records[0], events, document))
        if document is not None:
            self._put_domain(digest_of(document), document)
        return self._run_batch(self._statements.insert_many(records, events))

    def _replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        return self._run(self._statements.replace(records, events))

    def _append(self, events: Sequence[SealedEvent]) -> None:
        if len(events) in FEW_EVENTS:
            self._run(self._statements.append_few(events))
        else:
            self._run_batch(self._statements.insert_many((), events))

    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        return self._run(self._statements.events_of_stream(stream, first, limit))

    def _events_about(self, reference: bytes, after: int, limit: int) -> list[SealedEvent]:
        return self._run(self._statements.events_about(reference, after, limit))

    def _streams(self) -> list[bytes]:
        return self._run(self._statements.streams())

    def _latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        return self._run(self._statements.latest_checkpoints(limit))

    def _put_domain(self, digest: bytes, document: bytes) -> None:
        self._run(self._statements.put_domain(digest, document))

    def _get_domain(self, digest: bytes) -> bytes | None:
        return self._run(self._statements.get_domain(digest))

    def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]:
        return self._run(self._statements.scan(after, limit, key_version))

    def _get_meta(self, name: str) -> bytes | None:
        return self._run(self._statements.get_meta(name))

    def _put_meta(self, name: str, value: bytes) -> bytes:
        standing = self._run(self._statements.put_meta(name, value))
        if standing is None:
            standing = self._run(self._statements.get_meta(name))
        return value if standing is None else standing

    def _close(self) -> None:
        self._pool_here().close()

    def _explain(self, error: Exception) -> str:
        return explanation(error) or super()._explain(error)


def _answer(held: Held[psycopg.Connection], statement: Statement[_T]) -> PGresult:
    query, values, _ = statement
    pgconn = held.connection.pgconn
    if query not in held.checked:
        pgconn.send_prepare(query.name, query.sql, query.takes)
        sound_result(_wait(pgconn))
        held.checked[query] = False
    pgconn.send_query_prepared(query.name, values, query.formats, Format.BINARY)
    result = sound_result(_wait(pgconn))
    if not held.checked[query]:
        check_types(query, result)
        held.checked[query] = True
    return result


def _wait(pgconn: PGconn) -> list[PGresult]:
    # Not Connection.wait: where it is interrupted, the connection is closed, so that nothing needs to be cancelled.
    return waiting.wait(generators.execute(pgconn), pgconn.socket, _INTERVAL_SECONDS, ANSWER_SECONDS_MAX)


def _fetch(connection: psycopg.Connection, sql: bytes) -> Rows:
    """The rows of a statement that a connection runs once."""
    cursor = RawCursor(connection)
    cursor.execute(sql)
    return [] if cursor.rownumber is None else cursor.fetchall()
