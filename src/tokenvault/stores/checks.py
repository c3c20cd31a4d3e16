"""What the token store port takes and gives: checks of arguments and of rows, for every adapter.

`check_` and `checked_` refuse arguments with InvalidInputError; `sound_` refuses rows that an adapter read with
IntegrityError. Subclasses of str, bytes and int are refused, too: they could compare unlike what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar, get_type_hints

from tokenvault.errors import IntegrityError, InvalidInputError
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.index_rows import CURSOR_BYTES, USE_ID_BYTES, IndexRow, place_of
from tokenvault.stores.new_records import IndexColumns, RecordBatch
from tokenvault.stores.port import (
    INTEGER_MAX,
    MAC_BYTES,
    MALFORMED_EVENT,
    META_NAME_CHARACTERS_MAX,
    META_VALUE_BYTES_MAX,
    PAGE_MAX,
    PAN_FINGERPRINT_BYTES,
    PROGRAM_CHARACTERS_MAX,
    REFERENCE_BYTES,
    REQUESTOR_DIGITS,
    SEAL_BYTES,
    STREAM_BYTES,
    TOKEN_DIGITS_MAX,
    TOKEN_DIGITS_MIN,
    EventPage,
    Fence,
    SealedEvent,
    SealedRecord,
    digest_of,
)
from tokenvault.stores.write_limits import (
    BODY_BYTES_MAX,
    DOCUMENT_BYTES_MAX,
    EVENT_BODY_BYTES_MAX,
    ROW_BYTES,
    WriteLimits,
)

T = TypeVar("T")
R = TypeVar("R", bound=Sequence[SealedRecord])

_RECORD_TYPES: Final = (*get_type_hints(SealedRecord).values(),)
_EVENT_TYPES: Final = (*get_type_hints(SealedEvent).values(),)[:-1]


def _is_digits(value: object, least: int, most: int) -> bool:
    return (
        type(value) is str
        and least <= len(value) <= most
        and value.isascii()
        and (value.isdigit() or not value)
    )


def _is_ascii(value: object, most: int) -> bool:
    return type(value) is str and 1 <= len(value) <= most and value.isascii()


def _is_bytes(value: object, length: int) -> bool:
    return type(value) is bytes and len(value) == length


def _is_bytes_up_to(value: object, length_max: int) -> bool:
    return type(value) is bytes and len(value) <= length_max


def _is_number(value: object, least: int, most: int = INTEGER_MAX) -> bool:
    return type(value) is int and least <= value <= most


def record_fits(record: SealedRecord) -> bool:
    """Whether each field has the type and shape that SealedRecord states."""
    if type(record) is not SealedRecord or (*map(type, record),) != _RECORD_TYPES:
        return False
    digits = record.token + record.requestor
    return (
        digits.isdigit()
        and digits.isascii()
        and TOKEN_DIGITS_MIN <= len(record.token) <= TOKEN_DIGITS_MAX
        and len(record.requestor) == REQUESTOR_DIGITS
        and record.program.isascii()
        and 1 <= len(record.program) <= PROGRAM_CHARACTERS_MAX
        and len(record.reference) == REFERENCE_BYTES
        and len(record.pan_fingerprint) == PAN_FINGERPRINT_BYTES
        and 1 <= record.revision <= INTEGER_MAX
        and 1 <= record.key_version <= INTEGER_MAX
        and len(record.body) <= BODY_BYTES_MAX
        and len(record.seal) == SEAL_BYTES
    )


def records_fit(records: Sequence[SealedRecord]) -> bool:
    """Whether `record_fits` holds for every record."""
    return all(map(record_fits, records))


def event_fits(event: SealedEvent) -> bool:
    """Whether each field has the type and shape that SealedEvent states."""
    return (
        type(event) is SealedEvent
        and (*map(type, event[:-1]),) == _EVENT_TYPES
        and len(event.stream) == STREAM_BYTES
        and 1 <= event.number <= INTEGER_MAX
        and len(event.reference) in (0, REFERENCE_BYTES)
        and len(event.body) <= EVENT_BODY_BYTES_MAX
        and len(event.mac) == MAC_BYTES
    )


# Arguments: what is checked is returned as the adapter takes it.


def checked_tokens(tokens: Sequence[str]) -> Sequence[str]:
    """Tokens to read: at most PAGE_MAX."""
    checked = _checked_items(tokens, "tokens")
    for token in checked:
        if not _is_digits(token, TOKEN_DIGITS_MIN, TOKEN_DIGITS_MAX):
            raise InvalidInputError("a token is a str of 13 to 19 ASCII digits")
    return checked


def checked_records(
    records: Sequence[SealedRecord], revision_min: int, revision_max: int
) -> Sequence[SealedRecord]:
    """Records to write: at most PAGE_MAX, of distinct tokens, with revisions in a range."""
    if type(records) is RecordBatch:  # it checked its columns itself; what the records have in common is left
        _check_count(records, "records")
        _check_each_record(records[:1], revision_min, revision_max)
        distinct = len(set(records.tokens))
    else:
        records = _checked_items(records, "records")
        _check_each_record(records, revision_min, revision_max)
        distinct = len({record.token for record in records})
    if distinct != len(records):
        raise InvalidInputError("the records of one call have distinct tokens")
    return records


def _check_each_record(records: Sequence[SealedRecord], revision_min: int, revision_max: int) -> None:
    for record in records:
        if not record_fits(record):
            raise InvalidInputError("a record has the field types and lengths that SealedRecord states")
        if not revision_min <= record.revision <= revision_max:
            raise InvalidInputError("a record is inserted with revision 1 and replaced with one above it")


def checked_pan_fingerprints(pan_fingerprints: bytes | Sequence[bytes]) -> Sequence[bytes]:
    """PAN fingerprints to find the records of: one, or at most PAGE_MAX."""
    several = (pan_fingerprints,) if isinstance(pan_fingerprints, bytes) else pan_fingerprints
    checked = _checked_items(several, "pan_fingerprints")
    for pan_fingerprint in checked:
        check_bytes(pan_fingerprint, PAN_FINGERPRINT_BYTES, "a pan_fingerprint")
    return checked


def checked_events(events: Sequence[SealedEvent]) -> Sequence[SealedEvent]:
    """Events to write: at most PAGE_MAX."""
    checked = _checked_items(events, "events")
    if not all(map(event_fits, checked)):
        raise InvalidInputError("an event has the field types and lengths that SealedEvent states")
    if not all(_index_fits(event.index_rows) for event in checked):
        raise InvalidInputError("an event's index is a tuple of distinct IndexRow, or an IndexColumns")
    return checked


def _index_fits(index: Sequence[IndexRow]) -> bool:
    if type(index) is IndexColumns:  # it checked itself
        return True
    return (
        type(index) is tuple
        and len(set(index)) == len(index)
        and all(
            type(row) is IndexRow
            and _is_bytes(row.reference, REFERENCE_BYTES)
            and _is_bytes(row.use_id, USE_ID_BYTES)
            for row in index
        )
    )


def checked_fence(fence: Fence, records: Sequence[SealedRecord] = ()) -> Fence:
    """Tokens and revisions: at most PAGE_MAX, of distinct tokens, none of which is replaced."""
    if not fence:
        return ()
    checked = _checked_items(fence, "tokens of a fence")
    for item in checked:
        fits = (
            type(item) is tuple and len(item) == 2 and _is_digits(item[0], TOKEN_DIGITS_MIN, TOKEN_DIGITS_MAX)
        )
        if not (fits and _is_number(item[1], 1)):
            raise InvalidInputError("a fence is pairs of a token and the revision of its record")
    if len({*(token for token, _ in checked), *(each.token for each in records)}) < len(checked) + len(
        records
    ):
        raise InvalidInputError(
            "the tokens of a fence are distinct, and none is of a record that is replaced"
        )
    return checked


def check_write(
    limits: WriteLimits,
    records: Sequence[SealedRecord],
    events: Sequence[SealedEvent],
    document: bytes | None = None,
    fence: Fence = (),
) -> None:
    """What is written in one step, and looked at in it: within what the store takes."""
    rows = len(records) + len(events) + len(fence) + (document is not None)
    size = len(document or b"")
    for event in events:
        rows += len(event.index_rows)
        size += len(event.body)
        if len(event.body) > limits.event_bytes:
            raise InvalidInputError(f"this store takes events of at most {limits.event_bytes} bytes")
    if rows > limits.rows:
        raise InvalidInputError(f"this store takes at most {limits.rows} rows in one write")
    size += ROW_BYTES * rows
    if size + len(records) * BODY_BYTES_MAX > limits.bytes:  # seldom, so that bodies are seldom looked at
        size += sum(len(record.body) for record in records)
    if size > limits.bytes:
        raise InvalidInputError(f"this store takes at most {limits.bytes} bytes in one write")


def check_bytes(value: bytes | None, length: int, what: str) -> None:
    """A byte string of one length."""
    if not _is_bytes(value, length):
        raise InvalidInputError(f"{what} is {length} bytes")


def check_page(after: str, limit: int) -> None:
    """Where a page of records begins and how long it is."""
    if not _is_digits(after, 0, TOKEN_DIGITS_MAX):
        raise InvalidInputError("after is the last token seen, or empty")
    check_limit(limit)


def check_owner(requestor: str | None, program: str | None) -> None:
    """The filters of find."""
    if requestor is not None and not _is_digits(requestor, REQUESTOR_DIGITS, REQUESTOR_DIGITS):
        raise InvalidInputError("a requestor is 11 ASCII digits")
    if program is not None and not _is_ascii(program, PROGRAM_CHARACTERS_MAX):
        raise InvalidInputError("a program is 1 to 64 ASCII characters")


def check_key_version(key_version: int | None) -> None:
    """The filter of scan."""
    if key_version is not None and not _is_number(key_version, 1):
        raise InvalidInputError("a key version is a whole number from 1")


def check_stream_page(stream: bytes, after: int, limit: int) -> None:
    """Which events of a stream to read."""
    check_bytes(stream, STREAM_BYTES, "a stream")
    if not _is_number(after, -1):
        raise InvalidInputError("after is a whole number from -1, below 2**63")
    check_limit(limit)


def check_page_about(reference: bytes, after: bytes, limit: int) -> None:
    """Which events of a reference to read."""
    check_bytes(reference, REFERENCE_BYTES, "a reference")
    if not (_is_bytes(after, 0) or _is_cursor(after)):
        raise InvalidInputError("after is what the page before said, or empty")
    check_limit(limit)


def _is_cursor(value: object) -> bool:
    return isinstance(value, bytes) and _is_bytes(value, CURSOR_BYTES) and place_of(value)[2] <= INTEGER_MAX


def check_limit(limit: int) -> None:
    """How many rows to read."""
    if not _is_number(limit, 1, PAGE_MAX):
        raise InvalidInputError(f"limit is a whole number from 1 to {PAGE_MAX}")


def check_document(document: bytes) -> None:
    """A domain document."""
    if not _is_bytes_up_to(document, DOCUMENT_BYTES_MAX):
        raise InvalidInputError(f"a domain document is at most {DOCUMENT_BYTES_MAX} bytes")


def check_digest(digest: bytes, document: bytes) -> None:
    """A domain document's digest."""
    if type(digest) is not bytes or digest != digest_of(document):
        raise InvalidInputError("a domain document is kept under its SHA-256")


def check_meta(name: str, value: bytes = b"") -> None:
    """A named value."""
    if not (_is_ascii(name, META_NAME_CHARACTERS_MAX) and name.isprintable()):
        raise InvalidInputError(f"a name is 1 to {META_NAME_CHARACTERS_MAX} printable ASCII characters")
    if not _is_bytes_up_to(value, META_VALUE_BYTES_MAX):
        raise InvalidInputError(f"a named value is at most {META_VALUE_BYTES_MAX} bytes")


def _checked_items(items: Sequence[T], what: str) -> Sequence[T]:
    if type(items) is not list and type(items) is not tuple:
        if isinstance(items, str | bytes) or not isinstance(items, Sequence):
            raise InvalidInputError(f"{what} are a sequence, such as a list")
        items = tuple(items)
    _check_count(items, what)
    return items


def _check_count(items: Sequence[object], what: str) -> None:
    if len(items) > PAGE_MAX:
        raise InvalidInputError(f"at most {PAGE_MAX} {what} in one call; split the batch")


# What an adapter read: the same is returned, or IntegrityError is raised.


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


def sound_latest_checkpoints(events: list[SealedEvent]) -> list[SealedEvent]:
    """The events, with MALFORMED_EVENT for each that is malformed: one bad row does not hide the others."""
    return [event if event_fits(event) else MALFORMED_EVENT for event in events]


def sound_page_about(after: bytes, page: EventPage) -> EventPage:
    """Events of a reference, with MALFORMED_EVENT likewise, and a cursor that leads on: no reader goes in circles."""
    events, following = page
    if following != b"" and not (_is_cursor(following) and following > after):
        raise IntegrityError("a stored row of the index has a number that was not written")
    return EventPage(sound_latest_checkpoints(events), following)


def sound_document(digest: bytes, document: bytes | None) -> bytes | None:
    """A domain document, if there is one: the one of its digest."""
    if document is not None and (type(document) is not bytes or digest_of(document) != digest):
        raise IntegrityError("a stored domain document is not the one of its digest")
    return document


def sound_value(value: bytes) -> bytes:
    """A named value."""
    if not _is_bytes_up_to(value, META_VALUE_BYTES_MAX):
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
