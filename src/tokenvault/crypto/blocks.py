"""What the modes of operation share: reaching a cipher, XOR and chaining of blocks."""

from __future__ import annotations

from collections.abc import Callable

from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import InvalidInputError, KeyStoreError


def block_encrypter(cipher: BlockCipher) -> Callable[[bytes], bytes]:
    """The quickest safe `encrypt_blocks` of a cipher, for one call of the calling thread.

    An answer of another type or length than asked for is refused: in a stream mode it would let plaintext
    through.

    Args:
        cipher: any block cipher; callers of what is returned give it whole blocks of 16 bytes only.

    Raises:
        InvalidInputError: the argument has no `encrypt_blocks`.
        KeyStoreError: from the function returned, when the cipher can not be reached or answers wrongly.
    """
    if isinstance(cipher, LocalBlockCipher):
        return cipher.thread_context().update
    encrypt_blocks = getattr(cipher, "encrypt_blocks", None)
    if not callable(encrypt_blocks):
        raise InvalidInputError("cipher must be a BlockCipher: an object with encrypt_blocks(blocks)")

    def encrypt_checked(blocks: bytes) -> bytes:
        answer = encrypt_blocks(blocks)
        if type(answer) is not bytes or len(answer) != len(blocks):
            raise KeyStoreError("the key store's answer is not the blocks asked for: check the key's module")
        return answer

    return encrypt_checked


def xor(left: bytes, right: bytes) -> bytes:
    """The bitwise sum of two byte strings of one length."""
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")


def chain(encrypt: Callable[[bytes], bytes], state: bytes, blocks: bytes) -> bytes:
    """Carry a CBC-MAC state over whole blocks, one call of `encrypt` each; no blocks leave it as it is."""
    for start in range(0, len(blocks), BLOCK_BYTES):
        state = encrypt(xor(state, blocks[start : start + BLOCK_BYTES]))
    return state
