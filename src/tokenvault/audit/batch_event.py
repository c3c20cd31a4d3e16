"""The audit event of a chunk of a batch: one row that lists the outcome of every item.

Layout of its body, encoding version 2, big endian:

    1   encoding version, 2
    8   time, milliseconds of the Unix epoch
    1   action
    4   number of items, n
    2   number of kinds, k; each:
        1 outcome
        1 length of the requestor (0 or 11), then its digits
        1 number of codes, then the index of each in the table of codes, 1 byte each
    1   number of codes in the table; each: 1 length and its ASCII
    4   number of transaction ids, t, 1 or more; each: 1 length and its ASCII, of length 0 for items without one
    1   0: one revision for all items follows, 8 bytes; 1: a revision for each item follows, 8 bytes each
    ..  unless k is 1: the index of the kind of each item, 2 bytes
    ..  if t is above 1: the index of the transaction id of each item, 4 bytes
    ..  the reference of each item, 16 bytes, zeros where none was found

Kinds, codes and transaction ids stand in the order in which items first have them. The row's own reference is 16 zero
bytes. The event is found by the reference of each item, but for items that it issued: to index those would cost as
much as to write their records. Events that issued tokens are found by 16 zero bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from tokenvault.audit.event import (
    MALFORMED,
    REVISION,
    Action,
    BodyReader,
    Event,
    Outcome,
    parsed,
    prefixed,
)
from tokenvault.errors import IntegrityError
from tokenvault.stores.new_records import Bytes, IndexColumns, split
from tokenvault.stores.port import REFERENCE_BYTES, SealedEvent

ENCODING_VERSION: Final = 2
BATCH: Final = bytes(REFERENCE_BYTES)
"""The reference of every batch's event, and what those that issued tokens are found by."""

ITEMS_MAX: Final = 8_000
"""So many that an event stays below 1 MiB, whatever its items are."""

_FIXED: Final = struct.Struct(">BQBIH")
_COUNT: Final = struct.Struct(">I")

T = TypeVar("T")
Words: TypeAlias = npt.NDArray[np.uint64]
Indexes: TypeAlias = npt.NDArray[np.int64]


class Kind(NamedTuple):
    """What many items of a batch have in common; attributes as in Event."""

    outcome: Outcome
    requestor: str | None = None
    codes: tuple[str, ...] = ()


class BatchEvent(NamedTuple):
    """The audit event of a chunk.

    Attributes:
        time_ms, action: as in Event.
        kinds: all that occur, in the order in which items first have them.
        transaction_ids: likewise.
        kind_of: the index of each item's kind, shape (items,), dtype int64.
        id_of: the index of each item's transaction id, likewise.
        revisions: shape (items,), dtype uint64, as in Event.
        references: shape (items, 16), dtype uint8; zeros where none was found.
    """

    time_ms: int
    action: Action
    kinds: tuple[Kind, ...]
    transaction_ids: tuple[str | None, ...]
    kind_of: Indexes
    id_of: Indexes
    revisions: Words
    references: Bytes

    @property
    def reference(self) -> bytes:
        """The reference of the row."""
        return BATCH

    def index_rows(self) -> IndexColumns:
        """The rows of the index that lead to the event."""
        led_to = self.references.any(axis=1)
        if self.action is not Action.ISSUE:
            return IndexColumns.of(self.references[led_to])
        issued = self.revisions > 0
        own = self.references[led_to & ~issued]
        return IndexColumns.of(
            np.concatenate((own, np.zeros((int(issued.any()), REFERENCE_BYTES), np.uint8)))
        )

    def body(self) -> bytes:
        """The canonical encoding."""
        codes = list(dict.fromkeys(code for kind in self.kinds for code in kind.codes))
        parts = [
            _FIXED.pack(ENCODING_VERSION, self.time_ms, self.action, len(self.references), len(self.kinds))
        ]
        for kind in self.kinds:
            requestor = prefixed(kind.requestor or "").encode("ascii")
            places = [codes.index(code) for code in kind.codes]
            parts.append(bytes((kind.outcome, *requestor, len(places), *places)))
        parts.append(bytes((len(codes),)))
        parts += [prefixed(code).encode("ascii") for code in codes]
        parts.append(_COUNT.pack(len(self.transaction_ids)))
        parts += [prefixed(name or "").encode("ascii") for name in self.transaction_ids]
        differ = bool((self.revisions != self.revisions[0]).any())
        parts.append(bytes((differ,)))
        parts.append((self.revisions if differ else self.revisions[:1]).astype(">u8").tobytes())
        if len(self.kinds) > 1:
            parts.append(self.kind_of.astype(">u2").tobytes())
        if len(self.transaction_ids) > 1:
            parts.append(self.id_of.astype(">u4").tobytes())
        parts.append(self.references.tobytes())
        return b"".join(parts)

    def items(self, reference: bytes | None = None) -> Iterator[Event]:
        """What the event says of each token, or of one of them, as an event of its own."""
        rows = slice(None) if reference is None else self._rows_of(reference)
        for item, revision, kind_index, id_index in zip(
            split(self.references[rows]),
            self.revisions[rows].tolist(),
            self.kind_of[rows].tolist(),
            self.id_of[rows].tolist(),
            strict=True,
        ):
            kind = self.kinds[kind_index]
            yield Event(
                time_ms=self.time_ms,
                action=self.action,
                outcome=kind.outcome,
                requestor=kind.requestor,
                reference=item if item != BATCH else b"",
                transaction_id=self.transaction_ids[id_index],
                codes=kind.codes,
                revision=revision,
            )

    def _rows_of(self, reference: bytes) -> npt.NDArray[np.intp]:
        same = (self.references == np.frombuffer(reference, np.uint8)).all(axis=1)
        return np.flatnonzero(same)

    @classmethod
    def read(cls, row: SealedEvent) -> BatchEvent:
        """Read a row for `parsed`. Raises ValueError, struct.error or IndexError for one of another form."""
        reader = BodyReader(row.body)
        version, time_ms, action, count, kind_count = _FIXED.unpack(reader.take(_FIXED.size))
        if version != ENCODING_VERSION or not 0 < count <= ITEMS_MAX or not 0 < kind_count <= count:
            raise ValueError(MALFORMED)
        listed = [
            (Outcome(reader.byte()), reader.text() or None, reader.take(reader.byte()))
            for _ in range(kind_count)
        ]
        codes = [reader.text() for _ in range(reader.byte())]
        kinds = [
            Kind(outcome, requestor, tuple([codes[place] for place in places]))
            for outcome, requestor, places in listed
        ]
        (id_count,) = _COUNT.unpack(reader.take(_COUNT.size))
        if not 0 < id_count <= count:
            raise ValueError(MALFORMED)
        transaction_ids = [reader.text() or None for _ in range(id_count)]
        revisions = _column(reader, count if reader.byte() else 1, ">u8")
        kind_of = _column(reader, count, ">u2") if kind_count > 1 else np.zeros(count)
        id_of = _column(reader, count, ">u4") if id_count > 1 else np.zeros(count)
        event = cls(
            time_ms=time_ms,
            action=Action(action),
            kinds=tuple(kinds),
            transaction_ids=tuple(transaction_ids),
            kind_of=kind_of.astype(np.int64),
            id_of=id_of.astype(np.int64),
            revisions=np.broadcast_to(revisions, count).astype(np.uint64),
            references=np.frombuffer(reader.take(count * REFERENCE_BYTES), np.uint8).reshape(count, -1),
        )
        in_order = _are_by_first_use(kinds, event.kind_of) and _are_by_first_use(transaction_ids, event.id_of)
        if reader.rest() or row.reference != BATCH or not in_order:
            raise ValueError(MALFORMED)
        return event


def parse(row: SealedEvent) -> Event | BatchEvent:
    """An event of either form. Raises IntegrityError."""
    return parsed(row, BatchEvent.read) if _is_batch(row) else Event.parse(row)


def items(event: Event | BatchEvent, reference: bytes | None = None) -> Iterator[Event]:
    """What an event of either form says of each token, or of one of them, as an event of its own."""
    if isinstance(event, BatchEvent):
        return event.items(reference)
    return iter((event,) if reference in (None, event.reference) else ())


def changes_of(row: SealedEvent, only: bytes | None = None) -> set[tuple[bytes, int]]:
    """The records that were written with an event of either form, or one of them: the reference and revision of each.

    Of an event with a form of its own, the rest of the body may be anything.
    """
    if row.reference == row.stream:  # a checkpoint
        return set()
    changes = [(row.reference, int.from_bytes(row.body[REVISION]))]
    if _is_batch(row):
        try:
            event = parsed(row, BatchEvent.read)
        except IntegrityError:
            return set()
        rows = slice(None) if only is None else event._rows_of(only)
        changes = list(zip(split(event.references[rows]), event.revisions[rows].tolist(), strict=True))
    return {
        (reference, revision) for reference, revision in changes if revision and only in (None, reference)
    }


def references_of(row: SealedEvent) -> list[bytes]:
    """By which references an event of either form can be found, the most telling first."""
    if _is_batch(row):
        with suppress(IntegrityError):
            return [each.reference for each in parsed(row, BatchEvent.read).index_rows()[-1:]]
    return [row.reference] if row.reference else []


def _is_batch(row: SealedEvent) -> bool:
    return row.body[:1] == bytes((ENCODING_VERSION,))


class BatchEventBuilder:
    """Collects the outcomes of the items of a chunk. The event lists them in the order of their rows.

    Args:
        rows: how many items the chunk has; those that are not noted stand in no event.
    """

    def __init__(self, rows: int) -> None:
        self._kinds: dict[Kind, int] = {}
        self._transaction_ids: dict[str | None, int] = {}
        self._noted = np.zeros(rows, np.bool_)
        self._kind_of: Indexes = np.zeros(rows, np.int64)
        self._id_of: Indexes = np.zeros(rows, np.int64)
        self._revisions: Words = np.zeros(rows, np.uint64)
        self._references: Bytes = np.zeros((rows, REFERENCE_BYTES), np.uint8)

    def note(
        self, row: int, reference: bytes, revision: int, kind: Kind, transaction_id: str | None = None
    ) -> None:
        """Note one item."""
        self.note_many(row, np.frombuffer(reference or BATCH, np.uint8), revision, kind, transaction_id)

    def note_many(
        self,
        rows: npt.NDArray[np.intp] | int,
        references: Bytes,
        revision: int,
        kind: Kind,
        transaction_id: str | None = None,
    ) -> None:
        """Note items that differ in their reference only."""
        self._noted[rows] = True
        self._references[rows] = references
        self._revisions[rows] = revision
        self._kind_of[rows] = self._kinds.setdefault(kind, len(self._kinds))
        self._id_of[rows] = self._transaction_ids.setdefault(transaction_id, len(self._transaction_ids))

    def event(self, time_ms: int, action: Action) -> BatchEvent | None:
        """The event; None where nothing is noted."""
        if not self._noted.any():
            return None
        kinds, kind_of = _by_first_use(list(self._kinds), self._kind_of[self._noted])
        transaction_ids, id_of = _by_first_use(list(self._transaction_ids), self._id_of[self._noted])
        return BatchEvent(
            time_ms=time_ms,
            action=action,
            kinds=tuple(kinds),
            transaction_ids=tuple(transaction_ids),
            kind_of=kind_of,
            id_of=id_of,
            revisions=self._revisions[self._noted],
            references=self._references[self._noted],
        )


def _by_first_use(table: list[T], places: Indexes) -> tuple[list[T], Indexes]:
    """The entries of a table in the order of their first use, and the new places. Raises IndexError."""
    used, firsts = np.unique(places, return_index=True)
    ordered = used[np.argsort(firsts)]
    moved: Indexes = np.zeros(len(table), np.int64)
    moved[ordered] = np.arange(len(ordered))
    return [table[place] for place in ordered.tolist()], moved[places]


def _are_by_first_use(table: list[T], places: Indexes) -> bool:
    """Whether the entries of a table are distinct, used, and in the order of their first use."""
    return len(set(table)) == len(table) and _by_first_use(table, places)[0] == table


def _column(reader: BodyReader, count: int, dtype: str) -> npt.NDArray[np.generic]:
    return np.frombuffer(reader.take(count * np.dtype(dtype).itemsize), dtype)
