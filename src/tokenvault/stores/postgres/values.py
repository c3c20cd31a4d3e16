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

_LENGTH: Final = struct.Struct(">i")
_ARRAY: Final = struct.Struct(">iiiii")
_EMPTY_ARRAY: Final = struct.Struct(">iii")


_INT8: Final = struct.Struct(">q")


def text(value: bytes) -> str:
    """A text that was read. An edited one may hold anything: the guard refuses a character beyond ASCII."""
    return str(value, "latin-1")


def number(value: bytes) -> int:
    """A bigint that was read."""
    found: int = _INT8.unpack(value)[0]
    return found


def _texts(column: Sequence[bytes]) -> list[str]:
    return list(map(text, column))


def _numbers(column: Sequence[bytes]) -> Sequence[int]:
    return struct.unpack(f">{len(column)}q", b"".join(column))


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
    pack: Callable[[Any], bytes | None]
    unpack: Callable[[Sequence[bytes]], Sequence[Any]]


TEXT: Final = Kind("text", 25, 1009, str.encode, _texts)
ASCII: Final = Kind("text", 25, 1009, bytes, list)
"""A text that Python has as bytes."""
BYTEA: Final = Kind("bytea", 17, 1001, bytes, list)
ASCII_BYTEA: Final = Kind("bytea", 17, 1001, str.encode, _texts)
"""A byte string that Python has as an ASCII text."""
INT8: Final = Kind("bigint", 20, 1016, _INT8.pack, _numbers)


def nullable(kind: Kind) -> Kind:
    """Values of a kind to be written, or None, which is NULL."""
    return attrs.evolve(kind, pack=lambda value: None if value is None else kind.pack(value))


def array_of(kind: Kind) -> Kind:
    """Arrays of values of a kind to be written, none of them NULL."""
    name, oid = f"{kind.name}[]", kind.array_oid
    return attrs.evolve(
        kind, name=name, oid=oid, pack=lambda values: _array(kind.oid, list(map(kind.pack, values)))
    )


def _array(oid: int, values: Sequence[Any]) -> bytes:
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


def row(result: PGresult) -> list[bytes] | None:
    """The first row of a result, or None where there is none. Raises IntegrityError for NULL."""
    if not result.ntuples:
        return None
    get = result.get_value
    found = [get(0, column) for column in range(result.nfields)]
    if None in found:
        raise IntegrityError(UNREADABLE)
    return found  # type: ignore[return-value] # no None is among them
