"""Parts of the site: the reference lists each public name once, and drawings are what their script draws."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections import Counter
from pathlib import Path

import attrs

import tokenvault as tv

DOCS = Path(__file__).parent.parent / "docs"
DIRECTIVE = re.compile(r"^\.\. public:: (\S+)\n((?: {3}:rest:.*\n)?)\n?((?: {3}.+\n)*)", re.MULTILINE)


def directives() -> list[tuple[str, str, list[str]]]:
    """Module, `:rest:` and names of each list in the reference."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.rst"))
    return [(module, rest.strip(), names.split()) for module, rest, names in DIRECTIVE.findall(pages)]


def test_the_reference_lists_each_public_name_once() -> None:
    listed = Counter(name for _, _, names in directives() for name in names)
    assert len(listed) > 40
    assert set(listed.values()) == {1}
    for module, _, names in directives():
        assert set(names) <= set(importlib.import_module(module).__all__ if names else ())


def test_what_no_page_lists_is_documented_all_the_same() -> None:
    rests = {(module, rest) for module, rest, _ in directives() if rest}
    assert rests == {
        ("tokenvault", ":rest: errors"),
        ("tokenvault", ":rest: others"),
        ("tokenvault.ff1", ":rest:"),
        ("tokenvault.keys", ":rest:"),
        ("tokenvault.stores", ":rest:"),
        ("tokenvault.testing", ":rest:"),
    }


def test_the_glossary_and_the_model_use_names_that_exist() -> None:
    for page in ("glossary.md", "model/domains.md", "model/lifecycle.md", "model/limits.md", "tutorial.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        names = set(re.findall(r"\btv\.([A-Za-z_]+)", text))
        assert all(hasattr(tv, name) for name in names), page


def test_every_control_of_a_domain_is_in_the_table() -> None:
    table = set(re.findall(r"^\| \[?`(\w+)`", (DOCS / "model" / "domains.md").read_text(), re.MULTILINE))
    assert {field.name for field in attrs.fields(tv.Domain) if field.init} <= table


def test_drawings_are_current() -> None:
    spec = importlib.util.spec_from_file_location("draw", DOCS / "drawings" / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, draw in module.DRAWINGS.items():
        assert (DOCS / "drawings" / f"{name}.svg").read_text(encoding="utf-8") == draw()
    assert {path.stem for path in (DOCS / "drawings").glob("*.svg")} == set(module.DRAWINGS)
