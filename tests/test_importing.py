"""Importing cards from files as they are: each reject by line and code, and no other row lost for it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests import vaults
from tests.vaults import MASTERCARD, SHOP, VISA
from tokenvault.keys import KeyStore
from tokenvault.vault import csv_rows, importing

HEAD = b"pan,expiry,customer\n"
GOOD = f"{MASTERCARD},12/29,last\n".encode()


@pytest.fixture(scope="module")
def vault(local_keys: KeyStore) -> Iterator[tv.Vault]:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as opened:
        yield opened


def told(vault: tv.Vault, source: Any, **arguments: Any) -> list[tuple[int, str | None]]:
    """Line and code of each row."""
    rows = tv.import_cards(vault, source, requestor=SHOP, program="one-time", **arguments)
    return [(row.line, row.code) for row in rows]


def file_of(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "cards.csv"
    path.write_bytes(content)
    return path


BAD_ROWS = {
    "another shape": (f"{VISA},12/29\n", "ROW_MISSHAPEN"),
    "a quote that never closes": (f'{VISA},12/29,"never\n', "ROW_MISSHAPEN"),
    "a quote before the number": (f'"{VISA},12/29,c\n', "ROW_MISSHAPEN"),
    "a quote that closes within": (f'{VISA},12/29,"a"b"\n', "ROW_MISSHAPEN"),
    "a line without end": (f"{VISA},12/29,{'x' * 1_000_000}\n", "ROW_MISSHAPEN"),
    "a quoted cell without end": (f'{VISA},12/29,"{"x" * 1_000_000}"\n', "ROW_MISSHAPEN"),
    "a card hidden far in a line": (
        f"x,{'y' * (csv_rows.LINE_CHARACTERS_MAX - 2)}{VISA},12/29,c\n",
        "ROW_MISSHAPEN",
    ),
    "a NUL": (f"{VISA},12/29,a\0b\n", "INVALID_INPUT"),
    "another encoding": (f"{VISA},12/29,Jos\udce9\n", "INVALID_INPUT"),
    "a wrong check digit": ("4111111111111112,12/29,c\n", "PAN_CHECK_DIGIT"),
    "rounded": ("4.11111E+15,12/29,c\n", "PAN_ROUNDED"),
    "no month": (f"{VISA},13/29,c\n", "EXPIRY_FORM"),
    "no number": (",12/29,c\n", "PAN_CHARACTERS"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_by_line_and_code_and_costs_no_other(
    vault: tv.Vault, tmp_path: Path, name: str
) -> None:
    row, code = BAD_ROWS[name]
    content = HEAD + GOOD + row.encode("utf-8", "surrogateescape") + b"\n" + GOOD + GOOD
    path = file_of(tmp_path, content)
    expected = [(2, None), (3, code), (5, None), (6, None)]
    assert told(vault, path) == expected
    assert told(vault, path, after_line=3) == expected[2:]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_line_ends_marks_and_separators_are_those_that_files_have(
    vault: tv.Vault, tmp_path: Path, end: str, mark: str, separator: str
) -> None:
    rows = (
        ("Card Number", "Exp. Date", "Note"),
        (VISA, "12/29", '"two\nlines"'),
        ("", "", ""),
        (VISA, "1/30", ""),
    )
    text = mark + "".join(separator.join(row) + end for row in rows)
    for source in (file_of(tmp_path, text.encode()), io.StringIO(text, newline="")):
        assert told(vault, source) == [(3, None), (5, None)]
    assert told(vault, io.StringIO(text.removesuffix(end), newline="")) == [(3, None), (5, None)]


@pytest.mark.parametrize(
    "content",
    [b"pan,pan\n", b"pan,number\n", b"pan,Card Number,expiry\n", b"a,b\n"],
)
def test_columns_that_are_not_clear_are_asked_about(vault: tv.Vault, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(tv.InvalidInputError) as refused:
        told(vault, file_of(tmp_path, content + f"{VISA},{MASTERCARD}\n".encode()))
    assert refused.value.code == "COLUMNS_UNCLEAR"
    assert VISA not in str(refused.value)


def test_a_file_that_is_no_text_in_utf_8_is_refused(vault: tv.Vault, tmp_path: Path) -> None:
    for content in (f"pan,expiry\n{VISA},12/29\n".encode("utf-16"), b"\0" * 100):
        with pytest.raises(tv.InvalidInputError, match="no CSV in UTF-8"):
            told(vault, file_of(tmp_path, content))


def test_mappings_may_each_have_other_columns(vault: tv.Vault) -> None:
    rows = [
        {"pan": VISA, "expiry": "12/29"},
        {},
        {"expiry": "12/29", "customer": "c-9", "pan": VISA},
        {"note": "x"},
    ]
    outcomes = list(tv.import_cards(vault, rows, requestor=SHOP, program="one-time"))
    assert [(row.line, row.code) for row in outcomes] == [(1, None), (3, None), (4, "COLUMNS_UNCLEAR")]
    token = outcomes[1].token
    assert token is not None
    assert token.customer == "c-9"


def test_columns_name_what_is_known_alone(vault: tv.Vault) -> None:
    given = [{"number of the card": VISA, "until": "12/29"}]
    assert told(vault, given, columns={"pan": "number of the card", "expiry": "until"}) == [(1, None)]
    with pytest.raises(
        tv.InvalidInputError, match=r"columns is a mapping .* names some of: pan, expiry"
    ) as wrong:
        told(vault, given, columns={"pan": "number of the card", "cvv": "until"})
    assert wrong.value.code == "INVALID_INPUT"


@pytest.mark.parametrize("source", ["cards.csv", b"cards.csv", 7, None])
def test_what_is_no_source_of_rows_is_refused(vault: tv.Vault, source: object) -> None:
    with pytest.raises(tv.InvalidInputError, match="source is a Path, an open text file") as refused:
        told(vault, source)
    assert refused.value.code == "INVALID_INPUT"


def test_however_many_sets_of_columns_come_so_many_are_remembered_and_each_row_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importing, "COLUMN_SETS_MAX", 3)
    known: dict[tuple[str, ...], dict[str, str]] = {}
    for number in range(10):
        names = importing._names_of({"pan": VISA, f"note-{number}": "x"}, {}, known)
        assert names == {"pan": "pan"}
        assert len(known) == number % 3 + 1
    assert list(known) == [("pan", "note-9")]


def test_a_row_has_so_many_lines_and_those_of_a_longer_one_are_read_by_themselves(
    vault: tv.Vault, tmp_path: Path
) -> None:
    for lines, expected in (
        (csv_rows.ROW_LINES_MAX, [(csv_rows.ROW_LINES_MAX + 1, None)]),
        (csv_rows.ROW_LINES_MAX + 1, [(2, "ROW_MISSHAPEN")]),
    ):
        row = f'{VISA},12/29,"'.encode() + b"\n" * (lines - 1) + b'"\n'
        found = told(vault, file_of(tmp_path, HEAD + row + GOOD))
        assert found[:1] == expected
        assert found[-1] == (lines + 2, None)
        if lines > csv_rows.ROW_LINES_MAX:
            assert found[1:-1] == [(lines + 1, "ROW_MISSHAPEN")]  # the quote by itself


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("12/29", "2029-12"), ("1229", "2029-12"), ("12/2029", "2029-12"), ("2029-12", "2029-12"),
        ("202912", "2029-12"), (" 1 / 29 ", "2029-01"), ("129", "2029-01"), ("Dec-29", "2029-12"),
        ("December 2029", "2029-12"), ("'12/29", "2029-12"), ("2029-12-31", "2029-12"),
        ("2029-12-31T00:00:00Z", "2029-12"), ("2029-12-31 00:00:00", "2029-12"), ("01/20", "2020-01"),
    ],
)  # fmt: skip
def test_expiries_are_read_as_files_spell_them(vault: tv.Vault, written: str, read: str) -> None:
    (row,) = tv.import_cards(vault, [{"pan": VISA, "expiry": written}], requestor=SHOP, program="one-time")
    assert row.token is not None, row
    assert str(row.token.card_expiry) == read


@pytest.mark.parametrize("stopped_at", [1, 3, 4, 6])
@pytest.mark.parametrize("again_after", ["the start", "the last line that was reported"])
def test_an_import_that_has_an_id_goes_on_from_anywhere_without_a_second_token(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch, stopped_at: int, again_after: str
) -> None:
    monkeypatch.setattr(importing, "CHUNK_ROWS", 4)
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    rows = [{"pan": card, "expiry": "12/29"} for card in (VISA, MASTERCARD, VISA, VISA, MASTERCARD, VISA)]

    with vaults.open_vault(local_keys, store) as opened:

        def import_rows(after_line: int = 0) -> Iterator[tv.ImportedRow]:
            return tv.import_cards(
                opened, rows, requestor=SHOP, program="one-time", after_line=after_line, import_id="2026-11"
            )

        before = {row.line: row.token for row in islice(import_rows(), stopped_at)}
        after = 0 if again_after == "the start" else stopped_at
        again = {row.line: row.token for row in import_rows(after)}
        assert again | before == before | again
        assert len({token.token for token in (before | again).values() if token}) == len(rows)
        assert opened.count() == len(rows)


def test_an_id_of_an_import_is_short_and_a_row_s_own_goes_before_it(vault: tv.Vault) -> None:
    rows = [{"pan": VISA, "expiry": "12/29", "id": "row-of-its-own"}]
    first, second = (
        next(tv.import_cards(vault, rows, requestor=SHOP, program="one-time", import_id=name)).token
        for name in ("a" * 40, "b")
    )
    assert first == second
    with pytest.raises(tv.InvalidInputError, match="import_id"):
        next(tv.import_cards(vault, rows, requestor=SHOP, program="one-time", import_id="a" * 41))


@pytest.mark.parametrize("expiry", ["2020-01", "2039-01", None])
def test_a_card_is_imported_as_it_is_expired_or_not_or_with_no_word_of_an_expiry(
    vault: tv.Vault, expiry: str | None
) -> None:
    (row,) = tv.import_cards(vault, [{"pan": VISA, "expiry": expiry}], requestor=SHOP, program="one-time")
    (many,) = vault.issue_many([(VISA, expiry)], requestor=SHOP, program="one-time", accept_expired=True)
    one = vault.issue(VISA, expiry=expiry, requestor=SHOP, program="one-time", accept_expired=True)
    for token in (row.token, many, one):
        assert isinstance(token, tv.TokenInfo)
        assert token.card_expiry == (None if expiry is None else tv.CardExpiry.parse(expiry))


@given(st.lists(st.text('ab",\r\n\0', max_size=12), max_size=8), st.integers(1, 7))
def test_rows_are_the_same_however_a_file_is_read_and_all_good_ones_are_there(
    dirt: list[str], size: int
) -> None:
    """Whatever lines stand between them, if no quote in them is left open."""
    lines = [line.replace('"', "") for line in dirt]
    text = "pan,expiry\n" + "".join(f"{line}\n{place},good\n" for place, line in enumerate(lines))

    class Dripping(io.StringIO):
        def read(self, _size: int | None = -1) -> str:
            return super().read(size)

    whole, dripped = (list(csv_rows.csv_rows(kind(text, newline=""))) for kind in (io.StringIO, Dripping))
    assert whole == dripped
    good = [cells["pan"] for _, cells in whole if cells.get("expiry") == "good"]
    assert good == [str(place) for place in range(len(lines))]
    numbers = [line for line, _ in whole]
    assert numbers == sorted(set(numbers))
