"""Columns of bytes, digits and random numbers: checked when they come in, and equal to the scalar rule."""

from __future__ import annotations

import os
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tokenvault.columns import arrays, digits, random

UINT64_MAX = 2**64 - 1


def column(*values: int) -> arrays.Words:
    return np.array(values, np.uint64)


def luhn_sum(number: int) -> int:
    """ISO/IEC 7812-1, annex B, digit by digit from the right."""
    total = 0
    for place, digit in enumerate(map(int, reversed(str(number)))):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total


# Digits.


@given(st.lists(st.integers(0, 10**19 - 1)))
def test_luhn_sums_are_those_of_the_standard(numbers: list[int]) -> None:
    assert digits.luhn_sums(column(*numbers)).tolist() == [luhn_sum(number) for number in numbers]
    assert digits.luhn_valid_many(column(*numbers)).tolist() == [
        luhn_sum(number) % 10 == 0 for number in numbers
    ]


def test_the_greatest_luhn_sum_is_that_of_nines() -> None:
    assert digits.luhn_sums(column(10**19 - 1)).tolist() == [luhn_sum(10**19 - 1)] == [171]


@given(st.lists(st.integers(0, 10**18 - 1)))
def test_a_check_digit_makes_a_number_valid_and_leaves_its_payload(payloads: list[int]) -> None:
    numbers = digits.with_check_digit(column(*payloads))
    assert digits.luhn_valid_many(numbers).all()
    assert (numbers // np.uint64(10)).tolist() == payloads


@given(st.integers(1, 19).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, 10**n - 1)))))
def test_digits_in_ascii_read_back_as_the_numbers(case: tuple[int, list[int]]) -> None:
    length, numbers = case
    text = digits.to_ascii(column(*numbers), length)
    assert text.shape == (len(numbers), length)
    assert text.flags.c_contiguous
    assert [row.tobytes().decode() for row in text] == [f"{number:0{length}}" for number in numbers]
    back, are_digits = digits.from_ascii(text)
    assert back.tolist() == numbers
    assert are_digits.all()


@given(st.binary(min_size=5, max_size=5))
def test_a_row_is_all_digits_or_said_not_to_be(row: bytes) -> None:
    text = np.frombuffer(b"00000" + row, np.uint8).reshape(2, 5)
    _, are_digits = digits.from_ascii(text)
    assert are_digits.tolist() == [True, row.isdigit()]


@pytest.mark.parametrize("character", [b"/", b":", b"\0", b"\xff"])
def test_the_neighbors_of_the_digits_are_none(character: bytes) -> None:
    _, are_digits = digits.from_ascii(np.frombuffer(b"12" + character, np.uint8).reshape(1, 3))
    assert not are_digits.any()


def test_a_number_has_at_most_19_digits() -> None:
    assert digits.DIGITS_MAX == 19


# Arrays as arguments.


@given(st.integers(0, 3), st.integers(0, 5), st.integers(0, 3))
def test_bytes_are_placed_in_each_row_from_where_they_are_to_begin(rows: int, width: int, start: int) -> None:
    blocks = np.full((rows, 8), 255, np.uint8)
    placed = np.arange(rows * width, dtype=np.uint8).reshape(rows, width)
    arrays.place(placed, blocks, start)
    assert (blocks[:, start : start + width] == placed).all()
    assert (blocks[:, :start] == 255).all()
    assert (blocks[:, start + width :] == 255).all()


BYTES = np.arange(6, dtype=np.uint8).reshape(2, 3)


def test_columns_of_bytes_are_taken_as_they_are_and_side_by_side() -> None:
    assert arrays.byte_columns("it", BYTES, width=3) is BYTES
    turned = arrays.byte_columns("it", BYTES.T)
    assert turned.flags.c_contiguous
    assert (turned == BYTES.T).all()


@pytest.mark.parametrize(
    "value",
    [
        None,
        BYTES.tolist(),
        BYTES.astype(np.int8),
        BYTES[0],
        BYTES[None],
        np.ma.masked_array(BYTES, BYTES > 3),
    ],
)
def test_what_is_no_column_of_bytes_is_refused_and_named(value: object) -> None:
    with pytest.raises(
        tv.InvalidInputError, match=r"^it must be a numpy array of uint8 of shape \(rows, bytes\)$"
    ):
        arrays.byte_columns("it", value)


@pytest.mark.parametrize("width", [0, 2, 4])
def test_a_column_of_another_width_is_refused_by_the_width_it_should_have(width: int) -> None:
    with pytest.raises(tv.InvalidInputError, match=rf"shape \(rows, {width}\)$"):
        arrays.byte_columns("it", BYTES, width=width)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2],
        column(1).astype(np.int64),
        column(1, 2).reshape(1, 2),
        np.ma.masked_array(column(1), [True]),
    ],
)
def test_what_is_no_column_of_numbers_is_refused_and_named(value: object) -> None:
    with pytest.raises(tv.InvalidInputError, match=r"^it must be a numpy array of uint64"):
        arrays.word_column("it", value)


def test_an_array_in_a_file_is_an_array_and_a_masked_one_is_none() -> None:
    values = column(1, 2)
    assert arrays.word_column("it", values) is values
    with patch.object(np, "memmap", type("Mapped", (np.ndarray,), {})):
        mapped = values.view(np.memmap)
        assert arrays.word_column("it", mapped).tolist() == [1, 2]
        assert type(arrays.plain_array(mapped)) is np.ndarray
    assert arrays.plain_array(np.ma.masked_array(values, [True, False])) is None


# Random numbers.


def test_a_fresh_key_has_32_bytes_and_is_no_other() -> None:
    keys = [random.fresh_key() for _ in range(20)]
    assert {len(key) for key in keys} == {32}
    assert len(set(keys)) == len(keys)


@given(st.integers(0, 40), st.integers(1, UINT64_MAX))
def test_random_numbers_are_as_many_as_asked_for_and_below_the_bound(count: int, below: int) -> None:
    drawn = random.uniform(count, below)
    assert drawn.shape == (count,)
    assert drawn.dtype == np.uint64
    assert all(number < below for number in drawn.tolist())


def test_draws_above_the_greatest_multiple_of_the_bound_are_drawn_again() -> None:
    """Else the small numbers would be likelier. Below 10 of 2**64 draws, the last six are not used."""
    draws = [column(UINT64_MAX, 2**64 - 7, 3), column(2**64 - 6, 5), column(17)]
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return draws.pop(0).tobytes()

    with patch.object(os, "urandom", urandom):
        assert random.uniform(3, 10).tolist() == [(2**64 - 7) % 10, 3, 5]
    assert asked == [24, 16 - 8]


def test_every_number_below_a_small_bound_occurs() -> None:
    assert set(random.uniform(1_000, 3).tolist()) == {0, 1, 2}
