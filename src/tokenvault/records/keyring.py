"""What the vault does with its keys: seal records, fingerprint PANs, derive tokens."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvault.audit.macs import AuditKeys
from tokenvault.columns.digits import to_ascii
from tokenvault.crypto import cmac_columns
from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.cmac import Cmac
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import ConfigurationError, IntegrityError, KeyStoreError
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
INDEX_KEY_BYTES: Final = 16
_INDEX_LABEL: Final = b"tokenvault: key of the index of uses, last four digits and requests"
_USE: Final = "use"
_LAST4: Final = "last4"
_REFERENCE: Final = "reference"
_CHOICE: Final = "choice"
_REQUEST: Final = "request"
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
        self._index_keys = tuple(map(_index_key, self._fingerprints))
        self._cipher(KeyPurpose.AUDIT, versions[KeyPurpose.AUDIT][-1])  # it may be the one that blocks
        self.audit: Final = AuditKeys(key_store)

    def probe(self) -> None:
        """Ask the key store which keys there are, and let each purpose's newest one work. Raises KeyStoreError."""
        for purpose in PURPOSES:
            if not self._key_store.versions(purpose):
                raise KeyStoreError(f"the key store has no {purpose.value} key any more")
        block = bytes(BLOCK_BYTES)
        self._newest_seal[0].encrypt_blocks(block)
        self._fingerprint_ciphers[0].encrypt_blocks(block)
        self.audit.tag(block)

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

    # Index keys work in this process, whatever the custody: what they find is found without a call of the module.

    def use_ids(self, requestor: str, transaction_id: str) -> tuple[bytes, ...]:
        """The 16-byte use id of a transaction under each FINGERPRINT key, newest first."""
        return self._indexed(_USE, requestor, transaction_id)

    def contents(self, content: bytes) -> tuple[bytes, ...]:
        """The 16-byte keyed digest of a transaction's content under each FINGERPRINT key, newest first."""
        return tuple(hmac.digest(key, content, "sha256")[:INDEX_KEY_BYTES] for key in self._index_keys)

    def last4_keys(self, last4: str) -> tuple[bytes, ...]:
        """The 16 bytes by which the tokens of cards with these last four digits are found, newest first."""
        return self._indexed(_LAST4, last4)

    def repeatable_references(self, requestor: str, program: str, idempotency_key: str) -> tuple[bytes, ...]:
        """The 16-byte reference of the token that is issued under an idempotency key, newest first."""
        return self._indexed(_REFERENCE, requestor, program, idempotency_key)

    def request_digests(self, request: str) -> tuple[bytes, ...]:
        """The 16 bytes by which a request with an idempotency key is recognised, newest first."""
        return self._indexed(_REQUEST, request)

    def repeatable_choice(self, requestor: str, program: str, idempotency_key: str, candidate: int) -> int:
        """A number from 0 to 2**128 - 1, that chooses the token issued under an idempotency key."""
        return int.from_bytes(self._indexed(_CHOICE, requestor, program, idempotency_key, str(candidate))[0])

    def _indexed(self, *texts: str) -> tuple[bytes, ...]:
        message = _SEPARATOR.join(texts).encode()
        return tuple(hmac.digest(key, message, "sha256")[:INDEX_KEY_BYTES] for key in self._index_keys)

    def metadata(self, record: TokenRecord) -> dict[str, str]:
        """The caller's pairs of a record. Raises IntegrityError, KeyStoreError."""
        if not record.metadata:
            return {}
        cipher = self._cipher_of(sealing.metadata_key_version(record.metadata))
        return sealing.unseal_metadata(record.metadata, record.reference, cipher)

    def seal_metadata(self, metadata: Mapping[str, str], reference: bytes) -> bytes:
        """The caller's pairs as a record keeps them, under the newest SEAL key. Raises KeyStoreError."""
        return sealing.seal_metadata(metadata, reference, *self._newest_seal)

    def convergent_choice(
        self, pan_fingerprint: bytes, requestor: str, program: str, customer: str, candidate: int
    ) -> int:
        """A number from 0 to 2**128 - 1: CMAC under the newest FINGERPRINT key; `customer` is empty if none counts.

        CMAC takes SHA-256 of fingerprint and scope: 32 bytes, a length that no PAN has.
        """
        scope = _scope(requestor, program, customer, candidate)
        return int.from_bytes(self._fingerprints[0].tag(hashlib.sha256(pan_fingerprint + scope).digest()))

    # Batches: the same over columns.

    def seal_new(self, new: sealing_columns.NewRecords) -> RecordBatch:
        """The records of new tokens, sealed under the newest SEAL key. Raises KeyStoreError."""
        return sealing_columns.seal_new(*self._newest_seal, new)

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
        self,
        pan_fingerprints: Bytes,
        requestor: str,
        program: str,
        customers: Sequence[str],
        candidate: int,
    ) -> list[int]:
        """As `convergent_choice`, for each PAN fingerprint and customer."""
        hashes = [
            hashlib.sha256(each + _scope(requestor, program, customer, candidate)).digest()
            for each, customer in zip(split(pan_fingerprints), customers, strict=True)
        ]
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


def _index_key(fingerprint: Cmac) -> bytes:
    """The index key that belongs to a FINGERPRINT key, 32 bytes: CMAC of two texts, longer than any other input."""
    return b"".join(fingerprint.tag(_INDEX_LABEL + bytes((half,))) for half in range(2))


def _scope(requestor: str, program: str, customer: str, candidate: int) -> bytes:
    named = (requestor, program, customer) if customer else (requestor, program)
    return _SEPARATOR.join((*named, str(candidate))).encode("ascii")
