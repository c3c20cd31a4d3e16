"""The whole vault while its store and its keys fail, wait and lose answers."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import tokenvault as tv
from tests import vaults
from tests.postgres_server import PostgresServer
from tests.vault_workers import card_number
from tokenvault.audit.event import Event
from tokenvault.audit.journal import Entry, Journal
from tokenvault.audit.trail import Trail
from tokenvault.keys import KeyStore
from tokenvault.model.counters import Usage
from tokenvault.model.domain import NO_RESTRICTION
from tokenvault.model.ledger import Uses
from tokenvault.runtime import run as run_flow
from tokenvault.stores.forwarding import BlockingStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import Fence, SealedEvent, SealedRecord, TokenStore
from tokenvault.testing.faults import Failure, Fault, FaultyTokenStore
from tokenvault.testing.vault_machine import FaultyVaultMachine
from tokenvault.vault import documents as vault_documents
from tokenvault.vault.documents import Documents
from tokenvault.vault.issue import DRAWS_MAX


class MemoryMachine(FaultyVaultMachine):
    keys_of_all: ClassVar[KeyStore]

    def open_keys(self) -> KeyStore:
        return self.keys_of_all

    def open_store(self) -> TokenStore:
        return tv.open_token_store("memory:")


class SqliteMachine(MemoryMachine):
    def open_store(self) -> TokenStore:
        # On a disk in memory where there is one: thousands of fsync calls prove nothing here.
        shm = Path("/dev/shm")  # noqa: S108 # a fresh folder in it
        self.folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
        return tv.open_token_store(f"sqlite:///{self.folder}/vault.db")

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


class PostgresMachine(MemoryMachine):
    server: ClassVar[PostgresServer]

    def open_store(self) -> TokenStore:
        return tv.open_token_store(self.server.new_url())


def run(machine: type[MemoryMachine], keys: KeyStore, examples: int, steps: int, **more: object) -> None:
    class Bound(machine):  # type: ignore[misc, valid-type] # a class of its own for these keys
        keys_of_all = keys

    health = list(HealthCheck)
    usual = settings(max_examples=examples, stateful_step_count=steps, suppress_health_check=health)
    run_state_machine_as_test(Bound, settings=settings(usual, **more))  # type: ignore[arg-type] # passed on


@pytest.mark.parametrize(
    ("machine", "examples"),
    # Over SQLite the same lines are measured.
    [pytest.param(MemoryMachine, 60, marks=pytest.mark.unmeasured), (SqliteMachine, 15)],
)
def test_a_vault_under_faults_loses_nothing_and_gives_nothing_away(
    local_keys: KeyStore, machine: type[MemoryMachine], examples: int
) -> None:
    run(machine, local_keys, examples, 40)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("machine", "examples"), [(MemoryMachine, 1_500), (SqliteMachine, 300), (PostgresMachine, 150)]
)
def test_long_lives_under_faults_lose_nothing_and_give_nothing_away(
    local_keys: KeyStore, postgres_server: PostgresServer, machine: type[MemoryMachine], examples: int
) -> None:
    PostgresMachine.server = postgres_server
    run(machine, local_keys, examples, 80)


@pytest.mark.parametrize("program", ["one-time", "card-on-file"])
@pytest.mark.parametrize("failure", Failure)
def test_a_token_never_stands_without_its_domain_document(
    keys: KeyStore, store: TokenStore, program: str, failure: Failure
) -> None:
    """Not even where the write that brought both failed, or was refused, and another of the same vault came after."""
    failures = iter([Fault(failure)])
    faulty = FaultyTokenStore(store, lambda call: next(failures, None) if call == "insert" else None)
    vault = vaults.open_vault(keys, faulty)
    domain = tv.Domain(merchants={"M-1"})
    with pytest.raises(tv.TokenStoreError):
        vaults.issue(vault, program=program, domain=domain)
    vaults.issue(vault, program=program, domain=domain)
    other = vaults.open_vault(keys, store)
    records = vaults.all_records(store)
    assert len(records) == (2 if program == "one-time" and failure is Failure.ANSWER_LOST else 1)
    for record in records:
        assert other.check(record.token, vaults.use(merchant="M-1")).allowed
        assert not other.check(record.token, vaults.use(merchant="M-2")).allowed


class Crowded(MemoryTokenStore):
    """Its next few tokens are taken."""

    taken = 0

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        if self.taken:
            self.taken -= 1
            return [records[0].token]
        return super()._insert(records, events, document)


@pytest.mark.parametrize("taken", [0, 1, DRAWS_MAX - 1, DRAWS_MAX, DRAWS_MAX + 1])
def test_a_token_that_was_drawn_again_stands_with_its_domain_document(
    local_keys: KeyStore, taken: int
) -> None:
    store = Crowded()
    tv.provision(local_keys, store)
    vault = vaults.open_vault(local_keys, store)
    vaults.issue(vault)
    store.taken = taken
    token = vaults.issue(vault, domain=tv.Domain(merchants={"M-1"})).token
    assert store.taken == 0
    assert vaults.open_vault(local_keys, store).check(token, vaults.use(merchant="M-1")).allowed


def test_a_later_candidate_stands_with_its_domain_document(local_keys: KeyStore) -> None:
    """Nine cards for ten tokens: nearly always some converge on one that another card has."""
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    vault = vaults.open_vault(local_keys, store)
    tokens = [
        vaults.issue(
            vault, card_number(n), program="tiny-convergent", domain=tv.Domain(merchants={f"M-{n}"})
        ).token
        for n in range(9)
    ]
    other = vaults.open_vault(local_keys, store)
    assert all(other.check(token, vaults.use(merchant=f"M-{n}")).allowed for n, token in enumerate(tokens))


def test_a_document_that_is_gone_comes_back_with_the_next_token(local_keys: KeyStore) -> None:
    """A token that there is already says nothing of its document: a vault that found one writes it all the same."""
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    domain = tv.Domain(merchants={"M-1"})
    vaults.issue(vaults.open_vault(local_keys, store), program="card-on-file", domain=domain)
    store._domains.clear()
    vault = vaults.open_vault(local_keys, store)
    vaults.issue(vault, program="card-on-file", domain=domain)
    token = vaults.issue(vault, domain=domain).token
    assert vaults.open_vault(local_keys, store).check(token, vaults.use(merchant="M-1")).allowed


def test_large_domains_push_each_other_out_of_memory(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may issue tokens chooses domains: what a vault keeps of them is bounded in bytes, as in number."""
    monkeypatch.setattr(vault_documents, "DOCUMENT_BYTES_CACHED_MAX", 300_000)
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    vault = vaults.open_vault(local_keys, store)
    tokens = []
    for number in range(20):
        domain = tv.Domain(merchants={f"{number:04}-{merchant:040}" for merchant in range(900)})
        tokens.append(vaults.issue(vault, domain=domain).token)
        vault.check(tokens[-1], vaults.use())
        documents = vault._core.documents if vault._core else None
        assert documents is not None
        kept = {
            *documents._domains.values(),
            *(each.restrictions.token for each in documents._restrictions.values()),
        }
        assert sum(len(each.document) for each in kept) <= 300_000
    assert len(kept) < 10
    for number, token in enumerate(tokens):
        assert vault.check(token, vaults.use(merchant=f"{number:04}-{7:040}")).allowed


def test_the_empty_domain_is_known_at_any_time(local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while other threads' domains push each other out of the memory of a vault."""
    monkeypatch.setattr(vault_documents, "DOMAINS_CACHED_MAX", 3)
    documents = Documents(BlockingStore(MemoryTokenStore()))
    others = [tv.Domain(merchants={f"M-{n}"}) for n in range(10)]
    stop = threading.Event()

    def crowd() -> None:
        while not stop.is_set():
            for other in others:
                documents.written(other)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=crowd)
    thread.start()
    try:
        sys.setswitchinterval(1e-6)
        for _ in range(100_000):
            assert run_flow(documents.get(NO_RESTRICTION.digest)) is NO_RESTRICTION
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


# What the machine is worth: each of these defects is found.


class LosesEvents(MemoryTokenStore):
    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        return super()._replace(records, [], fence)


class ForgetsRecords(MemoryTokenStore):
    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        return super()._replace([], events, fence)


def assert_found(keys: KeyStore, store: type[MemoryTokenStore] = MemoryTokenStore) -> None:
    class Defective(MemoryMachine):
        def open_store(self) -> TokenStore:
            return store()

    # Without shrinking: what failed does not matter here. The same examples each time, and nothing is left behind.
    quick = {
        "phases": (Phase.generate,),
        "derandomize": True,
        "database": None,
        "report_multiple_bugs": False,
    }
    with pytest.raises(AssertionError):
        run(Defective, keys, 600, 20, **quick)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("store", [LosesEvents, ForgetsRecords])
def test_the_machine_finds_a_store_that_breaks_its_promises(
    local_keys: KeyStore, store: type[MemoryTokenStore]
) -> None:
    assert_found(local_keys, store)


@pytest.mark.usefixtures("untraced")
def test_the_machine_finds_a_vault_that_hands_out_a_card_without_its_event(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Trail.note

    async def careless(trail: Trail, event: Event) -> None:
        with suppress(tv.TokenStoreError):
            await note(trail, event)

    monkeypatch.setattr(Trail, "note", careless)
    assert_found(local_keys)


@pytest.mark.usefixtures("untraced")
def test_the_machine_finds_a_vault_that_forgets_which_writes_are_in_doubt(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "doubts", lambda self: [])
    assert_found(local_keys)


@pytest.mark.usefixtures("untraced")
def test_the_machine_finds_a_vault_that_gives_numbers_in_doubt_again(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubts = Journal.doubts

    def careless(journal: Journal) -> list[Entry]:
        for entry in doubts(journal):
            journal.withdraw(entry)
        return []

    monkeypatch.setattr(Journal, "doubts", careless)
    assert_found(local_keys)


@pytest.mark.usefixtures("untraced")
def test_the_machine_finds_a_vault_that_counts_a_retry_again(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Uses, "before", property(lambda uses: None))
    assert_found(local_keys)


@pytest.mark.usefixtures("untraced")
def test_the_machine_finds_a_vault_that_counts_nothing(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Usage, "used", lambda self, key, window: 0)
    assert_found(local_keys)
