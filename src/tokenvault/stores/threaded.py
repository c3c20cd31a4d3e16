"""A blocking token store with coroutines: each call blocks a thread, not the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenvault.runtime import Workers
from tokenvault.stores.async_guard import AsyncTokenStoreBase
from tokenvault.stores.port import SealedEvent, SealedRecord, TokenStore

THREADS: Final = 4
"""Enough for reads to go on beside a write; SQLite has one writer at a time."""


class ThreadedTokenStore(AsyncTokenStoreBase):
    """Any blocking token store, for the tasks of any event loop.

    A call that is cancelled is done wholly or not at all, and is over when the cancellation arrives.

    Args:
        store: the blocking store; it is closed with this one.
    """

    def __init__(self, store: TokenStore) -> None:
        self._store: Final = store
        self._workers: Final = Workers(THREADS)

    async def _provision(self) -> None:
        await self._workers.call(self._store.provision)

    async def _check_schema(self) -> None:
        await self._workers.call(self._store.check_schema)

    async def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        return await self._workers.call(self._store.get, tokens)

    async def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> list[SealedRecord]:
        return await self._workers.call(
            self._store.find, pan_fingerprints, requestor=requestor, program=program, after=after, limit=limit
        )

    async def _by_reference(self, reference: bytes) -> SealedRecord | None:
        return await self._workers.call(self._store.by_reference, reference)

    async def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        return await self._workers.call(self._store.insert, records, events, document)

    async def _replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        return await self._workers.call(self._store.replace, records, events)

    async def _append(self, events: Sequence[SealedEvent]) -> None:
        await self._workers.call(self._store.append, events)

    async def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        return await self._workers.call(
            self._store.events, stream=stream, after=max(first - 1, -1), limit=limit
        )

    async def _events_about(self, reference: bytes, after: int, limit: int) -> list[SealedEvent]:
        return await self._workers.call(self._store.events, reference=reference, after=after, limit=limit)

    async def _streams(self) -> list[bytes]:
        return await self._workers.call(self._store.streams)

    async def _latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        return await self._workers.call(self._store.latest_checkpoints, limit)

    async def _put_domain(self, digest: bytes, document: bytes) -> None:
        await self._workers.call(self._store.put_domain, digest, document)

    async def _get_domain(self, digest: bytes) -> bytes | None:
        return await self._workers.call(self._store.get_domain, digest)

    async def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]:
        return await self._workers.call(self._store.scan, after=after, limit=limit, key_version=key_version)

    async def _get_meta(self, name: str) -> bytes | None:
        return await self._workers.call(self._store.get_meta, name)

    async def _put_meta(self, name: str, value: bytes) -> bytes:
        return await self._workers.call(self._store.put_meta, name, value)

    async def _close(self) -> None:
        try:
            await self._workers.call(self._store.close)
        finally:
            self._workers.close()
