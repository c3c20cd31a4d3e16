"""The tokens that the cards of a chunk have already, of one requestor and program: one look-up for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tokenvault.errors import IntegrityError
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan_columns import PanColumns
from tokenvault.records.record import TokenRecord
from tokenvault.stores.new_records import Bytes, split
from tokenvault.stores.port import PAGE_MAX, SealedRecord
from tokenvault.vault.batch.results import card_at
from tokenvault.vault.core import Core, Unsealed

PAGES_MAX: Final = 8
"""Pages of records read for a chunk; with more, its cards are looked up one by one."""


class Standing(NamedTuple):
    """What was found for cards, a row each.

    Attributes:
        tokens: of each card that has exactly one token, and never had another.
        unusual: cards that are to be looked up by a single call.
    """

    tokens: dict[int, Unsealed]
    unusual: set[int]


async def look_up(
    core: Core, requestor: str, program: str, pan_fingerprints: Sequence[Bytes], pans: PanColumns
) -> Standing:
    """Find the tokens of cards.

    Args:
        core: the vault.
        requestor: whose tokens.
        program: of which program.
        pan_fingerprints: the fingerprints of the cards under each key, shape (rows, 16), dtype uint8.
        pans: the cards' PANs, all different.
    """
    found: dict[bytes, list[int]] = {}
    rows: list[SealedRecord] = []
    failure: IntegrityError | None = None
    try:
        for column in pan_fingerprints:
            page = await _found(core, requestor, program, split(column))
            if page is None:
                return Standing({}, set(range(len(pans.values))))
            rows += page
    except IntegrityError as error:  # of one row, which a single call finds
        failure = error
    if failure is not None:
        return Standing({}, set(range(len(pans.values))))
    for place, row in enumerate(rows):
        found.setdefault(row.pan_fingerprint, []).append(place)
    cards, genuine = await core.runtime.call(core.keys.unseal_many, rows)
    standing = Standing({}, set())
    by_version = [split(column) for column in pan_fingerprints]
    for at in range(len(pans.values)):
        places = [place for names in by_version for place in found.get(names[at], ())]
        if not places:
            continue
        if not all(genuine[place] and cards.pans.lengths[place] for place in places):
            standing.unusual.add(at)
            continue
        own = [
            place
            for place in places
            if cards.pans.values[place] == pans.values[at] and cards.pans.lengths[place] == pans.lengths[at]
        ]
        opened = _opened(rows[own[0]]) if len(own) == 1 else None
        if opened is not None:
            standing.tokens[at] = Unsealed(opened, card_at(cards, own[0]))
        elif own:
            standing.unusual.add(at)
    return standing


async def _found(
    core: Core, requestor: str, program: str, pan_fingerprints: list[bytes]
) -> list[SealedRecord] | None:
    rows: list[SealedRecord] = []
    for _ in range(PAGES_MAX):
        after = rows[-1].token if rows else ""
        page = await core.store.find(
            pan_fingerprints, requestor=requestor, program=program, after=after, limit=PAGE_MAX
        )
        rows += page
        if len(page) < PAGE_MAX:
            return rows
    return None


def _opened(row: SealedRecord) -> TokenRecord | None:
    try:
        record = TokenRecord.parse(row)
    except IntegrityError:
        return None
    return None if record.status is TokenStatus.DELETED else record
