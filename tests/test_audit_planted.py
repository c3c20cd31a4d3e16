"""Rows planted where no event is, or of no event's shape: found, and nothing else breaks by them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import tokenvault as tv
import tokenvault.audit.verify.pages
from tests.editors import PostgresEditor
from tests.postgres_server import PostgresServer
from tests.test_audit import open_vault
from tests.test_audit_planted_streams import Database
from tests.vaults import issue, use
from tokenvault import FindingKind
from tokenvault.keys import KeyStore


@pytest.fixture
def database(local_keys: KeyStore, tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "vault.db", local_keys)
    with closing(opened.store), closing(opened.sql):
        yield opened


@pytest.mark.parametrize("number", [0, -1, -(2**63)])
@pytest.mark.parametrize("own", [True, False])
def test_a_row_numbered_below_1_is_named(database: Database, number: int, own: bool) -> None:
    """In a stream of the vault and in one of its own; an event's number does not show it."""
    (first,) = database.store.streams()
    stream = first if own else os.urandom(16)
    database.plant(stream, number, reference=b"")
    assert database.found() == [(FindingKind.INSERTED, stream.hex(), None)]
    assert all(row.number >= 1 for row in database.store.events(stream=first))


def test_a_row_numbered_below_1_is_named_in_postgresql(
    local_keys: KeyStore, postgres_server: PostgresServer
) -> None:
    url = postgres_server.new_url()
    with closing(tv.open_token_store(url)) as store, postgres_server.raw() as connection:
        tv.provision(local_keys, store)
        with open_vault(local_keys, store) as vault:
            issue(vault)
        (stream,) = store.streams()
        editor = PostgresEditor(connection, url.rpartition("schema=")[2])
        (row,) = [row for row in editor.rows("events") if row["number"] == 1]
        editor.put("events", {**row, "number": -(2**63)})
        (finding,) = tv.verify_audit(store, keys=local_keys).findings
        assert (finding.kind, finding.stream, finding.number) == (FindingKind.INSERTED, stream.hex(), None)


@pytest.mark.parametrize("mac", [15, 16])
def test_a_row_planted_in_the_place_of_the_next_event_costs_that_event_and_is_named(
    database: Database, mac: int
) -> None:
    """Of whatever shape: the vault goes on behind it, and never writes its number."""
    vault = open_vault(database.keys, database.store)
    token = issue(vault).token
    stream = max(database.store.streams())
    planted = len(database.store.events(stream)) + 1
    database.plant(stream, planted, b"", mac)
    with pytest.raises(tv.TokenStoreError) as refused:
        vault.detokenize(token, use(1))
    assert refused.value.code == "STORE_EVENT_EXISTS"
    for number in (2, 3):
        vault.detokenize(token, use(number))
    assert [event.transaction_id for event in vault.history(token)] == [None, "tx-2", "tx-3"]
    vault.close()
    assert database.found() == [(FindingKind.EDITED, stream.hex(), planted)]


def test_planted_rows_do_not_keep_a_tokens_history_from_being_read(database: Database) -> None:
    """They are left out, whatever their shape, and pages count the others."""
    vault = open_vault(database.keys, database.store)
    token = issue(vault)
    for number in range(3):
        vault.detokenize(token.token, use(number))
    history = vault.history(token.token)
    assert len(history) == 4
    for number, mac in ((0, 16), (-5, 16), (1, 16), (2, 3), (3, 16)):
        database.plant(b"\x01" * 16, number, bytes.fromhex(token.reference), mac)
    vault.detokenize(token.token, use(3))
    assert vault.history(token.token)[:4] == history
    whole = vault.history(token.reference)
    assert len(whole) == 5
    assert [vault.history(token.token, after=n, limit=1) for n in range(6)] == [[e] for e in whole] + [[]]
    vault.close()


def test_a_malformed_record_does_not_make_those_behind_it_look_removed(database: Database) -> None:
    with open_vault(database.keys, database.store) as vault:
        for _ in range(3):
            issue(vault)
    database.sql.execute("UPDATE tokens SET seal = x'00' WHERE token = (SELECT min(token) FROM tokens)")
    report = tv.verify_audit(database.store, keys=database.keys)
    assert [each.kind for each in report.findings] == [FindingKind.EDITED]


def test_an_export_that_gives_up_on_malformed_rows_says_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenvault.audit.verify.pages, "MALFORMED_MAX", 5)
    for number in range(1, 8):
        database.plant(b"\xff" * 16, number, mac=1)
    with pytest.raises(tv.IntegrityError, match="malformed"):
        list(tv.export_audit(database.store))
    assert sum('"genuine": false' in line for line in _until_error(database)) == 5


def _until_error(database: Database) -> Iterator[str]:
    try:
        yield from tv.export_audit(database.store)
    except tv.IntegrityError:
        return
