"""The stored records of a chunk's tokens: read at once, authenticated, with what a decision looks at."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import attrs
import numpy as np

from tokenvault.errors import IntegrityError
from tokenvault.model.pan import Card
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.layout import BODY_TIMES
from tokenvault.records.record import TokenRecord
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.new_records import Bytes, split
from tokenvault.stores.port import REFERENCE_BYTES, SealedRecord
from tokenvault.vault.core import OTHERS_RECORD, Core, Unsealed, unsealed


@attrs.frozen
class StoredTokens:
    """The stored records of a chunk's tokens.

    Attributes:
        places: where each token or reference that was found stands in the columns below.
        rows: the records as stored.
        references: shape (places,) times 16 bytes, dtype uint8.
        cards: of the records that are genuine, but for tombstones.
        genuine: whether each record is what was sealed.
        decision_keys: records with the same one differ in token, reference, card number and times only: a decision
            that looks at none of these is the same for all.
        unreadable: tokens whose record the store itself refuses.
    """

    places: dict[str | bytes, int]
    rows: Sequence[SealedRecord]
    references: Bytes
    cards: CardColumns
    genuine: list[bool]
    decision_keys: list[Hashable]
    unreadable: dict[str | bytes, IntegrityError]

    def card(self, place: int) -> Card | None:
        """The card of a genuine record; None of a tombstone."""
        return self.cards.card(place) if self.cards.pans.lengths[place] else None

    def unsealed(self, place: int) -> Unsealed:
        """A genuine record and its card. Raises IntegrityError where no vault writes it so."""
        return unsealed(TokenRecord.parse(self.rows[place]), self.card(place))


async def read(core: Core, names: list[str | bytes]) -> StoredTokens:
    """Read and authenticate the records of tokens, given these or their references, all different.

    Raises IntegrityError where the database answers with the records of others.
    """
    unreadable: dict[str | bytes, IntegrityError] = {}
    tokens = [name for name in names if isinstance(name, str)]
    rows = await _readable(core, tokens, unreadable)
    by_reference = [
        row
        for name in names
        if isinstance(name, bytes) and (row := await _of_reference(core, name, unreadable)) is not None
    ]
    if by_reference:
        known = {row.token for row in rows}
        rows = [*rows, *{row.token: row for row in by_reference if row.token not in known}.values()]
    found = rows.token_texts() if isinstance(rows, RecordColumns) else [row.token for row in rows]
    places: dict[str | bytes, int] = {token: place for place, token in enumerate(found)}
    if len(places) != len(rows) or not places.keys() <= {*tokens, *(row.token for row in by_reference)}:
        raise IntegrityError(OTHERS_RECORD)
    places.update({row.reference: places[row.token] for row in by_reference})
    cards, genuine = await core.runtime.call(core.keys.unseal_many, rows)
    return StoredTokens(
        places=places,
        rows=rows,
        references=_references(rows),
        cards=cards,
        genuine=genuine.tolist(),
        decision_keys=list(_decision_keys(rows, cards)),
        unreadable=unreadable,
    )


async def _readable(
    core: Core, tokens: list[str], unreadable: dict[str | bytes, IntegrityError]
) -> Sequence[SealedRecord]:
    """The records of tokens; where the store refuses one, those of the others, found by halving."""
    if not tokens:
        return []
    try:
        return await core.store.get(tokens)
    except IntegrityError as error:
        if len(tokens) == 1:
            unreadable[tokens[0]] = error
            return []
    half = len(tokens) // 2
    return [
        *await _readable(core, tokens[:half], unreadable),
        *await _readable(core, tokens[half:], unreadable),
    ]


async def _of_reference(
    core: Core, reference: bytes, unreadable: dict[str | bytes, IntegrityError]
) -> SealedRecord | None:
    """The record of a reference. Raises IntegrityError where the database answers with another's."""
    try:
        row = await core.store.by_reference(reference)
    except IntegrityError as error:
        unreadable[reference] = error
        return None
    if row is not None and row.reference != reference:
        raise IntegrityError(OTHERS_RECORD)
    return row


def _references(rows: Sequence[SealedRecord]) -> Bytes:
    if isinstance(rows, RecordColumns):
        return rows.references
    return np.frombuffer(b"".join([row.reference for row in rows]), np.uint8).reshape(-1, REFERENCE_BYTES)


def _decision_keys(rows: Sequence[SealedRecord], cards: CardColumns) -> Iterable[Hashable]:
    """All that a decision looks at of each record, but for the card number."""
    live = cards.pans.lengths > 0
    if isinstance(rows, RecordColumns):
        bodies = rows.bodies.copy()
        bodies[:, BODY_TIMES] = 0
        card_columns = np.column_stack([cards.months.view(np.uint8).reshape(-1, 2), live])
        return split(np.column_stack([bodies, rows.requestors, rows.programs, card_columns]))
    bodies_without_times = [row.body[: BODY_TIMES.start] + row.body[BODY_TIMES.stop :] for row in rows]
    requestors, programs = [row.requestor for row in rows], [row.program for row in rows]
    return zip(bodies_without_times, requestors, programs, live.tolist(), cards.months.tolist(), strict=True)
