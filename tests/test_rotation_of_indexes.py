"""What is found by keys and is no card: uses, requests, last digits, metadata, deleted cards. Keys rotate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import MASTERCARD, SHOP, VISA, all_records, issue, use
from tokenvault import Kind, maintenance
from tokenvault.audit.event import Action
from tokenvault.errors import IntegrityError, KeyStoreError, TokenVaultError
from tokenvault.keys import KeyPurpose, KeyStore
from tokenvault.records import index_keys, sealing
from tokenvault.records.key_table import KeyTable
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock

SEAL, FINGERPRINT = KeyPurpose.SEAL, KeyPurpose.FINGERPRINT
DELAY = timedelta(milliseconds=100)
MONTHS_MS = 150 * 86_400_000
ONCE = tv.Domain(limits=(tv.Limit(uses=1),))
STAGES = ("readable", "primary", "renewed", "retired", "destroyed")


@pytest.fixture
def keys(own_keys: KeyStore) -> KeyStore:
    return own_keys


@pytest.fixture
def store(keys: KeyStore, tmp_path: Path) -> Iterator[TokenStore]:
    with closing(tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")) as opened:
        tv.provision(keys, opened, key_delay=DELAY, find_by_last4=True)
        yield opened


@pytest.fixture
def vault(keys: KeyStore, store: TokenStore, clock: ManualClock) -> Iterator[tv.Vault]:
    with vaults.open_vault(keys, store, clock) as opened:
        yield opened


def stages(keys: KeyStore, store: TokenStore, purpose: KeyPurpose, version: int = 2) -> Iterator[str]:
    """Rotate a key to the end, a step at a time, with all vaults having noticed each."""
    steps: tuple[Callable[[], object], ...] = (
        lambda: maintenance.add_key_version(keys, store, purpose),
        lambda: maintenance.make_primary(keys, store, purpose, version),
        lambda: (maintenance.refingerprint(keys, store), maintenance.reseal(keys, store)),
        lambda: maintenance.retire(keys, store, purpose, version - 1),
        lambda: maintenance.destroy(keys, store, purpose, version - 1),
    )
    for stage, step in zip(STAGES, steps, strict=True):
        step()
        time.sleep(DELAY.total_seconds())
        yield stage


def rotate(keys: KeyStore, store: TokenStore, purpose: KeyPurpose, version: int = 2) -> None:
    assert tuple(stages(keys, store, purpose, version)) == STAGES


def code_of(vault: tv.Vault, token: str, transaction: tv.Transaction) -> str:
    """What a use was refused by; empty where it was allowed."""
    try:
        vault.detokenize(token, transaction)
    except tv.DomainRestrictionError as error:
        return error.violations[0].code
    return ""


def test_tokens_are_found_by_last_digits_and_customer_at_every_stage(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    wanted = {issue(vault, customer="c-1").token}
    moved = issue(vault, MASTERCARD, customer="c-1").token
    deleted = issue(vault, customer="c-2").token
    vault.delete(deleted)
    for stage in stages(keys, store, FINGERPRINT):
        assert {info.token for info in vault.search(last4="1111")} == wanted, stage
        assert {info.token for info in vault.search(last4="1111", customer="c-1")} == wanted, stage
        wanted.add(issue(vault, customer="c-1").token)
        wanted |= {
            info.token
            for info in vault.issue_many(
                [{"pan": VISA, "customer": "c-1"}], requestor=SHOP, program="one-time"
            )
            if isinstance(info, tv.TokenInfo)
        }
        if stage == "primary":  # a card that moves under the new key
            vault.update_card(moved, new_pan=VISA)
            wanted.add(moved)
    with vaults.open_vault(keys, store) as other:
        assert {info.token for info in other.search(last4="1111")} == wanted
        assert {info.token for info in other.tokens_of(VISA)} == wanted


def test_a_record_found_by_last_digits_under_an_older_version_keeps_that_from_being_retired(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    """Also where its PAN fingerprint is under the primary one, as a call that stood still may leave it."""
    token = issue(vault).token
    maintenance.add_key_version(keys, store, FINGERPRINT)
    maintenance.make_primary(keys, store, FINGERPRINT, 2)
    time.sleep(DELAY.total_seconds())
    assert vault._core is not None
    ring = vault._core.keys
    record, card = ring.unseal(store.get([token])[0])
    assert card is not None
    mixed = record._replace(revision=2, pan_fingerprint=ring.pan_fingerprint(card.pan))
    assert not store.replace([ring.seal(mixed, card)], [])
    with pytest.raises(tv.LifecycleError, match="1 of 1 rows need"):
        maintenance.retire(keys, store, FINGERPRINT, 1)
    assert maintenance.refingerprint(keys, store).done == 1
    maintenance.retire(keys, store, FINGERPRINT, 1)
    assert [info.token for info in vault.search(last4="1111")] == [token]


def test_a_retry_is_recognised_at_every_stage_of_two_rotations(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    token = issue(vault, domain=ONCE).token
    first = use("first", amount=tv.Money(1000, "EUR"))
    assert code_of(vault, token, first) == ""
    for version in (2, 3):
        for stage in stages(keys, store, FINGERPRINT, version):
            assert code_of(vault, token, first) == "", stage
            (batch,) = vault.detokenize_many([(token, first)])
            assert isinstance(batch, tv.Card), stage
            assert code_of(vault, token, use(f"{stage}{version}")) == "USES_EXCEEDED", stage
            other = use("first", amount=tv.Money(1001, "EUR"))
            assert code_of(vault, token, other) not in ("", "USES_EXCEEDED"), "the content is compared"
    assert keys.versions(FINGERPRINT) == (3,)
    report = tv.verify_audit(store, keys=keys)
    assert report.intact, report.findings


def test_an_original_months_old_is_found_and_bounds_what_follows_it(
    keys: KeyStore, store: TokenStore, vault: tv.Vault, clock: ManualClock
) -> None:
    token = issue(vault).token
    assert code_of(vault, token, use("paid", amount=tv.Money(100_00, "EUR"))) == ""
    for number, stage in enumerate(stages(keys, store, FINGERPRINT)):
        clock.advance(MONTHS_MS // len(STAGES))
        back = use(f"back-{number}", kind=Kind.REFUND, amount=tv.Money(10_00, "EUR"), original="tx-paid")
        for _ in range(2):
            assert code_of(vault, token, back) == "", stage
    rest = tv.Money(50_00, "EUR")
    over = use("over", kind=Kind.REFUND, amount=tv.Money(50_01, "EUR"), original="tx-paid")
    with vaults.open_vault(keys, store, clock) as other:
        assert code_of(other, token, over) == "REFUND_EXCEEDS"
        assert code_of(other, token, use("rest", kind=Kind.REFUND, amount=rest, original="tx-paid")) == ""
        assert code_of(other, token, over) == "REFUND_EXCEEDS"


@pytest.mark.parametrize("program", ["one-time", "card-on-file"])
def test_an_idempotency_key_gives_its_token_at_every_stage_of_two_rotations(
    keys: KeyStore, store: TokenStore, vault: tv.Vault, program: str
) -> None:
    tokens = {"0": issue(vault, program=program, idempotency_key="0").token}
    for version in (2, 3):
        for stage in stages(keys, store, FINGERPRINT, version):
            key = f"{version} {stage}"
            tokens[key] = issue(vault, program=program, idempotency_key=key).token
            for known, token in tokens.items():
                assert issue(vault, program=program, idempotency_key=known).token == token, (stage, known)
            with pytest.raises(tv.InvalidInputError) as caught:
                issue(vault, MASTERCARD, program=program, idempotency_key="0")
            assert caught.value.code == "IDEMPOTENCY_CONFLICT", stage
    assert len(set(tokens.values())) == (1 if program == "card-on-file" else 11)


def test_a_token_issued_from_another_repeats_after_a_rotation(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    source = issue(vault).token

    def granted() -> str:
        return vault.issue_from(
            source, requestor=vaults.ACQUIRER, program="online", idempotency_key="grant"
        ).token

    token = granted()
    for purpose in (FINGERPRINT, SEAL):
        for stage in stages(keys, store, purpose):
            assert granted() == token, stage
            assert [info.token for info in vault.tokens_from(source)] == [token], stage


def test_two_vaults_give_an_idempotency_key_one_token_though_one_has_not_noticed(
    keys: KeyStore, tmp_path: Path
) -> None:
    delay = 1.6
    with closing(tv.open_token_store(f"sqlite:///{tmp_path}/late.db")) as store:
        tv.provision(keys, store, key_delay=timedelta(seconds=delay))
        with vaults.open_vault(keys, store) as late, vaults.open_vault(keys, store) as prompt:
            maintenance.add_key_version(keys, store, FINGERPRINT)
            maintenance.make_primary(keys, store, FINGERPRINT, 2)
            assert late._core is not None
            assert prompt._core is not None
            # As one that read the table just before the change, and one that does just after.
            late._core.key_versions._read_again_at = time.monotonic() + delay / 2
            prompt._core.key_versions._read_again_at = 0.0
            found: list[str] = []
            other = threading.Thread(target=lambda: found.append(issue(prompt, idempotency_key="k").token))
            other.start()
            time.sleep(delay / 4)
            assert late._core.keys.fingerprint_versions[0] == 1
            token = issue(late, idempotency_key="k").token
            other.join()
            assert found == [token]


def test_what_came_from_a_deleted_token_is_found_at_every_stage(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    """By the events that name their source: a tombstone has no card, and no fingerprint of one."""
    source = issue(vault, program="card-on-file")
    between = vault.issue_from(source.token, requestor=SHOP, program="one-time")
    last = vault.issue_from(between.token, requestor=SHOP, program="one-time")
    others = issue(vault)
    vault.delete(source.token)
    vault.delete(between.token)
    for _ in stages(keys, store, FINGERPRINT):
        assert [each.token for each in vault.tokens_from(source.token, requestor=SHOP)] == [last.token]
        assert [each.token for each in vault.tokens_from(between.token)] == [last.token]
        assert vault.tokens_from(others.token) == []
    vault.delete(last.token, requestor=SHOP)
    assert vault.tokens_from(source.token) == []
    assert [each.action for each in vault.history(source.token)].count(Action.ISSUE) == 1


def test_metadata_is_sealed_anew_and_keeps_its_key_for_as_long_as_it_is_under_it(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    pairs = {"order": "4711"}
    untouched, updated = issue(vault, metadata=pairs).token, issue(vault, metadata=pairs).token
    bare = issue(vault).token
    maintenance.add_key_version(keys, store, SEAL)
    maintenance.make_primary(keys, store, SEAL, 2)
    time.sleep(DELAY.total_seconds())
    vault.update_token(updated, customer="c-1")
    assert sealing.key_versions(store.get([updated])[0]) == (2, 1), (
        "its metadata is still under the former key"
    )
    with pytest.raises(tv.LifecycleError, match="3 of 3 rows need"):
        maintenance.retire(keys, store, SEAL, 1)
    assert maintenance.reseal(keys, store).done == 3
    assert {sealing.key_versions(row) for row in all_records(store)} == {(2,), (2, 2)}
    assert maintenance.reseal(keys, store).done == 0
    maintenance.retire(keys, store, SEAL, 1)
    maintenance.destroy(keys, store, SEAL, 1)
    time.sleep(DELAY.total_seconds())
    with vaults.open_vault(keys, store) as other:
        for each in (vault, other):
            assert each.get(untouched).metadata == each.get(updated).metadata == pairs
            assert each.get(bare).metadata == {}


def test_what_is_counted_of_a_card_outlives_its_token_at_every_stage(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    """A convergent token that is deleted and issued again goes on counting, whatever keys are destroyed meanwhile."""
    token = issue(vault, program="card-on-file", domain=ONCE).token
    assert code_of(vault, token, use("first")) == ""
    for version in (2, 3):
        for stage in stages(keys, store, FINGERPRINT, version):
            vault.delete(token)
            if stage == "destroyed":
                (again,) = vault.issue_many(
                    [(VISA, "2029-12")], requestor=SHOP, program="card-on-file", domain=ONCE
                )
                assert isinstance(again, tv.TokenInfo)
                token = again.token
            else:
                token = issue(vault, program="card-on-file", domain=ONCE).token
            assert code_of(vault, token, use(f"{stage}{version}")) == "USES_EXCEEDED", stage
    vault.delete(token)
    rotate(keys, store, FINGERPRINT, 4)
    token = issue(vault, program="card-on-file", domain=ONCE).token
    assert code_of(vault, token, use("last")) == "USES_EXCEEDED", "deleted before the rotation"


def test_a_carried_index_key_is_sealed_and_opens_under_its_own_names_only(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    assert vault._core is not None
    (first,) = vault._core.keys._index_keys.values()
    rotate(keys, store, FINGERPRINT)
    value = store.get_meta("keys/5")
    assert value is not None
    assert first not in value
    (carried,) = KeyTable.parse(value).carried
    assert (carried.version, carried.under) == (1, 2)
    with vaults.open_vault(keys, store) as other:
        assert other._core is not None
        known = other._core.keys._index_keys
        assert known[1] == first
        assert index_keys.opened(carried, known) == first
        for wrong in (
            carried._replace(version=2),
            carried._replace(under=1),
            carried._replace(nonce=bytes(13)),
            carried._replace(sealed=bytes(48)),
        ):
            with pytest.raises(IntegrityError):
                index_keys.opened(wrong, known)
        with pytest.raises(KeyStoreError):
            index_keys.opened(carried._replace(under=7), known)


def test_a_writer_of_the_database_can_not_change_a_carried_index_key(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    token = issue(vault, domain=ONCE).token
    assert code_of(vault, token, use("first")) == ""
    rotate(keys, store, FINGERPRINT)
    value = bytearray(store.get_meta("keys/5") or b"")
    value[4] = 6  # its number
    value[-20] ^= 1  # the end of the carried key
    store.put_meta("keys/6", bytes(value))
    time.sleep(DELAY.total_seconds())
    try:
        assert code_of(vault, token, use("first")) == ""
    except TokenVaultError as error:  # pragma: no cover # the forged table is passed over
        pytest.fail(f"a forged table counts: {error}")
