"""A lock between the processes of one host, on a file that they share anyway."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Final

HOST_WAIT_SECONDS: Final = 5.0
HOST_POLL_SECONDS: Final = 0.002


@contextlib.contextmanager
def host_lock(path: str) -> Iterator[bool]:
    """Hold a lock on a file; after a bounded wait, or when it can not be opened, go on without, and tell so."""
    handle = -1
    with contextlib.suppress(OSError):
        # A link is followed, as mounted secrets are links, and nothing is made or written; a pipe is not waited for.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    held = False
    try:
        until = time.monotonic() + HOST_WAIT_SECONDS
        while handle >= 0 and time.monotonic() < until:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
                break
            time.sleep(HOST_POLL_SECONDS)
        yield held
    finally:
        if handle >= 0:
            # Not by closing alone: a child forked meanwhile has a copy of the handle, which would keep the
            # lock.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)
