"""What the measuring of coverage is kept out of: it makes a test take half as long again."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_ORDERS: Final = "COVERAGE_PROCESS_CONFIG"
"""Where coverage tells the processes that tests start what to measure."""


@contextmanager
def unmeasured() -> Iterator[None]:
    """Measure neither this thread nor what it starts; threads that there are stay measured."""
    here, elsewhere = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        with processes_unmeasured():
            yield
    finally:
        threading.settrace(elsewhere)
        sys.settrace(here)


@contextmanager
def processes_unmeasured() -> Iterator[None]:
    """Start processes that are not measured: others run the same lines; and who is killed tells of none."""
    orders = os.environ.pop(_ORDERS, None)
    try:
        yield
    finally:
        if orders is not None:
            os.environ[_ORDERS] = orders
