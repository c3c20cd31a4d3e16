"""The SQL of a PostgreSQL token store: one statement for each write, with its events."""

from __future__ import annotations

from typing import Final

RECORD_COLUMNS: Final = (
    "token, reference, pan_fingerprint, requestor, program, revision, key_version, body, seal"
)
_RECORD_ARRAYS: Final = (
    "unnest($1::text[], $2::bytea[], $3::bytea[], $4::text[], $5::bytea[],"
    f" $6::bigint[], $7::bigint[], $8::bytea[], $9::bytea[]) AS new ({RECORD_COLUMNS})"
)
EVENT_COLUMNS: Final = "stream, number, reference, body, mac"
_EVENT_ARRAYS: Final = (
    "unnest($10::bytea[], $11::bigint[], $12::bytea[], $13::bytea[], $14::bytea[])"
    f" AS noted ({EVENT_COLUMNS})"
)
_EVENT_WIDTH: Final = 1 + EVENT_COLUMNS.count(",")
_REPLACED: Final = (
    "reference",
    "pan_fingerprint",
    "requestor",
    "program",
    "revision",
    "key_version",
    "body",
    "seal",
)


def streams(events: str) -> str:
    """Every stream."""
    # One index look-up a stream, where DISTINCT reads every event.
    return f"""
        WITH RECURSIVE streams (stream) AS (
            (SELECT stream FROM {events} ORDER BY stream LIMIT 1)
            UNION ALL
            SELECT (SELECT e.stream FROM {events} e WHERE e.stream > s.stream ORDER BY e.stream LIMIT 1)
            FROM streams s WHERE s.stream IS NOT NULL
        ) SELECT stream FROM streams WHERE stream IS NOT NULL"""


def latest_checkpoints(events: str) -> str:
    """The last checkpoints of the newest streams; $1 is how many."""
    # Likewise, from the other end.
    return f"""
        WITH RECURSIVE newest (stream, remaining) AS (
            (SELECT stream, $1::bigint FROM {events} ORDER BY stream DESC LIMIT 1)
            UNION ALL
            SELECT (SELECT e.stream FROM {events} e WHERE e.stream < n.stream ORDER BY e.stream DESC LIMIT 1),
                n.remaining - 1
            FROM newest n WHERE n.stream IS NOT NULL AND n.remaining > 1
        ) SELECT head.stream, number, reference, body, mac FROM newest CROSS JOIN LATERAL (
            (SELECT e.*, 0 AS choice FROM {events} e WHERE reference = newest.stream ORDER BY position DESC LIMIT 1)
            UNION ALL (SELECT e.*, 1 FROM {events} e WHERE stream = newest.stream ORDER BY number LIMIT 1)
            ORDER BY choice LIMIT 1
        ) head WHERE newest.stream IS NOT NULL"""


def event_places(first: int, events: int) -> str:
    """The places of the values of some events."""
    rows = (range(n, n + _EVENT_WIDTH) for n in range(first, first + events * _EVENT_WIDTH, _EVENT_WIDTH))
    return ", ".join(f"({', '.join(f'${n}' for n in row)})" for row in rows)


def _noted(events: str, count: int) -> str:
    places = event_places(2 + RECORD_COLUMNS.count(","), count)
    return f"""
            INSERT INTO {events} ({EVENT_COLUMNS})
            SELECT noted.* FROM written, (VALUES {places}) AS noted ({EVENT_COLUMNS})"""


def insert_one(tokens: str, events: str, count: int, domains: str | None = None) -> str:
    """A record and its events; the token comes back where it exists already. With `domains`, a document too."""
    digest = 2 + RECORD_COLUMNS.count(",") + count * _EVENT_WIDTH
    kept = f""", kept AS (
            INSERT INTO {domains} SELECT ${digest}, ${digest + 1} FROM written ON CONFLICT (digest) DO NOTHING
        )"""
    return f"""
        WITH written AS (
            INSERT INTO {tokens} ({RECORD_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            ON CONFLICT (token) DO NOTHING RETURNING 1
        ){kept if domains else ""}, noted AS ({_noted(events, count)}
        ) SELECT $1 WHERE NOT EXISTS (SELECT FROM written)"""


def replace_one(tokens: str, events: str, count: int) -> str:
    """Likewise; the token comes back where its revision has moved."""
    columns = ", ".join(f"{name} = ${n}" for n, name in enumerate(_REPLACED, 2))
    return f"""
        WITH written AS (
            UPDATE {tokens} SET {columns} WHERE token = $1 AND revision = $6 - 1 RETURNING 1
        ), noted AS ({_noted(events, count)}
        ) SELECT $1 WHERE NOT EXISTS (SELECT FROM written)"""


def replace_many(tokens: str, events: str) -> str:
    """Likewise, for arrays of values."""
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
            INSERT INTO {events} ({EVENT_COLUMNS})
            SELECT * FROM {_EVENT_ARRAYS} WHERE NOT EXISTS (SELECT FROM moved)
        ) SELECT token FROM moved"""
