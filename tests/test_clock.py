"""Counters under a clock that jumps: what a wrong clock may cost, and what it never gives."""

from __future__ import annotations

from collections import Counter as Tally
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pure_token import OWNER, PureToken
from tests.strategies import DAY_MS, NOW_MS
from tokenvault.model.counters import COUNTERS_MAX, NONE, UNUSED, Counter, Usage
from tokenvault.model.domain import Domain
from tokenvault.model.limits import Limit
from tokenvault.model.periods import Period, Window
from tokenvault.model.transaction import Transaction

LIMITS = st.sampled_from(
    [
        Limit(uses=2, per=timedelta(hours=1)),
        Limit(uses=1, per=timedelta(days=1)),
        Limit(uses=2, per=Period.DAY, zone="Asia/Shanghai"),
        Limit(uses=2, per=Period.WEEK, zone="America/New_York"),
        Limit(uses=1, per=Period.MONTH, zone="Europe/Paris"),
        Limit(uses=3, per=Period.YEAR),
    ]
)
JUMPS = st.integers(-400 * DAY_MS, 400 * DAY_MS) | st.integers(-2 * DAY_MS, 2 * DAY_MS)


def use(number: int) -> Transaction:
    return Transaction(id=f"tx-{number}", requestor=OWNER)


@given(LIMITS, st.lists(JUMPS, max_size=60))
def test_no_clock_gives_a_window_twice(limit: Limit, jumps: list[int]) -> None:
    """However often it is set forward and back: never more than the limit by the clock's own reading."""
    token, now_ms = PureToken(Domain(limits=(limit,))), NOW_MS
    given_: Tally[int] = Tally()
    for number, jump in enumerate(jumps):
        now_ms = max(0, now_ms + jump)
        if token.do(use(number), now_ms).allowed:
            given_[limit.window(now_ms).number] += 1
    assert max(given_.values(), default=0) <= (limit.uses or 0)


@given(LIMITS, st.integers(1, 3_000 * DAY_MS), st.integers(0, 3))
def test_a_clock_that_was_ahead_for_one_use_locks_no_longer_than_a_window_and_a_day(
    limit: Limit, ahead_ms: int, before: int
) -> None:
    """By any amount: a use is allowed at the latest once the window of now and a day have passed."""
    token = PureToken(Domain(limits=(limit,)))
    for number in range(before):
        token.do(use(number), NOW_MS)
    token.do(use(before), NOW_MS + ahead_ms)
    window = limit.window(NOW_MS)
    following = limit.window(window.ends_ms)
    if limit.window(NOW_MS + ahead_ms).number == following.number:  # the use was counted in just that one
        following = limit.window(following.ends_ms)
    assert token.check(use(100), following.begins_ms).allowed
    if limit.window(NOW_MS + ahead_ms).number > following.number:
        for more in range(limit.uses or 0):
            assert token.do(use(200 + more), following.begins_ms).allowed, (
                "it has the whole of the next window"
            )


@given(st.integers(1, 40 * 24), st.integers(1, 3_000 * DAY_MS))
def test_an_interval_locks_no_longer_than_itself_and_a_day(hours: int, ahead_ms: int) -> None:
    interval = timedelta(hours=hours)
    interval_ms = 3_600_000 * hours
    token = PureToken(Domain(min_interval=interval))
    assert token.do(use(1), NOW_MS + ahead_ms).allowed
    locked = [
        later_ms
        for later_ms in range(0, 2 * interval_ms + 3 * DAY_MS, max(1, interval_ms // 7))
        if not token.check(use(2), NOW_MS + later_ms).allowed
    ]
    assert not locked or locked[-1] - locked[0] <= interval_ms + DAY_MS


@given(st.lists(JUMPS, max_size=60))
def test_two_uses_keep_their_interval_while_the_clock_is_right(jumps: list[int]) -> None:
    token, now_ms, last_ms = PureToken(Domain(min_interval=timedelta(days=3))), NOW_MS, -DAY_MS
    for number, jump in enumerate(jumps):
        now_ms += abs(jump)
        if token.do(use(number), now_ms).allowed:
            assert now_ms - last_ms >= 3 * DAY_MS
            last_ms = now_ms
        else:
            assert now_ms - last_ms < 3 * DAY_MS


@given(st.lists(st.integers(0, 30 * DAY_MS), max_size=20))
def test_the_two_latest_uses_are_kept(times: list[int]) -> None:
    usage = Usage()
    for time_ms in times:
        usage = usage.used_at(time_ms)
    latest = [-1, -1, *sorted(times)]
    assert (usage.used_before_ms, usage.last_used_ms) == (latest[-2], latest[-1])


@pytest.mark.parametrize(
    ("last_ms", "before_ms", "spaced_from"),
    [
        # Nothing lies ahead: from an interval after the last use.
        (5 * DAY_MS, NONE, {5 * DAY_MS: False, 5 * DAY_MS + 999: False, 5 * DAY_MS + 1_000: True}),
        (5 * DAY_MS, 4 * DAY_MS, {5 * DAY_MS: False, 5 * DAY_MS + 999: False, 5 * DAY_MS + 1_000: True}),
        (NONE, NONE, {0: True, 1: True, DAY_MS: True}),
        # The last use lies ahead, by a day or by more.
        (5 * DAY_MS, NONE, {5 * DAY_MS - 1: False, 4 * DAY_MS: False, 4 * DAY_MS - 1: True, 0: True}),
        (
            5 * DAY_MS,
            3 * DAY_MS,
            {4 * DAY_MS: False, 4 * DAY_MS - 1: True, 3 * DAY_MS + 1_000: True, 3 * DAY_MS + 999: False},
        ),
        # Before both: the clock was set back.
        (5 * DAY_MS, 3 * DAY_MS, {3 * DAY_MS: False, 3 * DAY_MS - 1: False, DAY_MS: False}),
    ],
)
def test_a_use_keeps_its_distance_from_the_last_that_no_clock_ahead_has_made(
    last_ms: int, before_ms: int, spaced_from: dict[int, bool]
) -> None:
    usage = Usage(last_used_ms=last_ms, used_before_ms=before_ms)
    assert {now_ms: usage.spaced(now_ms, 1_000) for now_ms in spaced_from} == spaced_from


def test_a_use_that_is_given_back_leaves_the_one_before_it() -> None:
    usage = UNUSED.used_at(5).used_at(9)
    assert (usage.last_used_ms, usage.used_before_ms) == (9, 5)
    assert usage.used_at(7).used_before_ms == 7
    assert usage.used_at(3) == usage
    assert usage.unused_at(9) == UNUSED.used_at(5)
    assert usage.unused_at(5) == UNUSED.used_at(9)
    assert usage.unused_at(7) is usage


def test_a_counter_keeps_the_two_latest_windows_and_gives_back_to_them_alone() -> None:
    windows = {number: Window(number, 0, number + 100) for number in range(9)}
    counter = Counter(b"k", 5, 3, ends_ms=105)
    assert [counter.used(number) for number in (4, 5, 6)] == [0, 3, 0]
    later = counter.added(windows[7], 2)
    assert later == Counter(b"k", 7, 2, 5, 3, 107)
    assert [later.used(number) for number in (5, 6, 7, 8)] == [3, 0, 2, 0]
    assert later.used(4) > 10**15
    assert later.added(windows[7], 1) == later._replace(value=3)
    assert later.added(windows[6], 1) == later._replace(previous_window=6, previous_value=1)
    assert later.added(windows[5], 1) == later._replace(previous_value=4)
    assert later.given_back(7, 1) == later._replace(value=1)
    assert later.given_back(7, 9) == later._replace(value=0)
    assert later.given_back(5, 1) == later._replace(previous_value=2)
    assert later.given_back(5, 9) == later._replace(previous_value=0)
    assert later.given_back(6, 1) is later
    assert later.started_again(7) == later._replace(key=b"k\0\0\0\1", value=0)
    assert later.started_again(5) == later._replace(key=b"k\0\0\0\1", previous_value=0)


def test_counters_of_limits_that_are_set_stay_and_of_the_others_those_that_end_last() -> None:
    def named(number: int) -> Counter:
        return Counter(bytes([number]) * 16, 0, number, ends_ms=1_000 - number)

    others = [named(number) for number in range(64)]
    usage = Usage(counters=tuple(others))
    assert usage.with_counters([], ()) is usage
    kept = usage.with_counters([named(200)], {others[63].key})
    assert kept.counters == (*others[:62], others[63], named(200))
    again = usage.with_counters([named(3)._replace(value=9)], {others[63].key})
    assert again.counters == (*others[:3], named(3)._replace(value=9), *others[4:])
    assert usage.changed(others[5].key, lambda counter: counter) is usage
    assert usage.changed(bytes(16), lambda counter: counter._replace(value=7)).counters[0].value == 7
    assert usage.used(others[5].key, 0) == 5
    assert usage.used(b"x" * 16, 0) == 0


def test_a_counter_takes_room_while_its_limit_is_set_or_its_window_is_not_over() -> None:
    full = Usage(tuple(Counter(number.to_bytes(16), 0, 1, ends_ms=9) for number in range(COUNTERS_MAX)))
    every, new = {counter.key for counter in full.counters}, {b"n" * 16}
    assert not full.has_room(new, set(), 8)
    assert full.has_room(new, set(), 9)
    assert not full.has_room(new, every, 9)
    assert full.has_room(new, every - {full.counters[0].key}, 9)
