"""Files of keys, PINs and passphrases that others can write, own or exchange are refused; readable ones warned of."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenvault as tv
from tokenvault.keys.pkcs11.host_lock import host_lock
from tokenvault.keys.private_files import open_private
from tokenvault.keys.secrets import read_secret_file

OTHER_UID = 12_345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("a passphrase")
    path.chmod(0o600)
    return path


@pytest.fixture
def address(tmp_path: Path, secret: Path, quick_scrypt: None) -> str:
    """Of a key file with one key."""
    address = f"file:{tmp_path}/keys.json?passphrase-source=file:{secret}"
    with tv.open_key_store(address) as keys:  # type: ignore[attr-defined] # a FileKeyStore
        keys.create(tv.KeyPurpose.SEAL, tv.Custody.IN_PROCESS)
    return address


def refuses(call: Callable[[], object], told: str) -> None:
    with pytest.raises(tv.KeyStoreError, match=told) as refused:
        call()
    assert refused.value.code == "KEY_STORE_FILE_EXPOSED"


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_private_files_are_read_and_nothing_is_said(
    address: str, secret: Path, tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (secret, tmp_path / "keys.json"):
        path.chmod(mode)
    assert tv.open_key_store(address).versions(tv.KeyPurpose.SEAL) == (1,)
    assert not caplog.text


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660])
@pytest.mark.parametrize("name", ["passphrase", "keys.json"])
def test_what_others_can_write_is_refused(address: str, tmp_path: Path, name: str, mode: int) -> None:
    (tmp_path / name).chmod(mode)
    refuses(lambda: tv.open_key_store(address), "others can write .*chmod 600")
    (tmp_path / name).chmod(0o600)
    tv.open_key_store(address)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o444])
@pytest.mark.parametrize("name", ["passphrase", "keys.json"])
def test_what_others_can_read_is_warned_of(
    address: str, tmp_path: Path, name: str, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).chmod(mode)
    caplog.set_level(logging.WARNING)
    tv.open_key_store(address)
    tv.open_key_store(address)
    assert caplog.text.count("others can read") == 1
    assert str(tmp_path) not in caplog.text
    assert "a passphrase" not in caplog.text


@as_root
@pytest.mark.parametrize("name", ["passphrase", "keys.json"])
def test_what_another_user_owns_is_refused(address: str, tmp_path: Path, name: str) -> None:
    os.chown(tmp_path / name, OTHER_UID, -1)
    refuses(lambda: tv.open_key_store(address), "another user")


@as_root
def test_a_link_of_another_user_is_refused_and_one_of_our_own_is_followed(secret: Path) -> None:
    """As in a folder like /tmp, where the file that is meant was not there in time."""
    link = secret.with_name("link")
    link.symlink_to(secret)
    assert read_secret_file(str(link), "pin-source").reveal() == "a passphrase"
    os.chown(link, OTHER_UID, -1, follow_symlinks=False)
    refuses(lambda: read_secret_file(str(link), "pin-source"), "another user")


def test_a_folder_in_which_anyone_can_exchange_files_is_refused(address: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    refuses(lambda: tv.open_key_store(address), "o-w its folder")
    tmp_path.chmod(0o777 | stat.S_ISVTX)  # as /tmp: others change only what is theirs
    tv.open_key_store(address)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "pipe")
    os.mkfifo(path, 0o600)
    refuses(lambda: read_secret_file(path, "pin-source"), "a pipe")
    refuses(lambda: tv.open_key_store(f"file:{path}?passphrase-env=HOME"), "a pipe")
    with host_lock(path):
        pass


def test_a_lock_file_that_is_a_link_is_not_followed(address: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "keys.json.lock").unlink()
    (tmp_path / "keys.json.lock").symlink_to(victim)
    keys = tv.open_key_store(address)
    with pytest.raises(tv.KeyStoreError, match="can not be locked"):
        keys.create(tv.KeyPurpose.SEAL, tv.Custody.IN_PROCESS)
    assert not victim.exists()
    assert keys.versions(tv.KeyPurpose.SEAL) == (1,)


def test_files_that_the_library_makes_are_its_owners_alone(address: str, tmp_path: Path) -> None:
    tv.open_token_store(f"sqlite:///{tmp_path}/vault.db").provision()
    for name in ("keys.json", "keys.json.lock", "vault.db"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o077 == 0, name


def test_what_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_private(str(tmp_path / "none"), "the file")
    with pytest.raises(tv.KeyStoreError, match="can not be read"):
        read_secret_file(str(tmp_path / "none"), "pin-source")
