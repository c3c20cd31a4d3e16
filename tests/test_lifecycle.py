"""The life of a token."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvault.errors import LifecycleError
from tokenvault.model.lifecycle import Actor, Change, TokenStatus, may_be_suspended, transition

ALLOWED = {
    ("inactive", "activate"): "active",
    ("inactive", "delete"): "deleted",
    ("inactive", "take another card"): "inactive",
    ("inactive", "update its assurance"): "inactive",
    ("active", "suspend"): "suspended",
    ("active", "wind down"): "winding down",
    ("active", "delete"): "deleted",
    ("active", "take another card"): "inactive",
    ("active", "update its assurance"): "active",
    ("suspended", "suspend"): "suspended",
    ("suspended", "resume"): "active",
    ("suspended", "wind down"): "winding down",
    ("suspended", "delete"): "deleted",
    ("suspended", "take another card"): "inactive",
    ("suspended", "update its assurance"): "suspended",
    ("winding down", "wind down"): "winding down",
    ("deleted", "delete"): "deleted",
    ("winding down", "suspend"): "winding down",
    ("winding down", "resume"): "winding down",
    ("winding down", "delete"): "deleted",
    ("winding down", "update its assurance"): "winding down",
}


@pytest.mark.parametrize(("status", "change"), list(itertools.product(TokenStatus, Change)))
def test_exactly_the_listed_transitions_are_possible(status: TokenStatus, change: Change) -> None:
    suspended = status is TokenStatus.SUSPENDED or change is Change.RESUME
    by = frozenset({Actor.ISSUER}) if suspended else frozenset[Actor]()
    expected = ALLOWED.get((status.value, change.value))
    if expected is None:
        with pytest.raises(LifecycleError):
            transition(status, by, change, Actor.ISSUER)
    else:
        assert transition(status, by, change, Actor.ISSUER)[0].value == expected


@given(
    st.lists(st.tuples(st.sampled_from(Change), st.sampled_from(Actor)), max_size=30),
)
def test_a_suspension_ends_only_by_its_own_actor_or_by_deletion(steps: list[tuple[Change, Actor]]) -> None:
    """Whatever else happens to the token: another card, winding down, activation."""
    status, suspended_by, model = TokenStatus.INACTIVE, frozenset[Actor](), set[Actor]()
    for change, actor in steps:
        try:
            status, suspended_by = transition(status, suspended_by, change, actor)
        except LifecycleError:
            continue
        if change is Change.SUSPEND:
            model.add(actor)
        elif change is Change.RESUME:
            model.remove(actor)
        elif change is Change.DELETE:
            model.clear()
        assert suspended_by == model
        assert may_be_suspended(status, suspended_by)
        assert status is not TokenStatus.ACTIVE or not suspended_by


@given(
    st.lists(st.tuples(st.sampled_from([Change.SUSPEND, Change.RESUME]), st.sampled_from(Actor)), max_size=20)
)
def test_a_token_is_active_exactly_while_nobody_suspends_it(steps: list[tuple[Change, Actor]]) -> None:
    """Each actor lifts only its own suspension: compared with a plain set."""
    status, suspended_by, model = TokenStatus.ACTIVE, frozenset[Actor](), set[Actor]()
    for change, actor in steps:
        if change is Change.RESUME and actor not in model:
            with pytest.raises(LifecycleError):
                transition(status, suspended_by, change, actor)
            continue
        status, suspended_by = transition(status, suspended_by, change, actor)
        if change is Change.SUSPEND:
            model.add(actor)
        else:
            model.remove(actor)
        assert suspended_by == model
        assert status is (TokenStatus.SUSPENDED if model else TokenStatus.ACTIVE)


@pytest.mark.parametrize("by", [frozenset[Actor](), frozenset({Actor.VAULT})])
def test_a_suspended_token_has_suspenders_and_an_active_or_deleted_one_has_none(by: frozenset[Actor]) -> None:
    found = {status: may_be_suspended(status, by) for status in TokenStatus}
    assert found == {
        TokenStatus.INACTIVE: True,
        TokenStatus.ACTIVE: not by,
        TokenStatus.SUSPENDED: bool(by),
        TokenStatus.WINDING_DOWN: True,
        TokenStatus.DELETED: not by,
    }


@pytest.mark.parametrize(
    ("status", "by", "change", "message", "code"),
    [
        (
            TokenStatus.DELETED, [], Change.WIND_DOWN,
            "a token that is deleted can not wind down", "STATUS_NOT_FITTING",
        ),
        (
            TokenStatus.WINDING_DOWN, [], Change.RESUME,
            "a token that is winding down can not resume: nobody has suspended it", "STATUS_NOT_FITTING",
        ),
        (
            TokenStatus.SUSPENDED, [Actor.VAULT, Actor.CARDHOLDER], Change.RESUME,
            "the token is suspended by: cardholder, vault; each lifts only its own suspension", "SUSPENDED_BY_OTHERS",
        ),
    ],
)  # fmt: skip
def test_a_change_that_is_refused_tells_why(
    status: TokenStatus, by: list[Actor], change: Change, message: str, code: str
) -> None:
    with pytest.raises(LifecycleError) as refused:
        transition(status, frozenset(by), change, Actor.ISSUER)
    assert (str(refused.value), refused.value.code) == (message, code)


def test_a_deleted_token_has_no_suspenders_whoever_suspended_it() -> None:
    by = frozenset({Actor.VAULT})
    assert transition(TokenStatus.SUSPENDED, by, Change.DELETE) == (TokenStatus.DELETED, frozenset())
