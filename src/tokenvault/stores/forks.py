"""Hold still around a fork, so that a child never inherits a lock in use or an open database connection.

Both would break it for good. A lock held by another thread of the parent is never released in the child. And
SQLite keeps its file locks per process in memory that the child copies: the child would take itself to hold
locks that it does not hold, and the parent's last close would then delete the write-ahead log under it,
with what the child had committed to it.

Python runs these hooks in `os.fork`, and so for multiprocessing and preforking servers in Python.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final

HOLD_SECONDS_MAX: Final = 60.0
"""How long a fork waits for calls under way. Past that it goes on; the child then refuses the store."""


class Forkable:
    """What can hold still around a fork. What it does not write does nothing."""

    def before_fork(self, seconds_max: float) -> None:
        """Wait for the calls under way, and let no other begin."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Go on, in a process where only this thread lives."""


class _Watch:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.items: weakref.WeakSet[Forkable] = weakref.WeakSet()
        self.held: list[Forkable] = []
        self.installed = False
        self.locked = False

    def before(self) -> None:
        self.locked = self.lock.acquire(timeout=HOLD_SECONDS_MAX)
        self.held = list(self.items)
        for item in self.held:
            item.before_fork(HOLD_SECONDS_MAX)

    def in_parent(self) -> None:
        held, self.held = self.held, []
        try:
            for item in held:
                item.after_fork_in_parent()
        finally:
            if self.locked:
                self.locked = False
                self.lock.release()

    def in_child(self) -> None:
        # The lock may be another thread's if the wait ran out.
        held, self.held, self.lock = self.held or list(self.items), [], threading.Lock()
        for item in held:
            item.after_fork_in_child()


_watch = _Watch()


def hold_still_at_forks(item: Forkable) -> None:
    """Make an item hold still at forks, as long as it lives. The first item installs the hooks, not the import."""
    with _watch.lock:
        _watch.items.add(item)
        if not _watch.installed and hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=_watch.before, after_in_parent=_watch.in_parent, after_in_child=_watch.in_child
            )
            _watch.installed = True
