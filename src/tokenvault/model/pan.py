"""Primary account numbers and card expiry dates: strict parsing, and a PAN that does not leak.

A PAN is 13 to 19 digits of which the last is a Luhn check digit (ISO/IEC 7812-1, annex B).
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import itertools
import re
from datetime import date
from typing import Final, NoReturn, Self

import attrs

from tokenvault.columns.random import fresh_key
from tokenvault.errors import InvalidInputError, boundary, boundary_init

PAN_LENGTH_MIN: Final = 13
PAN_LENGTH_MAX: Final = 19

_GROUPED_LENGTH_MAX: Final = 2 * PAN_LENGTH_MAX - 1
_GROUPED: Final = re.compile(r"[0-9]+(?:[ -][0-9]+)*")
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_RUNS: Final = re.compile(r"[0-9]+")
_LONG_RUN: Final = re.compile(rf"[0-9]{{{PAN_LENGTH_MIN}}}")
_EXPIRY_FORM: Final = 'an expiry reads "YYYY-MM", such as "2029-12"'
_EXPIRY: Final = re.compile(r"20[0-9]{2}-(?:0[1-9]|1[0-2])")
# For what looks around in objects, not for who reads memory. A forked child goes on with the key and the numbers.
_MASK_KEY: Final = fresh_key()
_pans: Final = itertools.count()
# What a digit adds to the Luhn sum, in a place that is doubled and in one that is not; indexed by ASCII code.
_PLAIN: Final = bytes(code - 48 if 48 <= code <= 57 else 0 for code in range(256))
_DOUBLED: Final = bytes(sum(divmod(2 * (code - 48), 10)) if 48 <= code <= 57 else 0 for code in range(256))


def luhn_sum(digits: str) -> int:
    """The Luhn sum of ASCII digits, check digit included (ISO/IEC 7812-1, annex B)."""
    codes = digits.encode("ascii")
    return sum(codes[-1::-2].translate(_PLAIN)) + sum(codes[-2::-2].translate(_DOUBLED))


def luhn_valid(digits: str) -> bool:
    """Whether ASCII digits end in their Luhn check digit."""
    return luhn_sum(digits) % 10 == 0


def luhn_check_digit(payload: str) -> str:
    """The Luhn check digit of ASCII digits (ISO/IEC 7812-1, annex B)."""
    return str(-luhn_sum(f"{payload}0") % 10)


def could_hold_pan(text: str) -> bool:
    """Whether a text holds 13 to 19 digits in a row that pass the Luhn check, with or without separators.

    One in ten of other numbers of that length does so by chance.
    """
    return holds_digits(text) and any(
        PAN_LENGTH_MIN <= len(run) <= PAN_LENGTH_MAX and luhn_valid(run)
        for form in (text, text.replace(" ", "").replace("-", ""))
        for run in _RUNS.findall(form)
    )


def holds_digits(text: str) -> bool:
    """Whether a text holds 13 digits in a row, with or without separators: else no PAN stands in it."""
    return (
        len(text) >= PAN_LENGTH_MIN and _LONG_RUN.search(text.replace(" ", "").replace("-", "")) is not None
    )


class Pan:
    """A card number that shows itself only on request.

    `repr`, `str` and `format` are masked to the first six and last four digits (PCI DSS 3.4.1). Pickle is
    refused; `attrs.asdict` and `json` see an opaque object. What walks attributes, slots or referents (DeepDiff, an
    inspector) finds the digits masked under a key of this process; what calls `reveal`, or reads the process's
    memory, has them. Equality takes constant time.
    """

    __slots__ = ("_masked", "_number")
    _masked: bytes
    _number: int

    @boundary
    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        """Refused: `Pan.parse` makes one."""
        raise InvalidInputError("make a Pan with Pan.parse(text)")

    @staticmethod
    @boundary
    def parse(text: str | Pan) -> Pan:
        """Read a PAN: 13 to 19 ASCII digits, Luhn-valid; single spaces or hyphens may stand between groups.

        Raises:
            InvalidInputError: saying which rule fails, not what was given.
        """
        return read_pan(text)

    def reveal(self) -> str:
        """The digits. Keep them out of logs, and out of variables that live long."""
        return _mask(self._masked, self._number).decode("ascii")

    def stands_in(self, text: str) -> bool:
        """Whether a text holds the digits, in one piece or with spaces or hyphens between them."""
        digits = self.reveal()
        return digits in text or digits in text.replace(" ", "").replace("-", "")

    @property
    def last4(self) -> str:
        """The last four digits."""
        return self.reveal()[-4:]

    @property
    def masked(self) -> str:
        """The first six and last four digits; the others as asterisks."""
        return f"{self.reveal()[:6]}{'*' * (len(self) - 10)}{self.last4}"

    def __len__(self) -> int:
        return len(self._masked)

    def __repr__(self) -> str:
        return f"<Pan {self.masked}>"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pan) and hmac.compare_digest(self.reveal(), other.reveal())

    def __hash__(self) -> int:
        return hash(hashlib.blake2b(self.reveal().encode("ascii"), key=_MASK_KEY, digest_size=8).digest())

    @boundary
    def __setattr__(self, _name: str, _value: object) -> NoReturn:
        raise InvalidInputError("a Pan does not change")

    def __delattr__(self, _name: str) -> NoReturn:
        raise InvalidInputError("a Pan does not change")

    def __copy__(self) -> Pan:
        return self

    def __deepcopy__(self, _memo: object) -> Pan:
        return self

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise InvalidInputError("a Pan is not pickled; its token may be")

    def __getstate__(self) -> NoReturn:
        raise InvalidInputError("a Pan is not pickled; its token may be")


def read_pan(text: str | Pan) -> Pan:
    """As `Pan.parse`, for callers within the boundary."""
    if isinstance(text, Pan):
        return text
    if not isinstance(text, str):
        raise InvalidInputError("a PAN is text of 13 to 19 digits", code="PAN_CHARACTERS")
    if len(text) > _GROUPED_LENGTH_MAX or _GROUPED.fullmatch(text) is None:
        raise InvalidInputError(
            "a PAN has ASCII digits only, with single spaces or hyphens between groups", code="PAN_CHARACTERS"
        )
    digits = text.replace(" ", "").replace("-", "")
    if not PAN_LENGTH_MIN <= len(digits) <= PAN_LENGTH_MAX:
        raise InvalidInputError(f"a PAN has {PAN_LENGTH_MIN} to {PAN_LENGTH_MAX} digits", code="PAN_LENGTH")
    if not luhn_valid(digits):
        raise InvalidInputError("the PAN's check digit is wrong (Luhn)", code="PAN_CHECK_DIGIT")
    return trusted_pan(digits)


def trusted_pan(digits: str) -> Pan:
    """A Pan of digits that are known to be one: they were checked, or checked when they were sealed."""
    pan = object.__new__(Pan)
    number = next(_pans)
    object.__setattr__(pan, "_masked", _mask(digits.encode("ascii"), number))
    object.__setattr__(pan, "_number", number)
    return pan


def _mask(text: bytes, number: int) -> bytes:
    """Digits masked, or unmasked, with the keystream of a Pan's number."""
    pad = hashlib.blake2b(number.to_bytes(8), key=_MASK_KEY).digest()
    return (int.from_bytes(text) ^ int.from_bytes(pad[: len(text)])).to_bytes(len(text))


@boundary_init
@attrs.frozen(order=True)
class CardExpiry:
    """A month of a year from 2000 to 2099. A card is valid through the last day of it (UTC here)."""

    year: int
    month: int

    def __attrs_post_init__(self) -> None:
        if type(self.year) is not int or type(self.month) is not int:
            raise InvalidInputError("an expiry is a year and a month, whole numbers", code="EXPIRY_FORM")
        if not 2000 <= self.year <= 2099 or not 1 <= self.month <= 12:
            raise InvalidInputError(
                "an expiry is a month (1 to 12) of a year from 2000 to 2099", code="EXPIRY_FORM"
            )

    @staticmethod
    @boundary
    def parse(text: str | CardExpiry) -> CardExpiry:
        """Read "YYYY-MM". Raises InvalidInputError."""
        return read_expiry(text)

    @property
    def month_number(self) -> int:
        """Months from January 2000, which is 1."""
        return 12 * (self.year - 2000) + self.month

    @staticmethod
    @functools.cache  # 1,200 months; each record that is read asks for one
    def from_month_number(number: int) -> CardExpiry:
        """The inverse of `month_number`. Raises InvalidInputError."""
        years, months = divmod(number - 1, 12)
        return CardExpiry(2000 + years, months + 1)

    def passed(self, now_ms: int) -> bool:
        """Whether the month is over at a time given in milliseconds of the Unix epoch (UTC)."""
        next_month = date(self.year + self.month // 12, self.month % 12 + 1, 1)
        return now_ms >= (next_month.toordinal() - _EPOCH_ORDINAL) * 86_400_000

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"


def read_expiry(text: str | CardExpiry) -> CardExpiry:
    """As `CardExpiry.parse`, for callers within the boundary."""
    if isinstance(text, CardExpiry):
        return text
    if not isinstance(text, str) or _EXPIRY.fullmatch(text) is None:
        raise InvalidInputError(_EXPIRY_FORM, code="EXPIRY_FORM")
    return CardExpiry.from_month_number(12 * int(text[2:4]) + int(text[5:]))


@boundary_init
@attrs.frozen
class Card:
    """What a token stands for: a PAN and, where it was given, the card's expiry.

    Raises:
        InvalidInputError: a value is of another kind.
    """

    pan: Pan
    expiry: CardExpiry | None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.pan, Pan):
            raise InvalidInputError("pan is a Pan: make one with Pan.parse(text)")
        if self.expiry is not None and not isinstance(self.expiry, CardExpiry):
            raise InvalidInputError("expiry is a CardExpiry, or None")
