"""A line of a room that no test runs is told, and fails the run; one that says it can not be run is not."""

from __future__ import annotations

import runpy
from pathlib import Path

import coverage
import pytest

from scripts import run_lines
from scripts.mutants.rooms import Room

RUN = "def run(a):\n    if a:\n        return 1\n    return 2\n"
NEVER = "def never():\n    return 1\n"
LEFT_OUT = 'def left_out():  # pragma: no cover  a reason\n    raise ValueError("never")\n'


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """The coverage of a small package, of which two modules were run in part."""
    package = tmp_path / "tokenvault"
    for name, text in {"a/m.py": RUN, "a/b/n.py": RUN + LEFT_OUT, "c/o.py": RUN, "other.py": NEVER}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    data_file = tmp_path / "data"
    collected = coverage.Coverage(
        data_file=str(data_file), config_file=False, source=[str(package)], branch=True
    )
    collected.start()
    try:
        for name, given in {"a/m.py": [1], "a/b/n.py": [0, 1], "c/o.py": [0, 1]}.items():
            functions = runpy.run_path(str(package / name))
            for each in given:
                functions["run"](each)
    finally:
        collected.stop()
    collected.save()
    return data_file


def test_lines_that_no_test_runs_are_told_with_their_module(measured: Path) -> None:
    assert list(run_lines.lines_not_run(measured, ["a", "c"])) == [("a/m.py", [4])]
    assert list(run_lines.lines_not_run(measured, ["a/b", "c/o.py"])) == []
    assert list(run_lines.lines_not_run(measured, ["other.py"])) == [("other.py", [1, 2])]


def test_a_place_that_was_not_measured_is_refused(measured: Path) -> None:
    with pytest.raises(SystemExit, match="nothing of gone"):
        list(run_lines.lines_not_run(measured, ["a", "gone"]))


def test_the_run_fails_where_a_room_has_such_a_line(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for places, code, told in ((("a",), 1, "a/m.py: no test runs 4\n"), (("a/b", "c"), 0, "")):
        monkeypatch.setattr("scripts.run_lines.ROOMS", {"model": Room(places, ())})
        assert run_lines.main([str(measured)]) == code
        assert capsys.readouterr().out == told
