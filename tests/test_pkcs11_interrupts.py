"""Exceptions of signal handlers at random instants: no call after them hangs or fails, whatever they interrupted."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.interrupts import interrupt, stacks
from tests.test_interrupt_steps import InterruptedHere, at_every_instruction
from tokenvault.errors import KeyStoreError
from tokenvault.keys import Custody, KeyName, KeyPurpose
from tokenvault.keys.pkcs11 import objects
from tokenvault.keys.pkcs11.errors import DoubtfulError
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.keys.pkcs11.worker import Worker

SEAL = KeyPurpose.SEAL
INTERRUPTS = 400
SECONDS_MAX = 10.0
CALLERS = {f"tokenvault.keys.pkcs11.{name}" for name in ("sessions", "store", "worker")}


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def check(keys: Pkcs11KeyStore, before: bytes) -> None:
    assert keys.cipher(KeyName(SEAL, 1)).encrypt_blocks(bytes(64)) == before
    assert keys.versions(SEAL)[0] == 1


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("seed", [1, 2])
def test_calls_go_on_after_interrupts_at_random_instants(softhsm_uri: str, seed: int) -> None:
    """With threads that use the same key meanwhile: none waits for an answer that nobody will give."""
    chance = random.Random(seed)
    with Pkcs11KeyStore(softhsm_uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        before = cipher.encrypt_blocks(bytes(64))
        stop = threading.Event()
        counts = [0, 0, 0]
        wrong: list[bytes] = []
        unanswered: list[str] = []

        def work(place: int) -> None:
            while not stop.is_set():
                try:
                    answer = cipher.encrypt_blocks(bytes(64))
                except KeyStoreError as error:
                    unanswered.append(f"{error}\n{stacks()}")
                    return
                counts[place] += 1
                if answer != before:
                    wrong.append(answer)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(len(counts))]
        for thread in threads:
            thread.start()
        actions: list[Callable[[], object]] = [
            lambda: cipher.encrypt_blocks(bytes(64)),
            lambda: keys.versions(SEAL),
            lambda: keys.cipher(KeyName(SEAL, 1)),
        ]
        try:
            for _ in range(INTERRUPTS):
                assert interrupt(chance.choice(actions), chance)
            check(keys, before)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert not unanswered, unanswered[0]
        assert not wrong
        assert min(counts) > INTERRUPTS / 10
        assert keys._sessions.state().coalescers[KeyName(SEAL, 1)].waiting == 0


@pytest.mark.usefixtures("handled")
def test_opening_creating_and_closing_after_interrupts_at_random_instants(softhsm_uri: str) -> None:
    """What was interrupted happened or not; each version is there once, and stores open and close as ever."""
    chance = random.Random(3)
    with Pkcs11KeyStore(softhsm_uri) as keys:
        before = keys.cipher(keys.create(SEAL, Custody.IN_MODULE)).encrypt_blocks(bytes(64))

        def open_and_close() -> None:
            with Pkcs11KeyStore(softhsm_uri) as other:
                other.versions(KeyPurpose.FPE)

        actions: list[Callable[[], object]] = [
            open_and_close,
            lambda: keys.create(KeyPurpose.FPE, Custody.IN_PROCESS),
            keys.create_signer,
        ]
        for _ in range(60):
            assert interrupt(chance.choice(actions), chance)
        check(keys, before)
        versions = keys.versions(KeyPurpose.FPE)
        assert versions == tuple(range(1, len(versions) + 1))
        assert keys.create_signer() is not None
    Pkcs11KeyStore(softhsm_uri).close()


class LateWorker(Worker):
    """A worker whose threads begin when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []
        self.go = threading.Event()

    def _serve(self) -> None:
        self.threads.append(threading.current_thread())
        assert self.go.wait(SECONDS_MAX)
        super()._serve()


def test_a_worker_whose_start_was_interrupted_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would be in the module at once, where a call takes longer than a fork is waited for."""
    worker, begin = LateWorker(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        begin(thread)
        raise InterruptedHere

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(InterruptedHere):
            worker.do(lambda: None)
    answers: list[int] = []
    caller = threading.Thread(target=lambda: answers.append(worker.do(threading.get_ident)))
    caller.start()
    until(lambda: len(worker.threads) == 2)
    worker.go.set()
    caller.join(SECONDS_MAX)
    until(lambda: sum(thread.is_alive() for thread in worker.threads) == 1)
    assert answers == [worker.do(threading.get_ident)]
    assert worker.do(lambda: worker.is_here)


def test_a_destroyed_key_is_not_used_again_wherever_its_destruction_was_interrupted(softhsm_uri: str) -> None:
    with Pkcs11KeyStore(softhsm_uri) as keys:
        kept: list[KeyName] = []

        def work() -> Callable[[], None]:
            kept[:] = [keys.create(SEAL, Custody.IN_PROCESS)]
            keys.cipher(kept[0])
            return lambda: keys.destroy(kept[0])

        def check() -> None:
            if kept[0].version not in keys.versions(SEAL):
                with pytest.raises(KeyStoreError, match="has no key"):
                    keys.cipher(kept[0])

        assert at_every_instruction(work, check, CALLERS, looked=True) > 10


def test_a_store_whose_closing_was_interrupted_anywhere_is_closed_by_another_close(softhsm_uri: str) -> None:
    kept: list[Pkcs11KeyStore] = []

    def work() -> Callable[[], None]:
        kept[:] = [Pkcs11KeyStore(softhsm_uri)]
        return kept[0].close

    def check() -> None:
        kept[0].close()
        assert not module._logins
        with pytest.raises(KeyStoreError, match="closed"):
            kept[0].versions(SEAL)

    with Pkcs11KeyStore(softhsm_uri) as keys:
        module = keys._sessions.state().module
    assert at_every_instruction(work, check, CALLERS, looked=True) > 10


def test_what_an_interrupted_opening_left_logged_in_does_not_stand_for_the_next_store(
    softhsm_uri: str,
) -> None:
    """Nobody could close it, and it would refuse every PIN but its own."""

    def work() -> Callable[[], None]:
        return lambda: (Pkcs11KeyStore(softhsm_uri), None)[1]

    def check() -> None:
        module.worker.do(gc.collect)
        before = module.logins_tried
        Pkcs11KeyStore(softhsm_uri).close()
        assert module.logins_tried == before + 1
        assert not module._logins

    with Pkcs11KeyStore(softhsm_uri) as keys:
        module = keys._sessions.state().module
    assert at_every_instruction(work, check, {"tokenvault.keys.pkcs11.worker"}, looked=True) > 10


@pytest.mark.parametrize("closed", [False, True], ids=["interrupted", "closed meanwhile"])
def test_a_key_that_is_not_as_asked_for_is_withdrawn_though_its_caller_is_gone(
    softhsm_uri: str, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stand under a version's number, unproved."""
    with Pkcs11KeyStore(softhsm_uri) as other, Pkcs11KeyStore(softhsm_uri) as keys:
        worker = keys._sessions.state().module.worker

        def made_otherwise(_session: object, _key: object) -> None:
            assert worker._task is not None
            keys._sessions.closed = closed
            worker._task.abandoned = not closed  # as by an exception in the caller
            raise DoubtfulError("made otherwise", code="KEY_STORE_KEY_UNFIT")

        monkeypatch.setattr(objects, "verify_made", made_otherwise)
        with pytest.raises(KeyStoreError):
            keys.create(SEAL, Custody.IN_MODULE)
        assert other.versions(SEAL) == ()
        assert not closed or not keys._sessions._states, "a closed store is logged in"
