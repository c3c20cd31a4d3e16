"""What a caller presents with a token: who, where, how, how much, and which id."""

from __future__ import annotations

import hashlib
from typing import Final

import attrs

from tokenvault.errors import boundary_init
from tokenvault.model import checks, controls
from tokenvault.model.controls import Channel, Money
from tokenvault.model.pan import Pan, holds_digits

CRYPTOGRAM_COUNTER_MAX: Final = 2**32 - 1
_SEPARATOR: Final = "\x1f"  # in no field: they are printable


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("ascii")).digest()


def _optional_text(name: str, value: object) -> None:
    if value is not None:
        checks.text(name, value)


@boundary_init
@attrs.frozen(kw_only=True)
class Transaction:
    """One use of a token.

    Attributes:
        id: names the use: the same id presented again is a retry. 1 to 64 printable ASCII characters; required.
        requestor: id of the token requestor who uses the token, 11 digits; required.
        merchant: merchant id (ISO 8583 data element 42).
        merchant_category: ISO 18245, 4 digits.
        channel: how the payment is made.
        country: ISO 3166-1 alpha-2, of the merchant.
        device: device id.
        amount: what is paid.
        cryptogram_counter: the counter of a cryptogram that the caller has verified, 0 to 2**32 - 1.

    `memory` is what a record remembers of it: 16 bytes of SHA-256 of requestor and id, and 16 of the rest.

    Raises:
        InvalidInputError: a required field is missing, or a value is of another form.
    """

    id: str = ""
    requestor: str = ""
    merchant: str | None = None
    merchant_category: str | None = None
    channel: Channel | None = None
    country: str | None = None
    device: str | None = None
    amount: Money | None = None
    cryptogram_counter: int | None = None
    memory: bytes = attrs.field(init=False, repr=False, eq=False)
    _text: str = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        checks.text("a transaction's id", self.id)
        checks.requestor_id("a transaction's requestor", self.requestor)
        _optional_text("a merchant", self.merchant)
        _optional_text("a device", self.device)
        if self.merchant_category is not None:
            controls.merchant_category(self.merchant_category)
        if self.channel is not None:
            controls.channel(self.channel)
        if self.country is not None:
            controls.country(self.country)
        if self.amount is not None:
            checks.instance("a transaction's amount", self.amount, Money)
        if self.cryptogram_counter is not None:
            checks.whole_number("a cryptogram counter", self.cryptogram_counter, 0, CRYPTOGRAM_COUNTER_MAX)
        fields = (
            self.requestor,
            self.merchant or "",
            self.merchant_category or "",
            self.channel.value if self.channel else "",
            self.country or "",
            self.device or "",
            f"{self.amount.amount} {self.amount.currency}" if self.amount else "",
            "" if self.cryptogram_counter is None else str(self.cryptogram_counter),
        )
        content = _SEPARATOR.join(fields)
        memory = _digest(f"{self.requestor}{_SEPARATOR}{self.id}")[:16] + _digest(content)[:16]
        object.__setattr__(self, "memory", memory)
        text = f"{self.id}{_SEPARATOR}{content}"
        together = text.replace(" ", "").replace("-", "")
        object.__setattr__(self, "_text", text if together == text else f"{text}{_SEPARATOR}{together}")

    @property
    def could_contain_pan(self) -> bool:
        """Whether any card number stands in a field: where this is False, `contains_pan` is."""
        return holds_digits(self._text)

    def contains_pan(self, pan: Pan) -> bool:
        """Whether a card number stands in any field, in one piece or with spaces or hyphens between its digits."""
        return pan.reveal() in self._text
