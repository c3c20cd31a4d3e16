"""Events are numbered from 1 without gap, by any number of threads, in parents and in forked children."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tokenvault.events import Action, Event, Outcome
from tokenvault.journal import Journal

EVENT = Event(time_ms=1, action=Action.ISSUE, outcome=Outcome.DONE)
THREADS = 4


def test_threads_that_begin_at_once_in_a_forked_child_share_one_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers are each given once, though every thread finds at the same moment that the process is new."""
    journal = Journal(lambda message: bytes(16))
    before = journal.seal(EVENT)
    together = threading.Barrier(THREADS)
    pid, draw = os.getpid() + 1, os.urandom

    def drawn(count: int) -> bytes:
        name = draw(count)
        with suppress(threading.BrokenBarrierError):  # not every thread may draw a name
            together.wait(2)
        return name

    monkeypatch.setattr(os, "getpid", lambda: pid)
    monkeypatch.setattr(os, "urandom", drawn)
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(lambda _: journal.seal(EVENT), range(THREADS)))
    assert len({row.stream for row in rows}) == 1
    assert rows[0].stream != before.stream
    assert sorted(row.number for row in rows) == [1, 2, 3, 4]
