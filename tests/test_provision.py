"""Provisioning by many processes at once."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import tokenvault as tv
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
