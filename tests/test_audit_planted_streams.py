"""Rows planted so that streams do not name each other: checkpoints name what is sound, and say what they found."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import tokenvault as tv
from tests.test_audit import open_vault
from tests.vaults import issue, use
from tokenvault import FindingKind, Grade
from tokenvault.audit.event import Event
from tokenvault.keys import KeyStore
from tokenvault.stores.sqlite.store import SqliteTokenStore

FIRST = b"\xff" * 8


class Database:
    """A vault's file, and a shell on it."""

    def __init__(self, path: Path, keys: KeyStore) -> None:
        self.keys, self.store = keys, SqliteTokenStore(path)
        tv.provision(keys, self.store)
        self.sql = sqlite3.connect(path, isolation_level=None)
        with open_vault(keys, self.store) as vault:
            self.token = issue(vault).token

    def plant(self, stream: bytes, number: int = 1, reference: bytes | None = None, mac: int = 16) -> None:
        self.sql.execute(
            "INSERT INTO events (stream, number, reference, body, mac) VALUES (?, ?, ?, x'00', ?)",
            (stream, number, stream if reference is None else reference, bytes(mac)),
        )

    def unplant(self) -> None:
        self.sql.execute("DELETE FROM events WHERE stream >= ?", (FIRST,))

    def referenced(self) -> set[bytes]:
        """The streams that the youngest one refers to."""
        events = [Event.parse(row) for row in self.store.events(stream=max(self.store.streams()))]
        checkpoints = [event.checkpoint for event in events if event.checkpoint]
        return {each.stream for checkpoint in checkpoints for each in checkpoint.cross_references}

    def found(self) -> list[tuple[FindingKind, str | None, int | None]]:
        report = tv.verify_audit(self.store, keys=self.keys)
        return [(each.kind, each.stream, each.number) for each in report.findings]


@pytest.fixture
def database(local_keys: KeyStore, tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "vault.db", local_keys)
    with closing(opened.store), closing(opened.sql):
        yield opened


def sixty_four(database: Database, reference: bytes | None) -> None:
    for _ in range(64):
        database.plant(FIRST + os.urandom(8), reference=reference)


def plant_large(database: Database) -> None:
    database.plant(FIRST * 2)
    database.sql.execute("UPDATE events SET body = zeroblob(10000000) WHERE stream = ?", (FIRST * 2,))


PLANTED: dict[str, Callable[[Database], None]] = {
    "checkpoints": lambda database: sixty_four(database, None),
    "streams without a checkpoint": lambda database: sixty_four(database, b""),
    "a malformed row": lambda database: database.plant(FIRST * 2, mac=1),
    "a name of another length": lambda database: database.plant(FIRST * 3),
    "a row too large to be read": plant_large,
    "a number below 1": lambda database: database.plant(FIRST * 2, number=-1),
    "a row that poses as a stream's checkpoint": lambda database: database.plant(
        FIRST * 2, reference=max(database.store.streams())
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_rows_planted_while_a_checkpoint_was_written_are_found_though_they_are_gone(
    database: Database, planted: str
) -> None:
    PLANTED[planted](database)
    with open_vault(database.keys, database.store) as vault:
        vault.detokenize(database.token, use(1))
    database.unplant()
    youngest = max(database.store.streams())
    assert database.found() == [(FindingKind.INSERTED, youngest.hex(), 1)]
    seen = tv.verify_audit(database.store, keys=database.keys)
    assert tv.verify_audit(database.store, keys=database.keys, since=seen).intact, (
        "noted once: the next verification goes on from there"
    )


@pytest.mark.parametrize("length", [0, 1, 15, 17, 24])
def test_a_stream_with_a_name_of_another_length_is_named_and_the_others_are_verified(
    database: Database, length: int
) -> None:
    (own,) = database.store.streams()
    planted = b"\xff" * length
    database.plant(planted)
    report = tv.verify_audit(database.store, keys=database.keys)
    assert [(each.kind, each.stream, each.number, each.grade) for each in report.findings] == [
        (FindingKind.EDITED, planted.hex(), None, Grade.WRONG)
    ]
    assert (report.streams, list(report.uncovered)) == (1, [own.hex()])


@pytest.mark.parametrize("planted", ["a malformed row", "a name of another length", "a number below 1"])
def test_a_malformed_row_does_not_keep_streams_from_being_referred_to(
    database: Database, planted: str
) -> None:
    (first,) = database.store.streams()
    PLANTED[planted](database)
    vault = open_vault(database.keys, database.store)
    vault.detokenize(database.token, use(1))
    database.unplant()
    assert database.referenced() == {first}
    vault.close()


def test_a_stream_that_only_begins_is_no_planted_one(database: Database) -> None:
    """An event of another thread may be there before the stream's first checkpoint."""
    beginning = open_vault(database.keys, database.store)
    beginning.detokenize(database.token, use(1))
    youngest = max(database.store.streams())
    (kept,) = database.sql.execute(
        "SELECT * FROM events WHERE stream = ? AND number = 1", (youngest,)
    ).fetchall()
    for table in ("events", "event_index"):
        database.sql.execute(f"DELETE FROM {table} WHERE stream = ? AND number = 1", (youngest,))
    with open_vault(database.keys, database.store) as vault:
        vault.detokenize(database.token, use(2))
        database.sql.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", kept)
        name = (youngest, bytes(16), youngest, 1)
        database.sql.execute("INSERT INTO event_index VALUES (?, ?, ?, ?)", name)
    beginning.close()
    assert database.found() == []
