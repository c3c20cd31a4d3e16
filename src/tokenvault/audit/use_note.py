"""What an event notes of a use, so that the trail is the ledger of it: 61 bytes, in events of one use and of many.

Layout, big endian:

    1   kind, codes below
    1   flags, added up: 1 final, 2 counted, 4 with strong authentication, 8 a retry
    8   amount, minor units; 0 where the use names none
    3   currency, ASCII; zeros where the use names no amount
    16  content digest (`Transaction.content`)
    16  use id (`KeyRing.use_ids`)
    16  use id of the original; zeros where the use names none

An event of a use that was refused, or is a retry of one that stands in the ledger already, is found by the history of
its token, not by its use id.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from tokenvault.model.kinds import Kind

USE_ID_BYTES: Final = 16
NO_USE: Final = bytes(USE_ID_BYTES)

NOTE: Final = struct.Struct(">BBQ3s16s16s16s")
NOTE_COLUMN: Final = np.dtype(
    [
        ("kind", "u1"),
        ("flags", "u1"),
        ("amount", ">u8"),
        ("currency", "S3"),
        ("content", "V16"),
        ("use_id", "V16"),
        ("original", "V16"),
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
_FLAGS: Final = (1, 2, 4, 8)
_NO_CURRENCY: Final = bytes(3)


class UseNote(NamedTuple):
    """What an event notes of a use.

    Attributes:
        kind: what the transaction does.
        content: 16 bytes, digest of all that a retry has to repeat.
        use_id: 16 bytes, keyed digest of requestor and transaction id.
        original: use id of the original that the transaction names; empty where it names none.
        amount: minor units; 0 where the use names none.
        currency: ISO 4217 code of the amount; empty where the use names none.
        final: whether a capture is the last one.
        counted: whether the use was added to velocity counters.
        strong: whether it came with strong authentication.
        retry: whether it repeats a use that stands in the ledger already, and counts nothing.
    """

    kind: Kind
    content: bytes
    use_id: bytes
    original: bytes = b""
    amount: int = 0
    currency: str = ""
    final: bool = True
    counted: bool = False
    strong: bool = False
    retry: bool = False

    def pack(self) -> bytes:
        """The note in bytes."""
        given = (self.final, self.counted, self.strong, self.retry)
        flags = sum(flag for flag, is_set in zip(_FLAGS, given, strict=True) if is_set)
        return NOTE.pack(
            _CODES[self.kind],
            flags,
            self.amount,
            self.currency.encode("ascii"),
            self.content,
            self.use_id,
            self.original,
        )

    @classmethod
    def read(cls, encoded: bytes) -> UseNote:
        """The note of 61 bytes. Raises ValueError or KeyError for those that no note has."""
        kind, flags, amount, currency, content, use_id, original = NOTE.unpack(encoded)
        if flags >= 2 * _FLAGS[-1]:
            raise ValueError("a flag that no note has")
        final, counted, strong, retry = (bool(flags & flag) for flag in _FLAGS)
        return cls(
            kind=_KINDS[kind],
            content=content,
            use_id=use_id,
            original=b"" if original == NO_USE else original,
            amount=amount,
            currency="" if currency == _NO_CURRENCY else currency.decode("ascii"),
            final=final,
            counted=counted,
            strong=strong,
            retry=retry,
        )

    def index(self, *, found: bool) -> tuple[bytes, ...]:
        """The use ids by which an event is found: of an allowed use that is no retry, its own and its original's."""
        if not found or self.retry:
            return (NO_USE,)
        return (self.use_id, self.original) if self.original else (self.use_id,)
