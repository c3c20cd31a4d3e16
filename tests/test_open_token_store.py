"""Addresses of token stores: what they open, and which error comes of all else."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvault import stores
from tokenvault.errors import InvalidInputError, TokenStoreError, TokenVaultError
from tokenvault.stores import open_async_token_store, open_token_store
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.sqlite.store import SqliteTokenStore


def test_memory_opens_a_store_in_memory() -> None:
    with closing(open_token_store("memory:")) as store:
        assert isinstance(store, MemoryTokenStore)


def test_a_relative_path_is_relative_to_the_folder_at_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is relative to the folder at the time of opening."""
    monkeypatch.chdir(tmp_path)
    with closing(open_token_store("sqlite:///vault.db")) as store:
        assert isinstance(store, SqliteTokenStore)
        assert list(tmp_path.iterdir()) == []
        monkeypatch.chdir("/")
        store.provision()
    assert (tmp_path / "vault.db").exists()


@pytest.mark.parametrize(
    ("encoded", "name"),
    [("vault.db", "vault.db"), ("a b%20c", "a b c"), ("100%25", "100%"), ("%3F%23", "?#"), ("ä%C3%A4", "ää")],
)
def test_an_absolute_path_is_decoded(tmp_path: Path, encoded: str, name: str) -> None:
    with closing(open_token_store(f"sqlite:///{tmp_path}/{encoded}")) as store:
        store.provision()
        store.check_schema()
        assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("memory:x", "nothing after it"),
        ("memory", "begins with one of"),
        ("", "begins with one of"),
        ("mysql://host/db", "memory:, sqlite:"),
        ("SQLITE:///x", "begins with one of"),
        ("sqlite:", "sqlite:///relative.db"),
        ("sqlite:vault.db", "sqlite:///relative.db"),
        ("sqlite://host/vault.db", "sqlite:///relative.db"),
        ("sqlite:///", "sqlite:///relative.db"),
        ("sqlite:///:memory:", "'memory:'"),
        ("sqlite:///vault.db?mode=ro", "no options"),
        ("sqlite:///vault.db#x", "no options"),
        ("sqlite:///a%00b", "percent-encoded"),
        ("sqlite:///a%ffb", "percent-encoded"),
        ("sqlite:///\ud800", "path"),
        (None, "str"),
        (b"memory:", "str"),
        (7, "str"),
    ],
)
def test_an_address_of_another_form_is_refused_with_what_to_write(url: str, advice: str) -> None:
    with pytest.raises(InvalidInputError, match=advice) as caught:
        open_token_store(url)
    assert caught.value.__context__ is None


def test_the_public_face_has_every_adapter() -> None:
    """Those of PostgreSQL are imported when they are asked for, and nothing else is there by accident."""
    for name in stores.__all__:
        assert getattr(stores, name).__name__ == name
    assert issubclass(stores.PostgresTokenStore, stores.TokenStoreBase)
    assert issubclass(stores.AsyncPostgresTokenStore, stores.AsyncTokenStoreBase)
    with pytest.raises(AttributeError, match="NoSuchStore"):
        _ = stores.NoSuchStore


@given(st.one_of(st.text(), st.text().map("sqlite:///".__add__), st.from_type(type).flatmap(st.from_type)))
def test_any_address_opens_or_is_an_error_of_the_library(url: str) -> None:
    try:
        store = open_token_store(url)
    except TokenVaultError:
        return
    store.close()


@pytest.mark.parametrize("scheme", ["memory:", "sqlite:///"])
def test_every_address_opens_with_coroutines_too(tmp_path: Path, scheme: str) -> None:
    """What has no coroutines of its own blocks threads; what is written is there for the other kind of store."""
    url = scheme if scheme == "memory:" else f"{scheme}{tmp_path}/vault.db"

    async def work() -> None:
        store = open_async_token_store(url)
        await store.provision()
        assert await store.put_meta("name", b"value") == b"value"
        assert await asyncio.gather(*(store.get_meta("name") for _ in range(50))) == [b"value"] * 50
        await store.close()
        with pytest.raises(TokenStoreError, match="closed"):
            await store.get_meta("name")

    asyncio.run(work())
    if url != "memory:":
        with closing(open_token_store(url)) as store:
            assert store.get_meta("name") == b"value"
