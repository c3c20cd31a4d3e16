"""Sealing many records at once: the layout of `tokenvault.records.sealing`, byte for byte, over columns.

SHA-256 of each record runs row by row, as no column of hashes is to be had; it is most of the time. The seals
themselves then cost three calls of `encrypt_blocks` a chunk, and the fingerprints of PANs one or two for each length.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from tokenvault.columns.arrays import Bytes
from tokenvault.columns.digits import to_ascii
from tokenvault.crypto import ccm_columns, cmac_columns
from tokenvault.model.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN, Card
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records import sealing
from tokenvault.records.record import PAN_FINGERPRINT_BYTES, TokenRecord
from tokenvault.stores.port import SealedRecord

if TYPE_CHECKING:
    from tokenvault.crypto.block_cipher import BlockCipher

_PLAINTEXT_BYTES: Final = 16


def seal_many(
    records: Sequence[TokenRecord],
    cards: Sequence[Card | None],
    cipher: BlockCipher,
    key_version: int,
    *,
    nonces: bytes | None = None,
) -> list[SealedRecord]:
    """Seal records and their cards, in order: what `sealing.seal` makes of each with the same nonce.

    Args:
        records: the records.
        cards: one for each record; None for a tombstone.
        cipher: the SEAL key.
        key_version: its version.
        nonces: 13 bytes a record, one behind the other; unset, from the operating system. For tests and vectors.

    Raises:
        KeyStoreError: the key can not be reached.
    """
    rows = len(records)
    drawn = os.urandom(rows * sealing.NONCE_BYTES) if nonces is None else nonces
    bodies = [record.body() for record in records]
    digests = []
    plaintexts = []
    for i, (record, card, body) in enumerate(zip(records, cards, bodies, strict=True)):
        nonce = drawn[i * sealing.NONCE_BYTES : (i + 1) * sealing.NONCE_BYTES]
        digest = sealing.record_digest(record, key_version, body, nonce)
        digests.append(digest[: sealing.ASSOCIATED_BYTES])
        plaintexts.append(sealing.packed(card, digest))
    nonce_column = _column(drawn, rows, sealing.NONCE_BYTES)
    sealed = ccm_columns.encrypt_many(
        cipher,
        nonce_column,
        _column(b"".join(plaintexts), rows, _PLAINTEXT_BYTES),
        _column(b"".join(digests), rows, sealing.ASSOCIATED_BYTES),
    )
    seals = np.concatenate((nonce_column, sealed), axis=1).tobytes()
    size = sealing.SEAL_BYTES
    return [
        SealedRecord(*record[: sealing.COLUMNS], key_version, body, seals[i * size : (i + 1) * size])
        for i, (record, body) in enumerate(zip(records, bodies, strict=True))
    ]


def accounts_of(pans: PanColumns, cipher: BlockCipher) -> Bytes:
    """The fingerprints of PANs under one FINGERPRINT key: AES-CMAC of the digits.

    Args:
        pans: the PANs; a row that could not be read gets zeros.
        cipher: the key.

    Returns:
        An array of shape (rows, 16) and dtype uint8.

    Raises:
        KeyStoreError: the key can not be reached.
    """
    pan_fingerprints: Bytes = np.zeros((len(pans.values), PAN_FINGERPRINT_BYTES), np.uint8)
    for length in range(PAN_LENGTH_MIN, PAN_LENGTH_MAX + 1):
        rows = np.flatnonzero(pans.lengths == length)
        if len(rows):
            pan_fingerprints[rows] = cmac_columns.tag_many(cipher, to_ascii(pans.values[rows], length))
    return pan_fingerprints


def _column(data: bytes, rows: int, width: int) -> Bytes:
    return np.frombuffer(data, np.uint8).reshape(rows, width)
