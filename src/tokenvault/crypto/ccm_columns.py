"""AES-CCM (NIST SP 800-38C, RFC 3610) of columns: messages of one length with associated data of one length.

The parameters and the layout of the blocks are those of `ccm`, and so are the results, byte for byte.
For every chunk of rows, all B0 and counter blocks go out as one call of `encrypt_blocks`; each block of associated
data (with its 2 bytes of length) and of the payload then costs one call. So a seal of 16 bytes costs 3 calls with
14 bytes of associated data, and 7 with 64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Bytes, Words, byte_columns, place
from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.block_columns import WORDS_PER_BLOCK, ColumnCipher
from tokenvault.crypto.ccm import (
    ASSOCIATED_BYTES_MAX,
    FLAG_ASSOCIATED,
    FLAGS_B0,
    FLAGS_COUNTER,
    LENGTH_BYTES,
    NONCE_BYTES,
    PLAINTEXT_BYTES_MAX,
    TAG_BYTES,
)
from tokenvault.errors import InvalidInputError, boundary

_NONCE_START: Final = 1
_LENGTH_START: Final = _NONCE_START + NONCE_BYTES


@boundary
def encrypt_many(
    cipher: BlockCipher,
    nonces: npt.NDArray[np.uint8],
    plaintexts: npt.NDArray[np.uint8],
    associated_data: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    """Encrypt and authenticate each row (NIST SP 800-38C section 6.1).

    Args:
        cipher: the key.
        nonces: shape (rows, 13), dtype uint8; none used before under this key.
        plaintexts: shape (rows, p), dtype uint8, p at most 65,535; may be 0.
        associated_data: authenticated, not encrypted: shape (rows, a), dtype uint8, a at most 65,279; may be 0.

    Returns:
        An array of shape (rows, p + 16) and dtype uint8: the ciphertext and the tag of each row.

    Raises:
        InvalidInputError: an argument is of another type, dtype or shape, or outside these limits.
        KeyStoreError: the key can not be reached now.
    """
    nonces, plaintexts, associated_data = _checked(nonces, "plaintexts", plaintexts, associated_data)
    rows, width = plaintexts.shape
    run = _Run(cipher, rows, width, associated_data.shape[1])
    sealed: Bytes = np.empty((rows, width + TAG_BYTES), np.uint8)
    for chunk in run.chunks:
        keystream, tags = run.first_call(nonces[chunk])
        np.bitwise_xor(plaintexts[chunk], keystream, out=sealed[chunk, :width])
        tags ^= run.mac(associated_data[chunk], plaintexts[chunk])
        place(tags.view(np.uint8), sealed[chunk], width)
    return sealed


@boundary
def decrypt_many(
    cipher: BlockCipher,
    nonces: npt.NDArray[np.uint8],
    ciphertexts: npt.NDArray[np.uint8],
    associated_data: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Verify and decrypt each row (NIST SP 800-38C section 6.2).

    Args:
        cipher: the key.
        nonces: as given to `encrypt_many`.
        ciphertexts: what it returned.
        associated_data: as given to it.

    Returns:
        The plaintexts, shape (rows, p) and dtype uint8, and a mask of shape (rows,) and dtype bool: where it is
        False, nonce, ciphertext, tag and associated data do not belong together under this key, and the plaintext
        is all zeros. Which rows fail, and where they differ, does not change the time that it takes.

    Raises:
        InvalidInputError: an argument is of another type, dtype or shape, or outside the limits of `encrypt_many`.
        KeyStoreError: the key can not be reached now.
    """
    nonces, ciphertexts, associated_data = _checked(nonces, "ciphertexts", ciphertexts, associated_data)
    rows, width = ciphertexts.shape
    width -= TAG_BYTES
    if width < 0:
        raise InvalidInputError(f"a ciphertext must be at least {TAG_BYTES} bytes")
    run = _Run(cipher, rows, width, associated_data.shape[1])
    plaintexts: Bytes = np.empty((rows, width), np.uint8)
    genuine: npt.NDArray[np.bool_] = np.empty(rows, np.bool_)
    for chunk in run.chunks:
        keystream, tags = run.first_call(nonces[chunk])
        np.bitwise_xor(ciphertexts[chunk, :width], keystream, out=plaintexts[chunk])
        tags ^= run.mac(associated_data[chunk], plaintexts[chunk])
        given: Words = np.empty_like(tags)
        place(ciphertexts[chunk, width:], given.view(np.uint8), 0)
        given ^= tags
        np.equal(given[:, 0] | given[:, 1], 0, out=genuine[chunk])
        plaintexts[chunk] *= genuine[chunk, np.newaxis]
    return plaintexts, genuine


class _Run:
    """The calls that encrypt or decrypt a column, chunk by chunk.

    Attributes:
        chunks: slices of rows, to be worked on one after the other.
    """

    def __init__(self, cipher: BlockCipher, rows: int, payload_bytes: int, associated_bytes: int) -> None:
        blocks_per_row = 2 + -(-payload_bytes // BLOCK_BYTES)
        self._columns = ColumnCipher(cipher, blocks_per_row=blocks_per_row, rows=rows)
        chunk_rows = self._columns.chunk_rows
        self.chunks = [slice(start, start + chunk_rows) for start in range(0, rows, chunk_rows)]
        self._payload_bytes = payload_bytes
        self._associated_bytes = associated_bytes
        first, self._state, self._tags = self._columns.buffers(
            WORDS_PER_BLOCK * blocks_per_row, WORDS_PER_BLOCK, WORDS_PER_BLOCK
        )
        self._first = first.reshape(chunk_rows, blocks_per_row, WORDS_PER_BLOCK)
        template = self._first.view(np.uint8)
        template[:, 0, 0] = FLAGS_B0 | (FLAG_ASSOCIATED if associated_bytes else 0)
        template[:, 0, _LENGTH_START:] = np.array([payload_bytes], ">u2").view(np.uint8)
        template[:, 1:, 0] = FLAGS_COUNTER
        template[:, 1:, _LENGTH_START:] = np.arange(blocks_per_row - 1, dtype=">u2")[:, np.newaxis].view(
            np.uint8
        )

    def first_call(self, nonces: Bytes) -> tuple[Bytes, Words]:
        """Encrypt B0 and counters: the payload's keystream, and what masks the tags, to be overwritten."""
        first = self._first[: len(nonces)]
        for i in range(first.shape[1]):
            place(nonces, first[:, i].view(np.uint8), _NONCE_START)
        answer = self._columns.encrypt(first)
        self._state[: len(nonces)] = answer[:, 0]  # the next call takes the answer's place
        tags = self._tags[: len(nonces)]
        tags[:] = answer[:, 1]
        keystream = answer[:, 2:].reshape(len(nonces), -1).view(np.uint8)[:, : self._payload_bytes]
        return keystream, tags

    def mac(self, associated_data: Bytes, payloads: Bytes) -> Words:
        """CBC-MAC over B0, the associated data and the payloads. Overwrites the keystream."""
        state = self._state[: len(payloads)]
        if self._associated_bytes:
            first: Bytes = np.zeros((len(payloads), BLOCK_BYTES), np.uint8)
            first[:, :LENGTH_BYTES] = np.array([self._associated_bytes], ">u2").view(np.uint8)
            place(associated_data[:, : BLOCK_BYTES - LENGTH_BYTES], first, LENGTH_BYTES)
            state = self._columns.chain(state, first)
            state = self._columns.chain(state, associated_data[:, BLOCK_BYTES - LENGTH_BYTES :])
        return self._columns.chain(state, payloads)


def _checked(
    nonces: object, name: str, payloads: object, associated_data: object
) -> tuple[Bytes, Bytes, Bytes]:
    checked = (
        byte_columns("nonces", nonces, width=NONCE_BYTES),
        byte_columns(name, payloads),
        byte_columns("associated_data", associated_data),
    )
    if len({len(column) for column in checked}) > 1:
        raise InvalidInputError(f"nonces, {name} and associated_data must have equally many rows")
    tag_bytes = TAG_BYTES if name == "ciphertexts" else 0
    if checked[1].shape[1] > PLAINTEXT_BYTES_MAX + tag_bytes:
        raise InvalidInputError(f"a plaintext must be at most {PLAINTEXT_BYTES_MAX} bytes")
    if checked[2].shape[1] > ASSOCIATED_BYTES_MAX:
        raise InvalidInputError(f"associated_data must be at most {ASSOCIATED_BYTES_MAX} bytes a row")
    return checked
