"""What a token record remembers of its uses: counters for limits, transaction ids, the cryptogram counter."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

import attrs

from tokenvault.controls import Limit
from tokenvault.transaction import Transaction

REMEMBERED_USES_MAX: Final = 32
"""How many counted uses a record remembers by their transaction id; an older one presented again counts anew."""

COUNTERS_MAX: Final = 64
MEMORY_BYTES: Final = 32
_ID_BYTES: Final = 16


class Seen(enum.Enum):
    """Whether a transaction was presented before."""

    NEW = enum.auto()
    SAME = enum.auto()
    OTHER_CONTENT = enum.auto()


@attrs.frozen(order=True)
class Meter:
    """What a counter counts: uses, or money in a currency; per window or for the token's life.

    Limits that count the same thing share one counter, whichever document they stand in and whatever their
    maximum: a limit that is raised from 10 uses to 20 leaves what was used as used.

    Attributes:
        currency: ISO 4217 code of the money counted; empty for uses.
        window_seconds: 0 for the token's life.
    """

    currency: str
    window_seconds: int

    @classmethod
    def of(cls, limit: Limit) -> Meter:
        """The meter that a limit reads."""
        return cls("" if limit.amount is None else limit.amount.currency, limit.window_seconds)

    def window(self, now_ms: int) -> int:
        """Number of the window that an instant lies in: whole windows since the Unix epoch."""
        return now_ms // (1_000 * self.window_seconds) if self.window_seconds else 0


@attrs.frozen
class Counter:
    """What a meter read in one window.

    Attributes:
        meter: what is counted.
        window: number of the window since the Unix epoch.
        value: uses, or minor units.
    """

    meter: Meter
    window: int
    value: int


@attrs.frozen
class Usage:
    """The uses of one token.

    Attributes:
        counters: one a meter, sorted by meter; at most 64.
        memories: `Transaction.memory` of the latest counted uses, oldest first; at most 32 of 32 bytes.
        cryptogram_counter: the highest seen, or -1.
    """

    counters: tuple[Counter, ...] = ()
    memories: bytes = b""
    cryptogram_counter: int = -1

    def seen(self, transaction: Transaction) -> Seen:
        """Whether a transaction was counted before."""
        memory = transaction.memory
        for start in range(0, len(self.memories), MEMORY_BYTES):
            if self.memories[start : start + _ID_BYTES] == memory[:_ID_BYTES]:
                same = self.memories[start : start + MEMORY_BYTES] == memory
                return Seen.SAME if same else Seen.OTHER_CONTENT
        return Seen.NEW

    def used(self, meter: Meter, now_ms: int) -> int:
        """What a meter reads in the window of an instant: uses, or minor units."""
        window = meter.window(now_ms)
        for counter in self.counters:
            if counter.meter == meter:
                # A clock that was set back must not hand out a window twice.
                return counter.value if counter.window >= window else 0
        return 0

    def after(self, transaction: Transaction, meters: Iterable[Meter], now_ms: int) -> Usage:
        """The usage once a transaction counts on these meters."""
        meters = frozenset(meters)
        kept = {counter.meter: counter for counter in self.counters}
        for meter in meters:
            amount = transaction.amount.amount if transaction.amount and meter.currency else 0
            was = kept.get(meter)
            window = max(meter.window(now_ms), was.window if was else 0)
            kept[meter] = Counter(meter, window, self.used(meter, now_ms) + (amount if meter.currency else 1))
        live = [counter for counter in kept.values() if counter.window >= counter.meter.window(now_ms)]
        if len(live) > COUNTERS_MAX:  # left behind by limits of former configurations
            live = [counter for counter in live if counter.meter in meters]
        return Usage(
            tuple(sorted(live, key=lambda counter: counter.meter)),
            (self.memories + transaction.memory)[-REMEMBERED_USES_MAX * MEMORY_BYTES :],
            self.cryptogram_counter
            if transaction.cryptogram_counter is None
            else transaction.cryptogram_counter,
        )
