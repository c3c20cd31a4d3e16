"""A marketplace: merchants and an agent pay with tokens of their own, which come from one token of the customer.

Nobody but the vault handles the card. The agent has a budget, a list of merchants and an end; deleting its token
revokes it, and the customer's own token goes on.

python examples/marketplace.py
"""

from __future__ import annotations

from datetime import UTC, datetime

from stage import attempt, money, table, vault

import tokenvault as tv

MARKET, BAKER, FLORIST, AGENT = "40011111111", "40022222222", "40033333333", "40044444444"
CARD = "5555555555554444"
NAMES = {MARKET: "marketplace", BAKER: "baker", FLORIST: "florist", AGENT: "agent"}

PROGRAMS = [
    tv.TokenProgram("wallet", format=tv.TokenFormat(bin="999931")),
    tv.TokenProgram("sellers", format=tv.TokenFormat(bin="999932")),
    tv.TokenProgram("agents", format=tv.TokenFormat(bin="999933")),
]
REQUESTORS = [
    tv.TokenRequestor(MARKET, programs={program.name for program in PROGRAMS}),
    tv.TokenRequestor(BAKER, permissions={tv.Permission.DETOKENIZE}),
    tv.TokenRequestor(FLORIST, permissions={tv.Permission.DETOKENIZE}),
    # Whoever the agent acts for: it pays as an agent, and nothing above 60.00.
    tv.TokenRequestor(
        AGENT,
        permissions={tv.Permission.DETOKENIZE},
        domain=tv.Domain(channels={tv.Channel.AGENT}, max_amount=tv.Money(60_00, "EUR")),
    ),
]


def euro(amount: int) -> tv.Money:
    """Whole euros."""
    return tv.Money(amount * 100, "EUR")


def main() -> None:
    """Issue a token from a token, pay, look, revoke."""
    rows = [("WHO", "WHAT", "AMOUNT", "DECISION")]
    with vault(datetime(2026, 11, 1, tzinfo=UTC), PROGRAMS, REQUESTORS) as (opened, _):

        def pay(who: str, what: str, token: str, number: int, amount: int, merchant: str | None) -> None:
            transaction = tv.Transaction(
                id=f"order-{number}",
                requestor=who,
                amount=euro(amount),
                merchant=merchant,
                channel=tv.Channel.AGENT if who == AGENT else tv.Channel.ECOMMERCE,
                agent="shopping-assistant" if who == AGENT else None,
            )
            rows.append((NAMES[who], what, money(transaction.amount), attempt(opened, token, transaction)))

        wallet = opened.issue(CARD, expiry="2029-10", requestor=MARKET, program="wallet", customer="ada")
        baker = opened.issue_from(
            wallet.token,
            requestor=BAKER,
            program="sellers",
            domain=tv.Domain(merchants={"BAKER"}, limits=(tv.Limit(uses=1),)),
        )
        agent = opened.issue_from(
            wallet.token,
            requestor=AGENT,
            program="agents",
            customer="ada",
            domain=tv.Domain(
                merchants={"BAKER", "FLORIST"},
                agents={"shopping-assistant"},
                limits=(tv.Limit(amount=euro(100)),),
                valid_until=datetime(2026, 12, 24, tzinfo=UTC),
            ),
        )
        pay(BAKER, "its own token", baker.token, 1, 12, "BAKER")
        pay(BAKER, "a second time", baker.token, 2, 12, "BAKER")
        pay(FLORIST, "the baker's token", baker.token, 3, 12, "BAKER")
        pay(AGENT, "flowers", agent.token, 4, 55, "FLORIST")
        pay(AGENT, "a cake above what it may pay anywhere", agent.token, 5, 70, "BAKER")
        pay(AGENT, "past its budget", agent.token, 6, 50, "BAKER")
        pay(AGENT, "within it", agent.token, 7, 45, "BAKER")
        pay(AGENT, "at another merchant", agent.token, 8, 1, "CASINO")
        granted = opened.tokens_from(wallet.token, requestor=MARKET)
        listed = [(NAMES[each.requestor], each.program, each.token, each.status.value) for each in granted]
        opened.delete(agent.token, requestor=MARKET, operator="ada")
        pay(AGENT, "after the customer revoked it", agent.token, 9, 1, "BAKER")
        pay(MARKET, "the customer's own token", wallet.token, 10, 30, None)
        table("Payments", rows)
        heads = ("FOR", "PROGRAM", "TOKEN", "STATUS")
        table("What came from the customer's token, before it was revoked", [heads, *listed])


if __name__ == "__main__":
    main()
