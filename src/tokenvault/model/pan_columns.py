"""Card numbers as columns: the PANs of a batch read at once, as `Pan.parse` reads each.

A column of PANs is two arrays: uint64 values and uint8 lengths. What is not plain digits (separators, a `Pan`,
something else altogether) is read by `Pan.parse` itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenvault.columns.digits import from_ascii, luhn_valid_many
from tokenvault.errors import InvalidInputError
from tokenvault.model.pan import USUAL_PANS, Pan, PanRule

_LINE: Final = ord("\n")


class PanColumns(NamedTuple):
    """PANs, a row each.

    Attributes:
        values: uint64, the digits as a number; 0 where a row could not be read.
        lengths: uint8, 12 to 19; 0 where a row could not be read.
    """

    values: NDArray[np.uint64]
    lengths: NDArray[np.uint8]

    def __repr__(self) -> str:
        return f"<PanColumns of {len(self.values)}>"

    def digits(self, row: int) -> str:
        """The digits of a row. Keep them out of logs, and out of variables that live long."""
        return f"{self.values[row]:0{self.lengths[row]}}"


def parse_pans(
    items: Sequence[object], rule: PanRule = USUAL_PANS
) -> tuple[PanColumns, dict[int, InvalidInputError]]:
    """Read PANs as `Pan.parse` does.

    Args:
        items: what `Pan.parse` takes, any number of them.
        rule: which numbers are PANs.

    Returns:
        A row for each item, and by row the error of each that could not be read.
    """
    columns = PanColumns(np.zeros(len(items), np.uint64), np.zeros(len(items), np.uint8))
    errors: dict[int, InvalidInputError] = {}
    for row in _parse_plain(items, columns, rule):
        try:
            digits = Pan.parse(items[row], rule).reveal()  # type: ignore[arg-type] # refuses what is not a PAN
            columns.values[row], columns.lengths[row] = int(digits), len(digits)
            del digits
        except InvalidInputError as error:
            errors[row] = error
    return columns, errors


def _parse_plain(items: Sequence[object], columns: PanColumns, rule: PanRule) -> list[int]:
    """Fill in the rows that are plain digits that are PANs by the rule; return the others."""
    every = list(range(len(items)))
    if set(map(type, items)) != {str}:
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
    fewest, most = rule.lengths
    for length in range(fewest, most + 1):
        rows = np.flatnonzero(lengths == length)
        if rows.size:
            numbers, plain = from_ascii(text[starts[rows][:, None] + np.arange(length)])
            if rule.luhn:
                plain &= luhn_valid_many(numbers)
            columns.values[rows] = np.where(plain, numbers, 0)
            columns.lengths[rows] = np.where(plain, length, 0)
    return np.flatnonzero(columns.lengths == 0).tolist()
