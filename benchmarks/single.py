"""Single calls: FF1, the vault's own share of issue and detokenize, and calls into the module."""

from __future__ import annotations

import gc
import secrets
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Self
from unittest import mock

import tokenvault as tv
from tokenvault.crypto import ff1
from tokenvault.keys import KeyStore, LocalBlockCipher
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.model.pan import luhn_check_digit
from tokenvault.stores.port import TokenStore
from tokenvault.stores.sqlite.file import Connection, SqliteFile

MEMORY = Path("/dev/shm")  # noqa: S108 # a disk in memory; only fresh folders are made in it
CALLS = 2_000
SHARE_ROUNDS = 40
SHARE_CALLS = 100  # a round
MODULE_CALLS = 200
ROUNDS = 9
REQUESTOR = "40012345678"
PROGRAMS = (
    tv.TokenProgram("random", format=tv.TokenFormat(bin="999913")),
    tv.TokenProgram("convergent", format=tv.TokenFormat(bin="999912"), making=tv.Making.CONVERGENT),
)
UNLIMITED = tv.Domain(merchants={"M-1001"}, currencies={"EUR"}, max_amount=tv.Money(250_00, "EUR"))
LIMITED = tv.Domain(
    merchants={"M-1001"},
    currencies={"EUR"},
    max_amount=tv.Money(250_00, "EUR"),
    limits=(
        tv.Limit(uses=10**9, per=timedelta(days=1)),
        tv.Limit(amount=tv.Money(10**14, "EUR"), per=timedelta(days=30)),
    ),
)

Call = Callable[[], object]


def row(name: str, *columns: object) -> None:
    """Print a row of a table."""
    print(f"  {name:<36}" + "".join(f" {column!s:>15}" for column in columns))


def ff1_scalar() -> None:
    """FF1 over 16 digits, key in the process."""
    cipher, tweak = LocalBlockCipher(secrets.token_bytes(32)), bytes(8)
    digits = "4111111111111111"
    numerals = [int(digit) for digit in digits]
    print("\nFF1, scalar, 16 digits, tweak of 8 bytes, key in the process: microseconds a call")
    row("", "median", "aim, at most")
    row("encrypt, numerals", _per_call(lambda: ff1.encrypt(cipher, numerals, radix=10, tweak=tweak)), 15)
    row("decrypt, numerals", _per_call(lambda: ff1.decrypt(cipher, numerals, radix=10, tweak=tweak)), 15)
    row("encrypt, digits", _per_call(lambda: ff1.encrypt_digits(cipher, digits, tweak=tweak)), 15)
    row("decrypt, digits", _per_call(lambda: ff1.decrypt_digits(cipher, digits, tweak=tweak)), 15)


def _per_call(call: Call) -> str:
    rounds = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        rounds.append((time.perf_counter_ns() - start) / CALLS)
    return _us(rounds[1:])  # the first one warms up


def _us(nanoseconds: Sequence[float]) -> str:
    return f"{statistics.median(nanoseconds) / 1_000:.1f}"


_statements: list[tuple[Any, ...]] = []


class _RecordingCursor(sqlite3.Cursor):
    """Notes each statement that it runs, with its values."""

    def execute(self, *statement: Any) -> Self:
        _statements.append(statement)
        return super().execute(*statement)


@contextmanager
def recorded_sql() -> Iterator[None]:
    """While this lasts, new SQLite connections note what they run."""
    open_unchecked = SqliteFile.open_unchecked

    def recording(file: SqliteFile, place: list[Connection]) -> None:
        open_unchecked(file, place)
        connection = place[-1]
        connection.statement.close()
        connection.statement = _RecordingCursor(connection)

    with mock.patch.object(SqliteFile, "open_unchecked", recording):
        yield


def vault_share(folder: Path, medium: str) -> None:
    """Time of whole calls less that of the statements that they make, run bare.

    The statements are those that a second vault made for a like call. Rounds of some 10 ms, of each call in turn: of
    another's load on the machine, the calmest shows least.
    """
    print(
        f"\nSQLite (WAL, synchronous=FULL) on {medium}, keys in the process: microseconds of the median call"
    )
    print(
        f"in the calmest of {SHARE_ROUNDS} rounds of {SHARE_CALLS}, and of the vault's share in the middle one"
    )
    row("", "whole call", "the same SQL", "vault's share", "aim, at most", "middle round")
    keys = new_keys(folder)
    with ExitStack() as opened:
        opened.callback(keys.close)
        calls = _calls(opened.enter_context(_vault_of(keys, folder / "share.db")))
        with recorded_sql():
            alike = _calls(opened.enter_context(_vault_of(keys, folder / "recorded.db")))
            twin = opened.enter_context(closing(_twin(folder)))
            rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
            for _ in range(SHARE_ROUNDS):
                for name, (call, _) in calls.items():
                    rounds[name].append(_round(call, alike[name][0], twin))
        for name, (_, most) in calls.items():
            whole, bare = min(rounds[name])
            middle = statistics.median(one[0] - one[1] for one in rounds[name])
            row(name, _us([whole]), _us([bare]), _us([whole - bare]), most, _us([middle]))


@contextmanager
def _vault_of(keys: KeyStore, path: Path) -> Iterator[tv.Vault]:
    with closing(tv.open_token_store(f"sqlite:///{path}")) as store:
        tv.provision(keys, store)
        with _vault(keys, store) as vault:
            yield vault


def new_keys(folder: Path) -> KeyStore:
    """A key store in a file, whose keys work in this process."""
    (folder / "passphrase").write_text(secrets.token_hex())
    return tv.open_key_store(f"file:{folder}/keys.json?passphrase-source=file:{folder}/passphrase")


def pans() -> Iterator[str]:
    """Card numbers."""
    return (payload + luhn_check_digit(payload) for payload in (f"411111{n:09}" for n in range(10**9)))


def _twin(folder: Path) -> sqlite3.Connection:
    """A connection to a copy of the recorded database, set up as the store sets up its own."""
    twin = sqlite3.Connection(folder / "twin.db", isolation_level=None)
    with closing(sqlite3.Connection(folder / "recorded.db")) as source:
        source.backup(twin)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "temp_store = MEMORY", "secure_delete = FAST"):
        twin.execute(f"PRAGMA {pragma}")
    return twin


def _round(call: Call, alike: Call, twin: sqlite3.Connection) -> tuple[float, float]:
    """Median nanoseconds of a call, and of the statements of one like it, run bare."""
    made: list[list[tuple[Any, ...]]] = []
    for _ in range(SHARE_CALLS):
        _statements.clear()
        alike()
        made.append(list(_statements))
    wholes, bares = [], []
    gc.collect()
    gc.freeze()  # what was made beforehand is not looked through while the calls are timed
    for _ in range(SHARE_CALLS):
        start = time.perf_counter_ns()
        call()
        wholes.append(time.perf_counter_ns() - start)
    cursor = twin.cursor()
    for statements in made:
        start = time.perf_counter_ns()
        for statement in statements:
            cursor.execute(*statement).fetchall()
        bares.append(time.perf_counter_ns() - start)
    return statistics.median(wholes), statistics.median(bares)


def module_calls(address: str) -> None:
    """How many operations one call asks of the module, with keys in the module."""
    print("\nKeys in the module (SoftHSM), store in memory: operations (C_EncryptInit, C_Encrypt) a call")
    row("", "operations", "aim, at most", "microseconds")
    aims = {"detokenize, without limits": 4, "check": 4}
    with Pkcs11KeyStore(address) as keys:
        store = tv.open_token_store("memory:")
        tv.provision(keys, store, custody=tv.Custody.IN_MODULE)
        with _vault(keys, store) as vault:
            for name, (call, _) in _calls(vault).items():
                call()
                before = keys.operations
                call()
                counted = keys.operations - before
                taken = []
                for _ in range(MODULE_CALLS):
                    start = time.perf_counter_ns()
                    call()
                    taken.append(time.perf_counter_ns() - start)
                row(name, counted, aims.get(name, 8), _us(taken))


def _vault(keys: KeyStore, store: TokenStore) -> tv.Vault:
    requestor = tv.TokenRequestor(REQUESTOR, programs={program.name for program in PROGRAMS})
    return tv.Vault(keys, store, programs=PROGRAMS, requestors=[requestor])


def _calls(vault: tv.Vault) -> dict[str, tuple[Call, int]]:
    """The calls that are measured, and the most microseconds that the vault itself may take."""
    transactions = (
        tv.Transaction(id=f"tx-{n}", requestor=REQUESTOR, merchant="M-1001", amount=tv.Money(1, "EUR"))
        for n in range(10**9)
    )
    # Made beforehand: what a caller brings along is not the vault's share.
    made = 4 * max(SHARE_ROUNDS * SHARE_CALLS, MODULE_CALLS)
    ready_pans, ready = list(islice(pans(), made)), list(islice(transactions, made))

    def issue(program: str, pan: str, domain: tv.Domain) -> tv.TokenInfo:
        return vault.issue(pan, expiry="2039-12", requestor=REQUESTOR, program=program, domain=domain)

    known, free, limited = ready_pans.pop(), ready_pans.pop(), ready_pans.pop()
    free, limited = issue("random", free, UNLIMITED).token, issue("random", limited, LIMITED).token
    return {
        "issue, random": (lambda: issue("random", ready_pans.pop(), UNLIMITED), 100),
        "issue, convergent, new card": (lambda: issue("convergent", ready_pans.pop(), UNLIMITED), 100),
        "issue, convergent, known card": (lambda: issue("convergent", known, UNLIMITED), 100),
        "detokenize, without limits": (lambda: vault.detokenize(free, ready.pop()), 60),
        "detokenize, with two limits": (lambda: vault.detokenize(limited, ready.pop()), 60),
        "check": (lambda: vault.check(limited, ready.pop()), 60),
    }
