"""Generates the blocking faces of the vault and of maintenance from the awaited ones, so that both are one text.

python -m scripts.blocking_vault            writes them
python -m scripts.blocking_vault --check    fails if one is not what this writes

`async def` becomes `def`, `await flow` becomes `run(flow)`, and the names and sentences of the tables below are
replaced. Each of them has to occur: a table that no longer fits the text is an error.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

PACKAGE: Final = Path(__file__).resolve().parent.parent / "src" / "tokenvault"

NAMES: Final = {
    "AsyncTokenStore": "TokenStore",
    "AsyncVault": "Vault",
    "AwaitedExchange": "BlockingExchange",
    "LoopRuntime": "BlockingRuntime",
    "__aexit__": "__exit__",
    "async_boundary": "boundary",
    "async_call_boundary": "call_boundary",
    "exchange_awaited": "exchange_blocking",
    "open_async_token_store": "open_token_store",
    "provision_async": "provision",
    "store_with_coroutines": "store_without_coroutines",
}

SENTENCES: Final = (
    ("The vault for asyncio: issues", "The vault: issues"),
    (
        "`blocking` is generated from this module by `python -m scripts.blocking_vault`.",
        "Generated from `awaited` by `python -m scripts.blocking_vault`: change that module, and run this.",
    ),
    (
        "import TokenVaultError, async_boundary, async_call_boundary, boundary, boundary_init\n",
        "import TokenVaultError, boundary, boundary_init, call_boundary\n",
    ),
    (
        "from tokenvault.runtime import Clock, LoopRuntime\n",
        "from tokenvault.runtime import BlockingRuntime, Clock, run\n",
    ),
    (
        """\
    `async with` opens it, once, and raises what is named below.

    A call that is cancelled leaves nothing half done: a use is counted and recorded, or neither, and a
    retry with the same transaction gets its answer. As with any error, `update_card` may have changed some tokens.

    Keys in a module are used from threads of the vault's own, at most 16. Keys that work in this process take some
    10 µs and are used on the event loop: it is blocked while a chunk of a batch is sealed.
""",
        """\
    It opens when it is made. Safe to share between threads; a forked child may go on with it.
""",
    ),
    ("run(self.close())", "self.close()"),
)

EXCHANGE_NAMES: Final = {
    "AwaitedExchange": "BlockingExchange",
    "AwaitedFace": "BlockingFace",
    "async_boundary": "boundary",
    "async_call_boundary": "call_boundary",
}

EXCHANGE_SENTENCES: Final = (
    ("otherwise than for payments, for asyncio.", "otherwise than for payments."),
    (
        "`exchange_blocking` is generated from this module by `python -m scripts.blocking_vault`.",
        "Generated from `exchange_awaited` by `python -m scripts.blocking_vault`: change that, and run this.",
    ),
    (
        "from tokenvault.vault import acknowledging",
        "from tokenvault.runtime import run\nfrom tokenvault.vault import acknowledging",
    ),
)

MAINTENANCE_NAMES: Final = {
    "AsyncTokenStore": "TokenStore",
    "LoopRuntime": "BlockingRuntime",
    "async_boundary": "boundary",
    "store_with_coroutines": "store_without_coroutines",
}

MAINTENANCE_SENTENCES: Final = (
    (" beside running vaults, for asyncio.", " beside running vaults."),
    (
        "`blocking` is generated from this module by `python -m scripts.blocking_vault`.",
        "Generated from `awaited` by `python -m scripts.blocking_vault`: change that module, and run this.",
    ),
    (
        "from tokenvault.runtime import Clock, LoopRuntime\n",
        "from tokenvault.runtime import BlockingRuntime, Clock, run\n",
    ),
)


@attrs.frozen
class Faces:
    """The awaited face, the blocking one, and what is replaced in the text of the first."""

    source: Path
    target: Path
    names: Mapping[str, str]
    sentences: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, place: str, names: Mapping[str, str], sentences: Sequence[tuple[str, str]]) -> Faces:
        """The faces at a place of the package: a folder, and how their names begin."""
        return cls(PACKAGE / f"{place}awaited.py", PACKAGE / f"{place}blocking.py", names, sentences)


VAULT: Final = Faces.of("vault/", NAMES, SENTENCES)
MAINTENANCE: Final = Faces.of("maintenance/", MAINTENANCE_NAMES, MAINTENANCE_SENTENCES)
EXCHANGE: Final = Faces.of("vault/exchange_", EXCHANGE_NAMES, EXCHANGE_SENTENCES)
FACES = (VAULT, EXCHANGE, MAINTENANCE)


def blocking(source: str, faces: Faces = VAULT) -> str:
    """The text of the blocking face. Raises ValueError where a table does not fit the text."""
    text = _without_awaits(source)
    for awaited, replacement in faces.sentences:
        if text.count(awaited) != 1:
            raise ValueError(f"the text has this {text.count(awaited)} times, not once: {awaited}")
        text = text.replace(awaited, replacement)
    for name, replacement in faces.names.items():
        text, count = re.subn(rf"\b{name}\b", replacement, text)
        if not count:
            raise ValueError(f"the text does not have {name}")
    return f"# fmt: off\n{text}"


def _without_awaits(source: str) -> str:
    """The text with `def` for `async def`, and `run(flow)` for `await flow`; all else as it stands."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]  # positions are in bytes
    edits: list[tuple[int, int, bytes, bytes]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AsyncFunctionDef):
            edits.append((node.lineno, node.col_offset, b"async ", b""))
        elif isinstance(node, ast.Await):
            edits.append((node.lineno, node.col_offset, b"await ", b"run("))
            edits.append((node.value.end_lineno or 0, node.value.end_col_offset or 0, b"", b")"))
    for line, column, old, new in sorted(edits, reverse=True):
        text = lines[line - 1]
        if not text[column:].startswith(old):
            raise ValueError(f"line {line} does not have {old.decode()!r} where it should")
        lines[line - 1] = text[:column] + new + text[column + len(old) :]
    return b"".join(lines).decode()


def main(arguments: list[str]) -> int:
    """Write the blocking faces, or check them."""
    if arguments not in ([], ["--check"]):
        print(__doc__)
        return 2
    wrong = 0
    for faces in FACES:
        text = blocking(faces.source.read_text(encoding="utf-8"), faces)
        if not arguments:
            faces.target.write_text(text, encoding="utf-8")
        elif faces.target.read_text(encoding="utf-8") != text:
            print(
                f"{faces.target} is not what {faces.source.name} gives: run python -m scripts.blocking_vault"
            )
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
