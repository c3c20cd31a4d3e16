"""What the vault needs of its surroundings: a clock, somewhere to block, and a way to run its coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, Protocol, TypeVar

from tokenvault.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")

CLOSED = "this vault is closed: open another"

MODULE_THREADS: Final = 16
"""Blocks that wait in several threads go to the module in one call (see `keys.pkcs11.coalescer`)."""


class Clock(Protocol):
    """The source of the time."""

    def now_ms(self) -> int:
        """Milliseconds of the Unix epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Milliseconds of the Unix epoch."""
        return time.time_ns() // 1_000_000


class Runtime(Protocol):
    """What a flow needs of its surroundings: somewhere to block, and a way to wait."""

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that may block on the key store. It has ended when this ends, cancelled or not."""
        ...

    async def block(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `call`, for a function that may use the module even where the vault's keys work in this process."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def close(self) -> None:
        """Let threads end; later calls may be refused. Idempotent."""
        ...


class BlockingRuntime:
    """Blocks where it is called: the runtime of `Vault`."""

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in this thread."""
        return function(*args, **kwargs)

    block = call

    async def sleep(self, seconds: float) -> None:
        """Block this thread for so many seconds."""
        time.sleep(seconds)

    def close(self) -> None:
        """There is nothing to end."""


def run(flow: Coroutine[None, None, T]) -> T:
    """Run a flow over blocking ports to its end. Raises what the flow raises."""
    try:
        flow.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    flow.close()
    raise RuntimeError("a flow over blocking ports was suspended")


class Workers:
    """A pool of threads, at most `threads`, started with the first calls. A forked child starts its own.

    A call that has begun is awaited to its end, also where it is cancelled: nothing goes on after
    the caller has its answer, and later calls see all that it did.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._renew()

    def _renew(self) -> None:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tokenvault")
        self._pid = os.getpid()

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in one of the threads. Raises what it raises, or RuntimeError after `close`."""
        if self._pid != os.getpid():
            self._renew()
        work = self._pool.submit(partial(function, *args, **kwargs))
        answer = asyncio.wrap_future(work)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            work.cancel()  # one that has not begun never will
            while not answer.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([answer])
            raise

    def close(self) -> None:
        """Let the threads end after the calls that they have. Idempotent."""
        self._pool.shutdown(wait=False)


class _Keys(Protocol):
    @property
    def blocking(self) -> bool: ...


class LoopRuntime:
    """Runs flows on asyncio, and what may block in threads."""

    def __init__(self) -> None:
        self.keys: _Keys | None = None  # until it is known which keys there are, they may block
        self._workers = Workers(MODULE_THREADS)
        self._closed = False

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that uses the keys, in a thread of its own where they may block."""
        if self.keys is not None and not self.keys.blocking:
            return function(*args, **kwargs)
        return await self.block(function, *args, **kwargs)

    async def block(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread of its own."""
        if self._closed:
            raise ConfigurationError(CLOSED)
        return await self._workers.call(function, *args, **kwargs)

    async def sleep(self, seconds: float) -> None:
        """Suspend this task for so many seconds."""
        await asyncio.sleep(seconds)

    def close(self) -> None:
        """Let the threads end; later calls are refused."""
        self._closed = True
        self._workers.close()
