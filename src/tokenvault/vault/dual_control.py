"""Dual control: one person asks, another one approves, and what was approved happens once.

What was asked and approved are events of the audit trail, found by the index and authenticated by their MACs: who
writes to the database alone approves nothing. That a request is used once is a named value, of which the first one
wins. So is each request of a person's day; and the day's events are counted too.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final, NamedTuple, NoReturn

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import ConfigurationError, InvalidInputError, PermissionDeniedError
from tokenvault.model.dual_control import RevealPolicy, RevealRequest, letters, person, person_day
from tokenvault.model.dual_control import operator as operator_of
from tokenvault.model.plain_text import plain_text
from tokenvault.records.token_info import instant
from tokenvault.vault.core import Core

MINUTE_MS: Final = 60_000
CLOCK_AHEAD_MS_MAX: Final = MINUTE_MS
"""How far the clock that a request was made by may be ahead of the one that looks at it."""

_CLAIM_BYTES: Final = 16

_REFUSALS: Final = {
    "PURPOSE_NOT_ALLOWED": "the purpose is not one that the vault's RevealPolicy lists",
    "REQUESTS_EXCEEDED": "this person has made as many requests as the RevealPolicy allows in a day",
    "REQUEST_UNKNOWN": "there is no such request",
    "REQUEST_LATE": "the request has outlived the minutes that the RevealPolicy gives it: make another",
    "REQUEST_USED": "the request was used before: it is good for one time",
    "REQUEST_APPROVED": "the request is approved already",
    "REQUEST_NOT_APPROVED": "another person has to approve the request first",
    "SAME_PERSON": "who made the request can not approve it: another person has to",
    "RECIPIENT_DIFFERS": "the request was made, and approved, for another public key",
    "NOT_WHO_ASKED": "an approved request is used by the person who made it",
}


class Steps(NamedTuple):
    """The three steps of something under dual control."""

    request: Action
    approve: Action
    use: Action


REVEAL: Final = Steps(Action.REQUEST_REVEAL, Action.APPROVE_REVEAL, Action.REVEAL)
EXPORT: Final = Steps(Action.REQUEST_EXPORT, Action.APPROVE_EXPORT, Action.EXPORT)


class Call(NamedTuple):
    """A step that a person takes.

    Attributes:
        steps: which dual control it belongs to.
        action: the step.
        operator: the person.
        number: 16 random bytes that name the request.
    """

    steps: Steps
    action: Action
    operator: str
    number: bytes

    def event(self, now_ms: int, codes: tuple[str, ...], reference: bytes) -> Event:
        """The event of the step, carried out."""
        return Event(
            time_ms=now_ms,
            action=self.action,
            outcome=Outcome.DONE,
            reference=reference,
            transaction_id=letters(self.number),
            operator=self.operator,
            codes=codes,
        )

    async def deny(
        self, core: Core, *codes: str, reference: bytes = b"", outcome: Outcome = Outcome.DENIED
    ) -> None:
        """Note that the step was refused. Raises TokenStoreError."""
        await core.deny(
            self.action,
            None,
            *codes,
            reference=reference,
            transaction_id=letters(self.number),
            operator=self.operator,
            outcome=outcome,
        )

    async def refuse(self, core: Core, code: str, reference: bytes = b"") -> NoReturn:
        """Raise PermissionDeniedError, once it is noted."""
        await self.deny(core, code, reference=reference)
        raise PermissionDeniedError(_REFUSALS[code], code=code)

    async def policy(self, core: Core) -> RevealPolicy:
        """The vault's policy. Raises ConfigurationError, once that is noted, where it has none."""
        if core.reveal is None:
            await self.deny(core, "REVEAL_NOT_CONFIGURED")
            raise ConfigurationError(
                "this vault was opened without a RevealPolicy: no card number leaves it but for payments",
                code="REVEAL_NOT_CONFIGURED",
            )
        return core.reveal


async def step(core: Core, steps: Steps, action: Action, operator: object, number: bytes) -> Call:
    """The step that a person takes, as the caller names them.

    Raises InvalidInputError, once it is noted, for a name that is refused: it stands in no event.
    """
    try:
        return Call(steps, action, operator_of(operator), number)
    except InvalidInputError as error:
        refused = error
    await core.deny(action, None, refused.code, transaction_id=letters(number))
    raise refused


class Found(NamedTuple):
    """What the trail has on a request.

    Attributes:
        asked: how it was made.
        approved: how another person approved it; None so far.
        used: whether it was used.
    """

    asked: Event
    approved: Event | None
    used: bool

    def request(self, core: Core, subject: bytes, approved_by: str | None = None) -> RevealRequest:
        """The request as callers see it."""
        asked = self.asked
        minutes = 0 if core.reveal is None else core.reveal.minutes
        return RevealRequest(
            id=letters(subject) + (asked.transaction_id or ""),
            reference=subject.hex(),
            purpose=asked.codes[0],
            requested_by=asked.operator or "",
            requested=instant(asked.time_ms),
            expires=instant(asked.time_ms + minutes * MINUTE_MS),
            approved_by=approved_by,
            terms=asked.codes[1:],
        )


async def ask(core: Core, call: Call, subject: bytes, codes: tuple[str, ...]) -> RevealRequest:
    """Make a request. Raises PermissionDeniedError, once it is noted, where the person has made too many today."""
    now_ms = core.clock.now_ms()
    if not await _spend(core, call, now_ms):
        await call.refuse(core, "REQUESTS_EXCEEDED", subject)
    asked = call.event(now_ms, codes, subject)
    await core.trail.note(asked)
    return Found(asked, None, used=False).request(core, subject)


async def allowed_purpose(core: Core, call: Call, purpose: object) -> str:
    """A purpose that the policy lists. Raises PermissionDeniedError, once it is noted, for another one."""
    policy = await call.policy(core)
    text = plain_text(purpose)
    if not isinstance(text, str) or text not in policy.purposes:
        await call.refuse(core, "PURPOSE_NOT_ALLOWED")
    return text


async def _spend(core: Core, call: Call, now_ms: int) -> bool:
    """Take one of the requests that a person has in a day; False where none is left.

    Rows of the index are counted whatever they lead to: one that is planted takes a request away, and gives none.
    """
    most = (await call.policy(core)).per_person_and_day
    day = person_day(call.action, call.operator, now_ms)
    made = len((await core.store.events_about(day, limit=most)).events)
    for place in range(made, most):
        if await core.store.put_meta(f"requested/{day.hex()}/{place}", call.number) == call.number:
            return True
    return False


async def check(core: Core, call: Call, subject: bytes, events: Iterable[Event]) -> Found:
    """What the trail has on a request, if a step may follow. Raises PermissionDeniedError, once it is noted."""
    policy = await call.policy(core)
    found = _found(call, subject, events)
    refusal = "REQUEST_UNKNOWN" if found is None else _refusal(call, found, policy, core.clock.now_ms())
    if found is None or refusal is not None:
        await call.refuse(core, refusal or "REQUEST_UNKNOWN", subject)
    return found


def _found(call: Call, subject: bytes, events: Iterable[Event]) -> Found | None:
    """What events say of a request: of this one and of this subject, whatever the index led to."""
    its_own = [
        event
        for event in events
        if event.reference == subject
        and event.transaction_id == letters(call.number)
        and event.outcome is Outcome.DONE
        and event.operator
    ]
    asked = [event for event in its_own if event.action is call.steps.request]
    if len(asked) != 1:
        return None
    approved = [
        event
        for event in its_own
        if event.action is call.steps.approve and not _same(event.operator, asked[0].operator)
    ]
    used = any(event.action is call.steps.use for event in its_own)
    return Found(asked[0], min(approved, key=lambda event: event.time_ms, default=None), used)


def _refusal(call: Call, found: Found, policy: RevealPolicy, now_ms: int) -> str | None:
    """Why a step may not follow."""
    asked = found.asked
    is_who_asked = _same(call.operator, asked.operator)
    age_ms = now_ms - asked.time_ms
    if call.action is call.steps.approve:
        reasons = {"SAME_PERSON": is_who_asked, "REQUEST_APPROVED": found.approved is not None}
    else:
        reasons = {"NOT_WHO_ASKED": not is_who_asked, "REQUEST_NOT_APPROVED": found.approved is None}
    reasons = {
        "PURPOSE_NOT_ALLOWED": asked.codes[0] not in policy.purposes,
        "REQUEST_LATE": not -CLOCK_AHEAD_MS_MAX <= age_ms < policy.minutes * MINUTE_MS,
        "REQUEST_USED": found.used,
        **reasons,
    }
    return next((code for code, holds in reasons.items() if holds), None)


async def claim(core: Core, call: Call, subject: bytes) -> None:
    """Use a request up: of all who try, in whichever process, one comes first. Raises PermissionDeniedError."""
    own = secrets.token_bytes(_CLAIM_BYTES)
    if await core.store.put_meta(f"used/{call.number.hex()}", own) != own:
        await call.refuse(core, "REQUEST_USED", subject)


def _same(one: str | None, other: str | None) -> bool:
    return person(one or "") == person(other or "")
