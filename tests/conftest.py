"""Fixtures that many tests use."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import engine

import tokenvault as tv
from tests import faces, softhsm, vaults
from tests.faces import open_on_a_loop
from tests.interrupts import handled, limit, untraced
from tests.measuring import unmeasured
from tests.postgres_server import PostgresServer, memory_disk
from tests.strategies import NOW_MS
from tokenvault.keys import FileKeyStore, KeyStore
from tokenvault.keys import file as key_file
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock

__all__ = ["handled", "limit", "untraced"]  # fixtures

settings.register_profile("without deadline", deadline=None)  # how long a call takes proves nothing here
settings.load_profile("without deadline")
settings.register_profile(
    "other-pythons", deadline=None, max_examples=25
)  # where a test does not say how many

# What fails is to say so within a minute: a state machine over a database is shrunk for five otherwise. It is no
# setting of Hypothesis's; tests/test_shrinking.py notices a version that calls it something else.
engine.MAX_SHRINKING_SECONDS = 20


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Make the folders of tests on a disk in memory, where there is one."""
    if place := memory_disk():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", place)


@pytest.fixture(scope="session")
def softhsm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The token folder of this test run."""
    folder = tmp_path_factory.mktemp("softhsm")
    softhsm.set_up(folder)
    return folder


@pytest.fixture
def softhsm_uri(softhsm_folder: Path) -> str:
    """The URI of a fresh, empty SoftHSM token with a PIN file."""
    return softhsm.new_token(softhsm_folder)


@pytest.fixture(scope="session")
def shared_softhsm_uri(softhsm_folder: Path) -> str:
    """The URI of one SoftHSM token for all tests that do not mind the keys of others in it."""
    return softhsm.new_token(softhsm_folder)


ASYNC_STORES = {"async-sqlite": tv.Custody.IN_MODULE, "async-postgres": tv.Custody.IN_PROCESS}
"""Each with keys in one custody: the flows are those of the other stores."""

PARTNERS = {
    "memory": tv.Custody.IN_MODULE,
    "sqlite": tv.Custody.IN_PROCESS,
    "postgres": tv.Custody.IN_PROCESS,
    **ASYNC_STORES,
}
"""The custody that each store is tested with by day."""

VARIANTS = ("TestPartitioned", "TestUvloop", "TestOwn")
"""How the names of classes begin that run a contract over what another one runs it over, but for a detail."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the stores with coroutines in the other custody.

    Leave to the night what needs both keys in the module and a database in PostgreSQL, where it says `database`; and
    where it says `store`, every store with the other custody than its partner's. Keys and databases know nothing of
    each other: by day each custody is tested over stores of both faces, and each store with keys in one.
    """
    items[:] = [
        item
        for item in items
        if ASYNC_STORES.get(parameters(item).get("store", "")) in (None, parameters(item).get("custody"))
    ]
    for item in items:
        custody, store = parameters(item).get("custody"), parameters(item).get("store", "")
        if (custody, parameters(item).get("database")) == (tv.Custody.IN_MODULE, "postgres"):
            item.add_marker(pytest.mark.nightly)
        if custody is not None and PARTNERS.get(store, custody) is not custody:
            item.add_marker(pytest.mark.nightly)
        # The same statements on one table as on its partitions, with coroutines on any event loop; and nobody uses
        # the how-to's adapter: their processes are left to the night. What runs no line of its own is not measured.
        variant = any(name in item.nodeid for name in VARIANTS)
        if variant or item.name.endswith("_by_processes"):
            item.add_marker(pytest.mark.unmeasured)
        if (variant or "TestAsync" in item.nodeid) and item.name.endswith("_by_processes"):
            item.add_marker(pytest.mark.nightly)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Measure no test that has the mark `unmeasured`; and let none end the measuring of those after it."""
    with unmeasured() if item.get_closest_marker("unmeasured") else nullcontext():
        tracer = sys.gettrace()
        result = yield
        assert sys.gettrace() is tracer, "the test took away what traced before it"
        return result


def parameters(item: pytest.Item) -> dict[str, Any]:
    """What a test is run with; nothing for one that has no parameters."""
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


# A vault: keys in the module and in the process, each on real SoftHSM, over every store; and with coroutines.


@pytest.fixture(scope="session", params=tv.Custody, ids=lambda custody: custody.value)
def custody(request: pytest.FixtureRequest) -> tv.Custody:
    """Where the vault's keys do their work: every test of the vault runs with both, by day or by night."""
    return tv.Custody(request.param)


@pytest.fixture(scope="session")
def keys(custody: tv.Custody, softhsm_folder: Path) -> Iterator[KeyStore]:
    """A key store with the vault's keys, shared by the tests that add none."""
    with_keys = new_keys(softhsm_folder, custody)
    yield with_keys
    with_keys.close()


@pytest.fixture
def fresh_keys(custody: tv.Custody, softhsm_folder: Path) -> Iterator[KeyStore]:
    """A key store with the vault's keys, for a test that adds to them."""
    with_keys = new_keys(softhsm_folder, custody)
    yield with_keys
    with_keys.close()


@pytest.fixture
def other_keys(softhsm_uri: str) -> Iterator[KeyStore]:
    """A key store without keys."""
    empty = tv.open_key_store(softhsm_uri)
    yield empty
    empty.close()


def new_keys(folder: Path, custody: tv.Custody) -> KeyStore:
    key_store = tv.open_key_store(softhsm.new_token(folder))
    tv.provision(key_store, tv.open_token_store("memory:"), custody=custody)
    return key_store


@pytest.fixture(params=["memory", "sqlite", "postgres", *ASYNC_STORES])
def store(request: pytest.FixtureRequest, keys: KeyStore, tmp_path: Path) -> Iterator[TokenStore]:
    """A provisioned store without tokens; over one of ASYNC_STORES `vaults.open_vault` opens an AsyncVault."""
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/vault.db"
    if request.param.endswith("postgres"):
        url = request.getfixturevalue("postgres_url")
    opened = open_on_a_loop(url) if request.param in ASYNC_STORES else tv.open_token_store(url)
    faces.provision(keys, opened)
    yield opened
    opened.close()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store of each kind."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/vault.db"


@pytest.fixture
def clock() -> ManualClock:
    """The vault's clock."""
    return ManualClock(NOW_MS)


@pytest.fixture
def vault(keys: KeyStore, store: TokenStore, clock: ManualClock) -> Iterator[tv.Vault]:
    """A vault with the programs and requestors of tests.vaults."""
    with vaults.open_vault(keys, store, clock) as opened:
        yield opened


# Keys in a file: for tests of many thousand calls.


@pytest.fixture(scope="session")
def local_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyStore]:
    """A key store whose keys come from a file."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "passphrase").write_text("correct horse battery staple")
    key_store = FileKeyStore(f"file:{folder}/keys.json?passphrase-source=file:{folder}/passphrase")
    tv.provision(key_store, tv.open_token_store("memory:"))
    yield key_store
    key_store.close()


@pytest.fixture(params=["memory", "sqlite", "postgres", *ASYNC_STORES])
def local_store(request: pytest.FixtureRequest, local_keys: KeyStore, tmp_path: Path) -> Iterator[TokenStore]:
    """As `store`, for vaults with keys in a file; tokens are found by last four digits too."""
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/local.db"
    if request.param.endswith("postgres"):
        url = request.getfixturevalue("postgres_url")
    opened = open_on_a_loop(url) if request.param in ASYNC_STORES else tv.open_token_store(url)
    faces.provision(local_keys, opened, find_by_last4=True)
    yield opened
    opened.close()


@pytest.fixture
def local_vault(local_keys: KeyStore, local_store: TokenStore, clock: ManualClock) -> Iterator[tv.Vault]:
    """A vault with keys in a file: for tests of many calls over every store."""
    with vaults.open_vault(local_keys, local_store, clock) as opened:
        yield opened


@pytest.fixture
def quick_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """scrypt with little work, for a test's own files of keys: its strength has a test of its own."""
    monkeypatch.setitem(key_file.SCRYPT, "n", 2**4)


@pytest.fixture
def own_keys(tmp_path: Path, quick_scrypt: None) -> Iterator[KeyStore]:
    """A key store of the test's own, whose keys come from a file: what is made and destroyed there harms no other."""
    (tmp_path / "passphrase").write_text("correct horse battery staple")
    address = f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/passphrase"
    with closing(tv.open_key_store(address)) as opened:
        yield opened


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server, running."""
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The address of an empty token store."""
    return postgres_server.new_url()
