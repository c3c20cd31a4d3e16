"""Databases of older schemas, and what other processes do with them: module-level, so that spawn can import it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import psycopg

import tokenvault as tv
from tests import vaults
from tests.postgres_server import PostgresServer, new_name
from tests.vault_workers import card_number
from tokenvault.stores import schema_versions, upgrade_schema
from tokenvault.stores.postgres import upgrade as postgres_upgrade
from tokenvault.stores.postgres.statements import EVENT_INDEX
from tokenvault.stores.schema_versions import SchemaStatus
from tokenvault.stores.sqlite import upgrade as sqlite_upgrade

SPAWN = multiprocessing.get_context("spawn")
VECTORS = Path(__file__).parent / "vectors"
PASSPHRASE = "of a fixture"
THREADS = 4
ROUND = 10
"""Tokens that a vault issues before it is opened anew, with new connections."""

INDEX = "event_index_by_event"
"""That the step after this release's makes, in tests."""


def make_sqlite(path: Path) -> str:
    """A file of version 3. Returns its address."""
    with closing(sqlite3.connect(path)) as made:
        made.executescript((VECTORS / "schema_3_sqlite.sql").read_text(encoding="utf-8"))
        made.execute("PRAGMA journal_mode = WAL")
    return f"sqlite:///{path}"


def make_postgres(server: PostgresServer, *, partitioned: bool = False) -> str:
    """A schema of version 3, with the rows of the file. Returns its address."""
    schema = new_name()
    name = "schema_3_postgresql_partitioned.sql" if partitioned else "schema_3_postgresql.sql"
    with closing(sqlite3.connect(":memory:")) as rows, server.raw() as superuser:
        rows.executescript((VECTORS / "schema_3_sqlite.sql").read_text(encoding="utf-8"))
        superuser.execute(
            (VECTORS / name).read_text(encoding="utf-8").replace("vault_schema", schema).encode()
        )
        for table in ("tokens", "token_counts", "events", "event_index", "domains", "meta"):
            found = rows.execute(f"SELECT * FROM {table}")
            columns = [column for column, *_ in found.description]
            for row in found:
                given = dict(zip(columns, row, strict=True))
                if "program" in given:
                    given["program"] = given["program"].encode()
                if table == "token_counts":
                    given["shard"] = 0
                superuser.execute(
                    psycopg.sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                        psycopg.sql.Identifier(schema, table),
                        psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, given)),
                        psycopg.sql.SQL(", ").join(map(psycopg.sql.Literal, given.values())),
                    )
                )
    return server.url(schema=schema)


def be_of_version(version: int) -> None:
    """Have this process work as a release of another schema version would."""
    setattr(schema_versions, "SCHEMA_VERSION", version)  # noqa: B010 # it is final


def know_a_further_step() -> None:
    """Have this process upgrade one step further, by an index."""
    be_of_version(5)
    sql = f"{INDEX} ON {{}} (stream, number)"
    built = postgres_upgrade.Index(INDEX, EVENT_INDEX, sql.format(EVENT_INDEX))
    for module, step in (
        (sqlite_upgrade, sqlite_upgrade.Step(5, 4, (f"CREATE INDEX {sql.format('event_index')}",))),
        (postgres_upgrade, postgres_upgrade.Step(5, 4, (built,))),
    ):
        setattr(module, "STEPS", (*module.STEPS, step))  # noqa: B010 # it is final


def upgrade_further(url: str) -> SchemaStatus:
    """Upgrade to the step after this release's."""
    know_a_further_step()
    return upgrade_schema(url)


def upgrade_telling(url: str, told: Connection) -> None:
    """As `upgrade_further`; tells by a byte before each statement that it is about to run, and waits a moment."""

    def report(done: int, total: int) -> None:
        os.write(told.fileno(), b".")
        time.sleep(0.01)

    know_a_further_step()
    upgrade_schema(url, report=report)


def work(uri: str, url: str, version: int, told: Connection) -> None:
    """Issue and use tokens with threads, as a release of a version, and tell of each once it is used."""
    be_of_version(version)
    os.environ["TOKENVAULT_PASSPHRASE"] = PASSPHRASE
    with closing(tv.open_key_store(uri)) as keys:
        threads = [
            threading.Thread(target=_fatal, args=(_issue, keys, url, first, told)) for first in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _fatal(function: Callable[..., None], *arguments: object) -> None:
    """Call a function, with which the process ends."""
    try:
        function(*arguments)
    except BaseException:  # noqa: BLE001 # whatever it is, the test is told
        traceback.print_exc()
    os._exit(3)


def _issue(keys: tv.KeyStore, url: str, first: int, told: Connection) -> None:
    numbers = itertools.count(first, THREADS)
    while True:
        with closing(tv.open_token_store(url)) as store, vaults.open_vault(keys, store) as vault:
            for _ in range(ROUND):
                number = next(numbers)
                pan = card_number(number)
                token = vaults.issue(vault, pan, domain=tv.Domain(limits=[tv.Limit(uses=2)])).token
                assert vault.detokenize(token, vaults.use(f"{number}")).pan.reveal() == pan
                os.write(told.fileno(), f"{number} {token}\n".encode())
