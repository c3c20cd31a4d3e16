"""What follows a use, as the vault reads it from the trail: in the order in which it came, however alike."""

from __future__ import annotations

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import issue, use
from tokenvault.keys import KeyStore
from tokenvault.stores import answers

PAID, CAPTURED = 60_00, 50_00


@pytest.fixture
def vault(local_keys: KeyStore) -> tv.Vault:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    return vaults.open_vault(local_keys, store)


def follow_up(name: str, kind: tv.Kind, cents: int) -> tv.Transaction:
    return use(name, kind=kind, original="tx-paid", amount=tv.Money(cents, "EUR"))


def captured(vault: tv.Vault) -> str:
    """A token with a use that was captured in part."""
    token = issue(vault).token
    vault.detokenize(token, use("paid", amount=tv.Money(PAID, "EUR")))
    vault.detokenize(token, follow_up("captured", tv.Kind.CAPTURE, CAPTURED))
    return token


@pytest.mark.parametrize("many", [False, True], ids=["singly", "in a batch"])
def test_however_many_payments_rest_on_one_it_can_be_retried_and_followed_up(
    vault: tv.Vault, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """They are not read to decide on it, nor on one another; each can be followed up itself."""
    monkeypatch.setattr(answers, "USE_EVENTS_MAX", 4)
    token = issue(vault).token
    first = use("paid", amount=tv.Money(PAID, "EUR"))
    vault.detokenize(token, first)
    mit = {"channel": tv.Channel.MERCHANT_INITIATED, "original": first.id, "amount": tv.Money(PAID, "EUR")}
    resting = [use(f"resting-{number}", **mit) for number in range(8)]
    for _ in range(2):  # the second time retries
        if many:
            assert not vault.detokenize_many([(token, each) for each in resting]).errors
        else:
            for each in resting:
                vault.detokenize(token, each)
    vault.detokenize(token, first)
    vault.detokenize(token, follow_up("refund", tv.Kind.REFUND, PAID))
    vault.detokenize(
        token, use("r", kind=tv.Kind.REFUND, original=resting[0].id, amount=tv.Money(PAID, "EUR"))
    )
    with pytest.raises(tv.DomainRestrictionError) as refused:
        vault.detokenize(token, use("resting-9", **mit | {"original": "never"}))
    assert refused.value.code == "ORIGINAL_UNKNOWN"
    with pytest.raises(tv.DomainRestrictionError) as reused:
        vault.detokenize(token, use("resting-1", **mit | {"original": resting[0].id}))
    assert reused.value.code == "TRANSACTION_ID_REUSED"


def test_refunds_of_equal_amounts_are_at_most_what_was_captured(vault: tv.Vault) -> None:
    token = captured(vault)
    for number in (1, 2):
        vault.detokenize(token, follow_up(f"refund-{number}", tv.Kind.REFUND, 20_00))
    with pytest.raises(tv.DomainRestrictionError) as refused:
        vault.detokenize(token, follow_up("refund-3", tv.Kind.REFUND, 20_00))
    assert refused.value.code == "REFUND_EXCEEDS"
    vault.detokenize(token, follow_up("refund-2", tv.Kind.REFUND, 20_00))  # a retry
    vault.detokenize(token, follow_up("refund-4", tv.Kind.REFUND, 10_00))


@pytest.mark.parametrize("chunks", [1, 5])
def test_refunds_of_equal_amounts_in_batches_are_at_most_what_was_captured(
    vault: tv.Vault, chunks: int
) -> None:
    token = captured(vault)
    refunds = [(token, follow_up(f"refund-{n}", tv.Kind.REFUND, 20_00)) for n in range(5)]
    found = [vault.detokenize_many(refunds[n::chunks]) for n in range(chunks)]
    assert sum(len(each) - len(list(each.errors)) for each in found) == CAPTURED // 20_00
