"""What a token record remembers of its uses: velocity counters, the cryptogram counter, when it was used last.

Two windows of each counter are kept, the latest and the one before it that was counted in. So a clock that was ahead
once locks nothing: the windows between the two were never given, and may be. And a clock that is set back gives no
window twice: nothing is left of a window before both.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Set
from typing import Final, NamedTuple

from tokenvault.model.periods import NEVER_MS, Window

COUNTERS_MAX: Final = 64
KEY_BYTES: Final = 16
NAME_BYTES: Final = 12
"""Of the key of a counter that strong authentication starts again: its name. The others say how often that was."""

TIMES_END: Final = 256 ** (KEY_BYTES - NAME_BYTES)
NO_WINDOW: Final = -1
"""The previous window of a counter that was counted in one only."""

NONE: Final = -1
"""No cryptogram counter or time yet."""

USED_UP: Final = 2**62
"""What is used of a window before both that are kept: more than any limit has."""

CLOCK_AHEAD_MS_MAX: Final = 86_400_000
"""A use that lies further ahead than a day was made by a clock that was ahead: it does not hold up the next."""


class Counter(NamedTuple):
    """A velocity counter: uses, or minor units, in the two latest windows that were counted in.

    Attributes:
        key: 16 bytes, of what is counted; of a counter that is started again, another one each time.
        window: number of the latest window; for a token's life, 0.
        value: uses or minor units in it.
        previous_window: the one before it that was counted in, or -1.
        previous_value: uses or minor units in that.
        ends_ms: when the latest window is over, in milliseconds of the Unix epoch; 2**63 - 1: never.
    """

    key: bytes
    window: int
    value: int
    previous_window: int = NO_WINDOW
    previous_value: int = 0
    ends_ms: int = NEVER_MS

    def used(self, window: int) -> int:
        """What is used of a window."""
        if window == self.window:
            return self.value
        if window == self.previous_window:
            return self.previous_value
        return USED_UP if window < self.previous_window else 0

    def added(self, window: Window, value: int) -> Counter:
        """The counter after a use in a window."""
        number = window.number
        if number > self.window:
            return Counter(self.key, number, value, self.window, self.value, window.ends_ms)
        if number == self.window:
            return self._replace(value=self.value + value)
        if number > self.previous_window:
            return self._replace(previous_window=number, previous_value=value)
        return self._replace(previous_value=self.previous_value + value)

    def given_back(self, window: int, value: int) -> Counter:
        """The counter after something that was counted in a window is given back; dropped if that is long gone."""
        if window == self.window:
            return self._replace(value=max(0, self.value - value))
        if window == self.previous_window:
            return self._replace(previous_value=max(0, self.previous_value - value))
        return self

    def started_again(self, window: int) -> Counter:
        """The counter after what was counted in a window is counted no more.

        By its next key it is told apart from what was counted before, and nothing of that is given back to it.
        """
        times = int.from_bytes(self.key[NAME_BYTES:]) + 1
        key = self.key[:NAME_BYTES] + (times % TIMES_END).to_bytes(KEY_BYTES - NAME_BYTES)
        return self.given_back(window, self.used(window))._replace(key=key)

    def merged(self, other: Counter) -> Counter:
        """One counter of two of the same name: of each window the larger value, and the two latest windows."""
        values: dict[int, int] = {NO_WINDOW: 0}
        for counter in (self, other):
            for window, value in (
                (counter.window, counter.value),
                (counter.previous_window, counter.previous_value),
            ):
                values[window] = max(value, values.get(window, 0))
        latest, before = sorted(values, reverse=True)[:2]
        ends_ms = max(self, other, key=lambda counter: counter.window).ends_ms
        key = max(self.key, other.key)
        return Counter(key, latest, values[latest], before, values[before], ends_ms)


class Usage(NamedTuple):
    """The uses of one token.

    Attributes:
        counters: sorted by key, at most 64.
        cryptogram_counter: the highest seen, or -1.
        authenticated_ms: when a use with strong authentication last started counters again, but not before the latest
            use that was made until then; or -1.
        last_used_ms: when the latest use was made, in milliseconds of the Unix epoch, or -1.
        used_before_ms: the one before it, at or before `last_used_ms`; or -1.
    """

    counters: tuple[Counter, ...] = ()
    cryptogram_counter: int = NONE
    authenticated_ms: int = NONE
    last_used_ms: int = NONE
    used_before_ms: int = NONE

    def used(self, key: bytes, window: int) -> int:
        """What is used of a window by a counter: uses, or minor units."""
        for counter in self.counters:
            if counter.key == key:
                return counter.used(window)
        return 0

    def spaced(self, now_ms: int, interval_ms: int) -> bool:
        """Whether a use now keeps a distance from the last ones.

        From one that lies ahead it is not kept, if that lies more than a day ahead: its clock was ahead then. Before
        both, there is none: the clock was set back.
        """
        if now_ms >= self.last_used_ms:
            return self.last_used_ms == NONE or now_ms - self.last_used_ms >= interval_ms
        if self.last_used_ms - now_ms <= CLOCK_AHEAD_MS_MAX or now_ms < self.used_before_ms:
            return False
        return self.used_before_ms == NONE or now_ms - self.used_before_ms >= interval_ms

    def used_at(self, now_ms: int) -> Usage:
        """The usage after a use: the two latest are kept, whatever the clock."""
        earlier, later = sorted((now_ms, self.last_used_ms))
        return self._replace(last_used_ms=later, used_before_ms=max(earlier, self.used_before_ms))

    def unused_at(self, time_ms: int) -> Usage:
        """The usage after a use of some time is given back."""
        if time_ms == self.last_used_ms:
            return self._replace(last_used_ms=self.used_before_ms, used_before_ms=NONE)
        if time_ms == self.used_before_ms:
            return self._replace(used_before_ms=NONE)
        return self

    def merged(self, other: Usage) -> Usage:
        """What two tokens of one card have used, where one took over from the other: the larger of each count."""
        counters = {counter.key[:NAME_BYTES]: counter for counter in self.counters}
        for counter in other.counters:
            name = counter.key[:NAME_BYTES]
            before = counters.get(name)
            counters[name] = counter if before is None else before.merged(counter)
        times = {self.last_used_ms, self.used_before_ms, other.last_used_ms, other.used_before_ms}
        latest, before_ms = sorted({*times, NONE - 1}, reverse=True)[:2]
        return Usage(
            tuple(sorted(counters.values())),
            max(self.cryptogram_counter, other.cryptogram_counter),
            max(self.authenticated_ms, other.authenticated_ms),
            latest,
            max(before_ms, NONE),
        )

    def changed(self, key: bytes, change: Callable[[Counter], Counter]) -> Usage:
        """The usage after a change of a counter, if it is there."""
        counters = tuple(change(counter) if counter.key == key else counter for counter in self.counters)
        return self if counters == self.counters else self._replace(counters=counters)

    def has_room(self, counted: Set[bytes], kept: Container[bytes], now_ms: int) -> bool:
        """Whether counters of these keys fit beside those that are needed: of limits that are set, or not over.

        One that is not over may be of a limit that binds other uses: whoever makes this one can not push it out.
        """
        needed = {each.key for each in self.counters if each.key in kept or each.ends_ms > now_ms}
        return len(needed | counted) <= COUNTERS_MAX

    def with_counters(self, changed: Iterable[Counter], kept: Container[bytes]) -> Usage:
        """The usage with these counters in place of those of the same keys.

        Beyond 64, those of limits that do not hold for this use go, first the ones that are over: where no others
        would be left to go, no use is allowed (`has_room`). A limit that is set keeps its counter (`kept`) also
        through uses that it does not bind.
        """
        needed = {counter.key: counter for counter in self.counters if counter.key in kept}
        needed |= {counter.key: counter for counter in changed}
        others = [counter for counter in self.counters if counter.key not in needed]
        room = COUNTERS_MAX - len(needed)
        if len(others) > room:
            others = sorted(others, key=lambda counter: counter.ends_ms)[len(others) - room :]
        counters = tuple(sorted([*needed.values(), *others]))
        return self if counters == self.counters else self._replace(counters=counters)


UNUSED: Final = Usage()
"""Of a token that was not used yet."""
