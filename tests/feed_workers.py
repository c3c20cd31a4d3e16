"""A process that follows the audit trail into a file, and may be killed: so that spawn can import it."""

from __future__ import annotations

import os
from pathlib import Path

import tokenvault as tv

_TAB = b"\t"


def whole(file: Path) -> list[list[bytes]]:
    """The lines that were written whole, each with its position; what follows the last of them is cut off."""
    content = file.read_bytes() if file.exists() else b""
    kept = content[: content.rfind(b"\n") + 1]
    if kept != content:
        os.truncate(file, len(kept))
    return [line.split(_TAB) for line in kept.splitlines()]


def follow_into(uri: str, url: str, file: Path) -> None:
    """Go on where the file ends: each line is written with its position in one step."""
    lines = whole(file)
    keys, store = tv.open_key_store(uri), tv.open_token_store(url)
    with file.open("ab", buffering=0) as target:
        after = lines[-1][1].decode() if lines else None
        for line in tv.export_audit(store, keys=keys, follow=True, after=after):
            target.write(f"{line}\t{line.position}\n".encode("ascii"))
