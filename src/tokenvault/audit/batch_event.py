"""The audit event of a chunk of a batch: one row that lists the outcome of every item.

Layout of its body, encoding version 2, big endian:

    1   encoding version, 2
    16  name of the batch, by which the records that it issued lead to it; zeros where it issued none
    8   time, milliseconds of the Unix epoch
    1   action
    4   number of items, n
    2   number of kinds, k; each:
        1 outcome
        1 length of the requestor (0 or 11), then its digits
        1 length of the operator, then its ASCII
        1 number of codes, then the index of each in the table of codes, 1 byte each
    1   number of codes in the table; each: 1 length and its ASCII
    4   number of transaction ids, t, 1 or more; each: 1 length and its ASCII, of length 0 for items without one
    1   0: one revision for all items follows, 8 bytes; 1: a revision for each item follows, 8 bytes each
    ..  unless k is 1: the index of the kind of each item, 2 bytes
    ..  if t is above 1: the index of the transaction id of each item, 4 bytes
    ..  the reference of each item, 16 bytes, zeros where none was found
    ..  only of uses (action DETOKENIZE):
        2 number of sets of counters, s, 1 or more; each: 1 number of counters, then their keys, 16 bytes, ascending
        unless s is 1: the index of the set of counters that each item was added to, 2 bytes
        the note of each item, 63 bytes (`use_note`, but for its counters); zeros where there is no such token
    ..  only where it counts failures: these (`guard_note`)

Kinds, codes, transaction ids and sets of counters stand in the order in which items first have them. The row's own
reference is 16 zero bytes. The event is found by the reference of each item, and by its uses; but not by those of
items that it issued, as to index these would cost as much as to write their records: it is found by its name, and
by 16 zero bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
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
from tokenvault.audit.guard_note import Failure, failure_rows, packed_failures, read_failures
from tokenvault.audit.use_note import NOTE, NOTE_COLUMN, RETRY, UseNote, packed_keys, read_keys
from tokenvault.errors import IntegrityError
from tokenvault.stores.new_records import Bytes, IndexColumns, split
from tokenvault.stores.port import REFERENCE_BYTES, SealedEvent

ENCODING_VERSION: Final = 2
BATCH: Final = bytes(REFERENCE_BYTES)
"""The reference of every batch's event, and what all those that issued tokens are found by."""

NO_NAME: Final = bytes(REFERENCE_BYTES)
"""The name of a batch that issued no token."""

ITEMS_MAX: Final = 8_000
"""So many that an event stays below 1 MiB, whatever its items are, if they are no uses."""

USES_MAX: Final = 4_000
"""Likewise of uses, whose notes take more."""

_FIXED: Final = struct.Struct(">B16sQBIH")
_COUNT: Final = struct.Struct(">I")
_SETS: Final = struct.Struct(">H")
Counted: TypeAlias = tuple[bytes, ...]

T = TypeVar("T")
Words: TypeAlias = npt.NDArray[np.uint64]
Indexes: TypeAlias = npt.NDArray[np.int64]


class Kind(NamedTuple):
    """What many items of a batch have in common; attributes as in Event."""

    outcome: Outcome
    requestor: str | None = None
    codes: tuple[str, ...] = ()
    operator: str | None = None


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
        name: by which the records that it issued lead to it, 16 bytes; NO_NAME where it issued none.
        notes: of uses, shape (items,), dtype NOTE_COLUMN; zeros where there is no such token. Of others, empty.
        counted: all sets of counters that occur; of others than uses, the empty one.
        counted_of: the index of each item's set, shape (items,), dtype int64.
        failures: what it counts for the guard.
    """

    time_ms: int
    action: Action
    kinds: tuple[Kind, ...]
    transaction_ids: tuple[str | None, ...]
    kind_of: Indexes
    id_of: Indexes
    revisions: Words
    references: Bytes
    name: bytes
    notes: npt.NDArray[np.void]
    counted: tuple[Counted, ...]
    counted_of: Indexes
    failures: tuple[Failure, ...] = ()

    @property
    def reference(self) -> bytes:
        """The reference of the row."""
        return BATCH

    def index_rows(self) -> IndexColumns:
        """The rows of the index that lead to the event."""
        led_to = self.references.any(axis=1)
        if self.name != NO_NAME:
            own = self.references[led_to & (self.revisions == 0)]
            names = np.frombuffer(self.name + BATCH, np.uint8).reshape(-1, REFERENCE_BYTES)
            return IndexColumns.of(np.concatenate((own, names)))
        accounts = failure_rows(self.failures, self.time_ms)
        rows = np.frombuffer(b"".join(map(b"".join, accounts)), np.uint8).reshape(-1, 2 * REFERENCE_BYTES)
        counted, times = np.hsplit(rows, 2)
        if self.action is not Action.DETOKENIZE:
            own = self.references[led_to]
            return IndexColumns.of(
                np.concatenate((own, counted)), np.concatenate((np.zeros_like(own), times))
            )
        found = led_to & self._found_by_use()
        follows = found & (_words(self.notes["original"]) != 0).any(axis=1)
        none = np.zeros((int((led_to & ~found).sum()), REFERENCE_BYTES), np.uint8)
        own = self.references
        references = (own[led_to & ~found], own[found], own[follows], counted)
        use_ids = (none, _bytes(self.notes["use_id"][found]), _bytes(self.notes["original"][follows]), times)
        return IndexColumns.of(np.concatenate(references), np.concatenate(use_ids))

    def _found_by_use(self) -> npt.NDArray[np.bool_]:
        """The items that are found by their use: those that were allowed, and are no retries."""
        done = np.array([kind.outcome is Outcome.DONE for kind in self.kinds])[self.kind_of]
        noted = self.notes["kind"] > 0
        found: npt.NDArray[np.bool_] = done & noted & (self.notes["flags"] & RETRY == 0)
        return found

    def body(self) -> bytes:
        """The canonical encoding."""
        codes = list(dict.fromkeys(code for kind in self.kinds for code in kind.codes))
        parts = [
            _FIXED.pack(
                ENCODING_VERSION,
                self.name,
                self.time_ms,
                self.action,
                len(self.references),
                len(self.kinds),
            )
        ]
        for kind in self.kinds:
            named = (prefixed(kind.requestor or "") + prefixed(kind.operator or "")).encode("ascii")
            places = [codes.index(code) for code in kind.codes]
            parts.append(bytes((kind.outcome, *named, len(places), *places)))
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
        if self.action is Action.DETOKENIZE:
            parts.append(_SETS.pack(len(self.counted)))
            parts += map(packed_keys, self.counted)
            if len(self.counted) > 1:
                parts.append(self.counted_of.astype(">u2").tobytes())
            parts.append(self.notes.tobytes())
        parts.append(packed_failures(self.failures))
        return b"".join(parts)

    def items(self, only: Container[bytes] | None = None) -> Iterator[Event]:
        """What the event says of each token, or of those of some references, as an event of its own."""
        for row, item in enumerate(split(self.references)):
            if only is not None and item not in only:
                continue
            kind = self.kinds[self.kind_of[row]]
            yield Event(
                time_ms=self.time_ms,
                action=self.action,
                outcome=kind.outcome,
                requestor=kind.requestor,
                reference=item if item != BATCH else b"",
                transaction_id=self.transaction_ids[self.id_of[row]],
                codes=kind.codes,
                operator=kind.operator,
                revision=int(self.revisions[row]),
                use=self._use(row),
            )

    def _use(self, row: int) -> UseNote | None:
        if self.action is not Action.DETOKENIZE or not self.notes["kind"][row]:
            return None
        return UseNote.of_fixed(self.notes[row].tobytes(), self.counted[self.counted_of[row]])

    def _rows_of(self, reference: bytes) -> npt.NDArray[np.intp]:
        same = (self.references == np.frombuffer(reference, np.uint8)).all(axis=1)
        return np.flatnonzero(same)

    @classmethod
    def read(cls, row: SealedEvent) -> BatchEvent:
        """Read a row for `parsed`. Raises ValueError, struct.error or IndexError for one of another form."""
        reader = BodyReader(row.body)
        version, name, time_ms, action, count, kind_count = _FIXED.unpack(reader.take(_FIXED.size))
        if version != ENCODING_VERSION or not 0 < count <= ITEMS_MAX or not 0 < kind_count <= count:
            raise ValueError(MALFORMED)
        listed = [
            (Outcome(reader.byte()), reader.text() or None, reader.text() or None, reader.take(reader.byte()))
            for _ in range(kind_count)
        ]
        codes = [reader.text() for _ in range(reader.byte())]
        kinds = [
            Kind(outcome, requestor, tuple([codes[place] for place in places]), operator)
            for outcome, requestor, operator, places in listed
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
            name=name,
            notes=np.zeros(0, NOTE_COLUMN),
            counted=((),),
            counted_of=np.zeros(count, np.int64),
        )
        if event.action is Action.DETOKENIZE:
            event = event._with_notes(reader)
        if reader.more:
            event = event._replace(failures=read_failures(reader))
        in_order = (
            _areby_first_use(kinds, event.kind_of)
            and _areby_first_use(transaction_ids, event.id_of)
            and _areby_first_use(list(event.counted), event.counted_of)
        )
        issues = action == Action.ISSUE and bool(event.revisions.any())
        if reader.rest() or row.reference != BATCH or not in_order or issues != (name != NO_NAME):
            raise ValueError(MALFORMED)
        return event

    def _with_notes(self, reader: BodyReader) -> BatchEvent:
        """The event with the notes of its uses. Raises as `read`."""
        count = len(self.references)
        (set_count,) = _SETS.unpack(reader.take(_SETS.size))
        counted = tuple([read_keys(reader) for _ in range(set_count)])
        counted_of = _column(reader, count, ">u2") if set_count > 1 else np.zeros(count)
        notes = np.frombuffer(reader.take(count * NOTE.size), NOTE_COLUMN)
        event = self._replace(counted=counted, counted_of=counted_of.astype(np.int64), notes=notes)
        for item in np.flatnonzero(notes["kind"] > 0).tolist():  # strictly: what is no note raises
            event._use(item)
        unset = notes[notes["kind"] == 0]
        if unset.tobytes() != bytes(unset.nbytes):
            raise ValueError(MALFORMED)
        return event


def parse(row: SealedEvent) -> Event | BatchEvent:
    """An event of either form. Raises IntegrityError."""
    return parsed(row, BatchEvent.read) if _is_batch(row) else Event.parse(row)


def items(event: Event | BatchEvent, only: Container[bytes] | None = None) -> Iterator[Event]:
    """What an event of either form says of each token, or of those of some references, as an event of its own."""
    if isinstance(event, BatchEvent):
        return event.items(only)
    return iter((event,) if only is None or event.reference in only else ())


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
        if event.action is Action.PURGE_TOKENS:  # it wrote none
            return set()
        rows = slice(None) if only is None else event._rows_of(only)
        changes = list(zip(split(event.references[rows]), event.revisions[rows].tolist(), strict=True))
    return {
        (reference, revision) for reference, revision in changes if revision and only in (None, reference)
    }


def purged_by(row: SealedEvent) -> list[tuple[bytes, int]]:
    """The records that an event says a purge deleted: reference and revision of each."""
    if not _is_batch(row):
        return []
    try:
        event = parsed(row, BatchEvent.read)
    except IntegrityError:
        return []
    if event.action is not Action.PURGE_TOKENS:
        return []
    return list(zip(split(event.references), event.revisions.tolist(), strict=True))


def references_of(row: SealedEvent) -> list[bytes]:
    """By which references an event of either form can be found, the most telling first."""
    if _is_batch(row):
        with suppress(IntegrityError):
            return [each.reference for each in parsed(row, BatchEvent.read).index_rows()[-1:]]
    return [row.reference] if row.reference else []


def _is_batch(row: SealedEvent) -> bool:
    return row.body[:1] == bytes((ENCODING_VERSION,))


def by_first_use(table: list[T], places: Indexes) -> tuple[list[T], Indexes]:
    """The entries of a table in the order of their first use, and the new places. Raises IndexError."""
    used, firsts = np.unique(places, return_index=True)
    ordered = used[np.argsort(firsts)]
    moved: Indexes = np.zeros(len(table), np.int64)
    moved[ordered] = np.arange(len(ordered))
    return [table[place] for place in ordered.tolist()], moved[places]


def _areby_first_use(table: list[T], places: Indexes) -> bool:
    """Whether the entries of a table are distinct, used, and in the order of their first use."""
    return len(set(table)) == len(table) and by_first_use(table, places)[0] == table


def _column(reader: BodyReader, count: int, dtype: str) -> npt.NDArray[np.generic]:
    return np.frombuffer(reader.take(count * np.dtype(dtype).itemsize), dtype)


def _bytes(column: npt.NDArray[np.void]) -> Bytes:
    """A column of 16 bytes each, shape (rows, 16), dtype uint8."""
    joined: Bytes = np.frombuffer(column.tobytes(), np.uint8).reshape(-1, REFERENCE_BYTES)
    return joined


def _words(column: npt.NDArray[np.void]) -> Words:
    words: Words = _bytes(column).view(np.uint64)
    return words
