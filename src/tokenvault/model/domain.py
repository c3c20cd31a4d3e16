"""The token domain restriction controls of a token (EMVCo Payment Tokenisation), as data.

An unset control does not restrict. A set control that a transaction says nothing about fails. The one
exception: while a token's own domain names no requestors, only the requestor it was issued to may use it.
What each control means stands in `controls`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from functools import cached_property
from typing import Any, Final, cast

import attrs

from tokenvault.errors import InvalidInputError, boundary, boundary_init
from tokenvault.model import domain_document
from tokenvault.model.controls import CONTROLS, Control, CryptogramRule
from tokenvault.model.domain_document import DOCUMENT_BYTES_MAX
from tokenvault.model.limits import Limit
from tokenvault.model.money import Money
from tokenvault.model.pan import Pan, holds_digits
from tokenvault.model.transaction import Channel

_FROM_JSON: Final = {name: control.from_json for name, control in CONTROLS.items()}


# Converters tell type checkers what the constructor takes, and convert nothing: the table of controls reads it.
def _texts(values: Iterable[str] | None) -> frozenset[str] | None:
    return cast("frozenset[str] | None", values)


def _channels(values: Iterable[Channel] | None) -> frozenset[Channel] | None:
    return cast("frozenset[Channel] | None", values)


def _limits(values: Iterable[Limit]) -> tuple[Limit, ...]:
    return cast("tuple[Limit, ...]", values)


@boundary_init
@attrs.frozen(kw_only=True)
class Domain:
    """Where, how, how much, how often and until when a token may be used.

    Attributes:
        requestors: token requestor ids (11 digits) that may use the token.
        merchants: merchant ids, 1 to 64 printable ASCII characters (ISO 8583 data element 42).
        merchant_categories: ISO 18245, 4 digits.
        channels: how the payment is made.
        countries: ISO 3166-1 alpha-2, of the merchant.
        currencies: ISO 4217.
        devices: device ids, 1 to 64 printable ASCII characters.
        valid_from, valid_until: first instant of validity, and first instant after it; with a time zone,
            rounded down to the millisecond.
        max_amount: the most that one use may be.
        limits: at most 8; each must hold.
        cryptogram: what is required of the cryptogram of a use.
        min_assurance: least token assurance method (2 characters, compared as ASCII text).
        document, digest: the canonical document (see `to_json`), and its SHA-256.

    Raises:
        InvalidInputError: on any other value, and on an empty set.
    """

    requestors: frozenset[str] | None = attrs.field(default=None, converter=_texts)
    merchants: frozenset[str] | None = attrs.field(default=None, converter=_texts)
    merchant_categories: frozenset[str] | None = attrs.field(default=None, converter=_texts)
    channels: frozenset[Channel] | None = attrs.field(default=None, converter=_channels)
    countries: frozenset[str] | None = attrs.field(default=None, converter=_texts)
    currencies: frozenset[str] | None = attrs.field(default=None, converter=_texts)
    devices: frozenset[str] | None = attrs.field(default=None, converter=_texts)
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    max_amount: Money | None = None
    limits: tuple[Limit, ...] = attrs.field(default=(), converter=_limits)
    cryptogram: CryptogramRule | None = None
    min_assurance: str | None = None

    def __attrs_post_init__(self) -> None:
        for control in CONTROLS.values():
            value = getattr(self, control.name)
            if value is not control.unset:
                object.__setattr__(self, control.name, control.parse(value))
        if self.valid_from and self.valid_until and self.valid_from >= self.valid_until:
            raise InvalidInputError("valid_from lies before valid_until")
        if len(self.document) > DOCUMENT_BYTES_MAX:
            raise InvalidInputError(f"a domain's document is at most {DOCUMENT_BYTES_MAX} bytes")

    @cached_property
    def _set(self) -> dict[str, object]:
        """The values of the controls that are set, by name, in the order of the table."""
        values = {name: getattr(self, name) for name in CONTROLS}
        return {name: value for name, value in values.items() if value != CONTROLS[name].unset}

    @cached_property
    def _checks(self) -> tuple[tuple[Control, object], ...]:
        """The controls that are set, with their values: each limit by itself."""
        return tuple(
            (CONTROLS[name], part)
            for name, value in self._set.items()
            for part in (value if isinstance(value, tuple) else (value,))
        )

    @cached_property
    def document(self) -> bytes:
        """The canonical document: `to_json` in bytes."""
        return domain_document.encode(self._set)

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of the document."""
        return hashlib.sha256(self.document).digest()

    def to_json(self) -> str:
        """The canonical document: JSON in ASCII, sorted keys, no spaces, unset controls left out."""
        return self.document.decode("ascii")

    @property
    def _could_contain_pan(self) -> bool:
        """Whether any card number could stand in the document: if not, `contains_pan` is False."""
        return holds_digits(self.to_json())

    def contains_pan(self, pan: Pan) -> bool:
        """Whether a card number stands in the document."""
        return pan.stands_in(self.to_json())

    @classmethod
    @boundary
    def from_json(cls, text: str | bytes) -> Domain:
        """Read a document in JSON, canonical or not. Unknown and repeated names are refused.

        Raises:
            InvalidInputError: the text is not a domain.
        """
        arguments: dict[str, Any] = domain_document.decode(text, _FROM_JSON)
        return cls(**arguments)


NO_RESTRICTION: Final = Domain()
