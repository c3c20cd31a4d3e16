"""The PKCS#11 modules of this process: one `Module` for each library file, and others after a fork.

A forked child initializes a library first, as PKCS#11 wants, and finalizes it only when told that it was
initialized already: some modules end the parent's connection otherwise. While a process forks, its modules are kept
free of calls, since a copy taken in the middle of one is not sound.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from tokenvault.interrupts import ignoring
from tokenvault.keys.pkcs11.module import Module
from tokenvault.stores.forks import Forkable, hold_still_at_forks

FORK_WAIT_SECONDS: Final = 5.0
"""How long a fork waits for a module call to end. Then it goes on: an unsound child is better than a hung parent."""

# The one piece of process-wide state: a library can be initialized only once in a process. Keys are the
# process id and the file, so that a forked child finds nothing of its parent's, however it was forked.
_modules: Final[dict[tuple[int, str], Module]] = {}
_inherited: Final[dict[str, Module]] = {}


class _HeldAtForks(Forkable):
    """The modules, free of calls while this process forks."""

    def __init__(self) -> None:
        self._locks: Final[list[threading.RLock]] = []

    def before_fork(self, seconds_max: float) -> None:
        """Wait for the call under way in each."""
        pid = os.getpid()
        for key, module in sorted(_modules.items()):
            lock = module.worker.lock
            if key[0] == pid and lock.acquire(timeout=min(seconds_max, FORK_WAIT_SECONDS)):
                self._locks.append(lock)  # where an interrupt comes before it, the worker takes another lock

    def after_fork_in_parent(self) -> None:
        """Let the calls go on."""
        while self._locks:
            with ignoring(RuntimeError):  # of another thread, which forked: the worker takes another lock
                self._locks.pop().release()

    def after_fork_in_child(self) -> None:
        """Leave the parent's modules alone."""
        self._locks.clear()
        # Process ids come round again: what is left here must not be taken for our own one day.
        _inherited.update({known: module for (_, known), module in _modules.items()})
        _modules.clear()


_held: Final = _HeldAtForks()


def module_at(path: str, real_path: str) -> Module:
    """The module of a library file in this process.

    Args:
        path: how to load it.
        real_path: the same file without links, by which it is known.
    """
    key = (os.getpid(), real_path)
    module = _modules.get(key)
    if module is None:
        # Last: while stores are waited for, for longer than the worker waits for a fork, calls go on.
        hold_still_at_forks(_held, last=True)
        # setdefault is one step for all threads: no lock that a fork could copy while it is held.
        module = _modules.setdefault(key, Module(path, parent=_parent_of(real_path)))
    return module


def _parent_of(real_path: str) -> Module | None:
    """What a process that this one was forked from, however it was, had of a library."""
    return next(
        (module for (_, known), module in _modules.items() if known == real_path), _inherited.get(real_path)
    )
