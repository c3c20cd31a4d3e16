"""What stands in a key file, and how it is protected.

A JSON object in ASCII:

    format      "tokenvault-keys-1"
    scrypt      {"n": 131072, "p": 1, "r": 8, "salt": 16 bytes}
    newest      {purpose: number of the newest version ever made}
    keys        [{"purpose", "version", "custody", "nonce": 12 bytes, "key": 32 bytes and a 16-byte tag}]
    seal        {"nonce": 12 bytes, "tag": 16 bytes}

Bytes are written as lower-case hex. The wrapping key (32 bytes) is scrypt of the passphrase. Each key is
encrypted with AES-256-GCM under it; the associated data is "tokenvault-keys-1/<purpose>/<version>/<custody>",
so that no key can be moved to another name. The seal is AES-256-GCM of nothing, its associated data
"tokenvault-keys-1/seal/" and the canonical JSON of everything but the seal: so that no key can be taken away,
and no number be changed.

An older copy of the whole file put back is not noticed.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tokenvault.errors import KeyStoreError
from tokenvault.keys.port import KEY_BYTES, VERSION_MAX, Custody, KeyName, KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenvault.keys.secrets import Secret

FORMAT: Final = "tokenvault-keys-1"
FILE_BYTES_MAX: Final = 4 * 2**20

# scrypt (RFC 7914) with the parameters that the OWASP Password Storage Cheat Sheet recommends; takes 128 MiB.
SCRYPT_N: Final = 2**17
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16

_Kind = TypeVar("_Kind")


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
    """The file's bytes; every key under a new nonce.

    Args:
        content: what to write.
        wrapping: gives the wrapping key for a salt.
    """
    aead = AESGCM(wrapping(content.salt))
    keys = []
    for name, key in sorted(content.keys.items(), key=lambda item: (item[0].purpose.value, item[0].version)):
        nonce = os.urandom(NONCE_BYTES)
        keys.append(
            {
                "purpose": name.purpose.value,
                "version": name.version,
                "custody": key.custody.value,
                "nonce": nonce.hex(),
                "key": aead.encrypt(nonce, key.value, _bound(name, key.custody)).hex(),
            }
        )
    document: dict[str, object] = {
        "format": FORMAT,
        "scrypt": {"n": SCRYPT_N, "p": SCRYPT_P, "r": SCRYPT_R, "salt": content.salt.hex()},
        "newest": {purpose.value: version for purpose, version in content.newest.items()},
        "keys": keys,
    }
    nonce = os.urandom(NONCE_BYTES)
    document["seal"] = {"nonce": nonce.hex(), "tag": aead.encrypt(nonce, b"", _sealed(document)).hex()}
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def parse(text: bytes, wrapping: Callable[[bytes], bytes]) -> Content:
    """Read a file's bytes.

    Raises:
        KeyStoreError: it is no key file, was changed, or the passphrase is another.
    """
    document = _json(text)
    _fields(document, {"format", "scrypt", "newest", "keys", "seal"})
    scrypt = _typed(document["scrypt"], dict)
    # Only these parameters: others could ask for all memory before the seal shows that the file was changed.
    if document["format"] != FORMAT or {**scrypt, "salt": None} != {
        "n": SCRYPT_N,
        "p": SCRYPT_P,
        "r": SCRYPT_R,
        "salt": None,
    }:
        raise _damaged()
    salt = _bytes(scrypt.get("salt"), SALT_BYTES)
    seal = _typed(document.pop("seal"), dict)
    _fields(seal, {"nonce", "tag"})
    aead = AESGCM(wrapping(salt))
    _decrypt(aead, _bytes(seal["nonce"], NONCE_BYTES), _bytes(seal["tag"], TAG_BYTES), _sealed(document))
    newest = {
        _purpose(purpose): _version(version) for purpose, version in _typed(document["newest"], dict).items()
    }
    keys: dict[KeyName, StoredKey] = {}
    for entry in _typed(document["keys"], list):
        _fields(_typed(entry, dict), {"purpose", "version", "custody", "nonce", "key"})
        name = KeyName(_purpose(entry["purpose"]), _version(entry["version"]))
        custody = _custody(entry["custody"])
        sealed = _bytes(entry["key"], KEY_BYTES + TAG_BYTES)
        value = _decrypt(aead, _bytes(entry["nonce"], NONCE_BYTES), sealed, _bound(name, custody))
        if name in keys or name.version > newest.get(name.purpose, 0):
            raise _damaged()
        keys[name] = StoredKey(custody, value)
    return Content(keys, newest, salt)


def _bound(name: KeyName, custody: Custody) -> bytes:
    return f"{FORMAT}/{name.purpose.value}/{name.version}/{custody.value}".encode()


def _sealed(document: Mapping[str, object]) -> bytes:
    return f"{FORMAT}/seal/".encode() + json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _damaged() -> KeyStoreError:
    return KeyStoreError("the key file is damaged, was changed, or is no key file: restore it from a backup")


def _decrypt(aead: AESGCM, nonce: bytes, text: bytes, bound: bytes) -> bytes:
    try:
        return aead.decrypt(nonce, text, bound)
    except InvalidTag:
        pass
    raise KeyStoreError(
        "the passphrase is not the one that the key file was written with, or the file was changed"
    )


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise _damaged()
    return dict(pairs)


def _json(text: bytes) -> dict[str, object]:
    document: object = None
    if len(text) <= FILE_BYTES_MAX and text.isascii():
        try:
            document = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            document = None
    return _typed(document, dict)


def _typed(value: object, kind: type[_Kind]) -> _Kind:
    if type(value) is not kind:
        raise _damaged()
    return value


def _fields(value: Mapping[str, object], names: set[str]) -> None:
    if set(value) != names:
        raise _damaged()


def _bytes(value: object, length: int) -> bytes:
    text = _typed(value, str)
    if len(text) != 2 * length or not set(text) <= set("0123456789abcdef"):
        raise _damaged()
    return bytes.fromhex(text)


def _purpose(value: object) -> KeyPurpose:
    for purpose in KeyPurpose:
        if purpose.value == value:
            return purpose
    raise _damaged()


def _custody(value: object) -> Custody:
    for custody in Custody:
        if custody.value == value:
            return custody
    raise _damaged()


def _version(value: object) -> int:
    version = _typed(value, int)
    if not 1 <= version <= VERSION_MAX:
        raise _damaged()
    return version
