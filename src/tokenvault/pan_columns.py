"""Card numbers as columns: the PANs of a batch read at once, as `Pan.parse` reads each.

A column of PANs is two arrays: uint64 values and uint8 lengths. What is not plain digits (separators, a `Pan`,
something else altogether) is read by `Pan.parse` itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenvault.errors import InvalidInputError
from tokenvault.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN, Pan

_ZERO: Final = ord("0")
_LINE: Final = ord("\n")
_DOUBLED: Final = np.array([0, 2, 4, 6, 8, 1, 3, 5, 7, 9], dtype=np.uint8)


class PanColumns(NamedTuple):
    """PANs, a row each.

    Attributes:
        values: uint64, the digits as a number; 0 where a row could not be read.
        lengths: uint8, 13 to 19; 0 where a row could not be read.
    """

    values: NDArray[np.uint64]
    lengths: NDArray[np.uint8]

    def __repr__(self) -> str:
        return f"<PanColumns of {len(self.values)}>"

    def digits(self, row: int) -> str:
        """The digits of a row. Keep them out of logs, and out of variables that live long."""
        return f"{self.values[row]:0{self.lengths[row]}}"


def parse_pans(items: Sequence[object]) -> tuple[PanColumns, dict[int, InvalidInputError]]:
    """Read PANs as `Pan.parse` does.

    Args:
        items: what `Pan.parse` takes, any number of them.

    Returns:
        A row for each item, and by row the error of each that could not be read.
    """
    columns = PanColumns(np.zeros(len(items), np.uint64), np.zeros(len(items), np.uint8))
    errors: dict[int, InvalidInputError] = {}
    for row in _parse_plain(items, columns):
        failure: InvalidInputError | None = None
        try:
            digits = Pan.parse(items[row]).reveal()  # type: ignore[arg-type] # refuses what is not a PAN
            columns.values[row], columns.lengths[row] = int(digits), len(digits)
            del digits
        except InvalidInputError as error:
            failure = error
        if failure is not None:
            errors[row] = failure
    return columns, errors


def _parse_plain(items: Sequence[object], columns: PanColumns) -> list[int]:
    """Fill in the rows that are plain digits with a right check digit; return the others."""
    every = list(range(len(items)))
    if not all(type(item) is str for item in items):
        return every
    try:
        text = np.frombuffer("\n".join([*items, ""]).encode("ascii"), np.uint8)  # type: ignore[list-item] # str
    except UnicodeEncodeError:
        return every
    ends = np.flatnonzero(text == _LINE)
    if len(ends) != len(items):  # some hold line breaks themselves
        return every
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts
    for length in range(PAN_LENGTH_MIN, PAN_LENGTH_MAX + 1):
        rows = np.flatnonzero(lengths == length)
        if rows.size:
            digits = text[starts[rows] + np.arange(length)[:, None]] - np.uint8(_ZERO)  # a column each
            plain = (digits.max(axis=0) <= 9) & luhn_valid(np.minimum(digits, 9))
            columns.values[rows] = np.where(plain, _number(digits), 0)
            columns.lengths[rows] = np.where(plain, length, 0)
    return np.flatnonzero(columns.lengths == 0).tolist()


def luhn_valid(digits: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether digits pass the Luhn check (ISO/IEC 7812-1).

    Args:
        digits: uint8, 0 to 9, of shape (digits, rows): the first digit of every row, then the second, and so on.
    """
    total = _DOUBLED[digits[-2::-2]].sum(axis=0, dtype=np.uint8) + digits[-1::-2].sum(axis=0, dtype=np.uint8)
    valid: NDArray[np.bool_] = total % np.uint8(10) == 0  # at most 19 times 9: no overflow
    return valid


def _number(digits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    number = np.zeros(digits.shape[1], np.uint64)
    for column in digits:
        number = number * np.uint64(10) + column
    return number
