"""New tokens of a chunk, as columns, and how random ones are drawn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

import attrs
import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Words
from tokenvault.columns.random import uniform
from tokenvault.model.pan_columns import PanColumns
from tokenvault.model.token_format import TokenFormat
from tokenvault.stores.new_records import Bytes
from tokenvault.stores.port import REFERENCE_BYTES
from tokenvault.vault import issue
from tokenvault.vault.batch.results import Mask, Rows, token_texts

DRAWS_MAX: Final = issue.DRAWS_MAX
"""How often a token that exists is drawn again before its card is left to a single call."""

LAST4: Final = np.uint64(10_000)


@attrs.frozen
class NewTokens:
    """Tokens to be issued.

    Attributes:
        rows: of the chunk's cards that they are for.
        numbers, lengths: the tokens: their digits as a number, and how many.
        references, pan_fingerprints: shape (tokens, 16), dtype uint8.
    """

    rows: Rows
    numbers: Words
    lengths: npt.NDArray[np.uint8]
    references: Bytes
    pan_fingerprints: Bytes

    @classmethod
    def blank(
        cls,
        rows: Rows,
        token_length: int | None,
        pan_lengths: npt.NDArray[np.uint8],
        pan_fingerprints: Bytes,
    ) -> NewTokens:
        """Tokens with fresh references and no digits yet; of the length of their PANs, where none is given."""
        count = len(rows)
        references = np.frombuffer(os.urandom(count * REFERENCE_BYTES), np.uint8)
        return cls(
            rows=rows,
            numbers=np.zeros(count, np.uint64),
            lengths=pan_lengths if token_length is None else np.full(count, token_length, np.uint8),
            references=references.reshape(count, REFERENCE_BYTES),
            pan_fingerprints=pan_fingerprints,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Mask | Rows) -> NewTokens:
        """Some of them."""
        return NewTokens(
            rows=self.rows[chosen],
            numbers=self.numbers[chosen],
            lengths=self.lengths[chosen],
            references=self.references[chosen],
            pan_fingerprints=self.pan_fingerprints[chosen],
        )

    @property
    def tokens(self) -> list[bytes]:
        """The tokens' ASCII digits."""
        found: list[bytes] = token_texts(self.numbers, self.lengths).tolist()
        return found

    def among(self, others: Iterable[str]) -> Mask:
        """Which of them are among other tokens."""
        encoded = {token.encode("ascii") for token in others}
        return np.array([token in encoded for token in self.tokens], np.bool_)

    def repeated(self) -> Mask:
        """Which of them stand in an earlier row, too."""
        found: Mask = np.zeros(len(self), np.bool_)
        for length in np.unique(self.lengths):
            places = np.flatnonzero(self.lengths == length)
            _, firsts = np.unique(self.numbers[places], return_index=True)
            if len(firsts) != len(places):
                found[np.delete(places, firsts)] = True
        return found


def draw(token_format: TokenFormat, pans: PanColumns, new: NewTokens, chosen: Mask) -> Mask:
    """Draw the digits of some tokens, and again of those that stand twice. Returns which still do.

    Args:
        token_format: of the tokens.
        pans: of the cards, a row for each token.
        new: gets the digits.
        chosen: which tokens to draw.
    """
    for _ in range(DRAWS_MAX + 1):
        make(token_format, pans, new, chosen, lambda places, below: uniform(len(places), below))
        chosen = new.repeated()
        if not chosen.any():
            break
    return chosen


def make(
    token_format: TokenFormat,
    pans: PanColumns,
    new: NewTokens,
    chosen: Mask,
    choose: Callable[[Rows, int], Words],
) -> None:
    """Set the digits of some tokens: as `draw`, with numbers that `choose` gives.

    It is asked for one number for each of the places that it is given, from 0 to below the bound.
    """
    for length in np.unique(pans.lengths[chosen]).tolist():
        places = np.flatnonzero(chosen & (pans.lengths == length))
        choices = choose(places, token_format.choices(length))
        new.numbers[places] = token_format.make_many(choices, length, pans.values[places] % LAST4)
