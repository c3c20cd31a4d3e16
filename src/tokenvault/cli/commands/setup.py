"""Set up and look after: provision, status, health, version."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Final

import attrs
import typer
from rich.text import Text

from tokenvault.cli.command import Session, command
from tokenvault.cli.commands.apps import SET_UP, app
from tokenvault.cli.commands.keys import CustodyOption
from tokenvault.cli.configuration import shown_address
from tokenvault.cli.exits import NO
from tokenvault.cli.views import NOTHING, counted, facts, listing, verdict
from tokenvault.crypto.block_cipher import BLOCK_BYTES
from tokenvault.errors import TokenVaultError, bare
from tokenvault.keys import KeyPurpose
from tokenvault.keys.port import KeyName
from tokenvault.vault.blocking import provision as provision_stores
from tokenvault.vault.health import NO_ANSWER

DISTRIBUTION: Final = "payment-tokenvault"
SECONDS_MAX: Final = 5.0


@command(app, "provision", SET_UP)
def provision(session: Session, custody: CustodyOption = None) -> None:
    """Make the schema and the keys that are missing.

    Safe to run again.
    """
    with session.output.notes.status("making what is missing"):
        provision_stores(session.keys, session.store, custody=custody or session.configuration.custody)
    _show_status(session)


@command(app, "status", SET_UP)
def status(session: Session) -> None:
    """Show what is configured and what is there."""
    _show_status(session)


def _show_status(session: Session) -> None:
    found = session.configuration
    session.store.check_schema()
    versions = {purpose.value: session.keys.versions(purpose) for purpose in KeyPurpose}
    signs = session.keys.signer() is not None
    streams = session.store.streams()
    document = {
        "configuration": None if found.path is None else str(found.path),
        "key_store": shown_address(found.key_store or ""),
        "token_store": shown_address(found.token_store or ""),
        "custody": found.custody,
        "keys": versions,
        "signer": signs,
        "programs": len(found.programs),
        "requestors": len(found.requestors),
        "streams": len(streams),
    }
    keys = ", ".join(
        f"{purpose} {max(numbers)}" if numbers else f"{purpose} missing"
        for purpose, numbers in versions.items()
    )
    session.output.result(
        document,
        facts(
            {
                "configuration": str(found.path or "the environment alone"),
                "key store": shown_address(found.key_store or ""),
                "token store": shown_address(found.token_store or ""),
                "keys": Text(f"{keys}", "green" if all(versions.values()) else "red"),
                "audit trail": f"{counted(len(streams), 'stream')}, {'signed' if signs else 'not signed'}",
                "programs": "in the database" if found.stored else str(len(found.programs)),
                "requestors": "in the database" if found.stored else str(len(found.requestors)),
            }
        ),
    )


@attrs.frozen
class Finding:
    """What a look at one part gave.

    Attributes:
        part: what was looked at.
        well: whether it works.
        milliseconds: how long that took.
        message: what there is to tell.
    """

    part: str
    well: bool
    milliseconds: int
    message: str


@command(app, "health", SET_UP)
def health(
    session: Session,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=60, help="Seconds that each part may take.")
    ] = SECONDS_MAX,
) -> None:
    """Look whether everything works, in a bounded time.

    Ends with 1 where a part does not, or gives no answer.
    """
    findings = [look("configuration", lambda: _configuration(session), timeout)]
    opens = look("vault", lambda: _vault(session), timeout)
    if opens.well:
        found = session.vault.health(within_ms=round(1_000 * timeout))
        findings += [
            Finding(each.name, each.ok, round(each.milliseconds), each.message) for each in found.parts
        ]
    else:  # which of the two it is
        findings += [
            look("database", lambda: _database(session), timeout),
            look("module", lambda: _module(session), timeout),
        ]
    findings.append(opens)
    well = all(finding.well for finding in findings)
    if any(finding.message == NO_ANSWER for finding in findings):
        session.leave_open()
    session.output.result(
        {"well": well, "parts": findings},
        verdict("well" if well else "not well", good=well),
        listing(
            ("part", "", "ms", "what"),
            (
                (
                    finding.part,
                    Text("✓", "green") if finding.well else Text("✗", "bold red"),
                    str(finding.milliseconds),
                    finding.message or NOTHING,
                )
                for finding in findings
            ),
            right=("ms",),
        ),
    )
    if not well:
        raise typer.Exit(NO.code)


def look(part: str, function: Callable[[], str], seconds_max: float) -> Finding:
    """Call a function in a thread, and do not wait for it any longer than so many seconds."""
    told: list[tuple[bool, str]] = []

    def work() -> None:
        try:
            told.append((True, function()))
        except Exception as error:  # noqa: BLE001 # a check of health tells what is wrong, whatever it is
            failure = bare(error)
            told.append(
                (False, str(failure) if isinstance(failure, TokenVaultError) else type(failure).__name__)
            )

    begun = time.monotonic()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds_max)
    milliseconds = round(1_000 * (time.monotonic() - begun))
    well, message = told[0] if told else (False, NO_ANSWER)
    return Finding(part, well, milliseconds, message)


def _configuration(session: Session) -> str:
    found = session.configuration
    return f"{counted(len(found.programs), 'program')}, {counted(len(found.requestors), 'requestor')}"


def _database(session: Session) -> str:
    session.store.check_schema()
    return counted(len(session.store.streams()), "stream") + " of events"


def _module(session: Session) -> str:
    for purpose in KeyPurpose:
        for version in session.keys.versions(purpose)[-1:]:
            session.keys.cipher(KeyName(purpose, version)).encrypt_blocks(bytes(BLOCK_BYTES))
    return "signs checkpoints" if session.keys.signer() is not None else "signs nothing"


def _vault(session: Session) -> str:
    """Opening it compares the key check values in the database with the keys."""
    _ = session.vault
    return "opens with these keys"


@command(app, "version", SET_UP)
def version(session: Session) -> None:
    """Show the versions of the library and its parts."""
    names = ("cryptography", "numpy", "psycopg", "typer", "rich")
    found = {DISTRIBUTION: _version_of(DISTRIBUTION), "python": platform.python_version()}
    found |= {name: told for name in names if (told := _version_of(name)) is not None}
    session.output.result({"versions": found}, facts(found))


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
