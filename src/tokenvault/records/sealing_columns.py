"""Seals and unseals the records of a batch: as `sealing` does one by one, bit for bit.

SHA-256 of each record runs row by row, as there is none for columns, and takes most of the time. The seals then cost
three calls of `encrypt_blocks` for each chunk of `ccm_columns`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence

import attrs
import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Bytes
from tokenvault.crypto import ccm_columns
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.model.pan import Card
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records import layout
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.record import TokenRecord
from tokenvault.records.sealing import record_digest
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.new_records import RecordBatch, split
from tokenvault.stores.port import SEAL_BYTES, SealedRecord


@attrs.frozen(eq=False)
class NewRecords:
    """Records of new tokens before they are sealed: of one requestor and program, each with its card.

    Attributes:
        tokens, references, pan_fingerprints, requestor, program, bodies, customers, last4_keys, status, created_ms:
            as in RecordBatch.
        cards: a row for each.
    """

    tokens: Sequence[bytes]
    references: Bytes
    pan_fingerprints: Bytes
    requestor: str
    program: str
    bodies: Sequence[bytes]
    customers: Sequence[str]
    last4_keys: Bytes
    cards: CardColumns
    status: int
    created_ms: int


def seal_new(cipher: BlockCipher, key_version: int, new: NewRecords) -> RecordBatch:
    """Seal the records of new tokens. Raises KeyStoreError."""
    rows, requestor, program = len(new.tokens), new.requestor.encode("ascii"), new.program.encode("ascii")
    nonces = _nonces(rows)
    header = _header(nonces, new.references, new.pan_fingerprints, new.last4_keys)
    header["revision"], header["key_version"] = 1, key_version
    customers = [customer.encode("ascii") for customer in new.customers]
    texts = new.tokens, [requestor] * rows, [program] * rows, customers
    for number, column in enumerate(texts):
        header["lengths"][:, number] = np.fromiter(map(len, column), np.uint8, rows)
    digests = _digests(header, (b"".join(parts) for parts in zip(*texts, new.bodies, strict=True)))
    return RecordBatch(
        tokens=new.tokens,
        references=new.references,
        pan_fingerprints=new.pan_fingerprints,
        requestor=new.requestor,
        program=new.program,
        revision=1,
        key_version=key_version,
        bodies=new.bodies,
        seals=_seals(cipher, nonces, new.cards, digests),
        customers=new.customers,
        last4_keys=new.last4_keys,
        status=new.status,
        created_ms=new.created_ms,
    )


def seal_many(
    records: Sequence[TokenRecord], cards: Sequence[Card | None], cipher: BlockCipher, key_version: int
) -> list[SealedRecord]:
    """Seal any records, each with its card, or None for a tombstone. Raises KeyStoreError."""
    nonces = _nonces(len(records))
    rows = [record.row(key_version, nonce) for record, nonce in zip(records, split(nonces), strict=True)]
    digests = _column(b"".join(map(record_digest, rows)), layout.DIGEST_BYTES)
    seals = split(_seals(cipher, nonces, CardColumns.of(cards), digests))
    return [row._replace(seal=seal) for row, seal in zip(rows, seals, strict=True)]


def renew_many(
    rows: Sequence[SealedRecord],
    cards: CardColumns,
    cipher: BlockCipher,
    key_version: int,
) -> list[SealedRecord]:
    """Seal genuine rows anew, each as its next revision, with their cards. Raises KeyStoreError."""
    nonces = _nonces(len(rows))
    renewed = [
        row._replace(revision=row.revision + 1, key_version=key_version, seal=nonce)
        for row, nonce in zip(rows, split(nonces), strict=True)
    ]
    digests = _column(b"".join(map(record_digest, renewed)), layout.DIGEST_BYTES)
    seals = split(_seals(cipher, nonces, cards, digests))
    return [row._replace(seal=seal) for row, seal in zip(renewed, seals, strict=True)]


def unseal_many(
    cipher: BlockCipher, rows: Sequence[SealedRecord]
) -> tuple[CardColumns, npt.NDArray[np.bool_]]:
    """The cards of rows that a store read and the port checked, all under the key of this cipher.

    Returns, beside them, a mask: where it is False, the row is not what was sealed, and there is no card.

    Raises KeyStoreError.
    """
    if isinstance(rows, RecordColumns):
        seals, digests = rows.seals, _digests_of_found(rows)
    else:
        seals = _column(b"".join([row.seal for row in rows]), SEAL_BYTES)
        digests = _column(b"".join(map(record_digest, rows)), layout.DIGEST_BYTES)
    plaintexts, genuine = ccm_columns.decrypt_many(
        cipher,
        np.ascontiguousarray(seals[:, : layout.NONCE_BYTES]),
        np.ascontiguousarray(seals[:, layout.NONCE_BYTES :]),
        np.ascontiguousarray(digests[:, : layout.ASSOCIATED_BYTES]),
    )
    fields = plaintexts.view(layout.PLAINTEXT_COLUMN).reshape(-1)
    # Every byte of every row is compared, whatever differs.
    unlike = np.bitwise_or.reduce(fields["digest_end"] ^ digests[:, layout.ASSOCIATED_BYTES :], axis=1)
    genuine = genuine & (unlike == 0) & _are_listed_as_they_are(rows)
    plaintexts *= genuine[:, None]
    lengths = (fields["shape"] >> layout.EXPIRY_BITS).astype(np.uint8)
    lengths[lengths > 0] += np.uint8(layout.LENGTH_OFFSET)
    pans = PanColumns(fields["pan"].astype(np.uint64), lengths)
    return CardColumns(pans, (fields["shape"] & layout.EXPIRY_MASK).astype(np.uint16)), genuine


def _are_listed_as_they_are(rows: Sequence[SealedRecord]) -> npt.NDArray[np.bool_]:
    """Where status and time of issue, by which a store lists records, are those of the sealed body."""
    if isinstance(rows, RecordColumns):
        bodies = np.ascontiguousarray(rows.bodies[:, layout.BODY_CREATED]).view(">i8").reshape(-1)
        same: npt.NDArray[np.bool_] = (rows.bodies[:, layout.BODY_STATUS] == rows.statuses) & (
            bodies == rows.created_ms
        )
        return same
    return np.array(
        [layout.is_listed_as_it_is(row.body, row.status, row.created_ms) for row in rows], np.bool_
    )


def _digests_of_found(records: RecordColumns) -> Bytes:
    """The record digests of records as a store found them, shape (rows, 20); of each seal only the nonce counts."""
    header = _header(
        records.seals[:, : layout.NONCE_BYTES],
        records.references,
        records.pan_fingerprints,
        records.last4_keys,
    )
    header["revision"], header["key_version"] = records.revisions, records.key_versions
    texts = records.tokens, records.requestors, records.programs, records.customers
    header["lengths"] = [text.shape[1] for text in texts]
    return _digests(header, split(np.hstack([*texts, records.bodies])))


def _header(
    nonces: Bytes, references: Bytes, pan_fingerprints: Bytes, last4_keys: Bytes
) -> npt.NDArray[np.void]:
    """The fixed parts of the inputs of record digests, shape (rows,); the numbers are still to be set."""
    header = np.empty(len(nonces), layout.DIGEST_HEADER_COLUMN)
    header["nonce"], header["reference"], header["pan_fingerprint"] = nonces, references, pan_fingerprints
    header["last4_key"] = last4_keys if last4_keys.shape[1] else 0
    return header


def _digests(header: npt.NDArray[np.void], rest: Iterable[bytes]) -> Bytes:
    """The record digests, shape (rows, 20), of the fixed part of each input, and the rest of it."""
    fixed = split(header.view(np.uint8).reshape(len(header), -1))
    hashes = [hashlib.sha256(start + end).digest() for start, end in zip(fixed, rest, strict=True)]
    return _column(b"".join(hashes), hashlib.sha256().digest_size)[:, : layout.DIGEST_BYTES]


def _seals(cipher: BlockCipher, nonces: Bytes, cards: CardColumns, digests: Bytes) -> Bytes:
    """The seals, shape (rows, 45)."""
    plaintexts = np.empty(len(digests), layout.PLAINTEXT_COLUMN)
    plaintexts["pan"] = cards.pans.values
    lengths = cards.pans.lengths.astype(np.uint16)
    plaintexts["shape"] = np.where(
        lengths, ((lengths - layout.LENGTH_OFFSET) << layout.EXPIRY_BITS) | cards.months, 0
    )
    plaintexts["digest_end"] = digests[:, layout.ASSOCIATED_BYTES :]
    sealed = ccm_columns.encrypt_many(
        cipher,
        nonces,
        plaintexts.view(np.uint8).reshape(len(digests), layout.PLAINTEXT_COLUMN.itemsize),
        np.ascontiguousarray(digests[:, : layout.ASSOCIATED_BYTES]),
    )
    return np.concatenate((nonces, sealed), axis=1)


def _nonces(rows: int) -> Bytes:
    return _column(os.urandom(rows * layout.NONCE_BYTES), layout.NONCE_BYTES)


def _column(joined: bytes, width: int) -> Bytes:
    return np.frombuffer(joined, np.uint8).reshape(-1, width)
