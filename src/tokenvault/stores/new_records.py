"""New token records and index rows as columns: what a batch hands to a token store.

A `RecordBatch` is a sequence of `SealedRecord` and `IndexColumns` one of `IndexRow`, so any adapter may iterate them;
a tuned one writes their columns.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import repeat, starmap
from typing import Final, TypeAlias, overload

import attrs
import numpy as np
import numpy.typing as npt

from tokenvault.errors import InvalidInputError
from tokenvault.stores.index_rows import IndexRow
from tokenvault.stores.port import (
    LAST4_KEY_BYTES,
    PAN_FINGERPRINT_BYTES,
    REFERENCE_BYTES,
    SEAL_BYTES,
    SealedRecord,
)

Bytes: TypeAlias = npt.NDArray[np.uint8]

_INDEX_COLUMN: Final = "index rows are arrays of uint8 of shape (rows, 16)"
_are_tokens: Final = re.compile(rb"(?:[0-9]{13,19}\n)+").fullmatch


class ColumnarRecords(Sequence[SealedRecord]):
    """A sequence of records that is kept as columns; a row becomes a record when it is read."""

    __slots__ = ()

    @overload
    def __getitem__(self, index: int) -> SealedRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SealedRecord]: ...
    def __getitem__(self, index: int | slice) -> SealedRecord | Sequence[SealedRecord]:
        if isinstance(index, slice):
            return [self._row(row) for row in range(*index.indices(len(self)))]
        return self._row(index)

    @abstractmethod
    def _row(self, index: int) -> SealedRecord:
        """One record."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"


@attrs.frozen(eq=False, repr=False)
class RecordBatch(ColumnarRecords):
    """New records of one requestor and program, as columns.

    Attributes:
        tokens: a byte string of 13 to 19 ASCII digits for each record.
        references: an array of shape (records, 16) and dtype uint8.
        pan_fingerprints: an array of shape (records, 16) and dtype uint8.
        requestor, program, revision, key_version: the fields that all records share, as in SealedRecord.
        status, created_ms: likewise.
        bodies: a byte string for each record, of at most 16,384 bytes; often one object for all.
        seals: an array of shape (records, 45) and dtype uint8.
        customers: a text for each record, empty where there is none.
        last4_keys: an array of shape (records, 16) and dtype uint8; of width 0 where tokens are not found by them.

    Raises:
        InvalidInputError: a column has another dtype or shape, or a token another form.
    """

    tokens: Sequence[bytes]
    references: Bytes
    pan_fingerprints: Bytes
    requestor: str
    program: str
    revision: int
    key_version: int
    bodies: Sequence[bytes]
    seals: Bytes
    customers: Sequence[str]
    last4_keys: Bytes
    status: int
    created_ms: int

    def __attrs_post_init__(self) -> None:
        rows = len(self.tokens)
        for name, column, width in (
            ("references", self.references, REFERENCE_BYTES),
            ("pan_fingerprints", self.pan_fingerprints, PAN_FINGERPRINT_BYTES),
            ("seals", self.seals, SEAL_BYTES),
            ("last4_keys", self.last4_keys, self.last4_keys.shape[-1] and LAST4_KEY_BYTES),
        ):
            if type(column) is not np.ndarray or column.dtype != np.uint8 or column.shape != (rows, width):
                raise InvalidInputError(f"{name} is an array of uint8 of shape (rows, {width})")
        if len(self.bodies) != rows or len(self.customers) != rows:
            raise InvalidInputError("each record has a body and a customer")
        lines = b"\n".join([*self.tokens, b""])
        if rows and (_are_tokens(lines) is None or lines.count(b"\n") != rows):
            raise InvalidInputError("a token is 13 to 19 ASCII digits")

    def take(self, rows: npt.NDArray[np.intp]) -> RecordBatch:
        """The records of some rows, in the order given."""
        chosen = rows.tolist()
        return attrs.evolve(
            self,
            tokens=[self.tokens[row] for row in chosen],
            references=self.references[rows],
            pan_fingerprints=self.pan_fingerprints[rows],
            bodies=[self.bodies[row] for row in chosen],
            seals=self.seals[rows],
            customers=[self.customers[row] for row in chosen],
            last4_keys=self.last4_keys[rows],
        )

    def with_rows(self, rows: npt.NDArray[np.intp], other: RecordBatch) -> RecordBatch:
        """These records, with those of another batch in place of some rows."""
        places = np.arange(len(self))
        places[rows] = len(self) + np.arange(len(other))
        both = attrs.evolve(
            self,
            tokens=[*self.tokens, *other.tokens],
            references=np.concatenate((self.references, other.references)),
            pan_fingerprints=np.concatenate((self.pan_fingerprints, other.pan_fingerprints)),
            bodies=[*self.bodies, *other.bodies],
            seals=np.concatenate((self.seals, other.seals)),
            customers=[*self.customers, *other.customers],
            last4_keys=np.concatenate((self.last4_keys, other.last4_keys)),
        )
        return both.take(places)

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[SealedRecord]:
        return map(
            SealedRecord,
            [token.decode("ascii") for token in self.tokens],
            split(self.references),
            split(self.pan_fingerprints),
            repeat(self.requestor),
            repeat(self.program),
            repeat(self.revision),
            repeat(self.key_version),
            self.bodies,
            split(self.seals),
            self.customers,
            split(self.last4_keys),
            repeat(self.status),
            repeat(self.created_ms),
        )

    def _row(self, index: int) -> SealedRecord:
        return next(iter(self.take(np.array([index]))))


@attrs.frozen(eq=False, repr=False)
class IndexColumns(Sequence[IndexRow]):
    """The index rows of one event: distinct, and in the order of the index, in which databases write them fastest.

    Attributes:
        references, use_ids: arrays of shape (rows, 16) and dtype uint8.
    """

    references: Bytes
    use_ids: Bytes

    @classmethod
    def of(cls, references: Bytes, use_ids: Bytes | None = None) -> IndexColumns:
        """The rows of references, each with its use id or with none; in any order, the same ones several times too.

        Raises InvalidInputError for an array of another dtype or shape.
        """
        if use_ids is None:
            use_ids = np.zeros_like(references)
        for column in (references, use_ids):
            if type(column) is not np.ndarray or column.dtype != np.uint8:
                raise InvalidInputError(_INDEX_COLUMN)
            if column.shape != (len(references), REFERENCE_BYTES):
                raise InvalidInputError(_INDEX_COLUMN)
        rows = np.concatenate((references, use_ids), axis=1)
        words = rows.view(">u8")
        rows = rows[np.lexsort(words.T[::-1])]
        new = np.ones(len(rows), np.bool_)
        new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
        rows = rows[new]
        return cls(*(np.ascontiguousarray(half) for half in np.hsplit(rows, 2)))

    def __len__(self) -> int:
        return len(self.references)

    def __iter__(self) -> Iterator[IndexRow]:
        return starmap(IndexRow, self.names())

    def names(self) -> Iterator[tuple[bytes, bytes]]:
        """The reference and use id of each row."""
        return zip(split(self.references), split(self.use_ids), strict=True)

    @overload
    def __getitem__(self, index: int) -> IndexRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[IndexRow]: ...
    def __getitem__(self, index: int | slice) -> IndexRow | Sequence[IndexRow]:
        return list(self)[index]

    def __repr__(self) -> str:
        return f"<IndexColumns of {len(self)}>"


def split(column: Bytes) -> list[bytes]:
    """The rows of an array of shape (rows, width) as byte strings."""
    width = column.shape[1]
    if not width:
        return [b""] * len(column)
    text = column.tobytes()
    return [text[start : start + width] for start in range(0, len(text), width)]


def joined(values: Sequence[bytes]) -> Bytes:
    """Byte strings, at least one and equally long, as an array of shape (rows, width): the inverse of `split`."""
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), len(values[0]))
