"""Key derivation in counter mode with AES-CMAC as PRF (NIST SP 800-108r1 section 4.1).

Block i of the output, counted from 1, is the CMAC of

    i            4 bytes, big endian
    label        at least 1 byte, none of them zero
    0x00         1 byte
    context      any bytes
    length       of the whole output, in bits: 4 bytes, big endian

and the output is cut to its length. Key stores and OpenSSL (KBKDF) call this counter mode with a 32-bit
counter before the fixed data.
"""

from __future__ import annotations

from typing import Final

from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.crypto.cmac import TAG_BYTES, Cmac
from tokenvault.errors import InvalidInputError

DERIVED_BYTES_MAX: Final = 4096
LABEL_BYTES_MAX: Final = 1024
CONTEXT_BYTES_MAX: Final = 1024

_COUNTER_BYTES: Final = 4
_LENGTH_BYTES: Final = 4


def derive(cipher: BlockCipher, *, label: bytes, context: bytes, length: int) -> bytes:
    """Derive key material from a key that only a block cipher holds.

    The option of NIST SP 800-108r1 to make a block K(0) first and to append it to every CMAC input is not
    used. It answers the key control of section 6.7: whoever *knows* the key-derivation key and may choose
    the fixed input can solve for an input whose derived block is a value of their choice, as CMAC under a
    known key is no one-way function. Here nobody is in that place: the deriving key stays in its module,
    known to no party, is used for derivation alone, and labels and contexts are fixed by this library,
    not agreed with a counterpart. CMAC under an unknown key is a PRF, and nothing more is asked of it.
    The plain form is also the one that PKCS#11 modules (CKM_SP800_108_COUNTER_KDF) and OpenSSL compute,
    so that a derived key can be checked elsewhere.

    Args:
        cipher: the key-derivation key; to be used for nothing else.
        label: what the derived key is for: 1 to 1,024 bytes, no zero byte, as that is what ends a label.
        context: what the derived key is bound to: at most 1,024 bytes; may be empty.
        length: bytes to derive, 1 to 4,096. Another length gives an unrelated key, not a prefix.

    Returns:
        The derived key material, `length` bytes.

    Raises:
        InvalidInputError: an argument is of another type or length.
        KeyStoreError: the key can not be reached now.
    """
    if type(label) is not bytes or not 1 <= len(label) <= LABEL_BYTES_MAX or 0 in label:
        raise InvalidInputError(f"label must be 1 to {LABEL_BYTES_MAX} bytes, none of them zero")
    if type(context) is not bytes or len(context) > CONTEXT_BYTES_MAX:
        raise InvalidInputError(f"context must be bytes, at most {CONTEXT_BYTES_MAX}")
    if type(length) is not int or not 1 <= length <= DERIVED_BYTES_MAX:
        raise InvalidInputError(f"length must be a whole number of bytes from 1 to {DERIVED_BYTES_MAX}")
    prf = Cmac(cipher)
    fixed = label + b"\0" + context + (8 * length).to_bytes(_LENGTH_BYTES, "big")
    blocks_count = -(-length // TAG_BYTES)
    # no local holds key material while a call can still fail
    return b"".join(prf.tag(i.to_bytes(_COUNTER_BYTES, "big") + fixed) for i in range(1, blocks_count + 1))[
        :length
    ]
