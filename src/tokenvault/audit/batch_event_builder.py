"""Builds the audit event of a chunk, item by item or many at once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tokenvault.audit.batch_event import (
    BATCH,
    NO_NAME,
    BatchEvent,
    Counted,
    Indexes,
    Kind,
    Words,
    by_first_use,
)
from tokenvault.audit.event import Action
from tokenvault.audit.guard_note import Failure
from tokenvault.audit.use_note import NOTE_COLUMN, UseNote
from tokenvault.stores.new_records import Bytes
from tokenvault.stores.port import REFERENCE_BYTES


class BatchEventBuilder:
    """Collects the outcomes of the items of a chunk. The event lists them in the order of their rows.

    Args:
        rows: how many items the chunk has; those that are not noted stand in no event.
        kept: gives the form in which an id may be kept.
    """

    def __init__(self, rows: int, kept: Callable[[str], str]) -> None:
        self._kept = functools.lru_cache(maxsize=rows)(kept)
        self._kinds: dict[Kind, int] = {}
        self._transaction_ids: dict[str | None, int] = {}
        self._noted = np.zeros(rows, np.bool_)
        self._kind_of: Indexes = np.zeros(rows, np.int64)
        self._id_of: Indexes = np.zeros(rows, np.int64)
        self._revisions: Words = np.zeros(rows, np.uint64)
        self._references: Bytes = np.zeros((rows, REFERENCE_BYTES), np.uint8)
        self._uses: npt.NDArray[np.void] = np.zeros(rows, NOTE_COLUMN)
        self._counted: dict[Counted, int] = {(): 0}
        self._counted_bytes = 1
        self._counted_of: Indexes = np.zeros(rows, np.int64)

    @property
    def counted_bytes(self) -> int:
        """What the sets of counters take so far."""
        return self._counted_bytes

    def note(
        self,
        row: int,
        reference: bytes,
        revision: int,
        kind: Kind,
        transaction_id: str | None = None,
        use: UseNote | None = None,
    ) -> None:
        """Note one item."""
        self.note_many(row, np.frombuffer(reference or BATCH, np.uint8), revision, kind, transaction_id, use)

    def note_many(
        self,
        rows: npt.NDArray[np.intp] | int,
        references: Bytes,
        revision: int,
        kind: Kind,
        transaction_id: str | None = None,
        use: UseNote | None = None,
    ) -> None:
        """Note items that differ in their reference only."""
        self._noted[rows] = True
        self._references[rows] = references
        self._revisions[rows] = revision
        if kind.operator is not None:
            kind = kind._replace(operator=self._kept(kind.operator))
        if transaction_id is not None:
            transaction_id = self._kept(transaction_id)
        self._kind_of[rows] = self._kinds.setdefault(kind, len(self._kinds))
        self._id_of[rows] = self._transaction_ids.setdefault(transaction_id, len(self._transaction_ids))
        if use is not None:
            self._uses[rows] = np.frombuffer(use.fixed(), NOTE_COLUMN)[0]
            if use.counted not in self._counted:
                self._counted_bytes += 1 + sum(map(len, use.counted))
            self._counted_of[rows] = self._counted.setdefault(use.counted, len(self._counted))

    def event(
        self, time_ms: int, action: Action, name: bytes = NO_NAME, failures: tuple[Failure, ...] = ()
    ) -> BatchEvent | None:
        """The event; None where nothing is noted. `name` is that of a batch that issues tokens."""
        if not self._noted.any():
            return None
        kinds, kind_of = by_first_use(list(self._kinds), self._kind_of[self._noted])
        transaction_ids, id_of = by_first_use(list(self._transaction_ids), self._id_of[self._noted])
        counted, counted_of = by_first_use(list(self._counted), self._counted_of[self._noted])
        uses = action is Action.DETOKENIZE
        return BatchEvent(
            time_ms=time_ms,
            action=action,
            kinds=tuple(kinds),
            transaction_ids=tuple(transaction_ids),
            kind_of=kind_of,
            id_of=id_of,
            revisions=self._revisions[self._noted],
            references=self._references[self._noted],
            name=name,
            notes=self._uses[self._noted] if uses else self._uses[:0],
            counted=tuple(counted),
            counted_of=counted_of,
            failures=failures,
        )
