"""What an event notes of a use, so that the trail is the ledger of it: in events of one use and of many.

Layout, big endian:

    1   kind, codes below
    1   flags, added up: 1 final, 2 with strong authentication that started counters again, 4 a retry
    8   amount, minor units; 0 where the use names none
    3   currency, ASCII; zeros where the use names no amount
    16  content digest (`KeyRing.contents`); zeros for a use that was refused
    16  use id (`KeyRing.use_ids`)
    16  use id of the original that it follows up; zeros of other uses, also of one that rests on another
    2   score of the risk control, and 1; 0 where there is none
    1   number of counters that it was added to, at most 64; each: 16 key, ascending

An event of a use that was refused, or is a retry of one that stands in the ledger already, is found by the history of
its token, not by its use id.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, Protocol

import numpy as np

from tokenvault.model.counters import COUNTERS_MAX, KEY_BYTES
from tokenvault.model.kinds import Kind
from tokenvault.stores.index_rows import NO_USE

NO_CONTENT: Final = bytes(16)
"""The content digest of a use that was refused: nothing is compared with it."""

NOTE: Final = struct.Struct(">BBQ3s16s16s16sH")
NOTE_COLUMN: Final = np.dtype(
    [
        ("kind", "u1"),
        ("flags", "u1"),
        ("amount", ">u8"),
        ("currency", "S3"),
        ("content", "V16"),
        ("use_id", "V16"),
        ("original", "V16"),
        ("score", ">u2"),
    ]
)
"""The layout before it, of many uses at once."""

_CODES: Final = {
    Kind.PURCHASE: 1,
    Kind.CASH: 2,
    Kind.TRANSFER: 3,
    Kind.VERIFICATION: 4,
    Kind.INCREMENT: 5,
    Kind.CAPTURE: 6,
    Kind.REVERSAL: 7,
    Kind.REFUND: 8,
    Kind.DISPUTE: 9,
}
_KINDS: Final = {code: kind for kind, code in _CODES.items()}
RETRY: Final = 4
_FLAGS: Final = (1, 2, RETRY)
_NO_CURRENCY: Final = bytes(3)


class Reader(Protocol):
    """Reads bytes from their start. Raises ValueError where they are cut short."""

    def take(self, count: int) -> bytes:
        """The next bytes."""
        ...

    def byte(self) -> int:
        """The next byte."""
        ...


class UseNote(NamedTuple):
    """What an event notes of a use.

    Attributes:
        kind: what the transaction does.
        content: 16 bytes, keyed digest of all that a retry has to repeat.
        use_id: 16 bytes, keyed digest of requestor and transaction id.
        original: use id of the original that the transaction follows up; empty of other uses.
        amount: minor units; 0 where the use names none.
        currency: ISO 4217 code of the amount; empty where the use names none.
        final: whether a capture is the last one.
        strong: whether it started counters again by its strong authentication.
        retry: whether it repeats a use that stands in the ledger already, and counts nothing.
        counted: keys of the velocity counters that it was added to, 16 bytes each, ascending.
        score: of the risk control; None where it was not asked, or gave none.
    """

    kind: Kind
    content: bytes
    use_id: bytes
    original: bytes = b""
    amount: int = 0
    currency: str = ""
    final: bool = True
    strong: bool = False
    retry: bool = False
    counted: tuple[bytes, ...] = ()
    score: int | None = None

    def fixed(self) -> bytes:
        """The note in bytes, but for the counters: 63 bytes."""
        given = (self.final, self.strong, self.retry)
        flags = sum(flag for flag, is_set in zip(_FLAGS, given, strict=True) if is_set)
        currency = self.currency.encode("ascii")
        score = 0 if self.score is None else self.score + 1
        return NOTE.pack(
            _CODES[self.kind], flags, self.amount, currency, self.content, self.use_id, self.original, score
        )

    def pack(self) -> bytes:
        """The note in bytes."""
        return self.fixed() + packed_keys(self.counted)

    @classmethod
    def of_fixed(cls, encoded: bytes, counted: tuple[bytes, ...]) -> UseNote:
        """The note of 63 bytes and counters. Raises ValueError, KeyError or struct.error for what no note has."""
        kind, flags, amount, currency, content, use_id, original, score = NOTE.unpack(encoded)
        if flags >= 2 * _FLAGS[-1]:
            raise ValueError("a flag that no note has")
        final, strong, retry = (bool(flags & flag) for flag in _FLAGS)
        return cls(
            kind=_KINDS[kind],
            content=content,
            use_id=use_id,
            original=b"" if original == NO_USE else original,
            amount=amount,
            currency="" if currency == _NO_CURRENCY else currency.decode("ascii"),
            final=final,
            strong=strong,
            retry=retry,
            counted=counted,
            score=score - 1 if score else None,
        )

    @classmethod
    def read(cls, reader: Reader) -> UseNote:
        """The note that a reader is at. Raises as `of_fixed`."""
        fixed = reader.take(NOTE.size)
        return cls.of_fixed(fixed, read_keys(reader))

    def found_by(self, *, allowed: bool) -> tuple[bytes, ...]:
        """The use ids by which an event is found: of an allowed use that is no retry, its own and its original's."""
        if not allowed or self.retry:
            return (NO_USE,)
        return (self.use_id, self.original) if self.original else (self.use_id,)


def packed_keys(keys: tuple[bytes, ...]) -> bytes:
    """Keys of counters, after their number."""
    return b"".join((bytes((len(keys),)), *keys))


def read_keys(reader: Reader) -> tuple[bytes, ...]:
    """Keys of counters after their number. Raises ValueError."""
    count = reader.byte()
    keys = tuple([reader.take(KEY_BYTES) for _ in range(count)])
    if count > COUNTERS_MAX or list(keys) != sorted(set(keys)):
        raise ValueError("no keys of counters")
    return keys
