"""AES-CMAC (NIST SP 800-38B, RFC 4493) of columns of messages that all have one length.

Messages of m blocks cost m calls of `encrypt_blocks` a chunk of rows, and one for the subkeys. The tags are those
of `tokenvault.crypto.cmac.Cmac.tag`, byte for byte.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Bytes, byte_columns, place
from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.block_columns import WORDS_PER_BLOCK, ColumnCipher
from tokenvault.crypto.blocks import block_encrypter
from tokenvault.crypto.cmac import MESSAGE_BYTES_MAX, TAG_BYTES, subkeys
from tokenvault.errors import InvalidInputError, boundary

_PADDING: Final = 0x80


@boundary
def tag_many(cipher: BlockCipher, messages: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The 16-byte tag of each message (NIST SP 800-38B section 6.2).

    Args:
        cipher: the key.
        messages: shape (rows, bytes), dtype uint8, at most 2**20 bytes each; may be empty. Not changed.

    Returns:
        An array of shape (rows, 16) and dtype uint8.

    Raises:
        InvalidInputError: an argument is of another type, dtype or shape, or outside these limits.
        KeyStoreError: the key can not be reached now.
    """
    column = byte_columns("messages", messages)
    rows, width = column.shape
    if width > MESSAGE_BYTES_MAX:
        raise InvalidInputError(f"a message must be at most {MESSAGE_BYTES_MAX} bytes")
    columns = ColumnCipher(cipher, blocks_per_row=1, rows=rows)
    tags: npt.NDArray[np.uint8] = np.empty((rows, TAG_BYTES), np.uint8)
    if not rows:
        return tags
    whole, part = subkeys(block_encrypter(cipher))
    last_start = max(width - 1, 0) // BLOCK_BYTES * BLOCK_BYTES
    last_bytes = width - last_start
    subkey = np.frombuffer(whole if last_bytes == BLOCK_BYTES else part, np.uint64)
    for first in range(0, rows, columns.chunk_rows):
        chunk = column[first : first + columns.chunk_rows]
        last: Bytes = np.zeros((len(chunk), BLOCK_BYTES), np.uint8)
        if last_bytes < BLOCK_BYTES:
            last[:, last_bytes] = _PADDING
        place(chunk[:, last_start:], last, 0)
        last.view(np.uint64)[:] ^= subkey
        state = columns.chain(np.zeros((1, WORDS_PER_BLOCK), np.uint64), chunk[:, :last_start])
        tags[first : first + len(chunk)] = columns.chain(state, last).view(np.uint8)
    return tags
