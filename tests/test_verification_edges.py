"""What verification meets where reads come in any order, the trail grows meanwhile, or rows pose as checkpoints."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests import vaults
from tests.test_audit_planted_streams import Database
from tests.vaults import issue, use
from tokenvault import FindingKind
from tokenvault.audit.verify.purged import Purges
from tokenvault.audit.verify.report import Findings
from tokenvault.audit.verify.revisions import Revisions
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.keys import KeyStore
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.testing.token_store_harness import a_record

NEWEST = 8
GROWTH_MAX = 16


@given(
    order=st.permutations(range(1, NEWEST + 1)),
    revision=st.integers(1, NEWEST),
    again=st.none() | st.integers(1, NEWEST),
)
def test_a_record_put_back_is_named_in_whatever_order_its_events_are_read(
    order: list[int], revision: int, again: int | None, local_keys: KeyStore
) -> None:
    """Two events of one revision likewise: the record had been put back before it was changed again."""
    store = MemoryTokenStore()
    record = a_record(1)
    store.insert([record], [])
    for number in range(2, revision + 1):
        store.replace([record._replace(revision=number)], [])
    revisions, findings = Revisions(), Findings()
    for stated in [*order, *([] if again is None else [again])]:
        revisions.add(record.reference, stated)
    trusted = TrustedKeys(local_keys, None)
    assert revisions.check(store, trusted, findings, Purges(store, trusted, lambda _: {})) == 1
    expected = set() if again is None else {(FindingKind.REVISION_FELL, again, 2)}
    if revision < NEWEST:
        expected.add((FindingKind.REVISION_FELL, revision, NEWEST + (again is not None)))
    assert {(each.kind, each.revision, each.number) for each in findings.found} == expected


def test_a_record_put_back_is_named_though_the_event_before_the_newest_is_missing(
    local_keys: KeyStore,
) -> None:
    store, record = MemoryTokenStore(), a_record(1)
    store.insert([record], [])
    revisions, findings = Revisions(), Findings()
    for stated in (4, 1, 2):
        revisions.add(record.reference, stated)
    trusted = TrustedKeys(local_keys, None)
    revisions.check(store, trusted, findings, Purges(store, trusted, lambda _: {}))
    assert [(each.kind, each.revision, each.number) for each in findings.found] == [
        (FindingKind.REVISION_FELL, 1, 3)
    ]


class Growing(Forwarding):
    """A store that grows with every read: events in a stream that is there, and streams, closed and killed ones."""

    def __init__(self, store: MemoryTokenStore, keys: KeyStore) -> None:
        self.store, self.keys = store, keys
        self.write_limits = store.write_limits
        self.vault = vaults.open_vault(keys, store)
        self.token = issue(self.vault, domain=tv.Domain(limits=(tv.Limit(uses=1_000),))).token
        self.grown: list[int] | None = None

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.grown is not None and len(self.grown) < GROWTH_MAX:
            number = len(self.grown)
            self.grown.append(number)
            self.vault.detokenize(self.token, use(f"{name}-{number}"))
            other = vaults.open_vault(self.keys, self.store)
            other.suspend(issue(other).token, by=tv.Actor.ISSUER)
            other.issue_many([vaults.AMEX], requestor=vaults.SHOP, program="one-time")
            if number % 2:
                other.close()
        return getattr(self.store, name)(*args, **kwargs)


def test_a_trail_that_grows_between_any_two_reads_is_intact(local_keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    growing = Growing(store, local_keys)
    since: tv.AuditReport | None = None
    for _ in range(2):
        growing.grown = []
        report = tv.verify_audit(growing, keys=local_keys, since=since)
        assert len(growing.grown) == GROWTH_MAX
        assert (report.findings, report.open_findings) == ((), ())
        since = report
    growing.grown = None
    report = tv.verify_audit(growing, keys=local_keys, since=since)
    assert report.intact
    assert report.streams == 1 + 2 * GROWTH_MAX


def test_an_index_with_a_row_of_another_shape_is_named_and_all_the_rest_is_verified(
    local_keys: KeyStore,
) -> None:
    """As a store may give it that does not look at what is there: nothing is said of the events by it."""
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        reference = bytes.fromhex(issue(vault).reference)
    (stream,) = store.streams()
    store._index[reference].insert(0, (bytes(16), stream, 0))
    store._records, store._tokens = {}, []
    found = tv.verify_audit(store, keys=local_keys).findings
    assert [(each.kind, each.stream, each.number, each.reference, each.message) for each in found] == [
        (
            FindingKind.EDITED, None, None, None,
            "a row of the index has another shape than was written: it was not verified",
        ),
        (
            FindingKind.RECORD_REMOVED, None, None, reference.hex(),
            "events tell of this token, and its record is not there",
        ),
    ]  # fmt: skip


@pytest.fixture
def database(local_keys: KeyStore, tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "vault.db", local_keys)
    with closing(opened.store), closing(opened.sql):
        yield opened


@pytest.mark.parametrize("body", [b"", b"\0", b"\1" + bytes(40), bytes(2_000)])
def test_a_planted_row_about_a_stream_that_is_no_checkpoint_is_named(database: Database, body: bytes) -> None:
    """The index leads to it as to a checkpoint."""
    (stream,) = database.store.streams()
    last = database.store.events(stream)[-1].number
    database.plant(stream, last + 1, reference=stream)
    database.sql.execute("UPDATE events SET body = ? WHERE number = ?", (body, last + 1))
    database.sql.execute("INSERT INTO event_index VALUES (?, ?, ?, ?)", (stream, bytes(16), stream, last + 1))
    assert database.found() == [(FindingKind.INSERTED, stream.hex(), last + 1)]
    with vaults.open_vault(database.keys, database.store) as vault:
        issue(vault)
    assert (FindingKind.INSERTED, stream.hex(), last + 1) in database.found()


def test_a_stream_whose_only_checkpoint_is_its_first_is_named_when_it_is_gone(database: Database) -> None:
    """Its events changed no record: only the streams that came after it know of it."""
    before = set(database.store.streams())
    killed = vaults.open_vault(database.keys, database.store)
    with suppress(tv.TokenNotFoundError):
        killed.detokenize("9999130000000000", use())
    (stream,) = set(database.store.streams()) - before
    assert len(database.store.events(stream)) == 2
    with vaults.open_vault(database.keys, database.store) as vault:
        vault.detokenize(database.token, use(1))
    assert database.found() == []
    gone(database.sql, stream)
    assert database.found() == [(FindingKind.STREAM_DROPPED, stream.hex(), None)]


def gone(sql: sqlite3.Connection, stream: bytes) -> None:
    for table in ("events", "event_index"):
        sql.execute(f"DELETE FROM {table} WHERE stream = ?", (stream,))
