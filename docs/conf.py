"""How Sphinx builds the site from this folder: `make docs`."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from pygments.lexers.special import TextLexer
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from types import ModuleType

    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

project = "tokenvault"
author = "The tokenvault authors"
release = getattr(importlib.import_module("tokenvault"), "__version__", "")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["benchmarks", "_static"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!tokenvault).*")
]  # other projects' names; the site is read offline

# Markdown
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# Docstrings: a name in single backticks is a link where it is one of ours, else code.
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# HTML: the theme asks no other host for anything, and neither do we.
html_theme = "furo"
html_title = f"tokenvault {release}".rstrip()
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def module_of(name: str) -> ModuleType:
    """A public module, or an attribute that is one, such as `tokenvault.ff1`."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        parent, _, last = name.rpartition(".")
        found: ModuleType = getattr(importlib.import_module(parent), last)
        return found


def is_error(found: object) -> bool:
    """Whether this is an exception's class."""
    return inspect.isclass(found) and issubclass(found, BaseException)


def names_in(text: str) -> dict[str, list[str]]:
    """The names that a page's `public` directives list, by module."""
    found: dict[str, list[str]] = {}
    listed: list[str] | None = None
    for line in text.splitlines():
        if line.startswith(".. public:: "):
            listed = found.setdefault(line.removeprefix(".. public:: ").strip(), [])
        elif line.startswith("   ") and listed is not None:
            listed += [] if line.lstrip().startswith(":") else line.split()
        elif line.strip():
            listed = None
    return found


def listed_names(folder: Path) -> dict[str, list[str]]:
    """The names that all pages of the reference list, by module, each as often as it stands there."""
    found: dict[str, list[str]] = {}
    for page in sorted(folder.glob("*.rst")):
        for module, names in names_in(page.read_text(encoding="utf-8")).items():
            found.setdefault(module, []).extend(names)
    return found


class Public(SphinxDirective):
    """Documents public names of a module from their docstrings.

    With `:rest:` also those of the module's `__all__` that no page of the reference lists, so that a new name is
    never left out: all of them, or "errors", or "others".
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"rest": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """The names, each as autodoc writes it."""
        module_name = self.arguments[0]
        module = module_of(module_name)
        names = " ".join(self.content).split()
        if "rest" in self.options:
            listed = {
                name
                for found in listed_names(ROOT / "docs" / "reference").values()
                for name in found
            }
            rest = [
                name for name in getattr(module, "__all__", ()) if name not in listed
            ]
            rest = [
                name for name in rest if not inspect.ismodule(getattr(module, name))
            ]
            kinds = {"": (True, False), "errors": (True,), "others": (False,)}[
                self.options["rest"] or ""
            ]
            names += [name for name in rest if is_error(getattr(module, name)) in kinds]
        lines: list[str] = []
        for name in names:
            lines += [*self._lines(module_name, module, name), ""]
        section = nodes.section()
        section.document = self.state.document
        self.state.nested_parse(
            StringList(lines, self.get_source_info()[0]), self.content_offset, section
        )
        return section.children

    def _lines(self, module_name: str, module: ModuleType, name: str) -> list[str]:
        if not hasattr(module, name):
            raise self.error(f"{module_name} has no public name {name}")
        found = getattr(module, name)
        if inspect.isclass(found):
            kind = "exception" if is_error(found) else "class"
            undocumented = (
                ["   :undoc-members:"] if issubclass(found, enum.Enum) else []
            )
            # The vault's methods stand in two modules for each face.
            inherited = (
                ["   :inherited-members: BlockingFace, AwaitedFace"]
                if name in ("Vault", "AsyncVault")
                else []
            )
            return [
                f".. auto{kind}:: {module_name}.{name}",
                "   :members:",
                *inherited,
                *undocumented,
            ]
        kind = "function" if callable(found) else "data"
        return [f".. auto{kind}:: {module_name}.{name}"]


def link_to_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement
) -> nodes.Element | None:
    """Where an annotation names an object by the module that defines it: link to its public name instead.

    An object without a public name is shown without a link. So is a word in single backticks that names nothing
    of ours: it is code.
    """
    if node.get("refdomain") != "py":
        return None
    if node["reftype"] == "obj":
        return shown
    target = str(node["reftarget"])
    module_name, _, name = target.rpartition(".")
    defining = sys.modules.get(module_name)
    if not target.startswith("tokenvault.") or not hasattr(defining, name):
        return None
    python = env.domains.python_domain
    for public in (
        "tokenvault",
        "tokenvault.keys",
        "tokenvault.observers",
        "tokenvault.stores",
        "tokenvault.testing",
    ):
        if f"{public}.{name}" in python.objects and getattr(
            module_of(public), name
        ) is getattr(defining, name):
            return python.resolve_xref(
                env,
                node["refdoc"],
                app.builder,
                node["reftype"],
                f"{public}.{name}",
                node,
                shown,
            )
    return shown


def mark_names(
    app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]
) -> None:
    """Before napoleon: "NAME: text" at the start of a line tells of a member or an error, one paragraph each."""
    lines[:] = [
        re.sub(r"^(?=([A-Z][A-Z0-9_]+|[A-Z]\w+Error): )", ":", line) for line in lines
    ]
    if what == "property":
        _as_written[name] = list(lines)


def mend_fields(
    app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]
) -> None:
    """After napoleon: take back where it read a sentence with a colon in it as "type: text"."""
    if what == "property":
        lines[:] = _as_written.pop(name)
    lines[:] = [
        re.sub(r"^:returns: \*(.+?)\* -- ", r":returns: \1: ", line) for line in lines
    ]
    lines[:] = [
        re.sub(r"^:raises ([\w, ]+)\.: *$", r":raises \1: see there", line)
        for line in lines
    ]


_as_written: dict[str, list[str]] = {}


def shorten_signature(
    app: Sphinx,
    what: str,
    name: str,
    found: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Show no arguments of what is not called, and a domain that restricts nothing as such."""
    if inspect.isclass(found) and issubclass(found, enum.Enum):
        return "", None
    if signature is not None:
        signature = re.sub(r"^\(\*_?args.*, \*\*_?kwargs.*\)$", "", signature)
        signature = re.sub(
            r"= Domain\(requestors=None.*?follow_ups_without_original=False\)",
            "= Domain()",
            signature,
        )
    return signature, returns


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_lexer(
        "example", TextLexer
    )  # names and values of formats.md, which a test recomputes
    app.add_directive("public", Public)
    app.connect("missing-reference", link_to_public_name)
    app.connect("autodoc-process-docstring", mark_names, priority=400)
    app.connect("autodoc-process-docstring", mend_fields, priority=600)
    app.connect("autodoc-process-signature", shorten_signature)
