"""What the vault does with its keys: seal and unseal records, fingerprint PANs, derive tokens, tag events."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from tokenvault import sealing
from tokenvault.audit.macs import AuditMacs
from tokenvault.cmac import Cmac
from tokenvault.errors import ConfigurationError, IntegrityError
from tokenvault.events import leaf_of
from tokenvault.keys.local import LocalBlockCipher
from tokenvault.keys.port import BLOCK_BYTES, BlockCipher, KeyName, KeyPurpose, KeyStore, Signer
from tokenvault.pan import Card, Pan
from tokenvault.records import TokenRecord
from tokenvault.stores.port import SealedEvent, SealedRecord

PURPOSES: Final = (KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.AUDIT)
"""What a vault needs a key for."""

KEY_CHECK_BYTES: Final = 3
_SEPARATOR: Final = "\x1f"  # in neither a requestor id nor a program's name


def key_check_value(cipher: BlockCipher) -> bytes:
    """3 bytes by which to recognise a key: the start of CMAC of a block of zeros (ISO 11568, ANSI X9.24-1)."""
    return Cmac(cipher).tag(bytes(BLOCK_BYTES))[:KEY_CHECK_BYTES]


class KeyRing:
    """The keys of one vault. Safe to share between threads.

    Attributes:
        blocking: whether any of them works outside this process, so that a call may take its time.

    Raises:
        ConfigurationError: a purpose has no key yet.
        KeyStoreError: the key store can not be reached.
    """

    def __init__(self, key_store: KeyStore) -> None:
        self._key_store = key_store
        self.blocking = False
        versions = {purpose: key_store.versions(purpose) for purpose in PURPOSES}
        for purpose, found in versions.items():
            if not found:
                raise ConfigurationError(
                    f"the key store has no {purpose.value} key: run tokenvault.provision first"
                )
        self._seal_version = versions[KeyPurpose.SEAL][-1]
        self._seal_ciphers = {
            version: self._cipher(KeyPurpose.SEAL, version) for version in versions[KeyPurpose.SEAL]
        }
        # Newest first: it writes, and most records are found by it.
        self._fingerprints = tuple(
            Cmac(self._cipher(KeyPurpose.FINGERPRINT, version))
            for version in reversed(versions[KeyPurpose.FINGERPRINT])
        )
        self._audit_macs = AuditMacs(key_store)
        self._signer = key_store.signer()
        self._audit = Cmac(self._cipher(KeyPurpose.AUDIT, versions[KeyPurpose.AUDIT][-1]))

    def seal(self, record: TokenRecord, card: Card | None) -> SealedRecord:
        """Seal a record under the newest SEAL key. Raises KeyStoreError."""
        return sealing.seal(record, card, self._seal_ciphers[self._seal_version], self._seal_version)

    def unseal(self, row: SealedRecord) -> tuple[TokenRecord, Card | None]:
        """The record and card of a row, authenticated. Raises IntegrityError, KeyStoreError."""
        cipher = self._seal_ciphers.get(row.key_version)
        if cipher is None:
            if row.key_version not in self._key_store.versions(KeyPurpose.SEAL):
                raise IntegrityError("a token record names a seal key that the key store does not have")
            cipher = self._seal_ciphers[row.key_version] = self._cipher(KeyPurpose.SEAL, row.key_version)
        card = sealing.unseal(row, cipher)
        return TokenRecord.parse(row), card

    def accounts(self, pan: Pan) -> tuple[bytes, ...]:
        """The 16-byte fingerprint of a PAN under each FINGERPRINT key, newest first: AES-CMAC of its digits."""
        return tuple(fingerprint.tag(pan.reveal().encode("ascii")) for fingerprint in self._fingerprints)

    def account(self, pan: Pan) -> bytes:
        """The 16-byte fingerprint of a PAN under the newest FINGERPRINT key."""
        return self._fingerprints[0].tag(pan.reveal().encode("ascii"))

    def convergent_choice(self, account: bytes, requestor: str, program: str, candidate: int) -> int:
        """A number from 0 to 2**128 - 1: CMAC under the newest FINGERPRINT key.

        Of SHA-256 of what the token converges on: 32 bytes, a length that no PAN has.
        """
        scope = f"{requestor}{_SEPARATOR}{program}{_SEPARATOR}{candidate}".encode("ascii")
        return int.from_bytes(self._fingerprints[0].tag(hashlib.sha256(account + scope).digest()))

    def audit_tag(self, message: bytes) -> bytes:
        """16 bytes, AES-CMAC under the newest AUDIT key."""
        return self._audit.tag(message)

    def genuine(self, rows: Sequence[SealedEvent]) -> list[bool]:
        """Which of these events have a right MAC, under any version of the AUDIT key. Raises KeyStoreError."""
        return self._audit_macs.genuine([leaf_of(row) for row in rows], [row.mac for row in rows])

    def signer(self) -> Signer | None:
        """Signs checkpoints; None where the key store has no key for it."""
        return self._signer

    def _cipher(self, purpose: KeyPurpose, version: int) -> BlockCipher:
        cipher = self._key_store.cipher(KeyName(purpose, version))
        self.blocking |= not isinstance(cipher, LocalBlockCipher)
        return cipher
