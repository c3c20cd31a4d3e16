"""A PostgreSQL server for benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.postgres_server import PostgresServer


@contextmanager
def running_server(
    place: str | None = None, *, own_core: bool = False, **settings: str
) -> Iterator[PostgresServer]:
    """A server; with a core of its own, as if on another machine: on one core, each empties the other's caches."""
    cores = sorted(os.sched_getaffinity(0)) if own_core and hasattr(os, "sched_setaffinity") else []
    _run_on(cores[:1])
    server = PostgresServer(place, **settings)
    _run_on(cores[1:])
    try:
        yield server
    finally:
        _run_on(cores)
        server.remove()


def _run_on(cores: Sequence[int]) -> None:
    """Keep this process, and those that it starts from now on, to some cores, if there are several."""
    if cores:
        os.sched_setaffinity(0, cores)
