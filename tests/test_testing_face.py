"""The face of `tokenvault.testing`: what it shows, what it needs, and a store with coroutines that its kit drives."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import settings

from tests.faces import open_on_a_loop
from tests.test_memory_store import MemoryHarness
from tokenvault import testing
from tokenvault.errors import TokenStoreError
from tokenvault.stores import MemoryTokenStore, ThreadedTokenStore
from tokenvault.stores.port import TokenStore

WITHOUT_THE_EXTRA = """
import sys
sys.modules["hypothesis"] = sys.modules["pytest"] = None  # an import of them fails
from tokenvault import testing
from tokenvault.testing import FAIL, FaultSchedule, FaultyTokenStore, ManualClock, TokenStoreOnALoop
from tokenvault.testing import a_record
from tokenvault.stores import MemoryTokenStore, ThreadedTokenStore
from tokenvault.testing.clock import ManualClock as same
assert same is ManualClock and ManualClock(5).now_ms() == 5
store = FaultyTokenStore(TokenStoreOnALoop(ThreadedTokenStore(MemoryTokenStore())), FaultSchedule([None, FAIL]))
assert store.insert([a_record(1)], []) == []
try:
    store.scan()
except Exception as error:
    assert "fault" in str(error), error
else:
    raise AssertionError("no fault came")
assert store.scan() == [a_record(1)]
store.close()
for name in testing.__all__:
    try:
        getattr(testing, name)
    except ImportError:
        print(name)
"""


def test_it_shows_its_public_names_and_nothing_else() -> None:
    assert dir(testing) == sorted(testing.__all__)
    for name in testing.__all__:
        shown = getattr(testing, name)
        assert getattr(shown, "__name__", name) in (name, "Callable")
    with pytest.raises(AttributeError, match="NoSuchThing"):
        _ = testing.NoSuchThing


def test_only_contracts_and_machines_need_pytest_and_hypothesis() -> None:
    """Whoever wants a clock to set, or a store that fails, installs nothing more."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_EXTRA], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "FaultyVaultMachine",
        "KeyStoreContract",
        "TokenStoreContract",
        "TokenStoreMachine",
    ]


class OnALoopHarness(MemoryHarness):
    def open(self) -> TokenStore:
        return testing.TokenStoreOnALoop(ThreadedTokenStore(self.store))


class TestAStoreOnALoop(testing.TokenStoreContract):
    """It keeps the promises of the store that it drives."""

    capabilities = frozenset[testing.Capability]()

    @pytest.fixture
    def harness(self) -> testing.StoreHarness:
        return OnALoopHarness()


class OnALoopMachine(testing.TokenStoreMachine):
    def open_store(self) -> TokenStore:
        return open_on_a_loop("memory:")


TestOnALoopMachine = OnALoopMachine.TestCase
TestOnALoopMachine.settings = settings(max_examples=5, stateful_step_count=20)


def test_a_store_on_a_loop_ends_its_thread_also_where_closing_fails() -> None:
    class Unclosed(ThreadedTokenStore):
        async def _forward(self, name: str, *args: object, **kwargs: object) -> object:
            if name == "close":
                raise TokenStoreError("it does not close")
            return await super()._forward(name, *args, **kwargs)

    store = testing.TokenStoreOnALoop(Unclosed(MemoryTokenStore()))
    with pytest.raises(TokenStoreError, match="does not close"):
        store.close()
    assert not store._thread.is_alive()
