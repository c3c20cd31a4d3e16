"""The tokens that the cards of a chunk have already, of one requestor and program: one look-up for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

from tokenvault.errors import IntegrityError
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records.record import TokenRecord
from tokenvault.stores.new_records import Bytes, split
from tokenvault.stores.port import PAGE_MAX, SealedRecord
from tokenvault.vault.core import Core, Unsealed

PAGES_MAX: Final = 8
"""Pages of records read for a chunk; with more, its cards are looked up one by one."""


class ExistingTokens(NamedTuple):
    """What was found for cards, by their row.

    Attributes:
        tokens: of each card that has exactly one token, and never had another.
        unusual: cards that are to be looked up by a single call.
    """

    tokens: dict[int, Unsealed]
    unusual: set[int]


async def find_existing(
    core: Core, requestor: str, program: str, pan_fingerprints: Sequence[Bytes], pans: PanColumns
) -> ExistingTokens:
    """Find the tokens of cards.

    Args:
        core: the vault.
        requestor: id of the requestor whose tokens count.
        program: name of the program whose tokens count.
        pan_fingerprints: of the cards under each key, shape (rows, 16), dtype uint8.
        pans: the cards' PANs, all different.
    """
    by_key = [split(column) for column in pan_fingerprints]
    rows: list[SealedRecord] = []
    try:
        for column in by_key:
            rows += await _find(core, requestor, program, column)
    except (IntegrityError, _TooManyError):  # of one card, which a single call finds
        return ExistingTokens({}, set(range(len(pans.values))))
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row.pan_fingerprint].append(place)
    cards, genuine = await core.runtime.call(core.keys.unseal_many, rows)
    found = ExistingTokens({}, set())
    for card, fingerprints in enumerate(zip(*by_key, strict=True)):
        candidates = [place for fingerprint in fingerprints for place in places.get(fingerprint, ())]
        own = [
            place
            for place in candidates
            if cards.pans.values[place] == pans.values[card]
            and cards.pans.lengths[place] == pans.lengths[card]
        ]
        if not all(genuine[place] and cards.pans.lengths[place] for place in candidates) or len(own) > 1:
            found.unusual.add(card)
        elif own:
            record = _live_record(rows[own[0]])
            if record is None:
                found.unusual.add(card)
            else:
                found.tokens[card] = Unsealed(record, cards.card(own[0]))
    return found


class _TooManyError(Exception):
    """There are more records than PAGES_MAX pages hold."""


async def _find(
    core: Core, requestor: str, program: str, pan_fingerprints: list[bytes]
) -> list[SealedRecord]:
    rows: list[SealedRecord] = []
    for _ in range(PAGES_MAX):
        after = rows[-1].token if rows else ""
        page = await core.store.find(
            pan_fingerprints, requestor=requestor, program=program, after=after, limit=PAGE_MAX
        )
        rows += page
        if len(page) < PAGE_MAX:
            return rows
    raise _TooManyError


def _live_record(row: SealedRecord) -> TokenRecord | None:
    """The record of a row that has a card; None where no vault writes it so."""
    try:
        record = TokenRecord.parse(row)
    except IntegrityError:
        return None
    return None if record.status is TokenStatus.DELETED else record
