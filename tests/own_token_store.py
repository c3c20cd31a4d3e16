"""The token store over SQLite that docs/howto/adapters.md builds from nothing."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from tokenvault.errors import ConfigurationError, TokenStoreError
from tokenvault.stores import TokenStoreBase
from tokenvault.stores.forks import Forkable, hold_still_at_forks
from tokenvault.stores.index_rows import IndexPlace, cursor_of, place_of
from tokenvault.stores.port import (
    EventPage,
    Fence,
    FoundUse,
    SealedEvent,
    SealedRecord,
    TokenGroup,
    digest_of,
)

SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS tokens (token TEXT PRIMARY KEY, reference BLOB,"
    " pan_fingerprint BLOB, requestor TEXT, program TEXT, revision INTEGER,"
    " key_version INTEGER, body BLOB, seal BLOB, customer TEXT, last4_key BLOB,"
    " status INTEGER, created_ms INTEGER)",
    "CREATE INDEX IF NOT EXISTS by_reference ON tokens (reference)",
    "CREATE INDEX IF NOT EXISTS by_fingerprint ON tokens (pan_fingerprint, token)",
    "CREATE INDEX IF NOT EXISTS by_group ON tokens (requestor, program, status, created_ms, token)",
    "CREATE INDEX IF NOT EXISTS by_customer ON tokens (customer, token)",
    "CREATE INDEX IF NOT EXISTS by_last4 ON tokens (last4_key, token)",
    "CREATE TABLE IF NOT EXISTS events (stream BLOB, number INTEGER, reference BLOB,"
    " body BLOB, mac BLOB, PRIMARY KEY (stream, number))",
    "CREATE TABLE IF NOT EXISTS event_index (reference BLOB, use_id BLOB, stream BLOB,"
    " number INTEGER, PRIMARY KEY (reference, use_id, stream, number))",
    "CREATE TABLE IF NOT EXISTS domains (digest BLOB PRIMARY KEY, document BLOB)",
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB)",
    "PRAGMA user_version = 1",
)
EVENT: Final = "SELECT stream, number, events.reference, body, mac FROM events"
WAIT_SECONDS_MAX: Final = 30
Work = Callable[[sqlite3.Connection], list[str]]


class OwnTokenStore(TokenStoreBase, Forkable):
    """Records and events in a SQLite file."""

    def __init__(self, path: Path | str) -> None:
        self._path: Final = str(path)
        self._calls = threading.Condition()
        self._under_way = 0
        self._forking = False
        hold_still_at_forks(self)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection for one call. To close it undoes what it has not committed."""
        with self._calls:
            if not self._calls.wait_for(lambda: not self._forking, WAIT_SECONDS_MAX):
                raise TokenStoreError("a fork took too long: call again")
            self._under_way += 1
        try:
            with closing(self._connect()) as connection:
                yield connection
        finally:
            with self._calls:
                self._under_way -= 1
                self._calls.notify_all()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=WAIT_SECONDS_MAX, isolation_level=None)

    def _read(self, sql: str, *values: object) -> list[Any]:
        with self._connected() as connection:
            return connection.execute(sql, values).fetchall()

    def _write(self, work: Work) -> list[str]:
        """Do work in one transaction, undone where it refuses tokens, fails or is stopped."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            refused = work(connection)
            if not refused:
                connection.execute("COMMIT")
            return refused

    def before_fork(self, seconds_max: float) -> None:
        with self._calls:
            self._forking = True
            self._calls.wait_for(lambda: not self._under_way, seconds_max)

    def after_fork_in_parent(self) -> None:
        with self._calls:
            self._forking = False
            self._calls.notify_all()

    def after_fork_in_child(self) -> None:
        self._calls, self._under_way, self._forking = threading.Condition(), 0, False

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        def work(connection: sqlite3.Connection) -> list[str]:
            existing = [
                record.token
                for record in records
                if connection.execute("SELECT 1 FROM tokens WHERE token = ?", (record.token,)).fetchone()
            ]
            if existing:
                return existing
            connection.executemany("INSERT INTO tokens VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", records)
            if document is not None:
                kept = digest_of(document), document
                connection.execute("INSERT OR IGNORE INTO domains VALUES (?, ?)", kept)
            return self._append_to(connection, events)

        return self._write(work)

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        sql = (
            "UPDATE tokens SET reference = :reference,"
            " pan_fingerprint = :pan_fingerprint, requestor = :requestor,"
            " program = :program, revision = :revision, key_version = :key_version,"
            " body = :body, seal = :seal, customer = :customer,"
            " last4_key = :last4_key, status = :status, created_ms = :created_ms"
            " WHERE token = :token AND revision = :revision - 1"
        )
        look = "SELECT revision FROM tokens WHERE token = ?"

        def work(connection: sqlite3.Connection) -> list[str]:
            moved = [
                token
                for token, revision in fence
                if connection.execute(look, (token,)).fetchone() != (revision,)
            ]
            moved += [
                record.token for record in records if not connection.execute(sql, record._asdict()).rowcount
            ]
            return moved or self._append_to(connection, events)

        return self._write(work)

    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        return self._replace((), events, fence)

    def _prune(self, events: Sequence[SealedEvent], records: Fence) -> None:
        index = "DELETE FROM event_index WHERE reference = ? AND use_id = ? AND stream = ? AND number = ?"

        def work(connection: sqlite3.Connection) -> list[str]:
            connection.executemany("DELETE FROM tokens WHERE token = ? AND revision = ?", records)
            for event in events:
                connection.executemany(
                    index, [(*name, event.stream, event.number) for name in event.index_rows]
                )
                connection.execute("DELETE FROM events WHERE stream = ? AND number = ?", event[:2])
            return []

        self._write(work)

    def _append_to(self, connection: sqlite3.Connection, events: Sequence[SealedEvent]) -> list[str]:
        for event in events:
            connection.execute("INSERT INTO events VALUES (?,?,?,?,?)", event[:5])
            connection.executemany(
                "INSERT OR IGNORE INTO event_index VALUES (?,?,?,?)",
                [(*name, event.stream, event.number) for name in event.index_rows],
            )
        return []

    def _get(self, tokens: Sequence[str]) -> list[SealedRecord]:
        with self._connected() as connection:
            sql = "SELECT * FROM tokens WHERE token = ?"
            found = [connection.execute(sql, (token,)).fetchone() for token in dict.fromkeys(tokens)]
        return [SealedRecord(*row) for row in found if row]

    def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> list[SealedRecord]:
        sql = (
            "SELECT * FROM tokens WHERE pan_fingerprint = ? AND token > ?"
            " AND requestor = ifnull(?, requestor) AND program = ifnull(?, program)"
            " ORDER BY token LIMIT ?"
        )
        with self._connected() as connection:
            rows = [
                row
                for pan_fingerprint in dict.fromkeys(pan_fingerprints)
                for row in connection.execute(sql, (pan_fingerprint, after, requestor, program, limit))
            ]
        return [SealedRecord(*row) for row in sorted(rows)[:limit]]  # by token, which comes first

    def _by_reference(self, reference: bytes) -> SealedRecord | None:
        rows = self._read("SELECT * FROM tokens WHERE reference = ? LIMIT 1", reference)
        return SealedRecord(*rows[0]) if rows else None

    def _get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> FoundUse:
        record = self._by_reference(name) if isinstance(name, bytes) else next(iter(self._get([name])), None)
        if record is None:
            return FoundUse(None, [])
        return FoundUse(record, self._uses([(record.reference, use_id) for use_id in use_ids]))

    def _uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
        sql = f"{EVENT} JOIN event_index AS i USING (stream, number) WHERE i.reference = ? AND i.use_id = ?"
        with self._connected() as connection:
            rows = [row for pair in dict.fromkeys(pairs) for row in connection.execute(sql, pair)]
        return [SealedEvent(*row) for row in dict.fromkeys(rows)]

    def _list_tokens(
        self, requestor: str, program: str, status: int, after: tuple[int, str], limit: int
    ) -> list[SealedRecord]:
        sql = (
            "SELECT * FROM tokens WHERE requestor = ? AND program = ? AND status = ?"
            " AND (created_ms, token) > (?, ?) ORDER BY created_ms, token LIMIT ?"
        )
        return [SealedRecord(*row) for row in self._read(sql, requestor, program, status, *after, limit)]

    def _groups(self) -> list[TokenGroup]:
        rows = self._read("SELECT DISTINCT requestor, program, status FROM tokens ORDER BY 1, 2, 3")
        return [TokenGroup(*row) for row in rows]

    def _count(self, requestor: str, program: str, status: int) -> int:
        sql = "SELECT count(*) FROM tokens WHERE requestor = ? AND program = ? AND status = ?"
        count: int = self._read(sql, requestor, program, status)[0][0]
        return count

    def _find_customer(self, customer: str, after: str, limit: int) -> list[SealedRecord]:
        sql = "SELECT * FROM tokens WHERE customer = ? AND token > ? ORDER BY token LIMIT ?"
        return [SealedRecord(*row) for row in self._read(sql, customer, after, limit)]

    def _find_last4(self, last4_keys: Sequence[bytes], after: str, limit: int) -> list[SealedRecord]:
        sql = "SELECT * FROM tokens WHERE last4_key = ? AND token > ? ORDER BY token LIMIT ?"
        rows = [row for key in dict.fromkeys(last4_keys) for row in self._read(sql, key, after, limit)]
        return [SealedRecord(*row) for row in sorted(rows)[:limit]]

    def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]:
        sql = (
            "SELECT * FROM tokens WHERE token > ?"
            " AND key_version = ifnull(?, key_version) ORDER BY token LIMIT ?"
        )
        return [SealedRecord(*row) for row in self._read(sql, after, key_version, limit)]

    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        sql = f"{EVENT} WHERE stream = ? AND number >= ? ORDER BY number LIMIT ?"
        return [SealedEvent(*row) for row in self._read(sql, stream, first, limit)]

    def _events_about(self, reference: bytes, after: bytes, limit: int) -> EventPage:
        sql = (
            "SELECT use_id, i.stream, i.number, e.reference, body, mac FROM event_index AS i"
            " LEFT JOIN events AS e USING (stream, number)"
            " WHERE i.reference = ? AND (use_id, i.stream, i.number) > (?, ?, ?)"
            " ORDER BY use_id, i.stream, i.number LIMIT ?"
        )
        rows = self._read(sql, reference, *place_of(after), limit)
        events = [SealedEvent(*row[1:]) for row in rows]
        return EventPage(events, cursor_of(*rows[-1][:3]) if len(rows) == limit else b"")

    def _index_rows(self, after: IndexPlace, limit: int) -> list[IndexPlace]:
        sql = (
            "SELECT reference, use_id, stream, number FROM event_index"
            " WHERE (reference, use_id, stream, number) > (?, ?, ?, ?)"
            " ORDER BY reference, use_id, stream, number LIMIT ?"
        )
        return [IndexPlace(*row) for row in self._read(sql, *after, limit)]

    def _streams(self) -> list[bytes]:
        return [stream for (stream,) in self._read("SELECT DISTINCT stream FROM events")]

    def _latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        own = (
            "JOIN event_index USING (stream, number) WHERE event_index.reference = stream"
            " AND use_id = zeroblob(16) AND stream = ? ORDER BY number DESC LIMIT 1"
        )
        first = f"{EVENT} WHERE stream = ? ORDER BY number LIMIT 1"
        newest = sorted(self._streams(), reverse=True)[:limit]
        rows = [self._read(f"{EVENT} {own}", name) or self._read(first, name) for name in newest]
        return [SealedEvent(*row) for (row,) in rows]

    def _provision(self) -> None:
        def work(connection: sqlite3.Connection) -> list[str]:
            for statement in SCHEMA:
                connection.execute(statement)
            return []

        self._write(work)

    def _check_schema(self) -> None:
        if self._read("PRAGMA user_version") != [(1,)]:
            raise ConfigurationError("the file holds no token store yet: provision it")

    def _put_domain(self, digest: bytes, document: bytes) -> None:
        self._read("INSERT OR IGNORE INTO domains VALUES (?, ?)", digest, document)

    def _get_domain(self, digest: bytes) -> bytes | None:
        rows = self._read("SELECT document FROM domains WHERE digest = ?", digest)
        return rows[0][0] if rows else None

    def _get_meta(self, name: str) -> bytes | None:
        rows = self._read("SELECT value FROM meta WHERE name = ?", name)
        return rows[0][0] if rows else None

    def _put_meta(self, name: str, value: bytes) -> bytes:
        self._read("INSERT OR IGNORE INTO meta VALUES (?, ?)", name, value)
        standing: bytes = self._read("SELECT value FROM meta WHERE name = ?", name)[0][0]
        return standing

    def _close(self) -> None:
        pass  # a call closes what it opened

    def _explain(self, error: Exception) -> str:
        if isinstance(error, sqlite3.IntegrityError):
            return "an audit event exists already; nothing was written"
        if isinstance(error, sqlite3.OperationalError):
            return "SQLite failed: look at the disk, and at who else holds the file"
        return super()._explain(error)
