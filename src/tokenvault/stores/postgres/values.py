"""The kinds of values in PostgreSQL's tables, and how each is written and read in its binary format.

The store runs its statements on libpq itself, through `psycopg.pq`: that takes half the time of a cursor, which
looks up for each value how to write it and for each column how to read it. Here both are known beforehand.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
from psycopg.pq.abc import PGresult

from tokenvault.errors import IntegrityError
from tokenvault.stores.postgres.errors import UNREADABLE

_INT8: Final = struct.Struct(">q")
_LENGTH: Final = struct.Struct(">i")
_ARRAY: Final = struct.Struct(">iiiii")
_EMPTY_ARRAY: Final = struct.Struct(">iii")


@attrs.frozen(eq=False)
class Kind:
    """A type of PostgreSQL, and how Python's values are written and read as it.

    Attributes:
        name: of the type, in SQL.
        oid: number of the type, which is the same in every PostgreSQL.
        array_oid: of an array of it.
        pack: gives a value in binary format.
        unpack: gives the values of a column that was read, none of them NULL.
    """

    name: str
    oid: int
    array_oid: int
    pack: Callable[[Any], bytes]
    unpack: Callable[[Sequence[bytes]], Sequence[Any]]


def _texts(column: Sequence[bytes]) -> list[str]:
    # An edited text may hold anything: each byte of it becomes a character, which the guard refuses.
    return [str(value, "latin-1") for value in column]


def _numbers(column: Sequence[bytes]) -> Sequence[int]:
    return struct.unpack(f">{len(column)}q", b"".join(column))


TEXT: Final = Kind("text", 25, 1009, str.encode, _texts)
ASCII: Final = Kind("text", 25, 1009, bytes, list)
"""A text that Python has as bytes."""
BYTEA: Final = Kind("bytea", 17, 1001, bytes, list)
ASCII_BYTEA: Final = Kind("bytea", 17, 1001, str.encode, _texts)
"""A byte string that Python has as an ASCII text."""
INT8: Final = Kind("bigint", 20, 1016, _INT8.pack, _numbers)


def array_of(kind: Kind) -> Kind:
    """Arrays of a kind, to be written only."""

    def pack(values: Sequence[Any]) -> bytes:
        return _array(kind.oid, list(map(kind.pack, values)))

    return Kind(f"{kind.name}[]", kind.array_oid, 0, pack, list)


def _array(oid: int, values: Sequence[bytes]) -> bytes:
    if not values:
        return _EMPTY_ARRAY.pack(0, 0, oid)
    parts = [_ARRAY.pack(1, 0, oid, len(values), 1)]
    if len(set(map(len, values))) == 1:  # nearly always, and in one step then
        length = _LENGTH.pack(len(values[0]))
        return b"".join((*parts, length, length.join(values)))
    for value in values:
        parts += (_LENGTH.pack(len(value)), value)
    return b"".join(parts)


def columns(result: PGresult) -> list[list[bytes]]:
    """The columns of a result, as they came. Raises IntegrityError for NULL, which is never written."""
    get, rows = result.get_value, range(result.ntuples)
    found = [[get(row, column) for row in rows] for column in range(result.nfields)]
    for column in found:
        if None in column:
            raise IntegrityError(UNREADABLE)
    return found  # type: ignore[return-value] # no None is among them
