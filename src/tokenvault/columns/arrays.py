"""Arrays as arguments and as rows of bytes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.ma
import numpy.typing as npt

from tokenvault.errors import InvalidInputError

Bytes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[np.uint64]


def place(column: Bytes, blocks: Bytes, start: int) -> None:
    """Copy bytes of shape (rows, k) into (rows, m), from byte `start` of each row on."""
    width = column.shape[1]
    if width:
        whole = f"V{width}"  # one element a row is copied twice as fast as its bytes
        blocks[:, start : start + width].view(whole)[...] = column.view(whole)


def byte_columns(name: str, value: object, *, width: int | None = None) -> Bytes:
    """An argument of shape (rows, k) and dtype uint8, with the bytes of a row side by side.

    Args:
        name: of the argument.
        value: the argument.
        width: k, where it is fixed.

    Raises:
        InvalidInputError: another type, dtype or shape.
    """
    array = plain_array(value)
    if array is None or array.dtype != np.uint8 or array.ndim != 2 or width not in (None, array.shape[1]):
        shape = "(rows, bytes)" if width is None else f"(rows, {width})"
        raise InvalidInputError(f"{name} must be a numpy array of uint8 of shape {shape}")
    return np.ascontiguousarray(array)


def word_column(name: str, value: object) -> Words:
    """An argument of shape (rows,) and dtype uint64. Raises InvalidInputError."""
    array = plain_array(value)
    if array is None or array.dtype != np.uint64 or array.ndim != 1:
        raise InvalidInputError(f"{name} must be a numpy array of uint64 of shape (rows,)")
    return array


def plain_array(value: object) -> npt.NDArray[Any] | None:
    """The value as an array, if it is one; a masked array is none, as its mask would be lost."""
    return np.asarray(value) if type(value) in (np.ndarray, np.memmap) else None
