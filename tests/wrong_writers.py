"""Adapters of a token store that are right for one record and wrong for many, or in writes that others seldom try."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence

from tests.own_token_store import OwnTokenStore
from tests.wrong_adapters import CHUNK, ROUND_TRIP_SECONDS
from tokenvault.stores.port import Fence, SealedEvent, SealedRecord

MANY = 200  # from which on an adapter takes its other path


def _pieces(events: Sequence[SealedEvent]) -> Iterator[Sequence[SealedEvent]]:
    yield events[:CHUNK]
    for first in range(CHUNK, len(events), CHUNK):
        time.sleep(ROUND_TRIP_SECONDS)
        yield events[first : first + CHUNK]


class ReplacesManyUnseen(OwnTokenStore):
    """Loads many records through a table of its own, and looks at no revision on that path."""

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        if len(records) < MANY:
            return super()._replace(records, events, fence)

        def work(connection: sqlite3.Connection) -> list[str]:
            connection.executemany("REPLACE INTO tokens VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", records)
            return self._append_to(connection, events)

        return self._write(work)


class ComparesTheFirstOfMany(OwnTokenStore):
    """Takes the revision of the first record of a batch for that of all."""

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        if len(records) >= MANY and records[0].revision - 1 == self._get([records[0].token])[0].revision:
            found = {each.token: each.revision for each in self._get([each.token for each in records])}
            records = [each._replace(revision=found[each.token] + 1) for each in records]
        return super()._replace(records, events, fence)


class LosesUpdatesOfMany(OwnTokenStore):
    """Compares the revisions of many records first, and replaces them in a transaction after that."""

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        if len(records) < MANY:
            return super()._replace(records, events, fence)
        found = {each.token: each.revision for each in self._get([each.token for each in records])}
        moved = [each.token for each in records if found.get(each.token) != each.revision - 1]
        time.sleep(ROUND_TRIP_SECONDS)

        def work(connection: sqlite3.Connection) -> list[str]:
            connection.executemany("REPLACE INTO tokens VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", records)
            return self._append_to(connection, events)

        return moved or self._write(work)


class InsertsManyOverOthers(OwnTokenStore):
    """Looks for tokens that exist first where it inserts many, and takes the place of those that came since."""

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        if len(records) < MANY:
            return super()._insert(records, events, document)
        existing = [each.token for each in self._get([each.token for each in records])]
        time.sleep(ROUND_TRIP_SECONDS)

        def work(connection: sqlite3.Connection) -> list[str]:
            connection.executemany("REPLACE INTO tokens VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", records)
            return self._append_to(connection, events)

        return existing or self._write(work)


class LooksAtTheFirstOfAFence(OwnTokenStore):
    """Asks for the first so many tokens of a fence, as its statement takes no more values."""

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        return super()._replace(records, events, fence[:MANY])


class LooksAtALongFenceBefore(OwnTokenStore):
    """Looks at a fence of many tokens, and then begins its transaction."""

    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        if len(fence) < MANY:
            return super()._append(events, fence)
        found = {each.token: each.revision for each in self._get([token for token, _ in fence])}
        moved = [token for token, revision in fence if found.get(token) != revision]
        time.sleep(ROUND_TRIP_SECONDS)
        return moved or super()._append(events, ())


class PrunesManyByTheToken(OwnTokenStore):
    """Deletes many records in one statement, whatever their revisions are."""

    def _prune(self, events: Sequence[SealedEvent], records: Fence) -> None:
        if len(records) >= MANY:
            stored = self._get([token for token, _ in records])
            records = [(record.token, record.revision) for record in stored]
        super()._prune(events, records)


class AppendsInPieces(OwnTokenStore):
    """Appends so many events in one transaction, and the others in the next."""

    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        for piece in _pieces(events):
            if refused := super()._append(piece, fence):
                return refused
        return []


class AppendsOneByOne(OwnTokenStore):
    """Appends each event in a transaction of its own, and takes back those before one that fails."""

    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        for number, event in enumerate(events):
            try:
                refused = super()._append([event], fence)
            except Exception:
                super()._prune(events[:number], ())
                raise
            if refused:
                super()._prune(events[:number], ())
                return refused
        return []


class InsertsEventsInPieces(OwnTokenStore):
    """Inserts records with so many events, and the other events after them, taken back where they fail."""

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        pieces = _pieces(events)
        written = list(next(pieces))
        refused = super()._insert(records, written, document)
        for piece in () if refused else pieces:
            try:
                super()._append(piece, ())
            except Exception:
                super()._prune(written, [(record.token, 1) for record in records])
                raise
            written += piece
        return refused


class IndexesAppendedEventsAfter(OwnTokenStore):
    """Commits events that are appended, and then the rows of the index that lead to them."""

    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        refused = super()._append([event._replace(index_rows=()) for event in events], fence)
        if not refused:
            self._write(lambda connection: self._index(connection, events))
        return refused

    def _index(self, connection: sqlite3.Connection, events: Sequence[SealedEvent]) -> list[str]:
        for event in events:
            names = [(*name, event.stream, event.number) for name in event.index_rows]
            connection.executemany("INSERT OR IGNORE INTO event_index VALUES (?,?,?,?)", names)
        return []


class IndexesABatchInPieces(IndexesAppendedEventsAfter):
    """Writes the first so many rows of the index with their event, and those of a batch that are left after it."""

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        refused = super()._insert(records, [_shortened(event) for event in events], document)
        if not refused:
            self._write(lambda connection: self._index(connection, events))
        return refused

    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        refused = OwnTokenStore._replace(self, (), [_shortened(event) for event in events], fence)
        if not refused and any(len(event.index_rows) > CHUNK for event in events):
            self._write(lambda connection: self._index(connection, events))
        return refused


def _shortened(event: SealedEvent) -> SealedEvent:
    return event._replace(index_rows=tuple(event.index_rows)[:CHUNK])


class PrunesInTwoSteps(OwnTokenStore):
    """Deletes the records, and then the events, in a transaction each."""

    def _prune(self, events: Sequence[SealedEvent], records: Fence) -> None:
        super()._prune((), records)
        super()._prune(events, ())


class PrunesInPieces(OwnTokenStore):
    """Deletes so many events in one transaction, and the others in the next."""

    def _prune(self, events: Sequence[SealedEvent], records: Fence) -> None:
        last: Sequence[SealedEvent] = ()
        for piece in _pieces(events):
            super()._prune(last, ())
            last = piece
        super()._prune(last, records)
