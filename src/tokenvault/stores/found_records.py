"""Token records as columns: what a store may return for many tokens.

A `RecordColumns` is a sequence of `SealedRecord`, so anyone may iterate it; batches take its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from tokenvault.stores.new_records import Bytes, ColumnarRecords, split
from tokenvault.stores.port import (
    PAN_FINGERPRINT_BYTES,
    PROGRAM_CHARACTERS_MAX,
    REFERENCE_BYTES,
    REQUESTOR_DIGITS,
    SEAL_BYTES,
    TOKEN_DIGITS_MAX,
    TOKEN_DIGITS_MIN,
    SealedRecord,
)
from tokenvault.stores.write_limits import BODY_BYTES_MAX

Integers: TypeAlias = npt.NDArray[np.int64]

_ASCII_MAX: Final = 0x7F


@attrs.frozen(eq=False, repr=False)
class RecordColumns(ColumnarRecords):
    """Records that have equally long tokens, requestors, programs and bodies; equal to a list of the same records.

    Attributes:
        tokens, requestors, programs: ASCII characters, arrays of shape (records, characters) and dtype uint8.
        references, pan_fingerprints, bodies, seals: arrays of shape (records, bytes) and dtype uint8.
        revisions, key_versions: arrays of shape (records,) and dtype int64.
    """

    tokens: Bytes
    references: Bytes
    pan_fingerprints: Bytes
    requestors: Bytes
    programs: Bytes
    revisions: Integers
    key_versions: Integers
    bodies: Bytes
    seals: Bytes

    @classmethod
    def of(cls, records: Sequence[SealedRecord]) -> RecordColumns:
        """The columns of records, at least one; each field is equally long in all of them."""
        return cls(*map(_column, zip(*records, strict=True)))

    def fit(self) -> bool:
        """Whether each field of each record has the shape that SealedRecord states."""
        return (
            TOKEN_DIGITS_MIN <= self.tokens.shape[1] <= TOKEN_DIGITS_MAX
            and self.references.shape[1] == REFERENCE_BYTES
            and self.pan_fingerprints.shape[1] == PAN_FINGERPRINT_BYTES
            and self.requestors.shape[1] == REQUESTOR_DIGITS
            and 1 <= self.programs.shape[1] <= PROGRAM_CHARACTERS_MAX
            and self.bodies.shape[1] <= BODY_BYTES_MAX
            and self.seals.shape[1] == SEAL_BYTES
            and _are_digits(self.tokens)
            and _are_digits(self.requestors)
            and bool((self.programs <= _ASCII_MAX).all())
            and bool((self.revisions >= 1).all() and (self.key_versions >= 1).all())
        )

    def token_texts(self) -> list[str]:
        """The tokens, a str each."""
        return _split_texts(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[SealedRecord]:
        return map(
            SealedRecord,
            _split_texts(self.tokens),
            split(self.references),
            split(self.pan_fingerprints),
            _split_texts(self.requestors),
            _split_texts(self.programs),
            self.revisions.tolist(),
            self.key_versions.tolist(),
            split(self.bodies),
            split(self.seals),
        )

    def take(self, rows: npt.ArrayLike) -> RecordColumns:
        """Some of the records, by their numbers."""
        return RecordColumns(*(column[rows] for column in attrs.astuple(self, recurse=False)))

    def _row(self, index: int) -> SealedRecord:
        (row,) = self.take([index])
        return row

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, RecordColumns) else other)

    __hash__ = None  # type: ignore[assignment] # as of a list


def _are_digits(column: Bytes) -> bool:
    return bool((column - np.uint8(ord("0")) < 10).all())


def _column(values: Sequence[Any]) -> npt.NDArray[Any]:
    """The values of one field."""
    first = values[0]
    if isinstance(first, int):
        return np.array(values, np.int64)
    whole = "".join(values).encode("ascii") if isinstance(first, str) else b"".join(values)
    return np.frombuffer(whole, np.uint8).reshape(len(values), len(first))


def _split_texts(column: Bytes) -> list[str]:
    text, width = column.tobytes().decode("ascii"), column.shape[1]
    return [text[start : start + width] for start in range(0, len(text), width)]
