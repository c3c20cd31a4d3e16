"""How results look to people: facts one below the other, tables, and a status in its color."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import attrs
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tokenvault.records.token_info import TokenInfo

STATUS_STYLES: Final = {
    "active": "green",
    "inactive": "yellow",
    "suspended": "yellow",
    "winding down": "yellow",
    "deleted": "red",
}
NOTHING: Final = Text("-", "dim")


def facts(pairs: Mapping[str, RenderableType | None]) -> Table:
    """Names and values, one below the other; a value that is None is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        if value is not None:
            grid.add_row(name, value)
    return grid


def listing(
    columns: Sequence[str], rows: Iterable[Sequence[RenderableType]], right: Sequence[str] = ()
) -> Table:
    """A table.

    Args:
        columns: their names; where the terminal is narrow, the last one wraps.
        rows: a value for each column.
        right: the columns that hold numbers.
    """
    table = Table(
        box=box.SIMPLE_HEAD, header_style="bold", border_style="grey37", show_edge=False, padding=(0, 1, 0, 0)
    )
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column != columns[-1],
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    return table


def counted(number: int, what: str) -> str:
    """A number of things in words."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def verdict(text: str, *, good: bool) -> Text:
    """What it comes to, in one line."""
    return Text.assemble(("✓ ", "bold green") if good else ("✗ ", "bold red"), (text, "bold"))


def status_text(status: str) -> Text:
    """A token's status in its color."""
    return Text(status, STATUS_STYLES.get(status, ""))


def moment(instant: datetime) -> str:
    """An instant to the second, UTC."""
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def masked(token: str) -> str:
    """A token but for its last four digits."""
    return f"{'*' * (len(token) - 4)}{token[-4:]}"


def token_facts(info: TokenInfo, *, whole: bool) -> Table:
    """What the vault has of a token; `whole`: with all of its digits."""
    suspended_by = ", ".join(sorted(actor.value for actor in info.suspended_by))
    return facts(
        {
            "token": Text(info.token, "bold") if whole else masked(info.token),
            "reference": info.reference,
            "status": Text.assemble(
                status_text(info.status.value), f" by {suspended_by}" if suspended_by else ""
            ),
            "program": info.program,
            "requestor": info.requestor,
            "card": NOTHING if info.last4 is None else f"ends in {info.last4}",
            "valid through": NOTHING if info.token_expiry is None else str(info.token_expiry),
            "may be purged": None if info.purge_after is None else moment(info.purge_after),
            "assurance": info.assurance,
            "par": info.par,
            "created": moment(info.created),
            "updated": f"{moment(info.updated)}, revision {info.revision}",
        }
    )


def token_table(infos: Iterable[TokenInfo], *, whole: bool) -> Table:
    """Tokens, one a row; `whole`: with all of their digits."""
    return listing(
        ("token" if whole else "reference", "status", "through", "requestor", "program"),
        (
            (
                info.token if whole else info.reference,
                status_text(info.status.value),
                NOTHING if info.token_expiry is None else str(info.token_expiry),
                info.requestor,
                info.program,
            )
            for info in infos
        ),
    )


def token_document(info: TokenInfo, *, whole: bool) -> dict[str, object]:
    """The properties of a token for `--json`, with the token masked unless it is `whole`."""
    document = {field.name: getattr(info, field.name) for field in attrs.fields(TokenInfo)}
    return document if whole else {**document, "token": masked(info.token)}
