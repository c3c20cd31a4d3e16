"""Tables in Markdown, plots as SVG, and the sections of docs/benchmarks.md that they go into."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
PLOTS = DOCUMENT.parent / "benchmarks"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def rate(per_second: float) -> str:
    """How many a second, to three digits: 18.4 million, 98,300."""
    if per_second >= 999_500:
        return f"{per_second / 1e6:.3g} million"
    return f"{float(f'{per_second:.3g}'):,.0f}"


def line_plot(
    name: str, title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[tuple[float, float]]]
) -> bool:
    """Draw lines over logarithmic axes into docs/benchmarks/`name`.svg, if matplotlib is installed.

    Args:
        name: of the file.
        title: above the plot.
        x_label: below it.
        y_label: beside it.
        series: the points of each line by its name.

    Returns:
        Whether it is.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 # an extra: tables are printed without it
        from matplotlib.figure import Figure  # noqa: PLC0415 # of the same extra
    except ImportError:
        return False
    # text as text, and no random ids and dates: the same figures give the same file
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for label, points in series.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
        PLOTS.mkdir(exist_ok=True)
        figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
    return True


class _Both(io.TextIOBase):
    """Prints to the screen, and keeps it."""

    def __init__(self, screen: TextIO) -> None:
        self.screen = screen
        self.kept = ""

    def write(self, text: str) -> int:
        """Print and keep."""
        self.kept += text
        return self.screen.write(text)


@contextlib.contextmanager
def section(name: str, *, write: bool, plots: Sequence[str] = ()) -> Iterator[None]:
    """What is printed within goes into a section of docs/benchmarks.md too, if `write`; with plots below it."""
    both = _Both(sys.stdout)
    with contextlib.redirect_stdout(both):
        yield
    if write:
        drawn = "".join(
            f"\n![{plot}](benchmarks/{plot}.svg)\n" for plot in plots if (PLOTS / f"{plot}.svg").exists()
        )
        write_section(name, f"```text\n{both.kept.strip()}\n```\n{drawn}")


def progress(text: str) -> None:
    """Tell how far a long run is, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r  {text:<60}", end="\r", file=sys.stderr, flush=True)


def write_section(name: str, text: str) -> None:
    """Put a text between the markers `<!-- name -->` and `<!-- end of name -->` of docs/benchmarks.md.

    Raises:
        ValueError: the document does not have them.
    """
    document = DOCUMENT.read_text()
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, _, rest = document.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"docs/benchmarks.md has no section {name}")
    DOCUMENT.write_text(f"{before}{start}{text.rstrip()}\n{end}{after}")
