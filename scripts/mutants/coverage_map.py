"""Which test runs which line of the library, and how long each takes: found once for a state of the project."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from scripts.mutants.changes import Change
from scripts.mutants.copies import Copy, Selection, run_pytest

PACKAGE: Final = Path("src/tokenvault")
TESTS_SECONDS_MAX: Final = 30.0
"""For one change tests are run that take so long together, at most, where no other bound is given."""


class CoverageMap:
    """Which test runs which line.

    Attributes:
        seconds: how long each test takes, with what it sets up.
        lines: for each module inside the package, the tests that run each line that any runs.
        loaded: for each module, the lines that run while tests are loaded.
    """

    def __init__(
        self,
        seconds: dict[str, float],
        lines: dict[str, dict[int, list[str]]],
        loaded: dict[str, list[int]] | None = None,
    ) -> None:
        self.seconds, self.lines, self.loaded = seconds, lines, loaded or {}

    def is_loaded(self, change: Change) -> bool:
        """Whether the function that is changed runs before any test: its results may be kept."""
        if change.scope is None or not change.inside:
            return True
        _, first, last = change.scope
        return any(first < line <= last for line in self.loaded.get(change.module, ()))

    def tests_for(self, change: Change, seconds_max: float = TESTS_SECONDS_MAX) -> dict[str, float]:
        """The tests to run with a change, and how long each takes; those first that run its own line.

        Then come those that run its function: a result that is kept for later callers is computed under one test,
        and used by many. Where the function runs while tests are loaded: its module's, for half of the time, and the
        quickest of all others: a table is used without a line of its module.
        """
        module = self.lines.get(change.module, {})
        own, same = set(module.get(change.line, ())), set()
        if change.scope is not None:
            _, first, last = change.scope
            same = {test for line, tests in module.items() if first < line <= last for test in tests}
        steps = [(own, seconds_max), (same, seconds_max)]
        if self.is_loaded(change):
            of_module = {test for tests in module.values() for test in tests}
            steps += [(of_module, seconds_max / 2), (set(self.seconds), seconds_max)]
        chosen: dict[str, float] = {}
        total = 0.0
        for step, bound in steps:
            for test in sorted(step - chosen.keys(), key=lambda name: (self.seconds.get(name, 0.0), name)):
                seconds = self.seconds.get(test, 0.0)
                if total + seconds > bound and chosen:
                    break
                total += seconds
                chosen[test] = seconds
        return chosen


class _Measure(Selection):
    """Collects lines by test, and times."""

    def __init__(self, coverage: Any, left_out: tuple[str, ...]) -> None:
        super().__init__(None, left_out)
        self._coverage = coverage
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Note lines as this test's."""
        self._coverage.switch_context(item.nodeid)
        yield
        self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the time."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def measure(copy: Copy, files: list[str], left_out: tuple[str, ...], target: Path) -> int:
    """Run the tests in a copy, in this process, and write the map. Gives pytest's exit code.

    Args:
        copy: of the project.
        files: of tests.
        left_out: parts of the names of tests that are not run.
        target: where the map is written.
    """
    from coverage import Coverage  # noqa: PLC0415  whoever only plants does without

    package = copy.tree / PACKAGE
    coverage = Coverage(data_file=None, config_file=False, source=[str(package)])
    plugin = _Measure(coverage, left_out)
    coverage.start()
    code = run_pytest(plugin, files)
    coverage.stop()
    data = coverage.get_data()
    found = {
        str(Path(path).relative_to(package)): data.contexts_by_lineno(path) for path in data.measured_files()
    }
    lines = {
        module: {str(line): sorted(set(tests) - {""}) for line, tests in each.items() if set(tests) - {""}}
        for module, each in found.items()
    }
    loaded = {
        module: sorted(line for line, tests in each.items() if "" in tests) for module, each in found.items()
    }
    if not plugin.failed and plugin.seconds:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"seconds": plugin.seconds, "lines": lines, "loaded": loaded}))
        partial.replace(target)
    return code


def state_of(root: Path, files: list[str], left_out: tuple[str, ...]) -> str:
    """A digest of the library and of what its tests are made of: a map holds for one state."""
    digest = hashlib.sha256(repr((sorted(files), sorted(left_out))).encode())
    for folder in ("src", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            is_another_test = path.name.startswith("test_") and f"tests/{path.name}" not in files
            if not is_another_test:
                digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def read(path: Path) -> CoverageMap:
    """A map that was written."""
    told = json.loads(path.read_text())
    lines = {
        module: {int(line): tests for line, tests in each.items()} for module, each in told["lines"].items()
    }
    return CoverageMap(told["seconds"], lines, told["loaded"])
