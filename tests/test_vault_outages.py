"""Eight threads use a vault while its database fails under them, is restarted, or loses answers: the counts match."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import pytest

import tokenvault as tv
from tests import vaults
from tests.postgres_server import PostgresServer
from tests.vault_workers import card_number
from tests.vaults import all_events, all_records, issue, use
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.keys import KeyStore
from tokenvault.records.keyring import KeyRing
from tokenvault.stores.port import SealedEvent, TokenStore
from tokenvault.testing.faults import FAIL, LOSE, Fault, FaultyTokenStore

THREADS = 8
SHARED_USES_MAX = 60
ROUNDS_MAX = 100_000
SECONDS_MAX = 60.0
COUNTED = tv.Domain(limits=(tv.Limit(uses=10**6),))


@attrs.define
class Token:
    """A token, and what came of its uses."""

    info: tv.TokenInfo
    pan: str
    given: Counter[str] = attrs.field(factory=Counter)  # by transaction id
    lost: Counter[str] = attrs.field(factory=Counter)

    def redeem(self, vault: tv.Vault, name: str) -> bool:
        """Whether the card came; what is no error of the store fails the test."""
        try:
            card = vault.detokenize(self.info.token, use(name))
        except tv.TokenStoreError:
            self.lost[f"tx-{name}"] += 1
            return False
        assert card.pan.reveal() == self.pan
        self.given[f"tx-{name}"] += 1
        return True


class Load:
    """Threads that issue and redeem. Each has a token of its own, and they share one of few uses.

    A thread that does not learn what came of a use presents it again until it does, but for the shared token's.
    """

    def __init__(self, vaults_: list[tv.Vault]) -> None:
        self.vaults = vaults_
        self.own = [self._issued(number, COUNTED) for number in range(THREADS)]
        domain = tv.Domain(limits=(tv.Limit(uses=SHARED_USES_MAX),))
        shared = self._issued(THREADS, domain)
        self.shared = [Token(shared.info, shared.pan) for _ in range(THREADS)]  # counted by each thread apart
        self.issued: list[list[tuple[str, str]]] = [[] for _ in range(THREADS)]
        self.issues_lost = [0] * THREADS
        self.rounds = [0] * THREADS
        self.stop = threading.Event()

    def _issued(self, number: int, domain: tv.Domain) -> Token:
        pan = card_number(number)
        return Token(issue(self.vaults[0], pan, domain=domain), pan)

    @property
    def failures(self) -> int:
        tokens = [*self.own, *self.shared]
        return sum(self.issues_lost) + sum(token.lost.total() for token in tokens)

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(THREADS) as pool:
            working = [pool.submit(self._work, thread) for thread in range(THREADS)]
            try:
                yield
            finally:
                self.stop.set()
            for future in working:
                future.result(SECONDS_MAX)

    def everybody_works(self, rounds: int) -> None:
        """Return once every thread has gone so many rounds more, each with a use that was answered."""
        deadline = time.monotonic() + SECONDS_MAX
        seen = list(self.rounds)
        while any(now < then + rounds for now, then in zip(self.rounds, seen, strict=True)):
            assert time.monotonic() < deadline, "somebody does not get on"
            time.sleep(0.002)

    def _work(self, thread: int) -> None:
        vault = self.vaults[thread % len(self.vaults)]
        for number in range(ROUNDS_MAX):
            if self.stop.is_set():
                return
            self._issue(vault, thread, 1_000 * (thread + 1) + number % 900)
            try:
                self.shared[thread].redeem(vault, f"{thread}-{number}")
            except tv.DomainRestrictionError as refused:
                assert [violation.code for violation in refused.violations] == ["USES_EXCEEDED"]  # noqa: PT017 # allowed is fine too
            while not self.own[thread].redeem(vault, f"{number}"):
                time.sleep(0.002)
            self.rounds[thread] += 1

    def _issue(self, vault: tv.Vault, thread: int, number: int) -> None:
        pan, program = card_number(number), ("one-time", "card-on-file")[number % 2]
        try:
            self.issued[thread].append((issue(vault, pan, program=program).token, pan))
        except tv.TokenStoreError:
            self.issues_lost[thread] += 1


def by_stream(store: TokenStore) -> dict[bytes, list[SealedEvent]]:
    return {stream: all_events(store, stream) for stream in store.streams()}


def write(vault: tv.Vault) -> None:
    """One event, and no more."""
    with pytest.raises(tv.TokenNotFoundError):
        vault.detokenize("9999990000000000", use())


def assert_counts_match(load: Load, keys: KeyStore, store: TokenStore) -> None:
    """Over a store that fails no more: records, events and what the threads were told agree."""
    for vault in load.vaults:
        write(vault)  # finds out which of the writes in doubt were written
        for _ in range(sum(rows[-1].number - len(rows) for rows in by_stream(store).values())):
            write(vault)  # takes the numbers that are free before there is a new one
    streams = by_stream(store)
    for rows in streams.values():
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    noted = [Event.parse(row) for rows in streams.values() for row in rows]
    done = [event for event in noted if event.outcome is Outcome.DONE]
    redeemed: dict[str, Counter[str]] = {}
    for event in done:
        if event.action is Action.DETOKENIZE:
            redeemed.setdefault(event.reference.hex(), Counter())[event.transaction_id or ""] += 1

    by_token = {row.token: row for row in all_records(store)}
    ring = KeyRing(keys)

    def counted(token: Token) -> int:
        record, _ = ring.unseal(by_token[token.info.token])
        (value,) = (counter.value for counter in record.usage.counters)
        assert record.revision == 1 + value
        return value

    for token in load.own:
        assert counted(token) == len(token.given) == len(redeemed[token.info.reference])
        for name, times in redeemed[token.info.reference].items():
            assert token.given[name] <= times <= token.given[name] + token.lost[name]
    given = sum((token.given for token in load.shared), Counter[str]())
    lost = sum((token.lost for token in load.shared), Counter[str]())
    shared = redeemed[load.shared[0].info.reference]
    assert counted(load.shared[0]) == len(shared) == shared.total() <= SHARED_USES_MAX
    assert given.keys() <= shared.keys() <= (given + lost).keys()

    told = dict(pair for pairs in load.issued for pair in pairs)
    told |= {token.info.token: token.pan for token in [*load.own, *load.shared]}
    extra = by_token.keys() - told.keys()
    assert told.keys() <= by_token.keys()
    assert len(extra) <= sum(load.issues_lost), "every record was asked for"
    about = {event.reference for event in done if event.action is Action.ISSUE}
    assert about == {row.reference for row in by_token.values()}
    for number, pan in told.items():
        _, card = ring.unseal(by_token[number])
        assert card is not None
        assert card.pan.reveal() == pan


# The server is restarted.


def restart_under_load(keys: KeyStore, restarts: int, rounds: int) -> int:
    """How many calls the restarts failed."""
    server = PostgresServer()
    try:
        with closing(tv.open_token_store(server.url())) as store:
            tv.provision(keys, store)
            load = Load([vaults.open_vault(keys, store)])
            with load.running():
                for _ in range(restarts):
                    load.everybody_works(rounds)
                    server.stop("immediate")
                    server.start()
                load.everybody_works(rounds)
            assert_counts_match(load, keys, store)
            return load.failures
    finally:
        server.remove()


def test_a_server_restarted_under_load_fails_calls_and_loses_no_count(local_keys: KeyStore) -> None:
    """As by a power cut, thrice. Calls succeed or raise TokenStoreError, and the same vault goes on."""
    assert restart_under_load(local_keys, restarts=3, rounds=5) >= 3


@pytest.mark.nightly
def test_a_server_restarted_many_times_under_load_loses_no_count(local_keys: KeyStore) -> None:
    assert restart_under_load(local_keys, restarts=30, rounds=20) >= 30


# Calls fail, wait, and lose their answers, one in so many.


def at_random(seed: int) -> Callable[[str], Fault | None]:
    source = random.Random(seed)
    faults = [FAIL, LOSE, LOSE, Fault(before_ms=0), Fault(after_ms=1), Fault(before_ms=1)]
    return lambda _: source.choice(faults) if source.random() < 0.15 else None


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def database(request: pytest.FixtureRequest, local_keys: KeyStore, tmp_path: Path) -> Iterator[TokenStore]:
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/vault.db"}.get(request.param)
    with closing(tv.open_token_store(url or request.getfixturevalue("postgres_url"))) as store:
        tv.provision(local_keys, store)
        yield store


def load_under_faults(keys: KeyStore, store: TokenStore, rounds: int) -> int:
    plan = at_random(7)
    failing = False
    faulty = FaultyTokenStore(store, lambda call: plan(call) if failing else None)
    load = Load([vaults.open_vault(keys, faulty) for _ in range(2)])
    failing = True
    with load.running():
        load.everybody_works(rounds)
    failing = False
    assert_counts_match(load, keys, store)
    return load.failures


def test_threads_over_a_store_that_fails_and_loses_answers_lose_no_count(
    local_keys: KeyStore, database: TokenStore
) -> None:
    assert load_under_faults(local_keys, database, rounds=12) > 10


@pytest.mark.nightly
def test_many_rounds_over_a_store_that_fails_and_loses_answers_lose_no_count(
    local_keys: KeyStore, database: TokenStore
) -> None:
    assert load_under_faults(local_keys, database, rounds=400) > 1_000
