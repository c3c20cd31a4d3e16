"""What a statement is, where its schema goes, and what the rows that it gives mean; `sql` has the statements."""

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
    ASCII_BYTEA,
    BYTEA,
    INT8,
    TEXT,
    Kind,
    columns,
    number,
    row,
    text,
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
    _conversions: Sequence[tuple[int, Callable[[Any], bytes | None]]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "types", [kind.oid for kind in self.takes])
        object.__setattr__(self, "formats", [Format.BINARY] * len(self.takes))
        # Byte strings go as they are.
        conversions = [(place, kind.pack) for place, kind in enumerate(self.takes) if kind.pack is not bytes]
        object.__setattr__(self, "_conversions", conversions)

    def packed(self, values: Iterable[object]) -> list[bytes | None]:
        """The values in binary format."""
        packed: list[Any] = list(values)
        for place, pack in self._conversions:
            packed[place] = pack(packed[place])
        return packed

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


def read_records(result: PGresult) -> list[SealedRecord]:
    """The records of a result."""
    return records_of(zip(*_unpacked(result, RECORD.values()), strict=True))


def read_record_columns(result: PGresult) -> Sequence[SealedRecord]:
    """The records of a result; as columns, which a batch takes as they are, where all are equally long."""
    found = dict(zip(RECORD, columns(result), strict=True))
    if not result.ntuples or not all(map(_equally_long, found.values())):
        return read_records(result)
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


def read_record(result: PGresult) -> SealedRecord | None:
    """The first record of a result."""
    # Not by columns, which takes four times as long for one row.
    found = row(result)
    if found is None:
        return None
    token, reference, pan_fingerprint, requestor, program, revision, key_version, body, seal = found
    return SealedRecord(
        text(token),
        reference,
        pan_fingerprint,
        text(requestor),
        text(program),
        number(revision),
        number(key_version),
        body,
        seal,
    )


def read_events(result: PGresult) -> list[SealedEvent]:
    """The events of a result."""
    return list(map(SealedEvent, *_unpacked(result, EVENT.values())))


def read_tokens(result: PGresult) -> list[str]:
    """The tokens of a result."""
    return list(map(text, columns(result)[0])) if result.ntuples else []


def read_byte_strings(result: PGresult) -> list[bytes]:
    """The byte strings of a result."""
    return columns(result)[0]


def read_byte_string(result: PGresult) -> bytes | None:
    """The first byte string of a result."""
    found = row(result)
    return None if found is None else found[0]


def read_nothing(_: PGresult) -> None:
    """Nothing: of a statement without rows."""
    return None
