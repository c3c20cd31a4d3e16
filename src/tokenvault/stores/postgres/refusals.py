"""The words by which PostgreSQL, libpq and poolers say why they refuse or end something, and what each means.

Of a connection that fails, libpq passes on words and no SQLSTATE. And SQLSTATEs of poolers mean little: PgBouncer
gives 08P01 for everything, pgcat 58000, Supavisor XX000. A server speaks its own language; words are known in English
alone, which poolers always speak.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

LOGIN: Final = "look at user, password and database in the store's URL"
OPTIONS: Final = (
    "take 'options' out of the store's URL and PGOPTIONS out of the environment, and give the settings to the role"
    " instead: ALTER ROLE ... SET"
)
DEMANDS_TLS: Final = "set sslmode=verify-full and sslrootcert in the store's URL"
READ_ONLY_SESSIONS: Final = (
    "PostgreSQL is no standby, but its sessions are read-only: default_transaction_read_only is on for the role,"
    " the database or the server, as some providers set it when the disk is full; nothing was written"
)
STANDBY: Final = (
    "the server is a standby, which takes no writes: look at the hosts in the store's URL, and after a failover"
    " at where they, and a pooler, lead; nothing was written"
)


class Cause(NamedTuple):
    """Why something was refused, or ended.

    Attributes:
        words: a pattern found in the message of libpq, PostgreSQL or a pooler, and in no other's.
        state: the SQLSTATE that goes with it; "" where it has none, or several.
        code: of the error that the caller gets.
        text: for the caller.
    """

    words: str
    state: str
    code: str
    text: str


_OF_PGBOUNCER: Final = (
    Cause(
        "unsupported startup parameter|unsupported options startup parameter", "08P01", "STORE_POOLER",
        "PgBouncer refuses a startup parameter: take 'options' out of the store's URL and PGOPTIONS out of the"
        " environment, or name the parameter in PgBouncer's ignore_startup_parameters",
    ),
    Cause(
        "query_wait_timeout", "08P01", "STORE_POOLER",
        "PgBouncer had no connection to PostgreSQL to hand out in its query_wait_timeout: look whether the server"
        " runs, whether the pool is paused, and at default_pool_size; nothing was written",
    ),
    Cause(
        "max_client_conn|max_user_client|max_db_client", "08P01", "STORE_TOO_MANY_CONNECTIONS",
        "too many connections: PgBouncer lets no more clients in; raise its max_client_conn, or run fewer"
        " processes",
    ),
    Cause(
        "no such database|[Dd]atabase .* is disabled", "08P01", "STORE_DATABASE_UNKNOWN",
        f"there is no such database in PgBouncer's section [databases]: {LOGIN}",
    ),
    Cause(
        "statement pooling mode", "08P01", "STORE_POOLER",
        "PgBouncer's pool_mode is 'statement', which has no transactions: set it to 'transaction' or 'session'",
    ),
    Cause(
        "server[ _]login|cannot connect to server|server down", "08P01", "STORE_POOLER",
        "PgBouncer can not log in to PostgreSQL: look at its log, at its section [databases], and whether the"
        " server runs; nothing was written",
    ),
    Cause(
        "server conn crashed", "08P01", "STORE_LOST",
        "PgBouncer lost its connection to PostgreSQL: look whether the server runs. The next call connects again",
    ),
    Cause(
        "pooler is shutting down|FATAL:  server shutting down|^server shutting down", "08P01", "STORE_POOLER",
        "PgBouncer is shutting down; retry",
    ),
    Cause(
        "(client_login|client_idle|idle_transaction|query|transaction)[ _]timeout$", "08P01", "STORE_POOLER",
        "PgBouncer ended the connection after one of its time-outs; its log says which",
    ),
    Cause(
        "bouncer config error|bouncer resources exhaustion|pause failed", "08P01", "STORE_POOLER",
        "PgBouncer failed by itself: look at its log",
    ),
)  # fmt: skip
_OF_RDS_PROXY: Final = (
    Cause(
        "RDS Proxy .*support command-line options", "0A000", "STORE_POOLER",
        f"RDS Proxy refuses the startup parameter 'options': {OPTIONS}",
    ),
    Cause(
        "RDS Proxy currently doesn", "0A000", "STORE_POOLER",
        "RDS Proxy does not support what the store's URL asks for: leave out what is neither user, password, host,"
        " database nor for TLS",
    ),
    Cause(
        "number of client connections to the proxy|connection to proxy exceeded|too many competing requests", "",
        "STORE_TOO_MANY_CONNECTIONS",
        "too many connections: RDS Proxy lets no more clients in, or not that fast; run fewer processes",
    ),
    Cause(
        "RDS [Pp]roxy requires TLS|IAM .*is allowed only with SSL", "", "STORE_TLS",
        f"RDS Proxy demands TLS: {DEMANDS_TLS}",
    ),
    Cause(
        "RDS [Pp]roxy has no credentials", "", "STORE_USER_UNKNOWN",
        f"RDS Proxy has no credentials for this user: {LOGIN}, and at the proxy's secrets",
    ),
    Cause(
        "password that was provided for the role|IAM authentication failed for", "", "STORE_PASSWORD",
        f"RDS Proxy does not take the password or the IAM token: {LOGIN}",
    ),
    Cause(
        "Timed-out waiting to acquire (a )?database connection", "08000", "STORE_POOLER",
        "RDS Proxy had no connection to PostgreSQL to hand out in its borrow timeout: look whether the server"
        " runs, and at MaxConnectionsPercent; nothing was written",
    ),
)  # fmt: skip
_OF_SUPAVISOR: Final = (
    Cause(
        r"\(EMAXCONN|MaxClientsInSessionMode|[Mm]ax client connections reached", "XX000",
        "STORE_TOO_MANY_CONNECTIONS",
        "too many connections: Supavisor lets no more clients in; raise its pool size, or run fewer processes",
    ),
    Cause(
        r"\((ENOTFOUND|ENOIDENTIFIER|EMULTIPLEUSERS)\)|Tenant or user not found", "XX000", "STORE_USER_UNKNOWN",
        f"Supavisor knows no such user or tenant; its users are called user.tenant: {LOGIN}",
    ),
    Cause(
        r"\(ESSLREQUIRED\)|SSL connection is required", "XX000", "STORE_TLS",
        f"Supavisor demands TLS: {DEMANDS_TLS}",
    ),
    Cause(
        r"\((ECHECKOUTTIMEOUT|EPOOLCHECKOUT|EMAXPOOLSREACHED)\)|check ?out (connection|process) from the pool",
        "XX000", "STORE_POOLER",
        "Supavisor had no connection to PostgreSQL to hand out: look whether the server runs, and at the pool size;"
        " nothing was written",
    ),
    Cause(
        r"\(E[A-Z]{5,}\) ", "", "STORE_POOLER",
        "Supavisor refused or ended the connection for a reason of its own, which its log has",
    ),
)  # fmt: skip
_OF_PGCAT: Final = (
    Cause(
        "No pool configured for database", "58000", "STORE_DATABASE_UNKNOWN",
        f"pgcat has no pool for this database and user: {LOGIN}, and at the sections [pools] of pgcat.toml",
    ),
    Cause(
        "Pool down for database|could not get connection from the pool|checkout failure limit", "58000",
        "STORE_POOLER",
        "pgcat had no connection to PostgreSQL to hand out: look at its log, at pool_size, and whether the"
        " server runs; nothing was written",
    ),
    Cause(
        "pool statement timeout", "58000", "STORE_POOLER",
        "pgcat ended the statement after its statement_timeout: raise that",
    ),
)  # fmt: skip
_OF_ODYSSEY: Final = (
    Cause(
        "route for .* is not found", "3D000", "STORE_DATABASE_UNKNOWN",
        f"Odyssey has no route for this database and user: {LOGIN}, and at its configuration",
    ),
    Cause(
        "too many (client )?tcp connections|too many active clients for user", "53300",
        "STORE_TOO_MANY_CONNECTIONS",
        "too many connections: Odyssey lets no more clients in; raise its client_max and pool_size, or run fewer"
        " processes",
    ),
    Cause(
        "failed to get remote server connection|failed to connect to remote server", "08006", "STORE_POOLER",
        "Odyssey can not connect to PostgreSQL: look at its log, and whether the server runs; nothing was written",
    ),
    Cause(
        "find suitable host for tsa", "08006", "STORE_READ_ONLY",
        "Odyssey finds no server that takes writes: none is the primary",
    ),
    Cause(
        "Odyssey is gracefully shutting down", "08006", "STORE_POOLER",
        "Odyssey is shutting down or restarting; retry",
    ),
    Cause("TLS connection required", "28000", "STORE_TLS", f"Odyssey demands TLS: {DEMANDS_TLS}"),
    Cause(
        "host based authentication rejected", "28P01", "STORE_REFUSED",
        f"Odyssey's own rules for hosts do not let this client in: {LOGIN}, and at its configuration",
    ),
)  # fmt: skip
_OF_PGPOOL: Final = (
    Cause(
        r"pool_hba\.conf", "", "STORE_REFUSED",
        f"Pgpool-II's pool_hba.conf does not let this client in: {LOGIN}, or add a line there",
    ),
    Cause(
        "Sorry, too many clients", "53300", "STORE_TOO_MANY_CONNECTIONS",
        "too many connections: Pgpool-II lets no more clients in; raise its num_init_children, or run fewer"
        " processes",
    ),
    Cause(
        "failed to create a backend|from DB node|authenticate with backend|backend authentication|kind mismatch",
        "", "STORE_POOLER",
        "Pgpool-II can not work with its PostgreSQL servers: look at its log, and whether they run",
    ),
    Cause(
        "due to online recovery|client_idle_limit", "", "STORE_POOLER",
        "Pgpool-II ended the connection, for its online recovery or its client_idle_limit. The next call"
        " connects again",
    ),
)  # fmt: skip
OF_POOLERS: Final = (
    *_OF_RDS_PROXY, *_OF_SUPAVISOR, *_OF_PGCAT, *_OF_ODYSSEY, *_OF_PGPOOL, *_OF_PGBOUNCER,
)  # fmt: skip

STATES_OF_POOLERS: Final = ("08", "0A", "28", "3D", "53", "58", "XX")
"""The beginnings of SQLSTATEs that poolers give."""

_OF_STATES: Final = (
    Cause("session is read-only|server is in hot standby mode", "", "STORE_READ_ONLY",
          "no PostgreSQL server in the store's URL takes writes: of those that answer, none is the primary"),
    Cause("session is not read-only|server is not in hot standby mode", "", "STORE_UNREACHABLE",
          "target_session_attrs in the store's URL asks for a standby, and the server is none: leave it out"),
    Cause("Hot standby mode is disabled", "57P03", "STORE_READ_ONLY",
          "the store's URL leads to a standby that takes no connections (hot_standby is off): name the primary"),
    Cause("database .* is not currently accepting connections|invalid database|is being dropped", "55000",
          "STORE_DATABASE_UNKNOWN", "the database takes no connections: its ALLOW_CONNECTIONS is false, or it"
          " was dropped in part"),
    Cause("system is shutting down", "57P03", "STORE_STARTING", "PostgreSQL is stopping; retry once it runs again"),
    Cause("in recovery mode", "57P03", "STORE_STARTING", "PostgreSQL recovers from a crash; retry"),
    Cause("starting up|not yet accepting connections|not accepting connections", "57P03", "STORE_STARTING",
          "PostgreSQL is starting and takes no connections yet; retry"),
    Cause("administrator command|immediate shutdown|postmaster exit", "57P01", "STORE_STARTING",
          "PostgreSQL is stopping, or an administrator ended the connection; retry"),
    Cause("crash of another server process", "57P02", "STORE_STARTING", "PostgreSQL recovers from a crash; retry"),
    Cause("canceling authentication due to timeout", "57014", "STORE_TIMEOUT",
          "PostgreSQL gave up the connection after its authentication_timeout: the server, or the network, is"
          " too slow"),
    Cause("too many clients|connection slots are reserved|too many connections|connection limit exceeded", "53300",
          "STORE_TOO_MANY_CONNECTIONS", "too many connections: PostgreSQL takes no more; raise max_connections,"
          " the role's or the database's limit, or run fewer processes"),
    Cause("could not fork", "", "STORE_OUT_OF_RESOURCE", "PostgreSQL could not start a process for the"
          " connection: its machine is out of processes or memory"),
    Cause("out of memory", "53200", "STORE_OUT_OF_MEMORY", "PostgreSQL got no memory for the connection"),
)  # fmt: skip
_OF_LOGIN: Final = (
    Cause("does not support SSL", "", "STORE_TLS",
          "the server or pooler has no TLS, and sslmode in the store's URL demands it"),
    Cause("SSL required", "08P01", "STORE_TLS", f"the pooler demands TLS: {DEMANDS_TLS}"),
    Cause("pg_hba.conf.*(no encryption|SSL off)", "28000", "STORE_TLS",
          "the server's pg_hba.conf has no line for this client, user and database without TLS:"
          f" set sslmode=verify-full and sslrootcert, {LOGIN}, or add a line"),
    Cause(r"pg_hba\.conf", "28000", "STORE_REFUSED",
          f"the server's pg_hba.conf has no line that lets this client in: {LOGIN}, or add a line"),
    Cause("certificate|SSL error|SSL SYSCALL|private key|sslv3|tlsv1", "", "STORE_TLS",
          "TLS failed: the server's certificate is not trusted or names another host, or the client's is"
          " refused; look at sslmode, sslrootcert, sslcert and sslkey in the store's URL"),
    Cause("role .* does not exist|not permitted to log in", "28000", "STORE_USER_UNKNOWN",
          f"PostgreSQL has no such user, or the user may not log in: {LOGIN}"),
    Cause("(Peer|Ident|GSSAPI|SSPI) authentication failed", "28000", "STORE_REFUSED",
          "PostgreSQL asks for no password but for who the client is, by the line of its pg_hba.conf, and takes"
          f" it for another user: {LOGIN}, or change that line"),
    Cause("no password supplied", "", "STORE_PASSWORD",
          f"PostgreSQL or a pooler asks for a password, and there is none: {LOGIN}"),
    Cause("authentication failed|no such user|password|incorrect user", "28P01", "STORE_PASSWORD",
          f"PostgreSQL does not take the password, or knows no such user: {LOGIN}"),
    Cause("database .* does not exist", "3D000", "STORE_DATABASE_UNKNOWN",
          f"PostgreSQL has no such database: {LOGIN}"),
    Cause("permission denied for database", "42501", "STORE_PERMISSION",
          "the user may not connect to the database: grant it CONNECT"),
    Cause("configuration parameter|for parameter|to set parameter|command-line arg|parameter .* cannot be", "",
          "STORE_REFUSED",
          "PostgreSQL does not take a setting from 'options' in the store's URL, or from PGOPTIONS: look at its name"
          " and value"),
    Cause("could not translate host|resolve host|Name or service", "", "STORE_HOST_UNKNOWN",
          "PostgreSQL can not be reached: the host in the store's URL has no address; look at its name and at DNS"),
)  # fmt: skip
OF_CONNECTING: Final = (*_OF_STATES, *_OF_LOGIN)

OF_STATEMENTS: Final = (
    Cause("due to statement timeout", "57014", "STORE_TIMEOUT",
          "PostgreSQL took longer than the store's statement_seconds, or behind a pooler than the role's"
          " statement_timeout; nothing was written"),
    Cause("due to user request", "57014", "STORE_TIMEOUT",
          "an administrator, or a tool, cancelled the statement; nothing was written"),
    Cause("due to lock timeout", "55P03", "STORE_BUSY",
          "other writers held the rows for longer than the lock_timeout of the role, the database or the server;"
          " nothing was written"),
    Cause("too many connections", "53400", "STORE_TOO_MANY_CONNECTIONS",
          "too many connections: a limit in PostgreSQL's configuration is reached"),
)  # fmt: skip
"""Of statements, where one SQLSTATE has several causes."""


def find_cause(said: str, causes: tuple[Cause, ...], state: str = "") -> Cause | None:
    """The first cause whose words were said, and whose SQLSTATE is the one given, if one is."""
    fit = (cause for cause in causes if state in ("", cause.state))
    return next((cause for cause in fit if re.search(cause.words, said, re.MULTILINE)), None)
