"""The PostgreSQL token stores keep the port's promises."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar, TypeVar

import attrs
import pytest
from hypothesis import settings

from tests.faces import open_on_a_loop, open_on_uvloop
from tests.postgres_server import PostgresServer
from tokenvault.stores import open_token_store
from tokenvault.stores.port import SealedRecord, TokenStore
from tokenvault.testing import Capability, StoreHarness, TokenStoreContract, TokenStoreMachine

T = TypeVar("T")
ON_A_LOOP = frozenset({Capability.DURABLE, Capability.PROCESSES})
"""Not FORKS: a child has no copy of the loop's thread, and opens a store of its own."""


@attrs.define
class PostgresHarness(StoreHarness):
    server: PostgresServer
    open_url: Callable[[str], TokenStore]
    url: str

    @property
    def schema(self) -> str:
        return self.url.rpartition("schema=")[2].partition("&")[0]

    def open(self) -> TokenStore:
        return self.open_url(self.url)

    def opener(self) -> Callable[[], TokenStore]:
        return functools.partial(self.open_url, self.url)

    def raw_read(self, token: str) -> SealedRecord | None:
        with self.server.raw() as connection:
            row = connection.execute(
                f"SELECT {', '.join(SealedRecord._fields)}"
                f" FROM {self.schema}.tokens WHERE token = %s".encode(), (token,)
            ).fetchone()  # fmt: skip
        return SealedRecord(*row)._replace(program=row[4].decode()) if row else None

    def raw_write(self, record: SealedRecord) -> None:
        row = {**record._asdict(), "program": record.program.encode()}
        names, places = ", ".join(row), ", ".join(f"%({name})s" for name in row)
        changes = ", ".join(f"{name} = excluded.{name}" for name in row)
        with self.server.raw() as connection:
            connection.execute(
                f"INSERT INTO {self.schema}.tokens ({names}) VALUES ({places})"
                f" ON CONFLICT (token) DO UPDATE SET {changes}".encode(), row
            )  # fmt: skip

    def raw_counts(self) -> tuple[int, int]:
        with self.server.raw() as connection:
            counts = connection.execute(
                f"SELECT (SELECT count(*) FROM {self.schema}.tokens),"
                f" (SELECT count(*) FROM {self.schema}.events)".encode()
            ).fetchone()
        assert counts is not None
        return counts[0], counts[1]


class TestPostgresTokenStore(TokenStoreContract):
    @pytest.fixture
    def harness(self, postgres_server: PostgresServer, postgres_url: str) -> StoreHarness:
        return PostgresHarness(postgres_server, open_token_store, postgres_url)


class TestAsyncPostgresTokenStore(TokenStoreContract):
    capabilities: ClassVar[frozenset[Capability]] = ON_A_LOOP

    @pytest.fixture
    def harness(self, postgres_server: PostgresServer, postgres_url: str) -> StoreHarness:
        return PostgresHarness(postgres_server, open_on_a_loop, postgres_url)


class TestUvloopPostgresTokenStore(TokenStoreContract):
    capabilities: ClassVar[frozenset[Capability]] = ON_A_LOOP

    @pytest.fixture
    def harness(self, postgres_server: PostgresServer, postgres_url: str) -> StoreHarness:
        return PostgresHarness(postgres_server, open_on_uvloop, postgres_url)


class TestPartitionedPostgresTokenStore(TokenStoreContract):
    @pytest.fixture
    def harness(self, postgres_server: PostgresServer) -> StoreHarness:
        return PostgresHarness(postgres_server, open_token_store, postgres_server.new_url(partitions="3"))


class PostgresMachine(TokenStoreMachine):
    server: ClassVar[PostgresServer]

    def open_url(self, url: str) -> TokenStore:
        return open_token_store(url)

    def open_store(self) -> TokenStore:
        self.url = self.server.new_url(partitions="2")
        return self.open_url(self.url)

    def reopen(self, store: TokenStore) -> TokenStore:
        store.close()
        return self.open_url(self.url)


class AsyncPostgresMachine(PostgresMachine):
    def open_url(self, url: str) -> TokenStore:
        return open_on_a_loop(url)


@pytest.fixture(scope="module")
def machines_have_a_server(postgres_server: PostgresServer) -> None:
    PostgresMachine.server = postgres_server


TestPostgresMachine = pytest.mark.usefixtures("machines_have_a_server")(PostgresMachine.TestCase)
TestAsyncPostgresMachine = pytest.mark.usefixtures("machines_have_a_server")(AsyncPostgresMachine.TestCase)
TestPostgresMachine.settings = settings(max_examples=10, stateful_step_count=25)
TestAsyncPostgresMachine.settings = settings(max_examples=5, stateful_step_count=25)
