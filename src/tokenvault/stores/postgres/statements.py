"""What a statement is, where its schema goes, and what the rows that it gives mean; `sql` has the statements."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import errors
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from tokenvault.errors import IntegrityError
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.new_records import joined
from tokenvault.stores.port import SealedRecord
from tokenvault.stores.postgres.errors import UNREADABLE
from tokenvault.stores.postgres.values import (
    ASCII_BYTEA,
    BYTEA,
    INT8,
    TEXT,
    Kind,
    columns,
    rows,
)

TOKENS: Final = '"{schema}".tokens'
COUNTS: Final = '"{schema}".token_counts'
EVENTS: Final = '"{schema}".events'
EVENT_INDEX: Final = '"{schema}".event_index'
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
    "customer": TEXT,
    "last4_key": BYTEA,
    "status": INT8,
    "created_ms": INT8,
}
"""The columns of a token record, in the order of the fields of SealedRecord."""

EVENT: Final = {"stream": BYTEA, "number": INT8, "reference": BYTEA, "body": BYTEA, "mac": BYTEA}
"""The columns of an audit event, in the order of the fields of SealedEvent."""

INDEX: Final = {"reference": BYTEA, "use_id": BYTEA, "stream": BYTEA, "number": INT8}
"""The columns of a row of the index."""

TOKEN_COUNT: Final = {"requestor": TEXT, "program": ASCII_BYTEA, "status": INT8, "tokens": INT8}
"""The columns of a count, but for its shard."""

RECORD_COLUMNS: Final = ", ".join(RECORD)
EVENT_COLUMNS: Final = ", ".join(EVENT)
INDEX_COLUMNS: Final = ", ".join(INDEX)

_DONE: Final = {ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK}
_NAME_DIGITS: Final = 16


class Statement:
    """A statement without its values; a connection prepares it when it first runs it.

    Attributes:
        sql: with $1, $2, ... for the values, and {schema} for the schema.
        takes: the kinds of the values.
        gives: the kinds of the columns.
        types: the oids of the values' types.
        formats: says of each value that it is in binary.
    """

    def __init__(self, sql: str, takes: Sequence[Kind], gives: Sequence[Kind]) -> None:
        self.sql: Final = sql
        self.takes: Final = takes
        self.gives: Final = gives
        self.types: Final = [kind.oid for kind in takes]
        self.formats: Final = [Format.BINARY] * len(takes)
        # Byte strings go as they are.
        self._packs: Final = [(n, kind.pack) for n, kind in enumerate(takes) if kind.pack is not bytes]

    def packed(self, values: Iterable[object]) -> list[bytes | None]:
        """The values in binary format."""
        packed: list[Any] = list(values)
        for place, pack in self._packs:
            packed[place] = pack(packed[place])
        return packed

    def rows(self, result: PGresult) -> list[tuple[Any, ...]]:
        """The rows of a result. Raises IntegrityError for NULL, which is never written."""
        return rows(result, self.gives)

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
        # A server that says why it disconnects gives two: the second, libpq's own, says that it did.
        failed = next((result for result in results if result.status not in _DONE), None)
        raise errors.error_from_result(failed) if failed else psycopg.InterfaceError("no result, or several")
    return results[0]


def read_record_columns(result: PGresult) -> Sequence[SealedRecord]:
    """The records of a result; as columns, which a batch takes as they are, where all are equally long."""
    found = columns(result, len(RECORD))
    if not all(len(set(map(len, column))) == 1 for column in found):
        return list(map(SealedRecord._make, rows(result, tuple(RECORD.values()))))
    return RecordColumns(*map(_array, RECORD.values(), found))


def _array(kind: Kind, column: Sequence[bytes]) -> npt.NDArray[Any]:
    array = joined(column)
    return array.view(">i8").reshape(-1).astype(np.int64) if kind is INT8 else array
