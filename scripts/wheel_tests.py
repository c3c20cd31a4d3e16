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
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts import pythons
from scripts.pythons import Python

ROOT: Final = Path(__file__).resolve().parent.parent
ENVIRONMENTS: Final = ROOT / ".venvs"
WHEELS: Final = ROOT / "dist"
DECIDES_CONTENT: Final = ("pyproject.toml", "constraints.txt")
"""An environment made under another text of these is made anew."""

PARALLEL: Final = ("--numprocesses", "2", "--dist", "worksteal")
WHOLE: Final = (*PARALLEL, "--cov", "--cov-report", "term-missing:skip-covered")
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


def tell(text: str) -> None:
    """Print a line that stands out from pytest's."""
    print(f"== {text}", flush=True)


def built_wheel() -> Path:
    """The wheel in dist/."""
    wheels = list(WHEELS.glob("*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"dist/ holds {len(wheels)} wheels instead of one: run `make wheel`")
    return wheels[0]


def environment(python: Python, wheel: Path) -> Path:
    """The interpreter of an environment that holds the wheel as it is now, and what the tests need.

    Raises:
        subprocess.CalledProcessError: the environment can not be made, or a dependency has no wheel for this Python.
    """
    place = hashlib.sha256(str(python.prefix).encode()).hexdigest()[:8]
    folder = ENVIRONMENTS / f"{python.version}-{place}"
    interpreter = folder / "bin" / "python"
    note = folder / "made-for"
    key = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in DECIDES_CONTENT)).hexdigest()
    # This environment's pip works on the other: no ensurepip is needed, which Debian packages apart.
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "--disable-pip-version-check", "install",
           "--quiet", "--constraint", str(ROOT / "constraints.txt")]  # fmt: skip
    if note.is_file() and note.read_text() == key:
        subprocess.run([*pip, "--no-deps", "--force-reinstall", str(wheel)], check=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python.executable, "-m", "venv", "--without-pip", folder], check=True)
        subprocess.run([*pip, f"{wheel}[tests]"], check=True)
        note.write_text(key)
    return interpreter


def run_tests(python: Python, arguments: Sequence[str]) -> bool:
    """Whether the tests pass with a Python. It is named where they do not, or can not be run."""
    tell(f"The wheel with Python {python.version}, {python.executable}")
    wheel = built_wheel()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["TOKENVAULT_WHEEL"] = str(wheel)  # tests/test_distribution.py checks that it is what is tested
    try:
        interpreter = environment(python, wheel)
        subprocess.run([interpreter, "-m", "pytest", *arguments], cwd=ROOT, env=variables, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        tell(f"Failed with Python {python.version}, {python.executable}: {error}")
        return False
    return True


def run_others() -> bool:
    """Whether the shorter set passes with every Python that is found, except the one that runs this."""
    here = pythons.running()
    left_out = f"not ({' or '.join(LEFT_OUT)})"
    passed = True
    for python in pythons.find():
        if (python.version, python.prefix) == (here.version, here.prefix):
            continue
        if python.unusable:
            tell(f"Not tested with Python {python.version}, {python.executable}: {python.unusable}")
            continue
        passed &= run_tests(
            python, [*PARALLEL, *FEWER_EXAMPLES, "-k", left_out, *(f"tests/{name}" for name in SHORT)]
        )
    return passed


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments ask for."""
    if list(arguments) == ["--others"]:
        return 0 if run_others() else 1
    return 0 if run_tests(pythons.running(), arguments or WHOLE) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
