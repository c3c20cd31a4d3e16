"""One thread for each PKCS#11 module: whatever is asked of the module, this thread does it.

A call into a module can hang, and nothing can end it from outside. A signal's handler can raise at any instruction
of the main thread. So no caller is in the module itself, nor changes what is known of its sessions: callers leave a
task and wait, for a bounded time. Who stops waiting, by time or by an exception, leaves the thread and its state as
they are.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from tokenvault.errors import KeyStoreError

_Result = TypeVar("_Result")

CALL_SECONDS: Final = 20
"""How long a caller waits for the module, unless `x-call-seconds-max` in the URI says otherwise."""

HANGING_SECONDS: Final = 0.5
"""How long, where it has not answered for longer than that already."""

FORK_SECONDS_MAX: Final = 10.0
"""How long the worker waits for a fork to be over: past that, an interrupt has ended the hook that gives it back."""

_DOING: Final[dict[int, str]] = {}


def calling(function: str) -> None:
    """Note which function of the module this thread calls next: errors tell it."""
    _DOING[threading.get_ident()] = function


class Task(Generic[_Result]):
    """Something for the worker to do, and what came of it.

    Args:
        action: what to do.
        shared: whether it is done for others too, so that it goes on when this caller waits no more.
    """

    __slots__ = ("_action", "_done", "_error", "_result", "abandoned", "finished", "shared", "submitted")

    def __init__(self, action: Callable[[], _Result], *, shared: bool = False) -> None:
        self._action = action
        self.shared: Final = shared
        self._done = threading.Lock()  # released when the task is finished
        self._done.acquire()
        self._result: list[_Result] = []
        self._error: BaseException | None = None
        self.submitted: Final = time.monotonic()
        self.finished = False
        self.abandoned = False

    def run(self) -> None:
        """Do it, unless somebody did, or nobody waits for it any more. In the worker's thread."""
        if self.finished or self.abandoned:
            return
        try:
            result = self._action()
        except BaseException as error:  # noqa: BLE001 # the caller raises it
            self.fail(error)
        else:
            self.finish(result)

    def finish(self, result: _Result) -> None:
        """Hand over a result; only the first counts."""
        if not self.finished:
            self._result.append(result)
            self._end()

    def fail(self, error: BaseException) -> None:
        """Hand over an error, where there is no result."""
        if not self.finished:
            self._error = error
            self._end()

    def _end(self) -> None:
        self.finished = True
        self._done.release()

    def wait(self, seconds: float) -> bool:
        """Whether it is finished after so many seconds."""
        try:
            return self._done.acquire(timeout=max(seconds, 0.0))
        finally:
            if not self.finished:
                self.abandoned = True

    def outcome(self) -> _Result:
        """The result, or the error raised."""
        error, self._error = self._error, None  # a traceback that holds its own error lives on
        if error is None:
            return self._result[0]
        try:
            raise error
        finally:
            del error


class Worker:
    """Runs tasks one after the other in a thread of its own.

    Attributes:
        lock: held while a task runs, so that a fork can wait for its end. Another one takes its place where a fork
            does not give it back.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._tasks: queue.SimpleQueue[Task[object]] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._up = False
        self._place: queue.SimpleQueue[None] = queue.SimpleQueue()  # of the one thread, until it has taken it
        self._place.put(None)
        self._task: Task[object] | None = None
        self._ident = 0
        self._since = 0.0

    @property
    def is_here(self) -> bool:
        """Whether this thread is the worker's."""
        return threading.get_ident() == self._ident

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits any more for the task that runs."""
        task = self._task
        return task is not None and task.abandoned and not task.shared

    @property
    def submitted(self) -> float:
        """When the task that runs was submitted."""
        task = self._task
        return time.monotonic() if task is None else task.submitted

    def do(self, action: Callable[[], _Result], seconds: float = CALL_SECONDS) -> _Result:
        """The result of an action, which the worker runs; at once where the worker itself asks.

        Raises:
            KeyStoreError: the module did not answer in time.
        """
        if self.is_here:
            return action()
        task = Task(action)
        self.run(task, seconds)
        return task.outcome()

    def run(self, task: Task[_Result], seconds: float = CALL_SECONDS) -> None:
        """Put a task behind those that wait, and wait until it is finished.

        Raises:
            KeyStoreError: the module did not answer in time.
        """
        self._start()
        if self._stuck_seconds() > seconds:
            seconds = min(seconds, HANGING_SECONDS)
        self._tasks.put(task)  # type: ignore[arg-type] # the queue's reader does not look at results
        if not task.wait(seconds):
            raise self._no_answer(max(self._stuck_seconds(), seconds))

    def _start(self) -> None:
        if not self._up:
            with self._starting:
                if not self._up:  # after an exception here, this starts a thread too many: it finds no place
                    threading.Thread(target=self._serve, name="tokenvault-pkcs11", daemon=True).start()

    def _stuck_seconds(self) -> float:
        since = self._since
        return time.monotonic() - since if since else 0.0

    def _no_answer(self, seconds: float) -> KeyStoreError:
        doing = _DOING.get(self._ident, "a call")
        return KeyStoreError(
            f"the module did not answer: it has been busy for {seconds:.0f} seconds, last with {doing}. What was "
            "asked for may still happen. Check the device or its daemon; no restart is needed once it answers",
            code="KEY_STORE_TIMEOUT",
        )

    def _serve(self) -> None:
        try:
            self._place.get(block=False)
        except queue.Empty:
            return
        self._up = True
        while True:
            task = self._tasks.get()  # without a bound: who leaves a task waits for it, not this thread
            while not (lock := self.lock).acquire(timeout=FORK_SECONDS_MAX):
                self.lock = threading.RLock()
            self._ident, self._since, self._task = threading.get_ident(), time.monotonic(), task
            task.run()
            self._ident, self._since, self._task = 0, 0.0, None
            lock.release()
            del task
