"""Hold still around a fork, so that a child never inherits a lock in use or an open database connection.

Both would break it for good. A lock held by another thread of the parent is never released in the child. And
SQLite keeps its file locks per process in memory that the child copies: the child would take itself to hold
locks that it does not hold, and the parent's last close would then delete the write-ahead log under it,
with what the child had committed to it.

Python runs these hooks in `os.fork`, and so for multiprocessing and preforking servers in Python. An exception in
them, of a signal's handler that raises, ends a hook but not the fork. So whatever a hook does may be done twice, and
a hold that outlived its fork is ended by the next call of the thread that forked, or of any thread once no fork
takes so long: `end_interrupted_hold`.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
import weakref
from contextlib import suppress
from typing import Final

from tokenvault.runtime import give_all, put_result

HOLD_SECONDS_MAX: Final = 60.0
"""How long a fork waits for calls under way. Past that it goes on; the child then refuses the store."""

FORK_SECONDS_MAX: Final = 20.0
"""How long the fork itself may take, once all holds still: past that, an interrupt has ended the hook behind it."""


class Forkable:
    """What can hold still around a fork. What it does not write does nothing; each may be called twice for a fork."""

    def before_fork(self, seconds_max: float) -> None:
        """Wait for the calls under way, and let no other begin."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Go on, in a process where only this thread lives."""


class _Watch:
    """What holds still, and the fork under way: one at a time.

    Attributes:
        items: what holds still at once.
        last: what does so once all of that does.
        turn: of the thread that forks; it is in that thread's list in `taken` meanwhile.
        held: what holds still for it, until all of it went on.
        thread: for which it does.
        pid: of the process that forks.
        until: when the fork is over at the latest, in seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self.items: Final[set[weakref.ref[Forkable]]] = set()
        self.last: Final[set[weakref.ref[Forkable]]] = set()
        self.installed = False
        self.held: list[Forkable] = []
        self.thread = self.pid = 0
        self.until = math.inf
        self._new_turn()

    def _new_turn(self) -> None:
        turn: queue.SimpleQueue[None] = queue.SimpleQueue()
        turn.put(None)
        self.turn = turn
        self.taken: dict[int, list[None]] = {}  # last: it tells that this is still to be done

    def before(self) -> None:
        self.end_interrupted_hold()
        self.pid = os.getpid()
        thread = threading.get_ident()
        try:
            put_result(self.taken.setdefault(thread, []), self.turn.get, True, HOLD_SECONDS_MAX)
        except queue.Empty:  # of a thread that was interrupted and has ended: no other fork waits for it
            self._new_turn()
        self.thread, self.until = thread, math.inf
        known = (*self.items, *self.last)
        self.held = [item for reference in known if (item := reference()) is not None]
        try:
            for item in self.held:
                item.before_fork(HOLD_SECONDS_MAX)
        finally:
            self.until = time.monotonic() + FORK_SECONDS_MAX

    def in_parent(self) -> None:
        self._end(threading.get_ident())

    def _end(self, thread: int) -> None:
        for item in reversed(self.held):
            item.after_fork_in_parent()
        self.held = []
        with suppress(IndexError):
            give_all(self.taken.get(thread, []), self.turn.put)
        self.taken.pop(thread, None)

    def in_child(self) -> None:
        for item in self.held:
            item.after_fork_in_child()
        self.held = []
        self._new_turn()

    def end_interrupted_hold(self) -> None:
        if not self.held and not self.taken:
            return
        own = threading.get_ident()
        is_own = self.thread == own if self.held else bool(self.taken.get(own))
        if not is_own and not (self.held and time.monotonic() > self.until):
            return
        if self.pid != os.getpid():
            self.in_child()
        else:
            self._end(own if is_own else self.thread)


_watch = _Watch()


def end_interrupted_hold() -> None:
    """Let what was held still for a fork go on, where the hook that does it was interrupted."""
    _watch.end_interrupted_hold()


def hold_still_at_forks(item: Forkable, *, last: bool = False) -> None:
    """Make an item hold still at forks, as long as it lives. The first item installs the hooks, not the import.

    Args:
        item: what holds still.
        last: whether it does so only once all others do, as it may not wait as long as they.
    """
    items = _watch.last if last else _watch.items
    items.add(weakref.ref(item, items.discard))
    if not _watch.installed and hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_watch.before, after_in_parent=_watch.in_parent, after_in_child=_watch.in_child
        )
        _watch.installed = True  # after it: hooks that run twice do no harm
