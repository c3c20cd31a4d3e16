"""The examples run as they stand, and their tables say what they are there to show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tokenvault

EXAMPLES = Path(__file__).parent.parent / "examples"
SECONDS_MAX = 120


def printed(name: str, *arguments: str) -> str:
    """What an example prints. No card number is among it."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(tokenvault.__file__).parent.parent)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    for pan in ("4111111111111111", "6212345678901232", "5555555555554444"):
        assert pan not in done.stdout
    assert ", 0 findings." in done.stdout
    return done.stdout


def rows(text: str) -> list[str]:
    """The rows of tables, with one blank where there are many."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_year_of_a_subscription() -> None:
    found = rows(printed("subscription.py"))
    assert "2026-04-28 declined by the issuer: given back 19.99 EUR approved 20.00 EUR" in found
    assert "2026-04-30 tried again two days later 19.99 EUR approved 0.01 EUR" in found
    assert "2026-09-28 charge: the card has expired 19.99 EUR declined 54 TOKEN_EXPIRED 20.00 EUR" in found
    assert "2026-09-28 charge of month 9 19.99 EUR approved 0.01 EUR" in found
    assert "2026-11-15 and once more 0.01 EUR declined 13 REFUND_EXCEEDS 20.00 EUR" in found
    assert "2027-01-28 charge after cancelling 19.99 EUR declined 57 TOKEN_WINDING_DOWN 20.00 EUR" in found
    assert "2027-01-28 refund after cancelling 19.99 EUR approved 20.00 EUR" in found


def test_a_digital_card_is_light_for_small_and_strong_for_large() -> None:
    found = rows(printed("digital_card.py"))
    refused = "declined 1A STRONG_AUTHENTICATION_REQUIRED"
    assert f"online purchase large, nothing shown 2,400.00 CNY {refused}" in found
    assert "online purchase the same, with two factors 2,400.00 CNY knowledge+possession approved" in found
    assert f"contactless tap 6: five since the last authentication 30.00 CNY {refused}" in found
    assert "contactless tap 7: counted anew 30.00 CNY approved" in found
    assert any("by a reader in a crowd 45.00 CNY declined 57 MERCHANT_NOT_ALLOWED" in row for row in found)
    assert (
        "contactless the phone is lost: its token alone stops 20.00 CNY declined 62 TOKEN_SUSPENDED" in found
    )
    assert "QR code the others go on 20.00 CNY approved" in found


def test_a_marketplace_has_an_agent_with_a_budget_that_can_be_revoked() -> None:
    found = rows(printed("marketplace.py"))
    assert "agent past its budget 50.00 EUR declined 61 AMOUNT_EXCEEDED" in found
    assert "agent within it 45.00 EUR approved" in found
    assert any(row.startswith("agent after the customer revoked it 1.00 EUR declined 14") for row in found)
    assert "marketplace the customer's own token 30.00 EUR approved" in found


@pytest.mark.parametrize("count", [3_000])
def test_a_migration_reports_each_reject_and_goes_on_where_it_stopped(count: int) -> None:
    text = printed("migrate_cards.py", str(count))
    rejected = 5 * count // 500
    assert f"{count - rejected:,} tokens in the vault, {count - rejected:,} issued." in text
    found = rows(text)
    for code in ("EXPIRY_FORM", "PAN_CHARACTERS", "PAN_CHECK_DIGIT", "PAN_LENGTH", "PAN_ROUNDED"):
        assert f"{code} {count // 500}" in found
