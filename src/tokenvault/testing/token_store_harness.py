"""What the conformance kit of token stores needs of an adapter, how it drives one with coroutines, and samples."""

from __future__ import annotations

import asyncio
import enum
import multiprocessing
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypedDict, TypeVar, Unpack

from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.index_rows import IndexRow
from tokenvault.stores.port import (
    PAGE_MAX,
    AsyncTokenStore,
    SealedEvent,
    SealedRecord,
    TokenGroup,
    TokenStore,
)
from tokenvault.stores.write_limits import ROW_BYTES

THREADS: Final = 8
PROCESS_SECONDS_MAX: Final = 60.0
"""How long the kit waits for a process, a thread or an answer of what it tries."""

_RECORD_BYTES: Final = 200  # of the body of a sample
_EVENT_BYTES: Final = 100

_MISCOUNTED: Final = (
    "count does not agree with the records: where counts are kept, they change in the transaction of every insert, "
    "and of every replacement that changes requestor, program or status"
)

_T = TypeVar("_T")


class Capability(enum.Enum):
    """What not every adapter can do; one that can not leaves it out of `capabilities`.

    DURABLE: what was written is there when the store is opened again.
    PROCESSES: other processes may share the store; `StoreHarness.opener` gives a picklable function.
    FORKS: a forked child goes on with a store that its parent opened. Not by threads that the fork leaves behind.
    """

    DURABLE = "durable"
    PROCESSES = "processes"
    FORKS = "forks"


class StoreHarness(ABC):
    """One database for one test, and the ways around the store that serve as an independent witness."""

    @abstractmethod
    def open(self) -> TokenStore:
        """Open the database, again if need be. An adapter that is not DURABLE is opened once."""

    @abstractmethod
    def raw_read(self, token: str) -> SealedRecord | None:
        """The row of a token, read without the store."""

    @abstractmethod
    def raw_write(self, record: SealedRecord) -> None:
        """Insert a row, or overwrite the row of its token, without the store and its checks."""

    @abstractmethod
    def raw_counts(self) -> tuple[int, int]:
        """How many records and how many events there are, counted without the store."""

    def opener(self) -> Callable[[], TokenStore]:
        """With PROCESSES: a picklable function that opens the same database in another process."""
        raise TypeError("a harness that claims PROCESSES overrides opener")

    def close(self) -> None:  # noqa: B027  most have nothing to do
        """Release what the harness holds."""


class TokenStoreOnALoop(Forwarding):
    """A store with coroutines, called from any thread: they run on an event loop in a thread of its own.

    Closing it closes the store, and ends the loop and the thread.

        class MyHarness(StoreHarness):
            def open(self):
                return TokenStoreOnALoop(MyAsyncTokenStore(...))

    Args:
        store: the store; it is used on this loop alone.
        new_event_loop: makes the loop, such as `uvloop.new_event_loop`.

    Attributes:
        store: the same store.
    """

    def __init__(
        self,
        store: AsyncTokenStore,
        new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self.store: Final = store
        self.write_limits = store.write_limits
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop, to its end."""
        if self._loop.is_closed():  # closed, as the store is: it says so without suspending
            return asyncio.run(call)
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(PROCESS_SECONDS_MAX)

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.run(getattr(self.store, name)(*args, **kwargs))
        finally:
            if name == "close" and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(PROCESS_SECONDS_MAX)
                self._loop.close()


class RecordChanges(TypedDict, total=False):
    """Fields of a SealedRecord that differ from the sample's."""

    token: str
    reference: bytes
    pan_fingerprint: bytes
    requestor: str
    program: str
    revision: int
    key_version: int
    body: bytes
    seal: bytes
    customer: str
    last4_key: bytes
    status: int
    created_ms: int


def a_record(number: int, **changes: Unpack[RecordChanges]) -> SealedRecord:
    """A well-shaped record; each number has another token, reference and PAN fingerprint."""
    source = random.Random(number)  # noqa: S311  the same on every run
    record = SealedRecord(
        token=f"999912{number:010d}",
        reference=source.randbytes(16),
        pan_fingerprint=source.randbytes(16),
        requestor="40012345678",
        program="card-on-file",
        revision=1,
        key_version=1,
        body=source.randbytes(_RECORD_BYTES),
        seal=source.randbytes(45),
        customer="" if number % 3 else f"customer-{number}",
        last4_key=b"" if number % 4 else source.randbytes(16),
        status=1 + number % 5,
        created_ms=number,
    )
    return record._replace(**changes)


def an_event(number: int, *, stream: int = 0, reference: bytes = b"") -> SealedEvent:
    """A well-shaped event; with a reference, one that the index leads to."""
    source = random.Random(number)  # noqa: S311  the same on every run
    return SealedEvent(
        stream=stream.to_bytes(16, "big"),
        number=number,
        reference=reference,
        body=source.randbytes(_EVENT_BYTES),
        mac=source.randbytes(16),
        index_rows=(IndexRow(reference),) if reference else (),
    )


def as_read(*events: SealedEvent) -> list[SealedEvent]:
    """Events as a store gives them back: without their rows of the index."""
    return [event._replace(index_rows=()) for event in events]


def most(store: TokenStore, rows_each: int = 1, bytes_each: int = 0) -> int:
    """How many records with so much else a store takes in one write, with one event more; at most PAGE_MAX."""
    limits = store.write_limits
    return min(
        PAGE_MAX,
        (limits.rows - 1) // rows_each,
        (limits.bytes - ROW_BYTES - _EVENT_BYTES) // (rows_each * (ROW_BYTES + _RECORD_BYTES) + bytes_each),
    )


def fill(store: TokenStore, records: Sequence[SealedRecord], events: Sequence[SealedEvent] = ()) -> None:
    """Insert records and append events, in as many writes as the store needs."""
    for first in range(0, len(records), most(store)):
        assert store.insert(records[first : first + most(store)], []) == []
    for event in events:
        assert store.append([event]) == []


def replaced(record: SealedRecord) -> SealedRecord:
    """A record that may take the place of this one."""
    return record._replace(revision=record.revision + 1, body=b"changed")


def assert_counted(store: TokenStore) -> None:
    """The store counts in each group as many records as it has there."""
    records: list[SealedRecord] = []
    while page := store.scan(after=records[-1].token if records else ""):
        records += page
    expected = Counter(TokenGroup(each.requestor, each.program, each.status) for each in records)
    counted = {group: store.count(*group) for group in store.groups()}
    assert counted == expected, _MISCOUNTED


def paged(
    read: Callable[..., list[SealedRecord]],
    limit: int,
    place: Callable[[SealedRecord], object] = lambda record: record.token,
    first: object = "",
) -> list[SealedRecord]:
    """What pages give together, each read behind the place of the last record; all but the last are full."""
    found: list[SealedRecord] = []
    while page := read(after=place(found[-1]) if found else first, limit=limit):
        assert len(page) <= limit, "a page has more records than its limit"
        assert len(found) % limit == 0, "a page has fewer records than its limit, and another follows"
        assert page[0] not in found, "a page repeats a record of one before it"
        found += page
    return found


def race(work: Callable[[int], _T]) -> list[_T]:
    """What each of THREADS threads gets, begun at once and numbered from 0."""
    barrier = threading.Barrier(THREADS)

    def run(n: int) -> _T:
        barrier.wait(PROCESS_SECONDS_MAX)
        return work(n)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def run_processes(
    work: Callable[[Callable[[], TokenStore], int], None], opener: Callable[[], TokenStore], count: int
) -> None:
    """Run a module-level function in fresh processes at once; each must end well."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(opener, n)) for n in range(count)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + PROCESS_SECONDS_MAX
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()  # nothing happens to one that has ended
        process.join()
    codes = [process.exitcode for process in processes]
    assert codes == [0] * count, f"exit codes {codes}; what failed stands on standard error"
