"""The lines of an export as events of the Open Cybersecurity Schema Framework: class Entity Management, 3004.

Of the classes of OCSF 1.8.0 this is the one whose activities are those of a token's life (create, activate, suspend,
resume, delete). API Activity (6003) and Datastore Activity (6005) require the network address of the caller, which
the library does not know. The line in the library's own schema goes along under `unmapped`, so that nothing is lost.
"""

from __future__ import annotations

from typing import Final

from tokenvault.audit.event import DUAL_CONTROL, LOCKING, Action, Outcome
from tokenvault.audit.event_lines import SCHEMA_VERSION
from tokenvault.audit.export import TIME_MS_MAX, AuditEvent

OCSF_VERSION: Final = "1.8.0"
CATEGORY_UID: Final = 3
CLASS_UID: Final = 3004

_STREAM_TIME_BYTES: Final = 6
"""The name of a stream begins with the milliseconds of its begin."""

_OTHER: Final = 99
_CAPTIONS: Final = {
    0: "Unknown",
    1: "Create",
    2: "Read",
    3: "Update",
    4: "Delete",
    8: "Enable",
    9: "Disable",
    10: "Activate",
    11: "Deactivate",
    12: "Suspend",
    13: "Resume",
}

_TOKEN: Final = "Payment token"  # noqa: S105 # the name of a kind
_REQUESTOR: Final = "Token requestor"
_PROGRAM: Final = "Token program"
_KEY: Final = "Cryptographic key"
_REQUEST: Final = "Dual control request"
_TRAIL: Final = "Audit stream"

_ACTIVITIES: Final[dict[Action, tuple[int, str]]] = {
    Action.ISSUE: (1, _TOKEN),
    Action.DETOKENIZE: (2, _TOKEN),
    Action.ACTIVATE: (10, _TOKEN),
    Action.SUSPEND: (12, _TOKEN),
    Action.RESUME: (13, _TOKEN),
    Action.DELETE: (4, _TOKEN),
    Action.UPDATE_CARD: (3, _TOKEN),
    Action.UPDATE_DOMAIN: (3, _TOKEN),
    Action.LOOK_UP: (2, _TOKEN),
    Action.CHECKPOINT: (_OTHER, _TRAIL),
    Action.UPDATE_TOKEN: (3, _TOKEN),
    Action.UPDATE_ASSURANCE: (3, _TOKEN),
    Action.WIND_DOWN: (11, _TOKEN),
    Action.CHECK: (2, _TOKEN),
    Action.LOCK_OUT: (12, _REQUESTOR),
    Action.RELEASE: (13, _REQUESTOR),
    Action.ACKNOWLEDGE: (3, _TRAIL),
    Action.FORGET: (4, _TOKEN),
    Action.PURGE: (4, _TOKEN),
    Action.PURGE_EVENTS: (4, _TRAIL),
    Action.PURGE_TOKENS: (4, _TOKEN),
    Action.REQUEST_REVEAL: (1, _REQUEST),
    Action.APPROVE_REVEAL: (3, _REQUEST),
    Action.REVEAL: (2, _TOKEN),
    Action.REQUEST_EXPORT: (1, _REQUEST),
    Action.APPROVE_EXPORT: (3, _REQUEST),
    Action.EXPORT: (2, _TOKEN),
    Action.ADD_KEY_VERSION: (1, _KEY),
    Action.MAKE_PRIMARY: (10, _KEY),
    Action.RESEAL: (3, _KEY),
    Action.REFINGERPRINT: (3, _KEY),
    Action.RETIRE_KEY: (11, _KEY),
    Action.DESTROY_KEY: (4, _KEY),
    Action.INTRODUCE_SIGNER: (1, _KEY),
    Action.PUT_PROGRAM: (3, _PROGRAM),
    Action.PUT_REQUESTOR: (3, _REQUESTOR),
    Action.DISABLE_REQUESTOR: (9, _REQUESTOR),
}

_INFORMATIONAL: Final = 1
_LOW: Final = 2
_MEDIUM: Final = 3
_CRITICAL: Final = 5

_SEVERITIES: Final = {
    Outcome.DONE: _INFORMATIONAL,
    Outcome.DENIED: _LOW,
    Outcome.NOT_FOUND: _LOW,
    Outcome.TAMPERED: _CRITICAL,
}


def ocsf_event(
    event: AuditEvent, item: int, genuine: bool | None, own: dict[str, object]
) -> dict[str, object]:
    """An event, or an item of a batch, with its line in the library's own schema."""
    activity, kind = _ACTIVITIES.get(event.action, (_OTHER, _TOKEN))
    done = event.outcome is Outcome.DONE
    line = _head(activity, event.action.name, _severity(event, genuine))
    line |= {
        "actor": _actor(event),
        "entity": _entity(event, kind),
        "message": f"{event.action.name} {event.outcome.name}",
        "metadata": _metadata(event.stream, event.number, item, event.action.name),
        "status": "Success" if done else "Failure",
        "status_code": event.codes[0] if event.codes and not done else event.outcome.name,
        "status_id": 1 if done else 2,
        "time": round(event.time.timestamp() * 1_000),
        "unmapped": {"tokenvault": own},
    }
    if event.codes:
        line["status_detail"] = ", ".join(event.codes)
    return line


def unreadable_event(stream: bytes, number: int, own: dict[str, object]) -> dict[str, object]:
    """An event that can not be read, at the time when its stream began."""
    name = stream.hex()
    began_ms = int.from_bytes(stream[:_STREAM_TIME_BYTES])
    return {
        **_head(0, "", _CRITICAL),
        "entity": {"name": "unknown", "type": _TRAIL, "type_id": _OTHER, "uid": name},
        "message": "an audit event can not be read",
        "metadata": _metadata(name, number, 0, "UNREADABLE"),
        "status": "Failure",
        "status_code": "UNREADABLE",
        "status_id": 2,
        "time": min(began_ms, TIME_MS_MAX),
        "unmapped": {"tokenvault": own},
    }


def _head(activity: int, action: str, severity: int) -> dict[str, object]:
    return {
        "activity_id": activity,
        "activity_name": _CAPTIONS.get(activity, action),
        "category_uid": CATEGORY_UID,
        "class_uid": CLASS_UID,
        "severity_id": severity,
        "type_uid": 100 * CLASS_UID + activity,
    }


def _severity(event: AuditEvent, genuine: bool | None) -> int:
    if genuine is False:
        return _CRITICAL
    if event.action is Action.LOCK_OUT or event.action in DUAL_CONTROL:
        return max(_MEDIUM, _SEVERITIES[event.outcome])
    return _SEVERITIES[event.outcome]


def _actor(event: AuditEvent) -> dict[str, object]:
    actor: dict[str, object] = {}
    if event.operator is not None:
        actor["user"] = {"name": event.operator}
    if event.requestor is not None and event.action not in LOCKING:
        actor["app_uid"] = event.requestor
    return actor or {"app_name": "host"}


def _entity(event: AuditEvent, kind: str) -> dict[str, object]:
    entity: dict[str, object] = {"type": kind, "type_id": _OTHER}
    if kind is _TOKEN:
        uid = event.reference
    elif kind is _TRAIL:
        uid = event.stream
    elif kind is _REQUEST:
        uid = event.transaction_id
    elif event.action in LOCKING:
        uid = event.requestor
    else:  # its codes begin with what it is about: a key's purpose and version, or a name and a version
        uid = " ".join(event.codes[: 2 if kind is _KEY else 1]) or None
    return entity | ({"name": "unknown"} if uid is None else {"uid": uid})


def _metadata(stream: str, number: int, item: int, action: str) -> dict[str, object]:
    """What the event is known by: `uid` is the same whenever it is exported."""
    return {
        "event_code": action,
        "log_name": "audit trail",
        "log_version": str(SCHEMA_VERSION),
        "product": {"name": "tokenvault", "vendor_name": "tokenvault"},
        "sequence": number,
        "uid": f"{stream}-{number}-{item}",
        "version": OCSF_VERSION,
    }
