"""What an adapter of a token store or key store runs to prove itself, and what makes one fail on purpose.

| what | proves, or does |
|---|---|
| `TokenStoreContract` | one test for each promise of `TokenStore`, over a `StoreHarness` that you write |
| `TokenStoreMachine` | any order of calls to a store answers as dicts would |
| `TokenStoreOnALoop` | drives a store with coroutines by the two above |
| `KeyStoreContract` | one test for each promise of `KeyStore` |
| `FaultyVaultMachine` | several vaults over your store and your keys, whose calls fail and lose their answers |
| `FaultyTokenStore`, `FaultyAsyncTokenStore`, `FaultyKeyStore` | fail where a plan says |
| `ManualClock` | a clock to set |
| `simulate` | a vault's life under faults of every kind, at every suspension, from a seed |
| `SimulatedWorld` | the same for coroutines of yours |

The contracts and the machines need pytest and Hypothesis, which the extra `testing` installs, and are imported when
they are first used. All else needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from tokenvault.testing.clock import ManualClock
from tokenvault.testing.faults import (
    FAIL,
    LOSE,
    Failure,
    Fault,
    FaultPlan,
    FaultSchedule,
    FaultyAsyncTokenStore,
    FaultyKeyStore,
    FaultyTokenStore,
)
from tokenvault.testing.simulation.simulate import PropertyViolatedError, simulate
from tokenvault.testing.simulation.world import SimulatedWorld
from tokenvault.testing.token_store_harness import (
    Capability,
    StoreHarness,
    TokenStoreOnALoop,
    a_record,
    an_event,
)

if TYPE_CHECKING:
    from tokenvault.testing.key_stores import KeyStoreContract
    from tokenvault.testing.token_store_machine import TokenStoreMachine
    from tokenvault.testing.token_stores import TokenStoreContract
    from tokenvault.testing.vault_machine import FaultyVaultMachine

__all__ = [
    "FAIL",
    "LOSE",
    "Capability",
    "Failure",
    "Fault",
    "FaultPlan",
    "FaultSchedule",
    "FaultyAsyncTokenStore",
    "FaultyKeyStore",
    "FaultyTokenStore",
    "FaultyVaultMachine",
    "KeyStoreContract",
    "ManualClock",
    "PropertyViolatedError",
    "SimulatedWorld",
    "StoreHarness",
    "TokenStoreContract",
    "TokenStoreMachine",
    "TokenStoreOnALoop",
    "a_record",
    "an_event",
    "simulate",
]

_OF_THE_EXTRA: Final = {
    "FaultyVaultMachine": "tokenvault.testing.vault_machine",
    "KeyStoreContract": "tokenvault.testing.key_stores",
    "TokenStoreContract": "tokenvault.testing.token_stores",
    "TokenStoreMachine": "tokenvault.testing.token_store_machine",
}


def __getattr__(name: str) -> object:
    if name in _OF_THE_EXTRA:
        found: object = getattr(importlib.import_module(_OF_THE_EXTRA[name]), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for who looks around in a shell or an editor."""
    return sorted(__all__)
