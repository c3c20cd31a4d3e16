"""PANs as columns are read as `Pan.parse` reads each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import pan_digits
from tokenvault.errors import InvalidInputError
from tokenvault.model.pan import Pan, PanRule, luhn_check_digit
from tokenvault.model.pan_columns import PanColumns, _parse_plain, parse_pans

pans = pan_digits()
spaced = pans.map(lambda pan: " ".join((pan[:4], pan[4:])))
near = pans.flatmap(
    lambda pan: st.sampled_from([pan[:-1], pan + "0", pan[:-1] + str((int(pan[-1]) + 1) % 10)])
)
texts = st.text(alphabet="0123456789 -\n\x00a\u0661", max_size=24)
others: st.SearchStrategy[object] = st.sampled_from(
    [None, 4111111111111111, b"4111111111111111", [], Pan.parse("4111111111111111")]
)


@given(st.lists(pans | spaced | near | texts, max_size=30) | st.lists(pans | others, max_size=10))
def test_a_batch_of_pans_is_read_as_each_of_them(items: list[object]) -> None:
    """Same digits, same refusals with the same words, whatever stands beside a PAN."""
    columns, errors = parse_pans(items)
    for row, item in enumerate(items):
        refused, expected = None, ""
        try:
            expected = Pan.parse(item).reveal()  # type: ignore[arg-type] # of any type, on purpose
        except InvalidInputError as error:
            refused = str(error)
        if refused is None:
            assert (columns.digits(row), row in errors) == (expected, False)
        else:
            assert (columns.lengths[row], str(errors[row])) == (0, refused)


@pytest.mark.parametrize("luhn", [True, False])
def test_plain_digits_are_read_at_once_and_only_what_they_are_not_one_by_one(luhn: bool) -> None:
    """Of every length that a rule takes, whichever stands first and last."""
    payloads = ["0123456789012345678"[: length - 1] for length in range(12, 20)]
    digits = [payload + luhn_check_digit(payload) for payload in (*payloads, *reversed(payloads))]
    wrong = [f"{number[:-1]}{(int(number[-1]) + 1) % 10}" for number in digits]
    others = ["", "4" * 11, "4" * 20, "4111 1111 1111 1111"]
    items = [*digits, *others, *wrong, *others]
    columns = PanColumns(np.zeros(len(items), np.uint64), np.zeros(len(items), np.uint8))
    left = _parse_plain(items, columns, PanRule(lengths=(12, 19), luhn=luhn))
    assert [items[row] for row in left] == [*others, *(wrong if luhn else []), *others]
    for row in set(range(len(items))) - set(left):
        assert columns.digits(row) == items[row]
    assert not any(columns.values[left])


def test_columns_of_pans_show_none() -> None:
    """`repr` has their number only."""
    columns, _ = parse_pans(["4111111111111111"])
    assert repr(columns) == str(columns) == f"{columns}" == "<PanColumns of 1>"


@given(st.lists(pans, min_size=1, max_size=5), st.integers(0, 5))
def test_a_pan_with_a_line_break_in_it_is_refused_alone(items: list[str], place: int) -> None:
    """Between digits, so that both halves could be rows of their own."""
    place %= len(items)
    broken = [*items[:place], f"{items[place][:6]}\n{items[place][6:]}", *items[place + 1 :]]
    columns, errors = parse_pans(broken)
    assert list(errors) == [place]
    assert [columns.digits(row) for row in range(len(items)) if row != place] == items[:place] + items[
        place + 1 :
    ]
