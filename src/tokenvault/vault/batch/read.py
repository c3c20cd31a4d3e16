"""The rows of a chunk's tokens: read at once, authenticated, and told apart by what a decision looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tokenvault.errors import IntegrityError
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.layout import BODY_TIMES
from tokenvault.records.record import TokenRecord
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.new_records import Bytes, split
from tokenvault.stores.port import REFERENCE_BYTES, SealedRecord
from tokenvault.vault.batch.results import card_at
from tokenvault.vault.core import OTHERS_RECORD, Core


class Read(NamedTuple):
    """The rows of a chunk's tokens.

    Attributes:
        places: of each token's row.
        rows, references, cards, genuine: a place each.
        alike: a number for each place; of rows that are alike to a decision, the same.
        unreadable: tokens whose row the store itself refuses.
    """

    places: dict[str, int]
    rows: Sequence[SealedRecord]
    references: Bytes
    cards: CardColumns
    genuine: npt.NDArray[np.bool_]
    alike: npt.NDArray[np.int64]
    unreadable: dict[str, IntegrityError]

    def card(self, place: int) -> Card | None:
        """The card of a row; None of a tombstone."""
        return card_at(self.cards, place) if self.cards.pans.lengths[place] else None

    def record(self, place: int) -> TokenRecord | None:
        """The record of a row; None where no vault writes it so."""
        try:
            record = TokenRecord.parse(self.rows[place])
        except IntegrityError:
            return None
        deleted = record.status is TokenStatus.DELETED
        return record if deleted == (self.cards.pans.lengths[place] == 0) else None


async def read(core: Core, tokens: list[str]) -> Read:
    """Read and authenticate the rows of tokens, all different. Raises IntegrityError, where rows of others come."""
    unreadable: dict[str, IntegrityError] = {}
    rows = await _rows(core, tokens, unreadable)
    columns = rows if isinstance(rows, RecordColumns) else None
    named = [row.token for row in rows] if columns is None else columns.token_texts()
    places = dict(zip(named, range(len(named)), strict=True))
    if len(places) != len(rows) or not places.keys() <= set(tokens):
        raise IntegrityError(OTHERS_RECORD)
    cards, genuine = await core.runtime.call(core.keys.unseal_many, rows)
    if columns is None:
        joined = b"".join([row.reference for row in rows])
        references = np.frombuffer(joined, np.uint8).reshape(len(rows), REFERENCE_BYTES)
    else:
        references = columns.references
    return Read(places, rows, references, cards, genuine, _alike(rows, cards), unreadable)


async def _rows(
    core: Core, tokens: list[str], unreadable: dict[str, IntegrityError]
) -> Sequence[SealedRecord]:
    """The rows of tokens; where the store refuses one, those of the others."""
    if not tokens:
        return []
    failure: IntegrityError | None = None
    try:
        return await core.store.get(tokens)
    except IntegrityError as error:
        failure = error
    if len(tokens) == 1:
        unreadable[tokens[0]] = failure
        return []
    half = len(tokens) // 2
    return [
        *await _rows(core, tokens[:half], unreadable),
        *await _rows(core, tokens[half:], unreadable),
    ]


def _alike(rows: Sequence[SealedRecord], cards: CardColumns) -> npt.NDArray[np.int64]:
    """A number for each row: the same for those that differ in token, reference, card number and times only."""
    if isinstance(rows, RecordColumns):
        return _alike_columns(rows, cards)
    bodies = [row.body for row in rows]
    if len(set(map(len, bodies))) == 1:
        joined = np.frombuffer(b"".join(bodies), np.uint8).reshape(len(rows), -1).copy()
        joined[:, BODY_TIMES] = 0
        bodies = split(joined)
    else:
        bodies = [body[: BODY_TIMES.start] + body[BODY_TIMES.stop :] for body in bodies]
    known: dict[object, int] = {}
    requestors, programs = [row.requestor for row in rows], [row.program for row in rows]
    live = (cards.pans.lengths > 0).tolist()
    keys = zip(bodies, requestors, programs, live, cards.months.tolist(), strict=True)
    return np.array([known.setdefault(key, len(known)) for key in keys], np.int64)


def _alike_columns(rows: RecordColumns, cards: CardColumns) -> npt.NDArray[np.int64]:
    bodies = rows.bodies.copy()
    bodies[:, BODY_TIMES] = 0
    shape = (cards.months << np.uint16(1)) | (cards.pans.lengths > 0)
    kinds = np.column_stack([bodies, rows.requestors, rows.programs, shape.view(np.uint8).reshape(-1, 2)])
    if (kinds == kinds[:1]).all():  # nearly always
        return np.zeros(len(rows), np.int64)
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(kind, len(known)) for kind in split(kinds)], np.int64)
