"""`health`: it tells which part does not work, in a bounded time, and raises nothing of what it looks at."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import shims
from tests.postgres_server import PASSWORD, PostgresServer
from tests.shims import Shim
from tests.vaults import PROGRAMS, REQUESTORS, VISA, issue
from tokenvault.keys import KeyStore
from tokenvault.stores import TokenStore
from tokenvault.testing import ManualClock
from tokenvault.vault import health as module

PARTS = ["database", "module", "clock", "signer", "checkpoint"]
BOUND_MS = 500
SLACK_SECONDS = 2.0
"""What a busy machine may take beyond the bound."""


def failed(health: tv.Health) -> list[str]:
    assert [part.name for part in health.parts] == PARTS
    assert health.ok == all(part.ok for part in health.parts)
    return [part.name for part in health.parts if not part.ok]


def bounded(look: Callable[[], tv.Health]) -> tv.Health:
    begun = time.monotonic()
    found = look()
    assert time.monotonic() - begun < BOUND_MS / 1_000 + SLACK_SECONDS
    return found


def threads() -> int:
    return sum(thread.name.startswith("tokenvault-") for thread in threading.enumerate())


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that nobody else uses."""
    own = PostgresServer()
    yield own
    own.remove()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shims.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(built: Path, tmp_path: Path, softhsm_uri: str) -> Shim:
    return Shim(built, tmp_path, softhsm_uri)


@contextmanager
def standing_still(server: PostgresServer) -> Iterator[None]:
    """The whole server, stopped as by a disk that does not answer."""
    postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    pids = [postmaster, *map(int, children)]
    time.sleep(KEY_DELAY.total_seconds())
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


KEY_DELAY = timedelta(milliseconds=200)
"""A vault reads its key table again after half of it, before the next call, which must not hold up a look."""


def opened(keys: KeyStore, store: TokenStore, **parts: Any) -> tv.Vault:
    tv.provision(keys, store, key_delay=KEY_DELAY)
    return tv.Vault(keys, store, programs=PROGRAMS, requestors=REQUESTORS, **parts)


def test_a_vault_that_works_says_so_of_each_part(vault: tv.Vault) -> None:
    issue(vault)
    found = vault.health()
    assert failed(found) == [], found
    assert all(0 < part.milliseconds < module.WITHIN_MS for part in found.parts)
    assert "seconds old" in found.parts[-1].message


def test_a_key_store_that_signs_is_told_from_one_that_does_not(
    local_keys: KeyStore, softhsm_uri: str
) -> None:
    for keys, message in ((local_keys, "none"), (tv.open_key_store(softhsm_uri), "signs")):
        with closing(tv.open_token_store("memory:")) as store, opened(keys, store) as vault:
            issue(vault)
            parts = {part.name: part.message for part in vault.health().parts}
            assert parts["signer"].startswith(message)
            assert parts["checkpoint"].endswith("not signed") == (message == "none")


def test_a_database_that_stands_still_is_told_within_the_bound_and_asked_once(
    server: PostgresServer, local_keys: KeyStore
) -> None:
    with closing(tv.open_token_store(server.new_url())) as store, opened(local_keys, store) as vault:
        assert vault.health().ok
        before = threads()
        with standing_still(server):
            for _ in range(4):
                found = bounded(lambda: vault.health(within_ms=BOUND_MS))
                assert failed(found) == ["database", "clock", "checkpoint"]
                assert {part.message for part in found.parts if not part.ok} == {module.NO_ANSWER}
                assert threads() <= before + 3
        until = time.monotonic() + 30
        while not vault.health().ok and time.monotonic() < until:
            time.sleep(0.05)
        assert vault.health().ok
        assert threads() == before


def test_the_command_tells_a_database_that_stands_still_within_its_bounds(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a few parts one after the other, since the vault can not even be opened; and the process ends."""
    (tmp_path / "passphrase").write_text("correct horse battery staple")
    (tmp_path / "passphrase").chmod(0o600)
    secret = f"passphrase-source=file:{tmp_path}/passphrase"
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", f"file:{tmp_path}/keys.json?{secret}")
    monkeypatch.setenv("TOKENVAULT_STORE", server.new_url())
    monkeypatch.setenv("PYTHONPATH", str(Path(tv.__file__).parent.parent))
    program = [sys.executable, "-m", "tokenvault.cli"]
    for command in ("provision", "health"):
        subprocess.run([*program, command], cwd=tmp_path, check=True, capture_output=True)
    with standing_still(server):
        begun = time.monotonic()
        ran = subprocess.run(
            [*program, "health", "--json", "--timeout", "0.5"], cwd=tmp_path, capture_output=True, timeout=30
        )
        seconds = time.monotonic() - begun
    assert seconds < 3 * 0.5 + 2 * SLACK_SECONDS
    parts = {part["part"]: part["well"] for part in json.loads(ran.stdout)["parts"]}
    assert (ran.returncode, ran.stderr) == (1, b"")
    assert parts == {"configuration": True, "database": False, "module": True, "vault": False}


def test_a_vault_with_coroutines_tells_a_database_that_stands_still_and_goes_on(
    server: PostgresServer, local_keys: KeyStore
) -> None:
    async def work() -> None:
        store = tv.open_async_token_store(server.new_url())
        await tv.provision_async(local_keys, store, key_delay=KEY_DELAY)
        async with tv.AsyncVault(local_keys, store, programs=PROGRAMS, requestors=REQUESTORS) as vault:
            assert (await vault.health()).ok
            with standing_still(server):
                begun = time.monotonic()
                found = await vault.health(within_ms=BOUND_MS)
                assert time.monotonic() - begun < BOUND_MS / 1_000 + SLACK_SECONDS
                assert failed(found) == ["database", "clock", "checkpoint"]
            while not (await vault.health()).ok:
                await asyncio.sleep(0.05)
        await store.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_database_that_is_dead_is_told_within_the_bound_and_without_its_password(
    server: PostgresServer, local_keys: KeyStore
) -> None:
    with closing(tv.open_token_store(server.new_url())) as store:
        vault = opened(local_keys, store)
        server.stop()
        time.sleep(KEY_DELAY.total_seconds())
        try:
            found = bounded(lambda: vault.health(within_ms=BOUND_MS))
            assert set(failed(found)) == {"database", "clock", "checkpoint"}
            assert PASSWORD not in repr(found)
        finally:
            server.start()
        until = time.monotonic() + 30
        while not vault.health().ok and time.monotonic() < until:
            time.sleep(0.05)
        assert vault.health().ok
        vault.close()


@pytest.mark.parametrize("custody", tv.Custody)
def test_a_module_that_hangs_is_told_within_the_bound(shim: Shim, custody: tv.Custody) -> None:
    with closing(tv.open_key_store(shim.uri)) as keys, closing(tv.open_token_store("memory:")) as store:
        tv.provision(keys, store, custody=custody)
        with opened(keys, store) as vault:
            assert vault.health().ok
            shim.impose(HANG=1)
            try:
                found = bounded(lambda: vault.health(within_ms=BOUND_MS))
            finally:
                shim.impose(HANG=0)
            assert {"module", "signer"} <= set(failed(found)) <= {"module", "signer", "clock", "checkpoint"}
            until = time.monotonic() + 30
            while not vault.health().ok and time.monotonic() < until:
                time.sleep(0.05)
            assert vault.health().ok


def test_a_module_that_hangs_does_not_hold_up_the_event_loop(shim: Shim) -> None:
    async def work(keys: KeyStore) -> None:
        store = tv.open_async_token_store("memory:")
        await tv.provision_async(keys, store)
        async with tv.AsyncVault(keys, store, programs=PROGRAMS, requestors=REQUESTORS) as vault:
            shim.impose(HANG=1)
            try:
                look = asyncio.create_task(vault.health(within_ms=BOUND_MS))
                begun = time.monotonic()
                await asyncio.sleep(0.01)
                assert time.monotonic() - begun < BOUND_MS / 1_000
                assert "module" in failed(await look)
            finally:
                shim.impose(HANG=0)

    with closing(tv.open_key_store(shim.uri)) as keys:
        asyncio.run(asyncio.wait_for(work(keys), 60))


def test_a_clock_behind_the_newest_checkpoint_is_told(local_keys: KeyStore) -> None:
    clock = ManualClock(1_800_000_000_000)
    with (
        closing(tv.open_token_store("memory:")) as store,
        opened(local_keys, store, clock=clock) as vault,
    ):
        issue(vault, expiry="2039-12")
        assert vault.health().ok
        clock.advance(-(module.CLOCK_MS_MAX + 1_000))
        found = vault.health()
        assert failed(found) == ["clock"]
        assert "61 seconds behind" in found.parts[2].message


def test_a_clock_that_goes_back_while_it_is_looked_at_is_told(local_keys: KeyStore) -> None:
    class FallingClock:
        falls_ms, time_ms = 0, 1_800_000_000_000

        def now_ms(self) -> int:
            self.time_ms -= self.falls_ms
            return self.time_ms

    clock = FallingClock()
    with closing(tv.open_token_store("memory:")) as store:
        vault = opened(local_keys, store, clock=clock)
        assert vault.health().ok
        clock.falls_ms = 1_234
        found = vault.health()
        assert failed(found) == ["clock"]
        assert found.parts[2].message == "the clock went back by 1,234 ms while it was looked at"
        clock.falls_ms = 0
        vault.close()


class BrokenClock:
    """A clock that fails with a card number, once it is told to."""

    broken = False

    def now_ms(self) -> int:
        if self.broken:
            raise ValueError(VISA)
        return 1_800_000_000_000


def test_a_clock_that_fails_is_told_and_shows_nothing_of_its_error(local_keys: KeyStore) -> None:
    clock = BrokenClock()
    with closing(tv.open_token_store("memory:")) as store:
        vault = opened(local_keys, store, clock=clock)
        clock.broken = True
        found = vault.health()
        assert "clock" in failed(found)
        assert VISA not in repr(found)
        clock.broken = False
        vault.close()


def test_a_forked_child_looks_for_itself(local_keys: KeyStore, tmp_path: Path) -> None:
    with closing(tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")) as store:
        vault = opened(local_keys, store)
        assert vault.health().ok
        pid = os.fork()
        if pid == 0:
            os._exit(0 if vault.health().ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        vault.close()


def test_health_is_of_an_open_vault_and_takes_a_bound(local_keys: KeyStore) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        vault = opened(local_keys, store)
        for wrong in (0, module.WITHIN_MS_MAX + 1, 1.5, True, "1"):
            with pytest.raises(tv.InvalidInputError):
                vault.health(within_ms=wrong)  # type: ignore[arg-type] # the point of the test
        vault.close()
        with pytest.raises(tv.ConfigurationError):
            vault.health()
