"""An auditor that may read a SQLite file, and write neither it nor its folder, verifies the trail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import issue, use
from tokenvault.testing import an_event

PASSPHRASE = "a passphrase of a test"
AUDITOR_UID = 12_345

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work as another user")

# The auditor's process. It imports while it is root: others may not be allowed to read the environment of the tests.
AUDITOR = """
import json, os, sys
import tokenvault as tv
from tokenvault.testing import an_event

address, key_address, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
elsewhere = tv.open_token_store("memory:")
keys = tv.open_key_store(key_address)
tv.verify_audit(elsewhere, keys=keys)
list(tv.export_audit(elsewhere, keys=keys))
os.setgid(uid)
os.setuid(uid)
store = tv.open_token_store(address)
answers = {"records": len(store.scan()), "exported": len(list(tv.export_audit(store, keys=keys)))}
answers["intact"] = tv.verify_audit(store, keys=keys).intact
try:
    store.append([an_event(1)])
except tv.TokenStoreError as error:
    answers["write"] = error.code
store.close()
print(json.dumps(answers))
"""

# A vault's process that ends without closing anything.
KILLED = """
import os, signal, sys
import tokenvault as tv
from tokenvault.testing import an_event

store = tv.open_token_store(sys.argv[1])
store.append([an_event(1)])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may look into, with keys and an empty token store."""
    monkeypatch.setenv("TOKENVAULT_PASSPHRASE", PASSPHRASE)
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    keys, store = (
        tv.open_key_store(f"file:{place}/keys.json"),
        tv.open_token_store(f"sqlite:///{place}/vault.db"),
    )
    with closing(store):
        tv.provision(keys, store)
    yield place
    shutil.rmtree(place)


def readable(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o644)


def audited(folder: Path) -> dict[str, Any]:
    """What the auditor finds in a folder."""
    before = {path.name for path in folder.iterdir()}
    ran = subprocess.run(
        [sys.executable, "-c", AUDITOR, f"sqlite:///{folder}/vault.db", f"file:{folder}/keys.json", str(AUDITOR_UID)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in folder.iterdir()} == before
    answers: dict[str, Any] = json.loads(ran.stdout)
    return answers


def opened(folder: Path) -> tuple[tv.KeyStore, tv.TokenStore]:
    return tv.open_key_store(f"file:{folder}/keys.json"), tv.open_token_store(f"sqlite:///{folder}/vault.db")


def test_an_auditor_verifies_while_a_vault_works(folder: Path) -> None:
    keys, store = opened(folder)
    with closing(store), vaults.open_vault(keys, store) as vault:
        vault.detokenize(issue(vault).token, use())
        readable(folder)
        assert (folder / "vault.db-wal").stat().st_size > 0
        found = audited(folder)
        assert found == {"records": 1, "exported": 3, "intact": True, "write": "STORE_READ_ONLY"}
        issue(vault)
        assert audited(folder)["records"] == 2


def test_an_auditor_verifies_a_file_that_no_vault_has_open(folder: Path) -> None:
    keys, store = opened(folder)
    with closing(store), vaults.open_vault(keys, store) as vault:
        issue(vault)
    readable(folder)
    assert not (folder / "vault.db-wal").exists()
    found = audited(folder)
    assert found == {"records": 1, "exported": 3, "intact": True, "write": "STORE_READ_ONLY"}


def test_an_auditor_reads_what_a_killed_vault_left(folder: Path) -> None:
    readable(folder)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, f"sqlite:///{folder}/vault.db"], check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "vault.db-wal").exists()
    assert audited(folder)["exported"] == 1


def test_what_is_read_without_locks_is_not_given_out_once_a_vault_writes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read as by an auditor, in this process: SQLite is told that it can not make its two files."""
    _, writer = opened(folder)
    _, reader = opened(folder)
    file: Any = reader._file  # type: ignore[attr-defined] # of a SqliteTokenStore
    place: list[Any] = []
    before = file._state()
    file._open(place, "?mode=ro&immutable=1")
    place[0].unchanged = lambda: file._state() == before
    assert place[0].run("SELECT count(*) FROM events") == [(0,)]
    writer.append([an_event(1)])
    with pytest.raises(tv.TokenStoreError, match="call again") as refused:
        place[0].run("SELECT count(*) FROM events")
    assert refused.value.code == "STORE_BUSY"
    writer.close()  # nothing is left but the file, which is another now
    with pytest.raises(tv.TokenStoreError, match="call again"):
        place[0].run("SELECT count(*) FROM events")
    place[0].close()
    assert len(reader.events(stream=reader.streams()[0])) == 1
    reader.close()
