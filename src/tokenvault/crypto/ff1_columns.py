"""FF1 format-preserving encryption (NIST SP 800-38G) of columns: decimal strings of 6 to 19 digits as numbers.

All rows go through a round together: one `encrypt_blocks` a round for every chunk of rows, besides the blocks
that do not depend on the row. For numerals of 6 to 19 digits the standard's quantities are small:

    half        at most 10 digits, in b = 2 to 5 bytes
    P           one block, the same for all rows: encrypted once a call
    Q           tweak | zeros | round (1) | half (b): its last block alone changes with the round
    round value the first 8 bytes of the last block's encryption, or 12 where a half has 10 digits

So both halves, and every sum of a half and a reduced round value, fit 64 bits. 12 bytes are reduced 16 bits at a
time. The results are those of `tokenvault.ff1.encrypt` on the digits, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Bytes, Words, byte_columns, place, word_column
from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.block_columns import WORDS_PER_BLOCK, ColumnCipher
from tokenvault.crypto.ff1_parameters import ROUNDS, TWEAK_BYTES_MAX, Parameters, parameters_of
from tokenvault.errors import InvalidInputError, boundary

LENGTH_MIN: Final = 6
LENGTH_MAX: Final = 19
"""Digits of a number in a column: 10**6 is FF1's smallest domain, 10**19 fits uint64."""

_SHORT_SUM_BYTES: Final = 8
_HALF_WORD: Final = np.uint64(16)
_HALF_WORDS_OF_LONG_SUM: Final = (np.uint64(48), np.uint64(32))  # shifts to what follows the first 64 bits
_HALF_WORD_MASK: Final = np.uint64(2**16 - 1)


@boundary
def encrypt_many(
    cipher: BlockCipher,
    values: npt.NDArray[np.uint64],
    *,
    length: int,
    tweaks: bytes | Sequence[bytes] | npt.NDArray[np.uint8] = b"",
) -> npt.NDArray[np.uint64]:
    """Encrypt a column of decimal strings (NIST SP 800-38G, FF1.Encrypt, algorithm 7, radix 10).

    With a tweak of up to 11 bytes (10 where `length` is 19) a call makes 1 + 10 calls of `encrypt_blocks` for each
    chunk of rows: 8,192 for a `LocalBlockCipher`, else 1,048,576. Each 16 bytes of tweak more add one: for a common
    tweak to the call, for a tweak a row to every chunk. Besides the result, memory for one chunk is taken.

    Args:
        cipher: the key.
        values: shape (rows,), dtype uint64; each value is the number that `length` digits read as, leading zeros
            included, so below 10**length. Not changed.
        length: digits of every value, 6 to 19.
        tweaks: public bytes that change the result: one for all rows, or one a row as an array of shape (rows, t)
            and dtype uint8 or a sequence of `bytes` that all have one length; at most 65,536 bytes each.

    Returns:
        An array of the same shape and dtype, with values below 10**length.

    Raises:
        InvalidInputError: an argument is of another type, dtype or shape, or outside these limits.
        KeyStoreError: the key can not be reached now.
    """
    return _transform(cipher, values, length, tweaks, encrypts=True)


@boundary
def decrypt_many(
    cipher: BlockCipher,
    values: npt.NDArray[np.uint64],
    *,
    length: int,
    tweaks: bytes | Sequence[bytes] | npt.NDArray[np.uint8] = b"",
) -> npt.NDArray[np.uint64]:
    """Decrypt a column of decimal strings (NIST SP 800-38G, FF1.Decrypt, algorithm 8, radix 10).

    Anything of the right form decrypts to something: FF1 does not authenticate. Arguments, errors, calls and memory
    are those of `encrypt_many`.
    """
    return _transform(cipher, values, length, tweaks, encrypts=False)


def _transform(
    cipher: BlockCipher, values: object, length: int, tweaks: object, *, encrypts: bool
) -> npt.NDArray[np.uint64]:
    if type(length) is not int or not LENGTH_MIN <= length <= LENGTH_MAX:
        raise InvalidInputError(f"length must be a whole number from {LENGTH_MIN} to {LENGTH_MAX}")
    column = word_column("values", values)
    parameters = parameters_of(10, length)
    rows = len(column)
    tweak_column = _tweaks(tweaks, rows)
    columns = ColumnCipher(cipher, blocks_per_row=1, rows=rows, in_parts=True)
    result = np.empty(rows, np.uint64)
    if not rows:
        return result
    work = _Rounds(columns, parameters, tweak_column.shape[1])
    for start in range(0, rows, columns.chunk_rows):
        chunk = slice(start, start + columns.chunk_rows)
        if column[chunk].max() >= 10**length:
            raise InvalidInputError(f"every value must be below 10**{length}")
        if start == 0 or len(tweak_column) > 1:
            work.start_from(tweak_column[chunk])
        work.run(column[chunk], result[chunk], encrypts=encrypts)
    return result


def _tweaks(tweaks: object, rows: int) -> Bytes:
    """The tweaks, a row each: one for all, or as many as there are rows."""
    if type(tweaks) is bytes:
        column = np.frombuffer(tweaks, np.uint8).reshape(1, len(tweaks))
    elif isinstance(tweaks, (list, tuple)):
        widths = set(map(len, tweaks)) if set(map(type, tweaks)) <= {bytes} else set()
        if len(tweaks) != rows or len(widths) != min(rows, 1):
            raise InvalidInputError(
                "a sequence of tweaks must have one for each row: bytes, all of one length"
            )
        column = np.frombuffer(b"".join(tweaks), np.uint8).reshape(rows, *(widths or {0}))
    else:
        column = byte_columns("tweaks, unless bytes or a list of bytes,", tweaks)
        if len(column) != rows:
            raise InvalidInputError("there must be one tweak, or one for each row")
    if column.shape[1] > TWEAK_BYTES_MAX:
        raise InvalidInputError(f"a tweak must be at most {TWEAK_BYTES_MAX} bytes")
    return column


class _Rounds:
    """The ten rounds over chunks of rows, in buffers that serve all chunks of a call."""

    def __init__(self, columns: ColumnCipher, parameters: Parameters, tweak_bytes: int) -> None:
        self._columns = columns
        self._long = parameters.sum_bytes > _SHORT_SUM_BYTES
        self._round_shift = 8 * parameters.half_bytes
        self._left_modulus = np.uint64(parameters.left_modulus)
        self._right_modulus = np.uint64(parameters.right_modulus)
        self._blocks, left = columns.buffers(WORDS_PER_BLOCK, 1)
        self._big_endian = self._blocks.view(">u8")
        self._start: Words = np.empty(0, np.uint64)
        first_block = parameters.first_block_start + tweak_bytes.to_bytes(4, "big")
        self._state = columns.encrypt(
            np.frombuffer(first_block, np.uint64).reshape(1, WORDS_PER_BLOCK)
        ).copy()
        padding_bytes = (-tweak_bytes - parameters.half_bytes - 1) % BLOCK_BYTES
        self._whole_bytes = (tweak_bytes + padding_bytes) // BLOCK_BYTES * BLOCK_BYTES
        self._left: Words = left[:, 0]
        self._sum, self._scratch = np.empty((2, columns.part_rows), np.uint64)

    def start_from(self, tweaks: Bytes) -> None:
        """Set what no round changes, for one tweak or the next chunk's: P and Q without round and half, chained."""
        state = self._columns.chain(self._state, tweaks[:, : self._whole_bytes])
        last: Words = np.zeros((len(tweaks), WORDS_PER_BLOCK), np.uint64)
        place(tweaks[:, self._whole_bytes :], last.view(np.uint8), 0)
        np.bitwise_xor(state, last, out=last)
        self._blocks[: len(last) if len(last) > 1 else None, 0] = last[:, 0]
        self._start = last[:, 1].view(">u8").astype(np.uint64)

    def run(self, values: Words, result: Words, *, encrypts: bool) -> None:
        """Encrypt or decrypt one chunk of checked values into `result`, where the right halves stand meanwhile."""
        rows, part_rows = len(values), self._columns.part_rows
        parts = [slice(start, min(start + part_rows, rows)) for start in range(0, rows, part_rows)]
        for part in parts:
            np.floor_divide(values[part], self._right_modulus, out=self._left[part])
            scratch = np.multiply(self._left[part], self._right_modulus, out=self._scratch_of(part))
            np.subtract(values[part], scratch, out=result[part])
        for i in range(ROUNDS) if encrypts else reversed(range(ROUNDS)):
            half, other, modulus = (
                (self._left, result, self._left_modulus)
                if i % 2 == 0
                else (result, self._left, self._right_modulus)
            )
            for part in parts:
                self._fill(i, part, other[part])
            answer = self._columns.encrypt(self._blocks[:rows]).view(">u8")
            for part in parts:
                self._add(half[part], answer[part], modulus, encrypts=encrypts)
        for part in parts:
            scratch = np.multiply(self._left[part], self._right_modulus, out=self._scratch_of(part))
            result[part] += scratch

    def _scratch_of(self, part: slice) -> Words:
        return self._scratch[: part.stop - part.start]

    def _fill(self, i: int, part: slice, other: Words) -> None:
        """Step 6.i: round and half into the last block of Q."""
        scratch = self._scratch[: len(other)]
        start = self._start[part] if len(self._start) > 1 else self._start
        np.bitwise_xor(other, start ^ np.uint64(i << self._round_shift), out=scratch)
        self._big_endian[part, 1] = scratch

    def _add(self, half: Words, answer: Words, modulus: np.uint64, *, encrypts: bool) -> None:
        """Steps 6.iv to 6.vi, or their inverse: add the round's value to a half, or subtract it."""
        rows = len(half)
        value, scratch = self._sum[:rows], self._scratch[:rows]
        value[:] = answer[:, 0]
        _reduce(value, modulus, scratch)
        if self._long:
            for shift in _HALF_WORDS_OF_LONG_SUM:
                following = (answer[:, 1] >> shift) & _HALF_WORD_MASK
                np.left_shift(value, _HALF_WORD, out=value)  # below 10**10 * 2**16 < 2**50
                np.bitwise_or(value, following, out=value)
                _reduce(value, modulus, scratch)
        # Of a number and itself one modulus away, the one that wrapped around 2**64 is the larger.
        if encrypts:
            np.add(half, value, out=half)
            np.subtract(half, modulus, out=scratch)
        else:
            np.subtract(half, value, out=half)
            np.add(half, modulus, out=scratch)
        np.minimum(half, scratch, out=half)


def _reduce(values: Words, modulus: np.uint64, scratch: Words) -> None:
    """Reduce in place. numpy divides by a constant with vector instructions, and takes remainders without."""
    np.floor_divide(values, modulus, out=scratch)
    np.multiply(scratch, modulus, out=scratch)
    np.subtract(values, scratch, out=values)
