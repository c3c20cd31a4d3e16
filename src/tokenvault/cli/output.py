"""What the command writes: for people, with rich; with `--json`, one JSON document on the standard output."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import attrs
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tokenvault.errors import DomainRestrictionError, TokenVaultError, Violation
from tokenvault.model.domain import Domain
from tokenvault.model.pan import CardExpiry, Pan

_DIGITS: Final = re.compile(r"[0-9](?:[ -]?[0-9]){6,}")


def mask_digits(text: str) -> str:
    """A text without its longer runs of digits, of which any may be a card number that somebody mistyped."""
    return _DIGITS.sub("[digits]", text)


def plain(value: object) -> object:
    """A value as JSON has it: names and values as in the documentation of the library's own types."""
    kind: Any = type(value)
    if attrs.has(kind) and not isinstance(value, CardExpiry | Domain):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(kind)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, Domain):
        return json.loads(value.to_json())
    if isinstance(value, Pan):
        return value.masked
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, str) else value.name
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, frozenset | set):
        return sorted((plain(each) for each in value), key=str)
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


class Output:
    """Writes results to the standard output, and all else to the standard error.

    Args:
        as_json: whether results and errors are JSON documents.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json: Final = as_json
        self.console: Final = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
        self.notes: Final = Console(stderr=True, highlight=False, markup=False, emoji=False)

    def result(self, document: object, *shown: RenderableType) -> None:
        """Write the result of a command.

        Args:
            document: an object, for `--json`.
            shown: the same for people.
        """
        if self.as_json:
            self.line(json.dumps(plain(document), indent=2, ensure_ascii=True))
            return
        for each in shown:
            self.console.print(each)

    def line(self, text: str) -> None:
        """Write a line of data as it is, whatever the width of the terminal."""
        self.console.file.write(f"{text}\n")

    def lines(self, texts: Iterable[str]) -> None:
        """Write lines of data as they are."""
        for text in texts:
            self.line(text)

    def note(self, text: str, style: str = "dim") -> None:
        """Tell something beside the result."""
        self.notes.print(Text(text, style))

    def progress(self, unit: str, *, known: bool = False) -> Progress:
        """Shows how far long work has come, on the standard error where that is a terminal.

        Args:
            unit: what the numbers count.
            known: whether it is known how many there are, so that a bar fills.
        """
        spinner = SpinnerColumn(style="cyan")
        columns: tuple[ProgressColumn, ...] = (
            spinner,
            TextColumn(f"{{task.description}} {{task.completed:,}} {unit}"),
        )
        if known:
            bar = BarColumn(bar_width=28, style="grey37", complete_style="cyan", finished_style="green")
            columns = (
                spinner,
                TextColumn("{task.description}"),
                bar,
                TaskProgressColumn(),
                TimeRemainingColumn(),
            )
        return Progress(*columns, console=self.notes, transient=True, disable=not self.notes.is_terminal)

    def error(self, error: BaseException, message: str, exit_code: int) -> None:
        """Write what went wrong: the library's message, and its code where there is one."""
        code = getattr(error, "code", None)
        violations = error.violations if isinstance(error, DomainRestrictionError) else ()
        if self.as_json:
            described = {
                "type": type(error).__name__ if isinstance(error, TokenVaultError) else "UsageError",
                "code": code,
                "message": message,
                "response_code": getattr(error, "response_code", None),
                "violations": violations,
                "exit_code": exit_code,
            }
            self.line(json.dumps(plain({"error": described}), indent=2, ensure_ascii=True))
            return
        head = Text.assemble(("error: ", "bold red"), (f"{code} ", "bold") if code else "")
        if violations:
            self.notes.print(head.append("the use is not allowed"))
            for violation in violations:
                self.notes.print(refusal(violation))
        else:
            self.notes.print(head.append(message))


def refusal(violation: Violation) -> Text:
    """One control that failed, as a line."""
    return Text.assemble(
        ("  ✗ ", "red"),
        (violation.code, "bold"),
        f"  {violation.message}",
        (f"  ({violation.response_code})", "dim"),
    )
