"""Pkcs11KeyStore when things go wrong: tokens that vanish, log out, refuse the PIN; forks; load."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pkcs11
import pytest

from tests import softhsm
from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys import BlockCipher, Custody, KeyName, KeyPurpose, LocalBlockCipher
from tokenvault.keys.pkcs11 import registry
from tokenvault.keys.pkcs11 import worker as module_worker
from tokenvault.keys.pkcs11.cryptoki import CallError
from tokenvault.keys.pkcs11.module import Module
from tokenvault.keys.pkcs11.registry import module_at
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.keys.uri import parse_pkcs11_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEAL, AUDIT = KeyPurpose.SEAL, KeyPurpose.AUDIT
THREADS = 8

# Forking with threads running is what is tested: the store promises to bear it.


def block(number: int) -> bytes:
    return number.to_bytes(16, "big")


def library_of(uri: str) -> pkcs11._pkcs11.lib:
    return pkcs11.lib(parse_pkcs11_uri(uri).module_path)


def module_of(uri: str) -> Module:
    path = parse_pkcs11_uri(uri).module_path
    return module_at(path, os.path.realpath(path))


def pin_file(uri: str) -> Path:
    path = parse_pkcs11_uri(uri).pin_path
    assert path is not None
    return Path(path)


def token_folder(folder: Path, uri: str) -> Path:
    """Where SoftHSM keeps the token: a folder named by a UUID that ends in the serial number."""
    token = library_of(uri).get_token(token_label=parse_pkcs11_uri(uri).token)
    serial = bytes(token.serial).decode()
    (found,) = (each for each in (folder / "tokens").iterdir() if each.name.replace("-", "").endswith(serial))
    return found


@pytest.fixture
def store(softhsm_uri: str) -> Iterator[Pkcs11KeyStore]:
    with Pkcs11KeyStore(softhsm_uri) as opened:
        yield opened


@pytest.fixture
def cipher(store: Pkcs11KeyStore) -> BlockCipher:
    return store.cipher(store.create(SEAL, Custody.IN_MODULE))


@pytest.fixture(autouse=True)
def no_failure_leaks_into_finalizers() -> Iterator[None]:
    """python-pkcs11 may call the module from finalizers of failed operations: none may be left behind."""
    yield
    gc.collect()


def test_vanished_token_is_reported_and_works_again_when_back(
    softhsm_folder: Path, softhsm_uri: str, store: Pkcs11KeyStore, cipher: BlockCipher, tmp_path: Path
) -> None:
    in_process = store.cipher(store.create(AUDIT, Custody.IN_PROCESS))
    before = cipher.encrypt_blocks(block(1)), in_process.encrypt_blocks(block(1))
    home, away = token_folder(softhsm_folder, softhsm_uri), tmp_path / "away"
    for _ in range(2):
        home.rename(away)
        calls: list[Callable[[], object]] = [
            lambda: cipher.encrypt_blocks(block(1)),
            lambda: store.versions(SEAL),
            lambda: store.create(SEAL, Custody.IN_MODULE),
            lambda: store.cipher(KeyName(SEAL, 1)),
            lambda: store.destroy(KeyName(SEAL, 1)),
        ]
        for call in calls:
            with pytest.raises(KeyStoreError, match="token folder"):
                call()
        assert in_process.encrypt_blocks(block(1)) == before[1]
        away.rename(home)
        assert cipher.encrypt_blocks(block(1)) == before[0]
        assert store.versions(SEAL) == (1,)


def test_token_that_vanished_between_two_calls_is_not_missed(
    softhsm_folder: Path, softhsm_uri: str, store: Pkcs11KeyStore, cipher: BlockCipher, tmp_path: Path
) -> None:
    """SoftHSM finds no objects any more then, without an error: that is not an empty token."""
    before = cipher.encrypt_blocks(block(1))
    home, away = token_folder(softhsm_folder, softhsm_uri), tmp_path / "away"
    home.rename(away)
    with pytest.raises(KeyStoreError):
        store.versions(SEAL)
    away.rename(home)
    assert store.versions(SEAL) == (1,)
    assert cipher.encrypt_blocks(block(1)) == before


def test_all_tokens_vanish(
    softhsm_folder: Path, cipher: BlockCipher, store: Pkcs11KeyStore, tmp_path: Path
) -> None:
    """SoftHSM can not even be initialised while its token folder is missing."""
    before = cipher.encrypt_blocks(block(1))
    tokens, away = softhsm_folder / "tokens", softhsm_folder / "away"
    tokens.rename(away)
    try:
        for _ in range(2):
            with pytest.raises(KeyStoreError):
                store.versions(SEAL)
            with pytest.raises(KeyStoreError):
                cipher.encrypt_blocks(block(1))
    finally:
        away.rename(tokens)
    assert cipher.encrypt_blocks(block(1)) == before


def test_loss_of_one_token_leaves_the_other_alone(
    softhsm_folder: Path, softhsm_uri: str, store: Pkcs11KeyStore, cipher: BlockCipher, tmp_path: Path
) -> None:
    with Pkcs11KeyStore(softhsm.new_token(softhsm_folder)) as other:
        others = other.cipher(other.create(SEAL, Custody.IN_MODULE))
        before, others_before = cipher.encrypt_blocks(block(1)), others.encrypt_blocks(block(1))
        home, away = token_folder(softhsm_folder, softhsm_uri), tmp_path / "away"
        home.rename(away)
        for _ in range(2):
            with pytest.raises(KeyStoreError):
                cipher.encrypt_blocks(block(1))
            assert others.encrypt_blocks(block(1)) == others_before
        away.rename(home)
        assert cipher.encrypt_blocks(block(1)) == before
        assert others.encrypt_blocks(block(1)) == others_before


def close_sessions(uri: str, store: Pkcs11KeyStore) -> None:
    for held in store._sessions.state().held.values():
        with contextlib.suppress(CallError):
            held.session.close()


def log_out(uri: str, store: Pkcs11KeyStore) -> None:
    """As other code of the process may: a logout is one of the whole process."""
    login = store._sessions.state().login
    assert login is not None
    ctypes.CDLL(parse_pkcs11_uri(uri).module_path).C_Logout(ctypes.c_ulong(login.anchor.handle))


def begin_anew(uri: str, store: Pkcs11KeyStore) -> None:
    library_of(uri).reinitialize()


def shut_down(uri: str, store: Pkcs11KeyStore) -> None:
    library_of(uri).finalize()


@pytest.mark.parametrize("harm", [close_sessions, log_out, begin_anew, shut_down])
def test_lost_session_or_login_is_regained(
    softhsm_uri: str,
    store: Pkcs11KeyStore,
    cipher: BlockCipher,
    harm: Callable[[str, Pkcs11KeyStore], None],
) -> None:
    """Whatever other code does to our sessions, the next call opens others."""
    before = cipher.encrypt_blocks(block(1))
    harm(softhsm_uri, store)
    assert cipher.encrypt_blocks(block(1)) == before
    harm(softhsm_uri, store)
    assert store.versions(SEAL) == (1,)
    harm(softhsm_uri, store)
    assert store.create(SEAL, Custody.IN_MODULE) == KeyName(SEAL, 2)
    assert cipher.encrypt_blocks(block(1)) == before


@pytest.mark.parametrize("harm", [log_out, begin_anew])
def test_stores_regain_a_shared_login_without_fighting(
    softhsm_uri: str,
    store: Pkcs11KeyStore,
    cipher: BlockCipher,
    harm: Callable[[str, Pkcs11KeyStore], None],
) -> None:
    """One new login serves both stores."""
    with Pkcs11KeyStore(softhsm_uri) as second:
        seconds = second.cipher(KeyName(SEAL, 1))
        before = cipher.encrypt_blocks(block(1))
        harm(softhsm_uri, store)
        logins = module_of(softhsm_uri).logins_tried
        for _ in range(3):
            assert cipher.encrypt_blocks(block(1)) == before
            assert seconds.encrypt_blocks(block(1)) == before
        assert module_of(softhsm_uri).logins_tried == logins + 1


def test_key_destroyed_by_another_store_is_gone(softhsm_uri: str, cipher: BlockCipher) -> None:
    cipher.encrypt_blocks(block(1))
    with Pkcs11KeyStore(softhsm_uri) as other:
        other.destroy(KeyName(SEAL, 1))
    with pytest.raises(KeyStoreError, match="no key seal version 1"):
        cipher.encrypt_blocks(block(1))


def test_wrong_pin_is_tried_once(softhsm_uri: str) -> None:
    """Tokens lock after a few wrong PINs: the store asks again only when the source gives another one."""
    store = Pkcs11KeyStore(softhsm_uri)
    cipher = store.cipher(store.create(SEAL, Custody.IN_MODULE))
    before = cipher.encrypt_blocks(block(1))
    right = pin_file(softhsm_uri).read_text()
    pin_file(softhsm_uri).write_text("a wrong one\n")
    begin_anew(softhsm_uri, store)
    logins = module_of(softhsm_uri).logins_tried
    for _ in range(5):
        with pytest.raises(KeyStoreError, match="refused") as caught:
            cipher.encrypt_blocks(block(1))
        assert "a wrong one" not in str(caught.value)
        assert "pin-source" in str(caught.value)
        assert caught.value.__context__ is None or "a wrong one" not in repr(caught.value.__context__)
    assert module_of(softhsm_uri).logins_tried == logins + 1
    pin_file(softhsm_uri).write_text("another wrong one\n")
    with pytest.raises(KeyStoreError, match="refused"):
        cipher.encrypt_blocks(block(1))
    assert module_of(softhsm_uri).logins_tried == logins + 2
    pin_file(softhsm_uri).write_text(right)
    assert cipher.encrypt_blocks(block(1)) == before
    store.close()


def test_a_store_opened_with_a_wrong_pin_is_refused_and_with_the_right_one_opens(softhsm_uri: str) -> None:
    right = pin_file(softhsm_uri).read_text()
    pin_file(softhsm_uri).write_text("a wrong one")
    with pytest.raises(KeyStoreError, match="refused the PIN"):
        Pkcs11KeyStore(softhsm_uri)
    pin_file(softhsm_uri).write_text(right)
    Pkcs11KeyStore(softhsm_uri).close()


def test_wrong_pin_does_not_ride_on_another_stores_login(softhsm_uri: str, store: Pkcs11KeyStore) -> None:
    """The module would not look at the PIN of a process that is logged in."""
    uri = softhsm_uri.partition("&pin-source")[0] + "&pin-value=a-wrong-one"
    with pytest.raises(KeyStoreError, match="another PIN"):
        Pkcs11KeyStore(uri)
    assert store.versions(SEAL) == ()


def locals_of(error: BaseException) -> str:
    """What a crash reporter would print: every local of every frame, of the error and all that it carries."""
    shown, errors = [], [error]
    while errors:
        each = errors.pop()
        errors += [other for other in (each.__context__, each.__cause__) if other is not None]
        trace = each.__traceback__
        while trace is not None:
            if "tokenvault" in trace.tb_frame.f_globals.get("__name__", ""):
                shown += [repr(value) for value in trace.tb_frame.f_locals.values()]
            trace = trace.tb_next
    return "\n".join(shown)


def test_pin_shows_in_no_traceback(softhsm_uri: str) -> None:
    uri = softhsm_uri.partition("&pin-source")[0] + "&pin-value=wrong-but-secret"
    parsed = parse_pkcs11_uri(uri)
    with pytest.raises(KeyStoreError, match="refused the PIN") as caught:
        Pkcs11KeyStore(parsed)
    assert "wrong-but-secret" not in locals_of(caught.value)
    assert "wrong-but-secret" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff", b"x" * 2_000, b"two\nlines\n"])
def test_a_pin_file_that_can_not_be_used_is_refused_at_opening(
    softhsm_uri: str, content: bytes | None
) -> None:
    if content is None:
        pin_file(softhsm_uri).unlink()
    else:
        pin_file(softhsm_uri).write_bytes(content)
    with pytest.raises(KeyStoreError, match="pin-source"):
        Pkcs11KeyStore(softhsm_uri)


def test_pin_file_that_vanishes_is_needed_only_for_logging_in(
    softhsm_uri: str, store: Pkcs11KeyStore, cipher: BlockCipher
) -> None:
    right = pin_file(softhsm_uri).read_text()
    before = cipher.encrypt_blocks(block(1))
    pin_file(softhsm_uri).unlink()
    close_sessions(softhsm_uri, store)
    assert cipher.encrypt_blocks(block(1)) == before
    begin_anew(softhsm_uri, store)
    with pytest.raises(KeyStoreError, match="pin-source"):
        cipher.encrypt_blocks(block(1))
    pin_file(softhsm_uri).write_text(right)
    assert cipher.encrypt_blocks(block(1)) == before


def test_a_token_that_the_module_does_not_have_is_refused(softhsm_uri: str) -> None:
    with pytest.raises(KeyStoreError, match="no token that fits"):
        Pkcs11KeyStore(softhsm_uri.replace("token=", "token=not-"))


def test_a_module_that_is_missing_is_refused_by_its_path(softhsm_uri: str, tmp_path: Path) -> None:
    uri = softhsm_uri.replace(softhsm.module_path(), str(tmp_path / "no.so"))
    with pytest.raises(KeyStoreError, match="module-path"):
        Pkcs11KeyStore(uri)


def test_a_file_that_is_no_module_is_refused(softhsm_uri: str, tmp_path: Path) -> None:
    (tmp_path / "no.so").write_text("not a library")
    with pytest.raises(KeyStoreError):
        Pkcs11KeyStore(softhsm_uri.replace(softhsm.module_path(), str(tmp_path / "no.so")))


def test_module_under_two_paths_is_one(softhsm_uri: str, tmp_path: Path, store: Pkcs11KeyStore) -> None:
    """Links do not make two libraries of one, which could be initialised only once."""
    (tmp_path / "link.so").symlink_to(softhsm.module_path())
    with Pkcs11KeyStore(softhsm_uri.replace(softhsm.module_path(), str(tmp_path / "link.so"))) as other:
        assert other.create(SEAL, Custody.IN_MODULE) == KeyName(SEAL, 1)
    assert store.versions(SEAL) == (1,)


def test_the_cipher_of_a_closed_store_refuses_everything(store: Pkcs11KeyStore, cipher: BlockCipher) -> None:
    store.close()
    for blocks in (b"", block(1)):
        with pytest.raises(KeyStoreError, match="closed"):
            cipher.encrypt_blocks(blocks)


def check_answers(cipher: BlockCipher, expected: dict[int, bytes], stop: threading.Event, thread: int) -> int:
    rounds = 0
    while not stop.is_set():
        number = (thread * 7 + rounds) % len(expected)
        if cipher.encrypt_blocks(block(number)) != expected[number]:
            raise AssertionError("a thread got another's answer")
        rounds += 1
    return rounds


def run_threads(cipher: BlockCipher, seconds: float) -> None:
    expected = {number: cipher.encrypt_blocks(block(number)) for number in range(64)}
    stop = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(check_answers, cipher, expected, stop, thread) for thread in range(THREADS)]
        try:
            stop.wait(seconds)
        finally:
            stop.set()
        assert all(future.result() > 0 for future in futures)


def test_threads_get_right_answers(cipher: BlockCipher) -> None:
    run_threads(cipher, 3)


@pytest.mark.nightly
def test_threads_get_right_answers_for_a_minute(cipher: BlockCipher) -> None:
    run_threads(cipher, 60)


def in_child(action: Callable[[], bool]) -> bool:
    """Run in a forked child; true when the action returned true. A child that hangs is ended."""
    pid = os.fork()
    if pid == 0:
        outcome = 1
        try:
            outcome = 0 if action() else 2
        finally:
            os._exit(outcome)
    for _ in range(3_000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False


def test_a_child_forked_while_threads_are_in_the_module_works_and_so_do_they(
    store: Pkcs11KeyStore, cipher: BlockCipher
) -> None:
    """Child and parent both go on, and both get right answers; the child with threads of its own."""
    expected = {number: cipher.encrypt_blocks(block(number)) for number in range(64)}
    in_process = store.cipher(store.create(AUDIT, Custody.IN_PROCESS))
    data_key_answer = in_process.encrypt_blocks(block(1))
    stop = threading.Event()

    def child() -> bool:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda n: cipher.encrypt_blocks(block(n)), range(64)))
        return (
            answers == list(expected.values())
            and store.versions(SEAL) == (1,)
            and in_process.encrypt_blocks(block(1)) == data_key_answer
        )

    def grandchild_too() -> bool:
        return child() and in_child(child)

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(check_answers, cipher, expected, stop, thread) for thread in range(THREADS)]
        try:
            outcomes = [in_child(child) for _ in range(4)] + [in_child(grandchild_too)]
        finally:
            stop.set()
        assert all(future.result() > 0 for future in futures)
    assert outcomes == [True] * 5
    assert cipher.encrypt_blocks(block(0)) == expected[0]


def test_child_that_closes_leaves_the_parent_logged_in(store: Pkcs11KeyStore, cipher: BlockCipher) -> None:
    before = cipher.encrypt_blocks(block(1))

    def child() -> bool:
        store.close()
        try:
            cipher.encrypt_blocks(block(1))
        except KeyStoreError:
            return True
        return False

    assert in_child(child)
    assert cipher.encrypt_blocks(block(1)) == before


def test_in_process_key_needs_no_module_in_a_child(store: Pkcs11KeyStore, softhsm_uri: str) -> None:
    cipher = store.cipher(store.create(SEAL, Custody.IN_PROCESS))
    before = cipher.encrypt_blocks(block(1))
    key = KeyName(SEAL, 1)

    def child() -> bool:
        used = store.operations
        same = store.cipher(key).encrypt_blocks(block(1)) == before
        return same and store.operations == used and module_of(softhsm_uri).logins_tried == 0

    assert isinstance(cipher, LocalBlockCipher)
    assert in_child(child)


def multiprocessing_child(cipher: BlockCipher, expected: bytes, outcome: object) -> None:
    outcome.value = int(cipher.encrypt_blocks(block(1)) == expected)  # type: ignore[attr-defined] # a ctypes value


def test_processes_forked_by_multiprocessing_get_right_answers(cipher: BlockCipher) -> None:
    expected = cipher.encrypt_blocks(block(1))
    context = multiprocessing.get_context("fork")
    outcomes = [context.Value("i", 0) for _ in range(4)]
    workers = [context.Process(target=multiprocessing_child, args=(cipher, expected, o)) for o in outcomes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [outcome.value for outcome in outcomes] == [1] * 4
    assert cipher.encrypt_blocks(block(1)) == expected


def test_fork_hook_gives_up_on_a_module_that_hangs(
    store: Pkcs11KeyStore, cipher: BlockCipher, softhsm_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child forked while a thread holds the module for ever is not stuck with it."""
    before = cipher.encrypt_blocks(block(1))
    monkeypatch.setattr(registry, "FORK_WAIT_SECONDS", 0.05)
    inside, leave = threading.Event(), threading.Event()

    def hang() -> None:
        with module_of(softhsm_uri).worker.lock:
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    assert inside.wait(30)
    try:
        assert in_child(lambda: cipher.encrypt_blocks(block(1)) == before)
    finally:
        leave.set()
        thread.join()
    assert cipher.encrypt_blocks(block(1)) == before


def test_a_fork_whose_hook_was_interrupted_does_not_hold_the_module_for_ever(
    store: Pkcs11KeyStore, cipher: BlockCipher, softhsm_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cipher.encrypt_blocks(block(1))
    monkeypatch.setattr(module_worker, "FORK_SECONDS_MAX", 0.05)
    held = module_of(softhsm_uri).worker.lock
    assert held.acquire(timeout=5)  # and never given back
    assert cipher.encrypt_blocks(block(1)) == before
    assert in_child(lambda: cipher.encrypt_blocks(block(1)) == before)


def test_a_hold_for_a_fork_can_be_ended_by_another_thread(
    store: Pkcs11KeyStore, cipher: BlockCipher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is of the thread that forked: the module's thread takes another one."""
    before = cipher.encrypt_blocks(block(1))
    monkeypatch.setattr(module_worker, "FORK_SECONDS_MAX", 0.05)
    registry._held.before_fork(5)
    with ThreadPoolExecutor(1) as other:
        other.submit(registry._held.after_fork_in_parent).result(30)
        assert other.submit(cipher.encrypt_blocks, block(1)).result(30) == before
    assert in_child(lambda: cipher.encrypt_blocks(block(1)) == before)


STORE_AND_MODULE = """
import os, sys
from tokenvault.keys.pkcs11.registry import module_at
from tokenvault.stores.forks import Forkable, hold_still_at_forks

class Store(Forkable):
    def before_fork(self, seconds_max):
        module_at("/none", "/none").worker.do(lambda: asked.append(os.getpid()), 3)

asked, store = [], Store()
opened = {"store": lambda: hold_still_at_forks(store), "module": lambda: module_at("/none", "/none")}
for first in sys.argv[1:]:
    opened[first]()
child = os.fork()
if child == 0:
    os._exit(len(asked))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
"""


@pytest.mark.parametrize("order", [["store", "module"], ["module", "store"]], ids="-".join)
def test_a_fork_that_waits_for_a_store_does_not_hold_the_module_meanwhile(order: list[str]) -> None:
    """Its thread would take the fork for over, and the child be copied in the middle of a call."""
    subprocess.run([sys.executable, "-c", STORE_AND_MODULE, *order], check=True, timeout=60)


def test_an_address_of_another_type_is_refused() -> None:
    for wrong in (None, 1, b"pkcs11:token=x", "file:x", ""):
        with pytest.raises(InvalidInputError):
            Pkcs11KeyStore(wrong)  # type: ignore[arg-type] # the point of the test
