"""pyarrow's arrays of strings, read and written as the two buffers that they are; missing values stay missing."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from tokenvault.errors import InvalidInputError
from tokenvault.vaultless.texts import ACCEPTED, Lengths, TextConversion, Texts

_OFFSETS: Final[dict[Any, type[np.int32 | np.int64]]] = {pa.string(): np.int32, pa.large_string(): np.int64}


def convert(value: object, conversion: TextConversion, first_row: int) -> Any:
    """Convert every string of a pyarrow array to another one; the kind stays, chunk by chunk.

    A dictionary array has its dictionary converted: each value once, used or not.

    Raises:
        InvalidInputError: as `containers.convert` does; in a dictionary, rows are counted there.
    """
    if isinstance(value, pa.ChunkedArray):
        chunks = []
        for chunk in value.chunks:
            chunks.append(convert(chunk, conversion, first_row))
            first_row += len(chunk)
        return pa.chunked_array(chunks, value.type)
    if isinstance(value, pa.DictionaryArray):
        dictionary = convert(value.dictionary, conversion, 0)
        return pa.DictionaryArray.from_arrays(
            value.indices, dictionary, ordered=value.type.ordered, safe=False
        )
    if not isinstance(value, pa.Array) or value.type not in _OFFSETS:
        raise InvalidInputError(ACCEPTED)
    return _array(value.type, conversion(_texts(value), first_row))


def _texts(array: pa.Array) -> Texts:
    rows = len(array)
    _, offsets_buffer, data_buffer = array.buffers()
    if not rows or offsets_buffer is None:
        nothing: Lengths = np.full(rows, -1)
        return Texts(np.empty(0, np.uint8), np.zeros(rows, np.int64), nothing)
    offsets = np.frombuffer(offsets_buffer, _OFFSETS[array.type])[array.offset : array.offset + rows + 1]
    data = np.frombuffer(data_buffer if data_buffer is not None else b"", np.uint8)
    lengths = np.diff(offsets).astype(np.int64)
    if array.null_count:
        lengths[array.is_null().to_numpy(zero_copy_only=False)] = -1
    return Texts(data, offsets[:-1].astype(np.int64), lengths)


def _array(kind: pa.DataType, texts: Texts) -> pa.Array:
    rows = len(texts.lengths)
    offset_type = _OFFSETS[kind]
    if len(texts.data) > np.iinfo(offset_type).max:
        raise InvalidInputError("the tokens of this array do not fit one: cast it to large_string, or cut it")
    offsets = np.append(texts.starts, len(texts.data)).astype(offset_type)
    missing = texts.lengths < 0
    validity = None
    if missing.any():
        validity = pa.py_buffer(np.packbits(~missing, bitorder="little").tobytes())
    buffers = [validity, pa.py_buffer(offsets.tobytes()), pa.py_buffer(texts.data.tobytes())]
    return pa.Array.from_buffers(kind, rows, buffers, int(missing.sum()))
