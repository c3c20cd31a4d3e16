"""Columns of AES blocks: what the modes of operation over numpy arrays share.

A column is worked through in chunks of rows, and each step of a mode encrypts one block of every row of the chunk
in one call. With keys in this process a chunk is small, so that all it touches stays in the second-level cache,
and OpenSSL writes into memory that is already there. With keys in a module a call is expensive and a chunk is
large; a mode may compute on it part by part.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tokenvault.columns.arrays import Bytes, Words, place
from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.blocks import block_encrypter
from tokenvault.crypto.local_cipher import LocalBlockCipher

CHUNK_BLOCKS_LOCAL: Final = 2**13
"""Blocks in one call with a key in this process: 128 KiB, which fit the cache together with the answer."""

CHUNK_BLOCKS_MODULE: Final = 2**17
"""Blocks in one call with a key in a module: 2 MiB (docs/decisions/10-batches.md)."""

CHUNK_BLOCKS_MODULE_IN_PARTS: Final = 2**20
"""Likewise, where a mode computes on a chunk part by part: 16 MiB."""

WORDS_PER_BLOCK: Final = 2

_SLACK_BYTES: Final = BLOCK_BYTES - 1  # that cryptography needs after the output


class ColumnCipher:
    """Encrypts columns of blocks under one key, during one call of the calling thread.

    Args:
        cipher: any block cipher.
        blocks_per_row: how many blocks of a row go out in the largest call.
        rows: how many rows there are in all.
        in_parts: whether the mode computes on a chunk part by part.

    Attributes:
        chunk_rows: rows to encrypt blocks of at a time, at least 1.
        part_rows: rows to compute on at a time, so that what they touch stays in the cache.

    Raises:
        InvalidInputError: the argument is not a block cipher.
    """

    __slots__ = ("_answer", "_context", "_encrypt", "chunk_rows", "part_rows")

    def __init__(
        self, cipher: BlockCipher, *, blocks_per_row: int, rows: int, in_parts: bool = False
    ) -> None:
        self._encrypt = block_encrypter(cipher)
        self._context = cipher.thread_context() if isinstance(cipher, LocalBlockCipher) else None
        module_blocks = CHUNK_BLOCKS_MODULE_IN_PARTS if in_parts else CHUNK_BLOCKS_MODULE
        chunk_blocks = CHUNK_BLOCKS_LOCAL if self._context else module_blocks
        self.chunk_rows = max(1, min(rows, chunk_blocks // blocks_per_row))
        self.part_rows = min(self.chunk_rows, max(1, CHUNK_BLOCKS_LOCAL // blocks_per_row))
        answer_bytes = self.chunk_rows * blocks_per_row * BLOCK_BYTES + _SLACK_BYTES if self._context else 0
        self._answer: Bytes = np.empty(answer_bytes, np.uint8)

    def buffers(self, *words_per_row: int) -> list[Words]:
        """Arrays of `chunk_rows` rows to compute in, of so many words a row, side by side in one allocation.

        glibc hands a large block that is freed back to the kernel, and its next use costs a fault a page, unless
        a larger one was freed before. A module's call takes and frees several blocks of the size of its answer, so
        that what is allocated here, for a whole call, should not be smaller than they are.
        """
        ends = np.cumsum(words_per_row) * self.chunk_rows
        parts = np.split(np.empty(ends[-1], np.uint64), ends[:-1])
        return [part.reshape(self.chunk_rows, -1) for part in parts]

    def encrypt(self, blocks: Words) -> Words:
        """Encrypt each 16-byte block for itself (ECB) in one call.

        Args:
            blocks: C-contiguous array of whole blocks, 2 words each, at most `chunk_rows * blocks_per_row` blocks.

        Returns:
            An array of the same shape, to be read only, and only until the next call.

        Raises:
            KeyStoreError: the key can not be reached, or answers wrongly.
        """
        if self._context is None:
            return np.frombuffer(self._encrypt(blocks.tobytes()), np.uint64).reshape(blocks.shape)
        size = self._context.update_into(blocks.reshape(-1).view(np.uint8).data, self._answer.data)
        return self._answer[:size].view(np.uint64).reshape(blocks.shape)

    def chain(self, state: Words, data: Bytes) -> Words:
        """Carry a CBC-MAC state over the bytes of every row, a block a call; behind the last of them stand zeros."""
        block: Words = np.empty((len(data), WORDS_PER_BLOCK), np.uint64)
        for start in range(0, data.shape[1], BLOCK_BYTES):
            part = data[:, start : start + BLOCK_BYTES]
            if part.shape[1] < BLOCK_BYTES:
                block[:] = 0
            place(part, block.view(np.uint8), 0)
            np.bitwise_xor(state, block, out=block)
            state = self.encrypt(block)
        return state
