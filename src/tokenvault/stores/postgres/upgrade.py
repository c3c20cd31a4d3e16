"""Upgrades of a PostgreSQL schema, beside running vaults, one upgrader at a time.

A step is a list of statements, each of which commits by itself and can be run again: an upgrade that was cut short
goes on when it is called again. What locks a table waits for it only so long, since all others wait behind it, and
is tried again; an index is built CONCURRENTLY, which locks nobody out, and whose waiting hinders nobody.

That one upgrader is at work is known by an advisory lock of a transaction, which a pooler leaves alone. It is held by
a connection of its own, as an index can not be built CONCURRENTLY inside a transaction; it holds no snapshot, for
which the building would wait.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final, TypeAlias

import attrs
import psycopg

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import run
from tokenvault.stores.postgres.address import SECONDS_MAX, PostgresAddress
from tokenvault.stores.postgres.connection import BlockingConnection, Rows
from tokenvault.stores.postgres.errors import explanation
from tokenvault.stores.postgres.schema import VERSION, check_upgrade, read_status
from tokenvault.stores.schema_versions import Report, SchemaStatus

STATEMENT_SECONDS: Final = SECONDS_MAX
"""How long one statement may take: building an index, above all."""

LOCK_SECONDS: Final = 2
"""How long a statement waits for a lock on a table: so long wait those behind it."""

ATTEMPTS_MAX: Final = 30
"""How often a statement is tried that did not get its lock."""

PAUSE_SECONDS: Final = 1.0
"""Between two attempts, in which the others work."""

_UPGRADING_LOCK: Final = 0x746B7675  # "tkvu"; provisioning has another one
_BUSY: Final = "another process is upgrading this schema: wait for it"
_UNFINISHED: Final = "an index of the upgrade is not valid: call it again"


@attrs.frozen
class Change:
    """A statement that locks a table for an instant. It does nothing where it was run before."""

    sql: str


@attrs.frozen
class Index:
    """An index that is built beside those who write.

    Attributes:
        name: of the index.
        table: that it is of.
        sql: what follows CREATE INDEX.
    """

    name: str
    table: str
    sql: str


Statement: TypeAlias = Change | Index


@attrs.frozen
class Step:
    """How a schema comes from the version before to one version.

    Attributes:
        version: that it leads to.
        oldest: the oldest version whose releases work with that one.
        statements: what it takes, before the version is noted.
    """

    version: int
    oldest: int
    statements: tuple[Statement, ...]

    @property
    def noting(self) -> Change:
        """What notes the version: only once every index is valid, which PostgreSQL may have left half built."""
        note = f"UPDATE {VERSION} SET version = {self.oldest}, reached = {self.version}, upgraded = now()"
        names = [f"'\"{{schema}}\".{each.name}'" for each in self.statements if isinstance(each, Index)]
        if not names:
            return Change(note)
        return Change(
            f"{note} WHERE NOT EXISTS (SELECT FROM unnest(ARRAY[{', '.join(names)}]) AS name"
            " LEFT JOIN pg_index ON indexrelid = to_regclass(name) WHERE indisvalid IS NOT TRUE)"
        )


STEPS: Final[tuple[Step, ...]] = (
    Step(
        4,
        3,
        (
            Change(
                f"ALTER TABLE {VERSION} ADD COLUMN IF NOT EXISTS reached integer,"
                " ADD COLUMN IF NOT EXISTS upgraded timestamptz"
            ),
        ),
    ),
)
"""In order; the first leads on from `schema_versions.OLDEST_UPGRADED`. A step stays as it was released."""


def upgrade_sql(schema: str, since: int) -> list[str]:
    """The statements of an upgrade from a version, for an administrator to run instead, outside a transaction."""
    statements = []
    for step in _steps_after(since):
        for each in (*step.statements, step.noting):
            if isinstance(each, Change):
                statements += [f"SET lock_timeout = '{LOCK_SECONDS}s'", each.sql, "RESET lock_timeout"]
            else:
                statements.append(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {each.sql}")
    return [statement.replace("{schema}", schema) for statement in statements]


def status_of(address: PostgresAddress) -> SchemaStatus:
    """What a schema states of itself. Raises ConfigurationError where there is none, TokenStoreError."""
    with _Upgrader(address) as upgrader:
        return upgrader.status()


def upgrade(address: PostgresAddress, report: Report) -> SchemaStatus:
    """Take the steps that a schema lacks. Raises ConfigurationError, TokenStoreError."""
    patient = attrs.evolve(address, statement_seconds=STATEMENT_SECONDS)
    with _Upgrader(patient) as upgrader:
        return upgrader.upgrade(report)


def _steps_after(version: int) -> Sequence[Step]:
    return [step for step in STEPS if step.version > version]


class _Upgrader:
    """Works on one schema, with connections of its own. Its errors are those of the store."""

    def __init__(self, address: PostgresAddress) -> None:
        self._address: Final = address
        self._opened: Final = ExitStack()

    def __enter__(self) -> _Upgrader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._opened.close()
        explained = explanation(error) if isinstance(error, Exception) else None
        if explained is not None:
            raise TokenStoreError(explained.text, code=explained.code) from None

    def _connect(self) -> BlockingConnection:
        connection = run(BlockingConnection.open(self._address))
        self._opened.callback(connection.close)
        return connection

    def status(self) -> SchemaStatus:
        """What the schema states of itself."""
        return run(read_status(self._connect()))

    def upgrade(self, report: Report) -> SchemaStatus:
        """Take the steps that the schema lacks."""
        work = self._connect()
        found = run(check_upgrade(work))
        if found.current:
            return found
        self._keep_others_out()
        found = run(check_upgrade(work))  # again: the last one to upgrade may have ended just now
        steps = _steps_after(found.version)
        total = sum(len(step.statements) + 1 for step in steps)
        done = 0
        for step in steps:
            for statement in (*step.statements, step.noting):
                report(done, total)
                if isinstance(statement, Change):
                    _change(work, statement.sql)
                else:
                    _build(work, statement)
                done += 1
        report(done, total)
        found = run(check_upgrade(work))
        if not found.current:
            raise TokenStoreError(_UNFINISHED, code="STORE_BUSY")
        return found

    def _keep_others_out(self) -> None:
        """Hold the lock for as long as this upgrader lives. Raises TokenStoreError where another one holds it."""
        holder = self._connect()
        _rows(holder, "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0")
        lock = f"SELECT pg_try_advisory_xact_lock({_UPGRADING_LOCK}, hashtext('{{schema}}'))"
        if _rows(holder, lock) != [(True,)]:
            raise TokenStoreError(_BUSY, code="STORE_UPGRADING")


def _rows(connection: BlockingConnection, sql: str) -> Rows:
    return run(connection.rows(sql))


def _change(connection: BlockingConnection, sql: str) -> None:
    """Run a statement that waits for locks only so long, in a transaction of its own."""
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            # One message is one transaction; undone where it fails.
            _rows(connection, f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'; {sql}")
        except psycopg.errors.LockNotAvailable:
            if attempt == ATTEMPTS_MAX:
                raise
        else:
            return
        time.sleep(PAUSE_SECONDS)


def _build(connection: BlockingConnection, index: Index) -> None:
    """Build an index, unless it is there; one that was left half built is removed first."""
    if _is_valid(connection, index):
        return
    _wait_for_builder(connection, index)
    if _is_valid(connection, index) is False:
        _rows(connection, f'DROP INDEX CONCURRENTLY "{{schema}}".{index.name}')
    _rows(connection, f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {index.sql}")


def _wait_for_builder(connection: BlockingConnection, index: Index) -> None:
    """Wait for whoever builds an index: of an upgrader that was killed the server may go on building.

    It holds the lock that is asked for here, but gives it back an instant before its transaction ends and the index
    is seen as valid. Whoever drops the index in between is refused, since its row is being updated.
    """
    _rows(connection, f"BEGIN; LOCK TABLE {index.table} IN SHARE UPDATE EXCLUSIVE MODE; COMMIT")
    being_updated = (
        "SELECT FROM pg_index JOIN pg_locks ON locktype = 'transactionid' AND transactionid = pg_index.xmax"
        f" WHERE indexrelid = to_regclass('\"{{schema}}\".{index.name}')"
    )
    for _ in range(ATTEMPTS_MAX):
        if not _rows(connection, being_updated):
            return
        time.sleep(PAUSE_SECONDS)


def _is_valid(connection: BlockingConnection, index: Index) -> bool | None:
    """Whether an index is whole; None where it is not there."""
    found = _rows(
        connection,
        f"SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('\"{{schema}}\".{index.name}')",
    )
    return bool(found[0][0]) if found else None
