"""Numbers as texts spell them: which digits of a text may have been meant to belong together.

Whatever is no digit may stand between two digits of a card number: blanks, hyphens, dots, letters. So a text is read
once between its letters, where nothing but signs separates digits, and once as a whole. Identifiers in hexadecimal (a
UUID, a hash) are left out of the second reading only: their letters are digits too, and separate nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final, TypeAlias

SHORTEST_NUMBER: Final = 12
"""Digits of the shortest card number: what has fewer holds none."""

_RUNS: Final = re.compile(r"[0-9]+")
_LETTERS: Final = re.compile(r"[^\W\d_]+")
_HEXADECIMAL: Final = re.compile(
    r"(?<![0-9a-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32,})(?![0-9a-z])", re.IGNORECASE
)

Runs: TypeAlias = Sequence[str]
"""Digits that may belong together, in the runs in which they stand."""


def readings(text: str) -> list[Runs]:
    """The ways to read a text that give as many digits as a card number has, or more."""
    if len(text) < SHORTEST_NUMBER:
        return []
    plain = text if text.isascii() else "".join(map(_ascii_digit, text))
    every = _RUNS.findall(plain)
    if not _enough(every):
        return []
    pieces = _LETTERS.split(plain)
    if len(pieces) == 1:
        return [every]
    whole = _RUNS.findall(_HEXADECIMAL.sub(" ", plain))
    found = [*map(_RUNS.findall, pieces), whole]
    return [runs for runs in found if _enough(runs)]


def spelled(found: Sequence[Runs], digits: str) -> bool:
    """Whether the readings of a text hold digits, whatever stands between them, before and behind."""
    return any(digits in "".join(runs) for runs in found)


def spells(text: str, digits: str) -> bool:
    """Whether a text holds digits, whatever stands between them, before and behind."""
    return spelled(readings(text), digits)


def _enough(runs: Runs) -> bool:
    return sum(map(len, runs)) >= SHORTEST_NUMBER


def _ascii_digit(character: str) -> str:
    """The digit that a character of any script stands for; other characters as they are."""
    value = unicodedata.digit(character, None)
    return character if value is None else str(value)
