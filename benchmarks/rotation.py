"""`reseal` beside `detokenize_many` on the same store, and what live calls cost while it runs."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from contextlib import closing
from datetime import timedelta
from itertools import count, repeat
from multiprocessing.synchronize import Event
from pathlib import Path

import attrs

import tokenvault as tv
from benchmarks.batches import USE, cards, vault_of
from benchmarks.report import progress
from benchmarks.single import PROGRAMS, REQUESTOR, row
from tests.postgres_server import PostgresServer
from tokenvault import maintenance
from tokenvault.keys import KeyPurpose, KeyStore
from tokenvault.stores.port import TokenStore

TOKENS = 100_000
PAGES = (1_000, 8_000)
ROUNDS = 3
CALLS = 2_000
TURNS = 10
PAGE_SECONDS = 0.3
"""More than a page takes, after which `reseal` stands still when it is told to."""

RESTS = (0, 100, 200)
DELAY = timedelta(milliseconds=100)
SECONDS_MAX = 600.0


def main(server: PostgresServer, folder: Path, tokens: int = TOKENS) -> None:
    """The table, for PostgreSQL and SQLite; `folder` holds the key file and the SQLite one."""
    (folder / "passphrase").write_text("of a benchmark")
    (folder / "passphrase").chmod(0o600)
    uri = f"file:{folder}/keys.json?passphrase-source=file:{folder}/passphrase"
    print(f"\nA key rotates in a store of {tokens:,} tokens, keys in the process; medians of {ROUNDS} rounds")
    row("", "a second", "share", "aim")
    for name, url in (
        ("PostgreSQL", server.url(schema="rotation")),
        ("SQLite", f"sqlite:///{folder}/rotation.db"),
    ):
        _one_store(name, uri, url, tokens)


def _one_store(name: str, uri: str, url: str, tokens: int) -> None:
    with closing(tv.open_key_store(uri)) as keys, closing(tv.open_token_store(url)) as store:
        tv.provision(keys, store, key_delay=DELAY)
        with vault_of(keys, store) as vault:
            progress(f"{name}: {tokens:,} tokens")
            issued = vault.issue_many(cards(tokens), requestor=REQUESTOR, program=PROGRAMS[0].name)
            there = [each.token for each in issued if isinstance(each, tv.TokenInfo)]
            read = statistics.median(_read_rate(vault, there) for _ in range(ROUNDS))
            row(f"{name}, detokenize_many", f"{read:,.0f}", "", "")
            for page in PAGES:
                rates = [_reseal_rate(keys, store, page) for _ in range(ROUNDS)]
                rate = statistics.median(rates)
                row(f"{name}, reseal, pages of {page:,}", f"{rate:,.0f}", f"{rate / read:.2f}", "0.40")
            for rest in RESTS:
                _live(f"{name}, live call", vault, there, (uri, url, rest))


def _read_rate(vault: tv.Vault, tokens: list[str]) -> float:
    start = time.perf_counter()
    found = vault.detokenize_many(
        zip(tokens, repeat(attrs.evolve(USE, id=f"round-{time.monotonic_ns()}")), strict=False)
    )
    seconds = time.perf_counter() - start
    if found.failed:
        raise RuntimeError("a use was refused")
    return len(tokens) / seconds


def _rotate(keys: KeyStore, store: TokenStore) -> None:
    name = maintenance.add_key_version(keys, store, KeyPurpose.SEAL)
    maintenance.make_primary(keys, store, KeyPurpose.SEAL, name.version, force=True)


def _reseal_rate(keys: KeyStore, store: TokenStore, page: int) -> float:
    _rotate(keys, store)
    done = maintenance.reseal(keys, store, page=page)
    return done.done / done.seconds


def reseal_again_and_again(uri: str, url: str, rest_percent: int, begun: Event, going: Event) -> None:
    """In another process: rotate and reseal until killed; between two pages it waits until it is to go on."""
    with closing(tv.open_key_store(uri)) as keys, closing(tv.open_token_store(url)) as store:
        for _ in count():
            _rotate(keys, store)
            begun.set()
            maintenance.reseal(
                keys, store, page=PAGES[0], rest_percent=rest_percent, progress=lambda _: going.wait()
            )


def _live(name: str, vault: tv.Vault, tokens: list[str], beside: tuple[str, str, int]) -> None:
    """Calls alone and beside `reseal` in turns, so that what else the machine does slows both alike."""
    spawn = multiprocessing.get_context("spawn")
    begun, going = spawn.Event(), spawn.Event()
    process = spawn.Process(target=reseal_again_and_again, args=(*beside, begun, going))
    process.start()
    alone: list[float] = []
    while_resealing: list[float] = []
    try:
        begun.wait(SECONDS_MAX)
        for _ in range(TURNS):
            for taken, goes in ((alone, False), (while_resealing, True)):
                (going.set if goes else going.clear)()
                time.sleep(PAGE_SECONDS)
                taken.extend(_call_seconds(vault, tokens, CALLS // TURNS))
    finally:
        process.kill()
        process.join(SECONDS_MAX)
    row(
        f"{name}, p50, rest {beside[2]} %",
        f"{statistics.median(while_resealing) * 1e6:,.0f} us",
        f"{statistics.median(while_resealing) / statistics.median(alone):.2f}",
        "at most 1.5",
    )


def _call_seconds(vault: tv.Vault, tokens: list[str], calls: int) -> list[float]:
    """What single uses of tokens spread over the store take."""
    taken = []
    for number in range(calls):
        token = tokens[(len(tokens) // 2 + number * 7_919) % len(tokens)]
        use = attrs.evolve(USE, id=f"live-{time.monotonic_ns()}")
        start = time.perf_counter()
        vault.detokenize(token, use)
        taken.append(time.perf_counter() - start)
    return taken
