"""The block cipher port: AES-256 in ECB over 16-byte blocks, the one operation that everything is built on."""

from __future__ import annotations

from typing import Final, Protocol

BLOCK_BYTES: Final = 16


class BlockCipher(Protocol):
    """One AES key, used from any number of threads."""

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        """Encrypt each 16-byte block for itself (ECB).

        Args:
            blocks: any whole number of 16-byte blocks, none included.

        Returns:
            As many bytes as given.

        Raises:
            InvalidInputError: the length is not a multiple of 16 bytes.
            KeyStoreError: the key can not be reached now; a later call may succeed.
        """
        ...
