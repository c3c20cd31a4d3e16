"""Fifty thousand cards of an old system, as its export has them: dirty, some expired, some no cards at all.

What can not be taken is named by line and code, and an import that was interrupted goes on where it stopped.

python examples/migrate_cards.py [ROWS]
"""

from __future__ import annotations

import csv
import random
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from stage import table, vault

import tokenvault as tv

SHOP = "40012345678"
ON_FILE = tv.TokenProgram(
    "card-on-file",
    format=tv.TokenFormat(bin="999912", keep_last4=True),
    making=tv.Making.CONVERGENT,
    expected_tokens=50_000,
    accept_density=True,
)
SPELLINGS = ("{m:02}/{y:02}", "{m:02}{y:02}", "20{y:02}-{m:02}", "{m}/20{y:02}", " {m:02} / 20{y:02}")


def main(rows: int = 50_000) -> None:
    """Make the export, import it with a break in the middle, and print what came of it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        vault(
            datetime(2026, 11, 1, tzinfo=UTC), [ON_FILE], [tv.TokenRequestor(SHOP, programs={"card-on-file"})]
        ) as (opened, _),
    ):
        export, rejects = Path(folder, "export.csv"), Path(folder, "rejects.csv")
        write_export(export, rows)
        issued, codes = set(), Counter[str]()
        reached = 0
        # The first run is broken off half way. A RANDOM program would need an `import_id`.
        for stop_at in (rows // 2, rows + 1):
            for row in tv.import_cards(
                opened,
                export,
                requestor=SHOP,
                program="card-on-file",
                after_line=reached,
                operator="migration",
            ):
                reached = row.line
                if row.token is not None:
                    issued.add(row.token.token)
                else:
                    codes[row.code or ""] += 1
                    with rejects.open("a", newline="") as file:
                        csv.writer(file).writerow((row.line, row.code, row.message))
                if reached >= stop_at:
                    break
            print(f"\r{reached:,} lines, {len(issued):,} tokens, {sum(codes.values()):,} rejected", end="")
        print()
        told = [(code, f"{count:,}") for code, count in sorted(codes.items())]
        table("Rejected, by code", [("CODE", "ROWS"), *told])
        with rejects.open() as file:
            first = islice(csv.reader(file), 3)
            table("The first of the reject file", [("LINE", "CODE", "MESSAGE"), *first])
        print(f"\n{opened.count(program='card-on-file'):,} tokens in the vault, {len(issued):,} issued.")


def write_export(path: Path, rows: int) -> None:
    """An export as they are: a byte order mark, semicolons, five spellings of an expiry, and mistakes."""
    chance = random.Random(1)
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(("Customer ID", "Card Number", "Exp. Date", "Note"))
        for number in range(rows):
            pan = with_check_digit(f"4{chance.randrange(10**14):014}")
            expiry = SPELLINGS[number % len(SPELLINGS)].format(m=1 + number % 12, y=20 + number % 12)
            match number % 500:
                case 7:
                    pan = pan[:-1] + str((int(pan[-1]) + 1) % 10)
                case 19:
                    pan = f"{pan[0]}.{pan[1:6]}E+15"
                case 23:
                    pan = pan[:11]
                case 29:
                    expiry = "13/29"
                case 31:
                    pan = "n/a"
                case 37:
                    pan = f"'{pan[:4]} {pan[4:8]} {pan[8:12]} {pan[12:]} "
            writer.writerow((f"customer-{number}", pan, expiry, "x"))


def with_check_digit(digits: str) -> str:
    """Digits and their Luhn check digit."""
    doubled = [int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits))]
    total = sum(number // 10 + number % 10 for number in doubled)
    return f"{digits}{-total % 10}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
