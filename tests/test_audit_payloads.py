"""Numbers and payloads of events: what is stored stays, and what no vault writes is refused, field by field."""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime
from typing import Any

import pytest

import tokenvault as tv
from tokenvault.audit import event as events
from tokenvault.audit.acknowledgement import LOSSES_MAX, Acknowledgement, Loss, described
from tokenvault.audit.checkpoint import Checkpoint, CrossReference, key_id_of, signed_message
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.export import audit_events
from tokenvault.audit.guard_note import LEVEL_MAX, Account, LockOut
from tokenvault.audit.use_note import UseNote
from tokenvault.audit.verify.report import FindingKind
from tokenvault.errors import InvalidInputError
from tokenvault.model import dual_control
from tokenvault.stores.index_rows import IndexRow
from tokenvault.stores.port import MALFORMED_EVENT, SealedEvent

STREAM, ROOT = b"s" * 16, b"r" * 32
ACTIONS = {
    1: "ISSUE DETOKENIZE ACTIVATE SUSPEND RESUME DELETE UPDATE_CARD UPDATE_DOMAIN LOOK_UP CHECKPOINT UPDATE_TOKEN"
    " UPDATE_ASSURANCE WIND_DOWN CHECK LOCK_OUT RELEASE ACKNOWLEDGE",
    20: "FORGET PURGE PURGE_EVENTS PURGE_TOKENS",
    30: "REQUEST_REVEAL APPROVE_REVEAL REVEAL REQUEST_EXPORT APPROVE_EXPORT EXPORT",
    41: "ADD_KEY_VERSION MAKE_PRIMARY RESEAL REFINGERPRINT RETIRE_KEY DESTROY_KEY INTRODUCE_SIGNER",
    60: "PUT_PROGRAM PUT_REQUESTOR DISABLE_REQUESTOR",
}


def test_the_numbers_of_actions_stay() -> None:
    numbers = {
        name: first + place for first, names in ACTIONS.items() for place, name in enumerate(names.split())
    }
    assert {action.name: action.value for action in Action} == numbers
    assert len({action.value for action in Action}) == len(Action.__members__) == len(numbers)


# Events.

TOKEN, NUMBER = b"t" * 16, b"n" * 16
ISSUED = Event(1, Action.ISSUE, Outcome.DONE, reference=TOKEN)
REQUESTED = Event(
    1, Action.REQUEST_REVEAL, Outcome.DONE, reference=TOKEN, transaction_id=dual_control.letters(NUMBER)
)


def row_of(event: Event, number: int = 9) -> SealedEvent:
    return SealedEvent(STREAM, number, event.reference, event.body(), bytes(16))


def test_an_event_is_the_bytes_of_its_layout_and_its_leaf_is_of_all_that_its_row_says() -> None:
    event = Event(
        time_ms=258, action=Action.SUSPEND, outcome=Outcome.DENIED, requestor="40012345678", reference=TOKEN,
        transaction_id="tx", codes=("A", "BC"), revision=7, operator="ann",
    )  # fmt: skip
    body = struct.pack(">BQBBQ", 3, 258, 4, 2, 7) + b"\x0b40012345678\x02tx\x03ann\x02\x01A\x02BC"
    assert event.body() == body
    assert Event.parse(row_of(event)) == event
    assert body[events.REVISION] == (7).to_bytes(8)
    assert body[events.ACTION] == Action.SUSPEND
    leaf = b"\0" + STREAM + (5).to_bytes(8) + b"\x10" + TOKEN + body
    assert events.leaf_of(row_of(event, 5)) == hashlib.sha256(leaf).digest()
    whom = b"40012345678"
    for account, name in zip(Account, ("lock-outs", "misses", "refusals", "token"), strict=True):
        words = b"tokenvault guard\x1f" + name.encode() + b"\x1f" + whom
        assert account.of(whom) == hashlib.sha256(words).digest()[:16]
    assert LockOut(1, LEVEL_MAX).pack() == (1).to_bytes(8) + b"\xff"


@pytest.mark.parametrize("action", Action)
def test_an_event_of_a_purge_is_known_by_its_action_where_its_form_has_it(action: Action) -> None:
    purges = action in (Action.PURGE_EVENTS, Action.PURGE_TOKENS)
    for version, place in ((3, 9), (2, 25)):
        for at in (9, 25):
            body = bytearray(40)
            body[0], body[at] = version, action
            row = SealedEvent(STREAM, 1, b"", bytes(body), bytes(16))
            assert events.is_of_purge(row) is (purges and at == place)


@pytest.mark.parametrize(
    ("transaction_id", "operator", "expected"),
    [
        (None, None, (None, None)),
        ("tx", None, ("TX", None)),
        (None, "ann", (None, "ANN")),
        ("tx", "ann", ("TX", "ANN")),
    ],
)
def test_each_id_of_an_event_is_kept_as_it_may_be(
    transaction_id: str | None, operator: str | None, expected: tuple[str | None, str | None]
) -> None:
    kept = ISSUED._replace(transaction_id=transaction_id, operator=operator).with_ids(str.upper)
    assert kept == ISSUED._replace(transaction_id=expected[0], operator=expected[1])


def test_a_token_is_found_by_the_one_that_it_was_issued_from() -> None:
    named = ISSUED._replace(transaction_id=dual_control.letters(NUMBER))
    assert events.source_of(named) == NUMBER
    assert named.index_rows() == (IndexRow(TOKEN), IndexRow(NUMBER, TOKEN))
    for other in (
        ISSUED,
        ISSUED._replace(transaction_id="tx-1"),
        ISSUED._replace(transaction_id=dual_control.letters(NUMBER[1:])),
        named._replace(outcome=Outcome.DENIED),
        named._replace(action=Action.SUSPEND),
    ):
        assert events.source_of(other) == b""
        assert other.index_rows() == (IndexRow(TOKEN),)


def test_a_request_is_found_by_its_number_and_day_and_a_refused_one_by_its_token_alone() -> None:
    nobody = dual_control.person_day(Action.REQUEST_REVEAL, "", 1)
    assert REQUESTED.index_rows() == (IndexRow(TOKEN, NUMBER), IndexRow(nobody, NUMBER))
    assert REQUESTED._replace(action=Action.APPROVE_REVEAL).index_rows() == (IndexRow(TOKEN, NUMBER),)
    assert REQUESTED._replace(outcome=Outcome.DENIED).index_rows() == (IndexRow(TOKEN),)
    assert REQUESTED._replace(transaction_id=None).index_rows() == (IndexRow(TOKEN),)
    assert REQUESTED._replace(reference=b"").index_rows() == ()
    assert Event(1, Action.RELEASE, Outcome.DONE).index_rows() == ()


@pytest.mark.parametrize(
    ("time_ms", "time"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (1_780_000_000_001, datetime(2026, 5, 28, 20, 26, 40, 1_000, tzinfo=UTC)),
        (2**64 - 1, datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)),
    ],
)
def test_an_event_is_of_its_time_within_what_a_calendar_has(time_ms: int, time: datetime) -> None:
    (told,) = audit_events(row_of(ISSUED._replace(time_ms=time_ms)))
    assert told.time == time


def test_a_use_is_told_as_a_retry_where_it_is_one() -> None:
    used = Event(1, Action.DETOKENIZE, Outcome.DONE, reference=TOKEN)
    note = UseNote(tv.Kind.PURCHASE, bytes(16), NUMBER)
    for use, retry in ((None, False), (note, False), (note._replace(retry=True), True)):
        (told,) = audit_events(row_of(used._replace(use=use)))
        assert told.retry is retry


# Checkpoints.

REFERENCE = CrossReference(b"x" * 16, 5, b"l" * 32)
FIXED = struct.pack(">?Q32sBB", True, 9, ROOT, 3, 1)
ONE = FIXED + b"x" * 16 + (5).to_bytes(8) + b"l" * 32


def test_a_checkpoint_is_the_bytes_of_its_layout_signed_or_not() -> None:
    plain = Checkpoint(size=9, root=ROOT, closes=True, cross_references=(REFERENCE,), unauthenticated_rows=3)
    assert plain.payload() == ONE + bytes(8)
    assert Checkpoint.parse(ONE + bytes(8)) == plain
    signed = ONE + b"key id 8" + b"g" * 64
    read = Checkpoint.parse(signed)
    assert (read.key_id, read.signature) == (b"key id 8", b"g" * 64)
    assert read.payload() == signed


@pytest.mark.parametrize(
    "payload",
    [
        b"", ONE[:-1], ONE + bytes(8) + b"g" * 64, ONE + b"key id 8", ONE + b"key id 8" + b"g" * 63,
        ONE + b"key id 8" + b"g" * 65, struct.pack(">?Q32sBB", False, 1, ROOT, 65, 0) + bytes(8),
        struct.pack(">?Q32sBB", False, 1, ROOT, 0, 65) + 65 * ONE[-56:] + bytes(8),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_form_is_refused(payload: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        Checkpoint.parse(payload)


def test_a_checkpoint_may_refer_to_sixty_four_streams_and_as_many_rows_of_nobody() -> None:
    payload = struct.pack(">?Q32sBB", False, 1, ROOT, 64, 64) + 64 * ONE[-56:] + bytes(8)
    assert Checkpoint.parse(payload).payload() == payload


def test_what_is_signed_is_label_stream_number_and_body() -> None:
    assert (
        signed_message(STREAM, 7, b"body")
        == b"tokenvault checkpoint 1\0" + STREAM + (7).to_bytes(8) + b"body"
    )
    assert key_id_of(b"key") == hashlib.sha256(b"key").digest()[:8]


def test_checkpoints_come_as_often_as_the_policy_says_within_its_borders() -> None:
    plain = tv.CheckpointPolicy()
    assert (plain.events, plain.seconds) == (1_000, 60)
    assert tv.CheckpointPolicy(1, 1) == tv.CheckpointPolicy(events=1, seconds=1)
    tv.CheckpointPolicy(1_000_000, 86_400)
    wrong: list[dict[str, Any]] = [
        {"events": 0}, {"events": 1_000_001}, {"events": True}, {"seconds": 0}, {"seconds": 86_401}, {"seconds": 1.0},
    ]  # fmt: skip
    for arguments in wrong:
        with pytest.raises(InvalidInputError, match=f"{next(iter(arguments))} is a whole number"):
            tv.CheckpointPolicy(**arguments)


def test_what_a_checkpoint_says_is_named() -> None:
    make: Any = Checkpoint
    assert make(size=9, root=ROOT).size == 9
    with pytest.raises(TypeError):
        make(9, ROOT)


def test_a_stream_is_open_after_whatever_is_no_checkpoint_that_closes_it() -> None:
    def marking(closes: bool) -> SealedEvent:
        checkpoint = Checkpoint(size=8, root=ROOT, closes=closes)
        return row_of(
            Event(
                time_ms=1,
                action=Action.CHECKPOINT,
                outcome=Outcome.DONE,
                reference=STREAM,
                checkpoint=checkpoint,
            )
        )

    assert events.is_open(marking(False))
    assert not events.is_open(marking(True))
    assert not events.is_open(MALFORMED_EVENT)
    assert events.is_open(SealedEvent(STREAM, 9, b"", b"nonsense", bytes(16)))


# Acknowledgements.

LOSS = Loss(FindingKind.REMOVED, b"s" * 16, 3, 5)
OF_RECORD = Loss(FindingKind.REMOVED, b"", 0, 0, b"r" * 16, 7)


def packed(count: int, *losses: bytes, reason: bytes = b"why") -> bytes:
    return bytes([len(reason)]) + reason + struct.pack(">H", count) + b"".join(losses)


def lost(kind: int, stream: bytes = b"s" * 16, reference: bytes = b"") -> bytes:
    return struct.pack(">B16sQQ16sQ", kind, stream, 3, 5, reference, 0)


def test_an_acknowledgement_is_the_bytes_of_its_layout_each_kind_by_its_number() -> None:
    for number, kind in enumerate(FindingKind, 1):
        given = Acknowledgement("why", (LOSS._replace(kind=kind),))
        assert given.payload() == packed(1, lost(number))
        assert Acknowledgement.parse(packed(1, lost(number))) == given
    both = Acknowledgement("why", (LOSS, OF_RECORD))
    assert Acknowledgement.parse(both.payload()) == both


@pytest.mark.parametrize(
    "payload",
    [
        packed(1, lost(0)), packed(1, lost(len(FindingKind) + 1)), packed(LOSSES_MAX + 1), b"",
        packed(1, lost(1)[:-1]),
    ],
)  # fmt: skip
def test_an_acknowledgement_of_another_form_is_refused(payload: bytes) -> None:
    with pytest.raises((ValueError, IndexError, struct.error)):
        Acknowledgement.parse(payload)


def test_an_acknowledgement_has_at_most_a_thousand_losses() -> None:
    most = packed(1_000, *[lost(2)] * 1_000)
    assert Acknowledgement.parse(most).payload() == most
    with pytest.raises(ValueError, match="1001"):
        Acknowledgement.parse(packed(1_001, *[lost(2)] * 1_001))


def test_a_loss_has_nothing_where_it_says_nothing() -> None:
    assert Loss(FindingKind.GAP) == (FindingKind.GAP, b"", 0, 0, b"", 0)
    assert described(Acknowledgement("why", (LOSS, OF_RECORD))) == {
        "reason": "why",
        "losses": [
            {"kind": "REMOVED", "stream": "73" * 16, "first": 3, "last": 5, "reference": None, "revision": 0},
            {"kind": "REMOVED", "stream": None, "first": 0, "last": 0, "reference": "72" * 16, "revision": 7},
        ],
    }
