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
from typing import Final

import pytest

from tokenvault.errors import TokenStoreError
from tokenvault.stores.port import SealedRecord, TokenStore
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
from tokenvault.testing.token_store_interrupts import InterruptsContract

_READERS: Final = 2
_REPLACEMENTS: Final = 100  # of one record, while others read it
_FAILING_RECORDS: Final = 2_000  # and so many times: enough that a reader comes by before a write fails
_FAILURES: Final = 6
_ROUNDS: Final = 10
CHILD_SECONDS_MAX: Final = 10.0
"""How long a forked child has for a few small calls, and for what its adapter does within the fork."""

_SPLIT: Final = (
    "a reader saw one part of {} and later missed another: the store writes it in more than one transaction, "
    "or lets readers see what is not committed yet"
)
_UNCOMMITTED: Final = (
    "a reader saw a record of a write that then failed: readers see what is not committed (READ UNCOMMITTED)"
)
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
    "a parent could not go on after its forked child had closed the store: they share a connection"
)


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

        def replace_repeatedly() -> None:
            for number in range(2, _REPLACEMENTS + 2):
                noted = an_event(number, reference=record.reference)
                assert store.replace([record._replace(revision=number)], [noted]) == []

        for seen in _seen_by_readers([revision, last_number, led_to], replace_repeatedly):
            assert _never_falls(seen), _SPLIT.format("a record and its event")

    def test_a_large_write_is_seen_whole(self, store: TokenStore) -> None:
        """Readers see nothing of the largest write or all of it, both where it inserts and where it replaces."""
        records = [a_record(n) for n in range(most(store))]
        sample = records[:: max(1, len(records) // 4)] + records[-1:]

        def seen_of(record: SealedRecord) -> Callable[[], int]:
            return lambda: sum(found.revision for found in store.get([record.token]))

        reads = [*map(seen_of, sample), lambda: len(store.events(stream=bytes(16)))]
        changed = [replaced(record) for record in records]
        for seen in _seen_by_readers(reads, lambda: store.insert(records, [an_event(1)])):
            assert _never_falls(seen), _SPLIT.format("a large insertion")
        for seen in _seen_by_readers(reads, lambda: store.replace(changed, [an_event(2)])):
            assert _never_falls(seen), _SPLIT.format("a large replacement")

    def test_nothing_is_seen_of_a_write_that_fails(self, store: TokenStore) -> None:
        """Readers never see a record that is undone because its event exists already."""
        store.append([an_event(1)])
        records = [a_record(n) for n in range(min(most(store), _FAILING_RECORDS))]

        def insert_repeatedly() -> None:
            for _ in range(_FAILURES):
                with pytest.raises(TokenStoreError):
                    store.insert(records, [an_event(1)])

        for seen in _seen_by_readers([lambda: len(store.get([records[0].token]))], insert_repeatedly):
            assert not any(seen), _UNCOMMITTED

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


def _seen_by_readers(reads: Sequence[Callable[[], int]], write: Callable[[], object]) -> list[list[int]]:
    """What each of some threads sees that make these reads in turn, from before a write until after it."""
    begun = threading.Barrier(_READERS + 1)
    done = threading.Event()

    def read(_: int) -> list[int]:
        seen = [read() for read in reads]
        begun.wait(PROCESS_SECONDS_MAX)
        while not done.is_set():
            seen += [read() for read in reads]
        return seen + [read() for read in reads]

    with ThreadPoolExecutor(_READERS) as pool:
        readers = [pool.submit(read, n) for n in range(_READERS)]
        begun.wait(PROCESS_SECONDS_MAX)
        try:
            write()
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
        assert store.get([a_record(number).token]) == [a_record(number)], "not found"
        if closes:
            store.close()
    except Exception as error:  # noqa: BLE001  its text is told to the parent
        cause = f" from {error.__cause__!r}" if error.__cause__ else ""  # with the adapter's unsafe_debug
        return f"{type(error).__name__}: {error}{cause}"
    return ""
