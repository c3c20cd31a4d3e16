"""The vault's two faces under one interface, and stores with coroutines as blocking ones: one suite runs on both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, cast

import uvloop

import tokenvault as tv
from tokenvault.keys import KeyStore
from tokenvault.stores import ThreadedTokenStore, open_async_token_store
from tokenvault.stores.port import TokenStore
from tokenvault.testing import TokenStoreOnALoop

LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
"""Python's own event loop, and the one that uvicorn takes where it is installed."""


def open_on_a_loop(url: str) -> TokenStore:
    return TokenStoreOnALoop(open_async_token_store(url))


def open_on_uvloop(url: str) -> TokenStore:
    return TokenStoreOnALoop(open_async_token_store(url), uvloop.new_event_loop)


def open_face(keys: KeyStore, store: TokenStore, **parts: Any) -> tv.Vault:
    """A Vault; over a store that is on a loop, an AsyncVault there, which each call awaits."""
    run = getattr(store, "run", None)  # also of a store on a loop that another one wraps
    if run is None:
        return tv.Vault(keys, store, **parts)
    native = store.store if isinstance(store, TokenStoreOnALoop) else ThreadedTokenStore(store)
    return cast(tv.Vault, OnALoopVault(tv.AsyncVault(keys, native, **parts), run))


def provision(keys: KeyStore, store: TokenStore, **parts: Any) -> None:
    """As either face does it."""
    if isinstance(store, TokenStoreOnALoop):
        store.run(tv.provision_async(keys, store.store, **parts))
    else:
        tv.provision(keys, store, **parts)


def asked_by_the_vault(store: TokenStore) -> object:
    """The store that the vault itself calls: the one to break."""
    return store.store if isinstance(store, TokenStoreOnALoop) else store


class OnALoopVault:
    """An AsyncVault, called from any thread."""

    def __init__(self, vault: tv.AsyncVault, run: Callable[[Any], Any]) -> None:
        self._vault = vault
        self._run = run
        run(vault.__aenter__())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._vault, name)
        return lambda *arguments, **named: self._run(method(*arguments, **named))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._vault.__aexit__(kind, error, trace))
