"""Events are numbered from 1 without gap, by any number of threads, in parents and in forked children."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.journal import Journal
from tokenvault.audit.macs import AuditKeys
from tokenvault.stores.port import SealedEvent

EVENT = Event(time_ms=1, action=Action.ISSUE, outcome=Outcome.DONE)
THREADS = 4


class NoKeys(AuditKeys):
    """Every MAC is zeros, and right; nothing is signed."""

    def __init__(self) -> None:
        self.signer = None  # type: ignore[misc] # there is no key store to ask

    def tag(self, leaf: bytes) -> bytes:
        return bytes(16)

    def genuine(self, rows: Sequence[SealedEvent]) -> list[SealedEvent]:
        return list(rows)


def seal(journal: Journal) -> SealedEvent:
    return journal.seal(journal.begin(EVENT), EVENT.time_ms)[0]


def test_threads_that_begin_together_in_a_forked_child_share_one_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers are each given once, though every thread finds at the same moment that the process is new."""
    journal = Journal(NoKeys())
    before = seal(journal)
    together = threading.Barrier(THREADS)
    pid, current = os.getpid() + 1, os.getpid
    found = threading.local()

    def getpid() -> int:
        if threading.current_thread() is not threading.main_thread() and not hasattr(found, "it"):
            found.it = True
            with suppress(threading.BrokenBarrierError):
                together.wait(2)
        return pid

    assert current() != pid
    monkeypatch.setattr(os, "getpid", getpid)
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(lambda _: seal(journal), range(THREADS)))
    assert len({row.stream for row in rows}) == 1
    assert rows[0].stream != before.stream
    assert sorted(row.number for row in rows) == [1, 2, 3, 4]


class Waited:
    """A lock that tells when somebody comes to it."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock, self.somebody = lock, threading.Event()

    def __enter__(self) -> None:
        self.somebody.set()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_no_event_follows_a_closing_checkpoint_though_its_thread_found_the_stream_open() -> None:
    journal = Journal(NoKeys())
    first = journal.begin(EVENT)
    journal.seal(first, EVENT.time_ms)
    journal.written(first)
    stream = first.stream
    lock = stream.lock
    waited = Waited(lock)
    with ThreadPoolExecutor(1) as pool:
        with lock:
            stream.lock = waited  # type: ignore[assignment] # the other thread waits here
            later = pool.submit(journal.begin, EVENT)
            assert waited.somebody.wait(10)
            stream.lock = threading.Lock()
            closing = journal.begin_closing()
        assert closing is not None
        assert closing.checkpoint is not None
        assert closing.checkpoint.closes
        assert later.result().stream is not stream
