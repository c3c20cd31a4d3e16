"""Primary account numbers and card expiry dates: strict parsing, and a PAN that does not leak.

A PAN is 13 to 19 digits of which the last is a Luhn check digit (ISO/IEC 7812-1, annex B). Some cards have 12 digits,
or no check digit: a program that takes them says so by its `PanRule`.
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
from tokenvault.model.plain_text import plain_text
from tokenvault.model.spellings import SHORTEST_NUMBER, readings, spelled
from tokenvault.model.zones import day_begin_ms

PAN_LENGTH_MIN: Final = 13
PAN_LENGTH_MAX: Final = 19
_LONG_BIN_FROM: Final = 16
SHORTEST_PAN: Final = SHORTEST_NUMBER
"""Digits of the shortest PAN that a `PanRule` may accept; `PAN_LENGTH_MIN` is what is accepted without one."""

LAST_ZONE_MS: Final = 12 * 3_600_000
"""How long after UTC a month ends in the last time zone of the earth, UTC-12."""

_GROUPED_LENGTH_MAX: Final = 2 * PAN_LENGTH_MAX - 1
_GROUPED: Final = re.compile(r"[0-9]+(?:[ -][0-9]+)*")
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_RUNS: Final = re.compile(r"[0-9]+")
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
    """Whether a text that a person typed holds 12 to 19 digits in a row that pass the Luhn check, blanks left out.

    One in ten of other numbers of that length does so by chance. What is kept is held to more: see `clear_ids`.
    """
    return any(
        SHORTEST_PAN <= len(run) <= PAN_LENGTH_MAX and luhn_valid(run)
        for form in (text, text.replace(" ", "").replace("-", ""))
        for run in _RUNS.findall(form)
    )


@boundary_init
@attrs.frozen(kw_only=True)
class PanRule:
    """Which numbers a program takes for PANs.

    Attributes:
        lengths: the fewest and the most digits, from 12 to 19.
        luhn: whether the last digit has to be a Luhn check digit.

    Raises:
        InvalidInputError: a value is of another form.
    """

    lengths: tuple[int, int] = (PAN_LENGTH_MIN, PAN_LENGTH_MAX)
    luhn: bool = True

    def __attrs_post_init__(self) -> None:
        lengths = self.lengths
        if (
            not isinstance(lengths, tuple)
            or len(lengths) != 2
            or any(type(length) is not int for length in lengths)
            or not SHORTEST_PAN <= lengths[0] <= lengths[1] <= PAN_LENGTH_MAX
        ):
            raise InvalidInputError(
                f"a PanRule's lengths are the fewest and the most digits, {SHORTEST_PAN} to {PAN_LENGTH_MAX}"
            )
        if type(self.luhn) is not bool:
            raise InvalidInputError("a PanRule's luhn is True or False")

    def check(self, digits: str) -> None:
        """Refuse digits that are no PAN by this rule. Raises InvalidInputError."""
        fewest, most = self.lengths
        if not fewest <= len(digits) <= most:
            raise InvalidInputError(f"a PAN has {fewest} to {most} digits", code="PAN_LENGTH")
        if self.luhn and not luhn_valid(digits):
            raise InvalidInputError("the PAN's check digit is wrong (Luhn)", code="PAN_CHECK_DIGIT")


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
    def parse(text: str | Pan, rule: PanRule | None = None) -> Pan:
        """Read a PAN: ASCII digits; single spaces or hyphens may stand between groups.

        Args:
            text: what to read.
            rule: which numbers are PANs; without one, those of 13 to 19 digits that are Luhn-valid.

        Raises:
            InvalidInputError: saying which rule fails, not what was given.
        """
        return read_pan(text, rule or USUAL_PANS)

    def reveal(self) -> str:
        """The digits. Keep them out of logs, and out of variables that live long."""
        return _mask(self._masked, self._number).decode("ascii")

    def stands_in(self, text: str) -> bool:
        """Whether a text holds the digits, whatever stands between them, before and behind."""
        found = readings(text)
        return bool(found) and spelled(found, self.reveal())

    @property
    def last4(self) -> str:
        """The last four digits."""
        return self.reveal()[-4:]

    @property
    def bin(self) -> str:
        """The first six digits; eight where there are 16 or more (PCI DSS 3.4.1), four of 12."""
        return self.reveal()[: bin_length(len(self))]

    @property
    def masked(self) -> str:
        """The first six and last four digits; the others as asterisks. Of 12 digits, the first four."""
        first = min(6, bin_length(len(self)))
        return f"{self.reveal()[:first]}{'*' * (len(self) - first - 4)}{self.last4}"

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


USUAL_PANS: Final = PanRule()
"""What is a PAN where no program says otherwise."""


def read_pan(text: str | Pan, rule: PanRule = USUAL_PANS) -> Pan:
    """As `Pan.parse`, for callers within the boundary."""
    if not isinstance(rule, PanRule):
        raise InvalidInputError("rule is a PanRule")
    if isinstance(text, Pan):
        rule.check(text.reveal())  # it may have been read by another rule
        return text
    fewest, most = rule.lengths
    text = plain_text(text)
    if not isinstance(text, str):
        raise InvalidInputError(f"a PAN is text of {fewest} to {most} digits", code="PAN_CHARACTERS")
    if len(text) > _GROUPED_LENGTH_MAX or _GROUPED.fullmatch(text) is None:
        raise InvalidInputError(
            "a PAN has ASCII digits only, with single spaces or hyphens between groups", code="PAN_CHARACTERS"
        )
    digits = text.replace(" ", "").replace("-", "")
    rule.check(digits)
    return trusted_pan(digits)


def bin_length(length: int) -> int:
    """How many of the first digits of a PAN of a length may be shown beside the last four: eight, six or four."""
    if length >= _LONG_BIN_FROM:
        return 8
    return 6 if length >= PAN_LENGTH_MIN else 4


def trusted_pan(digits: str) -> Pan:
    """A Pan of digits that are known to be one: they were checked, or checked when they were sealed."""
    pan = object.__new__(Pan)
    number = next(_pans)
    object.__setattr__(pan, "_masked", _mask(digits.encode("ascii"), number))
    object.__setattr__(pan, "_number", number)
    return pan


@functools.lru_cache(maxsize=4_800)  # 1,200 months in the few zones that programs name
def _month_end_ms(year: int, month: int, zone: str | None) -> int:
    days = date(year + month // 12, month % 12 + 1, 1).toordinal() - _EPOCH_ORDINAL
    return days * 86_400_000 + LAST_ZONE_MS if zone is None else day_begin_ms(zone, days)


def _mask(text: bytes, number: int) -> bytes:
    """Digits masked, or unmasked, with the keystream of a Pan's number."""
    pad = hashlib.blake2b(number.to_bytes(8), key=_MASK_KEY).digest()
    return (int.from_bytes(text) ^ int.from_bytes(pad[: len(text)])).to_bytes(len(text))


@boundary_init
@attrs.frozen(order=True)
class CardExpiry:
    """A month of a year from 2000 to 2099. A card is valid through the last day of it, somewhere on earth."""

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

    def passed(self, now_ms: int, zone: str | None = None) -> bool:
        """Whether the month is over.

        Args:
            now_ms: the time, in milliseconds of the Unix epoch.
            zone: name of a time zone; None: the last one of the earth, UTC-12.
        """
        return now_ms >= _month_end_ms(self.year, self.month, zone)

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"


def read_expiry(text: str | CardExpiry) -> CardExpiry:
    """As `CardExpiry.parse`, for callers within the boundary."""
    if isinstance(text, CardExpiry):
        return text
    text = plain_text(text)
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
