"""Payments as they happen, through both faces of the vault, on every store: kinds, a card on file, grants."""

from __future__ import annotations

from typing import Any

import pytest

import tokenvault as tv
from tests.vaults import ACQUIRER, SHOP, VISA, issue, use


def grant(vault: tv.Vault, source: str, **arguments: Any) -> tv.TokenInfo:
    return vault.issue_from(source, **{"requestor": SHOP, "program": "one-time", **arguments})


# Tokens from tokens.


def test_whom_a_token_was_issued_to_sees_and_ends_all_that_came_from_it(vault: tv.Vault) -> None:
    """Also those that came from one in between that is deleted, and when the token itself is."""
    source, other = issue(vault), issue(vault)
    child = grant(vault, source.reference)
    granted = [grant(vault, child.token, requestor=ACQUIRER), grant(vault, child.token, requestor=ACQUIRER)]

    def seen() -> set[str]:
        return {info.token for info in vault.tokens_from(source.token, requestor=SHOP)}

    every = {info.token for info in granted}
    assert seen() == {child.token} | every
    vault.delete(child.token)
    assert seen() == every
    vault.delete(source.token)
    assert seen() == every
    for info in granted:
        with pytest.raises(tv.PermissionDeniedError):
            vault.tokens_from(info.token, requestor=SHOP)
        assert vault.delete(info.token, requestor=SHOP).status is tv.TokenStatus.DELETED
    assert seen() == set()
    assert vault.get(other.token) == other


def test_what_came_from_a_token_is_seen_though_any_of_it_has_another_card(vault: tv.Vault) -> None:
    source = issue(vault)
    first, second = (
        grant(vault, source.token, requestor=ACQUIRER),
        grant(vault, source.token, requestor=ACQUIRER),
    )
    every = sorted([first.token, second.token])

    def seen() -> list[str]:
        return [info.token for info in vault.tokens_from(source.token, requestor=SHOP)]

    vault.update_card(first.token, new_pan="5555555555554444")
    assert seen() == every
    vault.update_card(source.token, new_pan="378282246310005")
    assert seen() == every
    vault.delete(source.token)
    assert seen() == every


def test_a_token_from_a_token_has_a_budget_and_a_life_of_its_own(vault: tv.Vault) -> None:
    source = issue(vault)
    budget = tv.Domain(limits=[tv.Limit(amount=tv.Money(100, "EUR"))])
    agent = grant(vault, source.token, requestor=ACQUIRER, domain=budget)
    paid = tv.Money(100, "EUR")
    assert vault.detokenize(agent.token, use(1, requestor=ACQUIRER, amount=paid)).pan.reveal() == VISA
    for token, requestor in ((agent.token, ACQUIRER), (agent.token, SHOP), (source.token, ACQUIRER)):
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use(2, requestor=requestor, amount=paid))
    assert vault.detokenize(source.token, use(2, amount=paid)).pan.reveal() == VISA
    vault.suspend(source.token, by=tv.Actor.CARDHOLDER)
    with pytest.raises(tv.LifecycleError) as refused:
        grant(vault, source.token)
    assert refused.value.code == "SOURCE_NOT_ACTIVE"
