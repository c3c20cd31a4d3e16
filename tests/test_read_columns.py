"""Records that come as columns are the records, and refused where a list of them would be."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvault.errors import IntegrityError
from tokenvault.stores.checks import records_fit
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.port import SealedRecord
from tokenvault.stores.postgres.groups import RECORD, record_groups
from tokenvault.stores.postgres.store import PostgresTokenStore


def record(number: int, **fields: object) -> SealedRecord:
    """A record that fits, with some fields set."""
    name = number.to_bytes(16)
    common = SealedRecord(f"{number:016}", name, name, "40012345678", "shop", 1, 1, b"body", bytes(45))
    return common._replace(**fields)  # type: ignore[arg-type] # also fields of other shapes


records = st.builds(
    lambda number, revision, seal, body: record(number, revision=revision, seal=seal, body=body),
    st.integers(0, 10**16 - 1),
    st.integers(1, 2**63 - 1),
    st.binary(min_size=45, max_size=45),
    st.binary(min_size=4, max_size=4),
)


class Answer:
    """What a server answers with: one column of byte strings."""

    nfields = 1

    def __init__(self, values: Sequence[bytes | None]) -> None:
        self.ntuples = len(values)
        self._values = values

    def get_value(self, row: int, _column: int) -> bytes | None:
        return self._values[row]


def encoded(value: object) -> bytes:
    """A field in binary format."""
    if isinstance(value, int):
        return struct.pack(">q", value)
    return value.encode() if isinstance(value, str) else bytes(value)  # type: ignore[call-overload] # bytes


def sent(row: SealedRecord, kinds: Sequence[int] = RECORD) -> bytes:
    """A row as PostgreSQL's `record_send` writes it."""
    parts = [struct.pack(">i", len(row))]
    for value, kind in zip(row, kinds, strict=True):
        data = encoded(value)
        parts.append(struct.pack(">Ii", kind, len(data)) + data)
    return b"".join(parts)


def read(*values: bytes | None) -> Sequence[SealedRecord]:
    """What the store makes of an answer."""
    return record_groups(Answer(values))  # type: ignore[arg-type] # as much of a result as is looked at


@given(st.lists(records, min_size=1, max_size=9), st.data())
def test_columns_are_the_records(rows: list[SealedRecord], data: st.DataObject) -> None:
    """As a sequence, by index, by slice, and some of them; also as the server sends them."""
    columns = RecordColumns.of(rows)
    assert columns == rows
    assert rows == columns
    assert [columns[place] for place in range(len(rows))] == rows
    assert columns[1:] == rows[1:]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    assert columns.take(np.array(chosen, np.intp)) == [rows[place] for place in chosen]
    assert columns.fit()
    found = read(b"".join(map(sent, rows)))
    assert type(found) is RecordColumns
    assert found == rows
    assert "0" * 8 not in repr(columns)


UNFIT = (
    {"token": "1" * 12}, {"token": "1" * 20}, {"token": "1" * 15 + "/"}, {"token": "1" * 15 + ":"},
    {"reference": bytes(15)}, {"pan_fingerprint": bytes(17)}, {"requestor": "4" * 10}, {"requestor": "4" * 10 + "x"},
    {"program": ""}, {"program": "x" * 65}, {"revision": 0}, {"revision": -1}, {"key_version": 0},
    {"body": bytes(4_097)}, {"seal": bytes(44)},
)  # fmt: skip


@pytest.mark.parametrize("fields", UNFIT)
def test_columns_are_refused_where_records_are(fields: dict[str, object]) -> None:
    """Whichever field has another shape, alone or below rows that fit; and one that is just in bounds is taken."""
    unfit = record(7, **fields)
    assert not records_fit([unfit])
    assert not RecordColumns.of([unfit]).fit()
    for rows in ([unfit], [record(1), unfit], [unfit, record(1)]):
        with pytest.raises(IntegrityError):
            read(*map(sent, rows))
    assert RecordColumns.of([record(7, program="x" * 64, body=bytes(4_096), revision=2**63 - 1)]).fit()


def test_rows_that_are_framed_otherwise_are_refused() -> None:
    """Nothing is read across the borders of fields: lengths, types, NULL, and bytes cut off or behind."""
    good, other = sent(record(1)), sent(record(2, program="shops", body=b"bod"))
    assert len(good) == len(other)
    kinds = list(RECORD)
    kinds[1] = RECORD[0]
    null = good.replace(struct.pack(">Ii", RECORD[0], 16), struct.pack(">Ii", RECORD[0], -1), 1)
    fewer = struct.pack(">i", 8) + good[4:]
    text = sent(record(1, program="é"))
    for data in (
        good + other,
        sent(record(1), kinds),
        null,
        fewer,
        text,
        good[:-1],
        good + b"\0",
        good[:9],
        b"",
    ):
        with pytest.raises(IntegrityError):
            read(data)
    with pytest.raises(IntegrityError):
        read(None)
    assert read(good, other) == [record(1), record(2, program="shops", body=b"bod")]
    assert read() == []


def test_records_of_all_lengths_come_back(postgres_url: str) -> None:
    """Texts and bodies of several lengths, the same sum of lengths, and an empty body."""
    rows = [
        record(
            number,
            token=f"{number:0{13 + number % 7}}",
            program="x" * (1 + number % 3),
            body=bytes(number % 5),
        )
        for number in range(1, 200)
    ]
    store = PostgresTokenStore(postgres_url)
    store.provision()
    assert store.insert(rows, []) == []
    assert sorted(store.get([row.token for row in rows])) == sorted(rows)
    alike = [row for row in rows if len(row.token) == 13 and len(row.program) == 2 and not row.body]
    assert type(store.get([row.token for row in alike])) is RecordColumns
    assert store.get(["9" * 13, "9" * 14]) == []
    store.close()
