"""The command in this process, as tests run it: arguments and a standard input, exit code and what was written."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

import tokenvault as tv
from tokenvault.cli import main

CONFIGURATION = """
token_store = "sqlite:///vault.db"

[reveal]
purposes = ["chargeback"]
minutes = 10

[programs.card-on-file]
bin = "999912"
keep_last4 = true
making = "convergent"
domain = { channels = ["ecommerce", "merchant_initiated"] }

[programs.one-time]
bin = "999913"
expected_tokens = 50_000

[requestors.40012345678]
programs = ["card-on-file", "one-time"]

[requestors.40087654321]
permissions = ["detokenize"]
domain = '{"max_amount": {"amount": 25000, "currency": "EUR"}}'
"""
SHOP, ACQUIRER = "40012345678", "40087654321"
VISA, MASTERCARD = "4111111111111111", "5555555555554444"
PTY_SECONDS_MAX = 30


def provision_with_a_short_delay(key_store: str, token_store: str) -> None:
    """Rotation waits for the delay that a database was made with: the command's is 5 seconds."""
    with closing(tv.open_key_store(key_store)) as keys, closing(tv.open_token_store(token_store)) as store:
        tv.provision(keys, store, key_delay=timedelta(milliseconds=100))


@attrs.frozen
class Ran:
    """How a run of the command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What `--json` wrote."""
        return json.loads(self.out)


@attrs.frozen
class Command:
    """Runs the command in this process, with its output captured."""

    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def __call__(self, *arguments: str, stdin: str = "") -> Ran:
        self.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        self.capture.readouterr()
        code = main(arguments)
        return Ran(code, *self.capture.readouterr())

    def json(self, *arguments: str, stdin: str = "") -> Any:
        """What a run that succeeds writes with `--json`."""
        ran = self(*arguments, "--json", stdin=stdin)
        assert ran.code == 0, ran
        return ran.document

    def issue(self, pan: str = VISA, program: str = "one-time", *options: str) -> str:
        """Issue a token. Returns its reference."""
        told = self.json(
            "issue", "-r", SHOP, "-p", program, "--expiry", "2039-12", *options, stdin=f"{pan}\n"
        )
        return str(told["reference"])


def run_in_terminal(
    arguments: Sequence[str], folder: Path, typed: str = "", columns: int = 80
) -> tuple[int, str]:
    """Run the command in a pseudo-terminal. Returns its exit code and everything that the terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update(TERM="xterm-256color", COLUMNS=str(columns))
        os.execv(sys.executable, [sys.executable, "-m", "tokenvault.cli", *arguments])  # noqa: S606 # no shell is wanted
    shown = b""
    until = time.monotonic() + PTY_SECONDS_MAX
    try:
        while time.monotonic() < until:
            if not select.select([terminal], [], [], 0.1)[0]:
                continue
            try:
                read = os.read(terminal, 65_536)
            except OSError:  # the other end is closed
                break
            if not read:
                break
            shown += read
            if typed and b"(not shown): " in shown:
                os.write(terminal, typed.encode())
                typed = ""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()
    finally:
        os.close(terminal)
