"""What a vault tells of its work to whoever watches it, and how that gets there without harm to a call.

Events go through a bounded queue to a thread of their own. So an observer that raises, waits or hangs costs no call
anything but the queue's place: what does not fit is dropped and counted. An event holds names of calls, controls and
errors, and numbers; no argument of a call, so never a PAN, a token or a reference. That of a lock-out names the
requestor.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sized
from contextlib import suppress
from typing import Final, Protocol, TypeAlias

import attrs

from tokenvault.errors import (
    DomainRestrictionError,
    InvalidInputError,
    LifecycleError,
    PermissionDeniedError,
    TokenNotFoundError,
    TokenVaultError,
    shown_float,
)
from tokenvault.interrupts import ignoring
from tokenvault.model.decision import Decision
from tokenvault.model.pan import Card
from tokenvault.runtime import put_result

EVENTS_WAITING_MAX: Final = 1_024
"""Events that wait for a slow observer; further ones are dropped."""

GATHERING_SECONDS: Final = 0.02
"""How long the worker waits for more once it has caught up: woken for each call, it would contend with the call's own
thread for the interpreter."""

CLOSING_SECONDS_MAX: Final = 1.0
"""How long closing a vault waits for its observer to take what waits."""

DONE, REFUSED, FAILED, CANCELLED = "done", "refused", "failed", "cancelled"
_REFUSALS: Final = (
    DomainRestrictionError,
    InvalidInputError,
    LifecycleError,
    PermissionDeniedError,
    TokenNotFoundError,
)


@attrs.frozen(kw_only=True)
class CallEnded:
    """A call of the vault ended.

    Attributes:
        name: of the method, such as "issue".
        outcome: "done", "refused" (as the caller or a rule wants it), "failed" or "cancelled".
        code: of the error: its `code` where it is one of the library, or else the name of its class; None where it
            is done.
        milliseconds: how long the call took.
        ended_ns: when, in nanoseconds of the Unix epoch, by this machine's clock.
        items: how many items a batch had; None for other calls.
    """

    name: str
    outcome: str
    code: str | None
    milliseconds: float = attrs.field(repr=shown_float)
    ended_ns: int
    items: int | None = None


@attrs.frozen(kw_only=True)
class Decided:
    """A single use was decided on.

    Attributes:
        name: of the method, "check" or "detokenize".
        allowed: whether the use is allowed.
        codes: of the controls that failed.
    """

    name: str
    allowed: bool
    codes: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class ConflictMet:
    """A change starts over, because another one of the same record came first.

    Attributes:
        attempts: how often it has started over.
    """

    attempts: int


@attrs.frozen(kw_only=True)
class LockedOut:
    """The guard locked a requestor out.

    Attributes:
        requestor: id of the requestor.
        until_ms: until when, milliseconds of the Unix epoch.
        cause: what it did too often: "MISS", asking for tokens that do not exist, or "REFUSAL".
    """

    requestor: str
    until_ms: int
    cause: str


Observed: TypeAlias = CallEnded | Decided | ConflictMet | LockedOut


class Observer(Protocol):
    """Watches a vault. It is called from one thread, one event after the other; what it raises is dropped."""

    def observe(self, event: Observed) -> None:
        """Take an event. Further kinds of events may come: pass over those that are not known."""
        ...


class _Worker:
    """The queue and the thread of one process.

    No object here waits by a lock of Python's own making, as `threading.Event` does: an exception that strikes in one
    leaves it held.

    Attributes:
        turn: to tell the observer; it is in the list unless a thread does.
        waiting: the events, and who closes: a queue that gets an item once all before it are told.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._closed: Final[queue.SimpleQueue[None]] = queue.SimpleQueue()
        self.turn: Final[list[None]] = [None]
        self.waiting: Final[queue.SimpleQueue[Observed | queue.SimpleQueue[None]]] = queue.SimpleQueue()

    def start(self) -> None:
        """Start a thread unless one is at work. One too many finds no turn, and ends."""
        if self.turn:
            with ignoring(RuntimeError):  # no thread is to be had: what comes waits for the next try
                threading.Thread(target=self._work, name="tokenvault-observer", daemon=True).start()

    def _work(self) -> None:
        taken: list[None] = []
        try:
            with suppress(IndexError):
                put_result(taken, self.turn.pop)
            if taken:
                self._tell()
        finally:
            self.turn.extend(taken)
        if taken and not self.waiting.empty():  # what came after the last look found the turn taken
            self.start()

    def _tell(self) -> None:
        closed = False
        while True:
            event = self.waiting.get()
            if isinstance(event, queue.SimpleQueue):
                event.put(None)
                if self.waiting.empty():
                    return
                continue
            try:
                if not closed and self.waiting.empty():
                    with suppress(queue.Empty):
                        self._closed.get(timeout=GATHERING_SECONDS)
                        closed = True
                self._observer.observe(event)
            except BaseException:  # noqa: BLE001, S112 # a watcher's trouble is not the vault's, whatever it raises
                continue

    def close(self) -> None:
        """Let the observer take what waits, for at most CLOSING_SECONDS_MAX."""
        if self.turn and self.waiting.empty():
            return
        told: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.waiting.put(told)
        self._closed.put(None)
        self.start()
        with suppress(queue.Empty):
            told.get(timeout=CLOSING_SECONDS_MAX)


class Deliveries:
    """Hands events to an observer, from a thread that an event starts where none is up; a forked child has its own.

    Attributes:
        dropped: events that found no place, about: threads that drop at once may count one.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._workers: dict[int, _Worker] = {}
        self.dropped = 0

    def put(self, event: Observed) -> None:
        """Hand an event on, or drop it. Waits for nothing."""
        pid = os.getpid()
        worker = self._workers.get(pid) or self._workers.setdefault(pid, _Worker(self._observer))
        if worker.waiting.qsize() >= EVENTS_WAITING_MAX:
            self.dropped += 1
        else:
            worker.waiting.put(event)
        worker.start()

    def call_ended(self, name: str, begun_ns: int, result: object, error: BaseException | None) -> None:
        """Tell of a call that began at a time of `time.perf_counter_ns`."""
        milliseconds = (time.perf_counter_ns() - begun_ns) / 1e6
        if isinstance(error, DomainRestrictionError):
            self.put(Decided(name=name, allowed=False, codes=tuple(each.code for each in error.violations)))
        elif isinstance(result, Decision):
            codes = tuple(violation.code for violation in result.violations)
            self.put(Decided(name=name, allowed=result.allowed, codes=codes))
        elif isinstance(result, Card):
            self.put(Decided(name=name, allowed=True))
        self.put(
            CallEnded(
                name=name,
                outcome=_outcome(error),
                code=None if error is None else _code_of(error),
                milliseconds=milliseconds,
                ended_ns=time.time_ns(),
                items=len(result) if name.endswith("_many") and isinstance(result, Sized) else None,
            )
        )

    def close(self) -> None:
        """Let the observer take what waits, for at most CLOSING_SECONDS_MAX."""
        worker = self._workers.get(os.getpid())
        if worker is not None:
            worker.close()


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return DONE
    if not isinstance(error, Exception):
        return CANCELLED
    return REFUSED if isinstance(error, _REFUSALS) else FAILED


def _code_of(error: BaseException) -> str:
    """What names an error: a `code` of the application's own could hold anything."""
    return error.code if isinstance(error, TokenVaultError) else type(error).__name__
