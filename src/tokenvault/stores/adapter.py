"""What an adapter of a database writes: the private methods behind the guard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import ClassVar, Final, NoReturn, Self, TypeAlias, TypeVar

from tokenvault.errors import InvalidInputError, TokenStoreError
from tokenvault.stores.index_rows import IndexPlace
from tokenvault.stores.port import EventPage, Fence, FoundUse, SealedEvent, SealedRecord, TokenGroup
from tokenvault.stores.write_limits import WriteLimits

T = TypeVar("T")

UNEXPLAINED: Final = "the token store failed in a way it does not explain; look at the database's own log"

Answer: TypeAlias = T | Awaitable[T]
"""What a private method of an adapter returns: the value itself, or a coroutine that gives it."""


class Adapter(ABC):
    """What an adapter writes: private methods. Their arguments are checked before, the rows they return after."""

    _closed = False

    unsafe_debug: ClassVar[bool] = False
    """Whether an error shows the exception that the adapter raised, as its cause. For the development of an adapter.

    That exception can hold what a row holds, and a cause ends up in logs. So no environment variable, option or
    address turns this on: only code that sets it on the class does, such as a conftest.py, and each error that shows
    its cause warns of it. Never set it where a vault works, though a vault passes no cause on.
    """

    write_limits: WriteLimits = WriteLimits()
    """What the database takes in one transaction; an adapter whose database takes less than this says so here."""

    def __copy__(self) -> Self:
        """The same store under other attributes, as a store inside a host's transaction has them."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __reduce__(self) -> NoReturn:
        raise InvalidInputError(
            "a token store is not pickled: each process opens its own, with open_token_store"
        )

    def _explain(self, error: Exception) -> str:
        """The message for a caller about an exception: what to check next, and never row data."""
        return UNEXPLAINED

    def _code(self, error: Exception) -> str:
        """The code of what a caller sees of an exception: one of those that docs/reference/codes.md lists."""
        return TokenStoreError.code

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
    def _get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> Answer[FoundUse]: ...

    @abstractmethod
    def _uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> Answer[list[SealedEvent]]: ...

    @abstractmethod
    def _list_tokens(
        self, requestor: str, program: str, status: int, after: tuple[int, str], limit: int
    ) -> Answer[list[SealedRecord]]: ...

    @abstractmethod
    def _groups(self) -> Answer[list[TokenGroup]]: ...

    @abstractmethod
    def _count(self, requestor: str, program: str, status: int) -> Answer[int]: ...

    @abstractmethod
    def _find_customer(self, customer: str, after: str, limit: int) -> Answer[list[SealedRecord]]: ...

    @abstractmethod
    def _find_last4(
        self, last4_keys: Sequence[bytes], after: str, limit: int
    ) -> Answer[list[SealedRecord]]: ...

    @abstractmethod
    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> Answer[list[str]]: ...

    @abstractmethod
    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> Answer[list[str]]: ...

    @abstractmethod
    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> Answer[list[str]]: ...

    @abstractmethod
    def _prune(self, events: Sequence[SealedEvent], records: Fence) -> Answer[None]: ...

    @abstractmethod
    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> Answer[list[SealedEvent]]: ...

    @abstractmethod
    def _events_about(self, reference: bytes, after: bytes, limit: int) -> Answer[EventPage]: ...

    @abstractmethod
    def _index_rows(self, after: IndexPlace, limit: int) -> Answer[list[IndexPlace]]: ...

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
