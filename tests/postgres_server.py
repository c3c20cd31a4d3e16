"""A throw-away PostgreSQL server for tests and benchmarks: its own data folder, a Unix socket and no port.

The server refuses to run as root. Under root it runs as the system user that its package made, or as nobody.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.ending import Ending

PASSWORD = "correct horse battery staple"
USERS = ("postgres", "nobody")
MEMORY_BYTES_MIN = 2**30
SETTINGS = {
    "max_connections": "120",
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
}
REMOVE = """
server=$(head -n 1 "$0/data/postmaster.pid") && kill -s QUIT "$server"
for _ in $(seq 100); do kill -s 0 "$server" || break; sleep 0.1; done
for _ in $(seq 10); do rm -rf "$0" && break; sleep 1; done
"""
"""Stops a server at once and removes its folder, in which a last process of it may still write."""


def binaries() -> Path:
    """Where initdb and pg_ctl are; TOKENVAULT_TEST_POSTGRES overrides where they are looked for."""
    on_path = shutil.which("initdb")
    places = [
        os.environ.get("TOKENVAULT_TEST_POSTGRES", ""),
        *(
            str(path.parent)
            for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
        ),
        "/usr/pgsql/bin",
        os.path.dirname(on_path) if on_path else "",
    ]
    found = next((place for place in places if place and os.path.exists(f"{place}/initdb")), None)
    if found is None:
        raise RuntimeError("the PostgreSQL server is not installed: run scripts/system-packages.sh")
    return Path(found)


def memory_disk() -> str | None:
    """A disk in memory where there is room: thousands of fsync calls of a busy disk prove nothing here."""
    shm = "/dev/shm"  # noqa: S108  fresh folders in it
    return shm if os.path.isdir(shm) and shutil.disk_usage(shm).free > MEMORY_BYTES_MIN else None


class PostgresServer:
    """A server in a folder of its own.

    Args:
        place: where that folder is made; unless set, a disk in memory. Not pytest's folder: only its owner may
            enter that, and a socket's path is short.
        settings: of the server, beside and before its own.
    """

    def __init__(self, place: str | None = None, **settings: str) -> None:
        self._binaries = binaries()
        self._settings = {**SETTINGS, **settings}
        self.folder = Path(tempfile.mkdtemp(prefix="tokenvault-pg-", dir=place or memory_disk() or "/tmp"))  # noqa: S108 # a fresh folder in it
        self._user: str | None = None
        if os.geteuid() == 0:
            self._user = next(name for name in USERS if name in {user.pw_name for user in pwd.getpwall()})
            pan_fingerprint = pwd.getpwnam(self._user)
            os.chown(self.folder, pan_fingerprint.pw_uid, pan_fingerprint.pw_gid)
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run(
            "initdb", "--no-sync", "--encoding=UTF8", "--locale=C", "--username=postgres", "--auth=scram-sha-256",
            f"--pwfile={password}",
        )  # fmt: skip
        self._ending = Ending("sh", "-c", REMOVE, self.folder)
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._binaries / program, "-D", self.folder / "data", *arguments],
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would stay open
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
        if done.returncode:
            log = self.folder / "log"
            raise RuntimeError(f"{program} failed: {log.read_text() if log.exists() else 'no log'}")

    def start(self, **settings: str) -> None:
        """Start, and wait until it takes connections; these settings stay for later starts."""
        self._settings |= settings
        settings = {"unix_socket_directories": f"'{self.folder}'", "listen_addresses": "''", **self._settings}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._run("pg_ctl", "--wait", f"--options={options}", f"--log={self.folder}/log", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop; "immediate" is as good as a power cut."""
        self._run("pg_ctl", "--wait", f"--mode={mode}", "stop")

    @property
    def port(self) -> str:
        """Of TCP, and of the Unix socket's name."""
        return self._settings.get("port", "5432")

    def url(self, *, user: str = "postgres", password: str = PASSWORD, database: str = "postgres",
            **options: str) -> str:  # fmt: skip
        """The address of a token store here."""
        quoted = urllib.parse.quote(password)
        query = urllib.parse.urlencode({"host": str(self.folder), **options}, quote_via=urllib.parse.quote)
        return f"postgresql://{user}:{quoted}@/{database}?{query}"

    def new_url(self, **options: str) -> str:
        """The address of an empty token store: a schema that nobody else uses."""
        return self.url(schema=new_name(), **options)

    @contextlib.contextmanager
    def raw(self, database: str = "postgres") -> Iterator[psycopg.Connection]:
        """A connection of the superuser, without the store."""
        with psycopg.connect(
            host=str(self.folder),
            port=self.port,
            user="postgres",
            password=PASSWORD,
            dbname=database,
            autocommit=True,
        ) as connection:
            yield connection

    def log(self) -> str:
        """What the server has logged."""
        return (self.folder / "log").read_text()

    def remove(self) -> None:
        """Stop and leave nothing behind: what happens when this process ends, too."""
        self._ending.now()


def new_name() -> str:
    """A name for a schema, a role or a database."""
    return f"test_{secrets.token_hex(6)}"
