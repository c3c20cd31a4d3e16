"""PANs as columns are read as `Pan.parse` reads each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import pan_digits
from tokenvault.errors import InvalidInputError
from tokenvault.model.pan import Pan
from tokenvault.model.pan_columns import parse_pans

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
