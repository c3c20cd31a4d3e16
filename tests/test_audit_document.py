"""docs/audit.md does what it says: its examples run, one after the other."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import issue, use
from tokenvault.keys import KeyStore
from tokenvault.stores.sqlite.store import SqliteTokenStore

DOCUMENT = (Path(__file__).parent.parent / "docs" / "audit.md").read_text(encoding="utf-8")


def test_the_examples_run(keys: KeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert len(examples) == 6
    monkeypatch.chdir(tmp_path)
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as store:
        tv.provision(keys, store)
        with vaults.open_vault(keys, store) as vault:
            token = issue(vault).token
            vault.detokenize(token, use())
            names = {"tv": tv, "keys": keys, "store": store, "vault": vault, "token": token}
            for example in examples:
                exec(compile(example, "audit.md", "exec"), names)  # noqa: S102 # our own text
        assert len((tmp_path / "trail.jsonl").read_text().splitlines()) == 3


def test_every_kind_of_finding_is_in_the_table() -> None:
    assert all(f"`{kind.name}`" in DOCUMENT for kind in tv.FindingKind)
