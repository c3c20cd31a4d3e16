"""New tokens of a chunk: a row each, drawn together."""

from __future__ import annotations

import os
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Words
from tokenvault.columns.random import uniform
from tokenvault.model.pan_columns import PanColumns
from tokenvault.model.token_format import TokenFormat
from tokenvault.records.card_columns import CardColumns
from tokenvault.stores.new_records import Bytes
from tokenvault.stores.port import REFERENCE_BYTES
from tokenvault.vault import issue
from tokenvault.vault.batch.results import token_texts

DRAWS_MAX: Final = issue.DRAWS_MAX
"""How often a token that exists is drawn again before its card is left to a single call."""

LAST4: Final = np.uint64(10_000)
Rows: TypeAlias = npt.NDArray[np.intp]
Mask: TypeAlias = npt.NDArray[np.bool_]


class New(NamedTuple):
    """Tokens to be issued, a row each.

    Attributes:
        rows: of the chunk, in any order.
        numbers, lengths: the tokens.
        references, pan_fingerprints: shape (rows, 16), dtype uint8.
    """

    rows: Rows
    numbers: Words
    lengths: npt.NDArray[np.uint8]
    references: Bytes
    pan_fingerprints: Bytes

    @classmethod
    def of(cls, rows: Rows, lengths: npt.NDArray[np.uint8], pan_fingerprints: Bytes) -> New:
        """With fresh references, and no tokens yet."""
        count = len(rows)
        references = np.frombuffer(os.urandom(count * REFERENCE_BYTES), np.uint8).reshape(
            count, REFERENCE_BYTES
        )
        return cls(rows, np.zeros(count, np.uint64), lengths, references, pan_fingerprints)

    def take(self, chosen: Mask | Rows) -> New:
        """Some of them."""
        rows, numbers, lengths, references, pan_fingerprints = self
        return New(
            rows[chosen], numbers[chosen], lengths[chosen], references[chosen], pan_fingerprints[chosen]
        )

    @property
    def tokens(self) -> list[bytes]:
        """The tokens' digits."""
        found: list[bytes] = token_texts(self.numbers, self.lengths).tolist()
        return found


def token_lengths(token_format: TokenFormat, pans: PanColumns) -> npt.NDArray[np.uint8]:
    """Of the tokens for cards."""
    length = token_format.length
    return pans.lengths if length is None else np.full(len(pans.lengths), length, np.uint8)


def draw(token_format: TokenFormat, cards: CardColumns, fresh: New, drawing: Mask) -> Mask:
    """Draw tokens for some of the rows, and again what stands twice. Returns which rows are still not unique."""
    pans = cards.take(fresh.rows).pans
    _draw(token_format, pans, fresh, drawing)
    twice = repeated(fresh)
    for _ in range(DRAWS_MAX):
        if not twice.any():
            break
        _draw(token_format, pans, fresh, twice)
        twice = repeated(fresh)
    return twice


def _draw(token_format: TokenFormat, pans: PanColumns, fresh: New, drawing: Mask) -> None:
    for length in np.unique(pans.lengths[drawing]).tolist():
        chosen = drawing & (pans.lengths == length)
        choices = uniform(int(chosen.sum()), token_format.choices(length))
        fresh.numbers[chosen] = token_format.make_many(choices, length, pans.values[chosen] % LAST4)


def repeated(fresh: New) -> Mask:
    """Where a token stands in an earlier row already."""
    found: Mask = np.zeros(len(fresh.rows), np.bool_)
    for length in np.unique(fresh.lengths):
        places = np.flatnonzero(fresh.lengths == length)
        _, firsts = np.unique(fresh.numbers[places], return_index=True)
        if len(firsts) != len(places):
            found[np.delete(places, firsts)] = True
    return found
