"""Columns of digits as numbers: Luhn, and conversion from and to ASCII. Four digits are handled at a time, by tables.

A number of `length` digits stands in uint64, leading zeros included: at most 19 digits fit.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Bytes, Words

DIGITS_MAX: Final = 19

_GROUP: Final = np.uint64(10_000)
_GROUP_DIGITS: Final = 4
_GROUPS: Final = -(-DIGITS_MAX // _GROUP_DIGITS)
_ZERO: Final = np.uint8(ord("0"))
_TEN: Final = np.uint64(10)


def luhn_sums(numbers: Words) -> Words:
    """The Luhn sums of whole numbers, check digit included (ISO/IEC 7812-1, annex B): valid where a multiple of 10.

    Args:
        numbers: shape (rows,), dtype uint64.

    Returns:
        Sums of the same shape and dtype, at most 180.
    """
    sums: Words = np.zeros(len(numbers), np.uint64)
    for group in _groups(numbers):
        sums += _luhn_table()[group]
    return sums


def luhn_valid_many(numbers: Words) -> npt.NDArray[np.bool_]:
    """Whether numbers end in their Luhn check digit."""
    valid: npt.NDArray[np.bool_] = np.equal(luhn_sums(numbers) % _TEN, 0)
    return valid


def with_check_digit(payloads: Words) -> Words:
    """Numbers with their Luhn check digit appended; payloads have at most 18 digits."""
    numbers = payloads * _TEN
    return numbers + (_TEN - luhn_sums(numbers) % _TEN) % _TEN


def to_ascii(numbers: Words, length: int) -> Bytes:
    """The digits of numbers as ASCII bytes.

    Args:
        numbers: shape (rows,), dtype uint64, each below 10**length.
        length: digits of each, 1 to 19.

    Returns:
        An array of shape (rows, length) and dtype uint8.
    """
    text: Bytes = np.empty((len(numbers), _GROUPS * _GROUP_DIGITS), np.uint8)
    groups = text.view(np.uint32)
    for i, group in enumerate(_groups(numbers)):
        groups[:, _GROUPS - 1 - i] = _ascii_table()[group]
    return np.ascontiguousarray(text[:, text.shape[1] - length :])


def from_ascii(text: Bytes) -> tuple[Words, npt.NDArray[np.bool_]]:
    """The numbers of rows of ASCII digits, and which rows are all digits; in others the number means nothing.

    Args:
        text: shape (rows, length), dtype uint8; at most 19 digits.
    """
    digits = text - _ZERO
    numbers: Words = np.zeros(len(text), np.uint64)
    for i in range(text.shape[1]):
        numbers *= _TEN
        numbers += digits[:, i]
    are_digits: npt.NDArray[np.bool_] = np.all(digits < 10, axis=1)
    return numbers, are_digits


def _groups(numbers: Words) -> list[Words]:
    """Groups of four digits as numbers, the last four digits first."""
    groups = []
    for _ in range(_GROUPS - 1):
        rest = numbers // _GROUP
        groups.append(numbers - rest * _GROUP)
        numbers = rest
    return [*groups, numbers]


@functools.cache
def _digit_table() -> Bytes:
    """The digits of the numbers from 0 to 9999."""
    numbers = np.arange(10_000)
    return np.stack([numbers // 10**power % 10 for power in (3, 2, 1, 0)], axis=1).astype(np.uint8)


@functools.cache
def _luhn_table() -> Words:
    """What four digits add to a Luhn sum: in a group, the first and third are doubled."""
    digits = _digit_table().astype(np.uint64)
    doubled = digits[:, 0::2] * 2
    sums: Words = np.sum(digits[:, 1::2] + doubled // _TEN + doubled % _TEN, axis=1)
    return sums


@functools.cache
def _ascii_table() -> npt.NDArray[np.uint32]:
    """Four ASCII digits as one element."""
    return (_digit_table() + _ZERO).view(np.uint32)[:, 0]
