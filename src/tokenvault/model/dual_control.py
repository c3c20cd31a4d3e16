"""Dual control: who counts as one person, what a policy allows, and how a request is named.

A request's name has the letters a to p only, four bits each: no name can hold a card number, or be taken for one.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from datetime import datetime
from typing import Final

import attrs

from tokenvault.errors import InvalidInputError, boundary_init
from tokenvault.model import checks
from tokenvault.model.plain_text import plain_text
from tokenvault.model.spellings import readings

MINUTES_MAX: Final = 1_440
PER_PERSON_AND_DAY_MAX: Final = 10_000
DAY_MS: Final = 86_400_000
KEY_BYTES: Final = 16

_LETTERS: Final = "abcdefghijklmnop"
_TO_LETTERS: Final = str.maketrans("0123456789abcdef", _LETTERS)
_FROM_LETTERS: Final = str.maketrans(_LETTERS, "0123456789abcdef")
_PERSON_DAY: Final = b"tokenvault person and day\0"


def operator(value: object) -> str:
    """The operator of a call under dual control, as its events name them: without blanks at either end.

    12 digits in a row are refused: an event would not hold them as they are, and two persons could look like one.
    Raises InvalidInputError.
    """
    text = plain_text(value)
    plain = unicodedata.normalize("NFKC", text).strip() if isinstance(text, str) else value
    checked = checks.text("operator", plain)
    if any(readings(checked)):
        raise InvalidInputError(
            "an operator is named here without 12 or more digits: they could be a card number",
            code="OPERATOR_COULD_BE_CARD",
        )
    return checked


def person(named: str) -> str:
    """What two names of one person have in common: no case, no blanks, no variants of one character."""
    return "".join(unicodedata.normalize("NFKC", named).casefold().split())


def person_day(action: int, named: str, time_ms: int) -> bytes:
    """16 bytes by which the events of one action of one person on one day, in UTC, are found."""
    text = f"{action}\0{time_ms // DAY_MS}\0{person(named)}"
    return hashlib.sha256(_PERSON_DAY + text.encode()).digest()[:KEY_BYTES]


def letters(value: bytes) -> str:
    """Bytes as letters."""
    return value.hex().translate(_TO_LETTERS)


def from_letters(text: str) -> bytes:
    """The inverse of `letters`; nothing for a text that it does not give."""
    if set(text) <= set(_LETTERS) and len(text) % 2 == 0:
        return bytes.fromhex(text.translate(_FROM_LETTERS))
    return b""


def _purpose(value: object) -> str:
    purpose = checks.text("a purpose", value)
    if any(readings(purpose)):
        raise InvalidInputError("a purpose holds no card number")
    return purpose


def _purposes(values: Iterable[str]) -> frozenset[str]:
    return checks.set_of("purposes", values, _purpose)


@boundary_init
@attrs.frozen(kw_only=True)
class RevealPolicy:
    """Who may get card numbers out of a vault by dual control, why, and how many.

    Attributes:
        purposes: what a request may give as its purpose, each 1 to 64 printable ASCII characters.
        minutes: how long a request lives, from 1 to 1,440: it has to be approved and used within them.
        per_person_and_day: how many requests one person makes in a day of UTC, from 1 to 10,000; of reveals, and
            again of exports.

    Raises:
        InvalidInputError: a value is of another form.
    """

    purposes: frozenset[str] = attrs.field(converter=_purposes)
    minutes: int = attrs.field(default=15, validator=lambda *a: _whole("minutes", a[2], MINUTES_MAX))
    per_person_and_day: int = attrs.field(
        default=10, validator=lambda *a: _whole("per_person_and_day", a[2], PER_PERSON_AND_DAY_MAX)
    )


def _whole(name: str, value: object, most: int) -> None:
    checks.whole_number(name, value, 1, most)


_ID_ACCEPTS: Final = "request is a RevealRequest, or the id of one"


@boundary_init
@attrs.frozen(kw_only=True)
class RevealRequest:
    """A request to see one card number, or to export cards, as it stands in the audit trail.

    Attributes:
        id: 64 letters; by it another person approves the request, in whichever process.
        reference: of the token, 32 hexadecimal digits; of an export, its number.
        purpose: why.
        requested_by: the person who made it, and who alone may use it.
        requested: when, in UTC.
        expires: until when it has to be approved and used.
        approved_by: the person who approved it; None so far.
        terms: of an export: the thumbprint of the public key (RFC 7638) in 64 letters, and which program and
            requestor, where it is not all.
    """

    id: str
    reference: str
    purpose: str
    requested_by: str
    requested: datetime
    expires: datetime
    approved_by: str | None = None
    terms: tuple[str, ...] = ()


def request_id(value: object) -> tuple[bytes, bytes]:
    """The subject and the number of a request, 16 bytes each. Raises InvalidInputError."""
    text = value.id if isinstance(value, RevealRequest) else plain_text(value)
    found = from_letters(text) if isinstance(text, str) else b""
    if len(found) != 2 * KEY_BYTES or not any(found[KEY_BYTES:]):  # no request has number 0
        raise InvalidInputError(_ID_ACCEPTS)
    return found[:KEY_BYTES], found[KEY_BYTES:]
