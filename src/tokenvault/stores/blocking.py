"""Blocking token stores as coroutines that never suspend."""

from __future__ import annotations

from collections.abc import Sequence

from tokenvault.stores.port import PAGE_MAX, SealedEvent, SealedRecord, TokenStore


class BlockingStore:
    """A blocking token store as coroutines that never suspend."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store

    async def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        """As in TokenStore."""
        return self._store.get(tokens)

    async def find(
        self,
        pan_fingerprint: bytes | Sequence[bytes],
        *,
        requestor: str | None = None,
        program: str | None = None,
        after: str = "",
        limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:
        """As in TokenStore."""
        return self._store.find(
            pan_fingerprint, requestor=requestor, program=program, after=after, limit=limit
        )

    async def by_reference(self, reference: bytes) -> SealedRecord | None:
        """As in TokenStore."""
        return self._store.by_reference(reference)

    async def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]:
        """As in TokenStore."""
        return self._store.insert(records, events, document)

    async def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        """As in TokenStore."""
        return self._store.replace(records, events)

    async def append(self, events: Sequence[SealedEvent]) -> None:
        """As in TokenStore."""
        self._store.append(events)

    async def events(
        self,
        *,
        stream: bytes | None = None,
        reference: bytes | None = None,
        after: int = 0,
        limit: int = PAGE_MAX,
    ) -> list[SealedEvent]:
        """As in TokenStore."""
        return self._store.events(stream=stream, reference=reference, after=after, limit=limit)

    async def latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        """As in TokenStore."""
        return self._store.latest_checkpoints(limit)

    async def put_domain(self, digest: bytes, document: bytes) -> None:
        """As in TokenStore."""
        self._store.put_domain(digest, document)

    async def get_domain(self, digest: bytes) -> bytes | None:
        """As in TokenStore."""
        return self._store.get_domain(digest)

    async def get_meta(self, name: str) -> bytes | None:
        """As in TokenStore."""
        return self._store.get_meta(name)

    async def put_meta(self, name: str, value: bytes) -> bytes:
        """As in TokenStore."""
        return self._store.put_meta(name, value)

    async def provision(self) -> None:
        """As in TokenStore."""
        self._store.provision()

    async def check_schema(self) -> None:
        """As in TokenStore."""
        self._store.check_schema()
