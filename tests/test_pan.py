"""PANs and expiry dates: strict parsing, and nothing that leaks."""

from __future__ import annotations

import calendar
import copy
import json
import pickle
import traceback
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import expiries, pan_digits
from tokenvault.errors import InvalidInputError
from tokenvault.model.pan import Card, CardExpiry, Pan, PanRule, could_hold_pan, luhn_check_digit, luhn_valid
from tokenvault.model.pan_columns import parse_pans

KNOWN = "4111111111111111"

# Test card numbers that the networks publish for integrators.
PUBLISHED = [
    "4111111111111111", "4222222222222", "5555555555554444", "2223003122003222", "378282246310005",
    "6011111111111117", "3530111333300000", "30569309025904", "6200000000000005", "6759649826438453",
]  # fmt: skip


@pytest.mark.parametrize("digits", PUBLISHED)
def test_published_test_cards_parse(digits: str) -> None:
    assert Pan.parse(digits).reveal() == digits


@given(pan_digits(), st.data())
def test_separators_between_groups_change_nothing(digits: str, data: st.DataObject) -> None:
    separated = digits[0] + "".join(
        data.draw(st.sampled_from(["", " ", "-"])) + digit for digit in digits[1:]
    )
    assert Pan.parse(separated) == Pan.parse(digits)


def naive_luhn(digits: str) -> bool:
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if position % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


@given(st.text("0123456789", min_size=1, max_size=30))
def test_luhn_agrees_with_the_textbook(digits: str) -> None:
    assert luhn_valid(digits) == naive_luhn(digits)
    assert naive_luhn(digits + luhn_check_digit(digits))


@given(pan_digits(), st.integers(0, 18), st.integers(1, 9))
def test_any_single_wrong_digit_is_refused(digits: str, place: int, step: int) -> None:
    place %= len(digits)
    wrong = digits[:place] + str((int(digits[place]) + step) % 10) + digits[place + 1 :]
    with pytest.raises(InvalidInputError, match="Luhn"):
        Pan.parse(wrong)


@pytest.mark.parametrize(
    "text",
    ["", "4", "411111111111", "41111111111111111111", "4111111111111112", "411111111111111a", "+4111111111111111",
     "4111  1111 1111 1111", " 4111111111111111", "4111111111111111 ", "4111-1111-1111-1111-", "4111\t111111111111",
     "\uff14111111111111111", "٤١١١١١١١١١١١١١١١", "4111111111111111\n", "4111_1111_1111_1111", "4.111111e15",
     "4111\x001111", "1" * 10_000, 4111111111111111, None, b"4111111111111111", 4.1,
     object()],
)  # fmt: skip
def test_everything_else_is_refused_without_being_repeated(text: object) -> None:
    with pytest.raises(InvalidInputError) as refused:
        Pan.parse(text)  # type: ignore[arg-type] # the wrong types are the point
    shown = "".join(traceback.format_exception(refused.value))
    assert "1111111" not in str(refused.value)
    assert refused.value.__context__ is None
    assert "4111111111111112" not in shown.replace("Pan.parse(text)", "")


@pytest.mark.parametrize("call", [Pan, Pan.parse, CardExpiry.parse])
def test_no_frame_of_the_library_with_what_was_given_is_left_in_an_error(call: Any) -> None:
    with pytest.raises(InvalidInputError) as refused:
        call(KNOWN[:-1])
    places = [frame.name for frame in traceback.extract_tb(refused.value.__traceback__)]
    assert places[1:] == ["bounded"]


@given(pan_digits())
def test_no_rendering_shows_more_than_six_and_four(digits: str) -> None:
    pan = Pan.parse(digits)
    card = Card(pan, None)
    hidden = digits[6:-4]
    shown = [
        repr(pan), str(pan), f"{pan}", f"{pan:>40}", "%s" % pan, repr(card), str(attrs.asdict(card)),  # noqa: UP031
        json.dumps({"pan": pan}, default=str), pan.masked,
    ]  # fmt: skip
    expected = f"{digits[:6]}{'*' * len(hidden)}{digits[-4:]}"
    assert all(expected in text and digits not in text for text in shown)


def test_a_pan_refuses_pickle_json_change_and_construction() -> None:
    pan = Pan.parse(KNOWN)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(InvalidInputError):
            pickle.dumps(pan, protocol)
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(pan)
    with pytest.raises(InvalidInputError):
        pan.other = "x"
    with pytest.raises(InvalidInputError):
        del pan._masked
    with pytest.raises(InvalidInputError):
        Pan(KNOWN)
    assert not hasattr(pan, "__dict__")
    assert attrs.asdict(Card(pan, None))["pan"] is pan
    assert copy.deepcopy(pan) is pan
    assert copy.copy(pan) is pan


def test_equal_pans_are_equal_and_others_are_not() -> None:
    assert Pan.parse(KNOWN) == Pan.parse("4111 1111 1111 1111")
    assert Pan.parse(KNOWN) != Pan.parse(PUBLISHED[2])
    assert Pan.parse(KNOWN) != KNOWN
    assert len({Pan.parse(KNOWN), Pan.parse(KNOWN)}) == 1


@given(expiries)
def test_a_card_is_valid_through_its_month(expiry: CardExpiry) -> None:
    """Somewhere on earth: the last time zone is twelve hours behind UTC."""
    last_day = calendar.monthrange(expiry.year, expiry.month)[1]
    last_ms = calendar.timegm((expiry.year, expiry.month, last_day, 23, 59, 59)) * 1000 + 999 + 12 * 3_600_000
    assert not expiry.passed(last_ms)
    assert expiry.passed(last_ms + 1)


@given(expiries)
def test_an_expiry_reads_back(expiry: CardExpiry) -> None:
    assert CardExpiry.parse(str(expiry)) == expiry
    assert CardExpiry.parse(expiry) is expiry
    assert CardExpiry.from_month_number(expiry.month_number) == expiry


@pytest.mark.parametrize(
    "text",
    ["2029-13", "2029-00", "2029-1", "29-12", "12/29", "2029-12 ", "2029-12\n", "1999-12", "", None, 202912],
)
def test_another_expiry_is_refused(text: object) -> None:
    with pytest.raises(InvalidInputError) as refused:
        CardExpiry.parse(text)  # type: ignore[arg-type] # the wrong types are the point
    assert refused.value.code == "EXPIRY_FORM"


@pytest.mark.parametrize(
    ("year", "month"), [("2030", 1), (2030, "1"), (True, 1), (2030, 13), (2030, 0), (1999, 12), (2100, 1)]
)
def test_an_expiry_is_a_month_of_this_century(year: Any, month: Any) -> None:
    with pytest.raises(InvalidInputError, match="an expiry is a") as refused:
        CardExpiry(year, month)
    assert refused.value.code == "EXPIRY_FORM"


@pytest.mark.parametrize(
    ("pan", "expiry", "problem"),
    [(KNOWN, None, "pan is a Pan"), (Pan.parse(KNOWN), "2029-12", "expiry is a CardExpiry, or None")],
)
def test_a_card_is_of_a_pan_and_an_expiry_that_were_read(pan: Any, expiry: Any, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        Card(pan, expiry)


class Misread(str):
    """A text whose own methods give another one."""

    def replace(self, *_args: object) -> str:
        return PUBLISHED[2]

    def __getitem__(self, _place: object) -> str:
        return "01"


def test_a_text_is_read_as_it_stands_whatever_its_class_says() -> None:
    assert Pan.parse(Misread(KNOWN)).reveal() == KNOWN
    assert CardExpiry.parse(Misread("2029-12")) == CardExpiry(2029, 12)


def test_a_pan_and_an_expiry_read_texts_too() -> None:
    expiry = CardExpiry(2030, 2)
    assert Pan.parse(KNOWN).parse(PUBLISHED[2]).reveal() == PUBLISHED[2]
    assert expiry.parse("2029-12") == expiry.from_month_number(360) == CardExpiry(2029, 12)


@pytest.mark.parametrize(("length", "shown"), [(12, 4), (13, 6), (15, 6), (16, 8), (19, 8)])
def test_more_of_the_first_digits_may_be_shown_the_longer_a_number_is(length: int, shown: int) -> None:
    pan = Pan.parse("1234567890123456789"[:length], PanRule(lengths=(12, 19), luhn=False))
    assert pan.bin == "12345678"[:shown]
    assert len(pan) == length


def test_an_expiry_is_copied_and_a_pan_is_not_pickled() -> None:
    expiry = CardExpiry(2030, 2)
    assert copy.copy(expiry) == expiry
    pan: Any = Pan.parse(KNOWN)
    for refused in (lambda: pickle.dumps(pan), pan.__getstate__):
        with pytest.raises(InvalidInputError, match="a Pan is not pickled"):
            refused()


def test_a_program_may_take_twelve_digits_and_numbers_without_a_check_digit() -> None:
    loose = PanRule(lengths=(12, 19), luhn=False)
    for digits in ("412345678901", "4111111111111112", "4" * 19):
        assert Pan.parse(digits, loose).reveal() == digits
        with pytest.raises(InvalidInputError):
            Pan.parse(digits)
        with pytest.raises(InvalidInputError):
            Pan.parse(Pan.parse(digits, loose))  # read by another rule, it is read again
    assert Pan.parse("412345678901", loose).masked == "4123****8901"


@pytest.mark.parametrize(
    ("digits", "rule", "code"),
    [
        (b"4111111111111111", PanRule(), "PAN_CHARACTERS"),
        ("41111111111", PanRule(lengths=(12, 19), luhn=False), "PAN_LENGTH"),
        ("4111111111111111", PanRule(lengths=(12, 15)), "PAN_LENGTH"),
        ("4111111111111112", PanRule(), "PAN_CHECK_DIGIT"),
        ("4111a11111111111", PanRule(luhn=False), "PAN_CHARACTERS"),
        (" ".join("4" * 19) + "4", PanRule(), "PAN_CHARACTERS"),  # longer than any PAN with its separators
        (" ".join("4" * 19), PanRule(), "PAN_CHECK_DIGIT"),
    ],
)
def test_a_refused_pan_says_by_which_rule(digits: Any, rule: PanRule, code: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        Pan.parse(digits, rule)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "lengths", [(11, 19), (12, 20), (16, 15), (16,), 16, (16, True), (12, 19.0), ("12", "19"), None]
)
def test_a_rule_of_another_form_is_refused(lengths: Any) -> None:
    with pytest.raises(InvalidInputError, match="12 to 19"):
        PanRule(lengths=lengths)
    with pytest.raises(InvalidInputError, match="True or False"):
        PanRule(luhn=1)  # type: ignore[arg-type] # the wrong type is the point


def test_columns_are_read_by_the_rule_of_their_program() -> None:
    digits = ["412345678901", "4111111111111112", "4111 1111 1111 1112", "41234567890"]
    columns, errors = parse_pans(digits, PanRule(lengths=(12, 19), luhn=False))
    assert columns.lengths.tolist() == [12, 16, 16, 0]
    assert list(errors) == [3]
    assert list(parse_pans(digits)[1]) == [0, 1, 2, 3]


@given(
    pan_digits(min_size=12),
    st.sampled_from(["{}", "card {}", "7 of {}", "{}.csv", "a{}b"]),
    st.sampled_from(["", " ", "-"]),
)
def test_a_typed_text_that_holds_a_card_number_in_a_row_is_noticed(number: str, text: str, gap: str) -> None:
    grouped = gap.join((number[:4], number[4:8], number[8:]))
    wrong = f"{number[:-1]}{(int(number[-1]) + 1) % 10}"
    assert could_hold_pan(text.format(grouped))
    assert not could_hold_pan(text.format(wrong))
    assert not could_hold_pan(f"{number[:8]}/{number[8:]}")


def test_a_row_of_more_or_fewer_digits_than_a_card_number_has_is_none() -> None:
    for length in (11, 12, 19, 20):
        digits = "4" * (length - 1)
        assert could_hold_pan(digits + luhn_check_digit(digits)) == (12 <= length <= 19)
