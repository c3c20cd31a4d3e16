"""What errors of PostgreSQL mean to a caller. Their own messages can hold keys of rows, and are not passed on."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import psycopg

from tokenvault.errors import TokenStoreError
from tokenvault.stores.postgres.address import CONNECT_SECONDS_MAX

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
_LOGIN: Final = "look at user, password and database in the store's URL"
_REFUSED: Final = (
    f"PostgreSQL refused the connection: {_LOGIN}, at the server's pg_hba.conf, and at its log,"
    " which has the reason"
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
        "PostgreSQL is read-only: the URL leads to a standby, or the role may not write; nothing was written",
    ),
    "42501": Explained(
        "STORE_PERMISSION",
        "the role may not use the tables: grant it USAGE on the schema and SELECT, INSERT and UPDATE on its"
        " tables; to provision, it has to own the database or a schema in it",
    ),
    "53100": Explained("STORE_DISK_FULL", "the disk under PostgreSQL is full; nothing was written"),
    "53200": Explained("STORE_OUT_OF_MEMORY", "PostgreSQL got no memory; nothing was written"),
    "55P03": Explained(
        "STORE_BUSY", "other writers held the rows for longer than a call waits; nothing was written"
    ),
    "57014": Explained(
        "STORE_TIMEOUT",
        "PostgreSQL took longer than the store's statement_seconds, or an administrator ended the statement; nothing"
        " was written",
    ),
    "08": Explained("STORE_LOST", _LOST),
    "0A": Explained("STORE_SCHEMA", _TABLES),
    "28": Explained("STORE_REFUSED", _REFUSED),
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


class _Cause(NamedTuple):
    """Why a connection was refused, or ended by a pooler.

    Attributes:
        words: a pattern found in the message of libpq, PostgreSQL or PgBouncer, and in no other's.
        state: the SQLSTATE that PostgreSQL gives it, which libpq does not pass on; "" where it has none.
        code: of the error that the caller gets.
        text: for the caller.
    """

    words: str
    state: str
    code: str
    text: str


_OF_POOLERS: Final = (
    _Cause(
        "unsupported startup parameter", "08P01", "STORE_POOLER",
        "the pooler refuses a startup parameter: take 'options' out of the store's URL and of PGOPTIONS, or name the"
        " parameter in PgBouncer's ignore_startup_parameters",
    ),
    _Cause(
        "query_wait_timeout", "08P01", "STORE_POOLER",
        "PgBouncer had no connection to PostgreSQL to hand out in its query_wait_timeout: look whether the server"
        " runs, whether the pool is paused, and at default_pool_size; nothing was written",
    ),
    _Cause(
        "max_client_conn|max_user_client|max_db_client", "08P01", "STORE_TOO_MANY_CONNECTIONS",
        "too many connections: PgBouncer lets no more clients in; raise its max_client_conn, or run fewer processes",
    ),
    _Cause(
        "no such database|[Dd]atabase .* is disabled", "", "STORE_DATABASE_UNKNOWN",
        f"there is no such database in PgBouncer's section [databases]: {_LOGIN}",
    ),
    _Cause(
        "statement pooling mode", "08P01", "STORE_POOLER",
        "PgBouncer's pool_mode is 'statement', which has no transactions: set it to 'transaction' or 'session'",
    ),
    _Cause(
        "server[ _]login|cannot connect to server|server down", "08P01", "STORE_POOLER",
        "PgBouncer can not log in to PostgreSQL: look at its log, at its section [databases], and whether the server"
        " runs; nothing was written",
    ),
    _Cause(
        "(client_login|client_idle|idle_transaction|query|transaction)[ _]timeout", "08P01", "STORE_POOLER",
        "PgBouncer ended the connection after one of its time-outs; its log says which",
    ),
)  # fmt: skip
_OF_CONNECTING: Final = (
    _Cause(
        "read-only|hot standby", "", "STORE_READ_ONLY",
        "every PostgreSQL server in the store's URL is read-only: none is the primary",
    ),
    _Cause(
        "starting up|shutting down|recovery", "57P03", "STORE_STARTING",
        "PostgreSQL is starting or stopping; retry",
    ),
    _Cause(
        "too many clients|connection slots are reserved|too many connections", "53300", "STORE_TOO_MANY_CONNECTIONS",
        "too many connections: PostgreSQL takes no more; raise max_connections, the role's or the database's limit,"
        " or run fewer processes",
    ),
    _Cause(
        "does not support SSL", "", "STORE_TLS",
        "the server or pooler has no TLS, and sslmode in the store's URL demands it",
    ),
    _Cause(
        "SSL required", "08P01", "STORE_TLS",
        "the pooler demands TLS: set sslmode=verify-full and sslrootcert in the store's URL",
    ),
    _Cause(
        "pg_hba.conf.*(no encryption|SSL off)", "28000", "STORE_TLS",
        "the server's pg_hba.conf has no line for this client, user and database without TLS: set sslmode=verify-full"
        f" and sslrootcert, {_LOGIN}, or add a line",
    ),
    _Cause(
        "no pg_hba.conf entry|pg_hba.conf rejects", "28000", "STORE_REFUSED",
        f"the server's pg_hba.conf has no line that lets this client in: {_LOGIN}, or add a line",
    ),
    _Cause(
        "certificate|SSL error|SSL SYSCALL|private key|sslv3|tlsv1", "", "STORE_TLS",
        "TLS failed: the server's certificate is not trusted or names another host, or the client's is refused; look"
        " at sslmode, sslrootcert, sslcert and sslkey in the store's URL",
    ),
    _Cause(
        "role .* does not exist|not permitted to log in", "28000", "STORE_USER_UNKNOWN",
        f"PostgreSQL has no such user, or the user may not log in: {_LOGIN}",
    ),
    _Cause(
        "authentication failed|no such user|password", "28P01", "STORE_PASSWORD",
        f"PostgreSQL does not take the password, or knows no such user: {_LOGIN}",
    ),
    _Cause(
        "database .* does not exist", "3D000", "STORE_DATABASE_UNKNOWN",
        f"PostgreSQL has no such database: {_LOGIN}",
    ),
    _Cause(
        "permission denied for database", "42501", "STORE_PERMISSION",
        "the user may not connect to the database: grant it CONNECT",
    ),
    _Cause(
        "could not translate host|resolve host|Name or service", "", "STORE_HOST_UNKNOWN",
        "PostgreSQL can not be reached: the host in the store's URL has no address; look at its name and at DNS",
    ),
)  # fmt: skip


def _cause(text: str, causes: tuple[_Cause, ...]) -> _Cause | None:
    return next((cause for cause in causes if re.search(cause.words, text)), None)


_is_state: Final = re.compile("[0-9A-Z]{5}").fullmatch
_is_severity: Final = re.compile("ERROR|FATAL|PANIC").fullmatch


def _with_state(text: str, severity: str | None, state: str) -> str:
    """A text and the server's own words for it, if they are what they should be."""
    said = [f"SQLSTATE {state}"] if _is_state(state) else []
    if severity and _is_severity(severity):
        said.append(f"severity {severity}")
    return f"{text} ({', '.join(said)})" if said else text


def explanation(error: Exception) -> Explained | None:
    """The code and the message for a caller; None for what is no error of PostgreSQL."""
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate
    if state is None:
        lost = isinstance(error, psycopg.OperationalError)
        return Explained("STORE_LOST", _LOST) if lost else Explained("STORE_SCHEMA", _TABLES)
    explained = _by_state(state, error)
    severity = error.diag.severity_nonlocalized or error.diag.severity
    return explained._replace(text=_with_state(explained.text, severity, state))


def _by_state(state: str, error: psycopg.Error) -> Explained:
    pooler = _cause(error.diag.message_primary or "", _OF_POOLERS) if state.startswith("08") else None
    if pooler is not None:
        return Explained(pooler.code, pooler.text)
    for length in (5, 3, 2):
        if state[:length] in _EXPLANATIONS:
            return _EXPLANATIONS[state[:length]]
    return Explained(TokenStoreError.code, "PostgreSQL refused a statement; its log says more")


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
    said = str(error)
    severity = re.search("failed: (FATAL|ERROR|PANIC):", said)
    cause = _cause(said, _OF_POOLERS) or _cause(said, _OF_CONNECTING)
    if cause is not None:
        state = cause.state if severity else ""
        return Explained(cause.code, _with_state(cause.text, severity and severity[1], state))
    if severity:
        return Explained("STORE_REFUSED", _with_state(_REFUSED, severity[1], ""))
    return Explained("STORE_UNREACHABLE", _UNREACHABLE)
