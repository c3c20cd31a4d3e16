"""What the tokens of a program look like, and how many there can be.

A token is BIN, free digits and, where they are kept, the last four digits of the PAN. One of the free digits
makes the token Luhn-valid, or Luhn-invalid for stores that must tell tokens from PANs at a glance.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeVar

import attrs

from tokenvault.columns.arrays import Words
from tokenvault.columns.digits import luhn_sums
from tokenvault.errors import InvalidInputError, boundary_init
from tokenvault.model import checks
from tokenvault.model.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN, luhn_sum, luhn_valid
from tokenvault.model.plain_text import plain_field

BIN_LENGTH_MAX: Final = 12
_BIN: Final = re.compile(rf"[0-9]{{1,{BIN_LENGTH_MAX}}}")
_LAST4_COUNT: Final = 10_000
_INVALID_CHOICES: Final = 9  # digits that make a number Luhn-invalid

Numbers = TypeVar("Numbers", int, Words)


@boundary_init
@attrs.frozen(kw_only=True)
class TokenFormat:
    """The format of a program's tokens.

    Attributes:
        bin: token BIN, 1 to 12 digits that no issuer uses for PANs.
        length: digits of a token, 13 to 19; unset, that of the PAN.
        keep_last4: whether a token ends in the last four digits of its PAN.
        luhn: True for tokens that pass the Luhn check, False for tokens that fail it.

    Raises:
        InvalidInputError: also where a token would have no free digit.
    """

    bin: str = attrs.field(converter=plain_field)
    length: int | None = None
    keep_last4: bool = False
    luhn: bool = True

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.bin, str) or _BIN.fullmatch(self.bin) is None:
            raise InvalidInputError(f"a token BIN is 1 to {BIN_LENGTH_MAX} digits")
        if self.length is not None:
            checks.whole_number("the token length", self.length, PAN_LENGTH_MIN, PAN_LENGTH_MAX)
        if type(self.keep_last4) is not bool or type(self.luhn) is not bool:
            raise InvalidInputError("keep_last4 and luhn are True or False")
        if self._free_digits(PAN_LENGTH_MIN) < 1:
            raise InvalidInputError(
                "this format leaves no free digit; use a shorter BIN or set a longer length"
            )

    def choices(self, pan_length: int) -> int:
        """How many different tokens one PAN of this many digits could get."""
        ways: int = 10 ** (self._free_digits(pan_length) - 1)
        return ways if self.luhn else _INVALID_CHOICES * ways

    def capacity(self, pan_length: int) -> int:
        """How many different tokens there are for all PANs of this many digits together."""
        return self.choices(pan_length) * (_LAST4_COUNT if self.keep_last4 else 1)

    def make(self, choice: int, pan_length: int, last4: str) -> str:
        """The token of a choice from 0 to `choices(pan_length) - 1`; each gives another token."""
        number = self._numbers(choice, pan_length, int(last4), lambda number: luhn_sum(str(number)))
        return str(number).zfill(self.length or pan_length)

    def make_many(self, choices: Words, pan_length: int, last4: Words) -> Words:
        """The tokens of choices, as `make` gives them, as numbers of the token's length.

        Args:
            choices: shape (rows,), dtype uint64, each from 0 to `choices(pan_length) - 1`.
            pan_length: digits of every PAN.
            last4: shape (rows,), dtype uint64: the last four digits of each PAN, as a number.
        """
        return self._numbers(choices, pan_length, last4, luhn_sums)

    def matches(self, token: str, pan_length: int, last4: str) -> bool:
        """Whether digits could be the token of a PAN of this many digits that ends in `last4`."""
        return (
            len(token) == (self.length or pan_length)
            and token.startswith(self.bin)
            and luhn_valid(token) is self.luhn
            and (not self.keep_last4 or token.endswith(last4))
        )

    def _numbers(
        self, choices: Numbers, pan_length: int, last4: Numbers, sums: Callable[[Numbers], Numbers]
    ) -> Numbers:
        """The tokens of one choice or of a column of them, as numbers; `sums` gives the Luhn sums of numbers."""
        check_step = choices * 0
        if not self.luhn:
            choices, check_step = choices // _INVALID_CHOICES, choices % _INVALID_CHOICES + 1
        bin_place: int = 10 ** (self._free_digits(pan_length) - 1)
        start = choices + int(self.bin) * bin_place
        ending, places = (last4, _LAST4_COUNT) if self.keep_last4 else (choices * 0, 1)
        without = start * (10 * places) + ending
        # The gap weighs the same fifth from the end as at the end: Luhn doubles it in neither place.
        digit = (10 - sums(without) % 10 + check_step) % 10
        return without + digit * places

    def _free_digits(self, pan_length: int) -> int:
        return (self.length or pan_length) - len(self.bin) - (4 if self.keep_last4 else 0)
