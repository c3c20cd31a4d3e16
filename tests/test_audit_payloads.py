"""Numbers and payloads of events: what is stored stays, and what no vault writes is refused, field by field."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest

import tokenvault as tv
from tokenvault.audit import event as events
from tokenvault.audit.acknowledgement import LOSSES_MAX, Acknowledgement, Loss, described
from tokenvault.audit.checkpoint import Checkpoint, CrossReference, key_id_of, signed_message
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.verify.report import FindingKind
from tokenvault.errors import InvalidInputError
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


def row_of(event: Event, number: int = 9) -> SealedEvent:
    return SealedEvent(STREAM, number, event.reference, event.body(), bytes(16))


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


def test_a_loss_has_nothing_where_it_says_nothing() -> None:
    assert Loss(FindingKind.GAP) == (FindingKind.GAP, b"", 0, 0, b"", 0)
    assert described(Acknowledgement("why", (LOSS, OF_RECORD))) == {
        "reason": "why",
        "losses": [
            {"kind": "REMOVED", "stream": "73" * 16, "first": 3, "last": 5, "reference": None, "revision": 0},
            {"kind": "REMOVED", "stream": None, "first": 0, "last": 0, "reference": "72" * 16, "revision": 7},
        ],
    }
