"""What follows from an FF1 string's radix and length alone (NIST SP 800-38G, algorithm 7), and FF1's limits."""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

from tokenvault.errors import InvalidInputError

RADIX_MIN: Final = 2
RADIX_MAX: Final = 2**16
NUMERALS_MIN: Final = 2
NUMERALS_MAX: Final = 4096
DOMAIN_MIN: Final = 10**6
TWEAK_BYTES_MAX: Final = 2**16
ROUNDS: Final = 10


class Parameters(NamedTuple):
    """What follows from radix and length; the names of the standard in brackets."""

    left_length: int  # u
    right_length: int  # v
    left_modulus: int  # radix**u
    right_modulus: int  # radix**v
    half_bytes: int  # b
    sum_bytes: int  # d
    first_block_start: bytes  # P, without the tweak's length


@functools.lru_cache(maxsize=256)
def parameters_of(radix: int, length: int) -> Parameters:
    """Steps 1, 3 and 4 of algorithm 7. The caller has checked the radix to be an int."""
    if not NUMERALS_MIN <= length <= NUMERALS_MAX:
        raise InvalidInputError(f"a numeral string has {NUMERALS_MIN} to {NUMERALS_MAX} numerals")
    left_length = length // 2
    right_length = length - left_length
    left_modulus, right_modulus = radix**left_length, radix**right_length
    if left_modulus * right_modulus < DOMAIN_MIN:
        raise InvalidInputError(f"radix**length must be at least {DOMAIN_MIN}: fewer can be searched")
    # the largest half has ceil(v * log2(radix)) bits; in floating point 256**29 gets one too many
    half_bytes = -(-(right_modulus - 1).bit_length() // 8)
    sum_bytes = 4 * -(-half_bytes // 4) + 4
    first_block_start = (
        b"\x01\x02\x01"
        + radix.to_bytes(3, "big")
        + bytes([ROUNDS, left_length % 256])
        + length.to_bytes(4, "big")
    )
    return Parameters(
        left_length=left_length,
        right_length=right_length,
        left_modulus=left_modulus,
        right_modulus=right_modulus,
        half_bytes=half_bytes,
        sum_bytes=sum_bytes,
        first_block_start=first_block_start,
    )
