"""Reading and changing tokens: status, domain, card."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import (
    IntegrityError,
    InvalidInputError,
    LifecycleError,
    PermissionDeniedError,
    TokenNotFoundError,
    TokenStoreError,
)
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, Change, TokenStatus, transition
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.model.programs import Permission
from tokenvault.records.record import TokenRecord
from tokenvault.records.token_info import TokenInfo, info_of
from tokenvault.vault.core import Core, Unsealed

CARD_PAGE: Final = 100
CARD_TOKENS_MAX: Final = 100_000
"""The most tokens of one card that one call reads or changes."""

_ACTIONS: Final = {
    Change.ACTIVATE: Action.ACTIVATE,
    Change.SUSPEND: Action.SUSPEND,
    Change.RESUME: Action.RESUME,
    Change.DELETE: Action.DELETE,
}


async def get(core: Core, token: str | None, reference: bytes | None) -> TokenInfo:
    """What is told of a token, found by itself or by its reference."""
    if token is not None:
        opened = await core.read(token, None)
        return info_of(opened.record, opened.card)
    row = await core.store.by_reference(reference or b"")
    if row is None:
        raise TokenNotFoundError("no token with this reference in this vault")
    if row.reference != reference:
        raise IntegrityError("the database answered with another reference's record")
    opened = await core.open(row)
    return info_of(opened.record, opened.card)


async def tokens_of(core: Core, pan: Pan, requestor: str | None) -> list[TokenInfo]:
    """The tokens of a card that are not deleted, by token."""
    if requestor is not None:
        await core.permit(requestor, Permission.MANAGE, Action.LOOK_UP)
    return [info_of(opened.record, opened.card) async for opened in _live(core, pan, requestor)]


async def change_status(
    core: Core, token: str, change: Change, actor: Actor | None, requestor: str | None
) -> TokenInfo:
    """Move a token along its life."""

    def alter(opened: Unsealed) -> Unsealed:
        record = opened.record
        status, suspended_by = transition(record.status, record.suspended_by, change, actor)
        card = None if status is TokenStatus.DELETED else opened.card
        return Unsealed(record._replace(status=status, suspended_by=suspended_by), card)

    codes = () if actor is None else (actor.name,)
    return await _change(core, token, _ACTIONS[change], alter, actor, requestor, codes)


async def update_domain(core: Core, token: str, domain: Domain, requestor: str | None) -> TokenInfo:
    """Give a token another domain of its own."""
    opened = await _manageable(core, token, Action.UPDATE_DOMAIN, None, requestor)
    # For the host only: it knows the card or may. A requestor could try guesses by it.
    if requestor is None and opened.card is not None and domain.contains_pan(opened.card.pan):
        raise InvalidInputError("the domain holds the card number: use ids that do not")
    await core.documents.put(domain)

    def alter(opened: Unsealed) -> Unsealed:
        if opened.card is None:
            raise LifecycleError("a deleted token has no domain")
        return Unsealed(opened.record._replace(domain=domain.digest), opened.card)

    return await _change(core, token, Action.UPDATE_DOMAIN, alter, None, requestor, ())


async def update_card(
    core: Core, pan: Pan, new_pan: Pan | None, expiry: CardExpiry | None, requestor: str | None
) -> list[TokenInfo]:
    """Put a new PAN or expiry behind all tokens of a card; each token in a step of its own."""
    if requestor is not None:
        await core.permit(requestor, Permission.MANAGE, Action.UPDATE_CARD)
    if new_pan is not None:
        core.refuse_token_as_pan(new_pan)
    if expiry is not None and expiry.passed(core.clock.now_ms()):
        raise InvalidInputError("the card has expired already; a card is valid through its expiry month")
    pan_fingerprint = None if new_pan is None else await core.runtime.call(core.keys.pan_fingerprint, new_pan)

    def alter(opened: Unsealed) -> Unsealed:
        if opened.card is None or opened.card.pan not in (pan, new_pan):
            raise LifecycleError("the token was deleted or given another card meanwhile")
        card = Card(new_pan or opened.card.pan, expiry or opened.card.expiry)
        return Unsealed(
            opened.record._replace(pan_fingerprint=pan_fingerprint or opened.record.pan_fingerprint), card
        )

    # All are read before the first is changed: a changed one moves to another pan_fingerprint.
    live = [opened.record async for opened in _live(core, pan, requestor)]
    if not live:
        raise TokenNotFoundError("this card has no token in this vault")
    for record in live if new_pan is not None else ():
        domain = await core.documents.get(record.domain)
        if new_pan is not None and (domain.contains_pan(new_pan) or new_pan.stands_in(record.par or "")):
            raise InvalidInputError("a token's domain or par holds the new card number: change that first")
    changed = []
    for record in live:
        try:
            changed.append(await _change(core, record.token, Action.UPDATE_CARD, alter, None, requestor, ()))
        except LifecycleError:  # deleted, or given another card, since it was read; that is noted
            continue
    return changed


async def _live(core: Core, pan: Pan, requestor: str | None) -> AsyncIterator[Unsealed]:
    """The records of a card that are not tombstones."""
    read = 0
    for pan_fingerprint in await core.runtime.call(core.keys.pan_fingerprints, pan):
        after = ""
        while True:
            rows = await core.store.find(pan_fingerprint, requestor=requestor, after=after, limit=CARD_PAGE)
            for row in rows:
                opened = await core.open(row)
                if opened.card is not None and opened.card.pan == pan:
                    yield opened
            read += len(rows)
            if len(rows) < CARD_PAGE:
                break
            if read >= CARD_TOKENS_MAX:
                raise TokenStoreError(f"this card has over {CARD_TOKENS_MAX} tokens: ask for one requestor's")
            after = rows[-1].token


async def _change(
    core: Core,
    token: str,
    action: Action,
    alter: Callable[[Unsealed], Unsealed],
    actor: Actor | None,
    requestor: str | None,
    codes: tuple[str, ...],
) -> TokenInfo:
    conflicts = 0
    while True:
        opened = await _manageable(core, token, action, actor, requestor)
        record = opened.record
        acting = _acting(record, actor, requestor)
        refused: LifecycleError | None = None
        altered = opened
        try:
            altered = alter(opened)
        except LifecycleError as error:
            refused = error
        if refused is not None:
            await core.deny(action, acting, "LIFECYCLE", *codes, reference=record.reference)
            raise refused
        now_ms, revision = core.clock.now_ms(), record.revision + 1
        changed = Unsealed(altered.record._replace(updated_ms=now_ms, revision=revision), altered.card)
        event = Event(
            time_ms=now_ms,
            action=action,
            outcome=Outcome.DONE,
            requestor=acting,
            reference=record.reference,
            codes=codes,
            revision=revision,
        )
        if not await core.replace(*changed, event):
            return info_of(changed.record, changed.card)
        conflicts = await core.conflict(conflicts)


async def _manageable(
    core: Core, token: str, action: Action, actor: Actor | None, requestor: str | None
) -> Unsealed:
    """The record of a token that whoever acts may manage. Raises PermissionDeniedError, once it is noted."""
    if requestor is not None:
        await core.permit(requestor, Permission.MANAGE, action)
        if actor not in (None, Actor.REQUESTOR):
            await core.deny(action, requestor, "ACTOR_NOT_ALLOWED")
            raise PermissionDeniedError("a requestor acts as Actor.REQUESTOR, for no other actor")
    opened = await core.read(token, action, requestor)
    acting = _acting(opened.record, actor, requestor)
    if acting is not None and requestor is None:
        await core.permit(acting, Permission.MANAGE, action)
    if acting is not None and acting != opened.record.requestor:
        await core.deny(action, acting, "NOT_ITS_TOKEN", reference=opened.record.reference)
        raise PermissionDeniedError("a requestor manages only the tokens that were issued to it")
    return opened


def _acting(record: TokenRecord, actor: Actor | None, requestor: str | None) -> str | None:
    """The requestor that acts, named or as the actor; None for the host application itself."""
    return record.requestor if requestor is None and actor is Actor.REQUESTOR else requestor
