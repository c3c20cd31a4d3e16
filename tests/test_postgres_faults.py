"""The PostgreSQL token stores through races, restarts, forks, cancellations and settings that do not fit."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from tests.cancelling import CancelledAt
from tests.faces import open_on_a_loop
from tests.postgres_server import PASSWORD, PostgresServer, new_name
from tokenvault.errors import ConfigurationError, IntegrityError, InvalidInputError, TokenStoreError
from tokenvault.stores import open_async_token_store, open_token_store
from tokenvault.stores.port import AsyncTokenStore, SealedEvent, SealedRecord, TokenStore
from tokenvault.stores.postgres import address, sql
from tokenvault.stores.postgres.address import CONNECTIONS
from tokenvault.stores.postgres.statements import RECORD, Statement, in_schema
from tokenvault.stores.postgres.store import AsyncPostgresTokenStore, PostgresTokenStore
from tokenvault.testing import a_record, an_event
from tokenvault.testing.token_store_harness import race, replaced

T = TypeVar("T")

openers = pytest.mark.parametrize("open_store", [open_token_store, open_on_a_loop], ids=["threads", "loop"])


def schema_of(url: str) -> str:
    return url.rpartition("schema=")[2].partition("&")[0]


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresTokenStore]:
    with closing(PostgresTokenStore(postgres_url)) as store:
        store.provision()
        yield store


@pytest.fixture
def tables(postgres_url: str) -> str:
    """The schema's name."""
    return schema_of(postgres_url)


# Schema, roles, addresses.


def test_a_database_that_is_not_provisioned_is_refused_until_it_is(postgres_url: str) -> None:
    with closing(PostgresTokenStore(postgres_url)) as store:
        with pytest.raises(ConfigurationError, match="provision"):
            store.check_schema()
        with pytest.raises(TokenStoreError, match="provision"):
            store.get([a_record(1).token])
        store.provision()
        store.check_schema()
        assert store.get([a_record(1).token]) == []


@openers
@pytest.mark.parametrize(
    ("version", "text"),
    [
        (5, "has schema version 5, .* know version 5; this one knows 4: install the release that wrote it"),
        (2, "has schema version 2, of an older release of tokenvault; this one upgrades none before 3"),
        (3, "has schema version 3, .* needs version 4: run tokenvault schema upgrade"),
    ],
)
def test_another_schema_is_refused(
    postgres_server: PostgresServer,
    postgres_url: str,
    open_store: Callable[[str], TokenStore],
    version: int,
    text: str,
) -> None:
    with closing(open_store(postgres_url)) as store:
        store.provision()
    with postgres_server.raw() as connection:
        connection.execute(
            f"UPDATE {schema_of(postgres_url)}.schema_version SET version = {version}, reached = {version}".encode()
        )
    with closing(open_store(postgres_url)) as store:
        for call in (store.check_schema, store.provision):
            with pytest.raises(ConfigurationError, match=text):
                call()
        with pytest.raises(TokenStoreError, match=text):
            store.insert([a_record(1)], [])


def test_a_schema_dropped_under_an_open_store_is_an_error_that_says_so(
    postgres_server: PostgresServer, store: PostgresTokenStore, tables: str
) -> None:
    store.check_schema()
    with postgres_server.raw() as connection:
        connection.execute(f"DROP SCHEMA {tables} CASCADE".encode())
    with pytest.raises(ConfigurationError, match="provision"):
        store.check_schema()
    with pytest.raises(TokenStoreError, match="provision"):
        store.insert([a_record(1)], [])
    store.provision()
    assert store.insert([a_record(1)], []) == []


@openers
def test_another_programs_tables_stay_as_they_are(
    postgres_server: PostgresServer, postgres_url: str, open_store: Callable[[str], TokenStore]
) -> None:
    schema = schema_of(postgres_url)
    with postgres_server.raw() as connection:
        connection.execute(f"CREATE SCHEMA {schema} CREATE TABLE events (x int)".encode())
        with closing(open_store(postgres_url)) as store:
            with pytest.raises(ConfigurationError, match="something else"):
                store.provision()
            with pytest.raises(ConfigurationError):
                store.check_schema()
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,))
        assert tables.fetchall() == [("events",)]


def test_tokens_are_spread_over_as_many_tables_as_asked_for_at_first(postgres_server: PostgresServer) -> None:
    """Tokens are spread over as many tables as asked for when the schema is made; later, the number says nothing."""
    url = postgres_server.new_url(partitions="4")
    with closing(open_token_store(url)) as store:
        store.provision()
        store.insert([a_record(n) for n in range(200)], [])
    with closing(PostgresTokenStore(url, partitions=7)) as other:
        other.provision()
        assert len(other.scan()) == 200
    with postgres_server.raw() as connection:
        for n in range(4):
            (count,) = connection.execute(
                f"SELECT count(*) FROM {schema_of(url)}.tokens_{n}".encode()
            ).fetchone() or (0,)
            assert 0 < count < 200


def test_a_role_with_the_rights_stated_runs_and_one_without_is_told(postgres_server: PostgresServer) -> None:
    """The owner of a database provisions; a role with the rights stated runs; one without is told."""
    owner, runner, stranger, database = (new_name() for _ in range(4))
    with postgres_server.raw() as connection:
        for role in (owner, runner, stranger):
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'".encode())
        connection.execute(f"CREATE DATABASE {database} OWNER {owner}".encode())

    def opened(role: str) -> closing[TokenStore]:
        return closing(open_token_store(postgres_server.url(user=role, database=database)))

    with opened(stranger) as store, pytest.raises(TokenStoreError, match="grant"):
        store.provision()
    with opened(owner) as store:
        store.provision()
    with postgres_server.raw(database) as connection:
        connection.execute(f"GRANT USAGE ON SCHEMA tokenvault TO {runner}".encode())
        connection.execute(
            f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA tokenvault TO {runner}".encode()
        )
    with opened(runner) as store:
        store.check_schema()
        assert store.insert([a_record(1)], [an_event(1)]) == []
        assert store.insert([a_record(2), a_record(3)], [an_event(2), an_event(3)]) == []
        assert store.replace([replaced(a_record(1))], [an_event(4)]) == []
        assert store.replace([replaced(a_record(2)), replaced(a_record(3))], []) == []
        store.append([an_event(5)])
        assert store.put_meta("a", b"b") == b"b"
        store.provision()
    with opened(stranger) as store:
        for call in (store.check_schema, store.scan):
            with pytest.raises(TokenStoreError, match="grant"):
                call()


@openers
@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ((PASSWORD.replace(" ", "%20"), "wrong"), "the password.* user, password and database.*28P01.*FATAL"),
        (("postgres:", "nobody-here:"), "no such user: look at user, password and database.*28P01.*FATAL"),
        (
            ("@/postgres", "@/nothing-here"),
            "no such database: look at user, password and database.*3D000.*FATAL",
        ),
        (
            ("?host=", "?host=nothing-here.invalid&application_name="),
            "can not be reached: the host .* has no address",
        ),
        (("/tokenvault-pg-", "/nothing-here-"), "can not be reached"),
        (("?", "?port=1&"), "can not be reached"),
    ],
)
def test_the_first_call_over_an_address_that_leads_nowhere_says_what_is_wrong(
    postgres_url: str, open_store: Callable[[str], TokenStore], change: tuple[str, str], advice: str
) -> None:
    """The first call says what is wrong, and neither who nor where."""
    url = postgres_url.replace("%2F", "/").replace(*change)
    with closing(open_store(url)) as store:
        for call in (store.check_schema, store.provision, store.scan):
            with pytest.raises(TokenStoreError, match=advice) as caught:
                call()
            assert caught.value.__context__ is None
            assert "wrong" not in str(caught.value)
            assert "here" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("postgresql:", "percent-encode"),
        ("postgresql:/x", "percent-encode"),
        ("postgresql://h/d?nonsense=1", "percent-encode"),
        ("postgresql://h:port/d%", "percent-encode"),
        ("postgresql://h/d?schema=Upper", "schema"),
        ("postgresql://h/d?schema=a%22b", "schema"),
        ("postgresql://h/d?schema=", "schema"),
        ("postgresql://h/d?partitions=x", "partitions"),
        ("postgresql://h/d?partitions=1025", "partitions"),
        ("postgresql://h/d?partitions=-1", "partitions"),
        ("postgresql://\ud800/d", "percent-encode"),
        ("postgresql://\0/d", "percent-encode"),
    ],
)
def test_an_address_of_another_form_is_refused(url: str, advice: str) -> None:
    for opener in (open_token_store, open_async_token_store):
        with pytest.raises(InvalidInputError, match=advice) as caught:
            opener(url)
        assert caught.value.__context__ is None
        assert url.removeprefix("postgresql:") not in str(caught.value) or len(url) < 15


def test_without_psycopg_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    # Put back afterwards: to import it anew binds another module to the name.
    monkeypatch.setattr("tokenvault.stores.postgres", sys.modules["tokenvault.stores.postgres"])
    for name in [
        name for name in sys.modules if name.startswith("tokenvault.stores.") and "postgres" in name
    ]:
        monkeypatch.delitem(sys.modules, name)
    for opener in (open_token_store, open_async_token_store):
        with pytest.raises(
            ConfigurationError, match=r"pip install 'payment-tokenvault\[postgres\]'"
        ) as caught:
            opener("postgresql://h/d")
        assert caught.value.__context__ is None


def test_a_store_with_coroutines_is_an_async_token_store_to_mypy(postgres_url: str) -> None:
    """A store with coroutines has all that flows await; the assignment is for mypy."""
    store = open_async_token_store(postgres_url)
    awaited: AsyncTokenStore = store
    asyncio.run(awaited.provision())
    asyncio.run(awaited.check_schema())
    asyncio.run(store.close())


# Round trips.


def messages(
    connection: psycopg.BaseConnection[Any], path: Path, call: Callable[[], object]
) -> list[list[str]]:
    """What libpq notes of each message that it sends ("F") and gets ("B") on a connection during a call."""
    with path.open("w+") as file:
        connection.pgconn.trace(file.fileno())
        connection.pgconn.set_trace_flags(psycopg.pq.Trace.SUPPRESS_TIMESTAMPS)
        try:
            call()
        finally:
            connection.pgconn.untrace()
    lines = [line.split("\t") for line in path.read_text(errors="replace").splitlines()]
    return [line for line in lines if len(line) > 2 and line[0] in ("F", "B")]  # SQL and rows go over lines


def test_each_call_is_one_round_trip_but_for_batches_to_insert(
    store: PostgresTokenStore, tmp_path: Path
) -> None:
    """Each call sends once and hears once, but for batches to insert, whatever their size: three to six times.

    To prepare a statement is once more, once.
    """
    numbers = iter(range(1, 10_000))

    def fresh(count: int) -> list[SealedRecord]:
        return [a_record(next(numbers)) for _ in range(count)]

    def insert(count: int) -> None:
        records = fresh(count)
        assert store.insert(records, [an_event(next(numbers)) for _ in records]) == []

    def replace(count: int) -> None:
        records = store.scan(limit=count)
        assert store.replace([replaced(r) for r in records], [an_event(next(numbers)) for _ in records]) == []

    def suspend() -> None:
        (record,) = store.scan(limit=1)
        changed = replaced(record)._replace(status=3 - min(2, record.status))
        assert store.replace([changed], [an_event(next(numbers))]) == []

    insert(3)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "get": (lambda: store.get([a_record(1).token]), 1),
        "get many": (lambda: store.get([a_record(1).token, a_record(2).token]), 1),
        "insert": (lambda: insert(1), 1),
        "insert many": (lambda: insert(50), 6),  # BEGIN, the look for tokens, COPY, the events, the counts, COMMIT
        "insert of one that exists": (
            lambda: store.insert([a_record(1)], [an_event(next(numbers))]), 1
        ),
        "insert of many that exist": (
            lambda: store.insert([a_record(1), *fresh(1)], [an_event(next(numbers))]), 3
        ),
        "replace": (lambda: replace(1), 2),  # and the scan before it
        "replace to another status": (suspend, 3),  # the scan, the usual statement, one that counts
        "replace many": (lambda: replace(3), 2),
        "append": (lambda: store.append([an_event(next(numbers))]), 1),
        "insert with a checkpoint": (
            lambda: store.insert(fresh(1), [an_event(next(numbers)) for _ in range(2)]), 1
        ),
        "append with a checkpoint": (lambda: store.append([an_event(next(numbers)) for _ in range(2)]), 1),
        "append many": (lambda: store.append([an_event(next(numbers)) for _ in range(3)]), 1),
        "put_meta": (lambda: store.put_meta("a", b"b"), 1),
        "find": (lambda: store.find(a_record(1).pan_fingerprint), 1),
    }  # fmt: skip
    (pooled,) = store._pool_here()._open
    prepared: list[str] = []
    for first in (True, False):
        for name, (call, round_trips) in calls.items():
            lines = messages(pooled.connection, tmp_path / "trace", call)
            sent = [line[2] for line in lines if line[0] == "F"]
            heard = [line[2] for line in lines if line[0] == "B"]
            new = [str(line[3:]) for line in lines if line[2] == "Parse" and "tokenvault_" in line[3]]
            assert first or not new, name
            assert sent.count("Sync") + sent.count("Query") == round_trips + len(new), name
            assert heard.count("ReadyForQuery") == round_trips + len(new), name
            assert sent.count("Bind") == sent.count("Execute") == sent.count("Sync") - len(new), name
            prepared += new
    assert len(set(prepared)) == len(prepared) >= 9
    assert store._pool_here().open_count == 1


# Races.


def in_between(server: PostgresServer, sql: str, end: str, call: Callable[[], T]) -> T:
    """What a call returns that waits for another writer's open transaction, which ends then."""
    with server.raw() as writer, server.raw() as watcher, ThreadPoolExecutor(1) as pool:
        writer.execute("BEGIN")
        writer.execute(sql.encode())
        result = pool.submit(call)
        pid = writer.info.backend_pid
        waits = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
        while not watcher.execute(waits, (pid,)).fetchone():
            assert not result.done(), "the call did not wait"
            time.sleep(0.002)
        writer.execute(end.encode())
        return result.result()


def inserting(tables: str, record: SealedRecord) -> str:
    values = f"'{record.token}', '', '', '', '', 1, 1, '', '', '', '', 1, 1"
    columns = ", ".join(RECORD)
    return f"INSERT INTO {tables}.tokens ({columns}) VALUES ({values})"


@openers
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_insert_waits_for_another_insert(
    postgres_server: PostgresServer, postgres_url: str, open_store: Callable[[str], TokenStore], count: int,
    end: str,
) -> None:  # fmt: skip
    """Of a token that is being inserted elsewhere: the outcome decides, and nothing is written in part."""
    tables = schema_of(postgres_url)
    records = [a_record(n) for n in range(count)]
    with closing(open_store(postgres_url)) as store:
        store.provision()
        existed = in_between(
            postgres_server, inserting(tables, records[-1]), end, lambda: store.insert(records, [an_event(1)])
        )
        with postgres_server.raw() as connection:
            rows = connection.execute(f"SELECT count(*) FROM {tables}.tokens".encode()).fetchone()
        events = store.events(stream=an_event(1).stream)
        if end == "COMMIT":
            assert (existed, rows, events) == ([records[-1].token], (1,), [])
        else:
            assert (existed, rows, events) == ([], (count,), [an_event(1)])


@openers
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_replace_waits_for_another_replace(
    postgres_server: PostgresServer, postgres_url: str, open_store: Callable[[str], TokenStore], count: int,
    end: str,
) -> None:  # fmt: skip
    tables = schema_of(postgres_url)
    records = [a_record(n) for n in range(count)]
    update = f"UPDATE {tables}.tokens SET revision = 2 WHERE token = '{records[-1].token}'"
    with closing(open_store(postgres_url)) as store:
        store.provision()
        store.insert(records, [])
        moved = in_between(
            postgres_server, update, end, lambda: store.replace([replaced(r) for r in records], [an_event(1)])
        )
        events = store.events(stream=an_event(1).stream)
        changed = [record.body == b"changed" for record in store.scan()]
        if end == "COMMIT":
            assert (moved, events, changed) == ([records[-1].token], [], [False] * count)
        else:
            assert (moved, events, changed) == ([], [an_event(1)], [True] * count)


@openers
def test_put_meta_waits_for_another(
    postgres_server: PostgresServer, postgres_url: str, open_store: Callable[[str], TokenStore]
) -> None:
    insert = f"INSERT INTO {schema_of(postgres_url)}.meta VALUES ('a', 'theirs')"
    with closing(open_store(postgres_url)) as store:
        store.provision()
        assert (
            in_between(postgres_server, insert, "COMMIT", lambda: store.put_meta("a", b"ours")) == b"theirs"
        )


def test_replace_sees_a_row_that_moved_after_the_statement_began(
    postgres_server: PostgresServer, store: PostgresTokenStore, tables: str
) -> None:
    """A batch that waits for a row sees it as it is then: a revision that fits only now is replaced."""
    store.insert([a_record(1), a_record(2)], [])
    update = f"UPDATE {tables}.tokens SET revision = 2 WHERE token = '{a_record(2).token}'"
    batch = [replaced(a_record(1)), a_record(2, revision=3)]
    assert in_between(postgres_server, update, "COMMIT", lambda: store.replace(batch, [])) == []
    assert store.scan() == batch


@openers
def test_batches_in_opposite_orders_do_not_deadlock(
    postgres_url: str, open_store: Callable[[str], TokenStore]
) -> None:
    """Eight threads write the same fifty records in orders of their own: nobody fails, one wins each round."""
    records = [a_record(n) for n in range(50)]
    with closing(open_store(postgres_url)) as store:
        store.provision()

        def work(n: int) -> int:
            order = records if n % 2 else records[::-1]
            won = 0
            for revision in range(1, 9):
                batch = [a_record(int(r.token[-4:]), revision=revision, body=bytes([n])) for r in order]
                write = store.insert if revision == 1 else store.replace
                refused = write(batch, [an_event(revision, stream=n + 1)])
                won += not refused
                assert not refused or revision == 1 or len(refused) == 50
                while store.get([records[0].token])[0].revision < revision:
                    time.sleep(0.001)
            return won

        assert sum(race(work)) == 8
        assert len({record.body for record in store.scan()}) == 1
        assert {record.revision for record in store.scan()} == {8}
        assert len(store.streams()) >= 1


# What comes out.


def test_neither_errors_nor_the_server_s_log_tell_of_tokens(
    postgres_server: PostgresServer, store: PostgresTokenStore
) -> None:
    """Neither errors nor the server's log carry what rows hold, where tokens exist or move and events exist."""
    secrets = [a_record(n, token=f"888812{n:010d}") for n in range(2)]
    store.insert(secrets, [an_event(1)])
    for records in (secrets, secrets[:1]):
        assert store.insert(records, [an_event(1)])
        assert store.replace([a_record(0, token=r.token, revision=9) for r in records], [an_event(1)])
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.insert([a_record(5, token="8888120000000005")], [an_event(1)]),
        lambda: store.insert([a_record(n, token=f"8888120000000{n:03d}") for n in (6, 7)], [an_event(1)]),
        lambda: store.replace([replaced(secrets[0])], [an_event(1)]),
        lambda: store.append([an_event(1)]),
    )
    for call in calls:
        with pytest.raises(TokenStoreError, match="exists already") as caught:
            call()
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert "888812" not in repr(caught.value)
    assert "888812" not in postgres_server.log()
    assert "duplicate key" in postgres_server.log()


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        ("reference", "text", "'text'"),
        ("pan_fingerprint", "bytea", "NULL"),
        ("requestor", "bytea", "''"),
        ("requestor", "text", "'1'"),
        ("program", "text", "'p'"),
        ("program", "bytea", "'\\xff'"),
        ("program", "bytea", "NULL"),
        ("revision", "text", "'one'"),
        ("revision", "bigint", "0"),
        ("key_version", "numeric", "2.5"),
        ("key_version", "timestamp", "'infinity'"),
        ("body", "bytea", "repeat('x', 16385)::bytea"),
        ("seal", "bytea", "''"),
    ],
)
def test_columns_edited_by_hand(
    postgres_server: PostgresServer,
    store: PostgresTokenStore,
    tables: str,
    column: str,
    kind: str,
    value: str,
) -> None:
    store.insert([a_record(1)], [])
    with postgres_server.raw() as connection:
        connection.execute(
            f"ALTER TABLE {tables}.tokens ALTER {column} DROP NOT NULL,"
            f" ALTER {column} TYPE {kind} USING {value}".encode()
        )
    reads: list[Callable[[], object]] = [lambda: store.get([a_record(1).token]), store.scan]
    for read in reads:
        with pytest.raises(IntegrityError) as caught:
            read()
        assert caught.value.__context__ is None


@openers
def test_a_statement_that_waits_too_long_is_ended_and_the_store_goes_on(
    postgres_server: PostgresServer, open_store: Callable[[str], TokenStore]
) -> None:
    """A statement that waits too long is ended by the server, and the store goes on."""
    url = postgres_server.new_url(options="-c statement_timeout=500")
    with closing(open_store(url)) as store:
        store.provision()
        with postgres_server.raw() as writer, writer.transaction():
            writer.execute(inserting(schema_of(url), a_record(1)).encode())
            with pytest.raises(TokenStoreError, match="took longer"):
                store.insert([a_record(1)], [an_event(1)])
            assert store.insert([a_record(2)], [an_event(1)]) == []


@pytest.mark.parametrize("events", [[], [an_event(1)]], ids=["batch", "single"])
@openers
def test_a_server_that_stands_still_is_given_up_and_asked_anew(
    postgres_server: PostgresServer, postgres_url: str, open_store: Callable[[str], TokenStore],
    events: list[SealedEvent], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A server that no longer answers at all is given up, and the next call goes over another connection."""
    monkeypatch.setattr(address, "ANSWER_MARGIN_SECONDS", 1.0 - address.STATEMENT_SECONDS)
    with closing(open_store(postgres_url)) as store, postgres_server.raw() as watcher:
        store.provision()
        store.scan()
        pids = watcher.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'tokenvault'"
        ).fetchall()
        for (pid,) in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(TokenStoreError, match="no answer"):
                store.insert([a_record(1)], events)
            assert store.insert([a_record(2)], [an_event(2)]) == []
        finally:
            for (pid,) in pids:
                os.kill(pid, signal.SIGCONT)


def test_look_ups_use_their_index(
    postgres_server: PostgresServer, store: PostgresTokenStore, tables: str
) -> None:
    store.insert([a_record(n) for n in range(1000)], [an_event(n + 1) for n in range(1000)])
    token, sixteen = a_record(1).token, b"a" * 16
    none = (None, None, "", 10)

    def plan(statement: Statement, *values: object) -> str:
        explain = b"EXPLAIN " + in_schema(statement.sql, tables)
        values_and_kinds = statement.packed(values), statement.types, statement.formats
        lines = connection.pgconn.exec_params(explain, *values_and_kinds)
        return "\n".join(str(lines.get_value(line, 0)) for line in range(lines.ntuples))

    expected: list[tuple[str, Statement, tuple[object, ...]]] = [
        ("tokens_pkey", sql.GET_ONE, (token,)),
        ("tokens_pkey", sql.SCAN, (token, 10)),
        ("tokens_pkey", sql.SCAN_KEY_VERSION, (token, 10, 1)),
        ("tokens_by_pan_fingerprint", sql.FIND_ONE, (sixteen, *none)),
        ("tokens_by_pan_fingerprint", sql.FIND_ONE, (sixteen, "1" * 11, "p", "", 10)),
        ("tokens_by_reference", sql.BY_REFERENCE, (sixteen,)),
        ("events_pkey", sql.EVENTS_OF_STREAM, (sixteen, 1, 10)),
        ("events_pkey", sql.STREAMS, ()),
        ("tokens_by_group", sql.LIST, ("4" * 11, "p", 1, -1, "", 10)),
        ("token_counts_pkey", sql.COUNT, ("4" * 11, "p", 1)),
        ("tokens_by_group", sql.GROUPS, ()),
        ("tokens_by_customer", sql.FIND_CUSTOMER, ("c", "", 10)),
        ("event_index_pkey", sql.EVENTS_ABOUT, (sixteen, sixteen, sixteen, 1, 10)),
    ]
    with postgres_server.raw() as connection:
        connection.execute("ANALYZE")
        connection.execute("SET enable_seqscan = off")
        connection.execute("SET plan_cache_mode = force_generic_plan")
        for index, statement, values in expected:
            assert index in plan(statement, *values)
            assert "Sort" not in plan(statement, *values)
        # Those found are sorted then.
        assert "tokens_pkey" in plan(sql.GET_MANY, [token, token])
        assert "tokens_by_last4_key" in plan(sql.FIND_LAST4, [sixteen], "", 10)
        for statement, name in ((sql.USE_OF_TOKEN, token), (sql.USE_OF_REFERENCE, sixteen)):
            found = plan(statement, name, [sixteen], 10)
            assert "event_index_pkey" in found
            assert "events_pkey" in found
        assert "event_index_pkey" in plan(sql.USES, [sixteen], [sixteen], 10)
        assert "tokens_by_pan_fingerprint" in plan(sql.FIND_MANY, [sixteen, b"b" * 16], *none)


# Threads, loops and forks.


def test_connections_are_bounded(store: PostgresTokenStore) -> None:
    with ThreadPoolExecutor(2 * CONNECTIONS) as pool:
        assert list(pool.map(lambda _: store.scan(), range(8 * CONNECTIONS))) == [[]] * 8 * CONNECTIONS
    assert 1 <= store._pool_here().open_count <= CONNECTIONS
    store.close()
    assert store._pool_here().open_count == 0


def test_connections_of_tasks_are_bounded(postgres_url: str) -> None:
    async def work() -> None:
        store = AsyncPostgresTokenStore(postgres_url)
        await store.provision()
        await asyncio.gather(*(store.scan() for _ in range(4 * CONNECTIONS)))
        pool = store._pool_here()
        assert 1 <= pool.open_count <= CONNECTIONS
        await store.close()
        assert pool.open_count == 0

    asyncio.run(work())


def test_a_store_goes_on_in_the_next_loop_once_the_former_is_closed(postgres_url: str) -> None:
    """A store goes on in the next loop once the former is closed; two loops at once are refused."""
    store = AsyncPostgresTokenStore(postgres_url)
    asyncio.run(store.provision())
    asyncio.run(store.append([an_event(1)]))

    async def elsewhere() -> list[bytes]:
        streams = await store.streams()
        with pytest.raises(TokenStoreError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, store.streams())
        return streams

    assert asyncio.run(elsewhere()) == [an_event(1).stream]
    asyncio.run(store.close())


def in_child(work: Callable[[], None], fork: Callable[[], int] = os.fork) -> int:
    """Run the work in a forked child, which ends without Python's clean-up; its pid."""
    pid = fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(50)
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001  the child's exit code tells
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def ended_well(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["python", "c"])
def test_a_child_leaves_its_parents_connections_alone(
    postgres_server: PostgresServer, store: PostgresTokenStore, fork: Callable[[], int]
) -> None:
    """It works over its own, closes its store and collects its garbage; the parent's go on as they were."""
    store.scan()
    (pooled,) = store._pool_here()._open
    before = pooled.connection.info.backend_pid

    def child() -> None:
        assert store.insert([a_record(1)], [an_event(1)]) == []
        (ours,) = store._pool_here()._open
        assert ours.connection.info.backend_pid != before
        store.close()
        gc.collect()

    assert ended_well(in_child(child, fork))
    assert store.get([a_record(1).token]) == [a_record(1)]
    (after,) = store._pool_here()._open
    assert after is pooled
    assert after.connection.info.backend_pid == before


def test_a_child_does_not_keep_its_parents_sockets(store: PostgresTokenStore) -> None:
    """They lead nowhere in the child, so the server sees the parent's end even where a child lives on."""
    store.scan()
    (pooled,) = store._pool_here()._open
    number = pooled.connection.fileno()

    def child() -> None:
        assert os.readlink(f"/proc/self/fd/{number}") == os.devnull

    assert ended_well(in_child(child))


def test_a_child_forked_while_threads_write_works_and_so_do_they(store: PostgresTokenStore) -> None:
    stop = threading.Event()
    written = [0] * 4

    def write(thread: int) -> None:
        while not stop.is_set():
            number = written[thread] + 1
            store.insert([a_record(10_000 * (thread + 1) + number)], [an_event(number, stream=thread + 1)])
            written[thread] = number

    def child(number: int) -> None:
        for n in range(10):
            assert store.insert([a_record(1_000_000 + 100 * number + n)], []) == []
        store.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    children = []
    for number in range(6):
        seen = min(written)
        while min(written) == seen:
            time.sleep(0.001)
        children.append(in_child(functools.partial(child, number)))
    well = [ended_well(pid) for pid in children]
    stop.set()
    for thread in threads:
        thread.join()
    assert all(well)
    assert len(store.scan()) == sum(written) + 60


def test_a_child_uses_an_inherited_store_with_coroutines(postgres_url: str) -> None:
    store = AsyncPostgresTokenStore(postgres_url)

    async def parent() -> None:
        await store.provision()
        await store.append([an_event(1)])
        pid = in_child(lambda: run_elsewhere(store.append([an_event(2)])))
        assert ended_well(pid)
        assert await store.events(stream=an_event(1).stream) == [an_event(1), an_event(2)]
        assert store._pool_here().open_count == 1
        await store.close()

    asyncio.run(parent())


def run_elsewhere(call: Coroutine[Any, Any, object]) -> None:
    asyncio._set_running_loop(None)  # the child inherits a running loop, and does not run it
    asyncio.run(call)


# Cancellation.


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("warm", [False, True])
def test_a_cancelled_write_is_whole_or_not_done(postgres_url: str, warm: bool, count: int) -> None:
    """Wherever an insert is cancelled, all of its rows are there or none; the store then goes on."""

    async def work() -> int:
        store = AsyncPostgresTokenStore(postgres_url)
        await store.provision()
        at = 0
        while True:
            if warm:
                await store.scan(limit=1)
            else:
                store._pool_here().close()
                store._pools.clear()
            records = [a_record(count * at + n) for n in range(count)]
            events = [an_event(count * at + n + 1) for n in range(count)]
            call = CancelledAt(store.insert(records, events), at)
            try:
                await call
            except asyncio.CancelledError:
                assert call.reached
            rows = await store.get([record.token for record in records])
            noted = await store.events(stream=events[0].stream, after=events[0].number - 1)
            assert len(rows) == len(noted)
            assert len(rows) in (0, count)
            assert store._pool_here().open_count == 1
            if not call.reached:
                assert len(rows) == count
                await store.close()
                return at
            at += 1

    assert asyncio.run(work()) >= (1 if warm else 4)


# Restarts.


@openers
def test_a_server_restarted_under_load_keeps_what_was_acknowledged(
    open_store: Callable[[str], TokenStore],
) -> None:
    """Eight threads write while the server is restarted, as hard as it goes: acknowledged is there, of the rest whole
    writes or nothing, and everybody goes on without being opened again."""
    server = PostgresServer()
    try:
        url = server.url()
        with closing(open_store(url)) as store:
            store.provision()
            stop = threading.Event()
            acknowledged: list[set[int]] = [set() for _ in range(8)]
            unknown: list[set[int]] = [set() for _ in range(8)]

            def write(thread: int) -> None:
                number = 1
                while not stop.is_set():
                    records = [
                        a_record(100_000 * (thread + 1) + 3 * number + n) for n in range(1 + number % 3)
                    ]
                    try:
                        store.insert(records, [an_event(number, stream=thread + 1)])
                        acknowledged[thread].add(number)
                    except TokenStoreError:
                        unknown[thread].add(number)
                        time.sleep(0.002)
                    number += 1

            def everybody_writes() -> None:
                seen = [len(done) for done in acknowledged]
                while any(len(now) < then + 10 for now, then in zip(acknowledged, seen, strict=True)):
                    time.sleep(0.002)

            with ThreadPoolExecutor(8) as pool:
                done = [pool.submit(write, thread) for thread in range(8)]
                try:
                    for _ in range(2):
                        everybody_writes()
                        server.stop("immediate")
                        server.start()
                    everybody_writes()
                finally:
                    stop.set()
                for future in done:
                    future.result()
            assert any(unknown)
            expected = set()
            for thread in range(8):
                events = store.events(stream=an_event(1, stream=thread + 1).stream)
                numbers = {event.number for event in events}
                assert acknowledged[thread] <= numbers <= acknowledged[thread] | unknown[thread]
                expected |= {
                    a_record(100_000 * (thread + 1) + 3 * number + n).token
                    for number in numbers
                    for n in range(1 + number % 3)
                }
            assert {record.token for record in store.scan()} == expected
            # Connections that lay idle through a restart are noticed before they are used.
            server.stop("fast")
            with pytest.raises(TokenStoreError, match="can not be reached"):
                store.scan(limit=1)
            server.start()
            for _ in range(CONNECTIONS):
                store.scan(limit=1)
    finally:
        server.remove()
