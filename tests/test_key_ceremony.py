"""Keys in shares: any two rebuild a key, one tells nothing, and by them a vault moves to another module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests import softhsm, vaults
from tests.vaults import VISA, all_records, issue, use
from tokenvault import maintenance
from tokenvault.audit import succession
from tokenvault.audit.checkpoint import key_id_of
from tokenvault.audit.succession import Succession, name_of, sign
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.crypto import shamir
from tokenvault.keys import KeyName, KeyPurpose
from tokenvault.keys.ceremony import import_key, new_shares
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.keys.secrets import Secret
from tokenvault.records.key_table import key_check_value
from tokenvault.stores.port import TokenStore

DELAY = timedelta(milliseconds=100)
PAIRS = list(combinations(range(3), 2))
Shares = tuple[Secret, Secret, Secret]


@given(st.integers(0, 64).flatmap(lambda size: st.tuples(*[st.binary(min_size=size, max_size=size)] * 2)))
def test_any_two_shares_rebuild_a_secret(drawn: tuple[bytes, bytes]) -> None:
    secret, slopes = drawn
    shares = shamir.split(secret, slopes)
    assert set(shares) == {1, 2, 3}
    for one, other in combinations(shares, 2):
        assert shamir.combine({one: shares[one], other: shares[other]}) == secret


def test_one_share_is_as_likely_with_every_secret() -> None:
    """Over all slopes, a share of any byte takes each value once: it tells nothing of the byte."""
    for place in (1, 2, 3):
        for secret in (0, 1, 0x53, 0xFF):
            values = Counter(secret ^ shamir._times(slope, place) for slope in range(256))
            assert sorted(values) == list(range(256))


def test_the_product_is_that_of_the_field_of_aes() -> None:
    assert shamir._times(0x57, 0x83) == 0xC1  # FIPS 197, section 4.2
    for difference, inverse in shamir._INVERSES_OF_DIFFERENCES.items():
        assert shamir._times(difference, inverse) == 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_other_than_two_shares_are_refused(count: int) -> None:
    shares = shamir.split(b"secret", b"slopes")
    with pytest.raises(ValueError, match=r"."):
        shamir.combine({place: shares[place] for place in list(shares)[:count]})


@pytest.fixture
def token(softhsm_folder: Path) -> Iterator[Pkcs11KeyStore]:
    with closing(Pkcs11KeyStore(softhsm.new_token(softhsm_folder))) as opened:
        yield opened


@pytest.fixture
def other_token(softhsm_folder: Path) -> Iterator[Pkcs11KeyStore]:
    with closing(Pkcs11KeyStore(softhsm.new_token(softhsm_folder))) as opened:
        yield opened


SEAL_1 = KeyName(KeyPurpose.SEAL, 1)


def test_any_two_shares_bring_the_same_key_into_a_token(softhsm_folder: Path) -> None:
    shares = new_shares()
    checks = set()
    for pair in PAIRS:
        with closing(Pkcs11KeyStore(softhsm.new_token(softhsm_folder))) as keys:
            import_key(keys, SEAL_1, tv.Custody.IN_MODULE, [shares[place] for place in pair])
            checks.add(key_check_value(keys.cipher(SEAL_1)))
    assert len(checks) == 1


def misread(share: Secret) -> Secret:
    text = share.reveal()
    return Secret(text[:-1] + ("A" if text[-1] != "A" else "B"))


def test_shares_that_do_not_fit_are_refused_and_leave_no_key(token: Pkcs11KeyStore) -> None:
    one, two, three = new_shares()
    others = new_shares()
    for wrong in (
        [],
        [one],
        [one, one],
        [one, others[1]],
        [one, misread(two)],
        [one, two, others[2]],
        [one, Secret("")],
        [one, Secret("tokenvault-share 2 of 3 AAAA")],
    ):
        with pytest.raises(tv.InvalidInputError) as caught:
            import_key(token, SEAL_1, tv.Custody.IN_MODULE, wrong)
        assert caught.value.code == "KEY_SHARES_UNFIT"
        assert not any(part in str(caught.value) for part in one.reveal().split()[-1].split("-"))
    with pytest.raises(tv.InvalidInputError):
        import_key(token, SEAL_1, tv.Custody.IN_MODULE, [one.reveal(), two])  # type: ignore[list-item] # bare text
    assert token.versions(KeyPurpose.SEAL) == ()
    import_key(token, SEAL_1, tv.Custody.IN_MODULE, [three, Secret(f"  {one.reveal().lower()}\n"), two])
    assert token.versions(KeyPurpose.SEAL) == (1,)


def test_a_share_is_not_shown(token: Pkcs11KeyStore) -> None:
    for share in new_shares():
        assert share.reveal().split()[-1] not in repr(share)


def test_a_version_that_a_token_has_or_had_is_not_brought_in_again(token: Pkcs11KeyStore) -> None:
    shares = new_shares()
    import_key(token, SEAL_1, tv.Custody.IN_MODULE, shares[:2])
    with pytest.raises(tv.KeyStoreError):
        import_key(token, SEAL_1, tv.Custody.IN_MODULE, shares[:2])
    token.destroy(SEAL_1)
    with pytest.raises(tv.KeyStoreError):
        import_key(token, SEAL_1, tv.Custody.IN_MODULE, shares[:2])
    import_key(token, KeyName(KeyPurpose.SEAL, 5), tv.Custody.IN_MODULE, shares[1:])
    assert token.versions(KeyPurpose.SEAL) == (5,)
    assert token.create(KeyPurpose.SEAL, tv.Custody.IN_MODULE) == KeyName(KeyPurpose.SEAL, 6)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TokenStore]:
    with closing(tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")) as opened:
        yield opened


def ceremony(keys: Pkcs11KeyStore, version: int, custody: tv.Custody) -> dict[KeyName, Shares]:
    """Keys of a version for each purpose, in shares, brought into a token."""
    shares = {KeyName(purpose, version): new_shares() for purpose in KeyPurpose}
    for name, three in shares.items():
        import_key(keys, name, custody, three[:2])
    return shares


def test_a_vault_moves_to_another_module_by_two_shares_of_each_key(
    token: Pkcs11KeyStore, other_token: Pkcs11KeyStore, store: TokenStore, custody: tv.Custody
) -> None:
    shares = ceremony(token, 1, custody)
    tv.provision(token, store, key_delay=DELAY)
    assert all(token.versions(purpose) == (1,) for purpose in KeyPurpose), "no other key was made"
    with vaults.open_vault(token, store) as vault:
        before = issue(vault, program="card-on-file").token
    former = tv.audit_public_key(token)
    other_token.create_signer()
    successor = tv.audit_public_key(other_token)
    assert former is not None
    assert successor is not None
    for _ in range(2):
        maintenance.introduce_signer(token, store, successor)

    for place, (name, three) in enumerate(shares.items()):
        import_key(other_token, name, custody, [three[at] for at in PAIRS[place % 3]])
    token.close()
    with vaults.open_vault(other_token, store) as vault:
        assert issue(vault, program="card-on-file").token == before, "no card gets a second convergent token"
        assert vault.detokenize(before, use()).pan.reveal() == VISA
    with_keys = tv.verify_audit(store, keys=other_token)
    assert with_keys.intact, with_keys.findings
    for trusted in (former, successor):
        report = tv.verify_audit(store, public_key=trusted)
        assert report.intact, report.findings


def test_keys_that_a_module_made_are_rotated_to_keys_in_shares_before_a_move(
    token: Pkcs11KeyStore, other_token: Pkcs11KeyStore, store: TokenStore
) -> None:
    """But for the AUDIT key: its events need it for as long as they are kept, so it is in shares from the start."""
    audit = new_shares()
    import_key(token, KeyName(KeyPurpose.AUDIT, 1), tv.Custody.IN_PROCESS, audit[:2])
    tv.provision(token, store, key_delay=DELAY)
    with vaults.open_vault(token, store) as vault:
        before = issue(vault, program="card-on-file").token
    former = tv.audit_public_key(token)
    other_token.create_signer()
    successor = tv.audit_public_key(other_token)
    assert former is not None
    assert successor is not None
    maintenance.introduce_signer(token, store, successor)
    moved = {KeyName(purpose, 2): new_shares() for purpose in (KeyPurpose.SEAL, KeyPurpose.FINGERPRINT)}
    for name, shares in moved.items():
        import_key(token, name, tv.Custody.IN_PROCESS, shares[:2])
        maintenance.add_key_version(token, store, name.purpose, version=2)
        maintenance.make_primary(token, store, name.purpose, 2)
    maintenance.refingerprint(token, store)
    for name in moved:
        maintenance.retire(token, store, name.purpose, 1)
    for name, shares in (*moved.items(), (KeyName(KeyPurpose.AUDIT, 1), audit)):
        import_key(other_token, name, tv.Custody.IN_PROCESS, shares[1:])
    token.close()
    with vaults.open_vault(other_token, store) as vault:
        assert issue(vault, program="card-on-file").token == before
        assert vault.detokenize(before, use()).pan.reveal() == VISA
    assert {row.key_version for row in all_records(store)} == {2}
    report = tv.verify_audit(store, keys=other_token, public_key=former)
    assert report.intact, report.findings


def test_a_key_that_nobody_trusted_introduced_is_not_trusted(
    token: Pkcs11KeyStore, other_token: Pkcs11KeyStore, store: TokenStore
) -> None:
    tv.provision(token, store, key_delay=DELAY)
    with vaults.open_vault(token, store) as vault:
        issue(vault)
    former = tv.audit_public_key(token)
    assert former is not None
    tv.provision(other_token, tv.open_token_store("memory:"))
    signer, own = other_token.signer(), token.signer()
    assert signer is not None
    assert own is not None
    forged = Succession(key_id_of(own.public_key), signer.public_key, bytes(64))
    by_itself = Succession(forged.former, forged.public_key, signer.sign(forged.signed))
    for number, value in enumerate((forged.encode(), by_itself.encode(), b"", b"\x01" * 164), start=1):
        store.put_meta(name_of(number), value)
    assert trusted_ids(former, store) == {forged.former}
    # What was planted does not keep the genuine one from being written.
    successor = tv.audit_public_key(other_token)
    assert successor is not None
    maintenance.introduce_signer(token, store, successor)
    assert len(trusted_ids(former, store)) == 2


def test_a_successor_of_a_successor_is_trusted_in_whatever_order_they_stand(
    token: Pkcs11KeyStore, other_token: Pkcs11KeyStore, store: TokenStore, softhsm_folder: Path
) -> None:
    tv.provision(token, store)
    with closing(Pkcs11KeyStore(softhsm.new_token(softhsm_folder))) as third:
        first, second, last = filter(None, (each.create_signer() for each in (token, other_token, third)))
        store.put_meta(name_of(1), sign(second, last.public_key).encode())
        store.put_meta(name_of(2), sign(first, second.public_key).encode())
        former = tv.audit_public_key(token)
        assert former is not None
        assert len(trusted_ids(former, store)) == 3


def trusted_ids(public_key: str, store: TokenStore) -> set[bytes]:
    trusted = TrustedKeys(None, public_key)
    trusted.learn(succession.stored(store.get_meta))
    return set(trusted._public)


def test_a_text_that_is_no_one_public_key_introduces_nobody(token: Pkcs11KeyStore, store: TokenStore) -> None:
    tv.provision(token, store)
    own = tv.audit_public_key(token)
    assert own is not None
    for wrong in ("", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", own + own):
        with pytest.raises(tv.InvalidInputError):
            maintenance.introduce_signer(token, store, wrong)
    maintenance.introduce_signer(token, store, own)  # it signs already
    assert store.get_meta(name_of(1)) is None


def test_a_key_file_signs_nothing_and_introduces_nobody(
    token: Pkcs11KeyStore, store: TokenStore, tmp_path: Path
) -> None:
    token.create_signer()
    successor = tv.audit_public_key(token)
    assert successor is not None
    (tmp_path / "passphrase").write_text("correct horse battery staple")
    uri = f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/passphrase"
    with closing(tv.open_key_store(uri)) as keys:
        tv.provision(keys, store)
        with pytest.raises(tv.LifecycleError, match="signs nothing"):
            maintenance.introduce_signer(keys, store, successor)
