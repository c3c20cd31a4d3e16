"""A throw-away PgBouncer before the tests' PostgreSQL server: a folder of its own, a Unix socket and no port."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString

import psycopg

from tests.ending import Server
from tests.postgres_server import PASSWORD, PostgresServer, new_name

PORT = "6432"
START_SECONDS_MAX = 10.0


def program() -> str:
    """Where pgbouncer is; TOKENVAULT_TEST_PGBOUNCER names another one."""
    places = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
    found = os.environ.get("TOKENVAULT_TEST_PGBOUNCER") or shutil.which("pgbouncer", path=places)
    if found is None:
        raise RuntimeError("PgBouncer is not installed: run scripts/system-packages.sh tests")
    return found


def version() -> tuple[int, ...]:
    """Of PgBouncer; from (1, 21) on it can pass on prepared statements."""
    told = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in told.split()[1].split(".")[:2])


class PgBouncer:
    """A pooler in a folder of its own, running.

    Args:
        server: that it leads to, with the server's user and password.
        settings: of PgBouncer, beside its own.
    """

    def __init__(self, server: PostgresServer, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tokenvault-bouncer-", dir=server.folder.parent))
        self.port = settings.pop("listen_port", PORT)
        owner = server.folder.stat().st_uid
        # As root it would not run. The server does not either: its user owns its folder.
        self._user = pwd.getpwuid(owner).pw_name if os.geteuid() == 0 else None
        (self.folder / "users").write_text(f'"postgres" "{PASSWORD}"\n"stranger" "{PASSWORD}"\n')
        every = {
            "listen_port": self.port,
            "unix_socket_dir": str(self.folder),
            "auth_type": "scram-sha-256",
            "auth_file": f"{self.folder}/users",
            "admin_users": "postgres",
            "logfile": f"{self.folder}/log",
            "default_pool_size": "5",
            **settings,
        }
        (self.folder / "ini").write_text(
            f"[databases]\n* = host={server.folder} port={server.port}\n"
            f"nowhere = host={self.folder}/nowhere port=1\nmissing = host={server.folder} port={server.port}"
            f" dbname={new_name()}\n"
            "[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in every.items())
        )
        for path in (self.folder, *self.folder.iterdir()):
            os.chown(path, owner, -1)
        self.start()

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        self._server = Server(
            [program(), "--quiet", self.folder / "ini"],
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._takes_connections():
            if self._server.process.poll() is not None or time.monotonic() > deadline:
                log = self.folder / "log"
                raise RuntimeError(f"pgbouncer failed: {log.read_text() if log.exists() else 'no log'}")
            time.sleep(0.01)

    def _takes_connections(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(f"{self.folder}/.s.PGSQL.{self.port}") == 0

    def stop(self) -> None:
        """End it at once, with everybody's connections."""
        self._server.kill()

    def url(self, schema: str, *, database: str = "postgres", user: str = "postgres", password: str = PASSWORD,
            **options: str) -> str:  # fmt: skip
        """The address of a token store behind it."""
        query = urllib.parse.urlencode(
            {"host": str(self.folder), "port": self.port, "schema": schema, **options},
            quote_via=urllib.parse.quote,
        )
        return f"postgresql://{user}:{urllib.parse.quote(password)}@/{database}?{query}"

    @contextlib.contextmanager
    def raw(self, database: str = "postgres") -> Iterator[psycopg.Connection]:
        """Another client's connection through it."""
        with psycopg.connect(
            host=str(self.folder), port=self.port, user="postgres", password=PASSWORD, dbname=database,
            autocommit=True, prepare_threshold=None,
        ) as connection:  # fmt: skip
            yield connection

    def tell(self, command: LiteralString) -> None:
        """Give a command on its console, such as PAUSE, and wait until it is done."""
        with contextlib.closing(
            psycopg.connect(
                host=str(self.folder), port=self.port, user="postgres", password=PASSWORD, dbname="pgbouncer",
                autocommit=True, cursor_factory=psycopg.ClientCursor,
            )
        ) as connection:  # fmt: skip
            connection.pgconn.exec_(command.encode())

    def remove(self) -> None:
        """End it and leave nothing behind."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running(server: PostgresServer, **settings: str) -> Iterator[PgBouncer]:
    """A pooler that runs while this lasts."""
    pooler = PgBouncer(server, **settings)
    try:
        yield pooler
    finally:
        pooler.remove()
