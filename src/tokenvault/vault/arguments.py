"""Checks of the arguments of the vault's methods, which callers may pass in any type."""

from __future__ import annotations

import re
from typing import Final

from tokenvault.errors import InvalidInputError
from tokenvault.model import checks
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.lifecycle import Actor
from tokenvault.model.pan import CardExpiry, read_expiry
from tokenvault.model.transaction import Transaction
from tokenvault.vault.issue import Terms

AFTER_MAX: Final = 2**62
_REFERENCE: Final = re.compile(r"[0-9a-f]{32}")


def terms(
    requestor: str,
    program: str,
    domain: Domain | None,
    token_expiry: str | CardExpiry | None,
    assurance: str | None,
    active: bool,
) -> Terms:
    """How tokens are to be issued."""
    if type(active) is not bool:
        raise InvalidInputError("active is True or False")
    return Terms(
        requestor=checks.requestor_id("requestor", requestor),
        program=checks.text("program", program),
        domain=own_domain(domain),
        token_expiry=optional_expiry(token_expiry),
        assurance=None if assurance is None else checks.assurance("assurance", assurance),
        active=active,
    )


def optional_expiry(value: str | CardExpiry | None) -> CardExpiry | None:
    """The expiry of a card or token, or unset."""
    return None if value is None else read_expiry(value)


def own_domain(value: Domain | None) -> Domain:
    """A token's own domain; unset, the one without restrictions."""
    return NO_RESTRICTION if value is None else checks.instance("domain", value, Domain)


def token_or_reference(value: str) -> str | bytes:
    """A token as it is; of a reference, which is 32 hexadecimal digits, its 16 bytes."""
    if isinstance(value, str) and _REFERENCE.fullmatch(value):
        return bytes.fromhex(value)
    return checks.token(value)


def transaction(value: Transaction) -> Transaction:
    """The transaction of a use."""
    return checks.instance("transaction", value, Transaction)


def actor(value: Actor) -> Actor:
    """Who suspends or resumes."""
    return checks.instance("by", value, Actor)


def caller(value: str | None) -> str | None:
    """The id of the calling requestor; unset, the host application itself calls."""
    return None if value is None else checks.requestor_id("requestor", value)
