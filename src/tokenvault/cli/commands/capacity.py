"""How full each program is, with a picture: tokens issued, beside those expected and those there could be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import attrs
import typer
from rich.text import Text

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands.apps import SET_UP, app
from tokenvault.cli.inputs import write_private
from tokenvault.cli.pictures import draw
from tokenvault.cli.views import NOTHING, listing
from tokenvault.vault.capacity import Capacity

BAR_CELLS: Final = 8
DENSITY_MAX: Final = 1 / 1_000
"""Above this a guess hits a token too often: one in a thousand."""


@command(app, "capacity", SET_UP)
def capacity(
    session: Session,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="New file for a picture.")] = None,
) -> None:
    """Show how full each program is.

    Tokens issued, beside those expected and those that there is room for, and when that is used up at the rate of
    the last 30 days.
    """
    fills = session.vault.capacity()
    if svg is not None:
        rows = [(each.program, each.issued, each.expected, each.space) for each in fills]
        write_private(svg, draw(rows, DENSITY_MAX))
    table = listing(
        ("program", "issued", "expected", "", "", "reached", "a guess hits"),
        (
            (
                each.program,
                f"{each.issued:,}",
                f"{each.expected:,}",
                _bar(each.issued / each.expected),
                f"{each.issued / each.expected:.1%}",
                NOTHING if each.expected_at is None else f"{each.expected_at:%Y-%m}",
                _odds(each),
            )
            for each in fills
        ),
        right=("issued", "expected", ""),
    )
    session.output.result(
        {"programs": [{**attrs.asdict(each), "density": each.density} for each in fills]},
        table if fills else Text("no program is configured", "dim"),
    )


def _bar(share: float) -> Text:
    """A bar for a share from 0 to 1; at 0.8 it turns yellow, at 1 red."""
    eighths = round(8 * BAR_CELLS * min(share, 1.0))
    cells = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    style = "green" if share < 0.8 else "yellow" if share < 1 else "red"
    return Text.assemble((cells, style), ("·" * (BAR_CELLS - len(cells)), "grey37"))


def _odds(fill: Capacity) -> Text:
    if not fill.issued:
        return Text("never", "dim")
    return Text(f"1 in {fill.space // fill.issued:,}", "red" if fill.density > DENSITY_MAX else "")
