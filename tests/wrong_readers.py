"""Adapters of a token store that answer with what was, or what is not yet."""

from __future__ import annotations

import pickle
import socket
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.own_token_store import OwnTokenStore, Work
from tests.wrong_adapters import ReadsUncommitted
from tokenvault.stores.port import SealedRecord


class KeepsASnapshot(OwnTokenStore):
    """Reads in a transaction that it ends when it writes itself: what others commit meanwhile it does not see."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self._reading = threading.RLock()
        self._reader: sqlite3.Connection | None = None

    def _provision(self) -> None:
        super()._read("PRAGMA journal_mode = WAL")
        super()._provision()

    def _snapshot(self) -> sqlite3.Connection:
        if self._reader is None:
            self._reader = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._reader.execute("BEGIN")
        return self._reader

    def _read(self, sql: str, *values: object) -> list[Any]:
        if sql.startswith("INSERT"):
            self._renew()
            return super()._read(sql, *values)
        with self._reading:
            return self._snapshot().execute(sql, values).fetchall()

    def _write(self, work: Work) -> list[str]:
        try:
            return super()._write(work)
        finally:
            self._renew()

    def _renew(self) -> None:
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _get(self, tokens: Sequence[str]) -> list[SealedRecord]:
        sql = "SELECT * FROM tokens WHERE token = ?"
        rows = [self._read(sql, token) for token in dict.fromkeys(tokens)]
        return [SealedRecord(*row) for (row,) in filter(None, rows)]

    def _close(self) -> None:
        self._renew()

    def after_fork_in_child(self) -> None:
        super().after_fork_in_child()
        self._reading, self._reader = threading.RLock(), None


class KeepsASnapshotOfEachThread(KeepsASnapshot):
    """The same with a reader for each thread, which ends its transaction when that thread writes."""

    def __init__(self, path: Path | str) -> None:
        OwnTokenStore.__init__(self, path)
        self._of_thread = threading.local()

    def _read(self, sql: str, *values: object) -> list[Any]:
        if sql.startswith("INSERT"):
            self._renew()
            return OwnTokenStore._read(self, sql, *values)
        reader = getattr(self._of_thread, "reader", None)
        if reader is None:
            reader = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._of_thread.reader = reader
            reader.execute("BEGIN")
        rows: list[Any] = reader.execute(sql, values).fetchall()
        return rows

    def _renew(self) -> None:
        reader = getattr(self._of_thread, "reader", None)
        if reader is not None:
            reader.close()
            self._of_thread.reader = None

    def after_fork_in_child(self) -> None:
        OwnTokenStore.after_fork_in_child(self)
        self._of_thread = threading.local()


class RemembersCounts(OwnTokenStore):
    """Keeps the counts that it read until it writes itself."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self._known: dict[tuple[str, str, int], int] = {}

    def _write(self, work: Work) -> list[str]:
        try:
            return super()._write(work)
        finally:
            self._known.clear()

    def _count(self, requestor: str, program: str, status: int) -> int:
        group = requestor, program, status
        if group not in self._known:
            self._known[group] = super()._count(*group)
        return self._known[group]


class RemembersCustomers(OwnTokenStore):
    """Searches an index in memory, which it fills when it writes itself."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self._fresh = False
        self._by_customer: list[SealedRecord] = []

    def _write(self, work: Work) -> list[str]:
        self._fresh = False
        return super()._write(work)

    def _find_customer(self, customer: str, after: str, limit: int) -> list[SealedRecord]:
        if not self._fresh:
            self._fresh, self._by_customer = True, super()._scan("", -1, None)
        found = [each for each in self._by_customer if each.customer == customer and each.token > after]
        return found[:limit]


class CountsUncommitted(ReadsUncommitted):
    """Counts, and lists, what others are about to commit; all else it reads as it should."""

    _committed = True

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        if self._committed:
            connection.close()
            return OwnTokenStore._connect(self)
        return connection

    def _write(self, work: Work) -> list[str]:
        return _uncommitted(self)._write_here(work)

    def _write_here(self, work: Work) -> list[str]:
        return super()._write(work)

    def _count(self, requestor: str, program: str, status: int) -> int:
        return super(CountsUncommitted, _uncommitted(self))._count(requestor, program, status)


def _uncommitted(store: CountsUncommitted) -> CountsUncommitted:
    other = CountsUncommitted.__copy__(store)
    other._committed = False
    return other


class AsksItsParent(OwnTokenStore):
    """Reads records over a socket, from a server in another thread, and lets a child go on with that socket."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self._asking = threading.Lock()
        self._here, there = socket.socketpair()
        self._here.settimeout(1)
        threading.Thread(target=self._serve, args=(there,), daemon=True).start()

    def _serve(self, there: socket.socket) -> None:
        with there, there.makefile("rwb") as stream:
            while True:
                try:
                    tokens = pickle.load(stream)  # noqa: S301  our own
                    pickle.dump(super()._get(tokens), stream)
                    stream.flush()
                except (EOFError, OSError):
                    return

    def _get(self, tokens: Sequence[str]) -> list[SealedRecord]:
        with self._asking:
            self._here.sendall(pickle.dumps(list(tokens)))
            received = b""
            while True:
                received += self._here.recv(2**20)
                try:
                    found: list[SealedRecord] = pickle.loads(received)  # noqa: S301  our own
                except (EOFError, pickle.UnpicklingError):
                    continue
                return found

    def after_fork_in_child(self) -> None:
        super().after_fork_in_child()
        self._asking = threading.Lock()
