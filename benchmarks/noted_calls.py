"""Calls of a vault on PostgreSQL, noted as the statements that they take, for bare psycopg to run on a twin."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from psycopg.pq.abc import PGresult

import tokenvault as tv
from benchmarks.single import PROGRAMS, REQUESTOR, UNLIMITED, pans
from tests.postgres_server import PostgresServer
from tokenvault.keys import KeyStore
from tokenvault.stores.postgres.statements import Statement, in_schema
from tokenvault.stores.postgres.store import PostgresTokenStore
from tokenvault.stores.postgres.values import ASCII_BYTEA

EXAMPLE, TWIN = "example", "twin"
"""The schemas of the vault whose statements are noted, and of the tables that they are run on once more."""

RARE = tv.CheckpointPolicy(events=1_000_000, seconds=86_400)  # none is among the calls that are timed

Noted = tuple[Statement, tuple[Any, ...]]
Bare = tuple[str, tuple[Any, ...], bool]


class NotingStore(PostgresTokenStore):
    """Notes the statements that it runs, in `made`."""

    made: list[Noted]

    async def _run(self, statement: Statement, *values: Any) -> PGresult:
        self.made.append((statement, values))
        return await super()._run(statement, *values)


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
            self.first.append([bare(*noted) for noted in self.store.made])

    def statements(self, worker: int, call: Call) -> list[Bare]:
        """What a call sends to the database."""
        self.store.made = []
        if self.domain is None:
            issue(self.vault, call.pan, UNLIMITED)
        else:
            self.vault.detokenize(self.tokens[worker], call.transaction)
        return [bare(*noted) for noted in self.store.made]

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


def bare(statement: Statement, values: tuple[Any, ...]) -> Bare:
    """A statement as psycopg's cursor takes it, on the twin: SQL, values, whether it has rows."""
    sql, order = _bare_sql(statement)
    bare_values = [
        value.encode() if kind is ASCII_BYTEA else value
        for kind, value in zip(statement.takes, values, strict=True)
    ]
    # A list is an array; in the store, a column may be any sequence.
    bare_values = [list(value) if isinstance(value, tuple) else value for value in bare_values]
    return sql, tuple(bare_values[n - 1] for n in order), bool(statement.gives)


_texts: dict[Statement, tuple[str, list[int]]] = {}


def _bare_sql(statement: Statement) -> tuple[str, list[int]]:
    if statement not in _texts:
        sql = in_schema(statement.sql, TWIN).decode()
        order = [int(number) for number in re.findall(r"\$(\d+)", sql)]
        _texts[statement] = re.sub(r"\$\d+", "%s", sql), order
    return _texts[statement]
