"""The guard of every blocking token store: checks of arguments and rows, and only the port's errors come out.

An adapter subclasses `TokenStoreBase` and writes the private methods; whatever those raise, a caller sees
what `TokenStore` states. `port_error` and the functions of `checks` serve an adapter with coroutines as well.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Concatenate, Final, ParamSpec, TypeVar

from tokenvault.errors import (
    ConfigurationError,
    IntegrityError,
    InvalidInputError,
    TokenStoreError,
    TokenVaultError,
)
from tokenvault.stores.checks import (
    DIGEST_BYTES,
    INTEGER_MAX,
    REFERENCE_BYTES,
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
from tokenvault.stores.port import PAGE_MAX, SealedEvent, SealedRecord

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Base = TypeVar("_Base", bound="TokenStoreBase")

PASSED: Final = (TokenStoreError, IntegrityError, InvalidInputError)
PASSED_WITH_SCHEMA: Final = (*PASSED, ConfigurationError)
UNEXPLAINED: Final = "the token store failed in a way it does not explain; look at the database's own log"
CLOSED: Final = "the token store is closed; open it again with open_token_store"


def port_error(
    error: Exception, passed: tuple[type[TokenVaultError], ...], explain: Callable[[Exception], str]
) -> TokenVaultError:
    """The error that a caller may see in place of what an adapter raised; chained to nothing."""
    if isinstance(error, passed):
        # An adapter may have raised it inside an except block; what it handled there can hold row data.
        error.__cause__ = error.__context__ = None
        return error
    if isinstance(error, TokenVaultError):
        return TokenStoreError(str(error))
    try:
        return TokenStoreError(explain(error))
    except Exception:  # noqa: BLE001  a hook of the adapter must not let anything else out either
        return TokenStoreError(UNEXPLAINED)


def _guarded(
    call: Callable[Concatenate[_Base, _P], _T],
    passed: tuple[type[TokenVaultError], ...] = PASSED,
) -> Callable[Concatenate[_Base, _P], _T]:
    @functools.wraps(call)
    def guarded(self: _Base, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self._closed:
            raise TokenStoreError(CLOSED)
        try:
            return call(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  this is where everything is mapped
            failure = port_error(error, passed, self._explain)
        # Outside the block above, or Python would chain the original, which can hold row data.
        try:
            raise failure
        finally:
            del failure  # the traceback holds this frame: no cycle

    return guarded


def _guarded_schema(call: Callable[Concatenate[_Base, _P], _T]) -> Callable[Concatenate[_Base, _P], _T]:
    return _guarded(call, PASSED_WITH_SCHEMA)


class TokenStoreBase(ABC):
    """Base of a blocking token store; the port is met by writing the private methods.

    They get arguments that are checked already. What they read is checked after them. They may raise
    anything; only KeyboardInterrupt and its like pass as they are, so a write undoes itself on
    BaseException. `_close` is called once.
    """

    _closed = False

    @_guarded_schema
    def provision(self) -> None:
        """Create the schema where it is missing."""
        self._provision()

    @_guarded_schema
    def check_schema(self) -> None:
        """Raise ConfigurationError unless the schema is there, in the version that this code writes."""
        self._check_schema()

    @_guarded
    def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        """The records of these tokens, each once; those that do not exist are left out."""
        checked = checked_tokens(tokens)
        return sound_records(self._get(checked)) if checked else []

    @_guarded
    def find(
        self, pan_fingerprint: bytes | Sequence[bytes], *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        """The records of a pan_fingerprint, or of several, whose token is greater than `after`, by token."""
        pan_fingerprints = checked_pan_fingerprints(pan_fingerprint)
        check_owner(requestor, program)
        check_page(after, limit)
        return sound_records(self._find(pan_fingerprints, requestor, program, after, limit))

    @_guarded
    def by_reference(self, reference: bytes) -> SealedRecord | None:
        """The record with this reference."""
        check_bytes(reference, REFERENCE_BYTES, "a reference")
        record = self._by_reference(reference)
        return None if record is None else sound_records([record])[0]

    @_guarded
    def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]:
        """Insert all, or, where a token exists already, nothing. Returns the tokens that existed."""
        records, events = checked_records(records, 1, 1), checked_events(events)
        if document is not None:
            check_document(document)
        elif not (records or events):
            return []
        return self._insert(records, events, document)

    @_guarded
    def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        """Replace all, or, where a revision has moved, nothing. Returns the tokens that had moved."""
        records, events = checked_records(records, 2, INTEGER_MAX), checked_events(events)
        return self._replace(records, events) if records or events else []

    @_guarded
    def append(self, events: Sequence[SealedEvent]) -> None:
        """Append events in one atomic step. An event that exists already is a TokenStoreError."""
        checked = checked_events(events)
        if checked:
            self._append(checked)

    @_guarded
    def events(
        self, *, stream: bytes | None = None, reference: bytes | None = None,
        after: int = 0, limit: int = PAGE_MAX,
    ) -> list[SealedEvent]:  # fmt: skip
        """Events of one stream by number, or of one reference in the order of writing."""
        check_event_page(stream, reference, after, limit)
        if stream is not None:
            if after == INTEGER_MAX:
                return []
            return sound_events(self._events_of_stream(stream, first_after(after), limit))
        return sound_events(self._events_about(reference or b"", after, limit))

    @_guarded
    def streams(self) -> list[bytes]:
        """Every event stream there is."""
        return sound_streams(self._streams())

    @_guarded
    def latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        """The newest streams' last checkpoints."""
        check_limit(limit)
        return sound_latest_checkpoints(self._latest_checkpoints(limit))

    @_guarded
    def put_domain(self, digest: bytes, document: bytes) -> None:
        """Keep a document under its SHA-256; nothing happens where it is there already."""
        check_document(document)
        check_digest(digest, document)
        self._put_domain(digest, document)

    @_guarded
    def get_domain(self, digest: bytes) -> bytes | None:
        """The document kept under a digest."""
        check_bytes(digest, DIGEST_BYTES, "a digest")
        return sound_document(digest, self._get_domain(digest))

    @_guarded
    def scan(
        self, *, after: str = "", limit: int = PAGE_MAX, key_version: int | None = None
    ) -> list[SealedRecord]:
        """Records with a token greater than `after`, by token; only of one key version where it is given."""
        check_page(after, limit)
        check_key_version(key_version)
        return sound_records(self._scan(after, limit, key_version))

    @_guarded
    def get_meta(self, name: str) -> bytes | None:
        """A named value, or None."""
        check_meta(name)
        value = self._get_meta(name)
        return None if value is None else sound_value(value)

    @_guarded
    def put_meta(self, name: str, value: bytes) -> bytes:
        """Set a named value if it is not set yet. Returns the value that stands now."""
        check_meta(name, value)
        return sound_value(self._put_meta(name, value))

    def close(self) -> None:
        """Release connections; idempotent. Every later call raises TokenStoreError."""
        if self._closed:
            return
        self._closed = True
        try:
            self._close()
        except Exception as error:  # noqa: BLE001  as in _guarded
            failure = port_error(error, PASSED, self._explain)
        else:
            return
        raise failure

    def _explain(self, error: Exception) -> str:
        """What to tell a caller about an exception: what to look at next, and never row data."""
        return UNEXPLAINED

    @abstractmethod
    def _provision(self) -> None: ...

    @abstractmethod
    def _check_schema(self) -> None: ...

    @abstractmethod
    def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]: ...

    @abstractmethod
    def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> list[SealedRecord]: ...

    @abstractmethod
    def _by_reference(self, reference: bytes) -> SealedRecord | None: ...

    @abstractmethod
    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]: ...

    @abstractmethod
    def _replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]: ...

    @abstractmethod
    def _append(self, events: Sequence[SealedEvent]) -> None: ...

    @abstractmethod
    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]: ...

    @abstractmethod
    def _events_about(self, reference: bytes, after: int, limit: int) -> list[SealedEvent]: ...

    @abstractmethod
    def _streams(self) -> list[bytes]: ...

    @abstractmethod
    def _latest_checkpoints(self, limit: int) -> list[SealedEvent]: ...

    @abstractmethod
    def _put_domain(self, digest: bytes, document: bytes) -> None: ...

    @abstractmethod
    def _get_domain(self, digest: bytes) -> bytes | None: ...

    @abstractmethod
    def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]: ...

    @abstractmethod
    def _get_meta(self, name: str) -> bytes | None: ...

    @abstractmethod
    def _put_meta(self, name: str, value: bytes) -> bytes: ...

    @abstractmethod
    def _close(self) -> None: ...
