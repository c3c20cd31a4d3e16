"""Keys that rotate beside running vaults: each step, what it refuses, and what it leaves in the trail."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import tokenvault as tv
from tests import vaults
from tests.vault_workers import card_number
from tests.vaults import SHOP, VISA, all_records, issue, use
from tokenvault import maintenance
from tokenvault.keys import KeyName, KeyPurpose, KeyStore
from tokenvault.maintenance import awaited
from tokenvault.records.key_table import KeyTable
from tokenvault.stores.port import TokenStore
from tokenvault.testing import FaultSchedule, FaultyKeyStore

SEAL, FINGERPRINT, AUDIT = KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.AUDIT
DELAY = timedelta(milliseconds=100)


@pytest.fixture
def keys(own_keys: KeyStore) -> KeyStore:
    return own_keys


@pytest.fixture
def store(keys: KeyStore, tmp_path: Path) -> Iterator[TokenStore]:
    with closing(tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")) as opened:
        tv.provision(keys, opened, key_delay=DELAY)
        yield opened


@pytest.fixture
def vault(keys: KeyStore, store: TokenStore) -> Iterator[tv.Vault]:
    with vaults.open_vault(keys, store) as opened:
        yield opened


def rotate(keys: KeyStore, store: TokenStore, purpose: KeyPurpose) -> KeyName:
    name = maintenance.add_key_version(keys, store, purpose)
    maintenance.make_primary(keys, store, purpose, name.version)
    return name


def noticed() -> None:
    """Wait until every vault has noticed the last change."""
    time.sleep(DELAY.total_seconds())


def versions(store: TokenStore) -> set[int]:
    return {row.key_version for row in all_records(store)}


def table(store: TokenStore) -> KeyTable:
    number = 1
    while (value := store.get_meta(f"keys/{number + 1}")) is not None:
        number += 1
    value = store.get_meta(f"keys/{number}")
    assert value is not None
    return KeyTable.parse(value)


def test_a_running_vault_reads_a_new_version_and_writes_under_it_once_it_is_primary(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    issue(vault)
    maintenance.add_key_version(keys, store, SEAL)
    noticed()
    issue(vault)
    assert versions(store) == {1}, "readable alone changes nothing that is written"
    maintenance.make_primary(keys, store, SEAL, 2)
    noticed()
    token = issue(vault).token
    assert store.get([token])[0].key_version == 2


class Lacking(FaultyKeyStore):
    """A key store that has not got the later versions of a purpose, as a host where a key is not brought in yet."""

    lacks: KeyPurpose | None = None

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        found = super().versions(purpose)
        return found[:1] if purpose is self.lacks else found


@pytest.mark.parametrize("purpose", [SEAL, FINGERPRINT])
def test_a_running_vault_that_lacks_the_key_others_write_under_does_nothing_until_it_has_it(
    keys: KeyStore, store: TokenStore, purpose: KeyPurpose
) -> None:
    lacking = Lacking(keys, FaultSchedule())
    with vaults.open_vault(lacking, store) as vault:
        token = issue(vault).token
        lacking.lacks = purpose
        rotate(keys, store, purpose)
        noticed()
        for call in (lambda: issue(vault), lambda: vault.detokenize(token, use())):
            with pytest.raises(tv.KeyStoreError, match=f"does not have the key {purpose.value}") as refused:
                call()
            assert refused.value.code == "KEY_STORE_KEY_MISSING"
        assert len(all_records(store)) == 1
        lacking.lacks = None
        assert vault.detokenize(token, use()).pan.reveal() == VISA


def test_a_version_that_nobody_added_is_not_used(keys: KeyStore, store: TokenStore) -> None:
    """A key that somebody puts into the key store does not become the one that writes."""
    keys.create(SEAL, tv.Custody.IN_PROCESS)
    with vaults.open_vault(keys, store) as vault:
        issue(vault)
    assert versions(store) == {1}


def test_a_vault_that_has_not_noticed_puts_no_record_back_to_an_older_version(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=5),))).token
    maintenance.add_key_version(keys, store, SEAL)
    noticed()
    vault.get(token)
    vault._core.key_versions._read_again_at = float("inf")  # type: ignore[union-attr] # it never notices again
    maintenance.make_primary(keys, store, SEAL, 2)
    maintenance.reseal(keys, store)
    vault.detokenize(token, use())
    assert (store.get([token])[0].key_version, store.get([token])[0].revision) == (2, 3)


@pytest.mark.parametrize("purpose", [SEAL, FINGERPRINT, AUDIT], ids=lambda purpose: purpose.value)
def test_each_purpose_is_rotated_to_the_end(
    keys: KeyStore, store: TokenStore, vault: tv.Vault, purpose: KeyPurpose
) -> None:
    cards = [card_number(number) for number in range(40)]
    before = [issue(vault, card, program="card-on-file").token for card in cards[:20]]
    name = rotate(keys, store, purpose)
    between = [issue(vault, card, program="card-on-file").token for card in cards]
    assert between[:20] == before, "no card gets a second convergent token"
    vault.delete(between[-1])
    if purpose is not AUDIT:
        with pytest.raises(tv.LifecycleError, match="need"):
            maintenance.retire(keys, store, purpose, 1)
    maintenance.refingerprint(keys, store)
    maintenance.reseal(keys, store)
    maintenance.retire(keys, store, purpose, 1)
    if purpose is AUDIT:
        with pytest.raises(tv.LifecycleError, match="events"):
            maintenance.destroy(keys, store, purpose, 1)
    else:
        maintenance.destroy(keys, store, purpose, 1)
        assert keys.versions(purpose) == (name.version,)
    noticed()
    with vaults.open_vault(keys, store) as other:
        for each in (vault, other):
            for card, token in zip(cards[:-1], between[:-1], strict=True):
                assert issue(each, card, program="card-on-file").token == token
                assert each.detokenize(token, use()).pan.reveal() == card
                assert [info.token for info in each.tokens_of(card)] == [token]
    report = tv.verify_audit(store, keys=keys)
    assert report.intact, report.findings


@pytest.mark.parametrize("purpose", [SEAL, FINGERPRINT], ids=lambda purpose: purpose.value)
def test_what_a_vault_writes_before_it_notices_the_primary_key_is_renewed_too(
    keys: KeyStore, tmp_path: Path, purpose: KeyPurpose
) -> None:
    delay = 1.2
    with closing(tv.open_token_store(f"sqlite:///{tmp_path}/late.db")) as store:
        tv.provision(keys, store, key_delay=timedelta(seconds=delay))
        with vaults.open_vault(keys, store) as vault:
            issue(vault)
            rotate(keys, store, purpose)
            # As a vault that read the key table just before the change, and relies on it for half of the delay.
            vault._core.key_versions._read_again_at = time.monotonic() + delay / 2  # type: ignore[union-attr] # it is open
            late = threading.Timer(delay / 8, issue, [vault])
            late.start()
            renew = maintenance.reseal if purpose is SEAL else maintenance.refingerprint
            assert renew(keys, store).done == 2
            late.join()
            maintenance.retire(keys, store, purpose, 1)


def test_retiring_leaves_its_proof_in_the_trail(keys: KeyStore, store: TokenStore, vault: tv.Vault) -> None:
    issue(vault)
    rotate(keys, store, SEAL)
    maintenance.reseal(keys, store)
    usage = maintenance.retire(keys, store, SEAL, 1)
    assert (usage.looked_at, usage.needed_by) == (1, 0)
    (line,) = [line for line in tv.export_audit(store, keys=keys) if '"RETIRE_KEY"' in line]
    assert '"codes": ["SEAL", "VERSION 1", "ROWS READ 1", "ROWS UNDER IT 0"]' in line
    assert '"genuine": true' in line


def test_steps_out_of_order_are_refused_and_steps_done_are_not_done_twice(
    keys: KeyStore, store: TokenStore
) -> None:
    for wrong in (
        lambda: maintenance.make_primary(keys, store, SEAL, 2),
        lambda: maintenance.retire(keys, store, SEAL, 1),
        lambda: maintenance.destroy(keys, store, SEAL, 1),
        lambda: maintenance.retire(keys, store, SEAL, 7),
    ):
        with pytest.raises(tv.LifecycleError):
            wrong()
    with pytest.raises(tv.InvalidInputError):
        maintenance.make_primary(keys, store, KeyPurpose.FPE, 1)
    for _ in range(2):
        assert maintenance.add_key_version(keys, store, SEAL, version=2) == KeyName(SEAL, 2)
    for _ in range(2):
        maintenance.make_primary(keys, store, SEAL, 2)
    with pytest.raises(tv.LifecycleError, match="readable"):
        maintenance.make_primary(keys, store, SEAL, 3)
    for _ in range(2):
        maintenance.retire(keys, store, SEAL, 1)
    for _ in range(2):
        maintenance.destroy(keys, store, SEAL, 1)
        maintenance.retire(keys, store, SEAL, 1)
    with pytest.raises(tv.LifecycleError, match=r"older|readable"):
        maintenance.make_primary(keys, store, SEAL, 1)
    assert table(store).number == 5
    keys.create(KeyPurpose.FPE, tv.Custody.IN_PROCESS)
    maintenance.add_key_version(keys, store, KeyPurpose.FPE, version=1)
    with pytest.raises(tv.InvalidInputError, match="FPE"):
        maintenance.retire(keys, store, KeyPurpose.FPE, 1)


def test_a_version_that_was_retired_does_not_come_back(keys: KeyStore, store: TokenStore) -> None:
    for purpose in (SEAL, AUDIT):
        rotate(keys, store, purpose)
        maintenance.retire(keys, store, purpose, 1)
        with pytest.raises(tv.LifecycleError, match="make a new version"):
            maintenance.add_key_version(keys, store, purpose, version=1)


def test_an_audit_key_is_not_destroyed_over_a_trail_with_a_malformed_row(
    keys: KeyStore, store: TokenStore, vault: tv.Vault, tmp_path: Path
) -> None:
    issue(vault)
    rotate(keys, store, AUDIT)
    maintenance.retire(keys, store, AUDIT, 1)
    with closing(sqlite3.connect(tmp_path / "vault.db")) as changed:
        changed.execute("UPDATE events SET mac = x'00' WHERE number = 1")
        changed.commit()
    with pytest.raises(tv.LifecycleError, match="malformed"):
        maintenance.destroy(keys, store, AUDIT, 1)
    assert 1 in keys.versions(AUDIT)


def test_a_change_of_custody_is_a_rotation(softhsm_uri: str, tmp_path: Path) -> None:
    with (
        closing(tv.open_key_store(softhsm_uri)) as keys,
        closing(tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")) as store,
    ):
        tv.provision(keys, store, key_delay=DELAY)
        with vaults.open_vault(keys, store) as vault:
            token = issue(vault).token
            name = maintenance.add_key_version(keys, store, SEAL, tv.Custody.IN_MODULE)
            maintenance.make_primary(keys, store, SEAL, name.version)
            assert maintenance.reseal(keys, store).done == 1
            maintenance.retire(keys, store, SEAL, 1)
            maintenance.destroy(keys, store, SEAL, 1)
            noticed()
            assert vault.detokenize(token, use()).pan.reveal() == VISA
            assert vault._core is not None
            assert vault._core.keys.blocking


def test_a_vault_whose_key_store_lacks_a_version_objects_to_it(keys: KeyStore, store: TokenStore) -> None:
    class Elsewhere:
        """A key store that a new version has not come to."""

        def __getattr__(self, name: str) -> object:
            return getattr(keys, name)

        def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
            return tuple(version for version in keys.versions(purpose) if version == 1 or self.arrived)

        arrived = False

    with vaults.open_vault(Elsewhere(), store) as vault:  # type: ignore[arg-type] # forwards all else
        maintenance.add_key_version(keys, store, FINGERPRINT)
        noticed()
        token = issue(vault, program="card-on-file").token
        with pytest.raises(tv.LifecycleError, match="lacks a key"):
            maintenance.make_primary(keys, store, FINGERPRINT, 2)
        Elsewhere.arrived = True
        maintenance.add_key_version(keys, store, FINGERPRINT, version=2)
        noticed()
        vault.get(token)
        maintenance.make_primary(keys, store, FINGERPRINT, 2)
        assert issue(vault, program="card-on-file").token == token


def test_a_writer_of_the_database_can_not_change_what_a_version_is_for(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    rotate(keys, store, SEAL)
    forged = table(store).restated()
    encoded = bytearray(store.get_meta(f"keys/{forged.number - 1}") or b"")
    encoded[4] = forged.number
    store.put_meta(f"keys/{forged.number}", bytes(encoded))
    store.put_meta(f"keys/{forged.number + 1}", b"no table")
    noticed()
    token = issue(vault).token
    assert store.get([token])[0].key_version == 2
    maintenance.add_key_version(keys, store, SEAL)
    maintenance.make_primary(keys, store, SEAL, 3)
    noticed()
    assert store.get([issue(vault).token])[0].key_version == 3


def test_progress_is_told_with_an_estimate_and_damaged_records_are_counted(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    vault.issue_many([card_number(number) for number in range(100)], requestor=SHOP, program="one-time")
    rotate(keys, store, SEAL)
    row = all_records(store)[50]
    store.replace([row._replace(revision=2)], [])
    told: list[maintenance.Progress] = []
    progress = maintenance.reseal(keys, store, page=10, progress=told.append)
    assert (progress.done, progress.total, progress.unreadable) == (99, 100, 1)
    assert [each.looked_at for each in told] == list(range(10, 101, 10))
    assert told[0].seconds_left is not None
    assert told[-1].seconds_left == 0
    with pytest.raises(tv.LifecycleError, match="1 of 100 rows need"):
        maintenance.retire(keys, store, SEAL, 1)
    rotate(keys, store, FINGERPRINT)
    maintenance.refingerprint(keys, store)
    with pytest.raises(tv.LifecycleError, match="not what a vault wrote"):
        maintenance.retire(keys, store, FINGERPRINT, 1)


def another_public_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_both_faces_do_the_same(keys: KeyStore, tmp_path: Path) -> None:
    async def rotation() -> None:
        store = tv.open_async_token_store(f"sqlite:///{tmp_path}/async.db")
        await tv.provision_async(keys, store, key_delay=DELAY)
        async with tv.AsyncVault(
            keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS
        ) as vault:
            info = await vault.issue(VISA, requestor=SHOP, program="card-on-file")
            for purpose in (SEAL, FINGERPRINT):
                name = await awaited.add_key_version(keys, store, purpose)
                await awaited.make_primary(keys, store, purpose, name.version)
            assert (await awaited.refingerprint(keys, store)).done == 1
            assert (await awaited.reseal(keys, store)).done == 0
            for purpose in (SEAL, FINGERPRINT):
                await awaited.retire(keys, store, purpose, 1)
                await awaited.destroy(keys, store, purpose, 1)
            await asyncio.sleep(DELAY.total_seconds())
            assert (await vault.issue(VISA, requestor=SHOP, program="card-on-file")).token == info.token
            with pytest.raises(tv.LifecycleError):  # a key file signs nothing
                await awaited.introduce_signer(keys, store, another_public_key())
            listed = await awaited.inventory(keys, store)
        await store.close()
        with closing(tv.open_token_store(f"sqlite:///{tmp_path}/async.db")) as blocking:
            names = [each["name"] for each in maintenance.inventory(keys, blocking)["components"]]
        assert [each["name"] for each in listed["components"]] == names

    asyncio.run(rotation())


@pytest.mark.parametrize("wrong", [{"page": 0}, {"page": 8_001}, {"rest_percent": -1}])
def test_arguments_outside_their_bounds_are_refused(
    keys: KeyStore, store: TokenStore, wrong: dict[str, Any]
) -> None:
    with pytest.raises(tv.InvalidInputError):
        maintenance.reseal(keys, store, **wrong)
    with pytest.raises(tv.InvalidInputError):
        tv.provision(keys, store, key_delay=timedelta(0))


def assert_allowed(value: Any, schema: dict[str, Any]) -> None:
    """What a JSON schema says of names, of enumerations and of types, all the way down."""
    if "enum" in schema:
        assert value in schema["enum"]
    for name, inner in value.items() if isinstance(value, dict) else ():
        assert name in schema["properties"]
        assert_allowed(inner, schema["properties"][name])
    for item in value if isinstance(value, list) else ():
        assert_allowed(item, schema["items"])
    kinds = {"string": str, "integer": int, "object": dict, "array": list}
    if schema.get("type") in kinds:
        assert isinstance(value, kinds[schema["type"]])


def test_the_inventory_is_a_cyclonedx_document_with_every_key_and_no_secret(
    softhsm_uri: str, tmp_path: Path
) -> None:
    with (
        closing(tv.open_key_store(softhsm_uri)) as keys,
        closing(tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")) as store,
    ):
        tv.provision(keys, store, key_delay=DELAY)
        with vaults.open_vault(keys, store) as vault:
            issue(vault)
        maintenance.add_key_version(keys, store, SEAL, tv.Custody.IN_MODULE)
        maintenance.make_primary(keys, store, SEAL, 2)
        with vaults.open_vault(keys, store) as vault:
            issue(vault)
        document = maintenance.inventory(keys, store)
        assert "tokenvault:rows" not in str(maintenance.inventory(keys, store, rows=False))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    references = [component["bom-ref"] for component in document["components"]]
    assert len(set(references)) == len(references)
    assert {
        "key/seal/1",
        "key/seal/2",
        "key/fingerprint/1",
        "key/fpe/1",
        "key/audit/1",
        "key/signing",
    } <= set(references)
    text = resources.files("cyclonedx.schema").joinpath("_res/bom-1.6.SNAPSHOT.schema.json").read_text()
    schema = json.loads(text)["definitions"]
    facts = {}
    for component in document["components"]:
        assert component["type"] == "cryptographic-asset"
        properties = component["cryptoProperties"]
        assert_allowed(properties, schema["cryptoProperties"])
        if properties["assetType"] == "algorithm":
            continue
        material = properties["relatedCryptoMaterialProperties"]
        assert material["algorithmRef"] in references
        assert "value" not in material
        facts[component["bom-ref"]] = {each["name"]: each["value"] for each in component["properties"]}
    assert facts["key/seal/1"]["tokenvault:rows"] == facts["key/seal/2"]["tokenvault:rows"] == "1"
    assert facts["key/fingerprint/1"]["tokenvault:rows"] == "2"
    assert int(facts["key/audit/1"]["tokenvault:rows"]) > 4
    assert (facts["key/seal/1"]["tokenvault:custody"], facts["key/seal/2"]["tokenvault:custody"]) == (
        "process",
        "module",
    )
    assert facts["key/seal/2"]["tokenvault:state"] == "primary"
    assert json.loads(json.dumps(document)) == document
