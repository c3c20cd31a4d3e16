"""The PostgreSQL token stores behind PgBouncer, in each of its modes, paused, restarted and with other clients."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest

import tokenvault as tv
from tests import faces, pgbouncer, test_postgres_faults
from tests.faces import open_on_a_loop
from tests.pgbouncer import PgBouncer, running
from tests.postgres_server import PASSWORD, PostgresServer, new_name
from tests.test_postgres_store import ON_A_LOOP, PostgresHarness
from tests.vaults import VISA, issue, open_vault, use
from tokenvault.errors import ConfigurationError, TokenStoreError
from tokenvault.keys import KeyStore
from tokenvault.stores import open_token_store
from tokenvault.stores.port import SealedRecord, TokenStore
from tokenvault.stores.postgres import address, session, sql
from tokenvault.stores.postgres.errors import unconnected
from tokenvault.stores.postgres.statements import Statement, in_schema, prepared_name
from tokenvault.stores.postgres.store import PostgresTokenStore
from tokenvault.testing import StoreHarness, TokenStoreContract, a_record, an_event
from tokenvault.testing.token_store_harness import replaced

openers = pytest.mark.parametrize("open_store", [open_token_store, open_on_a_loop], ids=["threads", "loop"])

MODES = {
    "session": {"pool_mode": "session", "default_pool_size": "60"},
    "transaction": {"pool_mode": "transaction"},
    "transaction, one connection": {"pool_mode": "transaction", "default_pool_size": "1"},
    "transaction, prepared": {"pool_mode": "transaction", "max_prepared_statements": "200"},
}
PREPARED_FROM = (1, 21)


@pytest.fixture(params=MODES)
def pooler(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[PgBouncer]:
    """PgBouncer, as Debian installs it, in each mode."""
    if "max_prepared_statements" in MODES[request.param] and pgbouncer.version() < PREPARED_FROM:
        pytest.skip("this PgBouncer passes on no prepared statements: 1.21 and later do")
    with running(postgres_server, **MODES[request.param]) as pooler:
        yield pooler


# The port.


@pytest.mark.nightly  # the same statements as without a pooler; what differs has tests of its own here
@pytest.mark.parametrize("pooler", ["transaction"], indirect=True)
class TestPooledPostgresTokenStore(TokenStoreContract):
    @pytest.fixture
    def harness(self, postgres_server: PostgresServer, pooler: PgBouncer) -> StoreHarness:
        return PostgresHarness(postgres_server, open_token_store, pooler.url(new_name()))


@pytest.mark.nightly
@pytest.mark.parametrize("pooler", ["transaction"], indirect=True)
class TestPooledAsyncPostgresTokenStore(TokenStoreContract):
    capabilities = ON_A_LOOP

    @pytest.fixture
    def harness(self, postgres_server: PostgresServer, pooler: PgBouncer) -> StoreHarness:
        return PostgresHarness(postgres_server, open_on_a_loop, pooler.url(new_name()))


@openers
def test_every_call_works_behind_a_pooler(pooler: PgBouncer, open_store: Callable[[str], TokenStore]) -> None:
    """More often than psycopg runs a statement before it would prepare it."""
    with closing(open_store(pooler.url(new_name(), partitions="2"))) as store:
        for _ in range(10):
            store.provision()
            store.check_schema()
        numbers = itertools.count(1)
        for _ in range(10):
            for count in (1, 2, 5):
                records = [a_record(next(numbers)) for _ in range(count)]
                events = [an_event(record_number(record.token)) for record in records]
                assert store.insert(records, events) == []
                assert store.insert(records[-1:], events[-1:]) == [records[-1].token]
                changed = [replaced(record) for record in records]
                assert store.replace(changed, []) == []
                assert store.replace(changed, []) == [record.token for record in changed]
                assert sorted(store.get([record.token for record in records])) == sorted(changed)
                assert store.by_reference(records[0].reference) == changed[0]
            assert store.put_meta("a", b"b") == store.put_meta("a", b"c") == b"b"
            assert store.find([a_record(1).pan_fingerprint, a_record(2).pan_fingerprint])
        assert len(store.scan()) == 80
        assert len(store.events(stream=an_event(1).stream)) == 80
        assert store.streams() == [an_event(1).stream]
        assert store.latest_checkpoints(limit=1)


def record_number(token: str) -> int:
    return int(token[-6:])


def test_a_call_is_one_round_trip_and_leaves_no_prepared_statement(pooler: PgBouncer, tmp_path: Path) -> None:
    """From the first call on: the statement is parsed, filled and executed in one go, without a name."""
    with closing(PostgresTokenStore(pooler.url(new_name()))) as store:
        store.provision()
        store.check_schema()
        (pooled,) = store._pool_here()._open
        calls: list[Callable[[], object]] = [
            lambda: store.insert([a_record(1)], [an_event(1)]),
            lambda: store.get([a_record(1).token]),
            lambda: store.replace([replaced(a_record(1))], [an_event(2)]),
            lambda: store.append([an_event(3)]),
        ]
        for call in calls:
            lines = test_postgres_faults.messages(pooled.connection, tmp_path / "trace", call)
            sent = [line[2] for line in lines if line[0] == "F"]
            assert sent == ["Parse", "Bind", "Describe", "Execute", "Sync"]
        with pooler.raw() as other:
            names = "SELECT name FROM pg_prepared_statements WHERE name LIKE 'tokenvault%'"
            assert other.execute(names).fetchall() == []


def test_limits_hold_for_threads_behind_a_pooler(pooler: PgBouncer, local_keys: KeyStore) -> None:
    with closing(open_token_store(pooler.url(new_name()))) as store:
        faces.provision(local_keys, store)
        vault = open_vault(local_keys, store)
        token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=20),))).token

        def redeem(number: int) -> bool:
            try:
                return vault.detokenize(token, use(number)).pan.reveal() == VISA
            except tv.DomainRestrictionError:
                return False

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(redeem, range(40))) == 20


# Two schemas.


def planted(names: Sequence[bytes]) -> list[bytes]:
    return [b'PREPARE "' + name + b'" AS SELECT 1' for name in names]


STATEMENTS = [statement for statement in vars(sql).values() if isinstance(statement, Statement)] + [
    *sql.INSERT.values(), *sql.REPLACE_ONE.values(), *sql.APPEND.values(), *sql.INSERT_WITH_DOCUMENT.values(),
]  # fmt: skip


@pytest.mark.parametrize("taken_for_the_server", [False, True], ids=["seen", "not seen"])
@pytest.mark.parametrize("connections", ["1", "4"])
@openers
def test_two_schemas_of_one_role_never_write_into_each_other(
    postgres_server: PostgresServer, open_store: Callable[[str], TokenStore], connections: str,
    taken_for_the_server: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nor does it matter what names other clients have prepared statements under: counted, or by the text.

    A pooler that passes on the number of the server's process would not be seen: then statements are prepared, the
    server does not know them or has them already (26000, 42P05), and nothing is written twice.
    """
    if taken_for_the_server:
        monkeypatch.setattr(session, "is_own", lambda row, options: True)
    settings = {"pool_mode": "transaction", "default_pool_size": connections}
    schemas = [new_name(), new_name()]
    with running(postgres_server, **settings) as pooler, ExitStack() as stack:
        stores = [stack.enter_context(closing(open_store(pooler.url(schema)))) for schema in schemas]
        for store in stores:
            store.provision()
        names = [b"tokenvault_%d" % n for n in range(1, 30)]
        if connections == "1":  # of several, some would answer to the name and not be told from the right one
            names += [
                prepared_name(in_schema(statement.sql, schema))
                for statement in STATEMENTS
                for schema in schemas
            ]
        plant_everywhere(pooler, int(connections), planted(sorted(set(names))))

        def write(number: int) -> None:
            store = stores[number % 2]
            records = [a_record(10 * number + n) for n in range(1 + number % 3)]
            events = [an_event(n + 1, stream=number + 1) for n in range(len(records))]
            assert store.insert(records, events) == []
            assert store.replace([replaced(record) for record in records], []) == []

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(write, range(60)))
        for mine, store in enumerate(stores):
            numbers = [number for number in range(60) if number % 2 == mine]
            assert store.scan() == sorted(
                replaced(a_record(10 * number + n)) for number in numbers for n in range(1 + number % 3)
            )
            assert store.streams() == sorted(an_event(1, stream=number + 1).stream for number in numbers)


@pytest.mark.parametrize("spoil", ["DEALLOCATE ALL", 'PREPARE "{name}" AS SELECT 1'], ids=["26000", "42P05"])
def test_a_statement_that_is_not_prepared_as_thought_is_executed_once(postgres_url: str, spoil: str) -> None:
    """In a session of the store's own too; each call after that is one round trip without prepared statements."""
    with closing(PostgresTokenStore(postgres_url)) as store:
        store.provision()
        if spoil.startswith("DEALLOCATE"):
            assert store.insert([a_record(1)], [an_event(1)]) == []
        store.check_schema()
        (pooled,) = store._pool_here()._open
        text = in_schema(sql.INSERT[1].sql, test_postgres_faults.schema_of(postgres_url))
        pooled.connection.pgconn.exec_(spoil.format(name=prepared_name(text).decode()).encode())
        for number in (2, 3):
            assert store.insert([a_record(number)], [an_event(number)]) == []
        assert store.insert([a_record(4), a_record(5)], [an_event(4)]) == []
        assert store.insert([a_record(5)], [an_event(9)]) == [a_record(5).token]
        assert {an_event(2), an_event(3), an_event(4)} <= set(store.events(stream=an_event(1).stream))
        assert {a_record(n).token for n in (2, 3, 4, 5)} <= {record.token for record in store.scan()}
        assert store._pool_here()._open == {pooled}


def plant_everywhere(pooler: PgBouncer, connections: int, statements: Sequence[bytes]) -> None:
    """Prepare statements on every connection of a pool: transactions that are open at once have one each."""
    with ExitStack() as stack:
        clients = [stack.enter_context(pooler.raw()) for _ in range(connections)]
        for client in clients:
            client.execute("BEGIN")
        for client, statement in itertools.product(clients, statements):
            client.execute(statement)
        for client in clients:
            client.execute("COMMIT")


# Settings.


def test_settings_are_not_left_to_other_clients(postgres_server: PostgresServer) -> None:
    """A SET would stay with the server's connection; without a pooler it is the store's own."""
    names = ("enable_seqscan", "jit", "plan_cache_mode", "statement_timeout")
    shown = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    with (
        running(postgres_server, pool_mode="transaction", default_pool_size="1") as pooler,
        pooler.raw() as other,
        closing(PostgresTokenStore(pooler.url(new_name()))) as store,
    ):
        before = other.execute(shown.encode()).fetchall()
        store.provision()
        store.insert([a_record(1)], [an_event(1)])
        assert other.execute(shown.encode()).fetchall() == before
    with closing(PostgresTokenStore(postgres_server.new_url())) as store:
        store.provision()
        store.check_schema()
        (pooled,) = store._pool_here()._open
        assert isinstance(pooled.connection, psycopg.Connection)
        expected = [("off", "off", "force_generic_plan", "20s")]
        assert pooled.connection.execute(shown.encode()).fetchall() == expected


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database, whose settings nobody else has."""
    name = new_name()
    with postgres_server.raw() as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        yield name
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@openers
@pytest.mark.parametrize("mode", ["session", "transaction", None])
def test_a_server_that_acknowledges_before_it_writes_is_refused(
    postgres_server: PostgresServer, database: str, open_store: Callable[[str], TokenStore], mode: str | None
) -> None:
    """Unless the store's own address wants it so, which a pooler would not pass on."""
    change_setting(postgres_server, database, "synchronous_commit = off")
    schema = new_name()
    direct = postgres_server.url(database=database, schema=schema)
    with closing(open_store(direct + "&options=-c%20synchronous_commit%3Doff")) as store:
        store.provision()
        assert store.insert([a_record(1)], []) == []
    with running(postgres_server, pool_mode=mode or "session") as pooler:
        url = pooler.url(schema, database=database) if mode else direct
        with closing(open_store(url)) as store:
            for call in (store.check_schema, store.provision):
                with pytest.raises(ConfigurationError, match="synchronous_commit is off"):
                    call()
            with pytest.raises(TokenStoreError, match="synchronous_commit is off"):
                store.insert([a_record(2)], [])
    change_setting(postgres_server, database, "synchronous_commit = on")
    with closing(open_store(direct)) as store:
        assert store.scan() == [a_record(1)]


@openers
def test_another_isolation_is_refused_where_it_can_not_be_set(
    postgres_server: PostgresServer, database: str, open_store: Callable[[str], TokenStore]
) -> None:
    change_setting(postgres_server, database, "default_transaction_isolation = 'serializable'")
    schema = new_name()
    with closing(open_store(postgres_server.url(database=database, schema=schema))) as store:
        store.provision()
        assert store.insert([a_record(1)], []) == []
    with (
        running(postgres_server, pool_mode="transaction") as pooler,
        closing(open_store(pooler.url(schema, database=database))) as store,
    ):
        with pytest.raises(ConfigurationError, match="default_transaction_isolation is not"):
            store.check_schema()
        with pytest.raises(TokenStoreError, match="default_transaction_isolation is not"):
            store.insert([a_record(2)], [])


def change_setting(server: PostgresServer, database: str, setting: str) -> None:
    with server.raw() as connection:
        connection.execute(f"ALTER DATABASE {database} SET {setting}".encode())


# Under load.


@pytest.mark.unmeasured
@openers
@pytest.mark.parametrize("trouble", ["paused", "restarted"])
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_load_goes_on_after_a_pooler_was(
    postgres_server: PostgresServer, open_store: Callable[[str], TokenStore], mode: str, trouble: str
) -> None:
    """What eight threads wrote and were told so is there, of the rest whole writes or nothing; a pause loses none."""
    with (
        # A login that a pause interrupts is tried again only after server_login_retry, 15 seconds by itself.
        running(postgres_server, server_login_retry="0.1", **MODES[mode]) as pooler,
        closing(open_store(pooler.url(new_name()))) as store,
    ):
        store.provision()
        load = Load(store)
        with ThreadPoolExecutor(load.THREADS) as pool:
            done = [pool.submit(load.write, thread) for thread in range(load.THREADS)]
            try:
                for _ in range(2):
                    load.everybody_writes()
                    if trouble == "restarted":
                        pooler.stop()
                        time.sleep(0.05)
                        pooler.start()
                    elif (
                        mode == "transaction"
                    ):  # by session, PAUSE waits until the store closes its connections
                        pooler.tell("PAUSE")
                        time.sleep(0.1)
                        pooler.tell("RESUME")
                    else:
                        pooler.tell("SUSPEND")
                        time.sleep(0.1)
                        pooler.tell("RESUME")
                load.everybody_writes()
            finally:
                load.stop.set()
            for future in done:
                future.result()
        assert any(load.unknown) == (trouble == "restarted")
        load.check()


class Load:
    """Threads that write records with their events, one to three at a time, and note what they were told."""

    THREADS = 8

    def __init__(self, store: TokenStore) -> None:
        self.store = store
        self.stop = threading.Event()
        self.acknowledged: list[set[int]] = [set() for _ in range(self.THREADS)]
        self.unknown: list[set[int]] = [set() for _ in range(self.THREADS)]

    def write(self, thread: int) -> None:
        for number in itertools.count(1):
            if self.stop.is_set():
                return
            try:
                self.store.insert(self._records(thread, number), [an_event(number, stream=thread + 1)])
                self.acknowledged[thread].add(number)
            except TokenStoreError:
                self.unknown[thread].add(number)
                time.sleep(0.002)

    def everybody_writes(self) -> None:
        seen = [len(done) for done in self.acknowledged]
        deadline = time.monotonic() + 30
        while any(len(now) < then + 10 for now, then in zip(self.acknowledged, seen, strict=True)):
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def check(self) -> None:
        expected = set()
        for thread in range(self.THREADS):
            events = self.store.events(stream=an_event(1, stream=thread + 1).stream)
            numbers = {event.number for event in events}
            assert self.acknowledged[thread] <= numbers <= self.acknowledged[thread] | self.unknown[thread]
            expected |= {record.token for number in numbers for record in self._records(thread, number)}
        assert {record.token for record in self.store.scan()} == expected

    @staticmethod
    def _records(thread: int, number: int) -> list[SealedRecord]:
        return [a_record(100_000 * (thread + 1) + 3 * number + n) for n in range(1 + number % 3)]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("pooler", ["session", "transaction"], indirect=True)
def test_a_cancelled_write_is_whole_or_not_done_behind_a_pooler(pooler: PgBouncer, count: int) -> None:
    """The pooler takes the request to cancel to the connection that runs the statement."""
    test_postgres_faults.test_a_cancelled_write_is_whole_or_not_done(pooler.url(new_name()), True, count)


@openers
@pytest.mark.parametrize("records", [1, 3])
def test_a_call_is_bounded_where_the_server_is_not(
    postgres_server: PostgresServer, open_store: Callable[[str], TokenStore], records: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A statement that waits for a lock is given up by its caller, and the next one goes over another connection."""
    monkeypatch.setattr(address, "ANSWER_MARGIN_SECONDS", 0.5 - address.STATEMENT_SECONDS)
    schema = new_name()
    with (
        running(postgres_server, pool_mode="transaction") as pooler,
        closing(open_store(pooler.url(schema))) as store,
        postgres_server.raw() as holder,
    ):
        store.provision()
        with holder.transaction():
            holder.execute(f"LOCK TABLE {schema}.tokens".encode())
            with pytest.raises(TokenStoreError, match="no answer came"):
                store.insert([a_record(n) for n in range(records)], [an_event(1)])
        assert store.insert([a_record(9)], [an_event(9)]) == []


# What went wrong.


@openers
@pytest.mark.parametrize(
    ("settings", "address", "advice"),
    [
        ({}, {"password": "sesame"}, "the password.*user, password and database.*FATAL"),
        ({}, {"user": "nobody"}, "no such user.*FATAL"),
        ({}, {"user": "stranger"}, "no such user.*FATAL"),
        ({}, {"database": "missing"}, "no such database.*FATAL"),
        ({"query_wait_timeout": "1"}, {"database": "nowhere"}, "query_wait_timeout.*FATAL"),
        ({}, {"options": "-c jit=off"}, "PGOPTIONS.*ignore_startup_parameters.*FATAL"),
        ({"max_client_conn": "0"}, {}, "too many connections: PgBouncer.*FATAL"),
        ({"pool_mode": "statement"}, {}, "pool_mode is 'statement'.*08P01.*FATAL"),
    ],
    ids=lambda value: " ".join(map("=".join, value.items())) if isinstance(value, dict) else "",
)
def test_a_refusal_of_the_pooler_is_told_apart(
    postgres_server: PostgresServer, open_store: Callable[[str], TokenStore], settings: dict[str, str],
    address: dict[str, str], advice: str,
) -> None:  # fmt: skip
    with (
        running(postgres_server, **settings) as pooler,
        closing(open_store(pooler.url(new_name(), **address))) as store,
        pytest.raises(TokenStoreError, match=advice) as caught,
    ):
        store.provision()
    assert caught.value.__context__ is None
    assert "sesame" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_pause_longer_than_the_pooler_lets_wait_is_told(postgres_server: PostgresServer) -> None:
    """A call on a connection that is open; nothing was written, and the next one works after the pause."""
    with (
        running(postgres_server, pool_mode="transaction", query_wait_timeout="1") as pooler,
        closing(open_token_store(pooler.url(new_name()))) as store,
    ):
        store.provision()
        store.check_schema()
        pooler.tell("PAUSE")
        with pytest.raises(TokenStoreError, match=r"query_wait_timeout.*nothing was written.*08P01.*FATAL"):
            store.insert([a_record(1)], [an_event(1)])
        pooler.tell("RESUME")
        assert store.insert([a_record(1)], [an_event(1)]) == []


def test_too_many_connections_are_told(postgres_server: PostgresServer) -> None:
    role = new_name()
    with postgres_server.raw() as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 0 PASSWORD '{PASSWORD}'".encode())
    with (
        closing(open_token_store(postgres_server.url(user=role))) as store,
        pytest.raises(TokenStoreError, match=r"too many connections: PostgreSQL.*53300.*FATAL"),
    ):
        store.scan()


@pytest.mark.parametrize(
    ("said", "told", "code"),
    [
        ("FATAL:  sorry, too many clients already", "connections.*53300, severity FATAL", "TOO_MANY_CONNECTIONS"),
        ("FATAL:  the database system is starting up", "is starting.*57P03", "STARTING"),
        ('FATAL:  role "alice" is not permitted to log in', "may not log in.*28000", "USER_UNKNOWN"),
        ('FATAL:  no pg_hba.conf entry for host "h", user "alice", no encryption', "sslmode=verify-full", "TLS"),
        ('FATAL:  no pg_hba.conf entry for host "h", user "alice", SSL encryption', "has no line", "REFUSED"),
        ('FATAL:  permission denied for database "alice"', "CONNECT.*42501", "PERMISSION"),
        ("FATAL:  SSL required", "the pooler demands TLS", "TLS"),
        ("FATAL:  no such database: alice", r"section \[databases\]", "DATABASE_UNKNOWN"),
        ("FATAL:  server login has been failing, try again later (server_login_retry)", "can not log in", "POOLER"),
        ("server does not support SSL, but SSL was required", "has no TLS", "TLS"),
        ("SSL error: certificate verify failed", "TLS failed", "TLS"),
        ('server certificate for "alice" does not match host name "h"', "TLS failed", "TLS"),
        ('could not translate host name "alice" to address: no', "host .* has no address", "HOST_UNKNOWN"),
        ("Connection refused", "can not be reached", "UNREACHABLE"),
        ("FATAL:  alice", r"refused the connection.*\(severity FATAL\)", "REFUSED"),
        ("FATALE:  alice", r"refused the connection[^(]*$", "REFUSED"),
    ],
)  # fmt: skip
def test_a_refused_connection_is_explained_by_its_cause(said: str, told: str, code: str) -> None:
    """In words of our own: those of libpq name hosts and users."""
    text = f'connection failed: connection to server at "h", port 5432 failed: {said}'
    error = unconnected(psycopg.OperationalError(text))
    explained = str(error)
    assert error.code == f"STORE_{code}"
    assert re.search(told, explained), explained
    assert "alice" not in explained
