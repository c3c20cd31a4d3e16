"""New token records as columns: what a batch hands to `TokenStore.insert`.

It is a sequence of `SealedRecord`, so any adapter may iterate it; a tuned one writes its columns.
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
    """Records whose fields are columns; a row becomes a record when it is asked for."""

    __slots__ = ()

    @overload
    def __getitem__(self, index: int) -> SealedRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[SealedRecord]: ...

    def __getitem__(self, index: int | slice) -> SealedRecord | Sequence[SealedRecord]:
        return list(self)[index] if isinstance(index, slice) else self._row(index)

    @abstractmethod
    def _row(self, index: int) -> SealedRecord: ...


class RecordBatch(ColumnarRecords):
    """Records of one requestor and program, which differ in token, reference, pan_fingerprint and seal only.

    Attributes:
        tokens: ASCII digits, one record each.
        references: shape (rows, 16), dtype uint8; pan_fingerprints: likewise.
        seals: shape (rows, 45), dtype uint8.
        requestor, program, revision, key_version, body: of every record, as in SealedRecord.
        looked_for: whether the database was asked for these tokens a moment ago and had none. A store that looks
            before it writes need not look once more.

    Raises:
        InvalidInputError: a column is of another dtype or shape, or a token of another form.
    """

    __slots__ = (
        "body",
        "key_version",
        "looked_for",
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
        self.looked_for = False

    def rows(self) -> Iterator[tuple[str, bytes, bytes, str, str, int, int, bytes, bytes]]:
        """The records as plain tuples, in the order of the fields of SealedRecord."""
        return zip(
            b"\n".join(self.tokens).decode("ascii").split("\n") if self.tokens else (),
            split(self.references),
            split(self.pan_fingerprints),
            repeat(self.requestor),
            repeat(self.program),
            repeat(self.revision),
            repeat(self.key_version),
            repeat(self.body),
            split(self.seals),
            strict=False,
        )

    def take(self, rows: npt.NDArray[np.intp]) -> RecordBatch:
        """Some of the records."""
        tokens = [self.tokens[row] for row in rows.tolist()]
        return self._like(tokens, self.references[rows], self.pan_fingerprints[rows], self.seals[rows])

    def with_rows(self, rows: npt.NDArray[np.intp], other: RecordBatch) -> RecordBatch:
        """These records, but at some rows, in order, those of another batch that is like this one."""
        tokens = list(self.tokens)
        for row, token in zip(rows.tolist(), other.tokens, strict=True):
            tokens[row] = token
        references, pan_fingerprints, seals = (
            self.references.copy(),
            self.pan_fingerprints.copy(),
            self.seals.copy(),
        )
        references[rows], pan_fingerprints[rows], seals[rows] = (
            other.references,
            other.pan_fingerprints,
            other.seals,
        )
        return self._like(tokens, references, pan_fingerprints, seals)

    def _like(
        self, tokens: Sequence[bytes], references: Bytes, pan_fingerprints: Bytes, seals: Bytes
    ) -> RecordBatch:
        common = self.requestor, self.program, self.revision, self.key_version, self.body
        return RecordBatch(tokens, references, pan_fingerprints, *common, seals)

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[SealedRecord]:
        return iter(records_of(self.rows()))

    def _row(self, index: int) -> SealedRecord:
        return SealedRecord(
            self.tokens[index].decode("ascii"),
            self.references[index].tobytes(),
            self.pan_fingerprints[index].tobytes(),
            self.requestor,
            self.program,
            self.revision,
            self.key_version,
            self.body,
            self.seals[index].tobytes(),
        )

    def __repr__(self) -> str:
        return f"<RecordBatch of {len(self)}>"


def split(column: Bytes) -> list[bytes]:
    """The rows of an array of shape (rows, width) as byte strings."""
    width = column.shape[1]
    joined = column.tobytes()
    return [joined[start : start + width] for start in range(0, len(joined), width)]


def records_of(
    rows: Iterable[tuple[str, bytes, bytes, str, str, int, int, bytes, bytes]],
) -> list[SealedRecord]:
    """Plain tuples, in the order of the fields, as records: in a third of the time that the constructor takes."""
    return list(map(tuple.__new__, repeat(SealedRecord), rows))
