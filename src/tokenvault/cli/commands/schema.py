"""The database's schema: as SQL for an administrator to run, and what stands there."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands import apps
from tokenvault.cli.exits import NO
from tokenvault.cli.views import verdict
from tokenvault.errors import ConfigurationError
from tokenvault.stores import schema_sql


@command(apps.schema, "sql")
def sql(
    session: Session,
    address: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="KIND", help="sqlite or postgresql; unset, the configured token store."
        ),
    ] = None,
) -> None:
    """Write the SQL that makes the schema.

    For an administrator to run. Connects to nothing.
    """
    place = {"sqlite": "sqlite:///vault.db", "postgresql": "postgresql://"}.get(address or "", address)
    found = place or session.configuration.token_store
    if found is None:
        raise ConfigurationError("no token store is configured: say --for sqlite or --for postgresql")
    statements = schema_sql(found)
    if session.output.as_json:
        session.output.result({"statements": statements})
    else:
        session.output.lines(f"{statement};" for statement in statements)


@command(apps.schema, "status")
def status(session: Session) -> None:
    """Tell whether the schema is this release's.

    Ends with 1 where it is not.
    """
    try:
        session.store.check_schema()
    except ConfigurationError as error:
        problem: str | None = str(error)
    else:
        problem = None
    session.output.result(
        {"current": problem is None, "problem": problem},
        verdict("the schema is the one that this release reads and writes", good=True)
        if problem is None
        else verdict(problem, good=False),
    )
    if problem is not None:
        raise typer.Exit(NO.code)
