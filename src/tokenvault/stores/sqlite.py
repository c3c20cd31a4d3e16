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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from tokenvault.errors import ConfigurationError, IntegrityError, InvalidInputError, TokenStoreError
from tokenvault.stores._forks import hold_still_at_forks
from tokenvault.stores._sqlite_file import (
    BUSY,
    SQLITE_VERSION_MIN,
    Connection,
    SqliteFile,
    explanation,
    is_unreadable,
    run,
)
from tokenvault.stores._sqlite_pool import Pool
from tokenvault.stores.guard import TokenStoreBase
from tokenvault.stores.port import SealedEvent, SealedRecord
from tokenvault.stores.record_batch import RecordBatch

P = ParamSpec("P")
T = TypeVar("T")
_Key = TypeVar("_Key", str, bytes)

BUSY_SECONDS_MAX: Final = 30.0
"""How long a call waits for other writers, of this process and of others, before TokenStoreError."""

_KEYS_OF_ONE_STATEMENT: Final = (1, 16, 256)

_RECORD: Final = (
    "SELECT token, reference, account, requestor, program, revision, key_version, body, seal FROM tokens "
)
_NAMES: Final = "SELECT token FROM tokens "
_EVENT: Final = "SELECT stream, number, reference, body, mac FROM events "
_BY_TOKENS: Final = {n: _RECORD + f"WHERE token IN ({', '.join('?' * n)})" for n in _KEYS_OF_ONE_STATEMENT}
_FIND: Final = {
    (n, by_requestor, by_program): _RECORD
    + f"WHERE account IN ({', '.join('?' * n)}) AND token > ?"
    + (" AND requestor = ?" if by_requestor else "")
    + (" AND program = ?" if by_program else "")
    + " ORDER BY token LIMIT ?"
    for n in _KEYS_OF_ONE_STATEMENT
    for by_requestor in (False, True)
    for by_program in (False, True)
}
_BY_REFERENCE: Final = _RECORD + "WHERE reference = ? LIMIT 1"
_SCAN: Final = _RECORD + "WHERE token > ? ORDER BY token LIMIT ?"
_SCAN_KEY_VERSION: Final = _RECORD + "WHERE token > ? AND key_version = ? ORDER BY token LIMIT ?"
_EVENTS_OF_STREAM: Final = _EVENT + "WHERE stream = ? AND number >= ? ORDER BY number LIMIT ?"
_EVENTS_ABOUT: Final = _EVENT + "WHERE reference = ? ORDER BY position LIMIT ? OFFSET ?"
# One index look-up a stream, where DISTINCT reads every event.
_STREAMS: Final = """
    WITH RECURSIVE streams (stream) AS (
        SELECT min(stream) FROM events
        UNION ALL
        SELECT (SELECT min(stream) FROM events WHERE stream > streams.stream)
        FROM streams WHERE streams.stream IS NOT NULL
    ) SELECT stream FROM streams WHERE stream IS NOT NULL"""
# Likewise, from the other end.
_HEADS: Final = """
    WITH RECURSIVE newest (stream, remaining) AS (
        SELECT max(stream), ? FROM events
        UNION ALL
        SELECT (SELECT max(stream) FROM events WHERE stream < newest.stream), newest.remaining - 1
        FROM newest WHERE newest.stream IS NOT NULL AND newest.remaining > 1
    ) SELECT events.stream, number, reference, body, mac FROM newest CROSS JOIN events ON position = coalesce(
        (SELECT position FROM events WHERE reference = newest.stream ORDER BY position DESC LIMIT 1),
        (SELECT position FROM events WHERE stream = newest.stream ORDER BY number LIMIT 1)
    )"""

_EXISTING: Final = {n: _NAMES + f"WHERE token IN ({', '.join('?' * n)})" for n in _KEYS_OF_ONE_STATEMENT}
_INSERT: Final = "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (token) DO NOTHING"
# The usual replacement keeps reference and account. SQLite rewrites the indexes of every column that it is told to
# set, changed or not: a statement that leaves those two alone writes half the pages.
_REPLACE: Final = (
    "UPDATE tokens SET requestor = ?, program = ?, revision = ?, key_version = ?, body = ?, seal = ?"
    " WHERE token = ? AND revision = ? AND reference = ? AND account = ?"
)
_REPLACE_ALL: Final = (
    "UPDATE tokens SET reference = ?, account = ?, requestor = ?, program = ?, revision = ?,"
    " key_version = ?, body = ?, seal = ? WHERE token = ? AND revision = ?"
)
_APPEND: Final = "INSERT INTO events (stream, number, reference, body, mac) VALUES (?, ?, ?, ?, ?)"

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

    def _read(self, sql: str, values: Sequence[str | bytes | int]) -> list[Any]:
        pool = self._pool_here()
        connection = pool.take()
        try:
            rows = run(connection, sql, values, self._busy_seconds_max)
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
        work: Callable[[Connection, Sequence[SealedRecord], Sequence[SealedEvent]], list[str]],
        records: Sequence[SealedRecord],
        events: Sequence[SealedEvent],
    ) -> list[str]:
        """Do the work in a transaction; undo it where it refuses tokens."""
        run(connection, "BEGIN IMMEDIATE", (), self._busy_seconds_max)
        refused = work(connection, records, events)
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
            return list(map(SealedRecord._make, self._read(_BY_TOKENS[1], tokens)))
        rows: list[Any] = []
        for size, chunk in _statements_of(tokens):
            rows += self._read(_BY_TOKENS[size], chunk)
        return list(map(SealedRecord._make, rows))

    def _find(
        self, accounts: Sequence[bytes], requestor: str | None, program: str | None, after: str, limit: int
    ) -> list[SealedRecord]:
        filters = [value for value in (after, requestor, program, limit) if value is not None]
        if len(accounts) == 1:
            sql = _FIND[1, requestor is not None, program is not None]
            return list(map(SealedRecord._make, self._read(sql, (accounts[0], *filters))))
        rows: list[Any] = []
        for size, chunk in _statements_of(accounts):
            rows += self._read(_FIND[size, requestor is not None, program is not None], (*chunk, *filters))
        return list(map(SealedRecord._make, sorted(rows)[:limit]))  # by token first

    def _by_reference(self, reference: bytes) -> SealedRecord | None:
        rows = self._read(_BY_REFERENCE, (reference,))
        return SealedRecord(*rows[0]) if rows else None

    def _insert(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        return self._write(self._transact, _insert_all, records, events)

    def _replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        return self._write(self._transact, _replace_all, records, events)

    def _append(self, events: Sequence[SealedEvent]) -> None:
        if len(events) == 1:
            self._write(run, _APPEND, events[0], self._busy_seconds_max)
        else:
            self._write(self._transact, _append_all, (), events)

    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        return list(map(SealedEvent._make, self._read(_EVENTS_OF_STREAM, (stream, first, limit))))

    def _events_about(self, reference: bytes, after: int, limit: int) -> list[SealedEvent]:
        return list(map(SealedEvent._make, self._read(_EVENTS_ABOUT, (reference, limit, after))))

    def _streams(self) -> list[bytes]:
        return [stream for (stream,) in self._read(_STREAMS, ())]

    def _heads(self, limit: int) -> list[SealedEvent]:
        return [SealedEvent(*row) for row in self._read(_HEADS, (limit,))]

    def _put_domain(self, digest: bytes, document: bytes) -> None:
        if self._get_domain(digest) is not None:  # nearly always, and a read waits for nobody
            return
        sql = "INSERT INTO domains VALUES (?, ?) ON CONFLICT (digest) DO NOTHING"
        self._write(run, sql, (digest, document), self._busy_seconds_max)

    def _get_domain(self, digest: bytes) -> bytes | None:
        rows = self._read("SELECT document FROM domains WHERE digest = ?", (digest,))
        return rows[0][0] if rows else None

    def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]:
        if key_version is None:
            rows = self._read(_SCAN, (after, limit))
        else:
            rows = self._read(_SCAN_KEY_VERSION, (after, key_version, limit))
        return list(map(SealedRecord._make, rows))

    def _get_meta(self, name: str) -> bytes | None:
        rows = self._read("SELECT value FROM meta WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def _put_meta(self, name: str, value: bytes) -> bytes:
        if (standing := self._get_meta(name)) is not None:
            return standing
        sql = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
        self._write(run, sql, (name, value), self._busy_seconds_max)
        rows = self._read("SELECT value FROM meta WHERE name = ?", (name,))
        return rows[0][0] if rows else value

    def _close(self) -> None:
        self._pool_here().close()

    def _explain(self, error: Exception) -> str:
        if isinstance(error, sqlite3.Error):
            return explanation(error)
        if isinstance(error, OSError):
            return f"the SQLite file can not be created: {os.strerror(error.errno or 0)}"
        return super()._explain(error)


def _statements_of(keys: Sequence[_Key]) -> Iterator[tuple[int, list[_Key]]]:
    """Keys for statements of few sizes, so that few are kept prepared; the last is filled up with its last key."""
    wanted = list(dict.fromkeys(keys))
    size_max = _KEYS_OF_ONE_STATEMENT[-1]
    for start in range(0, len(wanted), size_max):
        chunk = wanted[start : start + size_max]
        size = next(n for n in _KEYS_OF_ONE_STATEMENT if n >= len(chunk))
        yield size, chunk + chunk[-1:] * (size - len(chunk))


# What happens within a transaction.


def _insert_all(
    connection: Connection, records: Sequence[SealedRecord], events: Sequence[SealedEvent]
) -> list[str]:
    if len(records) == 1:
        if not connection.statement.execute(_INSERT, records[0]).rowcount:
            return [records[0].token]
    elif records:
        # Looked for first: to write a chunk of random tokens in vain takes ten times as long.
        existing = _existing(connection, records)
        if existing:
            return existing
        connection.statement.executemany(
            _INSERT, records.rows() if isinstance(records, RecordBatch) else records
        )
    return _append_all(connection, (), events)


def _existing(connection: Connection, records: Sequence[SealedRecord]) -> list[str]:
    if isinstance(records, RecordBatch):
        tokens = [token.decode("ascii") for token in records.tokens]
    else:
        tokens = [record.token for record in records]
    found: list[Any] = []
    for size, chunk in _statements_of(tokens):
        found += connection.statement.execute(_EXISTING[size], chunk).fetchall()
    return [token for (token,) in found]


def _replace_all(
    connection: Connection, records: Sequence[SealedRecord], events: Sequence[SealedEvent]
) -> list[str]:
    if len(records) == 1:
        record = records[0]
        if (
            not connection.statement.execute(_REPLACE, _to_replace(record)).rowcount
            and not connection.statement.execute(_REPLACE_ALL, _to_replace_all(record)).rowcount
        ):
            return [record.token]
    elif records:
        connection.execute("SAVEPOINT clean")
        if connection.statement.executemany(_REPLACE, map(_to_replace, records)).rowcount != len(records):
            connection.execute("ROLLBACK TO clean")
            if connection.statement.executemany(_REPLACE_ALL, map(_to_replace_all, records)).rowcount != len(
                records
            ):
                connection.execute("ROLLBACK TO clean")
                return [r.token for r in records if _revision(connection, r.token) != r.revision - 1]
    return _append_all(connection, (), events)


def _to_replace(record: SealedRecord) -> tuple[str | bytes | int, ...]:
    return *record[3:], record.token, record.revision - 1, record.reference, record.account


def _to_replace_all(record: SealedRecord) -> tuple[str | bytes | int, ...]:
    return *record[1:], record.token, record.revision - 1


def _append_all(
    connection: Connection, _: Sequence[SealedRecord], events: Sequence[SealedEvent]
) -> list[str]:
    if len(events) == 1:
        connection.statement.execute(_APPEND, events[0])
    elif events:
        connection.statement.executemany(_APPEND, events)
    return []


def _revision(connection: Connection, token: str) -> int | None:
    rows = connection.execute("SELECT revision FROM tokens WHERE token = ?", (token,)).fetchall()
    return rows[0][0] if rows else None
