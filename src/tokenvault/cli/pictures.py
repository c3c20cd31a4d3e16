"""The picture of `capacity`, as SVG: a row for each program, on one logarithmic scale of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

WIDTH: Final = 880
LEFT: Final = 190
RIGHT: Final = 40
TOP: Final = 78
ROW: Final = 58
BAR: Final = 18
INK, QUIET, FULL, MARK, LIMIT = "#1f2933", "#7b8794", "#2f7fb8", "#e0a030", "#c8503c"
FONT: Final = "font-family='system-ui, sans-serif'"


def draw(programs: Sequence[tuple[str, int, int, int]], density_max: float) -> str:
    """The picture.

    Args:
        programs: name, tokens issued, tokens expected, tokens that there could be, of each.
        density_max: issued tokens for each that there could be, above which a guess hits too often.
    """
    decades = max(1, *(math.ceil(math.log10(space)) for *_, space in programs), 1)
    height = TOP + ROW * max(len(programs), 1) + 40

    def x(count: float) -> float:
        """Where a number of tokens lies: none and one at the left end, more than there is room for at the right."""
        return LEFT + (WIDTH - LEFT - RIGHT) * min(math.log10(max(count, 1)) / decades, 1)

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' role='img'"
        " aria-label='Tokens issued, expected and possible, by program'>",
        f"<rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        _text(24, 34, "Tokens by program", INK, 18, "600"),
        *_legend(),
    ]
    for decade in range(decades + 1):
        at = x(10**decade)
        parts.append(f"<path d='M{at:.1f} {TOP - 6}V{height - 34}' stroke='#e4e7eb'/>")
        if decade % 3 == 0:
            parts.append(_text(at, height - 16, _count(10**decade), QUIET, 11, anchor="middle"))
    for row, (name, issued, expected, space) in enumerate(programs):
        top = TOP + ROW * row + 14
        parts += [
            _text(LEFT - 14, top + 13, name, INK, 13, "600", anchor="end"),
            _text(LEFT - 14, top + 29, f"{issued:,} issued", QUIET, 11, anchor="end"),
            _bar(LEFT, x(space), top, "#d9e2ec"),
            _bar(x(space * density_max), x(space), top, "#f3d9d3"),
            _bar(LEFT, x(issued), top, FULL),
            _mark(x(expected), top, MARK),
            _mark(x(space * density_max), top, LIMIT),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> list[str]:
    parts = []
    at = 200.0
    for color, label in (
        (FULL, "issued"),
        (MARK, "expected"),
        (LIMIT, "from here a guess hits more than one in a thousand"),
        ("#d9e2ec", "room"),
    ):
        parts += [
            f"<rect x='{at:.1f}' y='50' width='12' height='12' rx='2' fill='{color}'/>",
            _text(at + 18, 60, label, QUIET, 12),
        ]
        at += 44 + 6.4 * len(label)
    return parts


def _bar(left: float, right: float, top: float, color: str) -> str:
    return f"<rect x='{left:.1f}' y='{top}' width='{max(right - left, 0):.1f}' height='{BAR}' rx='3' fill='{color}'/>"


def _mark(at: float, top: float, color: str) -> str:
    return f"<path d='M{at:.1f} {top - 5}V{top + BAR + 5}' stroke='{color}' stroke-width='3'/>"


def _text(
    x: float, y: float, text: str, color: str, size: int, weight: str = "400", *, anchor: str = "start"
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y}' fill='{color}' font-size='{size}' font-weight='{weight}' text-anchor='{anchor}'"
        f" {FONT}>{escape(text)}</text>"
    )


def _count(number: int) -> str:
    """A power of ten as people say it."""
    for size, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number // size} {name}"
    return str(number)
