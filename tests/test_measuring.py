"""Coverage measures neither the tests that have the mark `unmeasured` nor what they start."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest

from tests.measuring import unmeasured


def tracer(_frame: FrameType, _event: str, _argument: object) -> None:
    """Trace nothing."""


def seen() -> list[object]:
    """The tracer of this thread, that of a new one, and what a process would be told."""
    with ThreadPoolExecutor(1) as thread:
        return [
            sys.gettrace(),
            thread.submit(sys.gettrace).result(),
            os.environ.get("COVERAGE_PROCESS_CONFIG"),
        ]


def test_threads_and_processes_are_unmeasured_and_afterwards_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COVERAGE_PROCESS_CONFIG", "orders")
    here, elsewhere = sys.gettrace(), threading.gettrace()
    sys.settrace(tracer)
    threading.settrace(tracer)
    try:
        with unmeasured():
            within = seen()
        afterwards = seen()
    finally:
        threading.settrace(elsewhere)
        sys.settrace(here)
    assert within == [None, None, None]
    assert afterwards == [tracer, tracer, "orders"]


@pytest.mark.unmeasured
def test_a_test_with_the_mark_has_no_tracer() -> None:
    assert seen() == [None, None, None]
