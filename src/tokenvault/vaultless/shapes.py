"""The two shapes of vaultless tokens, number by number and as columns of numbers of one length.

Columns come out as the same numbers do one by one; so the two are written apart, each the other's test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import numpy as np

from tokenvault.columns.arrays import Bytes, Words
from tokenvault.columns.digits import luhn_valid_many, with_check_digit
from tokenvault.crypto import ff1
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.crypto.ff1_columns import decrypt_many, encrypt_many
from tokenvault.errors import InvalidInputError
from tokenvault.model.pan import PAN_LENGTH_MIN, Pan, luhn_check_digit, luhn_valid, trusted_pan
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
        cipher: the FPE key.
        first: leading digits that are kept.
        last: last digits that are kept, 4 or 0; if 0, the check digit is made anew.
        scope: the constant 6 bytes of the tweak.
    """

    cipher: BlockCipher
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

    def tokenize(self, pan: Pan) -> str:
        """The token of a PAN. Raises InvalidInputError where it is too short."""
        return self._permuted(pan, ff1.encrypt_digits).reveal()

    def detokenize(self, token: str) -> Pan:
        """The PAN of a token. Raises InvalidInputError for what is none."""
        if not self.last and not luhn_valid(token):
            raise InvalidInputError(
                "not a token of this tokenizer: its check digit is wrong", code="NOT_A_TOKEN"
            )
        pan = self._permuted(trusted_pan(token), ff1.decrypt_digits)
        if not luhn_valid(pan.reveal()):
            raise InvalidInputError("not a token of this tokenizer", code="NOT_A_TOKEN")
        return pan

    def tokenize_many(self, pans: Words, length: int) -> tuple[Words, Lengths, Mask]:
        """The tokens of PANs of one length, their lengths, and which rows are valid."""
        tokens = self._permuted_many(pans, length, encrypt_many)
        return tokens, np.full(len(pans), length), luhn_valid_many(pans)

    def detokenize_many(self, tokens: Words, length: int) -> tuple[Words, Lengths, Mask]:
        """The PANs of tokens of one length, their lengths, and which rows are valid."""
        pans = self._permuted_many(tokens, length, decrypt_many)
        good = luhn_valid_many(pans if self.last else tokens)
        return pans, np.full(len(pans), length), good

    def _permuted(self, number: Pan, permute: Callable[..., str]) -> Pan:
        """A number with its free digits permuted; Pans, because they are opaque."""
        end = self.first + self.free_digits(len(number))
        kept = int(number.reveal()[: self.first] + number.reveal()[len(number) - self.last :] or "0")
        tweak = self.scope + kept.to_bytes(KEPT_BYTES)
        free = trusted_pan(permute(self.cipher, number.reveal()[self.first : end], tweak=tweak))
        start = trusted_pan(number.reveal()[: self.first] + free.reveal())
        ending = number.reveal()[end:] if self.last else luhn_check_digit(start.reveal())
        return trusted_pan(start.reveal() + ending)

    def _permuted_many(self, numbers: Words, length: int, permute: Callable[..., Words]) -> Words:
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
        free = permute(self.cipher, free, length=free_digits, tweaks=tweaks)
        start = first * free_modulus + free
        return start * end_modulus + ending if self.last else with_check_digit(start)


@attrs.frozen
class OwnBin:
    """Tokens of one length under a token BIN: BIN, permuted digits, check digit.

    What is permuted is the digit 1 and the PAN without its check digit, behind zeros: so it tells the PAN's length
    and its leading zeros, and what decrypts to another form is no token.

    Attributes:
        cipher: the FPE key.
        bin: token BIN.
        length: digits of a token.
        luhn: whether the check digit is right, or one too high.
        scope: the constant 6 bytes of the tweak.
    """

    cipher: BlockCipher
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

    def tokenize(self, pan: Pan) -> str:
        """The token of a PAN. Raises InvalidInputError where it is too long."""
        self.token_length(len(pan))
        payload = trusted_pan(f"1{pan.reveal()[:-1]}".zfill(self.free_digits))
        return self._with_bin(ff1.encrypt_digits(self.cipher, payload.reveal(), tweak=self.tweak))

    def detokenize(self, token: str) -> Pan:
        """The PAN of a token. Raises InvalidInputError for what is none."""
        free = token[len(self.bin) : -1]
        if len(token) == self.length and self._with_bin(free) == token:
            payload = trusted_pan(ff1.decrypt_digits(self.cipher, free, tweak=self.tweak).lstrip("0"))
            if payload.reveal()[:1] == "1" and len(payload) >= PAN_LENGTH_MIN:
                start = trusted_pan(payload.reveal()[1:])
                return trusted_pan(start.reveal() + luhn_check_digit(start.reveal()))
        raise InvalidInputError("not a token of this tokenizer", code="NOT_A_TOKEN")

    def tokenize_many(self, pans: Words, length: int) -> tuple[Words, Lengths, Mask]:
        """The tokens of PANs of one length, their lengths, and which rows are valid."""
        token_length = self.token_length(length)
        payloads = pans // _TEN + np.uint64(10 ** (length - 1))
        free = encrypt_many(self.cipher, payloads, length=self.free_digits, tweaks=self.tweak)
        return self._with_bin_many(free), np.full(len(pans), token_length), luhn_valid_many(pans)

    def detokenize_many(self, tokens: Words, length: int) -> tuple[Words, Lengths, Mask]:
        """The PANs of tokens of one length, their lengths, and which rows are valid."""
        pans: Words = np.zeros(len(tokens), np.uint64)
        lengths: Lengths = np.zeros(len(tokens), np.int64)
        if length != self.length:
            return pans, lengths, lengths != 0
        free = tokens // _TEN % np.uint64(10**self.free_digits)
        payloads = decrypt_many(self.cipher, free, length=self.free_digits, tweaks=self.tweak)
        for pan_length in range(PAN_LENGTH_MIN, self.free_digits + 1):
            least = np.uint64(10 ** (pan_length - 1))
            rows = np.flatnonzero((payloads >= least) & (payloads < least + least))
            pans[rows] = with_check_digit(payloads[rows] - least)
            lengths[rows] = pan_length
        return pans, lengths, (lengths != 0) & (self._with_bin_many(free) == tokens)

    def _with_bin(self, free: str) -> str:
        digit = int(luhn_check_digit(self.bin + free))
        return f"{self.bin}{free}{digit if self.luhn else (digit + 1) % 10}"

    def _with_bin_many(self, free: Words) -> Words:
        numbers = with_check_digit(free + np.uint64(int(self.bin) * 10**self.free_digits))
        if not self.luhn:
            digits = numbers % _TEN
            numbers += (digits + np.uint64(1)) % _TEN - digits
        return numbers
