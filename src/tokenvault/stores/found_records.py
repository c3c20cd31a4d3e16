"""Token records as columns: what a database may answer many tokens with.

It is a sequence of `SealedRecord`, so anyone may iterate it; batches take its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenvault.stores.new_records import Bytes, ColumnarRecords, records_of, split
from tokenvault.stores.port import (
    BODY_BYTES_MAX,
    PAN_FINGERPRINT_BYTES,
    PROGRAM_CHARACTERS_MAX,
    REFERENCE_BYTES,
    REQUESTOR_DIGITS,
    SEAL_BYTES,
    TOKEN_DIGITS_MAX,
    TOKEN_DIGITS_MIN,
    SealedRecord,
)

Integers: TypeAlias = npt.NDArray[np.int64]

_ASCII_MAX: Final = 0x7F


class RecordColumns(ColumnarRecords):
    """Records whose texts and bodies are equally long: a row each, equal to a list of the same records.

    Attributes:
        tokens, requestors, programs: ASCII, shape (rows, characters), dtype uint8.
        references, pan_fingerprints, bodies, seals: shape (rows, bytes), dtype uint8.
        revisions, key_versions: shape (rows,), dtype int64.
    """

    __slots__ = (
        "bodies",
        "key_versions",
        "pan_fingerprints",
        "programs",
        "references",
        "requestors",
        "revisions",
        "seals",
        "tokens",
    )  # fmt: skip

    def __init__(
        self, tokens: Bytes, references: Bytes, pan_fingerprints: Bytes, requestors: Bytes, programs: Bytes,
        revisions: Integers, key_versions: Integers, bodies: Bytes, seals: Bytes,
    ) -> None:  # fmt: skip
        self.tokens: Final = tokens
        self.references: Final = references
        self.pan_fingerprints: Final = pan_fingerprints
        self.requestors: Final = requestors
        self.programs: Final = programs
        self.revisions: Final = revisions
        self.key_versions: Final = key_versions
        self.bodies: Final = bodies
        self.seals: Final = seals

    @classmethod
    def of(cls, records: Sequence[SealedRecord]) -> RecordColumns:
        """The columns of records, at least one; each field is equally long in all of them."""
        token, reference, pan_fingerprint, requestor, program, revision, key_version, body, seal = zip(
            *records, strict=True
        )
        return cls(
            _texts(token),
            _column(reference),
            _column(pan_fingerprint),
            _texts(requestor),
            _texts(program),
            np.array(revision, np.int64),
            np.array(key_version, np.int64),
            _column(body),
            _column(seal),
        )

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

    def take(self, rows: npt.NDArray[np.intp]) -> RecordColumns:
        """Some of the records."""
        return RecordColumns(
            self.tokens[rows], self.references[rows], self.pan_fingerprints[rows], self.requestors[rows],
            self.programs[rows], self.revisions[rows], self.key_versions[rows], self.bodies[rows], self.seals[rows],
        )  # fmt: skip

    def token_texts(self) -> list[str]:
        """The tokens."""
        return _split_texts(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[SealedRecord]:
        return iter(
            records_of(
                zip(
                    _split_texts(self.tokens),
                    split(self.references),
                    split(self.pan_fingerprints),
                    _split_texts(self.requestors),
                    _split_texts(self.programs),
                    self.revisions.tolist(),
                    self.key_versions.tolist(),
                    split(self.bodies) if self.bodies.shape[1] else [b""] * len(self),
                    split(self.seals),
                    strict=True,
                )
            )
        )

    def _row(self, index: int) -> SealedRecord:
        return SealedRecord(
            self.tokens[index].tobytes().decode("ascii"),
            self.references[index].tobytes(),
            self.pan_fingerprints[index].tobytes(),
            self.requestors[index].tobytes().decode("ascii"),
            self.programs[index].tobytes().decode("ascii"),
            int(self.revisions[index]),
            int(self.key_versions[index]),
            self.bodies[index].tobytes(),
            self.seals[index].tobytes(),
        )

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, RecordColumns) else other)

    __hash__ = None  # type: ignore[assignment] # as of a list

    def __repr__(self) -> str:
        return f"<RecordColumns of {len(self)}>"


def _are_digits(column: Bytes) -> bool:
    return bool((column - np.uint8(ord("0")) < 10).all())


def _texts(values: Sequence[str]) -> Bytes:
    return np.frombuffer("".join(values).encode("ascii"), np.uint8).reshape(len(values), len(values[0]))


def _column(values: Sequence[bytes]) -> Bytes:
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), len(values[0]))


def _split_texts(column: Bytes) -> list[str]:
    joined, width = column.tobytes().decode("ascii"), column.shape[1]
    return [joined[start : start + width] for start in range(0, len(joined), width)]
