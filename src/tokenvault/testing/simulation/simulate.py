"""Simulates the schedule of a seed: callers, faults, and a look at every property in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tokenvault.errors import TokenNotFoundError, TokenVaultError
from tokenvault.model.transaction import Transaction
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import TokenStore
from tokenvault.testing.simulation.calls import OPERATIONS, Callers, Operation
from tokenvault.testing.simulation.properties import PROPERTIES, History, Property, read
from tokenvault.testing.simulation.tasks import Process
from tokenvault.testing.simulation.world import SimulatedWorld
from tokenvault.testing.vault_model import PROGRAMS, REQUESTOR, Shown

VAULTS: Final = 2
"""Vaults of a world, as many as it takes for two to be in each other's way."""


COLLISIONS_MAX: Final = 4
"""Calls that may fail since a write that was given up took the numbers of their events: one for each number."""


class PropertyViolatedError(AssertionError):
    """What a schedule broke: the seed, the property, and every step."""


def simulate(
    seed: int,
    *,
    operations: Sequence[Operation] = OPERATIONS,
    properties: Sequence[Property] = PROPERTIES,
    store: Callable[[], TokenStore] = MemoryTokenStore,
) -> History:
    """Run the schedule of a seed and look at every property.

    Args:
        seed: of everything; the same seed gives the same schedule, byte for byte.
        operations: what callers draw from.
        properties: what must hold.
        store: makes the store: empty, blocking, deterministic.

    Raises:
        PropertyViolatedError: a property does not hold. The message has the seed and the schedule, and no PAN.
    """
    with SimulatedWorld(
        seed, programs=tuple(PROGRAMS.values()), requestors=(REQUESTOR,), store=store
    ) as world:
        for _ in range(VAULTS):
            world.open()
        callers = Callers(world, operations)
        history = History(world, callers)
        callers.begin()
        history.stuck = not world.run()
        _end(history)
        read(history)
        for holds in properties:
            for finding in holds(history):
                raise PropertyViolatedError(_told(seed, holds, finding, world))
    return history


def _told(seed: int, holds: Property, finding: str, world: SimulatedWorld) -> str:
    name = holds.__name__.replace("_", " ")
    return f"seed {seed}: not so: {name}: {finding}\n{world.schedule()}\nreplay it by simulate({seed})"


def _end(history: History) -> None:
    """Let each vault that is open look at a token and do one thing more, and close it, all without a fault."""
    world = history.world
    for process in world.processes:
        error = _error_of(world, process)
        for _ in range(COLLISIONS_MAX if process.late else 0):
            error = error and _error_of(world, process)
        if error:
            history.unusable.append(f"{process.name} does not work any more: {error}")
            continue
        history.closed.append(world.commits[-1].events[-1].stream.hex())
        if not history.shown:
            for row in world.store.scan():
                name = history.callers.name(row.token)
                history.shown[name] = Shown.of(world.at_once(process.vault.get(row.token)))
        world.at_once(process.vault.close())


def _error_of(world: SimulatedWorld, process: Process) -> str | None:
    """What is wrong where a token is used that was never issued, if anything is."""
    nothing = Transaction(id="nothing", requestor=REQUESTOR.id)
    try:
        world.at_once(process.vault.detokenize("9999990000000000", nothing))
    except TokenNotFoundError:
        return None
    except TokenVaultError as error:
        return type(error).__name__
    return "it knows the token"
