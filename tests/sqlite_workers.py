"""What other processes do to a SQLite file in the tests: module-level, so that spawn can import it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.connection import Connection

from tokenvault.stores.port import TokenStore
from tokenvault.testing import a_record, an_event
from tokenvault.testing.token_store_harness import replaced

CONTENDING_THREADS = 16
CONTENDING_REPLACEMENTS = 2


def contend(opener: Callable[[], TokenStore], number: int) -> None:
    """Sixteen threads replace record 1 until each has done its share."""
    with closing(opener()) as store, ThreadPoolExecutor(CONTENDING_THREADS) as pool:

        def replace(thread: int) -> None:
            done = 0
            while done < CONTENDING_REPLACEMENTS:
                (record,) = store.get([a_record(1).token])
                event = an_event(done + 1, stream=1 + number * CONTENDING_THREADS + thread)
                done += not store.replace([replaced(record)], [event])

        list(pool.map(replace, range(CONTENDING_THREADS)))


def insert_for_ever(opener: Callable[[], TokenStore], first: int, acknowledged: Connection) -> None:
    """Insert batches of three records with one event, and tell of each once it is written."""
    store = opener()
    number = first
    while True:
        batch = [a_record(n) for n in range(number, number + 3)]
        store.insert(batch, [an_event(number + 1)])
        acknowledged.send(number)
        number += 3
