"""What errors of PostgreSQL mean to a caller. Their own messages can hold keys of rows, and are not passed on."""

from __future__ import annotations

from typing import Final

import psycopg

from tokenvault.errors import TokenStoreError
from tokenvault.stores.postgres.address import ANSWER_SECONDS_MAX, CONNECT_SECONDS_MAX, STATEMENT_SECONDS_MAX

MISSING: Final = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)
PRESENT: Final = (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject)
UNREADABLE: Final = "a stored row has a text or a number that was not written"

_TABLES: Final = (
    "the tables in the PostgreSQL database are not the ones that this release of tokenvault makes; "
    "look at the database and the option 'schema' in the store's URL"
)
_LOST: Final = (
    "the connection to PostgreSQL was lost, or no answer came for "
    f"{ANSWER_SECONDS_MAX} seconds; look whether the server runs. The next call connects again"
)
_REFUSED: Final = (
    "PostgreSQL refused the connection: look at user, password and database in the store's URL, at the "
    "server's pg_hba.conf and max_connections, and at its log, which has the reason"
)
# By SQLSTATE or the beginning of one, the longest first.
_EXPLANATIONS: Final = {
    "23505": "an audit event exists already; nothing was written",
    "25006": "PostgreSQL is read-only: the URL leads to a standby, or the role may not write; nothing was written",
    "42501": "the role may not use the tables: grant it USAGE on the schema and SELECT, INSERT and UPDATE on its"
    " tables; to provision, it has to own the database or a schema in it",
    "53100": "the disk under PostgreSQL is full; nothing was written",
    "53200": "PostgreSQL got no memory; nothing was written",
    "55P03": "other writers held the rows for longer than a call waits; nothing was written",
    "57014": f"PostgreSQL took longer than {STATEMENT_SECONDS_MAX} seconds, or an administrator ended the "
    "statement; nothing was written",
    "08": _LOST,
    "0A": _TABLES,
    "28": _REFUSED,
    "3F": _TABLES,
    "40": "other transactions stood against this one; nothing was written: retry",
    "42": _TABLES,
    "53": "PostgreSQL is out of a resource; its log says which; nothing was written",
    "57P": _LOST,
    "58": "the disk under PostgreSQL failed to read or write; see its log",
    "XX": "PostgreSQL found its own data damaged, or a defect of its own; see its log",
}


def explanation(error: Exception) -> str | None:
    """The message for a caller; None for what is no error of PostgreSQL."""
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate
    if state is None:
        return _LOST if isinstance(error, psycopg.OperationalError) else _TABLES
    for length in (5, 3, 2):
        if state[:length] in _EXPLANATIONS:
            return _EXPLANATIONS[state[:length]]
    return f"PostgreSQL refused a statement with SQLSTATE {state}; its log says more"


def unconnected(error: psycopg.Error) -> TokenStoreError:
    """Why there is no connection. libpq gives a text and no code, and the text names host and user."""
    text = str(error)
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return TokenStoreError(
            f"PostgreSQL did not accept a connection in {CONNECT_SECONDS_MAX} seconds; look at host and port in "
            "the store's URL, and whether the server runs"
        )
    if "read-only" in text or "hot standby" in text:
        return TokenStoreError("every PostgreSQL server in the store's URL is read-only: none is the primary")
    if "starting up" in text or "shutting down" in text or "recovery" in text:
        return TokenStoreError("PostgreSQL is starting or stopping; retry")
    if "FATAL" in text or "password" in text:
        return TokenStoreError(_REFUSED)
    return TokenStoreError(
        "PostgreSQL can not be reached: look at host and port and the options for TLS in the store's URL, "
        "and whether the server runs"
    )
