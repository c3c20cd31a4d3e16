"""The Pythons that the wheel is tested with: each installation once, and none left out in silence."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from scripts import pythons, wheel_tests


def install(root: Path, name: str, **answer: Any) -> Path:
    """Put an interpreter among pyenv's that answers like this."""
    told = {
        "implementation": "CPython",
        "version": name,
        "release": [int(part) for part in name.split(".")[:2]],
        "final": True,
        "free_threaded": False,
        "prefix": str(root / "versions" / name),
        **answer,
    }
    path = root / "versions" / name / "bin" / "python3"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def pyenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a pyenv, on a machine whose system has no Python."""
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(pythons, "SYSTEM", (tmp_path / "bin",))
    (tmp_path / "bin").mkdir()
    return tmp_path / "pyenv"


def test_interpreters_are_found_in_the_order_of_their_versions(pyenv: Path) -> None:
    for version in ("3.13.0", "3.9.18", "3.11.10", "3.11.9"):
        install(pyenv, version)
    assert [python.version for python in pythons.find()] == ["3.11.9", "3.11.10", "3.13.0"]


def test_an_installation_counts_once(pyenv: Path, tmp_path: Path) -> None:
    """However many names it has, as links or as programs of their own."""
    executable = install(pyenv, "3.12.1")
    (tmp_path / "bin" / "python3.12").symlink_to(executable)
    install(pyenv, "3.12", version="3.12.1", prefix=str(pyenv / "versions" / "3.12.1"))
    assert [python.version for python in pythons.find()] == ["3.12.1"]


def test_one_version_in_two_places_counts_twice(pyenv: Path) -> None:
    install(pyenv, "3.12.1")
    install(pyenv, "3.12", version="3.12.1")
    assert [python.version for python in pythons.find()] == ["3.12.1", "3.12.1"]


def test_others_than_cpython_are_left_out(pyenv: Path) -> None:
    install(pyenv, "3.11.13", implementation="PyPy")
    assert pythons.find() == []


def test_what_has_no_wheels_says_so(pyenv: Path) -> None:
    install(pyenv, "3.13.0", free_threaded=True)
    install(pyenv, "3.15.0a1", final=False)
    reasons = [python.unusable for python in pythons.find()]
    assert reasons == [
        "a free-threaded build, for which the dependencies have no wheels",
        "a pre-release, for which the dependencies have no wheels",
    ]


def test_an_interpreter_that_does_not_start_is_named(pyenv: Path) -> None:
    path = install(pyenv, "3.12.1")
    path.write_text("#!/bin/sh\nexit 127\n")
    with pytest.raises(subprocess.CalledProcessError, match=r"3\.12\.1/bin/python3"):
        pythons.find()


def test_the_running_one_is_the_one_below_its_environment() -> None:
    running = pythons.running()
    assert running.version == sys.version.split()[0]
    assert running.prefix == Path(sys.base_prefix).resolve()


def test_one_without_an_environment_fails_by_name_and_the_next_is_tried(
    pyenv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers, but makes no environment; one that says why it can not be used is passed over."""
    paths = [install(pyenv, "3.12.1"), install(pyenv, "3.13.0"), install(pyenv, "3.15.0a1", final=False)]
    for path in paths[:2]:
        path.write_text(f"#!/bin/sh\n[ $2 = -c ] || exit 3\n{path.read_text().splitlines()[1]}\n")
    monkeypatch.setattr(wheel_tests, "ENVIRONMENTS", tmp_path / "environments")
    (tmp_path / "vault.whl").touch()
    monkeypatch.setattr(wheel_tests, "built_wheel", lambda: tmp_path / "vault.whl")
    assert not wheel_tests.run_others()
    told = capsys.readouterr().out
    assert f"Failed with Python 3.12.1, {paths[0]}" in told
    assert f"Failed with Python 3.13.0, {paths[1]}" in told
    assert f"Not tested with Python 3.15.0a1, {paths[2]}: a pre-release" in told


def a_wheel(path: Path, word: str) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("a_word.py", f"WORD = {word!r}")
        wheel.writestr(
            "a_word-1.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: a-word\nVersion: 1\nProvides-Extra: tests\n",
        )
        wheel.writestr(
            "a_word-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("a_word-1.dist-info/RECORD", "")
    return path


def test_an_environment_holds_the_wheel_as_it_is_now_and_is_made_anew_where_it_was_left_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel_tests, "ENVIRONMENTS", tmp_path / "environments")
    # The tests' own environment has no pip: that of the Python which it was made from works on the other.
    base = Path(sys.base_prefix) / "bin" / "python3"
    if subprocess.run([base, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("this Python has no pip of its own")
    monkeypatch.setattr(sys, "executable", str(base))
    path, python = tmp_path / "a_word-1-py3-none-any.whl", pythons.running()

    def word() -> str:
        interpreter = wheel_tests.environment(python, path)
        asked = [str(interpreter), "-c", "import a_word; print(a_word.WORD)"]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    a_wheel(path, "first")
    assert word() == "first"
    [folder] = (tmp_path / "environments").iterdir()
    (folder / "kept").touch()
    written = (folder / "made-for").stat().st_mtime_ns
    assert word() == "first"
    assert (folder / "made-for").stat().st_mtime_ns == written
    a_wheel(path, "second")
    assert word() == "second"
    assert (folder / "kept").exists()
    path.write_bytes(b"no wheel")
    with pytest.raises(subprocess.CalledProcessError):
        word()
    a_wheel(path, "second")
    assert word() == "second"
    assert not (folder / "kept").exists()
