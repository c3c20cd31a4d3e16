"""Run the same work in many threads at once, switching between them as often as possible."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

THREADS = 8


def same_in_threads(work: Callable[[], object], *, times: int = 50) -> bool:
    """Whether every thread gets, every time, what one thread alone gets. Errors pass through."""
    alone = work()
    start = threading.Barrier(THREADS)

    def each(_: int) -> bool:
        start.wait(timeout=30)
        return all(work() == alone for _ in range(times))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return all(pool.map(each, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)
