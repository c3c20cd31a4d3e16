"""The cards of a batch: read into columns, as single calls read each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tokenvault.errors import InvalidInputError, TokenVaultError
from tokenvault.model.pan import CardExpiry
from tokenvault.model.pan_columns import PanColumns, parse_pans
from tokenvault.model.programs import TokenProgram
from tokenvault.records.card_columns import CardColumns

_HASHABLE: Final = {str, CardExpiry, type(None)}


def read_cards(items: Sequence[object]) -> tuple[CardColumns, dict[int, TokenVaultError]]:
    """Read cards, each a PAN as `Pan.parse` takes it, or a pair of PAN and expiry.

    Returns:
        A row for each, with PAN length 0 where it was refused, and the errors of those by row.
    """
    refused: dict[int, TokenVaultError] = {}
    months: npt.NDArray[np.uint16] = np.zeros(len(items), np.uint16)
    kinds = set(map(type, items))
    if kinds.isdisjoint({tuple, list}):
        pans, errors = parse_pans(items)
    else:
        pairs = _pairs(
            items
        )  # not zip(*pairs): an iterator for each item would have the garbage collector run
        numbers, expiries = [number for number, _ in pairs], [expiry for _, expiry in pairs]
        pans, errors = parse_pans(numbers)
        known = _months(expiries)
        for row, expiry in enumerate(expiries) if known is None else ():
            month = _month(expiry)
            if isinstance(month, InvalidInputError):
                refused[row] = month
            else:
                months[row] = month
        if known is not None:
            months[:] = np.fromiter(map(known.__getitem__, expiries), np.uint16, len(items))
    refused.update(errors)  # as a single call reads it, the PAN comes first
    for row in refused:
        pans.values[row] = pans.lengths[row] = 0
    return CardColumns(pans, months), refused


def tokens_among(pans: PanColumns, programs: Iterable[TokenProgram]) -> npt.NDArray[np.bool_]:
    """Where a PAN lies in the token BIN of any of the programs."""
    bins: dict[int, set[int]] = {}
    for program in programs:
        bins.setdefault(len(program.format.bin), set()).add(int(program.format.bin))
    found: npt.NDArray[np.bool_] = np.zeros(len(pans.values), np.bool_)
    for length in np.unique(pans.lengths).tolist():
        chosen = pans.lengths == length
        for bin_length, values in bins.items() if length else ():
            prefixes = pans.values[chosen] // np.uint64(10 ** (length - bin_length))
            found[chosen] |= np.isin(prefixes, np.array(sorted(values), np.uint64))
    return found


def _pairs(items: Sequence[Any]) -> Sequence[tuple[object, object]]:
    if set(map(type, items)) == {tuple} and set(map(len, items)) == {2}:
        return items
    return [_pair(item) for item in items]


def _pair(item: object) -> tuple[object, object]:
    if type(item) is tuple or type(item) is list:
        # Another number of parts is no PAN either, and refused as such.
        return (item[0], item[1]) if len(item) == 2 else (None, None)
    return item, None


def _months(expiries: Sequence[object]) -> dict[object, int] | None:
    """The months of expiries that are all right and hashable; None where they are not."""
    if not set(map(type, expiries)) <= _HASHABLE:
        return None
    found: dict[object, int] = {}
    for expiry in set(expiries):
        month = _month(expiry)
        if isinstance(month, InvalidInputError):
            return None
        found[expiry] = month
    return found


def _month(expiry: object) -> int | InvalidInputError:
    if expiry is None:
        return 0
    try:
        return CardExpiry.parse(expiry).month_number  # type: ignore[arg-type] # refuses what is not an expiry
    except InvalidInputError as error:
        return error
