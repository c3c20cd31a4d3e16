"""Tells which lines of the rooms that changes are planted in no test has run: `make test` fails where there are any.

Of the rooms in LEFT there are some: it fails where there are more.

python -m scripts.run_lines [FILE]      FILE: the coverage of a run of all tests; .coverage without one

A line that no test can run says so, with its reason, behind `pragma: no cover`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from coverage import Coverage, CoverageData

from scripts.mutants.rooms import ROOMS

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "src" / "tokenvault"

LEFT: Final = {"audit": 2, "vault": 4}
"""How many lines of a room no test runs, at most; none of the others. Some are reached by races alone."""


def lines_not_run(data_file: Path, package: Path, places: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Modules of the places inside a package, each with its lines that no test has run.

    Args:
        data_file: the coverage of a run, wherever the package was installed for it.
        package: the source of the package.
        places: modules and folders inside it.
    """
    ran = _ran(data_file, package.name)
    coverage = Coverage(data_file=None, config_file=str(ROOT / "pyproject.toml"), branch=False)
    for place in places:
        path = package / place
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            name = str(module.relative_to(package))
            coverage.get_data().add_lines({str(module): ran[name]})
            _, _, _, missing, _ = coverage.analysis2(str(module))
            if missing:
                yield name, missing


def _ran(data_file: Path, package: str) -> defaultdict[str, set[int]]:
    """The lines of each module that were run, in whichever copy of the package."""
    data = CoverageData(str(data_file))
    data.read()
    ran = defaultdict[str, set[int]](set)
    for path in data.measured_files():
        ran[path.rpartition(f"/{package}/")[2]].update(data.lines(path) or ())
    return ran


def main(arguments: Sequence[str]) -> int:
    """Tell of the lines; 1 where a room has more of them than LEFT says."""
    data_file = Path(arguments[0]) if arguments else ROOT / ".coverage"
    failed = False
    for name, room in ROOMS.items():
        found = list(lines_not_run(data_file, PACKAGE, room.places))
        for module, missing in found:
            print(f"{module}: no test runs {', '.join(map(str, missing))}")
        count, most = sum(len(missing) for _, missing in found), LEFT.get(name, 0)
        if count > most:
            print(f"{name}: no test runs {count} lines, {most} at most")
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
