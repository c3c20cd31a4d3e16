"""Which key signs checkpoints after another one: a named value of the store, signed by the former key.

A new module makes a signing key of its own. Who trusts the former one has to learn of it from somebody whom they
trust: that is the former key. Named values `signers/1`, `signers/2` and so on, in any order. Layout, big endian:

    1   encoding version, 1
    8   id of the former key: first 8 bytes of SHA-256 of its SubjectPublicKeyInfo (RFC 5280)
    91  SubjectPublicKeyInfo of its successor, P-256, in DER
    64  ECDSA P-256 with SHA-256 by the former key, r and s, of the label `tokenvault signer 1`, a byte 00, and
        all before

Who can write to the database can remove a value: checkpoints of the successor then count as unsigned.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import attrs

from tokenvault.audit.checkpoint import KEY_ID_BYTES, SIGNATURE_BYTES, key_id_of
from tokenvault.keys.port import Signer

ENCODING_VERSION: Final = 1
SUCCESSIONS_MAX: Final = 1_000
"""Named values of successions in one store, and names that something else was written to."""

_PUBLIC_KEY_BYTES: Final = 91
_LABEL: Final = b"tokenvault signer 1\x00"
_LAYOUT: Final = struct.Struct(f">B{KEY_ID_BYTES}s{_PUBLIC_KEY_BYTES}s{SIGNATURE_BYTES}s")


@attrs.frozen
class Succession:
    """A key that signs after another: its SubjectPublicKeyInfo, the id of the former, and the former's signature."""

    former: bytes
    public_key: bytes
    signature: bytes

    @property
    def signed(self) -> bytes:
        """What the signature signs."""
        return _LABEL + bytes([ENCODING_VERSION]) + self.former + self.public_key

    def encode(self) -> bytes:
        """The value as a store keeps it."""
        return _LAYOUT.pack(ENCODING_VERSION, self.former, self.public_key, self.signature)


def name_of(number: int) -> str:
    """What a succession is kept under, from 1 on."""
    return f"signers/{number}"


def parse(value: bytes) -> Succession | None:
    """The succession of a value; None where no vault wrote it. Its signature is to be checked."""
    if len(value) != _LAYOUT.size or value[0] != ENCODING_VERSION:
        return None
    _, former, public_key, signature = _LAYOUT.unpack(value)
    return Succession(former, public_key, signature)


def sign(former: Signer, public_key: bytes) -> Succession:
    """The succession of a key after another. Raises KeyStoreError."""
    unsigned = Succession(key_id_of(former.public_key), public_key, bytes(SIGNATURE_BYTES))
    return attrs.evolve(unsigned, signature=former.sign(unsigned.signed))


def stored(get_meta: Callable[[str], bytes | None]) -> list[Succession]:
    """The successions that a store holds. Raises what `get_meta` raises."""
    found = []
    for number in range(1, SUCCESSIONS_MAX + 1):
        value = get_meta(name_of(number))
        if value is None:
            break
        succession = parse(value)
        if succession is not None:
            found.append(succession)
    return found
