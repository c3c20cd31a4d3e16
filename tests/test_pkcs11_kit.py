"""The contract of a key store in one command, for any PKCS#11 module: what it tells, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing

from pkcs11 import Attribute, KeyType

from tests import softhsm
from tokenvault.keys import Custody, KeyName, KeyPurpose
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.testing import pkcs11_modules

A_FEW = "new_store or destroyed_key or forked or lost_sessions or signer"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tokenvault.testing.pkcs11_modules", *arguments],
        capture_output=True,
        text=True,
    )


def test_it_says_what_it_needs_and_leaves_an_empty_token(softhsm_uri: str) -> None:
    done = command(softhsm_uri, "-k", A_FEW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What the module must offer" in done.stdout
    assert "SoftHSM v2" in done.stdout
    assert "5 passed" in done.stdout
    with Pkcs11KeyStore(softhsm_uri) as keys:
        assert all(keys.versions(purpose) == () for purpose in KeyPurpose)
        assert keys.signer() is None
        assert keys.create(KeyPurpose.AUDIT, Custody.IN_MODULE) == KeyName(KeyPurpose.AUDIT, 1)


def test_it_refuses_a_token_that_holds_keys_of_a_vault(softhsm_uri: str) -> None:
    with Pkcs11KeyStore(softhsm_uri) as keys:
        keys.create(KeyPurpose.SEAL, Custody.IN_PROCESS)
    done = command(softhsm_uri)
    assert done.returncode == 1
    assert "holds keys of a vault" in done.stderr
    with Pkcs11KeyStore(softhsm_uri) as keys:
        assert keys.versions(KeyPurpose.SEAL) == (1,)


def test_it_tells_its_usage_and_why_a_module_can_not_be_opened(softhsm_uri: str) -> None:
    for arguments in ([], ["file:keys.json"]):
        done = command(*arguments)
        assert done.returncode == 2
        assert "usage:" in done.stderr
    done = command(softhsm_uri.replace("token=", "token=not-"))
    assert done.returncode == 1
    assert "no token that fits" in done.stderr


def test_erasing_leaves_the_keys_of_others(softhsm_uri: str) -> None:
    with Pkcs11KeyStore(softhsm_uri) as keys:
        for _ in range(3):
            keys.create(KeyPurpose.FPE, Custody.IN_MODULE)
        keys.destroy(KeyName(KeyPurpose.FPE, 2))
        keys.create_signer()
        with closing(softhsm.session(softhsm_uri)) as session:
            session.generate_key(KeyType.AES, 256, label="payroll", store=True)
    pkcs11_modules.erase(softhsm_uri)
    with Pkcs11KeyStore(softhsm_uri) as keys, closing(softhsm.session(softhsm_uri)) as session:
        assert keys.versions(KeyPurpose.FPE) == ()
        assert keys.signer() is None
        assert [found[Attribute.LABEL] for found in session.get_objects()] == ["payroll"]
