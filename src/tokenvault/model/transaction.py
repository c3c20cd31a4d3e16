"""Transactions: the use of a token by whom, where, how, for how much, and under which id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Final

import attrs

from tokenvault.errors import boundary_init
from tokenvault.model import checks
from tokenvault.model.money import Money
from tokenvault.model.pan import Pan, holds_digits
from tokenvault.model.words import Words

CRYPTOGRAM_COUNTER_MAX: Final = 2**32 - 1
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


# The optional fields, in the order in which a record's memory of a use spells them, and the check of each.
FIELD_CHECKS: Final[dict[str, Callable[[object], object]]] = {
    "merchant": partial(checks.padded_text, "a merchant"),
    "merchant_category": checks.merchant_category,
    "channel": partial(checks.instance, "a channel", kind=Channel),
    "country": checks.country,
    "device": partial(checks.padded_text, "a device"),
    "amount": partial(checks.instance, "a transaction's amount", kind=Money),
    "cryptogram_counter": partial(
        checks.whole_number, "a cryptogram counter", low=0, high=CRYPTOGRAM_COUNTER_MAX
    ),
}


def _unpadded(value: str | None) -> str | None:
    return checks.unpadded(value)


@boundary_init
@attrs.frozen(kw_only=True)
class Transaction:
    """One use of a token.

    Attributes:
        id: names the use: the same id again is a retry. 1 to 64 printable ASCII characters; required.
        requestor: id of the token requestor who uses the token, 11 digits; required.
        merchant: merchant id (ISO 8583 data element 42); blanks that pad it are taken off.
        merchant_category: ISO 18245, 4 digits.
        channel: how the payment is made.
        country: ISO 3166-1 alpha-2, of the merchant.
        device: device id, such as a terminal's (ISO 8583 data element 41); blanks that pad it are taken off.
        amount: what is paid.
        cryptogram_counter: the counter of a cryptogram that the caller has verified, 0 to 2**32 - 1.

    Raises:
        InvalidInputError: a required field is missing, or a value is of another form.
    """

    id: str = ""
    requestor: str = ""
    merchant: str | None = attrs.field(default=None, converter=_unpadded)
    merchant_category: str | None = None
    channel: Channel | None = None
    country: str | None = None
    device: str | None = attrs.field(default=None, converter=_unpadded)
    amount: Money | None = None
    cryptogram_counter: int | None = None
    _text: str = attrs.field(init=False, repr=False, eq=False)
    """All fields."""
    _memory: bytes = attrs.field(init=False, repr=False, eq=False)
    """What a record remembers of it: 16 bytes of SHA-256 of requestor and id, and 16 of all but the id."""

    def __attrs_post_init__(self) -> None:
        checks.text("a transaction's id", self.id)
        checks.requestor_id("a transaction's requestor", self.requestor)
        fields = [self.requestor]
        for name, check in FIELD_CHECKS.items():
            value = getattr(self, name)
            fields.append("" if value is None else _spelled(check(value)))
        content = _SEPARATOR.join(fields)
        memory = _digest(f"{self.requestor}{_SEPARATOR}{self.id}") + _digest(content)
        object.__setattr__(self, "_text", f"{self.id}{_SEPARATOR}{content}")
        object.__setattr__(self, "_memory", memory)

    @property
    def _could_contain_pan(self) -> bool:
        """Whether any card number could stand in a field: if not, `contains_pan` is False."""
        return holds_digits(self._text)

    def contains_pan(self, pan: Pan) -> bool:
        """Whether a card number stands in any field, in one piece or with spaces or hyphens between its digits."""
        return pan.stands_in(self._text)


def _spelled(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Channel):
        return str(value.value)
    if isinstance(value, Money):
        return f"{value.amount} {value.currency}"
    return str(value)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("ascii")).digest()[:16]
