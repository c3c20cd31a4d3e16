"""Tells which lines of the rooms that changes are planted in no test has run: `make test` fails where there are any.

python -m scripts.run_lines [FILE]      FILE: the coverage of a run of all tests; .coverage without one

A line that no test can run says so, with its reason, behind `pragma: no cover`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from coverage import Coverage

from scripts.mutants.rooms import ROOMS

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = "tokenvault"


def lines_not_run(data_file: Path, places: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Modules of the places inside the package, each with its lines that no test has run.

    Args:
        data_file: the coverage of a run.
        places: modules and folders, inside the package.

    Raises:
        SystemExit: the run has measured no module of a place: nothing is known of it.
    """
    coverage = Coverage(data_file=str(data_file), config_file=str(ROOT / "pyproject.toml"))
    coverage.load()
    measured = {_inside(path): path for path in sorted(coverage.get_data().measured_files())}
    for place in places:
        modules = [each for each in measured if each == place or each.startswith(f"{place}/")]
        if not modules:
            raise SystemExit(f"{data_file} has measured nothing of {place}")
        for module in modules:
            _, _, _, missing, _ = coverage.analysis2(measured[module])
            if missing:
                yield module, missing


def _inside(path: str) -> str:
    """A module's path inside the package, wherever that is installed."""
    return path.rpartition(f"/{PACKAGE}/")[2]


def main(arguments: Sequence[str]) -> int:
    """Tell of the lines; 1 where there are any."""
    data_file = Path(arguments[0]) if arguments else ROOT / ".coverage"
    places = [place for room in ROOMS.values() for place in room.places]
    found = list(lines_not_run(data_file, places))
    for module, missing in found:
        print(f"{module}: no test runs {', '.join(map(str, missing))}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
