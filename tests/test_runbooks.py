"""The runbooks do what they say: their examples and commands run, one after the other, and print what they show."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import tokenvault as tv
from tests.command import CONFIGURATION, SHOP, VISA, provision_with_a_short_delay
from tests.test_command_page import run_console
from tests.test_site_examples import open_store, run_examples
from tokenvault.keys import KeyStore

PROGRAM = tv.TokenProgram("card-on-file", format=tv.TokenFormat(bin="999912"), making=tv.Making.CONVERGENT)
REQUESTOR = tv.TokenRequestor(SHOP, programs={PROGRAM.name})


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENVAULT_PASSPHRASE", "a passphrase for this try only")
    for name in ("TOKENVAULT_STORE", "TOKENVAULT_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_the_first_day(softhsm_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", softhsm_uri)
    assert run_console("howto/first-day.md", tmp_path, monkeypatch) == 11


def test_rotation(softhsm_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", softhsm_uri)
    (tmp_path / "tokenvault.toml").write_text(CONFIGURATION)
    provision_with_a_short_delay(softhsm_uri, f"sqlite:///{tmp_path}/vault.db")
    assert run_console("howto/rotation.md", tmp_path, monkeypatch) == 17


def test_staff(softhsm_uri: str) -> None:
    with closing(tv.open_key_store(softhsm_uri)) as keys, closing(open_store("sqlite:///vault.db")) as store:
        tv.provision(keys, store, key_delay=timedelta(milliseconds=100))
        policy = tv.RevealPolicy(purposes={"chargeback"})
        with tv.Vault(keys, store, directory=tv.StoredDirectory(max_age_seconds=1), reveal=policy) as vault:
            vault.put_program(PROGRAM, operator="ada")
            vault.put_requestor(REQUESTOR, operator="ada")
            token = vault.issue(VISA, requestor=SHOP, program=PROGRAM.name).token
            run_examples(
                "howto/staff.md", {"tv": tv, "keys": keys, "store": store, "vault": vault, "token": token}
            )


def test_an_incident(softhsm_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", softhsm_uri)
    (tmp_path / "tokenvault.toml").write_text(CONFIGURATION)
    with closing(tv.open_key_store(softhsm_uri)) as keys, closing(open_store("sqlite:///vault.db")) as store:
        tv.provision(keys, store)
        with tv.Vault(keys, store, programs=[PROGRAM], requestors=[REQUESTOR]) as vault:
            token = vault.issue(VISA, requestor=SHOP, program=PROGRAM.name).token
            vault.detokenize(token, tv.Transaction(id="tx-1", requestor=SHOP))
            Path("leaked.txt").write_text(f"{token}\n")
            run_examples("howto/incident.md", {"tv": tv, "vault": vault})
    assert run_console("howto/incident.md", tmp_path, monkeypatch) == 3


def test_failover(postgres_url: str, local_keys: KeyStore, tmp_path: Path) -> None:
    """The address leads to a server that is down first, as after the loss of the primary."""
    with closing(open_store(postgres_url)) as store:
        tv.provision(local_keys, store)
        with tv.Vault(local_keys, store, programs=[PROGRAM], requestors=[REQUESTOR]) as vault:
            limited = tv.Domain(limits=(tv.Limit(uses=1),))
            once = vault.issue(VISA, requestor=SHOP, program=PROGRAM.name, domain=limited).token
        anchor = tv.verify_audit(store, keys=local_keys).anchor()
    address = postgres_url.replace("host=", f"host={tmp_path}/nobody%2C", 1)
    assert address != postgres_url
    run_examples(
        "howto/failover.md",
        {
            "tv": tv,
            "keys": local_keys,
            "program": PROGRAM,
            "shop": REQUESTOR,
            "once": once,
            "anchor": anchor,
            "address": address,
        },
    )


def test_a_second_region(local_keys: KeyStore, other_keys: KeyStore) -> None:
    with closing(open_store("memory:")) as here, closing(open_store("memory:")) as there:
        regions: list[tv.Vault] = []
        for keys, store, name, digits in (
            (local_keys, here, "east", "999912"),
            (other_keys, there, "west", "999913"),
        ):
            tv.provision(keys, store)
            program = tv.TokenProgram(name, format=tv.TokenFormat(bin=digits))
            shop = tv.TokenRequestor(SHOP, programs={name})
            regions.append(tv.Vault(keys, store, programs=[program], requestors=[shop]))
        east, west = regions
        with east, west:
            run_examples("howto/second-region.md", {"tv": tv, "east": east, "west": west})


def test_leaving(local_keys: KeyStore) -> None:
    pair = ec.generate_private_key(ec.SECP256R1())
    public = pair.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    private = pair.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    program = tv.TokenProgram("one-time", format=tv.TokenFormat(bin="999913"))
    shop = tv.TokenRequestor(SHOP, programs={"one-time"})
    policy = tv.RevealPolicy(purposes={"migration"})
    with closing(open_store("memory:")) as store:
        tv.provision(local_keys, store)
        with tv.Vault(local_keys, store, programs=[program], requestors=[shop], reveal=policy) as vault:
            row: tv.TokenToImport = {"token": "9999130000000033", "pan": VISA, "expiry": "2039-12"}
            vault.import_tokens([row], requestor=SHOP, program="one-time")
            request = vault.request_export(public_key=public, operator="alice", purpose="migration")
            vault.approve(request.id, operator="bob")
            with Path("cards.jwe").open("w") as file:
                vault.export_cards(request, public_key=public, operator="alice", to=file)
    run_examples("howto/leaving.md", {"private_pem": private})


def test_coming_from_another_vault(local_keys: KeyStore) -> None:
    with closing(open_store("memory:")) as store:
        tv.provision(local_keys, store)
        with tv.Vault(local_keys, store, programs=[PROGRAM], requestors=[REQUESTOR]) as vault:
            run_examples("howto/coming.md", {"vault": vault})
