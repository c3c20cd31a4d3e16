"""What stands in a key file, and how it is protected.

A JSON object in ASCII; bytes are written as lower-case hex:

    format      "tokenvault-keys-1"
    scrypt      {"n": 131072, "p": 1, "r": 8, "salt": 16 bytes}
    nonce       12 bytes, new with each write
    keys        ciphertext and a 16-byte tag

The wrapping key (32 bytes) is scrypt of the passphrase. `keys` is AES-256-GCM under it; the associated data is
format and scrypt as canonical JSON. What is encrypted is canonical JSON too:

    keys        [{"purpose", "version", "custody", "key": 32 bytes}]
    newest      {purpose: number of the newest version ever made}

An older copy of the whole file put back is not noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tokenvault.errors import KeyStoreError
from tokenvault.keys.port import KEY_BYTES, Custody, KeyName, KeyPurpose
from tokenvault.keys.secrets import Secret

FORMAT: Final = "tokenvault-keys-1"
FILE_BYTES_MAX: Final = 4 * 2**20

# scrypt (RFC 7914) with the parameters that the OWASP Password Storage Cheat Sheet recommends; takes 128 MiB.
SCRYPT_N: Final = 2**17
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 12


@attrs.frozen
class StoredKey:
    """A key's bytes and its custody."""

    custody: Custody
    value: bytes = attrs.field(repr=False)


@attrs.frozen
class Content:
    """What a key file says, decrypted."""

    keys: Mapping[KeyName, StoredKey] = attrs.field(factory=dict, repr=False)
    newest: Mapping[KeyPurpose, int] = attrs.field(factory=dict)
    salt: bytes = attrs.field(factory=lambda: os.urandom(SALT_BYTES))

    def with_key(self, name: KeyName, key: StoredKey) -> Content:
        """The same with one key more, the newest of its purpose."""
        keys, newest = {**self.keys, name: key}, {**self.newest, name.purpose: name.version}
        return attrs.evolve(self, keys=keys, newest=newest)

    def without_key(self, name: KeyName) -> Content:
        """The same with one key less."""
        return attrs.evolve(self, keys={each: key for each, key in self.keys.items() if each != name})


def wrapping_key(passphrase: Secret, salt: bytes) -> bytes:
    """The key that the passphrase stands for."""
    scrypt = Scrypt(salt=salt, length=KEY_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P)
    return scrypt.derive(passphrase.reveal().encode("utf-8", "surrogateescape"))


def serialize(content: Content, wrapping: Callable[[bytes], bytes]) -> bytes:
    """The file's bytes.

    Args:
        content: what to write.
        wrapping: gives the wrapping key for a salt.
    """
    keys = [
        {
            "purpose": name.purpose.value,
            "version": name.version,
            "custody": key.custody.value,
            "key": key.value.hex(),
        }
        for name, key in content.keys.items()
    ]
    newest = {purpose.value: version for purpose, version in content.newest.items()}
    header, nonce = _header(content.salt), os.urandom(NONCE_BYTES)
    sealed = AESGCM(wrapping(content.salt)).encrypt(
        nonce, _canonical({"keys": keys, "newest": newest}), _canonical(header)
    )
    document = {**header, "nonce": nonce.hex(), "keys": sealed.hex()}
    return json.dumps(document, indent=1).encode() + b"\n"


def parse(text: bytes, wrapping: Callable[[bytes], bytes]) -> Content:
    """Read a file's bytes.

    Raises:
        KeyStoreError: it is no key file, was changed, or the passphrase is another.
    """
    try:
        salt, nonce, sealed = _outer(text)
        aead = AESGCM(wrapping(salt))
        return _inner(
            aead.decrypt(nonce, sealed, _canonical(_header(salt))), salt
        )  # in no variable of this frame
    except InvalidTag:
        reason = "the passphrase is not the one that the key file was written with, or the file was changed"
    except (ValueError, TypeError, LookupError, RecursionError):  # what reading something else raises
        reason = "the key file is damaged, was changed, or is no key file: restore it from a backup"
    raise KeyStoreError(reason)


def _header(salt: bytes) -> dict[str, object]:
    return {"format": FORMAT, "scrypt": {"n": SCRYPT_N, "p": SCRYPT_P, "r": SCRYPT_R, "salt": salt.hex()}}


def _outer(text: bytes) -> tuple[bytes, bytes, bytes]:
    """Salt, nonce and what is encrypted. Raises ValueError, TypeError or LookupError for any other text.

    Only one set of scrypt's parameters is accepted: others could ask for all memory before the tag shows that the
    file was changed.
    """
    if len(text) > FILE_BYTES_MAX:
        raise ValueError
    document = json.loads(text.decode("ascii"), object_pairs_hook=_no_repeats)
    salt = bytes.fromhex(document["scrypt"]["salt"])
    nonce, sealed = bytes.fromhex(document["nonce"]), bytes.fromhex(document["keys"])
    if _canonical(document) != _canonical({**_header(salt), "nonce": nonce.hex(), "keys": sealed.hex()}):
        raise ValueError
    return salt, nonce, sealed


def _inner(plain: bytes, salt: bytes) -> Content:
    document = json.loads(plain)
    keys = {
        KeyName(KeyPurpose(each["purpose"]), each["version"]): StoredKey(
            Custody(each["custody"]), bytes.fromhex(each["key"])
        )
        for each in document["keys"]
    }
    newest = {KeyPurpose(purpose): version for purpose, version in document["newest"].items()}
    return Content(keys, newest, salt)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError
    return names
