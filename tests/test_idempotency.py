"""Requests with an idempotency key: however often they are made, by whom and at once, they make one token."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import vault_workers
from tests.measuring import processes_unmeasured
from tests.postgres_server import PostgresServer
from tests.strategies import NOW_MS
from tests.vault_workers import card_number
from tests.vaults import (
    ISSUER_ONLY,
    MASTERCARD,
    SHOP,
    VISA,
    all_records,
    issue,
    open_vault,
)
from tokenvault.keys import KeyStore
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock
from tokenvault.vault import issue as issuing

MAKINGS = ("one-time", "card-on-file")
"""A program of random tokens, and a convergent one."""

THREADS, VAULTS = 8, 2
SECONDS_MAX = 60.0
PAR = "V0010013018036776997406119227"
FULL: Mapping[str, Any] = {
    "expiry": "2029-12",
    "domain": tv.Domain(merchants={"M-1"}),
    "token_expiry": "2029-06",
    "assurance": "D1",
    "par": PAR,
    "active": True,
    "customer": "customer-1",
    "metadata": {"order": "1"},
}
OTHERWISE: Mapping[str, Any] = {
    "expiry": ("2029-11", "2030-12", None),
    "domain": (None, tv.Domain(merchants={"M-2"})),
    "token_expiry": (None, "2029-07"),
    "assurance": (None, "D2"),
    "par": (None,),  # another one is PAR_DIFFERS: a card has one
    "active": (False,),
    "customer": (None, "customer-2"),
    "metadata": (None, {}, {"order": "2"}, {"Order": "1"}, {"order": "1", "more": "2"}),
}


@pytest.fixture(params=MAKINGS)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def memory(local_keys: KeyStore) -> Iterator[TokenStore]:
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store)
        yield store


@pytest.fixture
def quick(local_keys: KeyStore, memory: TokenStore, clock: ManualClock) -> Iterator[tv.Vault]:
    with open_vault(local_keys, memory, clock) as vault:
        yield vault


def conflict(call: Callable[[], object]) -> bool:
    """Whether a call is refused as another request under a key that was used."""
    with pytest.raises(tv.InvalidInputError) as refused:
        call()
    assert VISA not in str(refused.value)
    return refused.value.code == "IDEMPOTENCY_CONFLICT"


# The same request, and another one.


def test_a_retry_gives_the_same_token_and_makes_no_other(
    local_vault: tv.Vault, local_store: TokenStore, program: str
) -> None:
    first = issue(local_vault, program=program, idempotency_key="k", **FULL)
    assert issue(local_vault, program=program, idempotency_key="k", **FULL) == first
    assert local_vault.get(first.reference) == first
    spelled = issue(local_vault, "4111 1111-1111 1111", program=program, idempotency_key="k", **FULL)
    assert spelled == first
    assert [record.token for record in all_records(local_store)] == [first.token]


def test_a_retry_with_any_one_property_changed_is_a_conflict(
    local_vault: tv.Vault, local_store: TokenStore, program: str
) -> None:
    first = issue(local_vault, program=program, idempotency_key="k", **FULL)
    for name, values in OTHERWISE.items():
        for value in values:
            changed = {**FULL, name: value}
            again = partial(issue, local_vault, program=program, idempotency_key="k", **changed)
            assert conflict(again), (name, value)
    without_par = {**FULL, "par": None}
    assert conflict(
        lambda: issue(local_vault, MASTERCARD, program=program, idempotency_key="k", **without_par)
    )
    assert issue(local_vault, program=program, idempotency_key="k", **FULL) == first
    assert len(all_records(local_store)) == 1


def test_what_the_order_of_a_request_leaves_open_is_as_good_as_left_out(quick: tv.Vault) -> None:
    """No metadata is no metadata, however it is said; pairs have no order; and nobody is asked who calls."""
    bare = issue(quick, idempotency_key="bare")
    ways: tuple[dict[str, Any], ...] = ({"metadata": {}}, {"operator": "ana"}, {"accept_expired": True})
    for said in ways:
        assert issue(quick, idempotency_key="bare", **said) == bare
    pairs = issue(quick, idempotency_key="pairs", metadata={"a": "1", "b": "2"})
    assert issue(quick, idempotency_key="pairs", metadata={"b": "2", "a": "1"}) == pairs


def test_a_key_is_one_requestors_and_one_programs(local_vault: tv.Vault) -> None:
    made = [
        issue(local_vault, card, requestor=requestor, program=program, idempotency_key=key)
        for requestor in (SHOP, ISSUER_ONLY)
        for program, card in zip(MAKINGS, (VISA, MASTERCARD), strict=True)
        for key in ("k", "K", "k k")[: 3 if program == "one-time" else 1]
    ]
    assert len({info.token for info in made}) == len({info.reference for info in made}) == len(made) == 8


def test_a_convergent_card_has_one_token_under_whatever_keys(quick: tv.Vault) -> None:
    """The first key that made it is the one that is bound to its request; the others were never used."""
    first = issue(quick, program="card-on-file", idempotency_key="1")
    assert issue(quick, program="card-on-file", idempotency_key="2") == first
    assert issue(quick, program="card-on-file") == first
    assert conflict(lambda: issue(quick, MASTERCARD, program="card-on-file", idempotency_key="1"))
    assert issue(quick, MASTERCARD, program="card-on-file", idempotency_key="2").token != first.token


# After the token has changed.


def test_a_retry_gives_the_token_as_it_is_by_then(
    local_vault: tv.Vault, clock: ManualClock, program: str
) -> None:
    first = issue(local_vault, program=program, idempotency_key="k")

    def retried() -> tv.TokenInfo:
        return issue(local_vault, program=program, idempotency_key="k")

    changes: tuple[Callable[[], object], ...] = (
        lambda: local_vault.suspend(first.token, by=tv.Actor.ISSUER),
        lambda: local_vault.resume(first.token, by=tv.Actor.ISSUER),
        lambda: local_vault.update_token(first.token, customer="c-9", metadata={"a": "b"}),
        lambda: local_vault.update_card(first.token, new_pan="4242424242424242", expiry="2031-01"),
        lambda: local_vault.delete(first.token),
    )
    for change in changes:
        clock.advance(1_000)
        change()
        now = local_vault.get(first.token)
        assert retried() == now
        assert (now.token, now.reference) == (first.token, first.reference)
        assert now.revision > first.revision
    assert now.status is tv.TokenStatus.DELETED
    (many,) = local_vault.issue_many(
        [{"pan": VISA, "expiry": "2029-12", "idempotency_key": "k"}], requestor=SHOP, program=program
    )
    assert many == now, "also by a batch: what is deleted stays deleted"
    assert conflict(lambda: issue(local_vault, MASTERCARD, program=program, idempotency_key="k"))


# At once.


def test_threads_of_two_vaults_with_one_key_make_one_token(
    local_keys: KeyStore, local_store: TokenStore, clock: ManualClock, program: str
) -> None:
    rounds = 3
    with ExitStack() as stack:
        opened = [stack.enter_context(open_vault(local_keys, local_store, clock)) for _ in range(VAULTS)]
        pool = stack.enter_context(ThreadPoolExecutor(THREADS * VAULTS))
        for number in range(rounds):
            together = threading.Barrier(THREADS * VAULTS)

            def one(place: int, key: str = str(number), together: threading.Barrier = together) -> str:
                together.wait(SECONDS_MAX)
                vault = opened[place % VAULTS]
                return issue(vault, card_number(int(key)), program=program, idempotency_key=key).token

            assert len(set(pool.map(one, range(THREADS * VAULTS)))) == 1
    assert len(all_records(local_store)) == rounds


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_requests_of_a_killed_process_repeat_without_a_second_token(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "passphrase").write_text("correct horse battery staple")
    uri = f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/passphrase"
    server: PostgresServer | None = (
        request.getfixturevalue("postgres_server") if database == "postgres" else None
    )
    url = f"sqlite:///{tmp_path}/killed.db" if server is None else server.new_url()
    with closing(tv.open_key_store(uri)) as keys, closing(tv.open_token_store(url)) as store:
        tv.provision(keys, store)
        writer = multiprocessing.get_context("spawn").Process(
            target=vault_workers.issue_with_keys, args=(uri, url, 10_000)
        )
        with processes_unmeasured():
            writer.start()
        try:
            deadline = time.monotonic() + SECONDS_MAX
            while len(store.scan(limit=40)) < 40:
                assert writer.is_alive(), "the writer ended by itself"
                assert time.monotonic() < deadline, "the writer does not write"
                time.sleep(0.005)
        finally:
            writer.kill()
            writer.join(SECONDS_MAX)
            writer.close()
        written = {record.token for record in all_records(store)}
        with open_vault(keys, store) as vault:
            count = len(written) + 1
            again = [
                issue(vault, card_number(number), idempotency_key=str(number)).token
                for number in range(count)
            ]
        assert set(again[:-1]) == written
        assert len(all_records(store)) == len(set(again)) == count
        assert tv.verify_audit(store, keys=keys).intact


# Many at once.


def test_cards_with_keys_in_a_batch_are_answered_as_one_by_one(
    local_keys: KeyStore, clock: ManualClock, program: str
) -> None:
    """With repeats in the batch, keys that were used before, others' requests under a key, and cards without one."""
    outcomes = []
    cards = [
        tv.CardToIssue(pan=VISA, expiry="2029-12", idempotency_key="before"),
        tv.CardToIssue(pan=MASTERCARD, expiry="2029-12", idempotency_key="before"),
        tv.CardToIssue(pan=MASTERCARD, expiry="2029-12", idempotency_key="new", metadata={"a": "b"}),
        tv.CardToIssue(pan=MASTERCARD, expiry="2029-12", idempotency_key="new", metadata={"a": "b"}),
        tv.CardToIssue(pan=MASTERCARD, expiry="2029-12", idempotency_key="new", metadata={}),
        tv.CardToIssue(pan=card_number(1), expiry="2029-12"),
        tv.CardToIssue(pan=card_number(2), expiry="2029-12", idempotency_key="empty", metadata={}),
        tv.CardToIssue(pan=card_number(2), expiry="2029-12", idempotency_key="empty"),
    ]
    for many in (True, False):
        with closing(MemoryTokenStore()) as store:
            tv.provision(local_keys, store)
            with open_vault(local_keys, store, clock) as vault:
                issue(vault, program=program, idempotency_key="before")
                if many:
                    results = list(vault.issue_many(cards, requestor=SHOP, program=program))
                else:
                    results = [issued_singly(vault, card, program) for card in cards]
                names: dict[str, int] = {}
                outcomes.append(
                    [
                        result.code
                        if isinstance(result, tv.TokenVaultError)
                        else (names.setdefault(result.token, len(names)), result.last4, result.metadata)
                        for result in results
                    ]
                )
                assert len(all_records(store)) == len(names)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] == outcomes[0][4] == "IDEMPOTENCY_CONFLICT"


def issued_singly(vault: tv.Vault, card: tv.CardToIssue, program: str) -> Any:
    given: dict[str, Any] = {**card, "program": program}
    try:
        return issue(vault, given.pop("pan"), **given)
    except tv.TokenVaultError as error:
        return error


def test_a_batch_tells_of_a_cards_token_what_stands_not_what_was_ordered(local_vault: tv.Vault) -> None:
    """Its metadata stays what it was, as by the single call."""
    stored = issue(local_vault, program="card-on-file", metadata={"order": "1"})
    for metadata in ({"order": "2"}, {}, None):
        card = tv.CardToIssue(pan=VISA, expiry="2029-12", metadata=metadata or {})
        (found,) = local_vault.issue_many([card], requestor=SHOP, program="card-on-file")
        assert found == stored == issue(local_vault, program="card-on-file", metadata=metadata)


# Candidates that are taken.


def test_a_candidate_that_is_anothers_token_is_passed_over_each_time(
    quick: tv.Vault, memory: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a space of ten tokens most candidates are taken: every key has its own token all the same."""
    monkeypatch.setattr(issuing, "CANDIDATES_MAX", 1_000)  # that ten are found among so many is certain
    tokens = {
        key: issue(quick, card_number(int(key)), program="tiny", idempotency_key=key).token
        for key in map(str, range(10))
    }
    assert len(set(tokens.values())) == 10
    for key, token in tokens.items():
        assert issue(quick, card_number(int(key)), program="tiny", idempotency_key=key).token == token
    for key in ("10", "11"):
        with pytest.raises(tv.TokenSpaceExhaustedError, match="1000 of 1000 candidates"):
            issue(quick, idempotency_key=key, program="tiny")
    assert len(all_records(memory)) == 10


@pytest.mark.parametrize("program", ["tiny", "tiny-convergent"])
def test_the_tenth_card_of_ten_tokens_is_the_last(quick: tv.Vault, memory: TokenStore, program: str) -> None:
    for number in range(10):
        issue(quick, card_number(number), program=program)
    with pytest.raises(tv.TokenSpaceExhaustedError) as refused:
        issue(quick, card_number(10), program=program)
    assert card_number(10) not in str(refused.value)
    assert len(all_records(memory)) == 10
    result = quick.issue_many([card_number(11), card_number(12)], requestor=SHOP, program=program)
    assert {error.code for error in result.errors.values()} == {refused.value.code}
    assert len(result.errors) == 2


class Meanwhile(Forwarding):
    """A store in which something happens once just before a method is called."""

    def __init__(self, store: TokenStore, method: str, then: Callable[[], object]) -> None:
        self._store, self._method, self._then = store, method, then
        self._waiting = True
        self.write_limits = store.write_limits

    def _forward(self, name: str, *args: Any, **named: Any) -> Any:
        if name == self._method and self._waiting:
            self._waiting = False
            self._then()
        return getattr(self._store, name)(*args, **named)


def test_who_comes_second_with_a_key_gets_the_token_of_the_first(
    local_keys: KeyStore, memory: TokenStore, quick: tv.Vault, program: str
) -> None:
    first: list[str] = []
    store = Meanwhile(
        memory, "insert", lambda: first.append(issue(quick, program=program, idempotency_key="k").token)
    )
    with open_vault(local_keys, store, ManualClock(NOW_MS)) as late:
        assert issue(late, program=program, idempotency_key="k").token == first[0]
    assert [record.token for record in all_records(memory)] == first


def test_who_comes_second_with_a_key_and_another_request_is_refused(
    local_keys: KeyStore, memory: TokenStore, quick: tv.Vault
) -> None:
    store = Meanwhile(memory, "insert", lambda: issue(quick, idempotency_key="k", customer="c-1"))
    with open_vault(local_keys, store, ManualClock(NOW_MS)) as late:
        assert conflict(lambda: issue(late, idempotency_key="k", customer="c-2"))
        assert conflict(lambda: issue(late, MASTERCARD, idempotency_key="k", customer="c-1"))
    assert len(all_records(memory)) == 1


# A card that is renewed, while its convergent token is changed.


@pytest.mark.parametrize("change", ["deleted", "of another card", "renewed", "renewed further", "suspended"])
def test_a_renewal_ends_with_a_token_of_the_card_whatever_happens_meanwhile(
    local_keys: KeyStore, memory: TokenStore, quick: tv.Vault, change: str
) -> None:
    former = issue(quick, program="card-on-file", expiry="2029-12")

    def meanwhile() -> object:
        if change == "deleted":
            return quick.delete(former.token)
        if change == "of another card":
            return quick.update_card(former.token, new_pan=MASTERCARD)
        if change == "suspended":
            return quick.suspend(former.token, by=tv.Actor.ISSUER)
        return quick.update_card(former.token, expiry="2031-01" if change == "renewed" else "2033-01")

    with open_vault(local_keys, Meanwhile(memory, "replace", meanwhile), ManualClock(NOW_MS)) as late:
        renewed = issue(late, program="card-on-file", expiry="2031-01")
    assert (renewed.last4, renewed.bin) == (former.last4, former.bin)
    assert renewed.status is (tv.TokenStatus.SUSPENDED if change == "suspended" else tv.TokenStatus.ACTIVE)
    assert (renewed.token == former.token) == (change not in ("deleted", "of another card"))
    assert str(renewed.card_expiry) == ("2033-01" if change == "renewed further" else "2031-01")
    assert quick.get(renewed.token) == renewed
    assert [info.token for info in quick.tokens_of(VISA)] == [renewed.token]


def test_random_tokens_are_found_in_a_space_that_is_nearly_full(
    local_keys: KeyStore, memory: TokenStore, quick: tv.Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one that was free at the look is taken before it is written."""
    monkeypatch.setattr(issuing, "DRAWS_MAX", 0)  # all by looking
    made = {issue(quick, card_number(number), program="tiny").token for number in range(8)}

    store = Meanwhile(memory, "insert", lambda: made.add(issue(quick, card_number(8), program="tiny").token))
    with open_vault(local_keys, store, ManualClock(NOW_MS)) as late:
        made.add(issue(late, card_number(9), program="tiny").token)
    assert len(made) == len(all_records(memory)) == 10
