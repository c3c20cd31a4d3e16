"""Checks of arguments. Their messages name the argument and what it accepts, never what was given."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final, TypeVar, cast

from tokenvault.errors import InvalidInputError, asked, given
from tokenvault.model import iso
from tokenvault.model.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN
from tokenvault.model.plain_text import plain_text

TEXT_LENGTH_MAX: Final = 64
LONG_TEXT_LENGTH_MAX: Final = 256
SET_SIZE_MAX: Final = 10_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_TEXT: Final = re.compile(rf"[!-~](?:[ -~]{{0,{TEXT_LENGTH_MAX - 2}}}[!-~])?")
_LONG_TEXT: Final = re.compile(rf"[!-~](?:[ -~]{{0,{LONG_TEXT_LENGTH_MAX - 2}}}[!-~])?")
_REQUESTOR: Final = re.compile(r"[0-9]{11}")
_TOKEN: Final = re.compile(rf"[0-9]{{{PAN_LENGTH_MIN},{PAN_LENGTH_MAX}}}")
_PAR: Final = re.compile(r"[0-9A-Z]{29}")
_MERCHANT_CATEGORY: Final = re.compile(r"[0-9]{4}")
_MERCHANT_CATEGORIES: Final = re.compile(r"([0-9]{4})-([0-9]{4})")
_ASSURANCE: Final = re.compile(r"[0-9A-Z]{2}")
_TEXT_ACCEPTS: Final = f"1 to {TEXT_LENGTH_MAX} printable ASCII characters, without a blank at either end"
_LONG_TEXT_ACCEPTS: Final = (
    f"1 to {LONG_TEXT_LENGTH_MAX} printable ASCII characters, without a blank at either end"
)
_TOKEN_ACCEPTS: Final = f"{PAN_LENGTH_MIN} to {PAN_LENGTH_MAX} digits"

T = TypeVar("T")


def text(name: str, value: object) -> str:
    """1 to 64 printable ASCII characters with no space at either end."""
    return _matching(name, value, _TEXT, _TEXT_ACCEPTS)


def long_text(name: str, value: object) -> str:
    """1 to 256 printable ASCII characters with no space at either end."""
    return _matching(name, value, _LONG_TEXT, _LONG_TEXT_ACCEPTS)


def unpadded(value: T) -> T:
    """A value without blanks at its end, if it is a text: ISO 8583 pads its fields to their length (DE 41, DE 42)."""
    text = plain_text(value)
    return cast(T, text.rstrip(" ")) if isinstance(text, str) else value


def padded_text(name: str, value: object) -> str:
    """A long text that may be padded with blanks, without them."""
    return long_text(name, unpadded(value))


def requestor_id(name: str, value: object) -> str:
    """A token requestor id (EMVCo): 11 digits."""
    return _matching(name, value, _REQUESTOR, "a token requestor id: 11 digits")


def token(value: object) -> str:
    """A token: 13 to 19 digits without separators."""
    return _matching("the token", value, _TOKEN, _TOKEN_ACCEPTS)


def par(value: object) -> str:
    """A payment account reference (EMVCo): 29 uppercase alphanumerics."""
    return _matching("par", value, _PAR, "29 uppercase letters and digits")


def assurance(name: str, value: object) -> str:
    """A token assurance method (EMVCo): 2 characters."""
    return _matching(name, value, _ASSURANCE, "2 uppercase letters or digits")


def merchant_category(value: object) -> str:
    """A merchant category code (ISO 18245): 4 digits."""
    return _matching("a merchant category", value, _MERCHANT_CATEGORY, "4 digits (ISO 18245)")


def merchant_categories(value: object) -> str:
    """A merchant category code, or a range of them such as "3000-3999"."""
    bounds = _MERCHANT_CATEGORIES.fullmatch(value) if isinstance(value, str) else None
    if bounds is None:
        return merchant_category(value)
    if bounds[1] >= bounds[2]:
        raise InvalidInputError("a range of merchant categories begins before it ends")
    return bounds[0]


def country(value: object) -> str:
    """A country code (ISO 3166-1 alpha-2)."""
    text = plain_text(value)
    if not isinstance(text, str) or not iso.is_country(text):
        raise InvalidInputError('a country is an ISO 3166-1 code of two letters, such as "FR"')
    return text


def currency(value: object) -> str:
    """A currency code (ISO 4217)."""
    text = plain_text(value)
    if not isinstance(text, str) or not iso.is_currency(text):
        raise InvalidInputError('a currency is an ISO 4217 code, such as "EUR"')
    return text


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """An int, not a bool, within bounds."""
    if type(value) is not int or not low <= value <= high:
        raise InvalidInputError(f"{name} is a whole number from {low} to {high}")
    return value


def true_or_false(name: str, value: object) -> bool:
    """A bool."""
    if type(value) is not bool:
        raise InvalidInputError(f"{name} is True or False")
    return value


def instant(name: str, value: object) -> datetime:
    """An instant of the years 2000 to 2199, given with a time zone; in UTC, rounded down to the millisecond."""
    if not isinstance(value, datetime) or value.tzinfo is None or value.utcoffset() is None:
        raise InvalidInputError(f"{name}: a datetime with a time zone")
    try:
        utc = value.astimezone(UTC)
    except (OverflowError, ValueError):
        utc = datetime.min
    if not 2000 <= utc.year <= 2199:
        raise InvalidInputError(f"{name}: a year from 2000 to 2199")
    return utc.replace(microsecond=utc.microsecond // 1_000 * 1_000)


def milliseconds(instant: datetime) -> int:
    """An instant in milliseconds of the Unix epoch."""
    return (instant - _EPOCH) // _MILLISECOND


def utc(time_ms: int) -> datetime:
    """The instant, in UTC, of milliseconds of the Unix epoch."""
    return _EPOCH + time_ms * _MILLISECOND


def whole_seconds(name: str, value: object, most: int) -> timedelta:
    """A timedelta of whole seconds, from 1 to a number of them."""
    span = instance(name, value, timedelta)
    if span.microseconds or not 1 <= span.total_seconds() <= most:
        raise InvalidInputError(f"{name} is whole seconds, from 1 second to {most // 86_400} days")
    return span


def seconds(span: timedelta) -> int:
    """The whole seconds of a timedelta."""
    return span.days * 86_400 + span.seconds


def instance(name: str, value: object, kind: type[T]) -> T:
    """An instance of a class of the library."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[:1].lower() in "aeio" else "a"
        raise InvalidInputError(f"{name} is {article} {kind.__name__}")
    return value


def offers(name: str, value: object, method: str, kind: str) -> None:
    """An object of whichever class that has a method, as everything of its kind does."""
    if not callable(getattr(value, method, None)):
        raise InvalidInputError(f"{name} is {kind}")


def blocking_store(name: str, value: object) -> None:
    """A token store without coroutines."""
    kind = "a token store without coroutines, as open_token_store opens one"
    offers(name, value, "check_schema", kind)
    if inspect.iscoroutinefunction(value.check_schema):  # type: ignore[attr-defined] # it was just seen
        raise InvalidInputError(f"{name} is {kind}")


def listed(name: str, values: object, most: int) -> list[object]:
    """The values of an iterable, at most one more than there may be."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidInputError(f"{name} is a list or set of values, or another iterable")
    return list(islice(given(f"the iterable of {name} failed", values), most + 1))


def mapping(problem: str, value: object) -> dict[Any, Any]:
    """A mapping of the caller's, read once. The problem is told where it is none, or fails."""
    if type(value) is dict:
        return value
    if not isinstance(value, Mapping):
        raise InvalidInputError(problem)
    return asked(problem, dict, value)


def set_of(name: str, values: object, check: Callable[[object], T]) -> frozenset[T]:
    """A set of 1 to 10,000 checked values. An empty one is refused: nothing would ever match it."""
    found = listed(name, values, SET_SIZE_MAX)
    if not 1 <= len(found) <= SET_SIZE_MAX:
        raise InvalidInputError(f"{name} has 1 to {SET_SIZE_MAX} values; leave it out to not restrict")
    return frozenset([check(value) for value in found])


def _matching(name: str, value: object, pattern: re.Pattern[str], accepts: str) -> str:
    text = plain_text(value)
    if not isinstance(text, str) or pattern.fullmatch(text) is None:
        raise InvalidInputError(f"{name} is {accepts}")
    return text
