"""What errors say: which part is wrong, and what would be right."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import SHOP, VISA, issue
from tokenvault.keys import KeyStore


@pytest.fixture(scope="module")
def opened(local_keys: KeyStore) -> Iterator[tv.Vault]:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        yield vault


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ('{"merchants": 5}', "^merchants: in a domain's document, a list"),
        ('{"max_amount": {"amount": -1, "currency": "EUR"}}', "^max_amount: an amount is a whole number"),
        ('{"max_amount": {"amount": 1, "currency": "EU"}}', "^max_amount: a currency"),
        ('{"max_amount": {"amont": 1}}', "^max_amount: .*; there is one 'amont'$"),
        ('{"limits": [{"uses": 1}, {"uses": 0}]}', "^limits: 2: uses: uses is a whole number"),
        ('{"limits": [{"uses": 1, "pre": "day"}]}', "^limits: 1: .*; there is one 'pre'$"),
        ('{"merchant": ["M"]}', "; there is one 'merchant'$"),
        (f'{{"{VISA}": ["M"]}}', "; there is one of such a name$"),
        ('{"channels": ["web"]}', "^channels: in a domain's document, one of: "),
    ],
)
def test_a_domain_s_document_names_the_member_that_is_wrong(document: str, said: str) -> None:
    with pytest.raises(tv.InvalidInputError, match=said) as raised:
        tv.Domain.from_json(document)
    assert VISA not in str(raised.value)


def test_a_reference_in_capitals_is_said_to_be_none(opened: tv.Vault) -> None:
    reference = issue(opened).reference
    with pytest.raises(tv.InvalidInputError, match="32 hexadecimal digits in lower case"):
        opened.get("A" + reference[1:].upper())
    (answer,) = opened.get_many(["A" + reference[1:].upper()])
    assert "in lower case" in str(answer)


def test_a_token_that_nobody_suspended_is_not_said_to_be_suspended(opened: tv.Vault) -> None:
    for status in ("inactive", "winding_down"):
        token = issue(opened, active=status != "inactive").token
        if status == "winding_down":
            opened.wind_down(token, purge_after=datetime(2040, 1, 1, tzinfo=UTC))
        with pytest.raises(tv.LifecycleError, match="can not resume") as raised:
            opened.resume(token, by=tv.Actor.ISSUER)
        assert raised.value.code == "STATUS_NOT_FITTING"


def test_kinds_have_their_article(opened: tv.Vault) -> None:
    with pytest.raises(tv.InvalidInputError, match="by is an Actor"):
        opened.suspend(issue(opened).token, by="issuer")  # type: ignore[arg-type] # it is wrong
    with pytest.raises(tv.InvalidInputError, match="domain is a Domain"):
        opened.update_domain(issue(opened).token, 5)  # type: ignore[arg-type] # it is wrong


def test_a_token_of_a_program_that_is_missing_is_told_what_it_needs(
    opened: tv.Vault, local_keys: KeyStore
) -> None:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    other = tv.TokenProgram("other", format=tv.TokenFormat(bin="888812"))
    shop = tv.TokenRequestor(SHOP, programs={"other"})
    with vaults.open_vault(local_keys, store, programs=[other], requestors=[shop]) as vault:
        token = issue(vault, program="other").token
    with vaults.open_vault(local_keys, store) as vault:
        with pytest.raises(tv.TokenNotFoundError, match="by its program") as raised:
            vault.update_card(token, expiry="2035-01")
        assert raised.value.code == "CARD_HAS_NO_TOKEN"
        (many,) = vault.update_card_many([(token, {"expiry": "2035-01"})])
        assert str(many) == str(raised.value)
