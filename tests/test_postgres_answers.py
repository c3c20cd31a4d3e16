"""Answers of PostgreSQL on an event loop, whose socket stays with the loop between statements."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from tests.faces import LOOPS
from tests.postgres_server import PostgresServer
from tokenvault.errors import TokenStoreError
from tokenvault.stores.postgres.answers import Answers
from tokenvault.stores.postgres.connection import LoopConnection
from tokenvault.stores.postgres.store import AsyncPostgresTokenStore
from tokenvault.testing import a_record, an_event

T = TypeVar("T")
Run = Callable[[Coroutine[None, None, None]], None]

MANY = 3_000
LARGE_BYTES = 2**20  # the most that an event may have; more than a socket takes at once


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """As `asyncio.run`, on each kind of event loop."""

    def run(work: Coroutine[None, None, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(work)

    return run


@asynccontextmanager
async def provisioned(url: str) -> AsyncIterator[AsyncPostgresTokenStore]:
    store = AsyncPostgresTokenStore(url)
    try:
        await store.provision()
        yield store
    finally:
        await store.close()


def only_connection(store: AsyncPostgresTokenStore) -> LoopConnection:
    (pooled,) = store._pool_here()._open
    assert isinstance(pooled, LoopConnection)
    return pooled


def end_all(server: PostgresServer) -> None:
    """Have the server end the store's connections."""
    with server.raw() as watcher:
        watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tokenvault'"
        )


@asynccontextmanager
async def held_up(
    server: PostgresServer, url: str, call: Coroutine[None, None, T]
) -> AsyncIterator[tuple[asyncio.Task[T], Callable[[], bool]]]:
    """A call that waits in the server for a lock while this lasts, and whether any statement waits for it."""
    schema = url.rpartition("schema=")[2].partition("&")[0]
    with server.raw() as writer, server.raw() as watcher:
        writer.execute(f'BEGIN; LOCK TABLE "{schema}".tokens'.encode())

        def waits() -> bool:
            sql = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
            return watcher.execute(sql, (writer.info.backend_pid,)).fetchone() is not None

        waiting = asyncio.create_task(call)
        async with asyncio.timeout(10):
            while not waits():
                await asyncio.sleep(0.005)
        yield waiting, waits


def test_answers_that_come_in_pieces_are_read_whole(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    pieces = 0
    read = Answers._read

    def counted(answers: Answers) -> None:
        nonlocal pieces
        pieces += 1
        read(answers)

    monkeypatch.setattr(Answers, "_read", counted)

    async def work() -> None:
        nonlocal pieces
        async with provisioned(postgres_url) as store:
            records = [a_record(n) for n in range(MANY)]
            assert await store.insert(records, []) == []
            pieces = 0
            assert list(await store.get([record.token for record in records])) == records
            assert pieces > 1
            assert list(await store.scan(limit=MANY)) == records

    run(work())


def test_statements_larger_than_a_socket_takes_at_once_are_sent_whole(postgres_url: str, run: Run) -> None:
    """The server stands still while the socket fills, and reads on then."""

    async def work() -> None:
        async with provisioned(postgres_url) as store, asyncio.timeout(20):
            await store.append([an_event(1)])
            pid = only_connection(store).connection.info.backend_pid
            event = an_event(2)._replace(body=bytes(LARGE_BYTES))
            os.kill(pid, signal.SIGSTOP)
            try:
                written = asyncio.create_task(store.append([event]))
                await asyncio.sleep(0.05)
                assert not written.done()
            finally:
                os.kill(pid, signal.SIGCONT)
            await written
            assert await store.events(stream=event.stream, after=1) == [event]

    run(work())


def test_single_statements_batches_and_checks_of_the_schema_take_turns_on_one_connection(
    postgres_url: str, run: Run
) -> None:
    """Some are waited for by psycopg, some here: neither takes the other's answer, nor waits for ever."""

    async def work() -> None:
        async with provisioned(postgres_url) as store, asyncio.timeout(20):
            for turn in range(4):
                records = [a_record(4 * turn + n) for n in range(4)]
                assert await store.insert(records[:1], [an_event(turn + 1)]) == []
                assert await store.insert(records[1:], []) == []
                await store.check_schema()
                assert await store.get([records[2].token]) == [records[2]]
                assert sorted(await store.insert(records, [])) == [record.token for record in records]
            assert store._pool_here().open_count == 1

    run(work())


def test_a_connection_that_the_server_ends_while_it_is_idle_leaves_the_loop_and_is_not_used_again(
    postgres_server: PostgresServer, postgres_url: str, run: Run
) -> None:
    async def work() -> None:
        async with provisioned(postgres_url) as store:
            assert await store.insert([a_record(1)], [an_event(1)]) == []
            before = only_connection(store)
            assert before.answers._loop is not None
            end_all(postgres_server)
            async with asyncio.timeout(10):
                while before.answers._loop is not None:  # else its end would be reported for ever
                    await asyncio.sleep(0.001)
            assert await store.get([a_record(1).token]) == [a_record(1)]
            assert only_connection(store) is not before

    run(work())


def test_a_connection_that_the_server_ends_while_it_is_asked_fails_that_call_alone(
    postgres_server: PostgresServer, postgres_url: str, run: Run
) -> None:
    async def work() -> None:
        async with provisioned(postgres_url) as store:
            async with held_up(postgres_server, postgres_url, store.get([a_record(1).token])) as (waiting, _):
                await asyncio.to_thread(end_all, postgres_server)
                with pytest.raises(TokenStoreError, match="an administrator ended the connection"):
                    await waiting
            assert await store.get([a_record(1).token]) == []

    run(work())


def test_a_store_goes_on_in_a_new_loop_once_the_old_one_is_closed(postgres_url: str, run: Run) -> None:
    store = AsyncPostgresTokenStore(postgres_url)

    async def first() -> None:
        await store.provision()
        await store.append([an_event(1)])

    async def second() -> None:
        assert await store.events(stream=an_event(1).stream) == [an_event(1)]
        await store.close()

    run(first())
    run(second())


def test_a_cancelled_statement_ends_on_the_server_before_its_call_does(
    postgres_server: PostgresServer, postgres_url: str, run: Run
) -> None:
    """Whoever looks afterwards is not surprised by what lands later."""

    async def work() -> None:
        async with provisioned(postgres_url) as store:
            insert = store.insert([a_record(1)], [an_event(1)])
            async with held_up(postgres_server, postgres_url, insert) as (waiting, waits):
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert not waits()
            assert await store.get([a_record(1).token]) == []

    run(work())


def test_a_closed_store_leaves_nothing_with_the_loop(postgres_url: str, run: Run) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with provisioned(postgres_url) as store:
            await asyncio.gather(*(store.append([an_event(number)]) for number in range(1, 9)))
            sockets = [pooled.connection.fileno() for pooled in store._pool_here()._open]
            assert len(sockets) > 1
        assert not any(map(loop.remove_reader, sockets))

    run(work())


def test_a_connection_on_which_the_server_spoke_unasked_is_not_used_again(
    postgres_server: PostgresServer, postgres_url: str, run: Run
) -> None:
    """That is mostly its last word to an idle client, and the loop may have read it before the socket ends."""

    async def work() -> None:
        async with provisioned(postgres_url) as store:
            await store.scan()
            pooled = only_connection(store)
            await pooled.rows("LISTEN tokenvault")
            await store.scan()
            assert only_connection(store) is pooled
            with postgres_server.raw() as other:
                other.execute("NOTIFY tokenvault")
            async with asyncio.timeout(10):
                while not pooled.answers.unasked:
                    await asyncio.sleep(0.01)
            await store.scan()
            assert only_connection(store) is not pooled

    run(work())
