"""Why PostgreSQL, or a pooler before it, refuses a connection or a statement is told by its cause, in words of"
" our own."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from tests.faces import open_on_a_loop
from tests.pgbouncer import running
from tests.postgres_server import PASSWORD, PostgresServer, new_name
from tests.refusing_server import refusing
from tokenvault.errors import ConfigurationError, TokenStoreError
from tokenvault.stores import PostgresTokenStore, open_token_store
from tokenvault.stores.port import TokenStore
from tokenvault.stores.postgres import session
from tokenvault.stores.postgres.errors import unconnected
from tokenvault.testing import a_record, an_event

openers = pytest.mark.parametrize("open_store", [open_token_store, open_on_a_loop], ids=["threads", "loop"])

RDS_PROXY_OPTIONS = "Feature not supported: RDS Proxy currently doesn{}t support command-line options."
# What each says, by its documentation and source; RDS Proxy says the first with one apostrophe or the other.
POOLERS = [
    (RDS_PROXY_OPTIONS.format("\u2019"), "0A000", "POOLER", "RDS Proxy refuses .*'options'.*PGOPTIONS.*ALTER ROLE"),
    (RDS_PROXY_OPTIONS.format("'"), "0A000", "POOLER", "RDS Proxy refuses .*'options'.*PGOPTIONS.*ALTER ROLE"),
    ("Feature not supported: RDS Proxy currently doesn't support the option x.", "0A000", "POOLER",
     "RDS Proxy does not"),
    ("This RDS Proxy requires TLS connections.", "28000", "TLS", "RDS Proxy demands TLS: set sslmode"),
    ("IAM is allowed only with SSL connections.", "28000", "TLS", "RDS Proxy demands TLS"),
    ("This RDS proxy has no credentials for the role alice. Check the credentials for this role and try again.",
     "28000", "USER_UNKNOWN", "RDS Proxy has no credentials"),
    ("The password that was provided for the role alice is wrong.", "28P01", "PASSWORD", "RDS Proxy .*password"),
    ("The IAM authentication failed for the role alice. Check the IAM token for this role and try again.", "28000",
     "PASSWORD", "RDS Proxy .*IAM token"),
    ("The maximum number of client connections to the proxy exceeded 5.", "53300", "TOO_MANY_CONNECTIONS",
     "RDS Proxy"),
    ("Timed-out waiting to acquire database connection", "08000", "POOLER", "RDS Proxy .*nothing was written"),
    ("(EMAXCONN) max client connections reached, limit: 200", "XX000", "TOO_MANY_CONNECTIONS", "Supavisor"),
    ("MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size", "XX000",
     "TOO_MANY_CONNECTIONS", "Supavisor"),
    ("(ENOTFOUND) tenant/user postgres.alice not found", "XX000", "USER_UNKNOWN", "Supavisor .*user.tenant"),
    ("Tenant or user not found", "XX000", "USER_UNKNOWN", "Supavisor"),
    ("(ESSLREQUIRED) SSL connection is required for user: alice", "XX000", "TLS", "Supavisor demands TLS"),
    ("(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 60000ms in Transaction mode", "XX000",
     "POOLER", "Supavisor .*nothing was written"),
    ("(ECIRCUITBREAKER) too many authentication errors", "XX000", "POOLER", "Supavisor .*its log"),
    ('No pool configured for database: "alice", user: "alice"', "58000", "DATABASE_UNKNOWN", "pgcat has no pool"),
    ('Pool down for database: "alice", user: "alice"', "58000", "POOLER", "pgcat .*nothing was written"),
    ("could not get connection from the pool - AllServersDown", "58000", "POOLER", "pgcat .*nothing was written"),
    ("odyssey: c1f8a: route for 'alice.alice' is not found", "3D000", "DATABASE_UNKNOWN", "Odyssey has no route"),
    ("odyssey: c1f8a: too many client tcp connections (client_max for user alice.alice 5)", "53300",
     "TOO_MANY_CONNECTIONS", "Odyssey .*client_max"),
    ("odyssey: c1f8a: failed to get remote server connection", "08006", "POOLER", "Odyssey .*nothing was written"),
    ("odyssey: c1f8a: can't find suitable host for tsa 'read-write' of user alice.alice", "08006", "READ_ONLY",
     "Odyssey"),
    ("odyssey: c1f8a: TLS connection required", "28000", "TLS", "Odyssey demands TLS"),
    ("odyssey: c1f8a: host based authentication rejected", "28P01", "REFUSED", "Odyssey's own rules"),
    ("Sorry, too many clients already", "53300", "TOO_MANY_CONNECTIONS", "Pgpool-II .*num_init_children"),
    ("failed to create a backend 0 connection", "XX000", "POOLER", "Pgpool-II can not work"),
    ("unsupported startup parameter in options: geqo", "08P01", "POOLER",
     "PgBouncer refuses.*ignore_startup_parameters"),
    ("unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed", "08P01",
     "POOLER", "PgBouncer refuses.*'options'"),
    ("no more connections allowed (max_client_conn)", "08P01", "TOO_MANY_CONNECTIONS", "PgBouncer"),
    ("server login has been failing, cached error: connect failed (server_login_retry)", "08P01", "POOLER",
     "can not log in"),
    ("pgbouncer cannot connect to server", "08P01", "POOLER", "PgBouncer can not log in"),
    ("server_login_retry", "08P01", "POOLER", "PgBouncer can not log in"),
    ("no such database: alice", "08P01", "DATABASE_UNKNOWN", r"\[databases\]"),
    ('database "alice" is disabled', "08P01", "DATABASE_UNKNOWN", r"\[databases\]"),
    ("query_wait_timeout", "08P01", "POOLER", "query_wait_timeout.*nothing was written"),
    ("pooler is shutting down", "08P01", "POOLER", "PgBouncer is shutting down"),
    ("server conn crashed?", "08P01", "LOST", "PgBouncer lost its connection"),
]  # fmt: skip


@openers
@pytest.mark.parametrize("at_login", [True, False], ids=["at login", "asked"])
@pytest.mark.parametrize(("said", "state", "code", "told"), POOLERS, ids=[said[:40] for said, *_ in POOLERS])
def test_a_pooler_s_own_words_are_told_as_its_own(
    open_store: Callable[[str], TokenStore], said: str, state: str, code: str, told: str, at_login: bool
) -> None:
    with refusing(said, state, at_login=at_login) as url, closing(open_store(url)) as store:
        for call in (store.check_schema, store.scan):
            with pytest.raises(TokenStoreError) as refused:
                call()
            text = str(refused.value)
            assert (refused.value.code, bool(re.search(told, text))) == (f"STORE_{code}", True), text
            assert "pg_hba.conf" not in text
            assert "alice" not in text
            assert "severity FATAL" in text
            if not at_login:
                assert f"SQLSTATE {state}" in text
            elif said_state := re.search("SQLSTATE (.....)", text):
                assert said_state[1] == state
            assert refused.value.__context__ is None


# Of PostgreSQL, and what it says while one connects.
CONNECTING = [
    ("the database system is starting up", "57P03", "STARTING", "is starting"),
    ("the database system is not yet accepting connections", "57P03", "STARTING", "is starting"),
    ("the database system is shutting down", "57P03", "STARTING", "is stopping"),
    ("the database system is in recovery mode", "57P03", "STARTING", "recovers from a crash"),
    ("terminating connection due to administrator command", "57P01", "STARTING", "stopping, or an administrator"),
    ("terminating connection because of crash of another server process", "57P02", "STARTING", "recovers"),
    ("canceling authentication due to timeout", "57014", "TIMEOUT", "authentication_timeout"),
    ('database "alice" is not currently accepting connections', "55000", "DATABASE_UNKNOWN", "ALLOW_CONNECTIONS"),
    ("sorry, too many clients already", "53300", "TOO_MANY_CONNECTIONS", "PostgreSQL takes no more"),
    ('too many connections for role "alice"', "53300", "TOO_MANY_CONNECTIONS", "PostgreSQL takes no more"),
    ("out of memory", "53200", "OUT_OF_MEMORY", "no memory"),
    ('unrecognized configuration parameter "alice"', "42704", "REFUSED", "'options'"),
    ('password authentication failed for user "alice"', "28P01", "PASSWORD", "does not take the password"),
    ('Peer authentication failed for user "alice"', "28000", "REFUSED", "asks for no password"),
    ('role "alice" does not exist', "28000", "USER_UNKNOWN", "no such user"),
    ('database "alice" does not exist', "3D000", "DATABASE_UNKNOWN", "no such database"),
    ("something that nobody knows", "55006", "REFUSED", "for a reason of its own"),
]  # fmt: skip


@openers
@pytest.mark.parametrize(("said", "state", "code", "told"), CONNECTING, ids=[said for said, *_ in CONNECTING])
def test_what_a_server_says_while_one_connects_is_told_apart(
    open_store: Callable[[str], TokenStore], said: str, state: str, code: str, told: str
) -> None:
    """What is no refusal of a login, by its SQLSTATE, never leads to pg_hba.conf."""
    with refusing(said, state) as url, closing(open_store(url)) as store:
        with pytest.raises(TokenStoreError, match=told) as refused:
            store.check_schema()
        text = str(refused.value)
        assert refused.value.code == f"STORE_{code}"
        assert "alice" not in text
        assert state.startswith("28") or "pg_hba.conf" not in text
        assert all(given == state for given in re.findall("SQLSTATE (.....)", text))


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("ВАЖНО:  пользователь не прошёл", "REFUSED"),
        ('FATAL:  kein pg_hba.conf-Eintrag für Host "h"', "REFUSED"),
        ('FATAL:  database "recovery starting up" does not exist', "DATABASE_UNKNOWN"),
        ('FATAL:  permission denied for database "too many clients"', "PERMISSION"),
        ('FATAL:  role "server login" does not exist', "USER_UNKNOWN"),
        ("FATAL:  no such database: password", "DATABASE_UNKNOWN"),
        ("fe_sendauth: no password supplied", "PASSWORD"),
        ("session is read-only", "READ_ONLY"),
        ("session is not read-only", "UNREACHABLE"),
        ("FATAL:  the database system is not yet accepting connections\nDETAIL:  Recovery snapshot is not yet"
        " ready for"
         " hot standby.", "STARTING"),
        ("FATAL:  the database system is not accepting connections\nDETAIL:  Hot standby mode is disabled.",
        "READ_ONLY"),
    ],
)  # fmt: skip
def test_neither_names_nor_a_server_s_language_lead_astray(said: str, code: str) -> None:
    """A host, a user or a database may be called as what is looked for."""
    tried = f'connection failed: connection to server at "recovery.password", port 5432 failed: {said}'
    every = f"- host: 'shutting down', port: '5432', hostaddr: '127.0.0.1': {tried}"
    for text in (tried, f"{tried}\nMultiple connection attempts failed. All failures were:\n{every}"):
        error = unconnected(psycopg.OperationalError(text))
        assert error.code == f"STORE_{code}", str(error)


# Statements.


@openers
@pytest.mark.parametrize(
    ("said", "state", "code", "told"),
    [
        ("terminating connection due to idle-in-transaction timeout", "25P03", "TIMEOUT", "idle_in_transaction"),
        ("terminating connection due to transaction timeout", "25P04", "TIMEOUT", "transaction_timeout"),
        ("canceling statement due to statement timeout", "57014", "TIMEOUT", "took longer.*statement_timeout"),
        ("canceling statement due to user request", "57014", "TIMEOUT", "administrator, or a tool, cancelled"),
        ("wird abgebrochen", "57014", "TIMEOUT", "took longer.*or an administrator"),
        ("canceling statement due to lock timeout", "55P03", "BUSY", "lock_timeout"),
        ("terminating connection due to idle-session timeout", "57P05", "LOST", "idle_session_timeout.*nothing"),
        ("terminating connection due to administrator command", "57P01", "LOST", "stopping, or an administrator"),
        ("terminating connection because of crash of another server process", "57P02", "LOST", "crashed"),
        ("the database system is shutting down", "57P03", "STARTING", "starting, stopping or recovering"),
        ("too many connections", "53300", "TOO_MANY_CONNECTIONS", "PostgreSQL or a pooler"),
        ("temporary file size exceeds temp_file_limit", "53400", "OUT_OF_RESOURCE", "configuration"),
        ("invalid message format", "08P01", "POOLER", "a pooler ended the connection"),
        ("idle transaction timeout", "08P01", "POOLER", "one of its time-outs"),
        ("could not read block 3", "58030", "DISK_FAILED", "disk"),
        ("missing chunk number 0", "XX001", "DAMAGED", "damaged"),
        ('database "alice" does not exist', "3D000", "DATABASE_UNKNOWN", "no such database"),
    ],
)  # fmt: skip
def test_what_ends_a_connection_or_a_statement_has_its_own_text(
    open_store: Callable[[str], TokenStore], said: str, state: str, code: str, told: str
) -> None:
    """Over the wire, where the server disconnects at once after it."""
    with refusing(said, state, at_login=False) as url, closing(open_store(url)) as store:
        with pytest.raises(TokenStoreError, match=rf"{told}.*SQLSTATE {state}, severity FATAL") as refused:
            store.scan()
        assert refused.value.code == f"STORE_{code}"


@pytest.fixture
def alone() -> Iterator[PostgresServer]:
    """A server of the test's own."""
    server = PostgresServer()
    try:
        yield server
    finally:
        server.remove()


@openers
def test_a_standby_is_told_from_sessions_that_are_read_only(
    alone: PostgresServer, open_store: Callable[[str], TokenStore]
) -> None:
    """Both where one connects, and where a write is refused on a connection that may read."""
    role, url = new_name(), alone.new_url()
    anything = f"{url}&target_session_attrs=any"
    with closing(open_store(url)) as store:
        store.provision()
    with alone.raw() as superuser:
        superuser.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{PASSWORD}'".encode())
        superuser.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on".encode())
    by_role = [address.replace("//postgres:", f"//{role}:") for address in (url, anything)]
    for address in by_role:
        with (
            closing(open_store(address)) as store,
            pytest.raises(TokenStoreError, match=r"no standby, .*default_transaction_read_only") as refused,
        ):
            store.insert([a_record(1)], [an_event(1)])
        assert refused.value.code == "STORE_READ_ONLY"
        assert refused.value.__context__ is None
        assert ("SQLSTATE 25006, severity ERROR" in str(refused.value)) == (address == by_role[1])

    alone.stop("fast")
    (alone.folder / "data" / "standby.signal").touch()
    alone.start()
    for address, told in ((url, "none is the primary"), (anything, "is a standby, .*25006, severity ERROR")):
        with closing(open_store(address)) as store, pytest.raises(TokenStoreError, match=told) as refused:
            store.insert([a_record(1)], [an_event(1)])
        assert refused.value.code == "STORE_READ_ONLY"
    with closing(open_store(anything)) as store:
        assert store.scan() == []

    alone.stop("fast")
    alone.start(hot_standby="off")
    with (
        closing(open_store(url)) as store,
        pytest.raises(TokenStoreError, match=r"hot_standby is off.*57P03"),
    ):
        store.scan()


def test_a_server_that_became_read_only_while_connected_is_told(alone: PostgresServer) -> None:
    """As providers do where the disk is full; once it takes writes again, so does the store."""
    with closing(open_token_store(alone.new_url())) as store, alone.raw() as superuser:
        store.provision()
        store.scan()
        numbers = itertools.count(1)
        for value, told in (("on", "default_transaction_read_only is on.*25006"), ("off", "^$")):
            superuser.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}".encode())
            superuser.execute("SELECT pg_reload_conf()")
            deadline = time.monotonic() + 10
            while not re.search(told, said := refusal(store, next(numbers))) and time.monotonic() < deadline:
                pass
            assert re.search(told, said)


def refusal(store: TokenStore, number: int) -> str:
    """What is said of a write; nothing where it is done."""
    try:
        assert store.insert([a_record(number)], []) == []
    except TokenStoreError as error:
        return str(error)
    return ""


@openers
def test_a_server_that_stops_is_told_from_one_that_refuses(
    alone: PostgresServer, open_store: Callable[[str], TokenStore]
) -> None:
    """While it waits for its clients to leave, it lets nobody in."""
    with closing(open_store(alone.new_url())) as store, alone.raw():
        pid = int((alone.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while (told := refused_login(store)) is None and time.monotonic() < deadline:
            pass
    assert told is not None
    assert told.code == "STORE_STARTING"
    assert re.search(r"is stopping.*57P03, severity FATAL", str(told))


def refused_login(store: TokenStore) -> TokenStoreError | None:
    try:
        store.check_schema()
    except ConfigurationError:
        return None  # it was asked
    except TokenStoreError as error:
        return error
    return None


@openers
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
def test_a_server_that_is_too_old_is_named_with_the_version_that_is_needed(
    postgres_server: PostgresServer, open_store: Callable[[str], TokenStore], pooled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(session, "OLDEST_SERVER", 99)
    with running(postgres_server, pool_mode="transaction") as pooler:
        url = pooler.url(new_name()) if pooled else postgres_server.new_url()
        with closing(open_store(url)) as store:
            for call in (store.check_schema, store.provision):
                with pytest.raises(
                    ConfigurationError, match=r"PostgreSQL \d+\.\d+, .* needs 99 or"
                ) as refused:
                    call()
                assert refused.value.code == "STORE_SERVER_TOO_OLD"
            with pytest.raises(TokenStoreError, match="needs 99 or"):
                store.scan()


@pytest.mark.parametrize(
    ("version", "told"),
    [("90624", "9.6"), ("110022", "11.22"), ("119999", "11.9999"), ("120000", ""), ("180001", ""), (None, ""),
    ("x", "")],
)  # fmt: skip
def test_versions_are_read_as_postgresql_numbers_them(version: str | None, told: str) -> None:
    """A server that gives none is not refused for that."""
    if not told:
        session.check_server(version)
        return
    with pytest.raises(
        ConfigurationError, match=f"^the server is PostgreSQL {told}, and tokenvault needs 12"
    ):
        session.check_server(version)


@openers
def test_an_idle_connection_that_the_server_ended_is_replaced_unnoticed(
    postgres_server: PostgresServer, open_store: Callable[[str], TokenStore]
) -> None:
    """By its idle_session_timeout, or an administrator: the next call goes over another connection and writes"
    " once."""
    name = f"idle{new_name()}"
    url = postgres_server.new_url(application_name=name, options="-c idle_session_timeout=100")
    with closing(open_store(url)) as store, postgres_server.raw() as watcher:
        store.provision()
        for number in range(3):
            assert store.insert([a_record(number)], [an_event(number + 1)]) == []
            there = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s"
            while watcher.execute(there, (name,)).fetchone():
                time.sleep(0.01)
        assert len(store.scan()) == 3


@openers
@pytest.mark.parametrize(
    ("function", "code", "told"),
    [
        (
            "pg_cancel_backend",
            "TIMEOUT",
            "cancelled the statement; nothing was written.*57014, severity ERROR",
        ),
        ("pg_terminate_backend", "LOST", "an administrator ended the connection.*57P01, severity FATAL"),
    ],
)
def test_an_administrator_who_ends_a_statement_is_told_from_a_time_limit(
    postgres_server: PostgresServer, open_store: Callable[[str], TokenStore], function: str, code: str, told: str
) -> None:  # fmt: skip
    name, schema = new_name(), new_name()
    url = postgres_server.url(schema=schema, application_name=name)
    with (
        closing(open_store(url)) as store,
        postgres_server.raw() as holder,
        postgres_server.raw() as superuser,
    ):
        store.provision()
        with holder.transaction(), ThreadPoolExecutor(1) as thread:
            holder.execute(f"LOCK TABLE {schema}.tokens".encode())
            written = thread.submit(store.insert, [a_record(1)], [an_event(1)])
            waits = "application_name = %s AND wait_event_type = 'Lock'"
            end = f"SELECT {function}(pid) FROM pg_stat_activity WHERE {waits}"
            while not superuser.execute(end.encode(), (name,)).fetchall():
                assert not written.done()
            with pytest.raises(TokenStoreError, match=told) as refused:
                written.result()
            assert refused.value.code == f"STORE_{code}"
        assert store.scan() == []
        assert store.insert([a_record(1)], [an_event(1)]) == []


def test_a_host_s_transaction_that_stood_still_for_too_long_is_told(postgres_server: PostgresServer) -> None:
    with (
        closing(PostgresTokenStore(postgres_server.new_url())) as store,
        psycopg.connect(postgres_server.url(options="-c idle_in_transaction_session_timeout=100")) as host,
        postgres_server.raw() as watcher,
    ):
        store.provision()
        host.execute("SELECT 1")
        inside = store.within(host)
        there = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        while watcher.execute(there, (host.info.backend_pid,)).fetchone():
            time.sleep(0.01)
        with pytest.raises(
            TokenStoreError, match=r"idle_in_transaction_session_timeout.*25P03, severity FATAL"
        ):
            inside.insert([a_record(1)], [])
        assert store.scan() == []


@openers
def test_a_server_that_dies_without_a_word_is_told_as_lost(
    alone: PostgresServer, open_store: Callable[[str], TokenStore]
) -> None:
    """Its other processes say that one of them crashed, but as a warning, and disconnect as well."""
    name, schema = new_name(), new_name()
    url = alone.url(schema=schema, application_name=name)
    with closing(open_store(url)) as store, alone.raw() as holder, alone.raw() as watcher:
        store.provision()
        holder.execute(f"BEGIN; LOCK TABLE {schema}.tokens".encode())
        waits = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
        with ThreadPoolExecutor(2) as threads:
            written = [threads.submit(store.insert, [a_record(n)], [an_event(n + 1)]) for n in range(2)]
            while len(pids := watcher.execute(waits, (name,)).fetchall()) < 2:
                time.sleep(0.01)
            os.kill(pids[0][0], signal.SIGKILL)
            for call in written:
                with pytest.raises(
                    TokenStoreError, match=r"^the connection to PostgreSQL was lost, "
                ) as lost:
                    call.result()
                assert lost.value.code == "STORE_LOST"
        holder.close()
        watcher.close()
