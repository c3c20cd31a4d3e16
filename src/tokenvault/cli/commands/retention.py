"""What need not be kept: customers who leave, tokens whose winding down is over."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from tokenvault import maintenance
from tokenvault.cli.command import Session, command
from tokenvault.cli.commands.apps import SET_UP, app
from tokenvault.cli.commands.options import Yes
from tokenvault.cli.exits import NO
from tokenvault.cli.inputs import confirm
from tokenvault.cli.views import counted, verdict
from tokenvault.errors import InvalidInputError
from tokenvault.maintenance.policy import DAYS_MAX, DAYS_MIN
from tokenvault.maintenance.retention import Purged


def _age(name: str, text: str) -> Any:
    """An option that takes an age in days."""
    return typer.Option(name, help=text, min=DAYS_MIN, max=DAYS_MAX, metavar="DAYS")


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
def purge(
    session: Session,
    tombstones: Annotated[int | None, _age("--tombstones", "Keep records of deleted tokens so long.")] = None,
    uses: Annotated[int | None, _age("--uses", "Keep uses so long after their last event.")] = None,
    events: Annotated[int | None, _age("--events", "Keep all other events so long.")] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", metavar="FILE", help="What uses and events go to before.")
    ] = None,
    without_archive: Annotated[
        bool, typer.Option("--without-archive", help="Let uses and events go for good.")
    ] = False,
    random_program: Annotated[
        list[str] | None,
        typer.Option(
            "--random-program", metavar="PROGRAM", help="Its tombstones count nothing on. May be repeated."
        ),
    ] = None,
    operator: Annotated[str | None, typer.Option("--operator", help="Who answers for it.")] = None,
    yes: Yes = False,
) -> None:
    """Delete every token whose winding down is over; and tombstones, uses and events past the ages given in days.

    The trail verifies before, during and after. Stopped at any point, it has done what it has done: start it again.
    Ends with 1 where records or events are not genuine: these stay.
    """
    ages = {
        name: None if days is None else timedelta(days=days)
        for name, days in (("tombstones", tombstones), ("uses", uses), ("events", events))
    }
    policy = maintenance.Retention(
        **ages, random_programs=frozenset(random_program or ()), archive=not without_archive
    )
    if archive is not None and without_archive:
        raise InvalidInputError("give --archive or --without-archive, not both")
    given = [f"{name} older than {days.days} days" for name, days in ages.items() if days is not None]
    confirm(f"Delete {', '.join(['every token past its purge_after', *given])} for good?", yes=yes)
    done = maintenance.purge(session.keys, session.store, policy, archive=archive, operator=operator)
    _tell(session, done, given=bool(given))


def _tell(session: Session, done: Purged, *, given: bool = False) -> None:
    good = not done.unreadable
    lines = [verdict(f"{counted(done.done, 'token')} deleted", good=good)]
    if given:
        gone = f"{counted(done.tombstones, 'tombstone')} and {counted(done.events, 'event')} gone"
        lines.append(verdict(f"{gone}, {done.uses:,} of uses", good=good))
    if done.unreadable:
        lines.append(verdict(f"{counted(done.unreadable, 'row')} not genuine: left as found", good=False))
    session.output.result(attrs.asdict(done), *lines)
    if done.unreadable:
        raise typer.Exit(NO.code)
