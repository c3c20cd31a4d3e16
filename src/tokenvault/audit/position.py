"""How far an export of the audit trail has come: what was read of each stream, as a text that it goes on from.

Events of one stream are written by many threads or tasks at once, so a number may be there before a lower one. What
is missing below the last number that was read is kept as gaps, and looked for again: a gap is given up only once a
genuine checkpoint commits to the events of these numbers, which it does after they are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from typing import Final

import attrs

from tokenvault.audit.checkpoint import Checkpoint
from tokenvault.audit.purge_note import PurgedRuns
from tokenvault.errors import IntegrityError, InvalidInputError

VERSION: Final = 1

TEXT_CHARACTERS_MAX: Final = 2**28
"""Of a position: 5 million streams."""

GAPS_MAX: Final = 10_000
"""Gaps of one stream: more than a process has writes under way at once."""

_NUMBER_MAX: Final = 2**63 - 1
_STREAM: Final = re.compile("[0-9a-f]{32}", re.ASCII)
_FIELDS: Final = 5  # of a stream


@attrs.frozen
class Place:
    """What was read of one stream.

    Attributes:
        last: the greatest number that was read.
        settled: the greatest number that a genuine checkpoint commits to.
        closing: whether a genuine checkpoint closes the stream: nothing comes after it.
        gaps: below the last number, the first and last of those that could not be read yet; ascending.
        begun: the numbers of batches of which not every line was given, and how many were.
    """

    last: int = 0
    settled: int = 0
    closing: bool = False
    gaps: tuple[tuple[int, int], ...] = ()
    begun: tuple[tuple[int, int], ...] = ()

    @property
    def closed(self) -> bool:
        """Whether nothing more is to be read."""
        return self.closing and not self.gaps

    def lines_of(self, number: int) -> int:
        """How many lines of a row were given."""
        return dict(self.begun).get(number, 0)

    def with_lines(self, number: int, lines: int) -> Place:
        """After some lines of a row, not the last."""
        begun = {**dict(self.begun), number: lines}
        return attrs.evolve(self, begun=tuple(begun.items()))

    def with_row(self, number: int) -> Place:
        """After a row. Raises IntegrityError where it leaves too many gaps."""
        begun = tuple(each for each in self.begun if each[0] != number)
        if number == self.last + 1:
            return attrs.evolve(self, last=number, begun=begun)
        if number > self.last:
            gaps = (*self.gaps, (self.last + 1, number - 1))
        else:
            gaps = tuple(part for gap in self.gaps for part in _without(gap, number))
        if len(gaps) > GAPS_MAX:
            raise IntegrityError(
                "too many numbers of a stream are missing: what follows them was not read",
                code="TOO_MANY_EVENTS",
            )
        return attrs.evolve(self, last=max(self.last, number), gaps=gaps, begun=begun)

    def without_purged(self, number: int, purged: PurgedRuns) -> Place:
        """Before a row of this number, where purges took out some of those between: they are no gaps."""
        gaps, first = list(self.gaps), self.last + 1
        for run in purged.between(first, number - 1):
            if run.first > first:
                gaps.append((first, run.first - 1))
            first = run.last + 1
        return attrs.evolve(self, last=min(first, number) - 1, gaps=tuple(gaps))

    def with_unreadable(self, number: int) -> Place:
        """After a row behind the last number that no vault wrote, or that can not be read now.

        An event may still come to stand there. So it belongs to the gap before it: rows like this make no more gaps.
        """
        first, gaps = self.last + 1, self.gaps
        if gaps and gaps[-1][1] == self.last:
            first, gaps = gaps[-1][0], gaps[:-1]
        begun = tuple(each for each in self.begun if each[0] != number)
        return attrs.evolve(self, last=number, gaps=(*gaps, (first, number)), begun=begun)

    def with_checkpoint(self, number: int, checkpoint: Checkpoint) -> Place:
        """After a genuine checkpoint, which has this number."""
        return attrs.evolve(
            self,
            settled=max(self.settled, min(checkpoint.size, number - 1)),
            closing=self.closing or (checkpoint.closes and checkpoint.size == number - 1),
        )

    def without_settled(self) -> Place:
        """After looking for what is missing: what a checkpoint commits to, and is not there, was removed."""
        gaps = tuple((max(first, self.settled + 1), last) for first, last in self.gaps if last > self.settled)
        return attrs.evolve(self, gaps=gaps)


@attrs.frozen
class Position:
    """What was read of all streams.

    Attributes:
        places: of each stream, by its name, when the look began.
        read: the streams that were read since, and their places; it grows on.
        count: how many of these.
        stream: the one that is being read; None between two looks.
        place: of that stream.
    """

    places: Mapping[bytes, Place]
    read: Sequence[tuple[bytes, Place]] = ()
    count: int = 0
    stream: bytes | None = None
    place: Place = Place()

    def all_places(self) -> dict[bytes, Place]:
        """The place of each stream."""
        places = {**self.places, **dict(islice(self.read, self.count))}
        return places if self.stream is None else {**places, self.stream: self.place}

    def text(self) -> str:
        """As a text of ASCII, without blanks or ends of lines."""
        places = self.all_places()
        return json.dumps(
            {
                "version": VERSION,
                "streams": {
                    name.hex(): [
                        place.last,
                        place.settled,
                        int(place.closing),
                        [number for gap in place.gaps for number in gap],
                        [number for row in place.begun for number in row],
                    ]
                    for name, place in places.items()
                },
            },
            separators=(",", ":"),
        )


def parse_position(text: str) -> dict[bytes, Place]:
    """The places of a text. Raises InvalidInputError where an export did not give it."""
    if type(text) is not str or len(text) > TEXT_CHARACTERS_MAX:
        raise _refused()
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused() from None
    if not isinstance(document, dict) or document.keys() != {"version", "streams"}:
        raise _refused()
    streams = document["streams"]
    if (
        type(document["version"]) is not int
        or document["version"] != VERSION
        or not isinstance(streams, dict)
    ):
        raise _refused()
    return {bytes.fromhex(_name(name)): _place(fields) for name, fields in streams.items()}


def _name(name: str) -> str:
    if _STREAM.fullmatch(name) is None:
        raise _refused()
    return name


def _place(fields: object) -> Place:
    if not isinstance(fields, list) or len(fields) != _FIELDS:
        raise _refused()
    last, settled, closing = _numbers(fields[:3], 0)
    gaps, begun = _pairs(fields[3]), _pairs(fields[4])
    numbers = [number for gap in gaps for number in gap]
    ascending = all(first <= then for first, then in gaps) and all(a[1] < b[0] for a, b in pairwise(gaps))
    if closing > 1 or not ascending or (numbers and numbers[-1] > last):
        raise _refused()
    if len(dict(begun)) != len(begun):
        raise _refused()
    return Place(last, settled, bool(closing), gaps, begun)


def _pairs(value: object) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list) or len(value) % 2 or len(value) > 2 * GAPS_MAX:
        raise _refused()
    numbers = _numbers(value, 1)
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _numbers(values: list[object], low: int) -> list[int]:
    numbers = [value for value in values if type(value) is int and low <= value <= _NUMBER_MAX]
    if len(numbers) != len(values):
        raise _refused()
    return numbers


def _without(gap: tuple[int, int], number: int) -> list[tuple[int, int]]:
    """What is left of a gap without a number."""
    first, last = gap
    if not first <= number <= last:
        return [gap]
    return [(a, b) for a, b in ((first, number - 1), (number + 1, last)) if a <= b]


def _refused() -> InvalidInputError:
    return InvalidInputError("after is the position of a line that an export gave, as it was")
