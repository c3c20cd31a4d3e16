"""Where an export stands in each stream: what is read, what is missing, and which texts are a position."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvault.audit import position
from tokenvault.audit.checkpoint import Checkpoint
from tokenvault.audit.position import GAPS_MAX, Place, Position, parse_position
from tokenvault.audit.purge_note import PurgedRuns, PurgeNote, Run
from tokenvault.errors import IntegrityError, InvalidInputError

A, B, C = (bytes([byte]) * 16 for byte in b"abc")


def checkpoint(size: int, *, closes: bool = False) -> Checkpoint:
    return Checkpoint(size=size, root=bytes(32), closes=closes)


@given(st.permutations(range(1, 13)), st.integers(0, 12))
def test_what_was_not_read_below_the_last_number_is_a_gap_whatever_the_order(
    order: list[int], count: int
) -> None:
    place = Place()
    for number in order[:count]:
        place = place.with_row(number)
    read = set(order[:count])
    assert place.last == max(read, default=0)
    missing = [number for first, last in place.gaps for number in range(first, last + 1)]
    assert missing == sorted(set(range(1, place.last + 1)) - read)
    assert all(first <= last for first, last in place.gaps)
    assert all(before[1] + 1 < after[0] for before, after in zip(place.gaps, place.gaps[1:], strict=False))


def test_a_number_that_can_not_be_read_joins_the_gap_before_it() -> None:
    place = Place().with_row(1).with_unreadable(2).with_unreadable(3).with_row(4).with_unreadable(5)
    assert (place.last, place.gaps) == (5, ((2, 3), (5, 5)))
    assert Place().with_unreadable(1) == Place(last=1, gaps=((1, 1),))


def test_what_a_purge_took_out_is_no_gap_and_what_is_missing_around_it_is() -> None:
    purged = PurgedRuns()
    purged.add(PurgeNote((Run(3, 4, ()), Run(7, 8, ()))))
    assert Place(last=1).without_purged(10, purged) == Place(last=8, gaps=((2, 2), (5, 6)))
    assert Place(last=1).without_purged(10, purged).with_row(10).gaps == ((2, 2), (5, 6), (9, 9))
    assert Place(last=3, gaps=((2, 2),)).without_purged(8, purged) == Place(last=7, gaps=((2, 2), (5, 6)))
    assert Place(last=2).without_purged(6, purged) == Place(last=4)
    assert Place(last=8).without_purged(10, purged) == Place(last=8)


def test_lines_of_a_row_count_until_the_row_is_read() -> None:
    place = Place().with_lines(1, 2).with_lines(2, 5).with_lines(1, 3)
    assert (place.lines_of(1), place.lines_of(2), place.lines_of(3)) == (3, 5, 0)
    assert place.with_row(1).begun == ((2, 5),)
    assert place.with_row(3).with_row(2).begun == ((1, 3),)


def test_a_checkpoint_settles_what_it_commits_to_and_closes_a_stream_that_it_ends() -> None:
    place = Place(last=9, gaps=((2, 3), (5, 7)))
    assert place.with_checkpoint(9, checkpoint(8)).settled == 8
    assert place.with_checkpoint(7, checkpoint(8)).settled == 6
    assert place.with_checkpoint(9, checkpoint(4)).with_checkpoint(6, checkpoint(3)).settled == 4
    assert not place.with_checkpoint(9, checkpoint(8)).closing
    closed = place.with_checkpoint(9, checkpoint(8, closes=True))
    assert closed.closing
    assert closed.with_checkpoint(5, checkpoint(4)).closing
    assert not place.with_checkpoint(9, checkpoint(7, closes=True)).closing
    assert not closed.closed
    assert closed.without_settled().closed
    assert not place.without_settled().closed
    assert Place(settled=6, gaps=((2, 3), (5, 7), (9, 9))).without_settled().gaps == ((7, 7), (9, 9))
    assert Place(settled=7, gaps=((2, 3), (5, 7))).without_settled().gaps == ()


def test_gaps_are_kept_up_to_their_bound() -> None:
    gaps = tuple((2 * number, 2 * number) for number in range(1, GAPS_MAX + 1))
    full = Place(last=2 * GAPS_MAX + 1, gaps=gaps)
    assert len(full.with_row(2).gaps) == GAPS_MAX - 1
    for more in (full.last + 2, full.last + 9):
        with pytest.raises(IntegrityError) as refused:
            full.with_row(more)
        assert refused.value.code == "TOO_MANY_EVENTS"


def test_a_position_is_of_every_stream_and_the_latest_of_each() -> None:
    old, new, now = Place(last=1), Place(last=2), Place(last=3)
    places = {A: old, B: old}
    assert Position(places).all_places() == places
    grown = [(B, new), (C, new)]
    assert Position(places, grown, 1).all_places() == {A: old, B: new}
    assert Position(places, grown, 2, C, now).all_places() == {A: old, B: new, C: now}


places = st.builds(
    lambda numbers, settled, closing, begun: Place(
        last=max(numbers, default=0),
        settled=settled,
        closing=closing,
        gaps=tuple((number, number) for number in sorted(numbers)),
        begun=tuple(begun.items()),
    ),
    st.sets(st.integers(1, 2**63 - 1), max_size=4),
    st.integers(0, 2**63 - 1),
    st.booleans(),
    st.dictionaries(st.integers(1, 2**63 - 1), st.integers(1, 9), max_size=3),
)


@given(st.dictionaries(st.binary(min_size=16, max_size=16), places, max_size=3))
def test_a_text_reads_back_as_the_places_it_was_made_of(found: dict[bytes, Place]) -> None:
    text = Position(found).text()
    assert parse_position(text) == found
    assert text.isascii()
    assert " " not in text
    assert "\n" not in text


def text_of(*fields: Any, name: str = "0a" * 16, **document: Any) -> str:
    return json.dumps({"version": 1, "streams": {name: list(fields)}} | document)


def test_the_text_of_a_position_stays() -> None:
    place = Place(last=9, settled=3, closing=True, gaps=((4, 5), (7, 7)), begun=((6, 2),))
    text = '{"version":1,"streams":{"' + "0a" * 16 + '":[9,3,1,[4,5,7,7],[6,2]]}}'
    assert Position({b"\n" * 16: place}).text() == text
    assert parse_position(text) == {b"\n" * 16: place}
    assert parse_position('{"version":1,"streams":{}}') == {}


SOUND = (9, 3, 1, [4, 5, 7, 7], [6, 2])


@pytest.mark.parametrize(
    "text",
    [
        None, b"{}", "", "[]", "5", "{}", '{"version":1}', '{"streams":{}}', '{"version":1,"streams":{},"more":1}',
        '{"version":2,"streams":{}}', '{"version":true,"streams":{}}', '{"version":1.0,"streams":{}}',
        '{"version":1,"streams":[]}', '{"version":1,"streams":{"a":5}}', "[" * 100_000,
        text_of(*SOUND, name="0A" * 16), text_of(*SOUND, name="0a" * 15), text_of(*SOUND, name="0a" * 17),
        text_of(*SOUND, name="0a" * 15 + "g1"), text_of(*SOUND[:4]), text_of(*SOUND, 1), text_of(-1, 3, 1, [], []),
        text_of(2**63, 3, 1, [], []), text_of(9, -1, 1, [], []), text_of(9, 3, 2, [], []), text_of(9, 3, -1, [], []),
        text_of(9, 3, True, [], []), text_of(9.0, 3, 1, [], []), text_of(9, 3, 1, [4], []),
        text_of(9, 3, 1, [5, 4], []),
        text_of(9, 3, 1, [4, 5, 5, 6], []), text_of(9, 3, 1, [7, 7, 4, 5], []), text_of(9, 3, 1, [9, 10], []),
        text_of(9, 3, 1, [0, 1], []), text_of(9, 3, 1, {}, []), text_of(9, 3, 1, [], {}), text_of(9, 3, 1, [], [6]),
        text_of(9, 3, 1, [], [6, 2, 6, 3]), text_of(9, 3, 1, [], [6, 0]), text_of(9, 3, 1, [], [0, 6]),
        text_of(9, 3, 1, [], [6, 2.0]), text_of(10**9, 0, 0, list(range(1, 2 * GAPS_MAX + 3)), []),
    ],
    ids=lambda text: str(text)[:40],
)  # fmt: skip
def test_a_text_that_no_export_gave_is_refused(text: Any) -> None:
    with pytest.raises(InvalidInputError):
        parse_position(text)


def test_numbers_at_their_borders_are_read() -> None:
    for fields in (
        (0, 0, 0, [], []), (2**63 - 1, 2**63 - 1, 1, [1, 2**63 - 1], [2**63 - 1, 2**63 - 1]),
        (9, 0, 0, [4, 5, 6, 6], []),
        (10**9, 0, 0, list(range(1, 2 * GAPS_MAX + 1)), []),
    ):  # fmt: skip
        (place,) = parse_position(text_of(*fields)).values()
        assert (place.last, place.settled, int(place.closing)) == fields[:3]
    assert position.TEXT_CHARACTERS_MAX == 2**28
