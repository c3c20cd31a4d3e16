"""Records that come as columns are the records, and refused where a list of them would be."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvault.errors import IntegrityError
from tokenvault.stores.answers import sound_records
from tokenvault.stores.checks import records_fit
from tokenvault.stores.found_records import RecordColumns
from tokenvault.stores.port import SealedRecord
from tokenvault.stores.postgres.statements import RECORD, read_record_columns
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
    """What a server answers with: rows of fields in binary format, or NULL."""

    nfields = len(RECORD)

    def __init__(self, rows: Sequence[Sequence[bytes | None]]) -> None:
        self.ntuples = len(rows)
        self._rows = rows

    def get_value(self, row: int, column: int) -> bytes | None:
        return self._rows[row][column]


def encoded(value: object) -> bytes:
    """A field in binary format."""
    if isinstance(value, int):
        return struct.pack(">q", value)
    return value.encode() if isinstance(value, str) else bytes(value)  # type: ignore[call-overload] # bytes


def sent(row: SealedRecord) -> list[bytes | None]:
    """The fields of a row as PostgreSQL sends them."""
    return [encoded(value) for value in row]


def read(*rows: Sequence[bytes | None]) -> Sequence[SealedRecord]:
    """What the store makes of an answer, behind the guard's check."""
    return sound_records(read_record_columns(Answer(rows)))  # type: ignore[arg-type] # as much of a result as is looked at


@given(st.lists(records, min_size=1, max_size=9), st.data())
def test_columns_are_the_records(rows: list[SealedRecord], data: st.DataObject) -> None:
    """As a sequence, by index, from either end, and by slice; also as the server sends them."""
    columns = RecordColumns.of(rows)
    assert columns == rows
    assert rows == columns
    assert [columns[place] for place in range(len(rows))] == rows
    assert columns[1:] == rows[1:]
    place = data.draw(st.integers(-len(rows), len(rows) - 1))
    assert columns[place] == rows[place]
    assert columns.fit()
    found = read(*map(sent, rows))
    assert type(found) is RecordColumns
    assert found == rows
    assert "0" * 8 not in repr(columns)


UNFIT = (
    {"token": "1" * 12}, {"token": "1" * 20}, {"token": "1" * 15 + "/"}, {"token": "1" * 15 + ":"},
    {"reference": bytes(15)}, {"pan_fingerprint": bytes(17)}, {"requestor": "4" * 10}, {"requestor": "4" * 10 + "x"},
    {"program": ""}, {"program": "x" * 65}, {"revision": 0}, {"revision": -1}, {"key_version": 0},
    {"body": bytes(16_385)}, {"seal": bytes(44)}, {"customer": "c" * 65}, {"customer": "\x7f"}, {"customer": "\n"},
    {"last4_key": bytes(15)}, {"status": 0}, {"status": 128}, {"created_ms": -1},
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
    assert RecordColumns.of([record(7, program="x" * 64, body=bytes(16_384), revision=2**63 - 1)]).fit()


def test_nothing_is_read_across_the_borders_of_fields() -> None:
    """A field that is longer in one row and shorter in another is refused, though the sum of lengths is right."""
    for name, value in record(1)._asdict().items():
        if isinstance(value, bytes) and name != "body":
            rows = record(1, **{name: value + b"x"}), record(2, **{name: value[:-1]})
            with pytest.raises(IntegrityError):
                read(*map(sent, rows))
    rows = record(1, program="shops", body=b"bod"), record(2, program="shop", body=b"body")
    assert read(*map(sent, rows)) == list(rows)


def test_null_and_what_is_not_ascii_are_refused() -> None:
    good = sent(record(1))
    for column in range(len(good)):
        null = [*good[:column], None, *good[column + 1 :]]
        for rows in ([null], [good, null], [null, good]):
            with pytest.raises(IntegrityError):
                read(*rows)
    with pytest.raises(IntegrityError):
        read(sent(record(1, program="é")))
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
