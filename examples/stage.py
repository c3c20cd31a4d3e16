"""What the other examples play on: a vault in a folder that goes away, its clock, and tables."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import tokenvault as tv


class Calendar:
    """The clock of an example: it stands until it is set."""

    def __init__(self, at: datetime) -> None:
        self.now = at

    def now_ms(self) -> int:
        """Milliseconds of the Unix epoch."""
        return int(self.now.timestamp() * 1000)


@contextmanager
def vault(
    at: datetime, programs: Sequence[tv.TokenProgram], requestors: Sequence[tv.TokenRequestor]
) -> Iterator[tuple[tv.Vault, Calendar]]:
    """A vault over a key file and a SQLite file. In earnest, keys live in an HSM: see docs/howto/hsm.md."""
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder, "passphrase")
        secret.touch(mode=0o600)
        secret.write_text("of this example alone, and gone with it")
        keys = tv.open_key_store(f"file:{folder}/keys.json?passphrase-source=file:{secret}")
        store = tv.open_token_store(f"sqlite:///{folder}/vault.db")
        tv.provision(keys, store)
        calendar = Calendar(at)
        with tv.Vault(keys, store, programs=programs, requestors=requestors, clock=calendar) as opened:
            yield opened, calendar
        report = tv.verify_audit(store, keys=keys)
        print(f"\nThe audit trail: {report.events} events, {len(report.findings)} findings.")
        store.close()
        keys.close()


def attempt(vault: tv.Vault, token: str, transaction: tv.Transaction) -> str:
    """Use a token; what came of it, in a few words."""
    try:
        vault.detokenize(token, transaction)
    except tv.DomainRestrictionError as refused:
        codes = ", ".join(violation.code for violation in refused.violations)
        return f"declined {refused.response_code}  {codes}"
    return "approved"


def table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title, in columns; the first row is the head."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    print(f"\n{title}")
    for number, row in enumerate(rows):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))


def money(amount: tv.Money | None) -> str:
    """An amount as a table shows it."""
    return "" if amount is None else f"{amount.amount / 100:,.2f} {amount.currency}"
