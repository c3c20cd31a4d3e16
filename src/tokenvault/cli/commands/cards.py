"""Many cards at once: a CSV of cards in, a CSV of their tokens out, and what was rejected with the reason."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands.apps import CARDS, app
from tokenvault.cli.commands.options import DomainFile, Program, Requestor, domain_of
from tokenvault.cli.exits import NO
from tokenvault.cli.inputs import open_private, reason_of
from tokenvault.cli.views import facts, verdict
from tokenvault.errors import InvalidInputError
from tokenvault.records.token_info import TokenInfo
from tokenvault.vault.batch.run import CHUNK_ITEMS

LINE_CHARACTERS_MAX: Final = 4_096
_COLUMNS: Final = ("pan", "expiry")


@command(app, "import-cards", CARDS)
def import_cards(
    session: Session,
    cards: Annotated[
        Path, typer.Argument(metavar="CARDS.CSV", help="Columns pan and expiry; - is the standard input.")
    ],
    requestor: Requestor,
    program: Program,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="New file for tokens, by line.")],
    rejects: Annotated[Path, typer.Option("--rejects", metavar="FILE", help="New file for rejected lines.")],
    domain: DomainFile = None,
    token_expiry: Annotated[str | None, typer.Option(help="The tokens' own expiry, YYYY-MM.")] = None,
) -> None:
    """Issue a token for each card of a CSV file.

    Ends with 1 where a line was rejected. Tokens are written after each 8,000 lines, so what stands in the file is in
    the database too. The file of rejects has line numbers and reasons, never a card number.
    """
    own_domain = domain_of(domain)
    vault = session.vault
    issue = partial(
        vault.issue_many, requestor=requestor, program=program, domain=own_domain, token_expiry=token_expiry
    )
    issued = rejected = 0
    with ExitStack() as opened:
        source, size = _open_cards(opened, cards)
        lines = _rows(source)
        tokens_file, rejects_file = (_new_csv(opened, path) for path in (to, rejects))
        tokens_file.writerow(("line", "token", "reference", "last4", "expiry"))
        rejects_file.writerow(("line", "error", "message"))
        progress = opened.enter_context(session.output.progress("lines", known=size is not None))
        task = progress.add_task("issuing", total=size)
        while chunk := list(islice(lines, CHUNK_ITEMS)):
            results = issue([card for _, card in chunk])
            for (line, _), result in zip(chunk, results, strict=True):
                if isinstance(result, TokenInfo):
                    expiry = "" if result.token_expiry is None else str(result.token_expiry)
                    tokens_file.writerow((line, result.token, result.reference, result.last4, expiry))
                    issued += 1
                else:
                    rejects_file.writerow((line, type(result).__name__, str(result)))
                    rejected += 1
            done = len(chunk) if size is None else source.buffer.tell() - int(progress.tasks[task].completed)
            progress.advance(task, done)
    session.output.result(
        {"issued": issued, "rejected": rejected, "tokens": str(to), "rejects": str(rejects)},
        verdict(f"{issued:,} issued, {rejected:,} rejected", good=not rejected),
        facts({"tokens": str(to), "rejects": str(rejects)}),
    )
    if rejected:
        raise typer.Exit(NO.code)


def _open_cards(opened: ExitStack, path: Path) -> tuple[TextIO, int | None]:
    """The file of cards, and its bytes where that is known."""
    if str(path) == "-":
        return sys.stdin, None
    try:
        file = opened.enter_context(path.open(newline="", encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"{path.name} can not be read ({reason_of(error)})") from None
    return file, os.fstat(file.fileno()).st_size


def _rows(source: TextIO) -> Iterator[tuple[int, tuple[str, str | None]]]:
    """Each line's number with its card. Raises InvalidInputError, which repeats nothing of the file."""
    reader = csv.reader(_bounded(source))
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if not set(header) <= set(_COLUMNS) or "pan" not in header or len(set(header)) != len(header):
            raise InvalidInputError(
                "the first line of a file of cards names its columns: pan, and expiry if there is one"
            )
        for row in reader:
            if row:
                # A row of another length has no card that could be trusted: it is rejected as one without digits.
                fields = dict(zip(header, row, strict=True)) if len(row) == len(header) else {}
                yield (
                    reader.line_num,
                    (fields.get("pan", "").strip(), fields.get("expiry", "").strip() or None),
                )
    except (csv.Error, UnicodeDecodeError):
        problem = f"the file of cards is no CSV in UTF-8, near line {reader.line_num + 1}"
    else:
        return
    raise InvalidInputError(problem)


def _bounded(source: TextIO) -> Iterator[str]:
    """The lines of a file, none longer than LINE_CHARACTERS_MAX."""
    while line := source.readline(LINE_CHARACTERS_MAX):
        yield line


def _new_csv(opened: ExitStack, path: Path) -> Any:
    file = opened.enter_context(os.fdopen(open_private(path), "w", encoding="utf-8", newline=""))
    return csv.writer(file)
