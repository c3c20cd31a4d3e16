"""Tries changes: the tests that may notice are run with each of them, in a copy of the project."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from scripts.mutants.changes import Change
from scripts.mutants.copies import Copy, Selection, end, run_pytest
from scripts.mutants.coverage_map import PACKAGE, CoverageMap
from scripts.mutants.nursery import UNFIT, Nursery

QUICK_TESTS: Final = 40
"""So many of the likeliest tests run first, in the nursery: most changes are noticed by one of them.

All of them run there where nothing that the change reaches is computed while tests are loaded.
"""

CHANGE_SECONDS_MAX: Final = 180.0
"""A fresh process tries one change for so long at most, beside four times what its tests take without it."""

FIRST_FILES: Final = 4
"""A fresh process loads so many test files first; all that may notice only where these do not: that takes long."""

_LOOKED_AT_SECONDS: Final = 0.003
_NOTHING_WENT_WRONG: Final = (0, 5)  # passed, and no such test


class Result(NamedTuple):
    """What became of a change; `tests`: how many were to be run with it."""

    change: Change
    noticed: bool
    tests: int


class Bench:
    """A copy of the project, with a nursery in it, on which one change after the other is tried.

    Args:
        copy: of the project.
        files: the test files that its nursery loads.
        covered: tells which tests may notice.
        seconds_max: how long the tests of one change take together without it, at most.
    """

    def __init__(self, copy: Copy, files: list[str], covered: CoverageMap, seconds_max: float) -> None:
        self._copy, self._files, self._covered, self._seconds_max = copy, files, covered, seconds_max
        self._nursery: Nursery | None = None
        self._change: Change | None = None
        self._tests: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._pid = 0
        self._ends = 0.0

    @property
    def is_free(self) -> bool:
        """Whether nothing is on trial."""
        return self._change is None

    def begin(self, change: Change) -> None:
        """Put a change on trial."""
        self._change, self._tests = change, self._covered.tests_for(change, self._seconds_max)
        if change.scope is None or not change.inside:
            self._begin_afresh(of_few_files(self._tests))
            return
        few = QUICK_TESTS if self._covered.is_loaded(change) else None
        quick = dict(list(self._tests.items())[:few])
        self._nursery = self._nursery or Nursery(self._copy, self._files)
        path = self._copy.tree / PACKAGE / change.module
        self._nursery.ask(path, change.text, change.scope.name, quick)

    def result(self) -> Result | None:
        """What became of the change on trial; None while there is none, or it is not known."""
        if self._change is None:
            return None
        noticed = self._noticed_afresh() if self._pid else self._noticed_quickly(self._change)
        if noticed is None:
            return None
        result = Result(self._change, noticed, len(self._tests))
        self._change = None
        return result

    def close(self) -> None:
        """End the processes."""
        if self._pid:
            end(self._pid)
        if self._nursery is not None:
            self._nursery.close()

    def _noticed_quickly(self, change: Change) -> bool | None:
        if self._nursery is None:
            raise RuntimeError("no nursery was asked")
        try:
            code = self._nursery.answer()
        except EOFError:
            self._nursery.close()
            self._nursery, code = None, UNFIT
        if code is None:
            return None
        if code != UNFIT and code not in _NOTHING_WENT_WRONG:
            return True
        if code != UNFIT and not self._covered.is_loaded(change):
            return False  # every test has run, and nothing was computed before
        self._begin_afresh(of_few_files(self._tests))
        return None

    def _begin_afresh(self, tests: dict[str, float]) -> None:
        if self._change is None:
            raise RuntimeError("nothing is on trial")
        self._asked = tests
        self._copy.plant(PACKAGE / self._change.module, self._change.text)
        files = sorted({_file_of(name) for name in tests})
        self._ends = time.monotonic() + CHANGE_SECONDS_MAX + 4 * sum(tests.values())
        self._pid = self._copy.start(lambda: run_pytest(Selection(tests), files))

    def _noticed_afresh(self) -> bool | None:
        done, status = os.waitpid(self._pid, os.WNOHANG)
        if not done and time.monotonic() < self._ends:
            return None
        end(self._pid)
        if not done:
            os.waitpid(self._pid, 0)
        self._copy.restore()
        self._pid = 0
        if not done or os.waitstatus_to_exitcode(status) not in _NOTHING_WENT_WRONG:
            return True
        if len(self._asked) == len(self._tests):
            return False
        self._begin_afresh(self._tests)
        return None


def of_few_files(tests: dict[str, float]) -> dict[str, float]:
    """Those of the likeliest tests that few files have."""
    files: set[str] = set()
    for name in tests:
        if len(files) < FIRST_FILES:
            files.add(_file_of(name))
    return dict([(name, seconds) for name, seconds in tests.items() if _file_of(name) in files][:QUICK_TESTS])


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def try_changes(changes: Iterable[Change], benches: list[Bench]) -> Iterator[Result]:
    """Try changes, as many at a time as there are benches, and tell of each when it is known."""
    waiting = list(changes)[::-1]
    try:
        while waiting or not all(bench.is_free for bench in benches):
            for bench in benches:
                if bench.is_free and waiting:
                    bench.begin(waiting.pop())
                result = bench.result()
                if result is not None:
                    yield result
            time.sleep(_LOOKED_AT_SECONDS)
    finally:
        for bench in benches:
            bench.close()
