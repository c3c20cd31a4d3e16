"""What errors of PostgreSQL mean to a caller. Their own messages can hold keys of rows, and are not passed on."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import psycopg

from tokenvault.errors import TokenStoreError
from tokenvault.stores.postgres.address import CONNECT_SECONDS_MAX
from tokenvault.stores.postgres.refusals import (
    LOGIN,
    OF_CONNECTING,
    OF_POOLERS,
    OF_STATEMENTS,
    READ_ONLY_SESSIONS,
    STANDBY,
    STATES_OF_POOLERS,
    find_cause,
)

MISSING: Final = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)
PRESENT: Final = (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject)
UNPREPARED: Final = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)
"""The server's session is not the one that a statement was prepared in (26000), or has one of that name (42P05)."""
UNREADABLE: Final = "a stored row has a text or a number that was not written"

_TABLES: Final = (
    "the tables in the PostgreSQL database are not the ones that this release of tokenvault makes; "
    "look at the database and the option 'schema' in the store's URL"
)
_LOST: Final = (
    "the connection to PostgreSQL was lost, or no answer came in time; look whether the server runs. The next call"
    " connects again"
)
_REFUSED: Final = (
    "PostgreSQL, or a pooler before it, refused the connection for a reason of its own, which its log has"
)
_UNREACHABLE: Final = (
    "PostgreSQL can not be reached: look at host and port and the options for TLS in the store's URL, "
    "and whether the server runs"
)


class Explained(NamedTuple):
    """What an error means to a caller.

    Attributes:
        code: of the error that the caller gets.
        text: its message.
    """

    code: str
    text: str


# By SQLSTATE or the beginning of one, the longest first.
_EXPLANATIONS: Final = {
    "23505": Explained("STORE_EVENT_EXISTS", "an audit event exists already; nothing was written"),
    "25006": Explained(
        "STORE_READ_ONLY",
        "PostgreSQL is read-only: the URL, or a pooler, leads to a standby, after a failover too, or"
        " default_transaction_read_only is on; nothing was written",
    ),
    "25P03": Explained(
        "STORE_TIMEOUT",
        "PostgreSQL ended the connection after its idle_in_transaction_session_timeout: a transaction stood still"
        " for longer; nothing was written",
    ),
    "25P04": Explained(
        "STORE_TIMEOUT",
        "PostgreSQL ended the connection after its transaction_timeout; nothing was written. Raise it for the role",
    ),
    "3D000": Explained("STORE_DATABASE_UNKNOWN", f"PostgreSQL has no such database: {LOGIN}"),
    "42501": Explained(
        "STORE_PERMISSION",
        "the role may not use the tables: grant it USAGE on the schema and SELECT, INSERT and UPDATE on its"
        " tables; to provision, it has to own the database or a schema in it",
    ),
    "53100": Explained("STORE_DISK_FULL", "the disk under PostgreSQL is full; nothing was written"),
    "53200": Explained("STORE_OUT_OF_MEMORY", "PostgreSQL got no memory; nothing was written"),
    "53300": Explained(
        "STORE_TOO_MANY_CONNECTIONS",
        "too many connections: PostgreSQL or a pooler takes no more; raise max_connections, the role's or the"
        " database's limit, or run fewer processes; nothing was written",
    ),
    "53400": Explained(
        "STORE_OUT_OF_RESOURCE",
        "a limit in PostgreSQL's configuration is reached; its log says which; nothing was written",
    ),
    "55P03": Explained(
        "STORE_BUSY", "other writers held the rows for longer than a call waits; nothing was written"
    ),
    "57014": Explained(
        "STORE_TIMEOUT",
        "PostgreSQL took longer than the store's statement_seconds, or an administrator ended the statement; nothing"
        " was written",
    ),
    "57P01": Explained(
        "STORE_LOST",
        "PostgreSQL is stopping, or an administrator ended the connection. The next call connects again",
    ),
    "57P02": Explained(
        "STORE_LOST",
        "PostgreSQL ended every connection, for one of its processes crashed. The next call connects again",
    ),
    "57P03": Explained("STORE_STARTING", "PostgreSQL is starting, stopping or recovering; retry"),
    "57P04": Explained("STORE_DATABASE_UNKNOWN", "the database was dropped"),
    "57P05": Explained(
        "STORE_LOST",
        "PostgreSQL ended the connection after its idle_session_timeout; nothing was written. The next call"
        " connects again",
    ),
    "08P01": Explained(
        "STORE_POOLER",
        "a pooler ended the connection for a reason of its own, or what came was no message that it, or PostgreSQL,"
        " knows; its log says more. The next call connects again",
    ),
    "08": Explained("STORE_LOST", _LOST),
    "0A": Explained("STORE_SCHEMA", _TABLES),
    "28": Explained(
        "STORE_REFUSED",
        f"PostgreSQL refused the connection: {LOGIN}, at the server's pg_hba.conf, and at its log",
    ),
    "3F": Explained("STORE_SCHEMA", _TABLES),
    "40": Explained("STORE_BUSY", "other transactions stood against this one; nothing was written: retry"),
    "42": Explained("STORE_SCHEMA", _TABLES),
    "53": Explained(
        "STORE_OUT_OF_RESOURCE",
        "PostgreSQL is out of a resource; its log says which; nothing was written",
    ),
    "57P": Explained("STORE_LOST", _LOST),
    "58": Explained("STORE_DISK_FAILED", "the disk under PostgreSQL failed to read or write; see its log"),
    "XX": Explained(
        "STORE_DAMAGED", "PostgreSQL found its own data damaged, or a defect of its own; see its log"
    ),
}


_is_state: Final = re.compile("[0-9A-Z]{5}").fullmatch
_is_severity: Final = re.compile("ERROR|FATAL|PANIC").fullmatch
_severity: Final = re.compile(r"failed: (\w+):  ").search
"""In the server's language: two spaces follow it, and follow nothing that libpq says by itself."""
_without_names: Final = re.compile(r"""(?m)"[^"\n]*"|^- host: .*?, hostaddr: \S+ """).sub
"""Hosts, users and databases may be called as what is looked for."""


def _with_state(text: str, severity: str | None, state: str) -> str:
    """A text and the server's own words for it, if they are what they should be."""
    said = [f"SQLSTATE {state}"] if _is_state(state) else []
    if severity and _is_severity(severity):
        said.append(f"severity {severity}")
    return f"{text} ({', '.join(said)})" if said else text


def _told(text: str, error: psycopg.Error) -> str:
    severity = error.diag.severity_nonlocalized or error.diag.severity
    return _with_state(text, severity, error.sqlstate or "")


def explanation(error: Exception) -> Explained | None:
    """The code and the message for a caller; None for what is no error of PostgreSQL."""
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate
    if state is None:
        # libpq's own result, for a server that is gone, is a plain DatabaseError.
        lost = isinstance(error, psycopg.OperationalError) or type(error) is psycopg.DatabaseError
        return Explained("STORE_LOST", _LOST) if lost else Explained("STORE_SCHEMA", _TABLES)
    explained = _by_state(state, error)
    return explained._replace(text=_told(explained.text, error))


def _by_state(state: str, error: psycopg.Error) -> Explained:
    said = error.diag.message_primary or ""
    cause = find_cause(said, OF_POOLERS) if state.startswith(STATES_OF_POOLERS) else None
    cause = cause or find_cause(said, OF_STATEMENTS, state)
    if cause is not None:
        return Explained(cause.code, cause.text)
    for length in (5, 3, 2):
        if state[:length] in _EXPLANATIONS:
            return _EXPLANATIONS[state[:length]]
    return Explained(TokenStoreError.code, "PostgreSQL refused a statement; its log says more")


def read_only(error: psycopg.Error, standby: bool, set_so: bool) -> TokenStoreError:
    """Why a write was refused, by what the server has told of itself.

    Args:
        error: that it gave.
        standby: whether it is one.
        set_so: whether its sessions are set to read alone.
    """
    text = STANDBY if standby else READ_ONLY_SESSIONS if set_so else _EXPLANATIONS["25006"].text
    return TokenStoreError(_told(text, error), code="STORE_READ_ONLY")


def unconnected(error: psycopg.Error) -> TokenStoreError:
    """Why there is no connection. libpq gives a text and no code, and the text names host and user."""
    explained = _unconnected(error)
    return TokenStoreError(explained.text, code=explained.code)


def _unconnected(error: psycopg.Error) -> Explained:
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return Explained(
            "STORE_UNREACHABLE",
            f"PostgreSQL did not accept a connection in {CONNECT_SECONDS_MAX} seconds; look at host and port in "
            "the store's URL, and whether the server runs, and a pooler before it",
        )
    asked = explanation(error) if error.sqlstate is not None else None
    if asked is not None:  # libpq asked something of the server, or of a pooler that had none
        return asked
    said = _without_names("", str(error))
    severity = _severity(said)
    cause = find_cause(said, OF_POOLERS) or find_cause(said, OF_CONNECTING)
    if cause is not None:
        state = cause.state if severity else ""
        return Explained(cause.code, _with_state(cause.text, severity and severity[1], state))
    if severity:
        return Explained("STORE_REFUSED", _with_state(_REFUSED, severity[1], ""))
    return Explained("STORE_UNREACHABLE", _UNREACHABLE)
