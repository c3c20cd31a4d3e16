"""The tables of a token store in PostgreSQL, and how they are made.

Everything lies in one schema, by default `tokenvault`, and every statement names it: nothing depends on
`search_path`. There are no foreign keys, and no unique constraint but the keys that rows are read by, so a
sharded PostgreSQL can distribute records by token and events by stream. Integers come first and byte strings of
one length next: no padding, and PostgreSQL finds the columns at fixed places.

Text collates as "C": by character code, whatever locale and library the server has.
"""

from __future__ import annotations

import inspect
import re
from datetime import UTC, datetime
from typing import Final

from tokenvault.errors import ConfigurationError, InvalidInputError
from tokenvault.stores import schema_versions
from tokenvault.stores.postgres.connection import Connection
from tokenvault.stores.postgres.errors import MISSING, PRESENT
from tokenvault.stores.postgres.statements import COUNTS, DOMAINS, EVENT_INDEX, EVENTS, META, TOKENS
from tokenvault.stores.schema_versions import OLDEST_SERVED, SCHEMA_VERSION, SchemaStatus

_is_role: Final = re.compile("[A-Za-z0-9_.@$-]{1,63}").fullmatch
VERSION: Final = '"{schema}".schema_version'
_PROVISIONING_LOCK: Final = 0x746B7674  # "tkvt"
# Room on its page for the new version of a replaced row: then no index has to be updated.
_FILLFACTOR: Final = "WITH (fillfactor = 85)"
_FILLFACTOR_OF_COUNTS: Final = "WITH (fillfactor = 20)"  # a few rows, each replaced all the time

_UNPROVISIONED: Final = (
    "the PostgreSQL database holds no token store yet: call tokenvault.provision(keys, store) once"
)
_FOREIGN: Final = (
    "the schema in the PostgreSQL database is not a token store but something else; "
    "look at the database and the option 'schema' in the store's URL"
)
_PLACE: Final = "PostgreSQL database"
_REMEDY: Final = "provision another schema"


async def check_version(connection: Connection) -> None:
    """Raise ConfigurationError unless the schema is there, in a version that this release works with."""
    schema_versions.check(await read_status(connection), _PLACE, _REMEDY)


async def check_upgrade(connection: Connection) -> SchemaStatus:
    """The status of a schema that this release can upgrade, or need not. Raises ConfigurationError of any other."""
    status = await read_status(connection)
    schema_versions.check_upgrade(status, _PLACE, _REMEDY)
    return status


async def read_status(connection: Connection) -> SchemaStatus:
    """What the schema states of itself. Raises ConfigurationError where none is there, or something else."""
    try:
        rows = await connection.rows(f"SELECT * FROM {VERSION}")  # up to version 3 it has one column
    except MISSING:
        raise ConfigurationError(_UNPROVISIONED, code="STORE_NOT_PROVISIONED") from None
    oldest, reached, upgraded = (*rows[0], None, None)[:3] if len(rows) == 1 else (None, None, None)
    version = oldest if reached is None else reached
    if type(oldest) is not int or type(version) is not int or not 1 <= oldest <= version:
        raise ConfigurationError(_FOREIGN, code="STORE_FOREIGN")
    return SchemaStatus(version, oldest, upgraded.astimezone(UTC) if isinstance(upgraded, datetime) else None)


async def provision(connection: Connection, partitions: int) -> None:
    """Make the schema where it is missing. Raises ConfigurationError where something else is in its place."""
    try:
        async with connection.transaction():
            await _provision(connection, partitions)
    except PRESENT:
        raise ConfigurationError(_FOREIGN, code="STORE_FOREIGN") from None


async def _provision(connection: Connection, partitions: int) -> None:
    # In a statement of its own, so that those after it see what the last holder of the lock committed.
    await connection.rows(f"SELECT pg_advisory_xact_lock({_PROVISIONING_LOCK}, hashtext('{{schema}}'))")
    ((has_schema, has_version),) = await connection.rows(
        f"SELECT to_regnamespace('\"{{schema}}\"') IS NOT NULL, to_regclass('{VERSION}') IS NOT NULL"
    )
    if has_version:
        await check_version(connection)
        return
    if not has_schema:  # a role that may not create schemas is given one by its administrator
        await connection.rows('CREATE SCHEMA "{schema}"')
    for statement in _tables(partitions):
        await connection.rows(statement)


def schema_sql(schema: str, partitions: int) -> list[str]:
    """What `provision` runs in a database without a store, for an administrator to run instead."""
    statements = ['CREATE SCHEMA "{schema}"', *_tables(partitions)]
    return [inspect.cleandoc(statement).replace("{schema}", schema) for statement in statements]


def grants_sql(schema: str, vault: str, auditor: str | None) -> list[str]:
    """The least rights of the role that runs a vault, and of one that verifies its trail.

    Events, their index, documents and named values are only ever added: nobody may change or delete one. Records and
    counts are replaced, and never deleted.
    """
    added = ", ".join((EVENTS, EVENT_INDEX, DOMAINS, META))
    statements = [
        f'GRANT USAGE ON SCHEMA "{{schema}}" TO {_name(vault)}',
        f"GRANT SELECT, INSERT, UPDATE ON {TOKENS}, {COUNTS} TO {_name(vault)}",
        f"GRANT SELECT, INSERT ON {added} TO {_name(vault)}",
        f"GRANT SELECT ON {VERSION} TO {_name(vault)}",
    ]
    if auditor is not None:
        statements += [
            f'GRANT USAGE ON SCHEMA "{{schema}}" TO {_name(auditor)}',
            f"GRANT SELECT ON {TOKENS}, {COUNTS}, {added}, {VERSION} TO {_name(auditor)}",
        ]
    return [statement.replace("{schema}", schema) for statement in statements]


def _name(role: str) -> str:
    """A role's name as SQL has it."""
    if type(role) is not str or not _is_role(role):
        raise InvalidInputError("a role's name is 1 to 63 letters, digits and '_', '-', '.', '@' or '$'")
    return f'"{role}"'


def _tables(partitions: int) -> list[str]:
    return [
        f"""CREATE TABLE {TOKENS} (
            revision bigint NOT NULL,
            key_version bigint NOT NULL,
            status bigint NOT NULL,
            created_ms bigint NOT NULL,
            reference bytea NOT NULL,
            pan_fingerprint bytea NOT NULL,
            seal bytea NOT NULL,
            requestor text COLLATE "C" NOT NULL,
            token text COLLATE "C" NOT NULL PRIMARY KEY,
            program bytea NOT NULL,
            last4_key bytea NOT NULL,
            customer text COLLATE "C" NOT NULL,
            body bytea NOT NULL
        ) {"PARTITION BY HASH (token)" if partitions else _FILLFACTOR}""",
        *(
            f'CREATE TABLE "{{schema}}".tokens_{n} PARTITION OF {TOKENS}'
            f" FOR VALUES WITH (MODULUS {partitions}, REMAINDER {n}) {_FILLFACTOR}"
            for n in range(partitions)
        ),
        f"CREATE INDEX tokens_by_reference ON {TOKENS} (reference)",
        f"CREATE INDEX tokens_by_pan_fingerprint ON {TOKENS} (pan_fingerprint, token)",
        f"CREATE INDEX tokens_by_group ON {TOKENS} (requestor, program, status, created_ms, token)",
        f"CREATE INDEX tokens_by_customer ON {TOKENS} (customer, token) WHERE customer <> ''",
        f"CREATE INDEX tokens_by_last4_key ON {TOKENS} (last4_key, token) WHERE length(last4_key) > 0",
        f"""CREATE TABLE {COUNTS} (
            tokens bigint NOT NULL,
            status bigint NOT NULL,
            shard bigint NOT NULL,
            requestor text COLLATE "C" NOT NULL,
            program bytea NOT NULL,
            PRIMARY KEY (requestor, program, status, shard)
        ) {_FILLFACTOR_OF_COUNTS}""",
        f"""CREATE TABLE {EVENTS} (
            number bigint NOT NULL,
            stream bytea NOT NULL,
            mac bytea NOT NULL,
            reference bytea NOT NULL,
            body bytea NOT NULL,
            PRIMARY KEY (stream, number)
        )""",
        f"""CREATE TABLE {EVENT_INDEX} (
            number bigint NOT NULL,
            reference bytea NOT NULL,
            use_id bytea NOT NULL,
            stream bytea NOT NULL,
            PRIMARY KEY (reference, use_id, stream, number)
        )""",
        f"CREATE TABLE {DOMAINS} (digest bytea PRIMARY KEY, document bytea NOT NULL)",
        f'CREATE TABLE {META} (name text COLLATE "C" PRIMARY KEY, value bytea NOT NULL)',
        # Releases that know no two numbers compare the first with their own.
        f"CREATE TABLE {VERSION} (version integer NOT NULL, reached integer, upgraded timestamptz)",
        f"INSERT INTO {VERSION} VALUES ({OLDEST_SERVED}, {SCHEMA_VERSION}, now())",
    ]
