"""Names functions of the library above 60 lines and modules above 400: each wants to be two.

python -m scripts.sizes    fails when there is one

Complexity and statements are ruff's (C901, PLR0915). Ruff counts no lines.
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
        if (lines := len(text.splitlines())) > MODULE_LINES_MAX:
            yield f"{name}: {lines} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    yield f"{name}:{node.lineno}: {node.name} has {lines} lines"


def main() -> int:
    """Print what is too long."""
    found = list(too_long(PACKAGE))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
