"""The bytes of a token record, as docs/formats.md has them, big endian: its body, its digest and its seal.

Body, encoding version 2:

    1   encoding version, 2
    1   which of the optional parts follow: the sum of their bits
    1   status: 1 inactive, 2 active, 3 suspended, 4 deleted, 5 winding down
    1   suspended by: 1 issuer, 2 requestor, 4 cardholder, 8 vault, 16 grantor, added up; not 0 while suspended
    2   token expiry: months from January 2000, which is 1; 0: the card's own
    32  SHA-256 of the domain document
    8   created, milliseconds of the Unix epoch
    8   updated, likewise
    1   number of counters, at most 64
    2   length of the sealed metadata
    ..  the optional parts that there are, in this order; none is written whose fields are all unset:
        bit 1   2 assurance method, ASCII; 8 when it was established, milliseconds of the Unix epoch, 0: not stated
        bit 2   29 payment account reference, ASCII
        bit 4   8 highest cryptogram counter plus 1, 0: none seen; 8 last strong authentication that started a
                counter again, milliseconds of the Unix epoch plus 1, 0: none; 8 last counted use, likewise; 8 the one
                before it, likewise
        bit 8   8 when a token that winds down may be purged, milliseconds of the Unix epoch
        bit 16  16 reference of the event of the batch that issued it
        bit 32  16 reference of the token that it was issued from
        bit 64  16 keyed digest of the request by which it was issued, where that had an idempotency key
    ..  counters, sorted by key, each: 16 key of the velocity counter, 8 window number, 8 value, 8 number of the
        window used before that plus 1 (0: none), 8 value in it, 8 end of the window, milliseconds of the Unix epoch
        (2**63 - 1: never)
    ..  sealed metadata: 4 version of the SEAL key, 13 nonce, the ciphertext and 16 tag, of AES-256-CCM over the
        pairs as canonical JSON, with the reference as associated data

Record digest: the first 20 bytes of SHA-256 over

    13  nonce
    8   revision
    4   key version
    16  reference
    16  PAN fingerprint
    16  last-four index key; zeros where there is none
    1   length of the token
    1   length of the requestor
    1   length of the program
    1   length of the customer
    ..  token, requestor, program, customer, body

The header states the length of each text, so no two records have the same input.

Seal:

    13  nonce, random
    16  ciphertext
    16  tag

The seal is AES-256-CCM (NIST SP 800-38C); its associated data is the first 14 bytes of the record digest, and its
plaintext is

    8   PAN as a number; 0 in a tombstone
    2   high 4 bits: number of digits of the PAN, less 11, or 0 in a tombstone
        low 12 bits: card expiry in months from January 2000, which is 1, or 0 where there is none
    6   last 6 bytes of the record digest

So the whole record is bound by 160 bits, and CCM needs only three AES calls one after the other: one for B0 with the
counter blocks, one for the associated data (14 bytes and their length fill one block), one for the plaintext.

What ends in COLUMN is the layout before it, of many records at once.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

ENCODING_VERSION: Final = 2

BODY: Final = struct.Struct(">BBBBH32sQQBH")
BODY_TIMES: Final = slice(38, 54)
"""Where a body states when the record was created and updated."""
NEW_BODY_BYTES_MAX: Final = 8_704
"""The longest body of a record without counters, which is one that was not used yet: most of it is metadata."""
BODY_STATUS: Final = 2
BODY_CREATED: Final = slice(38, 46)
BODY_METADATA_BYTES: Final = slice(55, 57)

ASSURANCE: Final = struct.Struct(">2sQ")
PAR: Final = struct.Struct(">29s")
USED: Final = struct.Struct(">QQQQ")
PURGE: Final = struct.Struct(">Q")
BATCH: Final = struct.Struct(">16s")
SOURCE: Final = struct.Struct(">16s")
REQUEST: Final = struct.Struct(">16s")

COUNTER: Final = struct.Struct(">16sQQQQQ")

METADATA_HEADER: Final = struct.Struct(">I13s")

NONCE_BYTES: Final = 13
DIGEST_BYTES: Final = 20
ASSOCIATED_BYTES: Final = 14

DIGEST_HEADER: Final = struct.Struct(">13sQI16s16s16sBBBB")
DIGEST_HEADER_COLUMN: Final = np.dtype(
    [
        ("nonce", "u1", 13),
        ("revision", ">u8"),
        ("key_version", ">u4"),
        ("reference", "u1", 16),
        ("pan_fingerprint", "u1", 16),
        ("last4_key", "u1", 16),
        ("lengths", "u1", 4),
    ]
)

PLAINTEXT: Final = struct.Struct(">QH6s")
PLAINTEXT_COLUMN: Final = np.dtype([("pan", ">u8"), ("shape", ">u2"), ("digest_end", "u1", 6)])
LENGTH_OFFSET: Final = 11
EXPIRY_BITS: Final = 12
EXPIRY_MASK: Final = (1 << EXPIRY_BITS) - 1


def is_listed_as_it_is(body: bytes, status: int, created_ms: int) -> bool:
    """Whether status and time of issue, by which a store lists a record, are those of its body."""
    return body[BODY_STATUS : BODY_STATUS + 1] == bytes((status,)) and body[
        BODY_CREATED
    ] == created_ms.to_bytes(8)
