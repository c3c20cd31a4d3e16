"""What a restore or a failover lost is acknowledged by an operator: verification is clean but for that mark."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests import vaults
from tests.editors import Row, postgres_database
from tests.postgres_server import PostgresServer
from tests.strategies import NOW_MS
from tests.vaults import VISA, all_events, issue, use
from tokenvault.audit.acknowledgement import LOSSES_MAX, Acknowledged, Loss
from tokenvault.audit.event import Action, Event
from tokenvault.audit.verify.report import AuditFinding, AuditReport, FindingKind
from tokenvault.keys import KeyStore
from tokenvault.stores import MemoryTokenStore, ThreadedTokenStore
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


def test_a_vault_with_coroutines_acknowledges_the_same(restored: Restored) -> None:
    async def work() -> int:
        restored.clock.advance(1)
        store = ThreadedTokenStore(restored.store)
        parts: Any = {"programs": vaults.PROGRAMS, "requestors": vaults.REQUESTORS, "clock": restored.clock}
        async with tv.AsyncVault(restored.keys, store, **parts) as vault:
            return await vault.acknowledge(restored.verify(), operator="ann", reason="restored")

    assert asyncio.run(work()) == 2
    report = restored.verify()
    assert report.intact
    assert {each.kind for each in report.acknowledged} == {FindingKind.TRUNCATED, FindingKind.STREAM_DROPPED}


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


def test_an_acknowledgement_that_somebody_forged_counts_for_nothing(restored: Restored) -> None:
    """Made by hand of a genuine one, in its place in another stream, or with further ranges in its own."""
    restored.acknowledge()
    (row,) = [row for row in restored.rows() if Event.parse(row).action is Action.ACKNOWLEDGE]
    restored.edit("DELETE FROM events WHERE stream = ? AND number = ?", row.stream, row.number)
    wider = Event.parse(row)
    assert wider.acknowledgement is not None
    (first, *rest) = wider.acknowledgement.losses
    losses = (first._replace(first=1, last=2**63 - 1), *rest)
    body = wider._replace(acknowledgement=wider.acknowledgement._replace(losses=losses)).body()
    for stream, number in ((row.stream, row.number), (b"\x7f" * 16, 1)):
        restored.edit(
            "INSERT INTO events (stream, number, reference, body, mac) VALUES (?, ?, ?, ?, ?)",
            stream,
            number,
            row.reference,
            body,
            row.mac,
        )
        report = restored.verify()
        assert not report.acknowledged
        assert {FindingKind.TRUNCATED, FindingKind.STREAM_DROPPED} <= {each.kind for each in report.findings}


def test_one_forged_among_events_that_a_signature_commits_to_does_not_excuse_itself(
    restored: Restored,
) -> None:
    """With the public key alone no MAC is looked at: what is not as was signed for acknowledges nothing."""
    pem = tv.audit_public_key(restored.keys)
    with restored.open() as vault:
        vault.acknowledge(restored.verify(), operator="ann", reason="restored")
        issue(vault)  # the root that shows the forgery comes after one more event
    (genuine,) = [row for row in restored.rows() if Event.parse(row).action is Action.ACKNOWLEDGE]
    stream = genuine.stream  # of a vault that was closed: the last checkpoint commits to all of it
    event = Event.parse(genuine)
    assert event.acknowledgement is not None
    everything = Loss(FindingKind.EDITED, stream, 1, 2**63 - 1)
    forged = event._replace(acknowledgement=event.acknowledgement._replace(losses=(everything,)))
    restored.edit(
        "UPDATE events SET body = ? WHERE stream = ? AND number = ?", forged.body(), stream, genuine.number
    )
    report = tv.verify_audit(restored.store, public_key=pem)
    found = {(each.kind, each.stream) for each in report.findings}
    assert (FindingKind.EDITED, stream.hex()) in found
    assert not any(each.kind is FindingKind.EDITED for each in report.acknowledged)


def test_an_acknowledgement_hides_nothing_that_it_does_not_name(restored: Restored) -> None:
    report = restored.verify()
    (truncated,) = [each for each in report.findings if each.kind is FindingKind.TRUNCATED]
    part = attrs.evolve(report, findings=(truncated,), open_findings=())
    with restored.open() as vault:
        assert vault.acknowledge(part, operator="ann", reason="one of two") == 1
    after = restored.verify()
    assert [each.kind for each in after.acknowledged] == [FindingKind.TRUNCATED]
    assert [each.kind for each in after.findings] == [FindingKind.STREAM_DROPPED]


def test_a_failover_that_lost_rows_is_acknowledged_and_a_later_loss_is_found(
    local_keys: KeyStore, postgres_server: PostgresServer
) -> None:
    clock = ManualClock(NOW_MS)
    with postgres_database(postgres_server) as (store, new_editor):
        tv.provision(local_keys, store)
        with new_editor() as editor, vaults.open_vault(local_keys, store, clock) as running:
            token = issue(running, domain=tv.Domain(limits=(tv.Limit(uses=3),))).token
            running.detokenize(token, use("replicated"))
            tables = ("events", "event_index", "tokens", "token_counts")
            standby: dict[str, list[Row]] = {table: editor.rows(table) for table in tables}
            running.detokenize(token, use("lost"))
            issue(running)
            anchor = tv.verify_audit(store, keys=local_keys).anchor()
            running.close()
            for table, rows in standby.items():
                editor.restore(table, rows)
            before = tv.verify_audit(store, keys=local_keys, since=anchor)
            assert [each.kind for each in before.findings] == [FindingKind.TRUNCATED]
            clock.advance(1)
            with vaults.open_vault(local_keys, store, clock) as vault:
                vault.acknowledge(before, operator="ann", reason="failover of Friday")
                vault.detokenize(token, use("after"))
                again = issue(vault)
            report = tv.verify_audit(store, keys=local_keys, since=anchor)
            assert report.intact
            assert [each.kind for each in report.acknowledged] == [FindingKind.TRUNCATED]
            editor.execute("DELETE FROM {}tokens WHERE token = %s", (again.token,))
            report = tv.verify_audit(store, keys=local_keys, since=report.anchor())
            assert [(each.kind, each.reference) for each in report.findings] == [
                (FindingKind.RECORD_REMOVED, again.reference)
            ]


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
    begins = (
        1 if kind is FindingKind.STREAM_DROPPED else other_first
    )  # a whole stream, up to what was known of it
    within = first <= begins and other_first + other_more <= first + more
    lost = {FindingKind.TRUNCATED, FindingKind.REMOVED, FindingKind.GAP, FindingKind.STREAM_DROPPED}
    assert known.covers(finding) == (within and kind in lost)
    assert not known.covers(attrs.evolve(finding, stream=(b"t" * 16).hex()))
    assert not known.covers(attrs.evolve(finding, stream=None))


def test_what_a_stream_does_after_its_loss_was_acknowledged_is_missed_when_it_is_gone() -> None:
    known = Acknowledged()
    dropped = AuditFinding(
        kind=FindingKind.STREAM_DROPPED, message="", stream=(b"s" * 16).hex(), number=1, last=9
    )
    loss = Loss.of(dropped)
    assert loss is not None
    known.add((loss,))
    assert known.covers(dropped)
    assert not known.covers(attrs.evolve(dropped, last=10))
    for kind in (FindingKind.TRUNCATED, FindingKind.REMOVED):
        assert known.covers(attrs.evolve(dropped, kind=kind, number=4, last=9))
        assert not known.covers(attrs.evolve(dropped, kind=kind, number=4, last=10))


GONE: dict[str, Any] = {"stream": (b"s" * 16).hex(), "message": ""}
OF_RECORD: dict[str, Any] = {"reference": (b"r" * 16).hex(), "message": ""}


@pytest.mark.parametrize(
    ("finding", "loss"),
    [
        (AuditFinding(kind=FindingKind.EDITED, message=""), None),
        (AuditFinding(kind=FindingKind.UNSIGNED, **GONE), None),
        (AuditFinding(kind=FindingKind.GAP, **GONE), Loss(FindingKind.GAP, b"s" * 16, 0, 0)),
        (AuditFinding(kind=FindingKind.GAP, number=3, **GONE), Loss(FindingKind.GAP, b"s" * 16, 3, 3)),
        (
            AuditFinding(kind=FindingKind.GAP, number=3, last=5, **GONE),
            Loss(FindingKind.GAP, b"s" * 16, 3, 5),
        ),
        (
            AuditFinding(kind=FindingKind.STREAM_DROPPED, number=5, **GONE),
            Loss(FindingKind.STREAM_DROPPED, b"s" * 16, 1, 5),
        ),
        (
            AuditFinding(kind=FindingKind.RECORD_REMOVED, revision=7, **OF_RECORD),
            Loss(FindingKind.RECORD_REMOVED, b"", 0, 0, b"r" * 16, 7),
        ),
    ],
)
def test_a_loss_is_what_a_finding_names_if_that_is_enough(finding: AuditFinding, loss: Loss | None) -> None:
    assert Loss.of(finding) == loss


def test_a_loss_covers_a_part_of_it_that_is_of_its_stream_or_record_and_of_a_like_kind() -> None:
    stream = Loss(FindingKind.REMOVED, b"s" * 16, 3, 9)
    record = Loss(FindingKind.RECORD_REMOVED, b"", 3, 9, b"r" * 16, 2)
    for loss in (stream, record):
        part = loss._replace(first=4, last=8)
        assert loss.covers(loss)
        assert loss.covers(part)
        assert not part.covers(loss)
        assert not loss.covers(part._replace(stream=b"t" * 16))
        assert not loss.covers(part._replace(reference=b"q" * 16))
        assert not loss.covers(part._replace(kind=FindingKind.EDITED))
        assert not loss._replace(kind=FindingKind.EDITED).covers(part)
    assert stream.covers(stream._replace(kind=FindingKind.GAP))
    assert not record.covers(record._replace(revision=3))


def test_an_older_row_that_is_put_back_again_is_no_part_of_what_was_acknowledged() -> None:
    """Nor is the event of one more change that is taken away."""
    reference = (b"r" * 16).hex()
    fell = AuditFinding(kind=FindingKind.REVISION_FELL, message="", number=2, reference=reference, revision=1)
    gone = AuditFinding(
        kind=FindingKind.REMOVED, message="", number=2, last=3, reference=reference, revision=2
    )
    known = Acknowledged()
    known.add(loss for each in (fell, gone) if (loss := Loss.of(each)) is not None)
    assert known.covers(fell)
    assert not known.covers(attrs.evolve(fell, number=3)), "more has been told of the record since"
    assert known.covers(gone)
    assert known.covers(attrs.evolve(gone, number=3, revision=3))
    assert not known.covers(attrs.evolve(gone, last=4))
    assert not known.covers(attrs.evolve(gone, reference=(b"q" * 16).hex()))
    assert not known.covers(attrs.evolve(gone, last=2)), "a row from within the range was put back"


def test_a_row_from_before_what_was_acknowledged_is_found_when_it_is_put_back(local_keys: KeyStore) -> None:
    """Also where its revision lies among those whose events are gone: the suspension among them holds."""
    store, clock = MemoryTokenStore(), ManualClock(NOW_MS)
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store, clock) as vault:
        token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=100),))).token
    kept = set(store._events)
    clock.advance(1)
    running = vaults.open_vault(local_keys, store, clock)
    running.detokenize(token, use("t1"))
    running.detokenize(token, use("t2"))
    older = store._records[token]
    running.suspend(token, by=tv.Actor.ISSUER)
    suspended = store._records[token]
    for place in store._events.keys() - kept:
        del store._events[place]
    for reference, rows in store._index.items():
        store._index[reference] = [row for row in rows if row[1:] in kept]
    clock.advance(1)
    with vaults.open_vault(local_keys, store, clock) as vault:
        vault.acknowledge(tv.verify_audit(store, keys=local_keys), operator="ann", reason="failover")
        assert tv.verify_audit(store, keys=local_keys).intact
        store._records[token] = older
        assert not tv.verify_audit(store, keys=local_keys).intact
        store._records[token] = suspended
        vault.resume(token, by=tv.Actor.ISSUER)
        vault.detokenize(token, use("t3"))
        assert tv.verify_audit(store, keys=local_keys).intact, "the run is the same after honest changes"
