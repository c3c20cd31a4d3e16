"""The page of the command: every command that it shows runs as it stands, and prints what is shown."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import MASTERCARD, VISA, provision_with_a_short_delay
from tests.test_site_examples import DOCS, blocks_of
from tokenvault.cli.exits import EXIT_CODES

PAGE = "howto/command.md"
MARK = "-- done --"
AMEX, VENDOR_TOKEN = "378282246310005", "999912000040005"
"""A card, and a token of its length and last four digits."""


def console(page: str) -> list[tuple[str, str]]:
    """The commands of a page, each with what it prints."""
    shown = "".join(text for language, text in blocks_of(page) if language == "console")
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)


def run_console(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the commands of a page in a folder, one after the other; how many there were.

    Its configuration, if it shows one, is written first. A command that prints anything else than is shown fails.
    """
    for language, text in blocks_of(page):
        if language == "toml":
            (folder / "tokenvault.toml").write_text(text)
    places = folder / "bin"
    places.mkdir()
    for name, program in {
        "tokenvault": f'exec {sys.executable} -m tokenvault.cli "$@"',
        # Of jq, what the pages use of it.
        "jq": f'exec {sys.executable} -c \'import json, sys; print(json.load(sys.stdin)["tokens"][0]["reference"])\'',
    }.items():
        (places / name).write_text(f"#!/bin/sh\n{program}\n")
        (places / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{places}:{os.environ['PATH']}")
    commands = console(page)
    script = "\n".join(f"{command}\necho '{MARK}'" for command, _ in commands)
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.stderr == ""
    printed = ran.stdout.split(f"{MARK}\n")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for (command, wanted), got in zip(commands, printed, strict=False):
        assert doctest.OutputChecker().check_output(wanted, got, flags), f"{command}\n{got}"
    return len(commands)


def test_every_command_of_the_page_runs_and_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "card.txt").write_text(f"{VISA}\n")
    (tmp_path / "cards.csv").write_text(f"pan,expiry\n{MASTERCARD},2039-12\n{MASTERCARD[:-1]}5,2039-12\n")
    (tmp_path / "vendor.csv").write_text(f"token,pan\n{VENDOR_TOKEN},{AMEX}\n{VENDOR_TOKEN[:-1]}4,{AMEX}\n")
    for name in ("TOKENVAULT_KEY_STORE", "TOKENVAULT_STORE", "TOKENVAULT_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOKENVAULT_PASSPHRASE", "for this try only")
    provision_with_a_short_delay(f"file:{tmp_path}/keys.json", f"sqlite:///{tmp_path}/vault.db")
    assert run_console(PAGE, tmp_path, monkeypatch) > 12


def test_the_page_s_exit_codes_are_those_of_the_command() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (DOCS / PAGE).read_text(encoding="utf-8"), re.MULTILINE)
    assert [(int(code), meaning) for code, meaning in rows] == [
        (each.code, each.meaning) for each in EXIT_CODES
    ]
