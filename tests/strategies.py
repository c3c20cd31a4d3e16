"""Hypothesis strategies for the library's values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from tokenvault.model.authentication import Authentication, Factor
from tokenvault.model.controls import CryptogramRule
from tokenvault.model.counters import Counter, Usage
from tokenvault.model.domain import Domain
from tokenvault.model.kinds import KINDS, Kind
from tokenvault.model.lifecycle import Actor, TokenStatus, may_be_suspended
from tokenvault.model.limits import Limit
from tokenvault.model.listing import AllBut
from tokenvault.model.money import MINOR_UNITS_MAX, Money
from tokenvault.model.pan import CardExpiry, luhn_check_digit
from tokenvault.model.periods import NEVER_MS, Period
from tokenvault.model.transaction import CONTRADICTIONS, Channel, Transaction
from tokenvault.records.record import TokenRecord

DIGITS = "0123456789"
REQUESTORS = ("40012345678", "40087654321", "40000000001")
MERCHANTS = ("M-1", "M-2", "M 3")
CURRENCIES = ("EUR", "USD", "JPY")
COUNTRIES = ("FR", "DE", "US")
CATEGORIES = ("5411", "5812", "6011")
CATEGORY_RANGES = ("5000-5500", "6000-6010")
REFERENCES = ("order-1", "order-2")
AGENTS = ("agent-1", "agent-2")
ASSURANCES = ("00", "10", "B2")
ZONES = ("UTC", "Asia/Shanghai", "America/New_York", "Europe/Paris")
DEVICES = ("phone", "watch")
NOW_MS = 1_780_000_000_000  # in 2026
DAY_MS = 86_400_000


@st.composite
def pan_digits(draw: st.DrawFn, min_size: int = 13, max_size: int = 19) -> str:
    payload = draw(st.text(DIGITS, min_size=min_size - 1, max_size=max_size - 1))
    return payload + luhn_check_digit(payload)


def money(currencies: tuple[str, ...] = CURRENCIES, most: int = 1_000) -> st.SearchStrategy[Money]:
    return st.builds(Money, st.integers(0, most), st.sampled_from(currencies))


def some(values: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    """A list control: unset, a set, or all but a set."""
    sets = st.frozensets(st.sampled_from(values), min_size=1)
    return st.none() | sets | sets.map(AllBut)


windows = st.sampled_from([None, timedelta(hours=1), timedelta(days=1), timedelta(days=30)])
new_kinds = tuple(kind for kind, rule in KINDS.items() if not rule.follow_up)
factors = st.frozensets(st.sampled_from(Factor), min_size=1)


@st.composite
def any_limits(draw: st.DrawFn) -> Limit:
    """Limits with all that they can say."""
    counted: dict[str, Any] = draw(
        st.builds(dict, uses=st.integers(1, 20))
        | st.builds(dict, amount=money().filter(lambda value: value.amount > 0))
    )
    counted["per"] = draw(windows | st.sampled_from(Period))
    if isinstance(counted["per"], Period):
        counted["zone"] = draw(st.sampled_from(ZONES))
    light = draw(st.sampled_from([None, None, "since_authentication", "without_authentication"]))
    if light:
        counted[light] = True
    return Limit(
        **counted,
        channels=draw(some(tuple(Channel)) | st.none()),
        merchants=draw(some(MERCHANTS) | st.none()),
        requestors=draw(some(REQUESTORS) | st.none()),
        kinds=draw(some(new_kinds) | st.none()),
    )


limits = st.one_of(
    st.builds(Limit, uses=st.integers(1, 20), per=windows),
    st.builds(Limit, amount=money().filter(lambda value: value.amount > 0), per=windows),
)

instants = st.datetimes(datetime(2025, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC)).map(
    lambda value: value.replace(microsecond=value.microsecond // 1000 * 1000)
)
spans = st.integers(1, 10**6).map(lambda seconds: timedelta(seconds=seconds))

controls: dict[str, st.SearchStrategy[Any]] = {
    "requestors": some(REQUESTORS),
    "merchants": some(MERCHANTS),
    "merchant_categories": some((*CATEGORIES, *CATEGORY_RANGES)),
    "channels": some(tuple(Channel)),
    "countries": some(COUNTRIES),
    "currencies": some(CURRENCIES),
    "devices": some(DEVICES),
    "kinds": some(tuple(Kind)),
    "references": some(REFERENCES),
    "agents": some(AGENTS),
    "assurances": some(ASSURANCES),
    "valid_from": st.none() | instants.filter(lambda value: value.year < 2026),
    "valid_until": st.none() | instants.filter(lambda value: value.year >= 2026),
    "min_amount": st.none() | st.just(Money(0, "EUR")) | st.just(Money(10, "EUR")),
    "max_amount": st.none() | money(("EUR",)).map(lambda value: Money(value.amount + 10, "EUR")),
    "min_interval": st.none() | spans,
    "limits": st.lists(limits | any_limits(), max_size=3).map(tuple),
    "cryptogram": st.none() | st.just(CryptogramRule.REQUIRED),
    "strong_above": st.none() | money(),
    "strong_factors": st.just(2) | st.integers(1, 3),
    "strong_max_age": st.none() | spans,
    "follow_ups_without_original": st.booleans(),
}

domains = st.builds(Domain, **controls)

authentications = st.builds(
    Authentication, factors=factors, at=instants, method=st.none() | st.sampled_from(["otp", "app"])
)
channels = st.none() | st.sampled_from(Channel)


@st.composite
def some_transactions(draw: st.DrawFn, kinds: tuple[Kind, ...] = (Kind.PURCHASE,)) -> Transaction:
    kind = draw(st.sampled_from(kinds))
    channel = draw(channels.filter(lambda found: found not in CONTRADICTIONS.get(kind, ())))
    amount = draw(st.none() | money())
    if kind is Kind.VERIFICATION:
        amount = None
    elif kind is Kind.INCREMENT:
        amount = draw(money().filter(lambda value: value.amount > 0))
    follows = KINDS[kind].follow_up or (kind is Kind.PURCHASE and channel is Channel.MERCHANT_INITIATED)
    original = f"tx-{draw(st.integers(0, 3))}" if follows else None
    number = draw(st.integers(4, 10**6))
    return Transaction(
        id=f"tx-{number}",
        requestor=draw(st.sampled_from(REQUESTORS)),
        kind=kind,
        original=original,
        final=draw(st.booleans()) if kind is Kind.CAPTURE else True,
        merchant=draw(st.none() | st.sampled_from(MERCHANTS)),
        merchant_category=draw(st.none() | st.sampled_from(CATEGORIES)),
        channel=channel,
        country=draw(st.none() | st.sampled_from(COUNTRIES)),
        device=draw(st.none() | st.sampled_from(DEVICES)),
        amount=amount,
        reference=draw(st.none() | st.sampled_from(REFERENCES)),
        agent=draw(st.none() | st.sampled_from(AGENTS)),
        token_expiry=draw(st.none() | st.builds(CardExpiry, st.integers(2000, 2099), st.integers(1, 12))),
        authentication=draw(st.none() | authentications),
        cryptogram_counter=draw(st.none() | st.integers(0, 100)),
    )


transactions = st.builds(
    Transaction,
    id=st.integers(0, 10**6).map(lambda number: f"tx-{number}"),
    requestor=st.sampled_from(REQUESTORS),
    merchant=st.none() | st.sampled_from(MERCHANTS),
    merchant_category=st.none() | st.sampled_from(CATEGORIES),
    channel=channels,
    country=st.none() | st.sampled_from(COUNTRIES),
    device=st.none() | st.sampled_from(DEVICES),
    amount=st.none() | money(),
    reference=st.none() | st.sampled_from(REFERENCES),
    agent=st.none() | st.sampled_from(AGENTS),
    authentication=st.none() | authentications,
    cryptogram_counter=st.none() | st.integers(0, 100),
)
any_transactions = some_transactions(tuple(Kind))

expiries = st.builds(CardExpiry, st.integers(2000, 2099), st.integers(1, 12))
assurances = st.none() | st.text("0123456789ABCXYZ", min_size=2, max_size=2)
pars = st.none() | st.text("0123456789ABCXYZ", min_size=29, max_size=29)
big = st.integers(0, 2**63 - 1)

numbers = st.integers(0, 10**6)


@st.composite
def counters(draw: st.DrawFn) -> Counter:
    window = draw(numbers)
    return Counter(
        key=draw(st.binary(min_size=16, max_size=16)),
        window=window,
        value=draw(big),
        previous_window=draw(st.integers(-1, window - 1)),
        previous_value=draw(big),
        ends_ms=draw(big | st.just(NEVER_MS)),
    )


@st.composite
def some_usages(draw: st.DrawFn) -> Usage:
    used = sorted(draw(st.lists(st.integers(-1, MINOR_UNITS_MAX), min_size=2, max_size=2)))
    found = draw(st.lists(counters(), max_size=6, unique_by=lambda counter: counter.key))
    return Usage(
        counters=tuple(sorted(found)),
        cryptogram_counter=draw(st.integers(-1, 2**32 - 1)),
        authenticated_ms=draw(st.integers(-1, MINOR_UNITS_MAX)),
        last_used_ms=used[1],
        used_before_ms=used[0],
    )


usages = some_usages()


@st.composite
def records(draw: st.DrawFn) -> TokenRecord:
    status = draw(st.sampled_from(TokenStatus))
    suspenders = draw(
        st.frozensets(st.sampled_from(Actor)).filter(lambda by: may_be_suspended(status, by))
        if status is TokenStatus.SUSPENDED or may_be_suspended(status, frozenset({Actor.VAULT}))
        else st.just(frozenset[Actor]())
    )
    assurance = draw(assurances)
    sixteen = st.just(b"") | st.binary(min_size=16, max_size=16).filter(any)
    return TokenRecord(
        token=draw(st.text(DIGITS, min_size=13, max_size=19)),
        reference=draw(st.binary(min_size=16, max_size=16)),
        pan_fingerprint=draw(st.binary(min_size=16, max_size=16)),
        requestor=draw(st.sampled_from(REQUESTORS)),
        program=draw(st.sampled_from(["card-on-file", "one-time"])),
        revision=draw(st.integers(1, 2**63 - 1)),
        domain=draw(st.binary(min_size=32, max_size=32)),
        status=status,
        suspended_by=suspenders,
        token_expiry=draw(st.none() | expiries),
        assurance=assurance,
        assurance_ms=draw(big) if assurance else 0,
        par=draw(pars),
        customer=draw(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=64)),
        last4_key=draw(sixteen),
        purge_after_ms=draw(big),
        batch=draw(sixteen),
        source=draw(sixteen),
        request=draw(sixteen),
        metadata=draw(st.binary(max_size=40)),
        usage=draw(usages),
        created_ms=draw(big),
        updated_ms=draw(big),
    )
