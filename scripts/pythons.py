"""Which Pythons this machine has: pyenv's and the system's.

python -m scripts.pythons    lists them
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

OLDEST: Final = (3, 11)
SYSTEM: Final = (Path("/usr/bin"), Path("/usr/local/bin"))
START_SECONDS_MAX: Final = 30

# Runs in interpreters of any age, so it is plain.
_ASK: Final = """
import json, platform, sys, sysconfig
print(json.dumps({
    "implementation": platform.python_implementation(),
    "version": platform.python_version(),
    "release": sys.version_info[:2],
    "final": sys.version_info[3] == "final",
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "prefix": sys.base_prefix,
}))
"""


class Python(NamedTuple):
    """An installed interpreter.

    Attributes:
        executable: how it is started.
        version: in full, as in "3.12.1".
        prefix: the folder of its installation, which tells it from another of the same version.
        unusable: why the library is not tested with it; None where it is.
    """

    executable: Path
    version: str
    prefix: Path
    unusable: str | None = None


def running() -> Python:
    """The interpreter that runs this: of an environment, the one that the environment was made with."""
    found = _ask(Path(sys.executable))
    if found is None:
        raise SystemExit(f"{sys.executable} is not CPython from 3.11 on")
    base = getattr(sys, "_base_executable", sys.executable)
    return found._replace(executable=Path(base))


def find() -> list[Python]:
    """Every CPython from 3.11 on, each installation once, in the order of their versions.

    Raises:
        OSError, subprocess.SubprocessError: one does not start; the error names it.
    """
    found: dict[tuple[str, Path], Python] = {}
    for executable in sorted({path.resolve() for path in _candidates()}):
        python = _ask(executable)
        if python is not None:
            found.setdefault((python.version, python.prefix), python)
    return sorted(found.values(), key=_order)


def _order(python: Python) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", python.version)]


def _candidates() -> Iterator[Path]:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from pyenv.glob("versions/*/bin/python3")
    for path in itertools.chain.from_iterable(folder.glob("python3.*") for folder in SYSTEM):
        if re.fullmatch(r"python3\.\d+t?", path.name):
            yield path


def _ask(executable: Path) -> Python | None:
    """What an interpreter says of itself; None for one that the library is not for."""
    asked = subprocess.run(
        [executable, "-I", "-c", _ASK], check=True, capture_output=True, text=True, timeout=START_SECONDS_MAX
    )
    answer = json.loads(asked.stdout)
    if answer["implementation"] != "CPython" or tuple(answer["release"]) < OLDEST:
        return None
    unusable = None
    if not answer["final"]:
        unusable = "a pre-release, for which the dependencies have no wheels"
    elif answer["free_threaded"]:
        unusable = "a free-threaded build, for which the dependencies have no wheels"
    return Python(executable, answer["version"], Path(answer["prefix"]).resolve(), unusable)


if __name__ == "__main__":
    for each in find():
        print(each.version, each.executable, each.unusable or "")
