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
from tokenvault.stores.found_records import Integers, RecordColumns
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
    """Seal records that differ from an example in token, reference, PAN fingerprint and card only.

    Args:
        cipher: the SEAL key.
        key_version: its version.
        tokens: ASCII digits, one for each record.
        references: shape (rows, 16), dtype uint8.
        pan_fingerprints: likewise.
        cards: one row for each record.
        like: the example.

    Raises:
        KeyStoreError: the key can not be reached now.
    """
    rows, body = len(tokens), like.body()
    nonces = _column(os.urandom(rows * layout.NONCE_BYTES), rows, layout.NONCE_BYTES)
    digests: Bytes = np.empty((rows, layout.DIGEST_BYTES), np.uint8)
    lengths = np.fromiter(map(len, tokens), np.int64, rows)
    for length in np.unique(lengths).tolist():
        chosen = np.flatnonzero(lengths == length)
        texts = (
            _column(b"".join([tokens[row] for row in chosen.tolist()]), len(chosen), length),
            _repeated(like.requestor.encode("ascii"), len(chosen)),
            _repeated(like.program.encode("ascii"), len(chosen)),
            _repeated(body, len(chosen)),
        )
        digests[chosen] = _digests(
            nonces[chosen], like.revision, key_version, references[chosen], pan_fingerprints[chosen], texts
        )
    seals = _seals(cipher, nonces, cards, digests)
    return RecordBatch(
        tokens=tokens,
        references=references,
        pan_fingerprints=pan_fingerprints,
        requestor=like.requestor,
        program=like.program,
        revision=like.revision,
        key_version=key_version,
        body=body,
        seals=seals,
    )


def seal_many(
    records: Sequence[TokenRecord],
    cards: Sequence[Card | None],
    cipher: BlockCipher,
    key_version: int,
    *,
    nonces: bytes | None = None,
) -> list[SealedRecord]:
    """Seal any records and their cards, in order.

    Args:
        records: the records.
        cards: one for each record; None for a tombstone.
        cipher: the SEAL key.
        key_version: its version.
        nonces: 13 bytes a record, one after the other; None: from the operating system. For tests and vectors.

    Raises:
        KeyStoreError: the key can not be reached.
    """
    count = len(records)
    drawn = os.urandom(count * layout.NONCE_BYTES) if nonces is None else nonces
    nonce_column = _column(drawn, count, layout.NONCE_BYTES)
    rows = [
        record.row(key_version, nonce) for record, nonce in zip(records, split(nonce_column), strict=True)
    ]
    digests = _column(b"".join(map(record_digest, rows)), count, layout.DIGEST_BYTES)
    seals = split(_seals(cipher, nonce_column, CardColumns.of(cards), digests))
    return [row._replace(seal=seal) for row, seal in zip(rows, seals, strict=True)]


def unseal_many(
    cipher: BlockCipher, rows: Sequence[SealedRecord]
) -> tuple[CardColumns, npt.NDArray[np.bool_]]:
    """The cards of rows that a store read and the port checked, all under one key.

    Returns:
        The cards, and a mask: where it is False, the row is not what was sealed, and there is no card.

    Raises:
        KeyStoreError: the key can not be reached now.
    """
    count = len(rows)
    seals: Bytes = np.empty((count, SEAL_BYTES), np.uint8)
    digests: Bytes = np.empty((count, layout.DIGEST_BYTES), np.uint8)
    possible: npt.NDArray[np.bool_] = np.empty(count, np.bool_)
    for chosen, part in _equally_long(rows):
        fits = part.key_versions <= layout.KEY_VERSION_MAX
        seals[chosen], possible[chosen] = part.seals, fits
        digests[chosen] = _digests(
            part.seals[:, : layout.NONCE_BYTES],
            part.revisions,
            np.where(fits, part.key_versions, 0),
            part.references,
            part.pan_fingerprints,
            (part.tokens, part.requestors, part.programs, part.bodies),
        )
    plaintexts, genuine = ccm_columns.decrypt_many(
        cipher,
        np.ascontiguousarray(seals[:, : layout.NONCE_BYTES]),
        np.ascontiguousarray(seals[:, layout.NONCE_BYTES :]),
        np.ascontiguousarray(digests[:, : layout.ASSOCIATED_BYTES]),
    )
    fields = plaintexts.view(layout.PLAINTEXT_COLUMN).reshape(-1)
    # Every byte of every row is compared, whatever differs.
    unlike = np.bitwise_or.reduce(fields["digest_end"] ^ digests[:, layout.ASSOCIATED_BYTES :], axis=1)
    genuine = genuine & (unlike == 0) & possible
    plaintexts *= genuine[:, None]
    lengths = (fields["shape"] >> layout.EXPIRY_BITS).astype(np.uint8)
    lengths[lengths > 0] += np.uint8(layout.LENGTH_OFFSET)
    pans = PanColumns(fields["pan"].astype(np.uint64), lengths)
    return CardColumns(pans, (fields["shape"] & layout.EXPIRY_MASK).astype(np.uint16)), genuine


def _equally_long(rows: Sequence[SealedRecord]) -> list[tuple[npt.NDArray[np.intp] | slice, RecordColumns]]:
    """The rows in groups whose texts and bodies are equally long, each with the places of its rows."""
    if isinstance(rows, RecordColumns):
        return [(slice(None), rows)]
    places: dict[tuple[int, ...], list[int]] = {}
    for at, row in enumerate(rows):
        lengths = len(row.token), len(row.requestor), len(row.program), len(row.body)
        places.setdefault(lengths, []).append(at)
    return [(np.array(found), RecordColumns.of([rows[at] for at in found])) for found in places.values()]


def _digests(
    nonces: Bytes,
    revisions: int | Integers,
    key_versions: int | Integers,
    references: Bytes,
    pan_fingerprints: Bytes,
    texts: tuple[Bytes, Bytes, Bytes, Bytes],
) -> Bytes:
    """The record digests, shape (rows, 20). Texts are tokens, requestors, programs and bodies."""
    rows = len(nonces)
    header = np.empty(rows, layout.DIGEST_HEADER_COLUMN)
    header["nonce"] = nonces
    header["revision"] = revisions
    header["key_version"] = key_versions
    header["reference"] = references
    header["pan_fingerprint"] = pan_fingerprints
    header["lengths"] = [text.shape[1] for text in texts[:3]]
    columns = header.view(np.uint8).reshape(rows, layout.DIGEST_HEADER_COLUMN.itemsize), *texts
    width, start = sum(column.shape[1] for column in columns), 0
    inputs: Bytes = np.empty((rows, width), np.uint8)
    for column in columns:
        place(column, inputs, start)
        start += column.shape[1]
    hashes = [hashlib.sha256(each).digest() for (each,) in struct.iter_unpack(f"{width}s", inputs.tobytes())]
    return _column(b"".join(hashes), rows, hashlib.sha256().digest_size)[:, : layout.DIGEST_BYTES]


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


def _repeated(value: bytes, rows: int) -> Bytes:
    return np.broadcast_to(np.frombuffer(value, np.uint8), (rows, len(value)))


def _column(joined: bytes, rows: int, width: int) -> Bytes:
    return np.frombuffer(joined, np.uint8).reshape(rows, width)
