"""An exception at every single instruction of the hooks around a fork: whoever calls next ends what they left."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.test_interrupt_steps import POOLS, InterruptedHere, at_every_instruction
from tokenvault.stores import forks
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import TokenStore
from tokenvault.stores.sqlite.store import SqliteTokenStore

HOOKS = {*POOLS, "tokenvault.stores.forks", "tokenvault.stores.memory", "tokenvault.stores.sqlite.store"}

SECONDS_MAX = 5.0
"""What would be waited for in vain is waited for so long."""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> forks._Watch:
    """Of this test alone; Python does not call its hooks."""
    watch = forks._Watch()
    watch.installed = True
    monkeypatch.setattr(forks, "_watch", watch)
    monkeypatch.setattr(forks, "HOLD_SECONDS_MAX", SECONDS_MAX)
    monkeypatch.setattr("tokenvault.stores.memory.LOCK_SECONDS_MAX", SECONDS_MAX)
    return watch


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, watch: forks._Watch, tmp_path: Path) -> TokenStore:
    store: TokenStore = MemoryTokenStore()
    if request.param == "sqlite":
        store = SqliteTokenStore(tmp_path / "vault.db", busy_seconds_max=SECONDS_MAX)
    store.provision()
    return store


def fork(watch: forks._Watch) -> None:
    """As Python forks: an exception ends a hook, and neither the fork nor the other hook."""
    for hook in (watch.before, watch.in_parent):
        with suppress(InterruptedHere):
            hook()


def test_the_thread_that_forked_goes_on_and_forks_again_after_hooks_interrupted_anywhere(
    store: TokenStore, watch: forks._Watch
) -> None:
    def check() -> None:
        begun = time.monotonic()
        fork(watch)
        assert time.monotonic() - begun < SECONDS_MAX, "the fork waited for its turn in vain"
        assert store.streams() == []
        assert watch.turn.qsize() == 1

    with closing(store):
        assert at_every_instruction(lambda: lambda: fork(watch), check, HOOKS, looked=True) > 20


def test_other_threads_end_what_hooks_interrupted_anywhere_left_held(
    store: TokenStore, watch: forks._Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "FORK_SECONDS_MAX", 0.0)
    with closing(store), ThreadPoolExecutor(1) as other:

        def check() -> None:
            assert other.submit(store.streams).result() == []
            watch.end_interrupted_hold()  # the turn stays with its thread where nothing is held
            assert watch.turn.qsize() == 1

        assert at_every_instruction(lambda: lambda: fork(watch), check, HOOKS, looked=True) > 20


def test_no_other_thread_ends_the_hold_of_a_fork_that_is_under_way(watch: forks._Watch) -> None:
    with closing(MemoryTokenStore()) as store, ThreadPoolExecutor(1) as other:
        watch.before()
        call = other.submit(store.streams)
        with pytest.raises(TimeoutError):
            call.result(timeout=0.2)
        watch.in_parent()
        assert call.result() == []


def test_a_call_that_waits_for_a_fork_ends_its_hold_once_that_is_too_long(
    watch: forks._Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(forks, "FORK_SECONDS_MAX", 0.2)
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as store, ThreadPoolExecutor(1) as other:
        store.provision()
        watch.before()  # and the hook behind the fork was interrupted
        assert other.submit(store.streams).result(timeout=SECONDS_MAX) == []


def test_a_turn_that_went_with_its_thread_is_waited_for_once(
    watch: forks._Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "HOLD_SECONDS_MAX", 0.05)
    with ThreadPoolExecutor(1) as other:
        other.submit(watch.before).result()  # it holds nothing, and its thread ends
    fork(watch)
    assert watch.turn.qsize() == 1


def test_what_holds_still_last_does_so_once_all_else_does_and_goes_on_first(watch: forks._Watch) -> None:
    told: list[str] = []

    class Item(forks.Forkable):
        def __init__(self, name: str) -> None:
            self.name = name

        def before_fork(self, seconds_max: float) -> None:
            told.append(f"{self.name} holds")

        def after_fork_in_parent(self) -> None:
            told.append(f"{self.name} goes on")

    module, store = Item("module"), Item("store")
    forks.hold_still_at_forks(module, last=True)
    forks.hold_still_at_forks(store)
    fork(watch)
    assert told == ["store holds", "module holds", "module goes on", "store goes on"]
