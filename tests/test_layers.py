"""Imports point downwards only: pure core, ports, flows, faces, adapters."""

from __future__ import annotations

import ast
from pathlib import Path

import tokenvault

ROOT = Path(tokenvault.__file__).parent

# Each layer may import from itself and from those before it.
LAYERS = [
    {"errors", "boundary", "violation"},
    {"checks", "controls", "decision", "domain", "domain_document", "events", "formats", "iso", "lifecycle", "pan",
     "pan_columns", "programs", "records", "token_info", "transaction", "usage", "_blocks", "_block_columns", "ccm",
     "ccm_columns", "cmac", "cmac_columns", "digit_columns", "text_columns", "record_columns", "random_columns",
     "arrow_columns", "vaultless_columns", "ff1", "ff1_columns", "ff1_shape", "kdf", "sealing", "sealing_columns",
     "merkle", "checkpoint", "audit", "audit.event", "audit.report", "keys.port", "keys.local", "stores.port",
     "stores.read_columns", "stores.record_batch", "batch_events", "chunks", "outcomes"},
    {"keyring", "journal", "audit.macs", "flows", "flows.batches", "flows.cards", "flows.closing", "flows.core",
     "flows.drawing", "flows.history", "flows.issue_many", "flows.reading", "flows.standing", "flows.use_many",
     "flows.issue", "flows.manage", "flows.opening", "flows.ports", "flows.requests", "flows.trail",
     "flows.use", "workers"},
    {"async_vault", "joining", "vault", "vaultless", "audit.proof", "audit.reading", "audit.records", "audit.stream",
     "audit.signatures", "audit.suspects", "audit.verification"},
    {"keys", "stores"},  # adapters, by the start of their names
    {"", "testing"},
]  # fmt: skip
PURE = LAYERS[1] - {
    "keys.local",
    "random_columns",
    "record_columns",
    "sealing",
    "sealing_columns",
}  # those that need OpenSSL's state, fresh nonces, or fresh random numbers
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


def modules() -> dict[str, set[str]]:
    """Every module of the package, with what it imports."""
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
    return found


def layer(name: str) -> int:
    for level, members in enumerate(LAYERS):
        if name in members:
            return level
    return next(level for level, members in enumerate(LAYERS) if name.split(".", maxsplit=1)[0] in members)


def test_imports_point_downwards() -> None:
    every = modules()
    assert len(every) > 30
    for name, imports in every.items():
        for imported in imports:
            target = imported.removeprefix("tokenvault").lstrip(".")
            if imported.split(".")[0] != "tokenvault" or target not in every or target == "":
                continue
            assert layer(target) <= layer(name), f"{name} imports {target}, which lies above it"


def test_adapters_do_not_know_of_each_other() -> None:
    every = modules()
    for name, imports in every.items():
        other = {"keys": "stores", "stores": "keys"}.get(name.split(".")[0])
        if other and layer(name) == 4:
            assert not any(imported.startswith(f"tokenvault.{other}") for imported in imports), name


def test_the_pure_core_has_no_io_no_clock_and_no_randomness() -> None:
    every = modules()
    for name in PURE:
        assert not {imported.split(".")[0] for imported in every[name]} & IMPURE, name


def test_no_module_holds_two_ideas() -> None:
    """Past 400 lines a module wants to be two."""
    assert not [path.name for path in ROOT.rglob("*.py") if len(path.read_text().splitlines()) > 400]
