"""The ports of the flows, and blocking ones lifted into coroutines that never suspend."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from typing import Final, ParamSpec, Protocol, TypeVar

from tokenvault.errors import TokenStoreError, TokenVaultError
from tokenvault.stores.port import PAGE_MAX, SealedEvent, SealedRecord, TokenStore

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

HEAD_START_SECONDS: Final = 0.006
"""For the first of two flows alone: it computes about so long before it waits for the database."""

FORKED: Final = "this process was forked while a chunk of a batch was written: the parent has its outcomes"


class Clock(Protocol):
    """Tells the time."""

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

    @property
    def inline(self) -> bool:
        """Whether `call` is a call like any other, so that a flow may do without."""
        ...

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that may block on the key store. However this ends, the function then has, too."""
        ...

    async def block(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `call`, for what may ask the module even where the vault's keys work in this process."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class AsyncTokenStore(Protocol):
    """The part of a token store that flows use, awaited; methods as in TokenStore."""

    async def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]: ...  # noqa: D102 # as in TokenStore
    async def find(  # noqa: D102 # as in TokenStore
        self,
        account: bytes | Sequence[bytes],
        *,
        requestor: str | None = None,
        program: str | None = None,
        after: str = "",
        limit: int = PAGE_MAX,
    ) -> list[SealedRecord]: ...
    async def by_reference(self, reference: bytes) -> SealedRecord | None: ...  # noqa: D102 # as in TokenStore
    async def insert(  # noqa: D102 # as in TokenStore
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]: ...
    async def replace(  # noqa: D102 # as in TokenStore
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]
    ) -> list[str]: ...
    async def append(self, events: Sequence[SealedEvent]) -> None: ...  # noqa: D102 # as in TokenStore
    async def events(  # noqa: D102 # as in TokenStore
        self,
        *,
        stream: bytes | None = None,
        reference: bytes | None = None,
        after: int = 0,
        limit: int = PAGE_MAX,
    ) -> list[SealedEvent]: ...
    async def heads(self, limit: int) -> list[SealedEvent]: ...  # noqa: D102 # as in TokenStore
    async def put_domain(self, digest: bytes, document: bytes) -> None: ...  # noqa: D102 # as in TokenStore
    async def get_domain(self, digest: bytes) -> bytes | None: ...  # noqa: D102 # as in TokenStore
    async def get_meta(self, name: str) -> bytes | None: ...  # noqa: D102 # as in TokenStore
    async def put_meta(self, name: str, value: bytes) -> bytes: ...  # noqa: D102 # as in TokenStore
    async def provision(self) -> None: ...  # noqa: D102 # as in TokenStore
    async def check_schema(self) -> None: ...  # noqa: D102 # as in TokenStore


class BlockingRuntime:
    """Blocks where it is called: the runtime of `Vault`."""

    inline: Final = True

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in this thread."""
        return function(*args, **kwargs)

    async def block(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Likewise."""
        return function(*args, **kwargs)

    async def sleep(self, seconds: float) -> None:
        """Block this thread, in seconds."""
        time.sleep(seconds)


class BlockingStore:
    """A blocking token store as coroutines that never suspend."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store

    async def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        """As in TokenStore."""
        return self._store.get(tokens)

    async def find(
        self,
        account: bytes | Sequence[bytes],
        *,
        requestor: str | None = None,
        program: str | None = None,
        after: str = "",
        limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:
        """As in TokenStore."""
        return self._store.find(account, requestor=requestor, program=program, after=after, limit=limit)

    async def by_reference(self, reference: bytes) -> SealedRecord | None:
        """As in TokenStore."""
        return self._store.by_reference(reference)

    async def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]:
        """As in TokenStore."""
        return self._store.insert(records, events, document)

    async def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        """As in TokenStore."""
        return self._store.replace(records, events)

    async def append(self, events: Sequence[SealedEvent]) -> None:
        """As in TokenStore."""
        self._store.append(events)

    async def events(
        self,
        *,
        stream: bytes | None = None,
        reference: bytes | None = None,
        after: int = 0,
        limit: int = PAGE_MAX,
    ) -> list[SealedEvent]:
        """As in TokenStore."""
        return self._store.events(stream=stream, reference=reference, after=after, limit=limit)

    async def heads(self, limit: int) -> list[SealedEvent]:
        """As in TokenStore."""
        return self._store.heads(limit)

    async def put_domain(self, digest: bytes, document: bytes) -> None:
        """As in TokenStore."""
        self._store.put_domain(digest, document)

    async def get_domain(self, digest: bytes) -> bytes | None:
        """As in TokenStore."""
        return self._store.get_domain(digest)

    async def get_meta(self, name: str) -> bytes | None:
        """As in TokenStore."""
        return self._store.get_meta(name)

    async def put_meta(self, name: str, value: bytes) -> bytes:
        """As in TokenStore."""
        return self._store.put_meta(name, value)

    async def provision(self) -> None:
        """As in TokenStore."""
        self._store.provision()

    async def check_schema(self) -> None:
        """As in TokenStore."""
        self._store.check_schema()


class Beside(Protocol):
    """Runs two flows at the same time, to the end of both, and returns what they return."""

    async def __call__(
        self,
        first: Callable[[], Coroutine[None, None, T]],
        second: Coroutine[None, None, U],
        stop: Callable[[], None],
    ) -> tuple[T, U]:
        """As `beside`."""
        ...


async def beside(
    first: Callable[[], Coroutine[None, None, T]], second: Coroutine[None, None, U], stop: Callable[[], None]
) -> tuple[T, U]:
    """Run two flows over blocking ports: the first in a thread of its own, the second, a little later, in this one.

    However this ends, the first has ended then. Raises what the flows raise, the second before the first.

    Args:
        first: gives the first flow.
        second: the other.
        stop: tells the first to end soon. Called where this thread is interrupted, not where the second fails.
    """
    answer: Future[T] = Future()
    pid = os.getpid()
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(_settle, answer, first), name="tokenvault"
    )
    started = False
    try:
        started = _start(thread)
        if not started:
            return await first(), await second
        wait([answer], HEAD_START_SECONDS)
        found = await second
    except TokenVaultError:
        raise
    except BaseException:
        stop()
        raise
    finally:
        try:
            # An interrupted start may have left a thread behind, which finds nothing to do where this cancels it.
            if started or not answer.cancel():
                _await_end(answer, pid, stop)
        finally:
            second.close()  # where it never began
    if os.getpid() != pid:  # the second forked this process: a child does not have the thread
        raise TokenStoreError(FORKED)
    return answer.result(), found


def _start(thread: threading.Thread) -> bool:
    """Start a thread; False where this process may have no more of them."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def _await_end(answer: Future[T], pid: int, stop: Callable[[], None]) -> None:
    """Wait for a flow, also where this thread is interrupted meanwhile: nothing goes on behind the caller's back.

    Not by `Thread.join`: before Python 3.13 an interrupted one takes the thread for ended.
    """
    interrupted: BaseException | None = None
    while os.getpid() == pid and not answer.done():
        try:
            wait([answer])
        except BaseException as error:  # noqa: BLE001 # whatever a signal's handler raises; it is raised below
            interrupted = error
            stop()
    if interrupted is not None:
        raise interrupted


def _settle(answer: Future[T], flow: Callable[[], Coroutine[None, None, T]]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(run(flow()))
    except BaseException as error:  # noqa: BLE001 # whatever it is, it is raised where the flow is waited for
        answer.set_exception(error)


def run(flow: Coroutine[None, None, T]) -> T:
    """Run a flow over blocking ports to its end. Raises what the flow raises."""
    try:
        flow.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    flow.close()
    raise RuntimeError("a flow over blocking ports was suspended")
