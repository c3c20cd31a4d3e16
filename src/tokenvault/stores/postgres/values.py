"""Statements that are prepared once a connection, and their values in PostgreSQL's binary format.

The store runs its statements on libpq itself, through `psycopg.pq`: that takes half the time of a cursor, which
looks up for each value how to write it and for each column how to read it. Here both are known beforehand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

import attrs
import psycopg
from psycopg import errors
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from tokenvault.errors import IntegrityError
from tokenvault.stores.postgres.errors import UNREADABLE

# Types by their oid, which is the same in every PostgreSQL.
TEXT: Final = 25
BYTEA: Final = 17
INT8: Final = 20
TEXTS: Final = 1009
BYTEAS: Final = 1001
INT8S: Final = 1016

_DONE: Final = {ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK}
_INT8: Final = struct.Struct(">q")
_LENGTH: Final = struct.Struct(">i")
_ARRAY: Final = struct.Struct(">iiiii")

Value = str | bytes | int


@attrs.frozen(eq=False)
class Query:
    """A statement without its values; prepared on a connection when it is first run there.

    Attributes:
        name: that it is prepared under.
        sql: with $1, $2, ... for the values.
        takes: the types of the values.
        gives: the types of the columns.
        formats: that every value is in binary.
    """

    name: bytes
    sql: bytes
    takes: Sequence[int]
    gives: Sequence[int]
    formats: Sequence[Format] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "formats", [Format.BINARY] * len(self.takes))


def sound_result(results: Sequence[PGresult]) -> PGresult:
    """The result of one statement. Raises what psycopg would raise."""
    if len(results) != 1 or results[0].status not in _DONE:
        raise errors.error_from_result(results[-1]) if results else psycopg.InterfaceError("no result")
    return results[0]


def check_types(query: Query, result: PGresult) -> None:
    """Raise IntegrityError where columns have other types. Once is enough: a prepared statement keeps its types."""
    if [result.ftype(n) for n in range(result.nfields)] != list(query.gives):
        raise IntegrityError(UNREADABLE)


# Values of statements.


packed_number: Final = _INT8.pack
"""A bigint in binary format."""


def packed(value: Value) -> bytes:
    """A value in binary format."""
    if type(value) is int:
        return packed_number(value)
    return value.encode() if type(value) is str else value  # type: ignore[return-value] # bytes are what is left


def packed_all(values: Iterable[Value]) -> list[bytes]:
    """Values in binary format."""
    return [packed(value) for value in values]


def array(kind: int, values: Sequence[bytes]) -> bytes:
    """An array of values of one type, none of them NULL."""
    parts = [_ARRAY.pack(1, 0, kind, len(values), 1) if values else _ARRAY.pack(0, 0, kind, 0, 0)[:12]]
    if len(set(map(len, values))) == 1:  # nearly always, and in one step then
        length = _LENGTH.pack(len(values[0]))
        return b"".join((*parts, length, length.join(values)))
    for value in values:
        parts += (_LENGTH.pack(len(value)), value)
    return b"".join(parts)


# Rows and columns. An edited text may hold anything: each byte of it becomes a character, which the guard refuses.


def columns(result: PGresult) -> list[list[bytes]]:
    """The columns of a result. Raises IntegrityError for NULL, which is never written."""
    get, rows = result.get_value, range(result.ntuples)
    found = [[get(row, column) for row in rows] for column in range(result.nfields)]
    for column in found:
        if None in column:
            raise IntegrityError(UNREADABLE)
    return found  # type: ignore[return-value] # no None is among them


def row(result: PGresult) -> list[bytes]:
    """The first row of a result. Raises IntegrityError for NULL."""
    get = result.get_value
    found = [get(0, column) for column in range(result.nfields)]
    if None in found:
        raise IntegrityError(UNREADABLE)
    return found  # type: ignore[return-value] # no None is among them


def texts(column: Sequence[bytes]) -> list[str]:
    """A column of text, or of bytea that holds ASCII."""
    return [str(value, "latin-1") for value in column]


def number(value: bytes) -> int:
    """A bigint."""
    found: int = _INT8.unpack(value)[0]
    return found


def numbers(column: Sequence[bytes]) -> tuple[int, ...]:
    """A column of bigint."""
    return struct.unpack(f">{len(column)}q", b"".join(column))
