"""What a batch leaves to single calls, and rows that are not all alike: rare among the tests, so asked for here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import MASTERCARD, SHOP, VISA, issue, use
from tokenvault.keys import FileKeyStore, KeyStore
from tokenvault.stores.port import SealedRecord, TokenStore

PATIENT_ATTEMPTS = 3
CARDS = [(VISA, "2029-12"), (MASTERCARD, "2029-12")]


class Between:
    """A store that does something before a call, and shows rows as another would have left them."""

    def __init__(self, store: TokenStore) -> None:
        self.store = store
        self.before: Callable[[str], None] = lambda _name: None
        self.edit: Callable[[SealedRecord], SealedRecord] = lambda row: row

    def __getattr__(self, name: str) -> Any:
        self.before(name)
        return getattr(self.store, name)

    def get(self, tokens: Any) -> list[SealedRecord]:
        self.before("get")
        return [self.edit(row) for row in self.store.get(tokens)]

    def find(self, pan_fingerprint: Any, **arguments: Any) -> list[SealedRecord]:
        self.before("find")
        return [self.edit(row) for row in self.store.find(pan_fingerprint, **arguments)]


@pytest.fixture
def own_keys(tmp_path: Path) -> Iterator[KeyStore]:
    """Keys that a test may add to."""
    (tmp_path / "passphrase").write_text("correct horse battery staple")
    keys = FileKeyStore(f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/passphrase")
    tv.provision(keys, tv.open_token_store("memory:"))
    yield keys
    keys.close()


def provisioned(keys: KeyStore) -> Any:
    store = tv.open_token_store("memory:")
    tv.provision(keys, store)
    return Between(store)


def converged(vault: tv.Vault) -> list[tv.TokenInfo | tv.TokenVaultError]:
    return list(vault.issue_many(CARDS, requestor=SHOP, program="card-on-file"))


def tokens(outcomes: list[tv.TokenInfo | tv.TokenVaultError]) -> list[str]:
    return [each.token for each in outcomes if isinstance(each, tv.TokenInfo)]


@pytest.mark.parametrize("suspended", [False, True])
def test_a_token_that_others_change_before_each_write_is_used_by_a_single_call(
    local_keys: KeyStore, suspended: bool
) -> None:
    """After so many tries of its chunk. The other token is not held up, whatever the single call's answer is."""
    store, changes = provisioned(local_keys), iter(range(PATIENT_ATTEMPTS + 1))
    counted = tv.Domain(limits=(tv.Limit(uses=1_000),))
    with (
        vaults.open_vault(local_keys, store) as vault,
        vaults.open_vault(local_keys, store.store) as other,
    ):
        held, free = (issue(vault, pan, domain=counted).token for pan in (VISA, MASTERCARD))

        def change(name: str) -> None:
            number = next(changes, None) if name == "replace" else None
            if number == PATIENT_ATTEMPTS and suspended:
                other.suspend(held, by=tv.Actor.ISSUER)
            elif number is not None:
                other.detokenize(held, use(f"other-{number}"))

        store.before = change
        first, second = vault.detokenize_many([(held, use(1)), (free, use(2))])
    assert isinstance(second, tv.Card)
    assert second.pan.reveal() == MASTERCARD
    if suspended:
        assert isinstance(first, tv.DomainRestrictionError)
        assert [violation.code for violation in first.violations] == ["TOKEN_SUSPENDED"]
    else:
        assert isinstance(first, tv.Card)
        assert first.pan.reveal() == VISA
    assert next(changes, None) is None


def test_records_under_two_versions_of_the_seal_key_are_read_together(own_keys: KeyStore) -> None:
    store = provisioned(own_keys)
    with vaults.open_vault(own_keys, store) as vault:
        before = issue(vault, VISA, program="card-on-file").token
    own_keys.create(tv.KeyPurpose.SEAL, tv.Custody.IN_PROCESS, version=2)
    with vaults.open_vault(own_keys, store) as vault:
        after = issue(vault, MASTERCARD, program="card-on-file").token
        assert {row.key_version for row in store.store.get([before, after])} == {1, 2}
        assert tokens(converged(vault)) == [before, after]
        cards = vault.detokenize_many([(before, use(1)), (after, use(2))])
        assert [card.pan.reveal() for card in cards if isinstance(card, tv.Card)] == [VISA, MASTERCARD]


def test_a_record_under_a_key_that_is_not_there_fails_alone(local_keys: KeyStore) -> None:
    store = provisioned(local_keys)
    with vaults.open_vault(local_keys, store) as vault:
        lost, kept = tokens(converged(vault))
        store.edit = lambda row: row._replace(key_version=9) if row.token == lost else row
        for first, second in (
            converged(vault),
            list(vault.detokenize_many([(lost, use(1)), (kept, use(2))])),
        ):
            assert isinstance(first, tv.IntegrityError)
            assert isinstance(second, tv.TokenInfo | tv.Card)


def test_a_look_up_of_many_cards_that_meets_a_broken_row_is_made_one_by_one(local_keys: KeyStore) -> None:
    """Which row it is only a single look-up tells, so the other card gets its token."""
    store = provisioned(local_keys)
    with vaults.open_vault(local_keys, store) as vault:
        broken, kept = tokens(converged(vault))

        def read(row: SealedRecord) -> SealedRecord:
            if row.token == broken:
                raise tv.IntegrityError("a row of the database is none that this library writes")
            return row

        store.edit = read
        first, second = converged(vault)
    assert isinstance(first, tv.IntegrityError)
    assert isinstance(second, tv.TokenInfo)
    assert second.token == kept


def test_a_card_whose_convergent_token_was_deleted_gets_another_in_a_batch_too(local_keys: KeyStore) -> None:
    store = provisioned(local_keys)
    with vaults.open_vault(local_keys, store) as vault:
        gone, kept = tokens(converged(vault))
        vault.delete(gone)
        another, same = tokens(converged(vault))
        assert same == kept
        assert another not in (gone, kept)
        assert tokens(converged(vault)) == [another, kept]


def test_a_card_that_comes_again_with_another_expiry_is_answered_as_by_single_calls(
    local_keys: KeyStore,
) -> None:
    cards = [(VISA, "2029-12"), (VISA, "2030-12"), (VISA, "2029-12")]
    with vaults.open_vault(local_keys, provisioned(local_keys)) as vault:
        first, second, third = vault.issue_many(cards, requestor=SHOP, program="card-on-file")
    with vaults.open_vault(local_keys, provisioned(local_keys)) as vault:
        issue(vault, program="card-on-file")
        with pytest.raises(tv.InvalidInputError) as alone:
            issue(vault, program="card-on-file", expiry="2030-12")
    assert isinstance(first, tv.TokenInfo)
    assert first == third
    assert (type(second), str(second)) == (type(alone.value), str(alone.value))
