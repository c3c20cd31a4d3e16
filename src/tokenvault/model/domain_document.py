"""The document of a domain: canonical JSON out, strict JSON in.

Canonical: ASCII, names sorted, no spaces, sets sorted, instants in milliseconds of the Unix epoch, unset
controls left out. Equal domains have equal documents, so a document is addressed by its SHA-256.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from tokenvault.errors import InvalidInputError
from tokenvault.model import checks
from tokenvault.model.limits import LIMIT_USES_MAX, WINDOW_SECONDS_MAX, Limit
from tokenvault.model.money import MINOR_UNITS_MAX, Money
from tokenvault.model.transaction import Channel

DOCUMENT_BYTES_MAX: Final = 65_536

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

E = TypeVar("E", bound=enum.Enum)


def encode(values: Mapping[str, object]) -> bytes:
    """The canonical document of the values of controls, by the controls' names."""
    fields = {name: _out(value) for name, value in values.items()}
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def decode(text: object, readers: Mapping[str, Callable[[object], object]]) -> dict[str, object]:
    """The values of controls that a document describes, each as its reader reads it. Raises InvalidInputError."""
    if not isinstance(text, str | bytes) or len(text) > DOCUMENT_BYTES_MAX:
        raise InvalidInputError(f"a domain's document is JSON of at most {DOCUMENT_BYTES_MAX} bytes")
    try:
        fields = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_refuse)
    except (ValueError, RecursionError):
        fields = None
    return {name: readers[name](value) for name, value in _object(fields, *readers).items()}


def milliseconds(instant: datetime) -> int:
    """An instant in milliseconds of the Unix epoch."""
    return (instant - _EPOCH) // _MILLISECOND


def _out(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(item.value if isinstance(item, enum.Enum) else item for item in value)
    if isinstance(value, datetime):
        return milliseconds(value)
    if isinstance(value, Money):
        return {"amount": value.amount, "currency": value.currency}
    if isinstance(value, Limit):
        counted = {"uses": value.uses} if value.amount is None else {"amount": _out(value.amount)}
        return counted if value.per is None else {**counted, "per_seconds": value._counter.window_seconds}
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


def _object(value: object, *names: str) -> Mapping[str, object]:
    if not isinstance(value, dict) or not value.keys() <= set(names):
        raise InvalidInputError(f"in a domain's document, an object of: {', '.join(sorted(names))}")
    return value


# The readers, for the table of controls.


def values_in(value: object) -> list[object]:
    """The values of a JSON list."""
    if not isinstance(value, list):
        raise InvalidInputError("in a domain's document, a list")
    return value


def member_in(kind: type[E], value: object) -> E:
    """The member of an enum that has a value."""
    by_value = {member.value: member for member in kind}
    if not isinstance(value, str) or value not in by_value:
        raise InvalidInputError(f"in a domain's document, one of: {', '.join(sorted(by_value))}")
    return by_value[value]


def channels_in(value: object) -> list[Channel]:
    """The channels that have the values of a JSON list."""
    return [member_in(Channel, item) for item in values_in(value)]


def instant_in(value: object) -> datetime:
    """The instant of so many milliseconds of the Unix epoch."""
    return _EPOCH + checks.whole_number("an instant in ms", value, 0, 10**13) * _MILLISECOND


def money_in(value: object) -> Money:
    """The money of a JSON object with amount and currency."""
    fields = _object(value, "amount", "currency")
    amount = checks.whole_number("an amount", fields.get("amount"), 0, MINOR_UNITS_MAX)
    return Money(amount, checks.currency(fields.get("currency")))


def limits_in(value: object) -> tuple[Limit, ...]:
    """The limits of a JSON list of objects with uses or amount, and per_seconds."""
    return tuple(map(_limit_in, values_in(value)))


def _limit_in(value: object) -> Limit:
    fields = _object(value, "uses", "amount", "per_seconds")
    uses, amount, per = fields.get("uses"), fields.get("amount"), fields.get("per_seconds")
    if uses is not None:
        uses = checks.whole_number("uses", uses, 1, LIMIT_USES_MAX)
    if per is not None:
        per = timedelta(seconds=checks.whole_number("per_seconds", per, 1, WINDOW_SECONDS_MAX))
    return Limit(uses=uses, amount=None if amount is None else money_in(amount), per=per)
