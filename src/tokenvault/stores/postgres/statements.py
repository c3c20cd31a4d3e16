"""What each call of the port asks of PostgreSQL: one statement a call, and what its rows mean.

Blocking store and store with coroutines run the same statements. Each is a transaction of its own, so that a call is
one round trip without BEGIN and COMMIT, all or nothing, and needs no pipeline: a pooler that hands out
connections by transaction (pgbouncer) sees nothing unusual. What holds at READ COMMITTED, which connections set:

- One record: ON CONFLICT DO NOTHING waits for whoever is inserting the same token; an UPDATE waits for whoever
  is replacing the row and then looks at its revision again. The event is written from the row written.
- Many records are replaced once their rows are locked, in the order of tokens, so that two batches
  can not wait for each other; locked rows are read as they are then, not as they were when the statement began.

Only many records to insert, and many events, go otherwise: see `Batch`.

Values go and come in PostgreSQL's binary format, which `values` writes and reads.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final, Generic, NamedTuple, TypeVar

from psycopg.pq.abc import PGresult

from tokenvault.stores.new_records import RecordBatch, records_of
from tokenvault.stores.port import SealedEvent, SealedRecord, digest_of
from tokenvault.stores.postgres import sql
from tokenvault.stores.postgres.copy import Copy, by_first, copy_rows, event_columns, record_columns
from tokenvault.stores.postgres.groups import RECORD as _RECORD
from tokenvault.stores.postgres.groups import record_groups
from tokenvault.stores.postgres.values import (
    BYTEA,
    BYTEAS,
    INT8,
    INT8S,
    TEXT,
    TEXTS,
    Query,
    Value,
    array,
    columns,
    number,
    numbers,
    packed,
    packed_all,
    packed_number,
    row,
    texts,
)

_T = TypeVar("_T")

_RECORDS: Final = (TEXTS, BYTEAS, BYTEAS, TEXTS, BYTEAS, INT8S, INT8S, BYTEAS, BYTEAS)
_EVENT: Final = (BYTEA, INT8, BYTEA, BYTEA, BYTEA)
_EVENTS: Final = (BYTEAS, INT8S, BYTEAS, BYTEAS, BYTEAS)
FEW_EVENTS: Final = (1, 2)
"""How many events a statement of its own writes: an event, and the checkpoint that goes before it."""


class Statement(NamedTuple, Generic[_T]):
    """One statement with its values.

    Attributes:
        query: the statement.
        values: for its places, in binary format.
        result: what its rows say.
    """

    query: Query
    values: Sequence[bytes]
    result: Callable[[PGresult], _T]


class Batch(NamedTuple):
    """Many records and events to insert: in one transaction, where none of the tokens exists, by binary COPY.

    A token that another writer puts in between is a unique violation: nothing is written, and the batch done again
    sees that token.

    Attributes:
        existing: says which of the tokens exist. PostgreSQL would log the token of a unique violation, so
            that COPY is tried only where none is to be expected. None where there are no records.
        copies: gives what is copied, one after the other; built once it is known that none exists.
        looked_for: whether that is known already.
    """

    existing: Statement[list[str]] | None
    copies: Callable[[], Sequence[Copy]]
    looked_for: bool


class Statements:
    """Every statement of a token store in one schema."""

    def __init__(self, schema: str) -> None:
        tokens, events = f'"{schema}".tokens', f'"{schema}".events'
        domains, meta = f'"{schema}".domains', f'"{schema}".meta'
        numbers = itertools.count(1)

        def query(sql: str, takes: Sequence[int], gives: Sequence[int] = ()) -> Query:
            return Query(b"tokenvault_%d" % next(numbers), sql.encode(), takes, gives)

        def record(rest: str, *takes: int) -> Query:
            return query(f"SELECT {sql.RECORD_COLUMNS} FROM {tokens} {rest}", takes, _RECORD)

        def event(rest: str, *takes: int) -> Query:
            return query(f"SELECT {sql.EVENT_COLUMNS} FROM {events} {rest}", takes, _EVENT)

        self._get_one = record("WHERE token = $1", TEXT)
        # One value for records that are equally long; grouped by one number, as that sorts fastest.
        self._get_many = query(
            f"SELECT string_agg(record_send(ROW({sql.RECORD_COLUMNS})), '') FROM {tokens} WHERE token = ANY($1)"
            " GROUP BY (octet_length(token)::bigint << 48) | (octet_length(requestor)::bigint << 32)"
            " | (octet_length(program)::bigint << 16) | octet_length(body)::bigint",
            (TEXTS,),
            (BYTEA,),
        )
        self._existing = query(f"SELECT token FROM {tokens} WHERE token = ANY($1)", (TEXTS,), (TEXT,))
        self._find = {
            (many, by_requestor, by_program): record(
                f"WHERE pan_fingerprint = {'ANY($1)' if many else '$1'} AND token > $2"
                + (" AND requestor = $4" if by_requestor else "")
                + (f" AND program = ${4 + by_requestor}" if by_program else "")
                + " ORDER BY token LIMIT $3",
                *(BYTEAS if many else BYTEA, TEXT, INT8, *[TEXT] * by_requestor, *[BYTEA] * by_program),
            )
            for many in (False, True)
            for by_requestor in (False, True)
            for by_program in (False, True)
        }
        self._by_reference = record("WHERE reference = $1 LIMIT 1", BYTEA)
        self._scan = record("WHERE token > $1 ORDER BY token LIMIT $2", TEXT, INT8)
        self._scan_key_version = record(
            "WHERE token > $1 AND key_version = $3 ORDER BY token LIMIT $2", TEXT, INT8, INT8
        )
        self._events_of_stream = event(
            "WHERE stream = $1 AND number >= $2 ORDER BY number LIMIT $3", BYTEA, INT8, INT8
        )
        self._events_about = event(
            "WHERE reference = $1 ORDER BY position LIMIT $2 OFFSET $3", BYTEA, INT8, INT8
        )
        self._streams = query(sql.streams(events), (), (BYTEA,))
        self._latest_checkpoints = query(sql.latest_checkpoints(events), (INT8,), _EVENT)
        self._insert_one = {
            n: query(sql.insert_one(tokens, events, n), _RECORD + n * _EVENT, (TEXT,)) for n in FEW_EVENTS
        }
        self._insert_one_with_document = {
            n: query(
                sql.insert_one(tokens, events, n, domains), _RECORD + n * _EVENT + (BYTEA, BYTEA), (TEXT,)
            )
            for n in FEW_EVENTS
        }
        self._replace_one = {
            n: query(sql.replace_one(tokens, events, n), _RECORD + n * _EVENT, (TEXT,)) for n in FEW_EVENTS
        }
        self._replace_many = query(sql.replace_many(tokens, events), _RECORDS + _EVENTS, (TEXT,))
        self._append_few = {
            n: query(
                f"INSERT INTO {events} ({sql.EVENT_COLUMNS}) VALUES {sql.event_places(1, n)}", n * _EVENT
            )
            for n in FEW_EVENTS
        }
        self._copy_records = f"COPY {tokens} ({sql.RECORD_COLUMNS}) FROM STDIN (FORMAT binary)".encode()
        self._copy_events = f"COPY {events} ({sql.EVENT_COLUMNS}) FROM STDIN (FORMAT binary)".encode()
        self._put_domain = query(
            f"INSERT INTO {domains} VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING",
            (BYTEA, BYTEA),
        )
        self._get_domain = query(f"SELECT document FROM {domains} WHERE digest = $1", (BYTEA,), (BYTEA,))
        self._get_meta = query(f"SELECT value FROM {meta} WHERE name = $1", (TEXT,), (BYTEA,))
        self._put_meta = query(
            f"WITH written AS (INSERT INTO {meta} SELECT $1, $2"
            f" WHERE NOT EXISTS (SELECT FROM {meta} WHERE name = $1)"
            " ON CONFLICT (name) DO NOTHING RETURNING value)"
            f" SELECT value FROM written UNION ALL SELECT value FROM {meta} WHERE name = $1",
            (TEXT, BYTEA),
            (BYTEA,),
        )

    def get(self, tokens: Sequence[str]) -> Statement[Sequence[SealedRecord]]:
        """As in TokenStore, and so on."""
        if len(tokens) == 1:
            return Statement(self._get_one, (tokens[0].encode("ascii"),), _record)
        # In order, as PostgreSQL walks its index: neighbours lie in the same pages.
        encoded = "\n".join(sorted(tokens)).encode("ascii").split(b"\n")
        return Statement(self._get_many, (array(TEXT, encoded),), record_groups)

    def find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> Statement[list[SealedRecord]]:
        many = len(pan_fingerprints) != 1
        values: list[Value] = [array(BYTEA, pan_fingerprints) if many else pan_fingerprints[0], after, limit]
        if requestor is not None:
            values.append(requestor)
        if program is not None:
            values.append(program)
        query = self._find[many, requestor is not None, program is not None]
        return Statement(query, packed_all(values), _records)

    def by_reference(self, reference: bytes) -> Statement[SealedRecord | None]:
        return Statement(self._by_reference, (reference,), _record_or_none)

    def insert_one(
        self, record: SealedRecord, events: Sequence[SealedEvent], document: bytes | None
    ) -> Statement[list[str]]:
        """For as many events as FEW_EVENTS has."""
        values = _record_values(record, events)
        if document is None:
            return Statement(self._insert_one[len(events)], values, _tokens)
        values += (digest_of(document), document)
        return Statement(self._insert_one_with_document[len(events)], values, _tokens)

    def insert_many(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> Batch:
        existing = None
        if records:
            named = (
                records.tokens
                if isinstance(records, RecordBatch)
                else packed_all([record.token for record in records])
            )
            existing = Statement(self._existing, (array(TEXT, named),), _tokens)

        @functools.cache
        def copies() -> Sequence[Copy]:
            found = []
            if records:
                written = record_columns(records)
                # In the order of tokens, two batches that write the same ones can not wait for each other.
                found.append(Copy(self._copy_records, copy_rows(written, by_first(written))))
            if events:
                found.append(Copy(self._copy_events, copy_rows(event_columns(events))))
            return found

        return Batch(existing, copies, isinstance(records, RecordBatch) and records.looked_for)

    def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> Statement[list[str]]:
        if len(records) == 1 and len(events) in FEW_EVENTS:
            return Statement(self._replace_one[len(events)], _record_values(records[0], events), _tokens)
        arrays = _arrays(_RECORD, map(_record_values, records)) + _arrays(_EVENT, map(_event_values, events))
        return Statement(self._replace_many, arrays, _tokens)

    def append_few(self, events: Sequence[SealedEvent]) -> Statement[None]:
        """For as many events as FEW_EVENTS has."""
        return Statement(
            self._append_few[len(events)], list(chain.from_iterable(map(_event_values, events))), _nothing
        )

    def events_of_stream(self, stream: bytes, first: int, limit: int) -> Statement[list[SealedEvent]]:
        return Statement(self._events_of_stream, packed_all((stream, first, limit)), _events)

    def events_about(self, reference: bytes, after: int, limit: int) -> Statement[list[SealedEvent]]:
        return Statement(self._events_about, packed_all((reference, limit, after)), _events)

    def streams(self) -> Statement[list[bytes]]:
        return Statement(self._streams, (), _bytes)

    def latest_checkpoints(self, limit: int) -> Statement[list[SealedEvent]]:
        return Statement(self._latest_checkpoints, (packed(limit),), _events)

    def put_domain(self, digest: bytes, document: bytes) -> Statement[None]:
        return Statement(self._put_domain, (digest, document), _nothing)

    def get_domain(self, digest: bytes) -> Statement[bytes | None]:
        return Statement(self._get_domain, (digest,), _bytes_or_none)

    def scan(self, after: str, limit: int, key_version: int | None) -> Statement[list[SealedRecord]]:
        if key_version is None:
            return Statement(self._scan, packed_all((after, limit)), _records)
        return Statement(self._scan_key_version, packed_all((after, limit, key_version)), _records)

    def get_meta(self, name: str) -> Statement[bytes | None]:
        return Statement(self._get_meta, (packed(name),), _bytes_or_none)

    def put_meta(self, name: str, value: bytes) -> Statement[bytes | None]:
        """The value that stands; None where another writer set it in between, who is read by `get_meta`."""
        return Statement(self._put_meta, (packed(name), value), _bytes_or_none)


# Values and rows.


def _record_values(record: SealedRecord, events: Sequence[SealedEvent] = ()) -> tuple[bytes, ...]:
    token, reference, pan_fingerprint, requestor, program, revision, key_version, body, seal = record
    values: tuple[bytes, ...] = (
        token.encode("ascii"),
        reference,
        pan_fingerprint,
        requestor.encode("ascii"),
        program.encode("ascii"),
        packed_number(revision),
        packed_number(key_version),
        body,
        seal,
    )
    for event in events:
        values += _event_values(event)
    return values


def _event_values(event: SealedEvent) -> tuple[bytes, ...]:
    stream, number, reference, body, mac = event
    return stream, packed_number(number), reference, body, mac


def _arrays(kinds: Sequence[int], values: Iterable[tuple[bytes, ...]]) -> list[bytes]:
    columns = list(zip(*values, strict=True)) or [()] * len(kinds)
    return [array(kind, column) for kind, column in zip(kinds, columns, strict=True)]


def _records(result: PGresult) -> list[SealedRecord]:
    token, reference, pan_fingerprint, requestor, program, revision, key_version, body, seal = columns(result)
    rows = zip(
        texts(token),
        reference,
        pan_fingerprint,
        texts(requestor),
        texts(program),
        numbers(revision),
        numbers(key_version),
        body,
        seal,
        strict=True,
    )
    return records_of(rows)


def _record(result: PGresult) -> list[SealedRecord]:
    """As `_records`, in a fourth of the time where there is one."""
    if result.ntuples != 1:
        return _records(result)
    token, reference, pan_fingerprint, requestor, program, revision, key_version, body, seal = row(result)
    return [
        SealedRecord(
            str(token, "latin-1"),
            reference,
            pan_fingerprint,
            str(requestor, "latin-1"),
            str(program, "latin-1"),
            number(revision),
            number(key_version),
            body,
            seal,
        )
    ]


def _record_or_none(result: PGresult) -> SealedRecord | None:
    return next(iter(_records(result)), None)


def _events(result: PGresult) -> list[SealedEvent]:
    stream, position, reference, body, mac = columns(result)
    return list(map(SealedEvent, stream, numbers(position), reference, body, mac))


def _tokens(result: PGresult) -> list[str]:
    return texts(columns(result)[0]) if result.ntuples else []


def _bytes(result: PGresult) -> list[bytes]:
    return columns(result)[0]


def _bytes_or_none(result: PGresult) -> bytes | None:
    return next(iter(_bytes(result)), None)


def _nothing(_: PGresult) -> None:
    return None
