"""An exception at every single instruction of what numbers events and hands over connections, one after the other.

Tracing raises before an instruction. The journal is right at any. Where a `finally` gives something back, those count
behind which the interpreter looks for exceptions: a call that succeeded, a function's start, a jump back. It raises
there as if from the instruction that it has just executed: where the next one has another handler, tracing can not
show what happens.
"""

from __future__ import annotations

import asyncio
import dis
import functools
import gc
import inspect
import json
import os
import queue
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

import attrs
import psycopg
import pytest
from psycopg.pq import TransactionStatus

import tokenvault as tv
from tests.cancelling import CancelledAt
from tests.test_journal import EVENT, NoKeys
from tests.test_within import plain
from tests.vaults import ONLINE, PROGRAMS, REQUESTORS, VISA, issue, open_vault
from tests.vaults import use as transaction
from tokenvault.audit.checkpoint import CheckpointPolicy
from tokenvault.audit.journal import Entry, Journal
from tokenvault.audit.merkle import Tree
from tokenvault.cli.feed_files import FeedFiles
from tokenvault.cli.inputs import write_private
from tokenvault.errors import InvalidInputError, TokenStoreError, iterator_boundary
from tokenvault.keys import KeyStore
from tokenvault.keys.file import FileKeyStore
from tokenvault.keys.port import Custody, KeyPurpose
from tokenvault.runtime import close_all, run
from tokenvault.stores.forks import Forkable, _Watch
from tokenvault.stores.postgres.address import CONNECTIONS, WAIT_SECONDS
from tokenvault.stores.postgres.pool import BlockingPool, LoopPool
from tokenvault.stores.postgres.store import AsyncPostgresTokenStore, PostgresTokenStore
from tokenvault.stores.sqlite import pool as sqlite_pool
from tokenvault.stores.sqlite.store import SqliteTokenStore
from tokenvault.stores.turns import in_turn
from tokenvault.testing import a_record, an_event

INSTRUCTIONS_MAX = 5_000


class InterruptedHere(BaseException):  # it is none of the errors that a library may handle
    """What tracing raises."""


class Interrupter:
    """Raises before the instruction of a number, counted over the frames of some modules, once.

    Args:
        at: the number of the instruction, from 0.
        modules: whose frames count.
        looked: whether only those instructions count at which the interpreter looks for exceptions.
    """

    def __init__(self, at: int, modules: set[str], *, looked: bool) -> None:
        self.at, self.modules, self.looked = at, modules, looked
        self.seen = 0
        self.raised = False
        self.before: dict[FrameType, int | None] = {}  # where the instruction is that was executed last

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_globals.get("__name__") not in self.modules or frame.f_code is _TRACED:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.at_instruction

    def at_instruction(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "exception":
            self.before[frame] = (
                None  # what raises did not succeed, and nothing is looked for before its handler
            )
        if event == "opcode" and not self.raised:
            before = self.before.get(frame, 0)
            self.before[frame] = frame.f_lasti
            if not self.looked or (before is not None and looks(frame.f_code, before, frame.f_lasti)):
                if self.seen == self.at:
                    self.raised = True
                    self.before.clear()
                    raise InterruptedHere
                self.seen += 1
        return self.at_instruction


@functools.cache
def operations(code: CodeType) -> dict[int, str]:
    """The instructions of a function by their place."""
    return {each.offset: each.opname for each in dis.get_instructions(code)}


@functools.cache
def handler_at(code: CodeType, place: int) -> object:
    """What handles an exception of the instruction at a place of a function."""
    entries = dis._parse_exception_table(code)  # type: ignore[attr-defined] # dis shows it as text alone
    return next((entry.target for entry in entries if entry.start <= place < entry.end), None)


def looks(code: CodeType, before: int, now: int) -> bool:
    """Whether the interpreter looks for exceptions between two instructions, and the same handler gets them."""
    operation = operations(code)[before]
    looked = before == 0 or operation.startswith("CALL") or operation in ("RESUME", "JUMP_BACKWARD")
    return looked and handler_at(code, before) == handler_at(code, now)


@contextmanager
def traced(interrupter: Interrupter) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(interrupter)
    try:
        yield
    finally:
        sys.settrace(before)
        interrupter.before.clear()  # of frames, which hold what nobody else does any more


_TRACED = inspect.unwrap(traced).__code__
"""It is never interrupted: what traced before would stay away for good."""


def at_every_instruction(
    work: Callable[[], Callable[[], None]], check: Callable[[], None], modules: set[str], *, looked: bool
) -> int:
    """Interrupt a piece of work at one instruction after the other, and check after each; how many there are.

    Args:
        work: makes everything anew, and returns what is interrupted.
        check: raises where the interrupt did harm.
        modules: whose instructions are meant.
        looked: as of Interrupter.
    """
    gc.collect()
    gc.disable()  # what it finalizes runs in frames of these modules too
    try:
        for at in range(INSTRUCTIONS_MAX):
            interrupted = work()
            interrupter = Interrupter(at, modules, looked=looked)
            try:
                with traced(interrupter):
                    interrupted()
            except InterruptedHere:
                pass
            check()
            if not interrupter.raised:
                return at
    finally:
        gc.enable()
    raise AssertionError


def test_what_is_taken_before_the_try_is_found_to_be_lost() -> None:
    """The test itself: it finds the usual mistake."""
    turns: queue.SimpleQueue[None] = queue.SimpleQueue()

    def work() -> Callable[[], None]:
        turns.put(None)

        def use() -> None:
            turns.get(timeout=1)
            try:
                len(())
            finally:
                turns.put(None)

        return use

    def check() -> None:
        turns.get(block=False)

    with pytest.raises(queue.Empty):
        at_every_instruction(work, check, {__name__}, looked=True)


# The journal, and the tree in it.


class Written:
    """A journal, and the events that its database holds: by number, the leaf hash."""

    def __init__(self, fill: int) -> None:
        self.journal = Journal(NoKeys(), CheckpointPolicy(events=3, seconds=3_600))
        self.database: dict[int, bytes] = {}
        for _ in range(fill):
            self.event(written=True)

    def entry(self) -> Entry:
        return self.journal.entry(EVENT)

    def event(self, *, written: bool) -> None:
        """What a trail does for an event, in short."""
        for doubtful in self.journal.doubts():
            heir = self.journal.heir(doubtful)
            try:
                if self.journal.take_over(doubtful, heir):
                    if heir.rows and all(row.number in self.database for row in heir.rows):
                        self.journal.written(heir)
                    else:
                        self.journal.withdraw(heir)
            finally:
                heir.over = True
        entry = self.journal.entry(EVENT)
        try:
            self.journal.begin(entry, EVENT.time_ms, checkpoint=True)
            self.journal.seal(entry, EVENT.time_ms)
            if written:
                assert not entry.leaves.keys() & self.database.keys(), "a number twice"
                self.database.update(entry.leaves)
                self.journal.written(entry)
            else:
                self.journal.withdraw(entry)
        finally:
            entry.over = True

    def check(self) -> None:
        """No number is lost: the next events fill each gap, and the tree is that of what the database holds."""
        for _ in range(4):
            self.event(written=True)
        closing = self.journal.closing_entry()
        assert closing is not None
        self.journal.begin_closing(closing)
        assert closing.checkpoint is not None
        assert closing.checkpoint.closes
        tree = Tree()
        assert sorted(self.database) == list(range(1, len(self.database) + 1))
        for number in sorted(self.database):
            tree = tree.with_leaf(self.database[number])
        assert (closing.checkpoint.size, closing.checkpoint.root) == (tree.size, tree.root())


JOURNAL = {"tokenvault.audit.journal", "tokenvault.audit.merkle", "tokenvault.runtime"}


@pytest.mark.parametrize("written", [True, False], ids=["written", "withdrawn"])
@pytest.mark.parametrize("fill", [0, 2, 3, 62], ids=lambda fill: f"after {fill}")
def test_an_event_that_is_interrupted_at_any_instruction_costs_no_number_and_harms_no_tree(
    fill: int, written: bool
) -> None:
    kept: list[Written] = []

    def check() -> None:
        kept[0].check()

    def work() -> Callable[[], None]:
        kept[:] = [Written(fill)]
        return lambda: kept[0].event(written=written)

    assert at_every_instruction(work, check, JOURNAL, looked=False) > 100


def test_settling_that_is_interrupted_at_any_instruction_is_done_by_the_next_event() -> None:
    kept: list[Written] = []

    def check() -> None:
        kept[0].check()

    def work() -> Callable[[], None]:
        kept[:] = [Written(2)]
        left = kept[0].entry()
        kept[0].journal.begin(left, EVENT.time_ms)
        kept[0].journal.seal(left, EVENT.time_ms)
        kept[0].database.update(left.leaves)
        left.over = True
        return lambda: kept[0].event(written=True)

    assert at_every_instruction(work, check, JOURNAL, looked=False) > 100


# Pools.


class FakeConnection:
    """A connection to nothing, which knows whether it is open."""

    opened = 0.0
    used = 0.0

    def __init__(self, all_of_them: list[FakeConnection]) -> None:
        self.is_open = True
        all_of_them.append(self)

    def close(self) -> None:
        self.is_open = False


POOLS = {"tokenvault.stores.sqlite.pool", "tokenvault.stores.postgres.pool", "tokenvault.runtime"}


@pytest.mark.parametrize("fails", [False, True], ids=["work", "work that fails"])
@pytest.mark.parametrize("calls_before", [0, 1])
def test_use_of_a_sqlite_connection_interrupted_anywhere_loses_no_slot(
    calls_before: int, fails: bool
) -> None:
    everything: list[FakeConnection] = []
    kept: list[sqlite_pool.Pool] = []

    def opening(place: list[Any]) -> None:
        place.append(FakeConnection(everything))

    def task(_: object) -> None:
        if fails:
            raise TokenStoreError("on purpose")

    def work() -> Callable[[], None]:
        pool = sqlite_pool.Pool(opening, 0)
        kept[:], everything[:] = [pool], []
        for _ in range(calls_before):
            pool.read(lambda _: None)

        def both() -> None:
            for call in (pool.read, pool.write):
                try:
                    call(task)
                except TokenStoreError:
                    assert fails

        return both

    def check() -> None:
        pool = kept[0]
        assert pool.read(lambda _: 1) == pool.write(lambda _: 1) == 1
        assert pool._readers._free.qsize() == sqlite_pool.CONNECTIONS_MAX - 1
        assert pool._writers._free.qsize() == 1
        known = {id(each) for place in (pool._idle, pool._unwanted) for each in place}
        known |= {
            id(each) for slots in (pool._readers, pool._writers) for slot in slots._every for each in slot
        }
        assert {id(each) for each in everything if each.is_open} <= known, "the pool would not close it"
        pool.hold(0)
        assert pool.open_count == 0, "a fork would find a connection open"
        pool.release()
        assert pool._readers._free.qsize() == sqlite_pool.CONNECTIONS_MAX - 1
        pool.close()
        assert not any(each.is_open for each in everything)

    assert at_every_instruction(work, check, POOLS, looked=True) > 20


def test_a_hold_for_a_fork_interrupted_anywhere_is_ended_by_release() -> None:
    everything: list[FakeConnection] = []
    kept: list[sqlite_pool.Pool] = []

    def work() -> Callable[[], None]:
        kept[:] = [sqlite_pool.Pool(lambda place: place.append(FakeConnection(everything)), 0)]  # type: ignore[arg-type]
        kept[0].read(lambda _: None)

        def held() -> None:
            kept[0].hold(0)
            kept[0].release()

        return held

    def check() -> None:
        kept[0].release()
        assert kept[0].read(lambda _: 1) == kept[0].write(lambda _: 1) == 1
        assert kept[0]._readers._free.qsize() == sqlite_pool.CONNECTIONS_MAX - 1

    assert at_every_instruction(work, check, POOLS, looked=True) > 20


@pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning"
)  # interrupted before its start
@pytest.mark.parametrize("fails", [False, True], ids=["work", "work that fails"])
def test_use_of_a_postgresql_connection_interrupted_anywhere_loses_no_slot(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenvault.stores.postgres.pool._usable", lambda _: True)
    everything: list[FakeConnection] = []
    kept: list[BlockingPool] = []

    async def opening() -> Any:
        return FakeConnection(everything)

    async def task(_: object) -> None:
        if fails:
            raise TokenStoreError("on purpose")

    def used() -> Coroutine[Any, Any, None]:
        return kept[0].use(task)

    def work() -> Callable[[], None]:
        kept[:], everything[:] = [BlockingPool(opening)], []

        def twice() -> None:
            for _ in range(2):
                try:
                    run(used())
                except TokenStoreError:
                    assert fails

        return twice

    def check() -> None:
        assert kept[0]._free.qsize() == CONNECTIONS
        kept[0].close()
        assert kept[0].open_count == 0
        lost = [each for each in everything if each.is_open]
        close_all(lost)  # by the interpreter, which collects what was just opened and nobody holds

    assert at_every_instruction(work, check, POOLS, looked=True) > 20


class HoldingStill(Forkable):
    """Knows whether it holds still."""

    state = "parent"

    def before_fork(self, seconds_max: float) -> None:
        self.state = "still"

    def after_fork_in_parent(self) -> None:
        self.state = "parent"

    def after_fork_in_child(self) -> None:
        self.state = "child"


@pytest.mark.parametrize("process", ["parent", "child"])
def test_a_fork_whose_hooks_are_interrupted_anywhere_is_over_with_the_next_call(
    process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = HoldingStill()
    kept: list[_Watch] = []
    own = os.getpid()

    def work() -> Callable[[], None]:
        watch = _Watch()
        watch.items.add(weakref.ref(item))
        kept[:], item.state = [watch], process
        monkeypatch.setattr(os, "getpid", lambda: own)

        def fork() -> None:
            try:
                watch.before()
            finally:  # the fork goes on all the same
                if process == "parent":
                    watch.in_parent()
                else:
                    monkeypatch.setattr(os, "getpid", lambda: own + 1)
                    watch.in_child()

        return fork

    def check() -> None:
        kept[0].end_interrupted_hold()
        assert item.state == process
        assert kept[0].turn.qsize() == 1, "the next fork would wait for it"

    modules = {"contextlib", "tokenvault.runtime", "tokenvault.stores.forks"}
    assert at_every_instruction(work, check, modules, looked=True) > 20


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("connections", [1, 3], ids=["one after the other", "at once"])
def test_use_of_a_postgresql_connection_by_tasks_interrupted_anywhere_loses_no_slot(
    connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenvault.stores.postgres.pool._usable", lambda _: True)
    monkeypatch.setattr("tokenvault.stores.postgres.pool._UNCALLED_SECONDS", 0.001)
    everything: list[FakeConnection] = []
    kept: list[LoopPool] = []
    ended: list[BaseException | None] = []

    async def opening() -> Any:
        return FakeConnection(everything)

    async def task(_: object) -> None:
        await asyncio.sleep(0)

    async def opened() -> None:
        kept[:] = [LoopPool(opening, connections, WAIT_SECONDS)]

    async def by_three_tasks() -> None:
        ended[:] = await asyncio.gather(*(kept[0].use(task) for _ in range(3)), return_exceptions=True)

    with asyncio.Runner() as runner:

        def work() -> Callable[[], None]:
            runner.run(opened())
            return lambda: runner.run(by_three_tasks())

        def check() -> None:
            assert [type(each) for each in ended if each is not None] in ([], [InterruptedHere])
            assert len(kept[0]._free) == connections
            runner.run(by_three_tasks())
            assert ended == [None] * 3
            kept[0].close()
            assert kept[0].open_count == 0

        assert at_every_instruction(work, check, POOLS, looked=True) > 20


SQLITE = {
    *POOLS,
    "tokenvault.stores.sqlite.file",
    "tokenvault.stores.sqlite.store",
    "tokenvault.stores.sqlite.writes",
}


def test_a_sqlite_write_that_fails_and_is_interrupted_anywhere_locks_out_no_other_process(
    tmp_path: Path,
) -> None:
    path, event = tmp_path / "vault.db", an_event(1)
    with (
        closing(SqliteTokenStore(path)) as store,
        closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other,
    ):
        store.provision()
        store.append([event])

        def twice_the_same() -> None:
            with suppress(TokenStoreError):
                store.append([event])

        def check() -> None:
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")

        assert at_every_instruction(lambda: twice_the_same, check, SQLITE, looked=True) > 20


def test_a_backup_that_is_interrupted_anywhere_leaves_no_file_and_no_handle(tmp_path: Path) -> None:
    path, backup = tmp_path / "vault.db", tmp_path / "backup.db"
    with closing(SqliteTokenStore(path)) as store:
        store.provision()
        store.backup(tmp_path / "other.db")  # opens the connection that is kept
        handles = len(os.listdir("/proc/self/fd"))
        done: list[None] = []

        def check() -> None:
            if not done:
                assert [each.name for each in tmp_path.glob("backup.db*")] == []
            assert len(os.listdir("/proc/self/fd")) <= handles
            done.clear()

        def back_up() -> None:
            store.backup(backup)
            done.append(None)

        assert (
            at_every_instruction(lambda: back_up, check, {"tokenvault.stores.sqlite.backup"}, looked=True)
            > 10
        )
        assert backup.exists()


@pytest.mark.parametrize("taken", [0, 1, 2], ids=lambda taken: f"after {taken}")
def test_an_iteration_that_is_interrupted_anywhere_and_goes_on_misses_nothing_and_does_not_end_early(
    taken: int,
) -> None:
    @iterator_boundary
    def lines() -> Generator[int, None, None]:
        yield from range(3)

    got: list[int] = []
    kept: list[Iterator[int]] = []

    def work() -> Callable[[], None]:
        kept[:] = [lines()]
        got[:] = [next(kept[0]) for _ in range(taken)]
        return lambda: got.extend(kept[0])

    def check() -> None:
        try:
            rest = list(kept[0])
        except InvalidInputError:
            return
        assert got + rest == [0, 1, 2]

    modules = {"tokenvault.errors", __name__}
    assert at_every_instruction(work, check, modules, looked=True) > 5


COPYING = {
    "contextlib",
    "psycopg._copy",
    "psycopg.connection",
    "psycopg.cursor",
    "psycopg.transaction",
    "tokenvault.runtime",
    "tokenvault.stores.postgres.connection",
    "tokenvault.stores.postgres.store",
    "tokenvault.stores.postgres.within",
    "tokenvault.stores.turns",
}


class ImpatientLock:
    """Raises where a lock would be waited for in vain."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        assert self._lock.acquire(timeout=5), "the connection is locked for good"

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
def test_a_batch_that_is_copied_and_interrupted_anywhere_leaves_no_connection_locked(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg's own transactions and copies hold its connection's lock while they hand over to a block."""
    monkeypatch.setattr("psycopg.connection.Lock", ImpatientLock)
    with closing(tv.open_token_store(postgres_url)) as store:
        store.provision()
        numbers = count()

        def insert() -> None:
            assert store.insert([a_record(next(numbers)) for _ in range(2)], []) == []

        assert at_every_instruction(lambda: insert, insert, COPYING, looked=True) > 20


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_batch_in_the_host_s_transaction_interrupted_anywhere_leaves_its_connection_fit_for_use(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psycopg.connection.Lock", ImpatientLock)
    with (
        closing(tv.open_token_store(postgres_url)) as opened,
        closing(psycopg.connect(plain(postgres_url))) as host,
    ):
        opened.provision()
        numbers = count()
        host.execute("SELECT 1")  # begins its transaction
        inside = cast("PostgresTokenStore", opened).within(host)

        def insert() -> None:
            assert inside.insert([a_record(next(numbers)) for _ in range(2)], []) == []

        def work() -> Callable[[], None]:
            host.execute("SELECT 1")
            return insert

        def check() -> None:
            host.rollback()
            host.execute("SELECT 1")
            insert()
            host.rollback()

        assert at_every_instruction(work, check, COPYING, looked=True) > 20


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_call_in_the_host_s_transaction_interrupted_anywhere_loses_no_turn(
    local_keys: KeyStore, postgres_url: str
) -> None:
    numbers = count()
    with (
        closing(tv.open_token_store(postgres_url)) as store,
        closing(psycopg.connect(plain(postgres_url))) as host,
    ):
        tv.provision(local_keys, store)
        with open_vault(local_keys, store) as vault:
            token = issue(vault).token
            host.execute("SELECT 1")
            with vault.within(host) as inside:

                def detokenize() -> None:
                    inside.detokenize(token, transaction(next(numbers)))

                modules = {"contextlib", "tokenvault.stores.turns", "tokenvault.vault.within"}
                assert at_every_instruction(lambda: detokenize, detokenize, modules, looked=True) > 10
            host.rollback()


TURNS = {"contextlib", "tokenvault.runtime", "tokenvault.stores.turns"}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_turn_interrupted_anywhere_is_there_again_while_the_error_is_handled() -> None:
    turn: list[None] = [None]

    async def nothing() -> None:
        return

    def work() -> Callable[[], None]:
        def use_it() -> None:
            try:
                run(in_turn(turn, nothing))
            except InterruptedHere:
                assert turn == [None]  # whoever tries again does so here
                raise

        return use_it

    def check() -> None:
        assert turn == [None]

    assert at_every_instruction(work, check, TURNS, looked=True) > 10


def test_a_batch_in_the_host_s_transaction_that_is_cancelled_anywhere_is_taken_back_and_its_connection_goes_on(
    postgres_url: str,
) -> None:
    async def work() -> None:
        opened = tv.open_async_token_store(postgres_url)
        await opened.provision()
        store, numbers = cast("AsyncPostgresTokenStore", opened), count()
        async with await psycopg.AsyncConnection.connect(plain(postgres_url)) as host:
            for at in count():
                await host.execute("SELECT 1")
                inside = await store.within(host)
                records = [a_record(next(numbers)) for _ in range(2)]
                call = CancelledAt(inside.insert(records, []), at)
                with suppress(asyncio.CancelledError):
                    await call
                written = await inside.get([each.token for each in records])
                assert len(written) in ((0, 2) if call.reached else (2,)), at
                assert host.info.transaction_status == TransactionStatus.INTRANS
                await host.rollback()
                if not call.reached:
                    break
        await opened.close()
        assert at > 5

    asyncio.run(work())


# What a vault knows of programs.


class AskedOnce:
    """A directory that lists no programs, and whose answers hold for ever."""

    max_age_seconds = float("inf")

    def program(self, name: str, /) -> tv.TokenProgram | None:
        return next((each for each in PROGRAMS if each.name == name), None)

    def requestor(self, id: str, /) -> tv.TokenRequestor | None:  # noqa: A002 # the field's word
        return next((each for each in REQUESTORS if each.id == id), None)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_program_whose_reading_is_interrupted_anywhere_is_known_to_the_next_call(
    local_keys: KeyStore,
) -> None:
    """A number that only its tokens have is kept in clear by none."""
    number = f"{ONLINE.format.bin}0000000014"
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with tv.Vault(local_keys, store, programs=PROGRAMS, requestors=REQUESTORS) as vault:
            token = issue(vault, program="online").token
        opened: list[tv.Vault] = []

        def work() -> Callable[[], None]:
            opened[:] = [tv.Vault(local_keys, store, directory=AskedOnce())]

            def check() -> None:
                opened[0].check(token, transaction(channel=tv.Channel.ECOMMERCE))

            return check

        def check() -> None:
            with opened[0] as vault:
                assert vault.check(token, transaction(channel=tv.Channel.ECOMMERCE)).allowed
                vault.check(token, transaction(id=number, channel=tv.Channel.CHIP))
                assert (vault.history(token)[-1].transaction_id or "").startswith("digest ")
                assert vault.programs() == [ONLINE]

        assert at_every_instruction(work, check, {"tokenvault.vault.parties"}, looked=True) > 20


# The guard.

GUARDING = {"tokenvault.vault.guard", "tokenvault.vault.refusals"}
FRAGILE = attrs.evolve(ONLINE, suspend_after_refusals=1)
"""For a channel only: a use by another one is refused, and suspends the token."""


class Guarded:
    """A vault, and another one over the same database, with a token."""

    def __init__(self, keys: KeyStore, guard: tv.Guard) -> None:
        self.keys, self.store = keys, tv.open_token_store("memory:")
        tv.provision(keys, self.store)
        self.vault, self.other = (
            tv.Vault(keys, self.store, programs=(FRAGILE,), requestors=REQUESTORS_OF_FRAGILE, guard=guard)
            for _ in range(2)
        )
        self.token = issue(self.vault, VISA, program="online").token

    def told(self, vault: tv.Vault, number: int) -> bool:
        """Whether a vault tells that a token is not there, rather than that the requestor is locked out."""
        try:
            vault.check(f"{9999990000000000 + number}", transaction(number))
        except tv.TokenNotFoundError:
            return True
        except tv.RequestorLockedOutError:
            return False
        raise AssertionError

    def guess(self, number: int) -> None:
        self.told(self.vault, number)

    def refused(self) -> None:
        with suppress(tv.DomainRestrictionError):
            self.vault.detokenize(self.token, transaction(channel=tv.Channel.CHIP))

    def locked_out(self) -> int:
        return sum('"LOCK_OUT"' in line for line in tv.export_audit(self.store, keys=self.keys))


REQUESTORS_OF_FRAGILE = (attrs.evolve(REQUESTORS[0], programs={"online"}),)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_guess_that_is_interrupted_anywhere_is_counted_when_it_comes_again(local_keys: KeyStore) -> None:
    """So vaults together tell of no more tokens than the guard allows."""
    kept: list[Guarded] = []

    def work() -> Callable[[], None]:
        kept[:] = [Guarded(local_keys, tv.Guard(misses=2))]
        return lambda: kept[0].guess(0)

    def check() -> None:
        one = kept[0]
        told = [one.told(one.vault, 0)] + [one.told(one.other, number) for number in range(1, 4)]
        assert told == [True, True, False, False]
        assert one.locked_out() == 1

    assert at_every_instruction(work, check, GUARDING, looked=True) > 20


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_refusal_that_is_interrupted_anywhere_is_counted_when_it_comes_again(local_keys: KeyStore) -> None:
    kept: list[Guarded] = []

    def work() -> Callable[[], None]:
        kept[:] = [Guarded(local_keys, tv.Guard())]
        return kept[0].refused

    def check() -> None:
        kept[0].refused()
        assert kept[0].vault.get(kept[0].token).status is tv.TokenStatus.SUSPENDED

    assert at_every_instruction(work, check, GUARDING, looked=True) > 20


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_lock_out_that_is_interrupted_anywhere_is_written_with_the_next_call(local_keys: KeyStore) -> None:
    kept: list[Guarded] = []

    def work() -> Callable[[], None]:
        kept[:] = [Guarded(local_keys, tv.Guard(misses=1))]
        return lambda: kept[0].guess(0)

    def check() -> None:
        one = kept[0]
        one.told(one.vault, 0)
        assert not one.told(one.vault, 1)
        assert one.locked_out() >= 1
        assert not one.told(one.other, 1)

    assert at_every_instruction(work, check, GUARDING, looked=True) > 20


# Files of the command.


# Files.

FILES = {
    "contextlib",
    "tokenvault.cli.feed_files",
    "tokenvault.cli.inputs",
    "tokenvault.keys.private_files",
    "tokenvault.runtime",
}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the process ends
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_position_that_is_kept_and_interrupted_anywhere_leaves_nothing_beside_it(tmp_path: Path) -> None:
    kept, lines = tmp_path / "position", tmp_path / "lines"
    files = FeedFiles(sys.stdout, lines, kept)
    positions = count()

    def check() -> None:
        assert {path.name for path in tmp_path.iterdir()} == {"position", "lines"}
        assert json.loads(kept.read_text()).keys() == {"to", "bytes", "position"}

    assert (
        at_every_instruction(lambda: lambda: files.save(str(next(positions))), check, FILES, looked=True) > 10
    )
    files.close()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_new_file_interrupted_anywhere_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "anchor"

    def check() -> None:
        if not path.exists():
            write_private(path, "text")
        assert path.read_text() == "text"
        assert path.stat().st_mode & 0o777 == 0o600
        path.unlink()

    assert at_every_instruction(lambda: lambda: write_private(path, "text"), check, FILES, looked=True) > 10


def test_a_file_that_is_there_is_neither_written_nor_removed(tmp_path: Path) -> None:
    path = tmp_path / "anchor"
    path.write_text("another")
    with pytest.raises(tv.InvalidInputError, match="File exists"):
        write_private(path, "text")
    assert path.read_text() == "another"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_key_file_whose_writing_is_interrupted_anywhere_is_whole_and_has_nothing_beside_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "passphrase").write_text("correct horse battery staple")
    (tmp_path / "passphrase").chmod(0o600)
    keys = FileKeyStore(f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/passphrase")
    keys.create(KeyPurpose.AUDIT, Custody.IN_PROCESS)
    content, before = keys._read(), {path.name for path in tmp_path.iterdir()}

    def check() -> None:
        assert keys._read() == content
        assert {path.name for path in tmp_path.iterdir()} == before

    modules = {"contextlib", "tokenvault.keys.file", "tokenvault.keys.private_files", "tokenvault.runtime"}
    assert at_every_instruction(lambda: lambda: keys._write(content), check, modules, looked=True) > 10
