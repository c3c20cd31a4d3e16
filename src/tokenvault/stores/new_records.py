"""New token records as columns: what a batch hands to `TokenStore.insert`.

A `RecordBatch` is a sequence of `SealedRecord`, so any adapter may iterate it; a tuned one writes its columns.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Final, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from tokenvault.errors import InvalidInputError
from tokenvault.stores.port import PAN_FINGERPRINT_BYTES, REFERENCE_BYTES, SEAL_BYTES, SealedRecord

Bytes: TypeAlias = npt.NDArray[np.uint8]

_are_tokens: Final = re.compile(rb"(?:[0-9]{13,19}\n)+").fullmatch


class ColumnarRecords(Sequence[SealedRecord]):
    """A sequence of records that is kept as columns; a row becomes a record when it is asked for."""

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


class RecordBatch(ColumnarRecords):
    """New records of one requestor and program: only token, reference, PAN fingerprint and seal differ.

    Attributes:
        tokens: a byte string of 13 to 19 ASCII digits for each record.
        references: an array of shape (records, 16) and dtype uint8.
        pan_fingerprints: an array of shape (records, 16) and dtype uint8.
        requestor, program, revision, key_version, body: the fields that all records share, as in SealedRecord.
        seals: an array of shape (records, 45) and dtype uint8.

    Raises:
        InvalidInputError: a column has another dtype or shape, or a token another form.
    """

    __slots__ = (
        "body",
        "key_version",
        "pan_fingerprints",
        "program",
        "references",
        "requestor",
        "revision",
        "seals",
        "tokens",
    )

    def __init__(
        self,
        tokens: Sequence[bytes],
        references: Bytes,
        pan_fingerprints: Bytes,
        requestor: str,
        program: str,
        revision: int,
        key_version: int,
        body: bytes,
        seals: Bytes,
    ) -> None:
        rows = len(tokens)
        for name, column, width in (
            ("references", references, REFERENCE_BYTES),
            ("pan_fingerprints", pan_fingerprints, PAN_FINGERPRINT_BYTES),
            ("seals", seals, SEAL_BYTES),
        ):
            if type(column) is not np.ndarray or column.dtype != np.uint8 or column.shape != (rows, width):
                raise InvalidInputError(f"{name} is an array of uint8 of shape (rows, {width})")
        joined = b"\n".join([*tokens, b""])
        if rows and (_are_tokens(joined) is None or joined.count(b"\n") != rows):
            raise InvalidInputError("a token is 13 to 19 ASCII digits")
        self.tokens: Final = tuple(tokens)
        self.references: Final = np.ascontiguousarray(references)
        self.pan_fingerprints: Final = np.ascontiguousarray(pan_fingerprints)
        self.requestor: Final = requestor
        self.program: Final = program
        self.revision: Final = revision
        self.key_version: Final = key_version
        self.body: Final = body
        self.seals: Final = np.ascontiguousarray(seals)

    def take(self, rows: npt.NDArray[np.intp]) -> RecordBatch:
        """The records of some rows, in the order given."""
        tokens = [self.tokens[row] for row in rows.tolist()]
        return self._like(tokens, self.references[rows], self.pan_fingerprints[rows], self.seals[rows])

    def with_rows(self, rows: npt.NDArray[np.intp], other: RecordBatch) -> RecordBatch:
        """These records, with those of another batch in place of some rows."""
        tokens = list(self.tokens)
        for row, token in zip(rows.tolist(), other.tokens, strict=True):
            tokens[row] = token
        references, pan_fingerprints, seals = (
            self.references.copy(),
            self.pan_fingerprints.copy(),
            self.seals.copy(),
        )
        references[rows] = other.references
        pan_fingerprints[rows] = other.pan_fingerprints
        seals[rows] = other.seals
        return self._like(tokens, references, pan_fingerprints, seals)

    def _like(
        self, tokens: Sequence[bytes], references: Bytes, pan_fingerprints: Bytes, seals: Bytes
    ) -> RecordBatch:
        """Other records that share what these share."""
        return RecordBatch(
            tokens=tokens,
            references=references,
            pan_fingerprints=pan_fingerprints,
            requestor=self.requestor,
            program=self.program,
            revision=self.revision,
            key_version=self.key_version,
            body=self.body,
            seals=seals,
        )

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
            repeat(self.body),
            split(self.seals),
        )

    def _row(self, index: int) -> SealedRecord:
        return SealedRecord(
            token=self.tokens[index].decode("ascii"),
            reference=self.references[index].tobytes(),
            pan_fingerprint=self.pan_fingerprints[index].tobytes(),
            requestor=self.requestor,
            program=self.program,
            revision=self.revision,
            key_version=self.key_version,
            body=self.body,
            seal=self.seals[index].tobytes(),
        )


def split(column: Bytes) -> list[bytes]:
    """The rows of an array of shape (rows, width) as byte strings."""
    width = column.shape[1]
    if not width:
        return [b""] * len(column)
    joined = column.tobytes()
    return [joined[start : start + width] for start in range(0, len(joined), width)]


def records_of(
    rows: Iterable[tuple[str, bytes, bytes, str, str, int, int, bytes, bytes]],
) -> list[SealedRecord]:
    """Rows of a database as records; their values are in the order of the fields of SealedRecord."""
    return list(map(SealedRecord._make, rows))
