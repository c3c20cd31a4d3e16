"""The audit trail as lines for other tools: once, or as it grows; from its begin, or from a position.

Each look reads, stream by stream, what is still missing below the last number that was read, and then what is new. So
whatever order the events of several threads and processes become visible in, each is given once (see `position`). A
stream that can not be read on holds up no other one: the look goes on, and raises what it met in the end.

A look costs what is new, and beside that the names of all streams, and one read for each that did not close: of those
that gave nothing new when they were looked at last, who follows looks at QUIET_AT_ONCE, in turn.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Generator, Mapping
from contextlib import suppress
from typing import Final, Literal, TypeAlias

from tokenvault.audit.batch_event import parse
from tokenvault.audit.event import Event, is_of_purge
from tokenvault.audit.event_lines import event_line, unreadable_line
from tokenvault.audit.export import AuditEvent, events_of
from tokenvault.audit.macs import AuditKeys, CheckedEvent, check_events
from tokenvault.audit.ocsf import ocsf_event, unreadable_event
from tokenvault.audit.position import Place, Position, parse_position
from tokenvault.audit.purge_note import PurgedRuns
from tokenvault.audit.verify import pages
from tokenvault.errors import IntegrityError, InvalidInputError, boundary, iterator_boundary
from tokenvault.keys.port import KeyStore
from tokenvault.model import checks
from tokenvault.model.plain_text import plain_text
from tokenvault.stores.index_rows import NO_USE, cursor_of
from tokenvault.stores.port import INTEGER_MAX, STREAM_BYTES, TokenStore

LOOK_SECONDS: Final = 1.0
"""How long an export that follows waits from one look for new events to the next."""

PAGES_AT_ONCE: Final = 50
"""Pages of one stream that are read in one look: the others are not to wait for one that never ends."""

QUIET_AT_ONCE: Final = 1_000
"""Streams without news that one look of an export that follows tries again, beside those that had some."""

ABSENT_MAX: Final = 10_000
"""Streams whose place is kept though they are not there: one may be away for a while, as after a failover."""

Shape: TypeAlias = Literal["tokenvault", "ocsf"]

SHAPES: Final = ("tokenvault", "ocsf")
_NEW: Final = Place()


class AuditLine(str):
    """A line of an export, without its end."""

    _at: Position

    @boundary
    def __new__(cls, text: str, at: Position) -> AuditLine:
        """Made by `export_audit`."""
        line = super().__new__(cls, checks.instance("text", text, str))
        line._at = checks.instance("at", at, Position)
        return line

    @property
    def position(self) -> str:
        """How far the export had come with this line: `export_audit(after=...)` goes on behind it.

        A text of ASCII that grows with the number of streams, by some 50 bytes each.
        """
        return self._at.text()


@iterator_boundary
def export_audit(
    store: TokenStore,
    *,
    keys: KeyStore | None = None,
    follow: bool = False,
    after: str | None = None,
    shape: Shape = "tokenvault",
    stop: threading.Event | None = None,
) -> Generator[AuditLine, None, None]:
    """All events of a database as JSON Lines: a line of ASCII for each, or each item of a batch, without its end.

    By stream, oldest name first, and number; what became visible late, or came since, comes later. docs/audit.md has
    the names and values. "genuine" states whether the MAC is right, and is null without keys. An event that can not
    be read has "schema_version", "stream", "number", "item" and "genuine" only.

    Args:
        store: the database.
        keys: the vault's key store. Without it, no stream is known to have ended, and each is looked at again.
        follow: whether to wait for new events, LOOK_SECONDS (1) from one look to the next, and not to end.
        after: the `position` of a line: goes on with the next one.
        shape: "ocsf" for events of OCSF 1.8.0, class Entity Management (3004).
        stop: ends an export that follows once it is set, also while it waits; closing the generator does so between
            two lines.

    Raises:
        InvalidInputError: an argument is of another kind, or no position.
        KeyStoreError, TokenStoreError: as lines are read. Go on after the last line.
        IntegrityError: a stream has 10,000 malformed rows or gaps, and was not read on; after the lines before these,
            and those of the other streams.
    """
    checks.blocking_store("store", store)
    checks.true_or_false("follow", follow)
    shape = plain_text(shape)
    if shape not in SHAPES:
        raise InvalidInputError("shape is 'tokenvault' or 'ocsf'")
    ended = threading.Event() if stop is None else checks.instance("stop", stop, threading.Event)
    feed = Feed(store, keys, after=after, shape=shape)
    while not ended.is_set():
        for line in feed.look_again() if follow else feed.look():
            yield line
            if ended.is_set():
                return
        if not follow:
            return
        if not feed.more:
            ended.wait(LOOK_SECONDS)


class Feed:
    """What was read of a trail, and reads on.

    Attributes:
        more: whether the last look left anything for the next one that is there already.
    """

    def __init__(
        self,
        store: TokenStore,
        keys: KeyStore | None,
        *,
        after: str | None = None,
        shape: Shape = "tokenvault",
    ) -> None:
        self._store: Final = store
        self._keys: Final = None if keys is None else AuditKeys(keys)
        self._shape: Final = shape
        self._places: Mapping[bytes, Place] = {} if after is None else parse_position(after)
        self._read: list[tuple[bytes, Place]] = []
        self._gone: tuple[bytes, PurgedRuns] = (b"", PurgedRuns())
        self._place = Place()  # of the stream that is being read
        self._quiet: set[bytes] = set()  # streams that gave nothing new when they were looked at last
        self._tried = b""  # the last of these that was tried again
        self.more = False

    @property
    def position(self) -> str:
        """How far it has come, once a look is over."""
        return self._between().text()

    def _between(self) -> Position:
        return Position(self._places, self._read, len(self._read))

    def look(
        self, *, pages_at_once: int | None = None, quiet_at_once: int | None = None
    ) -> Generator[AuditLine, None, None]:
        """The lines that there are by now: of each stream so many pages, and of so many streams without news.

        Raises IntegrityError in the end, where a stream could not be read on.
        """
        self.more = False
        self._gone = b"", PurgedRuns()
        names = sorted(name for name in self._store.streams() if len(name) == STREAM_BYTES)
        self._places = _without_oldest_absent(self._between().all_places(), names)
        self._read = []  # not emptied: lines that were given go by it
        failed: IntegrityError | None = None
        for stream in self._due(names, quiet_at_once):
            try:
                yield from self._stream(stream, pages_at_once)
            except IntegrityError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def look_again(self) -> Generator[AuditLine, None, None]:
        """As `look`, of who follows: PAGES_AT_ONCE of each stream, and QUIET_AT_ONCE streams without news."""
        return self.look(pages_at_once=PAGES_AT_ONCE, quiet_at_once=QUIET_AT_ONCE)

    def _due(self, names: list[bytes], quiet_at_once: int | None) -> list[bytes]:
        """Of the streams that did not close, those to be looked at now."""
        due = [name for name in names if not self._places.get(name, _NEW).closed]
        quiet = [name for name in due if name in self._quiet]
        if quiet_at_once is None or len(quiet) <= quiet_at_once:
            return due
        first = bisect_right(quiet, self._tried)
        in_turn = [*quiet[first:], *quiet[:first]]
        self._tried = in_turn[quiet_at_once - 1]
        left_out = set(in_turn[quiet_at_once:])
        return [name for name in due if name not in left_out]

    def _stream(self, stream: bytes, pages_at_once: int | None) -> Generator[AuditLine, None, None]:
        before = self._place = self._places.get(stream, _NEW)
        self._quiet.discard(stream)
        try:
            yield from self._missing(stream)
            yield from self._new(stream, pages_at_once)
        finally:  # also where it can not be read on
            if self._place == before:
                self._quiet.add(stream)
            else:
                self._read.append((stream, self._place))

    def _missing(self, stream: bytes) -> Generator[AuditLine, None, None]:
        """The lines of what was missing and is there now."""
        for first, last in self._place.gaps:
            size = min(pages.PAGE, last - first + 1)
            for page in pages.stream_pages(self._store, stream, after=first - 1, size=size):
                if isinstance(page, int):  # it was told of before
                    if page >= last:
                        break
                    continue
                for checked in check_events(self._keys, [row for row in page if row.number <= last]):
                    if checked.genuine is not False:  # likewise, or it came since: verification tells of it
                        yield from self._row(checked)
                if page[-1].number >= last:
                    break
        self._place = self._place.without_settled()

    def _new(self, stream: bytes, pages_at_once: int | None) -> Generator[AuditLine, None, None]:
        """The lines of what comes behind the last number that was read."""
        malformed = 0
        for count, page in enumerate(pages.stream_pages(self._store, stream, after=self._place.last), 1):
            if isinstance(page, int):
                malformed += 1
                place = self._place.with_unreadable(page)
                yield from self._lines([self._unreadable(stream, page)], stream, page, place)
            else:
                for checked in check_events(self._keys, page):
                    yield from self._row(checked)
            if count == pages_at_once:
                self.more = True
                break
        if malformed >= pages.MALFORMED_MAX:
            raise IntegrityError(
                "too many rows of a stream are malformed: what follows them was not read",
                code="TOO_MANY_EVENTS",
            )

    def _row(self, checked: CheckedEvent) -> Generator[AuditLine, None, None]:
        row, _, genuine = checked
        place = self._place
        if row.number > place.last + 1:
            place = place.without_purged(row.number, self._purged(row.stream))
        # What no vault wrote makes no gap of its own, so that nobody makes too many for what the vaults write.
        place = place.with_unreadable(row.number) if genuine is False else place.with_row(row.number)
        try:
            event = parse(row)
            events = events_of(row, event)
        except IntegrityError:
            lines, checkpoint = [self._unreadable(row.stream, row.number)], None
        else:
            single = event if isinstance(event, Event) else None
            checkpoint = None if single is None else single.checkpoint
            lines = [self._readable(each, item, genuine, single) for item, each in enumerate(events)]
        if genuine and checkpoint is not None:
            place = place.with_checkpoint(row.number, checkpoint)
        yield from self._lines(lines, row.stream, row.number, place)

    def _lines(
        self, lines: list[dict[str, object]], stream: bytes, number: int, after: Place
    ) -> Generator[AuditLine, None, None]:
        """The lines of a row, but for those that were given; the last one comes with the place after the row."""
        before = self._place
        for count in range(before.lines_of(number) + 1, len(lines) + 1):
            self._place = after if count == len(lines) else before.with_lines(number, count)
            yield self._line(lines[count - 1], stream, self._place)
        self._place = after

    def _purged(self, stream: bytes) -> PurgedRuns:
        """What purges took out of a stream: read once in a look. Without keys, as the events say."""
        if self._gone[0] != stream:
            runs = PurgedRuns()
            for page in pages.pages_about(self._store, stream, cursor_of(NO_USE, stream, INTEGER_MAX)):
                for row, _, genuine in check_events(self._keys, [row for row in page if is_of_purge(row)]):
                    with suppress(IntegrityError):
                        note = None if genuine is False else Event.parse(row).purge
                        if note is not None:
                            runs.add(note)
            self._gone = stream, runs
        return self._gone[1]

    def _line(self, document: dict[str, object], stream: bytes, place: Place) -> AuditLine:
        at = Position(self._places, self._read, len(self._read), stream, place)
        return AuditLine(json.dumps(document, ensure_ascii=True), at)

    def _readable(
        self, event: AuditEvent, item: int, genuine: bool | None, single: Event | None
    ) -> dict[str, object]:
        line = event_line(event, item, genuine, single)
        return line if self._shape == "tokenvault" else ocsf_event(event, item, genuine, line)

    def _unreadable(self, stream: bytes, number: int) -> dict[str, object]:
        line = unreadable_line(stream, number)
        return line if self._shape == "tokenvault" else unreadable_event(stream, number, line)


def _without_oldest_absent(places: dict[bytes, Place], names: list[bytes]) -> dict[bytes, Place]:
    """The places of streams, without the oldest of those that are not there, past ABSENT_MAX."""
    absent = sorted(places.keys() - set(names))
    for name in absent[:-ABSENT_MAX]:
        del places[name]
    return places
