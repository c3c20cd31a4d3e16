"""The event of a batch: the bytes of its layout, and what no batch writes, field by field."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest

import tokenvault as tv
from tokenvault.audit.batch_event import BATCH, ITEMS_MAX, BatchEvent, changes_of, parse, purged_by
from tokenvault.audit.event import Action
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


REFUSED = {
    "no items": body(count=0, kind_of=b"", id_of=b"", references=b"", revisions=struct.pack(">BQ", 0, 3)),
    "more items than a batch has": body(
        count=ITEMS_MAX + 1, kind_count=1, kinds=b"\1\0\0\0", codes=b"\0", id_count=1, ids=b"\0",
        revisions=struct.pack(">BQ", 0, 3), kind_of=b"", id_of=b"", references=bytes(16) * (ITEMS_MAX + 1),
    ),
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
    "a note cut short": uses()[:-1],
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_event_of_a_batch_with_one_field_that_no_batch_writes_is_refused(case: str) -> None:
    with pytest.raises(tv.IntegrityError):
        parse(row(REFUSED[case]))


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
