"""What a token record remembers of its uses: counters for limits, transaction ids, the cryptogram counter."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tokenvault.model.limits import VelocityCounter
from tokenvault.model.transaction import Transaction

REMEMBERED_USES_MAX: Final = 32
"""Counted uses that a record remembers by their transaction id; an older one that comes again is a new use."""

COUNTERS_MAX: Final = 64
MEMORY_BYTES: Final = 32
_ID_BYTES: Final = 16
NO_COUNTERS: Final[Mapping[VelocityCounter, tuple[int, int]]] = {}
_UNREAD: Final = (-1, 0)  # before every window


class Seen(enum.Enum):
    """Whether a transaction was counted before, and with which content."""

    NEW = enum.auto()
    SAME = enum.auto()
    OTHER_CONTENT = enum.auto()


class Usage(NamedTuple):
    """The uses of one token.

    Attributes:
        counters: sorted, at most 64: of each the number of its window since the Unix epoch, and its value in
            that window: uses, or minor units.
        memories: `Transaction._memory` of the latest counted uses, oldest first; at most 32 of 32 bytes.
        cryptogram_counter: the highest seen, or -1.
    """

    counters: Mapping[VelocityCounter, tuple[int, int]] = NO_COUNTERS
    memories: bytes = b""
    cryptogram_counter: int = -1

    def seen(self, transaction: Transaction) -> Seen:
        """Whether a transaction was counted before."""
        memory = transaction._memory
        start = self.memories.find(memory[:_ID_BYTES])
        while start > 0 and start % MEMORY_BYTES:  # found across two ids, or in a content
            start = self.memories.find(memory[:_ID_BYTES], start + 1)
        if start < 0:
            return Seen.NEW
        same = self.memories[start : start + MEMORY_BYTES] == memory
        return Seen.SAME if same else Seen.OTHER_CONTENT

    def remembers(self, transaction: Transaction) -> bool:
        """Whether a transaction was counted before with the same content."""
        return transaction._memory in self.memories  # by chance across two of them: once in 2**256

    def used(self, counter: VelocityCounter, now_ms: int) -> int:
        """The value of a counter in the window of an instant: uses, or minor units."""
        window, value = self.counters.get(counter, _UNREAD)
        return value if window >= counter.window(now_ms) else 0

    def after(
        self, transaction: Transaction, velocity_counters: Sequence[VelocityCounter], now_ms: int
    ) -> Usage:
        """The usage after a transaction was added to these velocity counters, which are sorted."""
        amount = transaction.amount.amount if transaction.amount else 0
        others = dict(self.counters)
        counters: dict[VelocityCounter, tuple[int, int]] = {}
        for counter in velocity_counters:
            now, value = counter.window(now_ms), amount if counter.currency else 1
            window, before = others.pop(counter, _UNREAD)
            # A counter of a later window stays: a clock that was set back must not hand out a window twice.
            counters[counter] = (window, before + value) if window >= now else (now, value)
        if others:  # of limits that are not set any more, or of another configuration
            live = {counter: read for counter, read in others.items() if read[0] >= counter.window(now_ms)}
            if len(counters) + len(live) <= COUNTERS_MAX:
                counters = dict(sorted((counters | live).items()))
        cryptogram_counter = transaction.cryptogram_counter
        return Usage(
            counters,
            (self.memories + transaction._memory)[-REMEMBERED_USES_MAX * MEMORY_BYTES :],
            self.cryptogram_counter
            if cryptogram_counter is None
            else max(cryptogram_counter, self.cryptogram_counter),
        )
