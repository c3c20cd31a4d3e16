"""Issuing tokens: random ones, and ones that converge on the same token for the same card."""

from __future__ import annotations

import hmac
import secrets
from functools import reduce
from typing import Final

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import (
    InvalidInputError,
    LifecycleError,
    TokenSpaceExhaustedError,
)
from tokenvault.model import dual_control
from tokenvault.model.counters import UNUSED, Usage
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card
from tokenvault.model.programs import Making, TokenProgram
from tokenvault.records.record import TokenRecord
from tokenvault.records.token_info import effective_expiry
from tokenvault.stores.port import REFERENCE_BYTES
from tokenvault.vault.converging import CANDIDATES_MAX, may_have_moved, scope_of, within_bounds
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.guard import Tally
from tokenvault.vault.orders import (
    Grant,
    Order,
    new,
    other_par,
    permitted_program,
    refuse_different,
    refuse_expired,
    refuse_mention,
    renews,
)
from tokenvault.vault.sources import (
    NOT_ACTIVE,
    refuse_long_chain,
    refuse_number_as_customer,
    refuse_receiver,
    refuse_withdrawn,
    source_not_active,
)

DRAWS_MAX: Final = 8
"""Random tokens drawn one by one; after so many collisions the space is looked at."""

SAMPLE_MAX: Final = 256
"""Tokens looked up at once in a crowded space."""


async def issue_from(core: Core, grant: Grant) -> Unsealed:
    """Issue a token for the card behind another one, granted by whom that was issued to."""
    terms = grant.terms
    await refuse_receiver(core, terms.requestor)
    record, card = await core.read(grant.source, Action.ISSUE, terms.requestor)
    program = await permitted_program(core, terms, record.requestor)
    now_ms = core.clock.now_ms()
    expiry = effective_expiry(record, card)
    if card is None or record.status is not TokenStatus.ACTIVE:
        await core.deny(Action.ISSUE, record.requestor, NOT_ACTIVE, reference=record.reference)
        raise source_not_active()
    if expiry is not None and expiry.passed(now_ms, program.expiry_zone):
        await core.deny(Action.ISSUE, record.requestor, "SOURCE_EXPIRED", reference=record.reference)
        raise LifecycleError("tokens are issued from a token that has not expired", code="SOURCE_EXPIRED")
    await refuse_long_chain(core, record)
    await refuse_number_as_customer(core, grant, record)
    order = Order(
        card=card,
        terms=terms,
        customer=grant.customer,
        metadata=grant.metadata,
        idempotency_key=grant.idempotency_key,
        source=record.reference,
        grantor=record.requestor,
    )
    return await _issue(core, order, program)


async def issue(core: Core, order: Order) -> Unsealed:
    """Issue a token, or return the existing one."""
    return await _issue(core, order, await permitted_program(core, order.terms, order.terms.requestor))


async def _issue(core: Core, order: Order, program: TokenProgram) -> Unsealed:
    core.refuse_token_as_pan(order.card.pan)
    program.pans.check(order.card.pan.reveal())
    if not order.source:
        refuse_mention(core, order)
    now_ms = core.clock.now_ms()
    refuse_expired(order, program, now_ms)
    if order.par is not None:
        await refuse_other_par(core, order)
    if order.idempotency_key is not None:
        return await _repeatable(core, order, program, now_ms)
    if program.making is Making.CONVERGENT:
        return await _converge(core, order, program, now_ms)
    return await _draw(core, order, program, now_ms)


async def refuse_other_par(core: Core, order: Order) -> None:
    """Raise InvalidInputError, once it is noted, if the requestor has a token of the card with another PAR.

    Those of other requestors are none of its business: the answer would tell it that they have the card.
    """
    pan, requestor = order.card.pan, order.terms.requestor
    pan_fingerprints = await core.runtime.call(core.keys.pan_fingerprints, pan)
    async for record, card in core.of_card(pan_fingerprints, requestor):
        if card is not None and card.pan == pan and record.par not in (None, order.par):
            await _note_refused(core, order, record, "PAR_DIFFERS", pan.reveal(), order.par or "")
            raise other_par()


async def _note_refused(core: Core, order: Order, record: TokenRecord, code: str, *what: str) -> None:
    """Note that an order does not fit a token that the requestor has, and count it: it could be a guess."""
    tally, requestor = Tally(core.guards), order.grantor or order.terms.requestor
    tally.refusal(requestor, core.keys.failure(code, *what))
    operator, reference = order.terms.operator, record.reference
    await core.deny(Action.ISSUE, requestor, code, reference=reference, operator=operator, tally=tally)


# Random tokens.


async def _draw(core: Core, order: Order, program: TokenProgram, now_ms: int) -> Unsealed:
    """Issue a random token."""
    pan, token_format = order.card.pan, program.format
    pan_fingerprint = await core.runtime.call(core.keys.pan_fingerprint, pan)
    choices = token_format.choices(len(pan))
    for _ in range(DRAWS_MAX):
        token = token_format.make(secrets.randbelow(choices), len(pan), pan.last4)
        issued = await _insert(core, order, token, pan_fingerprint, now_ms)
        if issued is not None:
            return issued
    # The space is crowded: many tokens are looked up at once.
    drawn = (
        range(choices) if choices <= SAMPLE_MAX else [secrets.randbelow(choices) for _ in range(SAMPLE_MAX)]
    )
    sample = {token_format.make(choice, len(pan), pan.last4) for choice in drawn}
    free = sample - {row.token for row in await core.store.get(sorted(sample))}
    for token in free:
        issued = await _insert(core, order, token, pan_fingerprint, now_ms)
        if issued is not None:
            return issued
    taken = len(sample) - len(free)
    raise TokenSpaceExhaustedError(
        f"program {program.name}: of {choices} tokens for a card of this length"
        f"{' and last four' if token_format.keep_last4 else ''}, {taken} of {len(sample)} looked at are taken"
        f" ({100 * taken // len(sample)} %): add a program with another BIN or a longer length"
    )


async def _repeatable(core: Core, order: Order, program: TokenProgram, now_ms: int) -> Unsealed:
    """Issue the token of an idempotency key: the one that was issued under it, or else a new one.

    Its reference follows from the key, so that it is found whatever token it got; so do its candidates, so that two
    callers at once try the same ones in the same order.
    """
    named = order.idempotency_key or ""
    if order.grantor:  # the names of the one that the token is for are not the grantor's to use up
        named = f"{named}\x1f{order.grantor}"
    key = order.terms.requestor, program.name, named
    keys = core.keys
    references = keys.repeatable_references(*key)
    for reference in references:
        row = await core.store.by_reference(reference)
        if row is not None:
            return await _repeated(core, order, await core.open(row), now_ms)
    if await core.key_versions.settle():  # until then other vaults derive another reference
        return await _anew(core, order, program, now_ms)
    if program.making is Making.CONVERGENT:
        return await _converge(core, order, program, now_ms, references[0])
    pan, token_format = order.card.pan, program.format
    pan_fingerprint = await core.runtime.call(keys.pan_fingerprint, pan)
    choices = token_format.choices(len(pan))
    for number in range(CANDIDATES_MAX):
        token = token_format.make(keys.repeatable_choice(*key, number) % choices, len(pan), pan.last4)
        if await core.rekeyed(keys):
            return await _anew(core, order, program, now_ms)
        issued = await _insert(core, order, token, pan_fingerprint, now_ms, references[0])
        if issued is not None:
            return issued
        there = await core.read(token, None)
        if there.record.reference in references:  # another caller came first with this key
            return await _repeated(core, order, there, now_ms)
    raise _exhausted(program, choices)


async def _repeated(core: Core, order: Order, unsealed: Unsealed, now_ms: int) -> Unsealed:
    """The token that was issued under an idempotency key, as it is now. Raises InvalidInputError for other orders."""
    if not any(
        hmac.compare_digest(unsealed.record.request, digest)
        for digest in core.keys.request_digests(order.request)
    ):
        await _note_refused(core, order, unsealed.record, "IDEMPOTENCY_CONFLICT", order.request)
        raise InvalidInputError(
            "this idempotency key was used before for another request: a new request needs a new key",
            code="IDEMPOTENCY_CONFLICT",
        )
    await core.trail.note(_event(order, unsealed, now_ms, revision=0))
    return unsealed


# Convergent tokens.


async def _converge(
    core: Core, order: Order, program: TokenProgram, now_ms: int, reference: bytes = b""
) -> Unsealed:
    """Issue the token that card, requestor and program converge on, and the customer where the program says so."""
    pan, token_format, requestor = order.card.pan, program.format, order.terms.requestor
    keys, choices = core.keys, token_format.choices(len(pan))
    scope = scope_of(requestor, program, order.customer or "", order.source)
    # Looked up by fingerprint first, under each key version: so tokens outlive the key that they were derived with.
    pan_fingerprints = await core.runtime.call(keys.pan_fingerprints, pan)
    found_by = (*pan_fingerprints, *keys.tombstone_fingerprints(pan))
    stored = [
        unsealed
        async for unsealed in core.of_card(found_by, requestor, program.name)
        if not program.per_customer or unsealed.record.customer == (order.customer or "")
    ]
    existing = [
        unsealed
        for unsealed in stored
        if unsealed.card is not None and unsealed.card.pan == pan and unsealed.record.source == order.source
    ]
    deleted = {unsealed.record.token: unsealed.record for unsealed in stored if unsealed.card is None}

    async def candidate(number: int) -> str:
        drawn = await core.runtime.call(keys.convergent_choice, pan_fingerprints[0], *scope, number)
        return token_format.make(drawn % choices, len(pan), pan.last4)

    if len(existing) > 1:  # a card update merged two cards: the token that this one had stays its token
        number = 0
        while (own := await candidate(number)) in deleted:
            number += 1
        existing.sort(key=lambda unsealed: (unsealed.record.token != own, unsealed.record.created_ms))
    if existing:
        return await _again(core, order, program, existing[0], now_ms)
    if await core.key_versions.settle():
        return await _anew(core, order, program, now_ms)
    # What is counted of a card here outlives its tokens: what any of them counted that was deleted, also since the
    # tombstones were read, or that was given another card. The candidates of these are in the way.
    usage = reduce(Usage.merged, (record.usage for record in deleted.values()), UNUSED)
    for number in range(len(deleted) + CANDIDATES_MAX):
        token = await candidate(number)
        if token in deleted:
            continue
        if await core.rekeyed(keys):
            return await _anew(core, order, program, now_ms)
        usage = await within_bounds(core, order, usage, now_ms)
        issued = await _insert(core, order, token, pan_fingerprints[0], now_ms, reference, usage)
        if issued is not None:
            return issued
        # Another process came first with this card; or the candidate is another card's, or deleted.
        there = await core.read(token, None)
        if _converges(order, program, there, pan_fingerprints):
            return await _again(core, order, program, there, now_ms)
        if await may_have_moved(core, order, program, there, token):
            usage = usage.merged(there.record.usage)
    raise _exhausted(program, choices)


async def _anew(core: Core, order: Order, program: TokenProgram, now_ms: int) -> Unsealed:
    """Begin again: the keys or the token that it was begun with are not those in force now."""
    if order.idempotency_key is not None:
        return await _repeatable(core, order, program, now_ms)
    return await _converge(core, order, program, now_ms)


def _exhausted(program: TokenProgram, choices: int) -> TokenSpaceExhaustedError:
    return TokenSpaceExhaustedError(
        f"program {program.name}: {CANDIDATES_MAX} of {CANDIDATES_MAX} candidates are taken of {choices} tokens"
        " for a card of this length: add a program with another BIN or a longer length"
    )


async def _insert(
    core: Core,
    order: Order,
    token: str,
    pan_fingerprint: bytes,
    now_ms: int,
    reference: bytes = b"",
    usage: Usage = UNUSED,
) -> Unsealed | None:
    """Write a new token, and its domain document if that is new. Returns None if the token exists already."""
    unsealed = new(order, token, reference or secrets.token_bytes(REFERENCE_BYTES), pan_fingerprint, now_ms)
    unsealed = await with_properties(core, order, unsealed)
    unsealed = unsealed._replace(record=unsealed.record._replace(usage=usage))
    document = await core.documents.beside(order.terms.domain)
    exists = await core.trail.write(
        _event(order, unsealed, now_ms, revision=1),
        lambda: core.keys.seal(*unsealed),
        lambda events, row: core.store.insert((row,), events, document),
    )
    if exists:
        return None
    if document is not None:
        core.documents.written(order.terms.domain)
    if order.source:
        await refuse_withdrawn(core, order, unsealed)
    return unsealed


async def with_properties(core: Core, order: Order, unsealed: Unsealed) -> Unsealed:
    """A new record with what the keys make for it: by its card, by its request, and its metadata, sealed."""
    record, card = unsealed
    if core.finds_last4 and card is not None:
        record = record._replace(last4_key=core.keys.last4_keys(card.pan.last4)[0])
    if order.idempotency_key is not None:
        record = record._replace(request=core.keys.request_digests(order.request)[0])
    if order.metadata:
        sealed = await core.runtime.call(core.keys.seal_metadata, order.metadata, record.reference)
        record = record._replace(metadata=sealed)
    return Unsealed(record, card)


def _converges(
    order: Order, program: TokenProgram, unsealed: Unsealed, pan_fingerprints: tuple[bytes, ...]
) -> bool:
    """Whether a record is of the card, requestor and program of an order, and of its customer if that counts."""
    record, card = unsealed
    return (
        card is not None
        and card.pan == order.card.pan
        and record.pan_fingerprint in pan_fingerprints
        and record.requestor == order.terms.requestor
        and record.program == order.terms.program
        and record.source == order.source
        and (not program.per_customer or record.customer == (order.customer or ""))
    )


async def _again(
    core: Core, order: Order, program: TokenProgram, unsealed: Unsealed, now_ms: int
) -> Unsealed:
    """Issue an existing token again: unchanged, but for the expiry of a card that was renewed."""
    renewed = renews(await core.parties.requestor(order.terms.requestor), order, unsealed)
    try:
        refuse_different(order, unsealed, renewed=renewed)
    except InvalidInputError as error:
        if order.source:  # what its holder made of it meanwhile is not told
            await _note_refused(core, order, unsealed.record, error.code, order.request)
            message = (
                "the source has a token of this program for this requestor already, with other properties"
            )
            raise InvalidInputError(message, code=error.code) from None
        raise
    if renewed:
        still = await _renew(core, order, unsealed.record.token)
        if still is None:
            return await _anew(core, order, program, now_ms)
        unsealed = still
    await core.trail.note(_event(order, unsealed, now_ms, revision=0))
    return unsealed


async def _renew(core: Core, order: Order, token: str) -> Unsealed | None:
    """Give a token the expiry of its renewed card; None if it is not this card's any more.

    Raises ConflictError after many conflicts.
    """
    conflicts = 0
    while True:
        unsealed = await core.read(token, None)
        record, card = unsealed
        requestor = await core.parties.requestor(order.terms.requestor)
        if card is None or card.pan != order.card.pan:
            return None  # deleted meanwhile, or given another card
        if not renews(requestor, order, unsealed):
            return unsealed  # another caller came first with this expiry, or a later one
        now_ms, revision = core.clock.now_ms(), record.revision + 1
        changed = Unsealed(
            record._replace(updated_ms=now_ms, revision=revision), Card(card.pan, order.card.expiry)
        )
        event = Event(
            time_ms=now_ms,
            action=Action.UPDATE_CARD,
            outcome=Outcome.DONE,
            requestor=order.terms.requestor,
            reference=record.reference,
            revision=revision,
            operator=order.terms.operator,
        )
        if not await core.replace(changed, event):
            return changed
        conflicts = await core.conflict(conflicts)


def _event(order: Order, unsealed: Unsealed, now_ms: int, *, revision: int) -> Event:
    return Event(
        time_ms=now_ms,
        action=Action.ISSUE,
        outcome=Outcome.DONE,
        requestor=order.terms.requestor,
        reference=unsealed.record.reference,
        transaction_id=dual_control.letters(order.source) or None,
        revision=revision,
        operator=order.terms.operator,
    )
