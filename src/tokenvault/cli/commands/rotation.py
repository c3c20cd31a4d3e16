"""The life of a key version beside running vaults: add, primary, reseal, retire, destroy; and the inventory."""

from __future__ import annotations

import json
from typing import Annotated, TypeAlias

import attrs
import typer
from rich.text import Text

from tokenvault import maintenance
from tokenvault.cli.command import Session, command
from tokenvault.cli.commands import apps
from tokenvault.cli.commands.options import Yes
from tokenvault.cli.exits import NO
from tokenvault.cli.inputs import confirm
from tokenvault.cli.views import counted, verdict
from tokenvault.keys import Custody, KeyPurpose
from tokenvault.maintenance import Progress, Usage

PurposeArgument: TypeAlias = Annotated[KeyPurpose, typer.Argument(help="What the key is for.")]
VersionArgument: TypeAlias = Annotated[int, typer.Argument(metavar="VERSION", help="Its version, a number.")]
CustodyOption: TypeAlias = Annotated[
    Custody | None, typer.Option("--custody", help="Where the new key does its work; unset, as configured.")
]


@command(apps.keys, "add")
def add(
    session: Session,
    purpose: PurposeArgument,
    custody: CustodyOption = None,
    version: Annotated[
        int | None,
        typer.Option(
            "--version", help="Take this version, as it is in the key store, or make it if it is next."
        ),
    ] = None,
) -> None:
    """Make a new version of a key readable: the first phase of a rotation.

    Running vaults read by it and do not write under it yet.
    """
    where = custody or session.configuration.custody
    name = maintenance.add_key_version(session.keys, session.store, purpose, where, version=version)
    session.output.result(
        {"purpose": name.purpose, "version": name.version}, verdict(f"{name} is readable", good=True)
    )


@command(apps.keys, "primary")
def primary(
    session: Session,
    purpose: PurposeArgument,
    version: VersionArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Do not wait until running vaults have noticed the version.")
    ] = False,
) -> None:
    """Make a readable version the one that vaults write under: the second phase."""
    maintenance.make_primary(session.keys, session.store, purpose, version, force=force)
    session.output.result(
        {"purpose": purpose, "version": version},
        verdict(f"vaults write under {purpose.value} {version}", good=True),
    )


@command(apps.keys, "reseal")
def reseal(
    session: Session,
    fingerprints: Annotated[
        bool, typer.Option("--fingerprints", help="Bring the PAN fingerprints under the primary key too.")
    ] = False,
    page: Annotated[int, typer.Option("--page", help="Records written in one step.")] = 1_000,
    rest_percent: Annotated[
        int,
        typer.Option("--rest-percent", help="A pause after each page, in percent of the time that it took."),
    ] = 0,
) -> None:
    """Bring all records under the primary keys, beside running vaults.

    Stopped at any point, it has done what it has done: start it again. Ends with 1 where records are not genuine.
    """
    renew = maintenance.refingerprint if fingerprints else maintenance.reseal
    with session.output.progress("records", known=True) as shown:
        task = shown.add_task("renewing", total=None)
        done = renew(
            session.keys,
            session.store,
            page=page,
            rest_percent=rest_percent,
            progress=lambda now: shown.update(task, completed=now.looked_at, total=max(now.total, 1)),
        )
    session.output.result(attrs.asdict(done), *_renewed(done))
    if done.unreadable:
        raise typer.Exit(NO.code)


def _renewed(done: Progress) -> list[Text]:
    lines = [verdict(f"{counted(done.done, 'record')} renewed", good=not done.unreadable)]
    if done.unreadable:
        lines.append(Text(f"{counted(done.unreadable, 'record')} not genuine: left as found", "red"))
    return lines


@command(apps.keys, "retire")
def retire(session: Session, purpose: PurposeArgument, version: VersionArgument) -> None:
    """Retire a version once a scan of all records has proved that none needs it.

    The proof is an event of the trail.
    """
    usage = maintenance.retire(session.keys, session.store, purpose, version)
    _tell(session, purpose, version, usage, "retired")


@command(apps.keys, "destroy")
def destroy(session: Session, purpose: PurposeArgument, version: VersionArgument, yes: Yes = False) -> None:
    """Destroy the key of a retired version for ever, once a second scan has found it not needed."""
    confirm(f"Destroy the key {purpose.value} {version} for ever?", yes=yes)
    usage = maintenance.destroy(session.keys, session.store, purpose, version)
    _tell(session, purpose, version, usage, "destroyed")


def _tell(session: Session, purpose: KeyPurpose, version: int, usage: Usage, what: str) -> None:
    session.output.result(
        {"purpose": purpose, "version": version, "rows_read": usage.looked_at},
        verdict(f"{purpose.value} {version} is {what}; {counted(usage.looked_at, 'row')} read", good=True),
    )


@command(apps.keys, "inventory")
def inventory(
    session: Session,
    rows: Annotated[bool, typer.Option("--rows/--no-rows", help="Count the rows under each version.")] = True,
) -> None:
    """Write the cryptographic inventory as a CycloneDX 1.6 document (PCI DSS 4.0.1, 12.3.3). It holds no key."""
    document = maintenance.inventory(session.keys, session.store, rows=rows)
    session.output.line(json.dumps(document, indent=2))  # with --json and without
