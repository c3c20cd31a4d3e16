"""Adapters of a token store, each wrong in one way that its author would not see: what the contract is to find."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.own_token_store import OwnTokenStore, Work
from tokenvault.errors import TokenStoreError
from tokenvault.stores.index_rows import IndexPlace, cursor_of, place_of
from tokenvault.stores.port import EventPage, Fence, FoundUse, SealedEvent, SealedRecord, TokenGroup
from tokenvault.stores.write_limits import WriteLimits

CHUNK = 500
ROUND_TRIP_SECONDS = 0.01  # to a server, in which others come by


class _ChecksEvents(OwnTokenStore):
    """Looks for what exists before it writes, as an author does whose events are not of the record's transaction."""

    def _check_new(self, events: Sequence[SealedEvent]) -> None:
        if len({event[:2] for event in events}) < len(events):
            raise TokenStoreError("an event is there twice")
        for event in events:
            if self._read("SELECT 1 FROM events WHERE stream = ? AND number = ?", event.stream, event.number):
                raise TokenStoreError("an event exists already")


class EventInASecondCommit(_ChecksEvents):
    """Commits the record, and then its event."""

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        if not self._get([record.token for record in records]):
            self._check_new(events)
        refused = super()._insert(records, [], document)
        if not refused:
            OwnTokenStore._replace(self, (), events, ())
        return refused

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        stored = self._get([record.token for record in records])
        if {(r.token, r.revision + 1) for r in stored} == {(r.token, r.revision) for r in records}:
            self._check_new(events)
        refused = super()._replace(records, [], fence)
        if not refused:
            OwnTokenStore._replace(self, (), events, ())
        return refused


class SplitsLargeWrites(_ChecksEvents):
    """Writes so many records in one transaction, and the others in the next."""

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        existing = [record.token for record in self._get([record.token for record in records])]
        if existing:
            return existing
        self._check_new(events)
        last = max(0, len(records) - 1) // CHUNK * CHUNK
        for first in range(0, last, CHUNK):
            super()._insert(list(records)[first : first + CHUNK], [], document)
        return super()._insert(list(records)[last:], events, document)


class ReadsUncommitted(OwnTokenStore):
    """Shares a cache between its connections, and reads what is in it."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self._uri = f"file:{path}?cache=shared"

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._uri, uri=True, timeout=30, isolation_level=None)
        connection.execute("PRAGMA read_uncommitted = 1")
        return connection


class _KeepsAConnection(OwnTokenStore):
    """One connection of all calls, one at a time, with a write-ahead log: faster than one for each."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self._lock = threading.RLock()
        self._kept: sqlite3.Connection | None = None

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._kept is None:
                self._kept = sqlite3.connect(
                    self._path, timeout=5, isolation_level=None, check_same_thread=False
                )
                self._kept.execute("PRAGMA journal_mode = WAL")
            yield self._kept

    def _write(self, work: Work) -> list[str]:
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                refused = work(connection)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("ROLLBACK" if refused else "COMMIT")
            return refused

    def _close(self) -> None:
        with self._lock:
            if self._kept is not None:
                self._kept.close()


class SharesAConnectionWithItsChild(_KeepsAConnection):
    """Holds calls up while the process forks, and lets the child go on with the connection that it copied."""

    def before_fork(self, seconds_max: float) -> None:
        self._lock.acquire(timeout=seconds_max)

    def after_fork_in_parent(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        self._lock = threading.RLock()


class StandsStillInItsChild(OwnTokenStore):
    """Waits, in the hook of a fork, for what only another thread of the parent could give."""

    def after_fork_in_child(self) -> None:
        threading.Event().wait()


class OrdersTokensAsIntegers(OwnTokenStore):
    """Takes tokens for numbers where it scans."""

    def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]:
        sql = (
            "SELECT * FROM tokens WHERE CAST(token AS INTEGER) > CAST(? AS INTEGER)"
            " AND key_version = ifnull(?, key_version) ORDER BY CAST(token AS INTEGER), token LIMIT ?"
        )
        return [SealedRecord(*row) for row in self._read(sql, after or "-1", key_version, limit)]


class CommitsHalfOfAnInterruptedWrite(_KeepsAConnection):
    """Undoes what fails by an Exception, which an interrupt is not: the next write commits what it left."""

    def _write(self, work: Work) -> list[str]:
        with self._connected() as connection:
            if not connection.in_transaction:
                connection.execute("BEGIN IMMEDIATE")
            try:
                refused = work(connection)
            except Exception:
                connection.execute("ROLLBACK")
                raise
            connection.execute("ROLLBACK" if refused else "COMMIT")
            return refused


class IndexInASecondStep(OwnTokenStore):
    """Commits an event, and then the rows of the index that lead to it."""

    def _write(self, work: Work) -> list[str]:
        self._events: list[SealedEvent] = []
        refused = super()._write(work)
        events, self._events = self._events, []
        if events and not refused:
            super()._write(lambda connection: self._index(connection, events))
        return refused

    def _append_to(self, connection: sqlite3.Connection, events: Sequence[SealedEvent]) -> list[str]:
        super()._append_to(connection, [event._replace(index_rows=()) for event in events])
        self._events += events
        return []

    def _index(self, connection: sqlite3.Connection, events: Sequence[SealedEvent]) -> list[str]:
        for event in events:
            names = [(*name, event.stream, event.number) for name in event.index_rows]
            connection.executemany("INSERT INTO event_index VALUES (?,?,?,?)", names)
        return []


class SkipsEqualKeys(OwnTokenStore):
    """Reads on behind the stream of the last event, as if a token had one event of each."""

    def _events_about(self, reference: bytes, after: bytes, limit: int) -> EventPage:
        if after:
            use_id, stream, _ = place_of(after)
            after = cursor_of(use_id, stream, 2**63 - 1)
        return super()._events_about(reference, after, limit)


class SkipsRowsOfOneReference(OwnTokenStore):
    """Reads the index on behind the reference of the last row, as if each had one row."""

    def _index_rows(self, after: IndexPlace, limit: int) -> list[IndexPlace]:
        return super()._index_rows(after._replace(use_id=b"\xff" * 17), limit)


class OrdersEventsByArrival(OwnTokenStore):
    """Gives the events of a token as they came, behind an offset that it takes for a cursor."""

    def _events_about(self, reference: bytes, after: bytes, limit: int) -> EventPage:
        sql = (
            "SELECT stream, number, e.reference, body, mac FROM event_index AS i JOIN events AS e"
            " USING (stream, number) WHERE i.reference = ? ORDER BY e.rowid LIMIT ? OFFSET ?"
        )
        offset = place_of(after)[2]
        rows = self._read(sql, reference, limit, offset)
        end = cursor_of(bytes(16), bytes(16), offset + limit)
        return EventPage([SealedEvent(*row) for row in rows], end if len(rows) == limit else b"")


class TakesFewerRowsThanItSays(OwnTokenStore):
    """Keeps the limits of the base class, and has a database that takes fewer rows in a transaction."""

    def _append_to(self, connection: sqlite3.Connection, events: Sequence[SealedEvent]) -> list[str]:
        if sum(len(event.index_rows) for event in events) > CHUNK:
            raise sqlite3.OperationalError("too many actions")
        return super()._append_to(connection, events)


class TakesFewerBytesThanItSays(OwnTokenStore):
    """Says 4 MB of a database that takes values of 100 kB."""

    write_limits = WriteLimits(rows=10_000, bytes=4_000_000, event_bytes=400_000)

    def _append_to(self, connection: sqlite3.Connection, events: Sequence[SealedEvent]) -> list[str]:
        if any(len(event.body) > 100_000 for event in events):
            raise sqlite3.OperationalError("value too large")
        return super()._append_to(connection, events)


class LooksAtTheFenceBefore(OwnTokenStore):
    """Looks at the revisions of a fence, and then begins its transaction."""

    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        look = "SELECT revision FROM tokens WHERE token = ?"
        moved = [token for token, revision in fence if self._read(look, token) != [(revision,)]]
        return moved or super()._append(events, ())


class CountsWhatWasInserted(OwnTokenStore):
    """Keeps the count of each group beside the records, and changes it where it inserts."""

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.execute(
            "CREATE TABLE IF NOT EXISTS counts (requestor TEXT, program TEXT, status INTEGER, tokens INTEGER,"
            " PRIMARY KEY (requestor, program, status))"
        )
        return connection

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        refused = super()._insert(records, events, document)
        if not refused:
            groups = [(record.requestor, record.program, record.status) for record in records]
            self._write(lambda connection: self._add(connection, groups))
        return refused

    def _add(self, connection: sqlite3.Connection, groups: Sequence[tuple[str, str, int]]) -> list[str]:
        connection.executemany(
            "INSERT INTO counts VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET tokens = tokens + 1", groups
        )
        return []

    def _count(self, requestor: str, program: str, status: int) -> int:
        sql = "SELECT tokens FROM counts WHERE requestor = ? AND program = ? AND status = ?"
        return next((tokens for (tokens,) in self._read(sql, requestor, program, status)), 0)


class CountsBesideTheTransaction(CountsWhatWasInserted):
    """Counts what is replaced too, by what it read before, in a transaction of its own."""

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        before = self._get([record.token for record in records])
        refused = super()._replace(records, events, fence)
        if not refused:
            change = (
                "UPDATE counts SET tokens = tokens - 1 WHERE requestor = ? AND program = ? AND status = ?"
            )
            left = [(record.requestor, record.program, record.status) for record in before]
            entered = [(record.requestor, record.program, record.status) for record in records]

            def work(connection: sqlite3.Connection) -> list[str]:
                connection.executemany(change, left)
                return self._add(connection, entered)

            self._write(work)
        return refused


class ReadsTheUseBeforeItsRecord(OwnTokenStore):
    """Reads the events of a use, and then the record: what was written in between is in the record alone."""

    def _get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> FoundUse:
        known = super()._get_use(name, use_ids)
        time.sleep(ROUND_TRIP_SECONDS)
        return FoundUse(super()._get_use(name, []).record, known.events)


class FindsUsesOfAnyToken(OwnTokenStore):
    """Looks for the use ids of a use, as if no other token had them."""

    def _get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> FoundUse:
        record = super()._get_use(name, []).record
        marks = ", ".join("?" * len(use_ids))
        rows = self._read(
            f"SELECT DISTINCT e.* FROM events AS e JOIN event_index USING (stream, number) WHERE use_id IN ({marks})",
            *use_ids,
        )
        return FoundUse(record, [SealedEvent(*row) for row in rows] if record else [])


class GivesAnEventForEachName(OwnTokenStore):
    """Gives the event of a use once for each of its names."""

    def _uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
        return [
            event
            for pair in dict.fromkeys(pairs)
            for event in super(GivesAnEventForEachName, self)._uses([pair])
        ]


class LosesPairs(OwnTokenStore):
    """Asks for the references and the use ids of many uses apart, as if each reference had each use."""

    def _uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
        use_ids = list(dict.fromkeys(use_id for _, use_id in pairs))
        references = dict.fromkeys(reference for reference, _ in pairs)
        return super()._uses([(reference, use_id) for reference in references for use_id in use_ids])


class ListsByTheTimeAlone(OwnTokenStore):
    """Goes on behind the time of issue of the last record, as if no two were issued in one millisecond."""

    def _list_tokens(
        self, requestor: str, program: str, status: int, after: tuple[int, str], limit: int
    ) -> list[SealedRecord]:
        return super()._list_tokens(requestor, program, status, (after[0], ":"), limit)


class RemembersGroups(OwnTokenStore):
    """Reads the groups once: those that come later are not among them."""

    def _groups(self) -> list[TokenGroup]:
        if not hasattr(self, "_known"):
            self._known = super()._groups()
        return self._known


class FindsCustomersInAnyCase(OwnTokenStore):
    """Compares customers as its database compares texts, without regard to case."""

    def _find_customer(self, customer: str, after: str, limit: int) -> list[SealedRecord]:
        sql = "SELECT * FROM tokens WHERE customer = ? COLLATE NOCASE AND token > ? ORDER BY token LIMIT ?"
        return [SealedRecord(*row) for row in self._read(sql, customer, after, limit)]


class FindsLastFourKeyByKey(OwnTokenStore):
    """Gives what it found by each key, one key after the other."""

    def _find_last4(self, last4_keys: Sequence[bytes], after: str, limit: int) -> list[SealedRecord]:
        found = [super(FindsLastFourKeyByKey, self)._find_last4([key], after, limit) for key in last4_keys]
        return [record for records in found for record in records][:limit]


class PrunesByTheToken(OwnTokenStore):
    """Deletes records whatever their revision is by now."""

    def _prune(self, events: Sequence[SealedEvent], records: Fence) -> None:
        stored = self._get([token for token, _ in records])
        super()._prune(events, [(record.token, record.revision) for record in stored])


class PrunesEventsAlone(OwnTokenStore):
    """Deletes events and leaves the rows that lead to them."""

    def _prune(self, events: Sequence[SealedEvent], records: Fence) -> None:
        super()._prune([event._replace(index_rows=()) for event in events], records)


class PrunesByTheNumber(OwnTokenStore):
    """Deletes the events of a number, of whatever stream."""

    def _prune(self, events: Sequence[SealedEvent], records: Fence) -> None:
        also = [event._replace(stream=stream) for event in events for stream in self._streams()]
        super()._prune(also, records)
