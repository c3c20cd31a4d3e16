"""Reads events in pages, also where rows are malformed: a store refuses to return those.

Memory: two pages are there at once, while the next is read. A page of a stream has bodies of PAGE_BYTES (16 MiB) and
one event more at most, whatever a stream holds, and PAGE rows; one that the index leads to has ABOUT_PAGE events.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tokenvault.errors import IntegrityError
from tokenvault.stores.port import MALFORMED_EVENT, SealedEvent, TokenStore

PAGE: Final = 2_000
ABOUT_PAGE: Final = 16
"""Events about one token that are read at once: one of a batch may be 1 MiB."""

MALFORMED_MAX: Final = 10_000
"""Malformed rows of a stream that are passed over; the events after so many are not read."""


def stream_pages(
    store: TokenStore, stream: bytes, *, after: int = 0, size: int = PAGE
) -> Iterator[list[SealedEvent] | int]:
    """The events of a stream by number, in pages; an int instead of a page is the number of a malformed row.

    Args:
        store: the database.
        stream: which.
        after: the number that the first page begins behind.
        size: events of the first page.
    """
    malformed = 0
    while malformed < MALFORMED_MAX:
        page = _page(store, stream, after, size)
        if page is None and size > 1:
            size //= 2
        elif page is None:  # the next row; if it is not at this number, those until it count as malformed too
            after += 1
            malformed += 1
            yield after
        elif not page:
            return
        else:
            yield page
            after, size = page[-1].number, min(2 * size, PAGE)


def begins_below_one(store: TokenStore, stream: bytes) -> bool:
    """Whether a row has a number below 1, which no event has. False where the first event is malformed as well."""
    return _page(store, stream, -1, 1) is None and _page(store, stream, 0, 1) is not None


def pages_about(store: TokenStore, reference: bytes, after: bytes = b"") -> Iterator[list[SealedEvent]]:
    """The events that the index leads to from a reference, in pages; malformed rows are left out."""
    more = True
    while more:  # a cursor only grows: the guard of stores sees to it
        events, after = store.events_about(reference, after=after, limit=ABOUT_PAGE)
        more = bool(after)
        yield [event for event in events if event != MALFORMED_EVENT]


def _page(store: TokenStore, stream: bytes, after: int, limit: int) -> list[SealedEvent] | None:
    try:
        return store.events(stream=stream, after=after, limit=limit)
    except IntegrityError:
        return None
