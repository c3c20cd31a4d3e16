"""The tokens of a chunk's cards: random ones are drawn, and none is to stand in two rows.

Tokens are an array of dtype `results.ISSUED`, a row for each card of the chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tokenvault.columns.arrays import Words
from tokenvault.columns.random import uniform
from tokenvault.model.pan_columns import PanColumns
from tokenvault.model.token_format import TokenFormat
from tokenvault.vault import issue
from tokenvault.vault.batch.results import Mask, Rows, token_texts

DRAWS_MAX: Final = issue.DRAWS_MAX
"""How often a token that exists is drawn again before its card is left to a single call."""

LAST4: Final = np.uint64(10_000)

NONE: Final[Rows] = np.empty(0, np.intp)


def draw(
    token_format: TokenFormat, pans: PanColumns, tokens: npt.NDArray[Any], rows: Rows, chosen: Rows
) -> Rows:
    """Draw the tokens of chosen rows, and again those that repeat an earlier one of `rows`.

    Returns the rows that still do.
    """
    for _ in range(DRAWS_MAX + 1):
        make(token_format, pans, tokens, chosen, lambda same, below: uniform(len(same), below))
        chosen = repeated(tokens, rows)
        if not len(chosen):
            break
    return chosen


def make(
    token_format: TokenFormat,
    pans: PanColumns,
    tokens: npt.NDArray[Any],
    rows: Rows,
    choose: Callable[[Rows, int], Words],
) -> None:
    """Set the tokens of some rows, from numbers that `choose` gives for rows: each from 0 to below a bound."""
    for length in np.unique(pans.lengths[rows]).tolist():
        same = rows[pans.lengths[rows] == length]
        choices = choose(same, token_format.choices(length))
        tokens["token"][same] = token_format.make_many(choices, length, pans.values[same] % LAST4)
        tokens["length"][same] = token_format.length or length


def repeated(tokens: npt.NDArray[Any], rows: Rows) -> Rows:
    """The rows whose token repeats that of an earlier row."""
    found = [NONE]
    for length in np.unique(tokens["length"][rows]):
        same = rows[tokens["length"][rows] == length]
        _, firsts = np.unique(tokens["token"][same], return_index=True)
        found.append(np.delete(same, firsts))
    return np.concatenate(found)


def among(tokens: npt.NDArray[Any], others: Iterable[str]) -> Mask:
    """Which tokens are among others."""
    encoded = {token.encode("ascii") for token in others}
    texts: list[bytes] = token_texts(tokens).tolist()
    return np.array([text in encoded for text in texts], np.bool_)
