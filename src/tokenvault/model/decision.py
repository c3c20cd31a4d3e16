"""Whether a use of a token is allowed: one pure function, and what it answers.

- Every control of every document must hold: the program's domain, the requestor's, the token's own.
- Every control that fails is reported; nothing is short-cut.
- An unset control does not restrict; a set one that the transaction says nothing about fails.
- Only the token's own document can let in a requestor other than the one it was issued to.
- A retry (same transaction id, same content, counted before) is not held against the limits again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Final, Protocol

import attrs

from tokenvault.errors import Violation
from tokenvault.model.controls import Channel, CryptogramRule, Limit, VelocityCounter
from tokenvault.model.counters import Seen, Usage
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import CardExpiry
from tokenvault.model.transaction import Transaction

VALUES_SHOWN_MAX: Final = 5
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# Python 3.11 looks a member of an enum up through its metaclass: as slow as a call.
_ACTIVE: Final = TokenStatus.ACTIVE
_NEW, _SAME, _OTHER_CONTENT = Seen.NEW, Seen.SAME, Seen.OTHER_CONTENT
_REQUIRED: Final = CryptogramRule.REQUIRED


@attrs.frozen
class Decision:
    """The answer to one use.

    Attributes:
        allowed: whether the use is allowed.
        violations: every control that failed, in a stable order; empty when allowed.
    """

    violations: tuple[Violation, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the use is allowed: no control failed."""
        return not self.violations

    def __bool__(self) -> bool:
        return self.allowed


_ALLOWED: Final = Decision()


class TokenState(Protocol):
    """What a decision has to know of a token; a TokenRecord is one."""

    @property
    def requestor(self) -> str:
        """Id of the requestor that it was issued to."""
        ...

    @property
    def status(self) -> TokenStatus:
        """Its status."""
        ...

    @property
    def assurance(self) -> str | None:
        """Its token assurance method, if any."""
        ...

    @property
    def usage(self) -> Usage:
        """What it was used for so far."""
        ...


@attrs.frozen
class Restrictions:
    """The three documents that a use must satisfy.

    Attributes:
        program, requestor, token: from the widest scope to the narrowest.
        documents: those of them that restrict anything.
        velocity_counters: what is counted with each use, sorted; empty when no limit is set.
        counted: whether a use has to be recorded in the token record.
    """

    program: Domain
    requestor: Domain
    token: Domain
    documents: tuple[Domain, ...] = attrs.field(init=False, repr=False, eq=False)
    velocity_counters: tuple[VelocityCounter, ...] = attrs.field(init=False, repr=False, eq=False)
    counted: bool = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        every = (self.program, self.requestor, self.token)
        documents = tuple(document for document in every if document != NO_RESTRICTION)
        velocity_counters = tuple(
            sorted({limit.counter for document in documents for limit in document.limits})
        )
        counted = bool(velocity_counters) or any(document.cryptogram for document in documents)
        object.__setattr__(self, "documents", documents)
        object.__setattr__(self, "velocity_counters", velocity_counters)
        object.__setattr__(self, "counted", counted)


def decide(
    state: TokenState,
    expiry: CardExpiry | None,
    restrictions: Restrictions,
    transaction: Transaction,
    now_ms: int,
) -> Decision:
    """Whether a use is allowed.

    Args:
        state: the token.
        expiry: the last month that it is valid in, if any.
        restrictions: the documents that apply to it.
        transaction: the use.
        now_ms: the time, in milliseconds of the Unix epoch.
    """
    violations: list[Violation] = []
    _check_token(violations, state, expiry, restrictions, transaction, now_ms)
    seen = state.usage.seen(transaction) if restrictions.counted else _NEW
    if seen is _OTHER_CONTENT:
        message = "this transaction id was used before with other content; a new use needs a new id"
        violations.append(Violation("transaction", "TRANSACTION_ID_REUSED", message, "94"))
    for document in restrictions.documents:
        _check_document(violations, document, transaction, now_ms)
        if document.min_assurance is not None and (
            state.assurance is None or state.assurance < document.min_assurance
        ):
            message = (
                f"the token's assurance method is below {document.min_assurance}; identify and verify again"
            )
            violations.append(Violation("min_assurance", "ASSURANCE_TOO_LOW", message, "57"))
        if seen is not _SAME:
            _check_use(violations, document, state.usage, transaction, now_ms)
    return Decision(tuple(dict.fromkeys(violations))) if violations else _ALLOWED


def _check_token(
    violations: list[Violation],
    state: TokenState,
    expiry: CardExpiry | None,
    restrictions: Restrictions,
    transaction: Transaction,
    now_ms: int,
) -> None:
    if state.status is not _ACTIVE:
        violations.append(_STATUS_VIOLATIONS[state.status])
    if expiry is not None and expiry.passed(now_ms):
        message = f"the token was valid through {expiry}; update the card or issue a new token"
        violations.append(Violation("token_expiry", "TOKEN_EXPIRED", message, "54"))
    if restrictions.token.requestors is None and transaction.requestor != state.requestor:
        message = "only the requestor that the token was issued to may use it; its domain names no others"
        violations.append(Violation("requestors", "REQUESTOR_NOT_ALLOWED", message, "57"))


def _check_document(
    violations: list[Violation], document: Domain, transaction: Transaction, now_ms: int
) -> None:
    for control, allowed in document.lists:
        given = _GIVEN[control](transaction)
        if given not in allowed:
            code, response_code = _LIST_CODES[control]
            missing = "; the transaction names none" if given is None else ""
            message = f"allowed {control}: {_shown(allowed)}{missing}"
            violations.append(Violation(control, code, message, response_code))
    if document.valid_from is not None and now_ms < _ms(document.valid_from):
        message = f"the token is valid from {document.valid_from.isoformat()}; retry then"
        violations.append(Violation("valid_from", "NOT_YET_VALID", message, "57"))
    if document.valid_until is not None and now_ms >= _ms(document.valid_until):
        message = f"the token was valid until {document.valid_until.isoformat()}; issue or update one"
        violations.append(Violation("valid_until", "NO_LONGER_VALID", message, "54"))
    amount, most = transaction.amount, document.max_amount
    if most is not None and (
        amount is None or amount.currency != most.currency or amount.amount > most.amount
    ):
        message = f"one use may be at most {most}"
        violations.append(Violation("max_amount", "AMOUNT_TOO_HIGH", message, "61"))


def _check_use(
    violations: list[Violation], document: Domain, usage: Usage, transaction: Transaction, now_ms: int
) -> None:
    counter = transaction.cryptogram_counter
    if document.cryptogram is _REQUIRED and (counter is None or counter <= usage.cryptogram_counter):
        message = "each use needs a verified cryptogram with a counter above the last one"
        violations.append(Violation("cryptogram", "CRYPTOGRAM_REQUIRED", message, "82"))
    for limit in document.limits:
        if not _within(limit, usage.used(limit.counter, now_ms), transaction):
            over_uses = limit.amount is None
            code = "USES_EXCEEDED" if over_uses else "AMOUNT_EXCEEDED"
            violations.append(Violation("limits", code, f"at most {limit}", "65" if over_uses else "61"))


def _within(limit: Limit, used: int, transaction: Transaction) -> bool:
    if limit.amount is None:
        return limit.uses is not None and used + 1 <= limit.uses
    amount = transaction.amount
    return (
        amount is not None
        and amount.currency == limit.amount.currency
        and used + amount.amount <= limit.amount.amount
    )


def _currency(transaction: Transaction) -> str | None:
    return transaction.amount.currency if transaction.amount else None


def _ms(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(milliseconds=1)


def _shown(values: Iterable[object]) -> str:
    listed = sorted(str(value.value if isinstance(value, Channel) else value) for value in values)
    more = f" and {len(listed) - VALUES_SHOWN_MAX} more" if len(listed) > VALUES_SHOWN_MAX else ""
    return ", ".join(listed[:VALUES_SHOWN_MAX]) + more


# Of each control that lists what is allowed: what the transaction says of it, and how a failure is answered.
_GIVEN: Final[dict[str, Callable[[Transaction], object]]] = {
    "requestors": attrgetter("requestor"),
    "merchants": attrgetter("merchant"),
    "merchant_categories": attrgetter("merchant_category"),
    "channels": attrgetter("channel"),
    "countries": attrgetter("country"),
    "currencies": _currency,
    "devices": attrgetter("device"),
}
_LIST_CODES: Final = {
    "requestors": ("REQUESTOR_NOT_ALLOWED", "57"),
    "merchants": ("MERCHANT_NOT_ALLOWED", "57"),
    "merchant_categories": ("MERCHANT_CATEGORY_NOT_ALLOWED", "57"),
    "channels": ("CHANNEL_NOT_ALLOWED", "57"),
    "countries": ("COUNTRY_NOT_ALLOWED", "62"),
    "currencies": ("CURRENCY_NOT_ALLOWED", "57"),
    "devices": ("DEVICE_NOT_ALLOWED", "57"),
}
_STATUS_VIOLATIONS: Final = {
    TokenStatus.INACTIVE: Violation(
        "status", "TOKEN_INACTIVE", "the token is not active yet; activate it first", "57"
    ),
    TokenStatus.SUSPENDED: Violation(
        "status", "TOKEN_SUSPENDED", "the token is suspended; whoever suspended it can resume it", "62"
    ),
    TokenStatus.DELETED: Violation("status", "TOKEN_DELETED", "the token is deleted; issue a new one", "14"),
}
