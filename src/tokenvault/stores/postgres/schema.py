"""The tables of a token store in PostgreSQL, and how they are made.

Everything lies in one schema, by default `tokenvault`, and every statement names it: nothing depends on
`search_path`. There are no foreign keys, and no unique constraint but the keys that rows are read by, so a
sharded PostgreSQL can distribute records by token and events by stream. Integers come first and byte strings of
one length next: no padding, and PostgreSQL finds the columns at fixed places.

A program is a byte string because it may hold any ASCII character, zero too, which PostgreSQL's text can not.
Text collates as "C": by character code, whatever locale and library the server has.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, Final

from tokenvault.errors import ConfigurationError, InvalidInputError

SCHEMA_VERSION: Final = 1
SCHEMA_NAME: Final = "tokenvault"
PARTITIONS_MAX: Final = 1_024

Rows = list[tuple[Any, ...]]

_PROVISIONING_LOCK: Final = 0x746B7674  # "tkvt"
# Room for the new version of a replaced row beside the old one: no index needs to be touched then.
_TOKENS_FILLFACTOR: Final = 85

_UNPROVISIONED: Final = (
    "the PostgreSQL database holds no token store yet: call tokenvault.provision(keys, store) once"
)
_FOREIGN: Final = (
    "the schema in the PostgreSQL database is not a token store but something else; "
    "look at the database and the option 'schema' in the store's URL"
)
_NEWER: Final = (
    "the PostgreSQL database has a schema newer than this release of tokenvault reads and writes: "
    "install the release that wrote it, or a later one"
)

_is_schema = re.compile("[a-z_][a-z0-9_]{0,62}").fullmatch


def checked_schema(name: str) -> str:
    """A schema's name that needs no quotes."""
    if type(name) is not str or _is_schema(name) is None or name.startswith("pg_"):
        raise InvalidInputError(
            "a schema's name is 1 to 63 of a-z, 0-9 and '_', not beginning with a digit or 'pg_'"
        )
    return name


def checked_partitions(count: int) -> int:
    """A number of partitions; 0 is a plain table."""
    if type(count) is not int or not 0 <= count <= PARTITIONS_MAX:
        raise InvalidInputError(f"partitions is a whole number from 0 to {PARTITIONS_MAX}")
    return count


def version_statement(schema: str) -> bytes:
    """Reads what `check_version` looks at."""
    return f'SELECT version FROM "{schema}".schema_version'.encode()


def check_version(rows: Rows) -> None:
    """Raise ConfigurationError unless this is the version that this code writes."""
    versions = [row[0] for row in rows]
    if len(versions) != 1 or type(versions[0]) is not int or versions[0] < 1:
        raise ConfigurationError(_FOREIGN)
    if versions[0] > SCHEMA_VERSION:
        raise ConfigurationError(_NEWER)


def unprovisioned() -> ConfigurationError:
    """What a table or schema that is missing means when the version is read."""
    return ConfigurationError(_UNPROVISIONED)


def foreign() -> ConfigurationError:
    """What a table that is there already means when the schema is made."""
    return ConfigurationError(_FOREIGN)


def provisioning(schema: str, partitions: int) -> Generator[bytes, Rows, None]:
    """The statements that make the schema where it is missing: run in one transaction, each one's rows sent in.

    The lock is taken by a statement of its own, so that those after it see what its last holder committed.
    """
    yield f"SELECT pg_advisory_xact_lock({_PROVISIONING_LOCK}, hashtext('{schema}'))".encode()
    rows = yield (
        f"SELECT to_regnamespace('\"{schema}\"') IS NOT NULL,"
        f" to_regclass('\"{schema}\".schema_version') IS NOT NULL"
    ).encode()
    ((has_schema, has_version),) = rows
    if has_version:
        check_version((yield version_statement(schema)))
        return
    if not has_schema:  # a role that may not create schemas is given one by its administrator
        yield f'CREATE SCHEMA "{schema}"'.encode()
    for statement in _tables(schema, partitions):
        yield statement.encode()


def following(steps: Generator[bytes, Rows, None], rows: Rows) -> bytes | None:
    """The statement after the one that gave these rows, or None after the last."""
    try:
        return steps.send(rows)
    except StopIteration:
        return None


def _tables(schema: str, partitions: int) -> list[str]:
    fillfactor = f"WITH (fillfactor = {_TOKENS_FILLFACTOR})"
    return [
        f"""CREATE TABLE "{schema}".tokens (
            revision bigint NOT NULL,
            key_version bigint NOT NULL,
            reference bytea NOT NULL,
            pan_fingerprint bytea NOT NULL,
            seal bytea NOT NULL,
            requestor text COLLATE "C" NOT NULL,
            token text COLLATE "C" NOT NULL PRIMARY KEY,
            program bytea NOT NULL,
            body bytea NOT NULL
        ) {"PARTITION BY HASH (token)" if partitions else fillfactor}""",
        *(
            f'CREATE TABLE "{schema}".tokens_{n} PARTITION OF "{schema}".tokens'
            f" FOR VALUES WITH (MODULUS {partitions}, REMAINDER {n}) {fillfactor}"
            for n in range(partitions)
        ),
        f'CREATE INDEX tokens_by_reference ON "{schema}".tokens (reference)',
        f'CREATE INDEX tokens_by_pan_fingerprint ON "{schema}".tokens (pan_fingerprint, token)',
        f"""CREATE TABLE "{schema}".events (
            position bigint GENERATED ALWAYS AS IDENTITY,
            number bigint NOT NULL,
            stream bytea NOT NULL,
            mac bytea NOT NULL,
            reference bytea NOT NULL,
            body bytea NOT NULL,
            PRIMARY KEY (stream, number)
        )""",
        f'CREATE INDEX events_by_reference ON "{schema}".events (reference, position)',
        f'CREATE TABLE "{schema}".domains (digest bytea PRIMARY KEY, document bytea NOT NULL)',
        f'CREATE TABLE "{schema}".meta (name text COLLATE "C" PRIMARY KEY, value bytea NOT NULL)',
        f'CREATE TABLE "{schema}".schema_version (version integer NOT NULL)',
        f'INSERT INTO "{schema}".schema_version VALUES ({SCHEMA_VERSION})',
    ]
