"""Names functions of the library above 60 lines and modules above 400: each wants to be two.

python -m scripts.sizes    fails when there is one

Docstrings do not count: they tell users what to call, and a face has many. Complexity and statements are ruff's
(C901, PLR0915). Ruff counts no lines.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parent.parent / "src" / "tokenvault"
MODULE_LINES_MAX: Final = 400
FUNCTION_LINES_MAX: Final = 60


def too_long(folder: Path) -> Iterator[str]:
    """The modules and functions of a folder that are too long, by name and lines. Decorators do not count."""
    paths = sorted(folder.rglob("*.py"))
    if not paths:
        raise FileNotFoundError(f"{folder} has no modules")
    for path in paths:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(folder.parent)
        tree = ast.parse(text)
        told = sum(map(_docstring_lines, ast.walk(tree)))
        if (lines := len(text.splitlines()) - told) > MODULE_LINES_MAX:
            yield f"{name}: {lines} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1 - _docstring_lines(node)
                if lines > FUNCTION_LINES_MAX:
                    yield f"{name}:{node.lineno}: {node.name} has {lines} lines"


def _docstring_lines(node: ast.AST) -> int:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return 0
    docstring = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    return 0 if docstring is None else (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1


def main() -> int:
    """Print what is too long."""
    found = list(too_long(PACKAGE))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
