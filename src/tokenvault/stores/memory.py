"""A token store in memory, for tests: nothing is kept when the process ends."""

from __future__ import annotations

import bisect
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Concatenate, Final, ParamSpec, TypeVar

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import give_all, put_result
from tokenvault.stores.forks import Forkable, end_interrupted_hold, hold_still_at_forks
from tokenvault.stores.guard import TokenStoreBase
from tokenvault.stores.index_rows import NO_USE, IndexPlace, cursor_of, place_of
from tokenvault.stores.port import (
    MALFORMED_EVENT,
    EventPage,
    Fence,
    FoundUse,
    SealedEvent,
    SealedRecord,
    TokenGroup,
    digest_of,
    rows_of_a_page,
)
from tokenvault.stores.token_counts import changes, counts_of, group_of

P = ParamSpec("P")
T = TypeVar("T")

LOCK_SECONDS_MAX: Final = 30.0
"""How long a call waits for those of other threads, each of which takes milliseconds, or for a fork."""

_HELD: Final = (
    "other threads, or a fork that was interrupted, held the store for too long; nothing was written"
)


def _alone(
    method: Callable[Concatenate[MemoryTokenStore, P], T],
) -> Callable[Concatenate[MemoryTokenStore, P], T]:
    """The method, while no other thread is in one. Raises TokenStoreError after LOCK_SECONDS_MAX."""

    @functools.wraps(method)
    def alone(self: MemoryTokenStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        end_interrupted_hold()
        taken: list[bool] = []
        try:
            put_result(taken, self._mutex.acquire, True, LOCK_SECONDS_MAX)
            if not taken[0]:
                raise TokenStoreError(_HELD, code="STORE_BUSY")
            return method(self, *args, **kwargs)
        finally:
            if taken and taken[0]:
                self._mutex.release()

    return alone


class MemoryTokenStore(TokenStoreBase, Forkable):
    """Dicts under one lock, which nobody holds while it waits. A forked child goes on with a copy of its own."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held: list[bool] = []  # whether a fork holds it
        self._records: dict[str, SealedRecord] = {}
        self._tokens: list[str] = []  # sorted
        self._counts: Counter[TokenGroup] = Counter()
        self._events: dict[tuple[bytes, int], SealedEvent] = {}
        self._index: dict[bytes, list[tuple[bytes, bytes, int]]] = {}  # by reference, each sorted
        self._domains: dict[bytes, bytes] = {}
        self._meta: dict[str, bytes] = {}
        hold_still_at_forks(self)

    def before_fork(self, seconds_max: float) -> None:
        """Wait for the call under way."""
        if not self._held:
            put_result(self._held, self._mutex.acquire, True, seconds_max)
            if not all(self._held):
                self._held.clear()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        with suppress(IndexError):
            give_all(self._held, self._mutex.__exit__)  # type: ignore[arg-type] # it takes anything

    def after_fork_in_child(self) -> None:
        """Go on."""
        self._mutex = threading.Lock()
        self._held = []

    def _provision(self) -> None:
        pass  # there is no schema

    def _check_schema(self) -> None:
        pass

    @_alone
    def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        records = self._records
        return [records[token] for token in dict.fromkeys(tokens) if token in records]

    @_alone
    def _find(
        self,
        pan_fingerprints: Sequence[bytes],
        requestor: str | None,
        program: str | None,
        after: str,
        limit: int,
    ) -> list[SealedRecord]:
        wanted = set(pan_fingerprints)
        found = (
            record
            for record in self._above(after)
            if record.pan_fingerprint in wanted
            and requestor in (None, record.requestor)
            and program in (None, record.program)
        )
        return list(islice(found, limit))

    @_alone
    def _by_reference(self, reference: bytes) -> SealedRecord | None:
        return next((r for r in self._records.values() if r.reference == reference), None)

    @_alone
    def _get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> FoundUse:
        if isinstance(name, str):
            record = self._records.get(name)
        else:
            record = next((r for r in self._records.values() if r.reference == name), None)
        pairs = [] if record is None else [(record.reference, use_id) for use_id in use_ids]
        return FoundUse(record, self._events_of_uses(pairs))

    @_alone
    def _uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
        return self._events_of_uses(pairs)

    def _events_of_uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
        found: dict[tuple[bytes, int], None] = {}
        for reference, use_id in pairs:
            rows = self._index.get(reference, [])
            for named, stream, number in islice(rows, bisect.bisect_left(rows, (use_id, b"", 0)), None):
                if named != use_id:
                    break
                found[stream, number] = None
        return [self._events.get(key, MALFORMED_EVENT) for key in found]

    @_alone
    def _list_tokens(
        self, requestor: str, program: str, status: int, after: tuple[int, str], limit: int
    ) -> list[SealedRecord]:
        group = TokenGroup(requestor, program, status)
        listed = sorted((r.created_ms, r.token) for r in self._records.values() if group_of(r) == group)
        first = bisect.bisect_right(listed, after)
        return [self._records[token] for _, token in listed[first : first + limit]]

    @_alone
    def _groups(self) -> list[TokenGroup]:
        return sorted(group for group, number in self._counts.items() if number)

    @_alone
    def _count(self, requestor: str, program: str, status: int) -> int:
        return self._counts[TokenGroup(requestor, program, status)]

    @_alone
    def _find_customer(self, customer: str, after: str, limit: int) -> list[SealedRecord]:
        return list(islice((r for r in self._above(after) if r.customer == customer), limit))

    @_alone
    def _find_last4(self, last4_keys: Sequence[bytes], after: str, limit: int) -> list[SealedRecord]:
        wanted = set(last4_keys)
        return list(islice((r for r in self._above(after) if r.last4_key in wanted), limit))

    @_alone
    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        existing = [record.token for record in records if record.token in self._records]
        if existing:
            return existing
        if document is not None:
            self._domains.setdefault(digest_of(document), document)
        self._write_all(records, events)
        return []

    @_alone
    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        expected = [*((record.token, record.revision - 1) for record in records), *fence]
        moved = [
            token
            for token, revision in expected
            if token not in self._records or self._records[token].revision != revision
        ]
        if moved:
            return moved
        self._write_all(records, events)
        return []

    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        return self._replace((), events, fence)

    @_alone
    def _prune(self, events: Sequence[SealedEvent], records: Fence) -> None:
        gone = [
            self._records[token]
            for token, revision in records
            if token in self._records and self._records[token].revision == revision
        ]
        kept, index = dict(self._events), dict(self._index)
        for event in events:
            kept.pop((event.stream, event.number), None)
            for reference, use_id in event.index_rows:
                row = use_id, event.stream, event.number
                index[reference] = [each for each in index.get(reference, []) if each != row]
        stay = {token: r for token, r in self._records.items() if r not in gone} if gone else self._records
        # One step, also where a signal's handler raises: what was is not changed.
        self.__dict__.update(
            _events=kept,
            _index=index,
            _records=stay,
            _tokens=sorted(stay),
            _counts=counts_of([*stay.values()]),
        )

    @_alone
    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        numbers = sorted(number for of, number in self._events if of == stream and number >= first)
        found = [self._events[stream, number] for number in numbers[:limit]]
        return found[: rows_of_a_page([len(event.body) for event in found])]

    @_alone
    def _events_about(self, reference: bytes, after: bytes, limit: int) -> EventPage:
        rows = self._index.get(reference, [])
        first = bisect.bisect_right(rows, place_of(after)) if after else 0
        page = rows[first : first + limit]
        events = [self._events.get((stream, number), MALFORMED_EVENT) for _, stream, number in page]
        return EventPage(events, cursor_of(*page[-1]) if len(page) == limit else b"")

    @_alone
    def _index_rows(self, after: IndexPlace, limit: int) -> list[IndexPlace]:
        rows = (
            IndexPlace(reference, *row)
            for reference in sorted(self._index)
            if reference >= after.reference
            for row in self._index[reference]
        )
        return list(islice((row for row in rows if row > after), limit))

    @_alone
    def _streams(self) -> list[bytes]:
        return list({stream for stream, _ in self._events})

    @_alone
    def _latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        newest = sorted({stream for stream, _ in self._events}, reverse=True)[:limit]
        first = {
            stream: self._events[stream, number] for stream, number in sorted(self._events, reverse=True)
        }
        last = {
            stream: self._events.get((stream, number), MALFORMED_EVENT)
            for name in newest
            for use_id, stream, number in self._index.get(name, [])
            if use_id == NO_USE and stream == name
        }
        return [last.get(stream, first[stream]) for stream in newest]

    @_alone
    def _put_domain(self, digest: bytes, document: bytes) -> None:
        self._domains.setdefault(digest, document)

    @_alone
    def _get_domain(self, digest: bytes) -> bytes | None:
        return self._domains.get(digest)

    @_alone
    def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]:
        found = (r for r in self._above(after) if key_version in (None, r.key_version))
        return list(islice(found, limit))

    @_alone
    def _get_meta(self, name: str) -> bytes | None:
        return self._meta.get(name)

    @_alone
    def _put_meta(self, name: str, value: bytes) -> bytes:
        return self._meta.setdefault(name, value)

    def _close(self) -> None:
        pass  # what tests look at afterwards stays

    def _above(self, after: str) -> Iterator[SealedRecord]:
        for index in range(bisect.bisect_right(self._tokens, after), len(self._tokens)):
            yield self._records[self._tokens[index]]

    def _write_all(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> None:
        """Write all, or nothing: a signal handler may raise anywhere in between."""
        before = [(record.token, self._records.get(record.token)) for record in records]
        keys = [(event.stream, event.number) for event in events]
        new = [key for key in keys if key not in self._events]
        try:
            self._append_all(events)
            for event in events:
                if (event.stream, event.number) in new:
                    self._index_one(event)
            for record in records:
                if record.token not in self._records:
                    bisect.insort(self._tokens, record.token)
                self._records[record.token] = record
            self._counts.update(
                changes((group_of(record) for _, record in before if record), map(group_of, records))
            )
        except BaseException:
            for key in new:
                self._events.pop(key, None)
            for rows in [self._index.get(row.reference, []) for event in events for row in event.index_rows]:
                rows[:] = [row for row in rows if row[1:] not in new]
            for token, stood in before:
                if stood is None:
                    self._records.pop(token, None)
                else:
                    self._records[token] = stood
            self._tokens = sorted(self._records)
            self._counts = counts_of([*self._records.values()])
            raise

    def _append_all(self, events: Sequence[SealedEvent]) -> None:
        keys = {(event.stream, event.number) for event in events}
        if len(keys) != len(events) or not self._events.keys().isdisjoint(keys):
            raise TokenStoreError(
                "an audit event exists already; nothing was written", code="STORE_EVENT_EXISTS"
            )
        for event in events:
            self._events[event.stream, event.number] = event._replace(index_rows=())

    def _index_one(self, event: SealedEvent) -> None:
        for reference, use_id in event.index_rows:
            bisect.insort(self._index.setdefault(reference, []), (use_id, event.stream, event.number))
