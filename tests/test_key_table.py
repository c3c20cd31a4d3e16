"""The key table: what is no table is refused, and a database without one is opened by its own keys alone."""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests import vaults
from tests.vaults import VISA, all_records, issue
from tokenvault.crypto.cmac import Cmac
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import IntegrityError
from tokenvault.keys import BlockCipher, Custody, KeyName, KeyPurpose, KeyStore
from tokenvault.keys.port import VERSION_MAX
from tokenvault.records.key_table import (
    DELAY_MS,
    CarriedKey,
    KeyEntry,
    KeyState,
    KeyTable,
    in_order,
)
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import META_VALUE_BYTES_MAX
from tokenvault.stores.sqlite import file
from tokenvault.vault import key_versions, provision

SEAL, FINGERPRINT, FPE, AUDIT = KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.FPE, KeyPurpose.AUDIT
MAC = Cmac(LocalBlockCipher(bytes(32)))

# The text.

names = st.builds(KeyName, st.sampled_from(KeyPurpose), st.integers(1, VERSION_MAX))
entries = st.builds(
    KeyEntry,
    name=names,
    state=st.sampled_from(KeyState),
    custody=st.sampled_from(Custody),
    check=st.binary(min_size=8, max_size=8),
    created_ms=st.integers(0, 2**64 - 1),
)
carried = st.builds(
    CarriedKey,
    version=st.integers(1, 65_535),
    under=st.integers(1, 65_535),
    nonce=st.binary(min_size=13, max_size=13),
    sealed=st.binary(min_size=48, max_size=48),
)
tables = st.builds(
    KeyTable,
    number=st.integers(1, 2**32 - 1),
    delay_ms=st.integers(1_000, 60_000),
    entries=st.lists(entries, max_size=6).map(in_order),
    carried=st.lists(carried, max_size=3, unique_by=lambda each: each.version).map(
        lambda each: tuple(sorted(each))
    ),
)


@given(tables)
def test_a_table_reads_back_as_it_was_written(table: KeyTable) -> None:
    value = table.encode(MAC)
    assert KeyTable.parse(value) == table
    assert table.is_genuine(value, MAC)
    assert not table.is_genuine(value, Cmac(LocalBlockCipher(b"\x01" * 32)))


@given(tables, st.data())
def test_a_changed_table_is_refused_or_not_genuine(table: KeyTable, data: st.DataObject) -> None:
    value = bytearray(table.encode(MAC))
    place, flip = data.draw(st.integers(0, len(value) - 1)), data.draw(st.integers(1, 255))
    value[place] ^= flip
    cut = (
        bytes(value)
        if data.draw(st.booleans())
        else bytes(value[: data.draw(st.integers(0, len(value) - 1))])
    )
    with suppress(IntegrityError):
        assert not KeyTable.parse(cut).is_genuine(cut, MAC)


@given(st.binary(max_size=200))
def test_what_is_no_table_is_refused_as_such(value: bytes) -> None:
    with pytest.raises(IntegrityError):
        KeyTable.parse(value)


def entry(purpose: KeyPurpose, version: int, state: KeyState) -> KeyEntry:
    return KeyEntry(KeyName(purpose, version), state, Custody.IN_PROCESS, bytes(8), 0)


def test_entries_out_of_order_and_borders_of_the_fields_are_refused() -> None:
    two = KeyTable(1, 1_000, (entry(SEAL, 1, KeyState.READABLE), entry(SEAL, 2, KeyState.PRIMARY)))
    assert KeyTable.parse(two.encode(MAC)) == two
    wrong = [
        attrs.evolve(two, entries=two.entries[::-1]),
        attrs.evolve(two, entries=(two.entries[0], two.entries[0])),
        attrs.evolve(two, number=0),
        attrs.evolve(two, delay_ms=0),
        attrs.evolve(
            two, carried=(CarriedKey(2, 1, bytes(13), bytes(48)), CarriedKey(1, 1, bytes(13), bytes(48)))
        ),
        attrs.evolve(two, carried=(CarriedKey(1, 1, bytes(13), bytes(48)),) * 2),
    ]
    for table in wrong:
        with pytest.raises(IntegrityError):
            KeyTable.parse(table.encode(MAC))


def test_a_version_moves_from_readable_to_primary_to_retired_to_destroyed_and_no_other_way() -> None:
    table = KeyTable(1, 1_000, (entry(SEAL, 1, KeyState.PRIMARY),))
    first, second, third = (KeyName(SEAL, version) for version in (1, 2, 3))
    for change in (table.with_primary, table.with_retired, table.with_destroyed):
        with pytest.raises(tv.LifecycleError) as refused:
            change(first)
        assert refused.value.code == "KEY_STATE_NOT_FITTING"
    with pytest.raises(tv.InvalidInputError):
        table.with_readable(first, Custody.IN_MODULE, bytes(8), 0)
    table = table.with_readable(second, Custody.IN_MODULE, bytes(8), 7).with_readable(
        third, Custody.IN_MODULE, bytes(8), 8
    )
    assert (table.number, table.live(SEAL), table.primary(SEAL)) == (3, (1, 2, 3), 1)
    table = table.with_primary(third)
    assert table.primary(SEAL) == 3
    with pytest.raises(tv.LifecycleError, match="older") as refused:
        table.with_primary(second)
    assert refused.value.code == "KEY_STATE_NOT_FITTING"
    with pytest.raises(tv.LifecycleError, match="primary"):
        table.with_retired(third)
    table = table.with_retired(first)
    assert table.live(SEAL) == (2, 3)
    with pytest.raises(tv.LifecycleError, match="readable"):
        table.with_destroyed(second)
    table = table.with_destroyed(first)
    assert table.restated() == attrs.evolve(table, number=table.number + 1)
    with pytest.raises(tv.LifecycleError, match="not in the key table"):
        table.with_retired(KeyName(AUDIT, 9))
    with pytest.raises(tv.ConfigurationError, match="no primary audit key") as missing:
        table.primary(AUDIT)
    assert missing.value.code == "KEY_MISSING"


def test_a_table_takes_no_more_versions_than_a_store_keeps_and_still_retires_all() -> None:
    table = KeyTable(1, 1_000, (entry(FINGERPRINT, 1, KeyState.PRIMARY),))
    code = ""
    while not code and table.number < VERSION_MAX:
        following = KeyName(FINGERPRINT, len(table.entries) + 1)
        try:
            table = table.with_readable(following, Custody.IN_MODULE, bytes(8), 0).with_primary(following)
        except tv.LifecycleError as full:
            code = full.code
    assert code == "KEY_TABLE_FULL"
    assert len(table.entries) > 30
    kept = tuple(CarriedKey(each.name.version, 1, bytes(13), bytes(48)) for each in table.entries[:-1])
    assert len(attrs.evolve(table, carried=kept).encode(MAC)) <= META_VALUE_BYTES_MAX


@pytest.mark.parametrize("fingerprints", range(21))
def test_a_version_is_refused_exactly_where_the_table_would_not_fit_with_all_that_is_carried_later(
    fingerprints: int,
) -> None:
    """So many FINGERPRINT versions, and SEAL versions up to the border; with 7 the table fits to a byte."""

    def table(seals: int) -> KeyTable:
        of_found = tuple(
            entry(FINGERPRINT, version, KeyState.READABLE) for version in range(1, fingerprints + 1)
        )
        kept = tuple(CarriedKey(each.name.version, 1, bytes(13), bytes(48)) for each in of_found)
        of_seal = tuple(entry(SEAL, version, KeyState.READABLE) for version in range(1, seals + 1))
        return KeyTable(1, 1_000, (*of_seal, *of_found), kept)

    fits = next(seals for seals in range(200, 0, -1) if len(table(seals).encode(MAC)) <= META_VALUE_BYTES_MAX)
    last = attrs.evolve(table(fits - 1), carried=())
    full = last.with_readable(KeyName(SEAL, fits), Custody.IN_PROCESS, bytes(8), 0)
    assert full == attrs.evolve(table(fits), number=2, carried=())
    with pytest.raises(tv.LifecycleError) as refused:
        full.with_readable(KeyName(SEAL, fits + 1), Custody.IN_PROCESS, bytes(8), 0)
    assert refused.value.code == "KEY_TABLE_FULL"


def test_a_version_that_is_added_is_newer_than_every_other_of_its_purpose() -> None:
    table = KeyTable(1, 1_000, (entry(SEAL, 1, KeyState.PRIMARY), entry(SEAL, 3, KeyState.READABLE)))
    for version in (1, 2, 3):
        with pytest.raises(tv.InvalidInputError, match="or a newer version"):
            table.with_readable(KeyName(SEAL, version), Custody.IN_PROCESS, bytes(8), 0)
    assert table.with_readable(KeyName(SEAL, 4), Custody.IN_PROCESS, bytes(8), 0).live(SEAL) == (1, 3, 4)
    assert table.with_readable(KeyName(FPE, 1), Custody.IN_PROCESS, bytes(8), 0).live(FPE) == (1,)


def test_a_table_is_noticed_within_the_five_seconds_that_the_documents_name() -> None:
    assert timedelta(milliseconds=DELAY_MS) == provision.KEY_DELAY == timedelta(seconds=5)


# A database whose table is gone, or was tampered with.


class Mixed:
    """The keys of one store, but for those of one purpose, which come from another."""

    def __init__(self, keys: KeyStore, purpose: KeyPurpose, other: KeyStore) -> None:
        self._keys, self._purpose, self._other = keys, purpose, other

    def _of(self, purpose: KeyPurpose) -> KeyStore:
        return self._other if purpose is self._purpose else self._keys

    def cipher(self, key: KeyName) -> BlockCipher:
        return self._of(key.purpose).cipher(key)

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        return self._of(purpose).versions(purpose)

    def create(self, purpose: KeyPurpose, custody: Custody, *, version: int | None = None) -> KeyName:
        return self._of(purpose).create(purpose, custody, version=version)

    def signer(self) -> tv.keys.Signer | None:
        return self._keys.signer()

    def create_signer(self) -> tv.keys.Signer | None:
        return self._keys.create_signer()

    def destroy(self, key: KeyName) -> None:
        self._of(key.purpose).destroy(key)

    def close(self) -> None:
        """They are closed by whom they belong to."""


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyStore]:
    folder = tmp_path_factory.mktemp("others")
    (folder / "passphrase").write_text("another battery staple")
    address = f"file:{folder}/keys.json?passphrase-source=file:{folder}/passphrase"
    with closing(tv.open_key_store(address)) as keys, closing(MemoryTokenStore()) as nowhere:
        tv.provision(keys, nowhere)
        yield keys


@pytest.fixture
def store(local_keys: KeyStore) -> Iterator[MemoryTokenStore]:
    with closing(MemoryTokenStore()) as opened:
        tv.provision(local_keys, opened)
        yield opened


def names_of_tables(store: MemoryTokenStore) -> list[str]:
    return sorted(name for name in store._meta if name.startswith("keys/"))


def remove_tables(store: MemoryTokenStore) -> None:
    for name in names_of_tables(store):
        del store._meta[name]


def nothing(_store: MemoryTokenStore) -> None:
    """Leave the tables."""


@pytest.mark.parametrize("tokens", [0, 3])
def test_a_database_without_a_table_opens_with_its_own_keys_and_has_one_again(
    local_keys: KeyStore, store: MemoryTokenStore, tokens: int
) -> None:
    with vaults.open_vault(local_keys, store) as vault:
        issued = [issue(vault, program="card-on-file").token for _ in range(tokens)]
    remove_tables(store)
    with vaults.open_vault(local_keys, store) as vault:
        assert [issue(vault, program="card-on-file").token for _ in range(tokens)] == issued
    assert [KeyTable.parse(store._meta[name]).number for name in names_of_tables(store)] == [1]


@pytest.mark.parametrize("purpose", [SEAL, FINGERPRINT, AUDIT])
@pytest.mark.parametrize("tamper", [nothing, remove_tables])
def test_another_key_of_any_purpose_is_refused_with_or_without_a_table(
    local_keys: KeyStore,
    others: KeyStore,
    store: MemoryTokenStore,
    purpose: KeyPurpose,
    tamper: Callable[[MemoryTokenStore], None],
) -> None:
    with vaults.open_vault(local_keys, store) as vault:
        issue(vault)
        deleted = issue(vault).token
        vault.delete(deleted)
    tamper(store)
    before = all_records(store), dict(store._meta)
    with pytest.raises(tv.ConfigurationError) as refused:
        vaults.open_vault(Mixed(local_keys, purpose, others), store)
    assert refused.value.code == "KEYS_OF_OTHER_VAULT"
    assert purpose.value in str(refused.value)
    assert (all_records(store), dict(store._meta)) == before, "a refusal writes nothing"
    with vaults.open_vault(local_keys, store) as vault:
        assert vault.tokens_of(VISA)


def test_tombstones_alone_prove_the_seal_key(
    local_keys: KeyStore, others: KeyStore, store: MemoryTokenStore
) -> None:
    with vaults.open_vault(local_keys, store) as vault:
        vault.delete(issue(vault).token)
    remove_tables(store)
    with pytest.raises(tv.ConfigurationError) as refused:
        vaults.open_vault(Mixed(local_keys, SEAL, others), store)
    assert refused.value.code == "KEYS_OF_OTHER_VAULT"
    vaults.open_vault(local_keys, store).close()


def test_a_table_that_was_overwritten_closes_the_vault_until_it_is_taken_away(
    local_keys: KeyStore, store: MemoryTokenStore
) -> None:
    for name in names_of_tables(store):
        store._meta[name] = b"nonsense"
    with pytest.raises(tv.ConfigurationError, match="taken by something else"):
        vaults.open_vault(local_keys, store)
    remove_tables(store)
    vaults.open_vault(local_keys, store).close()


def test_a_planted_table_is_passed_over_and_the_genuine_one_counts(
    local_keys: KeyStore, store: MemoryTokenStore
) -> None:
    last = names_of_tables(store)[-1]
    table = KeyTable.parse(store._meta[last])
    following = f"keys/{int(last.partition('/')[2]) + 1}"
    planted = attrs.evolve(table, number=table.number + 1, delay_ms=table.delay_ms + 1).encode(MAC)
    store._meta[following] = planted
    with vaults.open_vault(local_keys, store) as vault:
        assert issue(vault).token
    assert store._meta[following] == planted


def test_a_table_under_an_audit_key_that_is_not_here_closes_the_vault(
    local_keys: KeyStore, store: MemoryTokenStore
) -> None:
    """It may be genuine: what it says is not passed over for want of a key."""
    last = names_of_tables(store)[-1]
    table = KeyTable.parse(store._meta[last])
    newer = table.with_readable(KeyName(AUDIT, 2), Custody.IN_PROCESS, bytes(8), 0)
    newer = attrs.evolve(newer.with_primary(KeyName(AUDIT, 2)), number=table.number + 1)
    store._meta[f"keys/{newer.number}"] = newer.encode(MAC)
    with pytest.raises(
        tv.KeyStoreError, match="under audit version 2, which this key store does not"
    ) as refused:
        vaults.open_vault(local_keys, store)
    assert refused.value.code == "KEY_STORE_KEY_MISSING"
    del store._meta[f"keys/{newer.number}"]
    vaults.open_vault(local_keys, store).close()


def test_a_database_has_so_many_key_tables_and_what_stands_in_their_names(
    local_keys: KeyStore, store: MemoryTokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_versions, "TABLES_MAX", 3)
    store._meta["keys/2"] = b"nonsense"
    vaults.open_vault(local_keys, store).close()
    store._meta["keys/3"] = b"nonsense"
    with pytest.raises(tv.ConfigurationError, match="too many key tables") as refused:
        vaults.open_vault(local_keys, store)
    assert refused.value.code == "CONFIGURATION"


def test_checkpoints_that_can_not_be_read_prove_no_key_where_the_table_is_gone(
    local_keys: KeyStore, tmp_path: Path
) -> None:
    path = tmp_path / "vault.db"
    with closing(tv.open_token_store(f"sqlite:///{path}")) as store:
        tv.provision(local_keys, store)
        with vaults.open_vault(local_keys, store) as vault:
            issue(vault)
        with closing(sqlite3.connect(path)) as shell, shell:
            shell.execute("DELETE FROM meta WHERE name LIKE 'keys/%'")
            shell.execute("CREATE TABLE events_before AS SELECT number, body FROM events")
            shell.execute("UPDATE events SET body = zeroblob(?)", (file._ROW_BYTES_MAX + 1,))
        with pytest.raises(IntegrityError):
            store.latest_checkpoints(1)
        with pytest.raises(tv.ConfigurationError, match="under another audit key") as refused:
            vaults.open_vault(local_keys, store)
        assert refused.value.code == "KEYS_OF_OTHER_VAULT"
        assert store.get_meta("keys/1") is None
        with closing(sqlite3.connect(path)) as shell, shell:
            shell.execute(
                "UPDATE events SET body = (SELECT body FROM events_before AS b WHERE b.number = events.number)"
            )
            shell.execute("DROP TABLE events_before")
        vaults.open_vault(local_keys, store).close()


def test_a_key_store_without_any_key_says_what_to_run(local_keys: KeyStore, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("a third battery staple")
    address = f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/passphrase"
    with closing(tv.open_key_store(address)) as empty, closing(MemoryTokenStore()) as store:
        store.provision()
        for provision in (nothing, lambda known: tv.provision(local_keys, known)):
            provision(store)
            with pytest.raises(tv.ConfigurationError, match="provision first"):
                vaults.open_vault(empty, store)


def test_the_bytes_of_a_table_are_those_that_its_document_states() -> None:
    """Whole, from the struct of each line; the MAC is CMAC over SHA-256 of the label and all before it."""
    names = [KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.FPE, KeyPurpose.AUDIT]
    custodies = {Custody.IN_MODULE: 1, Custody.IN_PROCESS: 2}
    states = {KeyState.READABLE: 1, KeyState.PRIMARY: 2, KeyState.RETIRED: 3, KeyState.DESTROYED: 4}
    for custody, custody_code in custodies.items():
        for state, state_code in states.items():
            entries = tuple(KeyEntry(KeyName(each, 7), state, custody, b"checkval", 9) for each in names)
            kept = (CarriedKey(3, 7, b"n" * 13, b"s" * 48), CarriedKey(4, 7, b"o" * 13, b"t" * 48))
            body = struct.pack(">BIIHH", 1, 5, 600, 4, 2)
            for purpose_code in (1, 2, 3, 4):
                body += struct.pack(">BHBB8sQ", purpose_code, 7, state_code, custody_code, b"checkval", 9)
            body += struct.pack(">HH13s48sHH13s48s", *kept[0], *kept[1])
            mac = Cmac(LocalBlockCipher(bytes(32)))
            whole = body + mac.tag(hashlib.sha256(b"tokenvault key table 1\0" + body).digest())
            table = KeyTable(5, 600, entries, kept)
            assert table.encode(mac) == whole
            assert KeyTable.parse(whole) == table
            assert table.is_genuine(whole, mac)
            assert not table.is_genuine(whole[:-1] + bytes([whole[-1] ^ 1]), mac)


@pytest.mark.parametrize(
    ("fields", "sound"),
    [
        ((1, 1, 100, 0, 0), True), ((1, 1, 600_000, 0, 0), True), ((1, 2**32 - 1, 5_000, 0, 0), True),
        ((1, 0, 5_000, 0, 0), False), ((1, 1, 99, 0, 0), False), ((1, 1, 600_001, 0, 0), False),
        ((2, 1, 5_000, 0, 0), False), ((0, 1, 5_000, 0, 0), False), ((1, 1, 5_000, 1, 0), False),
        ((1, 1, 5_000, 0, 1), False),
    ],
)  # fmt: skip
def test_each_field_of_a_table_s_header_is_read_up_to_its_border(
    fields: tuple[int, int, int, int, int], sound: bool
) -> None:
    value = struct.pack(">BIIHH", *fields) + bytes(16)
    if sound:
        assert KeyTable.parse(value) == KeyTable(fields[1], fields[2], ())
    else:
        with pytest.raises(IntegrityError):
            KeyTable.parse(value)


def test_carried_keys_stand_in_order_each_version_once() -> None:
    def value(*versions: int) -> bytes:
        header = struct.pack(">BIIHH", 1, 1, 5_000, 0, len(versions))
        return header + b"".join(struct.pack(">HH13s48s", each, 9, b"", b"") for each in versions) + bytes(16)

    assert [each.version for each in KeyTable.parse(value(1, 2)).carried] == [1, 2]
    for wrong in ((2, 1), (1, 1)):
        with pytest.raises(IntegrityError):
            KeyTable.parse(value(*wrong))
