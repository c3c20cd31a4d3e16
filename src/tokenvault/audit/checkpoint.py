"""Checkpoints: what an event of action CHECKPOINT says of its stream and of the others.

Layout of the payload, behind the event's body, big endian:

    1   1: it closes the stream, 0: it does not
    8   size n: it commits to the events 1 to n of its stream
    32  root of the Merkle tree over the leaf hashes of these (RFC 9162 section 2.1.1; `merkle`, `events.leaf_hash`)
    1   strangers: of the streams that were read to name them, so many showed a row that no vault wrote, at most 64
    1   number of streams named, at most 64, then of each: 16 name, 8 number of a checkpoint of it, 32 its leaf hash
    8   id of the signing key: first 8 bytes of SHA-256 of its SubjectPublicKeyInfo (RFC 5280); zeros: not signed
    64  where it is signed: ECDSA P-256 with SHA-256 (FIPS 186-5), r and s, of `signed`
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import attrs

from tokenvault.model import checks

NAMED_MAX: Final = 64
KEY_ID_BYTES: Final = 8
SIGNATURE_BYTES: Final = 64
EVENTS_MAX: Final = 1_000_000
SECONDS_MAX: Final = 86_400

_FIXED: Final = struct.Struct(">?Q32sBB")
_NAMED: Final = struct.Struct(">16sQ32s")
_UNSIGNED: Final = bytes(KEY_ID_BYTES)
_LABEL: Final = b"tokenvault checkpoint 1\x00"


@attrs.frozen
class CheckpointPolicy:
    """How often a vault leaves a checkpoint in its audit trail, besides the first event and `close`.

    Attributes:
        events: after so many events, from 1 to 1,000,000.
        seconds: or so many seconds after the last checkpoint, from 1 to 86,400; seen at the next event.
    """

    events: int = 1_000
    seconds: int = 60

    def __attrs_post_init__(self) -> None:
        checks.whole_number("events", self.events, 1, EVENTS_MAX)
        checks.whole_number("seconds", self.seconds, 1, SECONDS_MAX)


@attrs.frozen
class Named:
    """A checkpoint of another stream, as one stream knew it: stream, number, leaf hash."""

    stream: bytes
    number: int
    leaf: bytes


@attrs.frozen(kw_only=True)
class Checkpoint:
    """What a checkpoint says.

    Attributes:
        size: it commits to the events 1 to size of its stream; root: of their tree, 32 bytes.
        closes: nothing follows it in its stream.
        named: checkpoints of other streams; strangers: so many others showed a row that no vault wrote.
        key_id: of the signing key, 8 bytes; signature: 64 bytes; both empty where it is not signed.
    """

    size: int
    root: bytes
    closes: bool = False
    named: tuple[Named, ...] = ()
    strangers: int = 0
    key_id: bytes = b""
    signature: bytes = b""

    def payload(self) -> bytes:
        """The canonical encoding."""
        return b"".join(
            (
                _FIXED.pack(self.closes, self.size, self.root, self.strangers, len(self.named)),
                *(_NAMED.pack(each.stream, each.number, each.leaf) for each in self.named),
                self.key_id or _UNSIGNED,
                self.signature,
            )
        )

    @classmethod
    def parse(cls, payload: bytes) -> Checkpoint:
        """Read a payload. Raises struct.error or ValueError; the caller compares the encoding."""
        closes, size, root, strangers, count = _FIXED.unpack_from(payload)
        if max(strangers, count) > NAMED_MAX:
            raise ValueError(strangers, count)
        end = _FIXED.size + count * _NAMED.size
        named = tuple(Named(*values) for values in _NAMED.iter_unpack(payload[_FIXED.size : end]))
        key_id = payload[end : end + KEY_ID_BYTES]
        signature = payload[end + KEY_ID_BYTES :]
        if len(signature) != (0 if key_id == _UNSIGNED else SIGNATURE_BYTES):
            raise ValueError(len(signature))
        return cls(
            size=size, root=root, closes=closes, named=named, strangers=strangers,
            key_id=b"" if key_id == _UNSIGNED else key_id, signature=signature,
        )  # fmt: skip


def signed(stream: bytes, number: int, body: bytes) -> bytes:
    """What the signature of a checkpoint covers.

    Args:
        stream: its stream.
        number: its place there.
        body: the event's body up to and with the id of the signing key: all but the signature.
    """
    return b"".join((_LABEL, stream, number.to_bytes(8), body))


def key_id_of(public_key: bytes) -> bytes:
    """The id of a signing key, given its SubjectPublicKeyInfo in DER."""
    return hashlib.sha256(public_key).digest()[:KEY_ID_BYTES]
