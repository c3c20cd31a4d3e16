"""What one call costs. Prints tables; asserts nothing about time."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import tempfile
from pathlib import Path

import cryptography

from benchmarks import audit, ff1, single
from tests import softhsm

MEMORY = Path("/dev/shm")  # noqa: S108 # only looked for


def main() -> None:
    """Run all, in temporary folders, with a SoftHSM token of its own. `--write` puts figures into the documents."""
    print(
        f"Python {platform.python_version()}, cryptography {cryptography.__version__},"
        f" SQLite {sqlite3.sqlite_version}, {platform.machine()}, {os.cpu_count()} cores"
    )
    single.ff1_scalar()
    if MEMORY.is_dir():  # without waits for a disk, so that the vault's share is not that of cold caches
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            single.vault_share(Path(name), "a memory disk")
    with tempfile.TemporaryDirectory() as name:
        single.vault_share(Path(name), "the temporary folder's disk")
    with tempfile.TemporaryDirectory() as name:
        softhsm.set_up(Path(name))
        ff1.main(softhsm.new_token(Path(name)), write="--write" in sys.argv)
        single.module_calls(softhsm.new_token(Path(name)))
        audit.main(softhsm.new_token(Path(name)), Path(name))


if __name__ == "__main__":
    main()
