"""Tokens on real SoftHSM for tests.

SoftHSM reads SOFTHSM2_CONF when the library is initialised, for the whole process: so one token folder serves
a test run, and each test that wants a token for itself gets one with another label in it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pkcs11
from pkcs11 import Session

from tokenvault.keys.uri import parse_pkcs11_uri

MODULE_PATHS = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)


def module_path() -> str:
    """SoftHSM's library; TOKENVAULT_TEST_MODULE overrides where it is looked for."""
    places = [os.environ.get("TOKENVAULT_TEST_MODULE", ""), *MODULE_PATHS]
    found = next((place for place in places if place and os.path.exists(place)), None)
    if found is None or shutil.which("softhsm2-util") is None:
        raise RuntimeError("SoftHSM is not installed: run scripts/system-packages.sh")
    return found


def set_up(folder: Path) -> None:
    """Make `folder` the token folder of this process and its children, before SoftHSM is first loaded."""
    tokens = folder / "tokens"
    tokens.mkdir(parents=True, exist_ok=True)
    configuration = folder / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(configuration)


def new_token(folder: Path, label: str | None = None) -> str:
    """Make a token with a random PIN and return its URI. `set_up(folder)` comes first."""
    label = label or f"test-{secrets.token_hex(6)}"
    pin = secrets.token_hex(8)
    subprocess.run(
        [
            "softhsm2-util",
            "--init-token",
            "--free",
            "--label",
            label,
            "--pin",
            pin,
            "--so-pin",
            secrets.token_hex(8),
        ],
        check=True,
        capture_output=True,
    )
    pin_file = folder / f"{label}.pin"
    pin_file.write_text(pin + "\n")
    pin_file.chmod(0o600)
    return pkcs11_uri(label, pin_file)


def session(uri: str) -> Session:
    """A session beside a store's, which is logged in for the process."""
    parsed = parse_pkcs11_uri(uri)
    return pkcs11.lib(parsed.module_path).get_token(token_label=parsed.token).open(rw=True)


def pkcs11_uri(label: str, pin_file: Path) -> str:
    """The URI of a token."""
    return f"pkcs11:token={quote(label)}?module-path={quote(module_path())}&pin-source=file:{pin_file}"
