"""Where the vault's two faces differ: how they open, and where they run. Their methods are in `awaited`."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, NoReturn, Self, TypeAlias

from tokenvault.errors import (
    CallEnd,
    ConfigurationError,
    InvalidInputError,
    TokenVaultError,
    async_boundary,
    boundary,
)
from tokenvault.model import checks
from tokenvault.runtime import CLOSED, BlockingRuntime, LoopRuntime, Runtime, put_result, run
from tokenvault.stores.forwarding import BlockingStore
from tokenvault.stores.port import AsyncTokenStore, TokenStore
from tokenvault.vault.core import Core

CLOSING_SECONDS_MAX: Final = 10.0
"""How long closing waits for calls under way."""

_POLL_SECONDS: Final = 0.001

Opening: TypeAlias = Callable[[AsyncTokenStore, Runtime], Coroutine[Any, Any, Core]]
"""Gives the core of a vault over a store and a runtime."""


class Face:
    """The core of a vault while it is open, and its calls under way: a mark each."""

    def __init__(self) -> None:
        self._core: Core | None = None
        self._unclosed: list[Core] = []  # the core, until its trail is closed
        self._calls: set[object] = set()
        self._ended: CallEnd | None = None
        self._pid: Final = os.getpid()
        self._opened = False

    @boundary
    def __reduce__(self) -> NoReturn:
        raise InvalidInputError("a vault is not pickled: each process opens its own")

    def _open(self) -> Core:
        """The core. Raises ConfigurationError unless the vault is open."""
        if self._core is None:
            not_open = "this vault is not open: open one with 'async with'"
            raise ConfigurationError(CLOSED if self._opened else not_open, code="VAULT_NOT_OPEN")
        return self._core

    async def _renew(self) -> None:
        """Read the key table again before the call, where that is due."""
        core = self._core
        if core is not None and core.key_versions.stale:
            await core.key_versions.refresh()

    def _start(self, core: Core) -> None:
        """Open the vault."""
        self._unclosed.append(core)
        self._ended = None if core.deliveries is None else core.deliveries.call_ended
        self._core = core

    async def _close(self) -> None:
        """Wait for calls under way, and close the trail. After an interrupt, closing again goes on."""
        self._core = None
        closing: list[Core] = []
        try:
            with suppress(IndexError):  # closed already, or another thread does it
                put_result(closing, self._unclosed.pop)
            if closing:
                await self._close_core(closing[0])
                closing.pop()
        except TokenVaultError:  # it is closed all the same
            closing[0].runtime.close()
            closing.pop()
            raise
        finally:
            if closing:
                self._unclosed.append(closing[0])

    async def _close_core(self, core: Core) -> None:
        # A forked child does not know which of the calls are its own.
        until = time.monotonic() + (CLOSING_SECONDS_MAX if os.getpid() == self._pid else 0)
        while self._calls and time.monotonic() < until:
            await core.runtime.sleep(_POLL_SECONDS)
        await core.trail.close(core.clock.now_ms())
        if core.deliveries is not None and core.outer is None:
            await core.runtime.block(core.deliveries.close)
        core.runtime.close()


class BlockingFace(Face):
    """A vault that opens when it is made, over a blocking store."""

    def __init__(self, store: TokenStore, opening: Opening) -> None:
        super().__init__()
        self._store: Final = store
        blocking = store_without_coroutines(store)
        self._opened = True
        self._start(run(opening(blocking, BlockingRuntime())))

    def _anew(self, opening: Opening) -> Self:
        """Another vault over the same store."""
        other = type(self).__new__(type(self))
        BlockingFace.__init__(other, self._store, opening)
        return other

    def _begin(self) -> None:
        core = self._core
        if core is not None and core.key_versions.stale:
            run(self._renew())

    @boundary
    def __enter__(self) -> Self:
        self._open()
        return self


class AwaitedFace(Face):
    """A vault that `async with` opens, over a store with coroutines."""

    def __init__(self, store: AsyncTokenStore, opening: Opening) -> None:
        super().__init__()
        self._store: Final = store_with_coroutines(store)
        self._opening: Final = opening

    _begin = Face._renew

    def _anew(self, opening: Opening) -> Self:
        """Another vault over the same store."""
        other = type(self).__new__(type(self))
        AwaitedFace.__init__(other, self._store, opening)
        return other

    @async_boundary
    async def __aenter__(self) -> Self:
        if self._opened:
            raise ConfigurationError("this vault was opened before: make another", code="VAULT_NOT_OPEN")
        self._opened = True
        runtime = LoopRuntime()
        try:
            core = await self._opening(self._store, runtime)
        except BaseException:
            runtime.close()
            raise
        runtime.keys = core.key_versions
        self._start(core)
        return self


def store_without_coroutines(store: TokenStore) -> AsyncTokenStore:
    """A blocking store as the flows take it. Raises InvalidInputError for one with coroutines."""
    checks.blocking_store("store", store)
    return BlockingStore(store)


def store_with_coroutines(store: AsyncTokenStore) -> AsyncTokenStore:
    """A store that an AsyncVault takes. Raises InvalidInputError for a blocking one."""
    if not inspect.iscoroutinefunction(getattr(store, "check_schema", None)):
        raise InvalidInputError(
            "store is a token store with coroutines: open it with open_async_token_store, or put a"
            " blocking one into a ThreadedTokenStore"
        )
    return store
