"""Calendar periods in time zones, against a computation that shares no code."""

from __future__ import annotations

import datetime as dt
import functools
import zoneinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenvault.errors import InvalidInputError
from tokenvault.model.limits import Limit
from tokenvault.model.pan import CardExpiry
from tokenvault.model.periods import NEVER_MS, Period, calendar_window
from tokenvault.model.zones import zone_names, zone_of

YEARS = range(2026, 2031)
ZONES = sorted(zone_names())
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def ms(instant: dt.datetime) -> int:
    return (instant - EPOCH) // dt.timedelta(milliseconds=1)


def local(zone: str, time_ms: int) -> dt.datetime:
    return (EPOCH + dt.timedelta(milliseconds=time_ms)).astimezone(zone_of(zone))


def label(period: Period, day: dt.date) -> object:
    """What people call the period that a date lies in."""
    if period is Period.WEEK:
        return day.isocalendar()[:2]
    return {Period.DAY: day, Period.MONTH: (day.year, day.month), Period.YEAR: day.year}[period]


@functools.cache
def clock_changes(zone: str) -> tuple[int, ...]:
    """The instants of 2026 to 2030 at which a zone's clock is set, found by halving."""
    found = []
    start, end = (ms(dt.datetime(year, 1, 1, tzinfo=dt.UTC)) for year in (YEARS[0], YEARS[-1] + 1))
    step = 3 * 86_400_000
    for low in range(start, end, step):
        high = low + step
        while local(zone, low).utcoffset() != local(zone, high).utcoffset() and high - low > 1:
            middle = (low + high) // 2
            same = local(zone, low).utcoffset() == local(zone, middle).utcoffset()
            low, high = (middle, high) if same else (low, middle)  # noqa: PLW2901 # a search within the step
        if high - low == 1:
            found.append(high)
    return tuple(found)


def around(instants: list[int]) -> list[int]:
    hours = [offset * 3_600_000 for offset in (-25, -1, 0, 1, 25)]
    return [instant + hour + millisecond for instant in instants for hour in hours for millisecond in (-1, 0)]


def assert_right(zone: str, time_ms: int) -> None:
    for period in Period:
        window = calendar_window(period, zone, time_ms)
        assert window.begins_ms <= time_ms < window.ends_ms
        here = label(period, local(zone, time_ms).date())
        assert label(period, local(zone, window.begins_ms).date()) == here
        assert label(period, local(zone, window.ends_ms - 1).date()) == here
        assert label(period, local(zone, window.begins_ms - 1).date()) != here
        assert label(period, local(zone, window.ends_ms).date()) != here
        following = calendar_window(period, zone, window.ends_ms)
        assert (following.number, following.begins_ms) == (window.number + 1, window.ends_ms)


@pytest.mark.unmeasured
@pytest.mark.parametrize("part", range(8))
def test_periods_are_right_in_every_zone_when_its_clock_is_set(part: int) -> None:
    """All days of 2026 to 2030 on which it is, and the hours and days around them."""
    changed = 0
    for zone in ZONES[part::8]:
        changes = clock_changes(zone)
        changed += len(changes)
        for time_ms in around(list(changes)):
            assert_right(zone, time_ms)
    assert changed > 100


@settings(max_examples=300)
@given(
    st.sampled_from(ZONES),
    st.datetimes(dt.datetime(2026, 1, 1), dt.datetime(2031, 1, 1), timezones=st.just(dt.UTC)),
)
def test_periods_are_right_at_any_time(zone: str, instant: dt.datetime) -> None:
    assert_right(zone, ms(instant))


def test_every_zone_of_the_host_is_one() -> None:
    """But for a file that is another zone's copy, whichever this host lives in."""
    assert set(zoneinfo.available_timezones()) - {"localtime", "posixrules"} <= set(ZONES) | {"Factory"}
    assert len(ZONES) > 500


@pytest.mark.parametrize(
    "zone", ["Mars/Olympus", "", "../UTC", "utc", "/etc/localtime", None, 5, ["UTC"], "Asia/Shanghai "]
)
def test_a_zone_that_does_not_exist_is_refused(zone: object) -> None:
    with pytest.raises(InvalidInputError) as refused:
        Limit(uses=1, per=Period.DAY, zone=zone)  # type: ignore[arg-type] # the wrong values are the point
    assert refused.value.code == "ZONE_UNKNOWN"


def test_zones_are_the_package_s_whatever_the_host_has() -> None:
    zoneinfo.reset_tzpath([])
    try:
        zone_of.__globals__["_zone"].cache_clear()
        assert zone_of("Asia/Shanghai").utcoffset(dt.datetime(2026, 1, 1)) == dt.timedelta(hours=8)
    finally:
        zoneinfo.reset_tzpath()


def test_a_zone_without_a_calendar_period_is_refused() -> None:
    """So that nobody takes `timedelta(days=1)` for a day of Beijing."""
    for per in (None, dt.timedelta(days=1)):
        with pytest.raises(InvalidInputError, match=r"Period\.DAY"):
            Limit(uses=1, per=per, zone="Asia/Shanghai")


def test_one_charge_a_month_is_one_charge_a_calendar_month() -> None:
    limit = Limit(uses=1, per=Period.MONTH, zone="Europe/Paris")
    months = [
        limit.window(ms(dt.datetime(2026 + month // 12, month % 12 + 1, day, 11, tzinfo=dt.UTC))).number
        for month in range(24)
        for day in (1, 15, 28)
    ]
    assert months == [months[0] + month for month in range(24) for _ in range(3)]


def test_a_token_s_life_never_ends() -> None:
    assert Limit(uses=1).window(0) == (0, 0, NEVER_MS) == (0, 0, 2**63 - 1)


@given(
    st.sampled_from(ZONES),
    st.builds(CardExpiry, st.integers(2026, 2030), st.integers(1, 12)),
    st.integers(-40, 40),
)
def test_an_expiry_is_judged_in_the_program_s_zone(zone: str, expiry: CardExpiry, hours: int) -> None:
    first = dt.date(expiry.year + expiry.month // 12, expiry.month % 12 + 1, 1)
    time_ms = ms(dt.datetime.combine(first, dt.time(), dt.UTC)) + hours * 3_600_000
    assert expiry.passed(time_ms, zone) == (local(zone, time_ms).date() >= first)
    assert expiry.passed(time_ms, zone) or not expiry.passed(time_ms), "no zone is behind UTC-12"
