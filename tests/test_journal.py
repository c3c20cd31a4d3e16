"""Events are numbered from 1 without gap, by any number of threads, in parents and in forked children."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tokenvault.audit import journal as journals
from tokenvault.audit.checkpoint import (
    CROSS_REFERENCES_MAX,
    SIGNATURE_BYTES,
    CheckpointPolicy,
    CrossReference,
    key_id_of,
    signed_message,
)
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.journal import Entry, Journal
from tokenvault.audit.macs import AuditKeys
from tokenvault.errors import KeyStoreError
from tokenvault.runtime import move, move_all
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


class OneSigner(NoKeys):
    """Checkpoints are signed, but for when the key is away."""

    def __init__(self) -> None:
        self.signer = self  # type: ignore[misc] # as above
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.away = False

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, message: bytes) -> bytes:
        if self.away:
            raise KeyStoreError("the module is away")
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)


def begin(journal: Journal, time_ms: int = EVENT.time_ms, *, checkpoint: bool = False) -> Entry:
    return journal.begin(journal.entry(EVENT), time_ms, checkpoint=checkpoint)


def write(journal: Journal, time_ms: int = EVENT.time_ms, *, checkpoint: bool = False) -> Entry:
    entry = begin(journal, time_ms, checkpoint=checkpoint)
    journal.seal(entry, time_ms)
    journal.written(entry)
    return entry


def begin_closing(journal: Journal) -> Entry:
    closing = journal.closing_entry()
    assert closing is not None
    assert journal.begin_closing(closing) is closing
    return closing


def closes(closing: Entry) -> bool:
    assert closing.checkpoint is not None
    return closing.checkpoint.closes


def others(first: int, count: int, number: int = 5) -> list[SealedEvent]:
    """The latest checkpoints of so many other streams."""
    return [
        SealedEvent(stream.to_bytes(16), number, b"", b"", bytes(16))
        for stream in range(first, first + count)
    ]


def referred_to_by(journal: Journal, latest: Sequence[SealedEvent], **fields: Any) -> list[SealedEvent]:
    """Those of the latest checkpoints that the next one refers to."""
    entry = begin(journal, checkpoint=True)
    for name, value in fields.items():
        setattr(entry, name, value)
    journal.seal(entry, EVENT.time_ms, latest)
    journal.written(entry)
    write(journal)  # so that a checkpoint is due
    assert entry.checkpoint is not None
    named = {each.stream for each in entry.checkpoint.cross_references}
    return [row for row in latest if row.stream in named]


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
    assert (later.stream is first.stream) == (later in first.stream.open) == found_open
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


@pytest.mark.parametrize(
    ("time_ms", "first"),
    [
        (-1, 0),
        (0, 0),
        (1, 1),
        (2**48 - 2, 2**48 - 2),
        (2**48 - 1, 2**48 - 1),
        (2**48, 2**48 - 1),
        (2**56, 2**48 - 1),
    ],
)
def test_the_name_of_a_stream_is_its_time_in_6_bytes_and_10_random_ones(time_ms: int, first: int) -> None:
    one, other = (Journal(NoKeys()).entry(EVENT._replace(time_ms=time_ms)).stream.name for _ in "ab")
    assert len(one) == 16
    assert int.from_bytes(one[:6]) == first
    assert one[:6] == other[:6]
    assert one[6:] != other[6:]


def test_a_checkpoint_is_due_after_so_many_events_without_counting_itself() -> None:
    journal = Journal(NoKeys(), CheckpointPolicy(events=3))
    numbers = [write(journal, checkpoint=True).checkpoint_number for _ in range(10)]
    assert numbers == [1, 0, 0, 5, 0, 0, 9, 0, 0, 13]


def test_a_checkpoint_is_due_so_many_seconds_after_the_last_one_to_the_millisecond() -> None:
    journal = Journal(NoKeys(), CheckpointPolicy(seconds=3))
    times = (0, 2_999, 3_000, 5_999, 6_000)
    assert [write(journal, time_ms, checkpoint=True).checkpoint_number for time_ms in times] == [
        1,
        0,
        4,
        0,
        7,
    ]


def test_the_first_checkpoint_is_due_at_once_and_a_withdrawn_one_again() -> None:
    journal = Journal(NoKeys())
    for _ in range(2):
        entry = begin(journal, 0, checkpoint=True)
        assert (entry.checkpoint_number, entry.number) == (1, 2)
        journal.withdraw(entry)


def test_an_entry_has_no_number_before_it_begins() -> None:
    entry = Journal(NoKeys()).entry(EVENT)
    assert (entry.number, entry.checkpoint_number, entry.leaves) == (0, 0, {})


def test_a_checkpoint_is_at_an_edge_where_it_is_the_first_of_its_stream_or_alone() -> None:
    journal = Journal(NoKeys(), CheckpointPolicy(events=1))
    edges = [write(journal, checkpoint=True).at_an_edge for _ in range(3)]
    assert edges == [True, False, False]
    assert begin_closing(journal).at_an_edge is True


def test_leaves_wait_for_the_tree_until_there_are_64() -> None:
    journal = Journal(NoKeys())
    waiting = [len(write(journal).stream.settled) for _ in range(130)]
    assert waiting == [*range(1, 64), 0, *range(1, 64), 0, 1, 2]


def test_a_thread_that_is_behind_with_the_tree_takes_nothing_back() -> None:
    journal = Journal(NoKeys())
    stream = write(journal).stream
    behind = stream._grown
    write(journal)
    tree = stream.grow()
    stream._grown = behind
    assert stream.grow() == tree
    assert tree.size == 2


def test_a_number_that_was_given_back_and_that_another_thread_takes_first_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = Journal(NoKeys())
    for entry in [begin(journal) for _ in range(2)]:
        journal.withdraw(entry)
    taken: list[int] = []

    def late(number: int, free: dict[int, bytes], leaves: dict[int, bytes]) -> None:
        if not taken:
            taken.append(number)
            taken.append(begin(journal).number)
        move(number, free, leaves)

    monkeypatch.setattr(journals, "move", late)
    assert begin(journal).number == 2
    assert taken == [1, 1]
    assert begin(journal).number == 3


# Closing.


def test_nothing_is_closed_before_an_event_is_written_nor_twice_nor_by_a_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = Journal(NoKeys())
    assert journal.closing_entry() is None
    entry = begin(journal)
    assert journal.closing_entry() is None
    journal.seal(entry, EVENT.time_ms)
    journal.written(entry)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: entry.stream.pid + 1)
        assert journal.closing_entry() is None
    assert closes(begin_closing(journal))
    assert journal.closing_entry() is None


def test_a_checkpoint_that_closes_a_stream_filled_no_gap() -> None:
    journal = Journal(NoKeys())
    write(journal)
    closing = begin_closing(journal)
    journal.seal(closing, EVENT.time_ms)
    journal.written(closing)
    assert closes(closing)
    assert closing.number == closing.stream.grow().size == 2
    assert not journal.filled_a_gap(closing)


def test_a_checkpoint_closes_no_stream_that_has_a_number_left() -> None:
    journal = Journal(NoKeys())
    write(journal)
    for entry in [begin(journal) for _ in range(2)]:
        journal.withdraw(entry)
    closing = begin_closing(journal)
    assert closing.number == 2
    assert not closes(closing)
    assert journal.filled_a_gap(closing)
    assert begin_closing(journal).number == 3


def test_a_checkpoint_closes_no_stream_of_which_another_thread_is_about_to_take_a_number() -> None:
    journal = Journal(NoKeys())
    stream = write(journal).stream
    stream.open[journal.entry(EVENT)] = None  # the first step of `begin`
    closing = begin_closing(journal)
    assert closing.number == 2
    assert not closes(closing)
    assert stream.closing is None


def test_a_stream_goes_on_where_its_closing_checkpoint_was_not_written() -> None:
    journal = Journal(NoKeys())
    stream = write(journal).stream
    closing = begin_closing(journal)
    assert closes(closing)
    journal.withdraw(closing)
    entry = begin(journal)
    assert entry.stream is stream
    assert entry.number == closing.number


# Cross-references and signatures.


def test_a_checkpoint_refers_to_64_other_streams_at_most_and_to_their_first_event_too() -> None:
    latest = others(0, CROSS_REFERENCES_MAX + 1, number=1)
    assert referred_to_by(Journal(NoKeys()), latest) == latest[:64]


def test_the_last_references_to_1024_other_streams_are_remembered() -> None:
    journal = Journal(NoKeys(), CheckpointPolicy(events=1))
    latest = others(0, 16 * 64)
    for first in range(0, len(latest), 64):
        assert referred_to_by(journal, latest[first : first + 64]) == latest[first : first + 64]
    assert referred_to_by(journal, latest[:64]) == []
    one_more = others(len(latest), 1)
    assert referred_to_by(journal, one_more) == one_more
    assert referred_to_by(journal, latest[:64]) == latest[:64]


def test_a_stream_is_referred_to_once_unless_it_is_to_be_repeated() -> None:
    journal = Journal(NoKeys(), CheckpointPolicy(events=1))
    one, other = others(0, 2)
    assert referred_to_by(journal, [one, other]) == [one, other]
    assert referred_to_by(journal, [one, other]) == []
    assert referred_to_by(journal, [one, other], repeated=frozenset({other.stream})) == [other]


def test_a_checkpoint_is_signed_with_all_that_it_says() -> None:
    keys = OneSigner()
    journal = Journal(keys)
    latest = others(0, 3)
    entry = begin(journal, checkpoint=True)
    row, _ = journal.seal(entry, EVENT.time_ms, latest)
    checkpoint = Event.parse(row).checkpoint
    assert checkpoint is not None
    assert checkpoint.key_id == key_id_of(keys.public_key)
    assert [each.stream for each in checkpoint.cross_references] == [each.stream for each in latest]
    r, s = checkpoint.signature[:32], checkpoint.signature[32:]
    keys.key.public_key().verify(
        encode_dss_signature(int.from_bytes(r), int.from_bytes(s)),
        signed_message(entry.stream.name, entry.checkpoint_number, row.body[:-SIGNATURE_BYTES]),
        ec.ECDSA(hashes.SHA256()),
    )


def test_a_checkpoint_stays_unsigned_while_the_key_is_away_and_the_next_one_repeats_its_references() -> None:
    keys = OneSigner()
    journal = Journal(keys, CheckpointPolicy(events=1))
    (other,) = others(0, 1)

    def sealed() -> tuple[tuple[CrossReference, ...], bool]:
        entry = begin(journal, checkpoint=True)
        checkpoint = Event.parse(journal.seal(entry, EVENT.time_ms, [other])[0]).checkpoint
        journal.written(entry)
        write(journal)
        assert checkpoint is not None
        return checkpoint.cross_references, bool(checkpoint.signature)

    keys.away = True
    references, signed = sealed()
    assert len(references) == 1
    assert not signed
    keys.away = False
    assert sealed() == (references, True)
    assert sealed() == ((), True)


# Entries of unknown fate.


def test_a_forked_child_has_no_doubts_about_entries_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(NoKeys())
    assert journal.doubts() == []
    entry = begin(journal)
    assert journal.doubts() == []
    entry.over = True
    assert journal.doubts() == [entry]
    monkeypatch.setattr(os, "getpid", lambda: entry.stream.pid + 1)
    assert journal.doubts() == []


def test_of_two_heirs_of_an_entry_one_has_its_numbers_and_the_other_leaves_no_doubt() -> None:
    journal = Journal(NoKeys())
    entry = begin(journal)
    entry.over = True
    first, second = journal.heir(entry), journal.heir(entry)
    assert journal.take_over(entry, first)
    assert not journal.take_over(entry, second)
    assert journal.doubts() == [], "work on the first one is under way"
    first.over = second.over = True
    assert journal.doubts() == [first]
    assert list(first.leaves) == [entry.number]


def test_an_heir_that_is_overtaken_while_it_takes_numbers_does_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = Journal(NoKeys())
    entry = begin(journal)
    first, second = journal.heir(entry), journal.heir(entry)

    def late(source: dict[int, bytes], target: dict[int, bytes]) -> None:
        monkeypatch.setattr(journals, "move_all", move_all)
        assert journal.take_over(entry, first)
        raise KeyError("dictionary is empty")  # as `move_all`, which had counted one item

    monkeypatch.setattr(journals, "move_all", late)
    assert not journal.take_over(entry, second)
    assert list(first.leaves) == [entry.number]
    assert not second.leaves
