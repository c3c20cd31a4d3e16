"""The chunks of batches: tokens issued, cards, and decisions, as columns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvault.columns import digits as digit_columns
from tokenvault.columns.arrays import Words
from tokenvault.model.decision import Decision
from tokenvault.model.pan import Card, CardExpiry, trusted_pan
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.token_info import TokenInfo, instant
from tokenvault.stores.new_records import Bytes
from tokenvault.vault.batch.outcomes import Chunk, Failures

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class CardChunk(Chunk[Card]):
    """Cards, which show themselves as Card does.

    Args:
        failures: of the items that have none.
        cards: a row for each item.
    """

    __slots__ = ("cards",)

    def __init__(self, failures: Failures, cards: CardColumns) -> None:
        super().__init__(failures)
        self.cards = cards

    @classmethod
    def empty(cls, rows: int) -> CardChunk:
        """Room for so many items."""
        return cls(Failures(rows), no_cards(rows))

    def put(self, row: int, card: Card) -> None:
        """Set the result of an item."""
        pans, months = self.cards
        pans.values[row], pans.lengths[row] = int(card.pan.reveal()), len(card.pan)
        months[row] = 0 if card.expiry is None else card.expiry.month_number

    def put_many(self, rows: npt.NDArray[np.intp], cards: CardColumns) -> None:
        """Set the results of items."""
        self.cards.pans.values[rows], self.cards.pans.lengths[rows] = cards.pans
        self.cards.months[rows] = cards.months

    def result(self, row: int) -> Card:
        """The card of an item."""
        return card_at(self.cards, row)


class DecisionChunk(Chunk[Decision]):
    """Decisions, few of which differ."""

    __slots__ = ("_known", "_places", "_table")

    def __init__(self, rows: int) -> None:
        super().__init__(Failures(rows))
        self._table: list[Decision] = []
        self._known: dict[Decision, int] = {}
        self._places: npt.NDArray[np.uint16] = np.zeros(rows, np.uint16)

    def put(self, row: int, decision: Decision) -> None:
        """Set the result of an item."""
        self.put_many(np.array([row]), decision)

    def put_many(self, rows: npt.NDArray[np.intp], decision: Decision) -> None:
        """Set the result of items."""
        place = self._known.get(decision)
        if place is None:
            place = self._known[decision] = len(self._table)
            self._table.append(decision)
        self._places[rows] = place

    def result(self, row: int) -> Decision:
        """The decision of an item."""
        return self._table[int(self._places[row])]


class InfoChunk(Chunk[TokenInfo]):
    """Tokens issued. What few of them differ in is kept once, as a TokenInfo to be filled in.

    Args:
        rows: how many items there are.
    """

    __slots__ = (
        "_infos", "_known", "_places", "created_ms", "last4", "lengths", "months", "numbers", "references",
        "revisions", "updated_ms",
    )  # fmt: skip

    def __init__(self, rows: int) -> None:
        super().__init__(Failures(rows))
        self.numbers: Words = np.zeros(rows, np.uint64)
        self.lengths: npt.NDArray[np.uint8] = np.zeros(rows, np.uint8)
        self.references: Bytes = np.zeros((rows, 16), np.uint8)
        self.last4: npt.NDArray[np.uint16] = np.zeros(rows, np.uint16)
        self.months: npt.NDArray[np.uint16] = np.zeros(rows, np.uint16)
        self.created_ms: npt.NDArray[np.int64] = np.zeros(rows, np.int64)
        self.updated_ms: npt.NDArray[np.int64] = np.zeros(rows, np.int64)
        self.revisions: Words = np.zeros(rows, np.uint64)
        self._places: npt.NDArray[np.uint16] = np.zeros(rows, np.uint16)
        self._infos: list[TokenInfo] = []
        self._known: dict[object, int] = {}

    def put(self, row: int, info: TokenInfo) -> None:
        """Set the result of an item."""
        self.numbers[row], self.lengths[row] = int(info.token), len(info.token)
        self.references[row] = np.frombuffer(bytes.fromhex(info.reference), np.uint8)
        self.last4[row] = int(info.last4 or 0)
        self.months[row] = 0 if info.token_expiry is None else info.token_expiry.month_number
        self.created_ms[row] = (info.created - _EPOCH) // timedelta(milliseconds=1)
        self.updated_ms[row] = (info.updated - _EPOCH) // timedelta(milliseconds=1)
        self.revisions[row] = info.revision
        self.common(np.array([row]), info)

    def common(self, rows: npt.NDArray[np.intp], info: TokenInfo) -> None:
        """Say what some of the items have in common with an example, besides the columns."""
        key = info.program, info.requestor, info.status, info.suspended_by, info.par, info.assurance
        place = self._known.get(key)
        if place is None:
            place = self._known[key] = len(self._infos)
            self._infos.append(info)
        self._places[rows] = place

    def copy(self, row: int, source: int) -> None:
        """Set the result of an item to that of another."""
        for column in (
            self.numbers, self.lengths, self.references, self.last4, self.months, self.created_ms,
            self.updated_ms, self.revisions, self._places,
        ):  # fmt: skip
            column[row] = column[source]

    @property
    def tokens(self) -> npt.NDArray[np.bytes_]:
        """Those of all items; empty for those that failed."""
        return token_texts(self.numbers, self.lengths)

    def result(self, row: int) -> TokenInfo:
        """The token of an item."""
        like = self._infos[self._places[row]]
        month = int(self.months[row])
        return TokenInfo(
            token=f"{self.numbers[row]:0{self.lengths[row]}}",
            reference=self.references[row].tobytes().hex(),
            program=like.program,
            requestor=like.requestor,
            status=like.status,
            suspended_by=like.suspended_by,
            token_expiry=CardExpiry.from_month_number(month) if month else None,
            last4=f"{self.last4[row]:04}",
            par=like.par,
            assurance=like.assurance,
            created=instant(int(self.created_ms[row])),
            updated=instant(int(self.updated_ms[row])),
            revision=int(self.revisions[row]),
        )


def no_cards(rows: int) -> CardColumns:
    """Room for so many cards."""
    pans = PanColumns(np.zeros(rows, np.uint64), np.zeros(rows, np.uint8))
    return CardColumns(pans, np.zeros(rows, np.uint16))


def card_at(cards: CardColumns, row: int) -> Card:
    """The card of a row."""
    month = int(cards.months[row])
    pan = trusted_pan(cards.pans.digits(row))
    return Card(pan, CardExpiry.from_month_number(month) if month else None)


def token_texts(numbers: Words, lengths: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Tokens as ASCII digits, dtype "S19"; of length 0, empty."""
    texts = np.zeros(len(numbers), "S19")
    for length in np.unique(lengths).tolist():
        if length:
            chosen = lengths == length
            texts[chosen] = digit_columns.to_ascii(numbers[chosen], length).view(f"S{length}").reshape(-1)
    return texts
