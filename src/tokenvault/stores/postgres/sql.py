"""The statements of a token store in PostgreSQL.

Each is a transaction of its own, so that a call is one round trip without BEGIN and COMMIT, all or nothing, and needs
no pipeline: a pooler that hands out connections by transaction (pgbouncer) sees nothing unusual. What holds at READ
COMMITTED, which connections set:

- One record: ON CONFLICT DO NOTHING waits for whoever is inserting the same token; an UPDATE waits for whoever
  is replacing the row and then looks at its revision again. The events are written where the row was written.
- Many records are replaced once their rows are locked, in the order of tokens, so that two batches
  can not wait for each other; locked rows are read as they are then, not as they were when the statement began.
- A fence locks its rows FOR SHARE until the events are committed. A snapshot alone would let a replacement commit,
  and be acknowledged, between the look and the commit of the events; FOR KEY SHARE would too, as a replacement
  changes no key. FOR SHARE waits for a replacement under way and then sees its revision, and one that comes later
  waits. Uses of one token share the lock.

Many records to insert are copied instead: see `copy`.

Rows of the index come as arrays, in the order of the index: an event of a batch has thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenvault.stores.postgres.statements import (
    DOMAINS,
    EVENT,
    EVENT_COLUMNS,
    EVENT_INDEX,
    EVENTS,
    INDEX,
    INDEX_COLUMNS,
    META,
    RECORD,
    RECORD_COLUMNS,
    TOKENS,
    Statement,
)
from tokenvault.stores.postgres.values import ASCII, ASCII_BYTEA, BYTEA, INT8, TEXT, Kind, array_of, nullable

# Records.


_ONE_RECORD: Final = (*RECORD.values(),)


def _select_records(rest: str, *takes: Kind) -> Statement:
    return Statement(f"SELECT {RECORD_COLUMNS} FROM {TOKENS} {rest}", takes, _ONE_RECORD)


def _find(condition: str, kind: Kind) -> Statement:
    return _select_records(
        f"WHERE pan_fingerprint {condition} AND ($2::text IS NULL OR requestor = $2)"
        " AND ($3::bytea IS NULL OR program = $3) AND token > $4 ORDER BY token LIMIT $5",
        kind, nullable(TEXT), nullable(ASCII_BYTEA), TEXT, INT8,
    )  # fmt: skip


GET_ONE: Final = _select_records("WHERE token = $1", TEXT)
GET_MANY: Final = _select_records("WHERE token = ANY($1)", array_of(TEXT))
FIND_ONE: Final = _find("= $1", BYTEA)  # in the order of its index: `= ANY` needs a sort
FIND_MANY: Final = _find("= ANY($1)", array_of(BYTEA))
BY_REFERENCE: Final = _select_records("WHERE reference = $1 LIMIT 1", BYTEA)
SCAN: Final = _select_records("WHERE token > $1 ORDER BY token LIMIT $2", TEXT, INT8)
SCAN_KEY_VERSION: Final = _select_records(
    "WHERE token > $1 AND key_version = $3 ORDER BY token LIMIT $2", TEXT, INT8, INT8
)
EXISTING: Final = Statement(f"SELECT token FROM {TOKENS} WHERE token = ANY($1)", (array_of(ASCII),), (TEXT,))

# Records and their events, written together.


def _places(first: int, kinds: Sequence[Kind]) -> str:
    return ", ".join(f"${n}::{kind.name}" for n, kind in enumerate(kinds, first))


_ONE_EVENT: Final = (*EVENT.values(),)
_MANY_RECORDS: Final = (*map(array_of, _ONE_RECORD),)
_MANY_EVENTS: Final = (*map(array_of, _ONE_EVENT),)
_FENCE: Final = array_of(TEXT), array_of(INT8)
_INDEX_ROWS: Final = (*map(array_of, INDEX.values()),)
_REPLACED: Final = ", ".join(name for name in RECORD if name != "token")
_NEW: Final = ", ".join(f"new.{name}" for name in RECORD if name != "token")

FEW_EVENTS: Final = (1, 2)
"""How many events go in one statement, with their record or alone: an event, and the checkpoint that goes before it.
More, or none, come as arrays."""


def _event_rows(first: int, count: int) -> str:
    """The places of some events, as rows."""
    places = range(first, first + count * len(EVENT), len(EVENT))
    return f"(VALUES {', '.join(f'({_places(place, _ONE_EVENT)})' for place in places)}) AS noted"


def _index(first: int, condition: str = "") -> str:
    """The CTE that writes rows of the index, which come as arrays."""
    # A row that is there already was planted: it leads to this event all the same.
    return f"""indexed AS (
        INSERT INTO {EVENT_INDEX} ({INDEX_COLUMNS}) SELECT i.* FROM {condition}
        unnest({_places(first, _INDEX_ROWS)}) AS i ON CONFLICT DO NOTHING
    )"""


def _with_events(write: str, kinds: Sequence[Kind], count: int) -> Statement:
    """A statement that writes a record and its events; it returns the token where it could not.

    Args:
        write: the CTE `written`, which has a row where the record was written, and others.
        kinds: of its values, before those of the events and of their rows in the index.
        count: of events.
    """
    takes = (*kinds, *_ONE_EVENT * count)
    sql = f"""
    WITH {write}, noted AS (
        INSERT INTO {EVENTS} ({EVENT_COLUMNS}) SELECT noted.* FROM written, {_event_rows(1 + len(kinds), count)}
    ), {_index(1 + len(takes), "written,")} SELECT $1 WHERE NOT EXISTS (SELECT FROM written)"""
    return Statement(sql, (*takes, *_INDEX_ROWS), (TEXT,))


_INSERT: Final = f"""written AS (
        INSERT INTO {TOKENS} ({RECORD_COLUMNS}) VALUES ({_places(1, _ONE_RECORD)})
        ON CONFLICT (token) DO NOTHING RETURNING 1
    )"""
_INSERT_WITH_DOCUMENT: Final = f"""{_INSERT}, kept AS (
        INSERT INTO {DOMAINS} SELECT $10, $11 FROM written ON CONFLICT (digest) DO NOTHING
    )"""
_REPLACE: Final = f"""written AS (
        UPDATE {TOKENS} SET ({_REPLACED}) = ROW ({_places(2, _ONE_RECORD[1:])})
        WHERE token = $1 AND revision = $6 - 1 RETURNING 1
    )"""

INSERT: Final = {n: _with_events(_INSERT, _ONE_RECORD, n) for n in FEW_EVENTS}
INSERT_WITH_DOCUMENT: Final = {
    n: _with_events(_INSERT_WITH_DOCUMENT, (*_ONE_RECORD, BYTEA, BYTEA), n) for n in FEW_EVENTS
}
"""By the number of events. Returns the token if it exists already."""

REPLACE_ONE: Final = {n: _with_events(_REPLACE, _ONE_RECORD, n) for n in FEW_EVENTS}
"""By the number of events. Returns the token if its revision has moved."""


def _replace_many(lock: str) -> Statement:
    sql = f"""
    WITH new AS MATERIALIZED (
        SELECT * FROM unnest({_places(1, _MANY_RECORDS)}) AS new ({RECORD_COLUMNS})
    ), expected AS MATERIALIZED (
        SELECT token, revision - 1 AS revision FROM new
        UNION ALL SELECT * FROM unnest({_places(19, _FENCE)})
    ), locked AS MATERIALIZED (
        SELECT token, revision FROM {TOKENS} WHERE token = ANY($1::text[] || $19::text[]) ORDER BY token {lock}
    ), moved AS MATERIALIZED (
        SELECT token FROM expected LEFT JOIN locked USING (token)
        WHERE locked.revision IS DISTINCT FROM expected.revision
    ), written AS (
        UPDATE {TOKENS} AS old SET ({_REPLACED}) = ROW ({_NEW}) FROM new
        WHERE old.token = new.token AND NOT EXISTS (SELECT FROM moved)
    ), unmoved AS (
        SELECT WHERE NOT EXISTS (SELECT FROM moved)
    ), noted AS (
        INSERT INTO {EVENTS} ({EVENT_COLUMNS}) SELECT noted.* FROM unmoved,
        unnest({_places(10, _MANY_EVENTS)}) AS noted
    ), {_index(15, "unmoved,")} SELECT token FROM moved"""
    return Statement(sql, _MANY_RECORDS + _MANY_EVENTS + _INDEX_ROWS + _FENCE, (TEXT,))


REPLACE_MANY: Final = _replace_many("FOR NO KEY UPDATE")
APPEND_MANY: Final = _replace_many("FOR SHARE")
"""Both take arrays of values; the second, no records. They return the tokens whose revision has moved."""

# Events.


def _select_events(rest: str, *takes: Kind) -> Statement:
    return Statement(f"SELECT {EVENT_COLUMNS} FROM {EVENTS} {rest}", takes, _ONE_EVENT)


APPEND: Final = {
    n: Statement(
        f"WITH {_index(1 + n * len(EVENT))}"
        f" INSERT INTO {EVENTS} ({EVENT_COLUMNS}) SELECT * FROM {_event_rows(1, n)}",
        (*_ONE_EVENT * n, *_INDEX_ROWS),
        (),
    )
    for n in FEW_EVENTS
}
"""By the number of events."""

_HELD: Final = f"written AS (SELECT FROM {TOKENS} WHERE token = $1 AND revision = $2 FOR SHARE)"
APPEND_FENCED: Final = {n: _with_events(_HELD, (TEXT, INT8), n) for n in FEW_EVENTS}
"""By the number of events, behind a fence of one token. Returns the token if its revision has moved."""

EVENTS_OF_STREAM: Final = _select_events(
    "WHERE stream = $1 AND number >= $2 ORDER BY number LIMIT $3", BYTEA, INT8, INT8
)
# An event that is not there is one without a MAC, which is none.
EVENTS_ABOUT: Final = Statement(
    f"""
    SELECT use_id, stream, number, coalesce(e.reference, ''), coalesce(body, ''), coalesce(mac, '') FROM (
        SELECT use_id, stream, number FROM {EVENT_INDEX}
        WHERE reference = $1 AND (use_id, stream, number) > ($2, $3, $4)
            AND length(use_id) = 16 AND length(stream) = 16 AND number > 0
        ORDER BY use_id, stream, number LIMIT $5
    ) AS i LEFT JOIN {EVENTS} AS e USING (stream, number) ORDER BY use_id, stream, number""",
    (BYTEA, BYTEA, BYTEA, INT8, INT8),
    (BYTEA, *_ONE_EVENT),
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
)
# Likewise, from the greatest name down.
LATEST_CHECKPOINTS: Final = Statement(
    f"""
    WITH RECURSIVE newest (stream, remaining) AS (
        (SELECT stream, $1::bigint FROM {EVENTS} ORDER BY stream DESC LIMIT 1)
        UNION ALL
        SELECT (SELECT e.stream FROM {EVENTS} e WHERE e.stream < n.stream ORDER BY e.stream DESC LIMIT 1),
            n.remaining - 1
        FROM newest n WHERE n.stream IS NOT NULL AND n.remaining > 1
    ) SELECT head.stream, head.number, coalesce(e.reference, ''), coalesce(body, ''), coalesce(mac, '')
    FROM newest CROSS JOIN LATERAL (
        (SELECT i.stream, i.number, 0 AS choice FROM {EVENT_INDEX} i
            WHERE reference = newest.stream AND use_id = decode(repeat('00', 16), 'hex') AND stream = newest.stream
            ORDER BY number DESC LIMIT 1)
        UNION ALL
        (SELECT e.stream, e.number, 1 FROM {EVENTS} e WHERE stream = newest.stream ORDER BY number LIMIT 1)
        ORDER BY choice LIMIT 1
    ) AS head LEFT JOIN {EVENTS} AS e ON e.stream = head.stream AND e.number = head.number
    WHERE newest.stream IS NOT NULL""",
    (INT8,),
    _ONE_EVENT,
)

# Domain documents and named values.

PUT_DOMAIN: Final = Statement(
    f"INSERT INTO {DOMAINS} VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING", (BYTEA, BYTEA), ()
)
GET_DOMAIN: Final = Statement(f"SELECT document FROM {DOMAINS} WHERE digest = $1", (BYTEA,), (BYTEA,))
GET_META: Final = Statement(f"SELECT value FROM {META} WHERE name = $1", (TEXT,), (BYTEA,))
PUT_META: Final = Statement(
    f"""
    WITH written AS (
        INSERT INTO {META} SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM {META} WHERE name = $1)
        ON CONFLICT (name) DO NOTHING RETURNING value
    ) SELECT value FROM written UNION ALL SELECT value FROM {META} WHERE name = $1""",
    (TEXT, BYTEA),
    (BYTEA,),
)
"""The value that is set now; nothing where another writer set it in between: `GET_META` reads that one."""
