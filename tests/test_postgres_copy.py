"""Rows for binary COPY, built from columns, are what psycopg writes of the same values."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.abc import Buffer
from psycopg.copy import LibpqWriter

from tests.postgres_server import PostgresServer
from tokenvault.stores import open_token_store
from tokenvault.stores.port import SealedRecord
from tokenvault.stores.postgres.copy import Column, by_first, copy_rows, record_columns
from tokenvault.testing import a_record, an_event

RECORD = ["text", "bytea", "bytea", "text", "bytea", "int8", "int8", "bytea", "bytea"]
EVENT = ["bytea", "int8", "bytea", "bytea", "bytea"]

integers = st.integers(1, 2**63 - 1)
records = st.builds(
    SealedRecord,
    token=st.from_regex("[0-9]{13,19}", fullmatch=True),
    reference=st.binary(min_size=16, max_size=16),
    pan_fingerprint=st.binary(min_size=16, max_size=16),
    requestor=st.from_regex("[0-9]{11}", fullmatch=True),
    program=st.text(st.characters(max_codepoint=127), min_size=1, max_size=64),
    revision=integers,
    key_version=integers,
    body=st.binary(max_size=200),
    seal=st.binary(min_size=45, max_size=45),
)


class NotingWriter(LibpqWriter):
    """Passes rows on and keeps them."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        super().__init__(cursor)
        self.sent = b""

    def write(self, data: Buffer) -> None:
        self.sent += bytes(data)
        super().write(data)


def psycopg_rows(connection: psycopg.Connection, kinds: list[str], values: list[tuple[Any, ...]]) -> bytes:
    """What psycopg's own writer sends."""
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(kinds))
    connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS t{len(kinds)} ({columns})".encode())
    cursor = connection.cursor()
    writer = NotingWriter(cursor)
    with cursor.copy(f"COPY t{len(kinds)} FROM STDIN (FORMAT binary)".encode(), writer=writer) as copy:
        copy.set_types(kinds)
        for value in values:
            copy.write_row(value)
    return writer.sent


@pytest.fixture(scope="module")
def connection(postgres_server: PostgresServer) -> Any:
    with postgres_server.raw() as opened:
        yield opened


@given(rows=st.lists(records, min_size=1, max_size=5))
def test_records_are_what_psycopg_writes_of_them(
    connection: psycopg.Connection, rows: list[SealedRecord]
) -> None:
    values = [(*row[:4], row.program.encode(), *row[5:]) for row in rows]
    assert copy_rows(record_columns(rows)) == psycopg_rows(connection, RECORD, values)


@given(rows=st.lists(records, min_size=1, max_size=5))
def test_rows_in_the_order_of_their_first_field_are_the_sorted_records(rows: list[SealedRecord]) -> None:
    """Rows in the order of their first field are those of the sorted records."""
    columns = record_columns(rows)
    ordered = sorted(rows, key=lambda row: row.token)
    if len({row.token for row in rows}) == len(rows):
        assert copy_rows(columns, by_first(columns)) == copy_rows(record_columns(ordered))


@given(values=st.lists(st.binary(max_size=9), min_size=1, max_size=9))
def test_a_column_is_padded_only_where_lengths_differ(values: list[bytes]) -> None:
    column = Column.of_bytes(values)
    lengths = [len(value) for value in values]
    assert (column.lengths is None) == (len(set(lengths)) == 1)
    kept = column.lengths if column.lengths is not None else np.array(lengths)
    assert [bytes(data[:length]) for data, length in zip(column.data, kept, strict=True)] == values


def test_a_full_batch_comes_back_as_it_was_written(postgres_url: str) -> None:
    """Ten thousand records of several lengths, with two events each, go in and come out."""
    written = [
        a_record(n, token=f"9{n:0{12 + n % 7}d}", program="p" * (1 + n % 5), body=bytes(n % 300))
        for n in range(10_000)
    ]
    store = open_token_store(postgres_url)
    store.provision()
    assert store.insert(written, [an_event(n + 1) for n in range(10_000)]) == []
    store.append([an_event(n + 10_001) for n in range(10_000)])
    assert sorted(store.get([record.token for record in written])) == sorted(written)
    stream = an_event(1).stream
    assert store.events(stream=stream, after=10_000) == [an_event(n + 10_001) for n in range(10_000)]
    assert store.insert([a_record(1, token="8" * 13), written[7]], []) == [written[7].token]
    assert store.get(["8" * 13]) == []
    store.close()
