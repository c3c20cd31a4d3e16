"""What the measuring of coverage is kept out of: it doubles what a test takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_ORDERS: Final = "COVERAGE_PROCESS_CONFIG"
"""Where coverage tells the processes that tests start what to measure."""


@contextmanager
def processes_unmeasured() -> Iterator[None]:
    """Start processes that are not measured: what they do, a test does in its own process too."""
    orders = os.environ.pop(_ORDERS, None)
    try:
        yield
    finally:
        if orders is not None:
            os.environ[_ORDERS] = orders
