"""Checkpoints: what an event of action CHECKPOINT says of its own stream and of the others.

Layout of the payload, which follows the event's body, big endian:

    1   1: the checkpoint closes its stream, 0: it does not
    8   size n: the checkpoint commits to the events 1 to n of its stream
    32  root of the Merkle tree over the leaf hashes of these events (RFC 9162 section 2.1.1; `merkle`,
        `event.leaf_hash`)
    1   number of unauthenticated rows, at most 64: streams whose latest checkpoint was read for a cross-reference and
        is a row that no vault wrote
    1   number of cross-references, at most 64; each: 16 stream, 8 number of an event of it (its latest
        checkpoint, or its last event), 32 its leaf hash
    8   id of the signing key: first 8 bytes of SHA-256 of its SubjectPublicKeyInfo (RFC 5280); zeros: not signed
    64  only if signed: ECDSA P-256 with SHA-256 (FIPS 186-5), r and s, of `signed_message`
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from itertools import starmap
from typing import Final

import attrs

from tokenvault.errors import boundary_init
from tokenvault.model import checks

CROSS_REFERENCES_MAX: Final = 64
KEY_ID_BYTES: Final = 8
SIGNATURE_BYTES: Final = 64
EVENTS_MAX: Final = 1_000_000
SECONDS_MAX: Final = 86_400

_FIXED: Final = struct.Struct(">?Q32sBB")
_CROSS_REFERENCE: Final = struct.Struct(">16sQ32s")
_UNSIGNED: Final = bytes(KEY_ID_BYTES)
_LABEL: Final = b"tokenvault checkpoint 1\x00"


@boundary_init
@attrs.frozen
class CheckpointPolicy:
    """How often a vault writes a checkpoint into its audit trail, besides the first event and `close`.

    Attributes:
        events: a checkpoint after so many events, from 1 to 1,000,000.
        seconds: or so many seconds after the last checkpoint, from 1 to 86,400; looked at with the next event.
    """

    events: int = 1_000
    seconds: int = 60

    def __attrs_post_init__(self) -> None:
        checks.whole_number("events", self.events, 1, EVENTS_MAX)
        checks.whole_number("seconds", self.seconds, 1, SECONDS_MAX)


@attrs.frozen
class CrossReference:
    """The latest checkpoint of another stream, as the writer of a checkpoint found it: stream, number, leaf hash.

    Checkpoints refer to the last event of streams that no checkpoint closes too (`open_ends`).
    """

    stream: bytes
    number: int
    leaf: bytes


def packed_references(references: Iterable[CrossReference]) -> bytes:
    """Cross-references in their canonical encoding."""
    return b"".join(_CROSS_REFERENCE.pack(each.stream, each.number, each.leaf) for each in references)


def read_references(packed: bytes) -> Iterator[CrossReference]:
    """Cross-references of their encoding. Raises struct.error."""
    return starmap(CrossReference, _CROSS_REFERENCE.iter_unpack(packed))


@attrs.frozen(kw_only=True)
class Checkpoint:
    """What a checkpoint says.

    Attributes:
        size: the checkpoint commits to the events 1 to size of its stream.
        root: of the Merkle tree over these events, 32 bytes.
        closes: whether the stream ends with this checkpoint.
        cross_references: to checkpoints of other streams.
        unauthenticated_rows: how many other streams showed a row that no vault wrote.
        key_id: of the signing key, 8 bytes; empty if the checkpoint is not signed.
        signature: 64 bytes; empty if the checkpoint is not signed.
    """

    size: int
    root: bytes
    closes: bool = False
    cross_references: tuple[CrossReference, ...] = ()
    unauthenticated_rows: int = 0
    key_id: bytes = b""
    signature: bytes = b""

    def payload(self) -> bytes:
        """The canonical encoding."""
        references = self.cross_references
        return b"".join(
            (
                _FIXED.pack(self.closes, self.size, self.root, self.unauthenticated_rows, len(references)),
                packed_references(references),
                self.key_id or _UNSIGNED,
                self.signature,
            )
        )

    @classmethod
    def parse(cls, payload: bytes) -> Checkpoint:
        """Read a payload. Raises struct.error or ValueError; the caller compares the encoding."""
        closes, size, root, unauthenticated_rows, count = _FIXED.unpack_from(payload)
        if max(unauthenticated_rows, count) > CROSS_REFERENCES_MAX:
            raise ValueError(unauthenticated_rows, count)
        end = _FIXED.size + count * _CROSS_REFERENCE.size
        references = read_references(payload[_FIXED.size : end])
        key_id = payload[end : end + KEY_ID_BYTES]
        signature = payload[end + KEY_ID_BYTES :]
        if len(signature) != (0 if key_id == _UNSIGNED else SIGNATURE_BYTES):
            raise ValueError(len(signature))
        return cls(
            size=size,
            root=root,
            closes=closes,
            cross_references=tuple(references),
            unauthenticated_rows=unauthenticated_rows,
            key_id=b"" if key_id == _UNSIGNED else key_id,
            signature=signature,
        )


def signed_message(stream: bytes, number: int, body: bytes) -> bytes:
    """What a checkpoint's signature signs. Of the event's body, that is all but the signature at its end."""
    return b"".join((_LABEL, stream, number.to_bytes(8), body))


def key_id_of(public_key: bytes) -> bytes:
    """The id of a signing key, given its SubjectPublicKeyInfo in DER."""
    return hashlib.sha256(public_key).digest()[:KEY_ID_BYTES]
