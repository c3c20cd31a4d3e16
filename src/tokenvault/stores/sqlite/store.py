"""The token store in one SQLite file: for one machine, and the default where no database server is at hand.

A write is acknowledged once it is on disk (WAL, synchronous=FULL); a crash leaves whole transactions. Any
number of threads and processes of one machine may share the file; network file systems will not do.

Rows lie in the order of writing, with an index for each way to look them up: that writes half the pages
of a table clustered by the random token. There is no index on the key version: a scan for
records of an old key is rare, and reads some million rows a second without one.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from tokenvault.errors import ConfigurationError, IntegrityError, InvalidInputError, TokenStoreError
from tokenvault.stores.forks import hold_still_at_forks
from tokenvault.stores.guard import TokenStoreBase
from tokenvault.stores.new_records import RecordBatch
from tokenvault.stores.port import SealedEvent, SealedRecord, digest_of
from tokenvault.stores.sqlite import sql
from tokenvault.stores.sqlite.file import (
    BUSY,
    SQLITE_VERSION_MIN,
    Connection,
    SqliteFile,
    explanation,
    is_unreadable,
    run,
)
from tokenvault.stores.sqlite.pool import Pool

P = ParamSpec("P")
T = TypeVar("T")

BUSY_SECONDS_MAX: Final = 30.0
"""How long a call waits for other writers, of this process and of others, before TokenStoreError."""

_FORKED: Final = (
    "this process was forked while its parent was using the token store, and without Python's fork hooks; "
    "open the token store after the fork"
)


class SqliteTokenStore(TokenStoreBase):
    """Token records, events and documents in one SQLite file.

    Opening does not touch the file. Where the process forks, connections are closed before and opened again
    after, in parent and child alike, so a store may be opened before a server forks its workers.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_seconds_max: float = BUSY_SECONDS_MAX) -> None:
        if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
            raise ConfigurationError("the SQLite library is too old: 3.37 or newer is needed")
        try:
            name = os.path.abspath(os.fspath(path))  # so that chdir makes no difference
            os.fsencode(name)
        except (TypeError, ValueError):
            name = "\0"
        if type(name) is not str or "\0" in name:
            raise InvalidInputError("a SQLite file is named by a path that the file system can hold")
        if type(busy_seconds_max) not in (int, float) or not 0 <= busy_seconds_max <= 3_600:
            raise InvalidInputError("busy_seconds_max is a number of seconds from 0 to 3600")
        self._file: Final = SqliteFile(name, busy_seconds_max)
        self._busy_seconds_max: Final = busy_seconds_max
        self._pool = self._new_pool()
        self._renewed: dict[int, Pool] = {}
        hold_still_at_forks(self)

    def _new_pool(self) -> Pool:
        pool = Pool(self._file.open, self._busy_seconds_max)
        # A store that is dropped unclosed takes its connections along: a fork would not find them any more.
        weakref.finalize(self, pool.close_own).atexit = False
        return pool

    # Around a fork.

    def before_fork(self, seconds_max: float) -> None:
        """Close all connections once they are idle."""
        self._pool.hold(seconds_max)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._pool.release()

    def after_fork_in_child(self) -> None:
        """Go on with connections of its own, unless it inherited some."""
        if not self._pool.open_count:
            self._pool = self._new_pool()

    def _pool_here(self) -> Pool:
        pool = self._pool
        if pool.pid != os.getpid():
            # Forked by something else than Python, so no hook ran. The parent's connections, if it had any,
            # stay referenced in its pool: to close them here would touch the parent's file.
            if pool.open_count:
                raise TokenStoreError(_FORKED)
            pool = self._renewed.setdefault(os.getpid(), self._new_pool())
            self._pool = pool
        return pool

    # Connections and statements.

    def _read(self, statement: str, values: Sequence[str | bytes | int]) -> list[Any]:
        pool = self._pool_here()
        connection = pool.take()
        try:
            rows = run(connection, statement, values, self._busy_seconds_max)
        except BaseException as error:
            pool.discard(connection)
            if is_unreadable(error):
                raise IntegrityError("a stored row has a text or a size that was not written") from None
            raise
        pool.give(connection)
        return rows

    def _write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do work that writes, with a connection, once this thread's turn has come."""
        pool = self._pool_here()
        if not pool.turns.take(self._busy_seconds_max):
            raise TokenStoreError(BUSY)
        try:
            connection = pool.take()
            try:
                result = work(connection, *args, **kwargs)
                self._file.check_place(connection)  # last: what went elsewhere is not acknowledged
            except BaseException:
                try:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                finally:
                    pool.discard(connection)
                raise
            pool.give(connection)
            return result
        finally:
            pool.turns.give()

    def _transact(
        self,
        connection: Connection,
        work: Callable[Concatenate[Connection, Sequence[SealedRecord], Sequence[SealedEvent], P], list[str]],
        records: Sequence[SealedRecord],
        events: Sequence[SealedEvent],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[str]:
        """Do the work in a transaction; undo it where it refuses tokens."""
        run(connection, "BEGIN IMMEDIATE", (), self._busy_seconds_max)
        refused = work(connection, records, events, *args, **kwargs)
        run(connection, "ROLLBACK" if refused else "COMMIT", (), self._busy_seconds_max)
        return refused

    # The port.

    def _provision(self) -> None:
        self._file.create()
        pool = self._pool_here()
        connection = pool.take_new(self._file.open_unchecked)
        try:
            self._file.create_schema(connection)
        finally:
            pool.discard(connection)

    def _check_schema(self) -> None:
        pool = self._pool_here()
        pool.discard(pool.take_new(self._file.open))

    def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        if len(tokens) == 1:
            return list(map(SealedRecord._make, self._read(sql.BY_TOKENS[1], tokens)))
        rows: list[Any] = []
        for size, chunk in sql.statements_of(tokens):
            rows += self._read(sql.BY_TOKENS[size], chunk)
        return list(map(SealedRecord._make, rows))

    def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> list[SealedRecord]:
        filters = [value for value in (after, requestor, program, limit) if value is not None]
        if len(pan_fingerprints) == 1:
            statement = sql.FIND[1, requestor is not None, program is not None]
            return list(map(SealedRecord._make, self._read(statement, (pan_fingerprints[0], *filters))))
        rows: list[Any] = []
        for size, chunk in sql.statements_of(pan_fingerprints):
            rows += self._read(sql.FIND[size, requestor is not None, program is not None], (*chunk, *filters))
        return list(map(SealedRecord._make, sorted(rows)[:limit]))  # by token first

    def _by_reference(self, reference: bytes) -> SealedRecord | None:
        rows = self._read(sql.BY_REFERENCE, (reference,))
        return SealedRecord(*rows[0]) if rows else None

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        return self._write(self._transact, _insert_all, records, events, document)

    def _replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        return self._write(self._transact, _replace_all, records, events)

    def _append(self, events: Sequence[SealedEvent]) -> None:
        if len(events) == 1:
            self._write(run, sql.APPEND, events[0], self._busy_seconds_max)
        else:
            self._write(self._transact, _append_all, (), events)

    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        return list(map(SealedEvent._make, self._read(sql.EVENTS_OF_STREAM, (stream, first, limit))))

    def _events_about(self, reference: bytes, after: int, limit: int) -> list[SealedEvent]:
        return list(map(SealedEvent._make, self._read(sql.EVENTS_ABOUT, (reference, limit, after))))

    def _streams(self) -> list[bytes]:
        return [stream for (stream,) in self._read(sql.STREAMS, ())]

    def _latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        return [SealedEvent(*row) for row in self._read(sql.HEADS, (limit,))]

    def _put_domain(self, digest: bytes, document: bytes) -> None:
        if self._get_domain(digest) is not None:  # nearly always, and a read waits for nobody
            return
        self._write(run, sql.PUT_DOMAIN, (digest, document), self._busy_seconds_max)

    def _get_domain(self, digest: bytes) -> bytes | None:
        rows = self._read(sql.GET_DOMAIN, (digest,))
        return rows[0][0] if rows else None

    def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]:
        if key_version is None:
            rows = self._read(sql.SCAN, (after, limit))
        else:
            rows = self._read(sql.SCAN_KEY_VERSION, (after, key_version, limit))
        return list(map(SealedRecord._make, rows))

    def _get_meta(self, name: str) -> bytes | None:
        rows = self._read(sql.GET_META, (name,))
        return rows[0][0] if rows else None

    def _put_meta(self, name: str, value: bytes) -> bytes:
        if (standing := self._get_meta(name)) is not None:
            return standing
        self._write(run, sql.PUT_META, (name, value), self._busy_seconds_max)
        rows = self._read(sql.GET_META, (name,))
        return rows[0][0] if rows else value

    def _close(self) -> None:
        self._pool_here().close()

    def _explain(self, error: Exception) -> str:
        if isinstance(error, sqlite3.Error):
            return explanation(error)
        if isinstance(error, OSError):
            return f"the SQLite file can not be created: {os.strerror(error.errno or 0)}"
        return super()._explain(error)


# What happens within a transaction.


def _insert_all(
    connection: Connection,
    records: Sequence[SealedRecord],
    events: Sequence[SealedEvent],
    document: bytes | None,
) -> list[str]:
    if len(records) == 1:
        if not connection.statement.execute(sql.INSERT, records[0]).rowcount:
            return [records[0].token]
    elif records:
        # Looked for first: to write a chunk of random tokens in vain takes ten times as long.
        existing = _existing(connection, records)
        if existing:
            return existing
        connection.statement.executemany(
            sql.INSERT, records.rows() if isinstance(records, RecordBatch) else records
        )
    if document is not None:
        connection.statement.execute(sql.PUT_DOMAIN, (digest_of(document), document))
    return _append_all(connection, (), events)


def _existing(connection: Connection, records: Sequence[SealedRecord]) -> list[str]:
    if isinstance(records, RecordBatch):
        tokens = [token.decode("ascii") for token in records.tokens]
    else:
        tokens = [record.token for record in records]
    found: list[Any] = []
    for size, chunk in sql.statements_of(tokens):
        found += connection.statement.execute(sql.EXISTING[size], chunk).fetchall()
    return [token for (token,) in found]


def _replace_all(
    connection: Connection, records: Sequence[SealedRecord], events: Sequence[SealedEvent]
) -> list[str]:
    if len(records) == 1:
        record = records[0]
        if (
            not connection.statement.execute(sql.REPLACE, _to_replace(record)).rowcount
            and not connection.statement.execute(sql.REPLACE_ALL, _to_replace_all(record)).rowcount
        ):
            return [record.token]
    elif records:
        connection.execute("SAVEPOINT clean")
        if connection.statement.executemany(sql.REPLACE, map(_to_replace, records)).rowcount != len(records):
            connection.execute("ROLLBACK TO clean")
            if connection.statement.executemany(
                sql.REPLACE_ALL, map(_to_replace_all, records)
            ).rowcount != len(records):
                connection.execute("ROLLBACK TO clean")
                return [r.token for r in records if _revision(connection, r.token) != r.revision - 1]
    return _append_all(connection, (), events)


def _to_replace(record: SealedRecord) -> tuple[str | bytes | int, ...]:
    return *record[3:], record.token, record.revision - 1, record.reference, record.pan_fingerprint


def _to_replace_all(record: SealedRecord) -> tuple[str | bytes | int, ...]:
    return *record[1:], record.token, record.revision - 1


def _append_all(
    connection: Connection, _: Sequence[SealedRecord], events: Sequence[SealedEvent]
) -> list[str]:
    if len(events) == 1:
        connection.statement.execute(sql.APPEND, events[0])
    elif events:
        connection.statement.executemany(sql.APPEND, events)
    return []


def _revision(connection: Connection, token: str) -> int | None:
    rows = connection.execute(sql.REVISION, (token,)).fetchall()
    return rows[0][0] if rows else None
