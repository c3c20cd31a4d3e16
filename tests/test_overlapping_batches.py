"""Batches into a database that is waited for: the next chunk is prepared meanwhile, and nothing else changes."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from functools import partial
from itertools import chain, count
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pytest

import tokenvault as tv
from tests import vaults
from tests.postgres_server import PostgresServer
from tests.test_batches import CountingStore, in_chunks, many, texts
from tests.vaults import SHOP
from tokenvault import runtime as ports
from tokenvault.audit.batch_event import BATCH, items, parse
from tokenvault.columns.random import uniform
from tokenvault.keys import KeyStore
from tokenvault.stores.port import TokenStore
from tokenvault.vault.batch import issue as issue_many

SECONDS_MAX = 20.0
T = TypeVar("T")
U = TypeVar("U")


class Watched(CountingStore):
    """A store over which batches overlap, and which is asked for one write at a time."""

    overlaps = True

    def __init__(self, store: TokenStore) -> None:
        super().__init__(store)
        self.inserting = threading.Lock()
        self.in_the_way: list[str] = []

    def insert(self, *arguments: Any) -> Any:
        assert self.inserting.acquire(blocking=False), "one chunk is written after the other"
        try:
            self.calls.append("insert")
            self.before("insert")
            found = self._store.insert(*arguments)
            self.in_the_way += found
            return found
        finally:
            self.inserting.release()


@pytest.fixture
def watched(local_keys: KeyStore) -> Watched:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    return Watched(store)


@pytest.fixture
def vault(local_keys: KeyStore, watched: Watched) -> Iterator[tv.Vault]:
    opened: Any = watched
    with vaults.open_vault(local_keys, opened) as vault:
        yield vault


def issue_random(vault: tv.Vault, cards: Any, size: int = 5) -> tv.IssueBatchResult[tv.TokenInfo]:
    """A batch of a RANDOM program, in chunks of so many cards."""
    return in_chunks(vault, size).issue_many(cards, requestor=SHOP, program="one-time")


def issued_in_order(vault: tv.Vault, watched: Watched, found: tv.IssueBatchResult[tv.TokenInfo]) -> None:
    """The outcomes are those of the cards, in order, and one event a chunk lists them in that order."""
    assert [info.last4 for info in found if isinstance(info, tv.TokenInfo)] == [
        pan[-4:] for row, (pan, _) in enumerate(many(len(found))) if row not in found.errors
    ]
    listed = [
        item.reference.hex() for row in watched._store.events(reference=BATCH) for item in items(parse(row))
    ]
    assert listed == [info.reference for info in found if isinstance(info, tv.TokenInfo)]
    assert all(vault.get(info.token) == info for info in found if isinstance(info, tv.TokenInfo))


def test_a_chunk_is_prepared_while_the_one_before_is_written(vault: tv.Vault, watched: Watched) -> None:
    """Each write waits here until the next chunk was looked for. Cards are taken in the caller's thread."""
    looked = threading.Semaphore(0)
    ahead = []
    taken = 0

    def wait(name: str) -> None:
        if name == "get":
            looked.release()
        elif name == "insert":
            written = 5 * (watched.calls.count("insert") - 1)
            for _ in range(2 if written == 0 else written < 15):  # the last chunk has none behind it
                assert looked.acquire(timeout=SECONDS_MAX)
            ahead.append(taken - written)

    def cards() -> Iterator[tuple[str, str]]:
        nonlocal taken
        for card in many(18):
            taken += 1
            assert threading.current_thread() is threading.main_thread()
            yield card

    watched.before = wait
    found = issue_random(vault, cards())
    watched.before = lambda _: None
    assert not found.failed
    assert ahead == [10, 10, 8, 3]
    issued_in_order(vault, watched, found)


def test_tokens_of_the_chunk_on_its_way_are_not_drawn_again(
    vault: tv.Vault, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor those that the database has: a write never meets a token, which the database would log."""
    first = vault.issue_many(many(10), requestor=SHOP, program="one-time")
    there = [int(token[6:-1]) for token in texts(first)]
    draws = chain([there[:5]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5]], [[1, 6, 7, 8, 9]])

    def drawn(number: int, below: int) -> Any:
        planned = next(draws, None) if number == 5 else None
        return uniform(number, below) if planned is None else np.array(planned, np.uint64)

    monkeypatch.setattr("tokenvault.vault.batch.draw.uniform", drawn)
    found = issue_random(vault, many(30))
    assert next(draws, None) is None
    assert not found.failed
    assert len({*texts(first), *texts(found)}) == 40
    assert watched.in_the_way == []
    assert all(vault.get(info.token) == info for info in found if isinstance(info, tv.TokenInfo))


@pytest.mark.parametrize("broken", ["insert", "get"])
def test_a_chunk_that_fails_leaves_the_prepared_one_as_single_calls_would(
    vault: tv.Vault, watched: Watched, broken: str
) -> None:
    """The next chunk is tried, after two failures in a row the rest is not, and the audit trail has no gap."""
    for away, failed, tried in (
        ({1}, range(5, 10), 6),
        ({1, 3}, chain(range(5, 10), range(15, 20)), 6),
        ({2, 3}, range(10, 30), 4),
        ({5}, range(25, 30), 6),
    ):
        turns = count()

        def fail(name: str, away: set[int] = away, turns: Iterator[int] = turns) -> None:
            if name == broken and next(turns) in away:
                raise tv.TokenStoreError("the database is away")

        before = len(watched._store.events(reference=BATCH))
        watched.before = fail
        found = issue_random(vault, many(30))
        watched.before = lambda _: None
        assert len(found) == 30
        assert list(found.errors) == list(failed)
        assert all(type(error) is tv.TokenStoreError for error in found.errors.values())
        assert next(turns) == tried
        assert len(watched._store.events(reference=BATCH)) - before == 6 - len(found.errors) // 5
    assert all(vault.get(info.token) == info for info in found if isinstance(info, tv.TokenInfo))


def test_a_key_store_that_is_away_fails_the_chunk_that_asked_it(
    local_keys: KeyStore, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the one that is being written meanwhile, whichever of them fails, too."""
    opened: Any = watched
    with vaults.open_vault(local_keys, opened) as vault:
        seal_many = vault._core.keys.seal_many  # type: ignore[union-attr] # it is open
        turns = count()

        def failing(*arguments: Any) -> Any:
            if next(turns) in (1, 4):
                raise tv.KeyStoreError("the module is away")
            return seal_many(*arguments)

        with mock.patch("tokenvault.records.keyring.KeyRing.seal_many", side_effect=failing):
            inserts = count()

            def fail(name: str) -> None:
                if (
                    name == "insert" and next(inserts) == 2
                ):  # of the fourth chunk: one before was never written
                    raise tv.TokenStoreError("the database is away")

            watched.before = fail
            found = issue_random(vault, many(40))
        watched.before = lambda _: None
    kinds = [type(found.errors.get(row)) for row in range(0, 40, 5)]
    none = type(None)
    assert kinds == [none, tv.KeyStoreError, none, tv.TokenStoreError, *[tv.KeyStoreError] * 4]
    assert len(found.errors) == 30


def test_an_iterator_that_fails_leaves_whole_chunks(vault: tv.Vault, watched: Watched) -> None:
    """Also the one that is on its way when the iterator fails, or its thread is interrupted."""
    for error, expected in (
        (RuntimeError("x"), tv.InvalidInputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):

        def cards(error: BaseException = error) -> Iterator[tuple[str, str]]:
            yield from many(12)
            raise error

        before = len(watched._store.events(reference=BATCH))
        with pytest.raises(expected):
            issue_random(vault, cards())
        assert not watched.inserting.locked()
        assert len(watched._store.events(reference=BATCH)) - before == 2


def test_two_flows_end_together_whatever_they_raise() -> None:
    """What the second raises comes before what the first raises; the first has ended by then."""
    ended = threading.Event()

    async def first(error: BaseException | None) -> str:
        ended.clear()
        threading.Event().wait(0.05)
        ended.set()
        if error is not None:
            raise error
        return threading.current_thread().name

    async def second(error: BaseException | None) -> str:
        if error is not None:
            raise error
        return threading.current_thread().name

    assert together(partial(first, None), second(None)) == (
        "tokenvault",
        threading.current_thread().name,
    )
    for one, other, expected in (
        (ValueError(), None, ValueError),
        (None, KeyError(), KeyError),
        (ValueError(), KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(), None, SystemExit),
    ):
        with pytest.raises(expected):
            together(partial(first, one), second(other))
        assert ended.is_set()
    with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
        here = threading.current_thread().name
        assert together(partial(first, None), second(None)) == (here, here)


def together(
    first: Callable[[], Coroutine[None, None, T]],
    second: Coroutine[None, None, U],
    stop: Callable[[], None] = lambda: None,
) -> tuple[T, U]:
    """Run two flows beside each other."""
    return ports.run(ports.beside(first, second, stop))


class _AlarmError(BaseException):
    """What a signal's handler may raise."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, _AlarmError])
def test_an_interrupt_waits_for_the_write_and_tells_it_to_end_soon(error: type[BaseException]) -> None:
    """Whatever the signal's handler raises, more than once too, while the thread is waited for."""
    ended, stopped = threading.Event(), threading.Event()
    main = threading.main_thread().ident or 0

    def handler(*_: object) -> None:
        raise error

    async def first() -> None:
        for _ in range(3):
            threading.Event().wait(0.05)
            signal.pthread_kill(main, signal.SIGUSR1)
        assert stopped.wait(SECONDS_MAX)
        threading.Event().wait(0.1)
        ended.set()

    async def second() -> None:
        pass

    former = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(error):
            together(first, second(), stopped.set)
        assert ended.is_set()
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_a_thread_whose_start_is_interrupted_writes_nothing_afterwards(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """It has ended by then, or never begins; and no coroutine is left that nobody awaits."""
    begun, ended = threading.Event(), threading.Event()
    bootstrap = threading.Thread._bootstrap_inner  # type: ignore[attr-defined] # what a new thread runs first
    late = 0.0

    def started_late(thread: threading.Thread) -> None:
        time.sleep(late)
        bootstrap(thread)

    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        wait(event, 0.05)
        raise KeyboardInterrupt

    async def first() -> None:
        begun.set()
        time.sleep(0.1)
        ended.set()

    async def second() -> None:
        pass

    wait = threading.Event.wait
    monkeypatch.setattr(threading.Thread, "_bootstrap_inner", started_late)
    start = threading.Thread.start

    def start_interrupted(thread: threading.Thread) -> None:
        with mock.patch.object(type(thread._started), "wait", interrupted):  # type: ignore[attr-defined] # as above
            start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_interrupted)
    for late in (0.0, 0.2):
        begun.clear()
        ended.clear()
        with pytest.raises(KeyboardInterrupt):
            together(first, second())
        assert begun.is_set() == ended.is_set()
        time.sleep(0.4)
        assert begun.is_set() == ended.is_set() == (late == 0.0)
    gc.collect()
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]


def test_after_an_interrupt_no_more_single_calls_are_made(vault: tv.Vault, watched: Watched) -> None:
    """The write under way ends; what is left to single calls is not begun."""

    def before(name: str) -> None:
        if name == "insert":
            threading.Event().wait(0.02)

    def cards() -> Iterator[tuple[str, str]]:
        for number, card in enumerate(many(40)):
            if number == 15:
                raise KeyboardInterrupt
            yield card

    every = mock.patch.object(issue_many, "WRITES_MAX", 0)  # so that all is left to single calls
    watched.before = before
    with every, pytest.raises(KeyboardInterrupt):
        issue_random(vault, cards(), 10)
    assert watched.calls.count("insert") < 10


def test_a_row_that_no_vault_wrote_fails_its_own_card_at_most(vault: tv.Vault, watched: Watched) -> None:
    """Where the look for a chunk's tokens meets it, the write looks."""

    def before(name: str) -> None:
        if name == "get":
            raise tv.IntegrityError("a row was edited")

    watched.before = before
    found = issue_random(vault, many(18))
    watched.before = lambda _: None
    assert not found.failed
    issued_in_order(vault, watched, found)


# With a real server.


@pytest.fixture
def url(local_keys: KeyStore, postgres_server: PostgresServer) -> str:
    url = postgres_server.new_url()
    with closing(tv.open_token_store(url)) as store:
        tv.provision(local_keys, store)
    return url


def test_batches_into_postgres_are_whole_and_their_tokens_in_no_log(
    local_keys: KeyStore, url: str, postgres_server: PostgresServer
) -> None:
    """Batch after batch, into a program so small that nearly every chunk draws tokens that exist."""
    tiny = tv.TokenProgram("tiny", format=tv.TokenFormat(bin="99991234", length=13), expected_tokens=5_000)
    requestor = tv.TokenRequestor(SHOP, programs={"tiny"})
    with (
        closing(tv.open_token_store(url)) as store,
        tv.Vault(local_keys, store, programs=[tiny], requestors=[requestor]) as vault,
    ):
        small = in_chunks(vault, 300)
        found = [
            small.issue_many(many(size), requestor=SHOP, program="tiny")
            for size in (1_500, 1_500, 3_000, 2_000)  # the last few by single calls
        ]
        assert not any(each.failed for each in found)
        tokens = [token for each in found for token in texts(each)]
        assert len(set(tokens)) == 8_000
        assert [info.last4 for info in found[1]] == [pan[-4:] for pan, _ in many(1_500)]  # type: ignore[union-attr] # none failed
        assert tv.verify_audit(store, keys=local_keys).intact
    log = postgres_server.log()
    assert not any(token in log for token in tokens)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_child_forked_by_the_iterator_does_not_wait_for_the_parents_write(
    local_keys: KeyStore, url: str
) -> None:
    """Its call fails, since what came of that chunk is known to the parent alone; the parent's batch is whole."""
    forked = threading.Event()
    children: list[int] = []

    def cards() -> Iterator[tuple[str, str]]:
        for number, card in enumerate(many(20)):
            if number == 5:  # the first chunk is being written
                children.append(os.fork())
                forked.set()
            yield card

    with closing(tv.open_token_store(url)) as store:
        opened: Any = Watched(store)
        with vaults.open_vault(local_keys, opened) as vault:
            parent = os.getpid()
            opened.before = lambda name: name != "insert" or forked.wait(SECONDS_MAX)
            message = ""
            try:
                found = issue_random(vault, cards())
            except tv.TokenStoreError as error:
                message = str(error)
            finally:
                if os.getpid() != parent:
                    os._exit(0 if message == ports.FORKED else 1)
            _, status = os.waitpid(children[0], 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert not found.failed
            issued_in_order(vault, opened, found)
