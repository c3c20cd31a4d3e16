"""Columns of digit strings in the containers that data pipelines use, turned into numbers and back.

Taken are lists and tuples of str, numpy arrays of dtype S or U, and, where pyarrow is installed, its arrays and
chunked arrays of string or large_string, also as dictionary. Every container gives its own kind back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from tokenvault._block_columns import Bytes, Words, plain_array
from tokenvault.digit_columns import from_ascii, to_ascii
from tokenvault.errors import InvalidInputError
from tokenvault.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN

Lengths: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Turn: TypeAlias = Callable[[Words, int], tuple[Words, Lengths, Mask]]
"""Turns numbers of so many digits into others: numbers, their lengths, and which rows are good."""

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


def turned(value: object, turn: Turn, refusal: str, *, first_row: int = 0) -> Any:
    """A column with every string turned into another one.

    Args:
        value: the column.
        turn: what turns numbers.
        refusal: what to say of a row that is not good, after its number.
        first_row: the number of the column's first row, for messages.

    Raises:
        InvalidInputError: the column is of no kind that is taken, or a row is not good; it names the first such row.
    """
    if isinstance(value, list | tuple):
        if not set(map(type, value)) <= {str}:
            raise InvalidInputError("a list of digit strings must hold nothing else")
        result = _of_list(value, turn, refusal, first_row)
        return result if isinstance(value, list) else tuple(result)
    array = plain_array(value)
    if array is not None and array.dtype.kind in "SU" and array.ndim == 1:
        return _of_array(array, turn, refusal, first_row)
    if "pyarrow" in sys.modules:  # who has such an array has imported it
        from tokenvault import arrow_columns  # noqa: PLC0415 # it imports pyarrow, which is optional

        return arrow_columns.turned(value, turn, refusal, first_row)
    raise InvalidInputError(ACCEPTED)


def turned_texts(texts: Texts, turn: Turn, refusal: str, first_row: int) -> Texts:
    """Strings turned into others. Raises InvalidInputError as `turned` does."""
    rows = len(texts.lengths)
    lengths: Lengths = np.full(rows, -1)
    numbers: Words = np.zeros(rows, np.uint64)
    present = texts.lengths >= 0
    wrong = present & ((texts.lengths < PAN_LENGTH_MIN) | (texts.lengths > PAN_LENGTH_MAX))
    for length in range(PAN_LENGTH_MIN, PAN_LENGTH_MAX + 1):
        members = np.flatnonzero(texts.lengths == length)
        if len(members):
            given, digits = from_ascii(_gathered(texts, members, length))
            if not digits.all():
                wrong[members[~digits]] = True
                given, members = given[digits], members[digits]
            if len(members):
                numbers[members], lengths[members], good = turn(given, length)
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


def _gathered(texts: Texts, members: Lengths, length: int) -> Bytes:
    starts = texts.starts[members]
    if len(members) * length == starts[-1] + length - starts[0]:  # one behind the other
        return texts.data[starts[0] : starts[0] + len(members) * length].reshape(-1, length)
    scattered: Bytes = texts.data[starts[:, np.newaxis] + np.arange(length)]
    return scattered


def _of_list(values: list[str] | tuple[str, ...], turn: Turn, refusal: str, first_row: int) -> list[str]:
    if not values:
        return []
    lengths: Lengths = np.fromiter(map(len, values), np.int64, len(values))
    # not ASCII: one byte each all the same, and no digit
    data = np.frombuffer("".join(values).encode("ascii", "replace"), np.uint8)
    result = turned_texts(Texts(data, np.cumsum(lengths) - lengths, lengths), turn, refusal, first_row)
    whole = result.data.tobytes().decode("ascii")
    starts = result.starts.tolist()
    return [whole[start:end] for start, end in zip(starts, [*starts[1:], len(whole)], strict=True)]


def _of_array(array: npt.NDArray[Any], turn: Turn, refusal: str, first_row: int) -> npt.NDArray[Any]:
    kind = array.dtype.kind
    width = array.dtype.itemsize // (4 if kind == "U" else 1)
    rows = len(array)
    if kind == "U":
        codes = np.ascontiguousarray(array.astype(f"=U{width}")).view(np.uint32).reshape(rows, width)
        text = np.where(codes < 0x80, codes, ord("?")).astype(np.uint8)
    else:
        text = np.ascontiguousarray(array).view(np.uint8).reshape(rows, width)
    filled = text != 0
    lengths: Lengths = (
        (width - filled[:, ::-1].argmax(axis=1)) * filled.any(axis=1) if width else np.zeros(rows, int)
    )
    texts = Texts(text.reshape(-1), np.arange(rows) * width, lengths)
    result = turned_texts(texts, turn, refusal, first_row)
    out: Bytes = np.zeros((rows, max(int(result.lengths.max(initial=0)), 1)), np.uint8)
    for length in set(result.lengths.tolist()):
        members = np.flatnonzero(result.lengths == length)
        out[members, :length] = _gathered(result, members, length)
    if kind == "U":
        return out.astype(np.uint32).view(f"U{out.shape[1]}")[:, 0]
    return out.view(f"S{out.shape[1]}")[:, 0]
