"""The audit trail as lines for other tools: once, or as it grows; from its begin, or from a position.

Each look reads, stream by stream, what is still missing below the last number that was read, and then what is new. So
whatever order the events of several threads and processes become visible in, each is given once (see `position`).
"""

from __future__ import annotations

import json
import threading
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
from tokenvault.stores.index_rows import NO_USE, cursor_of
from tokenvault.stores.port import INTEGER_MAX, STREAM_BYTES, TokenStore

LOOK_SECONDS: Final = 1.0
"""How long an export that follows waits from one look for new events to the next."""

PAGES_AT_ONCE: Final = 50
"""Pages of one stream that are read in one look: the others are not to wait for one that never ends."""

Shape: TypeAlias = Literal["tokenvault", "ocsf"]

SHAPES: Final = ("tokenvault", "ocsf")


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
        IntegrityError: in a stream with 10,000 malformed rows or gaps, after the lines before these.
    """
    checks.blocking_store("store", store)
    checks.true_or_false("follow", follow)
    if shape not in SHAPES:
        raise InvalidInputError("shape is 'tokenvault' or 'ocsf'")
    ended = threading.Event() if stop is None else checks.instance("stop", stop, threading.Event)
    feed = Feed(store, keys, after=after, shape=shape)
    while not ended.is_set():
        for line in feed.look(pages_at_once=PAGES_AT_ONCE if follow else None):
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
        self.more = False

    @property
    def position(self) -> str:
        """How far it has come, once a look is over."""
        return self._between().text()

    def _between(self) -> Position:
        return Position(self._places, self._read, len(self._read))

    def look(self, *, pages_at_once: int | None = None) -> Generator[AuditLine, None, None]:
        """The lines that there are by now."""
        self.more = False
        self._gone = b"", PurgedRuns()
        names = sorted(name for name in self._store.streams() if len(name) == STREAM_BYTES)
        present = set(names)
        places = self._between().all_places()
        self._places = {name: place for name, place in places.items() if name in present}
        self._read = []  # not emptied: lines that were given go by it
        for stream in names:
            place = self._places.get(stream, Place())
            if not place.closed:
                yield from self._stream(stream, place, pages_at_once)

    def _stream(
        self, stream: bytes, place: Place, pages_at_once: int | None
    ) -> Generator[AuditLine, None, None]:
        before = place
        place = yield from self._missing(stream, place)
        malformed = 0
        for count, page in enumerate(pages.stream_pages(self._store, stream, after=place.last), 1):
            if isinstance(page, int):
                malformed += 1
                place = place.with_unreadable()
                yield self._line(self._unreadable(stream, page), stream, place)
            else:
                for checked in check_events(self._keys, page):
                    place = yield from self._row(checked, place)
            if count == pages_at_once:
                self.more = True
                break
        if place != before:
            self._read.append((stream, place))
        if malformed >= pages.MALFORMED_MAX:
            raise IntegrityError(
                "too many rows of a stream are malformed: what follows them was not read",
                code="TOO_MANY_EVENTS",
            )

    def _missing(self, stream: bytes, place: Place) -> Generator[AuditLine, None, Place]:
        """The lines of what was missing and is there now."""
        for first, last in place.gaps:
            size = min(pages.PAGE, last - first + 1)
            for page in pages.stream_pages(self._store, stream, after=first - 1, size=size):
                if isinstance(page, int):  # it was told of before
                    if page >= last:
                        break
                    continue
                for checked in check_events(self._keys, [row for row in page if row.number <= last]):
                    place = yield from self._row(checked, place)
                if page[-1].number >= last:
                    break
        return place.without_settled()

    def _row(self, checked: CheckedEvent, place: Place) -> Generator[AuditLine, None, Place]:
        row, _, genuine = checked
        if row.number > place.last + 1:
            place = place.without_purged(row.number, self._purged(row.stream))
        after = place.with_row(row.number)
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
            after = after.with_checkpoint(row.number, checkpoint)
        given = place.lines_of(row.number)
        for count, line in enumerate(lines[given:], given + 1):
            whole = count == len(lines)
            yield self._line(line, row.stream, after if whole else place.with_lines(row.number, count))
        return after

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
