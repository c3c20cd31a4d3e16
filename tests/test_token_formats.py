"""Token formats: what they make, and how much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvault.errors import InvalidInputError
from tokenvault.model.pan import luhn_valid
from tokenvault.model.programs import Making, TokenProgram
from tokenvault.model.token_format import TokenFormat


@st.composite
def formats(draw: st.DrawFn) -> TokenFormat:
    keep_last4 = draw(st.booleans())
    bin_length = draw(st.integers(1, 8 if keep_last4 else 12))
    return TokenFormat(
        bin=draw(st.text("0123456789", min_size=bin_length, max_size=bin_length)),
        length=draw(st.none() | st.integers(13, 19)),
        keep_last4=keep_last4,
        luhn=draw(st.booleans()),
    )


@given(formats(), st.integers(13, 19), st.text("0123456789", min_size=4, max_size=4), st.data())
def test_a_token_is_of_its_format(
    form: TokenFormat, pan_length: int, last4: str, data: st.DataObject
) -> None:
    choice = data.draw(st.integers(0, form.choices(pan_length) - 1))
    token = form.make(choice, pan_length, last4)
    assert token.startswith(form.bin)
    assert len(token) == (form.length or pan_length)
    assert luhn_valid(token) == form.luhn
    assert token.endswith(last4) or not form.keep_last4
    assert token.isdigit()
    assert token.isascii()
    assert form.matches(token, pan_length, last4)
    other = str(int(last4) ^ 1).zfill(4)
    assert form.matches(token, pan_length, other) != form.keep_last4
    assert form.matches(token, pan_length % 7 + 13, last4) == (form.length is not None)
    assert not form.matches(token[:-1] + str((int(token[-1]) + 1) % 10), pan_length, last4) or not form.luhn
    assert not form.matches(str((int(token[0]) + 1) % 10) + token[1:], pan_length, last4)
    assert not TokenFormat(bin=form.bin, length=form.length, luhn=not form.luhn).matches(
        token, pan_length, last4
    )


@pytest.mark.parametrize("luhn", [True, False])
@pytest.mark.parametrize("keep_last4", [True, False])
def test_choices_are_all_the_tokens_that_there_are(luhn: bool, keep_last4: bool) -> None:
    """Counted by going through every digit string of a small format."""
    form = TokenFormat(bin="9" * (6 if keep_last4 else 10), keep_last4=keep_last4, luhn=luhn)
    made = {form.make(choice, 13, "1234") for choice in range(form.choices(13))}
    ending = "1234" if keep_last4 else ""
    free = 13 - len(form.bin) - len(ending)
    all_there_are = {
        token
        for number in range(10**free)
        if luhn_valid(token := f"{form.bin}{number:0{free}}{ending}") == luhn
    }
    assert made == all_there_are
    assert form.capacity(13) == len(made) * (10_000 if keep_last4 else 1)


@pytest.mark.parametrize("keep_last4", [True, False])
def test_a_token_that_fails_the_check_is_one_that_passes_it_with_its_check_digit_raised(
    keep_last4: bool,
) -> None:
    """By 1 to 9, in this order: a choice gives the same token for good."""
    passing, failing = (TokenFormat(bin="999912", keep_last4=keep_last4, luhn=luhn) for luhn in (True, False))
    place = -5 if keep_last4 else -1
    for choice in range(180):
        token = list(passing.make(choice // 9, 16, "1234"))
        token[place] = str((int(token[place]) + choice % 9 + 1) % 10)
        assert failing.make(choice, 16, "1234") == "".join(token)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bin": ""}, {"bin": "99991a"}, {"bin": "9" * 13}, {"bin": 999912}, {"bin": "٩٩٩٩١٢"},
        {"bin": "999912", "length": 12}, {"bin": "999912", "length": 20}, {"bin": "999912", "length": "16"},
        {"bin": "999912", "length": True}, {"bin": "999912", "keep_last4": 1}, {"bin": "999912", "luhn": "no"},
        {"bin": "9" * 9, "keep_last4": True},
    ],
)  # fmt: skip
def test_a_format_without_room_or_of_another_form_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        TokenFormat(**arguments)  # type: ignore[arg-type] # the wrong types are the point


def test_a_program_that_its_format_can_not_hold_is_refused() -> None:
    form = TokenFormat(bin="99991234", keep_last4=True)
    assert form.capacity(16) == 10**7
    TokenProgram("fits", format=form, expected_tokens=5 * 10**6, accept_density=True)
    with pytest.raises(InvalidInputError, match=r"10000000 tokens.*a longer length$"):
        TokenProgram("does not", format=form, expected_tokens=5 * 10**6 + 1, accept_density=True)


def test_a_guess_misses_unless_the_program_accepts_that_it_may_hit() -> None:
    """At most one in a thousand of its numbers is a token, when all that are expected are issued."""
    form = TokenFormat(bin="99991234", keep_last4=True)
    TokenProgram("fits", format=form, expected_tokens=10**4)
    with pytest.raises(InvalidInputError, match="accept_density") as refused:
        TokenProgram("does not", format=form, expected_tokens=10**4 + 1)
    assert refused.value.code == "PROGRAM_TOO_DENSE"


def test_a_program_names_a_zone_that_there_is_and_customers_where_tokens_converge() -> None:
    form = TokenFormat(bin="999912")
    TokenProgram("p", format=form, making=Making.CONVERGENT, per_customer=True, expiry_zone="Asia/Shanghai")
    for arguments in (
        {"per_customer": True},
        {"expiry_zone": "Asia/Peking"},
        {"pans": None},
        {"accept_density": 1},
    ):
        with pytest.raises(InvalidInputError):
            TokenProgram("p", format=form, **arguments)
