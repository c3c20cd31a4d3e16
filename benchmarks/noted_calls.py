"""Calls of a vault on PostgreSQL, noted as the statements that they take, for bare psycopg to run on a twin."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeVar

import tokenvault as tv
from benchmarks.single import PROGRAMS, REQUESTOR, UNLIMITED, pans
from tests.postgres_server import PostgresServer
from tokenvault.keys import KeyStore
from tokenvault.stores.postgres.statements import Statement
from tokenvault.stores.postgres.store import PostgresTokenStore
from tokenvault.stores.postgres.values import INT8, TEXT, Query

EXAMPLE, TWIN = "example", "twin"
"""The schemas of the vault whose statements are noted, and of the tables that they are run on once more."""

RARE = tv.CheckpointPolicy(events=1_000_000, seconds=86_400)  # none is among the calls that are timed

T = TypeVar("T")
Bare = tuple[str, tuple[Any, ...], bool]


class NotingStore(PostgresTokenStore):
    """Notes the statements that it runs, in `made`."""

    made: list[Statement[Any]]

    def _run(self, statement: Statement[T]) -> T:
        self.made.append(statement)
        return super()._run(statement)


class Example:
    """A vault that makes the calls as well, untimed, for the statements that they take. Each worker has a token."""

    def __init__(
        self, keys: KeyStore, server: PostgresServer, options: str, domain: tv.Domain | None, workers: int
    ) -> None:
        self.domain = domain
        self.store = NotingStore(server.url(schema=EXAMPLE, options=options))
        self.store.made = []
        self.vault = tv.Vault(keys, self.store, programs=PROGRAMS, requestors=requestors(), checkpoints=RARE)
        issue(self.vault, next(pans()), UNLIMITED)  # the first event goes with a checkpoint
        self.tokens: list[str] = []
        self.first: list[list[Bare]] = []
        for _ in range(workers):
            self.store.made = []
            self.tokens.append(issue(self.vault, next(pans()), domain or UNLIMITED).token)
            self.first.append([bare(statement) for statement in self.store.made])

    def statements(self, worker: int, call: Call) -> list[Bare]:
        """What a call sends to the database."""
        self.store.made = []
        if self.domain is None:
            issue(self.vault, call.pan, UNLIMITED)
        else:
            self.vault.detokenize(self.tokens[worker], call.transaction)
        return [bare(statement) for statement in self.store.made]

    def close(self) -> None:
        """Close vault and store."""
        self.vault.close()
        self.store.close()


class Call(NamedTuple):
    """What a call is made with."""

    pan: str
    transaction: tv.Transaction


def issue(vault: tv.Vault, pan: str, wanted: tv.Domain | None) -> tv.TokenInfo:
    """A token for a card."""
    return vault.issue(pan, expiry="2039-12", requestor=REQUESTOR, program="random", domain=wanted)


def calls_of(number: int, count: int) -> list[Call]:
    """The calls of a worker in a round."""
    transactions = map(_transaction, range(number * count, (number + 1) * count))
    return [Call(pan, transaction) for pan, transaction in zip(pans(), transactions, strict=False)]


def _transaction(number: int) -> tv.Transaction:
    return tv.Transaction(
        id=f"tx-{number}", requestor=REQUESTOR, merchant="M-1001", amount=tv.Money(1, "EUR")
    )


def requestors() -> list[tv.TokenRequestor]:
    """Who makes the calls."""
    return [tv.TokenRequestor(REQUESTOR, programs={program.name for program in PROGRAMS})]


def bare(statement: Statement[Any]) -> Bare:
    """A statement as psycopg's cursor takes it, on the twin: SQL, values, whether it has rows."""
    sql, order = _bare_sql(statement.query)
    values = [
        _value(kind, value) for kind, value in zip(statement.query.takes, statement.values, strict=True)
    ]
    return sql, tuple(values[n - 1] for n in order), bool(statement.query.gives)


_texts: dict[Query, tuple[str, list[int]]] = {}


def _bare_sql(query: Query) -> tuple[str, list[int]]:
    if query not in _texts:
        sql = query.sql.decode().replace(f'"{EXAMPLE}".', f'"{TWIN}".')
        order = [int(number) for number in re.findall(r"\$(\d+)", sql)]
        _texts[query] = re.sub(r"\$\d+", "%s", sql), order
    return _texts[query]


def _value(kind: int, value: bytes) -> str | int | bytes:
    if kind == TEXT:
        return value.decode()
    return int.from_bytes(value, signed=True) if kind == INT8 else value
