"""The index by which events of a token and of a use are found: rows of its own, which a vault writes with each event.

An event of a batch is about thousands of tokens, so that no column of it could lead to it; and a use is found by two
names.
"""

from __future__ import annotations

from typing import Final, NamedTuple

USE_ID_BYTES: Final = 16
NO_USE: Final = bytes(USE_ID_BYTES)
"""The use id of what is no use: found by its token, never by a use."""

_NAME_BYTES: Final = 16
_NUMBER_BYTES: Final = 8
CURSOR_BYTES: Final = USE_ID_BYTES + _NAME_BYTES + _NUMBER_BYTES
_BEFORE_ALL: Final = (bytes(USE_ID_BYTES), bytes(_NAME_BYTES), 0)


class IndexRow(NamedTuple):
    """One name under which an event is found.

    Attributes:
        reference: 16 bytes of the token record that the event is about; of a checkpoint, its stream.
        use_id: 16 bytes naming a use, or NO_USE.
    """

    reference: bytes
    use_id: bytes = NO_USE


def cursor_of(use_id: bytes, stream: bytes, number: int) -> bytes:
    """Where the events of a reference are read on: behind one row of the index. 40 bytes, in the rows' order."""
    return use_id + stream + number.to_bytes(_NUMBER_BYTES)


def place_of(cursor: bytes) -> tuple[bytes, bytes, int]:
    """The use id, stream and number of a cursor; of an empty one, what is before every row."""
    if not cursor:
        return _BEFORE_ALL
    use_id, stream = cursor[:USE_ID_BYTES], cursor[USE_ID_BYTES:-_NUMBER_BYTES]
    return use_id, stream, int.from_bytes(cursor[-_NUMBER_BYTES:])
