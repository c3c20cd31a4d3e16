"""Programs and requestors as documents: JSON with each field, of the domain its digest."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import attrs

from tokenvault.errors import IntegrityError, InvalidInputError
from tokenvault.model.domain import Domain
from tokenvault.model.pan import PanRule
from tokenvault.model.programs import Making, Permission, TokenProgram, TokenRequestor
from tokenvault.model.token_format import TokenFormat

P = TypeVar("P", TokenProgram, TokenRequestor)

_DOMAIN: Final = "domain"
_READ: Final[Mapping[str, Any]] = {
    "format": lambda value: TokenFormat(**value),
    "pans": lambda value: PanRule(lengths=tuple(value["lengths"]), luhn=value["luhn"]),
    "making": Making,
    "programs": frozenset,
    "permissions": lambda value: frozenset(map(Permission, value)),
}


def encode(party: TokenProgram | TokenRequestor) -> str:
    """The document of a program or requestor: JSON in ASCII with sorted keys; of its domain the SHA-256."""
    fields = {name: _plain(value) for name, value in _fields(party).items()}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def domain_of(document: str) -> bytes:
    """The SHA-256 of the domain that a document names. Raises IntegrityError."""
    try:
        return bytes.fromhex(json.loads(document)[_DOMAIN])
    except (ValueError, KeyError, TypeError):
        raise _unreadable() from None


def decode(kind: type[P], document: str, domain: Domain) -> P:
    """The program or requestor of a document, with its domain.

    Raises:
        IntegrityError: it has a field or a value that this version does not know.
    """
    try:
        fields = json.loads(document) | {_DOMAIN: domain}
        return kind(**{name: _READ.get(name, _same)(value) for name, value in fields.items()})
    except (InvalidInputError, ValueError, KeyError, TypeError):
        raise _unreadable() from None


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in attrs.fields(type(value)) if field.init}


def _plain(value: object) -> object:
    if isinstance(value, Domain):
        return value.digest.hex()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, frozenset):
        return sorted(map(_plain, value), key=str)
    return {name: _plain(each) for name, each in _fields(value).items()} if attrs.has(type(value)) else value


def _same(value: Any) -> Any:
    return value


def _unreadable() -> IntegrityError:
    return IntegrityError(
        "a program or requestor in the database was written by a newer version of the library",
        code="WRITTEN_BY_NEWER_VERSION",
    )
