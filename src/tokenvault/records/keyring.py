"""What the vault does with its keys: seal and unseal records, fingerprint PANs, derive tokens, tag events."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvault.audit.event import leaf_of
from tokenvault.audit.macs import AuditMacs
from tokenvault.crypto import cmac_columns
from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.cmac import Cmac
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import ConfigurationError, IntegrityError
from tokenvault.keys.port import KeyName, KeyPurpose, KeyStore, Signer
from tokenvault.model.pan import Card, Pan
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records import record_columns, sealing, sealing_columns
from tokenvault.records.record import TokenRecord
from tokenvault.records.record_columns import CardColumns
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.new_records import Bytes, RecordBatch, split
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
        self._fingerprint_ciphers = tuple(
            self._cipher(KeyPurpose.FINGERPRINT, version)
            for version in reversed(versions[KeyPurpose.FINGERPRINT])
        )
        self._fingerprints = tuple(map(Cmac, self._fingerprint_ciphers))
        self._audit_macs = AuditMacs(key_store)
        self._signer = key_store.signer()
        self._audit = Cmac(self._cipher(KeyPurpose.AUDIT, versions[KeyPurpose.AUDIT][-1]))

    def seal(self, record: TokenRecord, card: Card | None) -> SealedRecord:
        """Seal a record under the newest SEAL key. Raises KeyStoreError."""
        return sealing.seal(record, card, self._seal_ciphers[self._seal_version], self._seal_version)

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

        Of SHA-256 of what the token converges on: 32 bytes, a length that no PAN has.
        """
        scope = f"{requestor}{_SEPARATOR}{program}{_SEPARATOR}{candidate}".encode("ascii")
        return int.from_bytes(self._fingerprints[0].tag(hashlib.sha256(pan_fingerprint + scope).digest()))

    def audit_tag(self, message: bytes) -> bytes:
        """16 bytes, AES-CMAC under the newest AUDIT key."""
        return self._audit.tag(message)

    def genuine(self, rows: Sequence[SealedEvent]) -> list[bool]:
        """Which of these events have a right MAC, under any version of the AUDIT key. Raises KeyStoreError."""
        return self._audit_macs.genuine([leaf_of(row) for row in rows], [row.mac for row in rows])

    def signer(self) -> Signer | None:
        """Signs checkpoints; None where the key store has no key for it."""
        return self._signer

    # Batches: what stands above, for columns.

    def seal_many(
        self,
        tokens: Sequence[bytes],
        references: Bytes,
        pan_fingerprints: Bytes,
        cards: CardColumns,
        like: TokenRecord,
    ) -> RecordBatch:
        """Records like an example but for these columns, sealed under the newest SEAL key. Raises KeyStoreError."""
        version = self._seal_version
        common, body = (like.requestor, like.program, like.revision), like.body()
        seals = record_columns.seal_like(
            self._seal_ciphers[version], version, tokens, references, pan_fingerprints, *common, body, cards
        )
        return RecordBatch(tokens, references, pan_fingerprints, *common, version, body, seals)

    def seal_all(self, opened: Sequence[tuple[TokenRecord, Card | None]]) -> list[SealedRecord]:
        """As `seal`, for any records. Raises KeyStoreError."""
        version = self._seal_version
        records, cards = zip(*opened, strict=True)
        return sealing_columns.seal_many(records, cards, self._seal_ciphers[version], version)

    def unseal_many(self, rows: Sequence[SealedRecord]) -> tuple[CardColumns, npt.NDArray[np.bool_]]:
        """The cards of rows, and where they are genuine: elsewhere `unseal` raises. Raises KeyStoreError."""
        if isinstance(rows, RecordColumns):
            versions = set(np.unique(rows.key_versions).tolist())
        else:
            versions = {row.key_version for row in rows}
        if len(versions) == 1 and (cipher := self._known(rows[0].key_version)) is not None:
            return record_columns.unseal_many(cipher, rows)
        count = len(rows)
        cards = CardColumns.empty(count)
        genuine = np.zeros(count, np.bool_)
        for version in versions:
            cipher = self._known(version)
            chosen = [place for place, row in enumerate(rows) if row.key_version == version]
            if cipher is not None:
                found, genuine[chosen] = record_columns.unseal_many(cipher, [rows[place] for place in chosen])
                cards.put(chosen, found)
        return cards, genuine

    def accounts_many(self, pans: PanColumns) -> tuple[Bytes, ...]:
        """The fingerprints of PANs under each FINGERPRINT key, newest first: shape (rows, 16), dtype uint8."""
        return tuple(sealing_columns.accounts_of(pans, cipher) for cipher in self._fingerprint_ciphers)

    def account_many(self, pans: PanColumns) -> Bytes:
        """The fingerprints of PANs under the newest FINGERPRINT key."""
        return sealing_columns.accounts_of(pans, self._fingerprint_ciphers[0])

    def convergent_choices(
        self, pan_fingerprints: Bytes, requestor: str, program: str, candidate: int
    ) -> list[int]:
        """As `convergent_choice`, for each pan_fingerprint."""
        scope = f"{requestor}{_SEPARATOR}{program}{_SEPARATOR}{candidate}".encode("ascii")
        hashes = b"".join(
            [hashlib.sha256(pan_fingerprint + scope).digest() for pan_fingerprint in split(pan_fingerprints)]
        )
        messages = np.frombuffer(hashes, np.uint8).reshape(len(pan_fingerprints), 32)
        tags = cmac_columns.tag_many(self._fingerprint_ciphers[0], messages)
        return [int.from_bytes(tag) for tag in split(tags)]

    def _known(self, version: int) -> BlockCipher | None:
        try:
            return self._cipher_of(version)
        except IntegrityError:
            return None

    def _cipher_of(self, version: int) -> BlockCipher:
        cipher = self._seal_ciphers.get(version)
        if cipher is None:
            if version not in self._key_store.versions(KeyPurpose.SEAL):
                raise IntegrityError("a token record names a seal key that the key store does not have")
            cipher = self._seal_ciphers[version] = self._cipher(KeyPurpose.SEAL, version)
        return cipher

    def _cipher(self, purpose: KeyPurpose, version: int) -> BlockCipher:
        cipher = self._key_store.cipher(KeyName(purpose, version))
        self.blocking |= not isinstance(cipher, LocalBlockCipher)
        return cipher
