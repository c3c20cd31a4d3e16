"""Hypothesis strategies for the library's values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from tokenvault.model.controls import CryptogramRule
from tokenvault.model.counters import Usage
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor, TokenStatus
from tokenvault.model.limits import Limit, VelocityCounter
from tokenvault.model.money import Money
from tokenvault.model.pan import CardExpiry, luhn_check_digit
from tokenvault.model.transaction import Channel, Transaction
from tokenvault.records.record import TokenRecord

DIGITS = "0123456789"
REQUESTORS = ("40012345678", "40087654321", "40000000001")
MERCHANTS = ("M-1", "M-2", "M 3")
CURRENCIES = ("EUR", "USD", "JPY")
COUNTRIES = ("FR", "DE", "US")
CATEGORIES = ("5411", "5812", "6011")
DEVICES = ("phone", "watch")
NOW_MS = 1_780_000_000_000  # in 2026
DAY_MS = 86_400_000


@st.composite
def pan_digits(draw: st.DrawFn, min_size: int = 13, max_size: int = 19) -> str:
    payload = draw(st.text(DIGITS, min_size=min_size - 1, max_size=max_size - 1))
    return payload + luhn_check_digit(payload)


def money(currencies: tuple[str, ...] = CURRENCIES, most: int = 1_000) -> st.SearchStrategy[Money]:
    return st.builds(Money, st.integers(0, most), st.sampled_from(currencies))


windows = st.sampled_from([None, timedelta(hours=1), timedelta(days=1), timedelta(days=30)])

limits = st.one_of(
    st.builds(Limit, uses=st.integers(1, 20), per=windows),
    st.builds(Limit, amount=money().filter(lambda value: value.amount > 0), per=windows),
)


def some(values: tuple[Any, ...]) -> st.SearchStrategy[frozenset[Any] | None]:
    return st.none() | st.frozensets(st.sampled_from(values), min_size=1)


instants = st.datetimes(datetime(2025, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC)).map(
    lambda value: value.replace(microsecond=value.microsecond // 1000 * 1000)
)

controls: dict[str, st.SearchStrategy[Any]] = {
    "requestors": some(REQUESTORS),
    "merchants": some(MERCHANTS),
    "merchant_categories": some(CATEGORIES),
    "channels": some(tuple(Channel)),
    "countries": some(COUNTRIES),
    "currencies": some(CURRENCIES),
    "devices": some(DEVICES),
    "valid_from": st.none() | instants.filter(lambda value: value.year < 2026),
    "valid_until": st.none() | instants.filter(lambda value: value.year >= 2026),
    "max_amount": st.none() | money(),
    "limits": st.lists(limits, max_size=3).map(tuple),
    "cryptogram": st.none() | st.just(CryptogramRule.REQUIRED),
    "min_assurance": st.none() | st.sampled_from(["00", "10", "A1"]),
}

domains = st.builds(Domain, **controls)

transactions = st.builds(
    Transaction,
    id=st.integers(0, 10**6).map(lambda number: f"tx-{number}"),
    requestor=st.sampled_from(REQUESTORS),
    merchant=st.none() | st.sampled_from(MERCHANTS),
    merchant_category=st.none() | st.sampled_from(CATEGORIES),
    channel=st.none() | st.sampled_from(Channel),
    country=st.none() | st.sampled_from(COUNTRIES),
    device=st.none() | st.sampled_from(DEVICES),
    amount=st.none() | money(),
    cryptogram_counter=st.none() | st.integers(0, 100),
)

expiries = st.builds(CardExpiry, st.integers(2000, 2099), st.integers(1, 12))
assurances = st.none() | st.text("0123456789ABCXYZ", min_size=2, max_size=2)
pars = st.none() | st.text("0123456789ABCXYZ", min_size=29, max_size=29)
big = st.integers(0, 2**63 - 1)

velocity_counters = st.builds(
    VelocityCounter, st.sampled_from(["", *CURRENCIES]), st.sampled_from([0, 3_600, 86_400])
)
usages = st.builds(
    Usage,
    st.dictionaries(velocity_counters, st.tuples(big, big), max_size=6).map(
        lambda found: dict(sorted(found.items()))
    ),
    st.integers(0, 32).flatmap(lambda count: st.binary(min_size=32 * count, max_size=32 * count)),
    st.integers(-1, 2**32 - 1),
)


@st.composite
def records(draw: st.DrawFn) -> TokenRecord:
    status = draw(st.sampled_from(TokenStatus))
    suspended = status is TokenStatus.SUSPENDED
    return TokenRecord(
        token=draw(st.text(DIGITS, min_size=13, max_size=19)),
        reference=draw(st.binary(min_size=16, max_size=16)),
        pan_fingerprint=draw(st.binary(min_size=16, max_size=16)),
        requestor=draw(st.sampled_from(REQUESTORS)),
        program=draw(st.sampled_from(["card-on-file", "one-time"])),
        revision=draw(st.integers(1, 2**63 - 1)),
        domain=draw(st.binary(min_size=32, max_size=32)),
        status=status,
        suspended_by=draw(st.frozensets(st.sampled_from(Actor), min_size=1)) if suspended else frozenset(),
        token_expiry=draw(st.none() | expiries),
        assurance=draw(assurances),
        par=draw(pars),
        usage=draw(usages),
        created_ms=draw(big),
        updated_ms=draw(big),
    )
