"""The guard: who guesses tokens gets no more answers, in whichever process and by whichever call."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenvault as tv
from tests import softhsm, vault_workers
from tests.cancelling import CancelledAt
from tests.faces import open_face
from tests.strategies import NOW_MS
from tests.test_observers import Notes
from tests.vaults import ACQUIRER, MASTERCARD, PROGRAMS, REQUESTORS, SHOP, VISA, issue, use
from tokenvault.audit.event import Action
from tokenvault.audit.guard_note import Account, Failure, FailureKind, account_row
from tokenvault.keys import KeyStore
from tokenvault.observers import LockedOut
from tokenvault.stores.port import TokenStore
from tokenvault.testing import FAIL, Fault, FaultSchedule, FaultyTokenStore
from tokenvault.testing.clock import ManualClock
from tokenvault.vault import guard as guards

MISSES = 5
GUARD = tv.Guard(misses=MISSES, refusals=8, lock_out=timedelta(minutes=1), lock_out_max=timedelta(minutes=30))
FRAGILE = tv.TokenProgram("fragile", format=tv.TokenFormat(bin="999917"), suspend_after_refusals=3)
SHOP_ONLY = tv.Domain(merchants={"M-1"})


def guarded(
    keys: KeyStore, store: TokenStore, clock: ManualClock, guard: tv.Guard = GUARD, **parts: Any
) -> tv.Vault:
    programs = (*PROGRAMS, FRAGILE)
    others = REQUESTORS[1:]
    requestors = (tv.TokenRequestor(SHOP, programs={program.name for program in programs}), *others)
    return open_face(keys, store, programs=programs, requestors=requestors, clock=clock, guard=guard, **parts)


def guess(number: int) -> str:
    """A token that there is not."""
    return f"{9999990000000000 + number}"


def many(results: tv.BatchResult[Any]) -> Any:
    (result,) = results
    if isinstance(result, tv.TokenVaultError):
        raise result
    return result


Call = Callable[[tv.Vault, str, int], object]
CALLS: dict[str, Call] = {
    "detokenize": lambda vault, token, number: vault.detokenize(token, use(number)),
    "check": lambda vault, token, number: vault.check(token, use(number)),
    "detokenize_many": lambda vault, token, number: many(vault.detokenize_many([(token, use(number))])),
    "check_many": lambda vault, token, number: many(vault.check_many([(token, use(number))])),
    "suspend": lambda vault, token, _: vault.suspend(token, by=tv.Actor.REQUESTOR, requestor=SHOP),
    "delete": lambda vault, token, _: vault.delete(token, requestor=SHOP),
    "update_domain": lambda vault, token, _: vault.update_domain(token, None, requestor=SHOP),
    "tokens_from": lambda vault, token, _: vault.tokens_from(token, requestor=SHOP),
    "delete_many": lambda vault, token, _: many(vault.delete_many([token], requestor=SHOP)),
    "update_token_many": lambda vault, token, _: many(
        vault.update_token_many([(token, {"customer": "c"})], requestor=SHOP)
    ),
}


def answers(call: Call, vault: tv.Vault, numbers: range) -> Counter[str]:
    """What came of guesses, by the code of the error."""
    found: Counter[str] = Counter()
    for number in numbers:
        try:
            call(vault, guess(number), number)
        except tv.TokenVaultError as error:
            found[error.code] += 1
        else:
            found["HIT"] += 1
    return found


@pytest.mark.parametrize("name", CALLS)
def test_so_many_guesses_are_answered_and_no_more(
    name: str, local_keys: KeyStore, clock: ManualClock
) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with guarded(local_keys, store, clock) as vault:
            token = issue(vault).token
            found = answers(CALLS[name], vault, range(20))
            assert found == {"TOKEN_NOT_FOUND": MISSES, "REQUESTOR_LOCKED_OUT": 20 - MISSES}
            with pytest.raises(tv.RequestorLockedOutError):  # a right guess gets no other answer
                vault.detokenize(token, use("right"))
            assert vault.get(token).status is tv.TokenStatus.ACTIVE  # the host itself is not locked out
        assert not tv.verify_audit(store, keys=local_keys).findings


def test_cards_that_are_not_there_are_guesses_too(local_keys: KeyStore, clock: ManualClock) -> None:
    """MANAGE is no oracle for PANs."""
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with guarded(local_keys, store, clock) as vault:
            issue(vault)
            pans = [vault_workers.card_number(number) for number in range(4)]
            assert [vault.tokens_of(pan, requestor=SHOP) for pan in pans] == [[]] * 4
            assert vault.tokens_of(pans[0], requestor=SHOP) == []
            with pytest.raises(tv.TokenNotFoundError):
                vault.update_card(MASTERCARD, expiry="2030-01", requestor=SHOP)
            for pan in (VISA, vault_workers.card_number(9)):
                with pytest.raises(tv.RequestorLockedOutError):
                    vault.tokens_of(pan, requestor=SHOP)
                with pytest.raises(tv.RequestorLockedOutError):
                    vault.update_card(pan, expiry="2030-01", requestor=SHOP)
            vault.release(SHOP)
            clock.advance(2)
            pans = [*map(vault_workers.card_number, range(10, 20)), VISA]
            changed: tv.CardChange = {"expiry": "2030-01"}
            results = vault.update_card_many([(pan, changed) for pan in pans], requestor=SHOP)
            found = [error.code for error in results.errors.values()]
            assert found == ["CARD_HAS_NO_TOKEN"] * 5 + ["REQUESTOR_LOCKED_OUT"] * 6
            assert str(vault.tokens_of(VISA)[0].card_expiry) == "2029-12"


def test_the_guard_works_over_every_store_and_face(
    keys: KeyStore, store: TokenStore, clock: ManualClock
) -> None:
    vault = guarded(keys, store, clock)
    token = issue(vault).token
    assert answers(CALLS["detokenize"], vault, range(10)) == {
        "TOKEN_NOT_FOUND": MISSES,
        "REQUESTOR_LOCKED_OUT": 5,
    }
    other = guarded(keys, store, clock)
    with pytest.raises(tv.RequestorLockedOutError):  # a vault that opens later
        other.detokenize(token, use(1))
    other.release(SHOP, operator="ann")
    assert other.detokenize(token, use(1)).pan.reveal() == VISA
    clock.advance(10_000)
    assert vault.detokenize(token, use(2)).pan.reveal() == VISA
    vault.close()
    other.close()


def test_a_retry_counts_nothing(local_keys: KeyStore, clock: ManualClock) -> None:
    """Neither of a token that is not there, nor of a use that was refused; in whichever process it comes."""
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        first, second = (guarded(local_keys, store, clock) for _ in range(2))
        token = issue(first, domain=SHOP_ONLY).token
        for _ in range(30):
            for vault in (first, second):
                assert answers(CALLS["detokenize"], vault, range(MISSES - 1)) == {
                    "TOKEN_NOT_FOUND": MISSES - 1
                }
                assert answers(CALLS["check_many"], vault, range(MISSES - 1)) == {
                    "TOKEN_NOT_FOUND": MISSES - 1
                }
                for number in range(7):
                    with pytest.raises(tv.DomainRestrictionError):
                        vault.detokenize(token, use(number))
                    assert not vault.check(token, use(number)).allowed


@pytest.mark.parametrize("name", ["detokenize", "check", "detokenize_many", "check_many"])
def test_each_other_use_under_one_id_counts_by_whichever_call(
    name: str, local_keys: KeyStore, clock: ManualClock
) -> None:
    """Whatever of it changes: for the requestor, and for the token."""
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        vault = guarded(local_keys, store, clock)
        calls: dict[str, Callable[[str, tv.Transaction], object]] = {
            "detokenize": vault.detokenize,
            "check": vault.check,
            "detokenize_many": lambda token, each: many(vault.detokenize_many([(token, each)])),
            "check_many": lambda token, each: many(vault.check_many([(token, each)])),
        }

        def guessed(token: str, count: int) -> list[str]:
            refused = []
            for number in range(count):
                try:
                    answer = calls[name](token, use("one", merchant=f"M-{number + 2}"))
                except tv.TokenVaultError as error:
                    refused.append(error.code)
                else:
                    assert isinstance(answer, tv.Decision)
                    refused.append(tv.DomainRestrictionError(answer.violations).code)
            return refused

        fragile = issue(vault, program="fragile", domain=SHOP_ONLY).token
        guessed(fragile, 3)
        assert vault.get(fragile).suspended_by == {tv.Actor.VAULT}
        answers = guessed(issue(vault, MASTERCARD, domain=SHOP_ONLY).token, 6)
        assert answers[-1] == "REQUESTOR_LOCKED_OUT" != answers[4]
        vault.close()


@pytest.mark.unmeasured
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 30), st.sampled_from(["detokenize", "check", "check_many"])
        ),
        max_size=80,
    )
)
def test_vaults_that_share_a_database_answer_no_more_than_one(
    local_keys: KeyStore, tries: list[tuple[int, int, str]]
) -> None:
    """Whichever asks what: the distinct tokens that are told not to be there are as many as the guard allows."""
    clock = ManualClock(NOW_MS)
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        opened = [guarded(local_keys, store, clock) for _ in range(4)]
        told, locked_out = set[int](), False
        for vault, number, name in tries:
            (answer,) = answers(CALLS[name], opened[vault], range(number, number + 1))
            assert answer in ("TOKEN_NOT_FOUND", "REQUESTOR_LOCKED_OUT")
            if answer == "TOKEN_NOT_FOUND":
                assert not locked_out or number in told
                told.add(number)
            else:
                locked_out = True
                assert len(told) == MISSES
        assert len(told) <= MISSES


@pytest.mark.unmeasured
@pytest.mark.parametrize("custody", [tv.Custody.IN_PROCESS], indirect=True)  # it has no part in this
def test_four_processes_that_guess_share_one_count(
    custody: tv.Custody, softhsm_folder: Path, database_url: str
) -> None:
    uri = softhsm.new_token(softhsm_folder)
    with closing(tv.open_key_store(uri)) as keys, closing(tv.open_token_store(database_url)) as store:
        tv.provision(keys, store, custody=custody)
        with vault_workers.crew(uri) as crew:
            told = crew.run(database_url, vault_workers.guess_tokens, 100)
        counted = sum(map(Counter, told), Counter[str]())
        assert counted["TOKEN_NOT_FOUND"] <= guards.MISSES_DEFAULT
        assert counted["TOKEN_NOT_FOUND"] + counted["REQUESTOR_LOCKED_OUT"] == 400
        assert counted["TOKEN_NOT_FOUND"] >= guards.MISSES_DEFAULT - 4 * vault_workers.GUESSING_THREADS
        assert not tv.verify_audit(store, keys=keys).findings


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/vault.db"
    address: str = request.getfixturevalue("postgres_url")
    return address


def test_a_batch_of_guesses_is_answered_as_calls_one_after_the_other(
    local_keys: KeyStore, clock: ManualClock
) -> None:
    """Also a token that is there gets no answer behind too many that are not."""
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with guarded(local_keys, store, clock) as vault:
            token = issue(vault).token
            tokens = [token, *map(guess, range(MISSES)), token, guess(90), token]
            for number, batch in enumerate((vault.detokenize_many, vault.check_many)):
                vault.release(SHOP)
                clock.advance(3_600_000)
                uses = [(each, use(f"{number}-{place}")) for place, each in enumerate(tokens)]
                results = batch(uses)
                found = [error.code for error in results.errors.values()]
                assert found == ["TOKEN_NOT_FOUND"] * MISSES + ["REQUESTOR_LOCKED_OUT"] * 3
                assert list(results.errors) == list(range(1, len(tokens)))


def test_tasks_that_guess_at_once_get_no_more_answers(local_keys: KeyStore, tmp_path: Path) -> None:
    async def guesses() -> Counter[str]:
        store = tv.open_async_token_store(f"sqlite:///{tmp_path}/vault.db")
        await tv.provision_async(local_keys, store)
        parts: dict[str, Any] = {"programs": PROGRAMS, "requestors": REQUESTORS, "guard": GUARD}
        async with tv.AsyncVault(local_keys, store, **parts) as vault:
            calls = [vault.detokenize(guess(number), use(number)) for number in range(200)]
            results = await asyncio.gather(*calls, return_exceptions=True)
        await store.close()
        return Counter(result.code for result in results if isinstance(result, tv.TokenVaultError))

    found = asyncio.run(guesses())
    assert 1 <= found["TOKEN_NOT_FOUND"] <= MISSES
    assert found["TOKEN_NOT_FOUND"] + found["REQUESTOR_LOCKED_OUT"] == 200


async def hung_up(call: Coroutine[Any, Any, object], at: int) -> bool:
    """Make a call and cancel it at one of its awaits. Returns whether it came so far."""
    cancelled = CancelledAt(call, at)
    with suppress(asyncio.CancelledError, tv.TokenVaultError):
        await cancelled
    return cancelled.reached


async def told(call: Coroutine[Any, Any, object]) -> str:
    """By which code a call is answered."""
    with pytest.raises(tv.TokenVaultError) as refused:
        await call
    return refused.value.code


def test_a_guess_whose_caller_hung_up_is_counted_when_it_comes_again(
    local_keys: KeyStore, tmp_path: Path
) -> None:
    """So vaults together tell of no more tokens than the guard allows."""

    async def guessing(at: int) -> bool:
        store = tv.open_async_token_store(f"sqlite:///{tmp_path}/{at}.db")
        await tv.provision_async(local_keys, store)
        parts: dict[str, Any] = {"programs": PROGRAMS, "requestors": REQUESTORS, "guard": GUARD}
        async with (
            tv.AsyncVault(local_keys, store, **parts) as first,
            tv.AsyncVault(local_keys, store, **parts) as second,
        ):
            reached = False
            for number in range(MISSES - 1):
                reached |= await hung_up(first.detokenize(guess(number), use(number)), at)
                assert await told(first.detokenize(guess(number), use(number))) == "TOKEN_NOT_FOUND"
            codes = [await told(second.detokenize(guess(50 + number), use(number))) for number in range(3)]
            assert codes == ["TOKEN_NOT_FOUND", "REQUESTOR_LOCKED_OUT", "REQUESTOR_LOCKED_OUT"], at
        await store.close()
        return reached

    at = next(at for at in count() if not asyncio.run(guessing(at)))
    assert at > 2


@pytest.mark.parametrize("many", [False, True], ids=["singly", "in a batch"])
def test_a_refusal_whose_caller_hung_up_is_counted_when_it_comes_again(
    local_keys: KeyStore, tmp_path: Path, many: bool
) -> None:
    async def refused() -> int:
        store = tv.open_async_token_store(f"sqlite:///{tmp_path}/vault.db")
        await tv.provision_async(local_keys, store)
        parts: dict[str, Any] = {
            "programs": (FRAGILE,),
            "requestors": (tv.TokenRequestor(SHOP, programs={"fragile"}),),
        }
        async with tv.AsyncVault(local_keys, store, **parts) as vault:

            def used(token: str, number: int) -> Coroutine[Any, Any, object]:
                return (
                    vault.detokenize_many([(token, use(number))])
                    if many
                    else vault.detokenize(token, use(number))
                )

            for at in count():
                order: dict[str, Any] = {"requestor": SHOP, "program": "fragile", "expiry": "2029-12"}
                token = (await vault.issue(VISA, domain=SHOP_ONLY, **order)).token
                reached = False
                for number in range(3):
                    assert (await vault.get(token)).status is tv.TokenStatus.ACTIVE
                    reached |= await hung_up(used(token, number), at)
                    with suppress(tv.DomainRestrictionError):
                        await used(token, number)
                assert (await vault.get(token)).status is tv.TokenStatus.SUSPENDED, at
                if not reached:
                    break
        await store.close()
        return at

    assert asyncio.run(refused()) > 2


def test_misses_keep_no_refusal_by_others_from_being_counted_within_the_time_of_refresh(
    local_keys: KeyStore, clock: ManualClock
) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        vaults = [guarded(local_keys, store, clock, attrs.evolve(GUARD, misses=50)) for _ in range(2)]
        token = issue(vaults[0], domain=SHOP_ONLY).token
        answered = 0
        with suppress(tv.RequestorLockedOutError):
            for number in range(40):
                clock.advance(9_000)
                answers(CALLS["detokenize"], vaults[number % 2], range(number, number + 1))
                with suppress(tv.DomainRestrictionError):
                    vaults[number % 2].detokenize(token, use(number))
                answered += 1
        assert 8 <= answered <= 9


def test_what_is_read_while_another_call_forgets_what_is_old_is_counted(
    local_keys: KeyStore, clock: ManualClock
) -> None:
    inner = tv.open_token_store("memory:")
    tv.provision(local_keys, inner)
    meanwhile: list[Callable[[], object]] = []

    def plan(call: str) -> Fault | None:
        if call == "events_about" and meanwhile:
            meanwhile.pop()()
        return None

    with (
        guarded(local_keys, FaultyTokenStore(inner, plan), clock, attrs.evolve(GUARD, misses=3)) as vault,
        guarded(local_keys, inner, clock) as other,
    ):
        token = issue(vault).token
        for number in range(6):
            answers(CALLS["detokenize"], vault, range(number, number + 1))
            clock.advance(3_600_001)
        answers(CALLS["detokenize"], other, range(10, 11))
        clock.advance(6_000)
        tally = guards.Tally(vault._open().guards)
        vault.check(token, use(1))  # what others did is known
        meanwhile.append(lambda: tally.miss(SHOP, b"one more"))
        answers(CALLS["detokenize"], vault, range(11, 12))
        assert not meanwhile
        with pytest.raises(tv.RequestorLockedOutError):
            vault.detokenize(token, use("right"))


@pytest.mark.parametrize("name", ["detokenize", "check", "detokenize_many", "check_many"])
def test_refused_uses_lock_out_too(name: str, local_keys: KeyStore, clock: ManualClock) -> None:
    """Once another process counted some of them, too: it is told within the time that `refresh` states."""
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        first, second = (guarded(local_keys, store, clock) for _ in range(2))
        token = issue(first, domain=SHOP_ONLY).token
        for number in range(8):
            with suppress(tv.DomainRestrictionError):
                CALLS[name]((first, second)[number % 2], token, number)
            clock.advance(10_000)
        for vault in (first, second):
            with pytest.raises(tv.RequestorLockedOutError):
                vault.detokenize(token, use("right", merchant="M-1"))


def test_tokens_of_others_are_refusals(local_keys: KeyStore, clock: ManualClock) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        other = tv.TokenRequestor(ACQUIRER)
        parts: dict[str, Any] = {"programs": PROGRAMS, "requestors": (REQUESTORS[0], other), "guard": GUARD}
        with open_face(local_keys, store, clock=clock, **parts) as vault:
            tokens = [issue(vault).token for _ in range(9)]
            results = vault.delete_many(tokens[:4], requestor=ACQUIRER)
            assert {error.code for error in results.errors.values()} == {"NOT_ITS_TOKEN"}
            for token in tokens[4:8] + tokens[4:8]:
                with pytest.raises(tv.PermissionDeniedError):
                    vault.delete(token, requestor=ACQUIRER)
            with pytest.raises(tv.RequestorLockedOutError):
                vault.delete(tokens[8], requestor=ACQUIRER)


def lock_out_ms(vault: tv.Vault, clock: ManualClock, numbers: range) -> int:
    """How long a requestor is locked out after guesses, found by waiting; it is let in then."""
    assert answers(CALLS["detokenize"], vault, numbers)["TOKEN_NOT_FOUND"] == MISSES
    waited = 0
    while answers(CALLS["detokenize"], vault, range(numbers[0], numbers[0] + 1))["REQUESTOR_LOCKED_OUT"]:
        clock.advance(15_000)
        waited += 15_000
    return waited


def test_each_lock_out_is_longer_up_to_a_bound_until_it_is_forgotten(
    local_keys: KeyStore, clock: ManualClock
) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with guarded(local_keys, store, clock) as vault:
            spans = [lock_out_ms(vault, clock, range(10 * step, 10 * step + 6)) for step in range(5)]
            assert [span // 60_000 for span in spans] == [1, 4, 16, 30, 30]
            clock.advance(31 * 60_000)
            assert lock_out_ms(vault, clock, range(90, 96)) == 60_000
            vault.release(SHOP)
            clock.advance(1)
            assert lock_out_ms(vault, clock, range(190, 196)) == 60_000


def test_what_failed_long_ago_is_forgotten(local_keys: KeyStore, clock: ManualClock) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with guarded(local_keys, store, clock) as vault:
            for step in range(5):
                numbers = range(10 * step, 10 * step + MISSES - 1)
                assert answers(CALLS["detokenize"], vault, numbers) == {"TOKEN_NOT_FOUND": MISSES - 1}
                clock.advance(3_600_001)


def test_a_lock_out_and_a_release_leave_events_and_tell_the_observer(
    local_keys: KeyStore, clock: ManualClock
) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        watcher = Notes()
        with guarded(local_keys, store, clock, observer=watcher) as vault:
            issue(vault)
            answers(CALLS["detokenize"], vault, range(MISSES))
            with pytest.raises(tv.RequestorLockedOutError) as refused:
                vault.detokenize(guess(99), use(99))
            vault.release(SHOP, operator="ann")
            with pytest.raises(tv.PermissionDeniedError, match="not registered"):
                vault.release("49999999999")
        until = datetime.fromtimestamp(NOW_MS / 1_000, UTC) + timedelta(minutes=1)
        assert until.isoformat(timespec="seconds") in str(refused.value)
        assert (refused.value.code, refused.value.response_code) == ("REQUESTOR_LOCKED_OUT", "59")
        told = [event for event in watcher.told if isinstance(event, LockedOut)]
        assert told == [LockedOut(requestor=SHOP, until_ms=NOW_MS + 60_000, cause="MISS")]
        lines = [
            line for line in tv.export_audit(store, keys=local_keys) if "LOCK" in line or "RELEASE" in line
        ]
        assert [line.split('"action": "')[1].split('"')[0] for line in lines] == [
            "LOCK_OUT",
            "DETOKENIZE",
            "RELEASE",
        ]
        assert f'"requestor": "{SHOP}"' in lines[0]
        assert '"locked_until": "' in lines[0]
        assert '"operator": "ann"' in lines[2]
        assert not tv.verify_audit(store, keys=local_keys).findings


def test_a_guard_that_counts_nothing_locks_nobody_out(local_keys: KeyStore, clock: ManualClock) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with guarded(local_keys, store, clock, tv.Guard(misses=None, refusals=None)) as vault:
            assert answers(CALLS["detokenize"], vault, range(300)) == {"TOKEN_NOT_FOUND": 300}


def test_a_lock_out_that_could_not_be_written_holds_here_all_the_same(
    local_keys: KeyStore, clock: ManualClock
) -> None:
    inner = tv.open_token_store("memory:")
    tv.provision(local_keys, inner)
    faults = FaultSchedule()
    with guarded(local_keys, FaultyTokenStore(inner, faults), clock) as vault:
        token = issue(vault).token
        answers(CALLS["detokenize"], vault, range(MISSES - 1))
        faults.set([None, None, None, FAIL])  # it is looked for, noted, counted, and locked out
        with pytest.raises(tv.TokenStoreError):
            vault.detokenize(guess(50), use(50))
        with pytest.raises(tv.RequestorLockedOutError):
            vault.detokenize(token, use("right"))


@pytest.mark.parametrize("refusals", [8, None])
def test_a_lock_out_that_was_due_when_the_account_could_not_be_read_is_written_with_the_next_call(
    local_keys: KeyStore, clock: ManualClock, refusals: int | None
) -> None:
    inner = tv.open_token_store("memory:")
    tv.provision(local_keys, inner)
    faults, guard = FaultSchedule(calls={"events_about"}), attrs.evolve(GUARD, refusals=refusals)
    with guarded(local_keys, FaultyTokenStore(inner, faults), clock, guard) as vault:
        token = issue(vault).token
        answers(CALLS["detokenize"], vault, range(MISSES - 1))
        faults.set([FAIL])
        with pytest.raises(tv.TokenStoreError):
            vault.detokenize(guess(50), use(50))
        with pytest.raises(tv.RequestorLockedOutError):
            vault.detokenize(token, use("right"))
    told = [line for line in tv.export_audit(inner, keys=local_keys) if '"LOCK_OUT"' in line]
    assert len(told) == 1
    assert '"codes": ["MISSES"]' in told[0]
    with guarded(local_keys, inner, clock, guard) as other, pytest.raises(tv.RequestorLockedOutError):
        other.detokenize(token, use("right"))


@pytest.mark.parametrize("refusals", [8, None])
def test_an_account_that_could_not_be_read_is_read_once_more_and_then_no_longer(
    local_keys: KeyStore, clock: ManualClock, refusals: int | None
) -> None:
    inner = tv.open_token_store("memory:")
    tv.provision(local_keys, inner)
    read: list[str] = []
    faults, guard = FaultSchedule(calls={"events_about"}), attrs.evolve(GUARD, refusals=refusals)

    def plan(call: str) -> Fault | None:
        read.extend([call] if call == "events_about" else [])
        return faults(call)

    with guarded(local_keys, FaultyTokenStore(inner, plan), clock, guard) as vault:
        token = issue(vault).token
        answers(CALLS["detokenize"], vault, range(MISSES - 1))
        faults.set([FAIL])
        with pytest.raises(tv.TokenStoreError):
            vault.detokenize(guess(50), use(50))
        clock.advance(3_600_001)  # all that failed is forgotten
        kinds = 1 if refusals is None else 2
        for number, reads in ((1, kinds + 1), (2, 0)):  # what failed, of each kind, and lock-outs; nothing
            read.clear()
            assert vault.detokenize(token, use(number)).pan.reveal() == VISA
            assert len(read) == reads
    assert not any('"LOCK_OUT"' in line for line in tv.export_audit(inner, keys=local_keys))


def test_so_many_failures_are_remembered_and_the_others_counted_again(
    local_keys: KeyStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "COUNTED_KEPT", 3)
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    vault = tv.Vault(local_keys, store, programs=PROGRAMS, requestors=REQUESTORS, clock=clock)
    core_guards = vault._open().guards
    new = []
    for number in (1, 2, 3, 3, 1, 4, 4, 1):
        failure = Failure(FailureKind.REFUSAL, b"t", bytes([number]))
        new.append(not core_guards.has_counted(failure))
        core_guards.remember([failure] if new[-1] else [])
    assert new == [True, True, True, False, False, True, False, True]
    assert len(core_guards._counted) == 2
    vault.close()


def test_an_index_row_planted_for_another_requestor_s_release_lets_nobody_in(
    local_keys: KeyStore, clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "vault.db"
    with closing(tv.open_token_store(f"sqlite:///{path}")) as store:
        tv.provision(local_keys, store)
        with guarded(local_keys, store, clock) as vault:
            token = issue(vault).token
            answers(CALLS["detokenize"], vault, range(MISSES))
            clock.advance(1_000)
            vault.release(ACQUIRER)
        account, name = account_row(Account.LOCK_OUTS.of(SHOP.encode()), clock.now_ms())
        acquirers = Account.LOCK_OUTS.of(ACQUIRER.encode())
        with closing(sqlite3.connect(path)) as connection:
            planted = connection.execute(
                "INSERT INTO event_index SELECT ?, ?, stream, number FROM event_index WHERE reference = ?",
                (account, name, acquirers),
            )
            assert planted.rowcount == 1
            connection.commit()
        with guarded(local_keys, store, clock) as vault, pytest.raises(tv.RequestorLockedOutError):
            vault.detokenize(token, use("right"))


# Refusals of one token.


def refusals(vault: tv.Vault, token: str, numbers: range) -> None:
    for number in numbers:
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use(f"{token[-6:]}-{number}"))


def test_a_token_that_is_refused_too_often_is_suspended_by_the_vault(
    keys: KeyStore, store: TokenStore, clock: ManualClock
) -> None:
    """By two vaults together; a retry does not count; once it is resumed, it is counted anew."""
    first, second = (guarded(keys, store, clock, tv.Guard()) for _ in range(2))
    token, other = (issue(first, program="fragile", domain=SHOP_ONLY).token for _ in range(2))
    for numbers in (range(3), range(10, 13)):
        refusals(first, token, numbers[:2])
        refusals(first, token, numbers[:2])
        assert first.get(token).status is tv.TokenStatus.ACTIVE
        refusals(second, token, numbers[2:])
        info = second.get(token)
        assert info.status is tv.TokenStatus.SUSPENDED
        assert info.suspended_by == {tv.Actor.VAULT}
        refusals(second, token, range(100, 110))  # they are refused anyway: they do not count
        clock.advance(1)
        first.resume(token, by=tv.Actor.VAULT)
        clock.advance(1)
    assert first.detokenize(token, use("right", merchant="M-1")).pan.reveal() == VISA
    assert first.get(other).status is tv.TokenStatus.ACTIVE
    first.close()
    second.close()


def test_batches_and_checks_count_refusals_of_a_token(local_keys: KeyStore, clock: ManualClock) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with guarded(local_keys, store, clock, tv.Guard()) as vault:
            tokens = [issue(vault, program="fragile", domain=SHOP_ONLY).token for _ in range(4)]
            limited = issue(
                vault, program="fragile", domain=tv.Domain(merchants={"M-1"}, limits=(tv.Limit(uses=9),))
            ).token
            plain = issue(vault, domain=SHOP_ONLY).token
            vault.detokenize_many([(tokens[0], use(number)) for number in range(3)])
            vault.check_many([(tokens[1], use(number)) for number in range(3)])
            vault.detokenize_many([(limited, use(number)) for number in range(3)])
            for number in range(3):
                vault.check(tokens[2], use(number))
                with pytest.raises(tv.DomainRestrictionError):
                    vault.detokenize(plain, use(number))
            vault.detokenize_many([(tokens[3], use(number)) for number in (1, 1, 2, 2)])
            found = [vault.get(token).suspended_by for token in (*tokens, limited, plain)]
            assert found == [{tv.Actor.VAULT}] * 3 + [frozenset(), {tv.Actor.VAULT}, frozenset()]
            suspended = [event for event in vault.history(tokens[0]) if event.action is Action.SUSPEND]
            assert [event.codes for event in suspended] == [("VAULT",)]
        assert not tv.verify_audit(store, keys=local_keys).findings


def test_a_check_that_fails_leaves_an_event_and_one_that_does_not_leaves_none(
    local_keys: KeyStore, clock: ManualClock
) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with guarded(local_keys, store, clock) as vault:
            token = issue(vault, domain=SHOP_ONLY).token
            assert vault.check(token, use(1, merchant="M-1")).allowed
            assert vault.check_many([(token, use(1, merchant="M-1"))])[0] == tv.Decision(())
            assert len(vault.history(token)) == 1
            vault.check(token, use(2))
            vault.check_many([(token, use(3))])
            found = [event for event in vault.history(token) if event.action is Action.CHECK]
            assert [(event.transaction_id, event.codes) for event in found] == [
                ("tx-2", ("MERCHANT_NOT_ALLOWED",)),
                ("tx-3", ("MERCHANT_NOT_ALLOWED",)),
            ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"misses": 0},
        {"misses": True},
        {"refusals": 10**6},
        {"per": timedelta(0)},
        {"lock_out": timedelta(milliseconds=1_500)},
        {"lock_out": timedelta(days=2)},
        {"lock_out_max": 60},
        {"refresh": timedelta(days=400)},
    ],
)
def test_a_guard_s_values_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(tv.InvalidInputError):
        tv.Guard(**wrong)
    for refusals in (0, 101, "3", True):
        with pytest.raises(tv.InvalidInputError):
            tv.TokenProgram("p", format=tv.TokenFormat(bin="999917"), suspend_after_refusals=refusals)  # type: ignore[arg-type]


def test_density_is_that_of_the_lengths_that_a_program_takes() -> None:
    """A format without a length is judged by 16 digits, or the length next to that which its PANs can have."""
    format_ = tv.TokenFormat(bin="999917")
    for lengths, capacity in (((12, 19), 10**9), ((13, 13), 10**6), ((13, 16), 10**9), ((19, 19), 10**12)):
        rule = tv.PanRule(lengths=lengths)
        tv.TokenProgram("p", format=format_, pans=rule, expected_tokens=capacity // 1_000)
        too_many = capacity // 1_000 + 1
        with pytest.raises(tv.InvalidInputError) as refused:
            tv.TokenProgram("p", format=format_, pans=rule, expected_tokens=too_many)
        assert refused.value.code == "PROGRAM_TOO_DENSE"
        tv.TokenProgram("p", format=format_, pans=rule, expected_tokens=too_many, accept_density=True)
    for length, capacity in ((13, 10**6), (19, 10**12)):
        set_length = tv.TokenFormat(bin="999917", length=length)
        tv.TokenProgram("p", format=set_length, expected_tokens=capacity // 1_000)
        with pytest.raises(tv.InvalidInputError):
            tv.TokenProgram("p", format=set_length, expected_tokens=capacity // 1_000 + 1)
