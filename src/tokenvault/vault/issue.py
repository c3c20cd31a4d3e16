"""Issuing tokens: random ones, and ones that converge on the same token for the same card."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final, NamedTuple

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import (
    InvalidInputError,
    LifecycleError,
    PermissionDeniedError,
    TokenSpaceExhaustedError,
)
from tokenvault.model.counters import UNUSED, Usage
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card, CardExpiry
from tokenvault.model.programs import Making, Permission, TokenProgram
from tokenvault.records.record import TokenRecord
from tokenvault.records.token_info import effective_expiry
from tokenvault.stores.port import REFERENCE_BYTES
from tokenvault.vault.core import Core, Unsealed

DRAWS_MAX: Final = 8
"""Random tokens drawn one by one; after so many collisions the space is looked at."""

SAMPLE_MAX: Final = 256
"""Tokens looked up at once in a crowded space."""

SOURCES_MAX: Final = 8
"""How long a chain of tokens is, each of which was issued from the one before."""

CANDIDATES_MAX: Final = 64
"""Convergent candidates tried before the space counts as exhausted."""


class Terms(NamedTuple):
    """How tokens are to be issued, as in the arguments of `issue`; checked, but for permissions and the clock."""

    requestor: str
    program: str
    domain: Domain
    token_expiry: CardExpiry | None
    assurance: str | None
    active: bool
    accept_expired: bool = False
    operator: str | None = None


class Order(NamedTuple):
    """The token that is to be issued for a card.

    Attributes:
        par, customer, metadata: as in TokenInfo; unset: none is given.
        idempotency_key: the caller's own name of the request; the same again gives the same token.
        source: reference of the token that it is issued from, 16 bytes; empty where it is issued for a card.
    """

    card: Card
    terms: Terms
    par: str | None = None
    customer: str | None = None
    metadata: Mapping[str, str] | None = None
    idempotency_key: str | None = None
    source: bytes = b""


class Grant(NamedTuple):
    """A token that is to be issued from another one.

    Attributes:
        source: the token or reference of the other one.
        terms: of the new one; its requestor is whom it is for.
        customer, metadata, idempotency_key: as in Order.
    """

    source: str | bytes
    terms: Terms
    customer: str | None
    metadata: Mapping[str, str] | None
    idempotency_key: str | None


async def issue_from(core: Core, grant: Grant) -> Unsealed:
    """Issue a token for the card behind another one, granted by whom that was issued to."""
    terms = grant.terms
    record, card = await core.read(grant.source, Action.ISSUE)
    program = await permitted_program(core, terms, record.requestor)
    if terms.requestor not in core.requestors:
        raise core.denial(terms.requestor, Permission.DETOKENIZE) or PermissionDeniedError()
    now_ms = core.clock.now_ms()
    expiry = effective_expiry(record, card)
    if card is None or record.status is not TokenStatus.ACTIVE:
        await core.deny(Action.ISSUE, record.requestor, "SOURCE_NOT_ACTIVE", reference=record.reference)
        raise LifecycleError("tokens are issued from an active token", code="SOURCE_NOT_ACTIVE")
    if expiry is not None and expiry.passed(now_ms, program.expiry_zone):
        await core.deny(Action.ISSUE, record.requestor, "SOURCE_EXPIRED", reference=record.reference)
        raise LifecycleError("tokens are issued from a token that has not expired", code="SOURCE_EXPIRED")
    await _refuse_long_chain(core, record)
    order = Order(
        card=card,
        terms=terms,
        customer=grant.customer,
        metadata=grant.metadata,
        idempotency_key=grant.idempotency_key,
        source=record.reference,
    )
    return await _issue(core, order, program)


async def _refuse_long_chain(core: Core, record: TokenRecord) -> None:
    for _ in range(SOURCES_MAX):
        if not record.source:
            return
        record = (await core.read(record.source, None)).record
    raise LifecycleError(
        f"at most {SOURCES_MAX} tokens are issued one from another: issue from an earlier one",
        code="SOURCES_EXCEEDED",
    )


async def issue(core: Core, order: Order) -> Unsealed:
    """Issue a token, or return the existing one."""
    return await _issue(core, order, await permitted_program(core, order.terms, order.terms.requestor))


async def _issue(core: Core, order: Order, program: TokenProgram) -> Unsealed:
    core.refuse_token_as_pan(order.card.pan)
    program.pans.check(order.card.pan.reveal())
    refuse_mention(order)
    now_ms = core.clock.now_ms()
    refuse_expired(order, program, now_ms)
    if order.idempotency_key is not None:
        return await _repeatable(core, order, program, now_ms)
    if program.making is Making.CONVERGENT:
        return await _converge(core, order, program, now_ms)
    return await _draw(core, order, program, now_ms)


async def permitted_program(core: Core, terms: Terms, issuer: str) -> TokenProgram:
    """The program, if a requestor may issue its tokens. Raises PermissionDeniedError, once that is noted."""
    requestor = await core.permit(issuer, Permission.ISSUE, Action.ISSUE)
    program = core.programs.get(terms.program)
    if program is None:
        named = ", ".join(sorted(requestor.programs)) or "none"
        raise InvalidInputError(
            f"no such program; this requestor may issue tokens of: {named}", code="PROGRAM_UNKNOWN"
        )
    if program.name not in requestor.programs:
        await core.deny(Action.ISSUE, requestor.id, "PROGRAM_NOT_ALLOWED")
        raise PermissionDeniedError(
            "this requestor may not issue tokens of this program: add it to its programs",
            code="PROGRAM_NOT_ALLOWED",
        )
    return program


def refuse_mention(order: Order) -> None:
    """Raise InvalidInputError if the card number stands in what the vault keeps beside it."""
    pan, metadata = order.card.pan, order.metadata or {}
    texts = (order.par or "", order.customer or "", *metadata, *metadata.values())
    if order.terms.domain.contains_pan(pan) or any(pan.stands_in(text) for text in texts):
        raise InvalidInputError(
            "the domain, par, customer or metadata holds the card number: use ids that do not",
            code="CARD_NUMBER_IN_TEXT",
        )


def refuse_expired(order: Order, program: TokenProgram, now_ms: int) -> None:
    """Raise InvalidInputError if the card has expired, unless it is imported so, or the token would have."""
    card_expiry, terms = order.card.expiry, order.terms
    if terms.accept_expired:
        if card_expiry is None:
            message = "an expired card is imported with its expiry: give it"
            raise InvalidInputError(message, code="EXPIRY_REQUIRED")
    elif card_expiry is not None and card_expiry.passed(now_ms, program.expiry_zone):
        raise expired("the card")
    if terms.token_expiry is not None and terms.token_expiry.passed(now_ms, program.expiry_zone):
        raise expired("the token")


def expired(name: str) -> InvalidInputError:
    """The error for an expiry that has passed."""
    return InvalidInputError(
        f"{name} has expired already; a card is valid through its expiry month",
        code="CARD_EXPIRED" if name == "the card" else "TOKEN_EXPIRED",
    )


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
    key = order.terms.requestor, program.name, order.idempotency_key or ""
    references = core.keys.repeatable_references(*key)
    for reference in references:
        row = await core.store.by_reference(reference)
        if row is not None:
            return await _repeated(core, order, await core.open(row), now_ms)
    if program.making is Making.CONVERGENT:
        return await _converge(core, order, program, now_ms, references[0])
    pan, token_format = order.card.pan, program.format
    pan_fingerprint = await core.runtime.call(core.keys.pan_fingerprint, pan)
    choices = token_format.choices(len(pan))
    for number in range(CANDIDATES_MAX):
        token = token_format.make(core.keys.repeatable_choice(*key, number) % choices, len(pan), pan.last4)
        issued = await _insert(core, order, token, pan_fingerprint, now_ms, references[0])
        if issued is not None:
            return issued
        there = await core.read(token, None)
        if there.record.reference in references:  # another caller came first with this key
            return await _repeated(core, order, there, now_ms)
    raise _exhausted(program, choices)


async def _repeated(core: Core, order: Order, unsealed: Unsealed, now_ms: int) -> Unsealed:
    """The token that was issued under an idempotency key. Raises InvalidInputError for another order."""
    record, card = unsealed
    differing = _differences(order, unsealed, exact=True)
    if card is None or card.pan != order.card.pan or differing:
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
    """Issue the token that this card, requestor and program converge on, and the customer where the program says so."""
    pan, token_format, requestor = order.card.pan, program.format, order.terms.requestor
    choices = token_format.choices(len(pan))
    scope = requestor, program.name, order.customer or "" if program.per_customer else ""
    # Looked up by fingerprint first, under each key version: so tokens outlive the key that they were derived with.
    pan_fingerprints = await core.runtime.call(core.keys.pan_fingerprints, pan)
    stored = [
        unsealed
        async for unsealed in core.of_card(pan_fingerprints, requestor, program.name)
        if not program.per_customer or unsealed.record.customer == scope[-1]
    ]
    existing = [unsealed for unsealed in stored if unsealed.card is not None and unsealed.card.pan == pan]
    deleted = [unsealed.record for unsealed in stored if unsealed.card is None]
    tombstones = len(deleted)

    async def candidate(number: int) -> str:
        drawn = await core.runtime.call(core.keys.convergent_choice, pan_fingerprints[0], *scope, number)
        return token_format.make(drawn % choices, len(pan), pan.last4)

    if len(existing) > 1:  # a card update merged two cards: the token that this one had stays its token
        own = await candidate(tombstones)
        existing.sort(key=lambda unsealed: (unsealed.record.token != own, unsealed.record.created_ms))
    if existing:
        return await _again(core, order, existing[0], now_ms)
    # What is counted of a card here outlives the deletion of its token: each took it over from the one before.
    usage = max(deleted, key=lambda record: record.updated_ms).usage if deleted else UNUSED
    # Each tombstone is a candidate that was used up.
    for number in range(tombstones, tombstones + CANDIDATES_MAX):
        token = await candidate(number)
        issued = await _insert(core, order, token, pan_fingerprints[0], now_ms, reference, usage)
        if issued is not None:
            return issued
        # Another process came first with this card; or the candidate is another card's, or deleted.
        there = await core.read(token, None)
        if _converges(order, program, there, pan_fingerprints):
            return await _again(core, order, there, now_ms)
    raise _exhausted(program, choices)


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
    document = core.documents.unwritten(order.terms.domain)
    exists = await core.trail.write(
        _event(order, unsealed, now_ms, revision=1),
        lambda: core.keys.seal(*unsealed),
        lambda events, row: core.store.insert((row,), events, document),
    )
    if exists:
        return None
    if document is not None:
        core.documents.written(order.terms.domain)
    return unsealed


async def with_properties(core: Core, order: Order, unsealed: Unsealed) -> Unsealed:
    """A new record with what the keys make for it: the key of its last four digits, and its metadata, sealed."""
    record, card = unsealed
    if core.finds_last4 and card is not None:
        record = record._replace(last4_key=core.keys.last4_keys(card.pan.last4)[0])
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
        and (not program.per_customer or record.customer == (order.customer or ""))
    )


async def _again(core: Core, order: Order, unsealed: Unsealed, now_ms: int) -> Unsealed:
    """Issue an existing token again: unchanged, but for the expiry of a card that was renewed."""
    if renews(core, order, unsealed):
        unsealed = await _renew(core, order, unsealed.record.token)
    refuse_different(order, unsealed)
    await core.trail.note(_event(order, unsealed, now_ms, revision=0))
    return unsealed


def renews(core: Core, order: Order, unsealed: Unsealed) -> bool:
    """Whether a card comes again with a later expiry, from a requestor that may manage its tokens."""
    before, after = None if unsealed.card is None else unsealed.card.expiry, order.card.expiry
    requestor = core.requestors.get(order.terms.requestor)
    return (
        after is not None
        and (before is None or after > before)
        and requestor is not None
        and Permission.MANAGE in requestor.permissions
    )


async def _renew(core: Core, order: Order, token: str) -> Unsealed:
    """Give a token the expiry of its renewed card. Raises ConflictError after many conflicts."""
    conflicts = 0
    while True:
        unsealed = await core.read(token, None)
        record, card = unsealed
        if card is None or card.pan != order.card.pan or not renews(core, order, unsealed):
            return unsealed  # others changed it meanwhile: the caller looks at it as it is now
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


def refuse_different(order: Order, unsealed: Unsealed) -> None:
    """Raise InvalidInputError if a token that there is already is not as ordered."""
    others = _differences(order, unsealed)
    if others:
        raise InvalidInputError(
            f"this card has a token here already, with another {', '.join(others)}",
            code="TOKEN_EXISTS_WITH_OTHER_PROPERTIES",
        )


def _differences(order: Order, unsealed: Unsealed, *, exact: bool = False) -> list[str]:
    """In what a token is not as ordered; what an order leaves open differs only where `exact` is asked for."""
    record, card = unsealed
    terms = order.terms

    def differs(ordered: object, stands: object) -> bool:
        return ordered != stands and (exact or ordered is not None)

    compared = (
        ("domain (update_domain changes it)", terms.domain.digest != record.domain),
        (
            "expiry (update_card changes it)",
            card is not None and differs(order.card.expiry, card.expiry),
        ),
        ("token_expiry (update_token changes it)", differs(terms.token_expiry, record.token_expiry)),
        ("assurance", differs(terms.assurance, record.assurance)),
        ("par", differs(order.par, record.par)),
        ("customer (update_token changes it)", differs(order.customer, record.customer or None)),
        ("source", order.source != record.source),
        ("status (it is active)", not terms.active and record.status is TokenStatus.ACTIVE),
    )
    return [name for name, is_other in compared if is_other]


def new(order: Order, token: str, reference: bytes, pan_fingerprint: bytes, now_ms: int) -> Unsealed:
    """A new record as ordered."""
    terms = order.terms
    record = TokenRecord(
        token=token,
        reference=reference,
        pan_fingerprint=pan_fingerprint,
        requestor=terms.requestor,
        program=terms.program,
        revision=1,
        domain=terms.domain.digest,
        status=TokenStatus.ACTIVE if terms.active else TokenStatus.INACTIVE,
        created_ms=now_ms,
        updated_ms=now_ms,
        token_expiry=terms.token_expiry,
        customer=order.customer or "",
        assurance=terms.assurance,
        assurance_ms=now_ms if terms.assurance else 0,
        par=order.par,
        source=order.source,
    )
    return Unsealed(record, order.card)


def _event(order: Order, unsealed: Unsealed, now_ms: int, *, revision: int) -> Event:
    return Event(
        time_ms=now_ms,
        action=Action.ISSUE,
        outcome=Outcome.DONE,
        requestor=order.terms.requestor,
        reference=unsealed.record.reference,
        revision=revision,
        operator=order.terms.operator,
    )
