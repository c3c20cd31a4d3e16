"""Copies of the project, in which tests run in processes of their own: the working tree is only read."""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings

NICENESS: Final = 15
TEST_SECONDS_MAX: Final = 30.0
"""A test may take so long beside ten times what it takes without a change: changes make loops without an end."""

TREE_SKIPPED: Final = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".venvs",
    "build",
    "dist",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    ".coverage*",
    "htmlcov",
)
LOADED_BEFORE: Final = (
    "asyncio", "attrs", "cryptography.hazmat.primitives.ciphers.aead", "cryptography.hazmat.primitives.cmac",
    "cryptography.hazmat.primitives.serialization", "hypothesis.stateful", "json", "numpy", "psycopg", "sqlite3",
)  # fmt: skip
"""What the tests need and no change touches: loaded once, before the processes are forked."""

_PR_SET_PDEATHSIG: Final = 1


class Selection:
    """A plugin of pytest: runs chosen tests in their order, the same examples each time, each within its time.

    Args:
        seconds: what each test takes without a change, in the order that they shall run in; None: all there are.
        left_out: parts of the names of tests that are not run, where all are.
    """

    def __init__(self, seconds: dict[str, float] | None, left_out: tuple[str, ...] = ()) -> None:
        self._seconds, self._left_out = seconds, left_out

    def choose(self, seconds: dict[str, float]) -> None:
        """Have other tests run, and these times hold."""
        self._seconds = seconds

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """After conftest.py, before any module of tests: any example that fails will do, not the smallest."""
        settings.register_profile(
            "mutants", settings(), database=None, derandomize=True, deadline=None,
            phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        settings.load_profile("mutants")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Choose and order."""
        if self._seconds is not None:
            places = {name: place for place, name in enumerate(self._seconds)}
            items[:] = [item for item in items if item.nodeid in places]
            items.sort(key=lambda item: places[item.nodeid])
        else:
            items[:] = [item for item in items if not any(part in item.nodeid for part in self._left_out)]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """End the process when the test takes too long, whatever it is doing."""
        if self._seconds is not None:
            limit = TEST_SECONDS_MAX + 10 * self._seconds.get(nodeid, 0.0)
            faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__ or sys.stderr)


class Copy:
    """A copy of the project, with room for what its tests write.

    Args:
        root: what is copied: a project, or the tree of another copy.
        folder: where to; it must not be there yet.
        with_bytecode: whether the bytecode that is there is copied too.
    """

    def __init__(self, root: Path, folder: Path, *, with_bytecode: bool = False) -> None:
        self.tree, self.scratch, self.log = folder / "tree", folder / "scratch", folder / "log"
        folder.mkdir()
        shutil.copytree(root, self.tree, ignore=None if with_bytecode else TREE_SKIPPED, symlinks=True)
        self._planted: tuple[Path, bytes, os.stat_result] | None = None

    def plant(self, place: Path, text: str) -> None:
        """Change a file, named from the root of the tree; what was planted before is taken back."""
        self.restore()
        path = self.tree / place
        before = path.stat()
        self._planted = path, path.read_bytes(), before
        path.write_text(text, encoding="utf-8")
        # Bytecode is known by whole seconds and the size of its source: it must not pass for that of the change.
        os.utime(path, (before.st_atime, before.st_mtime + 1_000))

    def restore(self) -> None:
        """Take back what was planted."""
        if self._planted is not None:
            path, content, before = self._planted
            path.write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            self._planted = None

    def start(self, work: Callable[[], int]) -> int:
        """The id of a process that does this work in the copy, and ends with its result, or with this process."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        self.scratch.chmod(0o755)  # servers run as other users
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self._move_in()
            code = int(work())
        except BaseException as error:  # noqa: BLE001  whatever it is, this process ends here
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def _move_in(self) -> None:
        lead_a_group()
        with suppress(OSError):
            os.nice(NICENESS)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self.tree)
        paths = [str(self.tree / "src"), str(self.tree)]
        sys.path[:0] = paths
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ["TMPDIR"] = os.environ["PYTEST_DEBUG_TEMPROOT"] = str(self.scratch)
        os.environ.pop("PYTEST_ADDOPTS", None)
        for name in list(sys.modules):
            if name.partition(".")[0] in ("scripts", "tests", "tokenvault"):
                del sys.modules[name]


def lead_a_group() -> None:
    """Make this process the first of a group, which `end` ends, and end it with its parent."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end(pid: int) -> None:
    """End what is left of a process that was started in a copy, and of those that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def run_pytest(plugin: object, files: list[str], *arguments: str) -> int:
    """Run test files in this process, in the tree that it is in; pytest's exit code."""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov"]
    options += [
        "-W",
        "ignore:Module already imported:pytest.PytestAssertRewriteWarning",
    ]  # what `load` loaded
    return int(pytest.main([*options, *arguments, *files], plugins=[plugin]))


def load() -> None:
    """Load what the tests need and no change touches."""
    for name in LOADED_BEFORE:
        with suppress(ImportError):
            importlib.import_module(name)


def has_tests(root: Path, names: tuple[str, ...]) -> list[str]:
    """Paths of the test files that are there."""
    return [f"tests/{name}" for name in names if (root / "tests" / name).is_file()]
