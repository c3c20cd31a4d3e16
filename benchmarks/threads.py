"""Threads and a slow module: blocks that concurrent uses ask for go out together."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

import tokenvault as tv
from benchmarks.single import REQUESTOR, UNLIMITED, row
from tokenvault.keys import KeyStore
from tokenvault.keys.pkcs11.coalescer import Coalescer
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.model.pan import luhn_check_digit
from tokenvault.testing.faults import Fault, FaultyKeyStore

SECONDS: Final = 3.0
LATENCY_MS: Final = 1
THREADS: Final = (1, 4, 16)
PROGRAM: Final = tv.TokenProgram("random", format=tv.TokenFormat(bin="999913"))


def module_threads(new_token: Callable[[], str]) -> None:
    """Uses a second by threads, keys in SoftHSM, with 1 ms more before or within each call."""
    print(
        f"\nKeys in the module (SoftHSM), {LATENCY_MS} ms added to each call, store in memory, detokenize without"
        " limits: uses a second"
    )
    row("threads", *THREADS, "gain", "aim, at least")
    row("waits before the key store", *_series(new_token(), wrapped=True), 8)
    with _slow_module():
        row("waits within it, one call at a time", *_series(new_token(), wrapped=False), "")


def _series(address: str, *, wrapped: bool) -> list[str]:
    late = Fault(before_ms=LATENCY_MS)
    uses = []
    with Pkcs11KeyStore(address) as module:
        tv.provision(module, tv.open_token_store("memory:"), custody=tv.Custody.IN_MODULE)
        keys = FaultyKeyStore(module, lambda call: late if call == "encrypt_blocks" else None)
        for threads in THREADS:
            with _vault(keys if wrapped else module) as vault:
                uses.append(_uses_a_second(vault, threads))
    return [*(f"{each:,.0f}" for each in uses), f"{uses[-1] / uses[0]:.1f} times"]


@contextmanager
def _vault(keys: KeyStore) -> Iterator[tv.Vault]:
    store = tv.open_token_store("memory:")
    tv.provision(keys, store)
    requestor = tv.TokenRequestor(REQUESTOR, programs={PROGRAM.name})
    with tv.Vault(keys, store, programs=[PROGRAM], requestors=[requestor]) as vault:
        yield vault


@contextmanager
def _slow_module() -> Iterator[None]:
    init = Coalescer.__init__

    def slow(self: Coalescer, call: Callable[[bytes], bytes], *args: Any, **kwargs: Any) -> None:
        def late(blocks: bytes) -> bytes:
            time.sleep(LATENCY_MS / 1_000)
            return call(blocks)

        init(self, late, *args, **kwargs)

    with mock.patch.object(Coalescer, "__init__", slow):
        yield


def _uses_a_second(vault: tv.Vault, threads: int) -> float:
    """A token for each thread, so that nobody waits for anything but the module."""
    counts, start = [0] * threads, threading.Barrier(threads)

    def work(place: int) -> None:
        digits = f"411111{secrets.randbelow(10**9):09}"
        token = vault.issue(
            digits + luhn_check_digit(digits),
            expiry="2039-12", requestor=REQUESTOR, program=PROGRAM.name, domain=UNLIMITED,
        ).token  # fmt: skip
        start.wait()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            transaction = tv.Transaction(
                id=f"tx-{counts[place]}", requestor=REQUESTOR, merchant="M-1001", amount=tv.Money(1, "EUR")
            )
            vault.detokenize(token, transaction)
            counts[place] += 1

    workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / SECONDS
