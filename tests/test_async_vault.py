"""What the face with coroutines promises beyond the suite that both faces run: cancellation, many tasks, threads."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests.cancelling import CancelledAt
from tests.strategies import NOW_MS
from tests.test_leaks import NEEDLES, assert_silent
from tests.test_postgres_faults import ended_well, in_child
from tests.vaults import PROGRAMS, REQUESTORS, SHOP, VISA, use
from tokenvault.audit.event import Event, Outcome
from tokenvault.keys import KeyStore, Pkcs11KeyStore
from tokenvault.records.keyring import KeyRing
from tokenvault.runtime import Workers
from tokenvault.stores import AsyncTokenStore, ThreadedTokenStore
from tokenvault.testing.clock import ManualClock

TIMES = tv.Domain(limits=(tv.Limit(uses=10),))
OFTEN = tv.Domain(limits=(tv.Limit(uses=10**6),))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store that is kept outside this process's memory."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/vault.db"
    address: str = request.getfixturevalue("postgres_url")
    return address


@asynccontextmanager
async def opened(keys: KeyStore, url: str) -> AsyncIterator[tuple[tv.AsyncVault, AsyncTokenStore]]:
    store = tv.open_async_token_store(url)
    await tv.provision_async(keys, store)
    clock = ManualClock(NOW_MS)
    try:
        async with tv.AsyncVault(keys, store, programs=PROGRAMS, requestors=REQUESTORS, clock=clock) as vault:
            yield vault, store
    finally:
        await store.close()


def issue(
    vault: tv.AsyncVault, program: str = "one-time", domain: tv.Domain | None = None
) -> Coroutine[Any, Any, tv.TokenInfo]:
    return vault.issue(VISA, expiry="2029-12", requestor=SHOP, program=program, domain=domain)


async def assert_consistent(store: AsyncTokenStore) -> None:
    """Event numbers go without a hole; every revision of every record has its event, and no event lacks one."""
    for stream in await store.streams():
        rows = await store.events(stream=stream)
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    await assert_recorded(store)


async def assert_recorded(store: AsyncTokenStore) -> None:
    """Every revision of every record has one event, and no event lacks its revision."""
    rows = [row for stream in await store.streams() for row in await store.events(stream=stream)]
    changes = [event for event in map(Event.parse, rows) if event.revision]
    assert all(event.outcome is Outcome.DONE for event in changes)
    written = [
        (row.reference, revision) for row in await store.scan() for revision in range(1, row.revision + 1)
    ]
    assert sorted((event.reference, event.revision) for event in changes) == sorted(written)


# The two faces


def public(kind: type) -> dict[str, Any]:
    return {
        name: member for name, member in vars(kind).items() if not name.startswith("_") and callable(member)
    }


def test_both_faces_have_the_same_methods() -> None:
    """Names, arguments, defaults and answers; each of AsyncVault is a coroutine function, none of Vault is.

    But for `within`, which gives a vault that `async with` opens.
    """
    blocking, awaited = public(tv.Vault), public(tv.AsyncVault)
    assert blocking.keys() == awaited.keys()
    assert len(blocking) > 10
    for name, method in blocking.items():
        assert inspect.signature(method) == inspect.signature(awaited[name]), name
        assert inspect.iscoroutinefunction(awaited[name]) == (name != "within"), name
        assert not inspect.iscoroutinefunction(method), name
    for one, other in ((tv.Vault, tv.AsyncVault), (tv.provision, tv.provision_async)):
        parameters = [inspect.signature(each).parameters.values() for each in (one, other)]
        plain, lifted = ([(each.name, each.kind, each.default) for each in listed] for listed in parameters)
        assert plain == lifted


def test_the_suite_runs_on_the_face_with_coroutines(vault: tv.Vault, request: pytest.FixtureRequest) -> None:
    """The fixture that the vault's tests take is an AsyncVault where the store has coroutines."""
    name = request.node.callspec.params["store"]
    behind = vars(vault).get("_vault", vault)
    assert type(behind) is (tv.AsyncVault if name.startswith("async-") else tv.Vault)


def test_a_vault_is_open_within_async_with_and_only_there(local_keys: KeyStore) -> None:
    async def work() -> None:
        store = tv.open_async_token_store("memory:")
        vault = tv.AsyncVault(local_keys, store)
        with pytest.raises(tv.ConfigurationError, match="not open"):
            await vault.get("9999130000000003")
        async with vault:
            with pytest.raises(tv.TokenNotFoundError):
                await vault.get("9999130000000003")
            with pytest.raises(tv.ConfigurationError, match="opened before"):
                await vault.__aenter__()
        await vault.close()
        with pytest.raises(tv.ConfigurationError, match="closed"):
            await vault.get("9999130000000003")
        assert await store.scan() == [], "the store stays open"
        await store.close()

    asyncio.run(work())


def test_a_blocking_store_is_refused_with_what_to_do(local_keys: KeyStore) -> None:
    blocking: Any = tv.open_token_store("memory:")

    async def work() -> None:
        with pytest.raises(tv.InvalidInputError, match="open_async_token_store"):
            await tv.provision_async(local_keys, blocking)
        with pytest.raises(tv.InvalidInputError, match="ThreadedTokenStore"):
            await tv.AsyncVault(local_keys, blocking).__aenter__()
        await tv.provision_async(local_keys, ThreadedTokenStore(blocking))

    asyncio.run(work())


# Many tasks


def test_64_tasks_that_redeem_a_token_for_ten_uses_get_ten_cards(keys: KeyStore, url: str) -> None:
    async def work() -> None:
        async with opened(keys, url) as (vault, store):
            info = await issue(vault, domain=TIMES)
            answers = await asyncio.gather(
                *(vault.detokenize(info.token, use(number)) for number in range(64)), return_exceptions=True
            )
            cards = [answer for answer in answers if isinstance(answer, tv.Card)]
            assert [card.pan.reveal() for card in cards] == [VISA] * 10
            refused = [answer for answer in answers if isinstance(answer, tv.DomainRestrictionError)]
            assert [error.violations[0].code for error in refused] == ["USES_EXCEEDED"] * 54
            rows, _ = await store.events_about(bytes.fromhex(info.reference))
            outcomes = Counter(event.outcome for event in map(Event.parse, rows[1:]))
            assert outcomes == {Outcome.DONE: 10, Outcome.DENIED: 54}
            await assert_consistent(store)

    asyncio.run(work())


def test_a_module_that_takes_its_time_does_not_hold_up_the_loop(
    softhsm_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Pkcs11KeyStore(softhsm_uri)
    tv.provision(keys, tv.open_token_store("memory:"), custody=tv.Custody.IN_MODULE)
    inside, go_on = threading.Event(), threading.Event()
    encrypt = keys._encrypt_in_module

    def slow(*arguments: Any) -> bytes:
        inside.set()
        assert go_on.wait(timeout=30), "the loop stood still"
        return encrypt(*arguments)

    async def work() -> None:
        async with opened(keys, "memory:") as (vault, _):
            token = (await issue(vault)).token
            monkeypatch.setattr(keys, "_encrypt_in_module", slow)
            task = asyncio.create_task(vault.detokenize(token, use()))
            while not inside.is_set():
                await asyncio.sleep(0)
            assert not task.done()
            go_on.set()
            assert (await task).pan.reveal() == VISA

    asyncio.run(work())
    keys.close()


def test_keys_say_whether_they_block(keys: KeyStore, custody: tv.Custody) -> None:
    assert KeyRing(keys).blocking is (custody is tv.Custody.IN_MODULE)


def test_a_vault_that_closes_leaves_calls_under_way_whole(keys: KeyStore, url: str) -> None:
    async def work() -> None:
        async with opened(keys, url) as (vault, store):
            token = (await issue(vault, domain=OFTEN)).token
            tasks = [asyncio.create_task(vault.detokenize(token, use(number))) for number in range(20)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await vault.close()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(answer, tv.Card | tv.ConfigurationError) for answer in answers), answers
            cards = sum(isinstance(answer, tv.Card) for answer in answers)
            (row,) = await store.get([token])
            assert row.revision == 1 + cards
            await assert_recorded(store)  # numbers that conflicts left free may stay so

    asyncio.run(work())


# Cancellation


Call = Callable[[tv.AsyncVault, str, int], Coroutine[Any, Any, object]]
CALLS: dict[str, Call] = {
    "detokenize": lambda vault, token, number: vault.detokenize(token, use(number)),
    "issue": lambda vault, token, number: issue(vault, domain=tv.Domain(merchants={f"M-{number}"})),
    "converge": lambda vault, token, number: issue(vault, "card-on-file"),
    "update_card": lambda vault, token, number: vault.update_card(VISA, expiry=f"{2030 + number}-01"),
    "not found": lambda vault, token, number: vault.detokenize("9" * 16, use(number)),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_cancelled_at_any_await_leaves_nothing_half_done(
    keys: KeyStore, url: str, name: str, late: bool
) -> None:
    """Every event stands by its revision; the same call again gives its answer, and the numbers close up."""

    async def work() -> int:
        async with opened(keys, url) as (vault, store):
            token = (await issue(vault, domain=OFTEN)).token
            at = 0
            while True:
                call = CancelledAt(CALLS[name](vault, token, at), at, late=late)
                try:
                    await call
                except asyncio.CancelledError as error:
                    assert call.reached
                    assert_silent(error)
                except tv.TokenNotFoundError:
                    pass
                if name != "not found":
                    await CALLS[name](vault, token, at)
                await vault.suspend(token, by=tv.Actor.ISSUER)  # so that a number left free is taken
                await vault.resume(token, by=tv.Actor.ISSUER)
                await assert_consistent(store)
                if not call.reached:
                    return at
                at += 1

    assert asyncio.run(work()) >= (1 if name == "issue" else 2)  # which waits for its one write


@pytest.mark.parametrize("late", [False, True])
def test_a_use_that_was_cancelled_counts_once_however_often_it_is_retried(
    keys: KeyStore, url: str, late: bool
) -> None:
    async def work() -> None:
        async with opened(keys, url) as (vault, store):
            token = (await issue(vault, domain=OFTEN)).token
            at, reached = 0, True
            while reached:
                for _ in range(3):  # the retry is cancelled at the same place, too
                    call = CancelledAt(vault.detokenize(token, use(at)), at, late=late)
                    with suppress(asyncio.CancelledError):
                        assert (await call).pan.reveal() == VISA
                    reached = call.reached
                assert (await vault.detokenize(token, use(at))).pan.reveal() == VISA
                assert (await vault.get(token)).revision == 2 + at
                at += 1
            await assert_consistent(store)

    asyncio.run(work())


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 20))]
)
def test_tasks_cancelled_at_any_time_leave_limits_and_events_exact(
    keys: KeyStore, url: str, seed: int
) -> None:
    """40 uses of a token for ten, by 80 tasks of which any may be cancelled: ten get the card, then and again."""
    draw = random.Random(seed)

    async def work() -> None:
        async with opened(keys, url) as (vault, store):
            info = await issue(vault, domain=TIMES)
            tasks = [
                asyncio.create_task(vault.detokenize(info.token, use(number % 40))) for number in range(80)
            ]
            while not all(task.done() for task in tasks):
                for task in draw.sample(tasks, 10):
                    task.cancel()
                await asyncio.sleep(draw.random() / 100)
            given = {
                number % 40
                for number, task in enumerate(tasks)
                if not task.cancelled() and task.exception() is None
            }
            again = set()
            for number in range(40):
                try:
                    assert (await vault.detokenize(info.token, use(number))).pan.reveal() == VISA
                    again.add(number)
                except tv.DomainRestrictionError:
                    pass
            assert given <= again
            assert len(again) == 10
            assert (await vault.get(info.token)).revision == 11
            for _ in range(80):  # the numbers of events that were not written are taken by others
                await vault.check(info.token, use(0))
                with pytest.raises(tv.TokenNotFoundError):
                    await vault.detokenize("9" * 16, use())
            await assert_consistent(store)

    asyncio.run(work())


def test_a_timeout_is_a_timeout(local_keys: KeyStore) -> None:
    """asyncio sees its own cancellation, as it sent it."""

    async def work() -> None:
        async with opened(local_keys, "memory:") as (vault, _):
            token = (await issue(vault)).token
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await vault.detokenize(token, use())
            assert (await vault.detokenize(token, use())).pan.reveal() == VISA

    asyncio.run(work())


def test_an_exit_in_the_middle_of_an_awaited_call_carries_no_pan(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_arguments: object) -> None:
        raise SystemExit(1)

    async def work() -> None:
        async with opened(local_keys, "memory:") as (vault, store):
            monkeypatch.setattr(store, "insert", stop)
            await issue(vault)

    with pytest.raises(SystemExit) as raised:
        asyncio.run(work())
    assert_silent(raised.value)


def test_asyncio_in_debug_mode_logs_no_pan(
    keys: KeyStore, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It logs every step, with the arguments and results of what it called."""
    caplog.set_level(logging.DEBUG)

    async def work() -> None:
        asyncio.get_running_loop().slow_callback_duration = 0
        async with opened(keys, url) as (vault, _):
            token = (await issue(vault)).token
            await issue(vault, "card-on-file")
            await asyncio.gather(*(vault.detokenize(token, use(number)) for number in range(3)))
            await vault.update_card(VISA, expiry="2031-01")
            await vault.tokens_of(VISA)
            task = asyncio.create_task(vault.detokenize(token, use()))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(work(), debug=True)
    assert "Executing <" in caplog.text
    assert not any(needle in caplog.text for needle in NEEDLES)


# Threads


def test_a_call_in_a_thread_is_over_when_its_cancellation_arrives() -> None:
    """One that has begun is awaited to its end, however often it is cancelled; one that has not never begins."""
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def work(name: str) -> None:
        begun.set()
        go_on.wait(timeout=30)
        done.append(name)

    async def cancel() -> None:
        workers = Workers(1)
        running = asyncio.create_task(workers.call(work, "running"))
        while not begun.is_set():
            await asyncio.sleep(0)
        waiting = asyncio.create_task(workers.call(work, "waiting"))
        await asyncio.sleep(0)
        waiting.cancel()
        for _ in range(3):
            running.cancel()
            await asyncio.sleep(0.01)
        assert waiting.cancelled()
        assert not running.done()
        go_on.set()
        await asyncio.wait([running])
        assert running.cancelled()
        assert done == ["running"]
        workers.close()
        with pytest.raises(RuntimeError):
            await workers.call(work, "late")

    asyncio.run(cancel())


def test_a_child_starts_threads_of_its_own() -> None:
    workers = Workers(1)
    asyncio.run(workers.call(threading.get_ident))

    def child() -> None:
        assert asyncio.run(workers.call(threading.get_ident)) != threading.get_ident()

    assert ended_well(in_child(child))
