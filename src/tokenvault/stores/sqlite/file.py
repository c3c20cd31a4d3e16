"""One SQLite file as a token store uses it: schema, connections, statements that wait, what errors mean."""

from __future__ import annotations

import functools
import inspect
import os
import sqlite3
import stat
import sys
import time
import urllib.parse
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from tokenvault.errors import ConfigurationError, TokenStoreError
from tokenvault.interrupts import exists, is_interrupt
from tokenvault.runtime import close_all, put_result
from tokenvault.stores import schema_versions
from tokenvault.stores.schema_versions import OLDEST_SERVED, SCHEMA_VERSION, SchemaStatus

APPLICATION_ID: Final = 0x746B7674  # "tkvt"
SQLITE_VERSION_MIN: Final = (3, 37, 0)  # STRICT tables

_BUSY_PAUSE_SECONDS_MIN: Final = 0.0005
_BUSY_PAUSE_SECONDS_MAX: Final = 0.004
_ROW_BYTES_MAX: Final = 2**23  # the largest document is half of it
_JOURNAL_BYTES_KEPT_MAX: Final = 64 * 2**20
_SECONDS_MAX: Final = 253_402_300_799  # to the year 9999

NOW: Final = "CAST(strftime('%s', 'now') AS INTEGER)"
_SCHEMA: Final = (
    """CREATE TABLE tokens (
        token TEXT NOT NULL PRIMARY KEY,
        reference BLOB NOT NULL,
        pan_fingerprint BLOB NOT NULL,
        requestor TEXT NOT NULL,
        program TEXT NOT NULL,
        revision INTEGER NOT NULL,
        key_version INTEGER NOT NULL,
        body BLOB NOT NULL,
        seal BLOB NOT NULL,
        customer TEXT NOT NULL,
        last4_key BLOB NOT NULL,
        status INTEGER NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX tokens_by_reference ON tokens (reference)",
    "CREATE INDEX tokens_by_pan_fingerprint ON tokens (pan_fingerprint, token)",
    "CREATE INDEX tokens_by_group ON tokens (requestor, program, status, created_ms, token)",
    "CREATE INDEX tokens_by_customer ON tokens (customer, token) WHERE customer <> ''",
    "CREATE INDEX tokens_by_last4_key ON tokens (last4_key, token) WHERE last4_key <> x''",
    """CREATE TABLE token_counts (
        requestor TEXT NOT NULL,
        program TEXT NOT NULL,
        status INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        PRIMARY KEY (requestor, program, status)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE events (
        stream BLOB NOT NULL,
        number INTEGER NOT NULL,
        reference BLOB NOT NULL,
        body BLOB NOT NULL,
        mac BLOB NOT NULL,
        PRIMARY KEY (stream, number)
    ) STRICT""",
    """CREATE TABLE event_index (
        reference BLOB NOT NULL,
        use_id BLOB NOT NULL,
        stream BLOB NOT NULL,
        number INTEGER NOT NULL,
        PRIMARY KEY (reference, use_id, stream, number)
    ) STRICT, WITHOUT ROWID""",
    "CREATE TABLE domains (digest BLOB NOT NULL PRIMARY KEY, document BLOB NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE meta (name TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID",
    # Beside `user_version`, which releases that know no two numbers compare with their own.
    "CREATE TABLE schema_version (reached INTEGER NOT NULL, upgraded INTEGER NOT NULL) STRICT",
    f"INSERT INTO schema_version VALUES ({SCHEMA_VERSION}, {NOW})",  # noqa: S608 # both of this module
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {OLDEST_SERVED}",
)
_PRAGMAS: Final = (
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA secure_delete = FAST",  # rows are sealed; what costs no further page is overwritten all the same
    "PRAGMA trusted_schema = OFF",
    f"PRAGMA journal_size_limit = {_JOURNAL_BYTES_KEPT_MAX}",
)

_UNPROVISIONED: Final = (
    "the SQLite file holds no token store yet: call tokenvault.provision(keys, store) once"
)
_FOREIGN: Final = "the file is not a token store but something else; look at the path in the store's URL"
_PLACE: Final = "SQLite file"
_REMEDY: Final = "provision another file"
_MOVED: Final = (
    "the SQLite file was removed, moved or replaced under this process, which may have written to it where it is "
    "now: put it back, or call again to go on with the file that is there"
)
_WRITTEN_MEANWHILE: Final = (
    "a vault began to write the SQLite file while this process, which may only read it, did so: call again"
)
BUSY: Final = (
    "other writers held the SQLite file for longer than a call waits; look for a process that keeps a "
    "transaction open, such as a database shell"
)
_EXPLANATIONS: Final = {
    sqlite3.SQLITE_BUSY: ("STORE_BUSY", BUSY),
    sqlite3.SQLITE_LOCKED: ("STORE_BUSY", BUSY),
    sqlite3.SQLITE_NOMEM: ("STORE_OUT_OF_MEMORY", "SQLite got no memory"),
    sqlite3.SQLITE_READONLY: (
        "STORE_READ_ONLY",
        "the SQLite file or its folder is read-only: this process has to write both",
    ),
    sqlite3.SQLITE_IOERR: (
        "STORE_DISK_FAILED",
        "the disk under the SQLite file failed to read or write; see the system's log",
    ),
    sqlite3.SQLITE_CORRUPT: ("STORE_DAMAGED", "the SQLite file is damaged: restore it from a backup"),
    sqlite3.SQLITE_FULL: (
        "STORE_DISK_FULL",
        "the disk under the SQLite file is full; nothing was written",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "STORE_FILE_NOT_OPENED",
        "the SQLite file can not be opened: look at its path and permissions, "
        "and at those of its folder, in which SQLite has to create two files more",
    ),
    sqlite3.SQLITE_CONSTRAINT: ("STORE_EVENT_EXISTS", "an audit event exists already; nothing was written"),
    sqlite3.SQLITE_NOTADB: ("STORE_FOREIGN", _FOREIGN),
}
"""By SQLite's code: the code and the text for a caller."""


class Connection(sqlite3.Connection):
    """A connection, with what the store keeps for it.

    Attributes:
        busy_seconds_max: how long a statement waits for other processes.
        opened_on: the file that it was opened on, by device and number.
        statement: runs one statement after another: a cursor of its own for each takes a fifth of its time.
        unchanged: of a connection that reads without locks, whether the file is still as it was opened; else None.
    """

    busy_seconds_max: float
    opened_on: tuple[int, int] | None
    statement: sqlite3.Cursor
    unchanged: Callable[[], bool] | None = None

    def run(self, sql: str, values: Sequence[str | bytes | int] = ()) -> list[Any]:
        """All rows of a statement, tried again while other processes hold the file.

        Not by SQLite's own busy timeout: its naps grow to 100 ms, in which busy neighbors get the file again and
        again, and nothing interrupts them.
        """
        deadline = None
        pause = _BUSY_PAUSE_SECONDS_MIN
        while True:
            try:
                rows = self.statement.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                now = time.monotonic()
                deadline = deadline or now + self.busy_seconds_max
                if _code(error) != sqlite3.SQLITE_BUSY or now > deadline:
                    raise
            else:
                if self.unchanged is not None and not self.unchanged():
                    raise TokenStoreError(_WRITTEN_MEANWHILE, code="STORE_BUSY")
                return rows
            time.sleep(pause)
            pause = min(2 * pause, _BUSY_PAUSE_SECONDS_MAX)

    def close(self) -> None:
        """Undo an open transaction, close the cursor, and then the connection. Idempotent; raises nothing of SQLite.

        A statement that the cursor holds would keep the file open, and the transaction.
        """
        with suppress(AttributeError, sqlite3.Error):  # interrupted while it was opened, or closed before
            self.statement.close()
        with suppress(sqlite3.Error):
            if self.in_transaction:
                self.execute("ROLLBACK")
        with suppress(sqlite3.Error):
            super().close()


class SqliteFile:
    """Where the file is, and how connections to it are opened.

    A connection is opened into a list, in one step (see `runtime`): the caller closes what is there, also where
    opening it was interrupted.
    """

    def __init__(self, path: str, busy_seconds_max: float) -> None:
        self._busy_seconds_max: Final = busy_seconds_max
        self._path: Final = path
        self._uri: Final = "file:" + urllib.parse.quote(os.fsencode(path))
        self._connect: Final = functools.partial(
            Connection, uri=True, timeout=0, isolation_level=None, check_same_thread=False
        )

    def open(self, place: list[Connection]) -> None:
        """Open a connection, once the schema is there. Raises ConfigurationError where it is not."""
        self.open_unchecked(place)
        check_current(read_status(place[-1]))

    def open_unchecked(self, place: list[Connection]) -> None:
        """Open a connection to whatever the file holds.

        An auditor may read the file and write neither it nor its folder. While a vault has it open, SQLite reads
        along. While none has, SQLite would have to create two files: then the file is read without them and without
        locks, for as long as nobody writes it.
        """
        before = self._state()
        try:
            self._open(place, "?mode=rw")
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_READONLY or before is None:
                raise
            close_all(place)
            self._open(place, "?mode=ro&immutable=1")
            place[-1].unchanged = lambda: self._state() == before

    def _state(self) -> tuple[int, ...] | None:
        """What changes when a vault writes to the file; None while one has it open for writing."""
        if exists(f"{self._path}-wal"):
            return None
        try:
            found = os.stat(self._path)
        except OSError as error:
            if is_interrupt(error):  # a time limit may be a TimeoutError
                raise
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _open(self, place: list[Connection], options: str) -> None:
        try:
            put_result(place, self._connect, self._uri + options)
            connection = place[-1]
            connection.busy_seconds_max = self._busy_seconds_max
            connection.opened_on = self._file_there()
            connection.statement = connection.cursor()
        except sqlite3.OperationalError:
            if exists(self._path):
                raise
            raise ConfigurationError(_UNPROVISIONED, code="STORE_NOT_PROVISIONED") from None
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _ROW_BYTES_MAX)
        for pragma in _PRAGMAS:
            connection.run(pragma)

    def check_in_place(self, connection: Connection) -> None:
        """Raise TokenStoreError where the path no longer names the file that the connection writes to.

        The system lets it write on to a file that was removed or replaced, and what it writes is lost.
        """
        if connection.opened_on != self._file_there():
            raise TokenStoreError(_MOVED, code="STORE_MOVED")

    def _file_there(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError as error:
            if is_interrupt(error):  # a time limit may be a TimeoutError
                raise
            return None
        return found.st_dev, found.st_ino

    def create(self) -> None:
        """Create an empty file for its owner alone, unless there is one."""
        mode = stat.S_IRUSR | stat.S_IWUSR
        try:
            if sys.platform == "linux":
                # Not by opening it: closing any descriptor of a file drops all locks that SQLite has on it.
                os.mknod(self._path, mode | stat.S_IFREG)
            else:
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        except FileExistsError:
            pass

    def create_schema(self, connection: Connection) -> None:
        """Create the schema where it is missing, in one transaction."""
        read_status(connection)  # a foreign file is not even switched to WAL
        if connection.run("PRAGMA journal_mode = WAL") != [("wal",)]:
            raise TokenStoreError(
                "SQLite's write-ahead log does not work on this file system; use a local one",
                code="STORE_FILE_SYSTEM",
            )
        connection.run("BEGIN IMMEDIATE")
        status = read_status(connection)  # looked at again: others may have been faster
        if status is None:
            for statement in _SCHEMA:
                connection.execute(statement)
        else:
            check_current(status)
        connection.run("COMMIT")


def schema_sql() -> list[str]:
    """What `create_schema` runs in an empty file."""
    return ["PRAGMA journal_mode = WAL", "BEGIN IMMEDIATE", *map(inspect.cleandoc, _SCHEMA), "COMMIT"]


def check_current(status: SchemaStatus | None) -> None:
    """Raise ConfigurationError unless a file has a schema that this release works with."""
    schema_versions.check(provisioned(status), _PLACE, _REMEDY)


def check_upgrade(status: SchemaStatus | None) -> SchemaStatus:
    """The status of a file that this release can upgrade, or need not. Raises ConfigurationError of any other."""
    found = provisioned(status)
    schema_versions.check_upgrade(found, _PLACE, _REMEDY)
    return found


def provisioned(status: SchemaStatus | None) -> SchemaStatus:
    """The status of a file that holds a token store. Raises ConfigurationError of an empty one."""
    if status is None:
        raise ConfigurationError(_UNPROVISIONED, code="STORE_NOT_PROVISIONED")
    return status


def read_status(connection: Connection) -> SchemaStatus | None:
    """What the file states of its schema; None of an empty one. Raises ConfigurationError for anything else."""
    in_transaction = connection.in_transaction
    if not in_transaction:  # one view for all: another process may be creating the schema
        connection.run("BEGIN")
    try:
        ((application_id,),) = connection.run("PRAGMA application_id")
        ((oldest,),) = connection.run("PRAGMA user_version")
        ((objects, has_version),) = connection.run(
            "SELECT count(*), ifnull(max(name = 'schema_version'), 0) FROM sqlite_schema"
        )
        stated = connection.run("SELECT reached, upgraded FROM schema_version") if has_version else []
    finally:
        if not in_transaction and connection.in_transaction:
            connection.execute("ROLLBACK")
    if application_id == oldest == objects == 0:
        return None
    if application_id == APPLICATION_ID and oldest >= 1:
        if not has_version:
            return SchemaStatus(oldest, oldest)
        if len(stated) == 1 and stated[0][0] >= oldest and 0 <= stated[0][1] <= _SECONDS_MAX:
            return SchemaStatus(stated[0][0], oldest, datetime.fromtimestamp(stated[0][1], UTC))
    raise ConfigurationError(_FOREIGN, code="STORE_FOREIGN")


def explanation(error: sqlite3.Error) -> tuple[str, str]:
    """The code of an error of SQLite, and the text that says what it means here and what to look at."""
    other = "STORE_SCHEMA", "SQLite refused a statement: the file's schema is not the one that was created"
    return _EXPLANATIONS.get(_code(error), other)


def _code(error: BaseException) -> int:
    """SQLite's primary error code; 0 where the error comes from the sqlite3 module itself."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_unreadable(error: BaseException) -> bool:
    """Whether a row, rather than the database, is at fault: text that is not UTF-8, or a value too long."""
    return _code(error) == sqlite3.SQLITE_TOOBIG or (
        isinstance(error, sqlite3.OperationalError) and str(error).startswith("Could not decode to UTF-8")
    )
