"""Provisioning by many processes at once, and where it fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests.test_leaks import assert_silent, told
from tests.vaults import VISA
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.testing import FAIL, LOSE, FaultSchedule, FaultyKeyStore

PROVISION = """
import sys
import tokenvault as tv
keys, store = tv.open_key_store(sys.argv[1]), tv.open_token_store(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
tv.provision(keys, store)
tv.Vault(keys, store).close()
keys.close()
store.close()
"""


SIGN = """
import contextlib, sys, time
import tokenvault as tv
from tokenvault.keys.pkcs11 import module, objects
module.host_lock = lambda path: contextlib.nullcontext()  # as on hosts that share no file
generate = objects.generate_signer
def late(*arguments):
    time.sleep(0.05)  # so that all of them find that there is no pair; the first time
    objects.generate_signer = generate
    generate(*arguments)
objects.generate_signer = late
keys = tv.open_key_store(sys.argv[1])
assert keys.signer() is None
print("ready", flush=True)
sys.stdin.readline()
assert keys.create_signer() is not None
keys.close()
"""


def run_four(script: str, *arguments: str) -> None:
    """Run processes that begin at once, to their end."""
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0] * len(processes)


def test_processes_that_provision_at_once_make_one_key_of_each_purpose(
    softhsm_uri: str, tmp_path: Path
) -> None:
    run_four(PROVISION, softhsm_uri, f"sqlite:///{tmp_path}/vault.db")
    keys = tv.open_key_store(softhsm_uri)
    for purpose in (tv.KeyPurpose.SEAL, tv.KeyPurpose.FINGERPRINT, tv.KeyPurpose.FPE, tv.KeyPurpose.AUDIT):
        assert keys.versions(purpose) == (1,)
    keys.close()


def test_hosts_that_make_the_signing_pair_at_once_make_one(softhsm_uri: str) -> None:
    """Who finds another pair beside its own destroys its own."""
    run_four(SIGN, softhsm_uri)
    keys = tv.open_key_store(softhsm_uri)
    signer = keys.signer()
    assert signer is not None
    assert len(signer.sign(b"message")) == 64
    keys.close()


def test_a_key_that_could_not_be_made_ends_provisioning_unless_another_process_made_it(
    own_keys: KeyStore,
) -> None:
    for fault, failed in ((FAIL, True), (LOSE, False)):  # the second makes it, as another process would
        with closing(MemoryTokenStore()) as store:
            keys = FaultyKeyStore(own_keys, FaultSchedule([fault], calls={"create"}))
            if failed:
                with pytest.raises(tv.KeyStoreError):
                    tv.provision(keys, store)
                assert own_keys.versions(tv.KeyPurpose.SEAL) == ()
                assert store.get_meta("keys/1") is None
            else:
                tv.provision(keys, store)
                assert all(own_keys.versions(purpose) == (1,) for purpose in tv.KeyPurpose)
                tv.Vault(own_keys, store).close()


# Where it fails: both faces alike.


KEY_BYTES = bytes(range(32))
NEEDLES = (KEY_BYTES.hex(), repr(KEY_BYTES), repr(bytearray(KEY_BYTES)))


class Broken:
    """A key store or a token store of which one method fails, with a key and a card number in its hands."""

    def __init__(self, whole: Any, method: str, kind: type[Exception]) -> None:
        self._whole, self._method, self._kind = whole, method, kind
        self.check_schema = self._chosen("check_schema")  # looked at on the object

    def __getattr__(self, name: str) -> Any:
        return self._chosen(name)

    def _chosen(self, name: str) -> Any:
        method = getattr(self._whole, name, None)
        if name != self._method:
            return method
        if asyncio.iscoroutinefunction(method):
            return self._fail_later
        return self._fail

    def _fail(self, *_args: object, **_kwargs: object) -> None:
        key, hexadecimal = KEY_BYTES, KEY_BYTES.hex()
        if not issubclass(self._kind, tv.TokenVaultError):
            raise self._kind(key, hexadecimal, VISA)
        try:
            int(f"{hexadecimal} {VISA}")
        except ValueError:
            raise self._kind("it is away")  # noqa: B904 # an adapter that chains what it met

    async def _fail_later(self, *args: object, **kwargs: object) -> None:
        self._fail(*args, **kwargs)


def provision(face: str, keys: Any, broken: Callable[[Any], Any] = lambda store: store) -> None:
    """As either face does it, over an empty database."""
    if face == "blocking":
        with closing(tv.open_token_store("memory:")) as store:
            tv.provision(keys, broken(store))
        return

    async def work() -> None:
        store = tv.open_async_token_store("memory:")
        try:
            await tv.provision_async(keys, broken(store))
        finally:
            await store.close()

    asyncio.run(work())


@pytest.mark.parametrize("defect", [False, True], ids=["away", "a defect"])
@pytest.mark.parametrize(
    "method",
    ["provision", "check_schema", "get_meta", "put_meta", "versions", "create", "create_signer", "cipher"],
)
def test_provisioning_that_fails_tells_a_code_and_no_key_by_either_face(
    own_keys: KeyStore, method: str, defect: bool
) -> None:
    """Neither in the error, nor in those that it is chained to, nor in the library's frames; and it is done again."""
    of_store = method in ("provision", "check_schema", "get_meta", "put_meta")
    kind: type[Exception] = tv.TokenStoreError if of_store else tv.KeyStoreError
    kind = ValueError if defect else kind
    failed = []
    for face in ("blocking", "async"):
        keys: Any = own_keys if of_store else Broken(own_keys, method, kind)
        with pytest.raises(tv.TokenVaultError) as raised:
            provision(face, keys, lambda store: Broken(store, method, kind) if of_store else store)
        assert_silent(raised.value)
        assert not [text for text in told(raised.value) for needle in NEEDLES if needle in text]
        failed.append((type(raised.value), raised.value.code, str(raised.value)))
    assert failed[0] == failed[1]
    if not defect:
        assert failed[0] == (kind, "STORE_FAILED" if of_store else "KEY_STORE_FAILED", "it is away")
    else:
        assert failed[0][:2] == (tv.TokenVaultError, "DEFECT")
    for face in ("blocking", "async"):
        provision(face, own_keys)


@pytest.fixture
def others_keys(tmp_path: Path, quick_scrypt: None) -> Iterator[KeyStore]:
    (tmp_path / "others-passphrase").write_text("wrong horse battery staple")
    address = f"file:{tmp_path}/others.json?passphrase-source=file:{tmp_path}/others-passphrase"
    with closing(tv.open_key_store(address)) as opened:
        yield opened


def test_a_database_of_other_keys_is_not_provisioned_and_none_is_made_by_either_face(
    own_keys: KeyStore, others_keys: KeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a signing pair; where the others are there, and where there is no key at all."""
    url = f"sqlite:///{tmp_path}/vault.db"
    with closing(tv.open_token_store(url)) as store:
        tv.provision(own_keys, store)
        for others in (False, True):
            if others:
                tv.provision(others_keys, tv.open_token_store("memory:"))
            failed, pairs = [], list[None]()
            monkeypatch.setattr(others_keys, "create_signer", partial(pairs.append, None))
            with pytest.raises(tv.TokenVaultError) as raised:
                tv.provision(others_keys, store)
            failed.append(raised.value)

            async def work() -> None:
                again = tv.open_async_token_store(url)
                try:
                    await tv.provision_async(others_keys, again)
                finally:
                    await again.close()

            with pytest.raises(tv.TokenVaultError) as raised:
                asyncio.run(work())
            failed.append(raised.value)
            told_of = [(type(error), error.code, str(error)) for error in failed]
            assert told_of[0] == told_of[1]
            for error in failed:
                assert error.code == ("KEYS_OF_OTHER_VAULT" if others else "KEY_MISSING")
                assert_silent(error)
            assert not pairs
            made = (1,) if others else ()
            assert [others_keys.versions(purpose) for purpose in tv.KeyPurpose][:2] == [made] * 2
        tv.Vault(own_keys, store).close()
