"""Disks that fill, databases that are not what they were, keys that go away: refused, nothing half done, and on."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import tokenvault as tv
from tests import softhsm, vaults
from tests.test_sqlite_store import small_disk
from tests.vaults import MASTERCARD, VISA, issue, use
from tokenvault.keys import KeyStore
from tokenvault.records.keyring import KeyRing
from tokenvault.stores.port import TokenStore
from tokenvault.stores.schema_versions import SCHEMA_VERSION
from tokenvault.stores.sqlite import file as _sqlite_file
from tokenvault.stores.sqlite.store import SqliteTokenStore

ONCE = tv.Domain(limits=(tv.Limit(uses=1),))
FILE = "vault.db"


def provisioned(keys: KeyStore, path: Path) -> SqliteTokenStore:
    store = SqliteTokenStore(path)
    tv.provision(keys, store)
    return store


def assert_whole(keys: KeyStore, store: TokenStore, written: int) -> None:
    """Every record opens, every stream counts what was written from 1 without gap, and the trail verifies."""
    ring = KeyRing(keys)
    for row in store.scan():
        ring.unseal(row)
    streams = [store.events(stream=stream) for stream in store.streams()]
    assert all([row.number for row in rows] == list(range(1, len(rows) + 1)) for rows in streams), streams
    assert (
        sum(row.reference != row.stream for rows in streams for row in rows) == written
    )  # checkpoints aside
    report = tv.verify_audit(store, keys=keys)
    assert report.intact
    assert report.gaps == 0


# A full disk.


def fill(vault: tv.Vault) -> int:
    """Issue tokens until the disk is full; how many were returned."""
    for count in range(100_000):
        try:
            issue(vault, MASTERCARD)
        except tv.TokenStoreError as error:
            assert "full" in str(error)  # noqa: PT017 # the loop needs the count
            return count
    raise AssertionError("the disk is never full")


def assert_bears_a_full_disk(keys: KeyStore, store: SqliteTokenStore, make_space: Callable[[], None]) -> None:
    with vaults.open_vault(keys, store) as vault:
        token = issue(vault, domain=ONCE).token
        count = fill(vault)
        assert count > 0
        for _ in range(5):  # where the write-ahead log was emptied, there is room for a few more
            with contextlib.suppress(tv.TokenStoreError):
                issue(vault, MASTERCARD)
                count += 1
            assert vault.get(token).revision == 1, "readable while the disk is full, and untouched"
        used = False
        with contextlib.suppress(tv.TokenStoreError):
            vault.detokenize(token, use("first"))
            used = True
        assert vault.get(token).revision == (2 if used else 1), (
            "counted exactly where the card was handed out"
        )
        assert len(vault.tokens_of(MASTERCARD)) == count
        assert len(store.scan()) == count + 1
        make_space()
        assert vault.detokenize(token, use("first")).pan.reveal() == VISA
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use("second"))
        assert issue(vault, MASTERCARD).revision == 1
        assert_whole(keys, store, 1 + count + used + 3)


def test_a_disk_that_fills_refuses_and_goes_on_when_there_is_space_again(
    keys: KeyStore, tmp_path: Path
) -> None:
    with small_disk(tmp_path) as mount, closing(provisioned(keys, tmp_path / FILE)) as store:
        assert_bears_a_full_disk(keys, store, lambda: mount("remount,size=2m"))


def test_a_file_that_may_not_grow_refuses_and_goes_on_when_it_may(
    keys: KeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provisioned(keys, tmp_path / FILE).close()
    usual = _sqlite_file._PRAGMAS
    monkeypatch.setattr(_sqlite_file, "_PRAGMAS", (*usual, "PRAGMA max_page_count = 40"))
    with closing(SqliteTokenStore(tmp_path / FILE)) as store:
        more = (*usual, "PRAGMA max_page_count = 4000")

        def make_space() -> None:
            monkeypatch.setattr(_sqlite_file, "_PRAGMAS", more)
            for connection in store._pool._idle:  # those opened under the old limit
                connection.execute("PRAGMA max_page_count = 4000")

        assert_bears_a_full_disk(keys, store, make_space)


@pytest.mark.parametrize("lost", [False, True], ids=["undone", "done, and the answer lost"])
def test_a_write_of_unknown_outcome_leaves_no_gap_and_no_number_twice(
    local_keys: KeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """The database says of a write only that it failed: it may have happened or not."""
    with closing(provisioned(local_keys, tmp_path / FILE)) as store:
        vault = vaults.open_vault(local_keys, store)
        token = issue(vault, domain=ONCE).token
        replace = store._replace

        def failing(*arguments: object) -> list[str]:
            if lost:
                replace(*arguments)  # type: ignore[arg-type] # passed on
            raise sqlite3.OperationalError("the connection is gone")

        with monkeypatch.context() as patch:
            patch.setattr(store, "_replace", failing)
            with pytest.raises(tv.TokenStoreError):
                vault.detokenize(token, use("first"))
            with pytest.raises(tv.TokenStoreError):
                vault.suspend(token, by=tv.Actor.ISSUER)
        if lost:
            vault.resume(token, by=tv.Actor.ISSUER)
        assert vault.detokenize(token, use("first")).pan.reveal() == VISA, "a retry is answered"
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use("second"))
        assert_whole(local_keys, store, 3 + (3 if lost else 0))


# Databases that are not what they were.


def test_a_database_of_a_newer_release_is_refused(keys: KeyStore, tmp_path: Path) -> None:
    with closing(provisioned(keys, tmp_path / FILE)) as store, vaults.open_vault(keys, store) as vault:
        token = issue(vault).token
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as shell:
        (version,) = shell.execute("PRAGMA user_version").fetchone()
        # What it has reached, and the oldest release that it serves.
        shell.execute(f"UPDATE schema_version SET reached = {SCHEMA_VERSION + 1}")
        shell.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        with closing(SqliteTokenStore(tmp_path / FILE)) as newer:
            for call in (lambda: vaults.open_vault(keys, newer), lambda: tv.provision(keys, newer)):
                with pytest.raises(tv.ConfigurationError, match="install the release that wrote it"):
                    call()
        shell.execute(f"PRAGMA user_version = {version}")
    with closing(SqliteTokenStore(tmp_path / FILE)) as again, vaults.open_vault(keys, again) as vault:
        assert vault.detokenize(token, use()).pan.reveal() == VISA


def test_a_database_without_schema_is_refused_until_it_is_provisioned(keys: KeyStore, tmp_path: Path) -> None:
    for prepare in (lambda path: None, Path.touch):
        path = tmp_path / FILE
        prepare(path)
        with closing(SqliteTokenStore(path)) as store:
            with pytest.raises(tv.ConfigurationError, match="provision"):
                vaults.open_vault(keys, store)
            assert not path.exists() or path.read_bytes() == b""
            tv.provision(keys, store)
            assert issue(vaults.open_vault(keys, store)).revision == 1
        path.unlink()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(FILE)]


def test_a_file_removed_under_an_open_vault_takes_no_write_that_is_lost(
    keys: KeyStore, tmp_path: Path
) -> None:
    """The system lets a program write on to a file that has no name any more: what it writes is gone."""
    with closing(provisioned(keys, tmp_path / FILE)) as store:
        vault = vaults.open_vault(keys, store)
        token = issue(vault).token
        for path in files(tmp_path):
            path.unlink()
        for _ in range(3):
            with pytest.raises(tv.TokenStoreError):
                issue(vault)
            with pytest.raises((tv.TokenStoreError, tv.TokenNotFoundError)):
                vault.detokenize(token, use())
        with pytest.raises(tv.TokenStoreError):
            vault.close()
        vault.close()
        assert files(tmp_path) == [], "no empty database takes its place"


def test_a_file_moved_away_and_back_under_an_open_vault_loses_nothing(keys: KeyStore, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    with closing(provisioned(keys, tmp_path / FILE)) as store, vaults.open_vault(keys, store) as vault:
        token = issue(vault, domain=ONCE).token
        for path in files(tmp_path):
            path.rename(away / path.name)
        with pytest.raises(tv.TokenStoreError):
            vault.detokenize(token, use())
        for path in files(away):
            path.rename(tmp_path / path.name)
        assert vault.detokenize(token, use()).pan.reveal() == VISA
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use("second"))
        assert_whole(keys, store, 4)  # the use that was not acknowledged is in the file: it counted once


def test_a_backup_put_in_place_of_the_file_is_what_the_vault_goes_on_with(
    keys: KeyStore, tmp_path: Path
) -> None:
    """One call is refused at most; none goes to the file that was replaced."""
    with closing(provisioned(keys, tmp_path / FILE)) as store, vaults.open_vault(keys, store) as vault:
        kept = issue(vault).token
        with closing(sqlite3.connect(tmp_path / FILE)) as shell:
            shell.execute(f"VACUUM INTO '{tmp_path}/backup'")
        later = issue(vault).token
        for path in files(tmp_path):
            path.unlink()
        (tmp_path / "backup").rename(tmp_path / FILE)
        with pytest.raises(tv.TokenStoreError):
            issue(vault)
        fresh = issue(vault).token
        assert vault.detokenize(kept, use()).pan.reveal() == VISA
        with pytest.raises(tv.TokenNotFoundError):
            vault.get(later)
    with closing(SqliteTokenStore(tmp_path / FILE)) as again, vaults.open_vault(keys, again) as vault:
        assert vault.get(fresh).revision == 1


# Keys that go away.


@pytest.fixture
def module_keys(softhsm_folder: Path) -> Iterator[tuple[KeyStore, Path]]:
    """Keys that work in the module, and the folder of their token alone."""
    tokens = softhsm_folder / "tokens"
    before = set(tokens.iterdir())
    uri = softhsm.new_token(softhsm_folder)
    (folder,) = set(tokens.iterdir()) - before
    with closing(tv.open_key_store(uri)) as key_store:
        tv.provision(key_store, tv.open_token_store("memory:"), custody=tv.Custody.IN_MODULE)
        yield key_store, folder


def test_keys_that_go_away_and_come_back_leave_nothing_half_done(
    module_keys: tuple[KeyStore, Path], tmp_path: Path
) -> None:
    key_store, home = module_keys
    away = tmp_path / "away"
    with (
        closing(provisioned(key_store, tmp_path / FILE)) as store,
        vaults.open_vault(key_store, store) as vault,
    ):
        token = issue(vault, domain=ONCE).token
        convergent = issue(vault, program="card-on-file").token
        for _ in range(2):
            rows = store.scan()
            shutil.move(home, away)
            try:
                for call in (
                    lambda: issue(vault),
                    lambda: issue(vault, program="card-on-file"),
                    lambda: vault.detokenize(token, use()),
                    lambda: vault.get(token),
                    lambda: vault.suspend(token, by=tv.Actor.ISSUER),
                    lambda: vault.tokens_of(VISA),
                    lambda: vaults.open_vault(key_store, store),
                ):
                    with pytest.raises(tv.KeyStoreError):
                        call()
                assert store.scan() == rows
            finally:
                shutil.move(away, home)
            assert vault.get(token).token == token
            assert issue(vault, program="card-on-file").token == convergent
        assert vault.detokenize(token, use()).pan.reveal() == VISA
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use("second"))
        assert_whole(key_store, store, 2 + 2 + 2)


def test_keys_in_this_process_need_no_module_once_they_are_derived(
    softhsm_folder: Path, tmp_path: Path
) -> None:
    tokens = softhsm_folder / "tokens"
    before = set(tokens.iterdir())
    uri = softhsm.new_token(softhsm_folder)
    (home,) = set(tokens.iterdir()) - before
    with (
        closing(tv.open_key_store(uri)) as key_store,
        closing(provisioned(key_store, tmp_path / FILE)) as store,
    ):
        vault = vaults.open_vault(key_store, store)
        token = issue(vault).token
        shutil.move(home, tmp_path / "away")
        try:
            assert vault.detokenize(token, use()).pan.reveal() == VISA
            assert issue(vault).revision == 1
        finally:
            shutil.move(tmp_path / "away", home)
        assert_whole(key_store, store, 3)
