"""Each event as OCSF has it, field by field: what a SIEM's rules are written against."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

import tokenvault as tv
from tokenvault.audit import ocsf
from tokenvault.audit.event import Action, Outcome
from tokenvault.audit.export import TIME_MS_MAX

WHEN = datetime(2026, 5, 28, 12, 0, 0, 5_000, tzinfo=UTC)
EVENT = tv.AuditEvent(
    time=WHEN, action=Action.DETOKENIZE, outcome=Outcome.DONE, requestor="40012345678", reference="ab" * 16,
    transaction_id="tx", operator=None, kind=None, amount=None, retry=False, score=None, codes=(), revision=0,
    locked_until=None, stream="cd" * 16, number=7,
)  # fmt: skip

TOKEN, REQUESTOR, PROGRAM = "Payment token", "Token requestor", "Token program"
KEY, REQUEST, TRAIL = "Cryptographic key", "Dual control request", "Audit stream"
ACTIVITIES = {
    "Create": (1, {"ISSUE": TOKEN, "REQUEST_REVEAL": REQUEST, "REQUEST_EXPORT": REQUEST, "ADD_KEY_VERSION": KEY,
                   "INTRODUCE_SIGNER": KEY}),
    "Read": (2, {"DETOKENIZE": TOKEN, "LOOK_UP": TOKEN, "CHECK": TOKEN, "REVEAL": TOKEN, "EXPORT": TOKEN}),
    "Update": (3, {"UPDATE_CARD": TOKEN, "UPDATE_DOMAIN": TOKEN, "UPDATE_TOKEN": TOKEN, "UPDATE_ASSURANCE": TOKEN,
                   "ACKNOWLEDGE": TRAIL, "APPROVE_REVEAL": REQUEST, "APPROVE_EXPORT": REQUEST, "RESEAL": KEY,
                   "REFINGERPRINT": KEY, "PUT_PROGRAM": PROGRAM, "PUT_REQUESTOR": REQUESTOR}),
    "Delete": (4, {"DELETE": TOKEN, "FORGET": TOKEN, "PURGE": TOKEN, "PURGE_EVENTS": TRAIL,
                   "PURGE_TOKENS": TOKEN, "DESTROY_KEY": KEY}),
    "Disable": (9, {"DISABLE_REQUESTOR": REQUESTOR}),
    "Activate": (10, {"ACTIVATE": TOKEN, "MAKE_PRIMARY": KEY}),
    "Deactivate": (11, {"WIND_DOWN": TOKEN, "RETIRE_KEY": KEY}),
    "Suspend": (12, {"SUSPEND": TOKEN, "LOCK_OUT": REQUESTOR}),
    "Resume": (13, {"RESUME": TOKEN, "RELEASE": REQUESTOR}),
    "CHECKPOINT": (99, {"CHECKPOINT": TRAIL}),
}  # fmt: skip
ROWS = [
    (name, number, action, kind) for name, (number, of) in ACTIVITIES.items() for action, kind in of.items()
]


def document(item: int = 0, genuine: bool | None = None, **fields: Any) -> dict[str, Any]:
    return ocsf.ocsf_event(attrs.evolve(EVENT, **fields), item, genuine, {"own": 1})


@pytest.mark.parametrize(("name", "number", "action", "kind"), ROWS)
def test_each_action_is_an_activity_about_one_kind_of_thing(
    name: str, number: int, action: str, kind: str
) -> None:
    told = document(action=Action[action])
    assert (told["activity_name"], told["activity_id"]) == (name, number)
    assert told["type_uid"] == 300_400 + number
    assert (told["entity"]["type"], told["entity"]["type_id"]) == (kind, 99)
    assert told["metadata"]["event_code"] == action


def test_the_table_of_activities_has_every_action() -> None:
    assert sorted(action for _, _, action, _ in ROWS) == sorted(action.name for action in Action)


def test_a_use_is_told_whole() -> None:
    assert document(item=2) == {
        "activity_id": 2, "activity_name": "Read", "category_uid": 3, "class_uid": 3004, "severity_id": 1,
        "type_uid": 300_402, "actor": {"app_uid": "40012345678"},
        "entity": {"type": TOKEN, "type_id": 99, "uid": "ab" * 16}, "message": "DETOKENIZE DONE",
        "metadata": {
            "event_code": "DETOKENIZE", "log_name": "audit trail", "log_version": "1",
            "product": {"name": "tokenvault", "vendor_name": "tokenvault"}, "sequence": 7,
            "uid": f"{'cd' * 16}-7-2", "version": "1.8.0",
        },
        "status": "Success", "status_code": "DONE", "status_id": 1, "time": 1_779_969_600_005,
        "unmapped": {"tokenvault": {"own": 1}},
    }  # fmt: skip


def test_a_refused_use_is_told_with_its_codes() -> None:
    refused = document(outcome=Outcome.DENIED, codes=("A", "B"))
    assert (refused["status"], refused["status_id"], refused["severity_id"]) == ("Failure", 2, 2)
    assert (refused["status_code"], refused["status_detail"]) == ("A", "A, B")
    missing = document(outcome=Outcome.NOT_FOUND)
    assert (missing["status_code"], "status_detail" in missing) == ("NOT_FOUND", False)
    done = document(action=Action.SUSPEND, codes=("ISSUER",))
    assert (done["status_code"], done["status_detail"]) == ("DONE", "ISSUER")


@pytest.mark.parametrize(
    ("fields", "severity"),
    [
        ({}, 1), ({"outcome": Outcome.DENIED}, 2), ({"outcome": Outcome.NOT_FOUND}, 2),
        ({"outcome": Outcome.TAMPERED}, 5),
        ({"genuine": True}, 1), ({"genuine": False}, 5), ({"action": Action.LOCK_OUT}, 3),
        ({"action": Action.RELEASE}, 1), ({"action": Action.REQUEST_REVEAL}, 3), ({"action": Action.REVEAL}, 3),
        ({"action": Action.EXPORT}, 3), ({"action": Action.REVEAL, "outcome": Outcome.TAMPERED}, 5),
    ],
)  # fmt: skip
def test_severity_grows_with_the_outcome_with_card_numbers_shown_and_with_tampering(
    fields: dict[str, Any], severity: int
) -> None:
    assert document(**fields)["severity_id"] == severity


@pytest.mark.parametrize(
    ("fields", "actor"),
    [
        ({"requestor": None}, {"app_name": "host"}),
        ({"operator": "ann"}, {"user": {"name": "ann"}, "app_uid": "40012345678"}),
        ({"operator": "ann", "requestor": None}, {"user": {"name": "ann"}}),
        ({"action": Action.LOCK_OUT}, {"app_name": "host"}),
        ({"action": Action.RELEASE, "operator": "ann"}, {"user": {"name": "ann"}}),
    ],
)
def test_the_actor_is_the_person_and_the_requestor_that_called(fields: dict[str, Any], actor: object) -> None:
    assert document(**fields)["actor"] == actor


@pytest.mark.parametrize(
    ("fields", "entity"),
    [
        ({"reference": None}, {"name": "unknown"}),
        ({"action": Action.CHECKPOINT}, {"uid": "cd" * 16}),
        ({"action": Action.REQUEST_REVEAL}, {"uid": "tx"}),
        ({"action": Action.LOCK_OUT}, {"uid": "40012345678"}),
        ({"action": Action.DESTROY_KEY, "codes": ("seal", "VERSION_1", "x")}, {"uid": "seal VERSION_1"}),
        ({"action": Action.DESTROY_KEY}, {"name": "unknown"}),
        ({"action": Action.PUT_PROGRAM, "codes": ("p", "VERSION_1")}, {"uid": "p"}),
        ({"action": Action.DISABLE_REQUESTOR, "codes": ("4", "VERSION_1")}, {"uid": "4"}),
    ],
)
def test_an_entity_is_named_by_what_the_action_is_about(fields: dict[str, Any], entity: object) -> None:
    told = document(**fields)["entity"]
    assert {name: told[name] for name in ("uid", "name") if name in told} == entity


def test_an_event_that_can_not_be_read_is_told_at_the_time_when_its_stream_began() -> None:
    stream = (1_779_969_600_005).to_bytes(6) + bytes(10)
    told = ocsf.unreadable_event(stream, 3, {"own": 1})
    assert told == {
        "activity_id": 0, "activity_name": "Unknown", "category_uid": 3, "class_uid": 3004, "severity_id": 5,
        "type_uid": 300_400, "entity": {"name": "unknown", "type": TRAIL, "type_id": 99, "uid": stream.hex()},
        "message": "an audit event can not be read",
        "metadata": {
            "event_code": "UNREADABLE", "log_name": "audit trail", "log_version": "1",
            "product": {"name": "tokenvault", "vendor_name": "tokenvault"}, "sequence": 3,
            "uid": f"{stream.hex()}-3-0", "version": "1.8.0",
        },
        "status": "Failure", "status_code": "UNREADABLE", "status_id": 2, "time": 1_779_969_600_005,
        "unmapped": {"tokenvault": {"own": 1}},
    }  # fmt: skip
    assert ocsf.unreadable_event(b"\xff" * 16, 3, {})["time"] == TIME_MS_MAX
