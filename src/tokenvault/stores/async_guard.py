"""The guard of every token store with coroutines: as `guard`, and awaited.

An adapter subclasses `AsyncTokenStoreBase` and writes the private methods.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from tokenvault.errors import TokenStoreError, TokenVaultError
from tokenvault.stores.checks import (
    check_bytes,
    check_digest,
    check_document,
    check_event_page,
    check_key_version,
    check_limit,
    check_meta,
    check_owner,
    check_page,
    checked_events,
    checked_pan_fingerprints,
    checked_records,
    checked_tokens,
    first_after,
    sound_document,
    sound_events,
    sound_latest_checkpoints,
    sound_records,
    sound_streams,
    sound_value,
)
from tokenvault.stores.guard import CLOSED, PASSED, PASSED_WITH_SCHEMA, UNEXPLAINED, port_error
from tokenvault.stores.port import (
    DIGEST_BYTES,
    INTEGER_MAX,
    PAGE_MAX,
    REFERENCE_BYTES,
    SealedEvent,
    SealedRecord,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Base = TypeVar("_Base", bound="AsyncTokenStoreBase")


def _guarded(
    call: Callable[Concatenate[_Base, _P], Awaitable[_T]],
    passed: tuple[type[TokenVaultError], ...] = PASSED,
) -> Callable[Concatenate[_Base, _P], Coroutine[None, None, _T]]:
    @functools.wraps(call)
    async def guarded(self: _Base, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self._closed:
            raise TokenStoreError(CLOSED)
        try:
            return await call(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  this is where everything is mapped
            failure = port_error(error, passed, self._explain)
        # Outside the block above, or Python would chain the original, which can hold row data.
        try:
            raise failure
        finally:
            del failure  # the traceback holds this frame: no cycle

    return guarded


def _guarded_schema(
    call: Callable[Concatenate[_Base, _P], Awaitable[_T]],
) -> Callable[Concatenate[_Base, _P], Coroutine[None, None, _T]]:
    return _guarded(call, PASSED_WITH_SCHEMA)


class AsyncTokenStoreBase(ABC):
    """Base of a token store with coroutines: each method is the one of `TokenStore`, awaited.

    The private methods get arguments that are checked already. What they read is checked after them. They
    may raise anything; a cancellation passes as it is, so a write undoes itself on BaseException. `_close` is
    called once.
    """

    _closed = False

    @_guarded_schema
    async def provision(self) -> None:
        """As in TokenStore."""
        await self._provision()

    @_guarded_schema
    async def check_schema(self) -> None:
        """As in TokenStore."""
        await self._check_schema()

    @_guarded
    async def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        """As in TokenStore."""
        checked = checked_tokens(tokens)
        return sound_records(await self._get(checked)) if checked else []

    @_guarded
    async def find(
        self, pan_fingerprint: bytes | Sequence[bytes], *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        """As in TokenStore."""
        pan_fingerprints = checked_pan_fingerprints(pan_fingerprint)
        check_owner(requestor, program)
        check_page(after, limit)
        return sound_records(await self._find(pan_fingerprints, requestor, program, after, limit))

    @_guarded
    async def by_reference(self, reference: bytes) -> SealedRecord | None:
        """As in TokenStore."""
        check_bytes(reference, REFERENCE_BYTES, "a reference")
        record = await self._by_reference(reference)
        return None if record is None else sound_records([record])[0]

    @_guarded
    async def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]:
        """As in TokenStore."""
        records, events = checked_records(records, 1, 1), checked_events(events)
        if document is not None:
            check_document(document)
        elif not (records or events):
            return []
        return await self._insert(records, events, document)

    @_guarded
    async def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        """As in TokenStore."""
        records, events = checked_records(records, 2, INTEGER_MAX), checked_events(events)
        return await self._replace(records, events) if records or events else []

    @_guarded
    async def append(self, events: Sequence[SealedEvent]) -> None:
        """As in TokenStore."""
        checked = checked_events(events)
        if checked:
            await self._append(checked)

    @_guarded
    async def events(
        self, *, stream: bytes | None = None, reference: bytes | None = None,
        after: int = 0, limit: int = PAGE_MAX,
    ) -> list[SealedEvent]:  # fmt: skip
        """As in TokenStore."""
        check_event_page(stream, reference, after, limit)
        if stream is not None:
            if after == INTEGER_MAX:
                return []
            return sound_events(await self._events_of_stream(stream, first_after(after), limit))
        return sound_events(await self._events_about(reference or b"", after, limit))

    @_guarded
    async def streams(self) -> list[bytes]:
        """As in TokenStore."""
        return sound_streams(await self._streams())

    @_guarded
    async def latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        """As in TokenStore."""
        check_limit(limit)
        return sound_latest_checkpoints(await self._latest_checkpoints(limit))

    @_guarded
    async def put_domain(self, digest: bytes, document: bytes) -> None:
        """As in TokenStore."""
        check_document(document)
        check_digest(digest, document)
        await self._put_domain(digest, document)

    @_guarded
    async def get_domain(self, digest: bytes) -> bytes | None:
        """As in TokenStore."""
        check_bytes(digest, DIGEST_BYTES, "a digest")
        return sound_document(digest, await self._get_domain(digest))

    @_guarded
    async def scan(
        self, *, after: str = "", limit: int = PAGE_MAX, key_version: int | None = None
    ) -> list[SealedRecord]:
        """As in TokenStore."""
        check_page(after, limit)
        check_key_version(key_version)
        return sound_records(await self._scan(after, limit, key_version))

    @_guarded
    async def get_meta(self, name: str) -> bytes | None:
        """As in TokenStore."""
        check_meta(name)
        value = await self._get_meta(name)
        return None if value is None else sound_value(value)

    @_guarded
    async def put_meta(self, name: str, value: bytes) -> bytes:
        """As in TokenStore."""
        check_meta(name, value)
        return sound_value(await self._put_meta(name, value))

    async def close(self) -> None:
        """As in TokenStore."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._close()
        except Exception as error:  # noqa: BLE001  as in _guarded
            failure = port_error(error, PASSED, self._explain)
        else:
            return
        raise failure

    def _explain(self, error: Exception) -> str:
        """What to tell a caller about an exception: what to look at next, and never row data."""
        return UNEXPLAINED

    @abstractmethod
    async def _provision(self) -> None: ...

    @abstractmethod
    async def _check_schema(self) -> None: ...

    @abstractmethod
    async def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]: ...

    @abstractmethod
    async def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> list[SealedRecord]: ...

    @abstractmethod
    async def _by_reference(self, reference: bytes) -> SealedRecord | None: ...

    @abstractmethod
    async def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]: ...

    @abstractmethod
    async def _replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]: ...

    @abstractmethod
    async def _append(self, events: Sequence[SealedEvent]) -> None: ...

    @abstractmethod
    async def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]: ...

    @abstractmethod
    async def _events_about(self, reference: bytes, after: int, limit: int) -> list[SealedEvent]: ...

    @abstractmethod
    async def _streams(self) -> list[bytes]: ...

    @abstractmethod
    async def _latest_checkpoints(self, limit: int) -> list[SealedEvent]: ...

    @abstractmethod
    async def _put_domain(self, digest: bytes, document: bytes) -> None: ...

    @abstractmethod
    async def _get_domain(self, digest: bytes) -> bytes | None: ...

    @abstractmethod
    async def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]: ...

    @abstractmethod
    async def _get_meta(self, name: str) -> bytes | None: ...

    @abstractmethod
    async def _put_meta(self, name: str, value: bytes) -> bytes: ...

    @abstractmethod
    async def _close(self) -> None: ...
