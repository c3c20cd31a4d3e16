"""Archives of audit events: all that are there, and what a purge is to delete."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Final

import attrs

from tokenvault.audit.archive import ArchiveFile
from tokenvault.audit.verify.pages import MALFORMED_MAX
from tokenvault.errors import IntegrityError
from tokenvault.maintenance.upkeep import Upkeep
from tokenvault.stores.port import STREAM_BYTES, SealedEvent

EVENT_PAGE: Final = 2_000
"""Events that are read, and reach the disk, at once."""

CHECKED_PAGE: Final = 1_000
"""Lines of an archive whose MACs are looked at in one call of the key store."""


@attrs.frozen
class Archived:
    """What `archive_events` did.

    Attributes:
        done: events that it added to the archive.
        unreadable: rows that are not what a vault wrote: they are not in the archive.
    """

    done: int
    unreadable: int


def open_archive(path: Path, at: Upkeep) -> ArchiveFile:
    """An archive to go on with, each line of which a vault wrote.

    Raises InvalidInputError, IntegrityError, KeyStoreError.
    """
    archive = ArchiveFile(path)
    with ExitStack() as opened:
        opened.callback(archive.close)
        for page in _pages(archive.events()):
            if len(at.versions.ring.audit.genuine(page)) < len(page):
                raise IntegrityError(
                    "an event of the archive is not what a vault wrote: name another archive, and keep this one",
                    code="ARCHIVE_UNREADABLE",
                )
        opened.pop_all()
    return archive


def _pages(events: Iterator[SealedEvent]) -> Iterator[list[SealedEvent]]:
    while page := list(islice(events, CHECKED_PAGE)):
        yield page


async def archive_events(path: Path, at: Upkeep) -> Archived:
    """Add all events that an archive does not hold."""
    done = unreadable = 0
    archive = await at.runtime.block(open_archive, path, at)
    with closing(archive):
        for stream in sorted(await at.store.streams()):
            if len(stream) != STREAM_BYTES:
                unreadable += 1
                continue
            for first, last in list(archive.places.missing(stream)):
                async for rows, malformed in event_pages(stream, first - 1, at):
                    own = [row for row in rows if last is None or row.number <= last]
                    genuine = await at.runtime.block(at.versions.ring.audit.genuine, own)
                    done += await at.runtime.block(archive.append, genuine)
                    unreadable += malformed + len(own) - len(genuine)
                    if len(own) < len(rows) or (last is not None and rows and rows[-1].number >= last):
                        break
    return Archived(done, unreadable)


async def event_pages(stream: bytes, after: int, at: Upkeep) -> AsyncIterator[tuple[list[SealedEvent], int]]:
    """The events of a stream behind a number, in pages, and how many malformed rows stand before the next page."""
    size, malformed = EVENT_PAGE, 0
    while malformed < MALFORMED_MAX:
        try:
            rows = await at.store.events(stream=stream, after=after, limit=size)
        except IntegrityError:
            if size > 1:
                size //= 2
                continue
            after, malformed = after + 1, malformed + 1
            yield [], 1
            continue
        if not rows:
            return
        yield rows, 0
        after, size = rows[-1].number, min(2 * size, EVENT_PAGE)
