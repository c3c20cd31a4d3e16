"""A token store with coroutines as a blocking one, so that the conformance kit, or any thread, can drive it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.port import AsyncTokenStore

T = TypeVar("T")


class TokenStoreOnALoop(Forwarding):
    """A store with coroutines, called from any thread: they run on an event loop in a thread of its own.

    Closing it closes the store, and ends the loop and the thread.

        class MyHarness(StoreHarness):
            def open(self):
                return TokenStoreOnALoop(MyAsyncTokenStore(...))

    Args:
        store: the store; it is used on this loop alone.
        new_event_loop: makes the loop, such as `uvloop.new_event_loop`.

    Attributes:
        store: the same store.
    """

    def __init__(
        self,
        store: AsyncTokenStore,
        new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self.store: Final = store
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, to its end."""
        if self._loop.is_closed():  # closed, as the store is: it says so without suspending
            return asyncio.run(call)
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.run(getattr(self.store, name)(*args, **kwargs))
        finally:
            if name == "close" and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
