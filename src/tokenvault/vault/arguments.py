"""What the faces call: arguments of any type in, checked at once, and on to the flow, which is returned."""

from __future__ import annotations

import re
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from tokenvault.audit.export import HISTORY_MAX, AuditEvent
from tokenvault.errors import InvalidInputError
from tokenvault.model import checks
from tokenvault.model.decision import Decision
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.lifecycle import Actor, Change
from tokenvault.model.pan import Card, CardExpiry, Pan, read_expiry, read_pan
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import TokenInfo
from tokenvault.vault import history as reading
from tokenvault.vault import issue as issuing
from tokenvault.vault import manage, use
from tokenvault.vault.core import Core

T = TypeVar("T")
Flow = Coroutine[Any, Any, T]
_REFERENCE: Final = re.compile(r"[0-9a-f]{32}")


def issue(
    core: Core,
    pan: str | Pan,
    expiry: str | CardExpiry | None,
    requestor: str,
    program: str,
    domain: Domain | None,
    token_expiry: str | CardExpiry | None,
    assurance: str | None,
    par: str | None,
    active: bool,
) -> Flow[TokenInfo]:
    """Check an order and issue it."""
    if type(active) is not bool:
        raise InvalidInputError("active is True or False")
    order = issuing.Order(
        Card(read_pan(pan), _expiry(expiry)),
        checks.requestor_id("requestor", requestor),
        checks.text("program", program),
        NO_RESTRICTION if domain is None else checks.instance("domain", domain, Domain),
        _expiry(token_expiry),
        None if assurance is None else checks.assurance("assurance", assurance),
        None if par is None else checks.par(par),
        active,
    )
    return issuing.issue(core, order)


def check(core: Core, token: str, transaction: Transaction) -> Flow[Decision]:
    """Check the arguments and decide."""
    return use.check(core, checks.token(token), checks.instance("transaction", transaction, Transaction))


def detokenize(core: Core, token: str, transaction: Transaction) -> Flow[Card]:
    """Check the arguments and detokenize."""
    return use.detokenize(core, checks.token(token), checks.instance("transaction", transaction, Transaction))


def change_status(
    core: Core, token: str, change: Change, by: Actor | None, requestor: str | None
) -> Flow[TokenInfo]:
    """Check the arguments and change a token's status."""
    if change in {Change.SUSPEND, Change.RESUME}:
        checks.instance("by", by, Actor)
    return manage.change_status(core, checks.token(token), change, by, _requestor(requestor))


def update_domain(core: Core, token: str, domain: Domain | None, requestor: str | None) -> Flow[TokenInfo]:
    """Check the arguments and change a token's own domain."""
    domain = NO_RESTRICTION if domain is None else checks.instance("domain", domain, Domain)
    return manage.update_domain(core, checks.token(token), domain, _requestor(requestor))


def update_card(
    core: Core,
    pan: str | Pan,
    new_pan: str | Pan | None,
    expiry: str | CardExpiry | None,
    requestor: str | None,
) -> Flow[list[TokenInfo]]:
    """Check the arguments and change the card behind its tokens."""
    if new_pan is None and expiry is None:
        raise InvalidInputError("update_card takes a new PAN, a new expiry, or both")
    new = None if new_pan is None else read_pan(new_pan)
    return manage.update_card(core, read_pan(pan), new, _expiry(expiry), _requestor(requestor))


def tokens_of(core: Core, pan: str | Pan, requestor: str | None) -> Flow[list[TokenInfo]]:
    """Check the arguments and list a card's tokens."""
    return manage.tokens_of(core, read_pan(pan), _requestor(requestor))


def get(core: Core, token_or_reference: str) -> Flow[TokenInfo]:
    """Check the argument and look a token up."""
    if isinstance(token_or_reference, str) and _REFERENCE.fullmatch(token_or_reference):
        return manage.get(core, None, bytes.fromhex(token_or_reference))
    return manage.get(core, checks.token(token_or_reference), None)


def history(core: Core, token_or_reference: str, after: int, limit: int) -> Flow[list[AuditEvent]]:
    """Check the arguments and read what the trail says of a token."""
    checks.whole_number("after", after, 0, 2**62)
    checks.whole_number("limit", limit, 1, HISTORY_MAX)
    if isinstance(token_or_reference, str) and _REFERENCE.fullmatch(token_or_reference):
        return reading.history(core, None, bytes.fromhex(token_or_reference), after, limit)
    return reading.history(core, checks.token(token_or_reference), b"", after, limit)


def _expiry(expiry: str | CardExpiry | None) -> CardExpiry | None:
    return None if expiry is None else read_expiry(expiry)


def _requestor(requestor: str | None) -> str | None:
    return None if requestor is None else checks.requestor_id("requestor", requestor)
