"""AES-CCM, authenticated encryption (NIST SP 800-38C, RFC 3610), over any `BlockCipher`.

One set of parameters: a 13-byte nonce, a 16-byte tag, hence 2 bytes for the length of the payload. What is
encrypted block by block:

    B0    flags 0x79, or 0x39 without associated data | nonce (13) | payload length (2, big endian)
    A     associated data length (2, big endian) | associated data | zeros to a whole block; absent if empty
    P     payload | zeros to a whole block
    Ctr i flags 0x01 | nonce (13) | i (2, big endian); i = 0 masks the tag, 1 and up the payload

B0 and every counter block go out as one call; each block of A and P then costs a call, because each needs
the one before. So 14 bytes of associated data and a payload of 16 bytes cost three calls in either direction.
Keys in this process run on OpenSSL's CCM instead; both give the same bytes.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag

from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.blocks import block_encrypter, chain, xor
from tokenvault.crypto.local_cipher import CCM_TAG_BYTES, LocalBlockCipher
from tokenvault.errors import IntegrityError, InvalidInputError, boundary

NONCE_BYTES: Final = 13
TAG_BYTES: Final = CCM_TAG_BYTES
PLAINTEXT_BYTES_MAX: Final = 2**16 - 1
ASSOCIATED_BYTES_MAX: Final = 2**16 - 2**8 - 1  # longer ones have another length encoding

LENGTH_BYTES: Final = 2  # q = 15 - nonce bytes
FLAGS_COUNTER: Final = LENGTH_BYTES - 1  # NIST SP 800-38C appendix A.3
FLAGS_B0: Final = (TAG_BYTES - 2) // 2 * 8 + LENGTH_BYTES - 1  # appendix A.2.1
FLAG_ASSOCIATED: Final = 0x40
_REFUSED: Final = "the sealed data was changed, moved, or sealed under another key"


@boundary
def encrypt(cipher: BlockCipher, nonce: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    """Encrypt and authenticate (NIST SP 800-38C section 6.1).

    Args:
        cipher: the key.
        nonce: 13 bytes, never used before under this key.
        plaintext: at most 65,535 bytes; may be empty.
        associated_data: authenticated, not encrypted: at most 65,279 bytes; may be empty.

    Returns:
        The ciphertext, as long as the plaintext, and the 16-byte tag.

    Raises:
        InvalidInputError: an argument is of another type or length.
        KeyStoreError: the key can not be reached now.
    """
    _check(nonce, plaintext, associated_data)
    if len(nonce) != NONCE_BYTES:
        raise InvalidInputError(f"nonce must be {NONCE_BYTES} bytes")
    if len(plaintext) > PLAINTEXT_BYTES_MAX:
        raise InvalidInputError(f"plaintext must be at most {PLAINTEXT_BYTES_MAX} bytes")
    if isinstance(cipher, LocalBlockCipher):
        return cipher.aes_ccm.encrypt(nonce, plaintext, associated_data)
    keystream, tag = _first_call(cipher, nonce, len(plaintext), associated_data)
    return xor(plaintext, keystream) + tag(plaintext)


@boundary
def decrypt(cipher: BlockCipher, nonce: bytes, ciphertext: bytes, associated_data: bytes) -> bytes:
    """Verify and decrypt (NIST SP 800-38C section 6.2).

    Args:
        cipher: the key.
        nonce: the nonce that it was encrypted with.
        ciphertext: what `encrypt` returned, its last 16 bytes being the tag.
        associated_data: as given to `encrypt`.

    Raises:
        IntegrityError: nonce, ciphertext, tag and associated data do not belong together under this key; a
            nonce or ciphertext of a length that `encrypt` never makes counts as changed.
        InvalidInputError: an argument is of another type, or the associated data too long.
        KeyStoreError: the key can not be reached now.
    """
    _check(nonce, ciphertext, associated_data)
    if len(nonce) != NONCE_BYTES or not TAG_BYTES <= len(ciphertext) <= PLAINTEXT_BYTES_MAX + TAG_BYTES:
        raise IntegrityError(_REFUSED)
    if isinstance(cipher, LocalBlockCipher):
        try:
            return cipher.aes_ccm.decrypt(nonce, ciphertext, associated_data)
        except InvalidTag:
            raise IntegrityError(_REFUSED) from None
    payload_bytes = len(ciphertext) - TAG_BYTES
    keystream, tag = _first_call(cipher, nonce, payload_bytes, associated_data)
    plaintext = xor(ciphertext[:payload_bytes], keystream)
    if not hmac.compare_digest(tag(plaintext), ciphertext[payload_bytes:]):
        raise IntegrityError(_REFUSED)
    return plaintext


def _first_call(
    cipher: BlockCipher, nonce: bytes, payload_bytes: int, associated_data: bytes
) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The first call for a message in either direction: the payload's keystream, and what gives a plaintext's tag."""
    flags = FLAGS_B0
    associated = b""
    if associated_data:
        flags |= FLAG_ASSOCIATED
        associated = _padded(len(associated_data).to_bytes(2, "big") + associated_data)
    counters_count = 1 + -(-payload_bytes // BLOCK_BYTES)
    counter_start = bytes([FLAGS_COUNTER]) + nonce
    encrypt_blocks = block_encrypter(cipher)
    first = encrypt_blocks(
        bytes([flags])
        + nonce
        + payload_bytes.to_bytes(LENGTH_BYTES, "big")
        + b"".join(counter_start + i.to_bytes(LENGTH_BYTES, "big") for i in range(counters_count))
    )

    def tag(plaintext: bytes) -> bytes:
        mac = chain(encrypt_blocks, first[:BLOCK_BYTES], associated + _padded(plaintext))
        return xor(mac, first[BLOCK_BYTES : 2 * BLOCK_BYTES])

    return first[2 * BLOCK_BYTES : 2 * BLOCK_BYTES + payload_bytes], tag


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK_BYTES)


def _check(nonce: bytes, text: bytes, associated_data: bytes) -> None:
    if not type(nonce) is type(text) is type(associated_data) is bytes:
        raise InvalidInputError("nonce, plaintext or ciphertext, and associated_data must be bytes")
    if len(associated_data) > ASSOCIATED_BYTES_MAX:
        raise InvalidInputError(f"associated_data must be at most {ASSOCIATED_BYTES_MAX} bytes")
