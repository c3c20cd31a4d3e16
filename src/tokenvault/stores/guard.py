"""The guard of every token store: checks of arguments and rows, and only the port's errors come out.

An adapter subclasses `TokenStoreBase`, or `AsyncTokenStoreBase` where its methods are coroutines, and writes the
private methods; whatever those raise, a caller sees what `TokenStore` states. The guard is written once, as
coroutines. A blocking store runs them to their end: over methods that block they never suspend.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar, cast

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import run
from tokenvault.stores import checks
from tokenvault.stores.errors import CLOSED, UNEXPLAINED, port_error, show_cause
from tokenvault.stores.port import (
    DIGEST_BYTES,
    INTEGER_MAX,
    METHODS,
    PAGE_MAX,
    REFERENCE_BYTES,
    SealedEvent,
    SealedRecord,
    TokenStore,
)

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Coroutine[Any, Any, Any]])

Answer: TypeAlias = T | Awaitable[T]
"""What a private method of an adapter returns: the value itself, or a coroutine that gives it."""


class Adapter(ABC):
    """What an adapter writes: methods that get arguments which are checked, and whose rows are checked after them."""

    _closed = False

    unsafe_debug: ClassVar[bool] = False
    """Whether an error shows the exception that the adapter raised, as its cause. For the development of an adapter.

    That exception can hold what a row holds, and a cause ends up in logs. So no environment variable, option or
    address turns this on: only code that sets it on the class does, such as a conftest.py, and each error that shows
    its cause warns of it. Never set it where a vault works.
    """

    def _explain(self, error: Exception) -> str:
        """What to tell a caller about an exception: what to look at next, and never row data."""
        return UNEXPLAINED

    @abstractmethod
    def _provision(self) -> Answer[None]: ...

    @abstractmethod
    def _check_schema(self) -> Answer[None]: ...

    @abstractmethod
    def _get(self, tokens: Sequence[str]) -> Answer[Sequence[SealedRecord]]: ...

    @abstractmethod
    def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> Answer[list[SealedRecord]]: ...

    @abstractmethod
    def _by_reference(self, reference: bytes) -> Answer[SealedRecord | None]: ...

    @abstractmethod
    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> Answer[list[str]]: ...

    @abstractmethod
    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]
    ) -> Answer[list[str]]: ...

    @abstractmethod
    def _append(self, events: Sequence[SealedEvent]) -> Answer[None]: ...

    @abstractmethod
    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> Answer[list[SealedEvent]]: ...

    @abstractmethod
    def _events_about(self, reference: bytes, after: int, limit: int) -> Answer[list[SealedEvent]]: ...

    @abstractmethod
    def _streams(self) -> Answer[list[bytes]]: ...

    @abstractmethod
    def _latest_checkpoints(self, limit: int) -> Answer[list[SealedEvent]]: ...

    @abstractmethod
    def _put_domain(self, digest: bytes, document: bytes) -> Answer[None]: ...

    @abstractmethod
    def _get_domain(self, digest: bytes) -> Answer[bytes | None]: ...

    @abstractmethod
    def _scan(self, after: str, limit: int, key_version: int | None) -> Answer[list[SealedRecord]]: ...

    @abstractmethod
    def _get_meta(self, name: str) -> Answer[bytes | None]: ...

    @abstractmethod
    def _put_meta(self, name: str, value: bytes) -> Answer[bytes]: ...

    @abstractmethod
    def _close(self) -> Answer[None]: ...


def guarded(call: C) -> C:
    """Let only the port's errors out of a method of the port, and close it with the store."""
    name = call.__name__

    @functools.wraps(call)
    async def method(store: Guard, /, *args: Any, **kwargs: Any) -> Any:
        if store._closed and name != "close":
            raise TokenStoreError(CLOSED)
        try:
            return await call(store, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  this is where everything is mapped
            failure = port_error(name, error, store._explain)
            if type(store).unsafe_debug is True and failure is not error:
                show_cause(failure, error)
        # Outside the block above, or Python would chain the original, which can hold row data.
        try:
            raise failure
        finally:
            del failure  # the traceback holds this frame: no cycle

    return cast("C", method)


class Guard(Adapter, ABC):
    """The methods of the port over those of an adapter."""

    @guarded
    async def provision(self) -> None:
        """Create the schema where it is missing."""
        await _value(self._provision())

    @guarded
    async def check_schema(self) -> None:
        """Raise ConfigurationError unless the schema is there, in the version that this code writes."""
        await _value(self._check_schema())

    @guarded
    async def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        """The records of these tokens, each once; those that do not exist are left out."""
        checked = checks.checked_tokens(tokens)
        return checks.sound_records(await _value(self._get(checked))) if checked else []

    @guarded
    async def find(
        self, pan_fingerprint: bytes | Sequence[bytes], *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        """The records of a PAN fingerprint, or of several, whose token is greater than `after`, by token."""
        checked = checks.checked_pan_fingerprints(pan_fingerprint)
        checks.check_owner(requestor, program)
        checks.check_page(after, limit)
        return checks.sound_records(await _value(self._find(checked, requestor, program, after, limit)))

    @guarded
    async def by_reference(self, reference: bytes) -> SealedRecord | None:
        """The record with this reference."""
        checks.check_bytes(reference, REFERENCE_BYTES, "a reference")
        record = await _value(self._by_reference(reference))
        return None if record is None else checks.sound_records([record])[0]

    @guarded
    async def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]:
        """Insert all, or, where a token exists already, nothing. Returns the tokens that existed."""
        records, events = checks.checked_records(records, 1, 1), checks.checked_events(events)
        if document is not None:
            checks.check_document(document)
        elif not (records or events):
            return []
        return await _value(self._insert(records, events, document))

    @guarded
    async def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        """Replace all, or, where a revision has moved, nothing. Returns the tokens that had moved."""
        records, events = checks.checked_records(records, 2, INTEGER_MAX), checks.checked_events(events)
        return await _value(self._replace(records, events)) if records or events else []

    @guarded
    async def append(self, events: Sequence[SealedEvent]) -> None:
        """Append events in one atomic step. An event that exists already is a TokenStoreError."""
        checked = checks.checked_events(events)
        if checked:
            await _value(self._append(checked))

    @guarded
    async def events(
        self, *, stream: bytes | None = None, reference: bytes | None = None,
        after: int = 0, limit: int = PAGE_MAX,
    ) -> list[SealedEvent]:  # fmt: skip
        """Events of one stream by number, or of one reference in the order of writing."""
        checks.check_event_page(stream, reference, after, limit)
        if stream is None:
            return checks.sound_events(await _value(self._events_about(reference or b"", after, limit)))
        if after == INTEGER_MAX:
            return []
        return checks.sound_events(
            await _value(self._events_of_stream(stream, checks.first_after(after), limit))
        )

    @guarded
    async def streams(self) -> list[bytes]:
        """Every event stream there is."""
        return checks.sound_streams(await _value(self._streams()))

    @guarded
    async def latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        """The newest streams' last checkpoints."""
        checks.check_limit(limit)
        return checks.sound_latest_checkpoints(await _value(self._latest_checkpoints(limit)))

    @guarded
    async def put_domain(self, digest: bytes, document: bytes) -> None:
        """Keep a document under its SHA-256; nothing happens where it is there already."""
        checks.check_document(document)
        checks.check_digest(digest, document)
        await _value(self._put_domain(digest, document))

    @guarded
    async def get_domain(self, digest: bytes) -> bytes | None:
        """The document kept under a digest."""
        checks.check_bytes(digest, DIGEST_BYTES, "a digest")
        return checks.sound_document(digest, await _value(self._get_domain(digest)))

    @guarded
    async def scan(
        self, *, after: str = "", limit: int = PAGE_MAX, key_version: int | None = None
    ) -> list[SealedRecord]:
        """Records with a token greater than `after`, by token; only of one key version where it is given."""
        checks.check_page(after, limit)
        checks.check_key_version(key_version)
        return checks.sound_records(await _value(self._scan(after, limit, key_version)))

    @guarded
    async def get_meta(self, name: str) -> bytes | None:
        """A named value, or None."""
        checks.check_meta(name)
        value = await _value(self._get_meta(name))
        return None if value is None else checks.sound_value(value)

    @guarded
    async def put_meta(self, name: str, value: bytes) -> bytes:
        """Set a named value if it is not set yet. Returns the value that stands now."""
        checks.check_meta(name, value)
        return checks.sound_value(await _value(self._put_meta(name, value)))

    @guarded
    async def close(self) -> None:
        """Release connections; idempotent. Every later call raises TokenStoreError."""
        closed, self._closed = self._closed, True
        if not closed:
            await _value(self._close())


async def _value(answer: Answer[T]) -> T:
    return await answer if hasattr(answer, "__await__") else answer


def _run_to_its_end(call: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    @functools.wraps(call)
    def method(*args: Any, **kwargs: Any) -> T:
        return run(call(*args, **kwargs))

    return method


if TYPE_CHECKING:

    class _BlockingGuard(Adapter, TokenStore, ABC):
        """The guard as callers of a blocking store see it."""

else:

    class _BlockingGuard(Guard):
        """The guard, run to its end where it is called."""

    for _name in METHODS:
        setattr(_BlockingGuard, _name, _run_to_its_end(getattr(Guard, _name)))


class TokenStoreBase(_BlockingGuard, ABC):
    """Base of a blocking token store; the port is met by writing the private methods.

    They get arguments that are checked already. What they read is checked after them. They may raise
    anything; only KeyboardInterrupt and its like pass as they are, so a write undoes itself on
    BaseException. `_close` is called once.
    """


class AsyncTokenStoreBase(Guard, ABC):
    """Base of a token store with coroutines; as `TokenStoreBase`, with private methods that are coroutines.

    A cancellation passes as it is, so a write undoes itself on BaseException.
    """
