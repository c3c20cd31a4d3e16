"""Where the vault's two faces differ: how they open, and where they run. Their methods are in `awaited`."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Self, TypeAlias

from tokenvault.errors import ConfigurationError, InvalidInputError, async_boundary
from tokenvault.runtime import CLOSED, BlockingRuntime, LoopRuntime, Runtime, run
from tokenvault.stores.forwarding import BlockingStore
from tokenvault.stores.port import AsyncTokenStore, TokenStore
from tokenvault.vault.core import Core

CLOSING_SECONDS_MAX: Final = 10.0
"""How long closing waits for calls under way."""

_POLL_SECONDS: Final = 0.001

Opening: TypeAlias = Callable[[AsyncTokenStore, Runtime], Coroutine[Any, Any, Core]]
"""Gives the core of a vault over a store and a runtime."""


class Face:
    """The core of a vault while it is open, and its calls under way: one entry each."""

    def __init__(self) -> None:
        self._core: Core | None = None
        self._calls: list[None] = []
        self._pid: Final = os.getpid()
        self._opened = False

    def _open(self) -> Core:
        """The core. Raises ConfigurationError unless the vault is open."""
        if self._core is None:
            not_open = "this vault is not open: open one with 'async with'"
            raise ConfigurationError(CLOSED if self._opened else not_open)
        return self._core

    async def _renew(self) -> None:
        """Read the key table again before the call, where that is due."""
        core = self._core
        if core is not None and core.key_versions.stale:
            await core.key_versions.refresh()

    async def _close(self) -> None:
        """Wait for calls under way, and close the trail."""
        core, self._core = self._core, None
        if core is None:
            return
        # A forked child does not know which of the calls are its own.
        until = time.monotonic() + (CLOSING_SECONDS_MAX if os.getpid() == self._pid else 0)
        try:
            while self._calls and time.monotonic() < until:
                await core.runtime.sleep(_POLL_SECONDS)
            await core.trail.close(core.clock.now_ms())
        finally:
            core.runtime.close()


class BlockingFace(Face):
    """A vault that opens when it is made, over a blocking store."""

    def __init__(self, store: TokenStore, opening: Opening) -> None:
        super().__init__()
        self._opened = True
        self._core = run(opening(BlockingStore(store), BlockingRuntime()))

    def _begin(self) -> None:
        core = self._core
        if core is not None and core.key_versions.stale:
            run(self._renew())

    def __enter__(self) -> Self:
        return self


class AwaitedFace(Face):
    """A vault that `async with` opens, over a store with coroutines."""

    def __init__(self, store: AsyncTokenStore, opening: Opening) -> None:
        super().__init__()
        self._store: Final = store
        self._opening: Final = opening

    _begin = Face._renew

    @async_boundary
    async def __aenter__(self) -> Self:
        if self._opened:
            raise ConfigurationError("this vault was opened before: make another")
        self._opened = True
        runtime = LoopRuntime()
        try:
            core = await self._opening(store_with_coroutines(self._store), runtime)
        except BaseException:
            runtime.close()
            raise
        runtime.keys = core.key_versions
        self._core = core
        return self


def store_with_coroutines(store: AsyncTokenStore) -> AsyncTokenStore:
    """A store that an AsyncVault takes. Raises InvalidInputError for a blocking one."""
    if not inspect.iscoroutinefunction(getattr(store, "check_schema", None)):
        raise InvalidInputError(
            "an AsyncVault takes a token store with coroutines: open it with open_async_token_store, or put a"
            " blocking one into a ThreadedTokenStore"
        )
    return store
