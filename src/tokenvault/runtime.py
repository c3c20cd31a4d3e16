"""What the vault needs of its surroundings: a clock, somewhere to block, and a way to run its coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat, starmap
from typing import Any, Final, ParamSpec, Protocol, TypeAlias, TypeVar

import attrs

from tokenvault.errors import ConfigurationError, InvalidInputError
from tokenvault.interrupts import is_interrupt

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

CLOSED = "this vault is closed: open another"

NOW_MS_MAX: Final = 253_402_300_799_999
"""The last millisecond of the year 9999, the last one that Python's dates have."""

MODULE_THREADS: Final = 16
"""Blocks that wait in several threads go to the module in one call (see `keys.pkcs11.coalescer`)."""


ASKED_MAX: Final = 64
"""Calls of functions of the host's own that may be under way: those that hang stay so."""

_asked: Final[dict[int, set[object]]] = {}
"""By process id, a mark for each of them that is in a thread."""


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


class CheckedClock:
    """A clock of the caller's, whose times are checked: what it raises or gives can be anything."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now_ms(self) -> int:
        """Milliseconds of the Unix epoch. Raises InvalidInputError."""
        try:
            now_ms = self._clock.now_ms()
        except Exception as error:  # its own, with whatever that holds
            if is_interrupt(error):
                raise
            raise InvalidInputError("clock failed in now_ms()", code="CLOCK") from None
        if type(now_ms) is not int or not 0 <= now_ms <= NOW_MS_MAX:
            raise InvalidInputError(
                "clock gives milliseconds of the Unix epoch by now_ms(): a whole number, from 1970 to 9999",
                code="CLOCK",
            )
        return now_ms


@attrs.define(eq=False)
class Attempt:
    """A flow that runs beside its caller, who waits for it only so long.

    Attributes:
        begun_ns, ended_ns: when, by `time.perf_counter_ns`; None until it has ended.
        result: what it returned.
        error: what it raised.
    """

    begun_ns: int = attrs.field(factory=time.perf_counter_ns)
    ended_ns: int | None = None
    result: str = ""
    error: BaseException | None = None

    async def work(self, flow: Callable[[], Coroutine[Any, Any, str]]) -> None:
        """Run the flow."""
        try:
            self.result = await flow()
        except BaseException as error:
            self.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self.ended_ns = time.perf_counter_ns()


Flows: TypeAlias = Mapping[str, Callable[[], Coroutine[Any, Any, str]]]


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

    async def attempt(self, flows: Flows, seconds: float) -> dict[str, Attempt]:
        """Run flows beside each other, and wait for them for at most so many seconds.

        One that has not ended goes on. It is not begun again under its name before it has ended.
        """
        ...

    async def ask(
        self, seconds: float, function: Callable[[T], U | Awaitable[U]], argument: T
    ) -> Sequence[object]:
        """Call a function of the host's own. Its result, alone; nothing where it failed or took longer."""
        ...

    def close(self) -> None:
        """Let threads end; later calls may be refused. Idempotent."""
        ...


class BlockingRuntime:
    """Blocks where it is called: the runtime of `Vault`."""

    def __init__(self) -> None:
        self._attempts: Final[dict[tuple[int, str], tuple[Attempt, threading.Thread]]] = {}

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in this thread."""
        return function(*args, **kwargs)

    block = call

    async def sleep(self, seconds: float) -> None:
        """Block this thread for so many seconds."""
        time.sleep(seconds)

    async def attempt(self, flows: Flows, seconds: float) -> dict[str, Attempt]:
        """Run flows in threads that do not hold up the end of the process. A forked child has its own."""
        until = time.monotonic() + seconds
        attempts = {name: self._begin(name, flow) for name, flow in flows.items()}
        for _, thread in attempts.values():
            thread.join(max(0.0, until - time.monotonic()))
        return {name: attempt for name, (attempt, _) in attempts.items()}

    def _begin(
        self, name: str, flow: Callable[[], Coroutine[Any, Any, str]]
    ) -> tuple[Attempt, threading.Thread]:
        key = os.getpid(), name
        begun = self._attempts.get(key)
        if begun is None or not begun[1].is_alive():
            attempt = Attempt()
            thread = threading.Thread(
                target=lambda: run(attempt.work(flow)), name=f"tokenvault-{name}", daemon=True
            )
            begun = attempt, thread
            thread.start()
            self._attempts[key] = begun
        return begun

    async def ask(
        self, seconds: float, function: Callable[[T], U | Awaitable[U]], argument: T
    ) -> Sequence[object]:
        """Call a function of the host's own, in a thread that is left alone where it takes longer."""
        results: queue.SimpleQueue[list[object]] = queue.SimpleQueue()
        mark, under_way = object(), _asked.setdefault(os.getpid(), set())

        def work() -> None:
            result: list[object] = []
            try:
                result.append(function(argument))
            except BaseException:  # noqa: BLE001, S110 # whatever it holds: it ends here
                pass
            finally:
                results.put(result)
                under_way.discard(mark)

        if len(under_way) >= ASKED_MAX:
            return ()
        try:
            under_way.add(mark)
            threading.Thread(target=work, name="tokenvault-ask", daemon=True).start()
        except BaseException as error:
            under_way.discard(mark)
            if isinstance(error, RuntimeError) and not is_interrupt(error):  # no thread is to be had
                return ()
            raise
        with contextlib.suppress(queue.Empty):
            return results.get(timeout=seconds)
        return ()

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
    the caller has its answer, and later calls see all that it did. So this wait is as long as what is called waits,
    for the module or the database: that has a bound.
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
        self._attempts: Final[dict[str, tuple[Attempt, asyncio.Task[None]]]] = {}
        self._asked: set[asyncio.Task[list[object]]] = set()
        self._closed = False

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that uses the keys, in a thread of its own where they may block."""
        if self.keys is not None and not self.keys.blocking:
            return function(*args, **kwargs)
        return await self.block(function, *args, **kwargs)

    async def block(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread of its own."""
        if self._closed:
            raise ConfigurationError(CLOSED, code="VAULT_NOT_OPEN")
        return await self._workers.call(function, *args, **kwargs)

    async def sleep(self, seconds: float) -> None:
        """Suspend this task for so many seconds."""
        await asyncio.sleep(seconds)

    async def attempt(self, flows: Flows, seconds: float) -> dict[str, Attempt]:
        """Run flows in tasks of their own."""
        attempts = {}
        for name, flow in flows.items():
            if name not in self._attempts or self._attempts[name][1].done():
                attempt = Attempt()
                self._attempts[name] = attempt, asyncio.create_task(attempt.work(flow))
            attempts[name] = self._attempts[name]
        await asyncio.wait([task for _, task in attempts.values()], timeout=seconds)
        return {name: attempt for name, (attempt, _) in attempts.items()}

    async def ask(
        self, seconds: float, function: Callable[[T], U | Awaitable[U]], argument: T
    ) -> Sequence[object]:
        """Call a coroutine function of the host's own; where it takes longer, it is cancelled and left alone."""
        if len(self._asked) >= ASKED_MAX:
            return ()

        async def work() -> list[object]:
            with contextlib.suppress(Exception):  # whatever it holds: it ends here
                result = function(argument)
                return [await result if inspect.isawaitable(result) else result]
            return []

        task = asyncio.ensure_future(work())
        self._asked.add(task)  # until it ends: the loop itself would let go of it
        task.add_done_callback(self._asked.discard)
        try:
            await asyncio.wait((task,), timeout=seconds)
            return task.result() if task.done() and not task.cancelled() else ()
        finally:
            task.cancel()

    def close(self) -> None:
        """Let the threads end; later calls are refused."""
        self._closed = True
        for _, task in self._attempts.values():
            task.cancel()
        self._workers.close()


# Steps that nothing comes between: no exception of a signal's handler, and no other thread.
#
# A handler that raises (a time limit of a task queue, `signal.alarm`), and an exception that a thread sets
# in another, strike where the interpreter looks for them: at the start of a Python function, at a jump
# back, and behind each call. So a function written in C that calls no Python function is one step: the
# exception comes before it or after it. The steps here hand something over from one place to another, so
# that it is in one of the two at any instant: whoever finds the place, finds what is in it, also if the
# caller is gone.
#
# What follows for code that has to give something back: the place is made before the `try`, filled by one
# step within it, and emptied by one step that is the first call of the `finally`, not by a Python function
# of its own. docs/decisions/13-interrupts.md tells how this was found out.

K = TypeVar("K")
V = TypeVar("V")


class Closable(Protocol):
    """What can be closed, more than once."""

    def close(self) -> None:
        """Close it."""


C = TypeVar("C", bound=Closable)


def put_result(place: list[T], function: Callable[..., T], *arguments: object) -> None:
    """Call a function written in C, and put what it returns at the end of a list. Raises what it raises."""
    place.extend(starmap(function, (arguments,)))


def give_all(source: list[T], give: Callable[[T], object]) -> None:
    """Call a function written in C with each item of a list, which is empty then. Raises IndexError as `move_all`."""
    deque(map(give, map(list.pop, repeat(source, len(source)))), maxlen=0)


def move_all(source: dict[K, V], target: dict[K, V]) -> None:
    """Move all items of a dict to another. Raises KeyError where another thread took some: none is left then."""
    target.update(map(dict.popitem, repeat(source, len(source))))


def move(key: K, source: dict[K, V], target: dict[K, V]) -> None:
    """Move one item of a dict to another. Raises KeyError where it is not there."""
    target.update(zip((key,), map(source.pop, (key,)), strict=True))


def close_all(place: list[C]) -> None:
    """Close what is in a list; each stays there until it is closed."""
    while place:
        last = place[-1]
        last.close()
        with contextlib.suppress(ValueError):  # another thread closed it too
            place.remove(last)
