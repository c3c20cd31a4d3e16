"""Where an event with an invalid MAC comes from: whether it was moved, copied, edited or inserted."""

from __future__ import annotations

from itertools import chain, islice
from typing import Final, NamedTuple

from tokenvault.audit.batch_event import references_of
from tokenvault.audit.verify.pages import pages_about
from tokenvault.audit.verify.report import FindingKind, Findings
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.stores.port import SealedEvent, TokenStore

INVALID_MACS_MAX: Final = 100
"""Events of one stream whose origin is looked for; and runs of missing numbers, of all streams."""

INVALID_MACS_OF_ALL_STREAMS_MAX: Final = 300
"""Events of all streams whose origin is looked for: each is tried in the places of all others."""

INVALID_MACS_BYTES_MAX: Final = 2**24
"""What the bodies of these add up to at most, beside the last one."""

PLACES_MAX: Final = 200
"""Missing numbers that events are tried in."""


class InvalidMac(NamedTuple):
    """An event with an invalid MAC, or one after the end of its stream.

    Attributes:
        row: the event.
        expected: whether the vault may have written an event with this number.
    """

    row: SealedEvent
    expected: bool


class InvalidMacs:
    """The events of all streams whose origin is to be looked for, and the numbers of missing events."""

    def __init__(self) -> None:
        self.found: list[InvalidMac] = []
        self._bytes = 0
        self._missing: list[tuple[bytes, range]] = []

    def takes(self, row: SealedEvent, of_stream: int) -> bool:
        """Whether an event is noted, given how many of its stream are; what is found of these is added at its end."""
        room = min(INVALID_MACS_MAX, INVALID_MACS_OF_ALL_STREAMS_MAX - len(self.found))
        if of_stream >= room or self._bytes >= INVALID_MACS_BYTES_MAX:
            return False
        self._bytes += len(row.body)
        return True

    def note_missing(self, stream: bytes, first: int, last: int) -> None:
        """Note that the events from first to last are missing."""
        if len(self._missing) < INVALID_MACS_MAX:
            self._missing.append((stream, range(first, last + 1)))

    def places(self) -> list[tuple[bytes, int]]:
        """Stream and number of each event of the vault that is missing, or may have been overwritten."""
        missing = ((stream, number) for stream, numbers in self._missing for number in numbers)
        return [(row.stream, row.number) for row, _ in self.found] + list(islice(missing, PLACES_MAX))


def find_origins(
    invalid_macs: InvalidMacs, trusted: TrustedKeys, store: TokenStore, findings: Findings
) -> None:
    """Note what each event with an invalid MAC is: moved, copied, edited or inserted."""
    places = invalid_macs.places()
    for invalid in invalid_macs.found:
        kind, message = _origin(invalid, places, trusted, store)
        findings.add(kind, message, invalid.row.stream, invalid.row.number)


def _origin(
    invalid: InvalidMac, places: list[tuple[bytes, int]], trusted: TrustedKeys, store: TokenStore
) -> tuple[FindingKind, str]:
    row = invalid.row
    elsewhere = [place for place in places if place != (row.stream, row.number)]
    moved = _first_genuine([row._replace(stream=stream, number=at) for stream, at in elsewhere], trusted)
    if moved is not None:
        message = f"the vault wrote this event as number {moved.number} of stream {moved.stream.hex()}"
        return FindingKind.MOVED, message
    for page in chain.from_iterable(pages_about(store, reference) for reference in references_of(row)):
        same = [each for each in page if (each.mac, each.body) == (row.mac, row.body)]
        original = _first_genuine(same, trusted)
        if original is not None:
            return FindingKind.INSERTED, (
                f"this is a copy of the event that stands as number {original.number} in stream"
                f" {original.stream.hex()}"
            )
    if invalid.expected:
        return FindingKind.EDITED, "the MAC of this event is wrong: it was edited, or put there by hand"
    return FindingKind.INSERTED, "the vault writes no event here"


def _first_genuine(rows: list[SealedEvent], trusted: TrustedKeys) -> SealedEvent | None:
    return next((row for row, _, genuine in trusted.check(rows) if genuine), None)
