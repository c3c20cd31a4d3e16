"""A year of a subscription: a first payment with the cardholder, monthly charges, declines, a new card, a refund.

python examples/subscription.py
"""

from __future__ import annotations

from datetime import UTC, datetime

from stage import Calendar, attempt, money, table, vault

import tokenvault as tv

SHOP = "40012345678"
CARD = "4111111111111111"
ON_FILE = tv.TokenProgram(
    "card-on-file",
    format=tv.TokenFormat(bin="999912", keep_last4=True),
    making=tv.Making.CONVERGENT,
    per_customer=True,
)

# At most 100.00 once, online, with the cardholder; from then on at most 20.00 a calendar month without.
SUBSCRIPTION = tv.Domain(
    merchants={"M-1001"},
    channels={tv.Channel.ECOMMERCE, tv.Channel.MERCHANT_INITIATED},
    limits=(
        tv.Limit(uses=1, channels={tv.Channel.ECOMMERCE}),
        tv.Limit(amount=tv.Money(100_00, "EUR"), channels={tv.Channel.ECOMMERCE}),
        tv.Limit(
            amount=tv.Money(20_00, "EUR"),
            per=tv.Period.MONTH,
            zone="Europe/Berlin",
            channels={tv.Channel.MERCHANT_INITIATED},
        ),
    ),
)


class Year:
    """What happens, day by day, and the table of it."""

    def __init__(self, opened: tv.Vault, calendar: Calendar, token: str) -> None:
        self._vault, self._calendar, self._token = opened, calendar, token
        self.rows = [("DATE", "WHAT", "AMOUNT", "DECISION", "LEFT THIS MONTH")]

    def on(self, day: str) -> None:
        """Set the clock."""
        self._calendar.now = datetime.fromisoformat(f"{day}T09:00:00").replace(tzinfo=UTC)

    def note(self, what: str, outcome: str, amount: tv.Money | None = None) -> None:
        """Add a row, with what is left of the month's limit."""
        monthly = next(left for left in self._vault.remaining(self._token) if left.limit.per is not None)
        left = money(tv.Money(monthly.left, "EUR"))
        self.rows.append((f"{self._calendar.now:%Y-%m-%d}", what, money(amount), outcome, left))

    def pay(
        self, what: str, transaction_id: str, cents: int, kind: tv.Kind = tv.Kind.PURCHASE, **given: str
    ) -> None:
        """A charge without the cardholder, or what follows it up."""
        amount = tv.Money(cents, "EUR")
        transaction = tv.Transaction(
            id=transaction_id,
            requestor=SHOP,
            kind=kind,
            original=given.get("original"),
            merchant="M-1001",
            channel=tv.Channel.MERCHANT_INITIATED,
            amount=amount,
        )
        self.note(what, attempt(self._vault, self._token, transaction), amount)


def main() -> None:
    """Play the year, and print it."""
    start = datetime(2026, 1, 31, 9, tzinfo=UTC)
    requestors = [tv.TokenRequestor(SHOP, programs={"card-on-file"})]
    with vault(start, [ON_FILE], requestors) as (opened, calendar):
        issued = opened.issue(
            CARD,
            expiry="2026-08",
            requestor=SHOP,
            program="card-on-file",
            customer="customer-17",
            metadata={"plan": "premium"},
            domain=SUBSCRIPTION,
            idempotency_key="signup-17",
        )
        year = Year(opened, calendar, issued.token)
        first = tv.Transaction(
            id="signup",
            requestor=SHOP,
            merchant="M-1001",
            channel=tv.Channel.ECOMMERCE,
            amount=tv.Money(49_00, "EUR"),
            authentication=tv.Authentication(
                factors={tv.Factor.POSSESSION, tv.Factor.INHERENCE}, at=calendar.now
            ),
        )
        year.note("signs up, with the cardholder", attempt(opened, issued.token, first), first.amount)
        for month in range(2, 8):
            year.on(f"2026-{month:02}-28")
            year.pay(f"charge of month {month}", f"inv-{month}", 19_99, original="signup")
            if month == 4:  # the issuer says no: the use is given back, and the next attempt passes
                declined = "declined by the issuer: given back"
                year.pay(declined, "inv-4-void", 19_99, tv.Kind.REVERSAL, original="inv-4")
                year.on("2026-04-30")
                year.pay("tried again two days later", "inv-4-again", 19_99, original="signup")
        year.on("2026-09-28")
        year.pay("charge: the card has expired", "inv-9", 19_99, original="signup")
        opened.update_card(issued.token, expiry="2030-08")
        year.note("the account updater brings a new expiry", "update_card")
        year.pay("charge of month 9", "inv-9-again", 19_99, original="signup")
        year.pay("a second charge in one month", "inv-9-twice", 5_00, original="signup")
        year.on("2026-11-15")
        year.pay("refund of month 3, in part", "ref-3", 9_99, tv.Kind.REFUND, original="inv-3")
        year.pay("and the rest", "ref-3b", 10_00, tv.Kind.REFUND, original="inv-3")
        year.pay("and once more", "ref-3c", 1, tv.Kind.REFUND, original="inv-3")
        year.pay("a chargeback of month 7", "dispute-7", 19_99, tv.Kind.DISPUTE, original="inv-7")
        opened.wind_down(issued.token, purge_after=datetime(2028, 5, 31, tzinfo=UTC))
        year.note("cancels: no new payments", "wind_down")
        year.on("2027-01-28")
        year.pay("charge after cancelling", "inv-late", 19_99, original="signup")
        year.pay("refund after cancelling", "ref-9", 19_99, tv.Kind.REFUND, original="inv-9-again")
        card = f"{issued.bin}...{issued.last4}"
        table(f"Subscription of {issued.customer}, card {card}, token {issued.token}", year.rows)


if __name__ == "__main__":
    main()
