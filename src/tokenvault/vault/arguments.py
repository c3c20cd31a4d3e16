"""Checks of the arguments of the vault's methods, which callers may pass in any type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from tokenvault.errors import InvalidInputError, asked
from tokenvault.model import checks
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.pan import CardExpiry, Pan, read_expiry
from tokenvault.model.plain_text import plain_text
from tokenvault.model.transaction import Transaction
from tokenvault.vault.alterations import NewCard, Properties
from tokenvault.vault.core import Core
from tokenvault.vault.manage import By
from tokenvault.vault.orders import Terms
from tokenvault.vault.search import Wanted

AFTER_MAX: Final = 2**62
METADATA_PAIRS_MAX: Final = 16
METADATA_TEXT_MAX: Final = 64

_REFERENCE: Final = re.compile(r"[0-9a-f]{32}")
_LAST4: Final = re.compile(r"[0-9]{4}")


def terms(
    requestor: str,
    program: str,
    domain: Domain | None,
    token_expiry: str | CardExpiry | None,
    assurance: str | None,
    active: bool,
    accept_expired: bool,
    operator: str | None,
) -> Terms:
    """How tokens are to be issued."""
    return Terms(
        requestor=checks.requestor_id("requestor", requestor),
        program=checks.text("program", program),
        domain=own_domain(domain),
        token_expiry=optional_expiry(token_expiry),
        assurance=None if assurance is None else checks.assurance("assurance", assurance),
        active=checks.true_or_false("active", active),
        accept_expired=checks.true_or_false("accept_expired", accept_expired),
        operator=optional_text("operator", operator),
    )


def optional_expiry(value: str | CardExpiry | None) -> CardExpiry | None:
    """The expiry of a card or token, or unset."""
    return None if value is None else read_expiry(value)


def own_domain(value: Domain | None) -> Domain:
    """A token's own domain; unset, the one without restrictions."""
    return NO_RESTRICTION if value is None else checks.instance("domain", value, Domain)


def token_or_reference(value: str) -> str | bytes:
    """A token as it is; of a reference, which is 32 hexadecimal digits, its 16 bytes."""
    value = plain_text(value)
    if isinstance(value, str) and _REFERENCE.fullmatch(value):
        return bytes.fromhex(value)
    try:
        return checks.token(value)
    except InvalidInputError as error:
        message = f"{error}; or a reference, which is 32 hexadecimal digits in lower case"
    raise InvalidInputError(message)


def transaction(value: Transaction) -> Transaction:
    """The transaction of a use."""
    return checks.instance("transaction", value, Transaction)


def pan_or_name(core: Core, value: str | Pan) -> Pan | str | bytes:
    """A PAN, or the token or reference of a token: a number in a token BIN is a token."""
    value = plain_text(value)
    if isinstance(value, str):
        if _REFERENCE.fullmatch(value):
            return bytes.fromhex(value)
        if value.startswith(core.parties.known.token_bins) and value.isdecimal():
            return checks.token(value)
    return core.pan(value)


def optional_text(name: str, value: str | None) -> str | None:
    """A text of 1 to 64 printable ASCII characters, or unset."""
    return None if value is None else checks.text(name, value)


def metadata(value: Mapping[str, str] | None) -> dict[str, str] | None:
    """The caller's own pairs, or unset."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidInputError("metadata is a mapping of texts to texts")
    items = asked("the mapping of metadata failed", value.items)
    pairs = checks.listed("metadata", items, METADATA_PAIRS_MAX)
    if len(pairs) > METADATA_PAIRS_MAX:
        raise InvalidInputError(f"metadata has at most {METADATA_PAIRS_MAX} pairs", code="METADATA_TOO_LONG")
    found = {}
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InvalidInputError("metadata is a mapping of texts to texts")
        found[_metadata_text(pair[0])] = _metadata_text(pair[1])
    return found


def _metadata_text(value: object) -> str:
    text = plain_text(value)
    if not isinstance(text, str) or not text.isprintable():
        raise InvalidInputError("names and values of metadata are printable texts")
    if not 1 <= len(text) <= METADATA_TEXT_MAX:
        raise InvalidInputError(
            f"names and values of metadata have 1 to {METADATA_TEXT_MAX} characters", code="METADATA_TOO_LONG"
        )
    return text


def properties(
    token_expiry: str | CardExpiry | None, customer: str | None, pairs: Mapping[str, str] | None
) -> Properties:
    """What `update_token` changes."""
    customer = plain_text(customer)
    return Properties(
        token_expiry=optional_expiry(token_expiry),
        customer=customer if customer == "" else optional_text("customer", customer),
        metadata=metadata(pairs),
    )


def new_card(core: Core, pan: str | Pan | None, expiry: str | CardExpiry | None, par: str | None) -> NewCard:
    """What `update_card` puts behind tokens."""
    return NewCard(
        pan=None if pan is None else core.pan(pan),
        expiry=optional_expiry(expiry),
        par=None if par is None else checks.par(par),
    )


def milliseconds(name: str, value: datetime) -> int:
    """An instant, in milliseconds of the Unix epoch."""
    return checks.milliseconds(checks.instant(name, value))


def by(requestor: str | None, operator: str | None, by: Actor | None = None) -> By:
    """Who changes a token."""
    return By(caller(requestor), by, optional_text("operator", operator))


def wanted(
    requestor: str | None,
    customer: str | None,
    program: str | None,
    status: TokenStatus | None,
    last4: str | None,
) -> Wanted:
    """What tokens are looked for by."""
    last4 = plain_text(last4)
    if last4 is not None and (not isinstance(last4, str) or not _LAST4.fullmatch(last4)):
        raise InvalidInputError("last4 is four digits")
    return Wanted(
        requestor=caller(requestor),
        customer=optional_text("customer", customer),
        program=optional_text("program", program),
        status=None if status is None else checks.instance("status", status, TokenStatus),
        last4=last4,
    )


def after_token(value: str) -> str:
    """The token that a page comes after; empty: none."""
    text = plain_text(value)
    return text if text == "" else checks.token(text)


def actor(value: Actor) -> Actor:
    """Who suspends or resumes."""
    return checks.instance("by", value, Actor)


def caller(value: str | None) -> str | None:
    """The id of the calling requestor; unset, the host application itself calls."""
    return None if value is None else checks.requestor_id("requestor", value)
