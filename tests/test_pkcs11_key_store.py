"""Pkcs11KeyStore on real SoftHSM: the contract, custody, attributes, merging of calls, several stores."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType, MechanismFlag

from tests import softhsm
from tokenvault.crypto.kdf import derive
from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys import Custody, KeyName, KeyPurpose, LocalBlockCipher, open_key_store
from tokenvault.keys.pkcs11 import constants
from tokenvault.keys.pkcs11 import objects as pkcs11_objects
from tokenvault.keys.pkcs11.coalescer import BLOCKS_PER_CALL_MAX
from tokenvault.keys.pkcs11.constants import Code
from tokenvault.keys.pkcs11.cryptoki import CallError
from tokenvault.keys.pkcs11.registry import module_at
from tokenvault.keys.pkcs11.store import DERIVATION_LABEL, Pkcs11KeyStore
from tokenvault.keys.uri import parse_pkcs11_uri
from tokenvault.testing import pkcs11_modules
from tokenvault.testing.key_stores import Disturbance, KeyStoreContract, OpenStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pkcs11 import Session

    from tokenvault.keys.pkcs11.objects import TokenKey

SEAL = KeyPurpose.SEAL
KEY = KeyName(SEAL, 1)


@pytest.fixture
def store(softhsm_uri: str) -> Iterator[Pkcs11KeyStore]:
    with Pkcs11KeyStore(softhsm_uri) as opened:
        yield opened


def raw_session(uri: str, *, rw: bool = True) -> Session:
    """A session beside the store; the store on the same token is logged in, which counts for the process."""
    parsed = parse_pkcs11_uri(uri)
    library = pkcs11.lib(parsed.module_path)
    return library.get_token(token_label=parsed.token).open(rw=rw)


def logins_tried(uri: str) -> int:
    path = parse_pkcs11_uri(uri).module_path
    return module_at(path, os.path.realpath(path)).logins_tried


def generate_raw(
    session: Session, label: str, template: dict[Attribute, object] | None = None, **kwargs: object
) -> None:
    settings: dict[Attribute, object] = {
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        **(template or {}),
    }
    capabilities = kwargs.get("capabilities", MechanismFlag.ENCRYPT)
    assert isinstance(capabilities, MechanismFlag)
    session.generate_key(
        KeyType.AES, 256, label=label, store=True, capabilities=capabilities, template=settings
    )


class TestContract(KeyStoreContract):
    @pytest.fixture
    def open_store(self, softhsm_uri: str) -> OpenStore:
        return lambda: open_key_store(softhsm_uri)

    @pytest.fixture
    def disturbances(self) -> tuple[Disturbance, ...]:
        return (pkcs11_modules.close_sessions, pkcs11_modules.finalize)


def test_object_says_what_it_is(softhsm_uri: str, store: Pkcs11KeyStore) -> None:
    """Purpose, version and custody can be read off the labels with any PKCS#11 tool."""
    store.create(SEAL, Custody.IN_MODULE)
    store.create(SEAL, Custody.IN_PROCESS)
    with closing(raw_session(softhsm_uri)) as session:
        labels = sorted(str(found[Attribute.LABEL]) for found in session.get_objects())
    assert labels == ["tokenvault/seal/1/module", "tokenvault/seal/2/process"]


@pytest.mark.parametrize(
    "label",
    [
        "",
        "seal",
        "tokenvault/seal/0/module",
        "tokenvault/seal/01/module",
        "tokenvault/seal/10000/module",
        "tokenvault/seal/\u0661/module",
        "tokenvault/seal/1/disk",
        "tokenvault/else/1/module",
        "tokenvault/seal/1/module ",
        "tokenvault/seal/1/module\n",
        "Tokenvault/seal/1/module",
    ],
)
def test_other_labels_are_not_ours(softhsm_uri: str, store: Pkcs11KeyStore, label: str) -> None:
    with closing(raw_session(softhsm_uri)) as session:
        generate_raw(session, label)
    assert store.versions(SEAL) == ()
    with pytest.raises(KeyStoreError, match="no key seal version 1"):
        store.cipher(KEY)


def test_foreign_objects_are_left_alone(softhsm_uri: str, store: Pkcs11KeyStore) -> None:
    with closing(raw_session(softhsm_uri)) as session:
        generate_raw(session, "payroll")
        generate_raw(session, "tokenvault/seal/x/module")
    assert store.versions(SEAL) == ()
    assert store.create(SEAL, Custody.IN_MODULE) == KEY


def test_generated_keys_encrypt_and_do_nothing_else(softhsm_uri: str, store: Pkcs11KeyStore) -> None:
    store.create(SEAL, Custody.IN_MODULE)
    with closing(raw_session(softhsm_uri)) as session:
        (key,) = session.get_objects({Attribute.LABEL: "tokenvault/seal/1/module"})
        true = ("TOKEN", "PRIVATE", "SENSITIVE", "ENCRYPT", "LOCAL", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE")
        false = ("EXTRACTABLE", "DECRYPT", "SIGN", "VERIFY", "WRAP", "UNWRAP", "DERIVE")
        assert {name: key[Attribute[name]] for name in true} == dict.fromkeys(true, True)
        assert {name: key[Attribute[name]] for name in false} == dict.fromkeys(false, False)
        assert key[Attribute.VALUE_LEN] == 32
        with pytest.raises(pkcs11.AttributeSensitive):
            key[Attribute.VALUE]


@pytest.mark.parametrize(
    ("template", "capabilities", "named"),
    [
        ({Attribute.EXTRACTABLE: True}, MechanismFlag.ENCRYPT, "EXTRACTABLE"),
        ({Attribute.SENSITIVE: False}, MechanismFlag.ENCRYPT, "SENSITIVE"),
        ({Attribute.PRIVATE: False}, MechanismFlag.ENCRYPT, "PRIVATE"),
        ({}, MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT, "DECRYPT"),
        ({}, MechanismFlag.ENCRYPT | MechanismFlag.WRAP, "WRAP"),
        ({}, MechanismFlag.ENCRYPT | MechanismFlag.SIGN, "SIGN"),
        ({}, MechanismFlag.DECRYPT, "ENCRYPT"),
        ({Attribute.VALUE_LEN: 16}, MechanismFlag.ENCRYPT, "VALUE_LEN"),
    ],
)
def test_found_key_with_other_attributes_is_refused(
    softhsm_uri: str,
    store: Pkcs11KeyStore,
    template: dict[Attribute, object],
    capabilities: MechanismFlag,
    named: str,
) -> None:
    """A key that was planted or changed is not used, whatever its name says; it can be destroyed."""
    with closing(raw_session(softhsm_uri)) as session:
        generate_raw(session, "tokenvault/seal/1/module", template, capabilities=capabilities)
    with pytest.raises(KeyStoreError, match=named):
        store.cipher(KEY)
    store.destroy(KEY)
    assert store.versions(SEAL) == ()


def test_generated_key_with_other_attributes_is_destroyed(
    store: Pkcs11KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that does not do as asked leaves no key behind."""
    monkeypatch.setattr(
        pkcs11_objects, "CAPABILITIES", (constants.Attribute.ENCRYPT, constants.Attribute.DECRYPT)
    )
    with pytest.raises(KeyStoreError, match="DECRYPT"):
        store.create(SEAL, Custody.IN_MODULE)
    monkeypatch.undo()
    assert store.versions(SEAL) == ()


@pytest.mark.parametrize("label", ["tokenvault/seal/1/module", "tokenvault/seal/1/process"])
def test_two_keys_of_one_name_are_an_error(softhsm_uri: str, store: Pkcs11KeyStore, label: str) -> None:
    """Of either custody: nothing says which of them sealed the records."""
    store.create(SEAL, Custody.IN_MODULE)
    with closing(raw_session(softhsm_uri)) as session:
        generate_raw(session, label)
    for call in (store.cipher, store.destroy):
        with pytest.raises(KeyStoreError, match="more than one key seal version 1"):
            call(KEY)
    with pytest.raises(KeyStoreError, match="more than one key seal version 1"):
        store.versions(SEAL)


def test_in_process_key_uses_the_module_once(store: Pkcs11KeyStore) -> None:
    key = store.create(SEAL, Custody.IN_PROCESS)
    cipher = store.cipher(key)
    used = store.operations
    assert used > 0
    assert store.cipher(key) is cipher
    cipher.encrypt_blocks(bytes(16_000))
    assert store.operations == used
    assert isinstance(cipher, LocalBlockCipher)


def test_data_key_is_the_published_derivation(softhsm_uri: str, store: Pkcs11KeyStore) -> None:
    """Anyone with the module's key and SP 800-108 gets the same data key."""
    key = store.create(SEAL, Custody.IN_PROCESS)
    with closing(raw_session(softhsm_uri, rw=False)) as session:
        (found,) = session.get_objects({Attribute.LABEL: "tokenvault/seal/1/process"})

        class Raw:
            def encrypt_blocks(self, blocks: bytes) -> bytes:
                assert isinstance(found, pkcs11.EncryptMixin)
                answer = found.encrypt(blocks, mechanism=pkcs11.Mechanism.AES_ECB)
                assert isinstance(answer, bytes)
                return answer

        data_key = derive(Raw(), label=DERIVATION_LABEL, context=b"seal/1", length=32)
    assert LocalBlockCipher(data_key).encrypt_blocks(bytes(16)) == store.cipher(key).encrypt_blocks(bytes(16))


def test_threads_derive_a_data_key_once(store: Pkcs11KeyStore) -> None:
    key = store.create(SEAL, Custody.IN_PROCESS)
    barrier = threading.Barrier(8)

    def first_use(_: int) -> object:
        barrier.wait()
        return store.cipher(key)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(first_use, range(8))))) == 1


class SlowStore(Pkcs11KeyStore):
    """Stops each module call until it is let go on."""

    def __init__(self, uri: str) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.sizes: list[int] = []
        self.failure: BaseException | None = None
        super().__init__(uri)

    def _encrypt_in_module(self, key: TokenKey, blocks: bytes) -> bytes:
        self.sizes.append(len(blocks) // 16)
        self.entered.set()
        assert self.go_on.wait(30)
        if self.failure is not None:
            raise self.failure
        return super()._encrypt_in_module(key, blocks)

    def await_waiting(self, key: KeyName, count: int) -> None:
        """Until so many requests are in the queue. Bounded by the test's own patience, asserts no time."""
        coalescer = self._sessions.state().coalescers[key]
        while coalescer.waiting < count:
            time.sleep(0.001)


@pytest.fixture
def slow(softhsm_uri: str) -> Iterator[SlowStore]:
    with SlowStore(softhsm_uri) as opened:
        yield opened


def blocks_of(number: int, count: int = 1) -> bytes:
    return number.to_bytes(16, "big") * count


def test_waiting_requests_go_out_as_one_call(slow: SlowStore) -> None:
    cipher = slow.cipher(slow.create(SEAL, Custody.IN_MODULE))
    with ThreadPoolExecutor(9) as pool:
        leader = pool.submit(cipher.encrypt_blocks, blocks_of(0))
        assert slow.entered.wait(30)
        others = [pool.submit(cipher.encrypt_blocks, blocks_of(i, i)) for i in range(1, 9)]
        slow.await_waiting(KEY, 8)
        slow.go_on.set()
        answers = [leader.result(), *(other.result() for other in others)]
    assert slow.sizes == [1, sum(range(1, 9))]
    assert slow.operations == 2
    for number, answer in enumerate(answers):
        assert answer == cipher.encrypt_blocks(blocks_of(number)) * max(number, 1)


def test_one_call_carries_a_bounded_number_of_blocks(slow: SlowStore) -> None:
    cipher = slow.cipher(slow.create(SEAL, Custody.IN_MODULE))
    slow.go_on.set()
    one = cipher.encrypt_blocks(bytes(16))
    slow.sizes.clear()
    assert cipher.encrypt_blocks(bytes(16 * (2 * BLOCKS_PER_CALL_MAX + 1))) == one * (
        2 * BLOCKS_PER_CALL_MAX + 1
    )
    assert slow.sizes == [BLOCKS_PER_CALL_MAX, BLOCKS_PER_CALL_MAX, 1]


def test_merged_calls_keep_the_bound(softhsm_uri: str) -> None:
    with SlowStore(softhsm_uri + "&x-blocks-per-call-max=4") as slow:
        cipher = slow.cipher(slow.create(SEAL, Custody.IN_MODULE))
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(cipher.encrypt_blocks, blocks_of(0))]
            assert slow.entered.wait(30)
            futures += [pool.submit(cipher.encrypt_blocks, blocks_of(i, 3)) for i in range(1, 3)]
            futures += [pool.submit(cipher.encrypt_blocks, blocks_of(i, 1)) for i in range(3, 6)]
            slow.await_waiting(KEY, 5)
            slow.go_on.set()
            assert len({future.result()[:16] for future in futures}) == 6
        assert sum(slow.sizes) == 10
        assert max(slow.sizes) <= 4
        assert len(slow.sizes) < len(futures)


@pytest.mark.parametrize("wrong", ["0", "-1", "4x", "1048577", "99999999", "%D9%A4", "1e3"])
def test_bound_is_checked(softhsm_uri: str, wrong: str) -> None:
    with pytest.raises(InvalidInputError):
        Pkcs11KeyStore(softhsm_uri + f"&x-blocks-per-call-max={wrong}")


@pytest.mark.parametrize("failure", [Code.MECHANISM_INVALID, Code.DEVICE_ERROR])
def test_failed_call_reaches_every_waiter(slow: SlowStore, failure: Code) -> None:
    """Each thread gets an error of its own, none waits for ever, and the next call works."""
    cipher = slow.cipher(slow.create(SEAL, Custody.IN_MODULE))
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(cipher.encrypt_blocks, blocks_of(0))]
        assert slow.entered.wait(30)
        futures += [pool.submit(cipher.encrypt_blocks, blocks_of(i)) for i in range(1, 6)]
        slow.await_waiting(KEY, 5)
        slow.failure = CallError("C_Encrypt", failure)
        slow.go_on.set()
        errors = [future.exception(30) for future in futures]
    assert all(type(error) is KeyStoreError for error in errors)
    assert len({id(error) for error in errors}) == 6
    slow.failure = None
    assert len(cipher.encrypt_blocks(bytes(16))) == 16


def test_interrupted_leader_strands_nobody(slow: SlowStore) -> None:
    """A KeyboardInterrupt goes to the thread it hit; nobody else waits for ever."""
    cipher = slow.cipher(slow.create(SEAL, Custody.IN_MODULE))
    slow.failure = KeyboardInterrupt()
    with ThreadPoolExecutor(3) as pool:
        leader = pool.submit(cipher.encrypt_blocks, blocks_of(0))
        assert slow.entered.wait(30)
        others = [pool.submit(cipher.encrypt_blocks, blocks_of(i)) for i in (1, 2)]
        slow.await_waiting(KEY, 2)
        slow.go_on.set()
        assert isinstance(leader.exception(30), KeyboardInterrupt)
        for other in others:
            assert isinstance(other.exception(30), KeyStoreError | KeyboardInterrupt)
    slow.failure = None
    assert len(cipher.encrypt_blocks(bytes(16))) == 16


def test_module_that_returns_too_little_is_refused(softhsm_uri: str) -> None:
    class Short(Pkcs11KeyStore):
        def _encrypt_in_module(self, key: TokenKey, blocks: bytes) -> bytes:
            return super()._encrypt_in_module(key, blocks)[:-1]

    with Short(softhsm_uri) as store:
        cipher = store.cipher(store.create(SEAL, Custody.IN_MODULE))
        with pytest.raises(KeyStoreError, match="another number of bytes"):
            cipher.encrypt_blocks(bytes(16))


def test_stores_on_one_token_share_a_login(softhsm_uri: str) -> None:
    """One store's closing leaves the other logged in; the last one logs out."""
    first, second = Pkcs11KeyStore(softhsm_uri), Pkcs11KeyStore(softhsm_uri)
    key = first.create(SEAL, Custody.IN_MODULE)
    cipher = second.cipher(key)
    before = cipher.encrypt_blocks(bytes(16))
    logins = logins_tried(softhsm_uri)
    first.close()
    assert cipher.encrypt_blocks(bytes(16)) == before
    assert logins_tried(softhsm_uri) == logins
    assert second.create(SEAL, Custody.IN_MODULE).version == 2  # begins the library anew, so it logs in again
    second.close()
    with closing(raw_session(softhsm_uri, rw=False)) as session:
        assert list(session.get_objects()) == []
    with Pkcs11KeyStore(softhsm_uri) as third:
        assert third.cipher(key).encrypt_blocks(bytes(16)) == before


def test_two_tokens_of_one_library(softhsm_folder: Path, softhsm_uri: str) -> None:
    """Stores on two tokens have their own keys and logins; either one's closing leaves the other alone."""
    with Pkcs11KeyStore(softhsm_uri) as one, Pkcs11KeyStore(softhsm.new_token(softhsm_folder)) as other:
        ciphers = [each.cipher(each.create(SEAL, Custody.IN_MODULE)) for each in (one, other)]
        answers = [cipher.encrypt_blocks(bytes(16)) for cipher in ciphers]
        assert answers[0] != answers[1]
        one.close()
        assert ciphers[1].encrypt_blocks(bytes(16)) == answers[1]
        with pytest.raises(KeyStoreError):
            ciphers[0].encrypt_blocks(bytes(16))


def test_token_can_be_named_by_serial_and_slot(softhsm_uri: str) -> None:
    with Pkcs11KeyStore(softhsm_uri), closing(raw_session(softhsm_uri)) as session:
        token = session.token
        serial, slot_id = bytes(token.serial).decode(), token.slot.slot_id
    tail = softhsm_uri.partition("?")[2]
    for path in (f"serial={serial}", f"slot-id={slot_id}", f"serial={serial};manufacturer=SoftHSM%20project"):
        with Pkcs11KeyStore(f"pkcs11:{path}?{tail}") as store:
            assert store.versions(SEAL) == ()
    with pytest.raises(KeyStoreError, match="no token that fits"):
        Pkcs11KeyStore(f"pkcs11:serial={serial};model=other?{tail}")


def test_label_that_fits_two_tokens_is_refused(softhsm_folder: Path) -> None:
    softhsm.new_token(softhsm_folder, "twins")
    uri = softhsm.new_token(softhsm_folder, "twins")
    with pytest.raises(KeyStoreError, match="several tokens"):
        Pkcs11KeyStore(uri)


def create_in_process(uri: str, start: object, results: object) -> None:
    """In a process of its own: create once, report the version, or None for a KeyStoreError."""
    with Pkcs11KeyStore(uri) as store:
        start.wait(60)  # type: ignore[attr-defined] # a multiprocessing barrier has no public type
        try:
            version = store.create(SEAL, Custody.IN_MODULE).version
        except KeyStoreError:
            version = None
        results.put(version)  # type: ignore[attr-defined] # nor has a queue


def test_processes_that_create_at_once_never_make_twins(softhsm_uri: str) -> None:
    """Each version has one creator; who lost a race was told so."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(4), context.Queue()
    workers = [
        context.Process(target=create_in_process, args=(softhsm_uri, start, results)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    results.close()
    results.join_thread()
    created = sorted(version for version in outcomes if version is not None)
    with Pkcs11KeyStore(softhsm_uri) as store:
        assert list(store.versions(SEAL)) == created == list(range(1, len(created) + 1))


def test_loser_of_a_race_destroys_its_own(
    softhsm_uri: str, store: Pkcs11KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that appears between looking and looking again stays, ours goes, and we are told."""
    genuine = pkcs11_objects.generate

    def raced(session: object, name: KeyName, custody: Custody, identity: bytes) -> None:
        with closing(raw_session(softhsm_uri)) as beside:
            generate_raw(beside, "tokenvault/seal/1/module")
        genuine(session, name, custody, identity)  # type: ignore[arg-type] # what it is given is handed on

    monkeypatch.setattr(pkcs11_objects, "generate", raced)
    with pytest.raises(KeyStoreError, match="another process created seal version 1"):
        store.create(SEAL, Custody.IN_MODULE)
    assert store.versions(SEAL) == (1,)


def test_store_shows_no_pin_and_is_not_pickled(softhsm_uri: str, store: Pkcs11KeyStore) -> None:
    pin_path = parse_pkcs11_uri(softhsm_uri).pin_path
    assert pin_path is not None
    with open(pin_path) as file:
        pin = file.read().strip()
    uri = softhsm_uri.partition("&pin-source")[0] + f"&pin-value={pin}"
    with Pkcs11KeyStore(uri) as with_value:
        assert pin not in repr(with_value)
        assert pin not in str(with_value)
        with pytest.raises(InvalidInputError):
            pickle.dumps(with_value)
