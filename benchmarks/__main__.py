"""What one call costs. Prints tables; asserts nothing about time."""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
from pathlib import Path

import cryptography

from benchmarks import single
from tests import softhsm


def main() -> None:
    """Run all, in a temporary folder with a SoftHSM token of its own."""
    print(
        f"Python {platform.python_version()}, cryptography {cryptography.__version__},"
        f" SQLite {sqlite3.sqlite_version}, {platform.machine()}, {os.cpu_count()} cores"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        softhsm.set_up(folder)
        single.ff1_scalar()
        single.vault_share(folder)
        single.module_calls(softhsm.new_token(folder))


if __name__ == "__main__":
    main()
