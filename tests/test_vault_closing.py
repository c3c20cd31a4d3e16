"""Closing a vault: calls under way are served, later ones refused, and its trail is closed."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import MASTERCARD, VISA, issue, use
from tokenvault.audit.event import Event
from tokenvault.keys import KeyStore
from tokenvault.stores.forwarding import ThreadedTokenStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import FoundUse, SealedRecord
from tokenvault.vault import face


def closed_whole(store: MemoryTokenStore, keys: KeyStore) -> bool:
    """Whether there is one stream, which a checkpoint closes."""
    (stream,) = store.streams()
    report = tv.verify_audit(store, keys=keys)
    last = Event.parse(store.events(stream=stream)[-1]).checkpoint
    return report.intact and not report.gaps and last is not None and last.closes


class Held(MemoryTokenStore):
    """Reads records once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.go = threading.Semaphore(0), threading.Event()
        self.go.set()

    def _get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        self.waiting.release()
        assert self.go.wait(30)
        return super()._get(tokens)

    def _get_use(self, name: str | bytes, use_ids: Sequence[bytes]) -> FoundUse:
        self.waiting.release()
        assert self.go.wait(30)
        return super()._get_use(name, use_ids)


def test_threads_under_way_are_served_before_a_vault_closes(local_keys: KeyStore) -> None:
    store = Held()
    tv.provision(local_keys, store)
    vault = tv.Vault(local_keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS)
    token = issue(vault).token
    store.go.clear()
    with ThreadPoolExecutor(5) as pool:
        going = [pool.submit(vault.detokenize, token, use(number)) for number in range(4)]
        for _ in going:
            assert store.waiting.acquire(timeout=30)
        ending = pool.submit(vault.close)
        while vault._core is not None:  # until closing has begun
            pass
        with pytest.raises(tv.ConfigurationError, match="closed"):
            vault.detokenize(token, use(9))
        assert not ending.done()
        store.go.set()
        assert {call.result(30).pan.reveal() for call in going} == {VISA}
        ending.result(30)
    assert closed_whole(store, local_keys)


def test_tasks_under_way_are_served_before_a_vault_closes(local_keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)

    async def main() -> None:
        threaded = ThreadedTokenStore(store)
        async with tv.AsyncVault(
            local_keys, threaded, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS
        ) as vault:
            token = await vault.issue(MASTERCARD, expiry="2029-12", requestor=vaults.SHOP, program="one-time")
            going = [asyncio.create_task(vault.detokenize(token.token, use(n))) for n in range(50)]
            await asyncio.sleep(0)
            await vault.close()
            assert {card.pan.reveal() for card in await asyncio.gather(*going)} == {MASTERCARD}
        assert closed_whole(store, local_keys)
        await threaded.close()

    asyncio.run(main())


def test_a_vault_does_not_wait_for_ever_nor_for_calls_that_its_parent_process_had(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Held()
    tv.provision(local_keys, store)
    vault = tv.Vault(local_keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS)
    token = issue(vault).token
    store.go.clear()
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(vault.detokenize, token, use(1))
        assert store.waiting.acquire(timeout=30)
        child = os.fork()
        if not child:
            vault.close()  # with the wait at its usual length
            os._exit(0)
        monkeypatch.setattr(face, "CLOSING_SECONDS_MAX", 0.01)
        vault.close()
        store.go.set()
        assert going.result(30).pan.reveal() == VISA
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_calls_that_fail_are_not_waited_for(local_keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    vault = tv.Vault(local_keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS)
    with pytest.raises(tv.TokenNotFoundError):
        vault.detokenize("9999130000000003", use(1))
    assert not vault._calls
    vault.close()
    assert closed_whole(store, local_keys)


def test_a_closed_vault_is_not_entered_again(local_keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault, vault:
        issue(vault)
    with pytest.raises(tv.ConfigurationError) as raised, vault:
        pass
    assert raised.value.code == "VAULT_NOT_OPEN"


def test_an_async_vault_refuses_a_blocking_store_when_it_is_made(local_keys: KeyStore) -> None:
    with pytest.raises(tv.InvalidInputError, match="a token store with coroutines"):
        tv.AsyncVault(local_keys, MemoryTokenStore())  # type: ignore[arg-type] # it is wrong


def test_an_observer_observes(local_keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    wrong: list[Any] = [object(), 5, lambda _event: None]
    for observer in wrong:
        with pytest.raises(tv.InvalidInputError, match="a method observe"):
            tv.Vault(local_keys, store, observer=observer)


@pytest.mark.parametrize("leak", [pickle.dumps, copy.deepcopy])
@pytest.mark.parametrize("address", ["memory:", "sqlite:///{}/vault.db"])
def test_vaults_and_token_stores_are_not_pickled(
    local_keys: KeyStore, tmp_path: Path, leak: Callable[[object], object], address: str
) -> None:
    store = tv.open_token_store(address.format(tmp_path))
    tv.provision(local_keys, store)
    threaded = ThreadedTokenStore(store)
    blocking = tv.Vault(local_keys, store)
    with closing(store), blocking:
        for each in (store, threaded, blocking, tv.AsyncVault(local_keys, threaded)):
            with pytest.raises(tv.InvalidInputError, match="is not pickled: each process opens its own"):
                leak(each)
        assert copy.copy(store).get_meta("tokenvault") == store.get_meta("tokenvault")
