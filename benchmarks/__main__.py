"""What one call costs. Prints tables; asserts nothing about time."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sqlite3
import tempfile
from pathlib import Path

import cryptography
import numpy
import psycopg
from cryptography.hazmat.backends.openssl.backend import backend

from benchmarks import audit, batches, ff1, growth, postgresql, report, single, threads
from tests import softhsm
from tests.postgres_server import PostgresServer

CPU = Path("/proc/cpuinfo")
MEMORY = Path("/dev/shm")  # noqa: S108 # only looked for


def main() -> None:
    """Run all, in temporary folders, with a SoftHSM token and a PostgreSQL server of its own."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put figures into the documents")
    parser.add_argument(
        "--tokens", type=int, default=growth.TOKENS[-1], help="how far the growth series goes"
    )
    arguments = parser.parse_args()
    write = arguments.write
    with report.section("machine", write=write):
        _machine()
    with report.section("single", write=write):
        single.ff1_scalar()
        if MEMORY.is_dir():  # without waits for a disk, so that the vault's share is not that of cold caches
            with tempfile.TemporaryDirectory(dir=MEMORY) as name:
                single.vault_share(Path(name), "a memory disk")
        with tempfile.TemporaryDirectory() as name:
            single.vault_share(Path(name), "the temporary folder's disk")
    with tempfile.TemporaryDirectory() as name:
        softhsm.set_up(Path(name))
        ff1.main(softhsm.new_token(Path(name)), write=write)
        with report.section("module", write=write):
            single.module_calls(softhsm.new_token(Path(name)))
            threads.module_threads()
        with report.section("audit", write=write):
            audit.main(softhsm.new_token(Path(name)), Path(name))
    with report.section("batches", write=write, plots=("batches",)):
        batches.main(write=write)
    server = PostgresServer(place=tempfile.gettempdir(), shared_buffers="256MB", max_wal_size="2GB")
    try:
        with tempfile.TemporaryDirectory() as name, report.section("postgresql", write=write):
            postgresql.single_calls(server, Path(name))
            postgresql.batches(server)
        with (
            tempfile.TemporaryDirectory() as name,
            report.section("growth", write=write, plots=("growth",)),
        ):
            growth.growth(server, Path(name), arguments.tokens, write=write)
    finally:
        server.remove()


def _machine() -> None:
    model = re.search(r"model name\s*: (.*)", CPU.read_text()) if CPU.exists() else None
    print(
        f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
        f" {platform.release().partition('-')[0]}\n"
        f"Python {platform.python_version()}, numpy {numpy.__version__}, cryptography {cryptography.__version__}"
        f" ({backend.openssl_version_text()}), SQLite {sqlite3.sqlite_version}, psycopg {psycopg.__version__}"
    )


if __name__ == "__main__":
    main()
