"""Coalescer: what waits goes out together, nothing is lost, nobody answered waits for the next call."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11.coalescer import Coalescer, _Request
from tokenvault.keys.pkcs11.worker import Worker

PATIENCE_SECONDS = 30


def invert(blocks: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in blocks)


class Gate:
    """A call that stops until it is let through, one at a time."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.entered = threading.Semaphore(0)
        self.let_through = threading.Semaphore(0)
        self.failures: list[BaseException | None] = []

    def __call__(self, blocks: bytes) -> bytes:
        self.calls.append(blocks)
        self.entered.release()
        assert self.let_through.acquire(timeout=PATIENCE_SECONDS)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return invert(blocks)

    def await_entry(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_SECONDS)


def await_waiting(coalescer: Coalescer, count: int) -> None:
    while coalescer.waiting < count:
        time.sleep(0.001)


def block(number: int) -> bytes:
    return number.to_bytes(16, "big")


def queue_up(pool: ThreadPoolExecutor, coalescer: Coalescer, numbers: range) -> list[Future[bytes]]:
    """Requests in a known order."""
    futures = []
    for number in numbers:
        before = coalescer.waiting
        futures.append(pool.submit(coalescer.encrypt, block(number)))
        await_waiting(coalescer, before + 1)
    return futures


def test_answered_threads_do_not_wait_for_the_next_call() -> None:
    gate = Gate()
    coalescer = Coalescer(gate, Worker(), blocks_per_call_max=100)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(coalescer.encrypt, block(0))
        gate.await_entry()
        second = queue_up(pool, coalescer, range(1, 4))
        gate.let_through.release()
        assert first.result(PATIENCE_SECONDS) == invert(block(0))
        gate.await_entry()
        third = queue_up(pool, coalescer, range(4, 6))
        gate.let_through.release()
        gate.await_entry()  # the third call is in the module and stays there
        assert [future.result(PATIENCE_SECONDS) for future in second] == [
            invert(block(n)) for n in range(1, 4)
        ]
        gate.let_through.release()
        assert [future.result(PATIENCE_SECONDS) for future in third] == [
            invert(block(n)) for n in range(4, 6)
        ]
    assert gate.calls == [block(0), b"".join(map(block, range(1, 4))), b"".join(map(block, range(4, 6)))]
    assert coalescer.waiting == 0


@pytest.mark.parametrize("failure", [KeyStoreError("lost"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_failed_call_ends_all_its_requests_and_no_others(failure: BaseException) -> None:
    gate = Gate()
    coalescer = Coalescer(gate, Worker(), blocks_per_call_max=100)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(coalescer.encrypt, block(0))
        gate.await_entry()
        second = queue_up(pool, coalescer, range(1, 4))
        gate.failures = [None, failure]
        gate.let_through.release()
        gate.await_entry()
        third = queue_up(pool, coalescer, range(4, 6))
        gate.let_through.release(2)
        errors = [future.exception(PATIENCE_SECONDS) for future in second]
        assert all(isinstance(error, KeyStoreError) for error in errors[1:])
        assert type(errors[0]) is type(failure)
        assert len(set(map(id, errors))) == 3
        assert first.result(PATIENCE_SECONDS) == invert(block(0))
        assert [future.result(PATIENCE_SECONDS) for future in third] == [
            invert(block(n)) for n in range(4, 6)
        ]


def test_interrupted_waiter_leaves_nothing_behind() -> None:
    """A signal's exception in a thread that waits: its request is taken back, those behind it are served."""
    gate = Gate()
    coalescer = Coalescer(gate, Worker(), blocks_per_call_max=100)

    class SignalledError(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise SignalledError

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(coalescer.encrypt, block(0))
        gate.await_entry()

        def signal_main_thread() -> list[Future[bytes]]:
            await_waiting(coalescer, 1)
            behind = queue_up(pool, coalescer, range(2, 4))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            return behind

        before = signal.signal(signal.SIGUSR1, interrupt)
        try:
            signaller = pool.submit(signal_main_thread)
            with pytest.raises(SignalledError):
                coalescer.encrypt(block(1))
        finally:
            signal.signal(signal.SIGUSR1, before)
        behind = signaller.result(PATIENCE_SECONDS)
        gate.let_through.release(2)
        assert first.result(PATIENCE_SECONDS) == invert(block(0))
        assert [future.result(PATIENCE_SECONDS) for future in behind] == [invert(block(n)) for n in (2, 3)]
    assert gate.calls == [block(0), block(2) + block(3)]


def test_an_interrupted_caller_takes_no_others_answer_along() -> None:
    """Its task carries blocks of others: it goes on for them, as if nobody had stopped waiting."""
    gate, worker = Gate(), Worker()
    entered, leave = threading.Event(), threading.Event()

    def keep_busy() -> None:
        entered.set()
        assert leave.wait(PATIENCE_SECONDS)

    def call(blocks: bytes) -> bytes:
        answer = gate(blocks)
        return b"" if worker.abandoned else answer

    coalescer = Coalescer(call, worker, blocks_per_call_max=100)
    with ThreadPoolExecutor(8) as pool:
        pool.submit(worker.do, keep_busy)
        assert entered.wait(PATIENCE_SECONDS)
        waiting = queue_up(pool, coalescer, range(4))
        leave.set()
        gate.await_entry()
        task = worker._task
        assert task is not None
        task.abandoned = True  # as its caller does when it stops waiting
        gate.let_through.release()
        assert [each.result(PATIENCE_SECONDS) for each in waiting] == [invert(block(n)) for n in range(4)]
    assert len(gate.calls) == 1


def test_a_request_that_takes_too_long_is_taken_back_and_told() -> None:
    gate = Gate()
    coalescer = Coalescer(gate, Worker(), blocks_per_call_max=100, seconds=0.2)
    with ThreadPoolExecutor(8) as pool:
        requests = [pool.submit(coalescer.encrypt, block(n)) for n in range(3)]
        errors = [each.exception(PATIENCE_SECONDS) for each in requests]
        assert all(isinstance(error, KeyStoreError) and "did not answer" in str(error) for error in errors)
        assert coalescer.waiting == 0
        gate.let_through.release(2)
        assert coalescer.encrypt(block(7)) == invert(block(7))


def test_a_request_that_was_taken_back_ends_its_turn_however_busy_others_are() -> None:
    """Its caller was interrupted between leaving it and waiting for it; others leave requests without end."""
    calls: list[bytes] = []

    def call(blocks: bytes) -> bytes:
        calls.append(blocks)
        assert len(calls) < 100
        coalescer._queue.append(_Request(block(len(calls)), coalescer._serve))
        return invert(blocks)

    coalescer = Coalescer(call, Worker(), blocks_per_call_max=1)
    coalescer._queue.append(_Request(block(0), coalescer._serve))
    taken_back = _Request(block(1), coalescer._serve)
    with pytest.raises(KeyStoreError, match="interrupted"):
        coalescer._serve(taken_back)
    assert not calls
