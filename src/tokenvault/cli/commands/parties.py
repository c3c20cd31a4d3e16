"""Programs and requestors: those of the configuration, or those of the database, which commands change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import RenderableType
from rich.text import Text

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands import apps
from tokenvault.cli.commands.options import listed
from tokenvault.cli.configuration import read_program, read_requestor
from tokenvault.cli.inputs import read_document
from tokenvault.cli.person import person
from tokenvault.cli.views import NOTHING, facts, listing, verdict
from tokenvault.errors import InvalidInputError
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.programs import TokenProgram, TokenRequestor

COMMON_PAN_LENGTH = 16

RequestorArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="REQUESTOR", help="Id of the token requestor, 11 digits.")
]
TableArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="FILE", help="What its table would say, TOML; - is the standard input.")
]


@command(apps.programs, "list")
def list_programs(session: Session) -> None:
    """List the token programs."""
    configuration = session.configuration
    found = tuple(session.vault.programs()) if configuration.stored else configuration.programs
    table = listing(
        ("program", "BIN", "making", "form", "restricted by"),
        (
            (
                program.name,
                program.format.bin,
                program.making.value,
                _form(program),
                _controls(program.domain),
            )
            for program in found
        ),
    )
    session.output.result({"programs": found}, table if found else Text("there is no program", "dim"))


@command(apps.programs, "put")
def put_program(
    session: Session,
    program: Annotated[str, typer.Argument(metavar="PROGRAM", help="Name of the program.")],
    table: TableArgument,
) -> None:
    """Add a program to the database, or change it there.

    Running vaults see it within seconds.
    """
    put = read_program(program, read_document(table))
    session.vault.put_program(put, operator=person())
    session.output.result(put, verdict(f"program {put.name} is in the database", good=True))


@command(apps.requestors, "list")
def list_requestors(session: Session) -> None:
    """List the token requestors of the configuration."""
    if session.configuration.stored:
        raise InvalidInputError(
            "requestors are in the database, each under its id: `requestors show` shows one"
        )
    found = session.configuration.requestors
    table = listing(
        ("requestor", "may", "programs", "restricted by"),
        (
            (
                requestor.id,
                listed(permission.value for permission in requestor.permissions),
                listed(requestor.programs),
                _controls(requestor.domain),
            )
            for requestor in found
        ),
    )
    session.output.result({"requestors": found}, table if found else Text("there is no requestor", "dim"))


@command(apps.requestors, "show")
def show_requestor(session: Session, requestor: RequestorArgument) -> None:
    """Show a token requestor as vaults act on it."""
    _show(session, session.vault.requestor(requestor))


@command(apps.requestors, "put")
def put_requestor(session: Session, requestor: RequestorArgument, table: TableArgument) -> None:
    """Add a requestor to the database, or change it there.

    Running vaults see it within seconds.
    """
    put = read_requestor(requestor, read_document(table))
    session.vault.put_requestor(put, operator=person())
    _show(session, put)


@command(apps.requestors, "disable")
def disable_requestor(session: Session, requestor: RequestorArgument) -> None:
    """Let a requestor do nothing more.

    Its tokens still serve the others that their domains name. `requestors put` lets it act again.
    """
    session.vault.disable_requestor(requestor, operator=person())
    _show(session, session.vault.requestor(requestor))


def _show(session: Session, requestor: TokenRequestor) -> None:
    session.output.result(
        requestor,
        facts(
            {
                "requestor": requestor.id,
                "may": Text("nothing: it is disabled", "red")
                if requestor.disabled
                else listed(permission.value for permission in requestor.permissions),
                "programs": listed(requestor.programs),
                "restricted by": _controls(requestor.domain),
            }
        ),
    )


def space_of(program: TokenProgram) -> int:
    """How many different tokens a program has, for card numbers of the common length."""
    return program.format.capacity(program.format.length or COMMON_PAN_LENGTH)


def _form(program: TokenProgram) -> str:
    form = program.format
    parts = (
        f"{form.length} digits" if form.length else "as the card",
        "keeps last four" if form.keep_last4 else "",
        "" if form.luhn else "fails Luhn",
    )
    return ", ".join(part for part in parts if part)


def _controls(domain: Domain) -> RenderableType:
    if domain == NO_RESTRICTION:
        return NOTHING
    return listed(domain._set)
