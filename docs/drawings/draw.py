"""Draws the SVG files beside it: `python docs/drawings/draw.py`. A test compares them with what it draws.

All are 380 units wide, so that their text stays readable on a telephone. Each has a panel of its own as a background,
and follows the reader's light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

WIDTH = 380
STYLE = """
    .panel { fill: #f6f8fa; stroke: #d0d7de }
    .box { fill: #ffffff; stroke: #57606a }
    .strong { fill: #ddf4ff; stroke: #0969da }
    .bad { fill: #ffebe9; stroke: #cf222e }
    .line { fill: none; stroke: #57606a; stroke-width: 1.5 }
    .head { fill: #57606a }
    text { fill: #1f2328; font: 13px system-ui, sans-serif }
    .small { font-size: 11.5px; fill: #57606a }
    .mono { font: 12px ui-monospace, monospace }
    @media (prefers-color-scheme: dark) {
      .panel { fill: #161b22; stroke: #30363d }
      .box { fill: #21262d; stroke: #8b949e }
      .strong { fill: #0c2d4d; stroke: #58a6ff }
      .bad { fill: #3d1214; stroke: #f85149 }
      .line { stroke: #8b949e }
      .head { fill: #8b949e }
      text { fill: #e6edf3 }
      .small { fill: #9ea7b3 }
    }
"""


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """A line of text; y is its base line."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def box(
    x: float, y: float, width: float, height: float, *lines: str, kind: str = "box"
) -> str:
    """A box with lines in its middle: the first one large, the others small."""
    top = y + height / 2 - 8 * (len(lines) - 1) + 4.5
    words = (
        text(x + width / 2, top + 16 * number, line, "small" if number else "")
        for number, line in enumerate(lines)
    )
    frame = f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
    return frame + "".join(words)


def arrow(*points: tuple[float, float], both: bool = False) -> str:
    """A line through points, with a head at its end, or at both ends."""
    path = " L".join(f"{x} {y}" for x, y in points)
    start = ' marker-start="url(#head)"' if both else ""
    return f'<path class="line" d="M{path}" marker-end="url(#head)"{start}/>'


def dot(x: float, y: float, kind: str) -> str:
    """A small event."""
    return f'<circle class="{kind}" cx="{x}" cy="{y}" r="6"/>'


def drawing(title: str, height: int, parts: Iterable[str]) -> str:
    """A whole file."""
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        ' orient="auto-start-reverse"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker>'
    )
    panel = f'<rect class="panel" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>'
    lines = [
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}  </style>",
        f"<defs>{head}</defs>",
        panel,
        *parts,
    ]
    body = "\n".join(f"  {line}" for line in lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img">\n{body}\n</svg>\n'
    )


def parts_of_a_vault() -> str:
    """Who talks to whom."""
    return drawing(
        "A service calls the vault in its own process; the vault asks a key store and a token store",
        312,
        [
            box(90, 16, 200, 44, "your service", "authenticates its callers"),
            arrow((150, 60), (150, 116)),
            text(142, 92, "card, or token and use", "small", "end"),
            arrow((230, 116), (230, 60)),
            text(238, 92, "token, or card", "small", "start"),
            box(
                60,
                116,
                260,
                60,
                "vault",
                "decide · seal · count · write the event",
                "a library in your process",
                kind="strong",
            ),
            arrow((110, 176), (110, 240), both=True),
            text(118, 205, "16-byte blocks", "small", "start"),
            text(118, 220, "to encrypt", "small", "start"),
            arrow((270, 176), (270, 240), both=True),
            text(278, 205, "sealed records,", "small", "start"),
            text(278, 220, "events", "small", "start"),
            box(24, 240, 152, 54, "key store", "PKCS#11 module"),
            box(204, 240, 152, 54, "token store", "SQLite, PostgreSQL"),
        ],
    )


def decision() -> str:
    """What a use must satisfy."""
    steps = [
        ("the token", "active, and not expired"),
        ("the program's domain", "for every token of the program"),
        ("the owner's domain", "for every token of that requestor"),
        ("the token's own domain", "set when it was issued"),
    ]
    parts = [box(24, 16, 212, 34, "transaction", kind="strong")]
    for number, (name, what) in enumerate(steps):
        top = 74 + 66 * number
        parts += [
            arrow((130, top - 24), (130, top)),
            box(24, top, 212, 42, name, what),
            arrow((236, top + 21), (290, top + 21)),
        ]
    end = 74 + 66 * len(steps)
    parts += [
        box(290, 74, 74, 240, "every", kind="bad"),
        text(327, 214, "control", "small"),
        text(327, 230, "that failed", "small"),
        arrow((130, end - 24), (130, end)),
        box(24, end, 212, 42, "count, and write the event", "in one step, by revision"),
        arrow((130, end + 42), (130, end + 66)),
        box(24, end + 66, 212, 34, "card", kind="strong"),
    ]
    return drawing(
        "A use passes the token's state and three domains; every control that fails is told",
        end + 116,
        parts,
    )


def lifecycle() -> str:
    """The states of a token."""
    return drawing(
        "INACTIVE becomes ACTIVE; ACTIVE and SUSPENDED change into each other; each can be DELETED, for good",
        330,
        [
            box(24, 20, 130, 44, "INACTIVE", "no use allowed"),
            arrow((154, 42), (226, 42)),
            text(190, 34, "activate", "small"),
            box(226, 20, 130, 44, "ACTIVE", "uses as allowed", kind="strong"),
            arrow((256, 64), (256, 140)),
            text(249, 100, "suspend", "small", "end"),
            text(249, 115, "(by an actor)", "small", "end"),
            arrow((326, 140), (326, 64)),
            text(319, 104, "resume", "small", "end"),
            box(
                226,
                140,
                130,
                62,
                "SUSPENDED",
                "by a set of actors;",
                "each lifts its own",
            ),
            arrow((89, 64), (89, 258)),
            text(97, 164, "delete", "small", "start"),
            arrow((291, 202), (291, 280), (214, 280)),
            text(299, 246, "delete", "small", "start"),
            arrow((356, 42), (368, 42), (368, 296), (214, 296)),
            box(
                24,
                258,
                190,
                56,
                "DELETED",
                "for good: no card left,",
                "the token is never reissued",
                kind="bad",
            ),
        ],
    )


def limits() -> str:
    """Windows of a limit."""
    parts = [text(190, 30, "Limit(uses=2, per=timedelta(days=1))", "mono")]
    for number, (day, uses) in enumerate(
        [("Monday", "aar"), ("Tuesday", "a"), ("Wednesday", "aa")]
    ):
        left = 20 + 113.3 * number
        parts += [
            f'<rect class="box" x="{left:.0f}" y="48" width="113" height="76"/>',
            text(left + 57, 68, day),
            *(
                dot(left + 32 + 25 * place, 94, "strong" if use == "a" else "bad")
                for place, use in enumerate(uses)
            ),
            text(left, 142, "00:00 UTC", "small", "start"),
        ]
    parts += [
        dot(34, 168, "strong"),
        text(46, 172, "allowed, and counted", "small", "start"),
        dot(204, 168, "bad"),
        text(216, 172, "refused: USES_EXCEEDED", "small", "start"),
    ]
    return drawing(
        "Three windows of a day: two uses are allowed in each, a third is refused",
        190,
        parts,
    )


def trail() -> str:
    """Streams, checkpoints and an anchor."""

    def stream(y: float, name: str, kinds: str) -> list[str]:
        found = [
            text(24, y - 22, name, "small", "start"),
            f'<path class="line" d="M24 {y} H252"/>',
        ]
        for place, kind in enumerate(kinds):
            x = 36 + 30 * place
            if kind == "C":
                found.append(
                    f'<rect class="strong" x="{x - 9}" y="{y - 9}" width="18" height="18" rx="3"/>'
                )
            else:
                found.append(dot(x, y, "box"))
        return found

    return drawing(
        "Each process writes a stream of events; checkpoints commit to all before them and refer to other streams",
        248,
        [
            *stream(50, "process 1", "CeeeCeeC"),
            *stream(130, "process 2", "CeeCee"),
            arrow((126, 121), (153, 60)),
            text(152, 100, "refers to", "small", "start"),
            arrow((246, 59), (300, 92)),
            arrow((252, 130), (300, 114)),
            box(300, 78, 66, 52, "anchor", "kept apart"),
            '<rect class="strong" x="27" y="169" width="18" height="18" rx="3"/>',
            text(
                54,
                182,
                "checkpoint: root over all events before it, signed",
                "small",
                "start",
            ),
            dot(36, 206, "box"),
            text(
                54, 210, "event: number, MAC; a change and its event", "small", "start"
            ),
            text(54, 226, "are written in one step", "small", "start"),
        ],
    )


DRAWINGS = {
    "parts": parts_of_a_vault,
    "decision": decision,
    "lifecycle": lifecycle,
    "limits": limits,
    "trail": trail,
}

if __name__ == "__main__":
    for file_name, draw in DRAWINGS.items():
        (Path(__file__).parent / f"{file_name}.svg").write_text(
            draw(), encoding="utf-8"
        )
