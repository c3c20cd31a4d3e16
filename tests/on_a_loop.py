"""Token stores with coroutines as blocking ones, on Python's own event loop and on another."""

from __future__ import annotations

import asyncio
from typing import Final

import uvloop

from tokenvault.stores import open_async_token_store
from tokenvault.stores.port import TokenStore
from tokenvault.testing import TokenStoreOnALoop

LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
"""Python's own event loop, and the one that uvicorn takes where it is installed."""


def open_on_a_loop(url: str) -> TokenStore:
    return TokenStoreOnALoop(open_async_token_store(url))


def open_on_uvloop(url: str) -> TokenStore:
    return TokenStoreOnALoop(open_async_token_store(url), uvloop.new_event_loop)
