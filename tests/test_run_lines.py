"""A line of a room that no test runs is told, and fails the run; one that says it can not be run is not."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import coverage
import pytest

from scripts import run_lines
from scripts.mutants.rooms import Room

RUN = "def run(a):\n    if a:\n        return (\n            1\n        )\n    return 2\n"
NEVER = "def never():\n    return 1\n"
LEFT_OUT = 'def left_out():  # pragma: no cover  a reason\n    raise ValueError("never")\n'
TREE = {"a/m.py": RUN, "a/b/n.py": RUN + LEFT_OUT, "c/o.py": RUN, "other.py": NEVER}


def written(package: Path) -> Path:
    for name, text in TREE.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def collected(data_file: Path, package: Path, given: dict[str, list[int]]) -> None:
    collecting = coverage.Coverage(
        data_file=str(data_file), config_file=False, include=[f"{package}/*"], branch=True
    )
    collecting.start()
    try:
        for name, values in given.items():
            functions = runpy.run_path(str(package / name))
            for value in values:
                functions["run"](value)
    finally:
        collecting.stop()
    collecting.save()


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Path, Path]:
    """The coverage of a package that was run in two copies, which are gone, and its source."""
    parts = []
    for number, given in enumerate(({"a/m.py": [1], "a/b/n.py": [0], "c/o.py": [0, 1]}, {"a/b/n.py": [1]})):
        copy = written(tmp_path / str(number) / "tokenvault")
        parts.append(str(tmp_path / f"part{number}"))
        collected(Path(parts[-1]), copy, given)
        shutil.rmtree(copy)
    whole = coverage.CoverageData(str(tmp_path / "data"))
    for part in parts:
        read = coverage.CoverageData(part)
        read.read()
        whole.update(read)
    whole.write()
    return tmp_path / "data", written(tmp_path / "src" / "tokenvault")


def test_lines_that_no_test_runs_are_told_with_their_module(measured: tuple[Path, Path]) -> None:
    assert list(run_lines.lines_not_run(*measured, ["a", "c"])) == [("a/m.py", [6])]
    assert list(run_lines.lines_not_run(*measured, ["a/b", "c/o.py"])) == []
    assert list(run_lines.lines_not_run(*measured, ["other.py"])) == [("other.py", [1, 2])]


def test_the_run_fails_where_a_room_has_more_such_lines_than_are_left_to_it(
    measured: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data_file, package = measured
    monkeypatch.setattr(run_lines, "PACKAGE", package)
    monkeypatch.setattr("scripts.run_lines.ROOMS", {"one": Room(("a",), ()), "two": Room(("a/b", "c"), ())})
    for left, told in (({}, "one: no test runs 1 lines, 0 at most\n"), ({"one": 1}, "")):
        monkeypatch.setattr(run_lines, "LEFT", left)
        assert run_lines.main([str(data_file)]) == bool(told)
        assert capsys.readouterr().out == f"a/m.py: no test runs 6\n{told}"
