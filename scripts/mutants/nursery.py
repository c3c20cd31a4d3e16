"""A process that has loaded the library and its tests, and tries changes of functions in children of its own.

A child gives the function the code of the change and runs tests at once: nothing is loaded anew. What was computed
before it was forked knows nothing of the change. So where the function had run by then, a change that survives here
is tried again in a fresh process.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType
from typing import Final

import pytest

from scripts.mutants.copies import Copy, Selection, end, lead_a_group, run_pytest

TRY_SECONDS_MAX: Final = 120.0
UNFIT: Final = 200
"""The answer where a function is not found: a fresh process has to try."""

_LOOKED_AT_SECONDS: Final = 0.002


class Nursery:
    """Tries changes of functions quickly, one at a time.

    Args:
        copy: where its process runs.
        files: the test files that it loads.
    """

    def __init__(self, copy: Copy, files: list[str]) -> None:
        requests_out, requests_in = os.pipe()
        self._answers, answers_in = os.pipe()
        plugin = _Children(requests_out, answers_in)

        def work() -> int:
            os.close(requests_in)
            return run_pytest(plugin, files)

        self.pid = copy.start(work)
        os.close(requests_out)
        os.close(answers_in)
        self._requests = os.fdopen(requests_in, "w")

    def ask(self, path: Path, text: str, function: str, tests: dict[str, float]) -> None:
        """Begin to try a change: a module's file, its text after the change, the function, the tests to run."""
        request = {"path": str(path), "text": text, "function": function, "tests": tests}
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()

    def answer(self) -> int | None:
        """The exit code of the tests, or UNFIT; None while they run. Raises EOFError when the process has ended."""
        if not select.select([self._answers], [], [], 0)[0]:
            return None
        answer = os.read(self._answers, 1)
        if not answer:
            raise EOFError
        return answer[0]

    def close(self) -> None:
        """End the process."""
        end(self.pid)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self._answers)
        with suppress(OSError):
            self._requests.close()


class _Children(Selection):
    """A plugin of pytest that forks a child for each request once tests are collected, to run some of them."""

    def __init__(self, requests: int, answers: int) -> None:
        super().__init__(None)
        self._requests, self._answers = requests, answers

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Goes on in a child alone, which runs what it was asked to."""
        functions = _functions()
        items = {item.nodeid: item for item in session.items}
        gc.collect()
        gc.freeze()
        with os.fdopen(self._requests) as requests:
            for line in requests:
                pid = os.fork()
                if not pid:
                    lead_a_group()
                    told = json.loads(line)
                    if not _change(functions, told["path"], told["text"], told["function"]):
                        os._exit(UNFIT)
                    self.choose(told["tests"])
                    session.items[:] = [items[name] for name in told["tests"] if name in items]
                    return
                os.write(self._answers, bytes([_code_of(pid)]))
        os._exit(0)


def _code_of(pid: int) -> int:
    """How a child ended, waited for within a bound; one that takes too long, or is ended by a signal, gives 1."""
    ends = time.monotonic() + TRY_SECONDS_MAX
    while time.monotonic() < ends:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            end(pid)
            return max(os.waitstatus_to_exitcode(status), 0) if not os.WIFSIGNALED(status) else 1
        time.sleep(_LOOKED_AT_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 1


def _functions() -> dict[tuple[str, str], list[FunctionType]]:
    """Every function of the library that is loaded, by the file and the qualified name of its code."""
    found: dict[tuple[str, str], list[FunctionType]] = {}
    for each in gc.get_objects():
        if type(each) is FunctionType and "/tokenvault/" in each.__code__.co_filename:
            found.setdefault((each.__code__.co_filename, each.__code__.co_qualname), []).append(each)
    return found


def _change(functions: dict[tuple[str, str], list[FunctionType]], path: str, text: str, name: str) -> bool:
    """Whether the function is found and has the code of the change now."""
    codes = {
        code.co_firstlineno: code for code in _codes(compile(text, path, "exec")) if code.co_qualname == name
    }
    found = [each for each in functions.get((path, name), []) if each.__code__.co_firstlineno in codes]
    for each in found:
        try:
            each.__code__ = codes[each.__code__.co_firstlineno]
        except ValueError:  # it closes over other names than before
            return False
    return bool(found)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _codes(each)
