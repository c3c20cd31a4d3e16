"""What came of each item of a batch, in order: kept as columns, made into objects on access."""

from __future__ import annotations

import bisect
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final, Generic, NoReturn, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tokenvault.errors import DomainRestrictionError, InvalidInputError, TokenVaultError, bare

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
Places: TypeAlias = npt.NDArray[np.uint16]


class Failures:
    """The errors of a chunk's items. Items that failed alike share one; each access gives a copy.

    Args:
        rows: how many items there are, at most 2**16 - 1.
    """

    __slots__ = ("_errors", "_known", "_places")

    def __init__(self, rows: int) -> None:
        self._errors: list[TokenVaultError] = []
        self._known: dict[object, int] = {}
        self._places: Places = np.zeros(rows, np.uint16)

    def add(self, row: int, error: TokenVaultError) -> None:
        """Note that an item failed."""
        self.add_many(np.array([row]), error)

    def add_many(self, rows: npt.NDArray[np.intp], error: TokenVaultError) -> None:
        """Note that items failed alike."""
        violations = error.violations if isinstance(error, DomainRestrictionError) else ()
        key = type(error), str(error), violations
        place = self._known.get(key)
        if place is None:
            bare(error)  # a frame would hold what the call worked with
            self._errors.append(error)
            place = self._known[key] = len(self._errors)
        self._places[rows] = place

    def at(self, row: int) -> bool:
        """Whether an item failed."""
        return bool(self._places[row])

    def get(self, row: int) -> TokenVaultError | None:
        """The error of an item that failed."""
        place = self._places[row]
        return copy.copy(self._errors[place - 1]) if place else None

    @property
    def any(self) -> bool:
        """Whether any item failed."""
        return bool(self._errors)

    @property
    def rows(self) -> list[int]:
        """Those that failed, ascending."""
        found: list[int] = np.flatnonzero(self._places).tolist()
        return found

    def __len__(self) -> int:
        return len(self._places)


class Chunk(ABC, Generic[T_co]):
    """The outcomes of some items that were worked on together.

    Attributes:
        failures: of those that failed.
    """

    __slots__ = ("failures",)

    def __init__(self, failures: Failures) -> None:
        self.failures = failures

    @abstractmethod
    def result(self, row: int) -> T_co:
        """The result of an item that did not fail."""

    @property
    def tokens(self) -> npt.NDArray[np.bytes_]:
        """Of those items that have one."""
        return np.zeros(len(self.failures), "S19")


class Failed(Chunk[T_co]):
    """A chunk that failed as a whole."""

    __slots__ = ()

    def __init__(self, rows: int, error: TokenVaultError) -> None:
        super().__init__(Failures(rows))
        self.failures.add_many(np.arange(rows), error)

    def result(self, row: int) -> NoReturn:
        """None of them has one."""
        raise IndexError(row)


class BatchResult(Sequence[T_co | TokenVaultError], Generic[T_co]):
    """A result or a TokenVaultError for each item of a batch, in order.

    It holds some 60 bytes an item; what an index gives is made anew each time. Errors are returned, not raised,
    without traceback. It can be neither pickled nor copied; what it gives may be, but for a Pan.
    """

    __slots__ = ("_chunks", "_ends")

    def __init__(self, chunks: Sequence[Chunk[T_co]]) -> None:
        self._chunks: Final = tuple(chunk for chunk in chunks if len(chunk.failures))
        self._ends: Final[list[int]] = np.cumsum([len(chunk.failures) for chunk in self._chunks]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> T_co | TokenVaultError: ...

    @overload
    def __getitem__(self, index: slice) -> list[T_co | TokenVaultError]: ...

    def __getitem__(self, index: int | slice) -> T_co | TokenVaultError | list[T_co | TokenVaultError]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]  # IndexError where there is no such item
        place = bisect.bisect_right(self._ends, row)
        return _outcome(self._chunks[place], row - self._start(place))

    def __iter__(self) -> Iterator[T_co | TokenVaultError]:
        for chunk in self._chunks:
            for row in range(len(chunk.failures)):
                yield _outcome(chunk, row)

    @property
    def errors(self) -> dict[int, TokenVaultError]:
        """The errors by the number of their item, ascending from 0."""
        found = {}
        for place, chunk in enumerate(self._chunks):
            for row in chunk.failures.rows:
                error = chunk.failures.get(row)
                if error is not None:
                    found[self._start(place) + row] = error
        return found

    @property
    def failed(self) -> bool:
        """Whether any item has an error."""
        return any(chunk.failures.any for chunk in self._chunks)

    def _start(self, place: int) -> int:
        return self._ends[place] - len(self._chunks[place].failures)

    def __repr__(self) -> str:
        failed = sum(len(chunk.failures.rows) for chunk in self._chunks)
        return f"<{type(self).__name__} of {len(self)}, {failed} with an error>"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise InvalidInputError(
            "the outcomes of a batch are not pickled; what they hold may be, but for a PAN"
        )


class IssueBatchResult(BatchResult[T_co]):
    """The outcomes of `issue_many`: a TokenInfo or a TokenVaultError for each card."""

    __slots__ = ()

    @property
    def tokens(self) -> npt.NDArray[np.bytes_]:
        """The tokens, dtype "S19": ASCII digits; empty where an item has an error."""
        return np.concatenate([np.zeros(0, "S19"), *(chunk.tokens for chunk in self._chunks)])


def _outcome(chunk: Chunk[T], row: int) -> T | TokenVaultError:
    error = chunk.failures.get(row)
    return chunk.result(row) if error is None else error
