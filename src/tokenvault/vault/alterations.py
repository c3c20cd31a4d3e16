"""What changes make of a token's record: for one token and for many.

Each gives the record but for its revision and time, or the very one that it was given where nothing is to be written.
It raises LifecycleError where the change can not be, which its caller notes, and InvalidInputError where the change
itself is not acceptable for this token.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from tokenvault.errors import ConfigurationError, InvalidInputError, LifecycleError
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, Change, TokenStatus, transition
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.model.programs import TokenProgram
from tokenvault.records.keyring import KeyRing
from tokenvault.records.record import TokenRecord
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.orders import other_par, refuse_token_as_customer

Alteration: TypeAlias = Callable[[Unsealed], Coroutine[Any, Any, Unsealed]]


class Properties(NamedTuple):
    """What `update_token` changes of a token; what is None stays.

    Attributes:
        token_expiry: the last month of validity.
        customer: empty to take it away.
        metadata: replaces all pairs there are.
    """

    token_expiry: CardExpiry | None = None
    customer: str | None = None
    metadata: Mapping[str, str] | None = None


class NewCard(NamedTuple):
    """What `update_card` puts behind tokens: a new PAN, a new expiry, or both; what is None stays.

    Attributes:
        pan: the new PAN.
        expiry: the new expiry.
        par: of the new PAN; None: not known. That of another PAN does not stay.
    """

    pan: Pan | None
    expiry: CardExpiry | None
    par: str | None = None


def acting_as(record: TokenRecord, actor: Actor | None, requestor: str | None) -> Actor | None:
    """As whom a requestor suspends or resumes a token: it may hold one that this was issued from.

    So neither of the two lifts the other's suspension.
    """
    other = requestor not in (None, record.requestor)
    return Actor.GRANTOR if actor is Actor.REQUESTOR and other else actor


def status_change(
    core: Core, change: Change, actor: Actor | None = None, requestor: str | None = None
) -> Alteration:
    """Another status."""

    async def alter(unsealed: Unsealed) -> Unsealed:
        record, card = unsealed
        acting = acting_as(record, actor, requestor)
        status, suspended_by = transition(record.status, record.suspended_by, change, acting)
        if status is TokenStatus.DELETED:
            return unsealed if card is None else Unsealed(tombstone(core.keys, record, card.pan), None)
        return Unsealed(record._replace(status=status, suspended_by=suspended_by), card)

    return alter


def tombstone(keys: KeyRing, record: TokenRecord, pan: Pan) -> TokenRecord:
    """The record of a deleted token: it keeps nothing that tells of the card, but that it was issued for it."""
    return record._replace(
        pan_fingerprint=keys.tombstone_fingerprints(pan)[0],
        last4_key=b"",
        metadata=b"",
        par=None,
        status=TokenStatus.DELETED,
        suspended_by=frozenset(),
    )


def winding_down(purge_after_ms: int) -> Alteration:
    """No new payments; follow-ups until it may be purged."""

    async def alter(unsealed: Unsealed) -> Unsealed:
        record, card = _living(unsealed)
        status, suspended_by = transition(record.status, record.suspended_by, Change.WIND_DOWN)
        changed = record._replace(status=status, suspended_by=suspended_by, purge_after_ms=purge_after_ms)
        return Unsealed(changed, card)

    return alter


def domain_change(core: Core, domain: Domain, *, by_host: bool) -> Alteration:
    """Another domain of its own."""

    async def alter(unsealed: Unsealed) -> Unsealed:
        record, card = _living(unsealed)
        # For the host only, which may know the card. A requestor could test guesses of the card by it.
        if by_host and domain.contains_pan(card.pan):
            raise _mentions("the domain")
        await core.documents.put(domain)
        return Unsealed(record._replace(domain=domain.digest), card)

    return alter


def assurance_change(method: str | None, established_ms: int) -> Alteration:
    """Another token assurance method."""

    async def alter(unsealed: Unsealed) -> Unsealed:
        record, card = _living(unsealed)
        changed = record._replace(assurance=method, assurance_ms=established_ms if method else 0)
        return Unsealed(changed, card)

    return alter


def property_change(core: Core, properties: Properties, *, by_host: bool) -> Alteration:
    """Other properties."""
    customer, metadata = properties.customer, properties.metadata

    async def alter(unsealed: Unsealed) -> Unsealed:
        record, card = _living(unsealed)
        refuse_token_as_customer(core, customer)
        if not by_host and customer not in (None, record.customer):
            _refuse_number_as_customer(core, customer)
        texts = (customer or "", *(metadata or {}), *(metadata or {}).values())
        if by_host and any(card.pan.stands_in(text) for text in texts):
            raise _mentions("the customer or the metadata")
        if customer not in (None, record.customer) and (await _program(core, record)).per_customer:
            raise LifecycleError(
                "the token converges on its customer: issue one for another", code="CUSTOMER_FIXED"
            )
        sealed = record.metadata
        if metadata is not None:
            sealed = await core.runtime.call(core.keys.seal_metadata, metadata, record.reference)
        changed = record._replace(
            token_expiry=properties.token_expiry or record.token_expiry,
            customer=record.customer if customer is None else customer,
            metadata=sealed,
        )
        return Unsealed(changed, card)

    return alter


def _refuse_number_as_customer(core: Core, customer: str | None) -> None:
    """Raise InvalidInputError if a customer could hold any card number: it is kept in clear.

    Whether it holds that of the token's card, a requestor is not told: it could test guesses of the card by it.
    """
    if customer and core.trail.ids.could_hold_number(customer):
        raise InvalidInputError(
            "the customer could hold a card number: use an id that does not, or let the host change it",
            code="CARD_NUMBER_IN_TEXT",
        )


def card_change(
    core: Core, pan: Pan | None, new: NewCard, pan_fingerprint: bytes, *, by_host: bool
) -> Alteration:
    """Another PAN, another expiry, or both.

    Args:
        core: has the domains that may not hold the new PAN, and makes the key of its last four digits.
        pan: the PAN so far, where the change is of a card and not of a token: another one is not changed.
        new: the new card.
        pan_fingerprint: of the new PAN, if there is one.
        by_host: whether the host vouches for the new card. Otherwise nobody has verified it: the token is then
            inactive and without assurance. So it is where the number is the one that it had: no answer tells a
            requestor whether a guess is right.
    """

    async def alter(unsealed: Unsealed) -> Unsealed:
        record, card = _living(unsealed)
        if pan is not None and card.pan not in (pan, new.pan):
            raise LifecycleError("the token was given another card meanwhile")
        if new.pan is not None and (not by_host or new.pan != card.pan or new.par is not None):
            await refuse_card(core, record, new.pan)
            if by_host and new.par is not None and card.pan.stands_in(new.par):
                raise _mentions("par")
            record = record._replace(pan_fingerprint=pan_fingerprint, par=new.par)
            if core.finds_last4:
                record = record._replace(last4_key=core.keys.last4_keys(new.pan.last4)[0])
            if not by_host:
                status, suspended_by = transition(record.status, record.suspended_by, Change.NEW_CARD)
                record = record._replace(
                    status=status, suspended_by=suspended_by, assurance=None, assurance_ms=0
                )
        return Unsealed(record, Card(new.pan or card.pan, new.expiry or card.expiry))

    return alter


async def refuse_card(core: Core, record: TokenRecord, new_pan: Pan) -> None:
    """Raise InvalidInputError if a token can not have a new PAN behind it."""
    (await _program(core, record)).pans.check(new_pan.reveal())
    own = await core.documents.get(record.domain)
    if own.contains_pan(new_pan) or new_pan.stands_in(record.customer):
        raise _mentions("the token's domain or customer")


async def refuse_other_par(
    core: Core,
    requestor: str,
    new: NewCard,
    token: str = "",
    changed: Mapping[str, Unsealed] = MappingProxyType({}),
) -> None:
    """Raise InvalidInputError if a requestor has a token of the new PAN with another PAR than the new one.

    Only for the host: a requestor could test guesses of its cards.

    Args:
        core: has the records.
        requestor: id of the token's requestor.
        new: the new card.
        token: which gets the card; it is passed over.
        changed: tokens that are not stored yet as they are by now, by their digits. None that was given the new card
            is among them: what gives a card is written before another one with a PAR names it.
    """
    if new.pan is None or new.par is None:
        return
    pan_fingerprints = await core.runtime.call(core.keys.pan_fingerprints, new.pan)
    async for stored in core.of_card(pan_fingerprints, requestor):
        other, card = changed.get(stored.record.token, stored)
        has_card = other.token != token and card is not None and card.pan == new.pan
        if has_card and other.par not in (None, new.par):
            raise other_par()


async def _program(core: Core, record: TokenRecord) -> TokenProgram:
    program = await core.parties.program(record.program)
    if program is None:
        raise ConfigurationError(
            "the token's program is not among the programs of this vault: add it",
            code="PROGRAM_OR_REQUESTOR_MISSING",
        )
    return program


def _living(unsealed: Unsealed) -> tuple[TokenRecord, Card]:
    record, card = unsealed
    if card is None:
        raise LifecycleError("the token is deleted: it has no card, and never changes again")
    return record, card


def _mentions(what: str) -> InvalidInputError:
    message = f"{what} holds the card number: use ids that do not"
    return InvalidInputError(message, code="CARD_NUMBER_IN_TEXT")
