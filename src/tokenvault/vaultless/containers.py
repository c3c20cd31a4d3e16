"""Columns of digit strings in the containers that data pipelines use, converted to numbers and back.

Accepted are lists and tuples of str, numpy arrays of dtype S or U, and, where pyarrow is installed, its arrays and
chunked arrays of string or large_string, also as dictionary. Every container gives its own kind back.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Bytes, plain_array
from tokenvault.errors import InvalidInputError
from tokenvault.vaultless.texts import ACCEPTED, Lengths, TextConversion, Texts, gathered


def convert(value: object, conversion: TextConversion) -> Any:
    """Convert every string of a column to another one.

    Raises:
        InvalidInputError: the column is of another kind, or a row is invalid.
    """
    if isinstance(value, list | tuple):
        if not set(map(type, value)) <= {str}:
            raise InvalidInputError("a list of digit strings must hold nothing else")
        result = _of_list(value, conversion)
        return result if isinstance(value, list) else tuple(result)
    array = plain_array(value)
    if array is not None and array.dtype.kind in "SU" and array.ndim == 1:
        return _of_array(array, conversion)
    if "pyarrow" in sys.modules:  # who has such an array has imported it
        from tokenvault.vaultless import arrow as arrow_columns  # noqa: PLC0415 # it imports pyarrow, which is optional

        return arrow_columns.convert(value, conversion, 0)
    raise InvalidInputError(ACCEPTED)


def _of_list(values: list[str] | tuple[str, ...], conversion: TextConversion) -> list[str]:
    if not values:
        return []
    lengths: Lengths = np.fromiter(map(len, values), np.int64, len(values))
    # not ASCII: one byte each all the same, and no digit
    data = np.frombuffer("".join(values).encode("ascii", "replace"), np.uint8)
    result = conversion(Texts(data, np.cumsum(lengths) - lengths, lengths), 0)
    whole = result.data.tobytes().decode("ascii")
    starts = result.starts.tolist()
    return [whole[start:end] for start, end in zip(starts, [*starts[1:], len(whole)], strict=True)]


def _of_array(array: npt.NDArray[Any], conversion: TextConversion) -> npt.NDArray[Any]:
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
    result = conversion(Texts(text.reshape(-1), np.arange(rows) * width, lengths), 0)
    out: Bytes = np.zeros((rows, max(int(result.lengths.max(initial=0)), 1)), np.uint8)
    for length in set(result.lengths.tolist()):
        members = np.flatnonzero(result.lengths == length)
        out[members, :length] = gathered(result, members, length)
    return (out.astype(np.uint32) if kind == "U" else out).view(f"{kind}{out.shape[1]}")[:, 0]
