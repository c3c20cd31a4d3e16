"""The controls of a domain, each described once: how it is given, what it reads of a use, and when it holds.

A new control is one entry in `_TABLE`, at the place of its violations among those of the others, and one field
of `Domain` of the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from operator import attrgetter, contains
from typing import Any, Final

import attrs

from tokenvault.errors import InvalidInputError, Violation
from tokenvault.model import authentication, checks
from tokenvault.model import domain_document as document
from tokenvault.model.authentication import Strength
from tokenvault.model.control import Control, Term, Use, shown
from tokenvault.model.kinds import Binding, Kind
from tokenvault.model.limits import WINDOW_SECONDS_MAX, Limit
from tokenvault.model.listing import Listing, in_categories, listing_of
from tokenvault.model.money import Money
from tokenvault.model.transaction import FIELD_CHECKS, Channel
from tokenvault.model.velocity import VelocityLimit
from tokenvault.model.words import Words

LIMITS_MAX: Final = 16
STRONG_AUTHENTICATION_REQUIRED: Final = "STRONG_AUTHENTICATION_REQUIRED"
STEP_UP: Final = "1A"
"""Additional customer authentication required (ISO 8583 data element 39): not a refusal for good."""

_VALUE_CHECKS: Final[dict[str, Callable[[object], object]]] = {
    **FIELD_CHECKS,
    "requestor": partial(checks.requestor_id, "a requestor"),
    "merchant_category": checks.merchant_categories,
    "currency": checks.currency,
    "kind": partial(checks.instance, "a kind", kind=Kind),
    "assurance": partial(checks.assurance, "an assurance method"),
}


class CryptogramRule(Words):
    """What a domain requires of the cryptogram of a use.

    REQUIRED: the caller has verified one, and its counter is above the last one seen with this token.
    """

    REQUIRED = "required"


def _listed(
    name: str,
    field: str,
    code: str,
    *,
    response_code: str = "57",
    from_json: Callable[[object], object] = document.values_in,
    binding: Binding = Binding.LISTS,
    given: Callable[[Use], object] | None = None,
    holds: Callable[[Any, Any], bool] = contains,
    missing: str = "the transaction names none",
) -> Control:
    """A control that lists what is allowed of a field, by default of the transaction's."""

    def violation(allowed: Listing[object], value: object) -> Violation:
        unsaid = f"; {missing}" if value is None else ""
        return Violation(name, code, f"allowed {name}: {shown(allowed)}{unsaid}", response_code)

    return Control(
        name=name,
        parse=partial(listing_of, name, check=_VALUE_CHECKS[field]),
        from_json=from_json,
        binding=binding,
        given=given or attrgetter(f"transaction.{field}"),
        holds=holds,
        violation=violation,
    )


def _currency(use: Use) -> str | None:
    return use.amount.currency if use.amount else None


_instant: Final = partial(checks.instant, "valid_from and valid_until")


def _at_most(most: Money, amount: Money | None) -> bool:
    return amount is not None and amount.currency == most.currency and amount.amount <= most.amount


def _at_least(least: Money, amount: Money | None) -> bool:
    return amount is not None and amount.currency == least.currency and amount.amount >= least.amount


@attrs.frozen
class _StrongAbove:
    """Above which amount a use needs what authentication."""

    most: Money
    strength: Strength

    def allows(self, use: Use) -> bool:
        """Whether a use is small enough, or authenticated strongly enough."""
        return _at_most(self.most, use.amount) or self.strength.met_by(
            use.transaction.authentication, use.now_ms
        )

    def violation(self, _use: Use) -> Violation:
        return Violation(
            "strong_above",
            STRONG_AUTHENTICATION_REQUIRED,
            f"above {self.most} present {self.strength}",
            STEP_UP,
        )


def _limits(values: object) -> tuple[Limit, ...]:
    if not isinstance(values, tuple | list) or len(values) > LIMITS_MAX:
        raise InvalidInputError(f"limits is a tuple of at most {LIMITS_MAX} limits")
    listed = [checks.instance("each of limits", value, Limit) for value in values]
    return tuple(sorted(set(listed), key=document.limit_order))


def _within(limit: VelocityLimit, use: Use) -> bool:
    transaction, now_ms = use.transaction, use.now_ms
    return not limit.binds(transaction, use.kind, now_ms) or limit.within(
        transaction, use.token.usage, now_ms
    )


def _limit_violation(limit: VelocityLimit, _use: Use) -> Violation:
    if limit.limit.light:
        message = f"at most {limit}; beyond it present {limit.strength}"
        return Violation("limits", STRONG_AUTHENTICATION_REQUIRED, message, STEP_UP)
    code, response_code = ("USES_EXCEEDED", "65") if limit.limit.amount is None else ("AMOUNT_EXCEEDED", "61")
    return Violation("limits", code, f"at most {limit}", response_code)


def _spaced(interval: timedelta, use: Use) -> bool:
    # As limits of uses: what is no use of its own neither waits nor lets others wait.
    if not use.counts:
        return True
    return use.token.usage.spaced(use.now_ms, 1_000 * checks.seconds(interval))


_TABLE: Final[tuple[Control | Term, ...]] = (
    _listed("requestors", "requestor", "REQUESTOR_NOT_ALLOWED", binding=Binding.PARTIES),
    _listed("merchants", "merchant", "MERCHANT_NOT_ALLOWED"),
    _listed("merchant_categories", "merchant_category", "MERCHANT_CATEGORY_NOT_ALLOWED", holds=in_categories),
    _listed("channels", "channel", "CHANNEL_NOT_ALLOWED", from_json=partial(document.members_in, Channel)),
    _listed("countries", "country", "COUNTRY_NOT_ALLOWED", response_code="62"),
    _listed("currencies", "currency", "CURRENCY_NOT_ALLOWED", binding=Binding.AMOUNTS, given=_currency),
    _listed("devices", "device", "DEVICE_NOT_ALLOWED"),
    _listed(
        "kinds",
        "kind",
        "KIND_NOT_ALLOWED",
        from_json=partial(document.members_in, Kind),
        binding=Binding.PARTIES,
    ),
    _listed("references", "reference", "REFERENCE_NOT_ALLOWED"),
    _listed("agents", "agent", "AGENT_NOT_ALLOWED"),
    _listed(
        "assurances",
        "assurance",
        "ASSURANCE_NOT_ALLOWED",
        binding=Binding.TERMS,
        given=attrgetter("token.assurance"),
        missing="the token has none: identify and verify, then update it",
    ),
    Control(
        name="valid_from",
        parse=_instant,
        from_json=document.instant_in,
        binding=Binding.TERMS,
        given=attrgetter("now_ms"),
        holds=lambda first, now_ms: now_ms >= checks.milliseconds(first),
        violation=lambda first, _now_ms: Violation(
            "valid_from", "NOT_YET_VALID", f"the token is valid from {first.isoformat()}; retry then", "57"
        ),
    ),
    Control(
        name="valid_until",
        parse=_instant,
        from_json=document.instant_in,
        binding=Binding.TERMS,
        given=attrgetter("now_ms"),
        holds=lambda end, now_ms: now_ms < checks.milliseconds(end),
        violation=lambda end, _now_ms: Violation(
            "valid_until",
            "NO_LONGER_VALID",
            f"the token was valid until {end.isoformat()}; issue or update one",
            "54",
        ),
    ),
    Control(
        name="min_amount",
        parse=partial(checks.instance, "min_amount", kind=Money),
        from_json=document.money_in,
        binding=Binding.AMOUNTS,
        given=attrgetter("amount"),
        holds=_at_least,
        violation=lambda least, _amount: Violation(
            "min_amount", "AMOUNT_TOO_LOW", f"one use is at least {least}", "13"
        ),
    ),
    Control(
        name="max_amount",
        parse=partial(checks.instance, "max_amount", kind=Money),
        from_json=document.money_in,
        binding=Binding.AMOUNTS,
        given=attrgetter("amount"),
        holds=_at_most,
        violation=lambda most, _amount: Violation(
            "max_amount", "AMOUNT_TOO_HIGH", f"one use may be at most {most}", "61"
        ),
    ),
    Control(
        name="cryptogram",
        parse=partial(checks.instance, "cryptogram", kind=CryptogramRule),
        from_json=partial(document.member_in, CryptogramRule),
        binding=Binding.TERMS,
        given=attrgetter("transaction.cryptogram_counter", "token.usage.cryptogram_counter"),
        holds=lambda _rule, counters: counters[0] is not None and counters[0] > counters[1],
        violation=lambda _rule, _counters: Violation(
            "cryptogram",
            "CRYPTOGRAM_REQUIRED",
            "each use needs a verified cryptogram with a counter above the last one",
            "82",
        ),
        once=True,
        counted=True,
    ),
    Control(
        name="min_interval",
        parse=partial(checks.whole_seconds, "min_interval", most=WINDOW_SECONDS_MAX),
        from_json=document.span_in,
        binding=Binding.LIMITS,
        given=lambda use: use,
        holds=_spaced,
        violation=lambda interval, _use: Violation(
            "min_interval", "TOO_SOON", f"between two uses at least {interval} pass", "65"
        ),
        once=True,
        counted=True,
    ),
    Control(
        name="limits",
        parse=_limits,
        from_json=document.limits_in,
        binding=Binding.LIMITS,
        given=lambda use: use,
        holds=_within,
        violation=_limit_violation,
        bound=VelocityLimit,
        unset=(),
        once=True,
        counted=True,
    ),
    Control(
        name="strong_above",
        parse=partial(checks.instance, "strong_above", kind=Money),
        from_json=document.money_in,
        binding=Binding.LIMITS,
        given=lambda use: use,
        holds=_StrongAbove.allows,
        violation=_StrongAbove.violation,
        bound=_StrongAbove,
        once=True,
    ),
    Term(
        name="strong_factors",
        parse=authentication.factor_count,
        from_json=authentication.factor_count,
        unset=authentication.FACTORS_DEFAULT,
    ),
    Term(name="strong_max_age", parse=authentication.max_age, from_json=document.span_in, unset=None),
    Term(
        name="follow_ups_without_original",
        parse=partial(checks.true_or_false, "follow_ups_without_original"),
        from_json=document.true_in,
        unset=False,
    ),
)

CONTROLS: Final = {control.name: control for control in _TABLE}
"""Every control and term by its name, in the order of the violations in a decision."""
