"""Threads that block, so that an event loop need not."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """At most so many threads, started with the first calls. A forked child starts its own.

    A call that has begun is awaited to its end, also where it is cancelled: nothing goes on behind the
    caller's back, and whoever looks afterwards sees all that it did.
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
