"""Schemas move beside running vaults: upgraded from the version before, by whoever is killed or comes second."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import psycopg
import pytest

import tokenvault as tv
from tests import upgrade_workers, vaults
from tests.pgbouncer import running
from tests.postgres_server import PostgresServer, new_name
from tests.upgrade_workers import INDEX, SPAWN, make_postgres, make_sqlite
from tests.vault_workers import card_number
from tokenvault.keys import KeyStore
from tokenvault.stores import grants_sql, schema_sql, schema_status, schema_versions, upgrade_schema
from tokenvault.stores.postgres import upgrade as postgres_upgrade
from tokenvault.stores.schema_versions import OLDEST_UPGRADED, SCHEMA_VERSION
from tokenvault.stores.sqlite import upgrade as sqlite_upgrade

SECONDS_MAX = 120.0
CHECKED = 60
"""Tokens of a load that are looked at one by one: those that it told of last."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the keys of the older database."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.touch(mode=0o600)
    path.write_bytes((upgrade_workers.VECTORS / "schema_3_keys.json").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENVAULT_PASSPHRASE", upgrade_workers.PASSPHRASE)
        yield f"file:{path}"


@pytest.fixture(scope="module")
def older_keys(uri: str) -> Iterator[KeyStore]:
    with closing(tv.open_key_store(uri)) as keys:
        yield keys


@pytest.fixture(params=["sqlite", "postgres", "partitioned"])
def older(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database that the version before made."""
    if request.param == "sqlite":
        return make_sqlite(tmp_path / "vault.db")
    return make_postgres(
        request.getfixturevalue("postgres_server"), partitioned=request.param == "partitioned"
    )


@contextmanager
def one_step_further() -> Iterator[None]:
    """One step more than this release has, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema_versions, "SCHEMA_VERSION", SCHEMA_VERSION)  # and back, at the end
        for module in (postgres_upgrade, sqlite_upgrade):
            patch.setattr(module, "STEPS", module.STEPS)
        upgrade_workers.know_a_further_step()
        yield


@pytest.fixture
def further() -> Iterator[None]:
    with one_step_further():
        yield


def schema_of(url: str) -> str:
    return url.rpartition("schema=")[2]


def objects(url: str, server: PostgresServer) -> list[Any]:
    """What a database is made of, but for its rows."""
    if url.startswith("sqlite:"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            made = file.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
            pragmas = [
                file.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
            ]
            stated = file.execute("SELECT reached FROM schema_version").fetchall()
            return [*sorted((*row[:3], " ".join(row[3].split())) for row in made), *pragmas, stated]
    schema = schema_of(url)
    with server.raw() as raw:
        return [
            [tuple(str(value).replace(schema, "s") for value in row) for row in raw.execute(query.encode())]
            for query in (
                "SELECT table_name, column_name, data_type, collation_name, is_nullable, column_default"
                f" FROM information_schema.columns WHERE table_schema = '{schema}' ORDER BY 1, 2",
                f"SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = '{schema}' ORDER BY 2",
                f"SELECT version, reached FROM {schema}.schema_version",
            )
        ]


def assert_works(url: str, keys: KeyStore) -> None:
    """What the version before issued works, what it counted counts, and the trail is whole."""
    with closing(tv.open_token_store(url)) as store, vaults.open_vault(keys, store) as vault:
        (limited,) = vault.search(customer="customer-1")
        assert [event.action.name for event in vault.history(limited.token)] == ["ISSUE", "DETOKENIZE"]
        assert vault.detokenize(limited.token, vaults.use(1)).pan.reveal() == vaults.VISA, "a retry"
        vault.detokenize(limited.token, vaults.use(2))
        vault.detokenize(limited.token, vaults.use(3))
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(limited.token, vaults.use(4))
        (suspended,) = vault.search(program="card-on-file")
        assert suspended.status is tv.TokenStatus.SUSPENDED
        assert vault.resume(suspended.token, by=tv.Actor.ISSUER).status is tv.TokenStatus.ACTIVE
        assert (vault.count(program="one-time"), len(vault.tokens_of(vaults.VISA))) == (5, 2)
        vaults.issue(vault)
    with closing(tv.open_token_store(url)) as store:
        assert tv.verify_audit(store, keys=keys).intact


def test_a_database_of_the_version_before_is_refused_until_it_is_upgraded_and_works_then(
    older: str, older_keys: KeyStore
) -> None:
    with closing(tv.open_token_store(older)) as store:
        for call in (store.check_schema, store.provision, lambda: tv.Vault(older_keys, store)):
            with pytest.raises(
                tv.ConfigurationError, match=r"version 3, .* version 4: run tokenvault schema upgrade"
            ):
                call()
    before = schema_status(older)
    assert (before.version, before.oldest, before.current, before.upgraded) == (3, 3, False, None)
    told: list[tuple[int, int]] = []
    after = upgrade_schema(older, report=lambda done, total: told.append((done, total)))
    assert (after.version, after.oldest, after.needed, after.current) == (4, 3, 4, True)
    assert after == schema_status(older)
    assert after.upgraded is not None
    assert abs(after.upgraded.timestamp() - time.time()) < SECONDS_MAX
    assert told[-1] == (told[-1][1],) * 2
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert_works(older, older_keys)


def test_an_upgraded_database_is_the_same_as_a_new_one(
    older: str, postgres_server: PostgresServer, local_keys: KeyStore, tmp_path: Path
) -> None:
    upgrade_schema(older)
    new = f"sqlite:///{tmp_path}/new.db"
    if older.startswith("postgresql:"):
        partitions = {"partitions": "3"} if "tokens_1" in str(objects(older, postgres_server)) else {}
        new = postgres_server.url(schema=new_name())
        with closing(tv.open_token_store(new + "".join(f"&{k}={v}" for k, v in partitions.items()))) as store:
            tv.provision(local_keys, store)
    else:
        with closing(tv.open_token_store(new)) as store:
            tv.provision(local_keys, store)
    assert objects(older, postgres_server) == objects(new, postgres_server)


def test_an_administrator_s_sql_upgrades_as_the_command_does(
    older: str, older_keys: KeyStore, postgres_server: PostgresServer
) -> None:
    statements = schema_sql(older, since=3)
    if older.startswith("sqlite:"):
        with closing(sqlite3.connect(older.removeprefix("sqlite:///"), isolation_level=None)) as file:
            for statement in statements:
                file.execute(statement)
    else:
        with postgres_server.raw() as shell:
            for statement in statements:
                shell.execute(statement.encode())
    assert schema_status(older).current
    assert_works(older, older_keys)


@pytest.mark.parametrize("since", [0, 2, SCHEMA_VERSION, SCHEMA_VERSION + 1, "3", True])
def test_sql_of_an_upgrade_that_there_is_not_is_refused(since: Any) -> None:
    with pytest.raises(tv.InvalidInputError, match=f"from version {OLDEST_UPGRADED} on, to {SCHEMA_VERSION}"):
        schema_sql("sqlite:///vault.db", since=since)


def test_steps_lead_from_the_oldest_version_to_this_one_and_keep_the_version_before() -> None:
    for steps in (postgres_upgrade.STEPS, sqlite_upgrade.STEPS):
        assert [step.version for step in steps] == [*range(OLDEST_UPGRADED + 1, SCHEMA_VERSION + 1)]
        assert all(step.oldest < step.version for step in steps)


@pytest.mark.parametrize("version", [1, 2, 5])
def test_what_is_newer_or_too_old_is_not_upgraded_and_the_text_names_both_versions(
    older: str, version: int, postgres_server: PostgresServer
) -> None:
    upgrade_schema(older)
    if older.startswith("sqlite:"):
        with closing(sqlite3.connect(older.removeprefix("sqlite:///"))) as file, file:
            file.execute(f"PRAGMA user_version = {version}")
            file.execute(f"UPDATE schema_version SET reached = {version}")
    else:
        with postgres_server.raw() as raw:
            place = f"{schema_of(older)}.schema_version"
            raw.execute(f"UPDATE {place} SET version = {version}, reached = {version}".encode())
    before = objects(older, postgres_server)
    known = "this one knows 4" if version == 5 else "this one upgrades none before 3"
    with pytest.raises(tv.ConfigurationError, match=f"has schema version {version}, .*{known}") as caught:
        upgrade_schema(older)
    assert caught.value.code == ("STORE_NEWER" if version == 5 else "STORE_OLDER")
    assert schema_status(older).version == version
    assert objects(older, postgres_server) == before


@pytest.mark.parametrize("url", ["memory:", "x", "postgresql", 7, None])
def test_only_a_database_has_a_schema_to_upgrade(url: Any) -> None:
    for call in (schema_status, upgrade_schema):
        with pytest.raises(tv.InvalidInputError):
            call(url)


def test_where_nothing_is_provisioned_nothing_is_upgraded(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    (tmp_path / "empty.db").touch()
    for url in (f"sqlite:///{tmp_path}/no.db", f"sqlite:///{tmp_path}/empty.db", postgres_server.new_url()):
        for call in (schema_status, upgrade_schema):
            with pytest.raises(tv.ConfigurationError) as caught:
                call(url)
            assert caught.value.code == "STORE_NOT_PROVISIONED"
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]


def test_an_upgrade_that_is_interrupted_where_it_tells_of_itself_goes_on_later(older: str) -> None:
    told: list[int] = []

    def interrupt(done: int, total: int) -> None:
        told.append(done)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upgrade_schema(older, report=interrupt)
    with pytest.raises(tv.InvalidInputError, match="report failed"):
        upgrade_schema(older, report=lambda done, total: 1 // 0)
    with pytest.raises(tv.InvalidInputError, match="report"):
        upgrade_schema(older, report=7)  # type: ignore[arg-type] # it is wrong
    assert upgrade_schema(older).current


# Beside running vaults.


class Load:
    """A process of some version whose threads issue and use tokens, and all that it told of."""

    def __init__(self, uri: str, url: str, version: int) -> None:
        self.told: dict[int, str] = {}
        ours, theirs = SPAWN.Pipe(duplex=False)
        self._process = SPAWN.Process(target=upgrade_workers.work, args=(uri, url, version, theirs))
        self._process.start()
        theirs.close()
        self._ours = ours
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        with os.fdopen(os.dup(self._ours.fileno())) as lines:
            for line in lines:
                number, token = line.split()
                self.told[int(number)] = token

    def goes_on(self, count: int) -> None:
        """Wait until it has issued so many tokens more."""
        wanted = len(self.told) + count
        until(lambda: len(self.told) >= wanted, self._process)

    def end(self) -> None:
        """Kill it. Fails where it has ended by itself, which it does where anything goes wrong."""
        assert self._process.exitcode is None, "a vault failed under load"
        self._process.kill()
        self._process.join(SECONDS_MAX)
        self._listener.join(SECONDS_MAX)


def until(true: Callable[[], bool], process: SpawnProcess | None = None) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not true():
        assert time.monotonic() < deadline
        assert process is None or process.exitcode is None, "a vault failed under load"
        time.sleep(0.01)


@contextmanager
def loaded(uri: str, url: str, version: int) -> Iterator[Load]:
    load = Load(uri, url, version)
    try:
        load.goes_on(20)
        yield load
    except BaseException:
        load._process.kill()
        raise
    load.end()


def assert_nothing_lost(url: str, keys: KeyStore, *loads: Load) -> None:
    with closing(tv.open_token_store(url)) as store, vaults.open_vault(keys, store) as vault:
        for load in loads:
            for number, token in [*load.told.items()][-CHECKED:]:
                assert vault.detokenize(token, vaults.use(f"{number}")).pan.reveal() == card_number(number)
                assert {event.action.name for event in vault.history(token)} == {"ISSUE", "DETOKENIZE"}
                assert [left.left for left in vault.remaining(token)] == [1]
    with closing(tv.open_token_store(url)) as store:
        assert tv.verify_audit(store, keys=keys).intact


def test_vaults_of_the_version_before_lose_nothing_while_and_after_a_database_is_upgraded(
    older: str, older_keys: KeyStore, uri: str
) -> None:
    with loaded(uri, older, 3) as before:
        assert upgrade_schema(older).current
        before.goes_on(40)  # with new connections, to a database of the next version
        with loaded(uri, older, 4) as after:
            after.goes_on(20)
            before.goes_on(20)
    assert_nothing_lost(older, older_keys, before, after)


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_an_upgrade_goes_through_a_pooler_beside_vaults_behind_it(
    postgres_server: PostgresServer, older_keys: KeyStore, uri: str, pool_mode: str
) -> None:
    direct = make_postgres(postgres_server)
    with running(postgres_server, pool_mode=pool_mode, default_pool_size="20") as pooler:
        url = pooler.url(schema_of(direct))
        with loaded(uri, url, 3) as before:
            assert upgrade_schema(url).current
            before.goes_on(20)
        with loaded(uri, url, 4) as after, one_step_further():
            assert upgrade_schema(url).current
            assert index_is_valid(postgres_server, direct)
            after.goes_on(20)
    assert_nothing_lost(direct, older_keys, before)


def test_a_step_may_end_the_work_of_releases_before_it(
    older: str, older_keys: KeyStore, further: None
) -> None:
    """A vault of version 3 is refused at version 5, which serves releases from version 4 on."""
    assert upgrade_schema(older).oldest == 4
    for version, code in ((3, "STORE_NEWER"), (4, None), (5, None), (6, "STORE_OLDER")):
        upgrade_workers.be_of_version(version)
        with closing(tv.open_token_store(older)) as store:
            if code is None:
                store.check_schema()
                continue
            with pytest.raises(tv.ConfigurationError, match=f"schema version 5.*{version}") as caught:
                store.check_schema()
            assert caught.value.code == code


def index_is_valid(server: PostgresServer, url: str) -> bool | None:
    """Whether the index of the further step is whole; None where it is not there."""
    with server.raw() as raw:
        found = raw.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)",
            [f"{schema_of(url)}.{INDEX}"],
        ).fetchall()
    return found[0][0] if found else None


def test_a_role_that_runs_a_vault_can_not_upgrade_and_needs_no_further_grant(
    postgres_server: PostgresServer, older_keys: KeyStore
) -> None:
    owner_url = make_postgres(postgres_server)
    role = new_name()
    with postgres_server.raw() as superuser:
        superuser.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'of the vault'".encode())
        for statement in grants_sql(owner_url, vault=role):
            superuser.execute(statement.encode())
    url = postgres_server.url(user=role, password="of the vault", schema=schema_of(owner_url))
    with pytest.raises(tv.TokenStoreError) as caught:
        upgrade_schema(url)
    assert caught.value.code == "STORE_PERMISSION"
    assert schema_status(url).version == 3
    upgrade_schema(owner_url)
    assert_works(url, older_keys)


# Locks, and others at the same moment.


@contextmanager
def reading(server: PostgresServer, sql: str) -> Iterator[psycopg.Connection]:
    """A transaction that has read, and is not over."""
    with server.raw() as raw:
        raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        raw.execute(sql.encode())
        yield raw


def test_a_statement_that_locks_waits_shortly_and_lets_others_through_meanwhile(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_postgres(postgres_server)
    for name, value in (("LOCK_SECONDS", 1), ("PAUSE_SECONDS", 0.5), ("ATTEMPTS_MAX", 3)):
        monkeypatch.setattr(postgres_upgrade, name, value)
    waits = []
    asked = f"SELECT version FROM {schema_of(url)}.schema_version".encode()  # as the version before asks
    with (
        ThreadPoolExecutor(1) as others,
        postgres_server.raw() as vault,
        reading(postgres_server, asked.decode()),
    ):
        upgrading = others.submit(upgrade_schema, url)
        while not upgrading.done():
            begun = time.monotonic()
            vault.execute(asked)
            waits.append(time.monotonic() - begun)
        with pytest.raises(tv.TokenStoreError) as caught:
            upgrading.result()
        assert caught.value.code == "STORE_BUSY"
    assert 0.5 < max(waits) < 2.5, "it waited behind the upgrade, for one lock_timeout"
    assert sorted(waits)[len(waits) // 2] < 0.1
    assert upgrade_schema(url).current


@contextmanager
def stuck_building(server: PostgresServer, url: str) -> Iterator[tuple[SpawnProcess, psycopg.Connection]]:
    """An upgrader that builds an index, and can not end before a transaction does."""
    with reading(server, f"SELECT count(*) FROM {schema_of(url)}.tokens") as reader:
        process = SPAWN.Process(target=upgrade_workers.upgrade_further, args=(url,))
        process.start()
        until(lambda: index_is_valid(server, url) is False)
        yield process, reader
    process.join(SECONDS_MAX)


def test_a_second_upgrader_is_told_of_the_first_and_vaults_go_on_beside_both(
    postgres_server: PostgresServer, uri: str, older_keys: KeyStore, further: None
) -> None:
    url = make_postgres(postgres_server)
    with stuck_building(postgres_server, url) as (first, reader):
        with pytest.raises(tv.TokenStoreError, match="another process is upgrading") as caught:
            upgrade_schema(url)
        assert caught.value.code == "STORE_UPGRADING"
        with loaded(uri, url, 4) as load:
            load.goes_on(20)
        reader.execute("ROLLBACK")
        first.join(SECONDS_MAX)
        assert first.exitcode == 0
    assert (schema_status(url).version, index_is_valid(postgres_server, url)) == (5, True)
    assert upgrade_schema(url).version == 5
    assert_nothing_lost(url, older_keys, load)


def test_an_index_that_a_killed_upgrader_left_half_built_is_not_taken_for_a_whole_one(
    postgres_server: PostgresServer, further: None
) -> None:
    url = make_postgres(postgres_server)
    with stuck_building(postgres_server, url) as (first, reader), postgres_server.raw() as superuser:
        first.kill()
        first.join(SECONDS_MAX)
        superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%'"
        )
        reader.execute("ROLLBACK")
    assert (schema_status(url).version, index_is_valid(postgres_server, url)) == (4, False)
    with postgres_server.raw() as shell:
        for statement in schema_sql(url, since=4):
            shell.execute(statement.encode())
    assert schema_status(url).version == 4, "the administrator's SQL does not note it either"
    assert upgrade_schema(url).version == 5
    assert index_is_valid(postgres_server, url)


def test_what_the_server_still_builds_of_a_killed_upgrader_is_waited_for(
    postgres_server: PostgresServer, further: None
) -> None:
    url = make_postgres(postgres_server)
    with stuck_building(postgres_server, url) as (first, reader):
        first.kill()
        first.join(SECONDS_MAX)
        built = oid_of_index(postgres_server, url)
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(upgrade_schema, url)
            time.sleep(1)
            assert not second.done()
            reader.execute("ROLLBACK")
            assert second.result(SECONDS_MAX).version == 5
    assert index_is_valid(postgres_server, url)
    assert oid_of_index(postgres_server, url) == built, "it was built a second time"


def test_an_index_is_not_dropped_while_the_transaction_that_makes_it_valid_ends(
    postgres_server: PostgresServer, further: None
) -> None:
    url = make_postgres(postgres_server)
    with stuck_building(postgres_server, url) as (first, reader), ThreadPoolExecutor(1) as threads:
        builder = "SELECT pid FROM pg_stat_progress_create_index WHERE phase = 'waiting for old snapshots'"
        until(lambda: len(asked(postgres_server, builder)) == 1)
        first.kill()
        first.join(SECONDS_MAX)
        built = oid_of_index(postgres_server, url)
        with commits_unconfirmed(postgres_server):
            reader.execute("ROLLBACK")
            until(lambda: (INDEX,) in asked(postgres_server, f"SELECT substring(query, '{INDEX}') {WAITING}"))
            second = threads.submit(upgrade_schema, url)
            time.sleep(1)
            assert not second.done()
        assert second.result(SECONDS_MAX).version == 5
    assert index_is_valid(postgres_server, url)
    assert oid_of_index(postgres_server, url) == built, "it was built a second time"


WAITING = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@contextmanager
def commits_unconfirmed(server: PostgresServer) -> Iterator[None]:
    """While this lasts what has written does not end: its locks of a session are given back, but it is not seen."""
    with server.raw() as superuser, server.raw() as writer, ThreadPoolExecutor(1) as threads:
        superuser.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        superuser.execute("SELECT pg_reload_conf()")
        stop = threading.Event()
        writing = threads.submit(write_until, stop, writer)
        try:
            until(lambda: (writer.info.backend_pid,) in asked(server, f"SELECT pid {WAITING}"))
            yield
        finally:
            stop.set()
            superuser.execute("ALTER SYSTEM RESET synchronous_standby_names")
            superuser.execute("SELECT pg_reload_conf()")
            writing.result(SECONDS_MAX)


def write_until(stop: threading.Event, writer: psycopg.Connection) -> None:
    while not stop.wait(0.01):
        writer.execute("SELECT pg_logical_emit_message(true, '', '')")


def asked(server: PostgresServer, sql: str) -> list[Any]:
    with server.raw() as raw:
        return raw.execute(sql.encode()).fetchall()


def oid_of_index(server: PostgresServer, url: str) -> int:
    with server.raw() as raw:
        found = raw.execute("SELECT to_regclass(%s)::oid::bigint", [f"{schema_of(url)}.{INDEX}"]).fetchone()
    assert found is not None
    return int(found[0])


def test_an_upgrade_that_is_killed_between_any_of_its_statements_is_done_by_the_next_one(
    older: str, older_keys: KeyStore, further: None
) -> None:
    kills = 0
    while schema_status(older).version < 5:
        kills += 1
        ours, theirs = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=upgrade_workers.upgrade_telling, args=(older, theirs))
        process.start()
        theirs.close()
        with os.fdopen(os.dup(ours.fileno()), "rb") as told:
            told.read(2 * kills)  # to the end, where less than that is left to do
        process.kill()
        process.join(SECONDS_MAX)
        ours.close()
    assert kills > 1
    assert upgrade_schema(older).version == 5
    upgrade_workers.be_of_version(4)
    assert_works(older, older_keys)


def test_upgraders_of_a_file_at_once_take_each_step_once(tmp_path: Path, further: None) -> None:
    url = make_sqlite(tmp_path / "vault.db")
    with (
        ThreadPoolExecutor(8) as threads,
        closing(sqlite3.connect(tmp_path / "vault.db", isolation_level=None)) as writer,
    ):
        writer.execute("BEGIN IMMEDIATE")  # all of them see version 3, and wait
        upgrading = [threads.submit(upgrade_schema, url) for _ in range(8)]
        time.sleep(0.5)
        assert not any(each.done() for each in upgrading)
        writer.execute("ROLLBACK")
        done = [each.result(SECONDS_MAX) for each in upgrading]
    assert {(status.version, status.oldest) for status in done} == {(5, 4)}
    with closing(sqlite3.connect(tmp_path / "vault.db")) as raw:
        assert raw.execute("SELECT count(*) FROM schema_version").fetchone() == (1,)
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
