"""The document of a domain: canonical JSON out, strict JSON in.

Canonical: ASCII, names sorted, no spaces, sets sorted, instants in milliseconds of the Unix epoch, spans in whole
seconds, unset controls left out. Equal domains have equal documents, so a document is addressed by its SHA-256.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final, TypeVar, cast

from tokenvault.errors import InvalidInputError, shown_name
from tokenvault.model import checks
from tokenvault.model.kinds import Kind
from tokenvault.model.limits import LIMIT_USES_MAX, SCOPES, UTC_ZONE, WINDOW_SECONDS_MAX, Limit
from tokenvault.model.listing import AllBut
from tokenvault.model.money import MINOR_UNITS_MAX, Money
from tokenvault.model.periods import Period
from tokenvault.model.transaction import Channel

DOCUMENT_BYTES_MAX: Final = 4_194_304
"""Room for a list of 10,000 merchants of 256 characters."""

ALL_BUT: Final = "all_but"

E = TypeVar("E", bound=enum.Enum)


def encode(values: Mapping[str, object]) -> bytes:
    """The canonical document of the values of controls, by the controls' names."""
    return canonical({name: _out(value) for name, value in values.items()})


def canonical(fields: object) -> bytes:
    """Canonical JSON of plain values."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def decode(text: object, readers: Mapping[str, Callable[[object], object]]) -> dict[str, object]:
    """The values of controls that a document describes, each as its reader reads it. Raises InvalidInputError."""
    if not isinstance(text, str | bytes) or len(text) > DOCUMENT_BYTES_MAX:
        raise InvalidInputError(f"a domain's document is JSON of at most {DOCUMENT_BYTES_MAX} bytes")
    try:
        fields = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_refuse)
    except (ValueError, RecursionError):
        fields = None
    return _members(fields, readers)


def _members(fields: object, readers: Mapping[str, Callable[[object], object]]) -> dict[str, object]:
    """The members of a JSON object, each as its reader reads it. Raises InvalidInputError, which names the member."""
    return {name: _placed(name, readers[name], value) for name, value in _object(fields, *readers).items()}


def _placed(place: str, read: Callable[[object], object], value: object) -> object:
    try:
        return read(value)
    except InvalidInputError as error:
        problem = InvalidInputError(f"{place}: {error}", code=error.code)
    raise problem


def texts(document: bytes) -> list[str]:
    """Every text and number in a document, names apart."""
    left, found = [json.loads(document)], list[str]()
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        else:
            found.append(str(value))
    return found


def counted_of(limit: Limit) -> dict[str, object]:
    """What a limit counts: its fields without its maximum, plain."""
    fields: dict[str, object] = {"counts": "uses" if limit.amount is None else limit.amount.currency}
    if isinstance(limit.per, Period):
        fields["per"] = limit.per.value
        if limit.zone != UTC_ZONE:
            fields["zone"] = limit.zone
    elif limit.per is not None:
        fields["per_seconds"] = checks.seconds(limit.per)
    for name in ("since_authentication", "without_authentication"):
        if getattr(limit, name):
            fields[name] = True
    for name in SCOPES:
        if getattr(limit, name) is not None:
            fields[name] = _out(getattr(limit, name))
    return fields


def _out(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(item.value if isinstance(item, enum.Enum) else item for item in value)
    if isinstance(value, AllBut):
        return {ALL_BUT: _out(value.values)}
    if isinstance(value, datetime):
        return checks.milliseconds(value)
    if isinstance(value, timedelta):
        return checks.seconds(value)
    if isinstance(value, Money):
        return {"amount": value.amount, "currency": value.currency}
    if isinstance(value, Limit):
        counted = counted_of(value)
        del counted["counts"]
        return {
            **counted,
            **({"uses": value.uses} if value.amount is None else {"amount": _out(value.amount)}),
        }
    if isinstance(value, tuple):
        return [_out(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def limit_order(limit: Limit) -> tuple[bool, str, bytes]:
    """Where a limit stands in a domain: first those that hold for every use; by what is counted; by text."""
    return limit.light, limit.amount.currency if limit.amount else "", canonical(_out(limit))


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError
    return names


def _refuse(_constant: str) -> object:
    raise ValueError


def _object(value: object, *names: str) -> Mapping[str, object]:
    if not isinstance(value, dict) or not value.keys() <= set(names):
        others = [shown_name(name) for name in value if name not in names] if isinstance(value, dict) else []
        wrong = f"; there is one {others[0]}" if others else ""
        raise InvalidInputError(f"in a domain's document, an object of: {', '.join(sorted(names))}{wrong}")
    return value


# The readers, for the table of controls.


def values_in(value: object) -> object:
    """The values of a JSON list, or all but those of the list in an object."""
    if isinstance(value, dict):
        return AllBut(_list(_object(value, ALL_BUT).get(ALL_BUT)))
    return _list(value)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise InvalidInputError("in a domain's document, a list")
    return value


def member_in(kind: type[E], value: object) -> E:
    """The member of an enum that has a value."""
    by_value = {member.value: member for member in kind}
    if not isinstance(value, str) or value not in by_value:
        raise InvalidInputError(f"in a domain's document, one of: {', '.join(sorted(by_value))}")
    return by_value[value]


def members_in(kind: type[E], value: object) -> object:
    """As `values_in`, of the members of an enum."""
    values = values_in(value)
    if isinstance(values, AllBut):
        return AllBut([member_in(kind, item) for item in values.values])
    return [member_in(kind, item) for item in _list(values)]


def instant_in(value: object) -> datetime:
    """The instant of so many milliseconds of the Unix epoch."""
    return checks.utc(checks.whole_number("an instant in ms", value, 0, 10**13))


def span_in(value: object) -> timedelta:
    """The span of so many seconds."""
    return timedelta(seconds=checks.whole_number("a span in seconds", value, 1, WINDOW_SECONDS_MAX))


def money_in(value: object) -> Money:
    """The money of a JSON object with amount and currency."""
    fields = _object(value, "amount", "currency")
    amount = checks.whole_number("an amount", fields.get("amount"), 0, MINOR_UNITS_MAX)
    return Money(amount, checks.currency(fields.get("currency")))


def true_in(value: object) -> bool:
    """True; what is false is left out."""
    if value is not True:
        raise InvalidInputError("in a domain's document, true; or leave it out")
    return True


def limits_in(value: object) -> tuple[Limit, ...]:
    """The limits of a JSON list of objects."""
    return tuple(
        cast(Limit, _placed(f"{place}", _limit_in, each)) for place, each in enumerate(_list(value), 1)
    )


_LIMIT_READERS: Final[Mapping[str, Callable[[object], object]]] = {
    "uses": lambda value: checks.whole_number("uses", value, 1, LIMIT_USES_MAX),
    "amount": money_in,
    "per": lambda value: member_in(Period, value),
    "per_seconds": span_in,
    "zone": lambda value: value,
    "since_authentication": true_in,
    "without_authentication": true_in,
    "channels": lambda value: members_in(Channel, value),
    "merchants": values_in,
    "requestors": values_in,
    "kinds": lambda value: members_in(Kind, value),
}


def _limit_in(value: object) -> Limit:
    fields = _object(value, *_LIMIT_READERS)
    if {"per", "per_seconds"} <= fields.keys():
        raise InvalidInputError("in a domain's document, a limit has per or per_seconds")
    read = {name.removesuffix("_seconds"): each for name, each in _members(fields, _LIMIT_READERS).items()}
    return Limit(**read)  # type: ignore[arg-type] # its constructor checks each of them
