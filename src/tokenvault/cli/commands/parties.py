"""Programs and requestors, as the configuration has them."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands import apps
from tokenvault.cli.commands.options import listed
from tokenvault.cli.views import NOTHING, listing
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.programs import TokenProgram

COMMON_PAN_LENGTH = 16


@command(apps.programs, "list")
def list_programs(session: Session) -> None:
    """List the token programs."""
    found = session.configuration.programs
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
    session.output.result({"programs": found}, table if found else Text("no program is configured", "dim"))


@command(apps.requestors, "list")
def list_requestors(session: Session) -> None:
    """List the token requestors."""
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
    session.output.result(
        {"requestors": found}, table if found else Text("no requestor is configured", "dim")
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
