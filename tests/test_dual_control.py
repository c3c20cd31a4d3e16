"""Dual control without a vault: who is one person, what a policy is, and how requests are named."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import DAY_MS, NOW_MS, pan_digits
from tokenvault.errors import InvalidInputError
from tokenvault.model import dual_control
from tokenvault.model.dual_control import (
    RevealPolicy,
    RevealRequest,
    from_letters,
    letters,
    person,
    request_id,
)

NOW = datetime.fromtimestamp(NOW_MS / 1_000, UTC)


@given(st.binary(max_size=64))
def test_letters_read_back_and_hold_no_digit(value: bytes) -> None:
    assert from_letters(letters(value)) == value
    assert set(letters(value)) <= set("abcdefghijklmnop")


@pytest.mark.parametrize("text", ["a", "abc", "aq", "a0", "ab ", "AB", "é"])
def test_a_text_that_no_bytes_give_reads_as_nothing(text: str) -> None:
    assert from_letters(text) == b""


@given(st.binary(min_size=32, max_size=32).filter(lambda value: any(value[16:])))
def test_a_request_is_found_by_its_name_or_as_it_is(value: bytes) -> None:
    name = letters(value)
    request = RevealRequest(id=name, reference="r", purpose="p", requested_by="o", requested=NOW, expires=NOW)
    assert request_id(name) == request_id(request) == (value[:16], value[16:])


@pytest.mark.parametrize(
    "value", ["", "a" * 64, "ab" * 31, "ab" * 33, "ab" * 16 + "a" * 32, "zz" * 32, b"ab" * 32, 5, None]
)
def test_another_name_of_a_request_is_refused(value: object) -> None:
    with pytest.raises(InvalidInputError, match="RevealRequest"):
        request_id(value)


@pytest.mark.parametrize("name", ["Ann Lee", "ann  lee", "ANNLEE", " Ann\tLee ", "Ann\u00a0Lee"])
def test_case_blanks_and_variants_of_a_character_make_no_other_person(name: str) -> None:
    assert person(name) == "annlee"
    assert dual_control.person_day(5, name, NOW_MS) == dual_control.person_day(5, "ann lee", NOW_MS)


def test_a_day_of_a_person_is_told_from_other_days_actions_and_persons() -> None:
    day_ms = NOW_MS // DAY_MS * DAY_MS
    first = dual_control.person_day(5, "ann", day_ms)
    assert len(first) == 16
    assert dual_control.person_day(5, "ann", day_ms + DAY_MS - 1) == first
    others = [(5, "ann", day_ms - 1), (5, "ann", day_ms + DAY_MS), (6, "ann", day_ms), (5, "bob", day_ms)]
    assert first not in [dual_control.person_day(*other) for other in others]


def test_a_day_of_a_person_is_found_among_the_events_of_older_versions() -> None:
    named = b"tokenvault person and day\x005\x0020000\x00annlee"
    assert dual_control.person_day(5, "Ann Lee", 20_000 * DAY_MS) == hashlib.sha256(named).digest()[:16]


def test_an_operator_is_named_without_blanks_around_and_in_plain_characters() -> None:
    assert dual_control.operator(" ann ") == "ann"
    assert dual_control.operator("\uff41\uff4e\uff4e") == "ann"
    wrong: list[Any] = ["", " ", "x" * 65, "é", 5, None]
    for value in wrong:
        with pytest.raises(InvalidInputError, match="operator is 1 to 64"):
            dual_control.operator(value)


@given(pan_digits(min_size=12))
def test_nobody_and_no_purpose_is_named_by_what_could_be_a_card_number(number: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        dual_control.operator(f"ann {number}")
    assert refused.value.code == "OPERATOR_COULD_BE_CARD"
    assert number not in str(refused.value)
    with pytest.raises(InvalidInputError, match="a purpose holds no card number"):
        RevealPolicy(purposes={f"for {number}"})
    assert dual_control.operator(f"ann {number[:11]}") == f"ann {number[:11]}"


def test_a_policy_keeps_its_purposes_and_names_what_it_refuses() -> None:
    policy = RevealPolicy(purposes=["a", "b", "a"], minutes=1, per_person_and_day=1)
    assert (policy.purposes, policy.minutes, policy.per_person_and_day) == (frozenset("ab"), 1, 1)
    for name in ("minutes", "per_person_and_day", "purposes"):
        wrong: dict[str, Any] = {"purposes": {"p"}, name: 0}
        with pytest.raises(InvalidInputError, match=rf"\b{name}\b"):
            RevealPolicy(**wrong)
