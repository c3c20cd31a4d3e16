"""Fields of ISO 8583 come padded with blanks: they mean what stands before the blanks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests.vaults import issue, use
from tokenvault.model import checks

texts = st.from_regex(r"[!-~]([ -~]{0,40}[!-~])?", fullmatch=True)


@given(texts, st.integers(0, 30))
def test_blanks_at_the_end_make_no_difference(text: str, blanks: int) -> None:
    padded = text + " " * blanks
    assert checks.padded_text("a merchant", padded) == text
    plain, other = use(merchant=text, device=text), use(merchant=padded, device=padded)
    assert plain == other
    assert (other.merchant, other.device) == (text, text)
    listed = tv.Domain(merchants={padded}, devices={padded})
    assert listed == tv.Domain(merchants={text}, devices={text})
    assert listed.document == tv.Domain(merchants={text}, devices={text}).document


def test_a_merchant_padded_to_15_is_the_one_of_the_domain_and_a_retry_is_one(vault: tv.Vault) -> None:
    domain = tv.Domain(merchants={"M-1001"}, limits=(tv.Limit(uses=1),))
    token = issue(vault, domain=domain).token
    assert vault.detokenize(token, use(merchant="M-1001".ljust(15))).expiry
    assert vault.detokenize(token, use(merchant="M-1001")).expiry  # the same use, written otherwise
    assert not vault.check(token, use(2, merchant="M-1001 ")).allowed


@pytest.mark.parametrize("value", [" M-1001", "", " ", " " * 15, "M\t", "M\n", "x" * 257, 5])
def test_other_blanks_are_refused_and_the_text_says_so(value: Any) -> None:
    with pytest.raises(tv.InvalidInputError, match=r"merchant .*without a blank at either end"):
        use(merchant=value)
    with pytest.raises(tv.InvalidInputError, match=r"merchant .*without a blank at either end"):
        tv.Domain(merchants={value})


@pytest.mark.parametrize("value", ["tx ", " tx"])
def test_an_id_is_taken_as_it_is_or_not_at_all(value: str) -> None:
    with pytest.raises(tv.InvalidInputError, match=r"id .*without a blank at either end"):
        tv.Transaction(id=value, requestor="40012345678")
