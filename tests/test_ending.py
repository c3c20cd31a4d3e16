"""What tests start ends with them, even where they are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS_MAX = 30

POSTGRES = """
from tests.postgres_server import PostgresServer
server = PostgresServer()
print(server.folder, (server.folder / "data" / "postmaster.pid").read_text().split()[0], flush=True)
"""

PGBOUNCER = """
from tests.pgbouncer import PgBouncer
from tests.postgres_server import PostgresServer
server = PostgresServer()
pooler = PgBouncer(server)
print(server.folder, pooler._server.process.pid, flush=True)
"""

OF_A_THREAD = """
import threading
from tests.ending import Server
started = []
thread = threading.Thread(target=lambda: started.append(Server(["sh", "-c", "sleep 600 & wait"])))
thread.start()
thread.join()
print("/nowhere", started[0].process.pid, flush=True)
"""


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    "started", [POSTGRES, PGBOUNCER, OF_A_THREAD], ids=["postgres", "pgbouncer", "thread"]
)
def test_a_server_ends_with_the_process_that_started_it_even_if_that_is_killed(started: str) -> None:
    program = f"import sys\nsys.path[:0] = {sys.path!r}\n{started}\nimport time\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder, pid = process.stdout.readline().split()
        assert is_running(int(pid))
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + SECONDS_MAX
    while is_running(int(pid)) or Path(folder).exists():
        assert time.monotonic() < until, f"{pid} still runs, or {folder} is still there"
        time.sleep(0.05)
