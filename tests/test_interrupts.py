"""An exception at any instant of a call ends that call and nothing else: no lock, connection or number is lost.

The interrupts are real: a signal's handler raises in the main thread, and threads get exceptions set.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import attrs
import pytest

import tokenvault as tv
from tests import vaults
from tests.interrupts import InterruptedThread, interrupt, interrupt_thread
from tests.vaults import SHOP, VISA, issue, use
from tokenvault.audit.event import Event
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import TokenStore
from tokenvault.stores.postgres.store import PostgresTokenStore
from tokenvault.stores.sqlite.store import SqliteTokenStore

CALL_SECONDS_MAX = 30.0
"""No call takes longer: what one waits for in the library has a bound below it, or was never lost."""

SCARCE_USES = 20


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/vault.db"}.get(request.param)
    return str(url or request.getfixturevalue("postgres_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[TokenStore]:
    with closing(tv.open_token_store(database_url)) as opened:
        yield opened


@attrs.define
class Driven:
    """A vault under interrupts, and what is known of it.

    Attributes:
        cards, scarce_cards: transactions of the token with many uses, and of that with few, that returned a card.
        interrupted: how many calls were.
    """

    keys: KeyStore
    store: TokenStore
    chance: random.Random
    vault: tv.Vault = attrs.field(init=False)
    limited: str = attrs.field(init=False)
    plain: str = attrs.field(init=False)
    changed: str = attrs.field(init=False)
    scarce: str = attrs.field(init=False)
    cards: set[str] = attrs.field(factory=set)
    scarce_cards: set[str] = attrs.field(factory=set)
    interrupted: int = 0
    calls: int = 0

    def __attrs_post_init__(self) -> None:
        tv.provision(self.keys, self.store)
        self.open()
        limits = (tv.Limit(uses=10**6),)
        self.limited = issue(self.vault, domain=tv.Domain(limits=limits)).token
        few = (tv.Limit(uses=SCARCE_USES),)
        self.scarce = issue(self.vault, domain=tv.Domain(limits=few)).token
        self.plain = issue(self.vault).token
        self.changed = issue(self.vault).token

    def open(self) -> None:
        self.vault = tv.Vault(
            self.keys,
            self.store,
            programs=vaults.PROGRAMS,
            requestors=vaults.REQUESTORS,
            checkpoints=tv.CheckpointPolicy(events=20, seconds=3_600),
        )

    def count(self) -> None:
        self.calls += 1
        presented = f"counted-{self.calls}"
        self.vault.detokenize(self.limited, tv.Transaction(id=presented, requestor=SHOP))
        self.cards.add(presented)

    def count_scarce(self) -> None:
        self.calls += 1
        presented = f"scarce-{self.calls}"
        with suppress(tv.DomainRestrictionError):
            self.vault.detokenize(self.scarce, tv.Transaction(id=presented, requestor=SHOP))
            self.scarce_cards.add(presented)

    def use(self) -> None:
        self.calls += 1
        assert self.vault.detokenize(self.plain, use(self.calls)).pan.reveal() == VISA

    def decide(self) -> None:
        self.calls += 1
        self.vault.check(self.plain, use(self.calls))

    def change(self) -> None:
        with suppress(tv.LifecycleError):  # interrupted in between, the last time
            self.vault.suspend(self.changed, by=tv.Actor.REQUESTOR)
        self.vault.resume(self.changed, by=tv.Actor.REQUESTOR)

    def update(self) -> None:
        merchants = {f"M-{self.chance.randrange(9)}"}
        token = issue(self.vault).token
        self.vault.update_domain(token, tv.Domain(merchants=merchants))

    def use_many(self) -> None:
        self.calls += 1
        self.vault.detokenize_many([(self.plain, use(f"{self.calls}-{row}")) for row in range(2)])

    def issue_many(self) -> None:
        self.vault.issue_many([VISA, vaults.MASTERCARD], requestor=SHOP, program="one-time")

    def close(self) -> None:
        self.vault.close()

    def actions(self) -> list[Callable[[], None]]:
        return [
            self.count, self.count_scarce, self.use, self.decide, self.change, self.update, self.use_many,
            self.issue_many, self.close,
        ]  # fmt: skip

    def mend(self) -> None:
        """Everything works again after an interrupt, at the next call and soon."""
        begun = time.monotonic()
        self.close()
        self.open()
        assert time.monotonic() - begun < CALL_SECONDS_MAX

    def assert_whole(self) -> None:
        self.change()
        self.count()
        self.use()
        for _ in range(SCARCE_USES + 1):
            self.count_scarce()
        self.vault.close()
        report = tv.verify_audit(self.store, keys=self.keys)
        assert report.intact, report.findings
        assert report.gaps == 0
        for cards, token in ((self.cards, self.limited), (self.scarce_cards, self.scarce)):
            counted = self.counted(token)
            assert len(counted) == len(set(counted))
            assert cards <= set(counted), "a card without its event"
            assert len(set(counted) - cards) <= self.interrupted
        assert len(self.counted(self.scarce)) == SCARCE_USES
        self.assert_nothing_held()

    def counted(self, token: str) -> list[str | None]:
        """The transactions of all events that count a use of a token."""
        (row,) = self.store.get([token])
        rows = [row for stream in self.store.streams() for row in vaults.all_events(self.store, stream)]
        events = [Event.parse(event) for event in rows if event.reference == row.reference]
        return [event.transaction_id for event in events if event.revision > 1]

    def assert_nothing_held(self) -> None:
        store = self.store
        if isinstance(store, SqliteTokenStore):
            pool = store._pool
            assert pool._readers.open_count == pool._writers.open_count == 0
            assert pool._readers._free.qsize() == len(pool._readers._every)
            assert pool._writers._free.qsize() == 1
        elif isinstance(store, PostgresTokenStore):
            slots = store._pool_here()
            assert slots._free.qsize() == len(slots._slots)  # type: ignore[attr-defined] # for threads
            assert not any(slots._slots)
        else:
            assert isinstance(store, MemoryTokenStore)
            assert not store._lock.locked()
        assert not self.vault._calls


IMPORTED_IN_CALLS = """
import sys, random
import tokenvault as tv
from tests.test_interrupts import Driven
keys, store = tv.open_key_store(sys.argv[1]), tv.open_token_store(sys.argv[2])
tv.provision(keys, store)
driven = Driven(keys, store, random.Random(1))
before = set(sys.modules)
for action in driven.actions():
    action()
print(sorted(set(sys.modules) - before))
"""


def test_no_call_imports_a_module(database_url: str, tmp_path: Path) -> None:
    """Python's own lock of imports stays held where an interrupt strikes in one: then nobody imports any more."""
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse battery staple")
    passphrase.chmod(0o600)
    keys = f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/passphrase"
    command = [sys.executable, "-c", IMPORTED_IN_CALLS, keys, database_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def drive(driven: Driven, interrupts: int) -> None:
    each = 0.0
    for _ in range(5):
        begun = time.perf_counter()
        driven.count()
        each = max(each, time.perf_counter() - begun)
    for _ in range(interrupts):
        action = driven.chance.choice(driven.actions())
        begun = time.monotonic()
        driven.interrupted += 1
        assert interrupt(action, driven.chance, driven.chance.choice((1.2, 5)) * each)
        if driven.vault._core is None or action == driven.close:
            driven.mend()
        driven.count()  # the next call works
        assert time.monotonic() - begun < CALL_SECONDS_MAX
    driven.assert_whole()


def drive_with_module(uri: str, folder: Path, chance: random.Random, interrupts: int) -> None:
    url = f"sqlite:///{folder}/vault.db"
    with closing(tv.open_key_store(uri)) as keys, closing(tv.open_token_store(url)) as store:
        tv.provision(keys, store, custody=tv.Custody.IN_MODULE)
        drive(Driven(keys, store, chance), interrupts)


@pytest.mark.usefixtures("handled")
def test_a_vault_is_whole_after_interrupts_at_random_instants(
    local_keys: KeyStore, database: TokenStore
) -> None:
    drive(Driven(local_keys, database, random.Random(1)), 450)


@pytest.mark.usefixtures("handled")
def test_a_vault_with_keys_in_the_module_is_whole_after_interrupts_at_random_instants(
    softhsm_uri: str, tmp_path: Path
) -> None:
    drive_with_module(softhsm_uri, tmp_path, random.Random(2), 250)


@pytest.mark.nightly
@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("seed", range(10))
def test_a_vault_is_whole_after_very_many_interrupts(
    local_keys: KeyStore, database: TokenStore, seed: int
) -> None:
    drive(Driven(local_keys, database, random.Random(seed)), 3_100)


@pytest.mark.nightly
@pytest.mark.usefixtures("handled")
def test_a_vault_with_keys_in_the_module_is_whole_after_very_many_interrupts(
    softhsm_uri: str, tmp_path: Path
) -> None:
    drive_with_module(softhsm_uri, tmp_path, random.Random(3), 7_000)


@pytest.mark.usefixtures("untraced")
def test_threads_that_get_exceptions_set_harm_no_other_thread(
    local_keys: KeyStore, database: TokenStore
) -> None:
    driven = Driven(local_keys, database, random.Random(4))
    stop = threading.Event()
    counts = [0] * 3

    def work(place: int) -> None:
        while not stop.is_set():
            try:
                while not stop.is_set():
                    driven.vault.detokenize(driven.plain, use(f"{place}-{counts[place]}"))
                    counts[place] += 1
            except InterruptedThread:
                pass

    def forgiving(place: int) -> None:
        while not stop.is_set():
            with suppress(InterruptedThread):
                work(place)

    threads = [threading.Thread(target=forgiving, args=(place,), daemon=True) for place in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(150):
        interrupt_thread(driven.chance.choice(threads))
        time.sleep(driven.chance.uniform(0, 0.004))
    time.sleep(0.02)
    before = list(counts)
    deadline = time.monotonic() + CALL_SECONDS_MAX
    while any(now == then for now, then in zip(counts, before, strict=True)):
        assert time.monotonic() < deadline, "a thread waits for what is lost"
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join(CALL_SECONDS_MAX)
        assert not thread.is_alive()
    driven.assert_whole()
