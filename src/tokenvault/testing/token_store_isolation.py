"""Conformance of token stores: what others see of a write that is under way, and a forked child."""

from __future__ import annotations

import itertools
import os
import select
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final, TypeVar

import pytest

from tokenvault.errors import TokenStoreError
from tokenvault.stores.index_rows import IndexRow
from tokenvault.stores.port import TokenStore
from tokenvault.testing.token_store_harness import (
    PROCESS_SECONDS_MAX,
    THREADS,
    Capability,
    StoreHarness,
    a_record,
    an_event,
    most,
    race,
    replaced,
)
from tokenvault.testing.token_store_interrupts import InterruptsContract, spread
from tokenvault.testing.token_store_reads import reads_of_a_record, reads_of_sums

_T = TypeVar("_T")

_READERS: Final = 2
_PASSES: Final = 100  # of each reader over a write that is made again and again, on a machine however busy,
_REPLACEMENTS_MAX: Final = 2_000  # and never more of those: of one record,
_FAILING_RECORDS: Final = 2_000  # or of so many and one event that exists
_FAILURES_MAX: Final = 20
_RECORDS: Final = 10_000  # of one large write
_EVENTS: Final = 2_000  # of the first of them
_NAMES: Final = 10_000  # of one event, as a batch's has
_ROUNDS: Final = 10
CHILD_SECONDS_MAX: Final = 10.0
"""How long a forked child has for a few small calls, and for what its adapter does within the fork."""

_SPLIT: Final = (
    "a reader saw one part of {} and later missed another: the store writes it in more than one transaction, "
    "or lets readers see what is not committed yet"
)
_UNCOMMITTED: Final = (
    "a reader saw, by {}, a part of a write that then failed: it sees what is not committed (READ UNCOMMITTED), or "
    "the store writes in more than one transaction and takes back what it wrote"
)
_LEFT: Final = "a write that failed at its last event left a part of itself: it is more than one transaction"
_REFUSED_AND_WRITTEN: Final = (
    "threads wrote one event at once, and a record stands whose write failed: the event is looked for, or "
    "written, outside the record's transaction"
)
_CHILD_FAILED: Final = (
    "a forked child could not go on with the store that its parent opened: it needs a connection of its own"
)
_CHILD_LOST: Final = (
    "what a forked child was told is written is gone: it shares a connection with the parent that closed it"
)
_PARENT_FAILED: Final = (
    "a parent could not go on beside its forked child, or after that had closed the store:"
    " they share a connection"
)
_CROSSED: Final = (
    "a parent, or its forked child, got the answer to what the other asked, or none: they share a connection"
)
_CHILD_READS: Final = 200  # beside its parent, which reads too


class IsolationContract(InterruptsContract):
    """Nobody ever sees a part of a write; and a forked child stands on its own."""

    # Readers while a write is under way.

    def test_record_and_event_are_seen_together(self, store: TokenStore) -> None:
        """Who reads a record while it is replaced over and over finds the event of what it saw, and the reverse."""
        record = a_record(1)
        event = an_event(1, reference=record.reference)
        store.insert([record], [event])

        def revision() -> int:
            return store.get([record.token])[0].revision

        def last_number() -> int:
            return len(store.events(stream=event.stream))

        def led_to() -> int:
            return len(store.events_about(record.reference).events)

        def replace(time: int) -> None:
            noted = an_event(time + 1, reference=record.reference)
            assert store.replace([record._replace(revision=time + 1)], [noted]) == []

        reads = [revision, last_number, led_to]
        for seen in _seen_by_readers(reads, replace, times_max=_REPLACEMENTS_MAX):
            assert _never_falls(seen), _SPLIT.format("a record and its event")

    def test_a_large_write_is_seen_whole(self, store: TokenStore) -> None:
        """Readers see nothing of a large write or all of it: where it inserts, replaces, appends and prunes.

        Each has thousands of records, of events, and of their rows of the index.
        """
        records = [a_record(n) for n in range(min(most(store, 3), _RECORDS))]
        changed = [replaced(record) for record in records]
        inserted, noted, appended = (
            [
                an_event(n + 1, stream=stream, reference=record.reference)
                for n, record in enumerate(records[:_EVENTS])
            ]
            for stream in range(3)
        )

        def revision_of(n: int) -> Callable[[], int]:
            return lambda: sum(found.revision for found in store.get([records[n].token]))

        def events_at(n: int) -> Callable[[], int]:
            streams = [each[n].stream for each in (inserted, noted, appended)]
            return lambda: sum(
                each.number == n + 1 for stream in streams for each in store.events(stream, after=n, limit=1)
            )

        def led_to(n: int) -> Callable[[], int]:
            return lambda: len(store.events_about(records[n].reference).events)

        of_records = [revision_of(n) for n in spread(len(records), 5)]
        of_events = [each(n) for n in spread(len(inserted), 3) for each in (events_at, led_to)]
        for write, what in (
            (lambda _: store.insert(records, inserted), "insertion"),
            (lambda _: store.replace(changed, noted), "replacement"),
        ):
            for seen in _seen_by_readers([*of_records, *of_events], write):
                assert _never_falls(seen), _SPLIT.format(f"a large {what}")
        for seen in _seen_by_readers(of_events, lambda _: store.append(appended)):
            assert _never_falls(seen), _SPLIT.format("a large append")

        def prune(_: int) -> None:
            store.prune(inserted, [(record.token, record.revision) for record in changed])

        gone = [lambda read=read: -bool(read()) for read in of_records]
        fewer = [lambda read=read: 2 - read() for read in of_events]
        for seen in _seen_by_readers([*gone, *fewer], prune):
            assert _never_falls(seen), _SPLIT.format("a large prune")

    def test_many_index_rows_are_seen_together(self, store: TokenStore) -> None:
        """Readers find the event of a batch by all of its names at once, however many they are."""
        references = [n.to_bytes(16) for n in range(min(_NAMES, store.write_limits.rows - 2))]
        sample = [references[n] for n in spread(len(references), 6)]
        names = tuple(map(IndexRow, references))

        def led_to(reference: bytes) -> Callable[[], int]:
            return lambda: len(store.events_about(reference).events)

        def noted() -> int:
            return sum(len(store.events(an_event(1, stream=n).stream)) for n in range(2))

        reads = [*map(led_to, sample), noted]
        first, second = (an_event(1, stream=n)._replace(index_rows=names) for n in range(2))
        writes: list[Callable[[int], object]] = [
            lambda _: store.append([first]),
            lambda _: store.insert([], [second]),
        ]
        for write in writes:
            for seen in _seen_by_readers(reads, write):
                assert _never_falls(seen), _SPLIT.format("an event and its many rows of the index")

    @pytest.mark.parametrize("kind", ["insert", "replace", "append"])
    def test_nothing_is_seen_of_a_write_that_fails(
        self, store: TokenStore, harness: StoreHarness, kind: str
    ) -> None:
        """No read ever sees a part of a large write that is undone as its last event exists already; none stays."""
        count = min(most(store, 3), _FAILING_RECORDS)
        records = [a_record(n, customer="c", last4_key=bytes(16), status=1) for n in range(count)]
        events = [an_event(n + 1, reference=record.reference) for n, record in enumerate(records)]
        if kind != "insert":
            assert store.insert(records, []) == []
        store.append(events[-1:])
        changed = [replaced(record)._replace(status=2) for record in records]
        reads = reads_of_a_record(store, records[0]) | reads_of_sums(store, records[0])
        reads |= {"find_customer": lambda: store.find_customer("c", limit=1)}
        reads |= {"find_last4": lambda: store.find_last4([bytes(16)], limit=1)}
        reads |= {"events": lambda: store.events(bytes(16), limit=1)}
        reads |= {"events_about": lambda: store.events_about(records[0].reference).events}
        before, counts = [read() for read in reads.values()], harness.raw_counts()
        writes: dict[str, Callable[[], object]] = {
            "insert": lambda: store.insert(records, events),
            "replace": lambda: store.replace(changed, events),
            "append": lambda: store.append(events),
        }

        def fail(_: int) -> None:
            with pytest.raises(TokenStoreError):
                writes[kind]()

        for seen in _seen_by_readers([*reads.values()], fail, times_max=_FAILURES_MAX):
            for n, name in enumerate(reads):
                assert all(each == before[n] for each in seen[n :: len(reads)]), _UNCOMMITTED.format(name)
        assert harness.raw_counts() == counts, _LEFT
        assert [read() for read in reads.values()] == before, _LEFT

    def test_threads_that_write_one_event(self, store: TokenStore) -> None:
        """Of threads that write different records with one event, one does; the others leave no record."""

        def insert(n: int, attempt: int) -> bool:
            try:
                return store.insert([a_record(THREADS * attempt + n)], [an_event(attempt)]) == []
            except TokenStoreError:
                return False

        for attempt in range(1, _ROUNDS + 1):
            wrote = race(lambda n, attempt=attempt: insert(n, attempt))  # type: ignore[misc] # its type is that of n
            stands = [bool(store.get([a_record(THREADS * attempt + n).token])) for n in range(THREADS)]
            assert stands == wrote, _REFUSED_AND_WRITTEN
            assert sum(wrote) == 1

    # Forks.

    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_a_forked_child(self, harness: StoreHarness, store: TokenStore) -> None:
        """A child goes on with the open store: beside its parent, which outlives it, and after it has closed."""
        self.require(Capability.FORKS)
        store.insert([a_record(0)], [an_event(1)])
        stop = threading.Event()

        def write() -> None:
            for number in itertools.count(2):
                if stop.is_set():
                    return
                store.append([an_event(number)])
                assert store.get([a_record(0).token]) == [a_record(0)], _CROSSED

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                beside = [_Child(store, number, closes=True) for number in (1, 2)]
                complaints = [child.run() for child in beside]
            finally:
                stop.set()
        assert not any(complaints), f"{_CHILD_FAILED} ({complaints})"
        try:
            writing.result(PROCESS_SECONDS_MAX)
            assert store.insert([a_record(3)], []) == []
        except TokenStoreError as error:
            raise AssertionError(_PARENT_FAILED) from error
        after = _Child(store, 4, closes=False)
        store.close()
        complaint = after.run()
        assert not complaint, f"{_CHILD_FAILED} ({complaint})"
        with closing(harness.open()) as again:
            found = {record.token for record in again.get([a_record(number).token for number in range(5)])}
        assert found == {a_record(number).token for number in range(5)}, _CHILD_LOST


def _seen_by_readers(
    reads: Sequence[Callable[[], _T]], write: Callable[[int], object], *, times_max: int = 1
) -> list[list[_T]]:
    """What each of some threads sees that make these reads in turn, from before a write until after it.

    The write is made so many times at most, and told which time it is, from 1; no more once each thread
    has made enough passes over it.
    """
    begun = threading.Barrier(_READERS + 1)
    done = threading.Event()
    passes = [0] * _READERS

    def read(reader: int) -> list[_T]:
        seen = [read() for read in reads]
        begun.wait(PROCESS_SECONDS_MAX)
        while not done.is_set():
            seen += [read() for read in reads]
            passes[reader] += 1
        return seen + [read() for read in reads]

    with ThreadPoolExecutor(_READERS) as pool:
        readers = [pool.submit(read, n) for n in range(_READERS)]
        begun.wait(PROCESS_SECONDS_MAX)
        try:
            for time in range(1, times_max + 1):
                write(time)
                if min(passes) >= _PASSES:
                    break
        finally:
            done.set()
        return [reader.result(PROCESS_SECONDS_MAX) for reader in readers]


def _never_falls(seen: Iterable[int]) -> bool:
    """Whether each read saw at least what the reads before it had seen."""
    return all(before <= after for before, after in itertools.pairwise(seen))


class _Child:
    """A forked child, which inserts a record into its parent's store once it is told to.

    Args:
        store: that it inherits.
        number: of its record.
        closes: whether it closes the store; otherwise it ends as one that is killed.
    """

    def __init__(self, store: TokenStore, number: int, *, closes: bool) -> None:
        told, self._tell = os.pipe()
        self._heard, answer = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(told)
            os.close(answer)
            return
        try:
            os.read(told, 1)
            complaint = _complaint_of_a_child(store, number, closes)
            os.write(answer, complaint.encode())
        finally:
            os._exit(0)  # not through pytest, whose copy this process is

    def run(self) -> str:
        """Tell it to begin; gives what it complains about, empty where all went well.

        One that stands still is ended from here: it may do so in a hook of the fork, before any line of its own.
        """
        os.write(self._tell, b"!")
        os.close(self._tell)
        with os.fdopen(self._heard, "rb") as heard:
            answers = select.poll()
            answers.register(heard, select.POLLIN)
            stands_still = not answers.poll(CHILD_SECONDS_MAX * 1_000)
            if stands_still:
                os.kill(self._pid, signal.SIGKILL)
            complaint = heard.read().decode()  # what it answers, it writes at once before it ends
        _, status = os.waitpid(self._pid, 0)
        if stands_still:
            return f"it stood still for {CHILD_SECONDS_MAX:g} seconds"
        code = os.waitstatus_to_exitcode(status)
        return complaint if code == 0 else f"it ended with {code}"


def _complaint_of_a_child(store: TokenStore, number: int, closes: bool) -> str:
    try:
        assert store.insert([a_record(number)], [an_event(1, stream=number)]) == [], "refused"
        for _ in range(_CHILD_READS):
            assert store.get([a_record(number).token]) == [a_record(number)], _CROSSED
        if closes:
            store.close()
    except Exception as error:  # noqa: BLE001  its text is told to the parent
        cause = f" from {error.__cause__!r}" if error.__cause__ else ""  # with the adapter's unsafe_debug
        return f"{type(error).__name__}: {error}{cause}"
    return ""
