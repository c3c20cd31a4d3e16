"""Transactions: what a caller presents with a token: by whom, where, how, for how much, and under which id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property, partial
from operator import attrgetter
from typing import Final

import attrs

from tokenvault.errors import InvalidInputError, boundary_init
from tokenvault.model import checks
from tokenvault.model.authentication import Authentication
from tokenvault.model.kinds import KINDS, Kind, Original
from tokenvault.model.money import Money
from tokenvault.model.pan import CardExpiry, Pan, read_expiry
from tokenvault.model.plain_text import plain_field, plain_optional
from tokenvault.model.spellings import SHORTEST_NUMBER, readings
from tokenvault.model.words import Words

CRYPTOGRAM_COUNTER_MAX: Final = 2**32 - 1
CONTENT_BYTES: Final = 16
_SEPARATOR: Final = "\x1f"  # in no field: they are printable


class Channel(Words):
    """How a payment is made."""

    ECOMMERCE = "ecommerce"
    CONTACTLESS = "contactless"
    CHIP = "chip"
    MAGSTRIPE = "magstripe"
    QR_CONSUMER = "qr_consumer"
    QR_MERCHANT = "qr_merchant"
    ATM = "atm"
    TRANSFER = "transfer"
    MAIL_TELEPHONE = "mail_telephone"
    MERCHANT_INITIATED = "merchant_initiated"
    AGENT = "agent"


CONTRADICTIONS: Final = {
    # Banknotes change hands where the cardholder stands.
    Kind.CASH: frozenset(
        {
            Channel.ECOMMERCE,
            Channel.TRANSFER,
            Channel.MAIL_TELEPHONE,
            Channel.MERCHANT_INITIATED,
            Channel.AGENT,
        }
    ),
    # A transfer is the payer's order: no merchant gives it, and no merchant writes it down.
    Kind.TRANSFER: frozenset({Channel.MERCHANT_INITIATED, Channel.MAIL_TELEPHONE}),
}
"""The channels on which a kind is not made."""


# The optional fields, in the order in which a transaction's content spells them, and the check of each.
FIELD_CHECKS: Final[dict[str, Callable[[object], object]]] = {
    "original": partial(checks.text, "a transaction's original"),
    "merchant": partial(checks.padded_text, "a merchant"),
    "merchant_category": checks.merchant_category,
    "channel": partial(checks.instance, "a channel", kind=Channel),
    "country": checks.country,
    "device": partial(checks.padded_text, "a device"),
    "amount": partial(checks.instance, "a transaction's amount", kind=Money),
    "reference": partial(checks.long_text, "a reference"),
    "agent": partial(checks.long_text, "an agent"),
    "token_expiry": partial(checks.instance, "a transaction's token_expiry", kind=CardExpiry),
    "authentication": partial(checks.instance, "a transaction's authentication", kind=Authentication),
    "cryptogram_counter": partial(
        checks.whole_number, "a cryptogram counter", low=0, high=CRYPTOGRAM_COUNTER_MAX
    ),
}

_optional_fields: Final = attrgetter(*FIELD_CHECKS)
"""Their values, of a transaction."""


def _expiry(value: CardExpiry | str | None) -> CardExpiry | None:
    return read_expiry(value) if isinstance(value, str) else value


def _unpadded(value: str | None) -> str | None:
    return checks.unpadded(value)


@boundary_init
@attrs.frozen(kw_only=True)
class Transaction:
    """What is done with a token.

    Attributes:
        id: names it: the same id again is a retry. 1 to 64 printable ASCII characters; required.
        requestor: id of the token requestor who uses the token, 11 digits; required.
        kind: what it does to the money.
        original: id of the transaction that it follows up; of a merchant-initiated purchase, that of the
            cardholder's own, which it rests on.
        final: of a capture, whether it is the last: what it leaves is given back.
        merchant: merchant id (ISO 8583 data element 42), 1 to 256 printable ASCII characters; blanks that pad it
            are taken off.
        merchant_category: ISO 18245, 4 digits.
        channel: how the payment is made.
        country: ISO 3166-1 alpha-2, of the merchant.
        device: device id, such as a terminal's (ISO 8583 data element 41), likewise.
        amount: what is paid, given back or paid back. A capture, reversal or refund without one is of all there is.
        reference: what it pays for, such as an order or a checkout session: 1 to 256 printable ASCII characters.
        agent: id of the agent that acts, likewise.
        token_expiry: the token's expiry as it was presented, also as text "YYYY-MM".
        authentication: what the caller has verified of the cardholder.
        cryptogram_counter: the counter of a cryptogram that the caller has verified, 0 to 2**32 - 1.

    Raises:
        InvalidInputError: a required field is missing, a value is of another form, or fields contradict each other.
    """

    id: str = attrs.field(default="", converter=plain_field)
    requestor: str = attrs.field(default="", converter=plain_field)
    kind: Kind = Kind.PURCHASE
    original: str | None = attrs.field(default=None, converter=plain_optional)
    final: bool = True
    merchant: str | None = attrs.field(default=None, converter=_unpadded)
    merchant_category: str | None = attrs.field(default=None, converter=plain_optional)
    channel: Channel | None = None
    country: str | None = attrs.field(default=None, converter=plain_optional)
    device: str | None = attrs.field(default=None, converter=_unpadded)
    amount: Money | None = None
    reference: str | None = attrs.field(default=None, converter=plain_optional)
    agent: str | None = attrs.field(default=None, converter=plain_optional)
    token_expiry: CardExpiry | None = attrs.field(default=None, converter=_expiry)
    authentication: Authentication | None = None
    cryptogram_counter: int | None = None

    def __attrs_post_init__(self) -> None:
        checks.text("a transaction's id", self.id)
        checks.requestor_id("a transaction's requestor", self.requestor)
        for check, value in zip(FIELD_CHECKS.values(), _optional_fields(self), strict=True):
            if value is not None:
                check(value)
        if self.kind is not Kind.PURCHASE or self.original is not None or self.final is not True:
            self._check_kind()

    def _check_kind(self) -> None:
        checks.instance("a transaction's kind", self.kind, Kind)
        checks.true_or_false("final", self.final)
        if self.channel in CONTRADICTIONS.get(self.kind, ()):
            _refuse(f"{self.kind.name} is not made on this channel", "KIND_CONTRADICTS_CHANNEL")
        if not self.final and self.kind is not Kind.CAPTURE:
            _refuse("final=False is of a CAPTURE", "KIND_TAKES_NO_FINAL")
        if self.kind is Kind.VERIFICATION and self.amount is not None and self.amount.amount:
            _refuse("a VERIFICATION takes no money: leave its amount out", "KIND_TAKES_NO_AMOUNT")
        if self.kind is Kind.INCREMENT and (self.amount is None or not self.amount.amount):
            _refuse("an INCREMENT names the amount, above 0, that it adds", "AMOUNT_REQUIRED")
        self._check_original()

    def _check_original(self) -> None:
        rule = KINDS[self.kind]
        if self.original is None:
            if rule.original is Original.OPEN:
                _refuse(f"{self.kind.name} names the transaction that it follows up", "ORIGINAL_REQUIRED")
        elif self.original == self.id:
            _refuse("a transaction's original is another one", "ORIGINAL_IS_ITSELF")
        elif not rule.follow_up and not self._merchant_initiated:
            _refuse(
                "a new payment names no original, unless it is merchant-initiated", "KIND_TAKES_NO_ORIGINAL"
            )

    @property
    def _merchant_initiated(self) -> bool:
        return self.kind is Kind.PURCHASE and self.channel is Channel.MERCHANT_INITIATED

    @cached_property
    def _content(self) -> str:
        """All fields but the id."""
        fields = [self.requestor, self.kind.value, "" if self.final else "part"]
        fields += ["" if value is None else _spelled(value) for value in _optional_fields(self)]
        return _SEPARATOR.join(fields)

    @cached_property
    def content(self) -> bytes:
        """The first 16 bytes of SHA-256 of all fields but the id, by which a retry is told from another use."""
        return hashlib.sha256(self._content.encode("ascii")).digest()[:CONTENT_BYTES]

    @property
    def _could_contain_pan(self) -> bool:
        """Whether any card number could stand in a field: if not, `contains_pan` is False."""
        texts = self._texts
        return max(map(len, texts)) >= SHORTEST_NUMBER and any(map(readings, texts))

    def contains_pan(self, pan: Pan) -> bool:
        """Whether a card number stands in any field, whatever stands between its digits, before and behind."""
        return self._could_contain_pan and any(map(pan.stands_in, self._texts))

    @property
    def _texts(self) -> list[str]:
        return [self.id, *self._content.split(_SEPARATOR)]


def _refuse(message: str, code: str) -> None:
    raise InvalidInputError(message, code=code)


def _spelled(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Channel):
        return value.value
    if isinstance(value, Money):
        return f"{value.amount} {value.currency}"
    if isinstance(value, Authentication):
        factors = "+".join(sorted(factor.value for factor in value.factors))
        return f"{factors} {value.at_ms} {value.method or ''}"
    return str(value)
