"""Batches beside the same rows written and read bare, by the same driver, into the same tables, in the same run."""

from __future__ import annotations

import argparse
import gc
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import repeat
from pathlib import Path

import tokenvault as tv
from benchmarks.report import line_plot, progress
from benchmarks.servers import running_server
from benchmarks.single import MEMORY, PROGRAMS, REQUESTOR, row
from tests.postgres_server import PostgresServer, new_name
from tokenvault.keys import FileKeyStore, KeyStore
from tokenvault.model.pan import luhn_check_digit
from tokenvault.stores.port import SealedEvent, SealedRecord, TokenStore
from tokenvault.stores.postgres.copy import Copy, copy_of
from tokenvault.stores.postgres.statements import in_schema
from tokenvault.stores.postgres.store import PostgresTokenStore
from tokenvault.stores.sqlite.store import SqliteTokenStore

ROUNDS = 5
LARGE = 1_000_000
SIZES = (1_000, 10_000, 100_000, LARGE)
REQUESTORS = (tv.TokenRequestor(REQUESTOR, programs={program.name for program in PROGRAMS}),)
USE = tv.Transaction(id="tx-1", requestor=REQUESTOR)
CASES = ("postgres-issue", "postgres-detokenize", "sqlite", "memory")

Call = Callable[[], object]

_rates: dict[str, list[tuple[float, float]]] = {}
"""By what was measured: how many items, and how many a second."""


def cards(count: int) -> Iterator[tuple[str, str]]:
    """Cards that are all different, with an expiry."""
    for number in range(count):
        payload = f"411111{number:09}"
        yield payload + luhn_check_digit(payload), "2049-12"


def vault_of(keys: KeyStore, store: TokenStore) -> tv.Vault:
    """A vault with the programs of the benchmark."""
    return tv.Vault(keys, store, programs=PROGRAMS, requestors=REQUESTORS)


def postgres(keys: KeyStore, sizes: Sequence[int] = SIZES, cases: Sequence[str] = CASES) -> None:
    """issue_many and detokenize_many, beside COPY and SELECT."""
    print("\nBatches, PostgreSQL, keys in the process: microseconds an item, and the share of the bare speed")
    row("", "batch", "bare", "share")
    with running_server() as server:
        for size in sizes:
            progress(f"batches of {size:,} into PostgreSQL")
            if "postgres-issue" in cases:
                _issue_into_postgres(server, keys, size)
            if "postgres-detokenize" in cases:
                _detokenize_from_postgres(server, keys, size)


class RecordingStore(PostgresTokenStore):
    """Notes the records that it copies, a chunk each, in `chunks`."""

    chunks: list[Copy]

    async def _insert_batch(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]
    ) -> list[str]:
        existing = await super()._insert_batch(records, events)
        if not existing:
            self.chunks.append(copy_of(records))
        return existing


def _issue_into_postgres(server: PostgresServer, keys: KeyStore, size: int) -> None:
    listed = list(cards(size))

    def issue() -> tuple[float, list[Copy]]:
        schema = new_name()
        with closing(RecordingStore(server.url(), schema=schema)) as store:
            tv.provision(keys, store)
            store.chunks = []
            with vault_of(keys, store) as vault:
                seconds = _seconds(lambda: vault.issue_many(listed, requestor=REQUESTOR, program="random"))
        return seconds, store.chunks

    def bare(chunks: list[Copy]) -> float:
        twin = new_name()
        with closing(PostgresTokenStore(server.url(), schema=twin)) as store:
            tv.provision(keys, store)

        def write() -> None:
            for each in chunks:
                with connection.transaction(), connection.cursor().copy(in_schema(each.sql, twin)) as copy:
                    copy.write(each.rows)

        with server.raw() as connection:
            return _seconds(write)

    times: list[tuple[float, float]] = []
    for _ in range(_rounds(size)):
        seconds, chunks = issue()
        times.append((seconds, bare(chunks)))
    _tell("PostgreSQL, issue_many", "PostgreSQL, COPY", size, times)


def _detokenize_from_postgres(server: PostgresServer, keys: KeyStore, size: int) -> None:
    schema = new_name()
    with closing(PostgresTokenStore(server.url(), schema=schema)) as store:
        tv.provision(keys, store)
        with vault_of(keys, store) as vault, server.raw() as connection:
            issued = vault.issue_many(cards(size), requestor=REQUESTOR, program="random")
            tokens = [token.decode() for token in issued.tokens.tolist()]
            sql = (
                "SELECT token, reference, pan_fingerprint, requestor, program, revision, key_version, body, seal"
                f' FROM "{schema}".tokens WHERE token = ANY(%s)'
            )

            def bare() -> None:
                cursor = connection.cursor(binary=True)
                for start in range(0, size, 8_000):
                    cursor.execute(sql, (tokens[start : start + 8_000],)).fetchall()

            def detokenize() -> None:
                if vault.detokenize_many(zip(tokens, repeat(USE), strict=False)).failed:
                    raise AssertionError("a token was refused")

            connection.execute(f'VACUUM ANALYZE "{schema}".tokens')
            bare()
            times = [(_seconds(detokenize), _seconds(bare)) for _ in range(_rounds(size))]
    _tell("PostgreSQL, detokenize_many", "PostgreSQL, SELECT", size, times)


def sqlite(keys: KeyStore, folder: Path, sizes: Sequence[int] = SIZES) -> None:
    """issue_many and detokenize_many, beside executemany and SELECT."""
    print("\nBatches, SQLite, keys in the process: microseconds an item, and the share of the bare speed")
    row("", "batch", "bare", "share")
    for size in sizes:
        progress(f"batches of {size:,} into SQLite")
        listed = list(cards(size))
        times = []
        uses = []
        for number in range(_rounds(size)):
            path, twin = folder / f"{size}-{number}.db", folder / f"{size}-{number}-bare.db"
            with closing(SqliteTokenStore(path)) as store, closing(SqliteTokenStore(twin)) as other:
                tv.provision(keys, store)
                tv.provision(keys, other)
                with vault_of(keys, store) as vault:
                    batch, tokens = _issue(vault, listed)
                    use = _detokenize(vault, tokens)
                times.append((batch, _executemany(path, twin)))
                uses.append((use, _select(path, tokens)))
            path.unlink()
            twin.unlink()
        _tell("SQLite, issue_many", "SQLite, executemany", size, times)
        _tell("SQLite, detokenize_many", "SQLite, SELECT", size, uses)


def _issue(vault: tv.Vault, listed: list[tuple[str, str]]) -> tuple[float, list[str]]:
    issued: list[tv.IssueBatchResult[tv.TokenInfo]] = []
    seconds = _seconds(lambda: issued.append(vault.issue_many(listed, requestor=REQUESTOR, program="random")))
    return seconds, [token.decode() for token in issued[0].tokens.tolist()]


def _detokenize(vault: tv.Vault, tokens: list[str]) -> float:
    return _seconds(lambda: vault.detokenize_many(zip(tokens, repeat(USE), strict=False)))


def _executemany(path: Path, twin: Path) -> float:
    with closing(sqlite3.connect(path)) as connection:
        records = connection.execute("SELECT * FROM tokens ORDER BY rowid").fetchall()
        events = connection.execute(
            "SELECT stream, number, reference, body, mac FROM events WHERE length(body) > 200 ORDER BY rowid"
        ).fetchall()
    with closing(sqlite3.connect(twin, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")

        def write() -> None:
            for number, event in enumerate(events):
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    records[8_000 * number : 8_000 * (number + 1)],
                )
                connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", event)
                connection.execute("COMMIT")

        return _seconds(write)


def _select(path: Path, tokens: list[str]) -> float:
    sql = f"SELECT * FROM tokens WHERE token IN ({', '.join('?' * 256)})"
    with closing(sqlite3.connect(path)) as connection:

        def read() -> None:
            for start in range(0, len(tokens), 256):
                wanted = tokens[start : start + 256]
                connection.execute(sql, wanted + wanted[-1:] * (256 - len(wanted))).fetchall()

        return _seconds(read)


def memory(keys_uri: str) -> None:
    """Peak memory of issue_many over an iterator, in a process of its own."""
    print(f"\nPeak memory of issue_many over an iterator of {LARGE:,} cards, above the idle process")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(  # noqa: S603 # runs this file, with arguments made here
            [sys.executable, "-m", "benchmarks.batches", "--peak", keys_uri, f"sqlite:///{folder}/vault.db"],
            capture_output=True,
            text=True,
            check=True,
        )
    row("megabytes, aim at most 300", done.stdout.strip())


def peak(keys_uri: str, store_uri: str) -> float:
    """Megabytes that a batch takes at most, above what the process takes with a vault open."""
    with closing(tv.open_key_store(keys_uri)) as keys, closing(tv.open_token_store(store_uri)) as store:
        tv.provision(keys, store)
        with vault_of(keys, store) as vault:
            vault.issue_many(cards(10), requestor=REQUESTOR, program="random")
            idle = _resident_kib("VmRSS")
            outcomes = vault.issue_many(cards(LARGE), requestor=REQUESTOR, program="random")
            used = _resident_kib("VmHWM")  # ru_maxrss would count what the parent had when it forked
            if outcomes.failed:
                raise AssertionError("a card was refused")
    return (used - idle) / 1_024


def _resident_kib(which: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(which)).split()[1])


def _seconds(call: Call) -> float:
    gc.collect()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _rounds(size: int) -> int:
    return 1 if size >= LARGE else ROUNDS


def _tell(name: str, plain: str, size: int, times: Sequence[tuple[float, float]]) -> None:
    batch = statistics.median(first for first, _ in times)
    bare = statistics.median(second for _, second in times)
    share = statistics.median(second / first for first, second in times)
    for what, seconds in ((name, batch), (plain, bare)):
        _rates.setdefault(what, []).append((size, size / seconds))
    row(
        f"{name.partition(', ')[2]}, {size:,}",
        f"{batch / size * 1e6:.2f}",
        f"{bare / size * 1e6:.2f}",
        f"{share:.2f}",
    )


def main(sizes: Sequence[int] = SIZES, cases: Sequence[str] = CASES, *, write: bool = False) -> None:
    """All of it, or some cases, with keys of its own; `write` draws them."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        folder = Path(name)
        (folder / "passphrase").write_text("correct horse battery staple")
        uri = f"file:{folder}/keys.json?passphrase-source=file:{folder}/passphrase"
        with closing(FileKeyStore(uri)) as keys:
            tv.provision(keys, tv.open_token_store("memory:"))
            if any(case.startswith("postgres") for case in cases):
                postgres(keys, sizes, cases)
            if "sqlite" in cases:
                sqlite(keys, folder, sizes)
        if "memory" in cases:
            memory(uri)
    if write:
        line_plot("batches", "Batches and the bare statements", "items of a batch", "items a second", _rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    parser.add_argument("--rows", type=int, action="append", help="in a batch; may be repeated")
    parser.add_argument("--peak", nargs=2, metavar=("KEYS", "STORE"), help="of memory, in this process")
    given = parser.parse_args()
    if given.peak:
        print(f"{peak(*given.peak):.0f}")
    else:
        main(given.rows or SIZES, given.case or CASES)
