"""The life of a token."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvault.errors import LifecycleError
from tokenvault.model.lifecycle import Actor, Change, TokenStatus, transition

ALLOWED = {
    ("inactive", "activate"): "active",
    ("inactive", "delete"): "deleted",
    ("active", "suspend"): "suspended",
    ("active", "delete"): "deleted",
    ("suspended", "suspend"): "suspended",
    ("suspended", "resume"): "active",
    ("suspended", "delete"): "deleted",
}


@pytest.mark.parametrize(("status", "change"), list(itertools.product(TokenStatus, Change)))
def test_exactly_the_listed_transitions_are_possible(status: TokenStatus, change: Change) -> None:
    by = frozenset({Actor.ISSUER}) if status is TokenStatus.SUSPENDED else frozenset[Actor]()
    expected = ALLOWED.get((status.value, change.value))
    if expected is None:
        with pytest.raises(LifecycleError):
            transition(status, by, change, Actor.ISSUER)
    else:
        assert transition(status, by, change, Actor.ISSUER)[0].value == expected


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
