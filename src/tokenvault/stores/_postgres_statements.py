"""What each call of the port asks of PostgreSQL: one statement a call, and what its rows mean.

Blocking store and store with coroutines run the same statements. Each is a transaction of its own, so that a call is
one round trip without BEGIN and COMMIT, all or nothing, and needs no pipeline: a pooler that hands out
connections by transaction (pgbouncer) sees nothing unusual. What holds at READ COMMITTED, which connections set:

- One record: ON CONFLICT DO NOTHING waits for whoever is inserting the same token; an UPDATE waits for whoever
  is replacing the row and then looks at its revision again. The event is written from the row written.
- Many records are inserted where none of their tokens exists. A token that another writer puts in between is a
  unique violation: nothing is written, and the statement run again sees that token.
- Many records are replaced once their rows are locked, in the order of tokens, so that two batches
  can not wait for each other; locked rows are read as they are then, not as they were when the statement began.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import attrs

from tokenvault.stores._postgres_schema import Rows, check_version, version_statement
from tokenvault.stores.port import SealedEvent, SealedRecord

_T = TypeVar("_T")

Value = str | bytes | int | list[str] | list[bytes] | list[int]

_RECORD_COLUMNS: Final = "token, reference, account, requestor, program, revision, key_version, body, seal"
_RECORD_ARRAYS: Final = (
    "unnest($1::text[], $2::bytea[], $3::bytea[], $4::text[], $5::bytea[],"
    f" $6::bigint[], $7::bigint[], $8::bytea[], $9::bytea[]) AS new ({_RECORD_COLUMNS})"
)
_EVENT_COLUMNS: Final = "stream, number, reference, body, mac"
_REPLACED: Final = ("reference", "account", "requestor", "program", "revision", "key_version", "body", "seal")


@attrs.frozen
class Statement(Generic[_T]):
    """One statement.

    Attributes:
        sql: with $1, $2, ... for the values.
        values: bytes, strings and integers, or lists of them.
        result: what its rows say.
        again: a unique violation may come of a writer in between; a second run sees what that one wrote.
    """

    sql: bytes
    values: Sequence[Value]
    result: Callable[[Rows], _T]
    again: bool = False


class Statements:
    """Every statement of a token store in one schema."""

    def __init__(self, schema: str) -> None:
        tokens, events = f'"{schema}".tokens', f'"{schema}".events'
        domains, meta = f'"{schema}".domains', f'"{schema}".meta'
        record = f"SELECT {_RECORD_COLUMNS} FROM {tokens} "
        event = f"SELECT {_EVENT_COLUMNS} FROM {events} "
        self._version = version_statement(schema)
        self._get_one = (record + "WHERE token = $1").encode()
        self._get_many = (record + "WHERE token = ANY($1::text[])").encode()
        self._find = {
            (by_requestor, by_program): (
                record
                + "WHERE account = $1 AND token > $2"
                + (" AND requestor = $4" if by_requestor else "")
                + (f" AND program = ${4 + by_requestor}" if by_program else "")
                + " ORDER BY token LIMIT $3"
            ).encode()
            for by_requestor in (False, True)
            for by_program in (False, True)
        }
        self._by_reference = (record + "WHERE reference = $1 LIMIT 1").encode()
        self._scan = (record + "WHERE token > $1 ORDER BY token LIMIT $2").encode()
        self._scan_key_version = (
            record + "WHERE token > $1 AND key_version = $3 ORDER BY token LIMIT $2"
        ).encode()
        self._events_of_stream = (
            event + "WHERE stream = $1 AND number > $2 ORDER BY number LIMIT $3"
        ).encode()
        self._events_about = (event + "WHERE reference = $1 ORDER BY position LIMIT $2 OFFSET $3").encode()
        self._streams = _streams(events)
        self._heads = _heads(events)
        self._insert_one = _insert_one(tokens, events)
        self._insert_many = _insert_many(tokens, events)
        self._replace_one = _replace_one(tokens, events)
        self._replace_many = _replace_many(tokens, events)
        self._append_one = f"INSERT INTO {events} ({_EVENT_COLUMNS}) VALUES ($1, $2, $3, $4, $5)".encode()
        self._append_many = f"INSERT INTO {events} ({_EVENT_COLUMNS}) {_event_arrays(1)}".encode()
        # Nearly always it is there already: then no row is tried and no transaction number spent.
        self._put_domain = (
            f"INSERT INTO {domains} SELECT $1, $2"
            f" WHERE NOT EXISTS (SELECT FROM {domains} WHERE digest = $1) ON CONFLICT (digest) DO NOTHING"
        ).encode()
        self._get_domain = f"SELECT document FROM {domains} WHERE digest = $1".encode()
        self._get_meta = f"SELECT value FROM {meta} WHERE name = $1".encode()
        self._put_meta = (
            f"WITH written AS (INSERT INTO {meta} SELECT $1, $2"
            f" WHERE NOT EXISTS (SELECT FROM {meta} WHERE name = $1)"
            " ON CONFLICT (name) DO NOTHING RETURNING value)"
            f" SELECT value FROM written UNION ALL SELECT value FROM {meta} WHERE name = $1"
        ).encode()

    def version(self) -> Statement[None]:
        """Fails with ConfigurationError where the schema has another version."""
        return Statement(self._version, (), check_version)

    def get(self, tokens: Sequence[str]) -> Statement[list[SealedRecord]]:
        """As in TokenStore, and so on."""
        if len(tokens) == 1:
            return Statement(self._get_one, tokens, _records)
        return Statement(self._get_many, (list(tokens),), _records)

    def find(
        self, account: bytes, requestor: str | None, program: str | None, after: str, limit: int
    ) -> Statement[list[SealedRecord]]:
        values: list[Value] = [account, after, limit]
        if requestor is not None:
            values.append(requestor)
        if program is not None:
            values.append(program.encode("ascii"))
        return Statement(self._find[requestor is not None, program is not None], values, _records)

    def by_reference(self, reference: bytes) -> Statement[SealedRecord | None]:
        return Statement(self._by_reference, (reference,), _record_or_none)

    def insert(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> Statement[list[str]]:
        if len(records) == len(events) == 1:
            values = (*_record_values(records[0]), *_event_values(events[0]))
            return Statement(self._insert_one, values, _tokens)
        arrays = _record_arrays(records) + _arrays(map(_event_values, events), 5)
        return Statement(self._insert_many, arrays, _tokens, again=True)

    def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> Statement[list[str]]:
        if len(records) == len(events) == 1:
            values = (*_record_values(records[0]), *_event_values(events[0]))
            return Statement(self._replace_one, values, _tokens)
        arrays = _record_arrays(records) + _arrays(map(_event_values, events), 5)
        return Statement(self._replace_many, arrays, _tokens)

    def append(self, events: Sequence[SealedEvent]) -> Statement[None]:
        if len(events) == 1:
            return Statement(self._append_one, _event_values(events[0]), _nothing)
        return Statement(self._append_many, _arrays(map(_event_values, events), 5), _nothing)

    def events_of_stream(self, stream: bytes, after: int, limit: int) -> Statement[list[SealedEvent]]:
        return Statement(self._events_of_stream, (stream, after, limit), _events)

    def events_about(self, reference: bytes, after: int, limit: int) -> Statement[list[SealedEvent]]:
        return Statement(self._events_about, (reference, limit, after), _events)

    def streams(self) -> Statement[list[bytes]]:
        return Statement(self._streams, (), _bytes)

    def heads(self, limit: int) -> Statement[list[SealedEvent]]:
        return Statement(self._heads, (limit,), _events)

    def put_domain(self, digest: bytes, document: bytes) -> Statement[None]:
        return Statement(self._put_domain, (digest, document), _nothing)

    def get_domain(self, digest: bytes) -> Statement[bytes | None]:
        return Statement(self._get_domain, (digest,), _bytes_or_none)

    def scan(self, after: str, limit: int, key_version: int | None) -> Statement[list[SealedRecord]]:
        if key_version is None:
            return Statement(self._scan, (after, limit), _records)
        return Statement(self._scan_key_version, (after, limit, key_version), _records)

    def get_meta(self, name: str) -> Statement[bytes | None]:
        return Statement(self._get_meta, (name,), _bytes_or_none)

    def put_meta(self, name: str, value: bytes) -> Statement[bytes | None]:
        """The value that stands; None where another writer set it in between, who is read by `get_meta`."""
        return Statement(self._put_meta, (name, value), _bytes_or_none)


# SQL.


def _event_arrays(first: int) -> str:
    a, b, c, d, e = range(first, first + 5)
    return (
        f"SELECT * FROM unnest(${a}::bytea[], ${b}::bigint[], ${c}::bytea[], ${d}::bytea[], ${e}::bytea[])"
        f" AS noted ({_EVENT_COLUMNS})"
    )


def _streams(events: str) -> bytes:
    # One index look-up a stream, where DISTINCT reads every event.
    return f"""
        WITH RECURSIVE streams (stream) AS (
            (SELECT stream FROM {events} ORDER BY stream LIMIT 1)
            UNION ALL
            SELECT (SELECT e.stream FROM {events} e WHERE e.stream > s.stream ORDER BY e.stream LIMIT 1)
            FROM streams s WHERE s.stream IS NOT NULL
        ) SELECT stream FROM streams WHERE stream IS NOT NULL""".encode()


def _heads(events: str) -> bytes:
    # Likewise, from the other end.
    return f"""
        WITH RECURSIVE newest (stream, remaining) AS (
            (SELECT stream, $1::bigint FROM {events} ORDER BY stream DESC LIMIT 1)
            UNION ALL
            SELECT (SELECT e.stream FROM {events} e WHERE e.stream < n.stream ORDER BY e.stream DESC LIMIT 1),
                n.remaining - 1
            FROM newest n WHERE n.stream IS NOT NULL AND n.remaining > 1
        ) SELECT head.* FROM newest CROSS JOIN LATERAL (
            SELECT {_EVENT_COLUMNS} FROM {events} WHERE reference = newest.stream ORDER BY position DESC LIMIT 1
        ) head WHERE newest.stream IS NOT NULL""".encode()


def _insert_one(tokens: str, events: str) -> bytes:
    return f"""
        WITH written AS (
            INSERT INTO {tokens} ({_RECORD_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            ON CONFLICT (token) DO NOTHING RETURNING 1
        ), noted AS (
            INSERT INTO {events} ({_EVENT_COLUMNS})
            SELECT $10::bytea, $11::bigint, $12::bytea, $13::bytea, $14::bytea FROM written
        ) SELECT $1 WHERE NOT EXISTS (SELECT FROM written)""".encode()


def _insert_many(tokens: str, events: str) -> bytes:
    return f"""
        WITH existing AS MATERIALIZED (
            SELECT token FROM {tokens} WHERE token = ANY($1::text[])
        ), written AS (
            INSERT INTO {tokens} ({_RECORD_COLUMNS})
            SELECT * FROM {_RECORD_ARRAYS} WHERE NOT EXISTS (SELECT FROM existing)
        ), noted AS (
            INSERT INTO {events} ({_EVENT_COLUMNS})
            {_event_arrays(10)} WHERE NOT EXISTS (SELECT FROM existing)
        ) SELECT token FROM existing""".encode()


def _replace_one(tokens: str, events: str) -> bytes:
    columns = ", ".join(f"{name} = ${n}" for n, name in enumerate(_REPLACED, 2))
    return f"""
        WITH written AS (
            UPDATE {tokens} SET {columns} WHERE token = $1 AND revision = $6 - 1 RETURNING 1
        ), noted AS (
            INSERT INTO {events} ({_EVENT_COLUMNS})
            SELECT $10::bytea, $11::bigint, $12::bytea, $13::bytea, $14::bytea FROM written
        ) SELECT $1 WHERE NOT EXISTS (SELECT FROM written)""".encode()


def _replace_many(tokens: str, events: str) -> bytes:
    columns = ", ".join(f"{name} = new.{name}" for name in _REPLACED)
    return f"""
        WITH new AS MATERIALIZED (
            SELECT * FROM {_RECORD_ARRAYS}
        ), locked AS MATERIALIZED (
            SELECT token, revision FROM {tokens} WHERE token = ANY($1::text[])
            ORDER BY token FOR NO KEY UPDATE
        ), moved AS MATERIALIZED (
            SELECT token FROM new LEFT JOIN locked USING (token)
            WHERE locked.revision IS DISTINCT FROM new.revision - 1
        ), written AS (
            UPDATE {tokens} AS old SET {columns} FROM new
            WHERE old.token = new.token AND NOT EXISTS (SELECT FROM moved)
        ), noted AS (
            INSERT INTO {events} ({_EVENT_COLUMNS})
            {_event_arrays(10)} WHERE NOT EXISTS (SELECT FROM moved)
        ) SELECT token FROM moved""".encode()


# Values and rows.


def _record_values(record: SealedRecord) -> tuple[str, bytes, bytes, str, bytes, int, int, bytes, bytes]:
    return (
        record.token,
        record.reference,
        record.account,
        record.requestor,
        record.program.encode("ascii"),
        record.revision,
        record.key_version,
        record.body,
        record.seal,
    )


def _event_values(event: SealedEvent) -> tuple[bytes, int, bytes, bytes, bytes]:
    return event.stream, event.number, event.reference, event.body, event.mac


def _record_arrays(records: Sequence[SealedRecord]) -> list[Value]:
    """In the order of tokens: two batches that write the same ones then wait in one order."""
    ordered = sorted(records, key=lambda record: record.token)
    return _arrays(map(_record_values, ordered), 9)


def _arrays(rows: Sequence[tuple[Value, ...]] | map[tuple[Value, ...]], width: int) -> list[Value]:
    columns: list[Value] = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(width)]


def _records(rows: Rows) -> list[SealedRecord]:
    return list(itertools.starmap(_record, rows))


def _record_or_none(rows: Rows) -> SealedRecord | None:
    return _record(*rows[0]) if rows else None


def _record(
    token: str, reference: bytes, account: bytes, requestor: str, program: bytes, *rest: int
) -> SealedRecord:
    # An edited column may have any type and content: what does not fit is for the guard to refuse.
    name = program.decode("latin-1") if type(program) is bytes else ""
    return SealedRecord(token, reference, account, requestor, name, *rest)  # type: ignore[arg-type] # checked later


def _events(rows: Rows) -> list[SealedEvent]:
    return list(itertools.starmap(SealedEvent, rows))


def _tokens(rows: Rows) -> list[str]:
    return [token for (token,) in rows]


def _bytes(rows: Rows) -> list[bytes]:
    return [value for (value,) in rows]


def _bytes_or_none(rows: Rows) -> bytes | None:
    return rows[0][0] if rows else None


def _nothing(_: Rows) -> None:
    return None
