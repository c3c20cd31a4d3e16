"""Which ids are kept in clear: not those that could hold a card number or a token.

A transaction id and an operator's name come from callers, and stand in audit events. One that could hold a number is
kept as a keyed digest and its last four characters: the same id gives the same digest, so its events can be told
from others, and nobody without the key finds the number by trying.

The rule. Digits are read as `spellings` reads them. An id is not kept in clear where they

- are 20 or more: a number may stand anywhere in them; or
- hold a PAN: from the begin of a run of digits to the end of one, or, anywhere in them, one that begins as the cards
  of its length do; or
- hold a token of any program, anywhere in them.

A PAN here has 12 to 19 digits and is Luhn-valid, unless a program takes others. One in ten other numbers of that
length is so by chance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Final, NamedTuple

from tokenvault.model.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN, SHORTEST_PAN, Pan, luhn_valid
from tokenvault.model.programs import TokenProgram
from tokenvault.model.spellings import Runs, readings
from tokenvault.model.token_format import TokenFormat

DIGESTED: Final = "digest "
LAST_CHARACTERS: Final = 4
# A digest in letters alone has no digits that could be taken for a number.
_LETTERS: Final = str.maketrans("0123456789abcdef", "ghijklmnopqrstuv")

_CARDS: Final = re.compile(
    "4(?:.{12}|.{15}|.{18})"  # Visa
    "|5[1-5].{14}|2(?:2[2-9]|[3-6].|7[0-2]).{13}"  # Mastercard
    "|3[47].{13}"  # American Express
    "|3[0689].{12,17}|3[15].{14,17}"  # Diners Club, JCB, T-Union
    "|(?:50|5[6-9]|6.).{10,17}"  # Maestro, Discover, UnionPay, RuPay, Elo
    "|220.{13,16}|8[126].{14,17}|9[78].{14}|1.{14}"  # Mir, UnionPay, Uzcard, Troy, Humo, UATP
)
"""How the cards of the networks begin (ISO/IEC 7812), with their lengths."""


class Numbers(NamedTuple):
    """The formats of tokens, and the lengths of PANs without a check digit."""

    formats: tuple[TokenFormat, ...] = ()
    unchecked: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, programs: Iterable[TokenProgram]) -> Numbers:
        """Those of programs: of their tokens, and of the PANs that they take."""
        known = tuple(programs)
        formats = tuple(dict.fromkeys(program.format for program in known))
        unchecked = {program.pans.lengths for program in known if not program.pans.luhn}
        return cls(formats, tuple(unchecked))


class ClearIds:
    """What ids may be kept in clear by a vault.

    Args:
        digest: of a text, 16 bytes, under a key.
        numbers: those of the programs that are known; asked for with each id.
    """

    def __init__(self, digest: Callable[[str], bytes], numbers: Callable[[], Numbers] = Numbers) -> None:
        self._digest: Final = digest
        self._numbers: Final = numbers

    def kept(self, text: str, pan: Pan | None = None) -> str:
        """An id as it is kept: as it is, or its digest where it could hold a number, or holds a PAN that is known."""
        if not self.could_hold_number(text) and (pan is None or not pan.stands_in(text)):
            return text
        letters = self._digest(text).hex().translate(_LETTERS)
        return f"{DIGESTED}{letters} {text[-LAST_CHARACTERS:]}"

    def could_hold_number(self, text: str) -> bool:
        """Whether a text could hold a PAN or a token."""
        return any(self._could_be_number(runs) for runs in readings(text))

    def could_hold_token(self, text: str) -> bool:
        """Whether a text could hold a token of a program."""
        return any(self._holds_token("".join(runs)) for runs in readings(text))

    def _could_be_number(self, runs: Runs) -> bool:
        digits = "".join(runs)
        return len(digits) > PAN_LENGTH_MAX or self._holds_pan(digits, runs) or self._holds_token(digits)

    def _holds_pan(self, digits: str, runs: Runs) -> bool:
        ends = {0, *accumulate(map(len, runs))}
        for start in range(len(digits) - SHORTEST_PAN + 1):
            for end in range(start + SHORTEST_PAN, len(digits) + 1):
                number = digits[start:end]
                whole = start in ends and end in ends
                if (whole or _CARDS.fullmatch(number)) and (luhn_valid(number) or self._is_unchecked(number)):
                    return True
        return False

    def _is_unchecked(self, number: str) -> bool:
        return any(fewest <= len(number) <= most for fewest, most in self._numbers().unchecked)

    def _holds_token(self, digits: str) -> bool:
        return any(_holds_token(digits, each) for each in self._numbers().formats)


def _holds_token(digits: str, token_format: TokenFormat) -> bool:
    """Whether a token of a format stands in digits; of one whose length is the PAN's, of any length."""
    lengths = (
        range(PAN_LENGTH_MIN, PAN_LENGTH_MAX + 1) if token_format.length is None else (token_format.length,)
    )
    start = digits.find(token_format.bin)
    while start >= 0:
        for length in lengths:
            number = digits[start : start + length]
            if len(number) == length and luhn_valid(number) is token_format.luhn:
                return True
        start = digits.find(token_format.bin, start + 1)
    return False
