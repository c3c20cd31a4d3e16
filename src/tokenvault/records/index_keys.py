"""Index keys: by what uses, last four digits, requests and deleted cards are found and recognised.

One belongs to each FINGERPRINT version, and is derived from it. They work in this process, whatever the custody: what
they find is found without a call of the module.

The trail never changes, and a request or a deleted card is not stored, so what is found by an index key can not be
brought under the next one. So an index key outlives its FINGERPRINT version: when that is retired, the key table
takes the index key over, sealed under the primary version. From an index key nobody gets to the FINGERPRINT key.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping
from typing import Final

from tokenvault.crypto import ccm
from tokenvault.crypto.cmac import Cmac
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import KeyStoreError
from tokenvault.records.key_table import CarriedKey

INDEX_BYTES: Final = 16

_LABEL: Final = b"tokenvault: key of the index of uses, last four digits and requests"
_WRAP_LABEL: Final = b"tokenvault: key that carries index keys"
_SEPARATOR: Final = "\x1f"  # in neither a requestor id nor a program's name


def derived(fingerprint: Cmac) -> bytes:
    """The index key of a FINGERPRINT key, 32 bytes: CMAC of two texts, longer than any other input."""
    return b"".join(fingerprint.tag(_LABEL + bytes((half,))) for half in range(2))


def indexed(keys: Iterable[bytes], *texts: str) -> tuple[bytes, ...]:
    """16 bytes by which texts are found, under each key."""
    return digests(keys, _SEPARATOR.join(texts).encode())


def digests(keys: Iterable[bytes], message: bytes) -> tuple[bytes, ...]:
    """The first 16 bytes of HMAC-SHA-256 of a message, under each key."""
    return tuple(hmac.digest(key, message, "sha256")[:INDEX_BYTES] for key in keys)


def carry(keys: Mapping[int, bytes], under: int) -> tuple[CarriedKey, ...]:
    """Index keys by their version, sealed under the one of another version, which is in `keys` too."""
    wrapping, carried = _wrapping(keys[under]), []
    for version in sorted(keys.keys() - {under}):
        nonce = os.urandom(ccm.NONCE_BYTES)
        sealed = ccm.encrypt(wrapping, nonce, keys[version], _named(version, under))
        carried.append(CarriedKey(version, under, nonce, sealed))
    return tuple(carried)


def opened(carried: CarriedKey, keys: Mapping[int, bytes]) -> bytes:
    """A carried index key. Raises KeyStoreError without the key that it is under, IntegrityError for another one."""
    if carried.under not in keys:
        raise KeyStoreError(
            f"index keys are carried under fingerprint version {carried.under}, which this key store does not have",
            code="KEY_STORE_KEY_MISSING",
        )
    named = _named(carried.version, carried.under)
    return ccm.decrypt(_wrapping(keys[carried.under]), carried.nonce, carried.sealed, named)


def _wrapping(index_key: bytes) -> LocalBlockCipher:
    return LocalBlockCipher(hmac.digest(index_key, _WRAP_LABEL, "sha256"))


def _named(version: int, under: int) -> bytes:
    return b"%d under %d" % (version, under)
