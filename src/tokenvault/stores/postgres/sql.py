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

Counts are the last rows that a transaction locks, in the order of their groups: whoever waits for one holds all else
that it needs, so that no two wait for each other. PostgreSQL runs the last of the CTEs that nothing reads first, so
`counted` stands before the others.

Rows of the index come as arrays, in the order of the index: an event of a batch has thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenvault.stores.port import PAGE_BYTES
from tokenvault.stores.postgres.statements import (
    COUNTS,
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
    TOKEN_COUNT,
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
        # Filters that no index could serve: a card has few tokens, and a requestor millions.
        f"WHERE pan_fingerprint {condition} AND coalesce(requestor = $2, true)"
        " AND coalesce(program = $3, true) AND token > $4 ORDER BY token LIMIT $5",
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
LIST: Final = _select_records(
    "WHERE requestor = $1 AND program = $2 AND status = $3 AND (created_ms, token) > ($4, $5)"
    " ORDER BY created_ms, token LIMIT $6",
    TEXT, ASCII_BYTEA, INT8, INT8, TEXT, INT8,
)  # fmt: skip
# What an index on some rows is used for has to say so again.
FIND_CUSTOMER: Final = _select_records(
    "WHERE customer = $1 AND customer <> '' AND token > $2 ORDER BY token LIMIT $3", TEXT, TEXT, INT8
)
# Each key by itself: asked for any of several in the order of tokens, the planner walks the primary key.
FIND_LAST4: Final = Statement(
    f"""
    SELECT {RECORD_COLUMNS} FROM (SELECT DISTINCT unnest($1) AS wanted) AS keys CROSS JOIN LATERAL (
        SELECT * FROM {TOKENS}
        WHERE last4_key = wanted AND length(last4_key) > 0 AND token > $2 ORDER BY token LIMIT $3
    ) AS found ORDER BY token LIMIT $3""",
    (array_of(BYTEA), TEXT, INT8),
    _ONE_RECORD,
)
COUNT: Final = Statement(
    f"SELECT coalesce(sum(tokens), 0)::bigint FROM {COUNTS}"
    " WHERE requestor = $1 AND program = $2 AND status = $3",
    (TEXT, ASCII_BYTEA, INT8),
    (INT8,),
)
# One index look-up a group, where DISTINCT reads every record.
GROUPS: Final = Statement(
    f"""
    WITH RECURSIVE groups (requestor, program, status) AS (
        (SELECT requestor, program, status FROM {TOKENS} ORDER BY requestor, program, status LIMIT 1)
        UNION ALL
        SELECT next.* FROM groups CROSS JOIN LATERAL (
            SELECT t.requestor, t.program, t.status FROM {TOKENS} t
            WHERE (t.requestor, t.program, t.status) > (groups.requestor, groups.program, groups.status)
            ORDER BY t.requestor, t.program, t.status LIMIT 1
        ) AS next
    ) SELECT * FROM groups""",
    (),
    (TEXT, ASCII_BYTEA, INT8),
)
EXISTING: Final = Statement(f"SELECT token FROM {TOKENS} WHERE token = ANY($1)", (array_of(ASCII),), (TEXT,))

# Records, their events and counts, written together.

SHARDS: Final = 256
"""Rows that the count of one group is divided among, by the process of the server: writers hold a row until they are
committed, and would wait for one another at one."""


def _add_to_counts(changes: str) -> str:
    """The statement that adds to counts: `changes` gives requestor, program, status and a number, in this order."""
    return f"""
        INSERT INTO {COUNTS} (requestor, program, status, tokens, shard)
        SELECT change.*, pg_backend_pid() % {SHARDS} FROM ({changes}) AS change ORDER BY 1, 2, 3
        ON CONFLICT (requestor, program, status, shard)
            DO UPDATE SET tokens = token_counts.tokens + excluded.tokens"""


def _places(first: int, kinds: Sequence[Kind]) -> str:
    return ", ".join(f"${n}::{kind.name}" for n, kind in enumerate(kinds, first))


_ONE_EVENT: Final = (*EVENT.values(),)
_MANY_RECORDS: Final = (*map(array_of, _ONE_RECORD),)
_MANY_EVENTS: Final = (*map(array_of, _ONE_EVENT),)
_FENCE: Final = array_of(TEXT), array_of(INT8)
_INDEX_ROWS: Final = (*map(array_of, INDEX.values()),)
_AFTER_RECORD: Final = 1 + len(RECORD)
_EVENTS_PLACE: Final = _AFTER_RECORD
_INDEX_PLACE: Final = _EVENTS_PLACE + len(EVENT)
_FENCE_PLACE: Final = _INDEX_PLACE + len(INDEX)
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


def _with_events(
    write: str, kinds: Sequence[Kind], count: int, answer: str = "$1", gives: Kind = TEXT
) -> Statement:
    """A statement that writes a record and its events; where it could not, it returns the token, or another answer.

    Args:
        write: the CTE `written`, which has a row where the record was written, and others.
        kinds: of its values, before those of the events and of their rows in the index.
        count: of events.
        answer: where the record was not written.
        gives: the kind of the answer.
    """
    takes = (*kinds, *_ONE_EVENT * count)
    sql = f"""
    WITH {write}, noted AS (
        INSERT INTO {EVENTS} ({EVENT_COLUMNS}) SELECT noted.* FROM written, {_event_rows(1 + len(kinds), count)}
    ), {_index(1 + len(takes), "written,")} SELECT {answer} WHERE NOT EXISTS (SELECT FROM written)"""
    return Statement(sql, (*takes, *_INDEX_ROWS), (gives,))


_COUNTED_NEW: Final = _add_to_counts("SELECT $4::text, $5::bytea, $12::bigint, 1 FROM written")
_INSERT: Final = f"""written AS (
        INSERT INTO {TOKENS} ({RECORD_COLUMNS}) VALUES ({_places(1, _ONE_RECORD)})
        ON CONFLICT (token) DO NOTHING RETURNING 1
    ), counted AS ({_COUNTED_NEW})"""
_INSERT_WITH_DOCUMENT: Final = f"""{_INSERT}, kept AS (
        INSERT INTO {DOMAINS} SELECT ${_AFTER_RECORD}, ${_AFTER_RECORD + 1} FROM written
        ON CONFLICT (digest) DO NOTHING
    )"""
_REPLACE: Final = f"""written AS (
        UPDATE {TOKENS} SET ({_REPLACED}) = ROW ({_places(2, _ONE_RECORD[1:])})
        WHERE token = $1 AND revision = $6 - 1
            AND (requestor, program, status) IS NOT DISTINCT FROM ($4, $5, $12)
        RETURNING 1
    )"""

INSERT: Final = {n: _with_events(_INSERT, _ONE_RECORD, n) for n in FEW_EVENTS}
INSERT_WITH_DOCUMENT: Final = {
    n: _with_events(_INSERT_WITH_DOCUMENT, (*_ONE_RECORD, BYTEA, BYTEA), n) for n in FEW_EVENTS
}
"""By the number of events. Returns the token if it exists already."""

_UNMOVED: Final = f"(SELECT count(*) FROM {TOKENS} WHERE token = $1 AND revision = $6 - 1)"
REPLACE_ONE: Final = {n: _with_events(_REPLACE, _ONE_RECORD, n, _UNMOVED, INT8) for n in FEW_EVENTS}
"""By the number of events, of a record that stays in its group, which most do: no count changes. Where the record was
not replaced it returns 0 if its revision has moved, or 1 if it had not: then `REPLACE_MANY` tells."""


_CHANGED: Final = """SELECT requestor, program, status, sum(number)::bigint FROM unmoved, (
            SELECT old.requestor, old.program, old.status, -1 AS number FROM locked AS old JOIN new USING (token)
            UNION ALL SELECT requestor, program, status, 1 FROM new
        ) AS record GROUP BY requestor, program, status HAVING sum(number) <> 0"""


def _replace_many(lock: str) -> Statement:
    sql = f"""
    WITH new AS MATERIALIZED (
        SELECT * FROM unnest({_places(1, _MANY_RECORDS)}) AS new ({RECORD_COLUMNS})
    ), expected AS MATERIALIZED (
        SELECT token, revision - 1 AS revision FROM new
        UNION ALL SELECT * FROM unnest({_places(_FENCE_PLACE, _FENCE)})
    ), locked AS MATERIALIZED (
        SELECT token, revision, requestor, program, status FROM {TOKENS}
        WHERE token = ANY($1::text[] || ${_FENCE_PLACE}::text[]) ORDER BY token {lock}
    ), moved AS MATERIALIZED (
        SELECT token FROM expected LEFT JOIN locked USING (token)
        WHERE locked.revision IS DISTINCT FROM expected.revision
    ), written AS (
        UPDATE {TOKENS} AS old SET ({_REPLACED}) = ROW ({_NEW}) FROM new
        WHERE old.token = new.token AND NOT EXISTS (SELECT FROM moved)
    ), unmoved AS (
        SELECT WHERE NOT EXISTS (SELECT FROM moved)
    ), counted AS (
        {_add_to_counts(_CHANGED)}
    ), noted AS (
        INSERT INTO {EVENTS} ({EVENT_COLUMNS}) SELECT noted.* FROM unmoved,
        unnest({_places(_EVENTS_PLACE, _MANY_EVENTS)}) AS noted
    ), {_index(_INDEX_PLACE, "unmoved,")} SELECT token FROM moved"""
    return Statement(sql, _MANY_RECORDS + _MANY_EVENTS + _INDEX_ROWS + _FENCE, (TEXT,))


ADD_TO_COUNTS: Final = Statement(
    _add_to_counts("SELECT * FROM unnest($1, $2, $3, $4)"),
    (*map(array_of, TOKEN_COUNT.values()),),
    (),
)
"""Takes requestors, programs, statuses and by how much the count of each changes."""

REPLACE_MANY: Final = _replace_many("FOR NO KEY UPDATE")
APPEND_MANY: Final = _replace_many("FOR SHARE")
"""Both take arrays of values; the second, no records. They return the tokens whose revision has moved."""

PRUNE: Final = Statement(
    f"""
    WITH named AS MATERIALIZED (
        SELECT t.token FROM {TOKENS} AS t JOIN unnest($1::text[], $2::bigint[]) AS n (token, revision)
            USING (token, revision) WHERE t.token = ANY($1::text[]) ORDER BY t.token FOR UPDATE OF t
    ), gone AS (
        DELETE FROM {TOKENS} AS t USING named WHERE t.token = named.token RETURNING requestor, program, status
    ), counted AS ({_add_to_counts("SELECT requestor, program, status, -count(*) FROM gone GROUP BY 1, 2, 3")}
    ), unindexed AS (
        DELETE FROM {EVENT_INDEX} AS i USING unnest({_places(5, _INDEX_ROWS)}) AS n ({INDEX_COLUMNS})
        WHERE (i.reference, i.use_id, i.stream, i.number) = (n.reference, n.use_id, n.stream, n.number)
    ), pruned AS (
        DELETE FROM {EVENTS} AS e USING unnest($3::bytea[], $4::bigint[]) AS n (stream, number)
        WHERE (e.stream, e.number) = (n.stream, n.number)
    ) SELECT ''::text WHERE false""",
    (*_FENCE, array_of(BYTEA), array_of(INT8), *_INDEX_ROWS), (TEXT,),
)  # fmt: skip
"""Takes tokens and revisions, streams and numbers of events, and rows of the index."""

# Events.


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

# The lengths are known without the bodies, which are read of the rows that are in the page alone.
EVENTS_OF_STREAM: Final = Statement(
    f"""
    SELECT {EVENT_COLUMNS} FROM (
        SELECT {EVENT_COLUMNS}, sum(length(body)) OVER (
            ORDER BY number ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS before FROM (
            SELECT {EVENT_COLUMNS} FROM {EVENTS} WHERE stream = $1 AND number >= $2 ORDER BY number LIMIT $3
        ) AS e
    ) AS e WHERE coalesce(before, 0) < {PAGE_BYTES} ORDER BY number""",
    (BYTEA, INT8, INT8),
    _ONE_EVENT,
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
# An event that is not there is one without a MAC, which is none; no event at all is one without a number.
_EVENT_OR_NONE: Final = (
    "coalesce(e.stream, ''), coalesce(e.number, 0), coalesce(e.reference, ''), coalesce(e.body, ''),"
    " coalesce(e.mac, '')"
)


def _get_use(condition: str, kind: Kind) -> Statement:
    columns = ", ".join(f"r.{name}" for name in RECORD)
    return Statement(
        f"""
    SELECT {columns}, {_EVENT_OR_NONE}
    FROM (SELECT * FROM {TOKENS} WHERE {condition} LIMIT 1) AS r LEFT JOIN LATERAL (
        SELECT i.stream, i.number, e.reference, e.body, e.mac FROM (
            SELECT DISTINCT stream, number FROM {EVENT_INDEX}
            WHERE reference = r.reference AND use_id = ANY($2) LIMIT $3
        ) AS i LEFT JOIN {EVENTS} AS e USING (stream, number)
    ) AS e ON true""",
        (kind, array_of(BYTEA), INT8),
        (*_ONE_RECORD, *_ONE_EVENT),
    )


USE_OF_TOKEN: Final = _get_use("token = $1", TEXT)
USE_OF_REFERENCE: Final = _get_use("reference = $1", BYTEA)
"""The record in each row, with one of the events; with an event of number 0 where there is none."""

USES: Final = Statement(
    f"""
    SELECT {_EVENT_OR_NONE} FROM (
        SELECT i.stream, i.number, e.reference, e.body, e.mac FROM (
            SELECT DISTINCT i.stream, i.number FROM unnest($1::bytea[], $2::bytea[]) AS p (reference, use_id)
            JOIN {EVENT_INDEX} AS i USING (reference, use_id) LIMIT $3
        ) AS i LEFT JOIN {EVENTS} AS e USING (stream, number)
    ) AS e""",
    (array_of(BYTEA), array_of(BYTEA), INT8),
    _ONE_EVENT,
)

# As three conditions of their own, the lengths would have the planner expect one row, and sort all that lie behind.
INDEX_ROWS: Final = Statement(
    f"""
    SELECT {INDEX_COLUMNS} FROM {EVENT_INDEX}
    WHERE (reference, use_id, stream, number) > ($1, $2, $3, $4) AND number > 0
        AND coalesce(length(reference) = 16 AND length(use_id) = 16 AND length(stream) = 16, false)
    ORDER BY reference, use_id, stream, number LIMIT $5""",
    (*INDEX.values(), INT8),
    (*INDEX.values(),),
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
WRITERS: Final = Statement(
    f"""
    SELECT DISTINCT l.virtualtransaction FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
        AND l.relation IN ('{TOKENS}'::regclass, '{EVENTS}'::regclass)""",
    (),
    (TEXT,),
)
"""Transactions that have written records or events and are not over."""

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
