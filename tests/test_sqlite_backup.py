"""A backup of a SQLite file that is open: whole, of one moment, private, and without harm to who has it open."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import VISA, issue, use
from tokenvault.keys import KeyStore
from tokenvault.stores import SqliteTokenStore
from tokenvault.testing import a_record, an_event


@pytest.fixture
def store(tmp_path: Path) -> SqliteTokenStore:
    opened = SqliteTokenStore(tmp_path / "vault.db")
    opened.provision()
    return opened


def test_a_backup_opens_as_a_vault_and_its_trail_is_intact(
    local_keys: KeyStore, store: SqliteTokenStore, tmp_path: Path
) -> None:
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        token = issue(vault).token
        vault.detokenize(token, use())
        store.backup(tmp_path / "backup.db")
        vault.detokenize(token, use(2))
    with closing(SqliteTokenStore(tmp_path / "backup.db")) as copy:
        assert tv.verify_audit(copy, keys=local_keys).intact
        with vaults.open_vault(local_keys, copy) as again:
            assert again.detokenize(token, use(3)).pan.reveal() == VISA
    store.close()


def test_a_backup_is_of_one_moment_while_others_write(store: SqliteTokenStore, tmp_path: Path) -> None:
    """A record and its event stand in it together, and it ends, however many write meanwhile."""
    stop = threading.Event()
    written = []

    def write() -> None:
        with closing(SqliteTokenStore(tmp_path / "vault.db")) as other:
            number = 1
            while not stop.is_set():
                other.insert([a_record(number)], [an_event(number)])
                written.append(number)
                number += 1

    writers = [threading.Thread(target=write)]
    for writer in writers:
        writer.start()
    try:
        for copy in range(5):
            known = len(written)
            store.backup(tmp_path / f"backup-{copy}.db")
            with closing(SqliteTokenStore(tmp_path / f"backup-{copy}.db")) as opened:
                records = len(vaults.all_records(opened))
                events = [event for stream in opened.streams() for event in vaults.all_events(opened, stream)]
                assert records == len(events) >= known
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    store.close()


def test_a_backup_is_its_owners_alone_and_nothing_lies_beside_it(
    store: SqliteTokenStore, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        store.backup(tmp_path / "backup.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "backup.db").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.glob("backup*")} == {"backup.db"}
    store.close()


def test_the_locks_of_the_open_file_stay(store: SqliteTokenStore, tmp_path: Path) -> None:
    """A transaction under way in this process still keeps other processes out after a backup."""
    asked = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"

    def transaction(connection: Any) -> str:
        connection.run("BEGIN IMMEDIATE")
        store.backup(tmp_path / "backup.db")
        command = [sys.executable, "-c", asked, str(tmp_path / "vault.db")]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        connection.run("ROLLBACK")
        return ran.stderr

    assert "database is locked" in store._pool.write(transaction)
    store.close()


def test_a_file_that_is_there_is_not_written_over(store: SqliteTokenStore, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "link", "vault.db"):
        with pytest.raises(tv.InvalidInputError, match="file already"):
            store.backup(tmp_path / name)
    assert (tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    wrong: Any = 5
    with pytest.raises(tv.InvalidInputError, match="path"):
        store.backup(wrong)
    store.close()


def test_a_backup_that_fails_leaves_no_file(
    store: SqliteTokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(tv.TokenStoreError) as refused:
        store.backup(tmp_path / "none" / "backup.db")
    assert refused.value.code == "STORE_FILE_NOT_OPENED"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.backup(tmp_path / "backup.db")
    monkeypatch.undo()
    assert not list(tmp_path.glob("backup*"))
    store.backup(tmp_path / "backup.db")
    store.close()


def test_what_is_no_token_store_is_not_backed_up(tmp_path: Path) -> None:
    store = SqliteTokenStore(tmp_path / "none.db")
    with pytest.raises(tv.ConfigurationError):
        store.backup(tmp_path / "backup.db")
    assert not (tmp_path / "backup.db").exists()
    store.close()
    with pytest.raises(tv.TokenStoreError, match="closed"):
        store.backup(tmp_path / "backup.db")
