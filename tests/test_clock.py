"""Counters under a clock that jumps: what a wrong clock may cost, and what it never gives."""

from __future__ import annotations

from collections import Counter as Tally
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from tests.pure_token import OWNER, PureToken
from tests.strategies import DAY_MS, NOW_MS
from tokenvault.model.counters import Usage
from tokenvault.model.domain import Domain
from tokenvault.model.limits import Limit
from tokenvault.model.periods import Period
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
