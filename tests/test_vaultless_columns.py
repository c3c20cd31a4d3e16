"""Columns of vaultless tokens: what `tokenize` and `detokenize` give, in every kind of container."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokenvault as tv
from tests.ciphers import CountingCipher, library_locals
from tests.strategies import pan_digits
from tests.test_ff1 import ANYTHING
from tests.test_ff1_columns import ARRAYS
from tests.test_vaultless import SHAPES, tokenizer
from tests.vaults import VISA
from tokenvault.columns.digits import from_ascii, luhn_valid_many, to_ascii, with_check_digit
from tokenvault.keys import KeyStore
from tokenvault.model.pan import luhn_check_digit, luhn_valid

OWN = [
    {"format": tv.TokenFormat(bin="99", length=19)},
    {"format": tv.TokenFormat(bin="9", length=19, luhn=False)},
    {"format": tv.TokenFormat(bin="8", length=18)},
]
KEPT: list[dict[str, Any]] = [{"keep_first": first, "keep_last4": last4} for first, last4 in SHAPES]
ANY_SHAPE = [*KEPT, *OWN]
FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def longest(arguments: dict[str, Any]) -> int:
    form = arguments.get("format")
    return 19 if form is None else form.length - len(form.bin) - 1


@given(st.lists(st.integers(0, 10**19 - 1), max_size=9))
def test_luhn_and_ascii_of_columns_are_those_of_single_numbers(numbers: list[int]) -> None:
    column = np.array(numbers, np.uint64)
    texts = [f"{number:019}" for number in numbers]
    assert luhn_valid_many(column).tolist() == [luhn_valid(text) for text in texts]
    assert [row.tobytes().decode() for row in to_ascii(column, 19)] == texts
    assert from_ascii(to_ascii(column, 19))[0].tolist() == numbers
    short = column // np.uint64(10)
    assert with_check_digit(short).tolist() == [
        int(text[:-1] + luhn_check_digit(text[:-1])) for text in texts
    ]


@FIXTURE
@given(data=st.data(), arguments=st.sampled_from(ANY_SHAPE))
def test_a_column_gives_what_single_calls_give_and_leads_back(
    local_keys: KeyStore, data: st.DataObject, arguments: dict[str, Any]
) -> None:
    vaultless = tokenizer(local_keys, **arguments)
    pans = data.draw(st.lists(pan_digits(13, longest(arguments)), max_size=8))
    tokens = vaultless.tokenize_many(pans)
    assert tokens == [vaultless.tokenize(pan) for pan in pans]
    assert [vaultless.detokenize(token).reveal() for token in tokens] == pans
    assert vaultless.detokenize_many(tokens) == pans
    assert vaultless.tokenize_many(tuple(pans)) == tuple(tokens)
    for dtype in ("S19", "U19", "S25"):
        column = np.array(pans, dtype)
        result = vaultless.tokenize_many(column)
        assert result.dtype.kind == column.dtype.kind
        assert result.astype(str).tolist() == tokens
        assert vaultless.detokenize_many(result).astype(str).tolist() == pans
    for length in {len(pan) for pan in pans}:
        same = [pan for pan in pans if len(pan) == length]
        numbers = np.array(list(map(int, same)), np.uint64)
        turned = vaultless.tokenize_many(numbers, length=length)
        assert turned.dtype == np.uint64
        assert turned.tolist() == [int(vaultless.tokenize(pan)) for pan in same]
        assert vaultless.detokenize_many(turned, length=length).tolist() == numbers.tolist()


def test_a_named_tuple_of_pans_gives_a_tuple_of_tokens(local_keys: KeyStore) -> None:
    class Two(NamedTuple):
        first: str
        second: str

    vaultless = tokenizer(local_keys)
    pans = Two("4111111111111111", "5555555555554444")
    assert vaultless.tokenize_many(pans) == tuple(vaultless.tokenize_many(list(pans)))


@FIXTURE
@given(data=st.data(), arguments=st.sampled_from(OWN))
def test_tokens_under_their_own_bin_can_be_told_from_pans(
    local_keys: KeyStore, data: st.DataObject, arguments: dict[str, Any]
) -> None:
    form = arguments["format"]
    token = tokenizer(local_keys, **arguments).tokenize(data.draw(pan_digits(13, longest(arguments))))
    assert len(token) == form.length
    assert token.startswith(form.bin)
    assert luhn_valid(token) == form.luhn


@pytest.mark.parametrize(
    "form",
    [
        tv.TokenFormat(bin="999", length=19),
        tv.TokenFormat(bin="99", length=18),
        tv.TokenFormat(bin="9"),
        tv.TokenFormat(bin="9", length=19, keep_last4=True),
        "99",
    ],
)
def test_a_format_that_can_not_hold_pans_of_16_digits_is_refused_at_construction(
    local_keys: KeyStore, form: Any
) -> None:
    with pytest.raises(tv.InvalidInputError):
        tokenizer(local_keys, format=form)


@pytest.mark.parametrize("kept", [{"keep_first": 6}, {"keep_last4": True}])
def test_a_format_keeps_no_digits(local_keys: KeyStore, kept: dict[str, Any]) -> None:
    with pytest.raises(tv.InvalidInputError):
        tokenizer(local_keys, **OWN[0], **kept)
    tokenizer(local_keys, **OWN[0], keep_last4=False)


def test_a_pan_too_long_for_the_format_is_refused(local_keys: KeyStore) -> None:
    vaultless = tokenizer(local_keys, **OWN[0])
    long = "41111111111111111"
    long = long[:-1] + luhn_check_digit(long[:-1])
    with pytest.raises(tv.InvalidInputError, match="up to 16"):
        vaultless.tokenize(long)
    with pytest.raises(tv.InvalidInputError, match="up to 16"):
        vaultless.tokenize_many([long])


def test_most_numbers_under_a_token_bin_are_no_tokens_and_the_column_agrees_on_which(
    local_keys: KeyStore,
) -> None:
    vaultless = tokenizer(local_keys, **OWN[0])
    refused = 0
    for number in range(200):
        start = f"99{number * 10**13:016}"
        token = start + luhn_check_digit(start)
        try:
            pan = vaultless.detokenize(token).reveal()
        except tv.InvalidInputError:
            refused += 1
            with pytest.raises(tv.InvalidInputError, match="row 0"):
                vaultless.detokenize_many([token])
        else:
            assert vaultless.detokenize_many([token]) == [pan]
    assert refused > 140


BAD = [
    "",
    "4111",
    VISA[:-1] + "2",
    VISA[:-1] + "x",
    VISA + "\0",
    "4111 1111 1111 1111",
    VISA[:-1] + "\u0661",
    "4" * 20,
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("arguments", [KEPT[0], KEPT[1], OWN[0]])
def test_a_bad_row_is_refused_by_its_number_and_not_shown(
    local_keys: KeyStore, bad: str, arguments: dict[str, Any]
) -> None:
    vaultless = tokenizer(local_keys, **arguments)
    columns: list[Any] = [[VISA, VISA, bad, bad]]
    if "\0" not in bad:  # numpy takes zeros at the end for padding
        columns.append(np.array([VISA, VISA, bad, bad]))
    for column in columns:
        with pytest.raises(tv.InvalidInputError, match="row 2 is no PAN") as caught:
            vaultless.tokenize_many(column)
        assert VISA not in library_locals(caught.value)


def test_numbers_outside_their_length_are_refused(local_keys: KeyStore) -> None:
    vaultless = tokenizer(local_keys, keep_last4=False)
    wrong: list[tuple[Any, int | None]] = [
        (np.array([int(VISA)], np.uint64), 15),
        (np.array([int(VISA)], np.uint64), 12),
        (np.array([int(VISA)], np.uint64), 20),
        (np.array([int(VISA)], np.uint64), None),
        (np.array([2**64 - 1], np.uint64), 19),
        (np.array([int(VISA) + 1], np.uint64), 16),
        ([VISA], 16),
        (np.array([VISA]), 16),
    ]
    for column, length in wrong:
        with pytest.raises(tv.InvalidInputError):
            vaultless.tokenize_many(column, length=length)
        with pytest.raises(tv.InvalidInputError):
            vaultless.detokenize_many(column, length=length)


@FIXTURE
@given(st.one_of(ARRAYS, ANYTHING, st.lists(st.text())), st.one_of(st.none(), ANYTHING))
def test_whatever_goes_in_only_invalid_input_comes_out(
    local_keys: KeyStore, column: Any, length: Any
) -> None:
    for arguments in (KEPT[0], OWN[0]):
        vaultless = tokenizer(local_keys, **arguments)
        for given_length in (length, 16):
            with contextlib.suppress(tv.InvalidInputError):
                vaultless.tokenize_many(column, length=given_length)
            with contextlib.suppress(tv.InvalidInputError):
                vaultless.detokenize_many(column, length=given_length)


def test_both_custodies_work_on_real_softhsm_in_the_calls_of_one_row(
    keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pans = [f"41111111{number:07}" for number in range(20_000)]
    pans = [pan + luhn_check_digit(pan) for pan in pans]
    for arguments in (KEPT[0], OWN[0]):
        vaultless = tokenizer(keys, **arguments)
        tokens = vaultless.tokenize_many(pans)
        assert vaultless.detokenize_many(tokens) == pans
        assert [vaultless.tokenize(pan) for pan in pans[:3]] == tokens[:3]
        counting = CountingCipher(vaultless._shape.cipher)
        monkeypatch.setattr(vaultless, "_shape", attrs.evolve(vaultless._shape, cipher=counting))
        assert vaultless.tokenize_many(pans) == tokens
        assert counting.calls <= 12


class TestArrow:
    """pyarrow arrays, where it is installed."""

    @FIXTURE
    @given(data=st.data(), arguments=st.sampled_from([KEPT[0], KEPT[1], OWN[0]]))
    def test_every_kind_comes_back_with_its_missing_values(
        self, local_keys: KeyStore, data: st.DataObject, arguments: dict[str, Any]
    ) -> None:
        pa = pytest.importorskip("pyarrow")
        vaultless = tokenizer(local_keys, **arguments)
        values = data.draw(st.lists(st.one_of(st.none(), pan_digits(13, 16)), max_size=8))
        tokens = [None if pan is None else vaultless.tokenize(pan) for pan in values]
        start = data.draw(st.integers(0, len(values)))
        for kind in (pa.string(), pa.large_string()):
            plain = pa.array(values, kind)
            for array, expected in (
                (plain, tokens),
                (plain.slice(start), tokens[start:]),
                (plain.dictionary_encode(), tokens),
                (pa.chunked_array([plain[:start], plain[start:]], kind), tokens),
            ):
                result = vaultless.tokenize_many(array)
                result.validate(full=True)
                assert type(result) is type(array)
                assert result.type == array.type
                assert result.to_pylist() == expected
                assert vaultless.detokenize_many(result).to_pylist() == array.to_pylist()

    def test_a_bad_row_is_refused_by_its_number(self, local_keys: KeyStore) -> None:
        pa = pytest.importorskip("pyarrow")
        vaultless = tokenizer(local_keys)
        for array in (pa.array([VISA, None, "4111"]), pa.chunked_array([[VISA, None], ["4111"]])):
            with pytest.raises(tv.InvalidInputError, match="row 2 is no PAN"):
                vaultless.tokenize_many(array)
        for other in (pa.array([1, 2]), pa.array([b"4111"]), pa.array([None]), pa.scalar(VISA)):
            with pytest.raises(tv.InvalidInputError):
                vaultless.tokenize_many(other)
