"""Test what users install: the built wheel, in an environment of its own for each Python, never the source tree.

python -m scripts.wheel_tests             the whole suite with this Python, and the coverage of the package
python -m scripts.wheel_tests --others    the shorter set with every other CPython from 3.11 on that is found
python -m scripts.wheel_tests ARGUMENT... pytest with these arguments, with this Python
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

from scripts import pythons
from scripts.pythons import Python

ROOT: Final = Path(__file__).resolve().parent.parent
ENVIRONMENTS: Final = ROOT / ".venvs"
WHEELS: Final = ROOT / "dist"
DECIDES_CONTENT: Final = ("pyproject.toml", "constraints.txt")
"""An environment made under another text of these is made anew."""

NOT_HANDED_ON: Final = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""To the tests: what they import is the wheel; and the processes that they start need not compile tests/ anew."""

WHOLE: Final = (
    *("--numprocesses", "3", "--dist", "worksteal"),  # one more than the cores of CI: many tests wait
    *("--cov", "--cov-report", "term-missing:skip-covered"),
)
SHORT: Final = (
    "test_distribution.py",
    # vectors
    "test_ff1.py",
    "test_ff1_columns.py",
    "test_ccm.py",
    "test_cmac.py",
    "test_kdf.py",
    # rules and formats
    "test_pan.py",
    "test_domain.py",
    "test_formats_document.py",
    "test_lifecycle.py",
    "test_records.py",
    # stores and key stores
    "test_sqlite_store.py",
    "test_memory_store.py",
    "test_file_key_store.py",
    "test_pkcs11_key_store.py",
    # both faces of the vault, and how they end
    "test_vault.py",
    "test_async_vault.py",
    "test_vault_closing.py",
    "test_vaultless_columns.py",
)
"""What the other Pythons run, in about 15 seconds: vectors, rules, SQLite and SoftHSM, both faces."""

LEFT_OUT: Final = (
    "postgres",
    "by_processes",
    "at_any_moment",
    "machine_finds",
    "deleted_convergent",
    "same_in_at_most",
)
"""Of these, what takes longest and is the same with every Python, by parts of the tests' names."""

FEWER_EXAMPLES: Final = ("--hypothesis-profile", "other-pythons")
"""Whoever runs everything has Hypothesis try all."""

OTHERS_AT_ONCE: Final = 2


def tell(text: str, told: IO[str] | None = None) -> None:
    """Print a line that stands out from pytest's, or write it where that writes."""
    print(f"== {text}", file=told, flush=True)


def built_wheel() -> Path:
    """The wheel in dist/."""
    wheels = list(WHEELS.glob("*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"dist/ holds {len(wheels)} wheels instead of one: run `make wheel`")
    return wheels[0]


def environment(python: Python, wheel: Path, told: IO[str] | None = None) -> Path:
    """The interpreter of an environment that holds the wheel as it is now, and what the tests need.

    Raises:
        subprocess.CalledProcessError: the environment can not be made, or a dependency has no wheel for this Python.
    """
    place = hashlib.sha256(str(python.prefix).encode()).hexdigest()[:8]
    folder = ENVIRONMENTS / f"{python.version}-{place}"
    interpreter = folder / "bin" / "python"
    note = folder / "made-for"
    held = note.read_text().split() if note.is_file() else []
    content = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in DECIDES_CONTENT)).hexdigest()
    wanted = [content, hashlib.sha256(wheel.read_bytes()).hexdigest()]
    if held == wanted:
        return interpreter
    # This environment's pip works on the other: no ensurepip is needed, which Debian packages apart.
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "--disable-pip-version-check", "install",
           "--quiet", "--constraint", str(ROOT / "constraints.txt")]  # fmt: skip
    note.unlink(missing_ok=True)  # until it is made: an environment left half-way is made anew
    if held[:1] == wanted[:1]:
        commands = [[*pip, "--no-deps", "--force-reinstall", str(wheel)]]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        commands = [
            [str(python.executable), "-m", "venv", "--without-pip", str(folder)],
            [*pip, f"{wheel}[tests]"],
        ]
    for command in commands:
        subprocess.run(command, check=True, stdout=told, stderr=told)
    note.write_text(" ".join(wanted))
    return interpreter


def run_tests(python: Python, arguments: Sequence[str], told: IO[str] | None = None) -> bool:
    """Whether the tests pass with a Python. It is named where they do not, or can not be run.

    Args:
        python: the interpreter.
        arguments: for pytest; without any the environment is made and nothing run in it.
        told: where everything is written to; unless set, it is printed.
    """
    tell(f"The wheel with Python {python.version}, {python.executable}", told)
    variables = {name: value for name, value in os.environ.items() if name not in NOT_HANDED_ON}
    try:
        wheel = built_wheel()
        variables["TOKENVAULT_WHEEL"] = str(
            wheel
        )  # tests/test_distribution.py checks that it is what is tested
        command = [str(environment(python, wheel, told)), "-m", "pytest", *arguments]
        if arguments:
            subprocess.run(command, cwd=ROOT, env=variables, check=True, stdout=told, stderr=told)
    except (OSError, subprocess.CalledProcessError) as error:
        tell(f"Failed with Python {python.version}, {python.executable}: {error}", told)
        return False
    return True


def run_apart(python: Python, arguments: Sequence[str]) -> bool:
    """Whether the tests pass, told in one piece at the end: others run meanwhile."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
        passed = run_tests(python, arguments, told)
        told.seek(0)
        print(told.read(), end="", flush=True)
    return passed


def run_others() -> bool:
    """Whether the shorter set passes with every Python that is found; for the one that runs this, an environment."""
    here = pythons.running()
    short = [*FEWER_EXAMPLES, "-k", f"not ({' or '.join(LEFT_OUT)})", *(f"tests/{name}" for name in SHORT)]
    with ThreadPoolExecutor(OTHERS_AT_ONCE) as threads:
        begun = []
        for python in pythons.find():
            if python.unusable:
                tell(f"Not tested with Python {python.version}, {python.executable}: {python.unusable}")
                continue
            is_here = (python.version, python.prefix) == (here.version, here.prefix)
            begun.append(threads.submit(run_apart, python, [] if is_here else short))
        return all(each.result() for each in begun)


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments ask for."""
    if list(arguments) == ["--others"]:
        return 0 if run_others() else 1
    return 0 if run_tests(pythons.running(), arguments or WHOLE) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
