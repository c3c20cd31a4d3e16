"""A world in which every suspension is a choice: vaults, a store, a key store, clocks and chance, all from one seed.

A flow of the vault is a coroutine over ports. Here the ports suspend at every call, and the scheduler of the world
resumes one coroutine at a time by `send`: it chooses which goes on, and what comes of what it waits for. There is no
thread, no event loop and no real time, so a world is a pure function of its seed and of what runs in it.

What the library reads beside its ports is replaced while a world runs, in the thread that runs it and in no other:
`os.urandom` and all of `secrets`, `uuid.uuid4` and `random.SystemRandom` by the world's random numbers; `time.time`,
`time.time_ns` and `time.monotonic` by the clock of the process that runs.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Self, TypeVar

from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.errors import KeyStoreError, TokenStoreError
from tokenvault.model.programs import TokenProgram, TokenRequestor
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock
from tokenvault.testing.simulation.ports import (
    WRITES,
    SimulatedRuntime,
    SimulatedStore,
    SimulatedVault,
    replaced,
    simulated_keys,
    suspend,
)
from tokenvault.testing.simulation.tasks import Cancelled, Commit, Fate, Killed, Process, Task

T = TypeVar("T")

STEPS_MAX: Final = 5_000
"""Steps after which a world counts as one that does not come to an end."""

FAULTS_MAX: Final = 6
"""Faults of one world: what is looked for is how few of them meet, not how many are survived."""

START_MS: Final = 1_780_000_000_000
_SLEEPS_SECONDS: Final = (0.0, 0.5, 6.0)
"""How much longer than asked a sleep may take: closing gives up after 10 seconds."""

_MINUTE_MS: Final = 60_000
_CLOCK_MOVES_MS: Final = tuple(_MINUTE_MS * minutes for minutes in (-60, -30, 1, 30, 60))


class SimulatedWorld:
    """Vaults over one store, and a scheduler that owns every suspension.

    Args:
        seed: of every choice.
        programs, requestors: of its vaults.
        store: makes the store: empty, blocking, and deterministic.

    Attributes:
        random: what every choice is drawn from.
        store: what lies in the database: read it at will.
        processes: those with an open vault, by their place; one that is killed or closed is followed by another.
        tasks: all, in the order in which they began.
        commits: every write that happened, in order.
        now: the number of the step.
    """

    def __init__(
        self,
        seed: int,
        *,
        programs: Sequence[TokenProgram],
        requestors: Sequence[TokenRequestor],
        store: Callable[[], TokenStore] = MemoryTokenStore,
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)  # noqa: S311 # a seed is to give the same again
        self.store = store()
        self.programs, self.requestors = programs, requestors
        self.processes: list[Process] = []
        self.tasks: list[Task] = []
        self.commits: list[Commit] = []
        self.now = 0
        self.task: Task | None = None
        self.late: list[tuple[str, Callable[[], Any]]] = []
        self.faults = 0
        self._running: list[Task] = []
        self._steps: list[tuple[int, str, str, str]] = []
        self._dead: list[Coroutine[Any, Any, Any]] = []
        self._replaced = contextlib.ExitStack()
        # What kind of a day it is: calm, or with faults of some kinds.
        self.fault_rate = self.random.choice((0.0, 0.03, 0.08, 0.2))
        self.clock_rate = self.random.choice((0.0, 0.0, 0.05, 0.15))
        kinds = [fate for fate in Fate if fate is not Fate.GO]
        self.kinds = [fate for fate in kinds if self.random.random() < 0.6] or kinds

    # Running

    def __enter__(self) -> Self:
        """Replace time and chance in this thread, and create the store's schema; keys are noted as a vault opens."""
        self._replaced.enter_context(replaced(self.random, self, self._monotonic))
        self.store.provision()
        return self

    def __exit__(self, *_: object) -> None:
        """Put time and chance back; what was suspended never goes on."""
        for coroutine in (*self._dead, *(task.coroutine for task in self._running)):
            with contextlib.suppress(RuntimeError):  # it wants to wait while it ends
                coroutine.close()
        self._replaced.close()

    def now_ms(self) -> int:
        """The wall clock of the process that runs."""
        return START_MS if self.task is None else self.task.process.clock.now_ms()

    def _monotonic(self) -> float:
        return 0.0 if self.task is None else self.task.process.monotonic

    def open(self) -> Process:
        """Another process, with an open vault; it opens without faults."""
        process = self._opened(f"vault {len(self.processes) + 1}", START_MS)
        self.processes.append(process)
        return process

    def follow(self, process: Process) -> None:
        """Open another vault in the place of one that ends, unless that was done."""
        if process in self.processes:
            follower = self._opened(f"{process.name}'", process.clock.now_ms())
            self.processes[self.processes.index(process)] = follower

    def _opened(self, name: str, now_ms: int) -> Process:
        clock = ManualClock(now_ms)
        vault = SimulatedVault(
            simulated_keys(), SimulatedStore(self), programs=self.programs, requestors=self.requestors,
            clock=clock, checkpoints=CheckpointPolicy(events=self.random.choice((1, 2, 5, 1_000))),
        )  # fmt: skip
        process = Process(name, vault, clock, [(self.now, now_ms)])
        self.at_once(vault.open_over(SimulatedRuntime(self, functools.partial(self._slept, process))))
        return process

    def _slept(self, process: Process, seconds: float) -> None:
        process.monotonic += seconds + self.random.choice(_SLEEPS_SECONDS)

    def start(
        self,
        name: str,
        process: Process,
        coroutine: Coroutine[Any, Any, Any],
        then: Callable[[Task], None] | None = None,
    ) -> Task:
        """Let a coroutine run in a process, a step at a time. `then` is called when it has ended or was killed."""
        task = Task(name, process, coroutine, then, self.now)
        self.tasks.append(task)
        self._running.append(task)
        return task

    def at_once(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, without a fault and without another between. Raises what it raises."""
        try:
            while True:
                coroutine.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def run(self) -> bool:
        """Take steps until nothing runs. False where that does not come to an end."""
        for _ in range(STEPS_MAX):
            if not self._running and not self.late:
                return True
            self._step()
        return False

    def run_calmly(self) -> bool:
        """The same, without a fault from now on, and with clocks that stand."""
        rates = self.fault_rate, self.clock_rate
        self.fault_rate = self.clock_rate = 0.0
        ended = self.run()
        self.fault_rate, self.clock_rate = rates
        return ended

    # Steps

    def _step(self) -> None:
        self.now += 1
        if self.random.random() < self.clock_rate:
            self._move_a_clock()
        chosen = int(self.random.random() * (len(self._running) + len(self.late)))
        if chosen >= len(self._running):
            self._happen_late(chosen - len(self._running))
            return
        task = self._running[chosen]
        fate = self._fate(task)
        self._note(task.name, task.point, fate.value)
        if fate is not Fate.GO:
            self.faults += 1
            task.faults.append(fate)
        if fate is Fate.KILL:
            self._kill(task.process)
        elif fate is Fate.CANCEL:
            self._resume(task, functools.partial(task.coroutine.throw, Cancelled()))
        else:
            # The first value that a coroutine gets is None.
            sent = None if task.point == "begins" else fate
            self._resume(task, functools.partial(task.coroutine.send, sent))

    def _fate(self, task: Task) -> Fate:
        if self.faults >= FAULTS_MAX or self.random.random() >= self.fault_rate:
            return Fate.GO
        fate = self.random.choice(self.kinds)
        if task.effect is None and fate in (Fate.FAIL, Fate.LOSE, Fate.LATE):
            return Fate.GO
        if task.point == "begins" and fate is Fate.CANCEL:
            return Fate.GO
        return Fate.LOSE if fate is Fate.LATE and task.point not in WRITES else fate

    def _resume(self, task: Task, step: Callable[[], str]) -> None:
        self.task = task
        ended = True
        try:
            task.point = step()
            ended = False
        except StopIteration as stop:
            task.value = stop.value
        except (Exception, Cancelled) as error:  # noqa: BLE001 # whatever it raises is its outcome
            task.error = error
        self.task = None
        if ended:
            self._end(task)

    def _end(self, task: Task) -> None:
        task.ended = self.now
        self._running.remove(task)
        shown = "returns" if task.error is None else f"raises {type(task.error).__name__}"
        self._note(task.name, "it", shown)
        if task.then is not None:
            task.then(task)

    def _kill(self, process: Process) -> None:
        """End a process: its coroutines never go on, and another follows it. A write on its way may still happen."""
        process.alive = False
        died = [task for task in self._running if task.process is process]
        self._running = [task for task in self._running if task.process is not process]
        self.follow(process)
        for task in died:
            self._dead.append(task.coroutine)
            if task.point in WRITES and task.effect is not None and self.random.random() < 0.3:
                self.late.append((task.name, task.effect))
            task.error, task.ended = Killed(), self.now
            if task.then is not None:
                task.then(task)

    def _happen_late(self, chosen: int) -> None:
        name, effect = self.late.pop(chosen)
        with contextlib.suppress(TokenStoreError):  # what it would write is there already
            effect()
        self._note(name, "a write given up", "happens now, if it still can")

    def _move_a_clock(self) -> None:
        process = self.random.choice(self.processes)
        milliseconds = self.random.choice(_CLOCK_MOVES_MS)
        process.clock.advance(milliseconds)
        process.times.append((self.now, process.clock.now_ms()))
        self._note(process.name, "its clock", f"moves by {milliseconds // _MINUTE_MS} minutes")

    # What ports ask

    async def meet(
        self, name: str, effect: Callable[[], T], error: type[TokenStoreError | KeyStoreError]
    ) -> T:
        """Wait for the scheduler, and do what a port is asked for, or not. Raises `error` where that fails."""
        task = self.task
        if task is None:  # at once
            return effect()
        task.effect = effect
        try:
            fate = await suspend(name)
        finally:
            task.effect = None
        if fate is Fate.FAIL:
            raise error("a fault of the simulation: it was not done")
        if fate is Fate.LATE:
            task.process.late = True
            self.late.append((task.name, effect))
            raise error("a fault of the simulation: given up")
        answer = effect()
        if fate is Fate.LOSE:
            raise error("a fault of the simulation: its answer is lost")
        return answer

    def writing(self, name: str, *args: Any) -> Callable[[], list[str] | None]:
        """The effect of a write of the task that runs: it writes into the store, and notes what was written."""
        task = self.task

        def write() -> list[str] | None:
            answer: list[str] | None = getattr(self.store, name)(*args)
            if not answer:
                records, events = ((), args[0]) if name == "append" else args[:2]
                self.commits.append(Commit(self.now, task, tuple(records), tuple(events)))
            return answer

        return write

    # What is told

    def _note(self, who: str, what: str, how: str) -> None:
        self._steps.append((self.now, who, what, how))

    def schedule(self) -> str:
        """Every step, one a line."""
        return "\n".join(f"{now:4} {who}: {what} {how}" for now, who, what, how in self._steps)
