"""What need not be kept: the cards of a customer who leaves, and of tokens whose winding down is over."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.vault_workers import card_number
from tests.vaults import SHOP, VISA, all_records, issue, use
from tokenvault import maintenance
from tokenvault.audit.event import Action
from tokenvault.keys import KeyStore
from tokenvault.maintenance import awaited
from tokenvault.records.keyring import KeyRing
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock

NOW = datetime.fromtimestamp(NOW_MS / 1_000, UTC)
LEAVING, STAYING = "customer-leaving", "customer-staying"


@pytest.fixture
def store(local_keys: KeyStore, url: str) -> Iterator[TokenStore]:
    with closing(tv.open_token_store(url)) as opened:
        tv.provision(local_keys, opened)
        yield opened


@pytest.fixture
def vault(local_keys: KeyStore, store: TokenStore, clock: ManualClock) -> Iterator[tv.Vault]:
    with vaults.open_vault(local_keys, store, clock) as opened:
        yield opened


def cards_of(keys: KeyStore, store: TokenStore, customer: str) -> int:
    """How many sealed cards of a customer the database holds."""
    ring = KeyRing(keys)
    unsealed = [ring.unseal(row) for row in all_records(store)]
    return sum(card is not None and record.customer == customer for record, card in unsealed)


def assert_intact(store: TokenStore, keys: KeyStore) -> None:
    assert tv.verify_audit(store, keys=keys).findings == ()


def test_no_table_holds_a_card_of_a_customer_who_was_forgotten_and_the_trail_verifies(
    local_keys: KeyStore, store: TokenStore, vault: tv.Vault, clock: ManualClock
) -> None:
    theirs = [issue(vault, card_number(n), customer=LEAVING, metadata={"a": "b"}).token for n in range(7)]
    theirs.append(issue(vault, VISA, customer=LEAVING, program="card-on-file").token)
    vault.suspend(theirs[0], by=tv.Actor.ISSUER)
    vault.wind_down(theirs[1], purge_after=NOW + timedelta(days=9))
    vault.delete(theirs[2])
    vault.detokenize(theirs[3], use(1))
    others = [issue(vault, card_number(n), customer=STAYING) for n in range(5)] + [issue(vault)]
    before = {info.token: vault.get(info.token) for info in others}
    assert cards_of(local_keys, store, LEAVING) == 7
    done = maintenance.forget(local_keys, store, LEAVING, operator="ann", page=3, clock=clock)
    assert (done.done, done.unreadable) == (7, 0)
    assert cards_of(local_keys, store, LEAVING) == 0
    assert cards_of(local_keys, store, STAYING) == 5
    assert maintenance.forget(local_keys, store, LEAVING, clock=clock).done == 0
    for token in theirs:
        assert vault.get(token).status is tv.TokenStatus.DELETED
        assert vault.get(token).metadata == {}
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use("late"))
    assert {token: vault.get(token) for token in before} == before
    (told,) = [event for event in vault.history(theirs[3]) if event.action is Action.FORGET]
    assert told.operator == "ann"
    vault.close()
    assert_intact(store, local_keys)


def test_a_convergent_card_counts_on_after_its_customer_was_forgotten(
    local_keys: KeyStore, store: TokenStore, vault: tv.Vault, clock: ManualClock
) -> None:
    once = tv.Domain(limits=(tv.Limit(uses=1),))
    token = issue(vault, program="card-on-file", customer=LEAVING, domain=once).token
    vault.detokenize(token, use(1, channel=tv.Channel.ECOMMERCE))
    maintenance.forget(local_keys, store, LEAVING, clock=clock)
    again = issue(vault, program="card-on-file", domain=once).token
    assert again != token
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(again, use(2, channel=tv.Channel.ECOMMERCE))


def test_tokens_whose_winding_down_is_over_are_purged_and_no_others(
    local_keys: KeyStore, store: TokenStore, vault: tv.Vault, clock: ManualClock
) -> None:
    tokens = [issue(vault, card_number(n)).token for n in range(8)]
    for place, token in enumerate(tokens[:6]):
        vault.wind_down(token, purge_after=NOW + timedelta(days=place + 1))
    vault.suspend(tokens[0], by=tv.Actor.ISSUER)  # it winds down all the same
    clock.advance(timedelta(days=3, seconds=1) // timedelta(milliseconds=1))
    done = maintenance.purge(local_keys, store, page=2, clock=clock)
    assert done.done == 3
    assert [vault.get(token).status.name for token in tokens] == ["DELETED"] * 3 + ["WINDING_DOWN"] * 3 + [
        "ACTIVE"
    ] * 2
    assert maintenance.purge(local_keys, store, clock=clock).done == 0
    assert Action.PURGE in [event.action for event in vault.history(tokens[0])]
    vault.close()
    assert_intact(store, local_keys)


def test_records_that_are_not_genuine_are_counted_and_left(local_keys: KeyStore) -> None:
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store)
        with vaults.open_vault(local_keys, store) as vault:
            tampered, whole = (issue(vault, customer=LEAVING).token for _ in range(2))
        row = store._records[tampered]
        store._records[tampered] = row._replace(body=row.body[:-1] + bytes((row.body[-1] ^ 1,)))
        done = maintenance.forget(local_keys, store, LEAVING)
        assert (done.done, done.unreadable) == (1, 1)
        assert store._records[whole].status != store._records[tampered].status


def test_tokens_that_are_issued_and_used_meanwhile_are_forgotten_too(
    local_keys: KeyStore, store: TokenStore, vault: tv.Vault, clock: ManualClock
) -> None:
    stop = threading.Event()
    issued: list[str] = []

    def work() -> None:
        while not stop.is_set():
            issued.append(issue(vault, VISA, customer=LEAVING).token)
            with suppress(tv.DomainRestrictionError, tv.ConflictError):
                vault.detokenize(issued[-1], use(len(issued)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    maintenance_thread = threading.Thread(target=stop_after, args=(stop, 0.3))
    maintenance_thread.start()
    maintenance.forget(local_keys, store, LEAVING, page=5, clock=clock)
    for thread in (*threads, maintenance_thread):
        thread.join()
    maintenance.forget(local_keys, store, LEAVING, clock=clock)
    assert cards_of(local_keys, store, LEAVING) == 0
    assert len(issued) > 3
    vault.close()
    assert_intact(store, local_keys)


def stop_after(stop: threading.Event, seconds: float) -> None:
    time.sleep(seconds)
    stop.set()


def forget_until_killed(keys: str, url: str) -> None:
    with closing(tv.open_key_store(keys)) as opened, closing(tv.open_token_store(url)) as store:
        maintenance.forget(opened, store, LEAVING, page=1)


@pytest.mark.parametrize("kills", [4])
def test_forgetting_is_killed_again_and_again_and_resumed(tmp_path: Path, kills: int) -> None:
    (tmp_path / "passphrase").write_text("correct horse battery staple")
    address = f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/passphrase"
    url = f"sqlite:///{tmp_path}/vault.db"
    with closing(tv.open_key_store(address)) as keys, closing(tv.open_token_store(url)) as store:
        tv.provision(keys, store)
        with vaults.open_vault(keys, store) as vault:
            for number in range(400):
                issue(vault, card_number(number), customer=LEAVING)
        before, killed = 400, 0
        for _ in range(kills):
            process = multiprocessing.get_context("spawn").Process(
                target=forget_until_killed, args=(address, url)
            )
            process.start()
            until = time.monotonic() + 60
            while cards_of(keys, store, LEAVING) > before - 20 and time.monotonic() < until:
                time.sleep(0.005)
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            process.join(60)
            before = cards_of(keys, store, LEAVING)
        assert killed > 0
        maintenance.forget(keys, store, LEAVING)
        assert cards_of(keys, store, LEAVING) == 0
        report = tv.verify_audit(store, keys=keys)
        assert report.intact


def test_both_faces_do_the_same(local_keys: KeyStore, tmp_path: Path) -> None:
    async def work() -> None:
        store = tv.open_async_token_store(f"sqlite:///{tmp_path}/async.db")
        await tv.provision_async(local_keys, store)
        async with tv.AsyncVault(
            local_keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS
        ) as vault:
            for customer in (LEAVING, STAYING):
                await vault.issue(VISA, requestor=SHOP, program="one-time", customer=customer)
            assert (await awaited.forget(local_keys, store, LEAVING)).done == 1
            assert (await awaited.purge(local_keys, store)).done == 0
            assert await vault.count(status=tv.TokenStatus.DELETED) == 1
        await store.close()

    asyncio.run(work())


def test_arguments_outside_their_bounds_are_refused(local_keys: KeyStore, store: TokenStore) -> None:
    forget: Any = maintenance.forget
    for wrong in ({"customer": ""}, {"customer": "c", "page": 0}, {"customer": "c", "operator": ""}):
        with pytest.raises(tv.InvalidInputError):
            forget(local_keys, store, **wrong)
    with pytest.raises(tv.InvalidInputError):
        maintenance.purge(local_keys, store, page=8_001)
