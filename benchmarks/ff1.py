"""FF1 and CCM seals of columns against batch size, for both custodies and for the packages of others."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

import tokenvault as tv
from benchmarks import peers, report
from tokenvault.crypto import ccm_columns, cmac_columns, ff1
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.keys import LocalBlockCipher
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.keys.port import KeyName

LENGTH = 16
SIZES = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
BATCH = 100_000
SEALS = 10_000
REPEATS = 7
SLOW_SECONDS = 0.4
"""A peer's larger batches are cut to what it does in this time; its rate no longer depends on the size there."""

Words = npt.NDArray[np.uint64]


def main(address: str, *, write: bool = False) -> None:
    """Print the tables; `write` puts them into docs/benchmarks.md, with a plot.

    Args:
        address: of a token of a PKCS#11 module; a key is made in it.
        write: whether to.
    """
    key, tweak = secrets.token_bytes(32), secrets.token_bytes(8)
    rng = np.random.default_rng()
    values = rng.integers(0, 10**LENGTH, max(SIZES), np.uint64)
    local = LocalBlockCipher(key)
    others = peers.load(key, tweak, LENGTH)
    with Pkcs11KeyStore(address) as keys:
        made = keys.create(tv.KeyPurpose.FPE, tv.Custody.IN_MODULE)
        module = keys.cipher(KeyName(tv.KeyPurpose.FPE, made.version))
        text = "\n".join(
            (
                _aims(local, module, values, tweak, _peer_rate(others, "fastfpe", values)),
                _by_size(local, module, values, tweak, others, write=write),
                _agreement(local, values[:BATCH], tweak, others),
                _shares(key, local, values[:BATCH], tweak),
            )
        )
    print(text)
    if write:
        report.write_section("ff1", text)


def _rate(call: Callable[[], object], rows: int, repeats: int = REPEATS) -> float:
    """Rows a second: the median of some runs, each of at least a millisecond."""
    start = time.perf_counter()
    call()
    loops = 1 + int(1e-3 / (time.perf_counter() - start))
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(loops):
            call()
        taken.append((time.perf_counter() - start) / loops)
    return rows / statistics.median(taken)


def _digits(values: Words) -> list[str]:
    return [f"{value:0{LENGTH}}" for value in values.tolist()]


def _peer_rate(others: list[peers.Peer], package: str, values: Words) -> float:
    for peer in others:
        if peer.name.startswith(package) and peer.encrypt is not None:
            return _encrypt_rate(peer.encrypt, _digits(values[:BATCH]))
    return 0.0


def _encrypt_rate(encrypt: peers.Encrypt, digits: list[str]) -> float:
    return _rate(lambda: encrypt(digits), len(digits), 3)


def _aims(local: BlockCipher, module: BlockCipher, values: Words, tweak: bytes, fastfpe: float) -> str:
    batch = values[:BATCH]
    each = np.random.default_rng().integers(0, 256, (BATCH, 11), np.uint8)
    seal = [
        np.random.default_rng().integers(0, 256, (SEALS, width), np.uint8) for width in (13, 16, 64)
    ]  # nonces, plaintexts, associated data
    sealed = ccm_columns.encrypt_many(local, *seal)
    rows = []

    def row(name: str, rate: float, aim: float) -> None:
        times = f"{rate / fastfpe:.0f}" if fastfpe and name.startswith("FF1") else ""
        rows.append((name, report.rate(rate), report.rate(aim) if aim else "", times))

    for name, function in (("encrypt", ff1.encrypt_many), ("decrypt", ff1.decrypt_many)):
        for cipher, custody, aim in ((local, "the process", 8e6), (module, "SoftHSM", 1.5e6)):
            call = partial(function, cipher, batch, length=LENGTH, tweaks=tweak)
            row(f"FF1 {name}, key in {custody}", _rate(call, BATCH), aim)
        call = partial(function, local, batch, length=LENGTH, tweaks=each)
        row(f"FF1 {name}, one tweak a row, key in the process", _rate(call, BATCH), 5e6)
    row("FF1 encrypt, 19 digits, key in the process",
        _rate(lambda: ff1.encrypt_many(local, batch, length=19, tweaks=tweak), BATCH), 0)  # fmt: skip
    row("CCM seal, key in the process", _rate(lambda: ccm_columns.encrypt_many(local, *seal), SEALS), 3e6)
    row("CCM open, key in the process",
        _rate(lambda: ccm_columns.decrypt_many(local, seal[0], sealed, seal[2]), SEALS), 0)  # fmt: skip
    row("CCM seal, key in SoftHSM", _rate(lambda: ccm_columns.encrypt_many(module, *seal), SEALS), 0)
    row("CMAC of 16 bytes, key in the process",
        _rate(lambda: cmac_columns.tag_many(local, seal[1]), SEALS), 0)  # fmt: skip
    native = AESCCM(secrets.token_bytes(32), tag_length=16)
    scalar = list(zip(*([each.tobytes() for each in column] for column in seal), strict=True))
    row("for comparison: AESCCM of cryptography, row by row",
        _rate(lambda: [native.encrypt(*each) for each in scalar], SEALS), 0)  # fmt: skip
    return (
        f"Rows a second: FF1 over {LENGTH} digits in batches of {BATCH:,}, with one tweak of 8 bytes or one of 11 a"
        f" row; seals of 16 bytes with 64 of associated data in batches of {SEALS:,}.\n\n"
        + report.table(("", "a second", "aim, at least", "times fastfpe"), rows)
    )


def _by_size(
    local: BlockCipher,
    module: BlockCipher,
    values: Words,
    tweak: bytes,
    others: list[peers.Peer],
    *,
    write: bool,
) -> str:
    ours = {"tokenvault, key in the process": local, "tokenvault, key in SoftHSM": module}
    series = {
        name: [
            (size, _rate(partial(ff1.encrypt_many, cipher, values[:size], length=LENGTH, tweaks=tweak), size))
            for size in SIZES
        ]
        for name, cipher in ours.items()
    }
    loops = {f"{peer.name} ({peer.algorithm})": peer.encrypt for peer in others if peer.encrypt is not None}
    loops["tokenvault, `encrypt_digits` row by row"] = lambda digits: [
        ff1.encrypt_digits(local, each, tweak=tweak) for each in digits
    ]
    for name, encrypt in loops.items():
        series[name] = []
        rows_max = max(SIZES)
        for size in SIZES:
            digits = _digits(values[: min(size, rows_max)])
            rate = _encrypt_rate(encrypt, digits)
            series[name].append((size, rate))
            rows_max = max(1, int(rate * SLOW_SECONDS))
    text = "FF1 encryptions a second against batch size, the same values for all:\n\n" + report.table(
        ("rows", *(f"{size:,}" for size in SIZES)),
        [(name, *(report.rate(rate) for _, rate in points)) for name, points in series.items()],
    )
    if write and report.line_plot(
        "ff1", "FF1, 16 digits, one core", "rows of a batch", "encryptions a second", series
    ):
        text += "\n![FF1 encryptions a second against batch size](benchmarks/ff1.svg)\n"
    return text


def _agreement(local: BlockCipher, values: Words, tweak: bytes, others: list[peers.Peer]) -> str:
    ours = ff1.encrypt_many(local, values, length=LENGTH, tweaks=tweak)
    digits = _digits(values)
    lines = []
    for peer in others:
        if peer.encrypt is None:
            lines.append(
                f"- {peer.name}: not measured, because it can not be imported here ({peer.absence})."
            )
        elif peer.algorithm == "FF1":
            if peer.encrypt(digits) != _digits(ours):
                raise AssertionError(f"{peer.name} and tokenvault differ")
            lines.append(f"- {peer.name}: the same result for each of {len(values):,} values.")
        else:
            lines.append(f"- {peer.name}: another algorithm ({peer.algorithm}), so other results.")
    return "Compared with tokenvault in the same run:\n\n" + "\n".join(lines) + "\n"


def _shares(key: bytes, local: BlockCipher, values: Words, tweak: bytes) -> str:
    """How much of a row's time OpenSSL takes for its ten blocks, in the same chunks."""
    rows = 2**13
    update_into = Cipher(AES(key), ECB()).encryptor().update_into  # noqa: S305 # FF1 is made of single blocks, which are timed here
    blocks, answer = np.zeros(16 * rows, np.uint8), np.empty(16 * rows + 15, np.uint8)
    whole = 1e9 / _rate(lambda: ff1.encrypt_many(local, values, length=LENGTH, tweaks=tweak), len(values))
    aes = 10e9 / _rate(lambda: update_into(blocks.data, answer.data), rows)
    word, modulus = values[:rows].copy(), np.uint64(10**8)
    scratch = np.empty_like(word)

    def reduce() -> None:
        np.floor_divide(word, modulus, out=scratch)
        np.multiply(scratch, modulus, out=scratch)
        np.subtract(word, scratch, out=scratch)

    division = 10e9 / _rate(reduce, rows)
    return (
        f"Of {whole:.1f} ns a row, the ten AES blocks take {aes:.1f} in OpenSSL and the ten reductions modulo 10^8"
        f" {division:.1f} in numpy; the other {whole - aes - division:.1f} are XOR, change of byte order, modular"
        " addition, and the split and joining of halves.\n"
    )
