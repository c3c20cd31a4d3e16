"""What the vault does with its keys: seal records, fingerprint PANs, derive tokens."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvault.audit.macs import AuditKeys
from tokenvault.columns.digits import to_ascii
from tokenvault.crypto import cmac_columns
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.crypto.cmac import Cmac
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import ConfigurationError, IntegrityError
from tokenvault.keys.port import KeyName, KeyPurpose, KeyStore
from tokenvault.model.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN, Card, Pan
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records import sealing, sealing_columns
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.key_table import KeyState, KeyTable
from tokenvault.records.record import TokenRecord
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.new_records import Bytes, RecordBatch, split
from tokenvault.stores.port import PAN_FINGERPRINT_BYTES, SealedRecord

PURPOSES: Final = (KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.AUDIT)
"""What a vault needs a key for."""

_SEPARATOR: Final = "\x1f"  # in neither a requestor id nor a program's name


class SealPrimary:
    """The SEAL key that a process writes under, and its version: it only ever moves on to a newer one.

    So no record goes back to an older version. A vault that has not yet noticed a new primary version learns of it
    from the first record under it that it reads, before it can write that record.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: tuple[BlockCipher, int] | None = None

    @property
    def current(self) -> tuple[BlockCipher, int]:
        """The key and its version. Raises ConfigurationError before there is one."""
        if self._current is None:
            raise ConfigurationError(
                "there is no seal key: run tokenvault.provision first", code="KEY_MISSING"
            )
        return self._current

    def advance(self, cipher: BlockCipher, version: int) -> None:
        """Write under a version from now on, unless under it or a newer one already."""
        if self._current is not None and version <= self._current[1]:
            return
        with self._lock:
            if self._current is None or version > self._current[1]:
                self._current = cipher, version


class KeyRing:
    """The keys of one vault as one key table has them. Safe to share between threads.

    Args:
        key_store: where the keys are.
        table: says which of them are used; unset, all are, and the newest of each purpose is primary.
        former: the ring of the table before, in the same process.

    Attributes:
        audit: the keys of the audit trail; a ring shares them with its former one.
        audit_version: the version that events are written under, once the ring is in use.
        blocking: whether any key works outside this process, so that a call may take its time.

    Raises:
        ConfigurationError: a purpose has no key yet.
        KeyStoreError: the key store can not be reached, or does not have a key of the table.
    """

    def __init__(
        self, key_store: KeyStore, table: KeyTable | None = None, former: KeyRing | None = None
    ) -> None:
        self._key_store = key_store
        self._table = table
        self.blocking = False
        versions = {purpose: self._live(purpose) for purpose in PURPOSES}
        for purpose, found in versions.items():
            if not found:
                name = purpose.value
                raise ConfigurationError(
                    f"the key store has no {name} key: run tokenvault.provision first", code="KEY_MISSING"
                )
        primary = {
            purpose: found[-1] if table is None else table.primary(purpose)
            for purpose, found in versions.items()
        }
        self._seal_ciphers = {
            version: self._cipher(KeyPurpose.SEAL, version) for version in versions[KeyPurpose.SEAL]
        }
        self._seal_primary: SealPrimary = SealPrimary() if former is None else former._seal_primary
        self._seal_primary.advance(self._seal_ciphers[primary[KeyPurpose.SEAL]], primary[KeyPurpose.SEAL])
        # The primary one first: it writes, and most records are found by it.
        self.fingerprint_versions: Final = tuple(
            sorted(
                versions[KeyPurpose.FINGERPRINT],
                key=lambda version: (version != primary[KeyPurpose.FINGERPRINT], -version),
            )
        )
        self._fingerprint_ciphers = tuple(
            self._cipher(KeyPurpose.FINGERPRINT, version) for version in self.fingerprint_versions
        )
        self._fingerprints = tuple(map(Cmac, self._fingerprint_ciphers))
        self._cipher(KeyPurpose.AUDIT, primary[KeyPurpose.AUDIT])  # it may be the one that blocks
        self.audit: Final[AuditKeys] = AuditKeys(key_store) if former is None else former.audit
        self.audit_version: Final = primary[KeyPurpose.AUDIT]
        if former is None:
            self.audit.write_under(self.audit_version)

    @property
    def _newest_seal(self) -> tuple[BlockCipher, int]:
        return self._seal_primary.current

    @property
    def seal_version(self) -> int:
        """The version of the SEAL key that records are written under."""
        return self._newest_seal[1]

    def _live(self, purpose: KeyPurpose) -> tuple[int, ...]:
        return self._key_store.versions(purpose) if self._table is None else self._table.live(purpose)

    def seal(self, record: TokenRecord, card: Card | None) -> SealedRecord:
        """Seal a record under the primary SEAL key. Raises KeyStoreError."""
        return sealing.seal(record, card, *self._newest_seal)

    def unseal(self, row: SealedRecord) -> tuple[TokenRecord, Card | None]:
        """The record and card of a row, authenticated. Raises IntegrityError, KeyStoreError."""
        cipher = self._cipher_of(row.key_version)
        card = sealing.unseal(row, cipher)
        self._seal_primary.advance(cipher, row.key_version)
        return TokenRecord.parse(row), card

    def pan_fingerprints(self, pan: Pan) -> tuple[bytes, ...]:
        """The 16-byte fingerprint of a PAN under each FINGERPRINT key, the primary first: AES-CMAC of its digits."""
        return tuple(fingerprint.tag(pan.reveal().encode("ascii")) for fingerprint in self._fingerprints)

    def pan_fingerprint(self, pan: Pan) -> bytes:
        """The 16-byte fingerprint of a PAN under the primary FINGERPRINT key."""
        return self._fingerprints[0].tag(pan.reveal().encode("ascii"))

    def convergent_choice(self, pan_fingerprint: bytes, requestor: str, program: str, candidate: int) -> int:
        """A number from 0 to 2**128 - 1: CMAC under the primary FINGERPRINT key.

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
        """Records like an example except these columns, sealed under the primary SEAL key. Raises KeyStoreError."""
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
            if genuine[chosen].any():
                self._seal_primary.advance(cipher, version)
        return cards, genuine

    def renew_many(
        self, rows: Sequence[SealedRecord], *, refingerprint: bool
    ) -> tuple[list[SealedRecord], int]:
        """The next revision of each row that is not under the primary keys, and how many rows are not genuine.

        Sealed under the primary SEAL key; with `refingerprint`, found by the primary FINGERPRINT key. Without, rows
        are left as they are whose seal is under the primary key. Raises KeyStoreError.
        """
        cipher, version = self._newest_seal
        if not refingerprint:
            rows = [row for row in rows if row.key_version < version]
        if not rows:
            return [], 0
        cards, genuine = self.unseal_many(rows)
        found_by = [row.pan_fingerprint for row in rows]
        wanted = genuine.copy()
        if refingerprint:
            live = cards.pans.lengths > 0  # the fingerprint of a tombstone stays: its card is gone
            primary = split(self.pan_fingerprint_many(cards.pans))
            found_by = [new if has else old for new, old, has in zip(primary, found_by, live, strict=True)]
            stays = [row.pan_fingerprint == by for row, by in zip(rows, found_by, strict=True)]
            wanted &= ~np.array(stays)
        chosen = np.flatnonzero(wanted)
        places = chosen.tolist()
        renewed = sealing_columns.renew_many(
            [rows[place] for place in places],
            cards.take(chosen),
            [found_by[place] for place in places],
            cipher,
            version,
        )
        return renewed, len(rows) - int(genuine.sum())

    def found_by(self, rows: Sequence[SealedRecord], version: int) -> tuple[int, int]:
        """How many rows are found by a version of the FINGERPRINT key, and how many are not genuine.

        Tombstones count as neither: nothing tells which version theirs is of, and nothing depends on it.
        """
        cards, genuine = self.unseal_many(rows)
        column = split(pan_fingerprints_of(cards.pans, self._cipher(KeyPurpose.FINGERPRINT, version)))
        live = genuine & (cards.pans.lengths > 0)
        found = sum(
            has and row.pan_fingerprint == by for row, by, has in zip(rows, column, live, strict=True)
        )
        return int(found), len(rows) - int(genuine.sum())

    def pan_fingerprints_many(self, pans: PanColumns) -> tuple[Bytes, ...]:
        """The fingerprints of PANs under each FINGERPRINT key, the primary first: shape (rows, 16), dtype uint8."""
        return tuple(pan_fingerprints_of(pans, cipher) for cipher in self._fingerprint_ciphers)

    def pan_fingerprint_many(self, pans: PanColumns) -> Bytes:
        """The fingerprints of PANs under the primary FINGERPRINT key."""
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
            if version not in self._readable():
                raise IntegrityError(
                    "a token record names a seal key that the vault does not have", code="SEAL_KEY_MISSING"
                )
            cipher = self._seal_ciphers[version] = self._cipher(KeyPurpose.SEAL, version)
        return cipher

    def _readable(self) -> set[int]:
        """The versions of the SEAL key that a record may be under: a retired one too, for as long as it is there."""
        there = set(self._key_store.versions(KeyPurpose.SEAL))
        if self._table is None:
            return there
        entries = self._table.of(KeyPurpose.SEAL)
        return there & {entry.name.version for entry in entries if entry.state is not KeyState.DESTROYED}

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
