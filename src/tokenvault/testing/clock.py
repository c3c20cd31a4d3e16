"""A clock that tests set."""

from __future__ import annotations


class ManualClock:
    """Stands still until it is moved.

    Args:
        now_ms: milliseconds of the Unix epoch.
    """

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Milliseconds of the Unix epoch."""
        return self._now_ms

    def advance(self, milliseconds: int) -> None:
        """Move on; a negative number sets the clock back."""
        self._now_ms += milliseconds
