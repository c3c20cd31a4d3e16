"""Token stores that hand every call on to another one: lifted into coroutines, to threads, or as a test has it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import Workers
from tokenvault.stores.errors import CLOSED
from tokenvault.stores.guard import Awaited, Guard
from tokenvault.stores.port import TokenStore

THREADS: Final = 4
"""Enough for reads to go on beside a write; SQLite has one writer at a time."""


class Forwarding(Guard):
    """A store with the methods of the port, each of which goes through `_forward`.

    The store behind checks arguments and rows itself.
    """

    locals().update(
        dict.fromkeys(Guard.__abstractmethods__)
    )  # an adapter's private methods, never asked here

    @abstractmethod
    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What a method does, by its name."""

    def _call(self, call: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
        return self._forward(call.__name__, *args, **kwargs)


class BlockingStore(Forwarding, Awaited):
    """A blocking token store as coroutines that never suspend."""

    def __init__(self, store: TokenStore) -> None:
        self._store: Final = store

    async def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._store, name)(*args, **kwargs)


class ThreadedTokenStore(Forwarding, Awaited):
    """Any blocking token store, for the tasks of any event loop: each call blocks a thread, not the loop.

    A call that is cancelled is done wholly or not at all, and is over when the cancellation arrives.

    Args:
        store: the blocking store; it is closed with this one.
    """

    def __init__(self, store: TokenStore) -> None:
        self._store: Final = store
        self._workers: Final = Workers(THREADS)

    async def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name != "close":
            if self._closed:
                raise TokenStoreError(CLOSED)
            return await self._workers.call(getattr(self._store, name), *args, **kwargs)
        closed, self._closed = self._closed, True
        if closed:
            return None
        try:
            return await self._workers.call(self._store.close)
        finally:
            self._workers.close()
