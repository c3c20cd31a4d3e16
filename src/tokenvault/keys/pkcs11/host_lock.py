"""A lock between the processes of one host, on a file that they share anyway."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Final

from tokenvault.interrupts import ignoring
from tokenvault.runtime import put_result

HOST_WAIT_SECONDS: Final = 5.0
HOST_POLL_SECONDS: Final = 0.002


@contextlib.contextmanager
def host_lock(path: str) -> Iterator[bool]:
    """Hold a lock on a file; after a bounded wait, or when it can not be opened, go on without, and tell so."""
    handles: list[int] = []
    held = False
    try:
        with ignoring(OSError):
            # A link is followed, as mounted secrets are links, and nothing is made or written; a pipe is not waited
            # for.
            put_result(handles, os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        until = time.monotonic() + HOST_WAIT_SECONDS
        while handles and time.monotonic() < until:
            with ignoring(OSError):
                fcntl.flock(handles[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
                break
            time.sleep(HOST_POLL_SECONDS)
        yield held
    finally:
        for handle in handles:
            # Not by closing alone: a child forked meanwhile has a copy of the handle, which would keep the lock.
            with ignoring(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)
