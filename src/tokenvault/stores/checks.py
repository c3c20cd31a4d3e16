"""What the token store port takes and gives: checks of arguments and of rows, for every adapter.

Plain functions, so that blocking adapters and those with coroutines use the same ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Final, TypeVar

from tokenvault.errors import IntegrityError, InvalidInputError
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.new_records import RecordBatch
from tokenvault.stores.port import (
    BODY_BYTES_MAX,
    DOCUMENT_BYTES_MAX,
    EVENT_BODY_BYTES_MAX,
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
    SealedEvent,
    SealedRecord,
    digest_of,
)

INTEGER_MIN: Final = -(2**63)
_COLUMNS_MIN: Final = 16
_OWNERS_CACHED_MAX: Final = 1_024
_Item = TypeVar("_Item")
_Records = TypeVar("_Records", bound=Sequence[SealedRecord])
_RECORD_TYPES: Final = (str, bytes, bytes, str, str, int, int, bytes, bytes)
_EVENT_TYPES: Final = (bytes, int, bytes, bytes, bytes)

_is_token = re.compile("[0-9]{13,19}").fullmatch
_is_token_prefix = re.compile("[0-9]{0,19}").fullmatch
_is_requestor = re.compile("[0-9]{11}").fullmatch
_is_program = re.compile("[\x00-\x7f]{1,64}", re.DOTALL).fullmatch
_are_tokens = re.compile("[0-9]{13,19}(?:\n[0-9]{13,19})*").fullmatch
_is_meta_name = re.compile(f"[ -~]{{1,{META_NAME_CHARACTERS_MAX}}}").fullmatch


# Shapes. Subclasses of str, bytes and int are refused: they could compare unlike what is stored.


def record_fits(record: SealedRecord) -> bool:
    """Whether each field has the type and shape that SealedRecord states."""
    if type(record) is not SealedRecord:
        return False
    token, reference, pan_fingerprint, requestor, program, revision, key_version, body, seal = record
    return (
        (
            type(token),
            type(reference),
            type(pan_fingerprint),
            type(requestor),
            type(program),
            type(revision),
            type(key_version),
            type(body),
            type(seal),
        )
        == _RECORD_TYPES
        and _is_token(token) is not None
        and len(requestor) == REQUESTOR_DIGITS
        and len(program) <= PROGRAM_CHARACTERS_MAX
        and _owner_fits(requestor, program)
        and len(reference) == REFERENCE_BYTES
        and len(pan_fingerprint) == PAN_FINGERPRINT_BYTES
        and len(body) <= BODY_BYTES_MAX
        and len(seal) == SEAL_BYTES
        and 1 <= revision <= INTEGER_MAX
        and 1 <= key_version <= INTEGER_MAX
    )


# A vault's are few, and one stands in each record. Of what does not fit some is kept, too: it is short.
@functools.lru_cache(_OWNERS_CACHED_MAX)
def _owner_fits(requestor: str, program: str) -> bool:
    return _is_requestor(requestor) is not None and _is_program(program) is not None


def event_fits(event: SealedEvent) -> bool:
    """Whether each field has the type and shape that SealedEvent states."""
    if type(event) is not SealedEvent:
        return False
    stream, number, reference, body, mac = event
    return (
        (type(stream), type(number), type(reference), type(body), type(mac)) == _EVENT_TYPES
        and len(stream) == STREAM_BYTES
        and len(reference) in (0, REFERENCE_BYTES)
        and len(body) <= EVENT_BODY_BYTES_MAX
        and len(mac) == MAC_BYTES
        and 1 <= number <= INTEGER_MAX
    )


def records_fit(records: Sequence[SealedRecord]) -> bool:
    """Whether `record_fits` says so of every one: the columns of many are looked at one by one."""
    if len(records) == 1:
        return record_fits(records[0])
    if len(records) < _COLUMNS_MIN or set(map(type, records)) != {SealedRecord}:
        return all(map(record_fits, records))
    columns = tuple(zip(*records, strict=True))
    if [set(map(type, column)) for column in columns] != [{kind} for kind in _RECORD_TYPES]:
        return False
    tokens, references, pan_fingerprints, requestors, programs, revisions, key_versions, bodies, seals = (
        columns
    )
    return (
        _are_separate_tokens(tokens)
        and all(map(_is_requestor, set(requestors)))
        and all(map(_is_program, set(programs)))
        and set(map(len, references)) == {REFERENCE_BYTES}
        and set(map(len, pan_fingerprints)) == {PAN_FINGERPRINT_BYTES}
        and max(map(len, bodies)) <= BODY_BYTES_MAX
        and set(map(len, seals)) == {SEAL_BYTES}
        and 1 <= min(revisions) <= max(revisions) <= INTEGER_MAX
        and 1 <= min(key_versions) <= max(key_versions) <= INTEGER_MAX
    )


def _are_separate_tokens(tokens: Sequence[str]) -> bool:
    joined = "\n".join(tokens)
    return _are_tokens(joined) is not None and joined.count("\n") == len(tokens) - 1


# Checks of arguments: each returns what the adapter gets, or raises InvalidInputError.


def checked_tokens(tokens: Sequence[str]) -> Sequence[str]:
    """Tokens to read: at most PAGE_MAX."""
    checked = _checked_items(tokens, "tokens")
    if len(checked) > 1 and set(map(type, checked)) == {str} and _are_separate_tokens(checked):
        return checked
    for token in checked:
        if type(token) is not str or _is_token(token) is None:
            raise InvalidInputError("a token is a str of 13 to 19 ASCII digits")
    return checked


def checked_records(
    records: Sequence[SealedRecord], revision_min: int, revision_max: int
) -> Sequence[SealedRecord]:
    """Records to write: at most PAGE_MAX, of distinct tokens, with revisions in a range."""
    if type(records) is RecordBatch:
        return _checked_batch(records, revision_min, revision_max)
    checked = _checked_items(records, "records")
    for record in checked:
        if not record_fits(record):
            raise InvalidInputError("a record has the field types and lengths that SealedRecord states")
        if not revision_min <= record.revision <= revision_max:
            raise InvalidInputError("a record is inserted with revision 1 and replaced with one above it")
    if len(checked) > 1 and len({record.token for record in checked}) != len(checked):
        raise InvalidInputError("the records of one call have distinct tokens")
    return checked


def _checked_batch(records: RecordBatch, revision_min: int, revision_max: int) -> RecordBatch:
    """As `checked_records`: it checked its columns itself, and one record has the other fields of all."""
    if len(records) > PAGE_MAX:
        raise InvalidInputError(f"at most {PAGE_MAX} records in one call; split the batch")
    if len(records):
        checked_records([records[0]], revision_min, revision_max)
    if len(set(records.tokens)) != len(records):
        raise InvalidInputError("the records of one call have distinct tokens")
    return records


def checked_pan_fingerprints(pan_fingerprints: bytes | Sequence[bytes]) -> Sequence[bytes]:
    """Accounts to find the records of: one, or at most PAGE_MAX."""
    checked = _checked_items(
        (pan_fingerprints,) if isinstance(pan_fingerprints, bytes) else pan_fingerprints, "pan_fingerprints"
    )
    for pan_fingerprint in checked:
        check_bytes(pan_fingerprint, PAN_FINGERPRINT_BYTES, "a pan_fingerprint")
    return checked


def checked_events(events: Sequence[SealedEvent]) -> Sequence[SealedEvent]:
    """Events to write: at most PAGE_MAX."""
    checked = _checked_items(events, "events")
    for event in checked:
        if not event_fits(event):
            raise InvalidInputError("an event has the field types and lengths that SealedEvent states")
    return checked


def check_bytes(value: bytes | None, length: int, what: str) -> None:
    """A byte string of one length."""
    if type(value) is not bytes or len(value) != length:
        raise InvalidInputError(f"{what} is {length} bytes")


def check_page(after: str, limit: int) -> None:
    """Where a page of records begins and how long it is."""
    if type(after) is not str or _is_token_prefix(after) is None:
        raise InvalidInputError("after is the last token seen, or empty")
    check_limit(limit)


def check_owner(requestor: str | None, program: str | None) -> None:
    """The filters of find."""
    if requestor is not None and (type(requestor) is not str or _is_requestor(requestor) is None):
        raise InvalidInputError("a requestor is 11 ASCII digits")
    if program is not None and (type(program) is not str or _is_program(program) is None):
        raise InvalidInputError("a program is 1 to 64 ASCII characters")


def check_key_version(key_version: int | None) -> None:
    """The filter of scan."""
    if key_version is not None and (type(key_version) is not int or not 1 <= key_version <= INTEGER_MAX):
        raise InvalidInputError("a key version is a whole number from 1")


def check_event_page(stream: bytes | None, reference: bytes | None, after: int, limit: int) -> None:
    """Which events to read."""
    if (stream is None) == (reference is None):
        raise InvalidInputError("events are read by stream or by reference: give exactly one of them")
    if stream is not None:
        check_bytes(stream, STREAM_BYTES, "a stream")
    else:
        check_bytes(reference, REFERENCE_BYTES, "a reference")
    if type(after) is not int or not (0 if stream is None else -1) <= after <= INTEGER_MAX:
        raise InvalidInputError("after is a whole number from 0, for a stream from -1, below 2**63")
    check_limit(limit)


def first_after(after: int) -> int:
    """The least number that a row may have that is to be read."""
    return after + 1 if after >= 0 else INTEGER_MIN


def check_document(document: bytes) -> None:
    """A domain document."""
    if type(document) is not bytes or len(document) > DOCUMENT_BYTES_MAX:
        raise InvalidInputError(f"a domain document is at most {DOCUMENT_BYTES_MAX} bytes")


def check_digest(digest: bytes, document: bytes) -> None:
    """A domain document's digest."""
    if type(digest) is not bytes or digest != digest_of(document):
        raise InvalidInputError("a domain document is kept under its SHA-256")


def check_meta(name: str, value: bytes = b"") -> None:
    """A named value."""
    if type(name) is not str or _is_meta_name(name) is None:
        raise InvalidInputError(f"a name is 1 to {META_NAME_CHARACTERS_MAX} printable ASCII characters")
    if type(value) is not bytes or len(value) > META_VALUE_BYTES_MAX:
        raise InvalidInputError(f"a named value is at most {META_VALUE_BYTES_MAX} bytes")


def _checked_items(items: Sequence[_Item], what: str) -> Sequence[_Item]:
    if type(items) is not list and type(items) is not tuple:
        if isinstance(items, str | bytes) or not isinstance(items, Sequence):
            raise InvalidInputError(f"{what} are a sequence, such as a list")
        items = tuple(items)
    if len(items) > PAGE_MAX:
        raise InvalidInputError(f"at most {PAGE_MAX} {what} in one call; split the batch")
    return items


def check_limit(limit: int) -> None:
    """How many rows to read."""
    if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
        raise InvalidInputError(f"limit is a whole number from 1 to {PAGE_MAX}")


# Checks of what an adapter read.


def sound_records(records: _Records) -> _Records:
    """The same records, or IntegrityError."""
    # isinstance is slow for an abstract class, and most are a list.
    fit = (
        records.fit()
        if type(records) is not list and isinstance(records, RecordColumns)
        else records_fit(records)
    )
    if not fit:
        raise IntegrityError("a stored token record has columns of other types or lengths than were written")
    return records


def sound_events(events: list[SealedEvent]) -> list[SealedEvent]:
    """The same list, or IntegrityError."""
    for event in events:
        if not event_fits(event):
            raise IntegrityError(
                "a stored audit event has columns of other types or lengths than were written"
            )
    return events


def sound_latest_checkpoints(events: list[SealedEvent]) -> list[SealedEvent]:
    """The same list, with MALFORMED_EVENT for each that is malformed: one bad row does not hide the others."""
    return [event if event_fits(event) else MALFORMED_EVENT for event in events]


def sound_document(digest: bytes, document: bytes | None) -> bytes | None:
    """The same document, or IntegrityError."""
    if document is not None and (type(document) is not bytes or digest_of(document) != digest):
        raise IntegrityError("a stored domain document is not the one of its digest")
    return document


def sound_value(value: bytes) -> bytes:
    """The same value, or IntegrityError."""
    if type(value) is not bytes or len(value) > META_VALUE_BYTES_MAX:
        raise IntegrityError("a stored named value is not the byte string that was written")
    return value


def sound_streams(streams: list[bytes]) -> list[bytes]:
    """The same list, or IntegrityError; the length of a name is for verifying to look at."""
    for stream in streams:
        if type(stream) is not bytes:
            raise IntegrityError("a stored event stream has another name than was written")
    return streams
