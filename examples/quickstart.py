"""Issues tokens for the networks' test cards and runs payments against them. Start it with `make demo`."""

from __future__ import annotations

import csv
import os
import sys
from datetime import timedelta
from pathlib import Path

import tokenvault as tv

PROJECT = Path(__file__).resolve().parent.parent
CARDS = PROJECT / "examples" / "cards.csv"
FOLDER = PROJECT / ".demo"

SHOP, WALLET, ACQUIRER = "40012345678", "40023456789", "40087654321"

PROGRAMS = [
    tv.TokenProgram(
        "card-on-file",
        format=tv.TokenFormat(bin="999912", length=16, keep_last4=True),
        making=tv.Making.CONVERGENT,
        domain=tv.Domain(channels={tv.Channel.ECOMMERCE, tv.Channel.MERCHANT_INITIATED}),
    ),
    tv.TokenProgram(
        "wallet",
        format=tv.TokenFormat(bin="999913"),
        domain=tv.Domain(channels={tv.Channel.CONTACTLESS, tv.Channel.QR_CONSUMER}),
    ),
]
REQUESTORS = [
    tv.TokenRequestor(SHOP, programs={"card-on-file"}),
    tv.TokenRequestor(WALLET, programs={"wallet"}),
    tv.TokenRequestor(ACQUIRER, permissions={tv.Permission.DETOKENIZE}),
]

AT_THE_SHOP = tv.Domain(
    requestors={SHOP, ACQUIRER},
    merchants={"M-1001"},
    max_amount=tv.Money(250_00, "EUR"),
    limits=(tv.Limit(amount=tv.Money(300_00, "EUR"), per=timedelta(days=30)),),
)
ONE_TAP = tv.Domain(requestors={WALLET, ACQUIRER}, limits=(tv.Limit(uses=1),))


def main() -> None:
    """Provision, issue, pay, and look into the database file."""
    address = os.environ.get("TOKENVAULT_KEY_STORE")
    if address is None:
        sys.exit(
            "Run ./softhsm-setup.sh, then `. .softhsm/env`, then this again; or `make demo`, which does it all."
        )
    FOLDER.mkdir(exist_ok=True)
    database = FOLDER / "vault.db"
    for left_over in FOLDER.glob("vault.db*"):
        left_over.unlink()

    keys = tv.open_key_store(address)
    store = tv.open_token_store(f"sqlite:///{database}")
    tv.provision(keys, store)
    with CARDS.open(newline="") as file:
        cards = list(csv.DictReader(file))

    with tv.Vault(keys, store, programs=PROGRAMS, requestors=REQUESTORS) as vault:
        on_file = [issue(vault, card, SHOP, "card-on-file", AT_THE_SHOP) for card in cards]
        taps = [issue(vault, card, WALLET, "wallet", ONE_TAP) for card in cards]

        show("CARD", "CARD ON FILE (SHOP)", "WALLET", "", "")
        for card, shop_token, wallet_token in zip(cards, on_file, taps, strict=True):
            masked = tv.Pan.parse(card["pan"]).masked
            show(masked, shop_token.token, wallet_token.token, card["network"], "")
        print()

        masks = [tv.Pan.parse(card["pan"]).masked for card in cards]
        show("CARD", "TOKEN", "PAYMENT", "DECISION", "REASONS")
        vault.suspend(on_file[4].token, by=tv.Actor.CARDHOLDER)
        vault.delete(on_file[5].token)
        for index, issued, what, payment in payments(on_file, taps):
            try:
                card_behind = vault.detokenize(issued.token, payment)
                decision, reasons = "approved", f"PAN handed out: {card_behind.pan.masked}"
            except tv.DomainRestrictionError as refused:
                first = refused.violations[0].response_code
                decision = f"declined {first}"
                reasons = ", ".join(violation.code for violation in refused.violations)
            show(masks[index], issued.token, what, decision, reasons)
        print()

    keys.close()
    store.close()
    look_into(database, [card["pan"] for card in cards], [info.token for info in on_file + taps])


def issue(
    vault: tv.Vault, card: dict[str, str], requestor: str, program: str, domain: tv.Domain
) -> tv.TokenInfo:
    """A token for a line of the card file."""
    return vault.issue(
        card["pan"], expiry=card["expiry"], requestor=requestor, program=program, domain=domain
    )


def payments(
    on_file: list[tv.TokenInfo], taps: list[tv.TokenInfo]
) -> list[tuple[int, tv.TokenInfo, str, tv.Transaction]]:
    """The payments: which card, which token, in words, and as a transaction."""

    def online(number: int, cents: int, currency: str = "EUR", **changed: str) -> tv.Transaction:
        return tv.Transaction(
            id=f"order-{number}",
            requestor=changed.get("requestor", SHOP),
            merchant=changed.get("merchant", "M-1001"),
            channel=tv.Channel.ECOMMERCE,
            amount=tv.Money(cents, currency),
        )

    def tap(number: int, channel: tv.Channel = tv.Channel.CONTACTLESS) -> tv.Transaction:
        return tv.Transaction(
            id=f"tap-{number}", requestor=WALLET, channel=channel, amount=tv.Money(9_90, "EUR")
        )

    return [
        (0, on_file[0], "42.00 EUR online", online(1, 42_00)),
        (0, on_file[0], "the same, retried", online(1, 42_00)),
        (0, on_file[0], "same id, 43.00 EUR", online(1, 43_00)),
        (0, on_file[0], "250.01 EUR online", online(2, 250_01)),
        (0, on_file[0], "250.00 EUR online", online(3, 250_00)),
        (0, on_file[0], "8.01 EUR online", online(4, 8_01)),
        (0, on_file[0], "8.00 EUR by acquirer", online(5, 8_00, requestor=ACQUIRER)),
        (1, on_file[1], "at another shop", online(6, 10_00, merchant="M-2002")),
        (2, on_file[2], "10.00 USD online", online(7, 10_00, "USD")),
        (3, on_file[3], "by the wallet", online(8, 10_00, requestor=WALLET)),
        (4, on_file[4], "suspended by holder", online(9, 10_00)),
        (5, on_file[5], "deleted", online(10, 10_00)),
        (6, taps[6], "first tap", tap(1)),
        (6, taps[6], "second tap", tap(2)),
        (7, taps[7], "wallet token online", tap(3, tv.Channel.ECOMMERCE)),
        (9, taps[9], "tap, 19 digits", tap(4)),
    ]


def show(*columns: str) -> None:
    """Print a row of the table."""
    print("{:<20} {:<20} {:<21} {:<16} {}".format(*columns).rstrip())


def look_into(database: Path, pans: list[str], tokens: list[str]) -> None:
    """Search the database's files for every PAN, and for every token, which must be there."""
    held = b"".join(path.read_bytes() for path in sorted(database.parent.glob("vault.db*")))
    found_pans = sum(pan.encode() in held for pan in pans)
    found_tokens = sum(token.encode() in held for token in tokens)
    print(
        f"The database has {len(held):,} bytes. Found in them: {found_tokens} of {len(tokens)} tokens,",
        end=" ",
    )
    print(f"{found_pans} of {len(pans)} PANs.")
    if found_pans or found_tokens != len(tokens):
        sys.exit("That is not as it should be.")


if __name__ == "__main__":
    main()
