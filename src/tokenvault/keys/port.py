"""The key store port: what the vault needs of whatever holds its keys.

The one operation on the hot path is AES-256 in ECB over 16-byte blocks (PKCS#11: CKM_AES_ECB). FF1, CMAC,
CCM and key derivation are built on it, so that a batch of any size costs a constant number of calls.
"""

from __future__ import annotations

from typing import Final, Protocol

import attrs

from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.errors import InvalidInputError, KeyStoreError, boundary_init
from tokenvault.model.words import Words

KEY_BYTES: Final = 32
VERSION_MAX: Final = 9_999


class KeyPurpose(Words):
    """What a key is for. Each purpose has its own AES-256 key and its own version history."""

    SEAL = "seal"
    FINGERPRINT = "fingerprint"
    FPE = "fpe"
    AUDIT = "audit"


class Custody(Words):
    """Where a key version does its work.

    IN_MODULE: every block is encrypted by the module; the key never leaves it.
    IN_PROCESS: the module's key derives, once at open, a data key that lives in process memory only.
    """

    IN_MODULE = "module"
    IN_PROCESS = "process"


@boundary_init
@attrs.frozen
class KeyName:
    """Names one key: a purpose and a version from 1 to 9,999. The newest version writes, older ones read."""

    purpose: KeyPurpose
    version: int

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.purpose, KeyPurpose):
            raise InvalidInputError("a key's purpose is a KeyPurpose")
        if type(self.version) is not int or not 1 <= self.version <= VERSION_MAX:
            raise InvalidInputError(f"a key's version is a whole number from 1 to {VERSION_MAX}")

    def __str__(self) -> str:
        return f"{self.purpose.value} version {self.version}"


def next_name(purpose: KeyPurpose, newest: int, version: int | None) -> KeyName:
    """The name of the version after the newest. Raises KeyStoreError where `version` is another, or none is left."""
    following = newest + 1
    if version is not None and version != following:
        raise KeyStoreError(
            f"the next version of the {purpose.value} key is {following}: look at versions() before you ask again",
            code="KEY_STORE_VERSION_TAKEN",
        )
    if following > VERSION_MAX:
        raise KeyStoreError(
            f"a purpose has at most {VERSION_MAX} versions", code="KEY_STORE_VERSIONS_USED_UP"
        )
    return KeyName(purpose, following)


class Signer(Protocol):
    """An ECDSA P-256 key pair that signs checkpoints of the audit trail, used from any number of threads."""

    @property
    def public_key(self) -> bytes:
        """SubjectPublicKeyInfo (RFC 5280) in DER. Raises KeyStoreError when it can not be read now."""
        ...

    def sign(self, message: bytes) -> bytes:
        """The signature of a message: ECDSA P-256 with SHA-256 (FIPS 186-5), 64 bytes, r and s.

        Raises:
            KeyStoreError: the key can not be reached now; a later call may succeed.
        """
        ...


class KeyStore(Protocol):
    """Holds the vault's keys. Safe to share between threads; survives a fork by reopening in the child."""

    def cipher(self, key: KeyName) -> BlockCipher:
        """The cipher of one key version. Raises KeyStoreError when the store has no such key."""
        ...

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        """The versions that exist, ascending; empty when there are none. Raises KeyStoreError."""
        ...

    def create(self, purpose: KeyPurpose, custody: Custody, *, version: int | None = None) -> KeyName:
        """Generate the next version of a purpose's key inside the store.

        With `version`, only if that is the next one: so processes that provision at once make one key, not two.

        Raises:
            KeyStoreError: the next version is another one, or the store can not be reached.
        """
        ...

    def signer(self) -> Signer | None:
        """Signs checkpoints; None where there is no key pair for it. Raises KeyStoreError."""
        ...

    def create_signer(self) -> Signer | None:
        """Make the key pair unless there is one; None where this store can not. Raises KeyStoreError."""
        ...

    def destroy(self, key: KeyName) -> None:
        """Destroy one version for ever. Raises KeyStoreError when there is none."""
        ...

    def close(self) -> None:
        """Log out and forget every key; idempotent. Every later call raises KeyStoreError."""
        ...
