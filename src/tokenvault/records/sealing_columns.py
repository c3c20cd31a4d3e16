"""Seals and unseals the records of a batch: as `sealing` does one by one, bit for bit.

SHA-256 of each record runs row by row, as there is none for columns, and takes most of the time. The seals then cost
three calls of `encrypt_blocks` for each chunk of `ccm_columns`.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Bytes, place
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


def seal_like(
    cipher: BlockCipher,
    key_version: int,
    tokens: Sequence[bytes],
    references: Bytes,
    pan_fingerprints: Bytes,
    cards: CardColumns,
    like: TokenRecord,
) -> RecordBatch:
    """Seal records that differ from an example only in their card and in these columns, which are as in RecordBatch.

    Raises KeyStoreError.
    """
    body = like.body()
    nonces = _nonces(len(tokens))
    digests: Bytes = np.empty((len(tokens), layout.DIGEST_BYTES), np.uint8)
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    for length in np.unique(lengths).tolist():
        chosen = np.flatnonzero(lengths == length)
        rows = len(chosen)
        columns = RecordColumns(
            tokens=_column(b"".join([tokens[row] for row in chosen.tolist()]), length),
            references=references[chosen],
            pan_fingerprints=pan_fingerprints[chosen],
            requestors=_repeated(like.requestor.encode("ascii"), rows),
            programs=_repeated(like.program.encode("ascii"), rows),
            revisions=np.full(rows, like.revision),
            key_versions=np.full(rows, key_version),
            bodies=_repeated(body, rows),
            seals=nonces[chosen],
        )
        digests[chosen] = _digests(columns)
    return RecordBatch(
        tokens=tokens,
        references=references,
        pan_fingerprints=pan_fingerprints,
        requestor=like.requestor,
        program=like.program,
        revision=like.revision,
        key_version=key_version,
        body=body,
        seals=_seals(cipher, nonces, cards, digests),
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
    pan_fingerprints: Sequence[bytes],
    cipher: BlockCipher,
    key_version: int,
) -> list[SealedRecord]:
    """Seal genuine rows anew, each as its next revision, with their cards and these fingerprints.

    Raises KeyStoreError.
    """
    nonces = _nonces(len(rows))
    renewed = [
        row._replace(
            revision=row.revision + 1, key_version=key_version, pan_fingerprint=pan_fingerprint, seal=nonce
        )
        for row, pan_fingerprint, nonce in zip(rows, pan_fingerprints, split(nonces), strict=True)
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
        seals, digests = rows.seals, _digests(rows)
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
    genuine = genuine & (unlike == 0)
    plaintexts *= genuine[:, None]
    lengths = (fields["shape"] >> layout.EXPIRY_BITS).astype(np.uint8)
    lengths[lengths > 0] += np.uint8(layout.LENGTH_OFFSET)
    pans = PanColumns(fields["pan"].astype(np.uint64), lengths)
    return CardColumns(pans, (fields["shape"] & layout.EXPIRY_MASK).astype(np.uint16)), genuine


def _digests(records: RecordColumns) -> Bytes:
    """The record digests, shape (rows, 20); as in `record_digest`, of each seal only the nonce is there or counts."""
    rows, texts = len(records), (records.tokens, records.requestors, records.programs)
    header = np.empty(rows, layout.DIGEST_HEADER_COLUMN)
    header["nonce"] = records.seals[:, : layout.NONCE_BYTES]
    header["revision"] = records.revisions
    header["key_version"] = records.key_versions
    header["reference"] = records.references
    header["pan_fingerprint"] = records.pan_fingerprints
    header["lengths"] = [text.shape[1] for text in texts]
    columns = header.view(np.uint8).reshape(rows, -1), *texts, records.bodies
    inputs: Bytes = np.empty((rows, sum(column.shape[1] for column in columns)), np.uint8)
    start = 0
    for column in columns:
        place(column, inputs, start)
        start += column.shape[1]
    each = struct.iter_unpack(f"{inputs.shape[1]}s", inputs.tobytes())
    hashes = [hashlib.sha256(message).digest() for (message,) in each]
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


def _repeated(value: bytes, rows: int) -> Bytes:
    return np.broadcast_to(np.frombuffer(value, np.uint8), (rows, len(value)))


def _column(joined: bytes, width: int) -> Bytes:
    return np.frombuffer(joined, np.uint8).reshape(-1, width)
