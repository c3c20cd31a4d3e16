"""Issuing tokens: random ones, and ones that converge on the same token for the same card."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import InvalidInputError, PermissionDeniedError, TokenSpaceExhaustedError
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.pan import Card, CardExpiry
from tokenvault.model.programs import Making, Permission, TokenProgram
from tokenvault.records.record import TokenRecord
from tokenvault.records.token_info import TokenInfo, info_of
from tokenvault.stores.port import REFERENCE_BYTES
from tokenvault.vault.core import Core, Unsealed

DRAWS_MAX: Final = 8
"""Random tokens drawn one by one; after so many collisions the space is looked at."""

SAMPLE_MAX: Final = 256
"""Tokens looked up at once in a crowded space."""

CANDIDATES_MAX: Final = 64
"""Convergent candidates tried before the space counts as exhausted."""

CHOICE_BYTES: Final = 16
"""Random bytes for one of at most 10**18 choices: none is more probable than another by more than one in 2**68."""

# Python 3.11 looks a member of an enum up through its metaclass: as slow as a call.
_MAY_ISSUE: Final = Permission.ISSUE
_CONVERGENT: Final = Making.CONVERGENT
_ISSUE: Final = Action.ISSUE
_DONE: Final = Outcome.DONE
_NOBODY: Final[frozenset[Actor]] = frozenset()
_ACTIVE, _INACTIVE = TokenStatus.ACTIVE, TokenStatus.INACTIVE

CARD_PAGE: Final = 100
ACCOUNT_PAGES_MAX: Final = 100


class Order(NamedTuple):
    """What is to be issued; checked, but for permissions and the clock.

    Attributes:
        card: the card behind the token.
        requestor: who issues; program: name of the program.
        domain: the token's own domain.
        token_expiry, assurance, par: as in TokenInfo; unset where none was asked for.
        active: whether the token may be used at once, or only after `activate`.
    """

    card: Card
    requestor: str
    program: str
    domain: Domain
    token_expiry: CardExpiry | None
    assurance: str | None
    par: str | None
    active: bool


async def issue(core: Core, order: Order) -> TokenInfo:
    """Issue a token, or find the one that there is."""
    names = order.requestor, order.program
    program = _permitted(core, *names) or await permitted_program(core, *names)
    core.refuse_token_as_pan(order.card.pan)
    refuse_mention(order)
    now_ms = core.clock.now_ms()
    for name, expiry in (("the card", order.card.expiry), ("the token", order.token_expiry)):
        if expiry is not None and expiry.passed(now_ms):
            raise expired(name)
    make = _converge if program.making is _CONVERGENT else _draw
    return await make(core, order, program, now_ms, core.documents.unwritten(order.domain))


def _permitted(core: Core, requestor_id: str, name: str) -> TokenProgram | None:
    """The program, if the requestor may issue its tokens."""
    if core.denial(requestor_id, _MAY_ISSUE) is not None:
        return None
    return core.programs.get(name) if name in core.requestors[requestor_id].programs else None


async def permitted_program(core: Core, requestor_id: str, name: str) -> TokenProgram:
    """The program, if the requestor may issue its tokens. Raises PermissionDeniedError, once it is noted."""
    permitted = _permitted(core, requestor_id, name)
    if permitted is not None:
        return permitted
    requestor = await core.permit(requestor_id, _MAY_ISSUE, _ISSUE)
    if name not in core.programs:
        named = ", ".join(sorted(requestor.programs)) or "none"
        raise InvalidInputError(f"no such program; this requestor may issue tokens of: {named}")
    await core.deny(_ISSUE, requestor_id, "PROGRAM_NOT_ALLOWED")
    raise PermissionDeniedError("this requestor may not issue tokens of this program: add it to its programs")


def expired(name: str) -> InvalidInputError:
    """What is wrong with an expiry that has passed."""
    return InvalidInputError(f"{name} has expired already; a card is valid through its expiry month")


async def _draw(
    core: Core, order: Order, program: TokenProgram, now_ms: int, document: bytes | None
) -> TokenInfo:
    pan, keys = order.card.pan, core.keys
    pan_fingerprint = (
        keys.pan_fingerprint(pan)
        if core.runtime.inline
        else await core.runtime.call(keys.pan_fingerprint, pan)
    )
    shape = len(order.card.pan), order.card.pan.last4
    choices = program.format.choices(shape[0])
    for _ in range(DRAWS_MAX):
        drawn = os.urandom(REFERENCE_BYTES + CHOICE_BYTES)  # one call of the system
        token = program.format.make(int.from_bytes(drawn[REFERENCE_BYTES:]) % choices, *shape)
        opened = new(order, token, drawn[:REFERENCE_BYTES], pan_fingerprint, now_ms)
        if not await core.insert(*opened, _event(order, opened, now_ms), document):
            return _told(core, order, opened, document)
    if choices <= SAMPLE_MAX:
        sample = {program.format.make(choice, *shape) for choice in range(choices)}
    else:
        sample = {program.format.make(secrets.randbelow(choices), *shape) for _ in range(SAMPLE_MAX)}
    free = sample - {row.token for row in await core.store.get(sorted(sample))}
    for token in free:
        opened = new(order, token, os.urandom(REFERENCE_BYTES), pan_fingerprint, now_ms)
        if not await core.insert(*opened, _event(order, opened, now_ms), document):
            return _told(core, order, opened, document)
    taken = len(sample) - len(free)
    raise TokenSpaceExhaustedError(
        f"program {program.name}: of {choices} tokens for a card of this length"
        f"{' and last four' if program.format.keep_last4 else ''}, {taken} of {len(sample)} looked at are taken"
        f" ({100 * taken // len(sample)} %): add a program with another BIN or a longer length"
    )


async def _converge(
    core: Core, order: Order, program: TokenProgram, now_ms: int, document: bytes | None
) -> TokenInfo:
    # By pan_fingerprint first, under each key version: so tokens outlive the key that they were derived with.
    pan_fingerprints = await core.runtime.call(core.keys.pan_fingerprints, order.card.pan)
    standing: list[Unsealed] = []
    tombstones = 0
    for pan_fingerprint in pan_fingerprints:
        async for opened in _issued(core, order, pan_fingerprint):
            if opened.card is None:
                tombstones += 1
            elif opened.card.pan == order.card.pan:
                standing.append(opened)
    shape = len(order.card.pan), order.card.pan.last4
    choices = program.format.choices(shape[0])

    async def candidate(number: int) -> str:
        drawn = await core.runtime.call(
            core.keys.convergent_choice, pan_fingerprints[0], order.requestor, order.program, number
        )
        return program.format.make(drawn % choices, *shape)

    if len(standing) == 1:
        return await _again(core, order, standing[0], now_ms)
    if standing:  # a card update joined two cards: the token that this one had stays its token
        own = await candidate(tombstones)
        standing.sort(key=lambda opened: (opened.record.token != own, opened.record.created_ms))
        return await _again(core, order, standing[0], now_ms)
    # Each tombstone is a candidate that was used up.
    for number in range(tombstones, tombstones + CANDIDATES_MAX):
        token = await candidate(number)
        opened = new(order, token, os.urandom(REFERENCE_BYTES), pan_fingerprints[0], now_ms)
        if not await core.insert(*opened, _event(order, opened, now_ms), document):
            return _told(core, order, opened, document)
        # Another process came first with this card; or the candidate is another card's, or deleted.
        there = await core.read(token, None)
        if _converges(order, there, pan_fingerprints):
            return await _again(core, order, there, now_ms)
    raise TokenSpaceExhaustedError(
        f"program {program.name}: {CANDIDATES_MAX} of {CANDIDATES_MAX} candidates are taken of {choices} tokens"
        " for a card of this length: add a program with another BIN or a longer length"
    )


async def _issued(core: Core, order: Order, pan_fingerprint: bytes) -> AsyncIterator[Unsealed]:
    """The records of a pan_fingerprint, requestor and program, tombstones too."""
    after = ""
    for _ in range(ACCOUNT_PAGES_MAX):
        rows = await core.store.find(
            pan_fingerprint, requestor=order.requestor, program=order.program, after=after, limit=CARD_PAGE
        )
        for row in rows:
            yield await core.open(row)
        if len(rows) < CARD_PAGE:
            return
        after = rows[-1].token


def _converges(order: Order, opened: Unsealed, pan_fingerprints: tuple[bytes, ...]) -> bool:
    record = opened.record
    return (
        opened.card is not None
        and opened.card.pan == order.card.pan
        and record.pan_fingerprint in pan_fingerprints
        and record.requestor == order.requestor
        and record.program == order.program
    )


async def _again(core: Core, order: Order, opened: Unsealed, now_ms: int) -> TokenInfo:
    """Issue a token that there is already: only as it is."""
    refused = different(order, opened)
    if refused is not None:
        raise refused
    await core.note(_event(order, opened, now_ms)._replace(revision=0))
    return info_of(opened.record, opened.card)


def different(order: Order, opened: Unsealed) -> InvalidInputError | None:
    """Why a token that there is already can not be issued again as ordered; None where it can."""
    record, card = opened.record, opened.card
    others = [
        name
        for name, differs in (
            ("domain (update_domain changes it)", order.domain.digest != record.domain),
            (
                "expiry (update_card changes it)",
                card is not None and order.card.expiry not in (None, card.expiry),
            ),
            ("token_expiry", order.token_expiry not in (None, record.token_expiry)),
            ("assurance", order.assurance not in (None, record.assurance)),
            ("par", order.par not in (None, record.par)),
            ("status (it is active)", not order.active and record.status is TokenStatus.ACTIVE),
        )
        if differs
    ]
    if not others:
        return None
    return InvalidInputError(f"this card has a token here already, with another {', '.join(others)}")


def _told(core: Core, order: Order, opened: Unsealed, document: bytes | None) -> TokenInfo:
    """The token that was just written, with its document where one went along."""
    if document is not None:
        core.documents.written(order.domain)
    return info_of(*opened)


def new(order: Order, token: str, reference: bytes, pan_fingerprint: bytes, now_ms: int) -> Unsealed:
    """A new record as ordered."""
    record = TokenRecord(
        token,
        reference,
        pan_fingerprint,
        order.requestor,
        order.program,
        1,
        order.domain.digest,
        _ACTIVE if order.active else _INACTIVE,
        now_ms,
        now_ms,
        _NOBODY,
        order.token_expiry,
        order.assurance,
        order.par,
    )
    return Unsealed(record, order.card)


def _event(order: Order, opened: Unsealed, now_ms: int) -> Event:
    record = opened.record
    return Event(now_ms, _ISSUE, _DONE, order.requestor, record.reference, None, (), record.revision)


def refuse_mention(order: Order) -> None:
    """Raise InvalidInputError where the card number stands in what the vault keeps in the clear."""
    pan = order.card.pan
    if order.domain.contains_pan(pan) or (order.par is not None and pan.stands_in(order.par)):
        raise InvalidInputError("the domain or the par holds the card number: use ids that do not")
