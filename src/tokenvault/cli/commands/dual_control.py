"""What two persons do: show one card number, export cards. The person is whom the system runs the command for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Final, TextIO, TypeAlias

import attrs
import typer
from rich.console import RenderableType
from rich.text import Text

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands.apps import CARDS, app, export, reveal
from tokenvault.cli.commands.options import TokenArgument
from tokenvault.cli.exits import NO
from tokenvault.cli.inputs import open_private, read_document, reason_of, require_private_output
from tokenvault.cli.person import person
from tokenvault.cli.views import NOTHING, counted, facts, moment, verdict
from tokenvault.errors import InvalidInputError
from tokenvault.model.dual_control import RevealRequest
from tokenvault.vault.export import open_export

PASSWORD_VARIABLE: Final = "TOKENVAULT_EXPORT_PASSWORD"  # noqa: S105 # its name

RequestArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="REQUEST", help="The request's id, 64 letters.")
]
Purpose: TypeAlias = Annotated[
    str, typer.Option("--purpose", help="Why: one of the configuration's purposes.")
]
PublicKey: TypeAlias = Annotated[
    Path, typer.Option("--public-key", metavar="FILE", help="The other vault's public key, in PEM.")
]


@command(reveal, "request")
def request_reveal(session: Session, token: TokenArgument, purpose: Purpose) -> None:
    """Ask to see the card number behind a token. Another user has to approve it."""
    _show(session, session.vault.request_reveal(token, operator=person(), purpose=purpose))


@command(reveal, "approve")
def approve_reveal(session: Session, request: RequestArgument) -> None:
    """Approve another user's request."""
    _show(session, session.vault.approve(request, operator=person()))


@command(reveal, "show")
def show(session: Session, request: RequestArgument) -> None:
    """Show the card number, once: on a terminal, or in a file that you alone can read."""
    require_private_output()
    card = session.vault.reveal(request, operator=person())
    expiry = None if card.expiry is None else str(card.expiry)
    number = card.pan.reveal()
    session.output.result(
        {"pan": number, "expiry": expiry},
        facts({"card": Text(number, "bold"), "valid through": expiry or NOTHING}),
    )


@command(export, "request")
def request_export(
    session: Session,
    public_key: PublicKey,
    purpose: Purpose,
    program: Annotated[str | None, typer.Option("--program", "-p", help="Only tokens of this one.")] = None,
    requestor: Annotated[str | None, typer.Option("--requestor", "-r", help="Only this one's.")] = None,
) -> None:
    """Ask to export cards with their tokens, encrypted. Another user has to approve it."""
    asked = session.vault.request_export(
        public_key=read_document(public_key),
        operator=person(),
        purpose=purpose,
        program=program,
        requestor=requestor,
    )
    _show(session, asked)


@command(export, "approve")
def approve_export(session: Session, request: RequestArgument) -> None:
    """Approve another user's export: compare the key's thumbprint first."""
    _show(session, session.vault.approve(request, operator=person()))


@command(export, "write")
def write(
    session: Session,
    request: RequestArgument,
    public_key: PublicKey,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="New file for the encrypted cards.")],
) -> None:
    """Write the cards of an approved export into a new file, once."""
    key, vault = read_document(public_key), session.vault
    with (
        os.fdopen(open_private(to), "w", encoding="ascii") as file,
        session.output.progress("lines") as shown,
    ):
        watched = _Watched(file, partial(shown.advance, shown.add_task("written", total=None)))
        report = vault.export_cards(request, public_key=key, operator=person(), to=watched)
    session.output.result(
        {"tokens": report.tokens, "lines": report.lines, "to": str(to)},
        verdict(f"{counted(report.tokens, 'token')} in {to}", good=True),
    )


@command(app, "import-export", CARDS)
def import_export(
    session: Session,
    exported: Annotated[Path, typer.Argument(metavar="FILE", help="What export write wrote.")],
    private_key: Annotated[
        Path, typer.Option("--private-key", metavar="FILE", help="The key that it is encrypted to, in PEM.")
    ],
) -> None:
    """Import the tokens of another vault's export, with their values.

    Ends with 1 where a token was rejected. TOKENVAULT_EXPORT_PASSWORD is the private key's password, if it has one.
    """
    key, vault = read_document(private_key), session.vault
    password = os.environ.get(PASSWORD_VARIABLE)
    with ExitStack() as opened:
        try:
            file = opened.enter_context(exported.open(encoding="ascii"))
        except OSError as error:
            raise InvalidInputError(f"{exported.name} can not be read ({reason_of(error)})") from None
        shown = opened.enter_context(session.output.progress("bytes", known=True))
        task = shown.add_task("importing", total=os.fstat(file.fileno()).st_size)
        rows = open_export(
            _watched(file, partial(shown.advance, task)),
            private_key=key,
            password=None if password is None else password.encode(),
        )
        results = vault.import_tokens(rows, operator=person())
    errors = {str(row): error.code for row, error in results.errors.items()}
    imported = len(results) - len(errors)
    session.output.result(
        {"imported": imported, "rejected": len(errors), "errors": errors},
        verdict(f"{imported:,} imported, {len(errors):,} rejected", good=not errors),
        *(Text(f"  row {row}: {code}") for row, code in errors.items()),
    )
    if errors:
        raise typer.Exit(NO.code)


@attrs.frozen
class _Watched:
    """A file of which each text that is written is told."""

    file: TextIO
    tell: Callable[[], None]

    def write(self, text: str, /) -> None:
        """Write a text."""
        self.file.write(text)
        self.tell()


def _watched(lines: Iterable[str], tell: Callable[[int], None]) -> Iterator[str]:
    """Lines, of which the length of each is told once it was read."""
    for line in lines:
        yield line
        tell(len(line))


def _show(session: Session, request: RevealRequest) -> None:
    shown: dict[str, RenderableType | None] = {
        "request": request.id,
        "purpose": request.purpose,
        "requested by": request.requested_by,
        "approved by": request.approved_by or NOTHING,
        "expires": moment(request.expires),
    }
    if request.terms:
        thumbprint, *chosen = request.terms
        shown |= {"key": thumbprint, "selection": ", ".join(chosen) or "all"}
    else:
        shown["token"] = request.reference
    document = {field.name: getattr(request, field.name) for field in attrs.fields(RevealRequest)}
    session.output.result(document, facts(shown))
