"""The cards of a batch: read into columns, as single calls read each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from tokenvault.errors import InvalidInputError
from tokenvault.model.pan import CardExpiry
from tokenvault.model.pan_columns import PanColumns, parse_pans
from tokenvault.model.programs import TokenProgram
from tokenvault.records.card_columns import CardColumns
from tokenvault.vault.batch.results import Mask


def read_cards(items: Sequence[object]) -> tuple[CardColumns, dict[int, InvalidInputError]]:
    """Read cards, each a PAN as `Pan.parse` takes it, or a pair of PAN and expiry.

    Returns:
        A row for each, with PAN length 0 where it was refused, and the errors of those by row.
    """
    numbers: list[object] = []
    refused: dict[int, InvalidInputError] = {}
    months = np.zeros(len(items), np.uint16)
    known: dict[object, int] = {}
    for row, item in enumerate(items):
        number, expiry = _pair(item)
        numbers.append(number)
        if expiry is not None:
            try:
                months[row] = _month(expiry, known)
            except InvalidInputError as error:
                refused[row] = error
    pans, errors = parse_pans(numbers)
    refused.update(errors)  # as a single call reads it, the PAN comes first
    for row in refused:
        pans.values[row] = pans.lengths[row] = 0
    return CardColumns(pans, months), refused


def _pair(item: object) -> tuple[object, object]:
    if type(item) is tuple or type(item) is list:
        # Another number of parts is no PAN either, and refused as such.
        return (item[0], item[1]) if len(item) == 2 else (None, None)
    return item, None


def _month(expiry: object, known: dict[object, int]) -> int:
    """The month of an expiry, which is parsed once for all cards that have it."""
    if type(expiry) is not str:
        return CardExpiry.parse(expiry).month_number  # type: ignore[arg-type] # refuses what is not an expiry
    if expiry not in known:
        known[expiry] = CardExpiry.parse(expiry).month_number
    return known[expiry]


def in_token_bins(pans: PanColumns, programs: Iterable[TokenProgram]) -> Mask:
    """Which PANs lie in the token BIN of any of the programs."""
    bins: dict[int, set[int]] = defaultdict(set)
    for program in programs:
        bins[len(program.format.bin)].add(int(program.format.bin))
    found = np.zeros(len(pans.values), np.bool_)
    for length in np.unique(pans.lengths[pans.lengths > 0]).tolist():
        chosen = pans.lengths == length
        for bin_length, values in bins.items():
            prefixes = pans.values[chosen] // np.uint64(10 ** (length - bin_length))
            found[chosen] |= np.isin(prefixes, np.array(sorted(values), np.uint64))
    return found
