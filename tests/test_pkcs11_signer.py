"""The key pair that signs checkpoints, on real SoftHSM: its attributes, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass, Session

import tokenvault as tv
from tests import vaults
from tests.vaults import issue
from tokenvault.keys.pkcs11 import constants
from tokenvault.keys.pkcs11 import signer as pkcs11_signer
from tokenvault.keys.pkcs11.objects import P256, SIGNER_LABEL
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.keys.uri import parse_pkcs11_uri
from tokenvault.stores.sqlite.store import SqliteTokenStore

NOT_NEEDED = (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE)


@pytest.fixture
def store(softhsm_uri: str) -> Iterator[Pkcs11KeyStore]:
    with Pkcs11KeyStore(softhsm_uri) as opened:
        yield opened


def shell(uri: str) -> Session:
    """A session beside the store's, which is logged in for the process."""
    parsed = parse_pkcs11_uri(uri)
    return pkcs11.lib(parsed.module_path).get_token(token_label=parsed.token).open(rw=True)


def plant(uri: str, template: dict[Attribute, object], label: str = SIGNER_LABEL) -> None:
    with closing(shell(uri)) as session:
        curve = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: P256}, local=True)
        settings: dict[Attribute, object] = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
        curve.generate_keypair(
            label=label, store=True, capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            private_template={**settings, **dict.fromkeys(NOT_NEEDED, False), **template},
        )  # fmt: skip


def test_the_private_key_signs_and_does_nothing_else(softhsm_uri: str, store: Pkcs11KeyStore) -> None:
    store.create_signer()
    with closing(shell(softhsm_uri)) as session:
        (key,) = session.get_objects(
            {Attribute.LABEL: SIGNER_LABEL, Attribute.CLASS: ObjectClass.PRIVATE_KEY}
        )
        true = ("TOKEN", "PRIVATE", "SENSITIVE", "SIGN", "LOCAL", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE")
        false = ("EXTRACTABLE", "DECRYPT", "UNWRAP", "DERIVE")
        assert {name: key[Attribute[name]] for name in true} == dict.fromkeys(true, True)
        assert {name: key[Attribute[name]] for name in false} == dict.fromkeys(false, False)
        with pytest.raises(pkcs11.AttributeSensitive):
            key[Attribute.VALUE]


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        (Attribute.EXTRACTABLE, True),
        (Attribute.SENSITIVE, False),
        (Attribute.PRIVATE, False),
        (Attribute.DERIVE, True),
    ],
)
def test_a_private_key_with_other_attributes_does_not_sign(
    softhsm_uri: str, store: Pkcs11KeyStore, attribute: Attribute, value: bool
) -> None:
    plant(softhsm_uri, {attribute: value})
    signer = store.signer()
    assert signer is not None
    with pytest.raises(tv.KeyStoreError, match=attribute.name):
        signer.sign(b"message")


def test_two_pairs_of_one_name_and_pairs_that_do_not_fit_are_refused(
    softhsm_uri: str, store: Pkcs11KeyStore
) -> None:
    signer = store.create_signer()
    assert signer is not None
    plant(softhsm_uri, {})
    with pytest.raises(tv.KeyStoreError, match="more than one"):
        store.signer()
    with closing(shell(softhsm_uri)) as session:
        for key in session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}):
            if key[Attribute.ID]:
                key.destroy()
    with pytest.raises(tv.KeyStoreError, match="does not fit"):
        signer.sign(b"message")


def test_threads_that_make_the_pair_at_once_make_one(store: Pkcs11KeyStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: store.create_signer(), range(4)))
    assert len({each.public_key for each in made if each is not None}) == 1
    assert None not in made


def test_a_module_that_can_not_sign_leaves_checkpoints_unsigned(
    store: Pkcs11KeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that lacks CKM_ECDSA: nothing is made, and the vault works."""
    monkeypatch.setattr(pkcs11_signer, "NEEDED", (constants.Mechanism.EC_KEY_PAIR_GEN, 0x1088))
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as database:
        tv.provision(store, database)
        assert store.signer() is None
        with vaults.open_vault(store, database) as vault:
            issue(vault)
        report = tv.verify_audit(database, keys=store)
        assert report.intact
        assert (report.checkpoints, report.signed) == (2, 0)
        monkeypatch.undo()
        tv.provision(store, database)
        with vaults.open_vault(store, database) as vault:
            issue(vault)
        report = tv.verify_audit(database, public_key=tv.audit_public_key(store))
        assert report.intact
        assert (report.streams, report.checkpoints, report.signed) == (2, 4, 2), (
            "the signed ones name the others"
        )
        assert report.uncovered == dict.fromkeys(report.uncovered, 1)
