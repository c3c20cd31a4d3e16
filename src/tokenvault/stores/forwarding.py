"""Token stores that forward every call to another one: as coroutines, in threads, or as a test decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import Workers
from tokenvault.stores.guard import CLOSED
from tokenvault.stores.port import AsyncTokenStore, TokenStore, class_over

THREADS: Final = 4
"""Enough for reads to go on during a write; SQLite has one writer at a time."""

if TYPE_CHECKING:

    class Forwarding(TokenStore, ABC):
        """A blocking store, each of whose methods goes through `_forward`."""

        @abstractmethod
        def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
            """Do what the method of a name does."""

    class AsyncForwarding(AsyncTokenStore, ABC):
        """A store with coroutines, each of whose methods goes through `_forward`."""

        @abstractmethod
        async def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
            """Do what the method of a name does."""

    class _Lifted(AsyncTokenStore):
        """The methods of a store with coroutines, each of which calls that of `_store`."""

else:

    def _forwarded(name):
        return lambda self, *args, **kwargs: self._forward(name, *args, **kwargs)

    def _forwarded_async(name):
        async def method(self, *args, **kwargs):
            return await self._forward(name, *args, **kwargs)

        return method

    def _lifted(name):
        async def method(self, *args, **kwargs):
            return getattr(self._store, name)(*args, **kwargs)

        return method

    Forwarding = class_over(TokenStore, _forwarded)
    AsyncForwarding = class_over(AsyncTokenStore, _forwarded_async)
    _Lifted = class_over(AsyncTokenStore, _lifted)


class BlockingStore(_Lifted):
    """A blocking token store as coroutines that never suspend."""

    def __init__(self, store: TokenStore) -> None:
        self._store: Final = store
        self.write_limits = store.write_limits

    async def writers(self) -> set[str]:
        """The transactions that have written and are not over; none where the store has no transactions of a host."""
        found: set[str] = getattr(self._store, "writers", set)()
        return found


class ThreadedTokenStore(AsyncForwarding):
    """Any blocking token store, for the tasks of any event loop: each call blocks a thread, not the loop.

    A call that is cancelled is done wholly or not at all, and is over when the cancellation arrives.

    Args:
        store: the blocking store; it is closed with this one.
    """

    def __init__(self, store: TokenStore) -> None:
        self._store: Final = store
        self.write_limits = store.write_limits
        self._closed = False
        self._workers: Final = Workers(THREADS)

    async def writers(self) -> set[str]:
        """As `BlockingStore.writers`."""
        found: set[str] = await self._workers.call(getattr(self._store, "writers", set))
        return found

    async def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name != "close":
            if self._closed:
                raise TokenStoreError(CLOSED, code="STORE_CLOSED")
            return await self._workers.call(getattr(self._store, name), *args, **kwargs)
        closed, self._closed = self._closed, True
        if closed:
            return None
        try:
            return await self._workers.call(self._store.close)
        finally:
            self._workers.close()
