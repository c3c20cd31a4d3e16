"""One database, many processes and threads: limits stay exact, cards converge, and kills lose nothing."""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import attrs
import pytest

import tokenvault as tv
from tests import softhsm, vault_workers, vaults
from tests.measuring import processes_unmeasured
from tests.postgres_server import PostgresServer
from tests.vault_workers import PROCESSES, REDEEMED, SECONDS_MAX, THREADS, WRITER_THREADS, Crew, Tries, Use
from tests.vaults import MASTERCARD, VISA, all_events, all_records, issue, use
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.keys import KeyStore
from tokenvault.records.keyring import KeyRing
from tokenvault.records.record import TokenRecord
from tokenvault.stores.port import TokenStore
from tokenvault.testing.token_store_harness import assert_counted

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")


@attrs.frozen
class Site:
    """Keys of one custody that every process can open, and a crew that did."""

    uri: str
    keys: KeyStore
    crew: Crew


@pytest.fixture(
    scope="module",
    params=[tv.Custody.IN_PROCESS, pytest.param(tv.Custody.IN_MODULE, marks=pytest.mark.nightly)],
    ids=lambda custody: custody.value,
)
def custody(request: pytest.FixtureRequest) -> tv.Custody:
    """Where the keys are: who contends for a row is the database's business, so by day in the processes."""
    return tv.Custody(request.param)


@pytest.fixture(scope="module")
def site(custody: tv.Custody, softhsm_folder: Path) -> Iterator[Site]:
    uri = softhsm.new_token(softhsm_folder)
    with closing(tv.open_key_store(uri)) as keys:
        tv.provision(keys, tv.open_token_store("memory:"), custody=custody)
        with vault_workers.crew(uri) as crew:
            yield Site(uri, keys, crew)


@attrs.frozen
class SqliteDatabase:
    """A file that the processes share."""

    url: str

    def settle(self) -> None:
        """Wait until nothing more is written for a process that was killed: its death ended that."""

    def assert_sound(self) -> None:
        with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@attrs.frozen
class PostgresDatabase:
    """A schema of a server that the processes share."""

    url: str
    server: PostgresServer
    _here_before: set[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_here_before", self._connections())

    def _connections(self) -> set[int]:
        with self.server.raw() as connection:
            of_stores = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tokenvault'"
            return {pid for (pid,) in connection.execute(of_stores)}

    def settle(self) -> None:
        """Wait until nothing more is written for a process that was killed: the server ends what it was sent."""
        deadline = time.monotonic() + SECONDS_MAX
        while not self._connections() <= self._here_before:
            assert time.monotonic() < deadline, "the server does not notice that its client is gone"
            time.sleep(0.005)

    def assert_sound(self) -> None:
        """That rows are whole is asserted by reading all of them."""


Database = SqliteDatabase | PostgresDatabase


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Database:
    opened: Database = SqliteDatabase(f"sqlite:///{tmp_path}/vault.db")
    if request.param == "postgres":
        server = request.getfixturevalue("postgres_server")
        opened = PostgresDatabase(server.new_url(), server)
    with closing(tv.open_token_store(opened.url)) as store:
        tv.provision(site.keys, store)
    return opened


@pytest.fixture
def url(database: Database) -> str:
    return database.url


@pytest.fixture
def store(url: str) -> Iterator[TokenStore]:
    with closing(tv.open_token_store(url)) as opened:
        yield opened


@pytest.fixture
def vault(site: Site, store: TokenStore) -> Iterator[tv.Vault]:
    with vaults.open_vault(site.keys, store) as opened:
        yield opened


def record_of(site: Site, store: TokenStore, token: str) -> TokenRecord:
    (row,) = store.get([token])
    return KeyRing(site.keys).unseal(row)[0]


def counted(record: TokenRecord) -> int:
    (value,) = (counter.value for counter in record.usage.counters)
    return value


def tries(
    token: str,
    each: int,
    amounts: random.Random | None = None,
    *,
    amount: int = 1,
    kind: tv.Kind = tv.Kind.PURCHASE,
    original: str | None = None,
) -> Tries:
    """So many uses for each thread of each process, every one with an id of its own."""

    def one(process: int, thread: int, number: int) -> Use:
        cents = amounts.randint(1, 500) if amounts else amount
        return Use(f"{process}-{thread}-{number}", cents, kind, original)

    return Tries(
        token,
        [
            [[one(process, thread, number) for number in range(each)] for thread in range(THREADS)]
            for process in range(PROCESSES)
        ],
    )


def tried(site: Site, url: str, what: Tries) -> list[Use]:
    return [found for answer in site.crew.run(url, vault_workers.redeem, what) for found in answer]


def assert_numbered_without_gap(store: TokenStore, total: int) -> None:
    """Every stream counts from 1, and together they hold so many events."""
    streams = [all_events(store, stream) for stream in store.streams()]
    for rows in streams:
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert sum(row.reference != row.stream for rows in streams for row in rows) == total  # checkpoints aside


# Limits.


def test_a_single_use_token_is_redeemed_once_by_64_contenders(
    site: Site, url: str, vault: tv.Vault, store: TokenStore
) -> None:
    """Each with another transaction id: one gets the card, all others learn that the uses are spent."""
    token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=1),))).token
    uses = tried(site, url, tries(token, 1))
    assert sorted(found.outcome for found in uses) == [*["USES_EXCEEDED"] * 63, REDEEMED]
    record = record_of(site, store, token)
    assert (counted(record), record.revision) == (1, 2)
    assert_numbered_without_gap(store, 1 + 64)


@pytest.mark.parametrize("per", [None, timedelta(days=30)], ids=["for life", "per window"])
def test_a_limit_of_50_uses_gives_50_to_contenders_for_192(
    site: Site, url: str, vault: tv.Vault, store: TokenStore, per: timedelta | None
) -> None:
    token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=50, per=per),))).token
    uses = tried(site, url, tries(token, 3))
    outcomes = [found.outcome for found in uses]
    assert (outcomes.count(REDEEMED), outcomes.count("USES_EXCEEDED")) == (50, 142)
    record = record_of(site, store, token)
    assert (counted(record), record.revision) == (50, 51)
    assert_numbered_without_gap(store, 1 + 192)


def test_a_limit_of_money_is_kept_to_the_minor_unit(
    site: Site, url: str, vault: tv.Vault, store: TokenStore
) -> None:
    """What was allowed adds up to the counter in the record; the rest, and no unit more, is still allowed."""
    most = 9_999
    limit = tv.Limit(amount=tv.Money(most, "EUR"), per=timedelta(days=30))
    token = issue(vault, domain=tv.Domain(limits=(limit,))).token
    uses = tried(site, url, tries(token, 3, random.Random(7)))
    allowed = [found.amount for found in uses if found.outcome == REDEEMED]
    assert {found.outcome for found in uses} == {REDEEMED, "AMOUNT_EXCEEDED"}
    record = record_of(site, store, token)
    assert sum(allowed) == counted(record) <= most
    assert record.revision == 1 + len(allowed)
    rest = most - sum(allowed)
    assert all(found.amount > rest for found in uses if found.outcome != REDEEMED), "a refused one would fit"
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(token, use("one more", amount=tv.Money(rest + 1, "EUR")))
    vault.detokenize(token, use("the rest", amount=tv.Money(rest, "EUR")))
    assert counted(record_of(site, store, token)) == most
    assert_numbered_without_gap(store, 1 + 192 + 2)


def test_one_transaction_retried_by_all_at_once_is_answered_to_all_and_counts_once(
    site: Site, url: str, vault: tv.Vault, store: TokenStore
) -> None:
    token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=1),))).token
    same = Tries(token, [[[Use("the same", 5)]] * THREADS] * PROCESSES)
    assert {found.outcome for found in tried(site, url, same)} == {REDEEMED}
    record = record_of(site, store, token)
    assert (counted(record), record.revision) == (1, 2)
    assert_numbered_without_gap(store, 1 + 64)


# What follows a use.

TWO_USES = tv.Domain(
    limits=(tv.Limit(uses=2), tv.Limit(amount=tv.Money(100_00, "EUR"), per=timedelta(days=30)))
)


def left(vault: tv.Vault, token: str) -> list[int]:
    return [remaining.left for remaining in vault.remaining(token)]


def paid(vault: tv.Vault) -> str:
    """A token with two uses of 60 and 40, which take all that its limits allow."""
    token = issue(vault, domain=TWO_USES).token
    for name, cents in (("paid", 60_00), ("kept", 40_00)):
        vault.detokenize(token, use(name, amount=tv.Money(cents, "EUR")))
    assert left(vault, token) == [0, 0]
    return token


def test_a_use_that_64_contenders_reverse_is_given_back_once(
    site: Site, url: str, vault: tv.Vault, store: TokenStore
) -> None:
    """Each with an id of its own: one gives it back, all others learn that nothing of it is open."""
    token = paid(vault)
    found = tried(site, url, tries(token, 1, amount=60_00, kind=tv.Kind.REVERSAL, original="tx-paid"))
    assert sorted(each.outcome for each in found) == [*["ORIGINAL_CLOSED"] * 63, REDEEMED]
    assert left(vault, token) == [1, 60_00]
    vault.detokenize(token, use("again", amount=tv.Money(60_00, "EUR")))
    assert left(vault, token) == [0, 0]
    assert_numbered_without_gap(store, 3 + 64 + 1)


def test_one_reversal_retried_by_all_at_once_is_answered_to_all_and_gives_back_once(
    site: Site, url: str, vault: tv.Vault, store: TokenStore
) -> None:
    token = paid(vault)
    same = Use("void", 60_00, tv.Kind.REVERSAL, "tx-paid")
    found = tried(site, url, Tries(token, [[[same]] * THREADS] * PROCESSES))
    assert {each.outcome for each in found} == {REDEEMED}
    assert left(vault, token) == [1, 60_00]
    assert_numbered_without_gap(store, 3 + 64)


def test_reversals_in_parts_by_contenders_give_back_what_was_taken_and_no_more(
    site: Site, url: str, vault: tv.Vault
) -> None:
    token = paid(vault)
    found = tried(site, url, tries(token, 1, amount=7_00, kind=tv.Kind.REVERSAL, original="tx-paid"))
    outcomes = [each.outcome for each in found]
    assert (outcomes.count(REDEEMED), outcomes.count("REVERSAL_EXCEEDS")) == (8, 56)
    assert left(vault, token) == [0, 56_00]


def test_partial_refunds_by_64_contenders_never_exceed_the_capture(
    site: Site, url: str, vault: tv.Vault
) -> None:
    """What was allowed adds up to at most the capture; the rest, and no unit more, is still allowed."""
    token, captured = paid(vault), 50_00
    capture = tv.Money(captured, "EUR")
    vault.detokenize(token, use("captured", kind=tv.Kind.CAPTURE, original="tx-paid", amount=capture))
    found = tried(site, url, tries(token, 1, random.Random(11), kind=tv.Kind.REFUND, original="tx-paid"))
    allowed = [each.amount for each in found if each.outcome == REDEEMED]
    assert sum(each.amount for each in found) > captured >= sum(allowed)
    assert {each.outcome for each in found} == {REDEEMED, "REFUND_EXCEEDS"}
    rest = captured - sum(allowed)
    assert all(each.amount > rest for each in found if each.outcome != REDEEMED), "a refused one would fit"

    def refund(number: int, cents: int) -> tv.Card:
        amount = tv.Money(cents, "EUR")
        more = use(f"refund-{number}", kind=tv.Kind.REFUND, original="tx-paid", amount=amount)
        return vault.detokenize(token, more)

    with pytest.raises(tv.DomainRestrictionError):
        refund(1, rest + 1)
    if rest:
        refund(2, rest)
    assert left(vault, token) == [0, 10_00], "limits count no refund"


# Suspension.


@pytest.mark.parametrize("many", [False, True])
def test_no_card_comes_out_of_another_process_once_a_suspension_has_returned(
    site: Site, url: str, vault: tv.Vault, many: bool
) -> None:
    """Also where that process had decided on the use before: its event is written behind a fence."""
    token = issue(vault).token
    answer, *_ = site.crew.run(url, vault_workers.use_beside_suspension, vault_workers.LateUse(token, many))
    assert answer == "refused"
    outcomes = [event.outcome.name for event in vault.history(token) if event.action is Action.DETOKENIZE]
    assert outcomes == ["DENIED"]


# Dual control.


def test_an_approval_gives_one_card_number_to_64_contenders(
    site: Site, url: str, vault: tv.Vault, store: TokenStore
) -> None:
    """One gets it, and each of the others leaves an event of its refusal."""
    token = issue(vault).token
    request = vault.request_reveal(token, operator="alice", purpose="chargeback")
    vault.approve(request, operator="bob")
    answers = site.crew.run(url, vault_workers.reveal, request.id)
    assert sorted(found for answer in answers for found in answer) == [VISA, *["REQUEST_USED"] * 63]
    outcomes = [event.outcome.name for event in vault.history(token) if event.action is Action.REVEAL]
    assert sorted(outcomes) == [*["DENIED"] * 63, "DONE"]
    assert_numbered_without_gap(store, 3 + 64)


# Convergence.


def test_processes_that_issue_the_same_200_cards_at_once_agree_on_200_tokens(
    site: Site, url: str, vault: tv.Vault, store: TokenStore
) -> None:
    first, *others = site.crew.run(url, vault_workers.converge, 200)
    assert all(other == first for other in others)
    assert len(set(first.values())) == 200
    rows = all_records(store)
    assert {row.token for row in rows} == set(first.values())
    assert {row.revision for row in rows} == {1}
    for number in range(0, 200, 20):
        assert vault.detokenize(first[number], use()).pan.reveal() == vault_workers.card_number(number)
    assert_numbered_without_gap(store, PROCESSES * 200 + 10)


# Kills.


def killed_at_random(
    site: Site, database: Database, first: int, most: int, source: random.Random
) -> dict[int, str]:
    """Let a process issue tokens, kill it at a random moment, and return every token that it told of."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    writer = context.Process(
        target=vault_workers.issue_for_ever, args=(site.uri, database.url, first, theirs)
    )
    with processes_unmeasured():
        writer.start()
    theirs.close()
    told = bytearray()
    try:
        wanted = source.randint(1, most)
        while told.count(b"\n") < wanted:
            assert ours.poll(SECONDS_MAX), "the writer does not write"
            told += os.read(ours.fileno(), 65_536)
        time.sleep(source.uniform(0, 0.004))  # anywhere within the next few writes
    finally:
        writer.kill()
        writer.join(SECONDS_MAX)
    while rest := os.read(ours.fileno(), 65_536):
        told += rest
    ours.close()
    writer.close()
    database.settle()
    lines = [line.split() for line in told.decode().splitlines()]
    return {int(number): token for number, token in lines}


def assert_nothing_half_done(site: Site, database: Database, told: dict[int, str], rounds: int) -> None:
    """Everything acknowledged is there; what is there beyond it is whole; the database is sound."""
    with closing(tv.open_token_store(database.url)) as store, vaults.open_vault(site.keys, store) as vault:
        rows = all_records(store)
        references = set()
        ring = KeyRing(site.keys)
        for row in rows:
            record, card = ring.unseal(row)
            assert card is not None
            assert vaults.VISA[:6] == card.pan.reveal()[:6]
            references.add(record.reference)
        events = {stream: all_events(store, stream) for stream in store.streams()}
        noted = [
            Event.parse(row)
            for of_stream in events.values()
            for row in of_stream
            if row.reference != row.stream
        ]
        assert all((event.action, event.outcome) == (Action.ISSUE, Outcome.DONE) for event in noted)
        assert {event.reference for event in noted} == references
        assert len(noted) == len(references) == len(rows)
        assert_counted(store)
        assert set(told.values()) <= {row.token for row in rows}
        assert len(rows) <= len(told) + rounds * WRITER_THREADS, (
            "at most one a thread was written and not told"
        )
        for of_stream in events.values():  # a number that a killed thread had taken is missing, no other
            assert (
                0 <= of_stream[-1].number - len(of_stream) < 2 * WRITER_THREADS
            )  # an event, or with a checkpoint
        assert tv.verify_audit(store, keys=site.keys).intact
        for number, token in told.items():
            assert vault.detokenize(token, use(number)).pan.reveal() == vault_workers.card_number(number)
    database.assert_sound()


def kill_writers(site: Site, database: Database, rounds_max: int, issues_min: int, most: int) -> int:
    """Kill one writer after the other; how many tokens they told of."""
    source = random.Random()
    told: dict[int, str] = {}
    rounds = 0
    while rounds < rounds_max and len(told) < issues_min:
        fresh = killed_at_random(site, database, 1_000_000 * rounds, most, source)
        assert fresh.keys().isdisjoint(told)
        told |= fresh
        rounds += 1
    assert_nothing_half_done(site, database, told, rounds)
    return len(told)


def test_a_writer_killed_at_any_moment_leaves_whole_records_and_all_it_told_of(
    site: Site, database: Database
) -> None:
    assert kill_writers(site, database, rounds_max=2, issues_min=10**6, most=60) > 0


@pytest.mark.nightly
def test_ten_thousand_issues_under_kills_lose_nothing(site: Site, database: Database) -> None:
    assert kill_writers(site, database, rounds_max=1_000, issues_min=10_000, most=300) >= 10_000


# Forks.


@needs_fork
def test_forked_children_go_on_with_streams_of_their_own(
    site: Site, vault: tv.Vault, store: TokenStore
) -> None:
    """The vault was opened and used before the forks, and threads of the parent use it meanwhile."""
    token = issue(vault).token
    context = multiprocessing.get_context("fork")
    stop = threading.Event()
    parent_uses = [0, 0]

    def go_on(thread: int) -> None:
        while not stop.is_set():
            assert vault.detokenize(token, use(f"parent-{thread}")).pan.reveal() == VISA
            parent_uses[thread] += 1

    def child(number: int) -> None:
        def each(thread: int) -> None:
            assert vault.detokenize(token, use(f"{number}-{thread}")).pan.reveal() == VISA
            info = issue(vault, MASTERCARD)
            assert vault.detokenize(info.token, use()).pan.reveal() == MASTERCARD

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(each, range(4)))

    with ThreadPoolExecutor(2) as pool:
        going = [pool.submit(go_on, thread) for thread in range(2)]
        try:
            children = [context.Process(target=functools.partial(child, number)) for number in range(3)]
            for process in children:
                process.start()
            for process in children:
                process.join(SECONDS_MAX)
        finally:
            stop.set()
        for task in going:
            task.result(SECONDS_MAX)
    assert [process.exitcode for process in children] == [0, 0, 0]
    sizes = []
    for stream in store.streams():
        rows = all_events(store, stream)
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))
        sizes.append(sum(row.reference != row.stream for row in rows))  # checkpoints aside
    assert sorted(sizes) == sorted([12, 12, 12, 1 + sum(parent_uses)])
    issue(vault)
    assert_numbered_without_gap(store, 36 + 1 + sum(parent_uses) + 1)
    report = tv.verify_audit(store, keys=site.keys)
    assert report.intact
    assert report.streams == 4
