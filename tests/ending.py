"""Servers that end with the process that started them, however that dies.

A process of its own looks whether that one is still there, and then runs a command. The signal that Linux sends when
a parent dies would not do: it goes by the thread that started a server, and pg_ctl leaves its server to init.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOOK_SECONDS = 0.5
END_SECONDS_MAX = 60.0


class Ending:
    """Runs a command when this process ends, or is asked to.

    Args:
        command: what ends a server and removes what it leaves.
    """

    def __init__(self, *command: str | Path) -> None:
        self._watch = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the group of the tests passes it over
            cwd="/",
        )

    def now(self) -> None:
        """Run the command, unless it has run, and wait for it."""
        self._watch.communicate(timeout=END_SECONDS_MAX)


class Server:
    """A command that runs until it is killed with all that it starts, at the latest when this process ends.

    Attributes:
        process: which runs it.
    """

    def __init__(self, command: Sequence[str | Path], **popen: Any) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **popen)
        self._ending = Ending("sh", "-c", 'kill -s KILL -- "-$0"', str(self.process.pid))

    def kill(self) -> None:
        """End it, at once."""
        self._ending.now()
        self.process.wait()


def main(parent: str, *command: str) -> None:
    """Run a command once the parent is gone or closes its end of the pipe."""
    while os.getppid() == int(parent) and not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        pass
    os.execvp(command[0], command)  # noqa: S606 # the tests' own command


if __name__ == "__main__":
    main(*sys.argv[1:])
