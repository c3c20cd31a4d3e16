"""Random changes of a vault's database, by kind, for the test that none of them stays unseen."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tests.editors import Editor, Row, Value

Tampering = Callable[["Meddler"], None]


class Meddler:
    """Changes one thing of a database; `done` says whether the database took it and is another one for it.

    Args:
        editor: a shell on the file.
        source: of chance.
        older: by table, the rows that stood there at an earlier time.
    """

    def __init__(self, editor: Editor, source: random.Random, older: dict[str, list[Row]]) -> None:
        self.editor, self.source, self.older = editor, source, older

    def one(self, rows: list[Row]) -> Row:
        return self.source.choice(rows)

    def events(self, *, checkpoints: bool = False) -> list[Row]:
        """All events, or those that are checkpoints: these are about their own stream."""
        rows = self.editor.rows("events")
        return [row for row in rows if row["reference"] == row["stream"]] if checkpoints else rows

    def edited(self, value: Value) -> Value:
        """Another value of its type."""
        if isinstance(value, int):
            return value + self.source.choice((-2, -1, 1, 2, 1_000))
        if isinstance(value, str):
            at = self.source.randrange(len(value)) if value else 0
            return value[:at] + self.source.choice("0123456789ABCxyz") + value[at + 1 :]
        if not value or self.source.random() < 0.2:
            return value + self.source.randbytes(1)
        at = self.source.randrange(len(value))
        return value[:at] + bytes((value[at] ^ (1 << self.source.randrange(8)),)) + value[at + 1 :]

    def change(self, table: str, row: Row) -> None:
        column = self.source.choice(list(row))
        self.editor.change(table, row, column, self.edited(row[column]))

    def put(self, table: str, row: Row) -> None:
        """Insert a row, where the table takes it."""
        with suppress(self.editor.refused):
            self.editor.put(table, row)

    def replace(self, table: str, old: Row, new: Row) -> None:
        self.editor.remove(table, old)
        self.put(table, new)

    def remove_events(self, rows: list[Row]) -> None:
        """With the rows of the index that lead to them."""
        for row in rows:
            self.editor.remove("events", row)
            self.editor.remove("event_index", {name: row[name] for name in ("stream", "number")})

    def free_number(self, stream: Value) -> int:
        numbers = [int(row["number"]) for row in self.events() if row["stream"] == stream]
        return max(numbers) + self.source.randint(1, 3)


def _change(table: str) -> Tampering:
    return lambda meddler: meddler.change(table, meddler.one(meddler.editor.rows(table)))


def _remove(table: str) -> Tampering:
    return lambda meddler: meddler.editor.remove(table, meddler.one(meddler.editor.rows(table)))


def _swap(table: str, columns: tuple[str, ...]) -> Tampering:
    def swap(meddler: Meddler) -> None:
        one, two = meddler.source.sample(meddler.editor.rows(table), 2)
        with suppress(meddler.editor.refused):
            meddler.editor.swap(table, one, two, columns)

    return swap


def _remove_event(meddler: Meddler) -> None:
    meddler.remove_events([meddler.one(meddler.events())])


def _cut_off_events(meddler: Meddler) -> None:
    row = meddler.one(meddler.events())
    rows = [each for each in meddler.events() if each["stream"] == row["stream"]]
    meddler.remove_events([each for each in rows if int(each["number"]) >= int(row["number"])])


def _drop_stream(meddler: Meddler) -> None:
    stream = meddler.one(meddler.events())["stream"]
    meddler.remove_events([row for row in meddler.events() if row["stream"] == stream])


def _move_event(meddler: Meddler) -> None:
    row, other = meddler.one(meddler.events()), meddler.one(meddler.events())
    moved = {**row, "stream": other["stream"], "number": meddler.free_number(other["stream"])}
    meddler.replace("events", row, moved)


def _copy_event(meddler: Meddler) -> None:
    row, other = meddler.one(meddler.events()), meddler.one(meddler.events())
    meddler.put("events", {**row, "stream": other["stream"], "number": meddler.free_number(other["stream"])})


def _insert_event(meddler: Meddler) -> None:
    row = meddler.one(meddler.events())
    stream = meddler.source.choice((row["stream"], meddler.source.randbytes(16)))
    number = meddler.free_number(stream) if stream == row["stream"] else 1
    mac = meddler.source.randbytes(16)
    meddler.put("events", {**row, "stream": stream, "number": number, "mac": mac})


def _replay_event(meddler: Meddler) -> None:
    old, over = meddler.source.sample(meddler.events(), 2)
    meddler.replace("events", over, {**old, "stream": over["stream"], "number": over["number"]})


def _remove_checkpoint(meddler: Meddler) -> None:
    meddler.remove_events([meddler.one(meddler.events(checkpoints=True))])


def _change_checkpoint(meddler: Meddler) -> None:
    row = meddler.one(meddler.events(checkpoints=True))
    meddler.replace("events", row, {**row, "body": meddler.edited(row["body"])})


def _insert_record(meddler: Meddler) -> None:
    row = meddler.one(meddler.editor.rows("tokens"))
    token = str(row["token"])[:-4] + f"{meddler.source.randrange(10_000):04}"
    meddler.put("tokens", {**row, "token": token, "reference": meddler.source.randbytes(16)})


def _replay_record(meddler: Meddler) -> None:
    older = {row["token"]: row for row in meddler.older["tokens"]}
    changed = [row for row in meddler.editor.rows("tokens") if older.get(row["token"], row) != row]
    row = meddler.one(changed)
    meddler.replace("tokens", row, older[row["token"]])


def _change_named_value(meddler: Meddler) -> None:
    row = meddler.one(meddler.editor.rows("meta"))
    meddler.replace("meta", row, {**row, "value": meddler.edited(row["value"])})


def _rename_named_value(meddler: Meddler) -> None:
    row = meddler.one(meddler.editor.rows("meta"))
    meddler.replace("meta", row, {**row, "name": meddler.edited(row["name"])})


def _insert_index_row(meddler: Meddler) -> None:
    row, other = meddler.one(meddler.editor.rows("event_index")), meddler.one(meddler.events())
    meddler.put("event_index", {**row, "stream": other["stream"], "number": other["number"]})


def _replay_database(meddler: Meddler) -> None:
    for table, rows in meddler.older.items():
        meddler.editor.restore(table, rows)


KINDS: Final[dict[str, Tampering]] = {
    "change an event": _change("events"),
    "remove an event": _remove_event,
    "cut off the end of a stream": _cut_off_events,
    "drop a stream": _drop_stream,
    "move an event": _move_event,
    "swap two events": _swap("events", ("reference", "body", "mac")),
    "copy an event": _copy_event,
    "insert an event": _insert_event,
    "replay an event": _replay_event,
    "remove a checkpoint": _remove_checkpoint,
    "change a checkpoint": _change_checkpoint,
    "change a record": _change("tokens"),
    "remove a record": _remove("tokens"),
    "insert a record": _insert_record,
    "replay a record": _replay_record,
    "swap two records": _swap("tokens", ("body", "seal")),
    "change an index row": _change("event_index"),
    "remove an index row": _remove("event_index"),
    "insert an index row": _insert_index_row,
    "change a document": _change("domains"),
    "remove a document": _remove("domains"),
    "swap two documents": _swap("domains", ("document",)),
    "change a named value": _change_named_value,
    "rename a named value": _rename_named_value,
    "remove a named value": _remove("meta"),
    "change a stored count": _change("token_counts"),
    "remove a stored count": _remove("token_counts"),
    "replay the database": _replay_database,
}
