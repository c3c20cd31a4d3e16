"""Upgrades of a SQLite file: each step is one transaction, which is there wholly or not at all, whoever is killed.

SQLite has one writer at a time, so a step holds up those that write for as long as it takes, and they go on after it;
readers see the file as it was until then. An upgrader that comes second finds the step done.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import Final

import attrs

from tokenvault.errors import TokenStoreError
from tokenvault.runtime import close_all
from tokenvault.stores.schema_versions import Report, SchemaStatus
from tokenvault.stores.sqlite.file import (
    NOW,
    Connection,
    SqliteFile,
    check_upgrade,
    explanation,
    provisioned,
    read_status,
)

BUSY_SECONDS_MAX: Final = 30.0
"""How long an upgrade waits for those that write; they wait as long for it."""


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
    statements: tuple[str, ...]

    @property
    def sql(self) -> tuple[str, ...]:
        """All statements of the step, in one transaction."""
        noted = (
            f"UPDATE schema_version SET reached = {self.version}, upgraded = {NOW}",  # noqa: S608 # both of this code
            f"PRAGMA user_version = {self.oldest}",
        )
        return ("BEGIN IMMEDIATE", *self.statements, *noted, "COMMIT")


STEPS: Final[tuple[Step, ...]] = (
    Step(
        4,
        3,
        (
            "CREATE TABLE schema_version (reached INTEGER NOT NULL, upgraded INTEGER NOT NULL) STRICT",
            "INSERT INTO schema_version VALUES (4, 0)",
        ),
    ),
)
"""In order; the first leads on from `schema_versions.OLDEST_UPGRADED`. A step stays as it was released."""


def upgrade_sql(since: int) -> list[str]:
    """What `upgrade` runs in a file of some version."""
    return [statement for step in STEPS if step.version > since for statement in step.sql]


def status_of(path: str) -> SchemaStatus:
    """What a file states of its schema. Raises ConfigurationError where there is none, TokenStoreError."""

    def status(file: SqliteFile, connection: Connection) -> SchemaStatus:
        return provisioned(read_status(connection))

    return _with_file(path, status)


def upgrade(path: str, report: Report) -> SchemaStatus:
    """Take the steps that a file lacks. Raises ConfigurationError, TokenStoreError."""

    def upgraded(file: SqliteFile, connection: Connection) -> SchemaStatus:
        found = check_upgrade(read_status(connection))
        total = len(upgrade_sql(found.version))
        done = 0
        for step in STEPS:
            if step.version > found.version:
                done = _take(step, connection, lambda count: report(count, total), done)
        file.check_in_place(connection)  # last: what went elsewhere is not acknowledged
        return check_upgrade(read_status(connection))

    return _with_file(path, upgraded)


def _take(step: Step, connection: Connection, tell: Callable[[int], object], done: int) -> int:
    """Take a step, unless another process has taken it meanwhile; how many statements are done then."""
    begin, *others = step.sql
    connection.run(begin)
    taken = check_upgrade(read_status(connection)).version >= step.version
    for statement in ["ROLLBACK"] if taken else others:
        done += 1
        tell(done)
        connection.execute(statement)
    tell(done + 1)
    return done + 1


def _with_file(path: str, work: Callable[[SqliteFile, Connection], SchemaStatus]) -> SchemaStatus:
    """What a piece of work gives, with a connection to a file. Raises ConfigurationError, TokenStoreError."""
    file = SqliteFile(os.path.abspath(path), BUSY_SECONDS_MAX)
    place: list[Connection] = []
    try:
        file.open_unchecked(place)
        return work(file, place[0])
    except sqlite3.Error as error:
        code, text = explanation(error)
    finally:
        close_all(place)
    raise TokenStoreError(text, code=code)
