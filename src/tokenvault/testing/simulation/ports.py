"""What a vault reaches in a simulated world: store, keys, a place to block, time and chance.

Each waits for the world's scheduler at every call, or answers from the world's seed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import threading
import time
import types
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import KeyStoreError, TokenStoreError
from tokenvault.keys.port import Custody, KeyName, KeyPurpose
from tokenvault.runtime import Attempt, Clock, Flows
from tokenvault.stores.forwarding import AsyncForwarding
from tokenvault.stores.port import TokenStore
from tokenvault.vault.awaited import AsyncVault
from tokenvault.vault.provision import PROVISIONED

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

WRITES: Final = frozenset({"insert", "replace", "append"})
"""Calls that leave records or events; a write has a second suspension, before its answer is there."""

KEYS: Final = "the key store"


class Scheduler(Protocol):
    """What the ports ask of the world."""

    store: TokenStore

    async def meet(
        self, name: str, effect: Callable[[], T], error: type[TokenStoreError | KeyStoreError]
    ) -> T:
        """Wait, and do what a port is asked for, or not. Raises `error` where that fails."""
        ...

    def writing(self, name: str, *args: Any) -> Callable[[], list[str] | None]:
        """The effect of a write of the coroutine that runs."""
        ...


@types.coroutine
def suspend(point: str) -> Generator[str, object, object]:
    """Wait for the scheduler. Returns what it sends."""
    return (yield point)


class SimulatedKeys:
    """AES keys that are there from the start: the same in each world. It makes none and signs nothing."""

    def __init__(self) -> None:
        self._ciphers = {
            KeyName(purpose, 1): LocalBlockCipher(hashlib.sha256(purpose.value.encode()).digest())
            for purpose in PROVISIONED
        }

    def cipher(self, key: KeyName) -> LocalBlockCipher:
        if key not in self._ciphers:
            raise KeyStoreError(f"the simulated key store has no {key}")
        return self._ciphers[key]

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        return (1,) if purpose in PROVISIONED else ()

    def create(self, purpose: KeyPurpose, custody: Custody, *, version: int | None = None) -> KeyName:
        raise KeyStoreError("the simulated key store makes no keys")

    def destroy(self, key: KeyName) -> None:
        raise KeyStoreError("the simulated key store destroys no keys")

    def signer(self) -> None:
        return None

    create_signer = signer

    def close(self) -> None:
        pass


@functools.cache
def simulated_keys() -> SimulatedKeys:
    """The keys of every world: made once."""
    return SimulatedKeys()


class SimulatedRuntime:
    """What a flow needs of its surroundings. A call of the key store may fail before it is made, or after."""

    def __init__(self, scheduler: Scheduler, slept: Callable[[float], None]) -> None:
        self._scheduler = scheduler
        self._slept = slept

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._scheduler.meet(KEYS, lambda: function(*args, **kwargs), KeyStoreError)

    block = call

    async def sleep(self, seconds: float) -> None:
        await suspend("a sleep")
        self._slept(seconds)

    async def attempt(self, flows: Flows, seconds: float) -> dict[str, Attempt]:
        attempts = {name: Attempt() for name in flows}
        for name, flow in flows.items():
            await attempts[name].work(flow)
        return attempts

    async def ask(
        self, seconds: float, function: Callable[[T], U | Awaitable[U]], argument: T
    ) -> Sequence[object]:
        await suspend("a question")
        return (function(argument),)

    def close(self) -> None:
        pass


class SimulatedStore(AsyncForwarding):
    """The store of the world, as one process reaches it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    async def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        scheduler = self._scheduler
        if name not in WRITES:
            read = functools.partial(getattr(scheduler.store, name), *args, **kwargs)
            return await scheduler.meet(name, read, TokenStoreError)
        answer = await scheduler.meet(name, scheduler.writing(name, *args), TokenStoreError)
        await suspend(f"the answer of {name}")
        return answer


class SimulatedVault(AsyncVault):
    """An AsyncVault that waits for a scheduler, not for a loop."""

    async def open_over(self, runtime: SimulatedRuntime) -> None:
        """Open it."""
        self._opened = True
        self._start(await self._opening(self._store, runtime))


@contextlib.contextmanager
def replaced(chance: random.Random, clock: Clock, monotonic: Callable[[], float]) -> Iterator[None]:
    """Time and chance of this thread are these; those of other threads stay."""
    own = threading.get_ident()

    def instead(real: Callable[P, T], simulated: Callable[P, T]) -> Callable[P, T]:
        def function(*args: P.args, **kwargs: P.kwargs) -> T:
            return (simulated if threading.get_ident() == own else real)(*args, **kwargs)

        return function

    table: list[tuple[Any, str, Callable[..., Any]]] = [
        (os, "urandom", chance.randbytes),
        (random, "_urandom", chance.randbytes),  # of SystemRandom, which `secrets` draws from
        (time, "time", lambda: clock.now_ms() / 1_000),
        (time, "time_ns", lambda: clock.now_ms() * 1_000_000),
        (time, "monotonic", monotonic),
    ]
    with contextlib.ExitStack() as undo:
        for module, name, simulated in table:
            real = getattr(module, name)
            setattr(module, name, instead(real, simulated))
            undo.callback(setattr, module, name, real)
        yield
