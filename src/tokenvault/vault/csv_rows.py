"""The rows of a CSV file as it is: whatever stands in one row, the others are read.

A row that is no row of its file is given up by its first line alone, and what follows is read again: a quote that
nobody closed swallows no card.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final, Self, TextIO

from tokenvault.errors import InvalidInputError, TokenVaultError
from tokenvault.interrupts import is_interrupt
from tokenvault.model import checks

CHUNK_CHARACTERS: Final = 65_536
LINE_CHARACTERS_MAX: Final = 65_536
ROW_LINES_MAX: Final = 64
"""How many lines a row with line breaks in its cells may have."""

MISSHAPEN: Final = "\0shape"
"""The member of a row of which no cells can be told; no column is called so."""

_LINE_END: Final = re.compile(r"\r\n|\r|\n")


def csv_rows(file: TextIO) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Each row below the first one, by the names of that, with the number of the line that it ends in.

    Raises:
        InvalidInputError: the file can not be read, or is no text in UTF-8.
    """
    feed = _Feed(text_lines(file))
    try:
        header = next((line for line in feed if line.strip()), "").lstrip("\ufeff")
        feed.used.clear()
        separator = max(",;\t", key=header.count)
        names = _names(header, separator)
        reader = csv.reader(feed, delimiter=separator, strict=True)
        while True:
            try:
                cells = next(reader)
            except csv.Error:
                cells = [MISSHAPEN]
            except StopIteration:
                return
            yield feed.row(names, cells)
    except InvalidInputError:  # the caller's file failed
        raise
    except ValueError:  # UnicodeDecodeError is one
        problem = f"the file of cards is no CSV in UTF-8, behind line {feed.line}"
    raise InvalidInputError(problem)


class _Feed:
    """The lines of a file, which notes those of the row under way; None of the file is one that is too long."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self.line = 0
        self.used: list[str | None] = []
        self._lines = lines
        self._again: deque[str | None] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if len(self.used) >= ROW_LINES_MAX:
            raise csv.Error("a row of too many lines")
        line = self._again.popleft() if self._again else next(self._lines)
        self.used.append(line)
        self.line += 1
        return "\n" if line is None else f"{line}\n"

    def row(self, names: list[str], cells: list[str]) -> tuple[int, Mapping[str, object]]:
        """The row of the lines that were used, and where it ends."""
        used = list(self.used)
        self.used.clear()
        if None not in used:
            if not cells:
                return self.line, {}
            if len(cells) == len(names) and cells != [MISSHAPEN]:
                return self.line, dict(zip(names, cells, strict=True))
        self._again.extendleft(reversed(used[1:]))
        self.line -= len(used) - 1
        return self.line, {**dict.fromkeys(names), MISSHAPEN: True}


def _names(header: str, separator: str) -> list[str]:
    """The names of the columns; one that comes again is told from the first."""
    if "\0" in header:
        raise ValueError("UTF-16, or no text at all")
    cells = next(csv.reader([header], delimiter=separator), [])
    return [name if name not in cells[:place] else f"{name}\0{place}" for place, name in enumerate(cells)]


def text_lines(file: TextIO) -> Iterator[str | None]:
    """The lines of a file without their ends, those of old Macs too; None for one that is too long."""
    rest, too_long = "", False
    while chunk := _read(file):
        rest += chunk
        held = "\r" if rest.endswith("\r") else ""  # its "\n" may follow
        *whole, rest = _LINE_END.split(rest.removesuffix(held))
        for line in whole:
            yield None if too_long or len(line) > LINE_CHARACTERS_MAX else line
            too_long = False
        rest += held
        if len(rest) > LINE_CHARACTERS_MAX:
            rest, too_long = rest[-1:], True
    if rest or too_long:
        yield None if too_long else rest.removesuffix("\r")


def _read(file: TextIO) -> str:
    """The next characters of a file of the caller's. Raises InvalidInputError, UnicodeDecodeError."""
    try:
        chunk = file.read(CHUNK_CHARACTERS)
    except (TokenVaultError, UnicodeDecodeError):
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        raise InvalidInputError(
            "the file of cards failed as it was read; the rows that were reported are done"
        ) from None
    return checks.instance("what a file of cards gives", chunk, str)
