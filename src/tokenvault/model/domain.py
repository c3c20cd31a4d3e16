"""The token domain restriction controls of a token (EMVCo Payment Tokenisation), as data.

An unset control does not restrict. A set control that a transaction says nothing about fails. The one
exception: while a token's own domain names no requestors, only the requestor it was issued to may use it.
What each control means stands in `controls`, and which kinds of transaction it binds in `kinds`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final, cast

import attrs

from tokenvault.errors import InvalidInputError, boundary, boundary_init
from tokenvault.model import domain_document
from tokenvault.model.authentication import FACTORS_DEFAULT, Strength
from tokenvault.model.control import Control
from tokenvault.model.controls import CONTROLS, CryptogramRule
from tokenvault.model.domain_document import DOCUMENT_BYTES_MAX
from tokenvault.model.kinds import Kind
from tokenvault.model.limits import Limit
from tokenvault.model.listing import AllBut, Listing
from tokenvault.model.money import Money
from tokenvault.model.pan import Pan
from tokenvault.model.spellings import readings
from tokenvault.model.transaction import Channel

_FROM_JSON: Final = {name: control.from_json for name, control in CONTROLS.items()}


# Converters tell type checkers what the constructor takes, and convert nothing: the table of controls reads it.
def _texts(values: Iterable[str] | AllBut[str] | None) -> Listing[str] | None:
    return cast("Listing[str] | None", values)


def _channels(values: Iterable[Channel] | AllBut[Channel] | None) -> Listing[Channel] | None:
    return cast("Listing[Channel] | None", values)


def _kinds(values: Iterable[Kind] | AllBut[Kind] | None) -> Listing[Kind] | None:
    return cast("Listing[Kind] | None", values)


def _limits(values: Iterable[Limit]) -> tuple[Limit, ...]:
    return cast("tuple[Limit, ...]", values)


@boundary_init
@attrs.frozen(kw_only=True)
class Domain:
    """Where, how, how much, how often and until when a token may be used.

    A list is a set of 1 to 10,000 values that are allowed, or `AllBut` such a set.

    Attributes:
        requestors: token requestor ids (11 digits) that may use the token.
        merchants: merchant ids, 1 to 256 printable ASCII characters (ISO 8583 data element 42).
        merchant_categories: ISO 18245, 4 digits; or ranges of them, such as "3000-3999".
        channels: how the payment is made.
        countries: ISO 3166-1 alpha-2, of the merchant.
        currencies: ISO 4217.
        devices: device ids, 1 to 256 printable ASCII characters.
        kinds: what may be done; follow-ups such as Kind.REFUND are listed like new payments.
        references: what may be paid for, such as an order or a checkout session, 1 to 256 printable ASCII characters.
        agents: ids of the agents that may act, likewise.
        assurances: token assurance methods (EMVCo, 2 characters) that are accepted. They are categories, no scale.
        valid_from, valid_until: first instant of validity, and first instant after it; with a time zone,
            rounded down to the millisecond.
        min_amount, max_amount: the least and the most that one use may be, increments included.
        min_interval: the least time between two uses, in whole seconds, up to ten years.
        limits: at most 16; each must hold.
        cryptogram: what is required of the cryptogram of a use.
        strong_above: above this amount, a use needs strong authentication; so does one of another currency.
        strong_factors: how many different factors make an authentication strong, 1 to 3; also for `limits`.
        strong_max_age: how old it may be, in whole seconds up to 366 days; unset, of any age.
        follow_ups_without_original: whether a refund or a dispute may name no original. It may where the domain of
            the program, or of a requestor that it is about, says so; in a token's own domain it lets nothing.
        document, digest: the canonical document (see `to_json`), and its SHA-256.

    Raises:
        InvalidInputError: on any other value, and on an empty set.
    """

    requestors: Listing[str] | None = attrs.field(default=None, converter=_texts)
    merchants: Listing[str] | None = attrs.field(default=None, converter=_texts)
    merchant_categories: Listing[str] | None = attrs.field(default=None, converter=_texts)
    channels: Listing[Channel] | None = attrs.field(default=None, converter=_channels)
    countries: Listing[str] | None = attrs.field(default=None, converter=_texts)
    currencies: Listing[str] | None = attrs.field(default=None, converter=_texts)
    devices: Listing[str] | None = attrs.field(default=None, converter=_texts)
    kinds: Listing[Kind] | None = attrs.field(default=None, converter=_kinds)
    references: Listing[str] | None = attrs.field(default=None, converter=_texts)
    agents: Listing[str] | None = attrs.field(default=None, converter=_texts)
    assurances: Listing[str] | None = attrs.field(default=None, converter=_texts)
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    min_amount: Money | None = None
    max_amount: Money | None = None
    min_interval: timedelta | None = None
    limits: tuple[Limit, ...] = attrs.field(default=(), converter=_limits)
    cryptogram: CryptogramRule | None = None
    strong_above: Money | None = None
    strong_factors: int = FACTORS_DEFAULT
    strong_max_age: timedelta | None = None
    follow_ups_without_original: bool = False

    def __attrs_post_init__(self) -> None:
        for control in CONTROLS.values():
            value = getattr(self, control.name)
            if value is not control.unset:  # True is 1, and 2.0 is 2: they are read, and refused
                object.__setattr__(self, control.name, control.parse(value))
        if self.valid_from and self.valid_until and self.valid_from >= self.valid_until:
            raise InvalidInputError("valid_from lies before valid_until")
        if self.min_amount and self.max_amount:
            same = self.min_amount.currency == self.max_amount.currency
            if not same or self.min_amount.amount > self.max_amount.amount:
                raise InvalidInputError("min_amount is at most max_amount, in the same currency")
        if len(self.document) > DOCUMENT_BYTES_MAX:
            raise InvalidInputError(f"a domain's document is at most {DOCUMENT_BYTES_MAX} bytes")

    @cached_property
    def _set(self) -> dict[str, object]:
        """The values of the controls that are set, by name, in the order of the table."""
        values = {name: getattr(self, name) for name in CONTROLS}
        return {name: value for name, value in values.items() if value != CONTROLS[name].unset}

    @property
    def strength(self) -> Strength:
        """What it takes for strong authentication."""
        return Strength(self.strong_factors, self.strong_max_age)

    @cached_property
    def _checks(self) -> tuple[tuple[Control, object], ...]:
        """The controls that are set, with what they check against: each limit by itself."""
        return tuple(
            (control, control.bound(part, self.strength))
            for name, value in self._set.items()
            if isinstance(control := CONTROLS[name], Control)
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
        return any(map(readings, self._texts))

    def contains_pan(self, pan: Pan) -> bool:
        """Whether a card number stands in a value of the document, whatever stands between its digits."""
        return any(map(pan.stands_in, self._texts))

    @cached_property
    def _texts(self) -> list[str]:
        return domain_document.texts(self.document)

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
