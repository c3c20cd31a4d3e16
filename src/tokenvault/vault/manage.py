"""Reading and changing tokens: status, domain, card."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import (
    IntegrityError,
    InvalidInputError,
    LifecycleError,
    PermissionDeniedError,
    TokenNotFoundError,
)
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, Change, TokenStatus, transition
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.model.programs import Permission
from tokenvault.records.token_info import TokenInfo, info_of
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.issue import expired


async def get(core: Core, name: str | bytes) -> TokenInfo:
    """The properties of a token, given the token or its reference."""
    if isinstance(name, str):
        return info_of(*await core.read(name, None))
    row = await core.store.by_reference(name)
    if row is None:
        raise TokenNotFoundError("no token with this reference in this vault")
    if row.reference != name:
        raise IntegrityError("the database answered with another reference's record")
    return info_of(*await core.open(row))


async def tokens_of(core: Core, pan: Pan, requestor: str | None) -> list[TokenInfo]:
    """The tokens of a card that are not deleted, by token."""
    if requestor is not None:
        await core.permit(requestor, Permission.MANAGE, Action.LOOK_UP)
    return [info_of(*unsealed) for unsealed in await _live(core, pan, requestor)]


async def change_status(
    core: Core, token: str, change: Change, by: Actor | None = None, requestor: str | None = None
) -> TokenInfo:
    """Change the status of a token."""

    def alter(unsealed: Unsealed) -> Unsealed:
        record, card = unsealed
        status, suspended_by = transition(record.status, record.suspended_by, change, by)
        kept = None if status is TokenStatus.DELETED else card
        return Unsealed(record._replace(status=status, suspended_by=suspended_by), kept)

    return await _change(core, token, Action[change.name], alter, requestor, by)


async def update_domain(core: Core, token: str, domain: Domain, requestor: str | None) -> TokenInfo:
    """Give a token another domain of its own."""
    (_, card), _ = await _manageable(core, token, Action.UPDATE_DOMAIN, requestor)
    # For the host only, which may know the card. A requestor could test guesses of the card by it.
    if requestor is None and card is not None and domain.contains_pan(card.pan):
        raise InvalidInputError(
            "the domain holds the card number: use ids that do not", code="CARD_NUMBER_IN_TEXT"
        )
    await core.documents.put(domain)

    def alter(unsealed: Unsealed) -> Unsealed:
        record, card = unsealed
        if card is None:
            raise LifecycleError("a deleted token has no domain")
        return Unsealed(record._replace(domain=domain.digest), card)

    return await _change(core, token, Action.UPDATE_DOMAIN, alter, requestor)


async def update_card(
    core: Core, pan: Pan, *, new_pan: Pan | None, expiry: CardExpiry | None, requestor: str | None
) -> list[TokenInfo]:
    """Put a new PAN or expiry behind all tokens of a card; each token in a step of its own."""
    if new_pan is None and expiry is None:
        raise InvalidInputError("update_card takes a new PAN, a new expiry, or both")
    if requestor is not None:
        await core.permit(requestor, Permission.MANAGE, Action.UPDATE_CARD)
    if new_pan is not None:
        core.refuse_token_as_pan(new_pan)
    if expiry is not None and expiry.passed(core.clock.now_ms()):
        raise expired("the card")
    pan_fingerprint = None if new_pan is None else await core.runtime.call(core.keys.pan_fingerprint, new_pan)

    def alter(unsealed: Unsealed) -> Unsealed:
        record, card = unsealed
        if card is None or card.pan not in (pan, new_pan):
            raise LifecycleError("the token was deleted or given another card meanwhile")
        changed = record._replace(pan_fingerprint=pan_fingerprint or record.pan_fingerprint)
        return Unsealed(changed, Card(new_pan or card.pan, expiry or card.expiry))

    # All are read before the first is changed: a changed one moves to another PAN fingerprint.
    live = [record for record, _ in await _live(core, pan, requestor)]
    if not live:
        raise TokenNotFoundError("this card has no token in this vault", code="CARD_HAS_NO_TOKEN")
    if new_pan is not None:
        for record in live:
            domain = await core.documents.get(record.domain)
            if domain.contains_pan(new_pan) or new_pan.stands_in(record.par or ""):
                raise InvalidInputError(
                    "a token's domain or par holds the new card number: change that first"
                )
    infos = []
    for record in live:
        with suppress(LifecycleError):  # deleted, or given another card, since it was read; that is noted
            infos.append(await _change(core, record.token, Action.UPDATE_CARD, alter, requestor))
    return infos


async def _live(core: Core, pan: Pan, requestor: str | None) -> list[Unsealed]:
    """The records of a card that are not tombstones."""
    pan_fingerprints = await core.runtime.call(core.keys.pan_fingerprints, pan)
    return [
        unsealed
        async for unsealed in core.of_card(pan_fingerprints, requestor)
        if unsealed.card is not None and unsealed.card.pan == pan
    ]


async def _change(
    core: Core,
    token: str,
    action: Action,
    alter: Callable[[Unsealed], Unsealed],
    requestor: str | None,
    actor: Actor | None = None,
) -> TokenInfo:
    """Write what `alter` makes of a record, with its event. Raises LifecycleError, once that is noted."""
    codes = () if actor is None else (actor.name,)
    conflicts = 0
    while True:
        unsealed, acting = await _manageable(core, token, action, requestor, actor)
        before = unsealed.record
        try:
            record, card = alter(unsealed)
        except LifecycleError:
            await core.deny(action, acting, "LIFECYCLE", *codes, reference=before.reference)
            raise
        now_ms, revision = core.clock.now_ms(), before.revision + 1
        changed = Unsealed(record._replace(updated_ms=now_ms, revision=revision), card)
        event = Event(
            time_ms=now_ms,
            action=action,
            outcome=Outcome.DONE,
            requestor=acting,
            reference=before.reference,
            codes=codes,
            revision=revision,
        )
        if not await core.replace(changed, event):
            return info_of(*changed)
        conflicts = await core.conflict(conflicts)


async def _manageable(
    core: Core, token: str, action: Action, requestor: str | None, actor: Actor | None = None
) -> tuple[Unsealed, str | None]:
    """The record of a token, and the requestor that acts, named or as the actor; None for the host itself.

    Raises PermissionDeniedError, once it is noted that whoever acts may not manage the token.
    """
    if requestor is not None:
        await core.permit(requestor, Permission.MANAGE, action)
        if actor not in (None, Actor.REQUESTOR):
            await core.deny(action, requestor, "ACTOR_NOT_ALLOWED")
            raise PermissionDeniedError(
                "a requestor acts as Actor.REQUESTOR, for no other actor", code="ACTOR_NOT_ALLOWED"
            )
    unsealed = await core.read(token, action, requestor)
    record, acting = unsealed.record, requestor
    if requestor is None and actor is Actor.REQUESTOR:
        acting = record.requestor
        await core.permit(acting, Permission.MANAGE, action)
    if acting is not None and acting != record.requestor:
        await core.deny(action, acting, "NOT_ITS_TOKEN", reference=record.reference)
        raise PermissionDeniedError(
            "a requestor manages only the tokens that were issued to it", code="NOT_ITS_TOKEN"
        )
    return unsealed, acting
