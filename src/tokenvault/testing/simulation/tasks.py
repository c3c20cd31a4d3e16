"""What runs in a simulated world: processes, each with a vault, and their tasks; and what may become of them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import attrs

from tokenvault.stores.port import SealedEvent, SealedRecord
from tokenvault.testing.clock import ManualClock
from tokenvault.testing.simulation.ports import SimulatedVault


class Fate(enum.Enum):
    """What comes of what a coroutine waits for.

    GO: it happens. FAIL: it does not, and the caller gets an error. LOSE: it happens, and the caller gets an error.
    LATE: the caller gets an error, and it happens later. KILL: the process ends here. CANCEL: the call is cancelled.
    """

    GO = "goes on"
    FAIL = "fails"
    LOSE = "happens, its answer is lost"
    LATE = "fails for the caller, and happens later"
    KILL = "its process is killed"
    CANCEL = "is cancelled"


class Killed(Exception):
    """The outcome of a task whose process was killed."""


class Cancelled(BaseException):
    """What a cancelled coroutine gets, as asyncio.CancelledError is."""


@attrs.define(eq=False)
class Commit:
    """What one write left in the store.

    Attributes:
        step: of the world at which it was written.
        task: that wrote it; None while the world was set up.
        records, events: rows.
    """

    step: int
    task: Task | None
    records: Sequence[SealedRecord]
    events: Sequence[SealedEvent]


@attrs.define(eq=False)
class Process:
    """One process with one vault of its own.

    Attributes:
        name: such as "vault 1".
        vault: open.
        clock: its wall clock; times: step and milliseconds of each setting of it.
        monotonic: its other clock, in seconds.
        alive: not killed; closing: since the call that closes it began.
        late: whether a write of it was given up too early.
    """

    name: str
    vault: SimulatedVault
    clock: ManualClock
    times: list[tuple[int, int]]
    monotonic: float = 0.0
    alive: bool = True
    closing: bool = False
    late: bool = False

    @property
    def usable(self) -> bool:
        """Whether it takes calls."""
        return self.alive and not self.closing


@attrs.define(eq=False)
class Task:
    """One coroutine in one process.

    Attributes:
        began, ended: steps.
        faults: that it met.
        value, error: what it returned or raised, once it has ended.
    """

    name: str
    process: Process
    coroutine: Coroutine[Any, Any, Any]
    then: Callable[[Task], None] | None
    began: int
    ended: int | None = None
    point: str = "begins"
    effect: Callable[[], Any] | None = None
    faults: list[Fate] = attrs.field(factory=list)
    value: Any = None
    error: BaseException | None = None
