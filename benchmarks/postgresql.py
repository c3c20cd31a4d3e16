"""Whole calls of the vault on PostgreSQL beside the same statements, with the same values, through bare psycopg.

A round of calls of the vault by some threads or tasks is followed by a round of the statements that they made, by as
many, each over a connection of its own, on a twin of the tables in the same server. Bare means: one cursor, kept;
statements prepared from the first time on; values and rows in binary; autocommit; no pool, no checks.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psycopg

import tokenvault as tv
from benchmarks.single import LIMITED, PROGRAMS, REQUESTOR, UNLIMITED, new_keys, pans, row
from tests.postgres_server import PASSWORD, PostgresServer
from tokenvault.keys import KeyStore
from tokenvault.stores._postgres_statements import Statement
from tokenvault.stores._postgres_values import INT8, TEXT, Query
from tokenvault.stores.port import PAGE_MAX, SealedEvent, SealedRecord
from tokenvault.stores.postgres import PostgresTokenStore
from tokenvault.stores.postgres_async import AsyncPostgresTokenStore

AT_ONCE = (1, 4, 16)
ROUNDS = 31  # short ones in turn, as the machine and its disk change their pace; the first is not counted
BATCH_ROUNDS = 7
CALLS = 96  # a round, by all threads or tasks together
RARE = tv.CheckpointPolicy(events=1_000_000, seconds=86_400)  # none is among the calls that are timed
SCHEMA, TWIN = "vault", "twin"
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
Bare = tuple[str, tuple[Any, ...], bool]
_made: ContextVar[list[Statement[Any]]] = ContextVar("_made")


class Store(PostgresTokenStore):
    """Notes the statements that it runs."""

    def _run(self, statement: Statement[T]) -> T:
        _made.get([]).append(statement)
        return super()._run(statement)


class AsyncStore(AsyncPostgresTokenStore):
    """Notes the statements that it runs."""

    async def _run(self, statement: Statement[T]) -> T:
        _made.get([]).append(statement)
        return await super()._run(statement)


class Taken(NamedTuple):
    """Seconds of each call, and of each round."""

    calls: list[float]
    rounds: list[float]


def bare(statement: Statement[Any]) -> Bare:
    """A statement as psycopg's cursor takes it, on the twin: SQL, values, whether it has rows."""
    sql, order = _bare_sql(statement.query)
    values = [
        _value(kind, value) for kind, value in zip(statement.query.takes, statement.values, strict=True)
    ]
    return sql, tuple(values[n - 1] for n in order), bool(statement.query.gives)


_texts: dict[Query, tuple[str, list[int]]] = {}


def _bare_sql(query: Query) -> tuple[str, list[int]]:
    if query not in _texts:
        sql = query.sql.decode().replace(f'"{SCHEMA}".', f'"{TWIN}".')
        order = [int(number) for number in re.findall(r"\$(\d+)", sql)]
        _texts[query] = re.sub(r"\$\d+", "%s", sql), order
    return _texts[query]


def _value(kind: int, value: bytes) -> str | int | bytes:
    if kind == TEXT:
        return value.decode()
    return int.from_bytes(value, signed=True) if kind == INT8 else value


def single_calls(server: PostgresServer, folder: Path) -> None:
    """The tables of single calls, for threads and for tasks."""
    keys = new_keys(folder)
    for series, options in SERIES.items():
        for schema in (SCHEMA, TWIN):
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


def _transaction(number: int) -> tv.Transaction:
    return tv.Transaction(
        id=f"tx-{number}", requestor=REQUESTOR, merchant="M-1001", amount=tv.Money(1, "EUR")
    )


def _requestors() -> list[tv.TokenRequestor]:
    return [tv.TokenRequestor(REQUESTOR, programs={program.name for program in PROGRAMS})]


def batches(server: PostgresServer) -> None:
    """The store's own part of batches beside binary COPY and SELECT of the same rows."""
    stores = [PostgresTokenStore(server.url(schema=f"batch_{name}")) for name in ("vault", TWIN)]
    for store in stores:
        store.provision()
    taken: dict[str, list[float]] = {"insert": [], "COPY": [], "get": [], "SELECT": []}
    with _connect(server, "") as connection:
        statements = stores[1]._statements
        numbers = iter(random.sample(range(10**10), BATCH_ROUNDS * PAGE_MAX))  # no token twice in all rounds
        for _ in range(BATCH_ROUNDS):
            records, events = some_records(islice(numbers, PAGE_MAX))
            tokens = [record.token for record in records]
            gc.collect()
            with _timed(taken["insert"]):
                stores[0].insert(records, events)
            copies = statements.insert_many(records, events).copies()
            with _timed(taken["COPY"]), connection.transaction():
                for copy in copies:
                    with connection.cursor().copy(copy.sql) as out:
                        out.write(copy.rows)
            with _timed(taken["get"]):
                stores[0].get(tokens)
            select = statements.get(tokens).query.sql.decode().replace("$1", "%s")
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
    store = Store(server.url(schema=SCHEMA, options=options))
    vault = tv.Vault(keys, store, programs=PROGRAMS, requestors=_requestors(), checkpoints=RARE)
    connections = [_connect(server, options) for _ in range(at_once)]
    cursors = [connection.cursor() for connection in connections]
    tokens = []
    calls = CALLS // at_once

    def issue(pan: str, wanted: tv.Domain | None) -> tv.TokenInfo:
        return vault.issue(pan, expiry="2039-12", requestor=REQUESTOR, program="random", domain=wanted)

    issue(next(pans()), UNLIMITED)  # the first event goes with a checkpoint
    for cursor, pan in zip(cursors, pans(), strict=False):
        _made.set([])
        tokens.append(issue(pan, domain or UNLIMITED).token)
        for statement in _made.get():
            _execute(cursor, bare(statement))

    ours, theirs = Taken([], []), Taken([], [])
    for number in range(ROUNDS):
        made: list[list[list[Statement[Any]]]] = [[] for _ in range(at_once)]
        ready = [[*zip(pans(), map(_transaction, range(number * calls, (number + 1) * calls)), strict=False)]
                 for _ in range(at_once)]  # fmt: skip

        def call(
            worker: int, n: int, made: list[list[list[Statement[Any]]]] = made, ready: list[Any] = ready
        ) -> float:
            pan, transaction = ready[worker][n]
            statements: list[Statement[Any]] = []
            _made.set(statements)
            start = time.perf_counter()
            if domain is None:
                issue(pan, UNLIMITED)
            else:
                vault.detokenize(tokens[worker], transaction)
            taken = time.perf_counter() - start
            made[worker].append(statements)
            return taken

        _round(call, at_once, calls, ours if number else Taken([], []))
        plain = [[[bare(statement) for statement in each] for each in worker] for worker in made]

        def replay(worker: int, n: int, plain: list[list[list[Bare]]] = plain) -> float:
            cursor = cursors[worker]
            start = time.perf_counter()
            for statement in plain[worker][n]:
                _execute(cursor, statement)
            return time.perf_counter() - start

        _round(replay, at_once, calls, theirs if number else Taken([], []))
    vault.close()
    store.close()
    for connection in connections:
        connection.close()
    return ours, theirs


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
    store = AsyncStore(server.url(schema=SCHEMA, options=options))
    connections = [await _connect_async(server, options) for _ in range(at_once)]
    cursors = [connection.cursor() for connection in connections]
    calls = CALLS // at_once
    ours, theirs = Taken([], []), Taken([], [])
    async with tv.AsyncVault(
        keys, store, programs=PROGRAMS, requestors=_requestors(), checkpoints=RARE
    ) as vault:

        async def issue(pan: str, wanted: tv.Domain | None) -> tv.TokenInfo:
            return await vault.issue(
                pan, expiry="2039-12", requestor=REQUESTOR, program="random", domain=wanted
            )

        tokens = []
        await issue(next(pans()), UNLIMITED)  # the first event goes with a checkpoint
        for cursor, pan in zip(cursors, pans(), strict=False):
            _made.set([])
            tokens.append((await issue(pan, domain or UNLIMITED)).token)
            for statement in _made.get():
                await _execute_async(cursor, bare(statement))
        for number in range(ROUNDS):
            made: list[list[list[Statement[Any]]]] = [[] for _ in range(at_once)]
            ready = [[*zip(pans(), map(_transaction, range(number * calls, (number + 1) * calls)), strict=False)]
                     for _ in range(at_once)]  # fmt: skip

            async def call(
                worker: int, n: int, made: list[list[list[Statement[Any]]]] = made, ready: list[Any] = ready
            ) -> float:
                pan, transaction = ready[worker][n]
                statements: list[Statement[Any]] = []
                _made.set(statements)
                start = time.perf_counter()
                if domain is None:
                    await issue(pan, UNLIMITED)
                else:
                    await vault.detokenize(tokens[worker], transaction)
                taken = time.perf_counter() - start
                made[worker].append(statements)
                return taken

            await _round_async(call, at_once, calls, ours if number else Taken([], []))
            plain = [[[bare(statement) for statement in each] for each in worker] for worker in made]

            async def replay(worker: int, n: int, plain: list[list[list[Bare]]] = plain) -> float:
                cursor = cursors[worker]
                start = time.perf_counter()
                for statement in plain[worker][n]:
                    await _execute_async(cursor, statement)
                return time.perf_counter() - start

            await _round_async(replay, at_once, calls, theirs if number else Taken([], []))
    await store.close()
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
