"""The controls of a domain, each described once: how it is given, what it reads of a use, and when it fails.

A new control is one entry in `_TABLE`, at the place of its violations among those of the others, and one field
of `Domain` of the same name.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

import attrs

from tokenvault.errors import InvalidInputError, Violation
from tokenvault.model import checks
from tokenvault.model import domain_document as document
from tokenvault.model.counters import Usage
from tokenvault.model.limits import Limit, VelocityCounter
from tokenvault.model.money import Money
from tokenvault.model.transaction import Channel, Transaction

LIMITS_MAX: Final = 8
VALUES_SHOWN_MAX: Final = 5


class CryptogramRule(enum.Enum):
    """What a domain requires of the cryptogram of a use.

    REQUIRED: the caller has verified one, and its counter is above the last one seen with this token.
    """

    REQUIRED = "required"


class Use(NamedTuple):
    """What controls look at.

    Attributes:
        transaction: the use.
        usage: what the token was used for before.
        assurance: the token's assurance method, if any.
        now_ms: the time, in milliseconds of the Unix epoch.
    """

    transaction: Transaction
    usage: Usage
    assurance: str | None
    now_ms: int


@attrs.frozen(kw_only=True)
class Control:
    """One control.

    Attributes:
        name: of the field of `Domain`, of the member of its document, and of the control in a violation.
        read: reads and checks an argument of `Domain`. Raises InvalidInputError.
        from_json: gives such an argument of what stands in a document. Raises InvalidInputError.
        check: the violations of a use, given the control's value.
        unset: the value that does not restrict.
        counted: whether a use has to be recorded with the token, and a retry is not held against the control again.
    """

    name: str
    read: Callable[[object], object]
    from_json: Callable[[object], object]
    check: Callable[[Any, Use], Sequence[Violation]]
    unset: object = None
    counted: bool = False


def _single(
    name: str,
    *,
    read: Callable[[object], object],
    from_json: Callable[[object], object],
    fails: Callable[[Any, Use], bool],
    message: Callable[[Any], str],
    code: str,
    response_code: str,
    counted: bool = False,
) -> Control:
    """A control that fails with one violation."""

    def check(value: object, use: Use) -> Sequence[Violation]:
        return (Violation(name, code, message(value), response_code),) if fails(value, use) else ()

    return Control(name=name, read=read, from_json=from_json, check=check, counted=counted)


def _listing(
    name: str,
    reads: Callable[[Transaction], object],
    each: Callable[[object], object],
    code: str,
    *,
    response_code: str = "57",
    from_json: Callable[[object], object] = document.values_in,
) -> Control:
    """A control that lists what is allowed: `each` checks one value, `reads` gets a transaction's."""

    def check(allowed: frozenset[object], use: Use) -> Sequence[Violation]:
        value = reads(use.transaction)
        if value in allowed:
            return ()
        missing = "; the transaction names none" if value is None else ""
        return (Violation(name, code, f"allowed {name}: {_shown(allowed)}{missing}", response_code),)

    return Control(name=name, read=partial(checks.set_of, name, check=each), from_json=from_json, check=check)


def _shown(values: Iterable[object]) -> str:
    listed = sorted(str(value.value if isinstance(value, enum.Enum) else value) for value in values)
    more = f" and {len(listed) - VALUES_SHOWN_MAX} more" if len(listed) > VALUES_SHOWN_MAX else ""
    return ", ".join(listed[:VALUES_SHOWN_MAX]) + more


def _currency(transaction: Transaction) -> str | None:
    return transaction.amount.currency if transaction.amount else None


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


def _above(most: Money, use: Use) -> bool:
    amount = use.transaction.amount
    return amount is None or amount.currency != most.currency or amount.amount > most.amount


def _without_cryptogram(_rule: CryptogramRule, use: Use) -> bool:
    counter = use.transaction.cryptogram_counter
    return counter is None or counter <= use.usage.cryptogram_counter


def _limits(values: object) -> tuple[Limit, ...]:
    if not isinstance(values, tuple | list) or len(values) > LIMITS_MAX:
        raise InvalidInputError(f"limits is a tuple of at most {LIMITS_MAX} limits")
    listed = [checks.instance("each of limits", value, Limit) for value in values]
    return tuple(sorted(set(listed), key=_limit_order))


def _limit_order(limit: Limit) -> tuple[VelocityCounter, int]:
    return limit._counter, limit.uses or (limit.amount.amount if limit.amount else 0)


def _limit_violations(limits: tuple[Limit, ...], use: Use) -> list[Violation]:
    return [
        Violation("limits", "USES_EXCEEDED", f"at most {limit}", "65")
        if limit.amount is None
        else Violation("limits", "AMOUNT_EXCEEDED", f"at most {limit}", "61")
        for limit in limits
        if not _within(limit, use)
    ]


def _within(limit: Limit, use: Use) -> bool:
    used, amount = use.usage.used(limit._counter, use.now_ms), use.transaction.amount
    if limit.amount is None:
        return limit.uses is not None and used + 1 <= limit.uses
    return (
        amount is not None
        and amount.currency == limit.amount.currency
        and used + amount.amount <= limit.amount.amount
    )


_TABLE: Final = (
    _listing(
        "requestors",
        lambda use: use.requestor,
        partial(checks.requestor_id, "a requestor"),
        "REQUESTOR_NOT_ALLOWED",
    ),
    _listing(
        "merchants", lambda use: use.merchant, partial(checks.text, "a merchant"), "MERCHANT_NOT_ALLOWED"
    ),
    _listing(
        "merchant_categories",
        lambda use: use.merchant_category,
        checks.merchant_category,
        "MERCHANT_CATEGORY_NOT_ALLOWED",
    ),
    _listing(
        "channels",
        lambda use: use.channel,
        partial(checks.instance, "a channel", kind=Channel),
        "CHANNEL_NOT_ALLOWED",
        from_json=partial(document.members_in, Channel),
    ),
    _listing("countries", lambda use: use.country, checks.country, "COUNTRY_NOT_ALLOWED", response_code="62"),
    _listing("currencies", _currency, checks.currency, "CURRENCY_NOT_ALLOWED"),
    _listing("devices", lambda use: use.device, partial(checks.text, "a device"), "DEVICE_NOT_ALLOWED"),
    _single(
        "valid_from",
        read=_instant,
        from_json=document.instant_in,
        fails=lambda first, use: use.now_ms < document.milliseconds(first),
        message=lambda first: f"the token is valid from {first.isoformat()}; retry then",
        code="NOT_YET_VALID",
        response_code="57",
    ),
    _single(
        "valid_until",
        read=_instant,
        from_json=document.instant_in,
        fails=lambda end, use: use.now_ms >= document.milliseconds(end),
        message=lambda end: f"the token was valid until {end.isoformat()}; issue or update one",
        code="NO_LONGER_VALID",
        response_code="54",
    ),
    _single(
        "max_amount",
        read=partial(checks.instance, "max_amount", kind=Money),
        from_json=document.money_in,
        fails=_above,
        message=lambda most: f"one use may be at most {most}",
        code="AMOUNT_TOO_HIGH",
        response_code="61",
    ),
    _single(
        "min_assurance",
        read=partial(checks.assurance, "min_assurance"),
        from_json=partial(checks.assurance, "min_assurance"),
        fails=lambda least, use: use.assurance is None or use.assurance < least,
        message=lambda least: f"the token's assurance method is below {least}; identify and verify again",
        code="ASSURANCE_TOO_LOW",
        response_code="57",
    ),
    _single(
        "cryptogram",
        read=partial(checks.instance, "cryptogram", kind=CryptogramRule),
        from_json=partial(document.member_in, CryptogramRule),
        fails=_without_cryptogram,
        message=lambda _rule: "each use needs a verified cryptogram with a counter above the last one",
        code="CRYPTOGRAM_REQUIRED",
        response_code="82",
        counted=True,
    ),
    Control(
        name="limits",
        read=_limits,
        from_json=document.limits_in,
        check=_limit_violations,
        unset=(),
        counted=True,
    ),
)

CONTROLS: Final = {control.name: control for control in _TABLE}
"""Every control by its name, in the order of the violations in a decision."""
