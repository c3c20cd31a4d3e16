"""The token domain restriction controls of a token (EMVCo Payment Tokenisation), as data.

An unset control does not restrict. A set control that a transaction says nothing about fails. The one
exception: while a token's own domain names no requestors, only the requestor it was issued to may use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import attrs

from tokenvault.errors import InvalidInputError, boundary, boundary_init
from tokenvault.model import checks, controls, domain_document
from tokenvault.model.controls import Channel, CryptogramRule, Limit, Money, VelocityCounter
from tokenvault.model.pan import Pan, holds_digits

LIMITS_MAX: Final = 8
LISTS: Final = (
    "requestors",
    "merchants",
    "merchant_categories",
    "channels",
    "countries",
    "currencies",
    "devices",
)
"""The controls that list what is allowed."""


# Converters: mypy derives the types of the constructor's arguments from them, so each is a named function.
def _requestors(values: Iterable[str] | None) -> frozenset[str] | None:
    return None if values is None else checks.set_of("requestors", values, controls.requestor)


def _merchants(values: Iterable[str] | None) -> frozenset[str] | None:
    return None if values is None else checks.set_of("merchants", values, controls.merchant)


def _merchant_categories(values: Iterable[str] | None) -> frozenset[str] | None:
    return (
        None if values is None else checks.set_of("merchant_categories", values, controls.merchant_category)
    )


def _channels(values: Iterable[Channel] | None) -> frozenset[Channel] | None:
    return None if values is None else checks.set_of("channels", values, controls.channel)


def _countries(values: Iterable[str] | None) -> frozenset[str] | None:
    return None if values is None else checks.set_of("countries", values, controls.country)


def _currencies(values: Iterable[str] | None) -> frozenset[str] | None:
    return None if values is None else checks.set_of("currencies", values, controls.currency)


def _devices(values: Iterable[str] | None) -> frozenset[str] | None:
    return None if values is None else checks.set_of("devices", values, controls.device)


def _instant(value: datetime | None) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None or value.utcoffset() is None:
        raise InvalidInputError("valid_from and valid_until are datetimes with a time zone")
    try:
        utc = value.astimezone(UTC)
    except (OverflowError, ValueError):
        utc = datetime.min
    if not 2000 <= utc.year <= 2199:
        raise InvalidInputError("valid_from and valid_until lie in 2000 to 2199")
    return utc.replace(microsecond=utc.microsecond // 1_000 * 1_000)


def _limits(values: Iterable[Limit]) -> tuple[Limit, ...]:
    if not isinstance(values, tuple | list) or len(values) > LIMITS_MAX:
        raise InvalidInputError(f"limits is a tuple of at most {LIMITS_MAX} limits")
    listed = [checks.instance("each of limits", value, Limit) for value in values]
    return tuple(sorted(set(listed), key=_limit_order))


def _limit_order(limit: Limit) -> tuple[VelocityCounter, int]:
    return limit.counter, limit.uses or (limit.amount.amount if limit.amount else 0)


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
        cryptogram: what is asked of the cryptogram of a use.
        min_assurance: least token assurance method (2 characters, compared as ASCII text).
        document, digest: the canonical document (see `to_json`), and its SHA-256.
        lists: the controls that list what is allowed, those that are set.
        could_contain_pan: whether any card number stands in the document: where this is False, `contains_pan` is.

    Raises:
        InvalidInputError: on any other value, and on an empty set.
    """

    requestors: frozenset[str] | None = attrs.field(default=None, converter=_requestors)
    merchants: frozenset[str] | None = attrs.field(default=None, converter=_merchants)
    merchant_categories: frozenset[str] | None = attrs.field(default=None, converter=_merchant_categories)
    channels: frozenset[Channel] | None = attrs.field(default=None, converter=_channels)
    countries: frozenset[str] | None = attrs.field(default=None, converter=_countries)
    currencies: frozenset[str] | None = attrs.field(default=None, converter=_currencies)
    devices: frozenset[str] | None = attrs.field(default=None, converter=_devices)
    valid_from: datetime | None = attrs.field(default=None, converter=_instant)
    valid_until: datetime | None = attrs.field(default=None, converter=_instant)
    max_amount: Money | None = None
    limits: tuple[Limit, ...] = attrs.field(default=(), converter=_limits)
    cryptogram: CryptogramRule | None = None
    min_assurance: str | None = None
    document: bytes = attrs.field(init=False, repr=False, eq=False)
    digest: bytes = attrs.field(init=False, repr=False, eq=False)
    lists: tuple[tuple[str, frozenset[object]], ...] = attrs.field(init=False, repr=False, eq=False)
    could_contain_pan: bool = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.max_amount is not None:
            checks.instance("max_amount", self.max_amount, Money)
        if self.cryptogram is not None:
            checks.instance("cryptogram", self.cryptogram, CryptogramRule)
        if self.min_assurance is not None:
            checks.assurance("min_assurance", self.min_assurance)
        if self.valid_from and self.valid_until and self.valid_from >= self.valid_until:
            raise InvalidInputError("valid_from lies before valid_until")
        document = domain_document.encode({name: getattr(self, name) for name in domain_document.CONTROLS})
        object.__setattr__(self, "document", document)
        object.__setattr__(self, "digest", hashlib.sha256(document).digest())
        object.__setattr__(self, "could_contain_pan", holds_digits(self.to_json()))
        listed = ((name, getattr(self, name)) for name in LISTS)
        object.__setattr__(
            self, "lists", tuple((name, values) for name, values in listed if values is not None)
        )

    def to_json(self) -> str:
        """The canonical document: JSON in ASCII, sorted keys, no spaces, unset controls left out."""
        return self.document.decode("ascii")

    def contains_pan(self, pan: Pan) -> bool:
        """Whether a card number stands in the document."""
        return self.could_contain_pan and pan.stands_in(self.to_json())

    @classmethod
    @boundary
    def from_json(cls, text: str | bytes) -> Domain:
        """Read a document in JSON, canonical or not. Unknown and repeated names are refused.

        Raises:
            InvalidInputError: the text is not a domain.
        """
        return cls(**domain_document.decode(text))


NO_RESTRICTION: Final = Domain()
