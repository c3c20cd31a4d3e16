"""Seals a card into its token record, and unseals it; `layout` states the bytes."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
from collections.abc import Mapping
from typing import Final

from tokenvault.crypto import ccm
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.errors import IntegrityError
from tokenvault.model.pan import Card, CardExpiry, trusted_pan
from tokenvault.records import layout
from tokenvault.records.record import TokenRecord
from tokenvault.stores.port import (
    LAST4_KEY_BYTES,
    PAN_FINGERPRINT_BYTES,
    REFERENCE_BYTES,
    SEAL_BYTES,
    SealedRecord,
)

CHANGED: Final = "a token record is not what the vault sealed: changed, moved, or sealed under another key"
"""What a record's IntegrityError says."""


def seal(record: TokenRecord, card: Card | None, cipher: BlockCipher, key_version: int) -> SealedRecord:
    """Seal a record and its card; no card for a tombstone. Raises KeyStoreError."""
    nonce = os.urandom(layout.NONCE_BYTES)
    row = record.row(key_version, nonce)
    digest = record_digest(row)
    sealed = ccm.encrypt(cipher, nonce, _packed(card, digest), digest[: layout.ASSOCIATED_BYTES])
    return row._replace(seal=nonce + sealed)


def unseal(row: SealedRecord, cipher: BlockCipher) -> Card | None:
    """The card of a row; None for a tombstone. Raises IntegrityError where it is not what was sealed."""
    if len(row.seal) != SEAL_BYTES:
        raise IntegrityError(CHANGED)
    nonce, sealed = row.seal[: layout.NONCE_BYTES], row.seal[layout.NONCE_BYTES :]
    digest = record_digest(row)
    return _unpacked(ccm.decrypt(cipher, nonce, sealed, digest[: layout.ASSOCIATED_BYTES]), digest)


def seal_metadata(
    metadata: Mapping[str, str], reference: bytes, cipher: BlockCipher, key_version: int
) -> bytes:
    """The caller's pairs as a record keeps them; nothing for none. Raises KeyStoreError."""
    if not metadata:
        return b""
    nonce = os.urandom(layout.NONCE_BYTES)
    plaintext = json.dumps(metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return layout.METADATA_HEADER.pack(key_version, nonce) + ccm.encrypt(cipher, nonce, plaintext, reference)


def metadata_of(body: bytes) -> bytes:
    """The sealed metadata at the end of a record's body, as the body states its length; nothing where it has none."""
    count = int.from_bytes(body[layout.BODY_METADATA_BYTES])
    return body[-count:] if 0 < count <= len(body) - layout.BODY.size else b""


def key_versions(row: SealedRecord) -> tuple[int, ...]:
    """The versions of the SEAL key that a row needs: of its seal, and of its metadata if it has any."""
    metadata = metadata_of(row.body)
    if len(metadata) < layout.METADATA_HEADER.size:
        return (row.key_version,)
    return row.key_version, metadata_key_version(metadata)


def metadata_key_version(sealed: bytes) -> int:
    """The version of the SEAL key that metadata is sealed under. Raises IntegrityError."""
    if len(sealed) < layout.METADATA_HEADER.size:
        raise IntegrityError(CHANGED)
    version, _ = layout.METADATA_HEADER.unpack_from(sealed)
    return int(version)


def unseal_metadata(sealed: bytes, reference: bytes, cipher: BlockCipher) -> dict[str, str]:
    """The pairs that `seal_metadata` sealed, at least one. Raises IntegrityError, KeyStoreError."""
    _, nonce = layout.METADATA_HEADER.unpack_from(sealed)
    plaintext = ccm.decrypt(cipher, nonce, sealed[layout.METADATA_HEADER.size :], reference)
    pairs: dict[str, str] = json.loads(plaintext)
    return pairs


def record_digest(row: SealedRecord) -> bytes:
    """The record digest of a row, 20 bytes; of the seal only the nonce goes in. Raises IntegrityError."""
    header = b""
    # Struct would cut or fill a byte string of another length.
    if (
        len(row.reference) == REFERENCE_BYTES
        and len(row.pan_fingerprint) == PAN_FINGERPRINT_BYTES
        and len(row.last4_key) in (0, LAST4_KEY_BYTES)
    ):
        try:
            header = layout.DIGEST_HEADER.pack(
                row.seal[: layout.NONCE_BYTES],
                row.revision,
                row.key_version,
                row.reference,
                row.pan_fingerprint,
                row.last4_key,
                len(row.token),
                len(row.requestor),
                len(row.program),
                len(row.customer),
            )
        except struct.error:  # a number or length that no record has
            header = b""
    if not header:
        raise IntegrityError(CHANGED)
    texts = f"{row.token}{row.requestor}{row.program}{row.customer}".encode()
    return hashlib.sha256(header + texts + row.body).digest()[: layout.DIGEST_BYTES]


def _packed(card: Card | None, digest: bytes) -> bytes:
    """The plaintext of a seal."""
    digits, shape = "0", 0
    if card is not None:
        digits = card.pan.reveal()
        shape = (len(digits) - layout.LENGTH_OFFSET) << layout.EXPIRY_BITS
        shape |= card.expiry.month_number if card.expiry else 0
    return layout.PLAINTEXT.pack(int(digits), shape, digest[layout.ASSOCIATED_BYTES :])


def _unpacked(plaintext: bytes, digest: bytes) -> Card | None:
    number, shape, digest_end = layout.PLAINTEXT.unpack(plaintext)
    if not hmac.compare_digest(digest_end, digest[layout.ASSOCIATED_BYTES :]):
        raise IntegrityError(CHANGED)
    length, month_number = shape >> layout.EXPIRY_BITS, shape & layout.EXPIRY_MASK
    if length == 0:
        return None
    pan = trusted_pan(str(number).zfill(length + layout.LENGTH_OFFSET))
    return Card(pan, CardExpiry.from_month_number(month_number) if month_number else None)
