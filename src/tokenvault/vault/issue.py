"""Issuing tokens: random ones, and ones that converge on the same token for the same card."""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import InvalidInputError, PermissionDeniedError, TokenSpaceExhaustedError
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card, CardExpiry
from tokenvault.model.programs import Making, Permission, TokenProgram
from tokenvault.records.record import TokenRecord
from tokenvault.stores.port import REFERENCE_BYTES
from tokenvault.vault.core import Core, Unsealed

DRAWS_MAX: Final = 8
"""Random tokens drawn one by one; after so many collisions the space is looked at."""

SAMPLE_MAX: Final = 256
"""Tokens looked up at once in a crowded space."""

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


class Order(NamedTuple):
    """The token that is to be issued for a card; `par` as in TokenInfo."""

    card: Card
    terms: Terms
    par: str | None = None


async def issue(core: Core, order: Order) -> Unsealed:
    """Issue a token, or return the existing one."""
    program = await permitted_program(core, order.terms)
    core.refuse_token_as_pan(order.card.pan)
    refuse_mention(order)
    now_ms = core.clock.now_ms()
    for name, expiry in (("the card", order.card.expiry), ("the token", order.terms.token_expiry)):
        if expiry is not None and expiry.passed(now_ms):
            raise expired(name)
    if program.making is Making.CONVERGENT:
        return await _converge(core, order, program, now_ms)
    return await _draw(core, order, program, now_ms)


async def permitted_program(core: Core, terms: Terms) -> TokenProgram:
    """The program, if the requestor may issue its tokens. Raises PermissionDeniedError, once that is noted."""
    requestor = await core.permit(terms.requestor, Permission.ISSUE, Action.ISSUE)
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
    """Raise InvalidInputError if the card number stands in what the vault keeps in the clear."""
    pan = order.card.pan
    if order.terms.domain.contains_pan(pan) or (order.par is not None and pan.stands_in(order.par)):
        raise InvalidInputError(
            "the domain or the par holds the card number: use ids that do not", code="CARD_NUMBER_IN_TEXT"
        )


def expired(name: str) -> InvalidInputError:
    """The error for an expiry that has passed."""
    return InvalidInputError(
        f"{name} has expired already; a card is valid through its expiry month",
        code="CARD_EXPIRED" if name == "the card" else "TOKEN_EXPIRED",
    )


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


async def _converge(core: Core, order: Order, program: TokenProgram, now_ms: int) -> Unsealed:
    """Issue the token that this card, requestor and program converge on."""
    pan, token_format, requestor = order.card.pan, program.format, order.terms.requestor
    keys, choices = core.keys, token_format.choices(len(pan))
    # Looked up by fingerprint first, under each key version: so tokens outlive the key that they were derived with.
    pan_fingerprints = await core.runtime.call(keys.pan_fingerprints, pan)
    stored = [unsealed async for unsealed in core.of_card(pan_fingerprints, requestor, program.name)]
    existing = [unsealed for unsealed in stored if unsealed.card is not None and unsealed.card.pan == pan]
    tombstones = sum(unsealed.card is None for unsealed in stored)

    async def candidate(number: int) -> str:
        drawn = await core.runtime.call(
            keys.convergent_choice, pan_fingerprints[0], requestor, program.name, number
        )
        return token_format.make(drawn % choices, len(pan), pan.last4)

    if len(existing) > 1:  # a card update merged two cards: the token that this one had stays its token
        own = await candidate(tombstones)
        existing.sort(key=lambda unsealed: (unsealed.record.token != own, unsealed.record.created_ms))
    if existing:
        return await _again(core, order, existing[0], now_ms)
    if await core.key_versions.settle():
        return await _converge(core, order, program, now_ms)
    # Each tombstone is a candidate that was used up.
    for number in range(tombstones, tombstones + CANDIDATES_MAX):
        token = await candidate(number)
        if await core.rekeyed(keys):
            return await _converge(core, order, program, now_ms)
        issued = await _insert(core, order, token, pan_fingerprints[0], now_ms)
        if issued is not None:
            return issued
        # Another process came first with this card; or the candidate is another card's, or deleted.
        there = await core.read(token, None)
        if _converges(order, there, pan_fingerprints):
            return await _again(core, order, there, now_ms)
    raise TokenSpaceExhaustedError(
        f"program {program.name}: {CANDIDATES_MAX} of {CANDIDATES_MAX} candidates are taken of {choices} tokens"
        " for a card of this length: add a program with another BIN or a longer length"
    )


async def _insert(
    core: Core, order: Order, token: str, pan_fingerprint: bytes, now_ms: int
) -> Unsealed | None:
    """Write a new token, and its domain document if that is new. Returns None if the token exists already."""
    unsealed = new(order, token, secrets.token_bytes(REFERENCE_BYTES), pan_fingerprint, now_ms)
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


def _converges(order: Order, unsealed: Unsealed, pan_fingerprints: tuple[bytes, ...]) -> bool:
    """Whether a record is of the card, requestor and program of an order."""
    record, card = unsealed
    return (
        card is not None
        and card.pan == order.card.pan
        and record.pan_fingerprint in pan_fingerprints
        and record.requestor == order.terms.requestor
        and record.program == order.terms.program
    )


async def _again(core: Core, order: Order, unsealed: Unsealed, now_ms: int) -> Unsealed:
    """Issue an existing token again, unchanged."""
    refuse_different(order, unsealed)
    await core.trail.note(_event(order, unsealed, now_ms, revision=0))
    return unsealed


def refuse_different(order: Order, unsealed: Unsealed) -> None:
    """Raise InvalidInputError if a token that there is already is not as ordered."""
    record, card = unsealed
    others = [
        name
        for name, differs in (
            ("domain (update_domain changes it)", order.terms.domain.digest != record.domain),
            (
                "expiry (update_card changes it)",
                card is not None and order.card.expiry not in (None, card.expiry),
            ),
            ("token_expiry", order.terms.token_expiry not in (None, record.token_expiry)),
            ("assurance", order.terms.assurance not in (None, record.assurance)),
            ("par", order.par not in (None, record.par)),
            ("status (it is active)", not order.terms.active and record.status is TokenStatus.ACTIVE),
        )
        if differs
    ]
    if others:
        raise InvalidInputError(
            f"this card has a token here already, with another {', '.join(others)}",
            code="TOKEN_EXISTS_WITH_OTHER_PROPERTIES",
        )


def new(order: Order, token: str, reference: bytes, pan_fingerprint: bytes, now_ms: int) -> Unsealed:
    """A new record as ordered."""
    record = TokenRecord(
        token=token,
        reference=reference,
        pan_fingerprint=pan_fingerprint,
        requestor=order.terms.requestor,
        program=order.terms.program,
        revision=1,
        domain=order.terms.domain.digest,
        status=TokenStatus.ACTIVE if order.terms.active else TokenStatus.INACTIVE,
        created_ms=now_ms,
        updated_ms=now_ms,
        token_expiry=order.terms.token_expiry,
        assurance=order.terms.assurance,
        par=order.par,
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
    )
