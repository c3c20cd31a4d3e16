"""What need not be kept: customers who leave, tokens whose winding down is over."""

from __future__ import annotations

from typing import Annotated

import attrs
import typer

from tokenvault import maintenance
from tokenvault.cli.command import Session, command
from tokenvault.cli.commands.apps import SET_UP, app
from tokenvault.cli.commands.options import Yes
from tokenvault.cli.exits import NO
from tokenvault.cli.inputs import confirm
from tokenvault.cli.views import counted, verdict
from tokenvault.maintenance.retention import Purged


@command(app, "forget", SET_UP)
def forget(
    session: Session,
    customer: Annotated[
        str, typer.Argument(metavar="CUSTOMER", help="The customer's id, as tokens have it.")
    ],
    yes: Yes = False,
) -> None:
    """Delete every token of a customer: no table holds a card of theirs then.

    Stopped at any point, it has done what it has done: start it again. Ends with 1 where records are not genuine.
    """
    confirm(f"Delete every token of {customer} for good?", yes=yes)
    _tell(session, maintenance.forget(session.keys, session.store, customer))


@command(app, "purge", SET_UP)
def purge(session: Session, yes: Yes = False) -> None:
    """Delete every token whose winding down is over.

    Stopped at any point, it has done what it has done: start it again. Ends with 1 where records are not genuine.
    """
    confirm("Delete every token past its purge_after for good?", yes=yes)
    _tell(session, maintenance.purge(session.keys, session.store))


def _tell(session: Session, done: Purged) -> None:
    lines = [verdict(f"{counted(done.done, 'token')} deleted", good=not done.unreadable)]
    if done.unreadable:
        lines.append(verdict(f"{counted(done.unreadable, 'record')} not genuine: left as found", good=False))
    session.output.result(attrs.asdict(done), *lines)
    if done.unreadable:
        raise typer.Exit(NO.code)
