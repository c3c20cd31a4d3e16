"""What events note of uses and of failures: the bytes, and what no note has, field by field."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest

from tokenvault.audit import guard_note
from tokenvault.audit.guard_note import Account, Failure, FailureKind, LockOut
from tokenvault.audit.use_note import NOTE, NOTE_COLUMN, UseNote
from tokenvault.model.kinds import Kind

KINDS = dict(enumerate(Kind, 1))
A, B, C = (bytes([byte]) * 16 for byte in b"abc")


class Cursor:
    """Reads bytes from their start."""

    def __init__(self, left: bytes) -> None:
        self.left = left

    def take(self, count: int) -> bytes:
        if count > len(self.left):
            raise ValueError("cut short")
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def byte(self) -> int:
        return self.take(1)[0]


def packed(**fields: Any) -> bytes:
    """A note from its layout, not by the code."""
    values: dict[str, Any] = {
        "kind": 1, "flags": 1, "amount": 5, "currency": b"EUR", "content": A, "use_id": B, "original": C, "score": 0,
    } | fields  # fmt: skip
    keys = values.pop("keys", ())
    return struct.pack(">BBQ3s16s16s16sH", *values.values()) + bytes([len(keys)]) + b"".join(keys)


def read(encoded: bytes) -> UseNote:
    cursor = Cursor(encoded + b"rest")
    note = UseNote.read(cursor)
    assert cursor.left == b"rest"
    return note


@pytest.mark.parametrize("code", KINDS)
def test_each_kind_has_its_own_number(code: int) -> None:
    note = UseNote(KINDS[code], A, B, C, 5, "EUR")
    assert note.pack() == packed(kind=code)
    assert read(packed(kind=code)) == note


@pytest.mark.parametrize(
    ("fields", "noted"),
    [
        ({"flags": 0}, {"final": False}),
        ({"flags": 2}, {"final": False, "strong": True}),
        ({"flags": 4}, {"final": False, "retry": True}),
        ({"flags": 7}, {"strong": True, "retry": True}),
        ({"amount": 0, "currency": bytes(3)}, {"amount": 0, "currency": ""}),
        ({"amount": 2**64 - 1}, {"amount": 2**64 - 1}),
        ({"original": bytes(16)}, {"original": b""}),
        ({"score": 1}, {"score": 0}),
        ({"score": 1_001}, {"score": 1_000}),
        ({"keys": (A,)}, {"counted": (A,)}),
        ({"keys": (A, B, C)}, {"counted": (A, B, C)}),
        ({"keys": tuple(bytes([0, place]) * 8 for place in range(64))},
         {"counted": tuple(bytes([0, place]) * 8 for place in range(64))}),
    ],
)  # fmt: skip
def test_each_field_of_a_use_stands_where_the_layout_says(
    fields: dict[str, Any], noted: dict[str, Any]
) -> None:
    note = UseNote(Kind.PURCHASE, A, B, C, 5, "EUR")._replace(**noted)
    assert note.pack() == packed(**fields)
    assert read(packed(**fields)) == note


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": 0}, {"kind": 10}, {"flags": 8}, {"flags": 255}, {"currency": b"\xff\xff\xff"}, {"keys": (B, A)},
        {"keys": (A, A)}, {"keys": tuple(bytes([0, place]) * 8 for place in range(65))},
    ],
)  # fmt: skip
def test_a_note_with_one_field_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError)):
        read(packed(**fields))


def test_a_note_that_is_cut_short_is_refused() -> None:
    whole = packed(keys=(A, B))
    for length in range(len(whole)):
        with pytest.raises((ValueError, struct.error)):
            UseNote.read(Cursor(whole[:length]))


def test_a_column_of_notes_is_the_layout_of_each() -> None:
    assert NOTE_COLUMN.itemsize == NOTE.size == 63
    assert [NOTE_COLUMN.fields[name][1] for name in NOTE_COLUMN.names or ()] == [0, 1, 2, 10, 13, 29, 45, 61]  # type: ignore[index] # it has fields
    assert [NOTE_COLUMN[name].str for name in ("amount", "score")] == [">u8", ">u2"]


def test_an_event_is_found_by_its_use_and_the_original_unless_it_counts_nothing() -> None:
    note = UseNote(Kind.REFUND, A, B, C)
    assert note.found_by(allowed=True) == (B, C)
    assert note._replace(original=b"").found_by(allowed=True) == (B,)
    assert note.found_by(allowed=False) == (bytes(16),)
    assert note._replace(retry=True).found_by(allowed=True) == (bytes(16),)


# What the guard counts.


def test_failures_are_bytes_after_their_number_and_read_back() -> None:
    kinds = (FailureKind.MISS, FailureKind.REFUSAL, FailureKind.SUSPENSION)
    failures = tuple(Failure(kind, A, b"digested") for kind in kinds)
    whole = b"\0\3" + b"".join(bytes([code]) + A + b"digested" for code in (1, 2, 3))
    assert guard_note.packed_failures(failures) == whole
    assert guard_note.packed_size(3) == len(whole)
    assert (guard_note.packed_failures(()), guard_note.packed_size(0)) == (b"", 0)
    cursor = Cursor(whole + b"rest")
    assert guard_note.read_failures(cursor) == failures
    assert cursor.left == b"rest"
    for wrong in (b"\0\4" + whole[2:], whole[:-1], b"\0\1\0" + A + b"digested", b"\0\1\4" + A + b"digested"):
        with pytest.raises((ValueError, struct.error)):
            guard_note.read_failures(Cursor(wrong))


def test_a_lock_out_is_nine_bytes() -> None:
    assert LockOut(5, 255).pack() == struct.pack(">QB", 5, 255)
    assert LockOut.parse(struct.pack(">QB", 5, 255)) == LockOut(5, 255)
    for wrong in (b"", bytes(8), bytes(10)):
        with pytest.raises(struct.error):
            LockOut.parse(wrong)


@pytest.mark.parametrize(
    ("account", "word"),
    [
        (Account.LOCK_OUTS, b"lock-outs"), (Account.MISSES, b"misses"), (Account.REFUSALS, b"refusals"),
        (Account.TOKEN, b"token"),
    ],
)  # fmt: skip
def test_an_account_is_the_digest_of_its_kind_and_of_whom_it_is_about(account: Account, word: bytes) -> None:
    assert account.of(b"4") == hashlib.sha256(b"tokenvault guard\x1f" + word + b"\x1f4").digest()[:16]


def test_accounts_lead_to_their_events_the_newest_first_each_once() -> None:
    noted = [(FailureKind.MISS, A, b"1"), (FailureKind.MISS, A, b"2"), (FailureKind.REFUSAL, B, b"3")]
    rows = guard_note.failure_rows(tuple(Failure(*each) for each in noted), 5)
    after = (2**64 - 6).to_bytes(8) + bytes(8)
    assert rows == [(A, after), (B, after)]
    accounts = [kind.of(b"40012345678") for kind in (Account.LOCK_OUTS, Account.MISSES, Account.REFUSALS)]
    assert guard_note.lock_rows("40012345678", 5) == [(account, after) for account in accounts]
    assert guard_note.account_row(A, 6)[1] < after
