"""What the vault does with its keys: seal records, fingerprint PANs, derive tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvault.audit.macs import AuditKeys
from tokenvault.columns.digits import to_ascii
from tokenvault.crypto import cmac_columns
from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.cmac import Cmac
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import ConfigurationError, IntegrityError
from tokenvault.keys.port import KeyName, KeyPurpose, KeyStore
from tokenvault.model.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN, Card, Pan
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records import sealing, sealing_columns
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.record import TokenRecord
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.new_records import Bytes, RecordBatch, split
from tokenvault.stores.port import PAN_FINGERPRINT_BYTES, SealedRecord

PURPOSES: Final = (KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.AUDIT)
"""What a vault needs a key for."""

KEY_CHECK_BYTES: Final = 3
_SEPARATOR: Final = "\x1f"  # in neither a requestor id nor a program's name


def key_check_value(cipher: BlockCipher) -> bytes:
    """3 bytes that identify a key: the start of CMAC of a block of zeros (ISO 11568, ANSI X9.24-1)."""
    return Cmac(cipher).tag(bytes(BLOCK_BYTES))[:KEY_CHECK_BYTES]


class KeyRing:
    """The keys of one vault. Safe to share between threads.

    Attributes:
        audit: the keys of the audit trail.
        blocking: whether any key works outside this process, so that a call may take its time.

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
                name = purpose.value
                raise ConfigurationError(
                    f"the key store has no {name} key: run tokenvault.provision first", code="KEY_MISSING"
                )
        self._seal_ciphers = {
            version: self._cipher(KeyPurpose.SEAL, version) for version in versions[KeyPurpose.SEAL]
        }
        version, cipher = max(self._seal_ciphers.items())
        self._newest_seal = cipher, version
        # Newest first: it writes, and most records are found by it.
        self._fingerprint_ciphers = tuple(
            self._cipher(KeyPurpose.FINGERPRINT, version)
            for version in reversed(versions[KeyPurpose.FINGERPRINT])
        )
        self._fingerprints = tuple(map(Cmac, self._fingerprint_ciphers))
        self._cipher(KeyPurpose.AUDIT, versions[KeyPurpose.AUDIT][-1])  # it may be the one that blocks
        self.audit: Final = AuditKeys(key_store)

    def seal(self, record: TokenRecord, card: Card | None) -> SealedRecord:
        """Seal a record under the newest SEAL key. Raises KeyStoreError."""
        return sealing.seal(record, card, *self._newest_seal)

    def unseal(self, row: SealedRecord) -> tuple[TokenRecord, Card | None]:
        """The record and card of a row, authenticated. Raises IntegrityError, KeyStoreError."""
        card = sealing.unseal(row, self._cipher_of(row.key_version))
        return TokenRecord.parse(row), card

    def pan_fingerprints(self, pan: Pan) -> tuple[bytes, ...]:
        """The 16-byte fingerprint of a PAN under each FINGERPRINT key, newest first: AES-CMAC of its digits."""
        return tuple(fingerprint.tag(pan.reveal().encode("ascii")) for fingerprint in self._fingerprints)

    def pan_fingerprint(self, pan: Pan) -> bytes:
        """The 16-byte fingerprint of a PAN under the newest FINGERPRINT key."""
        return self._fingerprints[0].tag(pan.reveal().encode("ascii"))

    def convergent_choice(self, pan_fingerprint: bytes, requestor: str, program: str, candidate: int) -> int:
        """A number from 0 to 2**128 - 1: CMAC under the newest FINGERPRINT key.

        CMAC takes SHA-256 of fingerprint and scope: 32 bytes, a length that no PAN has.
        """
        scope = _scope(requestor, program, candidate)
        return int.from_bytes(self._fingerprints[0].tag(hashlib.sha256(pan_fingerprint + scope).digest()))

    # Batches: the same over columns.

    def seal_many(
        self,
        tokens: Sequence[bytes],
        references: Bytes,
        pan_fingerprints: Bytes,
        cards: CardColumns,
        like: TokenRecord,
    ) -> RecordBatch:
        """Records like an example except these columns, sealed under the newest SEAL key. Raises KeyStoreError."""
        return sealing_columns.seal_like(
            *self._newest_seal, tokens, references, pan_fingerprints, cards, like
        )

    def seal_all(self, unsealed: Sequence[tuple[TokenRecord, Card | None]]) -> list[SealedRecord]:
        """As `seal`, for any records. Raises KeyStoreError."""
        records, cards = zip(*unsealed, strict=True)
        return sealing_columns.seal_many(records, cards, *self._newest_seal)

    def unseal_many(self, rows: Sequence[SealedRecord]) -> tuple[CardColumns, npt.NDArray[np.bool_]]:
        """The cards of rows, and where they are genuine: elsewhere `unseal` raises. Raises KeyStoreError."""
        versions = (
            rows.key_versions
            if isinstance(rows, RecordColumns)
            else np.array([row.key_version for row in rows], np.int64)
        )
        cards, genuine = CardColumns.empty(len(rows)), np.zeros(len(rows), np.bool_)
        for version in np.unique(versions).tolist():
            try:
                cipher = self._cipher_of(version)
            except IntegrityError:
                continue
            chosen = np.flatnonzero(versions == version)
            part = (
                rows.take(chosen)
                if isinstance(rows, RecordColumns)
                else [rows[row] for row in chosen.tolist()]
            )
            found, genuine[chosen] = sealing_columns.unseal_many(cipher, part)
            cards.put(chosen, found)
        return cards, genuine

    def pan_fingerprints_many(self, pans: PanColumns) -> tuple[Bytes, ...]:
        """The fingerprints of PANs under each FINGERPRINT key, newest first: shape (rows, 16), dtype uint8."""
        return tuple(pan_fingerprints_of(pans, cipher) for cipher in self._fingerprint_ciphers)

    def pan_fingerprint_many(self, pans: PanColumns) -> Bytes:
        """The fingerprints of PANs under the newest FINGERPRINT key."""
        return pan_fingerprints_of(pans, self._fingerprint_ciphers[0])

    def convergent_choices(
        self, pan_fingerprints: Bytes, requestor: str, program: str, candidate: int
    ) -> list[int]:
        """As `convergent_choice`, for each PAN fingerprint."""
        scope = _scope(requestor, program, candidate)
        hashes = [hashlib.sha256(each + scope).digest() for each in split(pan_fingerprints)]
        messages = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), 32)
        tags = cmac_columns.tag_many(self._fingerprint_ciphers[0], messages)
        return [int.from_bytes(tag) for tag in split(tags)]

    def _cipher_of(self, version: int) -> BlockCipher:
        cipher = self._seal_ciphers.get(version)
        if cipher is None:
            if version not in self._key_store.versions(KeyPurpose.SEAL):
                raise IntegrityError(
                    "a token record names a seal key that the key store does not have",
                    code="SEAL_KEY_MISSING",
                )
            cipher = self._seal_ciphers[version] = self._cipher(KeyPurpose.SEAL, version)
        return cipher

    def _cipher(self, purpose: KeyPurpose, version: int) -> BlockCipher:
        cipher = self._key_store.cipher(KeyName(purpose, version))
        self.blocking |= not isinstance(cipher, LocalBlockCipher)
        return cipher


def pan_fingerprints_of(pans: PanColumns, cipher: BlockCipher) -> Bytes:
    """The fingerprints of PANs under one FINGERPRINT key, shape (rows, 16); zeros where there is no PAN.

    Raises KeyStoreError.
    """
    fingerprints: Bytes = np.zeros((len(pans.values), PAN_FINGERPRINT_BYTES), np.uint8)
    for length in range(PAN_LENGTH_MIN, PAN_LENGTH_MAX + 1):
        rows = np.flatnonzero(pans.lengths == length)
        if len(rows):
            fingerprints[rows] = cmac_columns.tag_many(cipher, to_ascii(pans.values[rows], length))
    return fingerprints


def _scope(requestor: str, program: str, candidate: int) -> bytes:
    return f"{requestor}{_SEPARATOR}{program}{_SEPARATOR}{candidate}".encode("ascii")
