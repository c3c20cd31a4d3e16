"""The database's schema: as SQL for an administrator to run, what stands there, and its upgrade to this release's."""

from __future__ import annotations

from typing import Annotated

import attrs
import typer
from rich.console import RenderableType

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands import apps
from tokenvault.cli.exits import NO
from tokenvault.cli.views import NOTHING, facts, moment, verdict
from tokenvault.errors import ConfigurationError
from tokenvault.stores import SchemaStatus, schema_sql, schema_status, upgrade_schema


@command(apps.schema, "sql")
def sql(
    session: Session,
    address: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="KIND", help="sqlite or postgresql; unset, the configured token store."
        ),
    ] = None,
    since: Annotated[
        int | None,
        typer.Option("--from", metavar="VERSION", help="Write the upgrade from this version instead."),
    ] = None,
) -> None:
    """Write the SQL that makes the schema, or upgrades it.

    For an administrator to run. Connects to nothing.
    """
    place = {"sqlite": "sqlite:///vault.db", "postgresql": "postgresql://"}.get(address or "", address)
    statements = schema_sql(place or _configured(session), since=since)
    if session.output.as_json:
        session.output.result({"statements": statements})
    else:
        session.output.lines(f"{statement};" for statement in statements)


@command(apps.schema, "status")
def status(session: Session) -> None:
    """Tell which version the schema has, and whether this release works with it.

    Ends with 1 where it does not.
    """
    found: SchemaStatus | None = None
    problem: str | None = None
    try:
        found = schema_status(_configured(session))
        session.store.check_schema()
    except ConfigurationError as error:
        problem = str(error)
    _show(session, found, problem)
    if problem is not None:
        raise typer.Exit(NO.code)


@command(apps.schema, "upgrade")
def upgrade(session: Session) -> None:
    """Upgrade the schema to this release's, beside running vaults.

    Those of the release before go on. Stopped at any point, it has done what it has done: start it again.
    """
    address = _configured(session)
    with session.output.progress("statements", known=True) as shown:
        task = shown.add_task("upgrading", total=None)
        found = upgrade_schema(
            address, report=lambda done, total: shown.update(task, completed=done, total=total)
        )
    _show(session, found, None)


def _configured(session: Session) -> str:
    """The address of the configured token store. Raises ConfigurationError where there is none."""
    found = session.configuration.token_store
    if found is None:
        raise ConfigurationError("no token store is configured: say --for sqlite or --for postgresql")
    return found


def _show(session: Session, found: SchemaStatus | None, problem: str | None) -> None:
    document = {"current": problem is None, "problem": problem}
    shown: list[RenderableType] = [
        verdict(problem or "the schema is one that this release reads and writes", good=problem is None)
    ]
    if found is not None:
        document |= attrs.asdict(found)
        shown.append(
            facts(
                {
                    "version": str(found.version),
                    "serves releases from": str(found.oldest),
                    "this release's": str(found.needed),
                    "upgraded": NOTHING if found.upgraded is None else moment(found.upgraded),
                }
            )
        )
    session.output.result(document, *shown)
