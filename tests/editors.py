"""Shells on a vault's database, for tests in which someone edits it."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psycopg

import tokenvault as tv
from tests.postgres_server import PostgresServer
from tokenvault.stores.port import TokenStore

Value = str | bytes | int
Row = dict[str, Value]


class Editor(ABC):
    """A database shell on the tables of a vault."""

    place: ClassVar[str]
    refused: ClassVar[type[Exception]]

    @abstractmethod
    def execute(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run a statement; {} stands for what comes before a table's name."""

    @abstractmethod
    def tables(self) -> list[str]:
        """Names."""

    @abstractmethod
    def columns(self, table: str) -> dict[str, str]:
        """Names and types, what a row is found by first."""

    def rows(self, table: str) -> list[Row]:
        names = list(self.columns(table))
        found = self.execute(f"SELECT {', '.join(names)} FROM {{}}{table} ORDER BY 1")
        return [dict(zip(names, row, strict=True)) for row in found]

    def row(self, table: str, key: Value) -> Row | None:
        first = next(iter(self.columns(table)))
        return next((row for row in self.rows(table) if row[first] == key), None)

    def change(self, table: str, row: Row, column: str, value: Value | None) -> Row | None:
        """The row as it is now; None where the table did not take the value, or took it for the old one."""
        before = self.rows(table)
        where, values = self._where(row)
        try:
            self.execute(f"UPDATE {{}}{table} SET {column} = {self.place} WHERE {where}", (value, *values))
        except self.refused:  # by the type, a key, NOT NULL
            return None
        return next((now for now in self.rows(table) if now not in before), None)

    def swap(self, table: str, one: Row, two: Row, columns: tuple[str, ...]) -> None:
        """Exchange these columns of two rows."""
        self.remove(table, one)
        self.remove(table, two)
        self.put(table, {**one, **{column: two[column] for column in columns}})
        self.put(table, {**two, **{column: one[column] for column in columns}})

    def remove(self, table: str, row: Row) -> None:
        where, values = self._where(row)
        self.execute(f"DELETE FROM {{}}{table} WHERE {where}", values)

    def put(self, table: str, row: Row) -> None:
        places = ", ".join([self.place] * len(row))
        self.execute(f"INSERT INTO {{}}{table} ({', '.join(row)}) VALUES ({places})", list(row.values()))

    def restore(self, table: str, rows: list[Row]) -> None:
        if sorted(map(_in_order, self.rows(table))) != sorted(map(_in_order, rows)):
            self.execute("BEGIN")
            self.execute(f"DELETE FROM {{}}{table}")
            for row in rows:
                self.put(table, row)
            self.execute("COMMIT")

    def _where(self, row: Row) -> tuple[str, list[Value]]:
        return " AND ".join(f"{name} = {self.place}" for name in row), list(row.values())


def _in_order(row: Row) -> str:
    """A row, whatever the order of its columns."""
    return repr(sorted(row.items()))


class SqliteEditor(Editor):
    place = "?"
    refused = sqlite3.Error

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")

    def close(self) -> None:
        self._connection.close()

    def execute(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql.format(""), values).fetchall()

    def tables(self) -> list[str]:
        return [name for (name,) in self.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]

    def columns(self, table: str) -> dict[str, str]:
        return {column[1]: column[2] for column in self.execute(f"PRAGMA table_info({table})")}

    def change_to_no_text(self, table: str, row: Row, column: str) -> Row:
        before, (where, values) = self.rows(table), self._where(row)
        self.execute(f"UPDATE {table} SET {column} = CAST(x'39FF' AS TEXT) WHERE {where}", values)
        return next(now for now in self.rows(table) if now not in before)


class PostgresEditor(Editor):
    place = "%s"
    refused = psycopg.Error

    def __init__(self, connection: psycopg.Connection, schema: str) -> None:
        self._connection, self._schema = connection, schema
        self._columns: dict[str, dict[str, str]] = {}

    def execute(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(sql.format(f"{self._schema}.").encode(), values)
        return cursor.fetchall() if cursor.description else []

    def tables(self) -> list[str]:
        found = self.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (self._schema,))
        return [name for (name,) in found]

    def columns(self, table: str) -> dict[str, str]:
        if table not in self._columns:
            found = self.execute(
                "SELECT column_name, data_type FROM information_schema.columns"
                " WHERE table_schema = %s AND table_name = %s"
                " ORDER BY column_name <> 'token', ordinal_position",
                (self._schema, table),
            )
            self._columns[table] = dict(found)
        return self._columns[table]


NewDatabase = Callable[
    [], AbstractContextManager[tuple[TokenStore, Callable[[], AbstractContextManager[Editor]]]]
]
"""Opens a store over an empty database; once it is provisioned, the function with it opens a shell."""


@contextmanager
def sqlite_database(
    folder: Path,
) -> Iterator[tuple[TokenStore, Callable[[], AbstractContextManager[Editor]]]]:
    path = folder / f"{len(list(folder.iterdir()))}.db"
    with closing(tv.open_token_store(f"sqlite:///{path}")) as store:
        yield store, lambda: closing(SqliteEditor(path))


@contextmanager
def postgres_database(
    server: PostgresServer,
) -> Iterator[tuple[TokenStore, Callable[[], AbstractContextManager[Editor]]]]:
    url = server.new_url()

    @contextmanager
    def editor() -> Iterator[Editor]:
        with server.raw() as connection:
            yield PostgresEditor(connection, url.rpartition("schema=")[2])

    with closing(tv.open_token_store(url)) as store:
        yield store, editor
