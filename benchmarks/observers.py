"""What an observer costs: one durable `detokenize` without, with logging, and with OpenTelemetry, in turns."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import attrs
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import tokenvault as tv
from benchmarks.batches import USE
from benchmarks.single import PROGRAMS, REQUESTOR, row
from tests.postgres_server import PostgresServer
from tokenvault.observers import Observer
from tokenvault.observers.logs import LoggingObserver
from tokenvault.observers.telemetry import OpenTelemetryObserver

TURNS = 30
CALLS = 100  # a turn


def _logging() -> Observer:
    logger = logging.Logger("benchmark", logging.INFO)
    logger.addHandler(logging.NullHandler())
    return LoggingObserver(logger)


def _telemetry() -> Observer:
    """As in a service: spans are handed over in batches, metrics are read now and then."""
    tracing = TracerProvider()
    tracing.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    return OpenTelemetryObserver(MeterProvider([InMemoryMetricReader()]), tracing)


OBSERVERS: dict[str, Callable[[], Observer | None]] = {
    "none": lambda: None,
    "logging": _logging,
    "OpenTelemetry": _telemetry,
}


def main(server: PostgresServer, folder: Path) -> None:
    """The table; `folder` holds the key file and the SQLite one."""
    (folder / "passphrase").write_text("of a benchmark")
    (folder / "passphrase").chmod(0o600)
    uri = f"file:{folder}/keys.json?passphrase-source=file:{folder}/passphrase"
    print(
        f"\nOne durable detokenize without limits, keys in the process; {TURNS * CALLS:,} calls of each, in turns"
    )
    row("", "median, us", "ratio", "mean, us", "ratio", "aim, at most")
    for name, url in (
        ("PostgreSQL", server.url(schema="observers")),
        ("SQLite", f"sqlite:///{folder}/observers.db"),
    ):
        _one_store(name, uri, url)


def _one_store(name: str, uri: str, url: str) -> None:
    with (
        closing(tv.open_key_store(uri)) as keys,
        closing(tv.open_token_store(url)) as store,
        ExitStack() as stack,
    ):
        tv.provision(keys, store)
        requestor = tv.TokenRequestor(REQUESTOR, programs={each.name for each in PROGRAMS})
        vaults = {
            each: stack.enter_context(
                tv.Vault(keys, store, programs=PROGRAMS, requestors=[requestor], observer=made())
            )
            for each, made in OBSERVERS.items()
        }
        token = vaults["none"].issue(
            "4111111111111111", expiry="2049-12", requestor=REQUESTOR, program=PROGRAMS[0].name
        )
        taken: dict[str, list[float]] = {each: [] for each in OBSERVERS}
        for _ in range(TURNS):
            for each, vault in vaults.items():
                taken[each] += _call_seconds(vault, token.token)
        for each, seconds in taken.items():
            cells = []
            for average in (statistics.median, statistics.mean):
                alone = average(taken["none"])
                cells += [f"{average(seconds) * 1e6:,.0f}", f"{average(seconds) / alone:.2f}"]
            row(f"{name}, {each}", *cells, "1.15" if each == "OpenTelemetry" else "")


def _call_seconds(vault: tv.Vault, token: str) -> list[float]:
    taken = []
    for _ in range(CALLS):
        use = attrs.evolve(USE, id=f"observed-{time.monotonic_ns()}")
        start = time.perf_counter()
        vault.detokenize(token, use)
        taken.append(time.perf_counter() - start)
    return taken
