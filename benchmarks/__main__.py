"""What one call costs. Prints tables; asserts nothing about time."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cryptography
import numpy
import psycopg
from cryptography.hazmat.backends.openssl.backend import backend

from benchmarks import (
    audit,
    batches,
    ff1,
    growth,
    observers,
    postgresql,
    report,
    rotation,
    single,
    threads,
)
from benchmarks.servers import running_server
from tests import softhsm
from tests.postgres_server import PostgresServer

CPU = Path("/proc/cpuinfo")


def main() -> None:
    """Run all, or some sections, in temporary folders, with SoftHSM tokens and a PostgreSQL server of its own."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put figures into the documents")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this section; may be repeated")
    parser.add_argument(
        "--tokens", type=int, default=growth.TOKENS[-1], help="how far the growth series goes"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        softhsm.set_up(Path(name))
        for section in arguments.only or SECTIONS:
            SECTIONS[section](arguments)


def _machine(arguments: argparse.Namespace) -> None:
    model = re.search(r"model name\s*: (.*)", CPU.read_text()) if CPU.exists() else None
    with report.section("machine", write=arguments.write):
        print(
            f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
            f" {platform.release().partition('-')[0]}\n"
            f"Python {platform.python_version()} ({platform.python_compiler()}), numpy {numpy.__version__},"
            f" cryptography {cryptography.__version__} ({backend.openssl_version_text()}),"
            f" SQLite {sqlite3.sqlite_version}, psycopg {psycopg.__version__}"
        )


def _ff1(arguments: argparse.Namespace) -> None:
    ff1.main(_token(), write=arguments.write)


def _single(arguments: argparse.Namespace) -> None:
    with report.section("single", write=arguments.write):
        single.ff1_scalar()
        if (
            single.MEMORY.is_dir()
        ):  # without waits for a disk, so that the vault's share is not that of cold caches
            with tempfile.TemporaryDirectory(dir=single.MEMORY) as name:
                single.vault_share(Path(name), "a memory disk")
        with tempfile.TemporaryDirectory() as name:
            single.vault_share(Path(name), "the temporary folder's disk")


def _module(arguments: argparse.Namespace) -> None:
    with report.section("module", write=arguments.write):
        single.module_calls(_token())
        threads.module_threads(_token)


def _audit(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name, report.section("audit", write=arguments.write):
        audit.main(_token(), Path(name))


def _batches(arguments: argparse.Namespace) -> None:
    with report.section("batches", write=arguments.write, plots=("batches",)):
        batches.main(write=arguments.write)


def _postgresql(arguments: argparse.Namespace) -> None:
    with (
        _server() as server,
        tempfile.TemporaryDirectory() as name,
        report.section("postgresql", write=arguments.write),
    ):
        postgresql.single_calls(server, Path(name))
        postgresql.batches(server)


def _growth(arguments: argparse.Namespace) -> None:
    with (
        _server() as server,
        tempfile.TemporaryDirectory() as name,
        report.section("growth", write=arguments.write, plots=("growth",)),
    ):
        growth.growth(server, Path(name), arguments.tokens, write=arguments.write)


def _rotation(arguments: argparse.Namespace) -> None:
    with (
        _server() as server,
        tempfile.TemporaryDirectory() as name,
        report.section("rotation", write=arguments.write),
    ):
        rotation.main(server, Path(name))


def _observers(arguments: argparse.Namespace) -> None:
    with (
        _server() as server,
        tempfile.TemporaryDirectory() as name,
        report.section("observers", write=arguments.write),
    ):
        observers.main(server, Path(name))


def _token() -> str:
    return softhsm.new_token(Path(os.environ["SOFTHSM2_CONF"]).parent)


def _server() -> AbstractContextManager[PostgresServer]:
    return running_server(tempfile.gettempdir(), own_core=True, shared_buffers="256MB", max_wal_size="2GB")


SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "machine": _machine,
    "ff1": _ff1,
    "single": _single,
    "module": _module,
    "audit": _audit,
    "postgresql": _postgresql,
    "batches": _batches,
    "growth": _growth,
    "rotation": _rotation,
    "observers": _observers,
}


if __name__ == "__main__":
    main()
