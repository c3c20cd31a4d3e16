"""What a restore or a failover lost is acknowledged by an operator: verification is clean but for that mark."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.vaults import VISA, all_events, issue, use
from tokenvault.audit.acknowledgement import LOSSES_MAX, Acknowledged, Loss
from tokenvault.audit.event import Action, Event
from tokenvault.audit.verify.report import AuditFinding, AuditReport, FindingKind
from tokenvault.keys import KeyStore
from tokenvault.stores.port import SealedEvent
from tokenvault.stores.sqlite.store import SqliteTokenStore
from tokenvault.testing.clock import ManualClock


class Restored:
    """A database restored from a backup, which lacks the last events, and the last anchor from before."""

    def __init__(self, keys: KeyStore, folder: Path) -> None:
        self.keys, self.path = keys, folder / "backup.db"
        self.clock = ManualClock(NOW_MS)
        with closing(SqliteTokenStore(folder / "vault.db")) as store:
            tv.provision(keys, store)
            running = vaults.open_vault(keys, store, self.clock)
            token = issue(running).token
            issue(running)
            store.backup(str(self.path))
            for number in range(3):
                running.detokenize(token, use(number))
            self.clock.advance(1)
            with vaults.open_vault(keys, store, self.clock) as vault:
                issue(vault)
            running.close()
            self.anchor = tv.verify_audit(store, keys=keys).anchor()
        self.store = SqliteTokenStore(self.path)

    def open(self) -> tv.Vault:
        self.clock.advance(1)
        return vaults.open_vault(self.keys, self.store, self.clock)

    def verify(self) -> AuditReport:
        return tv.verify_audit(self.store, keys=self.keys, since=self.anchor)

    def acknowledge(self) -> int:
        with self.open() as vault:
            return vault.acknowledge(self.verify(), operator="ann", reason="restored the backup of Friday")

    def edit(self, sql: str, *values: object) -> None:
        with closing(sqlite3.connect(self.path)) as shell, shell:
            assert shell.execute(sql, values).rowcount == 1

    def rows(self) -> list[SealedEvent]:
        return [row for stream in self.store.streams() for row in all_events(self.store, stream)]


@pytest.fixture
def restored(keys: KeyStore, tmp_path: Path) -> Iterator[Restored]:
    made = Restored(keys, tmp_path)
    with closing(made.store):
        yield made


def test_what_is_acknowledged_is_a_mark_and_no_finding(restored: Restored) -> None:
    before = restored.verify()
    assert {each.kind for each in before.findings} == {FindingKind.TRUNCATED, FindingKind.STREAM_DROPPED}
    assert restored.acknowledge() == len(before.findings) == 2
    for _ in range(2):
        report = restored.verify()
        assert report.intact
        assert {(each.kind, each.stream) for each in report.acknowledged} == {
            (each.kind, each.stream) for each in before.findings
        }
        restored.anchor = report.anchor()  # it still has what was lost
        with restored.open() as vault:
            issue(vault)


def test_what_is_changed_after_it_is_found_as_before(restored: Restored) -> None:
    restored.acknowledge()
    stream = min(restored.store.streams())
    last = all_events(restored.store, stream)[-1].number
    restored.edit("DELETE FROM events WHERE stream = ? AND number = ?", stream, last)
    report = restored.verify()
    assert not report.intact
    assert any((each.stream, each.number) == (stream.hex(), last) for each in report.findings)


def test_the_event_names_the_ranges_and_who_answers_for_them(restored: Restored) -> None:
    restored.acknowledge()
    lines = [json.loads(line) for line in tv.export_audit(restored.store, keys=restored.keys)]
    (line,) = [each for each in lines if each["action"] == "ACKNOWLEDGE"]
    assert (line["operator"], line["outcome"], line["genuine"]) == ("ann", "DONE", True)
    assert line["acknowledged"]["reason"] == "restored the backup of Friday"
    losses = line["acknowledged"]["losses"]
    assert {each["kind"] for each in losses} == {"TRUNCATED", "STREAM_DROPPED"}
    assert all(each["stream"] and each["first"] for each in losses)


def test_an_acknowledgement_that_was_edited_counts_for_nothing(restored: Restored) -> None:
    restored.acknowledge()
    (row,) = [row for row in restored.rows() if Event.parse(row).action is Action.ACKNOWLEDGE]
    restored.edit(
        "UPDATE events SET mac = zeroblob(16) WHERE stream = ? AND number = ?", row.stream, row.number
    )
    kinds = {each.kind for each in restored.verify().findings}
    assert {FindingKind.TRUNCATED, FindingKind.STREAM_DROPPED} <= kinds


def test_an_auditor_with_the_public_key_alone_sees_it_once_it_is_signed_for(restored: Restored) -> None:
    pem = tv.audit_public_key(restored.keys)
    assert pem is not None
    restored.acknowledge()
    report = tv.verify_audit(restored.store, public_key=pem, since=restored.anchor)
    assert {each.kind for each in report.acknowledged} >= {FindingKind.STREAM_DROPPED}
    assert report.intact


def test_a_report_with_what_names_no_range_is_refused_whole(restored: Restored) -> None:
    report = restored.verify()
    for unclear in (
        AuditFinding(kind=FindingKind.EDITED, message="somewhere"),
        AuditFinding(kind=FindingKind.UNSIGNED, message="unsigned", stream="00" * 16),
    ):
        more = attrs.evolve(report, findings=(*report.findings, unclear))
        with restored.open() as vault, pytest.raises(tv.InvalidInputError) as raised:
            vault.acknowledge(more, operator="ann", reason="restored")
        assert raised.value.code == "NOT_ACKNOWLEDGEABLE"


def test_more_than_one_event_takes_what_one_does_not_hold(restored: Restored) -> None:
    many = tuple(
        AuditFinding(kind=FindingKind.RECORD_REMOVED, message="gone", reference=f"{number:032x}")
        for number in range(1, LOSSES_MAX + 2)
    )
    report = attrs.evolve(restored.verify(), findings=many)
    with restored.open() as vault:
        assert vault.acknowledge(report, operator="ann", reason="x") == LOSSES_MAX + 1
    found = [Event.parse(row).acknowledgement for row in restored.rows()]
    assert [len(each.losses) for each in found if each] == [LOSSES_MAX, 1]


def test_a_reason_keeps_no_card_number(restored: Restored) -> None:
    with restored.open() as vault:
        vault.acknowledge(restored.verify(), operator="ann", reason=f"card {VISA}")
    assert not any(VISA in line for line in tv.export_audit(restored.store))


@pytest.mark.parametrize("kind", FindingKind)
@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 60), st.integers(0, 60))
def test_a_loss_covers_what_lies_within_it_and_nothing_else(
    kind: FindingKind, first: int, more: int, other_first: int, other_more: int
) -> None:
    known = Acknowledged()
    known.add((Loss(FindingKind.TRUNCATED, b"s" * 16, first, first + more),))
    finding = AuditFinding(
        kind=kind, message="", stream=(b"s" * 16).hex(), number=other_first, last=other_first + other_more
    )
    within = first <= other_first and other_first + other_more <= first + more
    lost = {FindingKind.TRUNCATED, FindingKind.REMOVED, FindingKind.GAP}
    assert known.covers(finding) == (within and kind in lost)
    assert not known.covers(attrs.evolve(finding, stream=(b"t" * 16).hex()))
    assert not known.covers(attrs.evolve(finding, stream=None))
