"""The texts of violations tell only what the caller may know."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.vaults import ACQUIRER, SHOP, issue, use
from tokenvault.errors import Violation
from tokenvault.keys import KeyStore
from tokenvault.model.disclosure import EXPIRY_DIFFERS_CODE, STRANGER_CODE, told
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock

DOMAIN: dict[str, Any] = {
    "merchants": {"SECRET-MERCHANT"},
    "countries": {"FR"},
    "devices": {"SECRET-DEVICE"},
    "max_amount": tv.Money(4321, "EUR"),
    "limits": (tv.Limit(amount=tv.Money(4321, "EUR"), per=timedelta(days=17)),),
}
CONTENTS = re.compile("SECRET|FR\\b|4321|2026-0|17 days")

violations = st.lists(
    st.builds(
        Violation,
        st.text("abc", min_size=1),
        st.sampled_from([STRANGER_CODE, EXPIRY_DIFFERS_CODE, "A_CODE", "ANOTHER_CODE"]),
        st.text("SECRET"),
        st.sampled_from(["05", "54"]),
    ),
    max_size=5,
).map(tuple)


@given(violations)
def test_codes_stay_whoever_asks_but_for_what_would_confirm_an_expiry(given: tuple[Violation, ...]) -> None:
    shown, stranger = told(given), STRANGER_CODE in {each.code for each in given}
    assert [(each.control, each.code, each.response_code) for each in shown] == [
        (each.control, each.code, each.response_code)
        for each in given
        if not stranger or each.code != EXPIRY_DIFFERS_CODE
    ]
    if stranger:
        assert not any("SECRET" in each.message for each in shown)
    else:
        assert shown == given


def test_an_outsider_reads_that_it_may_not_use_the_token_and_of_all_else_only_that_it_failed() -> None:
    given = [
        Violation("any", code, "SECRET", "57") for code in ("A_CODE", STRANGER_CODE, EXPIRY_DIFFERS_CODE)
    ]
    other, stranger = told(tuple(given))
    assert other.message.startswith("another control failed too")
    assert stranger.message.startswith("this requestor may not use the token")


@pytest.mark.parametrize("named", [False, True], ids=["named nowhere", "another is named"])
def test_an_outsider_learns_neither_the_expiry_nor_the_domain(
    keys: KeyStore, store: TokenStore, named: bool
) -> None:
    clock = ManualClock(NOW_MS)
    with vaults.open_vault(keys, store, clock) as vault:
        domain = tv.Domain(**DOMAIN, requestors={SHOP} if named else None)
        token = issue(vault, expiry="2026-07", domain=domain).token
        clock.advance(400 * 86_400_000)
        by_outsider = tv.Transaction(id="t", requestor=ACQUIRER, amount=tv.Money(9_999, "EUR"))
        by_owner = tv.Transaction(id="t", requestor=SHOP, amount=tv.Money(9_999, "EUR"))
        outside, inside = vault.check(token, by_outsider), vault.check(token, by_owner)
        codes = {each.code for each in inside.violations}
        assert {"TOKEN_EXPIRED", "MERCHANT_NOT_ALLOWED", "AMOUNT_TOO_HIGH", "AMOUNT_EXCEEDED"} <= codes
        assert {each.code for each in outside.violations} == codes | {STRANGER_CODE}
        assert not any(CONTENTS.search(each.message) for each in outside.violations)
        assert any(CONTENTS.search(each.message) for each in inside.violations)
        with pytest.raises(tv.DomainRestrictionError) as refused:
            vault.detokenize(token, by_outsider)
        assert not CONTENTS.search(str(refused.value))
        many = vault.detokenize_many([(token, by_outsider)])
        assert not CONTENTS.search(str(many[0]))


@pytest.mark.parametrize("named", [False, True], ids=["named nowhere", "another is named"])
def test_an_outsider_s_guesses_of_the_expiry_get_one_answer(vault: tv.Vault, named: bool) -> None:
    domain = tv.Domain(requestors={SHOP} if named else None)
    token = issue(vault, expiry="2029-07", domain=domain).token

    def answers(requestor: str) -> set[tuple[tuple[str, str], ...]]:
        found = set()
        for month in range(1, 13):
            guess = tv.Transaction(id="t", requestor=requestor, token_expiry=f"2029-{month:02}")
            decisions = [vault.check(token, guess), *vault.check_many([(token, guess)])]
            for decision in decisions:
                assert isinstance(decision, tv.Decision)
                found.add(tuple((each.code, each.message) for each in decision.violations))
        return found

    assert len(answers(ACQUIRER)) == 1
    assert len(answers(SHOP)) == 2


def test_who_is_named_learns_what_is_allowed(vault: tv.Vault) -> None:
    token = issue(vault, domain=tv.Domain(**DOMAIN, requestors={SHOP, ACQUIRER})).token
    decision = vault.check(token, tv.Transaction(id="t", requestor=ACQUIRER))
    assert "SECRET-MERCHANT" in " ".join(each.message for each in decision.violations)
    assert vault.check(token, use()).violations
