"""An index that does not lead to an event by each name that it states is found by verifying, and named."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

import tokenvault as tv
from tests.editors import Editor, Row, postgres_database, sqlite_database
from tests.test_audit import open_vault
from tests.vaults import issue, use
from tokenvault import FindingKind
from tokenvault.audit.verify import event_index
from tokenvault.keys import KeyStore
from tokenvault.stores.port import TokenStore

TABLE = "event_index"


@attrs.frozen
class Database:
    """A vault's database with two tokens, each used by itself and both by a batch, and a shell on it."""

    store: TokenStore
    keys: KeyStore
    editor: Editor
    tokens: list[str]

    def found(self) -> list[tuple[FindingKind, str | None, int | None]]:
        report = tv.verify_audit(self.store, keys=self.keys)
        return [(each.kind, each.stream, each.number) for each in report.findings]

    def led_to(self, times: int) -> list[Row]:
        """The rows of events that the index leads to so many times."""
        rows = self.editor.rows(TABLE)
        numbers = [row["number"] for row in rows]
        return [row for row in rows if numbers.count(row["number"]) == times]


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, local_keys: KeyStore, tmp_path: Path) -> Iterator[Database]:
    with ExitStack() as opened:
        if request.param == "postgres":
            pair = postgres_database(request.getfixturevalue("postgres_server"))
        else:
            pair = sqlite_database(tmp_path)
        store, shell = opened.enter_context(pair)
        tv.provision(local_keys, store)
        with open_vault(local_keys, store) as vault:
            tokens = [issue(vault).token for _ in range(2)]
            for number in range(2):
                for token in tokens:
                    vault.detokenize(token, use(number))
            vault.detokenize_many([(token, use("batch")) for token in tokens])
        yield Database(store, local_keys, opened.enter_context(shell()), tokens)


def remove_of_an_event(database: Database) -> Row:
    row = next(row for row in database.led_to(1) if row["reference"] != row["stream"])
    database.editor.remove(TABLE, row)
    return row


def remove_of_a_checkpoint(database: Database) -> Row:
    row = next(row for row in database.led_to(1) if row["reference"] == row["stream"])
    database.editor.remove(TABLE, row)
    return row


def remove_of_a_batch(database: Database) -> Row:
    row = database.led_to(2)[0]
    database.editor.remove(TABLE, row)
    return row


def change_the_use(database: Database) -> Row:
    row = database.led_to(1)[0]
    assert database.editor.change(TABLE, row, "use_id", b"\x07" * 16)
    return row


def change_the_reference(database: Database) -> Row:
    row = next(row for row in database.led_to(1) if row["reference"] != row["stream"])
    assert database.editor.change(TABLE, row, "reference", os.urandom(16))
    return row


def add_a_name(database: Database) -> Row:
    row = database.led_to(1)[0]
    database.editor.put(TABLE, {**row, "reference": os.urandom(16)})
    return row


@pytest.mark.parametrize(
    "edit",
    [
        remove_of_an_event, remove_of_a_checkpoint, remove_of_a_batch, change_the_use, change_the_reference,
        add_a_name,
    ],
)  # fmt: skip
def test_an_edited_index_is_found_and_the_event_named(
    database: Database, edit: Callable[[Database], Row]
) -> None:
    assert database.found() == []
    row = edit(database)
    assert isinstance(row["stream"], bytes)
    assert database.found() == [(FindingKind.EDITED, row["stream"].hex(), row["number"])]


def test_rows_that_were_exchanged_between_two_events_are_found(database: Database) -> None:
    one, *_, two = (row for row in database.led_to(1) if row["reference"] != row["stream"])
    assert one["reference"] != two["reference"]
    database.editor.swap(TABLE, one, two, ("reference",))
    assert {number for _, _, number in database.found()} == {one["number"], two["number"]}


def test_an_index_that_was_emptied_is_found_event_by_event_in_bounded_memory(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events are compared block by block, of which few are in memory."""
    monkeypatch.setattr(event_index, "BLOCK", 2)
    monkeypatch.setattr(event_index, "BLOCKS_AT_ONCE", 2)
    monkeypatch.setattr(event_index, "INDEX_PAGE", 3)
    assert database.found() == []
    numbers = {row["number"] for row in database.editor.rows(TABLE)}
    database.editor.execute(f"DELETE FROM {{}}{TABLE}")
    found = database.found()
    assert [kind for kind, _, _ in found] == [FindingKind.EDITED] * len(numbers)
    assert {number for _, _, number in found} == numbers


def test_rows_of_no_event_or_of_another_shape_are_passed_over(database: Database) -> None:
    """No history shows them, so they are no finding."""
    row = database.editor.rows(TABLE)[0]
    assert isinstance(row["number"], int)
    for planted in (
        {**row, "number": row["number"] + 1_000},
        {**row, "stream": os.urandom(16)},
        {**row, "reference": b"short"},
        {**row, "number": -1},
    ):
        database.editor.put(TABLE, planted)
    assert database.found() == []


def test_events_that_are_written_while_the_index_is_verified_are_no_finding(database: Database) -> None:
    stop = threading.Event()

    def write() -> None:
        with open_vault(database.keys, database.store) as vault:
            while not stop.is_set():
                vault.detokenize(database.tokens[0], use("meanwhile"))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        found = [database.found() for _ in range(15)]
    finally:
        stop.set()
        for writer in writers:
            writer.join(30)
    assert found == [[]] * 15
