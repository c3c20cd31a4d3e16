"""What the vault does with its keys: seal records, fingerprint PANs, derive tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvault.audit.guard_note import FAILURE_BYTES
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
from tokenvault.records import index_keys, sealing, sealing_columns
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.key_table import CarriedKey, KeyState, KeyTable
from tokenvault.records.record import TokenRecord
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.new_records import Bytes, RecordBatch, split
from tokenvault.stores.port import PAN_FINGERPRINT_BYTES, SealedRecord

PURPOSES: Final = (KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.AUDIT)
"""What a vault needs a key for."""

_USE: Final = "use"
_ID: Final = "id"
_LAST4: Final = "last4"
_REFERENCE: Final = "reference"
_CHOICE: Final = "choice"
_REQUEST: Final = "request"
_FAILURE: Final = "failure"
_DELETED: Final = "deleted"
_SEPARATOR: Final = "\x1f"  # in neither a requestor id nor a program's name


class SealPrimary:
    """The SEAL key that a process writes under, and its version: it only ever moves on to a newer one.

    So no record goes back to an older version. A vault that has not yet noticed a new primary version learns of it
    from the first record under it that it reads, before it can write that record.
    """

    def __init__(self) -> None:
        self._ciphers: dict[int, BlockCipher] = {}

    @property
    def current(self) -> tuple[BlockCipher, int]:
        """The key and its version. Raises ConfigurationError before there is one."""
        ciphers = self._ciphers
        if not ciphers:
            raise ConfigurationError(
                "there is no seal key: run tokenvault.provision first", code="KEY_MISSING"
            )
        version = max(ciphers)  # one step of the interpreter, so that no lock is needed, nor broken by a fork
        return ciphers[version], version

    def advance(self, cipher: BlockCipher, version: int) -> None:
        """Write under a version from now on, unless under it or a newer one already."""
        self._ciphers.setdefault(version, cipher)


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
        require_purposes(versions)
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
        derived = dict(
            zip(self.fingerprint_versions, map(index_keys.derived, self._fingerprints), strict=True)
        )
        carried = () if table is None else reversed(table.carried)
        # The primary one first here too; then those that vaults look up records by, then those that are retired.
        self._index_keys = derived | {each.version: index_keys.opened(each, derived) for each in carried}
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

    # Index keys: those of retired FINGERPRINT versions too, but where records are brought under the primary one.

    def use_ids(self, requestor: str, transaction_id: str) -> tuple[bytes, ...]:
        """The 16-byte use id of a transaction under each index key, the primary first."""
        return self._indexed(_USE, requestor, transaction_id)

    def contents(self, content: bytes) -> tuple[bytes, ...]:
        """The 16-byte keyed digest of a transaction's content under each index key, the primary first."""
        return index_keys.digests(self._index_keys.values(), content)

    def id_digest(self, text: str) -> bytes:
        """The 16 bytes that stand for an id which may not be kept in clear."""
        return self._indexed(_ID, text)[0]

    def last4_keys(self, last4: str) -> tuple[bytes, ...]:
        """The 16 bytes by which the tokens of cards with these last four digits are found, the primary first."""
        return self._indexed(_LAST4, last4)[: len(self.fingerprint_versions)]

    def repeatable_references(self, requestor: str, program: str, idempotency_key: str) -> tuple[bytes, ...]:
        """The 16-byte reference of the token that is issued under an idempotency key, the primary first."""
        return self._indexed(_REFERENCE, requestor, program, idempotency_key)

    def request_digests(self, request: str) -> tuple[bytes, ...]:
        """The 16 bytes by which a request with an idempotency key is recognised, the primary first."""
        return self._indexed(_REQUEST, request)

    def failure(self, *what: str) -> bytes:
        """8 bytes by which a failure is recognised when it comes again, under the newest FINGERPRINT key."""
        return self._indexed(_FAILURE, *what)[0][:FAILURE_BYTES]

    def repeatable_choice(self, requestor: str, program: str, idempotency_key: str, candidate: int) -> int:
        """A number from 0 to 2**128 - 1, that chooses the token issued under an idempotency key."""
        return int.from_bytes(self._indexed(_CHOICE, requestor, program, idempotency_key, str(candidate))[0])

    def tombstone_fingerprints(self, pan: Pan) -> tuple[bytes, ...]:
        """The 16 bytes by which the deleted tokens of a PAN are found, under each index key, the primary first.

        A tombstone has no card from which the next PAN fingerprint could be made.
        """
        return self._indexed(_DELETED, pan.reveal())

    def _indexed(self, *texts: str) -> tuple[bytes, ...]:
        return index_keys.indexed(self._index_keys.values(), *texts)

    def carried(self, version: int) -> tuple[CarriedKey, ...]:
        """What the key table carries once a FINGERPRINT version is retired: its index key and those before it."""
        primary = self.fingerprint_versions[0]
        kept = {*self.fingerprint_versions} - {primary, version}
        keys = {each: key for each, key in self._index_keys.items() if each not in kept}
        return index_keys.carry(keys, primary)

    def metadata(self, record: TokenRecord) -> dict[str, str]:
        """The caller's pairs of a record. Raises IntegrityError, KeyStoreError."""
        if not record.metadata:
            return {}
        cipher = self._cipher_of(sealing.metadata_key_version(record.metadata))
        return sealing.unseal_metadata(record.metadata, record.reference, cipher)

    def seal_metadata(self, metadata: Mapping[str, str], reference: bytes) -> bytes:
        """The caller's pairs as a record keeps them, under the primary SEAL key. Raises KeyStoreError."""
        return sealing.seal_metadata(metadata, reference, *self._newest_seal)

    def convergent_choice(
        self, pan_fingerprint: bytes, requestor: str, program: str, customer: str, candidate: int
    ) -> int:
        """A number from 0 to 2**128 - 1: CMAC under the primary FINGERPRINT key; `customer` is empty if none counts.

        CMAC takes SHA-256 of fingerprint and scope: 32 bytes, a length that no PAN has.
        """
        scope = _scope(requestor, program, customer, candidate)
        return int.from_bytes(self._fingerprints[0].tag(hashlib.sha256(pan_fingerprint + scope).digest()))

    # Batches: the same over columns.

    def seal_new(self, new: sealing_columns.NewRecords) -> RecordBatch:
        """The records of new tokens, sealed under the primary SEAL key. Raises KeyStoreError."""
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
            if genuine[chosen].any():
                self._seal_primary.advance(cipher, version)
        return cards, genuine

    def renew_many(
        self, rows: Sequence[SealedRecord], *, refingerprint: bool
    ) -> tuple[list[SealedRecord], int]:
        """The next revision of each row that is not under the primary keys, and how many rows are not genuine.

        Sealed under the primary SEAL key, its metadata too; with `refingerprint`, found by the primary FINGERPRINT
        key. Without, rows are left as they are that need no other SEAL key than the primary one.

        Raises KeyStoreError.
        """
        if not refingerprint:
            rows = [row for row in rows if min(sealing.key_versions(row)) < self.seal_version]
        if not rows:
            return [], 0
        cards, genuine = self.unseal_many(rows)
        wanted = genuine.copy()
        renewed = list(rows)
        if refingerprint:
            renewed = self._refingerprinted(rows, cards)
            wanted &= np.array([new is not row for new, row in zip(renewed, rows, strict=True)])
        cipher, version = self._newest_seal
        places: list[int] = []
        unreadable = len(rows) - int(genuine.sum())
        for place in np.flatnonzero(wanted).tolist():
            try:
                renewed[place] = self._with_metadata_under(renewed[place], cipher, version)
                places.append(place)
            except IntegrityError:
                unreadable += 1
        sealed = sealing_columns.renew_many(
            [renewed[place] for place in places], cards.take(np.array(places, np.intp)), cipher, version
        )
        return sealed, unreadable

    def _refingerprinted(self, rows: Sequence[SealedRecord], cards: CardColumns) -> list[SealedRecord]:
        """Rows as they are found by the primary FINGERPRINT key; the same object where they are. Tombstones stay."""
        renewed = list(rows)
        columns = zip(rows, split(self.pan_fingerprint_many(cards.pans)), self._last4s(cards), strict=True)
        for place, (row, pan_fingerprint, last4) in enumerate(columns):
            if last4 is not None:
                last4_key = self.last4_keys(last4)[0] if row.last4_key else b""
                if (row.pan_fingerprint, row.last4_key) != (pan_fingerprint, last4_key):
                    renewed[place] = row._replace(pan_fingerprint=pan_fingerprint, last4_key=last4_key)
        return renewed

    @staticmethod
    def _last4s(cards: CardColumns) -> list[str | None]:
        """The last four digits of each card, None where there is none."""
        lengths, values = cards.pans.lengths.tolist(), cards.pans.values.tolist()
        return [
            f"{value % 10_000:04}" if length else None for length, value in zip(lengths, values, strict=True)
        ]

    def _with_metadata_under(self, row: SealedRecord, cipher: BlockCipher, version: int) -> SealedRecord:
        """A genuine row with its metadata sealed under a SEAL key that is no older than that which it is under."""
        metadata = sealing.metadata_of(row.body)
        if not metadata or sealing.metadata_key_version(metadata) >= version:
            return row
        former = self._cipher_of(sealing.metadata_key_version(metadata))
        pairs = sealing.unseal_metadata(metadata, row.reference, former)
        renewed = sealing.seal_metadata(pairs, row.reference, cipher, version)
        return row._replace(body=row.body[: -len(metadata)] + renewed)

    def found_by(self, rows: Sequence[SealedRecord], version: int) -> tuple[int, int]:
        """How many rows are found by a version of the FINGERPRINT key, and how many are not genuine.

        By the PAN fingerprint, or by the last four digits. Tombstones count as neither: they are found by index keys.
        """
        cards, genuine = self.unseal_many(rows)
        column = split(pan_fingerprints_of(cards.pans, self._cipher(KeyPurpose.FINGERPRINT, version)))
        keys = [self._index_keys[version]] if version in self._index_keys else []
        found = 0
        for row, by, last4, is_genuine in zip(
            rows, column, self._last4s(cards), genuine.tolist(), strict=True
        ):
            if is_genuine and last4 is not None:
                by_last4 = row.last4_key and row.last4_key in index_keys.indexed(keys, _LAST4, last4)
                found += bool(row.pan_fingerprint == by or by_last4)
        return found, len(rows) - int(genuine.sum())

    def pan_fingerprints_many(self, pans: PanColumns) -> tuple[Bytes, ...]:
        """The fingerprints of PANs under each FINGERPRINT key, the primary first: shape (rows, 16), dtype uint8."""
        return tuple(pan_fingerprints_of(pans, cipher) for cipher in self._fingerprint_ciphers)

    def tombstone_fingerprints_many(self, pans: PanColumns) -> list[list[bytes]]:
        """As `tombstone_fingerprints`, of each PAN: a list for each index key, the primary first."""
        digits = [
            f"{value:0{length}}"
            for value, length in zip(pans.values.tolist(), pans.lengths.tolist(), strict=True)
        ]
        keys = self._index_keys.values()
        return [[index_keys.indexed((key,), _DELETED, each)[0] for each in digits] for key in keys]

    def pan_fingerprint_many(self, pans: PanColumns) -> Bytes:
        """The fingerprints of PANs under the primary FINGERPRINT key."""
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


def require_purposes(versions: Mapping[KeyPurpose, tuple[int, ...]]) -> None:
    """Raise ConfigurationError where a purpose has no key yet."""
    for purpose, found in versions.items():
        if not found:
            raise ConfigurationError(
                f"the key store has no {purpose.value} key: run tokenvault.provision first",
                code="KEY_MISSING",
            )


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


def _scope(requestor: str, program: str, customer: str, candidate: int) -> bytes:
    named = (requestor, program, customer) if customer else (requestor, program)
    return _SEPARATOR.join((*named, str(candidate))).encode("ascii")
