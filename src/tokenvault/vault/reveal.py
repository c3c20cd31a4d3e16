"""Showing one card number to a person, once another person has approved it."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from tokenvault.audit.event import Event, Outcome
from tokenvault.errors import IntegrityError, LifecycleError
from tokenvault.model.dual_control import KEY_BYTES, RevealRequest
from tokenvault.model.pan import Card
from tokenvault.records.record import TokenRecord
from tokenvault.vault import dual_control
from tokenvault.vault.core import Core, not_found
from tokenvault.vault.dual_control import REVEAL, Call
from tokenvault.vault.uses import genuine_events


class _Living(NamedTuple):
    """A token that has a card, and what the trail says of a request."""

    record: TokenRecord
    card: Card
    events: list[Event]


async def request_reveal(core: Core, name: str | bytes, operator: object, purpose: object) -> RevealRequest:
    """Ask to see the card number behind a token."""
    number = secrets.token_bytes(KEY_BYTES)
    call = await dual_control.step(core, REVEAL, REVEAL.request, operator, number)
    allowed = await dual_control.allowed_purpose(core, call, purpose)
    record = (await _read(core, call, name)).record
    return await dual_control.ask(core, call, record.reference, (allowed,))


async def approve(core: Core, request: tuple[bytes, bytes], operator: object) -> RevealRequest:
    """Approve another person's request."""
    subject, number = request
    call = await dual_control.step(core, REVEAL, REVEAL.approve, operator, number)
    await call.policy(core)
    found = await dual_control.check(core, call, subject, (await _read(core, call, subject)).events)
    await core.trail.note(call.event(core.clock.now_ms(), found.asked.codes, subject))
    return found.request(core, subject, approved_by=call.operator)


async def reveal(core: Core, request: tuple[bytes, bytes], operator: object) -> Card:
    """The card of an approved request, once; to who asked, once the event is written."""
    subject, number = request
    call = await dual_control.step(core, REVEAL, REVEAL.use, operator, number)
    await call.policy(core)
    living = await _read(core, call, subject)
    found = await dual_control.check(core, call, subject, living.events)
    await dual_control.claim(core, call, subject)
    conflicts = 0
    while True:
        event = call.event(core.clock.now_ms(), found.asked.codes, subject)
        # A deletion that was acknowledged holds.
        if not await core.trail.note(event, ((living.record.token, living.record.revision),)):
            return living.card
        conflicts = await core.conflict(conflicts)
        living = await _read(core, call, subject)


async def _read(core: Core, call: Call, name: str | bytes) -> _Living:
    """A token, given the token or its reference, and the events of the call's request, all authenticated.

    Raises TokenNotFoundError, LifecycleError and IntegrityError, once it is noted.
    """
    found = await core.store.get_use(name, (call.number,))
    if found.record is None:
        await call.deny(core, outcome=Outcome.NOT_FOUND)
        raise not_found(name)
    claimed = found.record.reference
    try:
        record, card = await core.open(found.record, name)
        events = [event for _, event in await genuine_events(core, found.events, (record.reference,))]
    except IntegrityError:
        await call.deny(core, reference=claimed, outcome=Outcome.TAMPERED)
        raise
    if card is None:
        await call.deny(core, "LIFECYCLE", reference=record.reference)
        raise LifecycleError("the token is deleted: it has no card")
    return _Living(record, card, events)
