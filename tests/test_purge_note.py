"""What an event of a purge names: which payloads are one, and how runs of several add up."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.purge_note import Changes, PurgedRuns, PurgeNote, Run
from tokenvault.stores.port import SealedEvent

STREAM = b"s" * 16
ROOTS = (b"a" * 32, b"b" * 32)
NUMBER_MAX = 2**63 - 1
CHANGES = (Changes(b"p" * 16, 1, 3), Changes(b"q" * 16, 2, 2))
NOTE = PurgeNote((Run(2, 3, ROOTS), Run(NUMBER_MAX, NUMBER_MAX, ROOTS[:1])), CHANGES)


def packed(*runs: tuple[int, int, bytes], changes: tuple[tuple[bytes, int, int], ...] = ()) -> bytes:
    """A payload from its layout, not by the code."""
    parts = [struct.pack(">I", len(runs))]
    parts += [struct.pack(">QQ", first, last) + roots for first, last, roots in runs]
    return b"".join([*parts, *(struct.pack(">16sQQ", *each) for each in changes)])


def read(payload: bytes) -> PurgeNote | None:
    event = Event(time_ms=5, action=Action.PURGE_EVENTS, outcome=Outcome.DONE, reference=STREAM)
    return Event.parse(SealedEvent(b"o" * 16, 1, STREAM, event.body() + payload, bytes(16))).purge


TWO, ONE = b"".join(ROOTS), ROOTS[0]


def test_a_note_is_the_bytes_of_its_layout() -> None:
    payload = packed((2, 3, TWO), (NUMBER_MAX, NUMBER_MAX, ONE), changes=CHANGES)
    assert NOTE.payload() == payload
    assert read(payload) == NOTE
    assert read(packed((1, 1, ONE), (2, 2, ONE))) == PurgeNote((Run(1, 1, ROOTS[:1]), Run(2, 2, ROOTS[:1])))


@pytest.mark.parametrize(
    "payload",
    [
        b"", packed(), packed(changes=CHANGES), packed((0, 0, ONE)), packed((0, 1, TWO)), packed((5, 4, b"")),
        packed((2**63, 2**63, ONE)), packed((5, 5, ONE), (5, 5, ONE)), packed((5, 5, ONE), (4, 4, ONE)),
        packed((2, 3, TWO), (3, 3, ONE)), packed((2, 3, TWO[:-1])), packed((2, 3, ONE)), packed((2, 3, b"")),
        packed((2, 3, TWO))[:12], packed((2, 3, TWO)) + b"x", packed((2, 3, TWO), changes=CHANGES)[:-1],
        packed((2, 3, TWO), changes=CHANGES[::-1]), packed((2, 3, TWO), changes=((b"p" * 16, 3, 2),)),
    ],
    ids=[
        "nothing", "no run", "no run but changes", "number 0", "from number 0", "an end before its begin",
        "a number above the last", "a run twice", "runs out of order", "runs that overlap", "a root cut short",
        "a root less", "no root", "a run cut short", "a byte more", "a change cut short", "changes out of order",
        "a last revision before the first",
    ],
)  # fmt: skip
def test_a_note_of_another_form_is_refused(payload: bytes) -> None:
    with pytest.raises(tv.IntegrityError):
        read(payload)


def test_what_is_new_of_a_run_that_overlaps_another_stands_without_roots() -> None:
    runs = PurgedRuns()
    assert runs.add(PurgeNote((Run(3, 4, ROOTS),))) == 2
    assert runs.add(PurgeNote((Run(7, 7, ROOTS[:1]),))) == 1
    assert runs.add(PurgeNote((Run(1, 8, (*ROOTS, *ROOTS)),))) == 5
    assert list(runs.between(1, 8)) == [
        Run(1, 2, ()), Run(3, 4, ROOTS), Run(5, 6, ()), Run(7, 7, ROOTS[:1]), Run(8, 8, ()),
    ]  # fmt: skip
    assert runs.add(PurgeNote((Run(2, 5, ROOTS),))) == 0
    assert runs.add(PurgeNote((Run(8, 9, ROOTS), Run(11, 12, ROOTS)))) == 3
    assert list(runs.between(9, 20)) == [Run(9, 9, ()), Run(11, 12, ROOTS)]


RUNS = st.tuples(st.integers(1, 30), st.integers(0, 9)).map(lambda each: Run(each[0], sum(each), ROOTS))


@given(st.lists(RUNS, max_size=12))
def test_runs_of_many_purges_are_the_numbers_that_any_of_them_names_each_once(named: list[Run]) -> None:
    runs, numbers = PurgedRuns(), set[int]()
    for run in named:
        new = set(range(run.first, run.last + 1)) - numbers
        assert runs.add(PurgeNote((run,))) == len(new)
        numbers |= new
    assert runs.last == max(numbers, default=0)
    for number in range(1, 45):
        found = runs.at(number)
        assert (found is not None and found.first <= number <= found.last) == (number in numbers)
        assert runs.covers(number, number + 2) == (set(range(number, number + 3)) <= numbers)
    listed = list(runs.between(1, 45))
    assert [number for run in listed for number in range(run.first, run.last + 1)] == sorted(numbers)
