"""The token store in one SQLite file: for one machine, and the default where no database server is at hand.

A write is acknowledged once it is on disk (WAL, synchronous=FULL); a crash leaves whole transactions. Any
number of threads and processes of one machine may share the file; network file systems will not do.

Records and events lie in the order of writing, with an index for each way to look them up: that writes half the pages
of a table clustered by the random token. There is no index on the key version: a scan for
records of an old key is rare, and reads some million rows a second without one.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any, Final, TypeVar

from tokenvault.errors import ConfigurationError, IntegrityError, InvalidInputError, TokenStoreError, boundary
from tokenvault.interrupts import is_interrupt
from tokenvault.stores.forks import Forkable, end_interrupted_hold, hold_still_at_forks
from tokenvault.stores.guard import TokenStoreBase
from tokenvault.stores.index_rows import IndexPlace, cursor_of, place_of
from tokenvault.stores.port import (
    MALFORMED_EVENT,
    PAGE_BYTES,
    PAGE_MAX,
    EventPage,
    Fence,
    FoundUse,
    SealedEvent,
    SealedRecord,
    TokenGroup,
    rows_of_a_page,
)
from tokenvault.stores.sqlite import sql, writes
from tokenvault.stores.sqlite.backup import back_up
from tokenvault.stores.sqlite.file import (
    SQLITE_VERSION_MIN,
    Connection,
    SqliteFile,
    explanation,
    is_unreadable,
)
from tokenvault.stores.sqlite.pool import Pool
from tokenvault.stores.write_limits import EVENT_BODY_BYTES_MAX

T = TypeVar("T")

BUSY_SECONDS_MAX: Final = 30.0
"""How long a call waits for other writers, of this process and of others, before TokenStoreError."""

_FORKED: Final = (
    "this process was forked while its parent was using the token store, and without Python's fork hooks; "
    "open the token store after the fork"
)


class SqliteTokenStore(TokenStoreBase, Forkable):
    """Token records, events and documents in one SQLite file.

    Opening does not touch the file. Where the process forks, connections are closed before and opened again
    after, in parent and child alike, so a store may be opened before a server forks its workers.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_seconds_max: float = BUSY_SECONDS_MAX) -> None:
        if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
            raise ConfigurationError(
                "the SQLite library is too old: 3.37 or newer is needed", code="STORE_LIBRARY_TOO_OLD"
            )
        name = _named(path)
        if type(busy_seconds_max) not in (int, float) or not 0 <= busy_seconds_max <= 3_600:
            raise InvalidInputError("busy_seconds_max is a number of seconds from 0 to 3600")
        self._file: Final = SqliteFile(name, busy_seconds_max)
        self._busy_seconds_max: Final = busy_seconds_max
        self._pool = self._new_pool()
        self._renewed: dict[int, Pool] = {}
        hold_still_at_forks(self)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy all that is committed to a new file, while vaults go on; it is a token store like this one.

        Never copy the file by other means from a process that has it open: that drops SQLite's locks on it.

        Args:
            path: of the copy, where no file is.

        Raises:
            InvalidInputError: there is a file, or the path is none.
            TokenStoreError: the file can not be read, or the copy not be written; there is no copy then.
            ConfigurationError: the file holds no token store.
        """
        self._guard_backup(_named(path))

    @boundary
    def _guard_backup(self, name: str) -> None:
        try:
            self._pool_here().read(lambda connection: back_up(connection, name))
        except (sqlite3.Error, OSError) as error:
            if is_interrupt(error):  # a time limit may be a TimeoutError
                raise
            raise TokenStoreError(self._explain(error), code=self._code(error)) from None

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
        end_interrupted_hold()
        pool = self._pool
        if pool.pid != os.getpid():
            # Forked by something else than Python, so no hook ran. The parent's connections, if it had any,
            # stay referenced in its pool: to close them here would touch the parent's file.
            if pool.open_count:
                raise TokenStoreError(_FORKED, code="STORE_FORKED")
            pool = self._renewed.setdefault(os.getpid(), self._new_pool())
            self._pool = pool
        return pool

    # Connections and statements.

    def _read(self, statement: str, values: Sequence[str | bytes | int] = ()) -> list[Any]:
        return self._reading(lambda connection: connection.run(statement, values))

    def _reading(self, work: Callable[[Connection], T]) -> T:
        """Do work that reads, with a connection of its own."""
        try:
            return self._pool_here().read(work)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if is_unreadable(error):
                raise IntegrityError("a stored row has a text or a size that was not written") from None
            raise

    def _write(self, work: Callable[[Connection], T]) -> T:
        """Do work that writes; an open transaction is undone where it fails."""

        def work_in_place(connection: Connection) -> T:
            result = work(connection)
            self._file.check_in_place(connection)  # last: what went elsewhere is not acknowledged
            return result

        return self._pool_here().write(work_in_place)

    def _transact(self, work: Callable[[Connection], list[str]]) -> list[str]:
        """Do work in a transaction; undo it where it refuses tokens, or fails."""

        def transaction(connection: Connection) -> list[str]:
            try:
                connection.run("BEGIN IMMEDIATE")
                refused = work(connection)
                connection.run("ROLLBACK" if refused else "COMMIT")
            except BaseException:
                # By one step (see `runtime`), the first: an interrupt may come before the pool closes the connection,
                # and other processes could not write then before this one does.
                try:  # noqa: SIM105 # a context manager is a call before it
                    connection.rollback()
                except sqlite3.Error:
                    pass
                raise
            return refused

        return self._write(transaction)

    # The port.

    def _provision(self) -> None:
        self._file.create()
        self._pool_here().write(self._file.create_schema, self._file.open_unchecked)

    def _check_schema(self) -> None:
        self._pool_here().read(lambda _: None, self._file.open)

    def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
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
        rows: list[Any] = []
        for size, chunk in sql.statements_of(pan_fingerprints):
            rows += self._read(sql.FIND[size, requestor is not None, program is not None], (*chunk, *filters))
        if len(pan_fingerprints) > 1:
            rows = sorted(rows)[:limit]  # by token first
        return list(map(SealedRecord._make, rows))

    def _by_reference(self, reference: bytes) -> SealedRecord | None:
        rows = self._read(sql.BY_REFERENCE, (reference,))
        return SealedRecord._make(rows[0]) if rows else None

    def _get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> FoundUse:
        statement = sql.BY_REFERENCE if isinstance(name, bytes) else sql.BY_TOKENS[1]

        def work(connection: Connection) -> FoundUse:
            # The record first: what is written in between is then seen in the events, or not at all.
            rows = connection.run(statement, (name,))
            if not rows:
                return FoundUse(None, [])
            record = SealedRecord._make(rows[0])
            return FoundUse(
                record, _events_of(connection, [(record.reference, use_id) for use_id in use_ids])
            )

        return self._reading(work)

    def _uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
        return self._reading(lambda connection: _events_of(connection, pairs)) if pairs else []

    def _list_tokens(
        self, requestor: str, program: str, status: int, after: tuple[int, str], limit: int
    ) -> list[SealedRecord]:
        rows = self._read(sql.LIST, (requestor, program, status, *after, limit))
        return list(map(SealedRecord._make, rows))

    def _groups(self) -> list[TokenGroup]:
        groups = [TokenGroup("", "", 0)]
        while found := self._read(sql.NEXT_GROUP, groups[-1]):
            groups.append(TokenGroup(*found[0]))
        return groups[1:]

    def _count(self, requestor: str, program: str, status: int) -> int:
        rows = self._read(sql.COUNT, (requestor, program, status))
        return int(rows[0][0]) if rows else 0

    def _find_customer(self, customer: str, after: str, limit: int) -> list[SealedRecord]:
        rows = self._read(sql.FIND_CUSTOMER, (customer, after, limit))
        return list(map(SealedRecord._make, rows))

    def _find_last4(self, last4_keys: Sequence[bytes], after: str, limit: int) -> list[SealedRecord]:
        keys = dict.fromkeys(last4_keys)
        rows = [row for key in keys for row in self._read(sql.FIND_LAST4, (key, after, limit))]
        return list(map(SealedRecord._make, sorted(rows)[:limit]))  # by token first

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        return self._transact(lambda connection: writes.insert_all(connection, records, events, document))

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        return self._transact(lambda connection: writes.replace_all(connection, records, events, fence))

    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        return self._transact(lambda connection: writes.replace_all(connection, (), events, fence))

    def _prune(self, events: Sequence[SealedEvent], records: Fence) -> None:
        self._transact(lambda connection: writes.prune_all(connection, events, records))

    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        def work(connection: Connection) -> list[Any]:
            fits = limit
            if limit * EVENT_BODY_BYTES_MAX > PAGE_BYTES:
                sizes = connection.run(sql.EVENT_SIZES, (stream, first, limit))
                fits = rows_of_a_page([size for (size,) in sizes])
            return connection.run(sql.EVENTS_OF_STREAM, (stream, first, fits))

        return list(starmap(SealedEvent, self._reading(work)))

    def _events_about(self, reference: bytes, after: bytes, limit: int) -> EventPage:
        rows = self._read(sql.EVENTS_ABOUT, (reference, *place_of(after), limit))
        events = [SealedEvent(*fields) for _, *fields in rows]
        return EventPage(events, cursor_of(*rows[-1][:3]) if len(rows) == limit else b"")

    def _index_rows(self, after: IndexPlace, limit: int) -> list[IndexPlace]:
        return list(map(IndexPlace._make, self._read(sql.INDEX_ROWS, (*after, limit))))

    def _streams(self) -> list[bytes]:
        return [stream for (stream,) in self._read(sql.STREAMS)]

    def _latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        return list(starmap(SealedEvent, self._read(sql.LATEST_CHECKPOINTS, (limit,))))

    def _put_domain(self, digest: bytes, document: bytes) -> None:
        if self._get_domain(digest) is not None:  # nearly always, and a read waits for nobody
            return
        self._write(lambda connection: connection.run(sql.PUT_DOMAIN, (digest, document)))

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
        if (existing := self._get_meta(name)) is not None:
            return existing
        self._write(lambda connection: connection.run(sql.PUT_META, (name, value)))
        rows = self._read(sql.GET_META, (name,))
        return rows[0][0] if rows else value

    def _close(self) -> None:
        self._pool_here().close()

    def _explain(self, error: Exception) -> str:
        if isinstance(error, sqlite3.Error):
            return explanation(error)[1]
        if isinstance(error, OSError):
            return f"the SQLite file can not be created: {os.strerror(error.errno or 0)}"
        return super()._explain(error)

    def _code(self, error: Exception) -> str:
        if isinstance(error, sqlite3.Error):
            return explanation(error)[0]
        return "STORE_FILE_NOT_OPENED" if isinstance(error, OSError) else super()._code(error)


def _named(path: str | os.PathLike[str]) -> str:
    """The absolute path, so that chdir makes no difference. Raises InvalidInputError."""
    try:
        name = os.path.abspath(os.fspath(path))
        os.fsencode(name)
    except (TypeError, ValueError):
        name = "\0"
    if type(name) is not str or "\0" in name:
        raise InvalidInputError("a SQLite file is named by a path that the file system can hold")
    return name


def _events_of(connection: Connection, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
    """The events of pairs of reference and use id; MALFORMED_EVENT for each that is not there."""
    places = dict.fromkeys(row for pair in pairs for row in connection.run(sql.EVENTS_OF_USE, pair))
    if len(places) > PAGE_MAX:
        return [MALFORMED_EVENT] * len(places)  # too many for any answer
    events = [SealedEvent(*row) for place in places for row in connection.run(sql.ONE_EVENT, place)]
    return events + [MALFORMED_EVENT] * (len(places) - len(events))
