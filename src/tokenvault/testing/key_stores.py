"""Conformance kit for key stores: subclass `KeyStoreContract`, say how to open yours, and run it with pytest.

    class TestMyKeyStore(KeyStoreContract):
        @pytest.fixture
        def open_store(self, tmp_path: Path) -> OpenStore:
            return lambda: MyKeyStore(tmp_path / "keys")

The fixture gives a function that opens the same, at first empty, store each time that it is called. Set
`custodies` when your store does not offer both. Override `disturbances` when it holds something that can be lost
under it, like sessions or connections.

For a PKCS#11 module there is nothing to write: give it a token without keys of a vault, and run

    python -m tokenvault.testing.pkcs11_modules 'pkcs11:token=...?module-path=...&pin-source=file:...'
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tokenvault.crypto.block_cipher import BLOCK_BYTES
from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys.port import Custody, KeyName, KeyPurpose, KeyStore

OpenStore = Callable[[], KeyStore]
Disturbance = Callable[[KeyStore], None]

CHILD_SECONDS = 60

THREADS = 8
CALLS_PER_THREAD = 25


def _blocks(count: int, *, seed: int = 0) -> bytes:
    return b"".join((seed * 1_000_000 + i).to_bytes(BLOCK_BYTES, "big") for i in range(count))


class KeyStoreContract:
    """What every key store must do. Each test gets an empty store."""

    custodies: ClassVar[tuple[Custody, ...]] = tuple(Custody)

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Override: a function that opens the same store again and again; empty when the test begins."""
        raise TypeError("override the fixture open_store")

    @pytest.fixture
    def disturbances(self) -> tuple[Disturbance, ...]:
        """Override: functions that make a store lose what it holds open, each as something outside would."""
        return ()

    @pytest.fixture
    def key_store(self, open_store: OpenStore) -> Iterator[KeyStore]:
        """One opened store."""
        with closing(open_store()) as store:
            yield store

    def test_new_store_is_empty(self, key_store: KeyStore) -> None:
        for purpose in KeyPurpose:
            assert key_store.versions(purpose) == ()
            with pytest.raises(KeyStoreError):
                key_store.cipher(KeyName(purpose, 1))

    def test_versions_ascend_from_one(self, key_store: KeyStore) -> None:
        custodies = itertools.cycle(self.custodies)
        for version in (1, 2, 3):
            created = key_store.create(KeyPurpose.SEAL, next(custodies))
            assert created == KeyName(KeyPurpose.SEAL, version)
            assert key_store.versions(KeyPurpose.SEAL) == tuple(range(1, version + 1))
        assert key_store.versions(KeyPurpose.AUDIT) == ()

    def test_a_version_that_is_not_the_next_is_not_created(self, key_store: KeyStore) -> None:
        first = key_store.create(KeyPurpose.SEAL, self.custodies[0], version=1)
        for version in (1, 3):
            with pytest.raises(KeyStoreError):
                key_store.create(KeyPurpose.SEAL, self.custodies[0], version=version)
        assert key_store.versions(KeyPurpose.SEAL) == (first.version,)
        assert key_store.create(KeyPurpose.SEAL, self.custodies[0], version=2).version == 2

    def test_cipher_is_deterministic(self, key_store: KeyStore) -> None:
        for custody in self.custodies:
            key = key_store.create(KeyPurpose.SEAL, custody)
            first = key_store.cipher(key).encrypt_blocks(_blocks(3))
            assert len(first) == 3 * BLOCK_BYTES
            assert key_store.cipher(key).encrypt_blocks(_blocks(3)) == first

    @pytest.mark.parametrize("count", [0, 1, 2, 511, 512, 513, 10_000])
    def test_blocks_are_encrypted_each_for_itself(self, key_store: KeyStore, count: int) -> None:
        """Encryption of a concatenation is the concatenation of encryptions, across any limit of one call."""
        for custody in self.custodies:
            cipher = key_store.cipher(key_store.create(KeyPurpose.FPE, custody))
            distinct = [cipher.encrypt_blocks(_blocks(1, seed=seed)) for seed in range(4)]
            plain = b"".join(_blocks(1, seed=i % 4) for i in range(count))
            assert cipher.encrypt_blocks(plain) == b"".join(distinct[i % 4] for i in range(count))

    def test_blocks_are_a_permutation(self, key_store: KeyStore) -> None:
        for custody in self.custodies:
            answer = key_store.cipher(key_store.create(KeyPurpose.FPE, custody)).encrypt_blocks(
                _blocks(1_000)
            )
            assert len({answer[i : i + BLOCK_BYTES] for i in range(0, len(answer), BLOCK_BYTES)}) == 1_000

    def test_every_key_is_another(self, key_store: KeyStore) -> None:
        answers = set()
        for purpose, custody in itertools.product(KeyPurpose, self.custodies):
            answers.add(key_store.cipher(key_store.create(purpose, custody)).encrypt_blocks(_blocks(1)))
        assert len(answers) == len(KeyPurpose) * len(self.custodies)

    def test_destroyed_key_is_gone(self, key_store: KeyStore) -> None:
        for custody in self.custodies:
            old, new = (key_store.create(KeyPurpose.AUDIT, custody) for _ in range(2))
            before = key_store.cipher(new).encrypt_blocks(_blocks(2))
            key_store.cipher(old)
            key_store.destroy(old)
            assert old.version not in key_store.versions(KeyPurpose.AUDIT)
            assert key_store.cipher(new).encrypt_blocks(_blocks(2)) == before
            with pytest.raises(KeyStoreError):
                key_store.cipher(old)
            with pytest.raises(KeyStoreError):
                key_store.destroy(old)

    def test_reopened_store_has_the_same_keys(self, open_store: OpenStore) -> None:
        with closing(open_store()) as store:
            keys = [store.create(KeyPurpose.SEAL, custody) for custody in self.custodies]
            before = [store.cipher(key).encrypt_blocks(_blocks(2)) for key in keys]
        with closing(open_store()) as store:
            assert store.versions(KeyPurpose.SEAL) == tuple(range(1, len(keys) + 1))
            assert [store.cipher(key).encrypt_blocks(_blocks(2)) for key in keys] == before

    def test_store_opened_twice_shows_the_same_keys(self, open_store: OpenStore) -> None:
        with ExitStack() as stack:
            first, second = (stack.enter_context(closing(open_store())) for _ in range(2))
            for custody in self.custodies:
                key = first.create(KeyPurpose.SEAL, custody)
                assert key.version in second.versions(KeyPurpose.SEAL)
                one, other = first.cipher(key), second.cipher(key)
                assert one.encrypt_blocks(_blocks(2)) == other.encrypt_blocks(_blocks(2))
            first.close()
            key = second.create(KeyPurpose.SEAL, self.custodies[0])
            assert len(second.cipher(key).encrypt_blocks(_blocks(1))) == BLOCK_BYTES

    def test_a_signer_is_made_once_and_signs_for_its_public_key(self, open_store: OpenStore) -> None:
        """ECDSA P-256 with SHA-256, r and s; a store that makes none has none."""
        with closing(open_store()) as store:
            assert store.signer() is None
            made = store.create_signer()
            if made is None:
                assert store.signer() is None
                return
            again, found = store.create_signer(), store.signer()
            assert again is not None
            assert found is not None
            assert made.public_key == again.public_key == found.public_key
            key = load_der_public_key(made.public_key)
            assert isinstance(key, ec.EllipticCurvePublicKey)
            for message in (b"", b"a message", bytes(10_000)):
                signature = found.sign(message)
                assert len(signature) == 64
                halves = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
                key.verify(encode_dss_signature(*halves), message, ec.ECDSA(SHA256()))
            for purpose in KeyPurpose:
                assert store.versions(purpose) == ()
        with closing(open_store()) as store:
            there = store.signer()
            assert there is not None
            assert there.public_key == made.public_key
            assert len(there.sign(b"again")) == 64

    @pytest.mark.parametrize("length", [1, 15, 17, 31])
    def test_partial_blocks_are_refused(self, key_store: KeyStore, length: int) -> None:
        for custody in self.custodies:
            cipher = key_store.cipher(key_store.create(KeyPurpose.SEAL, custody))
            with pytest.raises(InvalidInputError):
                cipher.encrypt_blocks(bytes(length))
            assert len(cipher.encrypt_blocks(_blocks(1))) == BLOCK_BYTES

    @pytest.mark.parametrize("wrong", ["seal", None, 1, bytearray(16)])
    def test_other_types_are_refused(self, key_store: KeyStore, wrong: object) -> None:
        cipher = key_store.cipher(key_store.create(KeyPurpose.SEAL, self.custodies[0]))
        calls: list[Callable[[], object]] = [
            lambda: key_store.versions(wrong),  # type: ignore[arg-type] # the point of the test
            lambda: key_store.cipher(wrong),  # type: ignore[arg-type] # the point of the test
            lambda: key_store.destroy(wrong),  # type: ignore[arg-type] # the point of the test
            lambda: key_store.create(wrong, self.custodies[0]),  # type: ignore[arg-type] # the point of the test
            lambda: key_store.create(KeyPurpose.SEAL, wrong),  # type: ignore[arg-type] # the point of the test
            lambda: cipher.encrypt_blocks(wrong),  # type: ignore[arg-type] # the point of the test
        ]
        for call in calls:
            with pytest.raises(InvalidInputError):
                call()
        assert key_store.versions(KeyPurpose.SEAL) == (1,)

    def test_closed_store_refuses_everything(self, open_store: OpenStore) -> None:
        store = open_store()
        key = store.create(KeyPurpose.SEAL, self.custodies[0])
        store.close()
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: store.versions(KeyPurpose.SEAL),
            lambda: store.cipher(key),
            lambda: store.destroy(key),
            lambda: store.create(KeyPurpose.SEAL, self.custodies[0]),
            store.signer,
            store.create_signer,
        ]
        for call in calls:
            with pytest.raises(KeyStoreError):
                call()
        with closing(open_store()) as again:
            assert again.versions(KeyPurpose.SEAL) == (key.version,)

    def test_threads_share_a_store(self, key_store: KeyStore) -> None:
        """Every answer under concurrency is the one that a single thread gets."""
        keys = [
            key_store.create(purpose, c)
            for purpose in (KeyPurpose.SEAL, KeyPurpose.FPE)
            for c in self.custodies
        ]
        expected = {key: key_store.cipher(key).encrypt_blocks(_blocks(THREADS)) for key in keys}
        barrier = threading.Barrier(THREADS)

        def work(number: int) -> bool:
            barrier.wait(CHILD_SECONDS)
            mine = slice(0, (number + 1) * BLOCK_BYTES)
            return all(
                key_store.cipher(key).encrypt_blocks(_blocks(THREADS)[mine]) == expected[key][mine]
                for _ in range(CALLS_PER_THREAD)
                for key in keys
            )

        with ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(work, range(THREADS)))

    def test_threads_that_create_get_a_version_each(self, key_store: KeyStore) -> None:
        barrier = threading.Barrier(THREADS)

        def work(_: int) -> KeyName:
            barrier.wait(CHILD_SECONDS)
            return key_store.create(KeyPurpose.FPE, self.custodies[0])

        with ThreadPoolExecutor(THREADS) as pool:
            created = list(pool.map(work, range(THREADS)))
        assert sorted(key.version for key in created) == list(range(1, THREADS + 1))
        assert key_store.versions(KeyPurpose.FPE) == tuple(range(1, THREADS + 1))

    @pytest.mark.parametrize("count", [1_023, 1_025, 4_097, 60_000, 200_000])
    def test_large_requests_come_back_whole(self, key_store: KeyStore, count: int) -> None:
        """Whatever one call takes: and again, when the store knows how much that is."""
        for custody in self.custodies:
            cipher = key_store.cipher(key_store.create(KeyPurpose.SEAL, custody))
            pattern = _blocks(64)
            expected = cipher.encrypt_blocks(pattern)
            for _ in range(2):
                answer = cipher.encrypt_blocks((pattern * (count // 64 + 1))[: count * BLOCK_BYTES])
                assert answer == (expected * (count // 64 + 1))[: count * BLOCK_BYTES]

    def test_lost_sessions_are_opened_again(
        self, open_store: OpenStore, disturbances: tuple[Disturbance, ...]
    ) -> None:
        if not disturbances:
            pytest.skip("this store names no disturbances: it holds nothing open that can be lost")
        with closing(open_store()) as store:
            keys = [store.create(KeyPurpose.SEAL, custody) for custody in self.custodies]
            ciphers = [store.cipher(key) for key in keys]
            before = [cipher.encrypt_blocks(_blocks(2)) for cipher in ciphers]
            signer = store.create_signer()
            for disturb in disturbances:
                disturb(store)
                assert [cipher.encrypt_blocks(_blocks(2)) for cipher in ciphers] == before
                disturb(store)
                assert store.versions(KeyPurpose.SEAL) == tuple(range(1, len(keys) + 1))
                disturb(store)
                assert [store.cipher(key).encrypt_blocks(_blocks(2)) for key in keys] == before
                disturb(store)
                assert signer is None or len(signer.sign(b"message")) == 64

    def test_forked_children_use_the_store_and_leave_it_to_the_parent(self, key_store: KeyStore) -> None:
        """A child may encrypt, make keys and close the store; the parent notices nothing of it."""
        if not hasattr(os, "fork"):
            pytest.skip("this platform has no fork")
        keys = [key_store.create(KeyPurpose.SEAL, custody) for custody in self.custodies]
        ciphers = [key_store.cipher(key) for key in keys]
        before = [cipher.encrypt_blocks(_blocks(2)) for cipher in ciphers]

        def child() -> bool:
            same = [cipher.encrypt_blocks(_blocks(2)) for cipher in ciphers] == before
            made = key_store.create(KeyPurpose.SEAL, self.custodies[0])
            key_store.close()
            return same and made.version == len(keys) + 1

        assert _in_child(child)
        assert [cipher.encrypt_blocks(_blocks(2)) for cipher in ciphers] == before
        assert key_store.versions(KeyPurpose.SEAL) == tuple(range(1, len(keys) + 2))
        assert _in_child(lambda: key_store.cipher(keys[0]).encrypt_blocks(_blocks(2)) == before[0])
        assert [cipher.encrypt_blocks(_blocks(2)) for cipher in ciphers] == before


def _in_child(action: Callable[[], bool]) -> bool:
    """Whether an action is true in a forked child. One that hangs is ended."""
    pid = os.fork()
    if pid == 0:
        outcome = 1
        try:
            outcome = 0 if action() else 2
        finally:
            os._exit(outcome)
    until = time.monotonic() + CHILD_SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False
