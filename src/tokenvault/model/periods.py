"""Windows of time that limits count in: of a fixed length, calendar periods of a zone, or a token's whole life."""

from __future__ import annotations

import functools
from datetime import date, timedelta
from typing import Final, NamedTuple

from tokenvault.model import checks
from tokenvault.model.words import Words
from tokenvault.model.zones import day_begin_ms, day_of

NEVER_MS: Final = 2**63 - 1
"""When a window of a token's whole life ends."""

_DAYS_A_WEEK: Final = 7
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_FIRST_MONDAY: Final = 4  # 5 January 1970, in days of the epoch


class Period(Words):
    """A calendar period in a time zone, daylight saving included. Weeks begin on Monday."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


class Window(NamedTuple):
    """A window of time.

    Attributes:
        number: from 0; a later window of the same kind has a higher one.
        begins_ms: its first millisecond, of the Unix epoch.
        ends_ms: the first one after it.
    """

    number: int
    begins_ms: int
    ends_ms: int


FOR_LIFE: Final = Window(0, 0, NEVER_MS)


def fixed_window(length: timedelta, now_ms: int) -> Window:
    """The window of a fixed length that an instant lies in; they tumble, aligned to the Unix epoch."""
    length_ms = 1_000 * checks.seconds(length)
    number = now_ms // length_ms
    return Window(number, number * length_ms, (number + 1) * length_ms)


def calendar_window(period: Period, zone: str, now_ms: int) -> Window:
    """The calendar period that an instant lies in, by the dates of a time zone; it ends as the next one begins."""
    number = _number(period, day_of(zone, now_ms))
    return Window(number, *_bounds(period, zone, number))


def _number(period: Period, day: int) -> int:
    """The number of the period that a day of the epoch lies in: days and weeks since 1970, months and years of it."""
    if period is Period.DAY:
        return day
    if period is Period.WEEK:
        return (day - _FIRST_MONDAY) // _DAYS_A_WEEK + 1
    dated = date.fromordinal(day + _EPOCH_ORDINAL)
    years = dated.year - 1970
    return years if period is Period.YEAR else 12 * years + dated.month - 1


def _first_day(period: Period, number: int) -> int:
    """The first day of a numbered period, in days of the epoch."""
    if period is Period.DAY:
        return number
    if period is Period.WEEK:
        return (number - 1) * _DAYS_A_WEEK + _FIRST_MONDAY
    months = 12 * number if period is Period.YEAR else number
    return date(1970 + months // 12, months % 12 + 1, 1).toordinal() - _EPOCH_ORDINAL


@functools.lru_cache(maxsize=1_024)  # of the zones that limits name, mostly the window of now
def _bounds(period: Period, zone: str, number: int) -> tuple[int, int]:
    return day_begin_ms(zone, _first_day(period, number)), day_begin_ms(zone, _first_day(period, number + 1))
