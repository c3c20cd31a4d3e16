"""Sealing and opening the records of a batch: as `sealing` does one by one, bit for bit.

The record digests are computed row by row, over messages laid side by side; the seals by `ccm_columns`: three calls
of `encrypt_blocks` for each of its chunks of rows.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import place
from tokenvault.crypto import ccm_columns
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records.sealing import (
    ASSOCIATED_BYTES,
    DIGEST_BYTES,
    EXPIRY_BITS,
    HEADER,
    LENGTH_OFFSET,
    NONCE_BYTES,
    PLAINTEXT,
    SEAL_BYTES,
)
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.new_records import Bytes
from tokenvault.stores.port import SealedRecord

Words: TypeAlias = npt.NDArray[np.uint64]
Months: TypeAlias = npt.NDArray[np.uint16]

_HASH_BYTES: Final = 32
_HEADER_START: Final = NONCE_BYTES
_REFERENCES: Final = _HEADER_START + 12
_ACCOUNTS: Final = _REFERENCES + 16
_LENGTHS: Final = _ACCOUNTS + 16
_TEXTS: Final = _HEADER_START + HEADER.size
_KEY_VERSION_MAX: Final = 2**32 - 1


class CardColumns(NamedTuple):
    """Cards, a row each.

    Attributes:
        pans: their PANs; length 0 in a tombstone, and where there is none.
        months: dtype uint16, card expiry in months from January 2000, which is 1; 0: none.
    """

    pans: PanColumns
    months: Months

    @classmethod
    def empty(cls, rows: int) -> CardColumns:
        """Room for so many cards."""
        return cls(PanColumns(np.zeros(rows, np.uint64), np.zeros(rows, np.uint8)), np.zeros(rows, np.uint16))

    def __repr__(self) -> str:
        return f"<CardColumns of {len(self.months)}>"

    def card(self, row: int) -> Card:
        """The card of a row that has one."""
        month = int(self.months[row])
        return Card(
            Pan.trusted(self.pans.digits(row)), CardExpiry.from_month_number(month) if month else None
        )

    def take(self, rows: npt.NDArray[np.intp]) -> CardColumns:
        """Some of the rows."""
        return CardColumns(PanColumns(self.pans.values[rows], self.pans.lengths[rows]), self.months[rows])

    def put(self, rows: npt.NDArray[np.intp] | Sequence[int], cards: CardColumns) -> None:
        """Set some of the rows."""
        self.pans.values[rows], self.pans.lengths[rows] = cards.pans.values, cards.pans.lengths
        self.months[rows] = cards.months

    def put_card(self, row: int, card: Card) -> None:
        """Set one row."""
        self.pans.values[row], self.pans.lengths[row] = int(card.pan.reveal()), len(card.pan)
        self.months[row] = 0 if card.expiry is None else card.expiry.month_number


def seal_like(
    cipher: BlockCipher,
    key_version: int,
    tokens: Sequence[bytes],
    references: Bytes,
    pan_fingerprints: Bytes,
    requestor: str,
    program: str,
    revision: int,
    body: bytes,
    cards: CardColumns,
) -> Bytes:
    """The seals of records that differ in token, reference, pan_fingerprint and card, with fresh nonces.

    Args:
        cipher: the SEAL key.
        key_version: its version.
        tokens: ASCII digits, a record each.
        references: shape (rows, 16), dtype uint8.
        pan_fingerprints: likewise.
        requestor: of every record, as the next ones.
        program: its name.
        revision: 1 of new records.
        body: what the record encodes to.
        cards: shape (rows,) each.

    Returns:
        An array of shape (rows, 45) and dtype uint8.

    Raises:
        KeyStoreError: the key can not be reached now.
    """
    rows = len(tokens)
    seals: Bytes = np.empty((rows, SEAL_BYTES), np.uint8)
    seals[:, :NONCE_BYTES] = np.frombuffer(os.urandom(rows * NONCE_BYTES), np.uint8).reshape(
        rows, NONCE_BYTES
    )
    digests: Bytes = np.empty((rows, DIGEST_BYTES), np.uint8)
    lengths = np.fromiter(map(len, tokens), np.int64, rows)
    texts = f"{requestor}{program}".encode("ascii") + body
    for length in np.unique(lengths):
        chosen = np.flatnonzero(lengths == length)
        messages = _messages(len(chosen), int(length), len(requestor), len(program), len(body))
        common = revision.to_bytes(8) + key_version.to_bytes(4)
        place(seals[chosen, :NONCE_BYTES], messages, 0)
        place(_repeated(common, len(chosen)), messages, _HEADER_START)
        place(references[chosen], messages, _REFERENCES)
        place(pan_fingerprints[chosen], messages, _ACCOUNTS)
        place(_joined([tokens[row] for row in chosen.tolist()], int(length)), messages, _TEXTS)
        place(_repeated(texts, len(chosen)), messages, _TEXTS + int(length))
        digests[chosen] = _hashed(messages)
    plaintexts = _packed(cards, digests)
    seals[:, NONCE_BYTES:] = ccm_columns.encrypt_many(
        cipher, np.ascontiguousarray(seals[:, :NONCE_BYTES]), plaintexts, digests[:, :ASSOCIATED_BYTES].copy()
    )
    return seals


def unseal_many(
    cipher: BlockCipher, rows: Sequence[SealedRecord]
) -> tuple[CardColumns, npt.NDArray[np.bool_]]:
    """The cards of rows that a store read and the port checked, all under one key.

    Returns:
        The cards, and a mask: where it is False, the row is not what was sealed, and the card is none.

    Raises:
        KeyStoreError: the key can not be reached now.
    """
    count = len(rows)
    seals: Bytes = np.empty((count, SEAL_BYTES), np.uint8)
    digests: Bytes = np.empty((count, DIGEST_BYTES), np.uint8)
    possible: npt.NDArray[np.bool_] = np.empty(count, np.bool_)
    for chosen, part in _equally_long(rows):
        seals[chosen], digests[chosen] = part.seals, _digests(part)
        possible[chosen] = part.key_versions <= _KEY_VERSION_MAX
    nonces = np.ascontiguousarray(seals[:, :NONCE_BYTES])
    plaintexts, genuine = ccm_columns.decrypt_many(
        cipher,
        nonces,
        np.ascontiguousarray(seals[:, NONCE_BYTES:]),
        np.ascontiguousarray(digests[:, :ASSOCIATED_BYTES]),
    )
    # Every byte of every row is compared, whatever differs.
    unlike = np.bitwise_or.reduce(
        plaintexts[:, -(DIGEST_BYTES - ASSOCIATED_BYTES) :] ^ digests[:, ASSOCIATED_BYTES:], axis=1
    )
    genuine = genuine & (unlike == 0) & possible
    plaintexts *= genuine[:, None]
    return _unpacked(plaintexts), genuine


def _equally_long(rows: Sequence[SealedRecord]) -> list[tuple[npt.NDArray[np.intp] | slice, RecordColumns]]:
    """The rows by the lengths of their texts and bodies."""
    if isinstance(rows, RecordColumns):
        return [(slice(None), rows)]
    places: dict[tuple[int, ...], list[int]] = {}
    for at, row in enumerate(rows):
        lengths = len(row.token), len(row.requestor), len(row.program), len(row.body)
        places.setdefault(lengths, []).append(at)
    return [(np.array(found), RecordColumns.of([rows[at] for at in found])) for found in places.values()]


def _digests(rows: RecordColumns) -> Bytes:
    """The record digests, shape (rows, 20)."""
    columns = rows.tokens, rows.requestors, rows.programs, rows.bodies
    messages = _messages(len(rows), *[column.shape[1] for column in columns])
    place(rows.seals[:, :NONCE_BYTES], messages, 0)
    possible = rows.key_versions <= _KEY_VERSION_MAX
    numbers = np.empty(len(rows), np.dtype([("revision", ">u8"), ("key_version", ">u4")]))
    numbers["revision"], numbers["key_version"] = rows.revisions, np.where(possible, rows.key_versions, 0)
    place(numbers.view(np.uint8).reshape(-1, _REFERENCES - _HEADER_START), messages, _HEADER_START)
    place(rows.references, messages, _REFERENCES)
    place(rows.pan_fingerprints, messages, _ACCOUNTS)
    start = _TEXTS
    for column in columns:
        place(column, messages, start)
        start += column.shape[1]
    return _hashed(messages)


def _messages(rows: int, token: int, requestor: int, program: int, body: int) -> Bytes:
    """Room for the messages of record digests, with the lengths of their texts filled in."""
    messages: Bytes = np.empty((rows, _TEXTS + token + requestor + program + body), np.uint8)
    messages[:, _LENGTHS:_TEXTS] = (token, requestor, program)
    return messages


def _hashed(messages: Bytes) -> Bytes:
    width = messages.shape[1]
    sha256, each = hashlib.sha256, struct.iter_unpack(f"{width}s", messages.tobytes())
    hashes = b"".join([sha256(message).digest() for (message,) in each])
    return np.frombuffer(hashes, np.uint8).reshape(len(messages), _HASH_BYTES)[:, :DIGEST_BYTES]


def _repeated(value: bytes, rows: int) -> Bytes:
    return np.broadcast_to(np.frombuffer(value, np.uint8), (rows, len(value)))


def _joined(values: Sequence[bytes], width: int) -> Bytes:
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), width)


def _packed(cards: CardColumns, digests: Bytes) -> Bytes:
    lengths = cards.pans.lengths.astype(np.uint16)
    shapes = np.where(
        lengths, ((lengths - np.uint16(LENGTH_OFFSET)) << np.uint16(EXPIRY_BITS)) | cards.months, 0
    )
    plaintexts: Bytes = np.empty((len(digests), PLAINTEXT.size), np.uint8)
    plaintexts[:, :8] = cards.pans.values.astype(">u8").view(np.uint8).reshape(-1, 8)
    plaintexts[:, 8:10] = shapes.astype(">u2").view(np.uint8).reshape(-1, 2)
    plaintexts[:, 10:] = digests[:, ASSOCIATED_BYTES:]
    return plaintexts


def _unpacked(plaintexts: Bytes) -> CardColumns:
    values = np.ascontiguousarray(plaintexts[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
    shapes = np.ascontiguousarray(plaintexts[:, 8:10]).view(">u2").reshape(-1).astype(np.uint16)
    lengths = shapes >> np.uint16(EXPIRY_BITS)
    lengths[lengths > 0] += np.uint16(LENGTH_OFFSET)
    months = shapes & np.uint16((1 << EXPIRY_BITS) - 1)
    return CardColumns(PanColumns(values, lengths.astype(np.uint8)), months)
