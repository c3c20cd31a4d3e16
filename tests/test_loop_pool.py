"""Tasks that wait for a connection to PostgreSQL: in which order they get one, and what those do who go without."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.interrupts import TimeLimitError
from tokenvault.errors import TokenStoreError
from tokenvault.stores.postgres.pool import LoopPool


class FakeConnection:
    """A connection to nothing."""

    opened = used = 0.0

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _called_or_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody comes to look for itself in these tests: who is not called waits too long."""
    monkeypatch.setattr("tokenvault.stores.postgres.pool._UNCALLED_SECONDS", 60.0)
    monkeypatch.setattr("tokenvault.stores.postgres.pool._usable", lambda _: True)


@asynccontextmanager
async def one_in_use(
    wait_seconds: float,
) -> AsyncIterator[tuple[LoopPool, asyncio.Event, asyncio.Task[None]]]:
    """A pool of one connection, what lets its user go, and the user."""

    async def opening() -> Any:
        return FakeConnection()

    pool, go = LoopPool(opening, 1, wait_seconds), asyncio.Event()

    async def held(_: object) -> None:
        await go.wait()

    user = asyncio.create_task(pool.use(held))
    await asyncio.sleep(0)
    yield pool, go, user
    go.set()
    await user
    assert len(pool._free) == 1
    assert not pool._waiting


def test_tasks_get_a_connection_in_the_order_in_which_they_asked() -> None:
    async def work() -> None:
        order: list[int] = []

        async def note(number: int) -> None:
            async def noted(_: object) -> None:
                await asyncio.sleep(0)
                order.append(number)

            await pool.use(noted)

        async with one_in_use(5) as (pool, go, user):
            waiting = [asyncio.create_task(note(number)) for number in range(4)]
            await asyncio.sleep(0)
            go.set()
            await user
            late = asyncio.create_task(note(4))  # the connection is free, and nobody has it yet
            await asyncio.wait_for(asyncio.gather(*waiting, late), 5)
        assert order == [0, 1, 2, 3, 4]

    asyncio.run(work())


@pytest.mark.parametrize("called", [False, True], ids=["before its turn", "in its turn"])
def test_a_task_that_is_cancelled_while_it_waits_leaves_its_turn_to_the_next(called: bool) -> None:
    async def work() -> None:
        async with one_in_use(5) as (pool, go, user):
            first, second = (asyncio.create_task(pool.use(lambda _: asyncio.sleep(0))) for _ in range(2))
            await asyncio.sleep(0)
            if called:
                go.set()
                await user
                assert next(iter(pool._waiting)).done()
            first.cancel()
            go.set()
            await asyncio.wait_for(second, 5)
            with pytest.raises(asyncio.CancelledError):
                await first

    asyncio.run(work())


def test_a_task_that_gets_no_connection_in_time_is_told_so() -> None:
    async def work() -> None:
        async with one_in_use(0.05) as (pool, _, _):
            began = time.monotonic()
            with pytest.raises(TokenStoreError, match="no database connection came free") as refused:
                await pool.use(lambda _: asyncio.sleep(0))
            assert refused.value.code == "STORE_POOL_EXHAUSTED"
            assert time.monotonic() - began >= 0.05

    asyncio.run(work())


@pytest.mark.usefixtures("limit")
def test_a_time_limit_that_strikes_while_a_task_waits_is_not_taken_for_a_wait_that_was_too_long() -> None:
    async def work() -> None:
        async with one_in_use(5) as (pool, _, _):
            real = pool._loop.create_future

            def struck() -> asyncio.Future[None]:
                signal.raise_signal(signal.SIGUSR1)
                return real()

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(pool._loop, "create_future", struck)
                with pytest.raises(TimeLimitError):
                    await pool.use(lambda _: asyncio.sleep(0))

    asyncio.run(work())
