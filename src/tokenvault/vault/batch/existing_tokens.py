"""The tokens that the cards of a chunk have already, of one requestor and program: one look-up for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from tokenvault.errors import IntegrityError
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records.record import TokenRecord
from tokenvault.stores.new_records import Bytes, split
from tokenvault.stores.port import PAGE_MAX, SealedRecord
from tokenvault.vault.core import Core, Unsealed, unsealed
from tokenvault.vault.orders import Terms

PAGES_MAX: Final = 8
"""Pages of records read for a chunk; with more, its cards are looked up one by one."""


async def find_existing(
    core: Core,
    terms: Terms,
    pan_fingerprints: Sequence[Bytes],
    pans: PanColumns,
    customers: Sequence[str] | None,
) -> dict[int, Unsealed | None]:
    """Find the tokens of cards: of their PANs and the fingerprints of these under each key, and of their customers.

    No two have one PAN, or one PAN and customer where customers are given: their tokens are then those of the
    customer only.

    Returns:
        By row, the token of each card that has exactly one, and never had another; None for cards that are to be
        looked up by a single call. Cards without a token are left out.
    """
    by_key = [split(column) for column in pan_fingerprints]
    by_key += await core.runtime.call(core.keys.tombstone_fingerprints_many, pans)
    rows = await _rows(core, terms, by_key)
    if rows is None:
        return dict.fromkeys(range(len(pans.values)))
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row.pan_fingerprint].append(place)
    cards, genuine = await core.runtime.call(core.keys.unseal_many, rows)
    found: dict[int, Unsealed | None] = {}
    for card, fingerprints in enumerate(zip(*by_key, strict=True)):
        candidates = [
            place
            for fingerprint in fingerprints
            for place in places.get(fingerprint, ())
            if customers is None or rows[place].customer == customers[card]
        ]
        own = [
            place
            for place in candidates
            if cards.pans.values[place] == pans.values[card]
            and cards.pans.lengths[place] == pans.lengths[card]
        ]
        if not all(genuine[place] and cards.pans.lengths[place] for place in candidates) or len(own) > 1:
            found[card] = None
        elif own:
            try:
                record = TokenRecord.parse(rows[own[0]])
                # One that was issued from a token is none that a card converges on.
                found[card] = None if record.source else unsealed(record, cards.card(own[0]))
            except IntegrityError:
                found[card] = None
    return found


async def _rows(core: Core, terms: Terms, by_key: Sequence[list[bytes]]) -> list[SealedRecord] | None:
    """The records of PAN fingerprints; None where the store refuses one, and where there are too many."""
    rows: list[SealedRecord] = []
    requestor, program = terms.requestor, terms.program
    for pan_fingerprints in by_key:
        after = ""
        for _ in range(PAGES_MAX):
            try:
                page = await core.store.find(
                    pan_fingerprints, requestor=requestor, program=program, after=after, limit=PAGE_MAX
                )
            except IntegrityError:
                return None
            rows += page
            if len(page) < PAGE_MAX:
                break
            after = page[-1].token
        else:
            return None
    return rows
