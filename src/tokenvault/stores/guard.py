"""The guard of every token store: checks of arguments and rows, and only the port's errors come out.

An adapter subclasses `TokenStoreBase`, or `AsyncTokenStoreBase` where its methods are coroutines, and writes the
private methods; whatever those raise, a caller sees what `TokenStore` states. The guard is written once, as
coroutines. A blocking store runs them to their end: over methods that block they never suspend.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Final,
    Generic,
    NoReturn,
    ParamSpec,
    TypeAlias,
    TypeVar,
    overload,
)

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import run
from tokenvault.stores import checks
from tokenvault.stores.errors import CLOSED, UNEXPLAINED, port_error
from tokenvault.stores.port import (
    DIGEST_BYTES,
    INTEGER_MAX,
    PAGE_MAX,
    REFERENCE_BYTES,
    SealedEvent,
    SealedRecord,
)

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])
S = TypeVar("S", bound="Guard")

Answer: TypeAlias = T | Awaitable[T]
"""What a private method of an adapter returns: the value itself, or a coroutine that gives it."""

if TYPE_CHECKING:

    def required(call: F) -> F:
        """`abstractmethod`, but for type checkers: a store that hands calls on has none of the private methods."""
        return call

else:
    required = abstractmethod


class port_method(Generic[P, T]):  # used as a decorator, like `property`
    """A method of the port, written as a coroutine: an awaited store awaits it, a blocking one runs it."""

    def __init__(self, call: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None:
        @functools.wraps(call)
        def blocking(store: Guard, *args: P.args, **kwargs: P.kwargs) -> Any:
            return store._call(call, *args, **kwargs)

        @functools.wraps(call)  # not the same function: `inspect` tells by this one that it is to be awaited
        async def awaited(store: Guard, *args: P.args, **kwargs: P.kwargs) -> Any:
            return await store._call(call, *args, **kwargs)

        self.call: Final = call
        self._blocking: Final = blocking
        self._awaited: Final = awaited
        self.__doc__ = call.__doc__

    @overload
    def __get__(self, store: None, owner: type) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, store: Blocking, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, store: Awaited, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, store: Guard | None, owner: type) -> Callable[..., Any]:
        """The method as a store's callers see it."""
        if store is None:
            return self.call
        return MethodType(self._awaited if store._is_awaited else self._blocking, store)


class Guard(ABC):
    """The methods of the port over the private methods of an adapter."""

    _closed = False
    _is_awaited: ClassVar[bool]

    @abstractmethod
    def _call(self, call: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
        """Do what a method of the port does, as callers of this store see it."""

    @port_method
    async def provision(self) -> None:
        """Create the schema where it is missing."""
        await _value(self._provision())

    @port_method
    async def check_schema(self) -> None:
        """Raise ConfigurationError unless the schema is there, in the version that this code writes."""
        await _value(self._check_schema())

    @port_method
    async def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        """The records of these tokens, each once; those that do not exist are left out."""
        checked = checks.checked_tokens(tokens)
        return checks.sound_records(await _value(self._get(checked))) if checked else []

    @port_method
    async def find(
        self, pan_fingerprint: bytes | Sequence[bytes], *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        """The records of a PAN fingerprint, or of several, whose token is greater than `after`, by token."""
        checked = checks.checked_pan_fingerprints(pan_fingerprint)
        checks.check_owner(requestor, program)
        checks.check_page(after, limit)
        return checks.sound_records(await _value(self._find(checked, requestor, program, after, limit)))

    @port_method
    async def by_reference(self, reference: bytes) -> SealedRecord | None:
        """The record with this reference."""
        checks.check_bytes(reference, REFERENCE_BYTES, "a reference")
        record = await _value(self._by_reference(reference))
        return None if record is None else checks.sound_records([record])[0]

    @port_method
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

    @port_method
    async def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        """Replace all, or, where a revision has moved, nothing. Returns the tokens that had moved."""
        records, events = checks.checked_records(records, 2, INTEGER_MAX), checks.checked_events(events)
        return await _value(self._replace(records, events)) if records or events else []

    @port_method
    async def append(self, events: Sequence[SealedEvent]) -> None:
        """Append events in one atomic step. An event that exists already is a TokenStoreError."""
        checked = checks.checked_events(events)
        if checked:
            await _value(self._append(checked))

    @port_method
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

    @port_method
    async def streams(self) -> list[bytes]:
        """Every event stream there is."""
        return checks.sound_streams(await _value(self._streams()))

    @port_method
    async def latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        """The newest streams' last checkpoints."""
        checks.check_limit(limit)
        return checks.sound_latest_checkpoints(await _value(self._latest_checkpoints(limit)))

    @port_method
    async def put_domain(self, digest: bytes, document: bytes) -> None:
        """Keep a document under its SHA-256; nothing happens where it is there already."""
        checks.check_document(document)
        checks.check_digest(digest, document)
        await _value(self._put_domain(digest, document))

    @port_method
    async def get_domain(self, digest: bytes) -> bytes | None:
        """The document kept under a digest."""
        checks.check_bytes(digest, DIGEST_BYTES, "a digest")
        return checks.sound_document(digest, await _value(self._get_domain(digest)))

    @port_method
    async def scan(
        self, *, after: str = "", limit: int = PAGE_MAX, key_version: int | None = None
    ) -> list[SealedRecord]:
        """Records with a token greater than `after`, by token; only of one key version where it is given."""
        checks.check_page(after, limit)
        checks.check_key_version(key_version)
        return checks.sound_records(await _value(self._scan(after, limit, key_version)))

    @port_method
    async def get_meta(self, name: str) -> bytes | None:
        """A named value, or None."""
        checks.check_meta(name)
        value = await _value(self._get_meta(name))
        return None if value is None else checks.sound_value(value)

    @port_method
    async def put_meta(self, name: str, value: bytes) -> bytes:
        """Set a named value if it is not set yet. Returns the value that stands now."""
        checks.check_meta(name, value)
        return checks.sound_value(await _value(self._put_meta(name, value)))

    @port_method
    async def close(self) -> None:
        """Release connections; idempotent. Every later call raises TokenStoreError."""
        closed, self._closed = self._closed, True
        if not closed:
            await _value(self._close())

    # What an adapter writes.

    def _explain(self, error: Exception) -> str:
        """What to tell a caller about an exception: what to look at next, and never row data."""
        return UNEXPLAINED

    @required
    def _provision(self) -> Answer[None]:
        _unwritten()

    @required
    def _check_schema(self) -> Answer[None]:
        _unwritten()

    @required
    def _get(self, tokens: Sequence[str]) -> Answer[Sequence[SealedRecord]]:
        _unwritten()

    @required
    def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> Answer[list[SealedRecord]]:
        _unwritten()

    @required
    def _by_reference(self, reference: bytes) -> Answer[SealedRecord | None]:
        _unwritten()

    @required
    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> Answer[list[str]]:
        _unwritten()

    @required
    def _replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> Answer[list[str]]:
        _unwritten()

    @required
    def _append(self, events: Sequence[SealedEvent]) -> Answer[None]:
        _unwritten()

    @required
    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> Answer[list[SealedEvent]]:
        _unwritten()

    @required
    def _events_about(self, reference: bytes, after: int, limit: int) -> Answer[list[SealedEvent]]:
        _unwritten()

    @required
    def _streams(self) -> Answer[list[bytes]]:
        _unwritten()

    @required
    def _latest_checkpoints(self, limit: int) -> Answer[list[SealedEvent]]:
        _unwritten()

    @required
    def _put_domain(self, digest: bytes, document: bytes) -> Answer[None]:
        _unwritten()

    @required
    def _get_domain(self, digest: bytes) -> Answer[bytes | None]:
        _unwritten()

    @required
    def _scan(self, after: str, limit: int, key_version: int | None) -> Answer[list[SealedRecord]]:
        _unwritten()

    @required
    def _get_meta(self, name: str) -> Answer[bytes | None]:
        _unwritten()

    @required
    def _put_meta(self, name: str, value: bytes) -> Answer[bytes]:
        _unwritten()

    @required
    def _close(self) -> Answer[None]:
        _unwritten()


class Blocking(Guard):
    """A store whose methods return their answers."""

    _is_awaited = False

    def _call(self, call: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        return run(_guarded(self, call, *args, **kwargs))


class Awaited(Guard):
    """A store whose methods are coroutines."""

    _is_awaited = True

    def _call(
        self, call: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, T]:
        return _guarded(self, call, *args, **kwargs)


class TokenStoreBase(Blocking):
    """Base of a blocking token store; the port is met by writing the private methods.

    They get arguments that are checked already. What they read is checked after them. They may raise
    anything; only KeyboardInterrupt and its like pass as they are, so a write undoes itself on
    BaseException. `_close` is called once.
    """


class AsyncTokenStoreBase(Awaited):
    """Base of a token store with coroutines; as `TokenStoreBase`, with private methods that are coroutines.

    A cancellation passes as it is, so a write undoes itself on BaseException.
    """


async def _guarded(
    store: S, call: Callable[Concatenate[S, P], Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    name = call.__name__
    if store._closed and name != "close":
        raise TokenStoreError(CLOSED)
    try:
        return await call(store, *args, **kwargs)
    except Exception as error:  # noqa: BLE001  this is where everything is mapped
        failure = port_error(name, error, store._explain)
    # Outside the block above, or Python would chain the original, which can hold row data.
    try:
        raise failure
    finally:
        del failure  # the traceback holds this frame: no cycle


async def _value(answer: Answer[T]) -> T:
    return await answer if hasattr(answer, "__await__") else answer


def _unwritten() -> NoReturn:
    raise TypeError("an adapter writes every private method of the port")
