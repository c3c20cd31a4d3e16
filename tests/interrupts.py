"""Interrupts at random instants, as by the time limits of task queues: by signals, and by one thread in another."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.measuring import unmeasured
from tokenvault.keys.pkcs11 import registry

LONGEST_SECONDS = 0.002

ARRIVAL_SECONDS = 5.0
"""How long a signal is waited for: without its exception by then, something has swallowed that."""

_DROPPED: list[object] = []
"""Exceptions of the handler that the interpreter itself dropped, as in a destructor: nothing can hand those on."""


class InterruptedAtRandomError(TimeoutError):
    """What a handler raises, as those of Celery and RQ do; and an OSError, as the usual handler of SIGALRM raises."""


class InterruptedThread(BaseException):  # it is none of the errors that a library may handle
    """What one thread sets in another."""


class InterruptedThreadError(Exception):
    """The same, of a class that a library might take for a failure: so are the time-outs of task queues' threads."""


class TimeLimitError(TimeoutError):
    """As RQ raises one in its signal's handler."""


@pytest.fixture
def limit() -> Iterator[None]:
    """With a handler of SIGUSR1 that raises one."""

    def handler(_number: int, _frame: object) -> None:
        raise TimeLimitError

    former = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, former)


class SoftLimitError(RuntimeError):
    """As a task queue may raise one in its signal's handler. Python raises a RuntimeError for want of a thread."""


@contextmanager
def thread_starts_struck() -> Iterator[None]:
    """With a signal at the start of each thread, whose handler raises a SoftLimitError."""

    def handler(_number: int, _frame: object) -> None:
        raise SoftLimitError

    real, former = threading.Thread.start, signal.signal(signal.SIGUSR1, handler)

    def struck(thread: threading.Thread) -> None:
        real(thread)
        signal.raise_signal(signal.SIGUSR1)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threading.Thread, "start", struck)
        yield
    signal.signal(signal.SIGUSR1, former)


@pytest.fixture
def untraced() -> Iterator[None]:
    """Without the measuring of coverage: an exception within it leaves its own lock held, and all threads wait.

    And without the hook for what a finalizer raises: an interrupt may strike there, and in the hook.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    with unmeasured():
        yield
    sys.unraisablehook = hook


@contextmanager
def modules_untraced() -> Iterator[None]:
    """Without the measuring of coverage in the threads of PKCS#11 modules, which outlive tests.

    In CPython 3.11 a thread that is traced stands still at its next call while a signal waits for the main thread to
    see it: as long as that waits in its turn, here for the module. Since 3.12 it does not.
    """
    workers = [
        module.worker
        for (pid, _), module in registry._modules.items()
        if pid == os.getpid() and module.worker._up and module.worker._task is None
    ]
    traces = [worker.do(sys.gettrace) for worker in workers]
    for worker in workers:
        worker.do(lambda: sys.settrace(None))
    yield
    for worker, trace in zip(workers, traces, strict=True):
        worker.do(partial(sys.settrace, trace))


@pytest.fixture
def handled(untraced: None) -> Iterator[None]:
    """With a handler of SIGALRM that raises."""

    def handler(number: int, frame: object) -> None:
        raise InterruptedAtRandomError

    def note(dropped: sys.UnraisableHookArgs) -> None:
        if isinstance(dropped.exc_value, InterruptedAtRandomError):
            _DROPPED.append(dropped.object)
        else:
            told(dropped)

    before, told = signal.signal(signal.SIGALRM, handler), sys.unraisablehook
    sys.unraisablehook = note
    with modules_untraced():
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
    sys.unraisablehook = told
    signal.signal(signal.SIGALRM, before)


def interrupt(
    action: Callable[[], object], chance: random.Random, longest_seconds: float = LONGEST_SECONDS
) -> bool:
    """Whether the handler's exception interrupted an action, or came right behind it; False: it was swallowed."""
    _DROPPED.clear()
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, longest_seconds))
        action()
        until = time.monotonic() + ARRIVAL_SECONDS
        while (
            not _DROPPED and time.monotonic() < until
        ):  # the signal is on its way: it strikes here, at the latest
            time.sleep(longest_seconds)
        return bool(_DROPPED)
    except InterruptedAtRandomError:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def stacks() -> str:
    """Where every thread of this process is: what a call that gets no answer is waiting behind."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def interrupt_thread(thread: threading.Thread, kind: type[BaseException] = InterruptedThread) -> None:
    """Set an exception in a thread: it strikes where a signal would in the main thread."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(kind))
