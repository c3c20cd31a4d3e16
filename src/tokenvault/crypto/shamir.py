"""A secret in three shares, any two of which rebuild it: Shamir's scheme over GF(2^8), byte by byte.

A. Shamir, How to share a secret (Communications of the ACM 22, 1979), with threshold 2: each byte of the secret is
the value at 0 of a line of random slope, and share x holds the values at x. The field is that of AES (FIPS 197,
section 4.1). One share alone is a uniformly random text, whatever the secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SHARES: Final = 3
THRESHOLD: Final = 2

_POLYNOMIAL: Final = 0x11B  # x^8 + x^4 + x^3 + x + 1
_INVERSES_OF_DIFFERENCES: Final = {1: 1, 2: 0x8D, 3: 0xF6}
"""In that field, of the differences of any two of the places 1, 2 and 3."""


def split(secret: bytes, slopes: bytes) -> dict[int, bytes]:
    """Shares of a secret by their places 1, 2 and 3, each as long as the secret.

    The slopes are random, as long as the secret, and used once: who knows them knows the secret by one share.
    """
    return {
        place: bytes(value ^ _times(slope, place) for value, slope in zip(secret, slopes, strict=True))
        for place in range(1, SHARES + 1)
    }


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of two shares by their places. Raises ValueError unless there are two, of one length.

    Nothing here tells whether they are shares of one secret: two others rebuild another text.
    """
    (first, one), (second, other) = sorted(shares.items())
    inverse = _INVERSES_OF_DIFFERENCES[first ^ second]
    # The value at 0 of the line through both: (one * second + other * first) / (second - first).
    return bytes(
        _times(_times(a, second) ^ _times(b, first), inverse) for a, b in zip(one, other, strict=True)
    )


def _times(a: int, b: int) -> int:
    """The product in GF(2^8), by the same steps whatever `a` is."""
    product = 0
    for bit in range(8):
        product ^= a * ((b >> bit) & 1)
        a = (a << 1) ^ (_POLYNOMIAL * (a >> 7))
    return product
