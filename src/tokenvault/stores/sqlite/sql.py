"""The SQL of a SQLite token store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

_Key = TypeVar("_Key", str, bytes)

_KEYS_OF_ONE_STATEMENT: Final = (1, 16, 256)

_RECORD: Final = (
    "SELECT token, reference, pan_fingerprint, requestor, program, revision, key_version, body, seal,"
    " customer, last4_key, status, created_ms FROM tokens "
)
_REVISIONS: Final = "SELECT token, revision FROM tokens "
_NAMES: Final = "SELECT token FROM tokens "
_EVENT: Final = "SELECT stream, number, reference, body, mac FROM events "
BY_TOKENS: Final = {n: _RECORD + f"WHERE token IN ({', '.join('?' * n)})" for n in _KEYS_OF_ONE_STATEMENT}
FIND: Final = {
    (n, by_requestor, by_program): _RECORD
    + f"INDEXED BY tokens_by_pan_fingerprint WHERE pan_fingerprint IN ({', '.join('?' * n)}) AND token > ?"
    + (" AND requestor = ?" if by_requestor else "")
    + (" AND program = ?" if by_program else "")
    + " ORDER BY token LIMIT ?"
    for n in _KEYS_OF_ONE_STATEMENT
    for by_requestor in (False, True)
    for by_program in (False, True)
}
BY_REFERENCE: Final = _RECORD + "WHERE reference = ? LIMIT 1"
# What an index on some rows is used for has to say so again.
FIND_CUSTOMER: Final = _RECORD + "WHERE customer = ? AND customer <> '' AND token > ? ORDER BY token LIMIT ?"
# One key at a time, in the order of the index: of several at once all that have one would be read and sorted.
FIND_LAST4: Final = _RECORD + "WHERE last4_key = ? AND last4_key <> x'' AND token > ? ORDER BY token LIMIT ?"
LIST: Final = (
    _RECORD + "INDEXED BY tokens_by_group WHERE requestor = ? AND program = ? AND status = ?"
    " AND (created_ms, token) > (?, ?) ORDER BY created_ms, token LIMIT ?"
)
COUNT: Final = "SELECT tokens FROM token_counts WHERE requestor = ? AND program = ? AND status = ?"
# One index look-up a group, where DISTINCT reads every record. SQLite begins at what is equal to the row that it is
# given, and steps on from there: that row is one behind every record of the group, not each of them.
NEXT_GROUP: Final = (
    "SELECT requestor, program, status FROM tokens INDEXED BY tokens_by_group"
    " WHERE (requestor, program, status, created_ms, token) > (?, ?, ?, 9223372036854775807, ':')"
    " ORDER BY requestor, program, status, created_ms, token LIMIT 1"
)
EVENTS_OF_USE: Final = "SELECT stream, number FROM event_index WHERE reference = ? AND use_id = ?"
ONE_EVENT: Final = _EVENT + "WHERE stream = ? AND number = ?"
EVENT_SIZES: Final = (
    "SELECT length(body) FROM events WHERE stream = ? AND number >= ? ORDER BY number LIMIT ?"
)
SCAN: Final = _RECORD + "WHERE token > ? ORDER BY token LIMIT ?"
SCAN_KEY_VERSION: Final = _RECORD + "WHERE token > ? AND key_version = ? ORDER BY token LIMIT ?"
EVENTS_OF_STREAM: Final = _EVENT + "WHERE stream = ? AND number >= ? ORDER BY number LIMIT ?"
# A value too long for a connection to read comes as NULL, so that it does not hide the others.
EVENTS_ABOUT: Final = """
    SELECT use_id, i.stream, i.number,
        CASE WHEN length(e.reference) <= 16 THEN e.reference END,
        CASE WHEN length(body) <= 1048576 THEN body END, CASE WHEN length(mac) <= 16 THEN mac END
    FROM event_index AS i LEFT JOIN events AS e ON e.stream = i.stream AND e.number = i.number
    WHERE i.reference = ? AND (use_id, i.stream, i.number) > (?, ?, ?)
        AND length(use_id) = 16 AND length(i.stream) = 16 AND i.number > 0
    ORDER BY use_id, i.stream, i.number LIMIT ?"""
INDEX_ROWS: Final = """
    SELECT reference, use_id, stream, number FROM event_index
    WHERE (reference, use_id, stream, number) > (?, ?, ?, ?)
        AND length(reference) = 16 AND length(use_id) = 16 AND length(stream) = 16 AND number > 0
    ORDER BY reference, use_id, stream, number LIMIT ?"""
# One index look-up a stream, where DISTINCT reads every event.
STREAMS: Final = """
    WITH RECURSIVE streams (stream) AS (
        SELECT min(stream) FROM events
        UNION ALL
        SELECT (SELECT min(stream) FROM events WHERE stream > streams.stream)
        FROM streams WHERE streams.stream IS NOT NULL
    ) SELECT stream FROM streams WHERE stream IS NOT NULL"""
# Likewise, from the greatest name down.
LATEST_CHECKPOINTS: Final = """
    WITH RECURSIVE newest (stream, remaining) AS (
        SELECT max(stream), ? FROM events
        UNION ALL
        SELECT (SELECT max(stream) FROM events WHERE stream < newest.stream), newest.remaining - 1
        FROM newest WHERE newest.stream IS NOT NULL AND newest.remaining > 1
    ), heads (stream, number) AS (
        SELECT stream, coalesce(
            (SELECT number FROM event_index WHERE reference = newest.stream AND use_id = zeroblob(16)
                AND stream = newest.stream ORDER BY number DESC LIMIT 1),
            (SELECT number FROM events WHERE stream = newest.stream ORDER BY number LIMIT 1)
        ) FROM newest WHERE stream IS NOT NULL
    ) SELECT heads.stream, heads.number, reference, body, mac
    FROM heads LEFT JOIN events ON events.stream = heads.stream AND events.number = heads.number"""

EXISTING: Final = {n: _NAMES + f"WHERE token IN ({', '.join('?' * n)})" for n in _KEYS_OF_ONE_STATEMENT}
REVISIONS: Final = {n: _REVISIONS + f"WHERE token IN ({', '.join('?' * n)})" for n in _KEYS_OF_ONE_STATEMENT}
INSERT: Final = (
    "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (token) DO NOTHING"
)
# The usual replacement keeps what records are looked up by. SQLite rewrites the indexes of every column that it is
# told to set, changed or not: a statement that leaves those alone writes half the pages.
REPLACE: Final = (
    "UPDATE tokens SET revision = :revision, key_version = :key_version, body = :body, seal = :seal"
    " WHERE token = :token AND revision = :revision - 1"
    " AND reference = :reference AND pan_fingerprint = :pan_fingerprint AND requestor = :requestor"
    " AND program = :program AND customer = :customer AND last4_key = :last4_key AND status = :status"
    " AND created_ms = :created_ms"
)
REPLACE_ALL: Final = (
    "UPDATE tokens SET reference = :reference, pan_fingerprint = :pan_fingerprint, requestor = :requestor,"
    " program = :program, revision = :revision, key_version = :key_version, body = :body, seal = :seal,"
    " customer = :customer, last4_key = :last4_key, status = :status, created_ms = :created_ms"
    " WHERE token = :token AND revision = :revision - 1"
)
GROUP_OF: Final = "SELECT requestor, program, status FROM tokens WHERE token = ?"
ADD_TO_COUNT: Final = (
    "INSERT INTO token_counts VALUES (?, ?, ?, ?)"
    " ON CONFLICT (requestor, program, status) DO UPDATE SET tokens = tokens + excluded.tokens"
)
PUT_DOMAIN: Final = "INSERT INTO domains VALUES (?, ?) ON CONFLICT (digest) DO NOTHING"
GET_DOMAIN: Final = "SELECT document FROM domains WHERE digest = ?"
GET_META: Final = "SELECT value FROM meta WHERE name = ?"
PUT_META: Final = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
APPEND: Final = "INSERT INTO events VALUES (?, ?, ?, ?, ?)"
# A row that is there already was planted: it leads to this event all the same.
INDEX: Final = "INSERT OR IGNORE INTO event_index VALUES (?, ?, ?, ?)"

PRUNE_EVENT: Final = "DELETE FROM events WHERE stream = ? AND number = ?"
PRUNE_INDEX: Final = (
    "DELETE FROM event_index WHERE reference = ? AND use_id = ? AND stream = ? AND number = ?"
)
PRUNE_RECORD: Final = (
    "DELETE FROM tokens WHERE token = ? AND revision = ? RETURNING requestor, program, status"
)


def statements_of(keys: Sequence[_Key]) -> list[tuple[int, Sequence[_Key]]]:
    """Keys for statements of few sizes, so that few are kept prepared; the last is filled up with its last key."""
    if len(keys) == 1:
        return [(1, keys)]
    wanted = list(dict.fromkeys(keys))
    size_max = _KEYS_OF_ONE_STATEMENT[-1]
    chunks = [wanted[start : start + size_max] for start in range(0, len(wanted), size_max)]
    sizes = [next(n for n in _KEYS_OF_ONE_STATEMENT if n >= len(chunk)) for chunk in chunks]
    return [
        (size, chunk + chunk[-1:] * (size - len(chunk))) for size, chunk in zip(sizes, chunks, strict=True)
    ]
