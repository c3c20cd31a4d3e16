"""The controls of a domain, each described once: how it is given, what it reads of a use, and when it holds.

A new control is one entry in `_TABLE`, at the place of its violations among those of the others, and one field
of `Domain` of the same name.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter, contains
from typing import Any, Final, Protocol

import attrs

from tokenvault.errors import InvalidInputError, Violation
from tokenvault.model import checks
from tokenvault.model import domain_document as document
from tokenvault.model.counters import Usage
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.limits import Limit, VelocityCounter
from tokenvault.model.money import Money
from tokenvault.model.transaction import FIELD_CHECKS, Transaction
from tokenvault.model.words import Words

LIMITS_MAX: Final = 8
VALUES_SHOWN_MAX: Final = 5

_LISTED: Final[dict[str, Callable[[object], object]]] = {
    **FIELD_CHECKS,
    "requestor": partial(checks.requestor_id, "a requestor"),
    "currency": checks.currency,
}


class CryptogramRule(Words):
    """What a domain requires of the cryptogram of a use.

    REQUIRED: the caller has verified one, and its counter is above the last one seen with this token.
    """

    REQUIRED = "required"


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
        """Its uses so far."""
        ...


@attrs.define(kw_only=True)
class Use:
    """What controls check: the token, the transaction, and the time in milliseconds of the Unix epoch."""

    token: TokenState
    transaction: Transaction
    now_ms: int


@attrs.frozen(kw_only=True)
class Control:
    """One control.

    Attributes:
        name: of the field of `Domain`, of the member of its document, and of the control in a violation.
        parse: reads and checks an argument of `Domain`. Raises InvalidInputError.
        from_json: gives such an argument of what stands in a document. Raises InvalidInputError.
        given: reads from a use what the control checks.
        holds: whether that is allowed by the control's value, or by each member of it if the value is a tuple.
        violation: the violation where it does not hold, given the same two.
        unset: the value that does not restrict.
        counted: whether a use has to be recorded with the token, and a retry is not held against the control again.
    """

    name: str
    parse: Callable[[object], object]
    from_json: Callable[[object], object]
    given: Callable[[Use], Any]
    holds: Callable[[Any, Any], bool]
    violation: Callable[[Any, Any], Violation]
    unset: object = None
    counted: bool = False


def _listing(
    name: str,
    field: str,
    code: str,
    *,
    response_code: str = "57",
    from_json: Callable[[object], object] = document.values_in,
) -> Control:
    """A control that lists what is allowed of a field of the transaction."""

    def violation(allowed: frozenset[object], value: object) -> Violation:
        missing = "; the transaction names none" if value is None else ""
        return Violation(name, code, f"allowed {name}: {_shown(allowed)}{missing}", response_code)

    return Control(
        name=name,
        parse=partial(checks.set_of, name, check=_LISTED[field]),
        from_json=from_json,
        given=_currency if field == "currency" else attrgetter(f"transaction.{field}"),
        holds=contains,
        violation=violation,
    )


def _shown(values: Iterable[object]) -> str:
    listed = sorted(str(value.value if isinstance(value, enum.Enum) else value) for value in values)
    more = f" and {len(listed) - VALUES_SHOWN_MAX} more" if len(listed) > VALUES_SHOWN_MAX else ""
    return ", ".join(listed[:VALUES_SHOWN_MAX]) + more


def _currency(use: Use) -> str | None:
    amount = use.transaction.amount
    return amount.currency if amount else None


def _instant(value: object) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None or value.utcoffset() is None:
        raise InvalidInputError("valid_from and valid_until are datetimes with a time zone")
    try:
        utc = value.astimezone(UTC)
    except (OverflowError, ValueError):
        utc = datetime.min
    if not 2000 <= utc.year <= 2199:
        raise InvalidInputError("valid_from and valid_until lie in 2000 to 2199")
    return utc.replace(microsecond=utc.microsecond // 1_000 * 1_000)


def _at_most(most: Money, amount: Money | None, used: int = 0) -> bool:
    return amount is not None and amount.currency == most.currency and used + amount.amount <= most.amount


def _limits(values: object) -> tuple[Limit, ...]:
    if not isinstance(values, tuple | list) or len(values) > LIMITS_MAX:
        raise InvalidInputError(f"limits is a tuple of at most {LIMITS_MAX} limits")
    listed = [checks.instance("each of limits", value, Limit) for value in values]
    return tuple(sorted(set(listed), key=_limit_order))


def _limit_order(limit: Limit) -> tuple[VelocityCounter, int]:
    return limit._counter, limit.uses or (limit.amount.amount if limit.amount else 0)


def _within(limit: Limit, use: Use) -> bool:
    used = use.token.usage.used(limit._counter, use.now_ms)
    if limit.amount is not None:
        return _at_most(limit.amount, use.transaction.amount, used)
    return limit.uses is not None and used < limit.uses


def _limit_violation(limit: Limit, _use: Use) -> Violation:
    code, response_code = ("USES_EXCEEDED", "65") if limit.amount is None else ("AMOUNT_EXCEEDED", "61")
    return Violation("limits", code, f"at most {limit}", response_code)


_TABLE: Final = (
    _listing("requestors", "requestor", "REQUESTOR_NOT_ALLOWED"),
    _listing("merchants", "merchant", "MERCHANT_NOT_ALLOWED"),
    _listing("merchant_categories", "merchant_category", "MERCHANT_CATEGORY_NOT_ALLOWED"),
    _listing("channels", "channel", "CHANNEL_NOT_ALLOWED", from_json=document.channels_in),
    _listing("countries", "country", "COUNTRY_NOT_ALLOWED", response_code="62"),
    _listing("currencies", "currency", "CURRENCY_NOT_ALLOWED"),
    _listing("devices", "device", "DEVICE_NOT_ALLOWED"),
    Control(
        name="valid_from",
        parse=_instant,
        from_json=document.instant_in,
        given=attrgetter("now_ms"),
        holds=lambda first, now_ms: now_ms >= document.milliseconds(first),
        violation=lambda first, _now_ms: Violation(
            "valid_from", "NOT_YET_VALID", f"the token is valid from {first.isoformat()}; retry then", "57"
        ),
    ),
    Control(
        name="valid_until",
        parse=_instant,
        from_json=document.instant_in,
        given=attrgetter("now_ms"),
        holds=lambda end, now_ms: now_ms < document.milliseconds(end),
        violation=lambda end, _now_ms: Violation(
            "valid_until",
            "NO_LONGER_VALID",
            f"the token was valid until {end.isoformat()}; issue or update one",
            "54",
        ),
    ),
    Control(
        name="max_amount",
        parse=partial(checks.instance, "max_amount", kind=Money),
        from_json=document.money_in,
        given=attrgetter("transaction.amount"),
        holds=_at_most,
        violation=lambda most, _amount: Violation(
            "max_amount", "AMOUNT_TOO_HIGH", f"one use may be at most {most}", "61"
        ),
    ),
    Control(
        name="min_assurance",
        parse=partial(checks.assurance, "min_assurance"),
        from_json=partial(checks.assurance, "min_assurance"),
        given=attrgetter("token.assurance"),
        holds=lambda least, assurance: assurance is not None and assurance >= least,
        violation=lambda least, _assurance: Violation(
            "min_assurance",
            "ASSURANCE_TOO_LOW",
            f"the token's assurance method is below {least}; identify and verify again",
            "57",
        ),
    ),
    Control(
        name="cryptogram",
        parse=partial(checks.instance, "cryptogram", kind=CryptogramRule),
        from_json=partial(document.member_in, CryptogramRule),
        given=attrgetter("transaction.cryptogram_counter", "token.usage.cryptogram_counter"),
        holds=lambda _rule, counters: counters[0] is not None and counters[0] > counters[1],
        violation=lambda _rule, _counters: Violation(
            "cryptogram",
            "CRYPTOGRAM_REQUIRED",
            "each use needs a verified cryptogram with a counter above the last one",
            "82",
        ),
        counted=True,
    ),
    Control(
        name="limits",
        parse=_limits,
        from_json=document.limits_in,
        given=lambda use: use,
        holds=_within,
        violation=_limit_violation,
        unset=(),
        counted=True,
    ),
)

CONTROLS: Final = {control.name: control for control in _TABLE}
"""Every control by its name, in the order of the violations in a decision."""
