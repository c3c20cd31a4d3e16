"""Lists, counts and look-ups read an index: the plan of each statement says so, on both databases."""

from __future__ import annotations

import functools
import re
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.postgres_server import PostgresServer
from tokenvault.stores import open_token_store
from tokenvault.stores.postgres import sql as postgres
from tokenvault.stores.postgres.statements import Statement, in_schema
from tokenvault.stores.sqlite import sql as sqlite
from tokenvault.stores.sqlite.store import SqliteTokenStore

SQLITE_PLANS = {
    "list_tokens": (sqlite.LIST, "INDEX tokens_by_group"),
    "count": (sqlite.COUNT, "PRIMARY KEY"),
    "groups": (sqlite.NEXT_GROUP, "COVERING INDEX tokens_by_group"),
    "find_customer": (sqlite.FIND_CUSTOMER, "INDEX tokens_by_customer"),
    "find_last4": (sqlite.FIND_LAST4, "INDEX tokens_by_last4_key"),
    "events of a use": (sqlite.EVENTS_OF_USE, "PRIMARY KEY"),
    "an event": (sqlite.ONE_EVENT, "INDEX sqlite_autoindex_events_1"),
}
POSTGRES_PLANS = {
    "list_tokens": (postgres.LIST, {"tokens_by_group"}),
    "count": (postgres.COUNT, {"token_counts_pkey"}),
    "groups": (postgres.GROUPS, {"tokens_by_group"}),
    "find_customer": (postgres.FIND_CUSTOMER, {"tokens_by_customer"}),
    "find_last4": (postgres.FIND_LAST4, {"tokens_by_last4_key"}),
    "get_use of a token": (postgres.USE_OF_TOKEN, {"tokens_pkey", "event_index_pkey", "events_pkey"}),
    "get_use of a reference": (
        postgres.USE_OF_REFERENCE,
        {"tokens_by_reference", "event_index_pkey", "events_pkey"},
    ),
    "uses": (postgres.USES, {"event_index_pkey", "events_pkey"}),
    "get of one": (postgres.GET_ONE, {"tokens_pkey"}),
    "get of many": (postgres.GET_MANY, {"tokens_pkey"}),
    "find by one fingerprint": (postgres.FIND_ONE, {"tokens_by_pan_fingerprint"}),
    "find by many fingerprints": (postgres.FIND_MANY, {"tokens_by_pan_fingerprint"}),
    "by_reference": (postgres.BY_REFERENCE, {"tokens_by_reference"}),
    "scan": (postgres.SCAN, {"tokens_pkey"}),
    "scan of a key version": (postgres.SCAN_KEY_VERSION, {"tokens_pkey"}),
    "events": (postgres.EVENTS_OF_STREAM, {"events_pkey"}),
    "events_about": (postgres.EVENTS_ABOUT, {"event_index_pkey", "events_pkey"}),
    "index_rows": (postgres.INDEX_ROWS, {"event_index_pkey"}),
    "streams": (postgres.STREAMS, {"events_pkey"}),
    "latest_checkpoints": (postgres.LATEST_CHECKPOINTS, {"event_index_pkey", "events_pkey"}),
}
SORTED = {  # few rows, after they were found
    "find_last4",
    "find by many fingerprints",
    "get_use of a token",
    "get_use of a reference",
    "uses",
    "latest_checkpoints",
}
# Four groups: of a table that is one group, PostgreSQL may read all pages to count it.
ROWS = """
    INSERT INTO {schema}.tokens (token, reference, pan_fingerprint, requestor, program, revision, key_version, body,
        seal, customer, last4_key, status, created_ms)
    SELECT lpad((9999000000000000 + n)::text, 16, '0'), decode(md5(n::text), 'hex'),
        decode(md5((n / 3)::text), 'hex'),
        '40012345678', 'card-on-file', 1, 1, decode(repeat('00', 60), 'hex'), decode(repeat('00', 45), 'hex'),
        'c' || n / 10, decode(md5((n / 10)::text), 'hex'), 1 + n % 4, n
    FROM generate_series(0::bigint, 99999) AS n;
    INSERT INTO {schema}.events SELECT n, decode(md5('stream'), 'hex'), decode(repeat('00', 16), 'hex'), '', ''
    FROM generate_series(1::bigint, 100000) AS n;
    INSERT INTO {schema}.event_index SELECT n, decode(md5(n::text), 'hex'), decode(md5('use'), 'hex'),
        decode(md5('stream'), 'hex') FROM generate_series(1::bigint, 100000) AS n"""


@pytest.mark.parametrize("name", SQLITE_PLANS)
def test_sqlite_searches_an_index_and_scans_no_table(name: str, tmp_path: Path) -> None:
    text, index = SQLITE_PLANS[name]
    path = tmp_path / "vault.db"
    with closing(SqliteTokenStore(path)) as store:
        store.provision()
    with closing(sqlite3.connect(path)) as connection:
        steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", [None] * text.count("?"))]
    assert any(index in step for step in steps), steps
    assert not [step for step in steps if step.startswith("SCAN")], steps
    if name in ("list_tokens", "count", "groups", "find_customer", "find_last4 of 1"):
        assert not [step for step in steps if "TEMP B-TREE" in step], steps


def test_groups_of_sqlite_cost_the_same_however_many_records_they_have(tmp_path: Path) -> None:
    """Steps of SQLite's own machine, counted: a plan does not tell where in a group a search begins."""
    path = tmp_path / "vault.db"
    with closing(SqliteTokenStore(path)) as store:
        store.provision()
    steps = []
    with closing(sqlite3.connect(path)) as connection:
        for _ in range(2):
            connection.execute(
                "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 999)"
                " INSERT INTO tokens SELECT 9999000000000000 + n + (SELECT count(*) FROM tokens), zeroblob(16),"
                " zeroblob(16), '40012345678', 'card-on-file', 1, 1, x'', zeroblob(45), '', x'', 1 + n % 2, n FROM n"
            )
            count = Counter[str]()
            connection.set_progress_handler(functools.partial(count.update, ["step"]), 1)
            group = ("", "", 0)
            while found := connection.execute(sqlite.NEXT_GROUP, group).fetchone():
                group = found
            connection.set_progress_handler(None, 0)
            assert group == ("40012345678", "card-on-file", 2)
            steps.append(count["step"])
    assert steps[0] == steps[1] < 200


@pytest.fixture(scope="module")
def schema(postgres_server: PostgresServer) -> str:
    url = postgres_server.new_url()
    schema = url.rpartition("schema=")[2].partition("&")[0]
    with closing(open_token_store(url)) as store:
        store.provision()
    with postgres_server.raw() as connection:
        connection.execute(ROWS.replace("{schema}", schema).encode())
        for table in ("tokens", "events", "event_index"):
            connection.execute(f"ANALYZE {schema}.{table}".encode())
    return schema


@pytest.mark.parametrize("name", POSTGRES_PLANS)
def test_postgres_reads_indexes_alone(name: str, postgres_server: PostgresServer, schema: str) -> None:
    """The plan for any values, which is what a prepared statement comes to."""
    statement, expected = POSTGRES_PLANS[name]
    plan = generic_plan(postgres_server, statement, schema)
    assert set(re.findall(r"Index (?:Only )?Scan(?: Backward)? (?:using|on) (\w+)", plan)) == expected, plan
    assert "Seq Scan" not in plan, plan
    assert name in SORTED or "Sort" not in plan, plan


def generic_plan(server: PostgresServer, statement: Statement, schema: str) -> str:
    text = in_schema(statement.sql, schema)
    with server.raw() as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        types = ", ".join(f"{oid}::regtype::text" for oid in statement.types)
        names = connection.execute(f"SELECT {types}".encode()).fetchone() if types else ()
        assert names is not None
        declared = f"({', '.join(names)})" if names else ""
        values = f"({', '.join('NULL' for _ in names)})" if names else ""
        connection.execute(f"PREPARE p{declared} AS ".encode() + text)
        return "\n".join(row[0] for row in connection.execute(f"EXPLAIN EXECUTE p{values}".encode()))
