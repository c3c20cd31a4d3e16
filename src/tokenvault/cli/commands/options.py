"""Arguments and options that several commands have, and what completes them in a shell."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

from tokenvault.cli import configuration
from tokenvault.cli.inputs import read_document
from tokenvault.errors import InvalidInputError, TokenVaultError
from tokenvault.model.domain import Domain
from tokenvault.vault.blocking import Vault

REFERENCE_CHARACTERS: Final = 32


def _program_names() -> list[str]:
    return [program.name for program in _completing().programs]


def _requestor_ids() -> list[str]:
    return [requestor.id for requestor in _completing().requestors]


def _completing() -> configuration.Configuration:
    """The configuration, for a shell that completes a word: without it there is nothing to offer."""
    try:
        return configuration.load(None)
    except TokenVaultError:
        return configuration.Configuration()


TokenArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="TOKEN", help="The token, or its reference (32 hexadecimal digits).")
]
Requestor: TypeAlias = Annotated[
    str,
    typer.Option(
        "--requestor", "-r", help="Id of the token requestor, 11 digits.", autocompletion=_requestor_ids
    ),
]
ActingRequestor: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--requestor",
        "-r",
        help="Act as this requestor; unset, as the host itself.",
        autocompletion=_requestor_ids,
    ),
]
Program: TypeAlias = Annotated[
    str, typer.Option("--program", "-p", help="Name of the token program.", autocompletion=_program_names)
]
DomainFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--domain", "-d", metavar="FILE", help="The token's domain, JSON or TOML; - is the standard input."
    ),
]
ShowToken: TypeAlias = Annotated[bool, typer.Option("--show-token", help="Show all digits of the token.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def domain_of(path: Path | None) -> Domain | None:
    """The domain of a file, if one is given. Raises InvalidInputError."""
    return None if path is None else configuration.read_domain(read_document(path))


def instant_of(name: str, text: str) -> datetime:
    """The instant of a text in ISO 8601. Raises InvalidInputError, which does not repeat it."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise InvalidInputError(f"{name} is an instant with a time zone, such as 2030-06-30T00:00:00Z")
    return found


def token_of(vault: Vault, token_or_reference: str) -> str:
    """The token of a reference; a token as it is. Raises TokenNotFoundError."""
    if len(token_or_reference) == REFERENCE_CHARACTERS:
        return vault.get(token_or_reference).token
    return token_or_reference


def listed(values: Iterable[str]) -> str:
    """Texts in one line, sorted."""
    return ", ".join(sorted(values)) or "-"
