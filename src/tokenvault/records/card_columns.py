"""Cards of a batch as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenvault.model.pan import Card, CardExpiry, trusted_pan
from tokenvault.model.pan_columns import PanColumns

Months: TypeAlias = npt.NDArray[np.uint16]


class CardColumns(NamedTuple):
    """Cards, a row each.

    Attributes:
        pans: their PANs; length 0 in a tombstone, and where there is no card.
        months: dtype uint16, card expiry in months from January 2000, which is 1; 0: none.
    """

    pans: PanColumns
    months: Months

    def __repr__(self) -> str:
        return f"<CardColumns of {len(self.months)}>"

    @classmethod
    def empty(cls, rows: int) -> CardColumns:
        """Columns without any card yet."""
        pans = PanColumns(np.zeros(rows, np.uint64), np.zeros(rows, np.uint8))
        return cls(pans, np.zeros(rows, np.uint16))

    @classmethod
    def of(cls, cards: Sequence[Card | None]) -> CardColumns:
        """The columns of cards; None stands for a tombstone."""
        columns = cls.empty(len(cards))
        for row, card in enumerate(cards):
            if card is not None:
                columns.put_card(row, card)
        return columns

    def card(self, row: int) -> Card:
        """The card of a row that has one."""
        month = int(self.months[row])
        expiry = CardExpiry.from_month_number(month) if month else None
        return Card(trusted_pan(self.pans.digits(row)), expiry)

    def take(self, rows: npt.NDArray[np.intp]) -> CardColumns:
        """Some of the rows."""
        return CardColumns(PanColumns(self.pans.values[rows], self.pans.lengths[rows]), self.months[rows])

    def put(self, rows: npt.NDArray[np.intp] | Sequence[int], cards: CardColumns) -> None:
        """Set some of the rows."""
        self.pans.values[rows], self.pans.lengths[rows] = cards.pans.values, cards.pans.lengths
        self.months[rows] = cards.months

    def put_card(self, row: int, card: Card) -> None:
        """Set one row."""
        self.pans.values[row], self.pans.lengths[row] = int(card.pan.reveal()), len(card.pan)
        self.months[row] = 0 if card.expiry is None else card.expiry.month_number
