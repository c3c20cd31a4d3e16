"""Provisioning by many processes at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tokenvault as tv

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


def test_processes_that_provision_at_once_make_one_key_of_each_purpose(
    softhsm_uri: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/vault.db"
    command = [sys.executable, "-W", "error", "-c", PROVISION, softhsm_uri, url]
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
    keys = tv.open_key_store(softhsm_uri)
    for purpose in (tv.KeyPurpose.SEAL, tv.KeyPurpose.FINGERPRINT, tv.KeyPurpose.FPE, tv.KeyPurpose.AUDIT):
        assert keys.versions(purpose) == (1,)
    keys.close()
