"""Tokens with given values, from a vendor or another vault: CSV or JSON Lines in, and rejects with their reasons."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, TextIO, TypeAlias

import typer

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands.apps import CARDS, app
from tokenvault.cli.commands.options import DomainFile, domain_of
from tokenvault.cli.exits import NO
from tokenvault.cli.inputs import open_private, reason_of
from tokenvault.cli.person import person
from tokenvault.cli.views import facts, verdict
from tokenvault.errors import InvalidInputError
from tokenvault.model.domain import Domain
from tokenvault.vault.batch.imports import TokenToImport
from tokenvault.vault.batch.run import CHUNK_ITEMS
from tokenvault.vault.csv_rows import MISSHAPEN, csv_rows, text_lines

JSON_LINES: Final = (".jsonl", ".ndjson")
"""How the name of a file of JSON Lines ends."""

COLUMNS: Final = frozenset(TokenToImport.__annotations__) - {"domain", "metadata"}
"""Those of a CSV file; JSON Lines have `domain` and `metadata` too, as objects."""

Rows: TypeAlias = Iterator[tuple[int, dict[str, Any] | InvalidInputError]]
"""The number of each row's line, with the row, or what is wrong with it."""

_NO_ROW: Final = "the row is too long, or not of the form of the others"


@command(app, "import-tokens", CARDS)
def import_tokens(
    session: Session,
    tokens: Annotated[
        Path,
        typer.Argument(metavar="TOKENS", help="CSV, or JSON Lines (.jsonl); - is the standard input."),
    ],
    rejects: Annotated[Path, typer.Option("--rejects", metavar="FILE", help="New file for rejected lines.")],
    requestor: Annotated[
        str | None, typer.Option("--requestor", "-r", help="Of the rows that name none.")
    ] = None,
    program: Annotated[
        str | None, typer.Option("--program", "-p", help="Of the rows that name none.")
    ] = None,
    domain: DomainFile = None,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="JSON Lines, whatever the name of the file.")
    ] = False,
    inactive: Annotated[bool, typer.Option("--inactive", help="Tokens that activate makes usable.")] = False,
) -> None:
    """Import tokens with given values, from a vendor or another vault.

    Each row has token and pan, and may have expiry, requestor, program, token_expiry, assurance, par, customer,
    reference, state. Stopped at any point, it is started again: what is there already stays. Ends with 1 where a line
    was rejected. The file of rejects has line numbers, codes and reasons, never a card number or a token.
    """
    common = {
        "requestor": requestor,
        "program": program,
        "domain": domain_of(domain),
        "active": not inactive,
        "operator": person(),
    }
    vault = session.vault
    imported = rejected = 0
    with ExitStack() as opened:
        source, size = _open(opened, tokens)
        rows = _json_rows(source) if json_lines or tokens.suffix in JSON_LINES else _csv_rows(source)
        file = opened.enter_context(os.fdopen(open_private(rejects), "w", encoding="utf-8", newline=""))
        rejected_lines = csv.writer(file)
        rejected_lines.writerow(("line", "code", "message"))
        progress = opened.enter_context(session.output.progress("rows", known=size is not None))
        task = progress.add_task("importing", total=size)
        while chunk := list(islice(rows, CHUNK_ITEMS)):
            given = [row for _, row in chunk if not isinstance(row, InvalidInputError)]
            results = iter(vault.import_tokens(given, **common))  # type: ignore[arg-type] # it looks at each row itself
            for line, row in chunk:
                result = row if isinstance(row, InvalidInputError) else next(results)
                if isinstance(result, Exception):
                    rejected_lines.writerow((line, result.code, str(result)))
                    rejected += 1
            imported += len(chunk)
            progress.update(task, completed=imported if size is None else source.buffer.tell())
    if not imported:
        raise InvalidInputError("there are no rows in the file of tokens; of a CSV, below its first line")
    imported -= rejected
    session.output.result(
        {"imported": imported, "rejected": rejected, "rejects": str(rejects)},
        verdict(f"{imported:,} imported, {rejected:,} rejected", good=not rejected),
        facts({"rejects": str(rejects)}),
    )
    if rejected:
        raise typer.Exit(NO.code)


def _open(opened: ExitStack, path: Path) -> tuple[TextIO, int | None]:
    """The file of tokens, and its bytes where that is known. What is no UTF-8 is held against its row."""
    size: int | None = None
    if str(path) == "-":
        source = io.TextIOWrapper(
            sys.stdin.buffer, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        opened.callback(source.detach)
    else:
        try:
            source = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
        except OSError as error:
            raise InvalidInputError(f"{path.name} can not be read ({reason_of(error)})") from None
        size = os.fstat(opened.enter_context(source).fileno()).st_size
    return source, size


def _csv_rows(source: TextIO) -> Rows:
    """The rows of a CSV file. Raises InvalidInputError where its first line names other columns."""
    for line, cells in csv_rows(source):
        columns = set(cells) - {MISSHAPEN}
        if columns and not {"token", "pan"} <= columns <= COLUMNS:
            raise InvalidInputError(
                "the first line of a file of tokens names its columns: token and pan, and of"
                f" {', '.join(sorted(COLUMNS - {'token', 'pan'}))} those that there are"
            )
        row = {name: str(cell).strip() for name, cell in cells.items() if str(cell).strip()}
        if MISSHAPEN in row:
            yield line, InvalidInputError(_NO_ROW, code="ROW_MISSHAPEN")
        elif row:
            yield line, row


def _json_rows(source: TextIO) -> Rows:
    """The rows of JSON Lines."""
    for number, line in enumerate(text_lines(source), 1):
        if line is None or line.strip():
            yield number, _json_row(line)


def _json_row(line: str | None) -> dict[str, Any] | InvalidInputError:
    """The row of a line, whose text stands in no error; None for one that is too long."""
    row: object = None
    try:
        row = None if line is None else json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("domain"), dict):
            row["domain"] = Domain.from_json(json.dumps(row["domain"]))
    except InvalidInputError as error:
        return error
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else InvalidInputError(_NO_ROW, code="ROW_MISSHAPEN")
