"""Archives of audit events: files of JSON Lines that hold them as the database did, so that they verify the same.

The first line is {"format": "tokenvault-archive-1"}. Each other one is an event:

    {"stream": 32 hexadecimal digits, "number": 1, "reference": hexadecimal, "body": base64, "mac": hexadecimal}

Lines are only added, and are on the disk once `ArchiveFile.append` returns. A kill leaves at most a line without its
end, which is cut off when the file is opened to write again. Memory: some 200 bytes for each SEGMENT lines.
"""

from __future__ import annotations

import base64
import bisect
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, Final

from tokenvault.errors import IntegrityError, InvalidInputError
from tokenvault.interrupts import ignoring, is_interrupt
from tokenvault.stores import checks
from tokenvault.stores.port import SealedEvent

FORMAT: Final = "tokenvault-archive-1"
HEADER: Final = f'{{"format": "{FORMAT}"}}\n'.encode()
LINE_BYTES_MAX: Final = 2**21
"""The longest line: an event of a batch has 1 MiB."""

SEGMENT: Final = 1_000
"""Lines of a stream in a row that are found by one place in the file."""

_NUMBER: Final = itemgetter(0)


def archive_path(name: str, value: object) -> Path:
    """The path of an archive, as an argument. Raises InvalidInputError."""
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and path and "\0" not in path:
            return Path(path)
    raise InvalidInputError(f"{name} is the path of an archive")


def line_of(event: SealedEvent) -> bytes:
    """An event as a line."""
    document = {
        "stream": event.stream.hex(),
        "number": event.number,
        "reference": event.reference.hex(),
        "body": base64.b64encode(event.body).decode("ascii"),
        "mac": event.mac.hex(),
    }
    return json.dumps(document).encode("ascii") + b"\n"


def event_of(line: bytes) -> SealedEvent:
    """The event of a line. Raises IntegrityError for what `line_of` does not give."""
    with suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
        fields = json.loads(line)
        event = SealedEvent(
            bytes.fromhex(fields["stream"]),
            fields["number"],
            bytes.fromhex(fields["reference"]),
            base64.b64decode(fields["body"]),
            bytes.fromhex(fields["mac"]),
        )
        if checks.event_fits(event) and line_of(event) == line:
            return event
    raise IntegrityError("a line of the archive is not one that was written there", code="ARCHIVE_UNREADABLE")


class ArchivePlaces:
    """Which events a file holds, and where: by stream, runs of numbers whose lines follow one another."""

    def __init__(self) -> None:
        self._streams: dict[bytes, list[tuple[int, int, int]]] = {}  # first and last number, place; ascending
        self._newest: tuple[bytes, int] = (b"", 0)  # stream and number of the line before

    def add(self, event: SealedEvent, place: int) -> None:
        """Note the place of the next line, unless an earlier one is of the same event."""
        if self.has(event):
            # It is found where it stood first: what comes next does not follow it there.
            self._newest = (b"", 0)
            return
        runs = self._streams.setdefault(event.stream, [])
        at = bisect.bisect(runs, event.number, key=_NUMBER) - 1
        follows = self._newest == (event.stream, event.number - 1) and at >= 0
        self._newest = event.stream, event.number
        if follows and runs[at][1] == event.number - 1 and event.number - runs[at][0] < SEGMENT:
            runs[at] = (runs[at][0], event.number, runs[at][2])
        else:
            runs.insert(at + 1, (event.number, event.number, place))

    def has(self, event: SealedEvent) -> bool:
        """Whether a line is of the stream and number of an event."""
        return self.run(event.stream, event.number) is not None

    def run(self, stream: bytes, number: int) -> tuple[int, int, int] | None:
        """The first and last number of the lines in a row among which that of a number is, and their place."""
        runs = self._streams.get(stream, [])
        at = bisect.bisect(runs, number, key=_NUMBER) - 1
        return runs[at] if at >= 0 and number <= runs[at][1] else None

    def missing(self, stream: bytes) -> Iterator[tuple[int, int | None]]:
        """The first and last of the numbers that it does not hold, run by run; the last run has no end."""
        following = 1
        for first, last, _ in self._streams.get(stream, []):
            if first > following:
                yield following, first - 1
            following = last + 1
        yield following, None


class ArchiveFile:
    """An archive that events are added to: a new file that its owner alone can read, or one that is gone on with.

    Raises:
        InvalidInputError: the file can not be opened or written, another process writes it, or it is no archive.
        IntegrityError: a line is not one that was written there.
    """

    def __init__(self, path: Path) -> None:
        self.places: Final = ArchivePlaces()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file: Final = os.fdopen(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR), "r+b")
        except OSError as error:
            if is_interrupt(error):  # a time limit may be a TimeoutError
                raise
            raise _refused(error) from None
        try:
            self._begin(path)
        except BaseException:
            self.close()
            raise

    def _begin(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if is_interrupt(error):
                raise
            raise InvalidInputError("another process writes the archive") from None
        begun = self._file.read(len(HEADER))
        if begun != HEADER and HEADER.startswith(begun):  # new, or killed as it was made
            self._file.seek(0)
            self._file.truncate()
            self._write(HEADER)
            _sync_directory(path.parent)
        self._file.seek(0)
        self._end = len(HEADER)

    def events(self) -> Iterator[SealedEvent]:
        """The events that it holds, in the order of its lines; after them, more may be added."""
        for event, place in _lines(self._file):
            self.places.add(event, place)
            yield event
        self._end = self._file.tell()
        self._file.truncate()

    def append(self, events: Sequence[SealedEvent]) -> int:
        """Add those events that it does not hold; they are on the disk then. Returns how many it added."""
        new = [event for event in events if not self.places.has(event)]
        lines = [line_of(event) for event in new]
        self._write(b"".join(lines))
        for event, line in zip(new, lines, strict=True):
            self.places.add(event, self._end)
            self._end += len(line)
        return len(new)

    def _write(self, text: bytes) -> None:
        """Write at the end, and wait until it is on the disk."""
        try:
            self._file.write(text)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            if is_interrupt(error):  # a time limit may be a TimeoutError
                raise
            raise _refused(error) from None

    def close(self) -> None:
        """Close the file."""
        with ignoring(OSError):  # what was appended is on the disk; what found no room there is tried again
            self._file.close()


class ArchiveReader:
    """An archive that is read. Raises as ArchiveFile; the file may be written meanwhile."""

    def __init__(self, path: Path) -> None:
        self._places: Final = ArchivePlaces()
        try:
            self._file: Final = path.open("rb")
        except OSError as error:
            if is_interrupt(error):  # a time limit may be a TimeoutError
                raise
            raise _refused(error) from None
        try:
            for event, place in _lines(self._file):
                self._places.add(event, place)
        except BaseException:
            self._file.close()
            raise

    def events(self, stream: bytes, first: int, last: int) -> Iterator[SealedEvent]:
        """The events of a stream from first to last, up to the first that is not there."""
        while first <= last and (run := self._places.run(stream, first)) is not None:
            self._file.seek(run[2])
            for number in range(run[0], min(last, run[1]) + 1):
                event = event_of(self._file.readline(LINE_BYTES_MAX))
                if event[:2] != (stream, number):  # another process writes the file anew
                    return
                if number >= first:
                    yield event
            first = run[1] + 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines(file: BinaryIO) -> Iterator[tuple[SealedEvent, int]]:
    """The events of a file and the places of their lines; it stands behind the last whole line in the end."""
    file.seek(0)
    if file.readline(LINE_BYTES_MAX) != HEADER:
        raise InvalidInputError("the file is no archive of audit events")
    place = len(HEADER)
    while (line := file.readline(LINE_BYTES_MAX)).endswith(b"\n"):
        yield event_of(line), place
        place += len(line)
    if len(line) == LINE_BYTES_MAX:
        event_of(line)  # it is none
    file.seek(place)


def _sync_directory(path: Path) -> None:
    """Make sure that a new file's name is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(error: OSError) -> InvalidInputError:
    """Without the path: it is the caller's, and may hold anything."""
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return InvalidInputError(f"the archive can not be used ({reason})")
