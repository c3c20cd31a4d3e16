"""Whole calls of the vault on PostgreSQL beside the same statements, with the same values, through bare psycopg.

A round of calls of the vault by some threads or tasks is followed by a round of the statements that such calls make,
by as many, each over a connection of its own, on a twin of the tables in the same server. The statements are noted
from a second vault, not from the one that is timed. Bare means: one cursor, kept; statements prepared from the first
time on; values and rows in binary; autocommit; no pool, no checks.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import psycopg

import tokenvault as tv
from benchmarks.noted_calls import EXAMPLE, RARE, TWIN, Bare, Call, Example, calls_of, issue, requestors
from benchmarks.single import LIMITED, PROGRAMS, REQUESTOR, UNLIMITED, new_keys, pans, row
from tests.postgres_server import PASSWORD, PostgresServer
from tokenvault.keys import KeyStore
from tokenvault.stores.port import PAGE_MAX, SealedEvent, SealedRecord
from tokenvault.stores.postgres.copy import copy_of
from tokenvault.stores.postgres.sql import GET_MANY
from tokenvault.stores.postgres.statements import in_schema
from tokenvault.stores.postgres.store import AsyncPostgresTokenStore, PostgresTokenStore

AT_ONCE = (1, 4, 16)
ROUNDS = 31  # short ones in turn, as the machine and its disk change their pace; the first is not counted
BATCH_ROUNDS = 7
CALLS = 96  # a round, by all threads or tasks together
SCHEMA = "vault"
KINDS = {
    "issue, random": None,
    "detokenize, without limits": UNLIMITED,
    "detokenize, with two limits": LIMITED,
}
SERIES = {
    "as a production server would": "",
    "synchronous_commit=off, so that no commit waits for the disk": "-c synchronous_commit=off",
}
T = TypeVar("T")


class Taken(NamedTuple):
    """Seconds of each call, and of each round."""

    calls: list[float]
    rounds: list[float]


class Side(NamedTuple, Generic[T]):
    """What is called, and the times that it takes."""

    call: Callable[[int, int], T]
    taken: Taken


def single_calls(server: PostgresServer, folder: Path) -> None:
    """The tables of single calls, for threads and for tasks."""
    keys = new_keys(folder)
    for series, options in SERIES.items():
        for schema in (SCHEMA, EXAMPLE, TWIN):
            store = tv.open_token_store(server.url(schema=schema))
            tv.provision(keys, store)
            store.close()
        print(f"\nPostgreSQL on the temporary folder's disk, {series}: milliseconds a call, calls a second")
        for face in ("threads", "tasks"):
            row(f"vault / bare psycopg / ratio, {face}", "p50", "p99", "calls a second")
            for kind, domain in KINDS.items():
                for at_once in AT_ONCE:
                    if face == "threads":
                        vault, plain = _with_threads(keys, server, options, domain, at_once)
                    else:
                        vault, plain = asyncio.run(_with_tasks(keys, server, options, domain, at_once))
                    _print(f"{kind}, {at_once}", vault, plain)
    keys.close()


def _print(name: str, vault: Taken, plain: Taken) -> None:
    columns = []
    for quantile in (50, 99):
        ours, theirs = (
            1e3 * statistics.quantiles(taken.calls, n=100)[quantile - 1] for taken in (vault, plain)
        )
        columns.append(f"{ours:.2f}/{theirs:.2f}/{ours / theirs:.2f}")
    ours, theirs = (len(taken.calls) / sum(taken.rounds) for taken in (vault, plain))
    row(name, *columns, f"{ours:.0f}/{theirs:.0f}/{ours / theirs:.2f}")


def batches(server: PostgresServer) -> None:
    """The store's own part of batches beside binary COPY and SELECT of the same rows."""
    twin = f"batch_{TWIN}"
    stores = [PostgresTokenStore(server.url(schema=schema)) for schema in ("batch_vault", twin)]
    for store in stores:
        store.provision()
    taken: dict[str, list[float]] = {"insert": [], "COPY": [], "get": [], "SELECT": []}
    with _connect(server, "") as connection:
        numbers = iter(random.sample(range(10**10), BATCH_ROUNDS * PAGE_MAX))  # no token twice in all rounds
        for _ in range(BATCH_ROUNDS):
            records, events = some_records(islice(numbers, PAGE_MAX))
            tokens = [record.token for record in records]
            gc.collect()
            with _timed(taken["insert"]):
                stores[0].insert(records, events[:1])
            copy = copy_of(records)
            statement = in_schema(copy.sql, twin)
            with _timed(taken["COPY"]), connection.cursor().copy(statement) as out:
                out.write(copy.rows)
            with _timed(taken["get"]):
                stores[0].get(tokens)
            select = in_schema(GET_MANY.sql, twin).replace(b"$1", b"%s")
            with _timed(taken["SELECT"]):
                connection.execute(select, (tokens,), binary=True).fetchall()
    for store in stores:
        store.close()
    print(
        f"\nBatches of {PAGE_MAX} records, store alone: milliseconds, and times as many rows a second as bare psycopg"
    )
    for ours, theirs in (("insert", "COPY"), ("get", "SELECT")):
        whole, plain = (1e3 * statistics.median(taken[name]) for name in (ours, theirs))
        row(f"{ours} / {theirs}", f"{whole:.1f}/{plain:.1f}", f"{plain / whole:.2f}")


@contextmanager
def _timed(taken: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    taken.append(time.perf_counter() - start)


def some_records(numbers: Iterable[int]) -> tuple[list[SealedRecord], list[SealedEvent]]:
    """Rows of the sizes that the vault writes, with an event for each."""
    stream = os.urandom(16)
    records = [
        SealedRecord(
            f"999913{number:010}", os.urandom(16), os.urandom(16), REQUESTOR, "random", 1, 1,
            os.urandom(97), os.urandom(45),
        )
        for number in numbers
    ]  # fmt: skip
    events = [
        SealedEvent(stream, n, record.reference, os.urandom(33), os.urandom(16))
        for n, record in enumerate(records, 1)
    ]
    return records, events


# Threads.


def _with_threads(
    keys: KeyStore, server: PostgresServer, options: str, domain: tv.Domain | None, at_once: int
) -> tuple[Taken, Taken]:
    store = PostgresTokenStore(server.url(schema=SCHEMA, options=options))
    vault = tv.Vault(keys, store, programs=PROGRAMS, requestors=requestors(), checkpoints=RARE)
    example = Example(keys, server, options, domain, at_once)
    connections = [_connect(server, options) for _ in range(at_once)]
    cursors = [connection.cursor() for connection in connections]
    for cursor, statements in zip(cursors, example.first, strict=True):
        for statement in statements:
            _execute(cursor, statement)
    issue(vault, next(pans()), UNLIMITED)  # the first event goes with a checkpoint
    tokens = [issue(vault, next(pans()), domain or UNLIMITED).token for _ in range(at_once)]
    count = CALLS // at_once
    ours, theirs = Taken([], []), Taken([], [])
    for number in range(ROUNDS):
        ready = [calls_of(number, count) for _ in range(at_once)]
        plain = [[example.statements(worker, call) for call in ready[worker]] for worker in range(at_once)]

        def call(worker: int, n: int, ready: list[list[Call]] = ready) -> float:
            pan, transaction = ready[worker][n]
            start = time.perf_counter()
            if domain is None:
                issue(vault, pan, UNLIMITED)
            else:
                vault.detokenize(tokens[worker], transaction)
            return time.perf_counter() - start

        def replay(worker: int, n: int, plain: list[list[list[Bare]]] = plain) -> float:
            cursor, statements = cursors[worker], plain[worker][n]
            start = time.perf_counter()
            for statement in statements:
                _execute(cursor, statement)
            return time.perf_counter() - start

        for side in _in_turn(number, (call, ours), (replay, theirs)):
            _round(side.call, at_once, count, side.taken)
    vault.close()
    store.close()
    example.close()
    for connection in connections:
        connection.close()
    return ours, theirs


def _in_turn(number: int, *sides: tuple[Callable[[int, int], T], Taken]) -> list[Side[T]]:
    """The sides of a round, each first in every other one; what the first round takes is not kept."""
    kept = [Side(call, taken if number else Taken([], [])) for call, taken in sides]
    return kept if number % 2 else kept[::-1]


def _connect(server: PostgresServer, options: str) -> psycopg.Connection:
    connection = psycopg.connect(**_parameters(server, options), autocommit=True)
    connection.prepare_threshold = 0
    return connection


def _parameters(server: PostgresServer, options: str) -> dict[str, Any]:
    return {"host": str(server.folder), "user": "postgres", "password": PASSWORD, "dbname": "postgres",
            "options": options}  # fmt: skip


def _execute(cursor: psycopg.Cursor, statement: Bare) -> None:
    sql, values, has_rows = statement
    cursor.execute(sql, values, binary=True)
    if has_rows:
        cursor.fetchall()


def _round(call: Callable[[int, int], float], at_once: int, calls: int, taken: Taken) -> None:
    """Let each thread make its calls, all at once."""
    barrier = threading.Barrier(at_once + 1)

    def work(worker: int) -> None:
        barrier.wait()
        mine = [call(worker, n) for n in range(calls)]
        barrier.wait()
        taken.calls.extend(mine)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(at_once)]
    for thread in threads:
        thread.start()
    gc.collect()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    taken.rounds.append(time.perf_counter() - start)
    for thread in threads:
        thread.join()


# Tasks.


async def _with_tasks(
    keys: KeyStore, server: PostgresServer, options: str, domain: tv.Domain | None, at_once: int
) -> tuple[Taken, Taken]:
    store = AsyncPostgresTokenStore(server.url(schema=SCHEMA, options=options))
    example = Example(keys, server, options, domain, at_once)
    connections = [await _connect_async(server, options) for _ in range(at_once)]
    cursors = [connection.cursor() for connection in connections]
    for cursor, statements in zip(cursors, example.first, strict=True):
        for statement in statements:
            await _execute_async(cursor, statement)
    count = CALLS // at_once
    ours, theirs = Taken([], []), Taken([], [])
    async with tv.AsyncVault(
        keys, store, programs=PROGRAMS, requestors=requestors(), checkpoints=RARE
    ) as vault:

        async def issue_one(pan: str, wanted: tv.Domain | None) -> tv.TokenInfo:
            return await vault.issue(
                pan, expiry="2039-12", requestor=REQUESTOR, program="random", domain=wanted
            )

        await issue_one(next(pans()), UNLIMITED)  # the first event goes with a checkpoint
        tokens = [(await issue_one(next(pans()), domain or UNLIMITED)).token for _ in range(at_once)]
        for number in range(ROUNDS):
            ready = [calls_of(number, count) for _ in range(at_once)]
            plain = [
                [example.statements(worker, call) for call in ready[worker]] for worker in range(at_once)
            ]

            async def call(worker: int, n: int, ready: list[list[Call]] = ready) -> float:
                pan, transaction = ready[worker][n]
                start = time.perf_counter()
                if domain is None:
                    await issue_one(pan, UNLIMITED)
                else:
                    await vault.detokenize(tokens[worker], transaction)
                return time.perf_counter() - start

            async def replay(worker: int, n: int, plain: list[list[list[Bare]]] = plain) -> float:
                cursor, statements = cursors[worker], plain[worker][n]
                start = time.perf_counter()
                for statement in statements:
                    await _execute_async(cursor, statement)
                return time.perf_counter() - start

            for side in _in_turn(number, (call, ours), (replay, theirs)):
                await _round_async(side.call, at_once, count, side.taken)
    await store.close()
    example.close()
    for connection in connections:
        await connection.close()
    return ours, theirs


async def _connect_async(server: PostgresServer, options: str) -> psycopg.AsyncConnection:
    connection = await psycopg.AsyncConnection.connect(**_parameters(server, options), autocommit=True)
    connection.prepare_threshold = 0
    return connection


async def _execute_async(cursor: psycopg.AsyncCursor, statement: Bare) -> None:
    sql, values, has_rows = statement
    await cursor.execute(sql, values, binary=True)
    if has_rows:
        await cursor.fetchall()


async def _round_async(
    call: Callable[[int, int], Awaitable[float]], at_once: int, calls: int, taken: Taken
) -> None:
    """Let each task make its calls, all at once."""

    async def work(worker: int) -> list[float]:
        return [await call(worker, n) for n in range(calls)]

    gc.collect()
    start = time.perf_counter()
    for mine in await asyncio.gather(*(work(worker) for worker in range(at_once))):
        taken.calls.extend(mine)
    taken.rounds.append(time.perf_counter() - start)
