"""FF1 format-preserving encryption (NIST SP 800-38G), over any `BlockCipher`.

A numeral string of n numerals below the radix becomes another one of the same kind, under a key and a public
tweak. The string is split into halves of u = n // 2 and v = n - u numerals; each of ten rounds then changes
one half by a function of the other. Both halves are carried as integers, and they never change places: even
rounds change the left one and odd rounds the right one.

The round function is a CBC-MAC over P || Q, expanded where the half is long:

    P   0x01 0x02 0x01 | radix (3) | 0x0a | u mod 256 (1) | n (4) | tweak length (4)
    Q   tweak | zeros, so that Q is whole blocks | round (1) | the other half (b bytes)

All integers are big endian. P and the tweak's whole blocks are the same in all ten rounds and are encrypted
once: 16 digits under a tweak of up to 11 bytes cost eleven calls of one block.

Domains below 10**6 are refused (SP 800-38G Rev. 1), because they can be searched whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.blocks import block_encrypter, chain
from tokenvault.crypto.ff1_columns import decrypt_many, encrypt_many
from tokenvault.crypto.ff1_parameters import (
    DOMAIN_MIN,
    NUMERALS_MAX,
    RADIX_MAX,
    RADIX_MIN,
    ROUNDS,
    TWEAK_BYTES_MAX,
    Parameters,
    parameters_of,
)
from tokenvault.errors import InvalidInputError, boundary

__all__ = [
    "decrypt",
    "decrypt_digits",
    "decrypt_many",
    "encrypt",
    "encrypt_digits",
    "encrypt_many",
    "DOMAIN_MIN",
    "NUMERALS_MAX",
    "RADIX_MAX",
    "RADIX_MIN",
    "ROUNDS",
    "TWEAK_BYTES_MAX",
]

DIGITS_MAX: Final = 1280  # halves of 640 digits: what int() takes under any sys.set_int_max_str_digits

_RoundFunction: TypeAlias = Callable[[int, int], int]  # round and half, to a number to add
_Rounds: TypeAlias = Callable[[_RoundFunction, Parameters, int, int], tuple[int, int]]


@boundary
def encrypt(cipher: BlockCipher, numerals: Sequence[int], *, radix: int, tweak: bytes = b"") -> list[int]:
    """Encrypt a numeral string (NIST SP 800-38G, FF1.Encrypt, algorithm 7).

    Args:
        cipher: the key.
        numerals: 2 to 4,096 ints from 0 to radix - 1, the most significant first; radix**length at least
            10**6.
        radix: 2 to 65,536.
        tweak: public bytes that change the result, at most 65,536; each 16 of them cost a block.

    Returns:
        As many numerals, under the same radix.

    Raises:
        InvalidInputError: an argument is of another type or outside these limits.
        KeyStoreError: the key can not be reached now.
    """
    return _transform(cipher, numerals, radix, tweak, _encrypt_rounds)


@boundary
def decrypt(cipher: BlockCipher, numerals: Sequence[int], *, radix: int, tweak: bytes = b"") -> list[int]:
    """Decrypt a numeral string (NIST SP 800-38G, FF1.Decrypt, algorithm 8).

    Anything of the right form decrypts to something: FF1 does not authenticate. Arguments and errors are those of
    `encrypt`.
    """
    return _transform(cipher, numerals, radix, tweak, _decrypt_rounds)


@boundary
def encrypt_digits(cipher: BlockCipher, digits: str, *, tweak: bytes = b"") -> str:
    """Encrypt 6 to 1,280 ASCII digits: `encrypt` with radix 10, without a list in between.

    Raises:
        InvalidInputError: an argument is of another type or outside these limits.
        KeyStoreError: the key can not be reached now.
    """
    return _transform_digits(cipher, digits, tweak, _encrypt_rounds)


@boundary
def decrypt_digits(cipher: BlockCipher, digits: str, *, tweak: bytes = b"") -> str:
    """The digits that `encrypt_digits` was given. Raises what it does."""
    return _transform_digits(cipher, digits, tweak, _decrypt_rounds)


def _transform(
    cipher: BlockCipher, numerals: Sequence[int], radix: int, tweak: bytes, rounds: _Rounds
) -> list[int]:
    if type(radix) is not int or not RADIX_MIN <= radix <= RADIX_MAX:
        raise InvalidInputError(f"radix must be a whole number from {RADIX_MIN} to {RADIX_MAX}")
    if not isinstance(numerals, (list, tuple, Sequence)):  # the first two only because they are quick
        raise InvalidInputError("numerals must be a sequence of ints")
    values = tuple(itertools.islice(numerals, NUMERALS_MAX + 1))  # len() of a range can overflow
    parameters = parameters_of(radix, len(values))
    split = parameters.left_length
    left = _number(values[:split], radix)
    right = _number(values[split:], radix)
    left, right = rounds(_round_function(cipher, parameters, tweak), parameters, left, right)
    return _numerals(left, split, radix) + _numerals(right, parameters.right_length, radix)


def _transform_digits(cipher: BlockCipher, digits: str, tweak: bytes, rounds: _Rounds) -> str:
    if type(digits) is not str or not (digits.isascii() and digits.isdigit()) or len(digits) > DIGITS_MAX:
        raise InvalidInputError(f"digits must be a string of at most {DIGITS_MAX} ASCII digits")
    parameters = parameters_of(10, len(digits))
    split = parameters.left_length
    left, right = rounds(
        _round_function(cipher, parameters, tweak), parameters, int(digits[:split]), int(digits[split:])
    )
    return f"{left:0{split}}{right:0{parameters.right_length}}"


def _encrypt_rounds(
    function: _RoundFunction, parameters: Parameters, left: int, right: int
) -> tuple[int, int]:
    left_modulus, right_modulus = parameters.left_modulus, parameters.right_modulus
    for i in range(0, ROUNDS, 2):
        left = (left + function(i, right)) % left_modulus
        right = (right + function(i + 1, left)) % right_modulus
    return left, right


def _decrypt_rounds(
    function: _RoundFunction, parameters: Parameters, left: int, right: int
) -> tuple[int, int]:
    left_modulus, right_modulus = parameters.left_modulus, parameters.right_modulus
    for i in range(ROUNDS - 2, -2, -2):
        right = (right - function(i + 1, left)) % right_modulus
        left = (left - function(i, right)) % left_modulus
    return left, right


def _round_function(cipher: BlockCipher, parameters: Parameters, tweak: bytes) -> _RoundFunction:
    """Steps 5 and 6.i to 6.v of algorithm 7, as a function of round and half; constants are computed once."""
    if type(tweak) is not bytes or len(tweak) > TWEAK_BYTES_MAX:
        raise InvalidInputError(f"tweak must be bytes, at most {TWEAK_BYTES_MAX}")
    encrypt = block_encrypter(cipher)
    half_bytes, sum_bytes = parameters.half_bytes, parameters.sum_bytes
    half_bits = 8 * half_bytes
    state = encrypt(parameters.first_block_start + len(tweak).to_bytes(4, "big"))
    constant = tweak + bytes((-len(tweak) - half_bytes - 1) % BLOCK_BYTES)
    whole_bytes = len(constant) // BLOCK_BYTES * BLOCK_BYTES
    if whole_bytes:
        state = chain(encrypt, state, constant[:whole_bytes])
        constant = constant[whole_bytes:]
    # what is left of Q changes with the round; its first block takes up the chain's state
    tail_bytes = len(constant) + 1 + half_bytes
    start = int.from_bytes(constant, "big") << half_bits + 8
    start ^= int.from_bytes(state, "big") << 8 * (tail_bytes - BLOCK_BYTES)

    if tail_bytes == BLOCK_BYTES and sum_bytes <= BLOCK_BYTES:
        excess_bits = 8 * (BLOCK_BYTES - sum_bytes)

        def short(i: int, half: int) -> int:
            block = (start ^ (i << half_bits) ^ half).to_bytes(BLOCK_BYTES, "big")
            return int.from_bytes(encrypt(block), "big") >> excess_bits

        return short

    zero = bytes(BLOCK_BYTES)
    blocks_more = range(1, -(-sum_bytes // BLOCK_BYTES))

    def long(i: int, half: int) -> int:
        mac = chain(encrypt, zero, (start ^ (i << half_bits) ^ half).to_bytes(tail_bytes, "big"))
        expanded = mac
        if blocks_more:
            number = int.from_bytes(mac, "big")
            expanded += encrypt(b"".join((number ^ j).to_bytes(BLOCK_BYTES, "big") for j in blocks_more))
        return int.from_bytes(expanded[:sum_bytes], "big")

    return long


def _number(numerals: tuple[int, ...], radix: int) -> int:
    """NUM_radix (NIST SP 800-38G algorithm 1), of numerals that are checked here."""
    number = 0
    for numeral in numerals:
        if type(numeral) is not int or not 0 <= numeral < radix:
            raise InvalidInputError("every numeral must be an int from 0 to radix - 1")
        number = number * radix + numeral
    return number


def _numerals(number: int, length: int, radix: int) -> list[int]:
    """STR_radix (NIST SP 800-38G algorithm 3): `length` numerals, the most significant first."""
    numerals = [0] * length
    for i in range(length - 1, -1, -1):
        number, numerals[i] = divmod(number, radix)
    return numerals
