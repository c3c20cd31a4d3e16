"""What `detokenize`, `search` and `count` cost as the number of tokens grows, and what a token takes on the disk."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path

import tokenvault as tv
from benchmarks.report import line_plot, progress
from benchmarks.single import PROGRAMS, REQUESTOR, UNLIMITED, new_keys, pans, row
from tests.postgres_server import PostgresServer
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.keys import KeyStore
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.records.keyring import KeyRing
from tokenvault.records.record import TokenRecord
from tokenvault.stores.port import PAGE_MAX, REFERENCE_BYTES, STREAM_BYTES, SealedEvent, TokenStore

TOKENS = (10**4, 10**5, 10**6)
CALLS = 500
PAGE = 20
OF_A_CUSTOMER = 5
STRIDE = 982_451_653  # a prime


def growth(
    server: PostgresServer, folder: Path, tokens_max: int = TOKENS[-1], *, write: bool = False
) -> None:
    """The tables, each store filled step by step with genuine records and an event for each; `write` draws them."""
    keys = new_keys(folder)
    schema = "growth"
    file = folder / "growth.db"

    def postgres_bytes() -> int:
        with server.raw() as connection:
            found = connection.execute(
                "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class"
                " WHERE relkind = 'r' AND relnamespace = %s::regnamespace",
                (schema,),
            ).fetchone()
        assert found is not None
        return int(found[0])

    series = {}
    for name, url, size in (
        ("PostgreSQL", server.url(schema=schema), postgres_bytes),
        ("SQLite", f"sqlite:///{file}", lambda: file.stat().st_size),
    ):
        print(f"\n{name}, one call of each: microseconds")
        row(
            "tokens",
            "detokenize",
            f"search, {PAGE}",
            "search, customer",
            "count",
            "bytes a token",
            "filled a second",
        )
        series[name] = _one_store(keys, tv.open_token_store(url), size, tokens_max)
    keys.close()
    if write:
        line_plot(
            "growth", "One detokenize as the vault grows", "tokens in the vault", "microseconds", series
        )


def _one_store(
    keys: KeyStore, store: TokenStore, size: Callable[[], int], tokens_max: int
) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    tv.provision(keys, store)
    requestor = tv.TokenRequestor(REQUESTOR, programs={program.name for program in PROGRAMS})
    with tv.Vault(keys, store, programs=PROGRAMS, requestors=[requestor]) as vault:
        cards = pans()
        store.put_domain(UNLIMITED.digest, UNLIMITED.document)
        tokens: list[str] = []
        numbers = iter(range(10**9))
        for wanted in sorted({*TOKENS, tokens_max}):
            if wanted > tokens_max:
                break
            new, start = wanted - len(tokens), time.perf_counter()
            tokens += _fill(keys, store, cards, len(tokens), new)
            a_second = new / (time.perf_counter() - start)
            if vault.count() != wanted:
                raise AssertionError("the count is wrong")
            drawn = random.choices(tokens, k=CALLS)
            uses = [
                tv.Transaction(
                    id=f"tx-{next(numbers)}",
                    requestor=REQUESTOR,
                    merchant="M-1001",
                    amount=tv.Money(1, "EUR"),
                )
                for _ in drawn
            ]
            customers = [f"customer-{random.randrange(wanted // OF_A_CUSTOMER)}" for _ in drawn]
            microseconds = [
                _median(
                    partial(vault.detokenize, token, use) for token, use in zip(drawn, uses, strict=True)
                ),
                _median(partial(vault.search, after=token, limit=PAGE) for token in drawn),
                _median(partial(vault.search, customer=customer) for customer in customers),
                _median(repeat(vault.count, CALLS)),
            ]
            points.append((wanted, microseconds[0]))
            row(
                f"{wanted:,}",
                *(f"{each:.0f}" for each in microseconds),
                f"{size() / wanted:.0f}",
                f"{a_second:.0f}",
            )
    store.close()
    return points


def _median(calls: Iterable[Callable[[], object]]) -> float:
    """Microseconds of the median call."""
    taken = []
    for call in calls:
        before = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - before)
    return statistics.median(taken) / 1e3


def _fill(keys: KeyStore, store: TokenStore, cards: Iterator[str], there: int, count: int) -> list[str]:
    """Insert records as the vault would, in the largest batches that the port takes."""
    ring = KeyRing(keys)
    stream = os.urandom(STREAM_BYTES)
    program, expiry = PROGRAMS[0], CardExpiry(2039, 12)
    choices = program.format.choices(16)
    now_ms = time.time_ns() // 1_000_000
    made: list[str] = []
    while len(made) < count:
        batch = min(PAGE_MAX, count - len(made))
        # Spread over the whole space, and none twice.
        drawn = [
            program.format.make(number * STRIDE % choices, 16, "0000")
            for number in range(there + len(made), there + len(made) + batch)
        ]
        opened = [
            (
                TokenRecord(
                    token=token, reference=os.urandom(REFERENCE_BYTES), pan_fingerprint=os.urandom(16),
                    requestor=REQUESTOR, program=program.name, revision=1, domain=UNLIMITED.digest,
                    status=TokenStatus.ACTIVE, created_ms=now_ms + there + len(made) + place, updated_ms=now_ms,
                    customer=f"customer-{(there + len(made) + place) // OF_A_CUSTOMER}",
                ),
                Card(Pan.parse(next(cards)), expiry),
            )
            for place, token in enumerate(drawn)
        ]  # fmt: skip
        rows = [ring.seal(record, card) for record, card in opened]
        issued = Event(
            time_ms=now_ms, action=Action.ISSUE, outcome=Outcome.DONE, requestor=REQUESTOR, revision=1
        )
        events = [  # of a vault's size; who verifies the trail would refuse their MAC
            SealedEvent(stream, number, row.reference, issued.body(), os.urandom(16))
            for number, row in enumerate(rows, len(made) + 1)
        ]
        assert not store.insert(rows, events)
        made += drawn
        progress(f"{there + len(made):,} tokens")
    return made
