"""Each event as a line of an export in the library's own schema, whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

import tokenvault as tv
from tokenvault.audit.acknowledgement import Acknowledgement
from tokenvault.audit.checkpoint import Checkpoint, CrossReference
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.event_lines import event_line, unreadable_line
from tokenvault.errors import InvalidInputError, UnchangeableError

WHEN = datetime(2026, 5, 28, 12, 0, 0, 5_000, tzinfo=UTC)
EVENT = tv.AuditEvent(
    time=WHEN, action=Action.DETOKENIZE, outcome=Outcome.DENIED, requestor="40012345678", reference="ab" * 16,
    transaction_id="tx", operator="ann", kind=tv.Kind.REFUND, amount=tv.Money(5, "EUR"), retry=True, score=7,
    codes=("A", "B"), revision=3, locked_until=WHEN, stream="cd" * 16, number=9,
)  # fmt: skip
LINE: dict[str, Any] = {
    "schema_version": 1, "stream": "cd" * 16, "number": 9, "item": 2, "time": "2026-05-28T12:00:00.005Z",
    "action": "DETOKENIZE", "outcome": "DENIED", "requestor": "40012345678", "reference": "ab" * 16,
    "transaction_id": "tx", "operator": "ann", "kind": "REFUND", "amount": 5, "currency": "EUR", "retry": True,
    "score": 7, "codes": ["A", "B"], "revision": 3, "locked_until": "2026-05-28T12:00:00.005Z", "genuine": True,
}  # fmt: skip


def test_an_event_is_a_line_with_every_name() -> None:
    assert event_line(EVENT, 2, True, None) == LINE
    assert list(event_line(EVENT, 2, True, None)) == list(LINE)


def test_what_an_event_does_not_say_is_null() -> None:
    names = (
        "requestor",
        "reference",
        "transaction_id",
        "operator",
        "kind",
        "amount",
        "score",
        "locked_until",
    )
    unsaid: dict[str, Any] = dict.fromkeys(names)
    bare = attrs.evolve(EVENT, **unsaid, retry=False, codes=())
    expected = LINE | dict.fromkeys((*names, "currency")) | {"retry": False, "codes": [], "genuine": None}
    assert event_line(bare, 2, None, None) == expected


@pytest.mark.parametrize("signed", [False, True])
def test_a_checkpoint_tells_what_it_commits_to(signed: bool) -> None:
    reference = CrossReference(b"x" * 16, 5, b"l" * 32)
    checkpoint = Checkpoint(
        size=8, root=b"r" * 32, closes=True, cross_references=(reference,), unauthenticated_rows=3,
        key_id=b"k" * 8 if signed else b"", signature=b"g" * 64 if signed else b"",
    )  # fmt: skip
    single = Event(
        time_ms=1, action=Action.CHECKPOINT, outcome=Outcome.DONE, reference=b"s" * 16, checkpoint=checkpoint
    )
    assert event_line(EVENT, 2, True, single) == LINE | {
        "checkpoint": {
            "size": 8, "root": "72" * 32, "closes": True, "unauthenticated_rows": 3,
            "cross_references": [{"stream": "78" * 16, "number": 5, "leaf": "6c" * 32}],
            "key_id": "6b" * 8 if signed else None, "signature": "67" * 64 if signed else None,
        },
    }  # fmt: skip


def test_an_acknowledgement_tells_its_reason_and_losses() -> None:
    single = Event(
        time_ms=1,
        action=Action.ACKNOWLEDGE,
        outcome=Outcome.DONE,
        reference=b"s" * 16,
        acknowledgement=Acknowledgement("why", ()),
    )
    assert event_line(EVENT, 2, True, single) == LINE | {"acknowledged": {"reason": "why", "losses": []}}


def test_a_line_of_what_can_not_be_read_says_where_it_stands() -> None:
    assert unreadable_line(b"s" * 16, 4) == {
        "schema_version": 1, "stream": "73" * 16, "number": 4, "item": 0, "genuine": False,
    }  # fmt: skip


def test_an_event_of_the_trail_does_not_change() -> None:
    with pytest.raises(UnchangeableError):
        EVENT.number = 1  # type: ignore[misc] # that is the point


def test_what_an_event_of_the_trail_says_is_given_by_name() -> None:
    made: Any = tv.AuditEvent
    values = attrs.asdict(EVENT, recurse=False)
    assert made(**values) == EVENT
    with pytest.raises(InvalidInputError, match="by position"):
        made(*values.values())
