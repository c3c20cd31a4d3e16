"""What is to be issued, and whether it may be: permissions, expiries, texts, and what a card has already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from tokenvault.audit.event import Action
from tokenvault.errors import InvalidInputError, PermissionDeniedError
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card, CardExpiry
from tokenvault.model.programs import Permission, TokenProgram, TokenRequestor
from tokenvault.records.record import TokenRecord
from tokenvault.vault.core import Core, Unsealed, denial_code, requestor_unknown


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
        grantor: the requestor that the source was issued to; empty likewise.
    """

    card: Card
    terms: Terms
    par: str | None = None
    customer: str | None = None
    metadata: Mapping[str, str] | None = None
    idempotency_key: str | None = None
    source: bytes = b""
    grantor: str = ""

    @property
    def request(self) -> str:
        """All that a repeated request has to repeat, in one text. Holds the card number: digest it with a key.

        Where it names a source, the card is none of it: who asks does not give it, and it may be renewed meanwhile.
        """
        terms, card = self.terms, self.card
        return json.dumps(
            [
                terms.requestor,
                terms.program,
                *(("", "") if self.source else (card.pan.reveal(), str(card.expiry))),
                terms.domain.digest.hex(),
                str(terms.token_expiry),
                terms.assurance,
                terms.active,
                self.par,
                self.customer,
                dict(self.metadata or {}) or None,
                self.source.hex(),
            ],
            sort_keys=True,
        )


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


async def permitted_program(core: Core, terms: Terms, issuer: str) -> TokenProgram:
    """The program, if a requestor may issue its tokens. Raises PermissionDeniedError, once that is noted."""
    return await _program_of(core, terms, await core.permit(issuer, Permission.ISSUE, Action.ISSUE))


async def importable_program(core: Core, terms: Terms, *, issued_before: bool) -> TokenProgram:
    """The program of a token that the operator imports: its requestor is registered, and needs no permission.

    Where a vault issued the token before, that may have been from another one, by who has the program.

    Raises InvalidInputError; PermissionDeniedError, once that is noted.
    """
    requestor = await core.parties.requestor(terms.requestor)
    if requestor is None:
        denied = requestor_unknown()
        await core.deny(Action.ISSUE, terms.requestor, denial_code(denied))
        raise denied
    return await _program_of(core, terms, requestor, of_any=issued_before)


async def _program_of(
    core: Core, terms: Terms, requestor: TokenRequestor, *, of_any: bool = False
) -> TokenProgram:
    program = await core.parties.program(terms.program)
    if program is None:
        named = ", ".join(sorted(requestor.programs)) or "none"
        raise InvalidInputError(
            f"no such program; this requestor may issue tokens of: {named}", code="PROGRAM_UNKNOWN"
        )
    if not of_any and program.name not in requestor.programs:
        await core.deny(Action.ISSUE, requestor.id, "PROGRAM_NOT_ALLOWED")
        raise PermissionDeniedError(
            "this requestor may not issue tokens of this program: add it to its programs",
            code="PROGRAM_NOT_ALLOWED",
        )
    return program


def refuse_mention(core: Core, order: Order) -> None:
    """Raise InvalidInputError if the card number stands in what is kept beside it, or a token in the customer."""
    refuse_token_as_customer(core, order.customer)
    pan, metadata = order.card.pan, order.metadata or {}
    texts = (order.par or "", order.customer or "", *metadata, *metadata.values())
    if order.terms.domain.contains_pan(pan) or any(pan.stands_in(text) for text in texts):
        raise InvalidInputError(
            "the domain, par, customer or metadata holds the card number: use ids that do not",
            code="CARD_NUMBER_IN_TEXT",
        )


def refuse_token_as_customer(core: Core, customer: str | None) -> None:
    """Raise InvalidInputError if a customer could hold a token: it is kept in clear, and found by."""
    if customer and core.trail.ids.could_hold_token(customer):
        raise InvalidInputError(
            "the customer could hold a token: use an id that does not", code="CARD_NUMBER_IN_TEXT"
        )


def refuse_expired(order: Order, program: TokenProgram, now_ms: int) -> None:
    """Raise InvalidInputError if the card has expired, unless it is imported so, or the token would have."""
    card_expiry, terms = order.card.expiry, order.terms
    if (
        card_expiry is not None
        and not terms.accept_expired
        and card_expiry.passed(now_ms, program.expiry_zone)
    ):
        raise expired("the card")
    if terms.token_expiry is not None and terms.token_expiry.passed(now_ms, program.expiry_zone):
        raise expired("the token")


def expired(name: str) -> InvalidInputError:
    """The error for an expiry that has passed."""
    return InvalidInputError(
        f"{name} has expired already; a card is valid through its expiry month",
        code="CARD_EXPIRED" if name == "the card" else "TOKEN_EXPIRED",
    )


def renews(requestor: TokenRequestor | None, order: Order, unsealed: Unsealed) -> bool:
    """Whether a card comes again with a later expiry, from a requestor that may manage its tokens."""
    before, after = None if unsealed.card is None else unsealed.card.expiry, order.card.expiry
    return (
        after is not None
        and (before is None or after > before)
        and requestor is not None
        and Permission.MANAGE in requestor.permissions
    )


def refuse_different(order: Order, unsealed: Unsealed, *, renewed: bool = False) -> None:
    """Raise InvalidInputError if a token that there is already is not as ordered; but for the expiry, if renewed."""
    others = _differences(order, unsealed, renewed=renewed)
    if others:
        raise InvalidInputError(
            f"this card has a token here already, with another {', '.join(others)}",
            code="TOKEN_EXISTS_WITH_OTHER_PROPERTIES",
        )


def _differences(order: Order, unsealed: Unsealed, *, renewed: bool) -> list[str]:
    """In what a token is not as ordered; what an order leaves open does not count."""
    record, card = unsealed
    terms = order.terms

    def differs(ordered: object, stands: object) -> bool:
        return ordered is not None and ordered != stands

    compared = (
        ("domain (update_domain changes it)", terms.domain.digest != record.domain),
        (
            "expiry (update_card changes it)",
            card is not None and not renewed and differs(order.card.expiry, card.expiry),
        ),
        ("token_expiry (update_token changes it)", differs(terms.token_expiry, record.token_expiry)),
        ("assurance", differs(terms.assurance, record.assurance)),
        ("par (update_card changes it)", differs(order.par, record.par)),
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


def other_par() -> InvalidInputError:
    """The error for a card that has another payment account reference (EMVCo: a PAN has one)."""
    return InvalidInputError("this card has another PAR here already: a card has one", code="PAR_DIFFERS")
