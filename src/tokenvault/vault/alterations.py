"""What changes make of a token's record: pure functions, for one token and for many.

Each gives the record but for its revision and time, and raises LifecycleError where the change can not be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from tokenvault.errors import LifecycleError
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, Change, TokenStatus, transition
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.records.record import TokenRecord
from tokenvault.vault.core import Core, Unsealed

Alteration: TypeAlias = Callable[[Unsealed], Unsealed]


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


def status_change(change: Change, actor: Actor | None = None) -> Alteration:
    """Another status."""

    def alter(unsealed: Unsealed) -> Unsealed:
        record, card = unsealed
        status, suspended_by = transition(record.status, record.suspended_by, change, actor)
        kept = None if status is TokenStatus.DELETED else card
        if kept is None:  # a tombstone keeps nothing that tells of a person
            record = record._replace(last4_key=b"", metadata=b"", par=None)
        return Unsealed(record._replace(status=status, suspended_by=suspended_by), kept)

    return alter


def domain_change(domain: Domain) -> Alteration:
    """Another domain of its own."""

    def alter(unsealed: Unsealed) -> Unsealed:
        record, card = _living(unsealed)
        return Unsealed(record._replace(domain=domain.digest), card)

    return alter


def wind_down(purge_after_ms: int) -> Alteration:
    """No new payments; follow-ups until it may be purged."""

    def alter(unsealed: Unsealed) -> Unsealed:
        record, card = _living(unsealed)
        status, suspended_by = transition(record.status, record.suspended_by, Change.WIND_DOWN, None)
        return Unsealed(
            record._replace(status=status, suspended_by=suspended_by, purge_after_ms=purge_after_ms), card
        )

    return alter


def assurance_change(method: str | None, established_ms: int) -> Alteration:
    """Another token assurance method."""

    def alter(unsealed: Unsealed) -> Unsealed:
        record, card = _living(unsealed)
        changed = record._replace(assurance=method, assurance_ms=established_ms if method else 0)
        return Unsealed(changed, card)

    return alter


def card_change(
    core: Core,
    *,
    pan: Pan | None,
    new_pan: Pan | None,
    pan_fingerprint: bytes | None,
    expiry: CardExpiry | None,
    unverified: bool,
) -> Alteration:
    """Another PAN, another expiry, or both.

    Args:
        core: makes the key of the last four digits.
        pan: the PAN so far, where the change is of a card and not of a token: another one is not changed.
        new_pan, pan_fingerprint: the new PAN and its fingerprint; None: it stays.
        expiry: the new expiry; None: it stays.
        unverified: whether nobody has verified the new card: the token is then inactive and without assurance.
    """

    def alter(unsealed: Unsealed) -> Unsealed:
        record, card = _living(unsealed)
        if pan is not None and card.pan not in (pan, new_pan):
            raise LifecycleError("the token was given another card meanwhile")
        if new_pan is not None and new_pan != card.pan:
            if core.finds_last4:
                record = record._replace(last4_key=core.keys.last4_keys(new_pan.last4)[0])
            record = record._replace(pan_fingerprint=pan_fingerprint or record.pan_fingerprint)
            if unverified:
                status, suspended_by = transition(record.status, record.suspended_by, Change.NEW_CARD, None)
                record = record._replace(
                    status=status, suspended_by=suspended_by, assurance=None, assurance_ms=0
                )
        return Unsealed(record, Card(new_pan or card.pan, expiry or card.expiry))

    return alter


def _living(unsealed: Unsealed) -> tuple[TokenRecord, Card]:
    record, card = unsealed
    if card is None:
        raise LifecycleError("the token is deleted: it has no card, and never changes again")
    return record, card


async def property_change(core: Core, properties: Properties, reference: bytes) -> Alteration:
    """Other properties of the token of a reference."""
    metadata = properties.metadata
    sealed = b"" if metadata is not None else None
    if metadata:
        sealed = await core.runtime.call(core.keys.seal_metadata, metadata, reference)

    def alter(unsealed: Unsealed) -> Unsealed:
        record, card = _living(unsealed)
        if properties.customer not in (None, record.customer) and core.programs[record.program].per_customer:
            raise LifecycleError(
                "the token converges on its customer: issue one for another", code="CUSTOMER_FIXED"
            )
        refuse_mention(card.pan, properties)
        return Unsealed(
            record._replace(
                token_expiry=properties.token_expiry or record.token_expiry,
                customer=record.customer if properties.customer is None else properties.customer,
                metadata=record.metadata if sealed is None else sealed,
            ),
            card,
        )

    return alter


def refuse_mention(pan: Pan, properties: Properties) -> None:
    """Raise LifecycleError, which every caller notes, if the card number stands in properties."""
    metadata = properties.metadata or {}
    if any(pan.stands_in(text) for text in (properties.customer or "", *metadata, *metadata.values())):
        raise LifecycleError("the customer or the metadata holds the card number: use ids that do not")
