"""Batches of uses with a long past: their ledger is read in parts."""

from __future__ import annotations

from pathlib import Path

import pytest

import tokenvault as tv
from tests.vaults import SHOP, issue, open_vault
from tokenvault.keys import KeyStore
from tokenvault.stores import answers
from tokenvault.stores.sqlite import store as sqlite_store

TOKENS, CAPTURES = 12, 9


def a_use(name: str, amount: int, kind: tv.Kind = tv.Kind.PURCHASE) -> tv.Transaction:
    original = None if kind is tv.Kind.PURCHASE else "auth"
    money = tv.Money(amount, "EUR")
    final = kind is not tv.Kind.CAPTURE
    return tv.Transaction(id=name, requestor=SHOP, amount=money, kind=kind, original=original, final=final)


@pytest.mark.parametrize("scheme", ["memory:", "sqlite:///{}/vault.db"])
def test_a_chunk_whose_uses_have_more_events_than_one_answer_holds_is_decided_as_single_uses_are(
    local_keys: KeyStore, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tv.open_token_store(scheme.format(tmp_path))
    tv.provision(local_keys, store)
    vault = open_vault(local_keys, store)
    tokens = [issue(vault).token for _ in range(TOKENS)]
    for token in tokens:
        vault.detokenize(token, a_use("auth", 100_00))
        for number in range(CAPTURES):
            vault.detokenize(token, a_use(f"c-{number}", 1_00, tv.Kind.CAPTURE))
    for module in (answers, sqlite_store):
        monkeypatch.setattr(module, "PAGE_MAX", 3 * CAPTURES)
    refund = a_use("r-1", CAPTURES * 1_00, tv.Kind.REFUND)
    assert dict(vault.detokenize_many([(token, refund) for token in tokens]).errors) == {}
    for token in tokens:
        again = vault.check(token, a_use("r-2", 1, tv.Kind.REFUND))
        assert [violation.code for violation in again.violations] == ["REFUND_EXCEEDS"]
    vault.close()
    store.close()
