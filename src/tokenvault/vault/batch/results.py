"""What a batch returns: a result or an error for each item, in order.

Results are columns, some 60 bytes an item; a TokenInfo, a Card or a Decision is made when it is asked for.
"""

from __future__ import annotations

import bisect
import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Final, Generic, NamedTuple, NoReturn, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tokenvault.columns import digits
from tokenvault.columns.arrays import Words
from tokenvault.errors import DomainRestrictionError, InvalidInputError, TokenVaultError, bare
from tokenvault.model.decision import Decision
from tokenvault.model.pan import Card, CardExpiry
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.token_info import TokenInfo, instant

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Mask: TypeAlias = npt.NDArray[np.bool_]
Rows: TypeAlias = npt.NDArray[np.intp]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Issued(NamedTuple):
    """What each token of a batch has of its own.

    Attributes:
        token: its digits as a number; length: how many they are.
        reference: 16 bytes.
        last4: of the PAN, as a number.
        expiry_month: in months from January 2000, which is 1; 0: none.
        created_ms, updated_ms: in milliseconds of the Unix epoch.
        revision: as in TokenInfo.
    """

    token: int
    length: int
    reference: bytes
    last4: int
    expiry_month: int
    created_ms: int
    updated_ms: int
    revision: int


ISSUED: Final = np.dtype(
    {"names": Issued._fields, "formats": ["u8", "u1", "V16", "u2", "u2", "i8", "i8", "u8"]}
)
"""An Issued as a row of an array, of 53 bytes."""


class Repeated(Generic[T]):
    """A column of objects of which few differ: each is kept once, and a row holds its number.

    Args:
        rows: how many there are, each without an object at first; at most 2**16 - 1.
    """

    __slots__ = ("_known", "_numbers", "_objects")

    def __init__(self, rows: int) -> None:
        self._objects: list[T] = []
        self._known: dict[Hashable, int] = {}
        self._numbers: npt.NDArray[np.uint16] = np.zeros(rows, np.uint16)

    def put(self, rows: Rows | int, value: T, key: Hashable) -> None:
        """Set some rows to an object; of objects with the same key the first stands for all."""
        number = self._known.setdefault(key, len(self._objects) + 1)
        if number > len(self._objects):
            self._objects.append(value)
        self._numbers[rows] = number

    def get(self, row: int) -> T | None:
        """The object of a row, if it has one."""
        number = self._numbers[row]
        return self._objects[number - 1] if number else None

    @property
    def mask(self) -> Mask:
        """The rows that have an object."""
        found: Mask = self._numbers != 0
        return found


class ChunkResults(ABC, Generic[T_co]):
    """What came of the items of one chunk.

    Args:
        rows: how many items there are.
    """

    __slots__ = ("_errors",)

    def __init__(self, rows: int) -> None:
        self._errors: Repeated[TokenVaultError] = Repeated(rows)

    def fail(self, rows: Rows | int, error: TokenVaultError) -> None:
        """Note why items have no result."""
        bare(error)  # a frame would hold what the call worked with
        violations = error.violations if isinstance(error, DomainRestrictionError) else ()
        self._errors.put(rows, error, (type(error), str(error), violations))

    @property
    def failed(self) -> Mask:
        """The items that failed."""
        return self._errors.mask

    def error(self, row: int) -> TokenVaultError | None:
        """The error of an item that failed; each access gives a copy, to be raised by one caller only."""
        return copy.copy(self._errors.get(row))

    @abstractmethod
    def result(self, row: int) -> T_co:
        """The result of an item that did not fail."""

    def get(self, row: int) -> T_co | TokenVaultError:
        """The error or the result of an item."""
        error = self.error(row)
        return self.result(row) if error is None else error


class CardResults(ChunkResults[Card]):
    """Cards.

    Attributes:
        cards: a row for each item; of those that failed, without a card.
    """

    __slots__ = ("cards",)

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.cards = CardColumns.empty(rows)

    def result(self, row: int) -> Card:
        """The card of an item."""
        return self.cards.card(row)


class DecisionResults(ChunkResults[Decision]):
    """Decisions, few of which differ."""

    __slots__ = ("_decisions",)

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self._decisions: Repeated[Decision] = Repeated(rows)

    def put(self, rows: Rows, decision: Decision) -> None:
        """Set the result of items."""
        self._decisions.put(rows, decision, decision)

    def result(self, row: int) -> Decision:
        """The decision of an item."""
        decision = self._decisions.get(row)
        if decision is None:
            raise IndexError(row)
        return decision


class TokenInfoResults(ChunkResults[TokenInfo]):
    """Tokens issued.

    Attributes:
        issued: shape (rows,), dtype ISSUED.
    """

    __slots__ = ("_examples", "issued")

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.issued = np.zeros(rows, ISSUED)
        self._examples: Repeated[TokenInfo] = Repeated(rows)

    def put(self, row: int, info: TokenInfo) -> None:
        """Set the result of one item."""
        self.issued[row] = Issued(
            token=int(info.token),
            length=len(info.token),
            reference=bytes.fromhex(info.reference),
            last4=int(info.last4 or 0),
            expiry_month=0 if info.token_expiry is None else info.token_expiry.month_number,
            created_ms=(info.created - _EPOCH) // timedelta(milliseconds=1),
            updated_ms=(info.updated - _EPOCH) // timedelta(milliseconds=1),
            revision=info.revision,
        )
        self.put_common(row, info)

    def put_common(self, rows: Rows | int, example: TokenInfo) -> None:
        """Set what items have in common, besides `issued`, to that of an example."""
        common = (
            example.program, example.requestor, example.status, example.suspended_by, example.par,
            example.assurance,
        )  # fmt: skip
        self._examples.put(rows, example, common)

    def result(self, row: int) -> TokenInfo:
        """The token of an item."""
        common = self._examples.get(row)
        if common is None:
            raise IndexError(row)
        own = Issued(*self.issued[row].item())
        return TokenInfo(
            token=f"{own.token:0{own.length}}",
            reference=own.reference.hex(),
            program=common.program,
            requestor=common.requestor,
            status=common.status,
            suspended_by=common.suspended_by,
            token_expiry=CardExpiry.from_month_number(own.expiry_month) if own.expiry_month else None,
            last4=f"{own.last4:04}",
            par=common.par,
            assurance=common.assurance,
            created=instant(own.created_ms),
            updated=instant(own.updated_ms),
            revision=own.revision,
        )


class BatchResult(Sequence[T_co | TokenVaultError]):
    """What came of a batch: for each item, in order, its result or a TokenVaultError.

    What an index, a slice or a loop gives is made anew each time, from columns of some 60 bytes an item. Errors are
    given, not raised, and carry no traceback. A BatchResult can be neither pickled nor copied, as it may hold card
    numbers; what it gives can be, but for a Pan.
    """

    __slots__ = ("_chunks", "_ends")

    def __init__(self, chunks: Sequence[ChunkResults[T_co]]) -> None:
        self._chunks = chunks
        self._ends = list(accumulate(len(chunk.failed) for chunk in chunks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> T_co | TokenVaultError: ...

    @overload
    def __getitem__(self, index: slice) -> list[T_co | TokenVaultError]: ...

    def __getitem__(self, index: int | slice) -> T_co | TokenVaultError | list[T_co | TokenVaultError]:
        if isinstance(index, slice):
            return [self[item] for item in range(*index.indices(len(self)))]
        item = range(len(self))[index]  # IndexError where there is no such item
        number = bisect.bisect_right(self._ends, item)
        start = self._ends[number - 1] if number else 0
        return self._chunks[number].get(item - start)

    def __iter__(self) -> Iterator[T_co | TokenVaultError]:
        for chunk in self._chunks:
            yield from map(chunk.get, range(len(chunk.failed)))

    @property
    def errors(self) -> dict[int, TokenVaultError]:
        """The errors by the index of their item, from 0, ascending."""
        found = {}
        for start, chunk in zip([0, *self._ends], self._chunks, strict=False):
            for row in np.flatnonzero(chunk.failed).tolist():
                error = chunk.error(row)
                if error is not None:
                    found[start + row] = error
        return found

    @property
    def failed(self) -> bool:
        """Whether any item has an error."""
        return any(chunk.failed.any() for chunk in self._chunks)

    def __repr__(self) -> str:
        failed = sum(int(chunk.failed.sum()) for chunk in self._chunks)
        return f"<{type(self).__name__} of {len(self)}, {failed} with an error>"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise InvalidInputError(
            "the outcomes of a batch are not pickled; what they hold may be, but for a PAN"
        )


class IssueBatchResult(BatchResult[T_co]):
    """What came of `issue_many`: for each card, in order, its TokenInfo or a TokenVaultError."""

    __slots__ = ()

    @property
    def tokens(self) -> npt.NDArray[np.bytes_]:
        """The tokens as ASCII digits, shape (items,), dtype "S19"; empty where an item has an error."""
        issued = [chunk.issued for chunk in self._chunks if isinstance(chunk, TokenInfoResults)]
        every = np.concatenate([np.zeros(0, ISSUED), *issued])
        return token_texts(every["token"], every["length"])


def token_texts(numbers: Words, lengths: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Tokens as ASCII digits, dtype "S19"; of length 0, empty."""
    texts = np.zeros(len(numbers), "S19")
    for length in np.unique(lengths).tolist():
        if length:
            chosen = lengths == length
            texts[chosen] = digits.to_ascii(numbers[chosen], length).view(f"S{length}").reshape(-1)
    return texts
