"""The README's example and the quickstart do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import tokenvault as tv

ROOT = Path(__file__).parent.parent


def test_the_readme_s_examples_run(
    softhsm_uri: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(examples) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", softhsm_uri)
    monkeypatch.setenv("TOKENVAULT_STORE", postgres_url)
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})  # noqa: S102 # our own text
    assert (tmp_path / "vault.db").stat().st_size > 0
    with closing(tv.open_token_store(postgres_url)) as store:
        assert len(store.scan()) == 1


def test_the_quickstart_decides_as_its_table_says(softhsm_uri: str) -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py")],
        env={**os.environ, "TOKENVAULT_KEY_STORE": softhsm_uri},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("approved") == 6
    assert ran.stdout.count("declined") == 10
    assert "22 of 22 tokens, 0 of 11 PANs" in ran.stdout
    assert not re.search(r"4111111111111111|5555555555554444", ran.stdout + ran.stderr)


def test_everything_public_is_there_and_sorted() -> None:
    assert tv.__all__ == sorted(tv.__all__)
    assert all(hasattr(tv, name) for name in tv.__all__)


def test_importing_does_nothing() -> None:
    """No key store library is loaded, no logger is configured, no thread is started."""
    program = (
        "import sys, threading, logging, tokenvault;"
        "assert 'pkcs11' not in sys.modules and 'hypothesis' not in sys.modules and 'pytest' not in sys.modules;"
        "assert threading.active_count() == 1 and not logging.getLogger().handlers"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
