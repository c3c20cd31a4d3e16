"""Strings of digits side by side, converted into numbers and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Bytes, Words
from tokenvault.columns.digits import from_ascii, to_ascii
from tokenvault.errors import InvalidInputError
from tokenvault.model.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN

Lengths: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
NumberConversion: TypeAlias = Callable[[Words, int], tuple[Words, Lengths, Mask]]
"""Converts numbers of one length to others: the numbers, their lengths, and which rows are valid."""

ACCEPTED: Final = (
    "a column must be a list of str, a numpy array of dtype S or U, or of uint64 with its length, or a pyarrow array"
    " of strings"
)


@attrs.frozen
class Texts:
    """Strings of ASCII side by side.

    Attributes:
        data: all bytes.
        starts: where each string begins.
        lengths: how long each is; -1 where there is none.
    """

    data: Bytes = attrs.field(repr=False)
    starts: Lengths
    lengths: Lengths


TextConversion: TypeAlias = Callable[[Texts, int], Texts]
"""Converts texts to others; the second argument is the number of the first, for messages."""


def convert_texts(texts: Texts, first_row: int, *, conversion: NumberConversion, refusal: str) -> Texts:
    """Convert strings to others.

    Args:
        texts: the strings.
        first_row: the number of the first of them, for messages.
        conversion: of the numbers that they read as.
        refusal: end of the message about an invalid row, after its number.

    Raises:
        InvalidInputError: a row is invalid; the message names the first such row.
    """
    rows = len(texts.lengths)
    lengths: Lengths = np.full(rows, -1)
    numbers: Words = np.zeros(rows, np.uint64)
    present = texts.lengths >= 0
    wrong = present & ((texts.lengths < PAN_LENGTH_MIN) | (texts.lengths > PAN_LENGTH_MAX))
    for length in range(PAN_LENGTH_MIN, PAN_LENGTH_MAX + 1):
        members = np.flatnonzero(texts.lengths == length)
        if len(members):
            given, digits = from_ascii(gathered(texts, members, length))
            if not digits.all():
                wrong[members[~digits]] = True
                given, members = given[digits], members[digits]
            if len(members):
                numbers[members], lengths[members], good = conversion(given, length)
                wrong[members] = ~good
    refuse(wrong, refusal, first_row)
    ends = np.cumsum(np.maximum(lengths, 0))
    starts = ends - np.maximum(lengths, 0)
    data: Bytes = np.empty(int(ends[-1]) if rows else 0, np.uint8)
    for length in set(lengths[present].tolist()):
        members = np.flatnonzero(lengths == length)
        text = to_ascii(numbers[members], length)
        if len(members) * length == len(data):
            data = text.reshape(-1)
        else:
            data[starts[members, np.newaxis] + np.arange(length)] = text
    return Texts(data, starts, lengths)


def refuse(wrong: Mask, refusal: str, first_row: int) -> None:
    """Raise InvalidInputError if a row is wrong, naming the first."""
    if wrong.any():
        raise InvalidInputError(f"row {first_row + int(wrong.argmax())} {refusal}")


def gathered(texts: Texts, members: Lengths, length: int) -> Bytes:
    """The bytes of strings of one length, a row each."""
    starts = texts.starts[members]
    if len(members) * length == starts[-1] + length - starts[0]:  # one behind the other
        return texts.data[starts[0] : starts[0] + len(members) * length].reshape(-1, length)
    scattered: Bytes = texts.data[starts[:, np.newaxis] + np.arange(length)]
    return scattered
