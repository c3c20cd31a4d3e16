"""A database that an earlier tree made is refused, by a text that says so, and stays as it was."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

import tokenvault as tv
from tests.postgres_server import PostgresServer, new_name
from tokenvault.keys import KeyStore

FIRST_EDITION = (Path(__file__).parent / "vectors" / "first_edition.sql").read_text(encoding="utf-8")


def refused(keys: KeyStore, url: str, told: str) -> None:
    calls: tuple[Callable[[tv.TokenStore], object], ...] = (
        lambda store: store.check_schema(),
        lambda store: tv.provision(keys, store),
        lambda store: tv.Vault(keys, store),
        lambda store: tv.verify_audit(store, keys=keys),
    )
    for call in calls:
        with closing(tv.open_token_store(url)) as store, pytest.raises(tv.TokenVaultError) as caught:
            call(store)
        assert type(caught.value) in (tv.ConfigurationError, tv.TokenStoreError)
        assert caught.value.code == "STORE_OLDER"
        assert told in str(caught.value)


def test_a_file_of_the_first_edition_is_refused_as_older_and_stays_as_it_was(
    local_keys: KeyStore, tmp_path: Path
) -> None:
    path = tmp_path / "vault.db"
    with closing(sqlite3.connect(path)) as made:
        made.executescript(FIRST_EDITION)
        before = list(made.iterdump())
    refused(local_keys, f"sqlite:///{path}", "older release of tokenvault")
    with closing(sqlite3.connect(path)) as kept:
        assert list(kept.iterdump()) == before


def test_a_schema_of_the_first_edition_is_refused_as_older(
    local_keys: KeyStore, postgres_server: PostgresServer
) -> None:
    """In PostgreSQL it noted its version in a table of the same name."""
    schema = new_name()
    url = postgres_server.url(schema=schema)
    with closing(tv.open_token_store(url)) as store:
        tv.provision(local_keys, store)
    with postgres_server.raw() as superuser:
        tables = superuser.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = %s", (schema,)
        ).fetchall()
        (version,) = [name for (name,) in tables if "version" in name]
        superuser.execute(
            psycopg.sql.SQL("UPDATE {} SET version = 1, reached = NULL").format(
                psycopg.sql.Identifier(schema, version)
            )
        )
    refused(local_keys, url, "older release of tokenvault")
