"""Checks of arguments. Their messages name the argument and what it accepts, never what was given."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, TypeVar, cast

from tokenvault.errors import InvalidInputError, is_of_signal_handler
from tokenvault.model.iso import COUNTRIES, CURRENCIES
from tokenvault.model.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN

TEXT_LENGTH_MAX: Final = 64
SET_SIZE_MAX: Final = 1_000

_TEXT: Final = re.compile(r"[!-~](?:[ -~]{0,62}[!-~])?")
_REQUESTOR: Final = re.compile(r"[0-9]{11}")
_TOKEN: Final = re.compile(rf"[0-9]{{{PAN_LENGTH_MIN},{PAN_LENGTH_MAX}}}")
_PAR: Final = re.compile(r"[0-9A-Z]{29}")
_MERCHANT_CATEGORY: Final = re.compile(r"[0-9]{4}")
_ASSURANCE: Final = re.compile(r"[0-9A-Z]{2}")
_TEXT_ACCEPTS: Final = f"1 to {TEXT_LENGTH_MAX} printable ASCII characters, without a blank at either end"
_TOKEN_ACCEPTS: Final = f"{PAN_LENGTH_MIN} to {PAN_LENGTH_MAX} digits"

T = TypeVar("T")


def text(name: str, value: object) -> str:
    """1 to 64 printable ASCII characters with no space at either end."""
    return _matching(name, value, _TEXT, _TEXT_ACCEPTS)


def unpadded(value: T) -> T:
    """A value without blanks at its end, if it is a text: ISO 8583 pads its fields to their length (DE 41, DE 42)."""
    return cast(T, value.rstrip(" ")) if isinstance(value, str) else value


def padded_text(name: str, value: object) -> str:
    """A text that may be padded with blanks, without them."""
    return text(name, unpadded(value))


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


def country(value: object) -> str:
    """A country code (ISO 3166-1 alpha-2)."""
    if not isinstance(value, str) or value not in COUNTRIES:
        raise InvalidInputError('a country is an ISO 3166-1 code of two letters, such as "FR"')
    return value


def currency(value: object) -> str:
    """A currency code (ISO 4217)."""
    if not isinstance(value, str) or value not in CURRENCIES:
        raise InvalidInputError('a currency is an ISO 4217 code, such as "EUR"')
    return value


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """An int, not a bool, within bounds."""
    if type(value) is not int or not low <= value <= high:
        raise InvalidInputError(f"{name} is a whole number from {low} to {high}")
    return value


def instance(name: str, value: object, kind: type[T]) -> T:
    """An instance of a class of the library."""
    if not isinstance(value, kind):
        raise InvalidInputError(f"{name} is a {kind.__name__}")
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
    try:
        return list(islice(values, most + 1))
    except Exception as error:  # the caller's own iterator failed, with whatever it holds
        if is_of_signal_handler(error):
            raise
        raise InvalidInputError(f"the iterable of {name} failed") from None


def set_of(name: str, values: object, check: Callable[[object], T]) -> frozenset[T]:
    """A set of 1 to 1,000 checked values. An empty one is refused: nothing would ever match it."""
    given = listed(name, values, SET_SIZE_MAX)
    if not 1 <= len(given) <= SET_SIZE_MAX:
        raise InvalidInputError(f"{name} has 1 to {SET_SIZE_MAX} values; leave it out to not restrict")
    return frozenset([check(value) for value in given])


def _matching(name: str, value: object, pattern: re.Pattern[str], accepts: str) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise InvalidInputError(f"{name} is {accepts}")
    return value
