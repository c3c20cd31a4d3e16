"""Functions have at most 60 lines, modules at most 400."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import sizes


def function(name: str, lines: int, keyword: str = "def") -> str:
    return f"{keyword} {name}():\n" + "    pass\n" * (lines - 1)


def test_the_longest_allowed_are_not_named(tmp_path: Path) -> None:
    (tmp_path / "even.py").write_text(function("even", 60) + "\n" * 340)
    assert list(sizes.too_long(tmp_path)) == []


def test_a_longer_function_or_method_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("@cached\n" + function("longer", 61))
    (tmp_path / "inner").mkdir()
    inner = function("awaited", 61, "async def").replace("\n", "\n    ").rstrip()
    (tmp_path / "inner" / "method.py").write_text(f"class Vault:\n    {inner}\n")
    name = tmp_path.name
    assert list(sizes.too_long(tmp_path)) == [
        f"{name}/inner/method.py:2: awaited has 61 lines",
        f"{name}/long.py:2: longer has 61 lines",
    ]


def test_a_longer_module_is_named(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("\n" * 401)
    assert list(sizes.too_long(tmp_path)) == [f"{tmp_path.name}/long.py: 401 lines"]


def test_a_folder_without_modules_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(sizes.too_long(tmp_path))
