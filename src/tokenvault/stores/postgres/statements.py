"""The statements of a token store in PostgreSQL: the SQL of each, its values, and what its rows mean.

Each is a transaction of its own, so that a call is one round trip without BEGIN and COMMIT, all or nothing, and needs
no pipeline: a pooler that hands out connections by transaction (pgbouncer) sees nothing unusual. What holds at READ
COMMITTED, which connections set:

- One record: ON CONFLICT DO NOTHING waits for whoever is inserting the same token; an UPDATE waits for whoever
  is replacing the row and then looks at its revision again. The events are written where the row was written.
- Many records are replaced once their rows are locked, in the order of tokens, so that two batches
  can not wait for each other; locked rows are read as they are then, not as they were when the statement began.

Many records to insert, and many events, are copied instead: see `copy`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

import attrs
import numpy as np
import psycopg
from psycopg import errors
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from tokenvault.errors import IntegrityError
from tokenvault.stores.found_records import Integers, RecordColumns
from tokenvault.stores.new_records import Bytes, records_of
from tokenvault.stores.port import SealedEvent, SealedRecord
from tokenvault.stores.postgres.errors import UNREADABLE
from tokenvault.stores.postgres.values import (
    ASCII,
    ASCII_BYTEA,
    BYTEA,
    INT8,
    TEXT,
    Kind,
    array_of,
    columns,
)

T = TypeVar("T")

TOKENS: Final = '"{schema}".tokens'
EVENTS: Final = '"{schema}".events'
DOMAINS: Final = '"{schema}".domains'
META: Final = '"{schema}".meta'

RECORD: Final = {
    "token": TEXT,
    "reference": BYTEA,
    "pan_fingerprint": BYTEA,
    "requestor": TEXT,
    "program": ASCII_BYTEA,  # it may hold any ASCII character, zero too, which a text can not
    "revision": INT8,
    "key_version": INT8,
    "body": BYTEA,
    "seal": BYTEA,
}
"""The columns of a token record, in the order of the fields of SealedRecord."""

EVENT: Final = {"stream": BYTEA, "number": INT8, "reference": BYTEA, "body": BYTEA, "mac": BYTEA}
"""The columns of an audit event, in the order of the fields of SealedEvent."""

RECORD_COLUMNS: Final = ", ".join(RECORD)
EVENT_COLUMNS: Final = ", ".join(EVENT)

_DONE: Final = {ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK}
_NAME_DIGITS: Final = 16


@attrs.frozen(eq=False)
class Statement(Generic[T]):
    """A statement without its values; a connection prepares it when it first runs it.

    Attributes:
        sql: with $1, $2, ... for the values, and {schema} for the schema.
        takes: the kinds of the values.
        gives: the kinds of the columns.
        read: gives what the rows mean.
        types: of the values, by number.
        formats: says of each value that it is in binary.
    """

    sql: str
    takes: Sequence[Kind]
    gives: Sequence[Kind]
    read: Callable[[PGresult], T]
    types: Sequence[int] = attrs.field(init=False)
    formats: Sequence[Format] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "types", [kind.oid for kind in self.takes])
        object.__setattr__(self, "formats", [Format.BINARY] * len(self.takes))

    def packed(self, values: Iterable[object]) -> list[bytes | None]:
        """The values in binary format; None is NULL."""
        return [
            None if value is None else kind.pack(value)
            for kind, value in zip(self.takes, values, strict=True)
        ]

    def check_types(self, result: PGresult) -> None:
        """Raise IntegrityError where the columns of a result have other types than were made."""
        if [result.ftype(n) for n in range(result.nfields)] != [kind.oid for kind in self.gives]:
            raise IntegrityError(UNREADABLE)


def in_schema(sql: str, schema: str) -> bytes:
    """The text of a statement for one schema."""
    return sql.replace("{schema}", schema).encode()


def prepared_name(sql: bytes) -> bytes:
    """The name that a statement is prepared under: the same for the same text, and no other text has it."""
    return b"tokenvault_" + hashlib.sha256(sql).hexdigest()[:_NAME_DIGITS].encode()


def sound_result(results: Sequence[PGresult]) -> PGresult:
    """The result of one statement. Raises what psycopg would raise."""
    if len(results) != 1 or results[0].status not in _DONE:
        raise errors.error_from_result(results[-1]) if results else psycopg.InterfaceError("no result")
    return results[0]


# What rows mean.


def _unpacked(result: PGresult, kinds: Iterable[Kind]) -> list[Sequence[Any]]:
    return [kind.unpack(column) for kind, column in zip(kinds, columns(result), strict=True)]


def _records(result: PGresult) -> list[SealedRecord]:
    return records_of(zip(*_unpacked(result, RECORD.values()), strict=True))


def found_records(result: PGresult) -> Sequence[SealedRecord]:
    """The records of a result; as columns, which a batch takes as they are, where all are equally long."""
    found = dict(zip(RECORD, columns(result), strict=True))
    if not result.ntuples or not all(map(_equally_long, found.values())):
        return _records(result)
    return RecordColumns(
        tokens=_bytes_array(found["token"]),
        references=_bytes_array(found["reference"]),
        pan_fingerprints=_bytes_array(found["pan_fingerprint"]),
        requestors=_bytes_array(found["requestor"]),
        programs=_bytes_array(found["program"]),
        revisions=_integers_array(found["revision"]),
        key_versions=_integers_array(found["key_version"]),
        bodies=_bytes_array(found["body"]),
        seals=_bytes_array(found["seal"]),
    )


def _equally_long(column: Sequence[bytes]) -> bool:
    return len(set(map(len, column))) == 1


def _bytes_array(column: Sequence[bytes]) -> Bytes:
    return np.frombuffer(b"".join(column), np.uint8).reshape(len(column), len(column[0]))


def _integers_array(column: Sequence[bytes]) -> Integers:
    return np.frombuffer(b"".join(column), ">i8").astype(np.int64)


def _first_record(result: PGresult) -> SealedRecord | None:
    return next(iter(_records(result)), None)


def _events(result: PGresult) -> list[SealedEvent]:
    return list(map(SealedEvent, *_unpacked(result, EVENT.values())))


def _tokens(result: PGresult) -> list[str]:
    (tokens,) = _unpacked(result, [TEXT])
    return list(tokens)


def _byte_strings(result: PGresult) -> list[bytes]:
    return columns(result)[0]


def _first_byte_string(result: PGresult) -> bytes | None:
    return next(iter(_byte_strings(result)), None)


def _nothing(_: PGresult) -> None:
    return None


# Records.


def _select_records(rest: str, *takes: Kind) -> Statement[list[SealedRecord]]:
    return Statement(f"SELECT {RECORD_COLUMNS} FROM {TOKENS} {rest}", takes, (*RECORD.values(),), _records)


def _find(condition: str, kind: Kind) -> Statement[list[SealedRecord]]:
    return _select_records(
        f"WHERE pan_fingerprint {condition} AND ($2::text IS NULL OR requestor = $2)"
        " AND ($3::bytea IS NULL OR program = $3) AND token > $4 ORDER BY token LIMIT $5",
        kind, TEXT, ASCII_BYTEA, TEXT, INT8,
    )  # fmt: skip


GET_ONE: Final = _select_records("WHERE token = $1", TEXT)
GET_MANY: Final = Statement(
    f"SELECT {RECORD_COLUMNS} FROM {TOKENS} WHERE token = ANY($1)",
    (array_of(TEXT),),
    (*RECORD.values(),),
    found_records,
)
FIND_ONE: Final = _find("= $1", BYTEA)  # in the order of its index: `= ANY` needs a sort
FIND_MANY: Final = _find("= ANY($1)", array_of(BYTEA))
BY_REFERENCE: Final = Statement(
    f"SELECT {RECORD_COLUMNS} FROM {TOKENS} WHERE reference = $1 LIMIT 1",
    (BYTEA,),
    (*RECORD.values(),),
    _first_record,
)
SCAN: Final = _select_records("WHERE token > $1 ORDER BY token LIMIT $2", TEXT, INT8)
SCAN_KEY_VERSION: Final = _select_records(
    "WHERE token > $1 AND key_version = $3 ORDER BY token LIMIT $2", TEXT, INT8, INT8
)
EXISTING: Final = Statement(
    f"SELECT token FROM {TOKENS} WHERE token = ANY($1)", (array_of(ASCII),), (TEXT,), _tokens
)

# Records and their events, written together. The values: those of a record, then an array for each column of events.


def _places(first: int, kinds: Sequence[Kind]) -> list[str]:
    return [f"${n}::{kind.name}" for n, kind in enumerate(kinds, first)]


_ONE_RECORD: Final = (*RECORD.values(),)
_MANY_RECORDS: Final = (*map(array_of, RECORD.values()),)
_SOME_EVENTS: Final = (*map(array_of, EVENT.values()),)
_RECORD_PLACES: Final = _places(1, _ONE_RECORD)
_EVENT_ROWS: Final = f"unnest({', '.join(_places(1 + len(RECORD), _SOME_EVENTS))})"
_DIGEST, _DOCUMENT = _places(1 + len(RECORD) + len(EVENT), (BYTEA, BYTEA))
_REPLACED: Final = [name for name in RECORD if name != "token"]

_NOTED: Final = f"""noted AS (
        INSERT INTO {EVENTS} ({EVENT_COLUMNS}) SELECT noted.* FROM written, {_EVENT_ROWS} AS noted
    ) SELECT $1 WHERE NOT EXISTS (SELECT FROM written)"""

INSERT: Final = Statement(
    f"""
    WITH written AS (
        INSERT INTO {TOKENS} ({RECORD_COLUMNS}) VALUES ({", ".join(_RECORD_PLACES)})
        ON CONFLICT (token) DO NOTHING RETURNING 1
    ), kept AS (
        INSERT INTO {DOMAINS} SELECT {_DIGEST}, {_DOCUMENT} FROM written WHERE {_DIGEST} IS NOT NULL
        ON CONFLICT (digest) DO NOTHING
    ), {_NOTED}""",
    (*_ONE_RECORD, *_SOME_EVENTS, BYTEA, BYTEA),
    (TEXT,),
    _tokens,
)
"""A record, its events, and a document with its digest, or NULL. The token comes back where it exists already."""

REPLACE_ONE: Final = Statement(
    f"""
    WITH written AS (
        UPDATE {TOKENS} SET ({", ".join(_REPLACED)}) = ROW ({", ".join(_RECORD_PLACES[1:])})
        WHERE token = $1 AND revision = ${1 + [*RECORD].index("revision")} - 1 RETURNING 1
    ), {_NOTED}""",
    (*_ONE_RECORD, *_SOME_EVENTS),
    (TEXT,),
    _tokens,
)
"""The token comes back where its revision has moved."""

REPLACE_MANY: Final = Statement(
    f"""
    WITH new AS MATERIALIZED (
        SELECT * FROM unnest({", ".join(_places(1, _MANY_RECORDS))}) AS new ({RECORD_COLUMNS})
    ), locked AS MATERIALIZED (
        SELECT token, revision FROM {TOKENS} WHERE token = ANY($1::text[]) ORDER BY token FOR NO KEY UPDATE
    ), moved AS MATERIALIZED (
        SELECT token FROM new LEFT JOIN locked USING (token)
        WHERE locked.revision IS DISTINCT FROM new.revision - 1
    ), written AS (
        UPDATE {TOKENS} AS old SET {", ".join(f"{name} = new.{name}" for name in _REPLACED)} FROM new
        WHERE old.token = new.token AND NOT EXISTS (SELECT FROM moved)
    ), noted AS (
        INSERT INTO {EVENTS} ({EVENT_COLUMNS}) SELECT * FROM {_EVENT_ROWS} WHERE NOT EXISTS (SELECT FROM moved)
    ) SELECT token FROM moved""",
    (*_MANY_RECORDS, *_SOME_EVENTS),
    (TEXT,),
    _tokens,
)
"""Likewise, for arrays of values: the tokens come back whose revision has moved."""

# Events.


def _select_events(rest: str, *takes: Kind) -> Statement[list[SealedEvent]]:
    return Statement(f"SELECT {EVENT_COLUMNS} FROM {EVENTS} {rest}", takes, (*EVENT.values(),), _events)


APPEND: Final = Statement(
    f"INSERT INTO {EVENTS} ({EVENT_COLUMNS}) SELECT * FROM unnest({', '.join(_places(1, _SOME_EVENTS))})",
    _SOME_EVENTS,
    (),
    _nothing,
)
EVENTS_OF_STREAM: Final = _select_events(
    "WHERE stream = $1 AND number >= $2 ORDER BY number LIMIT $3", BYTEA, INT8, INT8
)
EVENTS_ABOUT: Final = _select_events(
    "WHERE reference = $1 ORDER BY position OFFSET $2 LIMIT $3", BYTEA, INT8, INT8
)
# One index look-up a stream, where DISTINCT reads every event.
STREAMS: Final = Statement(
    f"""
    WITH RECURSIVE streams (stream) AS (
        (SELECT stream FROM {EVENTS} ORDER BY stream LIMIT 1)
        UNION ALL
        SELECT (SELECT e.stream FROM {EVENTS} e WHERE e.stream > s.stream ORDER BY e.stream LIMIT 1)
        FROM streams s WHERE s.stream IS NOT NULL
    ) SELECT stream FROM streams WHERE stream IS NOT NULL""",
    (),
    (BYTEA,),
    _byte_strings,
)
# Likewise, from the other end.
LATEST_CHECKPOINTS: Final = Statement(
    f"""
    WITH RECURSIVE newest (stream, remaining) AS (
        (SELECT stream, $1::bigint FROM {EVENTS} ORDER BY stream DESC LIMIT 1)
        UNION ALL
        SELECT (SELECT e.stream FROM {EVENTS} e WHERE e.stream < n.stream ORDER BY e.stream DESC LIMIT 1),
            n.remaining - 1
        FROM newest n WHERE n.stream IS NOT NULL AND n.remaining > 1
    ) SELECT head.stream, number, reference, body, mac FROM newest CROSS JOIN LATERAL (
        (SELECT e.*, 0 AS choice FROM {EVENTS} e WHERE reference = newest.stream ORDER BY position DESC LIMIT 1)
        UNION ALL (SELECT e.*, 1 FROM {EVENTS} e WHERE stream = newest.stream ORDER BY number LIMIT 1)
        ORDER BY choice LIMIT 1
    ) head WHERE newest.stream IS NOT NULL""",
    (INT8,),
    (*EVENT.values(),),
    _events,
)

# Domain documents and named values.

PUT_DOMAIN: Final = Statement(
    f"INSERT INTO {DOMAINS} VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING", (BYTEA, BYTEA), (), _nothing
)
GET_DOMAIN: Final = Statement(
    f"SELECT document FROM {DOMAINS} WHERE digest = $1", (BYTEA,), (BYTEA,), _first_byte_string
)
GET_META: Final = Statement(
    f"SELECT value FROM {META} WHERE name = $1", (TEXT,), (BYTEA,), _first_byte_string
)
PUT_META: Final = Statement(
    f"""
    WITH written AS (
        INSERT INTO {META} SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM {META} WHERE name = $1)
        ON CONFLICT (name) DO NOTHING RETURNING value
    ) SELECT value FROM written UNION ALL SELECT value FROM {META} WHERE name = $1""",
    (TEXT, BYTEA),
    (BYTEA,),
    _first_byte_string,
)
"""The value that is set now; nothing where another writer set it in between: `GET_META` reads that one."""
