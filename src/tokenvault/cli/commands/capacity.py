"""How full each program is, with a picture: tokens issued, beside those expected and those there could be."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Final

import attrs
import typer
from rich.text import Text

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands.apps import SET_UP, app
from tokenvault.cli.commands.parties import space_of
from tokenvault.cli.inputs import open_private
from tokenvault.cli.output import Output
from tokenvault.cli.pictures import draw
from tokenvault.cli.views import listing
from tokenvault.stores import TokenStore
from tokenvault.stores.port import PAGE_MAX

BAR_CELLS: Final = 14
DENSITY_MAX: Final = 1 / 1_000
"""Above this a guess hits a token too often: one in a thousand."""


@attrs.frozen
class Fill:
    """How full a program is.

    Attributes:
        program: its name.
        issued: tokens in the database, deleted ones too: they are never issued again.
        expected: tokens that it is planned for.
        space: different tokens that there are, for card numbers of 16 digits unless the format says the length.
        density: issued tokens for each that there could be: how often a guess hits.
    """

    program: str
    issued: int
    expected: int
    space: int

    @property
    def density(self) -> float:
        """Issued tokens for each that there could be."""
        return self.issued / self.space


@command(app, "capacity", SET_UP)
def capacity(
    session: Session,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="New file for a picture.")] = None,
) -> None:
    """Show how full each program is.

    Tokens issued, beside those expected and those that there is room for. Reads the program of every record.
    """
    programs = session.configuration.programs
    issued = issued_by_program(session.store, session.output)
    fills = [Fill(each.name, issued[each.name], each.expected_tokens, space_of(each)) for each in programs]
    if svg is not None:
        rows = [(each.program, each.issued, each.expected, each.space) for each in fills]
        with os.fdopen(open_private(svg), "w", encoding="utf-8") as file:
            file.write(draw(rows, DENSITY_MAX))
    table = listing(
        ("program", "issued", "expected", "", "", "a guess hits"),
        (
            (
                each.program,
                f"{each.issued:,}",
                f"{each.expected:,}",
                _bar(each.issued / each.expected),
                f"{each.issued / each.expected:.1%}",
                _odds(each),
            )
            for each in fills
        ),
        right=("issued", "expected", ""),
    )
    session.output.result(
        {
            "programs": [
                {
                    "program": each.program,
                    "issued": each.issued,
                    "expected": each.expected,
                    "space": each.space,
                    "density": each.density,
                }
                for each in fills
            ]
        },
        table if fills else Text("no program is configured", "dim"),
    )


def issued_by_program(store: TokenStore, output: Output) -> Counter[str]:
    """How many records each program has. Raises TokenStoreError, IntegrityError."""
    counted: Counter[str] = Counter()
    after = ""
    with output.progress("records") as progress:
        task = progress.add_task("counting", total=None)
        while rows := store.scan(after=after, limit=PAGE_MAX):
            counted.update(row.program for row in rows)
            progress.advance(task, len(rows))
            after = rows[-1].token
    return counted


def _bar(share: float) -> Text:
    """A bar for a share from 0 to 1; at 0.8 it turns yellow, at 1 red."""
    eighths = round(8 * BAR_CELLS * min(share, 1.0))
    cells = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    style = "green" if share < 0.8 else "yellow" if share < 1 else "red"
    return Text.assemble((cells, style), ("·" * (BAR_CELLS - len(cells)), "grey37"))


def _odds(fill: Fill) -> Text:
    if not fill.issued:
        return Text("never", "dim")
    return Text(f"1 in {fill.space // fill.issued:,}", "red" if fill.density > DENSITY_MAX else "")
