"""The wrappers that fail, wait and lose answers: each does so exactly where its plan says, and else nothing."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, ClassVar

import pytest

from tests.test_file_key_store import uri  # noqa: F401 # a fixture
from tests.test_memory_store import MemoryHarness
from tokenvault.errors import KeyStoreError, TokenStoreError
from tokenvault.keys import Custody, KeyName, KeyPurpose, KeyStore, open_key_store
from tokenvault.stores import open_token_store
from tokenvault.stores.forwarding import BlockingStore
from tokenvault.stores.guard import _Guard
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import AsyncTokenStore, TokenStore
from tokenvault.testing import (
    Capability,
    StoreHarness,
    TokenStoreContract,
    a_record,
    an_event,
)
from tokenvault.testing.faults import (
    FAIL,
    LOSE,
    Failure,
    Fault,
    FaultSchedule,
    FaultyAsyncTokenStore,
    FaultyKeyStore,
    FaultyTokenStore,
)
from tokenvault.testing.key_stores import KeyStoreContract, OpenStore

RECORD, EVENT, DOCUMENT = a_record(1), an_event(1), b"{}"
DIGEST = hashlib.sha256(DOCUMENT).digest()
KEY = KeyName(KeyPurpose.SEAL, 1)


class UnfaultedHarness(MemoryHarness):
    def open(self) -> TokenStore:
        return FaultyTokenStore(self.store, FaultSchedule([Fault(before_ms=0, after_ms=0)] * 20))


class TestAStoreThatMeetsNoFailure(TokenStoreContract):
    """It keeps all promises of the store that it wraps."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    @pytest.fixture
    def harness(self) -> StoreHarness:
        return UnfaultedHarness()


class TestAKeyStoreThatMeetsNoFailure(KeyStoreContract):
    """It keeps all promises of the key store that it wraps."""

    @pytest.fixture
    def open_store(self, uri: str) -> OpenStore:  # noqa: F811 # a fixture
        return lambda: FaultyKeyStore(open_key_store(uri), FaultSchedule())


STORE_CALLS: dict[str, Callable[[Any], Any]] = {
    "provision": lambda store: store.provision(),
    "check_schema": lambda store: store.check_schema(),
    "get": lambda store: store.get([RECORD.token]),
    "find": lambda store: store.find(RECORD.pan_fingerprint),
    "by_reference": lambda store: store.by_reference(RECORD.reference),
    "get_use": lambda store: store.get_use(RECORD.token, [b"u" * 16]),
    "uses": lambda store: store.uses([(RECORD.reference, b"u" * 16)]),
    "list_tokens": lambda store: store.list_tokens(RECORD.requestor, RECORD.program, RECORD.status),
    "groups": lambda store: store.groups(),
    "count": lambda store: store.count(RECORD.requestor, RECORD.program, RECORD.status),
    "find_customer": lambda store: store.find_customer("c"),
    "find_last4": lambda store: store.find_last4([bytes(16)]),
    "insert": lambda store: store.insert([RECORD], [EVENT]),
    "replace": lambda store: store.replace([a_record(2, revision=2)], [an_event(2)]),
    "append": lambda store: store.append([EVENT]),
    "prune": lambda store: store.prune([EVENT], [(a_record(3).token, 1)]),
    "events": lambda store: store.events(stream=EVENT.stream),
    "events_about": lambda store: store.events_about(RECORD.reference),
    "index_rows": lambda store: store.index_rows(),
    "streams": lambda store: store.streams(),
    "latest_checkpoints": lambda store: store.latest_checkpoints(1),
    "put_domain": lambda store: store.put_domain(DIGEST, DOCUMENT),
    "get_domain": lambda store: store.get_domain(DIGEST),
    "scan": lambda store: store.scan(),
    "get_meta": lambda store: store.get_meta("a"),
    "put_meta": lambda store: store.put_meta("a", b"b"),
    "close": lambda store: store.close(),
}
WRITES: dict[str, Callable[[MemoryTokenStore], bool]] = {
    "insert": lambda store: RECORD.token in store._records and len(store._events) == 1,
    "replace": lambda store: store._records[a_record(2).token].revision == 2 and len(store._events) == 1,
    "append": lambda store: len(store._events) == 1,
    "prune": lambda store: a_record(3).token not in store._records,
    "put_domain": lambda store: DIGEST in store._domains,
    "put_meta": lambda store: "a" in store._meta,
    "close": lambda store: store._closed,
}


def memory() -> MemoryTokenStore:
    store = MemoryTokenStore()
    store.insert([a_record(2), a_record(3)], [])
    return store


@pytest.mark.parametrize("name", STORE_CALLS)
def test_both_ports_and_their_guard_have_one_signature(name: str) -> None:
    blocking, awaited = getattr(TokenStore, name), getattr(AsyncTokenStore, name)
    signature, guard = inspect.signature(blocking), inspect.signature(getattr(_Guard, name))
    assert signature == inspect.signature(awaited)
    assert signature.parameters == guard.parameters
    assert guard.return_annotation == f"Asked[{signature.return_annotation}]"
    assert inspect.iscoroutinefunction(awaited)
    assert not inspect.iscoroutinefunction(blocking)


def test_every_call_of_the_port_is_covered_here() -> None:
    def public(kind: type) -> set[str]:
        return {name for name, what in vars(kind).items() if name[0] != "_" and callable(what)}

    assert public(TokenStore) == public(AsyncTokenStore) == public(_Guard) == set(STORE_CALLS)
    assert public(KeyStore) == public(FaultyKeyStore) == {"cipher", *KEY_CALLS} - {"encrypt_blocks"}


@pytest.mark.parametrize("fault", [FAIL, LOSE])
@pytest.mark.parametrize("name", STORE_CALLS)
def test_a_store_call_that_fails_was_made_only_where_its_answer_is_lost(name: str, fault: Fault) -> None:
    inner, plan = memory(), FaultSchedule([fault], calls={name})
    store = FaultyTokenStore(inner, plan)
    with pytest.raises(TokenStoreError, match="a fault of the test"):
        STORE_CALLS[name](store)
    assert (plan.made, plan.failures) == ([(name, fault)], 1)
    if name in WRITES:
        assert WRITES[name](inner) is (fault is LOSE)
    if name != "close":
        store.scan()  # of another name: left alone
        assert store.get([a_record(2).token])[0].token == a_record(2).token


@pytest.mark.parametrize("fault", [FAIL, LOSE, Fault(before_ms=0, after_ms=0.1), None])
@pytest.mark.parametrize("name", STORE_CALLS)
def test_a_store_with_coroutines_fails_likewise(name: str, fault: Fault | None) -> None:
    inner = memory()
    plan = FaultSchedule([fault])
    store = FaultyAsyncTokenStore(BlockingStore(inner), plan)

    async def call() -> object:
        return await STORE_CALLS[name](store)

    failure = None if fault is None else fault.failure
    if failure is None:
        assert asyncio.run(call()) == STORE_CALLS[name](memory())
    else:
        with pytest.raises(TokenStoreError, match="a fault of the test"):
            asyncio.run(call())
    if name in WRITES:
        assert WRITES[name](inner) is (failure is not Failure.NOT_DONE)


KEY_CALLS: dict[str, Callable[[KeyStore], object]] = {
    "versions": lambda keys: keys.versions(KeyPurpose.SEAL),
    "create": lambda keys: keys.create(KeyPurpose.SEAL, Custody.IN_PROCESS),
    "destroy": lambda keys: keys.destroy(KEY),
    "cipher": lambda keys: keys.cipher(KEY),
    "encrypt_blocks": lambda keys: keys.cipher(KEY).encrypt_blocks(bytes(16)),
    "signer": lambda keys: keys.signer(),
    "create_signer": lambda keys: keys.create_signer(),
    "close": lambda keys: keys.close(),
}


@pytest.mark.parametrize("fault", [FAIL, LOSE])
@pytest.mark.parametrize("name", KEY_CALLS)
def test_a_key_call_that_fails_was_made_only_where_its_answer_is_lost(
    uri: str,  # noqa: F811 # a fixture
    name: str,
    fault: Fault,
) -> None:
    inner = open_key_store(uri)
    inner.create(KeyPurpose.SEAL, Custody.IN_PROCESS)
    plan = FaultSchedule([fault], calls={name})
    with pytest.raises(KeyStoreError, match="a fault of the test"):
        KEY_CALLS[name](FaultyKeyStore(inner, plan))
    assert plan.made == [(name, fault)]
    done = fault is LOSE
    if name == "close" and done:
        with pytest.raises(KeyStoreError, match="closed"):
            inner.versions(KeyPurpose.SEAL)
        return
    expected = {"create": (1, 2) if done else (1,), "destroy": () if done else (1,)}.get(name, (1,))
    assert inner.versions(KeyPurpose.SEAL) == expected
    inner.close()


def test_the_fault_comes_at_the_call_that_the_list_says(uri: str) -> None:  # noqa: F811 # a fixture
    with closing(open_key_store(uri)) as inner:
        inner.create(KeyPurpose.SEAL, Custody.IN_PROCESS)
        plan = FaultSchedule([None, None, FAIL, None, LOSE], calls={"encrypt_blocks"})
        cipher = FaultyKeyStore(inner, plan).cipher(KEY)
        expected = inner.cipher(KEY).encrypt_blocks(bytes(32))
        for number in range(8):
            if number in (2, 4):
                with pytest.raises(KeyStoreError):
                    cipher.encrypt_blocks(bytes(32))
            else:
                assert cipher.encrypt_blocks(bytes(32)) == expected
        assert [fault for _, fault in plan.made] == [FAIL, LOSE]
        plan.set([FAIL])
        assert plan.failures == 0
        with pytest.raises(KeyStoreError):
            cipher.encrypt_blocks(bytes(16))
        assert plan.failures == 1


def test_a_plan_may_be_any_function_and_is_asked_by_name() -> None:
    asked: list[str] = []

    def plan(call: str) -> Fault | None:
        asked.append(call)
        return LOSE if call == "append" else None

    store = FaultyTokenStore(memory(), plan)
    store.get([RECORD.token])
    with pytest.raises(TokenStoreError):
        store.append([EVENT])
    assert store.events(stream=EVENT.stream) == [EVENT]
    assert asked == ["get", "append", "events"]


def test_waits_come_before_the_call_and_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others write during the wait before a call is seen by it; what they write after it is not."""
    inner = memory()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        inner.insert([a_record(10 + len(waits))], [])

    monkeypatch.setattr(time, "sleep", sleep)
    store = FaultyTokenStore(inner, FaultSchedule([Fault(before_ms=4, after_ms=0)]))
    assert [record.token for record in store.scan()] == [a_record(number).token for number in (2, 3, 11)]
    assert waits == [0.004, 0]
    assert len(inner.scan()) == 4


def test_threads_share_one_schedule_and_use_each_fault_once() -> None:
    inner = open_token_store("memory:")
    plan = FaultSchedule([FAIL, None] * 200)
    store = FaultyTokenStore(inner, plan)
    failed: list[int] = []

    def work() -> None:
        mine = 0
        for _ in range(100):
            try:
                store.get_meta("a")
            except TokenStoreError:
                mine += 1
        failed.append(mine)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(failed) == plan.failures == 200
