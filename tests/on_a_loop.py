"""A store with coroutines as a blocking one, so that the conformance kit can drive it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Final, TypeVar

import uvloop

from tokenvault.stores import AsyncTokenStore, open_async_token_store
from tokenvault.stores.port import PAGE_MAX, SealedEvent, SealedRecord, TokenStore

T = TypeVar("T")

LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
"""Python's own event loop, and the one that uvicorn takes where it is installed."""


class OnALoop:
    """A store with coroutines, called from any thread: they run on an event loop in a thread of its own."""

    def __init__(
        self,
        store: AsyncTokenStore,
        new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self.store = store
        self.loop = new_event_loop()
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

    def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        return self.run(self.store.get(tokens))

    def find(
        self, pan_fingerprint: bytes | Sequence[bytes], *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        return self.run(
            self.store.find(pan_fingerprint, requestor=requestor, program=program, after=after, limit=limit)
        )

    def by_reference(self, reference: bytes) -> SealedRecord | None:
        return self.run(self.store.by_reference(reference))

    def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]:
        return self.run(self.store.insert(records, events, document))

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

    def latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        return self.run(self.store.latest_checkpoints(limit))

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


def open_on_uvloop(url: str) -> TokenStore:
    return OnALoop(open_async_token_store(url), uvloop.new_event_loop)
