"""Columns of vaultless tokens: the arithmetic of `tokenizer` over numbers of one length at a time.

The results are those of `VaultlessTokenizer.tokenize` and `detokenize`, number by number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import numpy as np

from tokenvault.columns.arrays import Bytes, Words
from tokenvault.columns.digits import luhn_valid_many, with_check_digit
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.crypto.ff1_columns import decrypt_many, encrypt_many
from tokenvault.errors import InvalidInputError
from tokenvault.model.pan import PAN_LENGTH_MIN
from tokenvault.vaultless.texts import Lengths, Mask

FREE_DIGITS_MIN: Final = 6
"""FF1 over fewer digits (a domain under 10**6) is open to guessing: SP 800-38G Rev. 1, draft of 2025."""

KEPT_BYTES: Final = 5  # 12 digits
OWN_BIN_DIGITS_MIN: Final = 16

_TEN: Final = np.uint64(10)


@attrs.frozen
class KeptDigits:
    """Tokens of the PAN's length that keep some of its digits.

    Attributes:
        first: leading digits that are kept.
        last: last digits that are kept, 4 or 0; if 0, the check digit is made anew.
        scope: the constant 6 bytes of the tweak.
    """

    first: int
    last: int
    scope: bytes

    def free_digits(self, length: int) -> int:
        """How many digits of a number FF1 permutes. Raises InvalidInputError where they are too few."""
        free = length - self.first - (self.last or 1)
        if free < FREE_DIGITS_MIN:
            raise InvalidInputError(
                f"{length} digits leave {free} free, and FF1 needs {FREE_DIGITS_MIN}: keep fewer"
            )
        return free

    def token_length(self, pan_length: int) -> int:
        """Digits of the token of a PAN of so many. Raises InvalidInputError for a PAN that it can not have."""
        self.free_digits(pan_length)
        return pan_length

    def tokenize(self, cipher: BlockCipher, pans: Words, length: int) -> tuple[Words, Lengths, Mask]:
        """The tokens of PANs of one length, their lengths, and which rows are valid."""
        tokens = self._permuted(cipher, pans, length, encrypt_many)
        return tokens, np.full(len(pans), length), luhn_valid_many(pans)

    def detokenize(self, cipher: BlockCipher, tokens: Words, length: int) -> tuple[Words, Lengths, Mask]:
        """The PANs of tokens of one length, their lengths, and which rows are valid."""
        pans = self._permuted(cipher, tokens, length, decrypt_many)
        good = luhn_valid_many(pans if self.last else tokens)
        return pans, np.full(len(pans), length), good

    def _permuted(
        self, cipher: BlockCipher, numbers: Words, length: int, permute: Callable[..., Words]
    ) -> Words:
        free_digits = self.free_digits(length)
        free_modulus, end_modulus = np.uint64(10**free_digits), np.uint64(10 ** (self.last or 1))
        start = numbers // end_modulus
        ending = numbers - start * end_modulus
        first = start // free_modulus
        free = start - first * free_modulus
        kept = first * end_modulus + ending if self.last else first
        tweaks: Bytes = np.empty((len(numbers), len(self.scope) + KEPT_BYTES), np.uint8)
        tweaks[:, : len(self.scope)] = np.frombuffer(self.scope, np.uint8)
        tweaks[:, len(self.scope) :] = kept.astype(">u8").view(np.uint8).reshape(-1, 8)[:, -KEPT_BYTES:]
        free = permute(cipher, free, length=free_digits, tweaks=tweaks)
        start = first * free_modulus + free
        return start * end_modulus + ending if self.last else with_check_digit(start)


@attrs.frozen
class OwnBin:
    """Tokens of one length under a token BIN: BIN, permuted digits, check digit.

    What is permuted is the digit 1 and the PAN without its check digit, behind zeros: so it tells the PAN's length
    and its leading zeros, and what decrypts to another form is no token.

    Attributes:
        bin: token BIN.
        length: digits of a token.
        luhn: whether the check digit is right, or one too high.
        scope: the constant 6 bytes of the tweak.
    """

    bin: str
    length: int
    luhn: bool
    scope: bytes

    @property
    def free_digits(self) -> int:
        """How many digits FF1 permutes; a PAN of as many digits fits, a longer one does not."""
        return self.length - len(self.bin) - 1

    @property
    def tweak(self) -> bytes:
        """11 bytes."""
        return self.scope + bytes(KEPT_BYTES)

    def token_length(self, pan_length: int) -> int:
        """Digits of a token. Raises InvalidInputError for a PAN that is too long."""
        if pan_length > self.free_digits:
            raise InvalidInputError(
                f"this format holds PANs of up to {self.free_digits} digits, not of {pan_length}: use a shorter BIN"
            )
        return self.length

    def tokenize(self, cipher: BlockCipher, pans: Words, length: int) -> tuple[Words, Lengths, Mask]:
        """The tokens of PANs of one length, their lengths, and which rows are valid."""
        token_length = self.token_length(length)
        payloads = pans // _TEN + np.uint64(10 ** (length - 1))
        free = encrypt_many(cipher, payloads, length=self.free_digits, tweaks=self.tweak)
        return self._with_bin(free), np.full(len(pans), token_length), luhn_valid_many(pans)

    def detokenize(self, cipher: BlockCipher, tokens: Words, length: int) -> tuple[Words, Lengths, Mask]:
        """The PANs of tokens of one length, their lengths, and which rows are valid."""
        pans: Words = np.zeros(len(tokens), np.uint64)
        lengths: Lengths = np.zeros(len(tokens), np.int64)
        if length != self.length:
            return pans, lengths, lengths != 0
        free = tokens // _TEN % np.uint64(10**self.free_digits)
        payloads = decrypt_many(cipher, free, length=self.free_digits, tweaks=self.tweak)
        for pan_length in range(PAN_LENGTH_MIN, self.free_digits + 1):
            least = np.uint64(10 ** (pan_length - 1))
            rows = np.flatnonzero((payloads >= least) & (payloads < least + least))
            pans[rows] = with_check_digit(payloads[rows] - least)
            lengths[rows] = pan_length
        return pans, lengths, (lengths != 0) & (self._with_bin(free) == tokens)

    def _with_bin(self, free: Words) -> Words:
        numbers = with_check_digit(free + np.uint64(int(self.bin) * 10**self.free_digits))
        if not self.luhn:
            digits = numbers % _TEN
            numbers += (digits + np.uint64(1)) % _TEN - digits
        return numbers
