"""FileKeyStore: the contract, what tampering does, and that writing is atomic and takes turns."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys import Custody, FileKeyStore, KeyName, KeyPurpose, open_key_store
from tokenvault.keys import file as key_file
from tokenvault.keys.secrets import Secret
from tokenvault.testing.key_stores import KeyStoreContract, OpenStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PASSPHRASE = "correct horse battery staple"
SEAL, AUDIT = KeyPurpose.SEAL, KeyPurpose.AUDIT


@pytest.fixture
def uri(tmp_path: Path, quick_scrypt: None, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TOKENVAULT_PASSPHRASE", PASSPHRASE)
    return f"file:{tmp_path}/keys.json"


class TestContract(KeyStoreContract):
    @pytest.fixture
    def open_store(self, uri: str) -> OpenStore:
        return lambda: open_key_store(uri)


def test_scrypt_has_the_parameters_of_rfc_7914_and_owasp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is what RFC 7914 and the OWASP parameters say, checked with another call of scrypt."""
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    address = f"file:{tmp_path}/keys.json?passphrase-source=file:{tmp_path}/passphrase"
    with FileKeyStore(address) as store:
        store.create(SEAL, Custody.IN_PROCESS)
    document = json.loads((tmp_path / "keys.json").read_text())
    assert {name: document["scrypt"][name] for name in "nrp"} == {"n": 131_072, "r": 8, "p": 1}
    salt = bytes.fromhex(document["scrypt"]["salt"])
    expected = Scrypt(salt=salt, length=32, n=131_072, r=8, p=1).derive(PASSPHRASE.encode())
    assert key_file.wrapping_key(Secret(PASSPHRASE), salt) == expected


def test_file_is_private_and_shows_no_key(uri: str, tmp_path: Path) -> None:
    with FileKeyStore(uri) as store:
        assert list(tmp_path.iterdir()) == []
        store.create(SEAL, Custody.IN_PROCESS)
        store.create(SEAL, Custody.IN_MODULE)
        content = store._read()
    text = (tmp_path / "keys.json").read_bytes()
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert {each.name for each in tmp_path.iterdir()} == {"keys.json", "keys.json.lock"}
    assert PASSPHRASE.encode() not in text
    for key in content.keys.values():
        assert key.value.hex().encode() not in text
        assert repr(key.value) not in repr(content)
        assert repr(key.value) not in repr(key)


def test_versions_are_not_given_out_again(uri: str) -> None:
    with FileKeyStore(uri) as store:
        store.create(SEAL, Custody.IN_PROCESS)
        store.destroy(store.create(SEAL, Custody.IN_PROCESS))
        assert store.create(SEAL, Custody.IN_PROCESS) == KeyName(SEAL, 3)
    with FileKeyStore(uri) as store:
        assert store.versions(SEAL) == (1, 3)


def written(uri: str, tmp_path: Path) -> dict[str, object]:
    with FileKeyStore(uri) as store:
        for custody in (Custody.IN_PROCESS, Custody.IN_MODULE):
            store.create(SEAL, custody)
            store.create(AUDIT, custody)
    document = json.loads((tmp_path / "keys.json").read_text())
    assert isinstance(document, dict)
    return document


def flip(value: object) -> str:
    assert isinstance(value, str)
    return format(int(value[0], 16) ^ 1, "x") + value[1:]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(keys=flip(d["keys"])),
        lambda d: d.update(keys=flip(d["keys"][::-1])[::-1]),
        lambda d: d.update(keys=d["keys"][:-2]),
        lambda d: d.update(keys=d["keys"] + "00"),
        lambda d: d.update(keys=d["keys"][:30]),
        lambda d: d.update(keys=d["keys"].upper()),
        lambda d: d.update(keys=" " + d["keys"]),
        lambda d: d.update(keys=""),
        lambda d: d.update(keys=None),
        lambda d: d.update(keys=[]),
        lambda d: d.pop("keys"),
        lambda d: d.update(nonce=flip(d["nonce"])),
        lambda d: d.update(nonce=d["nonce"] + "00"),
        lambda d: d.update(nonce=""),
        lambda d: d.pop("nonce"),
        lambda d: d.update(format="tokenvault-keys-2"),
        lambda d: d.pop("format"),
        lambda d: d.update(extra=1),
        lambda d: d.update(scrypt=[]),
        lambda d: d.pop("scrypt"),
        lambda d: d["scrypt"].update(n=2**40),
        lambda d: d["scrypt"].update(r=1),
        lambda d: d["scrypt"].update(p=True),
        lambda d: d["scrypt"].update(extra=1),
        lambda d: d["scrypt"].update(salt=flip(d["scrypt"]["salt"])),
        lambda d: d["scrypt"].pop("salt"),
    ],
)
def test_changed_file_is_refused(
    uri: str, tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    document = written(uri, tmp_path)
    before = copy.deepcopy(document)
    change(document)
    assert json.dumps(document) != json.dumps(before)  # True == 1, but not in JSON
    (tmp_path / "keys.json").write_text(json.dumps(document))
    with pytest.raises(KeyStoreError):
        FileKeyStore(uri)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"a":1,"a":1}',
        b"1" * 5_000,
        b" " * (5 * 2**20),
    ],
)
def test_file_that_is_no_key_file_is_refused(uri: str, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "keys.json").write_bytes(text)
    with pytest.raises(KeyStoreError):
        FileKeyStore(uri)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["keys"][0].update(purpose="other"),
        lambda d: d["keys"][0].update(custody="other"),
        lambda d: d["keys"][0].update(version=10_000),
        lambda d: d["keys"][0].update(key="0"),
        lambda d: d["keys"][0].pop("custody"),
        lambda d: d.pop("newest"),
    ],
)
def test_content_of_another_edition_is_refused(
    uri: str, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Encrypted under the right passphrase, and yet not what this edition writes."""
    document = written(uri, tmp_path)
    header = {"format": document["format"], "scrypt": document["scrypt"]}
    scrypt = document["scrypt"]
    assert isinstance(scrypt, dict)
    aead = AESGCM(key_file.wrapping_key(Secret(PASSPHRASE), bytes.fromhex(scrypt["salt"])))
    nonce, bound = bytes.fromhex(str(document["nonce"])), key_file._canonical(header)
    content = json.loads(aead.decrypt(nonce, bytes.fromhex(str(document["keys"])), bound))
    change(content)
    document["keys"] = aead.encrypt(nonce, json.dumps(content).encode(), bound).hex()
    (tmp_path / "keys.json").write_text(json.dumps(document))
    with pytest.raises(KeyStoreError, match="damaged"):
        FileKeyStore(uri)


def test_every_write_has_a_new_nonce(uri: str, tmp_path: Path) -> None:
    documents = [written(uri, tmp_path) for _ in range(3)]
    assert len({str(document["nonce"]) for document in documents}) == 3
    assert len({json.dumps(document["scrypt"]) for document in documents}) == 1


def test_duplicate_member_is_refused(uri: str, tmp_path: Path) -> None:
    written(uri, tmp_path)
    path = tmp_path / "keys.json"
    path.write_text(path.read_text().replace('"format":', '"format": "x", "format":', 1))
    with pytest.raises(KeyStoreError):
        FileKeyStore(uri)


def test_wrong_passphrase_is_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(uri, tmp_path)
    monkeypatch.setenv("TOKENVAULT_PASSPHRASE", "incorrect horse")
    with pytest.raises(KeyStoreError, match="passphrase") as caught:
        FileKeyStore(uri)
    assert "incorrect" not in str(caught.value)


def test_missing_passphrase_is_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENVAULT_PASSPHRASE")
    with pytest.raises(KeyStoreError, match="TOKENVAULT_PASSPHRASE"):
        FileKeyStore(uri)
    with pytest.raises(KeyStoreError, match="passphrase-source"):
        FileKeyStore(f"{uri}?passphrase-source=file:{tmp_path}/none")
    monkeypatch.setenv("MY_PASSPHRASE", PASSPHRASE)
    FileKeyStore(f"{uri}?passphrase-env=MY_PASSPHRASE").close()


def test_folder_that_is_missing_is_refused(uri: str) -> None:
    with (
        FileKeyStore(uri.replace("keys.json", "none/keys.json")) as store,
        pytest.raises(KeyStoreError, match="folder"),
    ):
        store.create(SEAL, Custody.IN_PROCESS)


def test_file_that_is_a_folder_is_refused(uri: str, tmp_path: Path) -> None:
    (tmp_path / "keys.json").mkdir()
    with pytest.raises(KeyStoreError, match="can not be read"):
        FileKeyStore(uri)


def test_failed_write_leaves_the_old_file(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(uri, tmp_path)
    before = (tmp_path / "keys.json").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with FileKeyStore(uri) as store:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(KeyStoreError, match="No space left"):
            store.create(SEAL, Custody.IN_PROCESS)
        monkeypatch.undo()
    assert (tmp_path / "keys.json").read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"keys.json", "keys.json.lock"}


def test_repr_shows_no_passphrase(uri: str) -> None:
    with FileKeyStore(uri) as store:
        assert PASSPHRASE not in repr(store)
        assert PASSPHRASE not in repr(vars(store))
        with pytest.raises(InvalidInputError):
            copy.copy(store)


def create_some(uri: str, count: int) -> None:
    """In a process of its own."""
    key_file.SCRYPT["n"] = 2**4  # as the fixture quick_scrypt does
    with FileKeyStore(uri) as store:
        for _ in range(count):
            store.create(SEAL, Custody.IN_PROCESS)


def test_processes_that_create_at_once_take_turns(uri: str) -> None:
    context = multiprocessing.get_context("spawn")
    with FileKeyStore(uri) as store:
        store.create(SEAL, Custody.IN_PROCESS)
    workers = [context.Process(target=create_some, args=(uri, 5)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with FileKeyStore(uri) as store:
        assert store.versions(SEAL) == tuple(range(1, 17))


def test_file_store_needs_no_pkcs11(uri: str) -> None:
    """Nothing of python-pkcs11 is imported for a key file, and importing loads no module."""
    program = (
        "import sys, tokenvault.keys as k; k.open_key_store(sys.argv[1]); "
        "sys.exit(any(m.partition('.')[0] == 'pkcs11' for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program, uri], check=True)


def test_package_has_no_other_attributes() -> None:
    import tokenvault.keys

    with pytest.raises(AttributeError):
        getattr(tokenvault.keys, "NoSuchName")  # noqa: B009 # the point of the test
    assert tokenvault.keys.Pkcs11KeyStore.__name__ == "Pkcs11KeyStore"


@pytest.mark.parametrize(("purpose", "version"), [("seal", 1), (None, 1)])
def test_a_key_has_a_purpose(purpose: Any, version: int) -> None:
    with pytest.raises(InvalidInputError, match="KeyPurpose"):
        KeyName(purpose, version)


@pytest.mark.parametrize("version", [0, -1, 10_000, True, "1", 1.0, None])
def test_a_key_s_version_is_a_number_from_1_to_9999(version: Any) -> None:
    with pytest.raises(InvalidInputError, match="from 1 to 9999"):
        KeyName(SEAL, version)
