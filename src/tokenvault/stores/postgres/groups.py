"""Many records as one value for all that are equally long: read in a few numpy operations, not field by field.

libpq takes each field of each row out of the answer, and each becomes a Python object: that is most of the time of a
large look-up. So the server joins the rows, by `string_agg(record_send(...), '')`, grouped by the lengths of what may
differ in length.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from psycopg.pq.abc import PGresult

from tokenvault.errors import IntegrityError
from tokenvault.stores.found_records import Integers, RecordColumns
from tokenvault.stores.new_records import Bytes
from tokenvault.stores.port import SealedRecord
from tokenvault.stores.postgres.errors import UNREADABLE
from tokenvault.stores.postgres.values import BYTEA, INT8, TEXT, columns

RECORD: Final = (TEXT, BYTEA, BYTEA, TEXT, BYTEA, INT8, INT8, BYTEA, BYTEA)
"""The types of the fields of SealedRecord."""

_INT8_BYTES: Final = 8
_FIELDS: Final = struct.Struct(">i")
_FIELD: Final = struct.Struct(">Ii")


def record_groups(result: PGresult) -> Sequence[SealedRecord]:
    """The records of a result with one value for each group.

    Raises:
        IntegrityError: a row has other types or lengths than were written.
    """
    groups = [_record_columns(_framed(data, RECORD)) for data in columns(result)[0]]
    if not all(group.fit() for group in groups):
        raise IntegrityError(UNREADABLE)
    return groups[0] if len(groups) == 1 else [record for group in groups for record in group]


def _record_columns(fields: Sequence[Bytes]) -> RecordColumns:
    token, reference, pan_fingerprint, requestor, program, revision, key_version, body, seal = fields
    if not revision.shape[1] == key_version.shape[1] == _INT8_BYTES:
        raise IntegrityError(UNREADABLE)
    return RecordColumns(
        token,
        reference,
        pan_fingerprint,
        requestor,
        program,
        _integers(revision),
        _integers(key_version),
        body,
        seal,
    )


def _integers(column: Bytes) -> Integers:
    return np.ascontiguousarray(column).view(">i8").reshape(-1).astype(np.int64)


def _framed(data: bytes, kinds: Sequence[int]) -> list[Bytes]:
    """The fields of rows that `record_send` wrote one behind the other, all of the same lengths.

    Layout of a row, big endian: 4 number of fields, then for each 4 its type, 4 its length (-1: NULL) and its bytes.

    Returns:
        A view for each field, shape (rows, bytes), dtype uint8.

    Raises:
        IntegrityError: a field is NULL, of another type, or not as long as in the first row.
    """
    ends, framing, at = [], [range(_FIELDS.size)], _FIELDS.size
    for kind in kinds:
        if at + _FIELD.size > len(data):
            raise IntegrityError(UNREADABLE)
        found, length = _FIELD.unpack_from(data, at)
        if found != kind or length < 0:
            raise IntegrityError(UNREADABLE)
        framing.append(range(at, at + _FIELD.size))
        at += _FIELD.size + length
        ends.append((at - length, at))
    if len(data) % at or _FIELDS.unpack_from(data) != (len(kinds),):
        raise IntegrityError(UNREADABLE)
    rows = np.frombuffer(data, np.uint8).reshape(-1, at)
    for place in framing:
        part = rows[:, place.start : place.stop]
        if not (part == part[0]).all():
            raise IntegrityError(UNREADABLE)
    return [rows[:, start:end] for start, end in ends]
