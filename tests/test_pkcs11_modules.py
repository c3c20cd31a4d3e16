"""Real PKCS#11 modules: the contract of a key store, a vault in both custodies, and daemons that end under it.

Run by `make modules` alone. Each test has a process of its own: a module reads its surroundings once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import tokenvault as tv
from tests import real_modules, vaults
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore

pytestmark = pytest.mark.modules

ROOT = Path(__file__).parent.parent

Module = Callable[[Path], AbstractContextManager[str]]

USE = """
import sys
import tokenvault as tv
from tests import vaults
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore

uri = sys.argv[1]
store = tv.open_token_store("memory:")
with Pkcs11KeyStore(uri) as keys:
    tv.provision(keys, store, custody=tv.Custody(sys.argv[2]))
with Pkcs11KeyStore(uri) as keys:
    with vaults.open_vault(keys, store) as vault:
        for _ in range(5):
            token = vaults.issue(vault).token
            assert vault.detokenize(token, vaults.use()).pan.reveal() == vaults.VISA
    print("signed" if keys.signer() else "unsigned")
    assert tv.verify_audit(store, keys=keys).intact
"""


def run_python(*arguments: str) -> str:
    """Run Python in the surroundings of this test; returns what it printed."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, cwd=ROOT)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def conforms(uri: str) -> None:
    """Run the contract, as its one command does."""
    assert " passed" in run_python("-m", "tokenvault.testing.pkcs11_modules", uri)


def keeps_a_vault(uri: str, *, signed: bool) -> None:
    """Use a vault with keys in either custody."""
    for custody in tv.Custody:
        assert run_python("-c", USE, uri, custody.value) == ("signed\n" if signed else "unsigned\n")
        run_python(
            "-c", "import sys; from tokenvault.testing import pkcs11_modules as m; m.erase(sys.argv[1])", uri
        )


@pytest.mark.parametrize(
    ("module", "signed"),
    [
        (real_modules.nss, True),
        (real_modules.nss_without_pin, True),
        (real_modules.nss_through_proxy, True),
        (real_modules.opencryptoki, False),
    ],
    ids=["nss", "nss-without-pin", "nss-through-p11-kit-proxy", "opencryptoki"],
)
def test_a_module_conforms_and_keeps_a_vault(tmp_path: Path, module: Module, signed: bool) -> None:
    with module(tmp_path) as uri:
        conforms(uri)
        keeps_a_vault(uri, signed=signed)


def test_softhsm_with_its_objects_in_a_database(tmp_path: Path) -> None:
    built = os.environ.get("TOKENVAULT_SOFTHSM_DB", "")
    if not built:
        pytest.skip(
            "Debian's SoftHSM is built without: set TOKENVAULT_SOFTHSM_DB to a libsofthsm2.so that has it"
        )
    with real_modules.softhsm_in_database(tmp_path, Path(built)) as uri:
        conforms(uri)
        keeps_a_vault(uri, signed=True)


def test_a_served_module_conforms_and_keeps_a_vault(tmp_path: Path) -> None:
    with real_modules.p11_kit(tmp_path) as (uri, _):
        conforms(uri)
        keeps_a_vault(uri, signed=True)


def test_a_server_that_is_killed_stopped_and_started_again(tmp_path: Path) -> None:
    """While it is away each call fails in time and says so; when it is back the next call works."""
    with real_modules.p11_kit(tmp_path) as (uri, server), Pkcs11KeyStore(uri) as keys:
        store = tv.open_token_store("memory:")
        tv.provision(keys, store, custody=tv.Custody.IN_MODULE)
        with vaults.open_vault(keys, store) as vault:
            token = vaults.issue(vault).token
            for number in range(2):
                server.kill()
                start = time.monotonic()
                for _ in range(2):
                    with pytest.raises(tv.KeyStoreError, match="C_"):
                        vault.detokenize(token, vaults.use(f"killed-{number}"))
                assert time.monotonic() - start < 10
                server.start()
                assert vault.detokenize(token, vaults.use(f"back-{number}")).pan.reveal() == vaults.VISA
            token = vaults.issue(vault).token
            for _ in range(2):
                server.signal(signal.SIGSTOP)
                start = time.monotonic()
                with pytest.raises(tv.KeyStoreError, match="did not answer"):
                    vault.tokens_of(vaults.VISA, requestor=vaults.SHOP)
                assert time.monotonic() - start < 10
                threading.Timer(0.1, server.signal, [signal.SIGCONT]).start()
                assert vault.tokens_of(vaults.VISA, requestor=vaults.SHOP)


def test_tpm2_opens_and_says_what_it_does_not_offer(tmp_path: Path) -> None:
    """It generates no AES key through PKCS#11."""
    with real_modules.tpm2(tmp_path) as uri, Pkcs11KeyStore(uri) as keys:
        for purpose in tv.KeyPurpose:
            assert keys.versions(purpose) == ()
        with pytest.raises(tv.KeyStoreError, match="C_GenerateKey: CKR_FUNCTION_NOT_SUPPORTED"):
            keys.create(tv.KeyPurpose.SEAL, tv.Custody.IN_MODULE)
