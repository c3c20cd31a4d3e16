"""Reading and changing tokens: status, domain, card, properties.

What a change makes of a record stands in `alterations`; who may make it, and how it is written, is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from tokenvault.audit.batch_event import ITEMS_MAX, BatchEvent, Kind
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.guard_note import Failure
from tokenvault.errors import (
    InvalidInputError,
    LifecycleError,
    PermissionDeniedError,
    TokenNotFoundError,
)
from tokenvault.model import remaining as left_of
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, Change
from tokenvault.model.pan import Card, Pan
from tokenvault.model.programs import Permission
from tokenvault.model.remaining import Remaining
from tokenvault.records.record import TokenRecord
from tokenvault.records.token_info import TokenInfo, info_of
from tokenvault.vault.alterations import (
    Alteration,
    NewCard,
    Properties,
    acting_as,
    assurance_change,
    card_change,
    domain_change,
    property_change,
    refuse_card,
    refuse_other_par,
    status_change,
    winding_down,
)
from tokenvault.vault.core import Core, Unsealed, failed, requestor_unknown
from tokenvault.vault.descent import descendants
from tokenvault.vault.guard import Tally
from tokenvault.vault.orders import expired
from tokenvault.vault.sources import SOURCES_MAX

NOT_ITS_TOKEN: Final = "NOT_ITS_TOKEN"  # noqa: S105 # a code
LIFECYCLE_CODE: Final = "LIFECYCLE"
_FOR_SOURCE: Final = (Action.SUSPEND, Action.RESUME, Action.DELETE)
"""What the holder of a token may do to those that were issued from it."""


class By(NamedTuple):
    """Who changes a token.

    Attributes:
        requestor: id of the calling requestor; None for the host application itself.
        actor: on whose behalf a token is suspended or resumed.
        operator: the person behind the call, as the host names them; stands in the event.
    """

    requestor: str | None = None
    actor: Actor | None = None
    operator: str | None = None

    @property
    def host(self) -> bool:
        """Whether the host application itself acts, which may know the card."""
        return self.requestor is None


HOST: Final = By()
_NO_CARD: Final = NewCard(None, None)


# Reading.


async def get(core: Core, name: str | bytes) -> TokenInfo:
    """The properties of a token, given the token or its reference."""
    return await core.info(await core.read(name, None))


async def domain(core: Core, name: str | bytes) -> Domain:
    """The token's own domain."""
    return await core.documents.get((await core.read(name, None)).record.domain)


async def remaining(core: Core, name: str | bytes) -> tuple[Remaining, ...]:
    """What is left of each limit that applies to a token."""
    record = (await core.read(name, None)).record
    restrictions = await core.documents.restrictions(core.parties, record, record.requestor)
    return left_of.remaining(restrictions, record.usage, core.clock.now_ms())


async def tokens_of(core: Core, pan: Pan, requestor: str | None) -> list[TokenInfo]:
    """The tokens of a card that are not deleted, by token.

    It leaves an event, of each token that is found too; but where the host itself finds what it asks for.
    """
    if requestor is not None:
        await core.permit_by_card(requestor, Action.LOOK_UP)
    live = await live_tokens(core, pan, requestor)
    if not live and requestor is None:
        await core.deny(Action.LOOK_UP, requestor, outcome=Outcome.NOT_FOUND)
    elif not live and requestor is not None:
        await core.deny_miss(Action.LOOK_UP, requestor, "card", pan.reveal())
    for start in range(0, 0 if requestor is None else len(live), ITEMS_MAX):
        await core.trail.note(_found_by_card(core, requestor, live[start : start + ITEMS_MAX]))
    return [await core.info(unsealed) for unsealed in live]


def _found_by_card(core: Core, requestor: str | None, live: Sequence[Unsealed]) -> Event | BatchEvent:
    """The event of tokens that were found by the number of their card."""
    now_ms = core.clock.now_ms()
    notes = BatchEventBuilder(len(live), core.trail.ids.kept)
    for row, unsealed in enumerate(live):
        notes.note(row, unsealed.record.reference, 0, Kind(Outcome.DONE, requestor))
    batch = notes.event(now_ms, Action.LOOK_UP) if len(live) > 1 else None
    return batch or Event(now_ms, Action.LOOK_UP, Outcome.DONE, requestor, live[0].record.reference)


async def tokens_from(core: Core, name: str | bytes, requestor: str | None) -> list[TokenInfo]:
    """The tokens that were issued from a token, directly or not, and are not deleted, by token."""
    source, _ = await manageable(core, name, Action.LOOK_UP, By(requestor))
    return [await told(core, each, requestor, source.card) for each in await descendants(core, source)]


async def told(core: Core, unsealed: Unsealed, requestor: str | None, own: Card | None = None) -> TokenInfo:
    """What a requestor may know of a token: of one of others, which came from its own, nothing that they put there.

    Its own card is shown, where it is the token's too.
    """
    record, card = unsealed
    if requestor in (None, record.requestor):
        return await core.info(unsealed)
    same = own is not None and card is not None and own.pan == card.pan
    return info_of(record._replace(customer=""), own if same else None)


async def live_tokens(core: Core, pan: Pan, requestor: str | None) -> list[Unsealed]:
    """The records of a card that are not tombstones."""
    pan_fingerprints = await core.runtime.call(core.keys.pan_fingerprints, pan)
    return [
        unsealed
        async for unsealed in core.of_card(pan_fingerprints, requestor)
        if unsealed.card is not None and unsealed.card.pan == pan
    ]


# Changing.


async def change_status(
    core: Core, name: str | bytes, change: Change, by: By = HOST, failures: tuple[Failure, ...] = ()
) -> TokenInfo:
    """Change the status of a token; the event notes failures for the guard."""
    return await _change(
        core, name, Action[change.name], status_change(core, change, by.actor, by.requestor), by, failures
    )


async def release(core: Core, requestor: str, by: By) -> None:
    """Let a requestor in that the guard locked out."""
    if await core.parties.requestor(requestor) is None:
        raise requestor_unknown()
    await core.guards.release(requestor, by.operator)


async def begin_winding_down(core: Core, name: str | bytes, purge_after_ms: int, by: By) -> TokenInfo:
    """Allow no new payments with a token, only follow-ups."""
    if purge_after_ms <= core.clock.now_ms():
        raise InvalidInputError("purge_after lies in the future", code="PURGE_AFTER_PASSED")
    return await _change(core, name, Action.WIND_DOWN, winding_down(purge_after_ms), by)


async def update_domain(core: Core, name: str | bytes, domain: Domain, by: By) -> TokenInfo:
    """Give a token another domain of its own."""
    return await _change(core, name, Action.UPDATE_DOMAIN, domain_change(core, domain, by_host=by.host), by)


async def update_token(core: Core, name: str | bytes, properties: Properties, by: By) -> TokenInfo:
    """Give a token another expiry, customer or metadata."""
    refuse_properties(core, properties)
    alter = property_change(core, properties, by_host=by.host)
    return await _change(core, name, Action.UPDATE_TOKEN, alter, by)


def refuse_properties(core: Core, properties: Properties) -> None:
    """Raise InvalidInputError if properties change nothing, or the new expiry has passed."""
    if properties == Properties():
        raise InvalidInputError("update_token takes a token_expiry, a customer, metadata, or several of them")
    if properties.token_expiry is not None and properties.token_expiry.passed(core.clock.now_ms()):
        raise expired("the token")


async def update_assurance(
    core: Core, name: str | bytes, method: str | None, at_ms: int | None, by: By
) -> TokenInfo:
    """State how the cardholder was identified and verified."""
    now_ms = core.clock.now_ms()
    if at_ms is not None and at_ms > now_ms:
        raise InvalidInputError(
            "an assurance was established in the past: at lies ahead", code="ASSURANCE_AHEAD"
        )
    alter = assurance_change(method, now_ms if at_ms is None else at_ms)
    return await _change(core, name, Action.UPDATE_ASSURANCE, alter, by)


async def update_card(core: Core, name: str | bytes | Pan, new: NewCard, by: By) -> list[TokenInfo]:
    """Put a new PAN or expiry behind a token, or behind all tokens of a card; each in a step of its own."""
    if by.requestor is not None:
        if isinstance(name, Pan):
            await core.permit_by_card(by.requestor, Action.UPDATE_CARD)
        else:
            await core.permit(by.requestor, Permission.MANAGE, Action.UPDATE_CARD)
    refuse_new_card(core, new, by)
    pan_fingerprint = b""
    if new.pan is not None:
        pan_fingerprint = await core.runtime.call(core.keys.pan_fingerprint, new.pan)
    pan = name if isinstance(name, Pan) else None
    alter = card_change(core, pan, new, pan_fingerprint, by_host=by.host)
    if not isinstance(name, Pan):

        async def compared(unsealed: Unsealed) -> Unsealed:
            if by.host:
                await refuse_other_par(core, unsealed.record.requestor, new, unsealed.record.token)
            return await alter(unsealed)

        return [await _change(core, name, Action.UPDATE_CARD, compared, by, new=new)]
    live = await tokens_to_renew(core, name, new, by)
    infos = []
    for record in live:
        with suppress(LifecycleError):  # deleted, or given another card, since it was read; that is noted
            infos.append(await _change(core, record.token, Action.UPDATE_CARD, alter, by, new=new))
    return infos


async def tokens_to_renew(core: Core, pan: Pan, new: NewCard, by: By) -> list[TokenRecord]:
    """The tokens of a card, all read before the first is changed: a changed one moves to another PAN fingerprint.

    Raises TokenNotFoundError, once it is noted, if there is none; InvalidInputError, likewise, if one of them can not
    have the new card: then none gets it.
    """
    live = [record for record, _ in await live_tokens(core, pan, by.requestor)]
    if not live:
        await core.deny_miss(Action.UPDATE_CARD, by.requestor, "card", pan.reveal(), operator=by.operator)
        raise card_has_no_token()
    if new.pan is None:
        return live
    compared = set[str]()
    for record in live:
        try:
            await refuse_card(core, record, new.pan)
            if by.host and new.pan != pan and record.requestor not in compared:
                compared.add(record.requestor)
                await refuse_other_par(core, record.requestor, new)
        except InvalidInputError as error:
            await core.deny(
                Action.UPDATE_CARD,
                by.requestor,
                error.code,
                reference=record.reference,
                operator=by.operator,
                tally=refused_card(core, Tally(core.guards), by.requestor, record, new),
            )
            raise
    return live


def refused_card(core: Core, tally: Tally, requestor: str | None, record: TokenRecord, new: NewCard) -> Tally:
    """Count a card number that a requestor wanted behind a token and that can not be there."""
    if requestor is not None and new.pan is not None:
        tally.refusal(requestor, core.keys.failure("new card", record.reference.hex(), new.pan.reveal()))
    return tally


def card_has_no_token() -> TokenNotFoundError:
    """The error for a number that is taken for a card's, as it begins with no BIN of a program that is known."""
    return TokenNotFoundError(
        "this card has no token in this vault; a token is known as one by its program: this vault has to have that",
        code="CARD_HAS_NO_TOKEN",
    )


def refuse_new_card(core: Core, new: NewCard, by: By) -> None:
    """Raise InvalidInputError if there is nothing new, or what is new can not be, whatever the token."""
    if new.pan is None and new.expiry is None:
        raise InvalidInputError("update_card takes a new PAN, a new expiry, or both; a par is of a new PAN")
    if new.pan is None and new.par is not None:
        raise InvalidInputError(
            "a par is of a PAN: name that as new_pan too, also where it is the one it was"
        )
    if new.pan is not None:
        core.refuse_token_as_pan(new.pan)
        could_hold = not by.host and new.par is not None and core.trail.ids.could_hold_number(new.par)
        if new.par is not None and (could_hold or new.pan.stands_in(new.par)):
            raise InvalidInputError(
                "the par holds the new card number, or a requestor's could hold one: it is an id of its own",
                code="CARD_NUMBER_IN_TEXT",
            )
    if new.expiry is not None and new.expiry.passed(core.clock.now_ms()):
        raise expired("the card")


async def _change(
    core: Core,
    name: str | bytes,
    action: Action,
    alter: Alteration,
    by: By,
    failures: tuple[Failure, ...] = (),
    new: NewCard = _NO_CARD,
) -> TokenInfo:
    """Write what `alter` makes of a record, with its event. Raises LifecycleError, once that is noted."""
    conflicts = 0
    while True:
        unsealed, acting = await manageable(core, name, action, by)
        before = unsealed.record
        actor = acting_as(before, by.actor, by.requestor)
        codes = () if actor is None else (actor.name,)
        try:
            altered = await alter(unsealed)
        except (LifecycleError, InvalidInputError) as error:
            code = LIFECYCLE_CODE if isinstance(error, LifecycleError) else error.code
            await core.deny(
                action,
                acting,
                code,
                *codes,
                reference=before.reference,
                operator=by.operator,
                tally=refused_card(core, Tally(core.guards), acting, before, new),
            )
            raise
        now_ms, stands = core.clock.now_ms(), altered is unsealed
        revision = 0 if stands else before.revision + 1
        changed = altered if stands else altered.at(now_ms, revision)
        event = Event(
            time_ms=now_ms,
            action=action,
            outcome=Outcome.DONE,
            requestor=acting,
            reference=before.reference,
            codes=codes,
            revision=revision,
            operator=by.operator,
            failures=failures,
        )
        if not await (core.trail.note(event) if stands else core.replace(changed, event)):
            return await told(core, changed, by.requestor)
        conflicts = await core.conflict(conflicts)


async def manageable(core: Core, name: str | bytes, action: Action, by: By) -> tuple[Unsealed, str | None]:
    """The record of a token, and the requestor that acts, named or as the actor; None for the host itself.

    Raises PermissionDeniedError, once it is noted that whoever acts may not manage the token.
    """
    if by.requestor is not None:
        await core.permit(by.requestor, Permission.MANAGE, action)
        if by.actor not in (None, Actor.REQUESTOR):
            await core.deny(action, by.requestor, "ACTOR_NOT_ALLOWED", operator=by.operator)
            raise PermissionDeniedError(
                "a requestor acts as Actor.REQUESTOR, for no other actor", code="ACTOR_NOT_ALLOWED"
            )
    unsealed = await core.read(name, action, by.requestor)
    record, acting = unsealed.record, by.requestor
    if by.requestor is None and by.actor is Actor.REQUESTOR:
        acting = record.requestor
        await core.permit(acting, Permission.MANAGE, action)
    if acting is not None and not await may_manage(core, record, action, acting):
        tally = Tally(core.guards)
        tally.refusal(acting, core.keys.failure(*failed(name)))
        await core.deny(
            action, acting, NOT_ITS_TOKEN, reference=record.reference, operator=by.operator, tally=tally
        )
        raise not_its_token()
    return unsealed, acting


async def may_manage(core: Core, record: TokenRecord, action: Action, requestor: str) -> bool:
    """Whether a token is a requestor's, or was issued from one of its tokens and this may be done to such."""
    return requestor == record.requestor or (
        action in _FOR_SOURCE and await _holds_source(core, record, requestor)
    )


def not_its_token() -> PermissionDeniedError:
    """The error for a token of others."""
    return PermissionDeniedError(
        "a requestor manages only the tokens that were issued to it, and ends those issued from them",
        code=NOT_ITS_TOKEN,
    )


async def _holds_source(core: Core, record: TokenRecord, requestor: str) -> bool:
    """Whether any of the tokens that a token was issued from is a requestor's."""
    for _ in range(SOURCES_MAX):
        if not record.source:
            return False
        try:
            record = (await core.read(record.source, None)).record
        except TokenNotFoundError:
            return False
        if record.requestor == requestor:
            return True
    return False
