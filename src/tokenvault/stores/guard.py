"""The guard of every token store: checks of arguments and rows, and only the port's errors come out.

An adapter subclasses `TokenStoreBase`, or `AsyncTokenStoreBase` where its methods are coroutines, and writes the
private methods; whatever those raise, a caller sees what `TokenStore` states. What an adapter is called with, and how
its answer is checked, is written once, in `_Guard`; the two bases differ in how they wait for the answer.
"""

from __future__ import annotations

import functools
import warnings
from abc import ABC
from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from tokenvault.errors import (
    ConfigurationError,
    IntegrityError,
    InvalidInputError,
    TokenStoreError,
    TokenVaultError,
)
from tokenvault.interrupts import is_interrupt
from tokenvault.runtime import run
from tokenvault.stores import answers, checks
from tokenvault.stores.adapter import UNEXPLAINED, Adapter, Answer
from tokenvault.stores.index_rows import IndexPlace
from tokenvault.stores.port import (
    DIGEST_BYTES,
    INTEGER_MAX,
    INTEGER_MIN,
    PAGE_MAX,
    REFERENCE_BYTES,
    AsyncTokenStore,
    EventPage,
    Fence,
    FoundUse,
    SealedEvent,
    SealedRecord,
    TokenGroup,
    TokenStore,
    class_over,
)

T = TypeVar("T")

CLOSED: Final = "the token store is closed; open it again with open_token_store"

_SHOWN: Final = "unsafe_debug is on: an error shows what the adapter raised, which can hold row data"

_PASSED: Final = (TokenStoreError, IntegrityError, InvalidInputError)
_ALSO_PASSED: Final = dict.fromkeys(("provision", "check_schema"), (ConfigurationError,))

Asked: TypeAlias = tuple[Answer[Any], Callable[[Any], T]]
"""The answer of an adapter, and the check that gives, once the answer is there, what a caller gets of it."""


class _Guard(Adapter, ABC):
    """Each method of the port: checks its arguments and calls the adapter."""

    def provision(self) -> Asked[None]:
        return self._provision(), _nothing

    def check_schema(self) -> Asked[None]:
        return self._check_schema(), _nothing

    def get(self, tokens: Sequence[str]) -> Asked[Sequence[SealedRecord]]:
        checked = checks.checked_tokens(tokens)
        return self._get(checked) if checked else [], answers.sound_records

    def find(
        self, pan_fingerprint: bytes | Sequence[bytes], *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> Asked[list[SealedRecord]]:  # fmt: skip
        checked = checks.checked_pan_fingerprints(pan_fingerprint)
        checks.check_owner(requestor, program)
        checks.check_page(after, limit)
        return self._find(checked, requestor, program, after, limit), answers.sound_records

    def by_reference(self, reference: bytes) -> Asked[SealedRecord | None]:
        checks.check_bytes(reference, REFERENCE_BYTES, "a reference")
        return self._by_reference(reference), answers.sound_record_if_any

    def get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> Asked[FoundUse]:
        checks.check_name(name)
        checked = checks.checked_use_ids(use_ids)
        return self._get_use(name, checked), functools.partial(answers.sound_use, name)

    def uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> Asked[list[SealedEvent]]:
        checked = checks.checked_pairs(pairs)
        return self._uses(checked) if checked else [], answers.sound_uses

    def list_tokens(
        self, requestor: str, program: str, status: int, *, after: tuple[int, str] = (-1, ""),
        limit: int = PAGE_MAX,
    ) -> Asked[list[SealedRecord]]:  # fmt: skip
        checks.check_group(requestor, program, status)
        checks.check_place(after, limit)
        return self._list_tokens(requestor, program, status, after, limit), answers.sound_records

    def groups(self) -> Asked[list[TokenGroup]]:
        return self._groups(), answers.sound_groups

    def count(self, requestor: str, program: str, status: int) -> Asked[int]:
        checks.check_group(requestor, program, status)
        return self._count(requestor, program, status), answers.sound_count

    def find_customer(
        self, customer: str, *, after: str = "", limit: int = PAGE_MAX
    ) -> Asked[list[SealedRecord]]:
        checks.check_customer(customer)
        checks.check_page(after, limit)
        return self._find_customer(customer, after, limit), answers.sound_records

    def find_last4(
        self, last4_keys: Sequence[bytes], *, after: str = "", limit: int = PAGE_MAX
    ) -> Asked[list[SealedRecord]]:
        checked = checks.checked_last4_keys(last4_keys)
        checks.check_page(after, limit)
        return self._find_last4(checked, after, limit) if checked else [], answers.sound_records

    def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> Asked[list[str]]:
        records, events = checks.checked_records(records, 1, 1), checks.checked_events(events)
        if document is not None:
            checks.check_document(document)
        elif not (records or events):
            return [], _unchanged
        checks.check_write(self.write_limits, records, events, document)
        return self._insert(records, events, document), _unchanged

    def replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence = ()
    ) -> Asked[list[str]]:
        records, events = checks.checked_records(records, 2, INTEGER_MAX), checks.checked_events(events)
        fence = checks.checked_fence(fence, records)
        checks.check_write(self.write_limits, records, events, fence=fence)
        if not records:
            return self._append(events, fence) if events else [], _unchanged
        return self._replace(records, events, fence), _unchanged

    def append(self, events: Sequence[SealedEvent], fence: Fence = ()) -> Asked[list[str]]:
        checked, fence = checks.checked_events(events), checks.checked_fence(fence)
        checks.check_write(self.write_limits, (), checked, fence=fence)
        return self._append(checked, fence) if checked else [], _unchanged

    def prune(self, events: Sequence[SealedEvent], records: Fence = ()) -> Asked[None]:
        checked, records = checks.checked_events(events), checks.checked_fence(records)
        checks.check_write(self.write_limits, (), checked, fence=records)
        return self._prune(checked, records) if checked or records else None, _nothing

    def events(self, stream: bytes, *, after: int = 0, limit: int = PAGE_MAX) -> Asked[list[SealedEvent]]:
        checks.check_stream_page(stream, after, limit)
        if after == INTEGER_MAX:
            return [], answers.sound_events
        first = after + 1 if after >= 0 else INTEGER_MIN
        return self._events_of_stream(stream, first, limit), answers.sound_events

    def events_about(
        self, reference: bytes, *, after: bytes = b"", limit: int = PAGE_MAX
    ) -> Asked[EventPage]:
        checks.check_page_about(reference, after, limit)
        return self._events_about(reference, after, limit), functools.partial(answers.sound_page_about, after)

    def index_rows(
        self, *, after: IndexPlace | None = None, limit: int = PAGE_MAX
    ) -> Asked[list[IndexPlace]]:
        place = checks.checked_index_page(after, limit)
        return self._index_rows(place, limit), functools.partial(answers.sound_index_rows, place)

    def streams(self) -> Asked[list[bytes]]:
        return self._streams(), answers.sound_streams

    def latest_checkpoints(self, limit: int) -> Asked[list[SealedEvent]]:
        checks.check_limit(limit)
        return self._latest_checkpoints(limit), answers.sound_latest_checkpoints

    def put_domain(self, digest: bytes, document: bytes) -> Asked[None]:
        checks.check_document(document)
        checks.check_digest(digest, document)
        return self._put_domain(digest, document), _nothing

    def get_domain(self, digest: bytes) -> Asked[bytes | None]:
        checks.check_bytes(digest, DIGEST_BYTES, "a digest")
        return self._get_domain(digest), functools.partial(answers.sound_document, digest)

    def scan(
        self, *, after: str = "", limit: int = PAGE_MAX, key_version: int | None = None
    ) -> Asked[list[SealedRecord]]:
        checks.check_page(after, limit)
        checks.check_key_version(key_version)
        return self._scan(after, limit, key_version), answers.sound_records

    def get_meta(self, name: str) -> Asked[bytes | None]:
        checks.check_meta(name)
        return self._get_meta(name), answers.sound_value_if_any

    def put_meta(self, name: str, value: bytes) -> Asked[bytes]:
        checks.check_meta(name, value)
        return self._put_meta(name, value), answers.sound_value

    def close(self) -> Asked[None]:
        closed, self._closed = self._closed, True
        return None if closed else self._close(), _nothing


def _unchanged(value: T) -> T:
    return value


def _nothing(_: object) -> None:
    """What a method gives that states no value, whatever an adapter returns."""


def _alone(error: Exception) -> Exception:
    """An error without what was handled where it was raised: that can hold row data."""
    error.__cause__ = error.__context__ = None
    return error


def _port_error(store: Adapter, name: str, error: Exception) -> Exception:
    """The error that a caller of a method sees in place of what an adapter raised; chained to nothing."""
    if isinstance(error, (*_PASSED, *_ALSO_PASSED.get(name, ()))) or is_interrupt(error):
        return _alone(error)
    if isinstance(error, TokenVaultError):
        return TokenStoreError(str(error), code=error.code)
    try:
        return TokenStoreError(store._explain(error), code=store._code(error))
    except Exception as failed:  # noqa: BLE001  a hook of the adapter must not let anything else out either
        return _alone(failed) if is_interrupt(failed) else TokenStoreError(UNEXPLAINED)


def _failure(store: Adapter, name: str, error: Exception) -> Exception:
    """The same; where the author of the adapter asked to see what it raised, chained to that, with a warning.

    What a signal's handler or another thread raised in the middle passes as it is, without what was handled there.
    """
    failure = _port_error(store, name, error)
    if type(store).unsafe_debug is True and failure is not error:
        failure.__cause__ = error
        warnings.warn(_SHOWN, RuntimeWarning, stacklevel=3)
    return failure


def _guarded(name: str) -> Callable[..., Any]:
    """A method of a blocking store. Only the port's errors come out of it, and it is closed with the store."""
    ask = getattr(_Guard, name)

    def method(store: Adapter, /, *args: Any, **kwargs: Any) -> Any:
        if store._closed and name != "close":
            raise TokenStoreError(CLOSED, code="STORE_CLOSED")
        try:
            answer, sound = ask(store, *args, **kwargs)
            return sound(run(answer) if type(answer) is CoroutineType else answer)
        except Exception as error:  # noqa: BLE001  this is where everything is mapped
            failure = _failure(store, name, error)
        # Outside the block above, or Python would chain the original, which can hold row data.
        try:
            raise failure
        finally:
            del failure  # the traceback holds this frame: no cycle

    return method


def _async_guarded(name: str) -> Callable[..., Any]:
    """The same of a store with coroutines."""
    ask = getattr(_Guard, name)

    async def method(store: Adapter, /, *args: Any, **kwargs: Any) -> Any:
        if store._closed and name != "close":
            raise TokenStoreError(CLOSED, code="STORE_CLOSED")
        try:
            answer, sound = ask(store, *args, **kwargs)
            return sound(await answer if hasattr(answer, "__await__") else answer)
        except Exception as error:  # noqa: BLE001  as in a blocking store
            failure = _failure(store, name, error)
        try:
            raise failure
        finally:
            del failure

    return method


if TYPE_CHECKING:

    class _Blocking(TokenStore): ...

    class _Awaited(AsyncTokenStore): ...

else:
    _Blocking = class_over(TokenStore, _guarded)
    _Awaited = class_over(AsyncTokenStore, _async_guarded)


class TokenStoreBase(_Blocking, Adapter, ABC):
    """Base of a blocking token store; the port is met by writing the private methods.

    Their arguments are checked before, and what they return is checked after. They may raise
    anything; only KeyboardInterrupt and its like pass as they are, so a write undoes itself on
    BaseException. `_close` is called once.
    """


class AsyncTokenStoreBase(_Awaited, Adapter, ABC):
    """Base of a token store with coroutines; as `TokenStoreBase`, with private methods that are coroutines.

    A cancellation passes as it is, so a write undoes itself on BaseException.
    """
