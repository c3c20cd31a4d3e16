"""The house: rooms in one order, imports that run down it, a core without input and output, modules of one idea."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

import tokenvault
from scripts import sizes

ROOT = Path(tokenvault.__file__).parent

# Each room may import from those of the floors before it, and from no other on its own.
ORDER = (
    "interrupts < errors < columns, runtime < crypto, model, stores < keys < audit, rules, vaultless < records"
    " < vault < maintenance, observers, testing < cli"
)

FLOORS = {room.strip(): floor for floor, rooms in enumerate(ORDER.split("<")) for room in rooms.split(",")}

PURE_ROOMS = {"columns", "crypto", "model", "rules"}
PURE_MODULES = {
    "audit.batch_event",
    "audit.checkpoint",
    "audit.event",
    "audit.export",
    "audit.merkle",
    "audit.verify.report",
    "keys.port",
    "records.layout",
    "records.record",
    "records.token_info",
    "stores.found_records",
    "stores.new_records",
    "stores.port",
    "vault.batch.results",
    "vaultless.arrow",
    "vaultless.containers",
    "vaultless.shapes",
    "vaultless.texts",
}
NOT_PURE = {"columns.random", "crypto.local_cipher"}  # fresh random numbers, and OpenSSL's state of a thread
IMPURE = {
    "os",
    "time",
    "random",
    "secrets",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
    "pkcs11",
    "asyncio",
    "io",
}


@functools.cache
def modules() -> dict[str, set[str]]:
    """Every module of the package but for its public face, with what it imports, in full."""
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        imports: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imports |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imports |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        found[name] = imports
    del found[""]
    return found


def within(imports: set[str]) -> set[str]:
    """The modules of the package among what is imported."""
    every = modules()
    names = {name.removeprefix("tokenvault.") for name in imports if name.startswith("tokenvault.")}
    return names & every.keys()


def room(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def test_the_top_of_the_package_is_the_rooms_of_the_order() -> None:
    every = {
        path.name.removesuffix(".py")
        for path in ROOT.iterdir()
        if path.name not in ("__pycache__", "py.typed")
    }
    assert every == {*FLOORS, "__init__"}


def test_imports_run_down_the_order_of_rooms() -> None:
    every = modules()
    assert len(every) > 100
    for name, imports in every.items():
        for target in within(imports):
            assert room(target) == room(name) or FLOORS[room(target)] < FLOORS[room(name)], (
                f"{name} imports {target}, which does not lie below it"
            )


def test_no_import_runs_in_a_circle() -> None:
    graph = {name: within(imports) - {name} for name, imports in modules().items()}
    # A package is imported before what lies in it; what its face hands on is no import of what lies in it.
    faces = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    trimmed = {name: targets - faces for name, targets in graph.items() if name not in faces}
    assert len(list(graphlib.TopologicalSorter(trimmed).static_order())) == len(trimmed)


def test_adapters_do_not_know_of_each_other() -> None:
    for name, imports in modules().items():
        other = {"keys": "stores", "stores": "keys"}.get(room(name))
        targets = within(imports) - {"stores.forks"}  # no adapter: there is one order of holding still
        assert not any(room(target) == other for target in targets), name


def test_the_pure_core_has_no_io_no_clock_and_no_randomness() -> None:
    every = modules()
    pure = {name for name in every if room(name) in PURE_ROOMS} - NOT_PURE
    assert every.keys() >= PURE_MODULES | NOT_PURE
    for name in pure | PURE_MODULES:
        assert not {imported.split(".")[0] for imported in every[name]} & IMPURE, name


def test_no_module_holds_two_ideas() -> None:
    """Past 400 lines, docstrings apart, a module wants to be two."""
    assert not [line for line in sizes.too_long(ROOT) if line.endswith(" lines") and " has " not in line]


def test_the_package_shows_its_public_names_and_its_rooms_and_nothing_else() -> None:
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert set(dir(tokenvault)) == {*tokenvault.__all__, *packages}
    assert all(hasattr(tokenvault, name) for name in tokenvault.__all__)
