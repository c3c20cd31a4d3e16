"""Keys: what is there, what is missing, and the key pair that signs the audit trail."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from tokenvault.audit.verify.trusted_keys import audit_public_key
from tokenvault.cli.command import Session, command
from tokenvault.cli.commands import apps
from tokenvault.cli.exits import NO
from tokenvault.cli.views import NOTHING, listing, verdict
from tokenvault.errors import ConfigurationError
from tokenvault.keys import Custody, KeyPurpose, KeyStore
from tokenvault.keys.port import KeyName
from tokenvault.records.key_table import key_check_value
from tokenvault.runtime import BlockingRuntime, run
from tokenvault.vault.face import store_without_coroutines
from tokenvault.vault.key_versions import find_table

CustodyOption = Annotated[
    Custody | None, typer.Option("--custody", help="Where new keys do their work; unset, as configured.")
]


def check_values(keys: KeyStore, purpose: KeyPurpose) -> dict[int, str]:
    """The key check value of each version of a purpose: 8 bytes of CMAC, hexadecimal. Raises KeyStoreError."""
    return {
        version: key_check_value(keys.cipher(KeyName(purpose, version))).hex()
        for version in keys.versions(purpose)
    }


def states_of(session: Session) -> dict[tuple[str, int], str]:
    """The state of each key version in the database's key table; none where there is no table yet.

    Raises ConfigurationError, KeyStoreError, TokenStoreError.
    """
    if session.configuration.token_store is None:
        return {}
    store = store_without_coroutines(session.store)
    try:
        run(store.check_schema())
    except ConfigurationError:
        return {}  # it is not provisioned
    with closing(BlockingRuntime()) as runtime:
        stored = run(find_table(session.keys, store, runtime))
    entries = () if stored is None else stored.table.entries
    return {(entry.name.purpose.value, entry.name.version): entry.state.name.lower() for entry in entries}


@command(apps.keys, "list")
def list_keys(session: Session) -> None:
    """List the versions of each key.

    With the state of each in the database, if that is provisioned.

    The key check value is 8 bytes of CMAC: two that are alike are one key.
    """
    found = {purpose.value: check_values(session.keys, purpose) for purpose in KeyPurpose}
    signs = session.keys.signer() is not None
    states = states_of(session)
    rows: list[Sequence[RenderableType]] = []
    for purpose, versions in found.items():
        rows += [
            (purpose, str(version), value, states.get((purpose, version), "not in use"))
            for version, value in versions.items()
        ] or [(purpose, NOTHING, NOTHING, Text("missing", "red"))]
    session.output.result(
        {
            "keys": {
                purpose: [
                    {"version": version, "check_value": value, "state": states.get((purpose, version))}
                    for version, value in versions.items()
                ]
                for purpose, versions in found.items()
            },
            "signer": signs,
        },
        listing(("purpose", "version", "check value", ""), rows, right=("version",)),
        verdict("signs the audit trail" if signs else "does not sign the audit trail", good=signs),
    )


@command(apps.keys, "create")
def create(session: Session, custody: CustodyOption = None) -> None:
    """Create the keys that are missing.

    Version 1 of each purpose that has none, and the signing key where the module can make one.
    """
    keys, where = session.keys, custody or session.configuration.custody
    missing = [purpose for purpose in KeyPurpose if not keys.versions(purpose)]
    made = [keys.create(purpose, where, version=1) for purpose in missing]
    had_signer = keys.signer() is not None
    signer = keys.create_signer() is not None
    names = [str(name) for name in made] + (["signing key"] if signer and not had_signer else [])
    session.output.result(
        {"created": [{"purpose": name.purpose, "version": name.version} for name in made], "signer": signer},
        verdict(f"made: {', '.join(names)}" if names else "nothing was missing", good=True),
    )


@command(apps.keys, "signer")
def signer(session: Session) -> None:
    """Show the public key of the audit trail's signatures.

    PEM: what an auditor needs. Ends with 1 where this key store signs nothing.
    """
    pem = audit_public_key(session.keys)
    session.output.result(
        {"public_key": pem},
        Text("this key store signs nothing", "yellow") if pem is None else Text(pem.strip()),
    )
    if pem is None:
        raise typer.Exit(NO.code)
