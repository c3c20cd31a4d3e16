"""A body with one field that no vault writes is refused, field by field, however it was sealed."""

from __future__ import annotations

import struct
from typing import Any, Final

import pytest

import tokenvault as tv
from tests.test_records import row_of
from tokenvault.audit.acknowledgement import LOSSES_MAX, Acknowledgement, Loss
from tokenvault.audit.checkpoint import CROSS_REFERENCES_MAX, Checkpoint, CrossReference
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.guard_note import Failure, FailureKind, LockOut
from tokenvault.audit.use_note import NOTE, UseNote
from tokenvault.errors import IntegrityError
from tokenvault.model.counters import COUNTERS_MAX, Counter, Usage
from tokenvault.model.kinds import Kind
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.pan import CardExpiry
from tokenvault.model.transaction import CRYPTOGRAM_COUNTER_MAX
from tokenvault.records import layout
from tokenvault.records.record import TokenRecord
from tokenvault.stores.port import SealedEvent

COUNTERS: Final = (Counter(b"a" * 16, 20, 3, 19, 2, 5), Counter(b"b" * 16, 20, 3, 19, 2, 5))
RECORD: Final = TokenRecord(
    token="9999120000001111", reference=b"r" * 16, pan_fingerprint=b"f" * 16, requestor="40012345678",
    program="p", revision=3, domain=b"d" * 32, status=TokenStatus.SUSPENDED,
    suspended_by=frozenset({Actor.ISSUER}), token_expiry=CardExpiry(2029, 12), assurance="10", par="V" * 29,
    usage=Usage(COUNTERS, 7, 9, 16, 11), created_ms=1, updated_ms=2, assurance_ms=3, purge_after_ms=4,
    batch=b"t" * 16, source=b"s" * 16, request=b"q" * 16, metadata=b"sealed",
)  # fmt: skip
FIELDS: Final = (
    "version", "parts", "status", "actors", "expiry", "domain", "created", "updated", "counters", "metadata"
)  # fmt: skip


def with_field(name: str, value: int) -> bytes:
    """The body with another value in its fixed part."""
    body = RECORD.body()
    fields = dict(zip(FIELDS, layout.BODY.unpack_from(body), strict=True))
    assert fields[name] != value
    return layout.BODY.pack(*{**fields, name: value}.values()) + body[layout.BODY.size :]


def with_part(part: struct.Struct, old: tuple[Any, ...], new: tuple[Any, ...]) -> bytes:
    """The body with other values in one of the parts behind it."""
    body = RECORD.body()
    assert body.count(part.pack(*old)) == 1
    return body.replace(part.pack(*old), part.pack(*new))


USED: Final = (8, 10, 17, 12)
FIRST, SECOND = ((*counter[:3], counter.previous_window + 1, *counter[4:]) for counter in COUNTERS)
RECORDS: Final = {
    **{f"version {value}": with_field("version", value) for value in (0, 1, 3, 255)},
    "a part that there is not": with_field("parts", 255),
    "a part that is not there": with_field("parts", 126),
    "no status": with_field("status", 0),
    "a status that there is not": with_field("status", 99),
    "nobody who suspended it": with_field("actors", 0),
    "somebody that there is not": with_field("actors", 32),
    "a month after the last": with_field("expiry", 1_201),
    "another time of issue than the row": with_field("created", 2),
    "one counter more": with_field("counters", 3),
    "one counter less": with_field("counters", 1),
    "more counters than there may be": with_field("counters", COUNTERS_MAX + 1),
    "more metadata": with_field("metadata", 7),
    "less metadata": with_field("metadata", 5),
    "an assurance in small letters": with_part(layout.ASSURANCE, (b"10", 3), (b"1a", 3)),
    "an assurance that was left out": with_part(layout.ASSURANCE, (b"10", 3), (b"\0\0", 0)),
    "an assurance without a method": with_part(layout.ASSURANCE, (b"10", 3), (b"\0\0", 3)),
    "a PAR in small letters": with_part(layout.PAR, (b"V" * 29,), (b"V" * 28 + b"v",)),
    "a short PAR": with_part(layout.PAR, (b"V" * 29,), (b"V" * 28,)),
    "a cryptogram above the last": with_part(layout.USED, USED, (CRYPTOGRAM_COUNTER_MAX + 2, *USED[1:])),
    "used after it was used last": with_part(layout.USED, USED, (*USED[:3], USED[2] + 1)),
    "a use that was left out": with_part(layout.USED, USED, (0, 0, 0, 0)),
    "a purge that was left out": with_part(layout.PURGE, (4,), (0,)),
    "a batch that was left out": with_part(layout.BATCH, (b"t" * 16,), (bytes(16),)),
    "a source that was left out": with_part(layout.SOURCE, (b"s" * 16,), (bytes(16),)),
    "a request that was left out": with_part(layout.REQUEST, (b"q" * 16,), (bytes(16),)),
    "a counter twice": with_part(layout.COUNTER, SECOND, (b"a" * 16, *SECOND[1:])),
    "counters out of order": with_part(layout.COUNTER, FIRST, (b"c" * 16, *FIRST[1:])),
    "a window before itself": with_part(layout.COUNTER, FIRST, (*FIRST[:3], FIRST[1] + 1, *FIRST[4:])),
}


def test_the_record_that_they_differ_from_is_taken() -> None:
    assert TokenRecord.parse(row_of(RECORD, RECORD.body())) == RECORD


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_with_one_field_that_no_vault_writes_is_refused(case: str) -> None:
    with pytest.raises(IntegrityError):
        TokenRecord.parse(row_of(RECORD, RECORDS[case]))


NOTE_OF_A_USE: Final = UseNote(
    kind=Kind.PURCHASE, content=b"c" * 16, use_id=b"u" * 16, original=b"o" * 16, amount=5, currency="EUR",
    counted=(b"k" * 16, b"l" * 16), score=3,
)  # fmt: skip
USE: Final = Event(
    time_ms=5, action=Action.DETOKENIZE, outcome=Outcome.DONE, requestor="40012345678", reference=b"r" * 16,
    transaction_id="tx-1", codes=("A", "B"), operator="ann", use=NOTE_OF_A_USE,
    failures=(Failure(FailureKind.MISS, b"a" * 16, b"d" * 8),),
)  # fmt: skip
CHECKPOINT: Final = Event(
    time_ms=5, action=Action.CHECKPOINT, outcome=Outcome.DONE, reference=b"r" * 16,
    checkpoint=Checkpoint(
        size=2, root=b"h" * 32, cross_references=(CrossReference(b"s" * 16, 3, b"l" * 32),), key_id=b"i" * 8,
        signature=b"g" * 64,
    ),
)  # fmt: skip
LOCKED: Final = Event(
    time_ms=5, action=Action.LOCK_OUT, outcome=Outcome.DONE, requestor="40012345678", lock_out=LockOut(9, 1)
)
LOST: Final = Event(
    time_ms=5, action=Action.ACKNOWLEDGE, outcome=Outcome.DONE, operator="ann",
    acknowledgement=Acknowledgement("why", (Loss(tv.FindingKind.REMOVED, b"s" * 16, 1, 2),)),
)  # fmt: skip
LOSSES: Final = b"\x03why" + (1).to_bytes(2)


def with_bytes(event: Event, old: bytes, new: bytes) -> tuple[Event, bytes]:
    """An event, and its body with other bytes."""
    assert event.body().count(old) == 1
    return event, event.body().replace(old, new)


def with_byte(event: Event, at: int, value: int) -> tuple[Event, bytes]:
    body = bytearray(event.body())
    assert body[at] != value
    body[at] = value
    return event, bytes(body)


def with_note(at: int, value: int | bytes) -> tuple[Event, bytes]:
    fields = list(NOTE.unpack(NOTE_OF_A_USE.fixed()))
    fields[at] = value
    return with_bytes(USE, NOTE_OF_A_USE.fixed(), NOTE.pack(*fields))


CLOSES: Final = struct.pack(">?Q", False, 2) + b"h" * 32
EVENTS: Final = {
    "version 0": with_byte(USE, 0, 0),
    "the version after": with_byte(USE, 0, 255),
    "no action": with_byte(USE, 9, 0),
    "an action that there is not": with_byte(USE, 9, 255),
    "no outcome": with_byte(USE, 10, 0),
    "an outcome that there is not": with_byte(USE, 10, 5),
    "letters that are not ASCII": with_bytes(USE, b"tx-1", b"tx-\xff"),
    "a text that is longer than the rest": with_bytes(USE, b"\x04tx-1", b"\xfftx-1"),
    "more codes than there are": with_bytes(USE, b"\x02\x01A\x01B", b"\xff\x01A\x01B"),
    "no kind of use": with_note(0, 0),
    "a kind of use that there is not": with_note(0, 10),
    "a flag that there is not": with_note(1, 9),
    "a currency that is not ASCII": with_note(3, b"EU\xff"),
    "a counter twice": with_bytes(USE, b"l" * 16, b"k" * 16),
    "counters out of order": with_bytes(USE, b"l" * 16, b"j" * 16),
    "more counters than there may be": with_bytes(
        USE,
        b"\x02" + b"k" * 16 + b"l" * 16,
        bytes((COUNTERS_MAX + 1,)) + b"".join(bytes((n,)) * 16 for n in range(1, COUNTERS_MAX + 2)),
    ),
    "no kind of failure": with_bytes(USE, b"\x01" + b"a" * 16, b"\x00" + b"a" * 16),
    "a kind of failure that there is not": with_bytes(USE, b"\x01" + b"a" * 16, b"\x04" + b"a" * 16),
    "more failures than there are": with_bytes(USE, b"\0\1\x01" + b"a" * 16, b"\0\2\x01" + b"a" * 16),
    "bytes behind the end": (USE, USE.body() + b"\0"),
    "a checkpoint that closes by another byte": with_bytes(CHECKPOINT, CLOSES, b"\x02" + CLOSES[1:]),
    "more rows that no vault wrote than there may be": with_bytes(
        CHECKPOINT, b"h" * 32 + b"\0\1", b"h" * 32 + bytes((CROSS_REFERENCES_MAX + 1, 1))
    ),
    "more cross-references than there may be": with_bytes(
        CHECKPOINT,
        b"h" * 32 + b"\0\1",
        b"h" * 32 + bytes((0, CROSS_REFERENCES_MAX + 1)) + bytes(CROSS_REFERENCES_MAX * 56),
    ),
    "a signature without a key": with_bytes(CHECKPOINT, b"i" * 8, bytes(8)),
    "a key without a signature": with_bytes(CHECKPOINT, b"g" * 64, b""),
    "a short signature": with_bytes(CHECKPOINT, b"g" * 64, b"g" * 63),
    "a lock-out cut short": (LOCKED, LOCKED.body()[:-1]),
    "a longer lock-out": (LOCKED, LOCKED.body() + b"\0"),
    "no kind of loss": with_bytes(LOST, LOSSES + b"\x02", LOSSES + b"\x00"),
    "a kind of loss that there is not": with_bytes(
        LOST, LOSSES + b"\x02", LOSSES + bytes((len(tv.FindingKind) + 1,))
    ),
    "more losses than there may be": (
        LOST,
        LOST._replace(
            acknowledgement=Acknowledgement(
                "why", (Loss(tv.FindingKind.REMOVED, b"s" * 16, 1, 2),) * (LOSSES_MAX + 1)
            )
        ).body(),
    ),
    "fewer losses than there are": with_bytes(LOST, b"\x03why\0\1", b"\x03why\0\0"),
    "a reason that is not ASCII": with_bytes(LOST, b"\x03why", b"\x03wh\xff"),
}


@pytest.mark.parametrize("event", [USE, CHECKPOINT, LOCKED, LOST], ids=lambda event: event.action.name)
def test_the_events_that_they_differ_from_are_taken(event: Event) -> None:
    assert Event.parse(SealedEvent(b"s" * 16, 1, event.reference, event.body(), bytes(16))) == event


@pytest.mark.parametrize("case", EVENTS)
def test_an_event_with_one_field_that_no_vault_writes_is_refused(case: str) -> None:
    event, body = EVENTS[case]
    assert body != event.body()
    with pytest.raises(IntegrityError):
        Event.parse(SealedEvent(b"s" * 16, 1, event.reference, body, bytes(16)))
