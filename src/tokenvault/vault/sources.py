"""The source of a token that is issued from another one: what it has to be, also once the new token is written."""

from __future__ import annotations

from typing import Final

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import ConflictError, InvalidInputError, LifecycleError, PermissionDeniedError
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.records.record import TokenRecord
from tokenvault.vault.alterations import tombstone
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.guard import Tally
from tokenvault.vault.orders import Grant, Order

SOURCES_MAX: Final = 8
"""How many tokens of a chain were each issued from the one before."""

NOT_ACTIVE: Final = "SOURCE_NOT_ACTIVE"


async def refuse_receiver(core: Core, requestor: str) -> None:
    """Raise PermissionDeniedError, once it is noted, if nobody knows whom a token is for, or if it is locked out.

    Of a source that is not there nobody is the holder: whom the token would be for has asked in vain.
    """
    if await core.parties.requestor(requestor) is None:
        await core.deny(Action.ISSUE, requestor, "REQUESTOR_UNKNOWN")
        raise PermissionDeniedError(
            "the requestor that the token is for is not registered with the vault", code="REQUESTOR_UNKNOWN"
        )
    await core.guards.refresh(requestor)
    await core.refuse_locked_out(requestor, Action.ISSUE, None)


async def refuse_long_chain(core: Core, source: TokenRecord) -> None:
    """Raise LifecycleError, once it is noted, if a token from this one would end a chain that is too long."""
    record = source
    for _ in range(SOURCES_MAX):
        if not record.source:
            return
        record = (await core.read(record.source, None)).record
    await core.deny(Action.ISSUE, source.requestor, "SOURCES_EXCEEDED", reference=source.reference)
    raise LifecycleError(
        f"at most {SOURCES_MAX} tokens are issued one from another: issue from an earlier one",
        code="SOURCES_EXCEEDED",
    )


def source_not_active() -> LifecycleError:
    """The error for a source that is not active."""
    return LifecycleError("tokens are issued from an active token", code=NOT_ACTIVE)


async def refuse_number_as_customer(core: Core, grant: Grant, source: TokenRecord) -> None:
    """Refuse a customer that could hold any card number, or a token: it is kept in clear.

    Nothing is compared with the card itself: who asks does not know it, and would learn it from the answers.
    """
    if not grant.customer or not core.trail.ids.could_hold_number(grant.customer):
        return
    tally = Tally(core.guards)
    tally.refusal(source.requestor, core.keys.failure("customer", source.reference.hex(), grant.customer))
    code = "CARD_NUMBER_IN_TEXT"
    await core.deny(Action.ISSUE, source.requestor, code, reference=source.reference, tally=tally)
    raise InvalidInputError("the customer could hold a card number: use an id that does not", code=code)


async def refuse_withdrawn(core: Core, order: Order, new_one: Unsealed) -> None:
    """Delete a new token whose source was suspended, deleted or given another card while it was issued.

    Where the source still is as it has to be, after the token was written, the token came before any change of that.
    """
    source = await core.read(order.source, None)
    active = source.record.status is TokenStatus.ACTIVE
    if active and source.card is not None and source.card.pan == order.card.pan:
        return
    code = NOT_ACTIVE if not active else "SOURCE_CHANGED"
    await _revoke(core, new_one.record, source.record, code)
    await core.deny(Action.ISSUE, source.record.requestor, code, reference=order.source)
    if not active:
        raise source_not_active()
    raise ConflictError("the source was given another card meanwhile; nothing was issued: retry", code=code)


async def _revoke(core: Core, given: TokenRecord, source: TokenRecord, code: str) -> None:
    """Delete a token that was issued from a source."""
    conflicts = 0
    while True:
        record, card = await core.read(given.token, None)
        if card is None:
            return
        now_ms, revision = core.clock.now_ms(), record.revision + 1
        gone = tombstone(core.keys, record, card.pan)._replace(updated_ms=now_ms, revision=revision)
        event = Event(
            time_ms=now_ms,
            action=Action.DELETE,
            outcome=Outcome.DONE,
            requestor=source.requestor,
            reference=record.reference,
            codes=(code,),
            revision=revision,
        )
        if not await core.replace(Unsealed(gone, None), event):
            return
        conflicts = await core.conflict(conflicts)
