"""The options that describe a use of a token, for the commands that decide on one."""

from __future__ import annotations

import datetime
import secrets
from typing import Annotated

import attrs
import typer

from tokenvault.cli.commands.options import Requestor
from tokenvault.errors import InvalidInputError
from tokenvault.model.money import MINOR_UNITS_MAX, Money
from tokenvault.model.transaction import Channel, Transaction

PANEL = "The use"


@attrs.frozen
class Use:
    """A use of a token as the command line describes it; the fields are options."""

    requestor: Requestor
    id: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="Names the use: the same id again is a retry. Unset, a new one.",
            rich_help_panel=PANEL,
        ),
    ] = None
    amount: Annotated[
        int | None,
        typer.Option(
            min=0, max=MINOR_UNITS_MAX, help="In minor units, such as cents.", rich_help_panel=PANEL
        ),
    ] = None
    currency: Annotated[str | None, typer.Option(help="Of the amount (ISO 4217).", rich_help_panel=PANEL)] = (
        None
    )
    merchant: Annotated[
        str | None, typer.Option(help="Merchant id (ISO 8583 data element 42).", rich_help_panel=PANEL)
    ] = None
    merchant_category: Annotated[
        str | None, typer.Option(help="4 digits (ISO 18245).", rich_help_panel=PANEL)
    ] = None
    channel: Annotated[
        Channel | None, typer.Option(help="How the payment is made.", rich_help_panel=PANEL)
    ] = None
    country: Annotated[
        str | None, typer.Option(help="Of the merchant (ISO 3166-1 alpha-2).", rich_help_panel=PANEL)
    ] = None
    device: Annotated[str | None, typer.Option(help="Device id.", rich_help_panel=PANEL)] = None
    cryptogram_counter: Annotated[
        int | None, typer.Option(help="Of a cryptogram that was verified.", rich_help_panel=PANEL)
    ] = None

    def transaction(self) -> Transaction:
        """The transaction. Raises InvalidInputError."""
        if (self.amount is None) != (self.currency is None):
            raise InvalidInputError("an amount is both --amount, in minor units, and --currency")
        amount = None if self.amount is None or self.currency is None else Money(self.amount, self.currency)
        return Transaction(
            id=self.id or _new_id(),
            requestor=self.requestor,
            merchant=self.merchant,
            merchant_category=self.merchant_category,
            channel=self.channel,
            country=self.country,
            device=self.device,
            amount=amount,
            cryptogram_counter=self.cryptogram_counter,
        )


def _new_id() -> str:
    """An id for a use that has none: the day, and 48 random bits."""
    return f"cli-{datetime.datetime.now(datetime.UTC):%Y%m%d}-{secrets.token_hex(6)}"
