"""The event of a batch: the bytes of its layout, and what no batch writes, field by field."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest

import tokenvault as tv
from tokenvault.audit.batch_event import (
    BATCH,
    ITEMS_MAX,
    NO_NAME,
    USES_MAX,
    BatchEvent,
    Kind,
    changes_of,
    parse,
    purged_by,
    references_of,
)
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.guard_note import Failure, FailureKind, account_row
from tokenvault.audit.use_note import UseNote
from tokenvault.stores.index_rows import NO_USE, IndexRow
from tokenvault.stores.port import SealedEvent

REFERENCES = b"p" * 16 + b"q" * 16
TWO_KINDS = b"\1\x0b40012345678\0\1\0" + b"\3\0\3ann\0"
NOTE = struct.pack(">BBQ3s16s16s16sH", 1, 1, 5, b"EUR", b"c" * 16, b"u" * 16, bytes(16), 0)


def body(**fields: Any) -> bytes:
    """The body of a batch of two items of two kinds, from its layout, not by the code."""
    values: dict[str, Any] = {
        "version": 2, "name": bytes(16), "time": 5, "action": Action.DELETE, "count": 2, "kind_count": 2,
        "kinds": TWO_KINDS, "codes": b"\1\1A", "id_count": 2, "ids": b"\4tx-1\0",
        "revisions": struct.pack(">BQQ", 1, 3, 4), "kind_of": b"\0\0\0\1", "id_of": b"\0\0\0\0\0\0\0\1",
        "references": REFERENCES, "uses": b"", "rest": b"",
    } | fields  # fmt: skip
    fixed = [values.pop(name) for name in ("version", "name", "time", "action", "count", "kind_count")]
    values["ids"] = struct.pack(">I", values.pop("id_count")) + values["ids"]
    return struct.pack(">B16sQBIH", *fixed) + b"".join(values.values())


def uses(
    sets: int = 1, keys: bytes = b"\0", counted_of: bytes = b"", notes: bytes = NOTE + bytes(63)
) -> bytes:
    """What the body of a batch of uses has more."""
    return body(action=Action.DETOKENIZE, uses=struct.pack(">H", sets) + keys + counted_of + notes)


KEYS = b"\1" + b"k" * 16


def row(encoded: bytes) -> SealedEvent:
    return SealedEvent(b"s" * 16, 7, BATCH, encoded, bytes(16))


@pytest.mark.parametrize(
    "encoded", [body(), uses(), uses(2, b"\0" + KEYS, b"\0\0\0\1")], ids=["changes", "uses", "counters"]
)
def test_the_events_that_the_others_differ_from_are_taken(encoded: bytes) -> None:
    event = parse(row(encoded))
    assert isinstance(event, BatchEvent)
    assert event.body() == encoded
    assert [item.requestor for item in event.items()] == ["40012345678", None]
    assert [item.operator for item in event.items()] == [None, "ann"]
    assert [item.transaction_id for item in event.items()] == ["tx-1", None]
    assert [item.revision for item in event.items()] == [3, 4]
    assert len(event.notes) == (2 if event.action is Action.DETOKENIZE else 0)


def of_items(count: int) -> bytes:
    """The body of a batch of so many items of one kind."""
    return body(
        count=count, kind_count=1, kinds=b"\1\0\0\0", codes=b"\0", id_count=1, ids=b"\0",
        revisions=struct.pack(">BQ", 0, 3), kind_of=b"", id_of=b"", references=bytes(16) * count,
    )  # fmt: skip


def test_an_event_has_as_many_items_as_the_layout_says() -> None:
    assert (ITEMS_MAX, USES_MAX) == (8_000, 4_000)
    for count in (1, 8_000):
        event = parse(row(of_items(count)))
        assert isinstance(event, BatchEvent)
        assert len(event.references) == count


REFUSED = {
    "no items": body(count=0, kind_of=b"", id_of=b"", references=b"", revisions=struct.pack(">BQ", 0, 3)),
    "more items than a batch has": of_items(8_001),
    "no kind": body(kind_count=0, kinds=b"", codes=b"\0", kind_of=b""),
    "no outcome": body(kinds=b"\0" + TWO_KINDS[1:]),
    "an action that there is not": body(action=255),
    "a code that there is not": body(codes=b"\0"),
    "a code that nothing names": body(codes=b"\2\1A\1B"),
    "no transaction id": body(id_count=0, ids=b"", id_of=b""),
    "more transaction ids than items": body(id_count=3, ids=b"\4tx-1\0\4tx-2"),
    "a transaction id twice": body(ids=b"\4tx-1\4tx-1"),
    "a transaction id that nothing has": body(id_of=bytes(8)),
    "transaction ids out of order": body(id_of=b"\0\0\0\1\0\0\0\0"),
    "a kind twice": body(kinds=2 * TWO_KINDS[-7:]),
    "kinds out of order": body(kind_of=b"\0\1\0\0"),
    "a kind that nothing has": body(kind_of=bytes(4)),
    "a kind that there is not": body(kind_of=b"\0\0\0\2"),
    "one revision spelt twice": body(revisions=struct.pack(">BQQ", 1, 3, 3)),
    "a name of what issued nothing": body(name=b"n" * 16),
    "bytes behind the end": body(rest=b"\0\0x"),
    "a reference less": body()[:-16],
    "no set of counters": uses(0, b""),
    "no set of counters and no note": uses(0, b"", notes=bytes(126)),
    "more sets of counters than items": uses(3, b"\0" + KEYS + KEYS[:-1] + b"l", b"\0\0\0\1"),
    "a set of counters that nothing has": uses(2, b"\0" + KEYS, b"\0\0\0\0"),
    "a set of counters that there is not": uses(2, b"\0" + KEYS, b"\0\0\0\2"),
    "a note of no use that says something": uses(notes=NOTE + bytes(62) + b"\1"),
    "a kind of use that there is not": uses(notes=NOTE + b"\xff" + bytes(62)),
    "a flag that there is not": uses(notes=NOTE[:1] + b"\x08" + NOTE[2:] + bytes(63)),
    "a note cut short": uses()[:-1],
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_event_of_a_batch_with_one_field_that_no_batch_writes_is_refused(case: str) -> None:
    with pytest.raises(tv.IntegrityError):
        parse(row(REFUSED[case]))


@pytest.mark.parametrize("reference", [b"", b"p" * 16])
def test_a_row_of_a_batch_that_is_about_one_token_is_refused(reference: bytes) -> None:
    with pytest.raises(tv.IntegrityError):
        parse(row(body())._replace(reference=reference))


def test_more_transaction_ids_than_items_are_refused_before_they_are_read() -> None:
    """Whoever plants a row chooses how many it says that there are."""
    planted = row(body(id_count=1_000_000, ids=bytes(1_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(tv.IntegrityError):
            parse(planted)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000, "of each, a pointer in a list would be 8 bytes"


@pytest.mark.parametrize("case", REFUSED)
def test_an_event_of_a_batch_that_can_not_be_read_tells_of_no_record(case: str) -> None:
    assert changes_of(row(REFUSED[case])) == set()
    assert purged_by(row(REFUSED[case])) == []


def test_an_event_of_a_batch_tells_of_the_records_that_it_changed_or_that_a_purge_deleted() -> None:
    listed = [(b"p" * 16, 3), (b"q" * 16, 4)]
    changing, purging = row(body()), row(body(action=Action.PURGE_TOKENS))
    assert (changes_of(changing), purged_by(changing)) == (set(listed), [])
    assert changes_of(changing, b"q" * 16) == {listed[1]}
    assert (changes_of(purging), purged_by(purging)) == (set(), listed)


def test_an_event_of_one_token_tells_of_its_own_record_alone() -> None:
    event = Event(time_ms=5, action=Action.DELETE, outcome=Outcome.DONE, reference=b"p" * 16, revision=3)
    single = SealedEvent(b"s" * 16, 7, event.reference, event.body(), bytes(16))
    assert changes_of(single) == changes_of(single, b"p" * 16) == {(b"p" * 16, 3)}
    assert changes_of(single, b"q" * 16) == set()
    assert references_of(single) == [b"p" * 16]
    assert references_of(single._replace(reference=b"")) == []


# What leads to it.

DONE, DENIED = Kind(Outcome.DONE), Kind(Outcome.DENIED)
USE = UseNote(tv.Kind.CAPTURE, b"c" * 16, b"u" * 16, b"o" * 16)
MISS = Failure(FailureKind.MISS, b"a" * 16, b"d" * 8)


def built(
    action: Action, *items: tuple[bytes, int, Kind, UseNote | None], name: bytes = NO_NAME
) -> BatchEvent:
    """The event of items: reference, revision, kind and use of each."""
    builder = BatchEventBuilder(len(items), str)
    for place, (reference, revision, kind, use) in enumerate(items):
        builder.note(place, reference, revision, kind, use=use)
    event = builder.event(5, action, name, (MISS,))
    assert event is not None
    assert len(event.notes) == (len(items) if action is Action.DETOKENIZE else 0)
    return event


def test_an_event_that_issued_is_found_by_its_name_and_by_what_it_only_refused() -> None:
    event = built(
        Action.ISSUE, (b"p" * 16, 1, DONE, None), (b"q" * 16, 0, DENIED, None), (b"", 0, DENIED, None),
        name=b"n" * 16,
    )  # fmt: skip
    assert list(event.index_rows()) == [IndexRow(each, NO_USE) for each in (BATCH, b"n" * 16, b"q" * 16)]


def test_an_event_of_changes_is_found_by_its_references_and_by_what_it_counts() -> None:
    event = built(Action.DELETE, (b"p" * 16, 1, DONE, None), (b"", 0, DENIED, None))
    assert list(event.index_rows()) == [account_row(b"a" * 16, 5), IndexRow(b"p" * 16, NO_USE)]


def test_an_event_of_uses_is_found_by_those_that_were_allowed_and_by_what_these_follow_up() -> None:
    event = built(
        Action.DETOKENIZE,
        (b"f" * 16, 0, DONE, USE),
        (b"g" * 16, 0, DONE, USE._replace(original=b"")),
        (b"h" * 16, 0, DONE, USE._replace(retry=True)),
        (b"i" * 16, 0, DENIED, USE),
        (b"j" * 16, 0, DENIED, None),
        (b"", 0, DENIED, None),
        (b"", 0, DONE, USE),
    )
    assert list(event.index_rows()) == [
        account_row(b"a" * 16, 5),
        IndexRow(b"f" * 16, b"o" * 16),
        IndexRow(b"f" * 16, b"u" * 16),
        IndexRow(b"g" * 16, b"u" * 16),
        *(IndexRow(each * 16, NO_USE) for each in (b"h", b"i", b"j")),
    ]


def test_one_reference_is_looked_up_for_the_row_of_a_batch() -> None:
    event = built(Action.DELETE, *((each * 16, 1, DONE, None) for each in (b"q", b"r", b"p")))
    assert references_of(row(event.body())) == [b"r" * 16]


@pytest.mark.parametrize("case", REFUSED)
def test_the_row_of_a_batch_that_can_not_be_read_is_looked_up_by_its_own_reference(case: str) -> None:
    assert references_of(row(REFUSED[case])) == [BATCH]


def test_the_size_of_sets_of_counters_is_told_before_the_event_is_made() -> None:
    builder = BatchEventBuilder(4, str)
    sizes = [builder.counted_bytes]
    for place, counted in enumerate(((), (b"k" * 16,), (b"k" * 16, b"l" * 16), (b"k" * 16,))):
        builder.note(place, b"p" * 16, 0, DONE, use=USE._replace(counted=counted))
        sizes.append(builder.counted_bytes)
    assert sizes == [1, 1, 1 + 17, 1 + 17 + 33, 1 + 17 + 33]
