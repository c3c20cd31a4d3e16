"""Changes are planted one at a time, in a copy; survivors that are not listed and stale entries are told."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts.mutants import __main__ as mutants
from scripts.mutants import survivors
from scripts.mutants.changes import changes_of
from scripts.mutants.coverage_map import PACKAGE, CoverageMap
from scripts.mutants.rooms import ROOMS
from scripts.mutants.trial import QUICK_TESTS, of_few_files

ROOT = Path(__file__).parent.parent


def becomes(text: str) -> set[str]:
    return {change.becomes for change in changes_of("module.py", text)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(a, b):\n    return a < b\n", {"return a <= b", "return None"}),
        ("def f(a, b):\n    return not a\n", {"return (a)", "return None"}),
        ("x = a is not b\n", {"x = a is b"}),
        ("x = f(a, b)\n", {"x = f(b, a)"}),
        ("x = min(a, b)\n", {"x = max(a, b)"}),
        ("x = cast('int', a < b)\n", {"x = cast('int', a <= b)"}),
        ("x = zip(a, b, strict=True)\n", {"x = zip(b, a, strict=True)"}),
        ("x = a and b\n", {"x = a or b", "x = (a)", "x = (b)"}),
        ("x = s[a:b]\n", {"x = s[:b]", "x = s[a:]"}),
        ("LIMIT = 7\n", {"LIMIT = 6", "LIMIT = 8"}),
        ("x = {1: a, 2: b}\n", {"x = {2: b}", "x = {1: a}", "x = {2: a, 2: b}", "x = {0: a, 2: b}",
                                "x = {1: a, 3: b}", "x = {1: a, 1: b}"}),
        ("with suppress(ValueError):\n    f()\n", {"with suppress():", "pass"}),
        ("for x in y:\n    continue\n", {"for x in ():", "break"}),
        ("try:\n    f()\nexcept E:\n    g()\n", {"pass", "raise"}),
        ("if a:\n    f()\n", {"if (not (a)):", "pass"}),
        ("@cached\ndef f(): ...\n", {""}),
        ("def f():\n    g()\n    h()\n", {"return g()", "pass"}),
    ],
)  # fmt: skip
def test_each_kind_of_change_is_planted(text: str, expected: set[str]) -> None:
    assert becomes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        '"""A docstring."""\n',
        "x: int | None\n",
        "def f(a: int | None) -> bool | None: ...\n",
        'raise ValueError("a sentence")  # pragma: no cover\n',
        '__all__ = ["a", "b"]\n',
        "if TYPE_CHECKING:\n    x = 1\n",
        "from typing import final\n@final\nclass A: ...\n",
    ],
)
def test_texts_types_and_what_is_left_out_are_not_planted(text: str) -> None:
    assert becomes(text) == set()


@pytest.mark.parametrize("room", ROOMS)
def test_every_change_of_a_room_parses_and_changes_its_own_lines_alone(room: str) -> None:
    path = sorted((ROOT / PACKAGE / ROOMS[room].places[0]).rglob("*.py"))[-1]
    text = path.read_text()
    changes = changes_of(path.name, text)
    assert changes
    assert len({change.text for change in changes}) == len(changes)
    for change in changes[::10]:
        assert ast.dump(ast.parse(change.text)) != ast.dump(ast.parse(text))


def test_every_room_has_its_tests() -> None:
    assert ROOMS.keys() >= {"crypto", "model", "records", "audit", "vault"}
    for room in ROOMS.values():
        assert [name for name in room.tests if not (ROOT / "tests" / name).is_file()] == []
        assert [
            place for place in (*room.places, *room.generated) if not (ROOT / PACKAGE / place).exists()
        ] == []


def test_the_list_of_survivors_can_be_read() -> None:
    survivors.read(ROOT / mutants.SURVIVORS)


def test_tests_that_run_the_line_come_first_and_the_quickest_of_them_before_all() -> None:
    change = next(
        each for each in changes_of("m.py", "def f(a):\n    g()\n    return a < 1\n") if "<=" in each.becomes
    )
    covered = CoverageMap(
        {"slow": 2.0, "quick": 0.1, "same function": 0.1, "other": 0.0, "endless": 100.0},
        {"m.py": {3: ["slow", "quick"], 2: ["same function", "slow"]}},
    )
    assert list(covered.tests_for(change)) == ["quick", "slow", "same function"]
    assert list(covered.tests_for(change, 2.0)) == ["quick", "same function"]


def test_where_the_function_runs_while_tests_are_loaded_all_tests_may_notice() -> None:
    """What is computed then is kept for whoever uses it."""
    change = next(
        each for each in changes_of("m.py", "def f(a):\n    return a < 1\n") if "<=" in each.becomes
    )
    seconds = {"own": 2.0, "module": 0.5, "other": 0.1}
    lines = {"m.py": {2: ["own"], 9: ["module"]}}
    assert list(CoverageMap(seconds, lines).tests_for(change)) == ["own"]
    assert not CoverageMap(seconds, lines, {"m.py": [1, 9]}).is_loaded(change)
    assert list(CoverageMap(seconds, lines, {"m.py": [2]}).tests_for(change)) == ["own", "module", "other"]
    assert list(CoverageMap(seconds, lines, {"m.py": [2]}).tests_for(change, 2.4)) == ["own", "other"]


def test_no_test_notices_a_change_of_a_function_that_none_runs() -> None:
    change = changes_of("m.py", "def f(a):\n    return a < 1\n")[0]
    assert CoverageMap({"other": 0.1}, {"m.py": {9: ["other"]}}).tests_for(change) == {}


def test_the_first_files_are_few_and_those_of_the_likeliest_tests() -> None:
    tests = {f"tests/{name}.py::test_{number}": 0.1 for number in range(30) for name in "abcdefg"}
    first = of_few_files(tests)
    assert list(first) == [test for test in tests if test[6] in "abcd"][:QUICK_TESTS]
    assert of_few_files(first) == first
    assert of_few_files({}) == {}


def test_entries_are_read_from_the_output_of_a_run() -> None:
    changes = changes_of("m.py", "X = a < b\nY = 'it''s' is not b\n")
    text = "200 of 300\n\n@@ -1 +1 @@\n" + "\n".join(f"\n{survivors.entry(change)}" for change in changes)
    assert survivors.named_in(text + "\n2 changes: 0 noticed") == {survivors.key_of(each) for each in changes}
    assert survivors.named_in("3 changes: 3 noticed") == set()


def test_parts_are_all_changes_once_and_a_sample_is_the_same_for_one_seed() -> None:
    changes = changes_of("m.py", "A = 1\nB = 2\nC = 3\nD = 4\n")
    parts = [mutants.chosen_of(changes, f"{number}/3", None, 0, "") for number in (1, 2, 3)]
    assert sorted(each.text for part in parts for each in part) == sorted(each.text for each in changes)
    first, again = (mutants.chosen_of(changes, "1/1", 3, 7, "") for _ in range(2))
    assert first == again
    assert len(first) == 3
    for wrong in ("0/3", "4/3", "2", "a/b"):
        with pytest.raises(ValueError, match="part"):
            mutants.chosen_of(changes, wrong, None, 0, "")


def test_an_entry_holds_wherever_its_line_stands_and_is_stale_when_it_is_gone_or_noticed(
    tmp_path: Path,
) -> None:
    (change,) = (each for each in changes_of("m.py", "X = a < b\n"))
    path = tmp_path / "list.toml"
    path.write_text(survivors.entry(change).replace("reason = ''", "reason = 'it is so'"))
    listed = survivors.read(path)
    moved = changes_of("m.py", "Y = b\n\n\nX = a < b\n")
    assert survivors.wrong(listed, moved, moved, [], ["m.py"]) == ([], [])
    unlisted, stale = survivors.wrong({}, moved, moved, [], ["m.py"])
    assert (unlisted, stale) == (moved, [])
    for planted, noticed in (([], []), (moved, moved)):
        _, stale = survivors.wrong(listed, planted, [], noticed, ["m.py"])
        assert len(stale) == 1
        assert survivors.wrong(listed, planted, [], noticed, ["other.py"])[1] == stale[:0] or noticed


def test_an_entry_without_a_reason_or_twice_is_refused(tmp_path: Path) -> None:
    (change,) = changes_of("m.py", "X = a < b\n")
    path = tmp_path / "list.toml"
    for text in (survivors.entry(change), 2 * survivors.entry(change).replace("reason = ''", "reason = 'x'")):
        path.write_text(text)
        assert tomllib.loads(text)
        with pytest.raises(ValueError, match="reason"):
            survivors.read(path)


def test_a_small_project_is_tried_in_a_copy_and_its_survivor_told(tmp_path: Path) -> None:
    """One function is tested at its border, the other is only run."""
    package = tmp_path / PACKAGE / "crypto"
    (tmp_path / "tests").mkdir()
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    module = "def at_border(a):\n    return a < 3\n\n\ndef only_run(a):\n    return a < 3\n"
    (package / "m.py").write_text(module)
    (tmp_path / "tests" / "__init__.py").write_text("")
    (tmp_path / "tests" / "test_ff1.py").write_text(
        "from tokenvault.crypto.m import at_border, only_run\n\n"
        "def test_it():\n    assert at_border(2)\n    assert not at_border(3)\n    assert only_run(1)\n"
    )
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\npythonpath = ['.', 'src']\n")
    (tmp_path / "tests" / "mutants_survivors.toml").write_text("")
    script = (
        "import sys\nfrom pathlib import Path\nfrom scripts.mutants import __main__ as m\n"
        "from scripts.mutants.rooms import ROOMS\nroot = Path(sys.argv[1])\n"
        "changes = m.planted_in(root, ROOMS['crypto'])\n"
        "m.run(root, ROOMS['crypto'], changes, changes, m.Bounds(1, 9.0, minutes=0))\n"
        "sys.exit(m.run(root, ROOMS['crypto'], changes, changes, m.Bounds(2, 9.0)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert "[[survivor]]" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    assert "1 of 6 changes: 1 noticed" in done.stdout
    assert "6 of 6 changes: 4 noticed" in done.stdout
    blocks = ["[[survivor]]" + block.split("\n\n")[0] for block in done.stdout.split("[[survivor]]")[1:]]
    survivors = [tomllib.loads(block)["survivor"][0] for block in blocks]
    assert {each["where"] for each in survivors} == {"only_run"}
    assert "return a <= 3" in {each["becomes"] for each in survivors}
    assert (package / "m.py").read_text() == module
