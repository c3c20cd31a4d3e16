"""What an event notes for the guard: the failures that it counts, and a requestor's lock-out.

Failures, at the end of the body of an event of one action or of a batch; nothing stands there where none is counted:

    2   number of failures; each:
        1   kind, codes below
        16  account that it is counted in
        8   keyed digest of what failed (`KeyRing.failure`)

Payload of an event of action LOCK_OUT:

    8   until when, milliseconds of the Unix epoch
    1   how many lock-outs came before it, one soon after the other

An account is the start of a SHA-256 of its kind and of whom it is about, whom events name anyway. The index leads to
the events of an account, the newest ones first: their use id is what the time in milliseconds lacks to 2**64 - 1, in
8 bytes, and 8 zero bytes.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from typing import Final, NamedTuple, Protocol

from tokenvault.stores.index_rows import IndexRow
from tokenvault.stores.port import REFERENCE_BYTES

FAILURE_BYTES: Final = 8
LEVEL_MAX: Final = 255
_FAILURE: Final = struct.Struct(">B16s8s")
_COUNT: Final = struct.Struct(">H")
_LOCK_OUT: Final = struct.Struct(">QB")
_TIMES: Final = 2**64 - 1
_LABEL: Final = b"tokenvault guard\x1f"
_SEPARATOR: Final = b"\x1f"


class FailureKind(int, enum.Enum):
    """What failed.

    MISS: a token, or a card, that is not there. REFUSAL: a use that was refused, a token of others, a number that
    can not be behind a token.
    SUSPENSION: no failure; a token was suspended for its refusals, which are counted anew from then on.
    """

    MISS = 1
    REFUSAL = 2
    SUSPENSION = 3


class Account(bytes, enum.Enum):
    """What accounts there are: the events of a requestor's lock-outs, its misses and refusals, a token's refusals."""

    LOCK_OUTS = b"lock-outs"
    MISSES = b"misses"
    REFUSALS = b"refusals"
    TOKEN = b"token"

    def of(self, whom: bytes) -> bytes:
        """The account of a requestor, by the digits of its id, or of a token, by its reference: 16 bytes."""
        return hashlib.sha256(_LABEL + self.value + _SEPARATOR + whom).digest()[:REFERENCE_BYTES]


class Failure(NamedTuple):
    """A failure that an event counts; attributes as in the layout."""

    kind: FailureKind
    account: bytes
    digest: bytes


class LockOut(NamedTuple):
    """What the event of a lock-out states; attributes as in the layout."""

    until_ms: int
    level: int

    def pack(self) -> bytes:
        """The payload in bytes."""
        return _LOCK_OUT.pack(*self)

    @classmethod
    def parse(cls, payload: bytes) -> LockOut:
        """Read a payload. Raises struct.error."""
        return cls(*_LOCK_OUT.unpack(payload))


class Reader(Protocol):
    """Reads bytes from their start. Raises ValueError where they are cut short."""

    def take(self, count: int) -> bytes:
        """The next bytes."""
        ...


def packed_failures(failures: tuple[Failure, ...]) -> bytes:
    """Failures in bytes, after their number; nothing of none."""
    if not failures:
        return b""
    return b"".join((_COUNT.pack(len(failures)), *(_FAILURE.pack(*each) for each in failures)))


def packed_size(count: int) -> int:
    """What so many failures take, in bytes."""
    return _COUNT.size + count * _FAILURE.size if count else 0


def read_failures(reader: Reader) -> tuple[Failure, ...]:
    """The failures that a reader is at. Raises ValueError or struct.error."""
    (count,) = _COUNT.unpack(reader.take(_COUNT.size))
    found = [_FAILURE.unpack(reader.take(_FAILURE.size)) for _ in range(count)]
    return tuple([Failure(FailureKind(kind), account, digest) for kind, account, digest in found])


def failure_rows(failures: tuple[Failure, ...], time_ms: int) -> list[IndexRow]:
    """The rows of the index that lead from the accounts of failures to their event."""
    return [account_row(account, time_ms) for account in dict.fromkeys(each.account for each in failures)]


def lock_rows(requestor: str, time_ms: int) -> list[IndexRow]:
    """The rows of the index that lead to a lock-out or release of a requestor: from all of its accounts."""
    whom = requestor.encode("ascii")
    kinds = (Account.LOCK_OUTS, Account.MISSES, Account.REFUSALS)
    return [account_row(kind.of(whom), time_ms) for kind in kinds]


def account_row(account: bytes, time_ms: int) -> IndexRow:
    """The row of the index that leads from an account to an event of a time."""
    return IndexRow(account, (_TIMES - time_ms).to_bytes(8) + bytes(8))
