"""The document of a domain: canonical JSON out, strict JSON in.

Canonical: ASCII, names sorted, no spaces, sets sorted, instants in milliseconds of the Unix epoch, unset
controls left out. Equal domains have equal documents, so a document is addressed by its SHA-256.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from tokenvault.errors import InvalidInputError
from tokenvault.model import checks, controls
from tokenvault.model.controls import Channel, CryptogramRule, Limit, Money

DOCUMENT_BYTES_MAX: Final = 65_536

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

E = TypeVar("E", bound=enum.Enum)


def encode(values: Mapping[str, object]) -> bytes:
    """The canonical document of a domain's controls by their names; those that are None or () are left out.

    Raises InvalidInputError where it passes 65,536 bytes.
    """
    fields = {name: _out(value) for name, value in values.items() if value is not None and value != ()}
    document = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
    if len(document) > DOCUMENT_BYTES_MAX:
        raise InvalidInputError(f"a domain's document is at most {DOCUMENT_BYTES_MAX} bytes")
    return document


def decode(text: object) -> dict[str, Any]:
    """The arguments of the Domain that a document describes. Raises InvalidInputError."""
    if not isinstance(text, str | bytes) or len(text) > DOCUMENT_BYTES_MAX:
        raise InvalidInputError(f"a domain's document is JSON of at most {DOCUMENT_BYTES_MAX} bytes")
    try:
        fields = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_refuse)
    except (ValueError, RecursionError):
        fields = None
    fields = _object_in(fields, *_READERS)
    return {name: _READERS[name](value) for name, value in fields.items()}


def _out(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(item.value if isinstance(item, enum.Enum) else item for item in value)
    if isinstance(value, datetime):
        return (value - _EPOCH) // _MILLISECOND
    if isinstance(value, Money):
        return {"amount": value.amount, "currency": value.currency}
    if isinstance(value, Limit):
        counted = {"uses": value.uses} if value.amount is None else {"amount": _out(value.amount)}
        return counted if value.per is None else {**counted, "per_seconds": value.counter.window_seconds}
    if isinstance(value, tuple):
        return [_out(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError
    return names


def _refuse(_constant: str) -> object:
    raise ValueError


def _object_in(value: object, *names: str) -> Mapping[str, object]:
    if not isinstance(value, dict) or not value.keys() <= set(names):
        raise InvalidInputError(f"in a domain's document, an object of: {', '.join(sorted(names))}")
    return value


def _money_in(value: object) -> Money:
    fields = _object_in(value, "amount", "currency")
    amount, currency = fields.get("amount"), fields.get("currency")
    return Money(
        checks.whole_number("an amount", amount, 0, controls.MINOR_UNITS_MAX), controls.currency(currency)
    )


def _limit_in(value: object) -> Limit:
    fields = _object_in(value, "uses", "amount", "per_seconds")
    uses, amount, per = fields.get("uses"), fields.get("amount"), fields.get("per_seconds")
    return Limit(
        uses=None if uses is None else checks.whole_number("uses", uses, 1, controls.LIMIT_USES_MAX),
        amount=None if amount is None else _money_in(amount),
        per=None
        if per is None
        else timedelta(seconds=checks.whole_number("per_seconds", per, 1, controls.WINDOW_SECONDS_MAX)),
    )


def _limits_in(value: object) -> tuple[Limit, ...]:
    return tuple(map(_limit_in, _list_in(value)))


def _instant_in(value: object) -> datetime:
    return _EPOCH + checks.whole_number("an instant in ms", value, 0, 10**13) * _MILLISECOND


def _enum_in(kind: type[E], value: object) -> E:
    by_value = {member.value: member for member in kind}
    if not isinstance(value, str) or value not in by_value:
        raise InvalidInputError(f"in a domain's document, one of: {', '.join(sorted(by_value))}")
    return by_value[value]


def _list_in(value: object) -> list[object]:
    if not isinstance(value, list):
        raise InvalidInputError("in a domain's document, a list")
    return value


def _channels_in(value: object) -> list[Channel]:
    return [_enum_in(Channel, item) for item in _list_in(value)]


def _cryptogram_in(value: object) -> CryptogramRule:
    return _enum_in(CryptogramRule, value)


def _assurance_in(value: object) -> str:
    return checks.assurance("min_assurance", value)


_READERS: Final[Mapping[str, Callable[[object], object]]] = {
    "requestors": _list_in,
    "merchants": _list_in,
    "merchant_categories": _list_in,
    "channels": _channels_in,
    "countries": _list_in,
    "currencies": _list_in,
    "devices": _list_in,
    "valid_from": _instant_in,
    "valid_until": _instant_in,
    "max_amount": _money_in,
    "limits": _limits_in,
    "cryptogram": _cryptogram_in,
    "min_assurance": _assurance_in,
}

CONTROLS: Final = tuple(_READERS)
"""The names of the controls that a document may hold."""
