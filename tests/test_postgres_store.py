"""The PostgreSQL token stores keep the port's promises."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import ClassVar, TypeVar

import attrs
import pytest
from hypothesis import settings

from tests.postgres_server import PostgresServer
from tokenvault.stores import AsyncTokenStoreBase, open_async_token_store, open_token_store
from tokenvault.stores.port import PAGE_MAX, SealedEvent, SealedRecord, TokenStore
from tokenvault.testing.token_stores import StoreHarness, TokenStoreContract, TokenStoreMachine

T = TypeVar("T")


class OnALoop:
    """A store with coroutines, called from any thread: they run on an event loop in a thread of its own."""

    def __init__(self, store: AsyncTokenStoreBase) -> None:
        self.store = store
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, call: Coroutine[None, None, T]) -> T:
        if self.loop.is_closed():  # closed, as the store is: it says so without suspending
            return asyncio.run(call)
        return asyncio.run_coroutine_threadsafe(call, self.loop).result()

    def provision(self) -> None:
        self.run(self.store.provision())

    def check_schema(self) -> None:
        self.run(self.store.check_schema())

    def get(self, tokens: Sequence[str]) -> list[SealedRecord]:
        return self.run(self.store.get(tokens))

    def find(
        self, account: bytes, *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        return self.run(
            self.store.find(account, requestor=requestor, program=program, after=after, limit=limit)
        )

    def by_reference(self, reference: bytes) -> SealedRecord | None:
        return self.run(self.store.by_reference(reference))

    def insert(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        return self.run(self.store.insert(records, events))

    def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        return self.run(self.store.replace(records, events))

    def append(self, events: Sequence[SealedEvent]) -> None:
        self.run(self.store.append(events))

    def events(
        self, *, stream: bytes | None = None, reference: bytes | None = None,
        after: int = 0, limit: int = PAGE_MAX,
    ) -> list[SealedEvent]:  # fmt: skip
        return self.run(self.store.events(stream=stream, reference=reference, after=after, limit=limit))

    def streams(self) -> list[bytes]:
        return self.run(self.store.streams())

    def put_domain(self, digest: bytes, document: bytes) -> None:
        self.run(self.store.put_domain(digest, document))

    def get_domain(self, digest: bytes) -> bytes | None:
        return self.run(self.store.get_domain(digest))

    def scan(
        self, *, after: str = "", limit: int = PAGE_MAX, key_version: int | None = None
    ) -> list[SealedRecord]:
        return self.run(self.store.scan(after=after, limit=limit, key_version=key_version))

    def get_meta(self, name: str) -> bytes | None:
        return self.run(self.store.get_meta(name))

    def put_meta(self, name: str, value: bytes) -> bytes:
        return self.run(self.store.put_meta(name, value))

    def close(self) -> None:
        self.run(self.store.close())
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()


def open_on_a_loop(url: str) -> TokenStore:
    return OnALoop(open_async_token_store(url))


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
                f"SELECT token, reference, account, requestor, program, revision, key_version, body, seal"
                f" FROM {self.schema}.tokens WHERE token = %s".encode(), (token,)
            ).fetchone()  # fmt: skip
        return attrs.evolve(SealedRecord(*row), program=row[4].decode()) if row else None

    def raw_write(self, record: SealedRecord) -> None:
        row = {**attrs.asdict(record), "program": record.program.encode()}
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
    @pytest.fixture
    def harness(self, postgres_server: PostgresServer, postgres_url: str) -> StoreHarness:
        return PostgresHarness(postgres_server, open_on_a_loop, postgres_url)


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
TestPostgresMachine.settings = settings(max_examples=10, stateful_step_count=25, deadline=None)
TestAsyncPostgresMachine.settings = settings(max_examples=5, stateful_step_count=25, deadline=None)
