"""What a token store may answer: checks of what an adapter read, for every adapter.

The same is returned, or IntegrityError is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import ge
from typing import TypeVar

from tokenvault.errors import IntegrityError
from tokenvault.stores.checks import (
    event_fits,
    index_place_fits,
    is_ascii,
    is_bytes_up_to,
    is_cursor,
    is_digits,
    is_number,
    records_fit,
)
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.index_rows import IndexPlace
from tokenvault.stores.port import (
    MALFORMED_EVENT,
    META_VALUE_BYTES_MAX,
    PAGE_MAX,
    PROGRAM_CHARACTERS_MAX,
    REQUESTOR_DIGITS,
    STATUS_MAX,
    USE_EVENTS_MAX,
    EventPage,
    FoundUse,
    SealedEvent,
    SealedRecord,
    TokenGroup,
    digest_of,
)

R = TypeVar("R", bound=Sequence[SealedRecord])


def sound_records(records: R) -> R:
    """Records, each of the shape that was written."""
    found: Sequence[SealedRecord] = records
    if not (found.fit() if type(found) is RecordColumns else records_fit(found)):
        raise IntegrityError("a stored token record has columns of other types or lengths than were written")
    return records


def sound_record_if_any(record: SealedRecord | None) -> SealedRecord | None:
    """A record, or None."""
    return None if record is None else sound_records([record])[0]


def sound_events(events: list[SealedEvent]) -> list[SealedEvent]:
    """Events, each of the shape that was written."""
    if not all(map(event_fits, events)):
        raise IntegrityError("a stored audit event has columns of other types or lengths than were written")
    return events


def sound_use(name: str | bytes, found: FoundUse) -> FoundUse:
    """A record, the one that was asked for, and events of it: not too many to decide by."""
    if found.record is not None:
        sound_records([found.record])
        if name not in (found.record.token, found.record.reference):
            raise IntegrityError("the token store answered with another record than it was asked for")
    if len(found.events) > USE_EVENTS_MAX:
        raise IntegrityError(
            "too many audit events stand for this use: verify the trail", code="TOO_MANY_EVENTS"
        )
    sound_events(found.events)
    return found


def sound_uses(events: list[SealedEvent]) -> list[SealedEvent]:
    """Events of uses: not too many to decide by."""
    if len(events) > PAGE_MAX:
        raise IntegrityError(
            "too many audit events stand for these uses: verify the trail", code="TOO_MANY_EVENTS"
        )
    return sound_events(events)


def sound_groups(groups: list[TokenGroup]) -> list[TokenGroup]:
    """Groups as records state them."""
    if not all(map(_group_fits, groups)):
        raise IntegrityError("a stored token record has columns of other types or lengths than were written")
    return groups


def _group_fits(group: TokenGroup) -> bool:
    return (
        type(group) is TokenGroup
        and is_digits(group.requestor, REQUESTOR_DIGITS, REQUESTOR_DIGITS)
        and is_ascii(group.program, PROGRAM_CHARACTERS_MAX)
        and is_number(group.status, 1, STATUS_MAX)
    )


def sound_count(count: int) -> int:
    """A number of records."""
    if not is_number(count, 0):
        raise IntegrityError("the token store counted what is no number")
    return count


def sound_latest_checkpoints(events: list[SealedEvent]) -> list[SealedEvent]:
    """The events, with MALFORMED_EVENT for each that is malformed: one bad row does not hide the others."""
    return [event if event_fits(event) else MALFORMED_EVENT for event in events]


def sound_page_about(after: bytes, page: EventPage) -> EventPage:
    """Events of a reference, with MALFORMED_EVENT likewise, and a cursor that leads on: no reader goes in circles."""
    events, following = page
    if following != b"" and not (is_cursor(following) and following > after):
        raise IntegrityError("a stored row of the index has a number that was not written")
    return EventPage(sound_latest_checkpoints(events), following)


def sound_index_rows(after: IndexPlace, places: list[IndexPlace]) -> list[IndexPlace]:
    """Rows of the index, behind `after` and ascending: no reader goes in circles."""
    if not all(map(index_place_fits, places)) or any(map(ge, [after, *places], places)):
        raise IntegrityError("the stored index has rows of other types, lengths or order than were written")
    return places


def sound_document(digest: bytes, document: bytes | None) -> bytes | None:
    """A domain document, if there is one: the one of its digest."""
    if document is not None and (type(document) is not bytes or digest_of(document) != digest):
        raise IntegrityError("a stored domain document is not the one of its digest")
    return document


def sound_value(value: bytes) -> bytes:
    """A named value."""
    if not is_bytes_up_to(value, META_VALUE_BYTES_MAX):
        raise IntegrityError("a stored named value is not the byte string that was written")
    return value


def sound_value_if_any(value: bytes | None) -> bytes | None:
    """A named value, or None."""
    return None if value is None else sound_value(value)


def sound_streams(streams: list[bytes]) -> list[bytes]:
    """Names of streams, of any length: verification checks it."""
    if any(type(stream) is not bytes for stream in streams):
        raise IntegrityError("a stored event stream has another name than was written")
    return streams
