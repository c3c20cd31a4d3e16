"""AES-CMAC, a 16-byte authenticator of a message (NIST SP 800-38B, RFC 4493), over any `BlockCipher`.

`Cmac` is built once per key and kept: the subkey costs one block encryption, and a message of up to 16 bytes
costs exactly one more. A message of m blocks is m calls of one block each, because each needs the one before.
Keys in this process run on OpenSSL's CMAC instead; both give the same bytes.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final, NoReturn, SupportsIndex, final

from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.blocks import block_encrypter, chain, xor
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import IntegrityError, InvalidInputError, boundary

TAG_BYTES: Final = 16
MESSAGE_BYTES_MAX: Final = 2**20  # 65,536 calls; the standard's own bound lies far above

_BLOCK_BITS: Final = 8 * BLOCK_BYTES
_POLYNOMIAL: Final = 0x87  # R_128: x^128 + x^7 + x^2 + x + 1 (NIST SP 800-38B section 5.3)


@final
class Cmac:
    """AES-CMAC under one key. Immutable, safe to share between threads and across a fork.

    Args:
        cipher: the key. Unless it is in this process, one block is encrypted now, for the subkeys.

    Raises:
        InvalidInputError: the argument is not a block cipher.
        KeyStoreError: the key can not be reached now.
    """

    __slots__ = ("_cipher", "_subkey_part", "_subkey_whole")

    def __init__(self, cipher: BlockCipher) -> None:
        self._cipher = cipher
        self._subkey_whole = self._subkey_part = b""
        if not isinstance(cipher, LocalBlockCipher):
            self._subkey_whole, self._subkey_part = subkeys(block_encrypter(cipher))

    @boundary  # the frames of an error show the message, which may be a card number
    def tag(self, message: bytes) -> bytes:
        """The message's 16-byte tag (NIST SP 800-38B section 6.2).

        Args:
            message: at most 2**20 bytes; may be empty.

        Raises:
            InvalidInputError: the message is not bytes, or too long.
            KeyStoreError: the key can not be reached now.
        """
        if type(message) is not bytes or len(message) > MESSAGE_BYTES_MAX:
            raise InvalidInputError(f"message must be bytes, at most {MESSAGE_BYTES_MAX}")
        if isinstance(self._cipher, LocalBlockCipher):
            native = self._cipher.new_cmac()
            native.update(message)
            return native.finalize()
        last_start = max(len(message) - 1, 0) // BLOCK_BYTES * BLOCK_BYTES
        last = message[last_start:]
        if len(last) == BLOCK_BYTES:
            last = xor(last, self._subkey_whole)
        else:
            last = xor((last + b"\x80").ljust(BLOCK_BYTES, b"\0"), self._subkey_part)
        return chain(block_encrypter(self._cipher), bytes(BLOCK_BYTES), message[:last_start] + last)

    @boundary  # the frames of an error show the message, which may be a card number
    def verify(self, message: bytes, tag: bytes) -> None:
        """Return if the tag is the message's, in a time that does not depend on where they differ.

        A shortened tag is refused like a wrong one.

        Raises:
            IntegrityError: message and tag do not belong together under this key.
            InvalidInputError: an argument is not bytes, or the message is too long.
            KeyStoreError: the key can not be reached now.
        """
        if type(tag) is not bytes:
            raise InvalidInputError("tag must be bytes")
        if not hmac.compare_digest(self.tag(message), tag):
            raise IntegrityError("the authentication tag does not match the message")

    def tags(self, messages: bytes) -> bytes:
        """The tags of many messages of 16 bytes each, one after the other: one call, however many there are.

        Raises:
            InvalidInputError: not bytes, or no whole number of 16-byte blocks.
            KeyStoreError: the key can not be reached now.
        """
        if type(messages) is not bytes or len(messages) % BLOCK_BYTES:
            raise InvalidInputError("messages must be bytes, a whole number of 16-byte blocks")
        encrypt = block_encrypter(self._cipher)
        subkey = self._subkey_whole or _doubled(encrypt(bytes(BLOCK_BYTES)))
        return encrypt(xor(messages, subkey * (len(messages) // BLOCK_BYTES)))

    def __repr__(self) -> str:
        return "<Cmac>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise InvalidInputError("a Cmac holds keys and can be neither pickled nor copied")


def subkeys(encrypt: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
    """K1, for a last block that is whole, and K2, for one that is not (NIST SP 800-38B section 6.1)."""
    whole = _doubled(encrypt(bytes(BLOCK_BYTES)))
    return whole, _doubled(whole)


def _doubled(block: bytes) -> bytes:
    """The block times x in GF(2^128) (NIST SP 800-38B section 6.1)."""
    shifted = int.from_bytes(block, "big") << 1
    carry = shifted >> _BLOCK_BITS
    # by arithmetic, as the choice depends on a secret bit
    return ((shifted ^ carry * _POLYNOMIAL) & ((1 << _BLOCK_BITS) - 1)).to_bytes(BLOCK_BYTES, "big")
