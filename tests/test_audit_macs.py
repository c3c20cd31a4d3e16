"""MACs of events are made under one version of the AUDIT key, and right under any."""

from __future__ import annotations

import pytest

import tokenvault as tv
from tokenvault.audit.event import leaf_of
from tokenvault.audit.macs import AuditKeys
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.keys.port import KeyName
from tokenvault.stores.port import SealedEvent

ROW = SealedEvent(bytes(16), 1, b"", b"body", bytes(16))
LEAF = leaf_of(ROW)


class Versions:
    """Of a key store, what MACs need."""

    def __init__(self, *there: int) -> None:
        self.there = there

    def versions(self, purpose: tv.KeyPurpose) -> tuple[int, ...]:
        assert purpose is tv.KeyPurpose.AUDIT
        return self.there

    def cipher(self, key: KeyName) -> LocalBlockCipher:
        assert key.version in self.there
        return LocalBlockCipher(bytes([key.version]) * 32)

    def signer(self) -> None:
        return None


def audit_keys(store: object) -> AuditKeys:
    return AuditKeys(store)  # type: ignore[arg-type] # it has no more than AUDIT keys


def test_macs_are_made_under_the_newest_version_or_another_and_right_under_any() -> None:
    tags = [audit_keys(Versions(version)).tag(LEAF) for version in (1, 2, 3)]
    assert len(set(tags)) == 3
    keys = audit_keys(Versions(1, 2, 3))
    assert keys.tag(LEAF) == tags[2]
    for version in (1, 2, 3):
        keys.write_under(version)
        assert keys.tag(LEAF) == tags[version - 1]
    wrong = bytes(16)
    assert [keys.is_genuine(LEAF, tag) for tag in (*tags, wrong)] == [True, True, True, False]
    rows = [ROW._replace(mac=tag) for tag in (tags[2], tags[0], wrong, tags[1], tags[0])]
    checked = keys.check(rows)
    assert [each.genuine for each in checked] == [True, True, False, True, True]
    assert [(each.row, each.leaf) for each in checked] == [(row, LEAF) for row in rows]
    assert keys.genuine(rows) == [*rows[:2], *rows[3:]]


def test_without_a_key_no_mac_is_made_and_none_is_right() -> None:
    """Nor under a key that is made later, before the vault says so."""
    store = Versions()
    keys = audit_keys(store)
    assert [each.genuine for each in keys.check([ROW, ROW])] == [False, False]
    assert not keys.is_genuine(LEAF, ROW.mac)
    store.there = (1,)
    with pytest.raises(tv.TokenVaultError):
        keys.tag(LEAF)
    keys.write_under(1)
    assert keys.is_genuine(LEAF, keys.tag(LEAF))


def test_what_is_no_key_store_is_refused_by_its_name() -> None:
    with pytest.raises(tv.InvalidInputError, match=r"^keys is a key store, as open_key_store opens one$"):
        audit_keys(object())
