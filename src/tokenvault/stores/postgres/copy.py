"""Rows as PostgreSQL's binary COPY takes them, built from columns in a few numpy operations for all rows at once.

Layout (PostgreSQL's documentation, COPY, "Binary Format"), big endian:

    11  signature, 4 flags, 4 length of an extension: none
    a row: 2 number of fields, then for each 4 its length and its bytes
    2   -1

The rows lie side by side in a matrix as wide as the widest row; where lengths differ, a mask takes the padding out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import attrs
import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Bytes, place
from tokenvault.stores.new_records import RecordBatch, joined
from tokenvault.stores.port import SealedRecord
from tokenvault.stores.postgres.statements import RECORD, RECORD_COLUMNS, TOKENS
from tokenvault.stores.postgres.values import ASCII_BYTEA, BYTEA, INT8, TEXT, Kind

_COPY_RECORDS: Final = f"COPY {TOKENS} ({RECORD_COLUMNS}) FROM STDIN (FORMAT binary)"
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_COUNT_BYTES: Final = 2
_LENGTH_BYTES: Final = 4


class Copy(NamedTuple):
    """A COPY statement, with {schema} for the schema, and what is sent with it."""

    sql: str
    rows: bytes


@attrs.frozen(eq=False)
class Column:
    """One field of every row.

    Attributes:
        data: uint8, shape (rows, width): the field's bytes in binary format, padded on the right.
        lengths: int64, shape (rows,): of the fields without padding; None where none is padded.
    """

    data: Bytes
    lengths: npt.NDArray[np.int64] | None = None

    @classmethod
    def of_bytes(cls, values: Sequence[bytes]) -> Column:
        """Byte strings, of any lengths."""
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        width = int(lengths.max(initial=0))
        if not width or int(lengths.min()) == width:
            return cls(joined(values))
        padded = np.array(values, dtype=f"S{width}")
        return cls(padded.view(np.uint8).reshape(len(values), width), lengths)

    @classmethod
    def of_one(cls, value: bytes, rows: int) -> Column:
        """One byte string in every row."""
        return cls(np.broadcast_to(np.frombuffer(value, np.uint8), (rows, len(value))))

    @classmethod
    def of_texts(cls, values: Sequence[str]) -> Column:
        """ASCII texts, of any lengths."""
        return cls.of_bytes([value.encode("ascii") for value in values])

    @classmethod
    def of_integers(cls, values: Sequence[int]) -> Column:
        """Integers for a bigint."""
        return cls(np.array(values, dtype=">i8").view(np.uint8).reshape(len(values), 8))


def copy_rows(columns: Sequence[Column], order: npt.NDArray[np.intp] | None = None) -> bytes:
    """The rows of equally long columns in COPY's format, with header and trailer.

    Args:
        columns: in the order of the table's columns, at least one.
        order: indices of the rows in the order to write; unset, as they come.
    """
    rows = len(columns[0].data)
    width = _COUNT_BYTES + sum(_LENGTH_BYTES + column.data.shape[1] for column in columns)
    matrix = np.empty((rows, width), np.uint8)
    mask = None
    matrix[:, :_COUNT_BYTES] = _big_endian(len(columns), ">i2")
    start = _COUNT_BYTES
    for column in columns:
        field_width = column.data.shape[1]
        end = start + _LENGTH_BYTES + field_width
        place(column.data, matrix, start + _LENGTH_BYTES)
        if column.lengths is None:
            matrix[:, start : start + _LENGTH_BYTES] = _big_endian(field_width, ">i4")
        else:
            lengths = column.lengths.astype(">i4").view(np.uint8).reshape(rows, _LENGTH_BYTES)
            matrix[:, start : start + _LENGTH_BYTES] = lengths
            if mask is None:
                mask = np.ones((rows, width), np.bool_)
            mask[:, start + _LENGTH_BYTES : end] = np.arange(field_width) < column.lengths[:, None]
        start = end
    if order is not None:
        matrix = matrix.take(order, axis=0)
        mask = None if mask is None else mask[order]
    return b"".join((_HEADER, (matrix if mask is None else matrix[mask]).tobytes(), _TRAILER))


def _big_endian(number: int, dtype: str) -> Bytes:
    return np.array([number], dtype=dtype).view(np.uint8)


# From rows to columns.


_COLUMN_OF: Final[dict[Kind, Callable[[Any], Column]]] = {
    TEXT: Column.of_texts,
    ASCII_BYTEA: Column.of_texts,
    BYTEA: Column.of_bytes,
    INT8: Column.of_integers,
}


def _columns(rows: Sequence[tuple[Any, ...]], kinds: Iterable[Kind]) -> list[Column]:
    return [_COLUMN_OF[kind](values) for kind, values in zip(kinds, zip(*rows, strict=True), strict=True)]


def record_columns(records: Sequence[SealedRecord]) -> list[Column]:
    """The columns of records, at least one, in the order of the fields of SealedRecord."""
    if isinstance(records, RecordBatch):
        return _batch_columns(records)
    return _columns(records, RECORD.values())


def _batch_columns(records: RecordBatch) -> list[Column]:
    rows = len(records)
    return [
        Column.of_bytes(records.tokens),
        Column(records.references),
        Column(records.pan_fingerprints),
        Column.of_one(records.requestor.encode("ascii"), rows),
        Column.of_one(records.program.encode("ascii"), rows),
        Column.of_one(_big_endian(records.revision, ">i8").tobytes(), rows),
        Column.of_one(_big_endian(records.key_version, ">i8").tobytes(), rows),
        Column.of_one(records.body, rows),
        Column(records.seals),
    ]


def by_first(columns: Sequence[Column]) -> npt.NDArray[np.intp] | None:
    """The order of rows by their first field, for `copy_rows`; None where they are in that order."""
    first = np.ascontiguousarray(columns[0].data)
    texts = first.view(f"S{first.shape[1]}").reshape(len(first))
    return None if (texts[:-1] <= texts[1:]).all() else np.argsort(texts)


# What is copied.


def copy_of(records: Sequence[SealedRecord]) -> Copy:
    """The COPY statement that inserts records, at least one."""
    written = record_columns(records)
    # In the order of tokens, two batches that write the same ones can not wait for each other.
    return Copy(_COPY_RECORDS, copy_rows(written, by_first(written)))


def tokens_of(records: Sequence[SealedRecord]) -> Sequence[bytes]:
    """The tokens of records."""
    if isinstance(records, RecordBatch):
        return records.tokens
    return [record.token.encode() for record in records]
