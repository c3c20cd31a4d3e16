"""The contract of a key store, run against any PKCS#11 module: `python -m tokenvault.testing.pkcs11_modules URI`.

What it needs is printed first. The token must hold no keys of a vault: it makes many, and destroys them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar, Final

import pytest

from tokenvault.errors import TokenVaultError
from tokenvault.keys.pkcs11 import objects
from tokenvault.keys.pkcs11.cryptoki import Session
from tokenvault.keys.pkcs11.sessions import State
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.keys.port import Custody, KeyStore
from tokenvault.testing.key_stores import Disturbance, KeyStoreContract, OpenStore

USAGE: Final = """\
usage: python -m tokenvault.testing.pkcs11_modules URI [--custody module|process] [arguments of pytest]

URI       pkcs11:token=...?module-path=...&pin-source=file:...
--custody only this one, for a module without AES-ECB (process)

What the module must offer: CKM_AES_KEY_GEN and CKM_AES_ECB with 256-bit keys (or CKM_AES_CBC, for custody process),
and one session. What the user must be allowed: to make and to destroy keys on the token. CKM_EC_KEY_PAIR_GEN and
CKM_ECDSA on P-256 are tested where the module has them. The token must hold no keys of a vault; at the end it holds
none either.
"""

_module: Final[dict[str, str]] = {}


class TestPkcs11Module(KeyStoreContract):
    """The contract, on the token that the command names."""

    custodies: ClassVar[tuple[Custody, ...]] = tuple(Custody)

    @pytest.fixture
    def open_store(self) -> Iterator[OpenStore]:
        """The token, which is emptied after each test."""
        uri = _module["uri"]
        yield lambda: Pkcs11KeyStore(uri)
        erase(uri)

    @pytest.fixture
    def disturbances(self) -> tuple[Disturbance, ...]:
        """Closed sessions, and a library that was finalized, as by other code of the process."""
        return (close_sessions, finalize)


def close_sessions(store: KeyStore) -> None:
    """Close the sessions of a store, and so end its login."""

    def close(state: State) -> None:
        if state.login is not None:
            for session in {id(each): each for each in (state.login.session, state.login.anchor)}.values():
                session.close()

    _of_pkcs11(store)._sessions.run(close)


def finalize(store: KeyStore) -> None:
    """Finalize the library under a store."""
    _of_pkcs11(store)._sessions.run(lambda state: state.module.library.cryptoki().finalize())


def _of_pkcs11(store: KeyStore) -> Pkcs11KeyStore:
    assert isinstance(store, Pkcs11KeyStore)
    return store


def erase(uri: str) -> None:
    """Destroy every object of a vault on a token."""

    def destroy(session: Session) -> None:
        for handle in objects.own_objects(session):
            session.destroy(handle)

    with closing(Pkcs11KeyStore(uri)) as store:
        store._sessions.run(lambda state: store._sessions.write(state, destroy))


def describe(uri: str) -> str:
    """What the token says of itself. Raises TokenVaultError, also where it holds keys of a vault."""
    with closing(Pkcs11KeyStore(uri)) as store:

        def look(state: State) -> str:
            assert state.login is not None
            if objects.own_objects(state.login.session):
                raise SystemExit("the token holds keys of a vault: give this command another one")
            token = state.login.token
            return f"{token.manufacturer_id}, {token.model}, token {token.label}"

        return store._sessions.run(look)


def main(arguments: Sequence[str]) -> int:
    """Run the contract. Returns the exit code: 0 where the module keeps it."""
    rest = list(arguments)
    if not rest or not rest[0].startswith("pkcs11:"):
        sys.stderr.write(USAGE)
        return 2
    sys.stdout.write(USAGE.partition("\n\n")[2].partition("\n\n")[2])
    uri = rest.pop(0)
    if rest[:1] == ["--custody"]:
        TestPkcs11Module.custodies = (Custody(rest[1]),)
        rest = rest[2:]
    try:
        sys.stdout.write(f"\n{describe(uri)}\n\n")
    except TokenVaultError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    _module["uri"] = uri
    options = [
        "-c",
        os.devnull,
        "--rootdir",
        os.path.dirname(__file__),
        "-p",
        "no:cacheprovider",
        "-q",
        "-rs",
    ]
    return int(pytest.main([*options, *rest, "--import-mode=importlib", __file__], plugins=[_Plugin()]))


class _Plugin:
    """Gives pytest the tests of this very module, which knows the URI, not of a second copy of it."""

    def pytest_pycollect_makemodule(self, module_path: Path, parent: pytest.Collector) -> pytest.Module:
        collected: pytest.Module = pytest.Module.from_parent(parent, path=module_path)
        collected.obj = sys.modules[__name__]
        return collected


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
