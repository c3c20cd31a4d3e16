"""Observers: what they are told, that none of it is a card or a token, and that none of them harms a call."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import attrs
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import tokenvault as tv
from tests.interrupts import SoftLimitError, thread_starts_struck
from tests.test_interrupt_steps import at_every_instruction
from tests.vaults import MASTERCARD, PROGRAMS, REQUESTORS, SHOP, VISA, issue, use
from tokenvault.keys import KeyStore
from tokenvault.observers import (
    CallEnded,
    ConflictMet,
    Decided,
    LoggingObserver,
    Observer,
    OpenTelemetryObserver,
)
from tokenvault.runtime import run
from tokenvault.stores import TokenStore
from tokenvault.testing import FAIL, FaultSchedule, FaultyTokenStore
from tokenvault.vault import observer as port
from tokenvault.vault.observer import Deliveries


@attrs.define
class Notes:
    """An observer that keeps what it is told."""

    told: list[Any] = attrs.field(factory=list)

    def observe(self, event: object) -> None:
        self.told.append(event)

    def calls(self) -> list[tuple[str, str, str | None]]:
        return [(each.name, each.outcome, each.code) for each in self.told if isinstance(each, CallEnded)]


class Hanging:
    """An observer that does not come back until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def observe(self, event: object) -> None:
        self.let_go.wait(60)


class Raising:
    def observe(self, event: object) -> None:
        raise ValueError(event)


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.fixture
def records(local_keys: KeyStore) -> Iterator[TokenStore]:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        yield store


def watched(keys: KeyStore, store: TokenStore, observer: Observer | None) -> tv.Vault:
    return tv.Vault(keys, store, programs=PROGRAMS, requestors=REQUESTORS, observer=observer)


def expect_error(call: Any, *arguments: Any, **named: Any) -> None:
    with pytest.raises(tv.TokenVaultError):
        call(*arguments, **named)


def test_calls_and_decisions_are_told_in_their_order(local_keys: KeyStore, records: TokenStore) -> None:
    notes = Notes()
    with watched(local_keys, records, notes) as vault:
        token = issue(vault, domain=tv.Domain(merchants={"M-1"})).token
        assert not vault.check(token, use())
        expect_error(vault.detokenize, token, use())
        vault.detokenize(token, use(2, merchant="M-1"))
        expect_error(vault.get, "1" * 16)
        vault.issue_many([VISA, MASTERCARD], requestor=SHOP, program="one-time")
    assert notes.calls() == [
        ("issue", "done", None),
        ("check", "done", None),
        ("detokenize", "refused", "MERCHANT_NOT_ALLOWED"),
        ("detokenize", "done", None),
        ("get", "refused", "TOKEN_NOT_FOUND"),
        ("issue_many", "done", None),
    ]
    assert [each for each in notes.told if isinstance(each, Decided)] == [
        Decided(name="check", allowed=False, codes=("MERCHANT_NOT_ALLOWED",)),
        Decided(name="detokenize", allowed=False, codes=("MERCHANT_NOT_ALLOWED",)),
        Decided(name="detokenize", allowed=True),
    ]
    assert [each.items for each in notes.told if isinstance(each, CallEnded)] == [None] * 5 + [2]
    assert all(0 < each.milliseconds < 60_000 for each in notes.told if isinstance(each, CallEnded))


def test_a_vault_with_coroutines_tells_the_same_and_a_cancelled_call_too(local_keys: KeyStore) -> None:
    notes = Notes()

    async def work() -> None:
        store = tv.open_async_token_store("memory:")
        await tv.provision_async(local_keys, store)
        async with tv.AsyncVault(
            local_keys, store, programs=PROGRAMS, requestors=REQUESTORS, observer=notes
        ) as vault:
            info = await vault.issue(VISA, requestor=SHOP, program="one-time")
            task = asyncio.ensure_future(vault.detokenize(info.token, use()))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await store.close()

    asyncio.run(work())
    assert [name for name, *_ in notes.calls()] == ["issue", "detokenize"]
    assert notes.calls()[1][1] in ("cancelled", "done")


def test_a_change_that_starts_over_is_told(local_keys: KeyStore, records: TokenStore) -> None:
    notes = Notes()
    with watched(local_keys, records, notes) as vault:
        core = vault._open()
        assert run(core.conflict(0)) == 1
    assert notes.told == [ConflictMet(attempts=1)]


def test_a_failure_of_the_database_is_told_as_one(local_keys: KeyStore, records: TokenStore) -> None:
    notes, schedule = Notes(), FaultSchedule()
    with watched(local_keys, FaultyTokenStore(records, schedule), notes) as vault:
        reference = issue(vault).reference
        schedule.set([FAIL])
        expect_error(vault.get, reference)
    assert notes.calls() == [("issue", "done", None), ("get", "failed", "STORE_FAILED")]


def test_no_event_holds_a_card_number_a_token_or_a_reference(
    local_keys: KeyStore, records: TokenStore
) -> None:
    notes = Notes()
    with watched(local_keys, records, notes) as vault:
        info = issue(vault)
        vault.tokens_of(VISA)
        vault.get(info.reference)
        vault.detokenize(info.token, use())
        expect_error(vault.detokenize, info.token, use(f"x{VISA}"))
        expect_error(vault.issue, VISA, requestor=VISA, program=VISA)
        expect_error(vault.get, VISA)
    assert len(notes.calls()) == 7
    told = repr(notes.told)
    assert not any(
        secret in told for secret in (VISA, info.token, info.reference, VISA[:12], info.token[:12])
    )


def test_an_observer_that_raises_harms_no_call(local_keys: KeyStore, records: TokenStore) -> None:
    with watched(local_keys, records, Raising()) as vault:
        for number in range(20):
            vault.detokenize(issue(vault).token, use(number))


def test_an_observer_that_hangs_holds_up_no_call_and_what_does_not_fit_is_counted(
    local_keys: KeyStore, records: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "EVENTS_WAITING_MAX", 10)
    hanging = Hanging()
    vault = watched(local_keys, records, hanging)
    deliveries = vault._open().deliveries
    assert deliveries is not None
    for _ in range(30):
        issue(vault)
    assert deliveries.dropped >= 19  # one is in its hands, ten wait
    begun = time.monotonic()
    vault.close()
    assert time.monotonic() - begun < port.CLOSING_SECONDS_MAX + 5
    hanging.let_go.set()


def test_events_are_gathered_and_closing_waits_for_no_more_of_them(
    local_keys: KeyStore, records: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "GATHERING_SECONDS", 60)
    notes = Notes()
    with watched(local_keys, records, notes) as vault:
        for _ in range(5):
            issue(vault)
        assert len(notes.told) < 5  # the last one waits for more at least
    assert notes.calls() == [("issue", "done", None)] * 5


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, TimeoutError])
def test_whatever_an_observer_raises_it_is_told_of_the_next_event(raised: type[BaseException]) -> None:
    told: list[Any] = []

    class RaisingOnce:
        def observe(self, event: object) -> None:
            told.append(event)
            if len(told) == 1:
                raise raised

    deliveries = Deliveries(RaisingOnce())
    for attempts in range(3):
        deliveries.put(ConflictMet(attempts=attempts))
        wait_until(lambda: len(told) > attempts)  # noqa: B023 # called at once
    deliveries.close()


def test_an_observer_whose_thread_was_not_to_be_had_is_told_once_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes = Notes()
    deliveries = Deliveries(notes)

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        deliveries.put(ConflictMet(attempts=1))
    deliveries.put(ConflictMet(attempts=2))
    wait_until(lambda: len(notes.told) == 2)
    deliveries.close()


def test_what_waits_for_a_thread_is_told_when_the_vault_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    deliveries = Deliveries(notes)
    with monkeypatch.context() as patched:
        patched.setattr(port._Worker, "start", lambda _: None)
        deliveries.put(ConflictMet(attempts=1))
    deliveries.close()
    assert notes.told == [ConflictMet(attempts=1)]


class Overtaken(list[None]):
    """The turn of a worker, which is given back just after another event was put."""

    def __init__(self, deliveries: Deliveries) -> None:
        super().__init__([None])
        self._late: list[Callable[[], None]] = [lambda: deliveries.put(ConflictMet(attempts=2))]

    def extend(self, taken: Iterable[None]) -> None:
        while self._late:
            self._late.pop()()
        super().extend(taken)


def test_an_event_that_comes_while_the_thread_ends_is_told() -> None:
    notes = Notes()
    deliveries = Deliveries(notes)
    deliveries._workers[os.getpid()] = worker = port._Worker(notes)
    vars(worker)["turn"] = Overtaken(deliveries)
    deliveries.put(ConflictMet(attempts=1))
    deliveries.close()
    wait_until(lambda: len(notes.told) == 2)


def test_a_time_limit_that_is_a_runtime_error_comes_out_of_telling() -> None:
    deliveries = Deliveries(Notes())
    with thread_starts_struck(), pytest.raises(SoftLimitError):
        deliveries.put(ConflictMet(attempts=1))
    deliveries.close()


# Of `threading` too: its own objects are written in Python, and an exception may leave their locks held.
INTERRUPTED = {"contextlib", "threading", "tokenvault.runtime", "tokenvault.vault.observer"}


def test_telling_that_is_interrupted_anywhere_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "GATHERING_SECONDS", 0.001)
    kept: list[tuple[Notes, Deliveries]] = []

    def work() -> Callable[[], None]:
        notes = Notes()
        kept[:] = [(notes, Deliveries(notes))]
        return lambda: kept[0][1].put(ConflictMet(attempts=1))

    def check() -> None:
        notes, deliveries = kept[0]
        for _ in range(3):
            deliveries.put(ConflictMet(attempts=2))
        wait_until(lambda: notes.told[-3:] == [ConflictMet(attempts=2)] * 3)
        deliveries.close()

    assert at_every_instruction(work, check, INTERRUPTED, looked=True) > 20


def test_closing_that_is_interrupted_anywhere_is_done_by_closing_again() -> None:
    kept: list[tuple[Notes, Deliveries]] = []

    def work() -> Callable[[], None]:
        notes = Notes()
        deliveries = Deliveries(notes)
        kept[:] = [(notes, deliveries)]
        deliveries.put(ConflictMet(attempts=1))
        time.sleep(0.002)  # its thread waits for more by now
        return deliveries.close

    def check() -> None:
        notes, deliveries = kept[0]
        closing = threading.Thread(target=deliveries.close, daemon=True)
        closing.start()
        closing.join(10)
        assert not closing.is_alive()
        wait_until(lambda: notes.told == [ConflictMet(attempts=1)])

    assert at_every_instruction(work, check, INTERRUPTED, looked=True) > 5


def test_without_an_observer_no_thread_is_started(local_keys: KeyStore, records: TokenStore) -> None:
    before = set(threading.enumerate())
    with watched(local_keys, records, None) as vault:
        issue(vault)
        assert set(threading.enumerate()) <= before
        assert vault._ended is None


def test_a_forked_child_tells_its_own_observer_s_copy(local_keys: KeyStore, records: TokenStore) -> None:
    notes = Notes()
    with watched(local_keys, records, notes) as vault:
        issue(vault)
        pid = os.fork()
        if pid == 0:
            notes.told.clear()
            issue(vault)
            vault.close()
            os._exit(len(notes.calls()))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_events_become_records_of_logging(
    local_keys: KeyStore, records: TokenStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tokenvault")
    with watched(local_keys, records, LoggingObserver()) as vault:
        token = issue(vault, domain=tv.Domain(merchants={"M-1"})).token
        expect_error(vault.detokenize, token, use())
    LoggingObserver().observe(ConflictMet(attempts=3))
    levels = [(each.levelname, each.getMessage().split(" in ")[0]) for each in caplog.records]
    assert levels == [
        ("DEBUG", "issue done"),
        ("INFO", "detokenize not allowed: MERCHANT_NOT_ALLOWED"),
        ("INFO", "detokenize refused (MERCHANT_NOT_ALLOWED)"),
        ("INFO", "a change starts over, for the 3. time"),
    ]
    assert vars(caplog.records[1])["tokenvault"]["codes"] == ("MERCHANT_NOT_ALLOWED",)


def test_opentelemetry_gets_metrics_in_seconds_and_a_span_for_each_call(
    local_keys: KeyStore, records: TokenStore
) -> None:
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    observer = OpenTelemetryObserver(MeterProvider([reader]), tracers)
    with watched(local_keys, records, observer) as vault:
        token = issue(vault, domain=tv.Domain(merchants={"M-1"})).token
        expect_error(vault.detokenize, token, use())
        vault.issue_many([VISA], requestor=SHOP, program="one-time")
    observer.observe(ConflictMet(attempts=1))
    observer.observe(
        CallEnded(name="get", outcome="failed", code="STORE_FAILED", milliseconds=1.0, ended_ns=2_000_000)
    )
    told = reader.get_metrics_data()
    assert told is not None
    metrics = {each.name: each for each in told.resource_metrics[0].scope_metrics[0].metrics}
    duration = metrics["tokenvault.client.operation.duration"]
    assert duration.unit == "s"
    points = {
        str((each.attributes or {})["tokenvault.operation.name"]): each for each in duration.data.data_points
    }
    assert points["issue"].count == 1  # type: ignore[union-attr] # of a histogram
    assert 0 < points["issue"].sum < 60  # type: ignore[union-attr] # of a histogram
    assert (points["detokenize"].attributes or {})["error.type"] == "MERCHANT_NOT_ALLOWED"
    for name in ("decisions", "violations", "conflicts"):
        [point] = metrics[f"tokenvault.client.{name}"].data.data_points
        assert point.value == 1  # type: ignore[union-attr] # of a counter
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {
        "tokenvault issue",
        "tokenvault detokenize",
        "tokenvault issue_many",
        "tokenvault get",
    }
    assert (spans["tokenvault issue_many"].attributes or {})["tokenvault.operation.batch.size"] == 1
    assert spans["tokenvault get"].status.status_code is StatusCode.ERROR
    assert spans["tokenvault detokenize"].status.status_code is StatusCode.UNSET
    assert (spans["tokenvault get"].start_time, spans["tokenvault get"].end_time) == (1_000_000, 2_000_000)


def test_opentelemetry_is_imported_where_it_is_asked_for() -> None:
    program = "import sys, tokenvault.observers as o; print('opentelemetry' in sys.modules); o.OpenTelemetryObserver"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "False\n"), ran.stderr
