"""One card, five tokens and one for the toll, as a bank's digital card has them.

Each has its own channel and limits. Light for small payments, strong for large ones: what a payment has to come with
follows from its amount. A lost phone takes down one token, and a toll tag can not be charged by another reader.

python examples/digital_card.py
"""

from __future__ import annotations

from datetime import UTC, datetime

import attrs
from stage import Calendar, attempt, money, table, vault

import tokenvault as tv

BANK, WALLET, TOLL = "40011111111", "40022222222", "40033333333"
CARD = "6212345678901232"
BEIJING = "Asia/Shanghai"
BOTH = {tv.Factor.POSSESSION, tv.Factor.KNOWLEDGE}

DIGITAL = tv.TokenProgram("digital-card", format=tv.TokenFormat(bin="999921"))


def yuan(amount: int) -> tv.Money:
    """Whole yuan."""
    return tv.Money(amount * 100, "CNY")


def a_day(amount: int) -> tv.Limit:
    """So much a natural day in Beijing."""
    return tv.Limit(amount=yuan(amount), per=tv.Period.DAY, zone=BEIJING)


DOMAINS = {
    "online purchase": tv.Domain(
        requestors={BANK, WALLET},
        channels={tv.Channel.ECOMMERCE},
        kinds={tv.Kind.PURCHASE, tv.Kind.REFUND, tv.Kind.REVERSAL},
        max_amount=yuan(5_000),
        limits=(a_day(5_000),),
        strong_above=yuan(1_000),
    ),
    "contactless": tv.Domain(
        requestors={BANK, WALLET},
        channels={tv.Channel.CONTACTLESS},
        devices={"phone-1"},
        limits=(a_day(3_000), tv.Limit(uses=5, since_authentication=True)),
        strong_above=yuan(1_000),
    ),
    "QR code": tv.Domain(
        requestors={BANK, WALLET},
        channels={tv.Channel.QR_CONSUMER},
        limits=(a_day(500),),
        strong_above=yuan(500),
    ),
    "cash at a machine": tv.Domain(
        requestors={BANK},
        channels={tv.Channel.ATM},
        kinds={tv.Kind.CASH, tv.Kind.REVERSAL},
        countries={"CN"},
        limits=(a_day(20_000),),
        strong_above=yuan(0),
    ),
    "transfer abroad": tv.Domain(
        requestors={BANK},
        channels={tv.Channel.TRANSFER},
        kinds={tv.Kind.TRANSFER},
        min_amount=yuan(100),
        limits=(tv.Limit(amount=yuan(50_000), per=tv.Period.YEAR, zone=BEIJING),),
        strong_above=yuan(0),
        valid_until=datetime(2026, 12, 31, tzinfo=UTC),
    ),
    "motorway toll": tv.Domain(
        requestors={TOLL},
        merchants={"TOLL-ROAD"},
        merchant_categories={"4784"},
        channels={tv.Channel.CONTACTLESS},
        max_amount=yuan(300),
    ),
}


class Purse:
    """The tokens of the card, and the table of what is paid with them."""

    def __init__(self, opened: tv.Vault, calendar: Calendar) -> None:
        self._vault, self._calendar = opened, calendar
        self.tokens = {
            name: opened.issue(CARD, expiry="2031-06", requestor=BANK, program="digital-card", domain=domain)
            for name, domain in DOMAINS.items()
        }
        self.rows = [("TOKEN FOR", "WHAT", "AMOUNT", "PRESENTED", "DECISION")]

    def pay(self, name: str, what: str, transaction: tv.Transaction) -> None:
        """Use one of the tokens."""
        shown = transaction.authentication
        factors = "" if shown is None else "+".join(sorted(factor.value for factor in shown.factors))
        outcome = attempt(self._vault, self.tokens[name].token, transaction)
        self.rows.append((name, what, money(transaction.amount), factors, outcome))

    def strong(self) -> tv.Authentication:
        """The cardholder has just shown two factors."""
        return tv.Authentication(factors=BOTH, at=self._calendar.now)


def main() -> None:
    """Issue the tokens, pay with them, lose the phone."""
    start = datetime(2026, 6, 1, 2, tzinfo=UTC)
    everyone = [
        tv.TokenRequestor(BANK, programs={"digital-card"}),
        tv.TokenRequestor(WALLET, permissions={tv.Permission.DETOKENIZE}),
        tv.TokenRequestor(TOLL, permissions={tv.Permission.DETOKENIZE}),
    ]
    with vault(start, [DIGITAL], everyone) as (opened, calendar):
        purse = Purse(opened, calendar)
        shown = [
            (name, issued.token, f"{issued.bin}...{issued.last4}") for name, issued in purse.tokens.items()
        ]
        table("One card, a token for each use of it", [("TOKEN FOR", "TOKEN", "CARD"), *shown])
        play(purse)
        lost = purse.tokens["contactless"]
        opened.suspend(lost.token, by=tv.Actor.CARDHOLDER, operator="hotline-7")
        tap = tv.Transaction(
            id="c-9", requestor=WALLET, channel=tv.Channel.CONTACTLESS, device="phone-1", amount=yuan(20)
        )
        purse.pay("contactless", "the phone is lost: its token alone stops", tap)
        still = tv.Transaction(id="q-9", requestor=WALLET, channel=tv.Channel.QR_CONSUMER, amount=yuan(20))
        purse.pay("QR code", "the others go on", still)
        table("A day with it", purse.rows)


def play(purse: Purse) -> None:
    """A day's payments."""

    def online(number: int, amount: int, authentication: tv.Authentication | None = None) -> tv.Transaction:
        return tv.Transaction(
            id=f"o-{number}",
            requestor=WALLET,
            channel=tv.Channel.ECOMMERCE,
            amount=yuan(amount),
            authentication=authentication,
        )

    def tap(number: int, authentication: tv.Authentication | None = None) -> tv.Transaction:
        return tv.Transaction(
            id=f"c-{number}",
            requestor=WALLET,
            channel=tv.Channel.CONTACTLESS,
            device="phone-1",
            amount=yuan(30),
            authentication=authentication,
        )

    purse.pay("online purchase", "small: light", online(1, 80))
    purse.pay("online purchase", "large, nothing shown", online(2, 2_400))
    purse.pay("online purchase", "the same, with two factors", online(2, 2_400, purse.strong()))
    purse.pay("online purchase", "past the day's limit", online(3, 2_600, purse.strong()))
    for number in range(1, 6):
        purse.pay("contactless", f"tap {number}", tap(number))
    purse.pay("contactless", "tap 6: five since the last authentication", tap(6))
    purse.pay("contactless", "the same, unlocked by face and code", tap(6, purse.strong()))
    purse.pay("contactless", "tap 7: counted anew", tap(7))
    cash = tv.Transaction(
        id="a-1",
        requestor=BANK,
        kind=tv.Kind.CASH,
        channel=tv.Channel.ATM,
        country="CN",
        amount=yuan(3_000),
        authentication=purse.strong(),
    )
    purse.pay("cash at a machine", "with PIN", cash)
    abroad = tv.Transaction(
        id="t-1",
        requestor=BANK,
        kind=tv.Kind.TRANSFER,
        channel=tv.Channel.TRANSFER,
        amount=yuan(50),
        authentication=purse.strong(),
    )
    purse.pay("transfer abroad", "below the least amount", abroad)
    purse.pay("transfer abroad", "with PIN", attrs.evolve(abroad, amount=yuan(8_000)))
    toll = tv.Transaction(
        id="m-1",
        requestor=TOLL,
        merchant="TOLL-ROAD",
        merchant_category="4784",
        channel=tv.Channel.CONTACTLESS,
        amount=yuan(45),
    )
    purse.pay("motorway toll", "at the barrier", toll)
    reader = tv.Transaction(
        id="m-2",
        requestor=TOLL,
        merchant="POCKET-READER",
        merchant_category="5999",
        channel=tv.Channel.CONTACTLESS,
        amount=yuan(45),
    )
    purse.pay("motorway toll", "by a reader in a crowd", reader)


if __name__ == "__main__":
    main()
