"""Events are numbered from 1 without gap, by any number of threads, in parents and in forked children."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tokenvault.audit import journal as journals
from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.journal import Entry, Journal
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


def begin(journal: Journal) -> Entry:
    return journal.begin(journal.entry(EVENT), EVENT.time_ms)


def seal(journal: Journal) -> SealedEvent:
    return journal.seal(begin(journal), EVENT.time_ms)[0]


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


@pytest.mark.parametrize(
    "found_open", [True, False], ids=["which closing sees", "which sees that it is closed"]
)
def test_no_event_follows_a_closing_checkpoint_though_its_thread_found_the_stream_open(
    found_open: bool,
) -> None:
    journal = Journal(NoKeys())
    first = begin(journal)
    journal.seal(first, EVENT.time_ms)
    journal.written(first)
    later = journal.entry(EVENT)
    closing = journal.closing_entry()
    assert closing is not None
    if found_open:
        journal.begin(later, EVENT.time_ms)
    journal.begin_closing(closing)
    if not found_open:
        journal.begin(later, EVENT.time_ms)
    assert closing.checkpoint is not None
    assert closing.checkpoint.closes == (not found_open)
    assert (later.stream is first.stream) == found_open
    assert begin(journal).stream is later.stream


def test_what_is_remembered_of_other_streams_has_a_bound_beyond_which_references_are_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journals, "_REFERENCED_MAX", 3)
    journal = Journal(NoKeys(), CheckpointPolicy(events=1))
    a, b, c, d = (SealedEvent(bytes([byte]) * 16, 5, b"", b"", bytes(16)) for byte in b"abcd")

    def referred_to(*latest: SealedEvent) -> tuple[str, str]:
        """The streams that the next checkpoint refers to, and those of which it is known where their end was."""
        entry = journal.entry(EVENT)
        journal.begin(entry, EVENT.time_ms, checkpoint=True)
        entry.looked_behind[latest[-1].stream] = latest[-1].number
        journal.seal(entry, EVENT.time_ms, latest)
        journal.written(entry)
        journal.written(begin(journal))  # so that a checkpoint is due
        assert entry.checkpoint is not None
        named = [each.stream for each in entry.checkpoint.cross_references]
        return letters(named), letters(entry.stream.looked_behind)

    def letters(streams: Iterable[bytes]) -> str:
        return "".join(stream[:1].decode() for stream in sorted(streams))

    assert referred_to(a, b) == ("ab", "b")
    assert referred_to(a, b, c) == ("c", "bc")
    assert referred_to(b, c, a) == ("", "abc")
    assert referred_to(a, b, c, d) == ("d", "d"), "there are too many: those before are forgotten"
    assert referred_to(d, a) == ("a", "ad")
    assert referred_to(d, b) == ("b", "abd")
    assert referred_to(a, b, d) == ("", "abd")
