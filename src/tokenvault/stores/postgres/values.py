"""The kinds of values in PostgreSQL's tables, and how each is written and read in its binary format.

The store runs its statements on libpq itself, through `psycopg.pq`: that takes half the time of a cursor, which
looks up for each value how to write it and for each column how to read it. Here both are known beforehand.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from operator import call
from typing import Any, Final

import attrs
from psycopg.pq.abc import PGresult

from tokenvault.errors import IntegrityError
from tokenvault.stores.postgres.errors import UNREADABLE

_INT8: Final = struct.Struct(">q")
_LENGTH: Final = struct.Struct(">i")
_ARRAY: Final = struct.Struct(">iiiii")
_EMPTY_ARRAY: Final = struct.Struct(">iii")


def _text(value: bytes) -> str:
    # An edited one may hold anything: the guard refuses a character beyond ASCII.
    return str(value, "latin-1")


def _number(value: bytes) -> int:
    found: int = _INT8.unpack(value)[0]
    return found


@attrs.frozen(eq=False)
class Kind:
    """A type of PostgreSQL, and how Python's values are written and read as it.

    Attributes:
        name: of the type, in SQL.
        oid: number of the type, which is the same in every PostgreSQL.
        array_oid: of an array of it.
        pack: gives a value in binary format.
        unpack: gives the value of one that was read.
    """

    name: str
    oid: int
    array_oid: int
    pack: Callable[[Any], bytes | None]
    unpack: Callable[[bytes], Any]


TEXT: Final = Kind("text", 25, 1009, str.encode, _text)
ASCII: Final = Kind("text", 25, 1009, bytes, bytes)
"""A text that Python has as bytes."""
BYTEA: Final = Kind("bytea", 17, 1001, bytes, bytes)
ASCII_BYTEA: Final = Kind("bytea", 17, 1001, str.encode, _text)
"""A byte string that Python has as an ASCII text."""
INT8: Final = Kind("bigint", 20, 1016, _INT8.pack, _number)


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


def rows(result: PGresult, kinds: Sequence[Kind]) -> list[tuple[Any, ...]]:
    """The rows of a result whose columns have these kinds. Raises IntegrityError for NULL, which is never written."""
    get, fields, unpacks = result.get_value, range(len(kinds)), [kind.unpack for kind in kinds]
    found: list[list[Any]] = [[get(row, field) for field in fields] for row in range(result.ntuples)]
    _refuse_null(found)
    return [tuple(map(call, unpacks, row)) for row in found]


def columns(result: PGresult, count: int) -> list[list[bytes]]:
    """The columns of a result, as they came. Raises IntegrityError for NULL."""
    get, places = result.get_value, range(result.ntuples)
    found = [[get(row, column) for row in places] for column in range(count)]
    _refuse_null(found)
    return found  # type: ignore[return-value] # no None is among them


def _refuse_null(found: Sequence[Sequence[bytes | None]]) -> None:
    if any(None in values for values in found):
        raise IntegrityError(UNREADABLE)
