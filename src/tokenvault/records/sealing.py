"""Sealing a card into its token record, and opening it.

The seal is AES-256-CCM (NIST SP 800-38C; 13-byte random nonce, 16-byte tag) over 16 bytes of plaintext:

    8   PAN as a number
    2   high 4 bits: digits of the PAN less 12, or 0 in a tombstone; low 12 bits: card expiry in months from
        January 2000, which is 1, or 0
    6   last 6 bytes of the record digest

with the first 14 bytes of the record digest as associated data. The record digest is the first 20 bytes of
SHA-256 over the nonce, every column and the body. So the whole record is bound by 160 bits, and CCM needs only
three AES calls one after the other: one for B0 with the counter blocks, one for the associated data (14 bytes
and their length fill one block), one for the plaintext.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import Final

from tokenvault.crypto import ccm
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.errors import IntegrityError
from tokenvault.model.pan import PAN_LENGTH_MIN, Card, CardExpiry, trusted_pan
from tokenvault.records.record import PAN_FINGERPRINT_BYTES, REFERENCE_BYTES, TokenRecord
from tokenvault.stores.port import SealedRecord

NONCE_BYTES: Final = 13
SEAL_BYTES: Final = NONCE_BYTES + 16 + 16

ASSOCIATED_BYTES: Final = 14
DIGEST_BYTES: Final = 20
COLUMNS: Final = 6
"""How many fields a record and its row begin with alike: token, reference, pan_fingerprint, requestor, program,
revision."""

PLAINTEXT: Final = struct.Struct(">QH6s")
LENGTH_OFFSET: Final = PAN_LENGTH_MIN - 1
EXPIRY_BITS: Final = 12
HEADER: Final = struct.Struct(">QI16s16sBBB")
_CHANGED: Final = "a token record is not what the vault sealed: changed, moved, or sealed under another key"


def seal(record: TokenRecord, card: Card | None, cipher: BlockCipher, key_version: int) -> SealedRecord:
    """Seal a record and its card; no card for a tombstone. Raises KeyStoreError."""
    nonce = os.urandom(NONCE_BYTES)
    body = record.body()
    digest = record_digest(record, key_version, body, nonce)
    sealed = ccm.encrypt(cipher, nonce, packed(card, digest), digest[:ASSOCIATED_BYTES])
    return SealedRecord(*record[:COLUMNS], key_version, body, nonce + sealed)


def unseal(row: SealedRecord, cipher: BlockCipher) -> Card | None:
    """The card of a row; None for a tombstone.

    Raises:
        IntegrityError: the row is not what was sealed.
        KeyStoreError: the key can not be reached.
    """
    if len(row.seal) != SEAL_BYTES:
        raise IntegrityError(_CHANGED)
    nonce, sealed = row.seal[:NONCE_BYTES], row.seal[NONCE_BYTES:]
    digest = record_digest(row, row.key_version, row.body, nonce)
    return _unpacked(ccm.decrypt(cipher, nonce, sealed, digest[:ASSOCIATED_BYTES]), digest)


def record_digest(row: TokenRecord | SealedRecord, key_version: int, body: bytes, nonce: bytes) -> bytes:
    """The record digest: 20 bytes. The header has the length of each text, so no two rows read alike."""
    token, reference, pan_fingerprint, requestor, program, revision = row[:COLUMNS]
    header = b""
    if len(reference) == REFERENCE_BYTES and len(pan_fingerprint) == PAN_FINGERPRINT_BYTES:
        try:
            header = HEADER.pack(
                revision, key_version, reference, pan_fingerprint, len(token), len(requestor), len(program)
            )
        except struct.error:  # a number or length that no record has
            header = b""
    if not header:
        raise IntegrityError(_CHANGED)
    texts = f"{token}{requestor}{program}".encode()
    return hashlib.sha256(b"".join((nonce, header, texts, body))).digest()[:DIGEST_BYTES]


def packed(card: Card | None, digest: bytes) -> bytes:
    """The plaintext of a seal."""
    if card is None:
        return PLAINTEXT.pack(0, 0, digest[ASSOCIATED_BYTES:])
    shape = (len(card.pan.reveal()) - LENGTH_OFFSET) << EXPIRY_BITS
    if card.expiry is not None:
        shape |= card.expiry.month_number
    return PLAINTEXT.pack(int(card.pan.reveal()), shape, digest[ASSOCIATED_BYTES:])


def _unpacked(plaintext: bytes, digest: bytes) -> Card | None:
    number, shape, bound = PLAINTEXT.unpack(plaintext)
    if not hmac.compare_digest(bound, digest[ASSOCIATED_BYTES:]):
        raise IntegrityError(_CHANGED)
    length, month_number = shape >> EXPIRY_BITS, shape & ((1 << EXPIRY_BITS) - 1)
    if length == 0:
        return None
    pan = trusted_pan(str(number).zfill(length + LENGTH_OFFSET))
    return Card(pan, CardExpiry.from_month_number(month_number) if month_number else None)
