"""PKCS#11 modules that Debian has, set up for tests: token, PIN and whatever daemon they need, each ended afterwards.

Only `make modules` runs these: they need root, daemons and folders of the system.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from tests import softhsm
from tests.ending import Ending, Server

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
SOFTOKEN = LIBRARIES / "libsoftokn3.so"
OPENCRYPTOKI = LIBRARIES / "opencryptoki/libopencryptoki.so.0"
P11_KIT_CLIENT = LIBRARIES / "pkcs11/p11-kit-client.so"
P11_KIT_PROXY = LIBRARIES / "p11-kit-proxy.so"
TPM2 = LIBRARIES / "pkcs11/libtpm2_pkcs11.so"

PROXY_CONFIGURATION = Path("/etc/pkcs11/modules/tokenvault-test.module")
SOFT_TOKEN_SLOT = 3  # of opencryptoki.conf as Debian ships it
PIN, SO_PIN = "12345678", "87654321"
PATIENCE_SECONDS = 30


def run(*command: str | Path) -> None:
    """Run a command to its end; its output is shown where it fails."""
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def uri(token: str, module: Path, pin_path: Path, **query: str) -> str:
    """The address of a token."""
    more = "".join(f"&{name.replace('_', '-')}={quote(value, safe='=:/')}" for name, value in query.items())
    return f"pkcs11:token={quote(token)}?module-path={module}&pin-source=file:{pin_path}{more}"


def pin_file(folder: Path) -> Path:
    """A file with the PIN of every token here."""
    path = folder / "pin"
    path.write_text(PIN + "\n")
    return path


def _nss_arguments(folder: Path) -> str:
    return f"configdir='sql:{folder}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=optimizeSpace"


def _nss_database(folder: Path) -> Path:
    folder.mkdir(parents=True)
    pin = pin_file(folder)
    run("certutil", "-N", "-d", f"sql:{folder}", "-f", pin)
    return pin


@contextlib.contextmanager
def nss(folder: Path) -> Iterator[str]:
    """NSS softoken, which wants to be told where its database lies."""
    pin = _nss_database(folder / "nss")
    yield uri("NSS Certificate DB", SOFTOKEN, pin, x_init_args=_nss_arguments(folder / "nss"))


@contextlib.contextmanager
def nss_without_pin(folder: Path) -> Iterator[str]:
    """The same, with a token that wants no PIN."""
    database = folder / "nss-without-pin"
    database.mkdir()
    run("certutil", "-N", "-d", f"sql:{database}", "--empty-password")
    address = uri("NSS Certificate DB", SOFTOKEN, folder, x_init_args=_nss_arguments(database))
    yield address.replace(f"&pin-source=file:{folder}", "")


@contextlib.contextmanager
def nss_through_proxy(folder: Path) -> Iterator[str]:
    """The same, through p11-kit, which reads a folder of the system and joins all modules that are named there."""
    pin = _nss_database(folder / "nss-proxy")
    PROXY_CONFIGURATION.parent.mkdir(parents=True, exist_ok=True)
    PROXY_CONFIGURATION.write_text(
        f"module: {SOFTOKEN}\nx-init-reserved: {_nss_arguments(folder / 'nss-proxy')}\n"
    )
    try:
        yield uri("NSS Certificate DB", P11_KIT_PROXY, pin)
    finally:
        PROXY_CONFIGURATION.unlink()


@contextlib.contextmanager
def opencryptoki(folder: Path) -> Iterator[str]:
    """opencryptoki's software token, and its daemon."""
    for lock in ("", "swtok"):
        path = Path("/var/lock/opencryptoki") / lock
        path.mkdir(parents=True, exist_ok=True)
        shutil.chown(path, group="pkcs11")
    started = subprocess.run(["pkcsslotd"], capture_output=True, check=False)
    # Unless it was running before.
    ending = Ending("sh", "-c", "kill $(cat /var/run/pkcsslotd.pid)") if started.returncode == 0 else None
    try:
        tool: list[str | Path] = ["pkcs11-tool", "--module", OPENCRYPTOKI, "--slot", str(SOFT_TOKEN_SLOT)]
        until = time.monotonic() + PATIENCE_SECONDS
        while subprocess.run([*map(str, tool), "-L"], capture_output=True).returncode:
            assert time.monotonic() < until, started.stderr
            time.sleep(0.2)
        run(*tool, "--init-token", "--label", "tokenvault-test", "--so-pin", SO_PIN)
        run(*tool, "--login", "--login-type", "so", "--so-pin", SO_PIN, "--init-pin", "--pin", PIN)
        yield uri("tokenvault-test", OPENCRYPTOKI, pin_file(folder))
    finally:
        if ending is not None:
            ending.now()


@contextlib.contextmanager
def softhsm_in_database(folder: Path, module: Path) -> Iterator[str]:
    """SoftHSM with its objects in SQLite. Debian builds it without: the library is given."""
    with softhsm_configuration(folder / "db", "db"):
        tool: list[str | Path] = ["pkcs11-tool", "--module", module]  # SoftHSM's own knows no database either
        run(*tool, "--slot-index", "0", "--init-token", "--label", "db", "--so-pin", SO_PIN)
        token = [*tool, "--token-label", "db"]
        run(*token, "--login", "--login-type", "so", "--so-pin", SO_PIN, "--init-pin", "--pin", PIN)
        yield uri("db", module, pin_file(folder))


@contextlib.contextmanager
def softhsm_configuration(folder: Path, backend: str) -> Iterator[None]:
    """A token folder of SoftHSM, named by the environment meanwhile."""
    (folder / "tokens").mkdir(parents=True)
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = {backend}\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    try:
        yield
    finally:
        del os.environ["SOFTHSM2_CONF"]
        if before is not None:
            os.environ["SOFTHSM2_CONF"] = before


class P11KitServer:
    """SoftHSM behind `p11-kit server`, in another process, which can be stopped, killed and started again."""

    def __init__(self, folder: Path, token: str) -> None:
        self._socket = folder / "p11-kit.socket"
        self._token = token
        self._server: Server | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._socket.unlink(missing_ok=True)
        self._server = Server(
            ["p11-kit", "server", "--foreground", "--name", str(self._socket),
             "--provider", softhsm.module_path(), f"pkcs11:token={self._token}"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.environ["P11_KIT_SERVER_ADDRESS"] = f"unix:path={self._socket}"
        until = time.monotonic() + PATIENCE_SECONDS
        while not self._socket.exists():
            assert time.monotonic() < until
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and to the process that it has for each connection."""
        assert self._server is not None
        os.killpg(self._server.process.pid, number)

    def kill(self) -> None:
        """End it, at once."""
        if self._server is not None:
            self._server.kill()
            self._server = None


@contextlib.contextmanager
def p11_kit(folder: Path) -> Iterator[tuple[str, P11KitServer]]:
    """p11-kit's client, and its server with SoftHSM behind it."""
    with softhsm_configuration(folder / "served", "file"):
        run(
            "softhsm2-util",
            "--init-token", "--free", "--label", "served", "--pin", PIN, "--so-pin", SO_PIN,
        )  # fmt: skip
        server = P11KitServer(folder, "served")
        server.start()
        try:
            yield uri("served", P11_KIT_CLIENT, pin_file(folder), x_call_seconds_max="3"), server
        finally:
            with contextlib.suppress(ProcessLookupError, AssertionError):
                server.signal(signal.SIGCONT)
            server.kill()
            os.environ.pop("P11_KIT_SERVER_ADDRESS", None)


@contextlib.contextmanager
def tpm2(folder: Path) -> Iterator[str]:
    """tpm2-pkcs11 over a software TPM."""
    state, store, socket = folder / "tpm", folder / "store", folder / "tpm.socket"
    state.mkdir()
    store.mkdir()
    tcti = f"swtpm:path={socket}"
    settings = {"TPM2_PKCS11_STORE": str(store), "TPM2_PKCS11_TCTI": tcti, "TPM2TOOLS_TCTI": tcti}
    os.environ.update(settings)
    server = Server(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server", f"type=unixio,path={socket}",
         "--ctrl", f"type=unixio,path={socket}.ctrl", "--flags", "not-need-init,startup-clear"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while not Path(f"{socket}.ctrl").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        run("tpm2_ptool", "init", "--path", store)
        run("tpm2_flushcontext", "-t")
        tool: list[str | Path] = ["pkcs11-tool", "--module", TPM2, "--slot", "1"]
        run(*tool, "--init-token", "--label", "tpm", "--so-pin", SO_PIN)
        run(*tool, "--login", "--login-type", "so", "--so-pin", SO_PIN, "--init-pin", "--pin", PIN)
        yield uri("tpm", TPM2, pin_file(folder))
    finally:
        server.kill()
        for name in settings:
            os.environ.pop(name, None)
