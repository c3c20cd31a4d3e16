"""What a batch returns: a result or an error for each item, in order.

Results are columns, at most 70 bytes an item; a TokenInfo, a Card or a Decision is made when it is asked for.
"""

from __future__ import annotations

import bisect
import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, Generic, NoReturn, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tokenvault.columns import digits
from tokenvault.errors import DomainRestrictionError, InvalidInputError, TokenVaultError, bare, boundary
from tokenvault.model.decision import Decision
from tokenvault.model.pan import Card, CardExpiry, bin_length
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.token_info import TokenInfo, effective_expiry, instant
from tokenvault.vault.core import Unsealed

T = TypeVar("T")
U = TypeVar("U")
T_co = TypeVar("T_co", covariant=True)

Mask: TypeAlias = npt.NDArray[np.bool_]
Rows: TypeAlias = npt.NDArray[np.intp]
Objects: TypeAlias = npt.NDArray[np.object_]


ISSUED: Final = np.dtype(
    [
        ("token", "u8"),
        ("length", "u1"),
        ("reference", "V16"),
        ("last4", "u2"),
        ("bin", "S8"),
        ("card_month", "u2"),
        ("expiry_month", "u2"),
        ("created_ms", "i8"),
        ("updated_ms", "i8"),
        ("revision", "u8"),
    ]
)
"""What each token of a batch has of its own, in 63 bytes; otherwise as in TokenInfo:

token and last4 are digits as a number, length is how many digits the token has, months count from January 2000, which
is 1 (0: none), and times are in milliseconds of the Unix epoch.
"""


class ChunkResults(ABC, Generic[T_co]):
    """What came of the items of one chunk, each a row. Of equal objects one stands for all."""

    __slots__ = ("_errors", "_known")

    def __init__(self, rows: int) -> None:
        self._known: dict[Hashable, object] = {}
        self._errors: Objects = np.full(rows, None, np.object_)

    def __len__(self) -> int:
        return len(self._errors)

    def fail(self, rows: Rows | int, error: TokenVaultError) -> None:
        """Note why items have no result."""
        bare(error)  # a frame would hold what the call worked with
        violations = error.violations if isinstance(error, DomainRestrictionError) else ()
        self._errors[rows] = self._known.setdefault((type(error), str(error), violations), error)

    def answered(self, row: int) -> bool:
        """Whether an item has not failed."""
        return self._errors[row] is None

    @property
    def failed(self) -> Mask:
        """The items that failed."""
        return self._errors.astype(np.bool_)

    def get(self, row: int) -> T_co | TokenVaultError:
        """The result of an item, or a copy of its error: each is to be raised by one caller only."""
        error: TokenVaultError | None = self._errors[row]
        return self.result(row) if error is None else copy.copy(error)

    @abstractmethod
    def result(self, row: int) -> T_co:
        """The result of an item that did not fail."""


class ObjectResults(ChunkResults[T]):
    """Results of any kind."""

    __slots__ = ("_objects",)

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self._objects: dict[int, T] = {}

    def put(self, row: int, result: T) -> None:
        """Set the result of an item."""
        self._objects[row] = result

    def first(self: ObjectResults[list[U]]) -> ObjectResults[U]:
        """The only result of each item, of results that are lists."""
        found = ObjectResults[U](len(self))
        found._errors = self._errors
        found._objects = {row: listed[0] for row, listed in self._objects.items()}
        return found

    def result(self, row: int) -> T:
        """The result of an item."""
        return self._objects[row]


class CardResults(ChunkResults[Card]):
    """Cards; a row that failed has none."""

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
        self._decisions: Objects = np.full(rows, None, np.object_)

    def put(self, rows: Rows, decision: Decision) -> None:
        """Set the result of items."""
        self._decisions[rows] = self._known.setdefault(decision, decision)

    def result(self, row: int) -> Decision:
        """The decision of an item."""
        decision: Decision = self._decisions[row]
        return decision


class TokenInfoResults(ChunkResults[TokenInfo]):
    """Tokens issued: `issued` is an array of shape (rows,) and dtype ISSUED."""

    __slots__ = ("_examples", "issued")

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.issued = np.zeros(rows, ISSUED)
        self._examples: Objects = np.full(rows, None, np.object_)

    def put(self, row: int, token: Unsealed, info: TokenInfo) -> None:
        """Set the result of one item, from its record and from what the vault returns of that."""
        record, card = token
        expiry = effective_expiry(record, card)
        own = self.issued[row]
        own["token"], own["length"] = int(record.token), len(record.token)
        own["reference"] = np.void(record.reference)
        own["last4"] = 0 if card is None else int(card.pan.last4)
        own["bin"] = b"" if card is None else card.pan.bin.encode("ascii")
        own["card_month"] = 0 if card is None or card.expiry is None else card.expiry.month_number
        own["expiry_month"] = 0 if expiry is None else expiry.month_number
        own["created_ms"], own["updated_ms"] = record.created_ms, record.updated_ms
        own["revision"] = record.revision
        self.put_common(row, info)

    def put_common(self, rows: Rows | int, example: TokenInfo) -> None:
        """Set what items have in common, besides `issued`, to that of an example."""
        common = (
            example.program, example.requestor, example.status, example.suspended_by, example.par,
            example.assurance, example.customer, tuple(sorted(example.metadata.items())), example.last_used,
            example.purge_after,
        )  # fmt: skip
        self._examples[rows] = self._known.setdefault(common, example)

    def result(self, row: int) -> TokenInfo:
        """The token of an item."""
        common: TokenInfo = self._examples[row]
        # As in ISSUED: one call for all is several times as fast as names.
        (
            token, length, reference, last4, bin_digits, card_month, month, created_ms, updated_ms, revision,
        ) = self.issued[row].item()  # fmt: skip
        return TokenInfo(
            token=f"{token:0{length}}",
            reference=reference.hex(),
            program=common.program,
            requestor=common.requestor,
            status=common.status,
            suspended_by=common.suspended_by,
            token_expiry=CardExpiry.from_month_number(month) if month else None,
            card_expiry=CardExpiry.from_month_number(card_month) if card_month else None,
            bin=bin_digits.decode("ascii") or None,
            last4=f"{last4:04}" if bin_digits else None,
            par=common.par,
            assurance=common.assurance,
            purge_after=common.purge_after,
            customer=common.customer,
            metadata=common.metadata,
            created=instant(created_ms),
            updated=instant(updated_ms),
            last_used=common.last_used,
            revision=revision,
        )


class BatchResult(Sequence[T_co | TokenVaultError]):
    """What came of a batch: for each item, in order, its result or a TokenVaultError.

    What an index, a slice or a loop gives is made anew each time, from columns of at most 70 bytes an item. Errors
    are given, not raised, and carry no traceback. A BatchResult can be neither pickled nor copied, as it may hold
    card numbers; what it gives can be, but for a Pan.
    """

    __slots__ = ("_chunks", "_ends")

    @boundary
    def __init__(self, chunks: Sequence[ChunkResults[T_co]]) -> None:
        given: object = chunks
        if not isinstance(given, list | tuple) or not all(isinstance(each, ChunkResults) for each in given):
            raise InvalidInputError("a BatchResult is made by a batch")
        self._chunks = chunks
        self._ends = list(accumulate(map(len, chunks)))

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
            yield from map(chunk.get, range(len(chunk)))

    @property
    def errors(self) -> dict[int, TokenVaultError]:
        """The errors by the index of their item, from 0, ascending."""
        found = {}
        for start, chunk in zip([0, *self._ends], self._chunks, strict=False):
            for row in np.flatnonzero(chunk.failed).tolist():
                error = chunk.get(row)
                if isinstance(error, TokenVaultError):
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
        raise InvalidInputError("a BatchResult is not pickled; what it holds may be, but for a PAN")


class IssueBatchResult(BatchResult[T_co]):
    """What came of `issue_many`: for each card, in order, its TokenInfo or a TokenVaultError."""

    __slots__ = ()

    @property
    def tokens(self) -> npt.NDArray[np.bytes_]:
        """The tokens as ASCII digits, shape (items,), dtype "S19"; empty where an item has an error."""
        every = [np.zeros(0, ISSUED)]
        for chunk in self._chunks:
            if isinstance(chunk, TokenInfoResults):
                every.append(np.where(chunk.failed, np.zeros(1, ISSUED), chunk.issued))
        return token_texts(np.concatenate(every))


def bins_of(pans: PanColumns) -> npt.NDArray[np.bytes_]:
    """The first digits of PANs, as `Pan.bin` has them, dtype "S8"."""
    bins = np.zeros(len(pans.values), "S8")
    for length in np.unique(pans.lengths).tolist():
        chosen = pans.lengths == length
        shown = bin_length(length)
        leading = pans.values[chosen] // np.uint64(10 ** (length - shown))
        bins[chosen] = digits.to_ascii(leading, shown).view(f"S{shown}").reshape(-1)
    return bins


def token_texts(tokens: npt.NDArray[Any]) -> npt.NDArray[np.bytes_]:
    """Tokens, dtype ISSUED, as ASCII digits, dtype "S19"; of length 0, empty."""
    texts = np.zeros(len(tokens), "S19")
    for length in np.unique(tokens["length"]).tolist():
        if length:
            chosen = tokens["length"] == length
            texts[chosen] = digits.to_ascii(tokens["token"][chosen], length).view(f"S{length}").reshape(-1)
    return texts
