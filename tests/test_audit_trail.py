"""The trail that vaults leave, by threads, processes and kills, verifies; what is done to it at random is found."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.vaults import MASTERCARD, SHOP, VISA, issue, use
from tokenvault.audit.checkpoint import CROSS_REFERENCES_MAX
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.verify.report import parse_anchor
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import Fence, SealedEvent, SealedRecord, TokenStore
from tokenvault.stores.sqlite.store import SqliteTokenStore
from tokenvault.testing.clock import ManualClock

LIMITED = tv.Domain(limits=(tv.Limit(uses=1_000),))


def open_vault(keys: KeyStore, store: TokenStore, events: int, clock: ManualClock | None = None) -> tv.Vault:
    return tv.Vault(
        keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS, clock=clock or ManualClock(NOW_MS),
        checkpoints=tv.CheckpointPolicy(events=events),
    )  # fmt: skip


def rows_of(store: TokenStore) -> list[SealedEvent]:
    return [row for stream in sorted(store.streams()) for row in store.events(stream=stream)]


def checkpoints(store: TokenStore) -> list[Event]:
    found = [Event.parse(row) for row in rows_of(store)]
    return [event for event in found if event.action is Action.CHECKPOINT]


# Checkpoints.


def test_a_vault_that_is_opened_and_not_used_leaves_nothing(keys: KeyStore, store: TokenStore) -> None:
    with vaults.open_vault(keys, store) as vault, pytest.raises(tv.TokenNotFoundError):
        vault.get("9999130000000003")
    vault.close()
    assert store.streams() == []


def test_checkpoints_come_first_then_by_number_by_time_and_at_the_end(
    keys: KeyStore, store: TokenStore
) -> None:
    clock = ManualClock(NOW_MS)
    with open_vault(keys, store, 5, clock) as vault:
        token = issue(vault).token
        for number in range(8):
            vault.detokenize(token, use(number))
        clock.advance(59_999)
        vault.detokenize(token, use("soon"))
        clock.advance(1)
        vault.detokenize(token, use("later"))
    sizes = [
        (event.checkpoint.size, event.checkpoint.closes)
        for event in checkpoints(store)
        if event.checkpoint is not None
    ]
    numbers = [row.number for row in rows_of(store) if row.reference == row.stream]
    assert numbers == [1, 7, 13, 15]
    assert sizes == [(number - 1, number == 15) for number in numbers]
    assert tv.verify_audit(store, keys=keys).intact


def test_a_stream_refers_to_the_last_checkpoint_of_every_other_one_once(
    keys: KeyStore, store: TokenStore
) -> None:
    first, second = (open_vault(keys, store, 3) for _ in range(2))
    for vault in (first, second, first, second, first, second):
        for _ in range(3):
            issue(vault)
    first.close()
    second.close()
    rows = {(row.stream, row.number): row for row in rows_of(store)}
    references: dict[bytes, list[tuple[bytes, int]]] = {}
    for row in rows.values():
        checkpoint = Event.parse(row).checkpoint
        for each in checkpoint.cross_references if checkpoint else ():
            is_checkpoint = rows[each.stream, each.number].reference == each.stream
            # The first, and the one that closes, name the last event of an open stream too.
            assert is_checkpoint or row.number == 1 or (checkpoint and checkpoint.closes)
            references.setdefault(row.stream, []).append((each.stream, each.number))
    assert all(len(set(each)) == len(each) for each in references.values())
    last = max(number for stream, number in rows if stream == rows_of(store)[0].stream)
    assert last > 9
    assert {stream for each in references.values() for stream, _ in each} == set(store.streams())


@pytest.mark.usefixtures("untraced")
def test_old_streams_stay_known_by_a_chain_of_younger_ones(local_keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    clock = ManualClock(NOW_MS)
    for _ in range(CROSS_REFERENCES_MAX + 10):
        clock.advance(1)
        vault = open_vault(local_keys, store, 1_000, clock)
        with vault, pytest.raises(tv.PermissionDeniedError):  # an event without a record
            vault.tokens_of(VISA, requestor=vaults.STRANGER)
    assert len(store.streams()) == CROSS_REFERENCES_MAX + 10
    assert all(len(row.body) <= 4_096 for row in rows_of(store))
    streams = sorted(store.streams())
    for stream in streams[:-1]:
        kept = dict(store._events)
        for key in [key for key in store._events if key[0] == stream]:
            del store._events[key]
        (finding,) = tv.verify_audit(store, keys=local_keys).findings
        assert (finding.kind, finding.stream) == (tv.FindingKind.STREAM_DROPPED, stream.hex())
        store._events = kept


def test_a_planted_checkpoint_is_not_referred_to(keys: KeyStore, store: TokenStore) -> None:
    """Else it could be taken away again, and the trail would look as if a stream were missing for ever."""
    planted = SealedEvent(b"\xff" * 16, 1, b"\xff" * 16, bytes(60), bytes(16))
    store.append([planted])
    with vaults.open_vault(keys, store) as vault:
        issue(vault)
    assert all(
        event.checkpoint and not event.checkpoint.cross_references
        for event in checkpoints_but(store, planted)
    )
    found = tv.verify_audit(store, keys=keys).findings
    assert {each.kind for each in found} == {tv.FindingKind.INSERTED}
    assert {(each.stream, each.number) for each in found} == {("ff" * 16, 1), (min(store.streams()).hex(), 1)}


def checkpoints_but(store: TokenStore, planted: SealedEvent) -> list[Event]:
    found = [Event.parse(row) for row in rows_of(store) if row.stream != planted.stream]
    return [event for event in found if event.action is Action.CHECKPOINT]


def test_events_written_under_an_older_key_verify_after_a_rotation(
    fresh_keys: KeyStore, custody: tv.Custody, tmp_path: Path
) -> None:
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as store:
        tv.provision(fresh_keys, store)
        clock = ManualClock(NOW_MS)
        for _ in range(3):
            with vaults.open_vault(fresh_keys, store, clock) as vault:
                token = issue(vault).token
            fresh_keys.create(tv.KeyPurpose.AUDIT, custody)
        clock.advance(1)
        with vaults.open_vault(fresh_keys, store, clock) as vault:
            vault.detokenize(token, use())
            assert [event.action for event in vault.history(token)] == [Action.ISSUE, Action.DETOKENIZE]
        report = tv.verify_audit(store, keys=fresh_keys)
        assert report.intact
        assert report.streams == 4


# Threads, gaps.


def test_eight_threads_with_a_checkpoint_every_three_events(keys: KeyStore, store: TokenStore) -> None:
    """They wait for no one, lose against each other, and close while others still write."""
    vault = open_vault(keys, store, 3)
    token = issue(vault, domain=LIMITED).token
    start = threading.Barrier(8)

    def each(thread: int) -> None:
        start.wait()
        for number in range(6):
            vault.detokenize(token, use(f"{thread}-{number}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(each, range(8)))
    vault.close()
    report = tv.verify_audit(store, keys=keys)
    assert report.findings == ()
    assert (report.streams, report.gaps) == (1, 0)
    assert report.checkpoints >= 2, "one that loses against another thread is left with a later event"
    assert checkpoints(store)[-1].checkpoint is not None
    assert report.covered == report.events - 1
    assert vault_is_closed(store)


def vault_is_closed(store: TokenStore) -> bool:
    last = Event.parse(rows_of(store)[-1]).checkpoint
    return last is not None and last.closes


def test_a_vault_closed_while_others_use_it_leaves_a_trail_that_verifies(local_keys: KeyStore) -> None:
    """They finish, in a stream that is not closed or in another one."""
    for _ in range(20):
        close_under_use(local_keys)


def close_under_use(keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(keys, store)
    vault = open_vault(keys, store, 4)
    token = issue(vault, domain=LIMITED).token
    start = threading.Barrier(4)

    def each(thread: int) -> None:
        start.wait()
        try:
            for number in range(30):
                vault.detokenize(token, use(f"{thread}-{number}"))
                if thread == 0 and number == 5:
                    vault.close()
        except tv.ConfigurationError as error:
            assert "closed" in str(error)  # noqa: PT017 # others there are none

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(each, range(4)))
    assert tv.verify_audit(store, keys=keys).findings == ()


def test_tasks_that_are_cancelled_leave_a_trail_that_verifies_and_is_closed(
    keys: KeyStore, tmp_path: Path
) -> None:
    """On an event loop, with a checkpoint every three events."""

    async def work() -> None:
        store = tv.open_async_token_store(f"sqlite:///{tmp_path}/vault.db")
        opened = tv.AsyncVault(
            keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS,
            checkpoints=tv.CheckpointPolicy(events=3),
        )  # fmt: skip
        async with opened as vault:
            issued = await vault.issue(VISA, requestor=SHOP, program="one-time", domain=LIMITED)
            tasks = [asyncio.create_task(vault.detokenize(issued.token, use(n))) for n in range(30)]
            for task in tasks[::3]:
                await asyncio.sleep(0.002)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            history = await vault.history(issued.token)
            assert history[0].action is Action.ISSUE
        await store.close()

    with closing(SqliteTokenStore(tmp_path / "vault.db")) as database:
        tv.provision(keys, database)
        asyncio.run(work())
        report = tv.verify_audit(database, keys=keys)
        assert report.findings == ()
        assert report.gaps == 0
        assert report.signed == report.checkpoints
        assert vault_is_closed(database)


class Lossy(MemoryTokenStore):
    """Fails some writes, after doing them or before."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: Callable[[], str] = lambda: ""

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        fate = self.failing()
        if fate == "before":
            raise OSError
        moved = super()._replace(records, events, fence)
        if fate == "after":
            raise OSError
        return moved


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["", "", "", "before", "after"]), max_size=60), st.integers(1, 4))
def test_writes_of_unknown_fate_leave_a_trail_that_verifies(
    local_keys: KeyStore, fates: list[str], events: int
) -> None:
    store = Lossy()
    tv.provision(local_keys, store)
    vault = open_vault(local_keys, store, events)
    token = issue(vault, domain=LIMITED).token
    store.failing = lambda: fates.pop() if fates else ""
    failed = 0
    for number in range(20):
        try:
            vault.detokenize(token, use(number))
        except tv.TokenStoreError:
            failed += 1
    fates.clear()
    vault.close()
    report = tv.verify_audit(store, keys=local_keys)
    assert report.findings == ()
    assert report.gaps == 0
    assert vault_is_closed(store)


class Late(MemoryTokenStore):
    """A store whose next event is lost, and lands when the vault has given its number to another one."""

    late: Sequence[SealedEvent] | None = ()

    def _append(self, events: Sequence[SealedEvent], fence: Fence) -> list[str]:
        if self.late is None:
            self.late = events
            raise OSError
        landing, self.late = self.late, ()
        if landing:
            super()._append(landing, ())
        return super()._append(events, fence)


@pytest.mark.parametrize("events", [1, 2, 1_000])
def test_a_lost_write_that_lands_late_leaves_a_trail_that_verifies(local_keys: KeyStore, events: int) -> None:
    """The event in whose place it stands is refused, reported to its caller as an error, and not committed to."""
    store = Late()
    tv.provision(local_keys, store)
    vault = open_vault(local_keys, store, events)
    token = issue(vault).token
    store.late = None
    for number in (1, 2):
        with pytest.raises(tv.TokenStoreError):
            vault.detokenize(token, use(number))
    for number in (3, 4):
        vault.detokenize(token, use(number))
    ids = [event.transaction_id for event in vault.history(token)]
    assert ids == [None, "tx-1", "tx-3", "tx-4"]
    vault.close()
    report = tv.verify_audit(store, keys=local_keys)
    assert report.findings == ()
    assert report.gaps == 0
    assert vault_is_closed(store)


def test_a_closing_checkpoint_fills_what_conflicts_left_free(local_keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    vault = open_vault(local_keys, store, 1_000)
    issue(vault)
    journal = vault._core.trail.journal  # type: ignore[union-attr] # it is open
    event = Event(time_ms=NOW_MS, action=Action.LOOK_UP, outcome=Outcome.DENIED)
    given_back = [journal.begin(journal.entry(event), NOW_MS) for _ in range(3)]
    written = journal.begin(journal.entry(event), NOW_MS)
    store.append(journal.seal(written, NOW_MS))
    journal.written(written)
    for entry in given_back:
        journal.withdraw(entry)
    assert tv.verify_audit(store, keys=local_keys).gaps == 3
    vault.close()
    report = tv.verify_audit(store, keys=local_keys)
    assert report.intact
    assert report.gaps == 0
    assert vault_is_closed(store)


def test_the_numbers_of_a_flow_that_was_interrupted_before_it_sealed_go_to_the_next_event(
    local_keys: KeyStore,
) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    vault = open_vault(local_keys, store, 1_000)
    issue(vault)
    journal = vault._core.trail.journal  # type: ignore[union-attr] # it is open
    event = Event(time_ms=NOW_MS, action=Action.LOOK_UP, outcome=Outcome.DENIED)
    for _ in range(2):
        journal.begin(journal.entry(event), NOW_MS).over = True
    issue(vault)
    assert [row.number for row in rows_of(store)] == [1, 2, 3]
    vault.close()
    report = tv.verify_audit(store, keys=local_keys)
    assert report.intact
    assert report.gaps == 0
    assert vault_is_closed(store)


def test_numbers_lost_with_a_killed_process_are_gaps_of_grade_open(local_keys: KeyStore) -> None:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    vault = open_vault(local_keys, store, 1_000)
    issue(vault)
    journal = vault._core.trail.journal  # type: ignore[union-attr] # it is open
    event = Event(time_ms=NOW_MS, action=Action.ISSUE, outcome=Outcome.DONE)
    journal.begin(journal.entry(event), NOW_MS)
    issue(vault)
    report = tv.verify_audit(store, keys=local_keys)
    assert [(each.kind, each.grade, each.number) for each in report.open_findings] == [
        (tv.FindingKind.GAP, tv.Grade.OPEN, 3)
    ]
    assert report.findings == ()
    assert report.gaps == 1


def test_verifying_while_others_write_finds_nothing(keys: KeyStore, tmp_path: Path) -> None:
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as store:
        tv.provision(keys, store)
        vault = open_vault(keys, store, 2)
        token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=10**9),))).token
        stop = threading.Event()

        def each(thread: int) -> None:
            number = 0
            while not stop.is_set():
                vault.detokenize(token, use(f"{thread}-{number}"))
                issue(vault, MASTERCARD)
                number += 1

        with ThreadPoolExecutor(3) as pool:
            going = [pool.submit(each, thread) for thread in range(3)]
            try:
                since: tv.AuditReport | None = None
                for _ in range(6):
                    since = tv.verify_audit(store, keys=keys, since=since)
                    assert since.findings == ()
            finally:
                stop.set()
            for task in going:
                task.result(60)
        vault.close()
        assert tv.verify_audit(store, keys=keys, since=since).findings == ()


# Random trails, random tampering.

steps = st.lists(
    st.sampled_from(["issue", "use", "deny", "suspend", "close", "vault"]), min_size=1, max_size=25
)


def a_trail(keys: KeyStore, todo: list[str], events: int) -> MemoryTokenStore:
    store = MemoryTokenStore()
    tv.provision(keys, store)
    opened = [open_vault(keys, store, events)]
    token = issue(opened[0], domain=LIMITED)
    for number, step in enumerate(todo):
        vault = opened[number % len(opened)]
        if step == "issue":
            token = issue(vault, domain=LIMITED)
        elif step == "use":
            vault.detokenize(token.token, use(number))
        elif step == "deny":
            with pytest.raises(tv.DomainRestrictionError):
                vault.detokenize(token.token, use(number, requestor=vaults.ACQUIRER))
        elif step == "suspend":
            vault.suspend(token.token, by=tv.Actor.VAULT)
            vault.resume(token.token, by=tv.Actor.VAULT)
        elif step == "vault" or len(opened) == 1:
            opened.append(open_vault(keys, store, events))
        else:
            opened.remove(vault)
            vault.close()
    return store


def tamper(store: MemoryTokenStore, data: st.DataObject) -> str:
    """Do one thing to the rows: in the order in which they came, as names of streams and tokens are random."""
    keys = list(store._events)
    key = data.draw(st.sampled_from(keys))
    row = store._events[key]
    kind = data.draw(st.sampled_from(["edit", "remove", "swap", "insert", "replay", "cut", "drop", "record"]))
    if kind == "edit":
        column = data.draw(st.sampled_from(["reference", "body", "mac"]))
        other = data.draw(
            st.binary(min_size=16, max_size=16).filter(lambda value: value != getattr(row, column))
        )
        changed = {"reference": row.reference, "body": row.body, "mac": row.mac, column: other}
        store._events[key] = SealedEvent(*key, changed["reference"], changed["body"], changed["mac"])
    elif kind == "remove":
        del store._events[key]
    elif kind == "swap" and len(keys) > 1:
        other_key = data.draw(st.sampled_from([each for each in keys if each != key]))
        store._events[key], store._events[other_key] = (
            store._events[other_key]._replace(stream=key[0], number=key[1]),
            row._replace(stream=other_key[0], number=other_key[1]),
        )
    elif kind in ("insert", "replay", "swap"):
        number = max(n for stream, n in keys if stream == key[0]) + data.draw(st.integers(1, 3))
        mac = row.mac if kind == "replay" else data.draw(st.binary(min_size=16, max_size=16))
        store._events[key[0], number] = row._replace(number=number, mac=mac)
    elif kind == "cut":
        for each in keys:
            if each[0] == key[0] and each[1] >= key[1]:
                del store._events[each]
    elif kind == "drop":
        for each in keys:
            if each[0] == key[0]:
                del store._events[each]
    else:
        token = data.draw(st.sampled_from(list(store._records)))
        record = store._records[token]
        if record.revision > 1 and data.draw(st.booleans()):
            store._records[token] = record._replace(revision=data.draw(st.integers(1, record.revision - 1)))
        else:
            del store._records[token]
            store._tokens.remove(token)
    return kind


def report_what_was_changed(keys: KeyStore, todo: list[str], events: int, data: st.DataObject) -> None:
    store = a_trail(keys, todo, events)
    report = tv.verify_audit(store, keys=keys)
    assert report.findings == ()
    assert parse_anchor(report.anchor()) == report.anchor_entries
    kind = tamper(store, data)
    after = tv.verify_audit(store, keys=keys, since=report)
    assert after.findings, kind


@pytest.mark.nightly
@settings(max_examples=1_000)
@given(todo=steps, events=st.integers(1, 5), data=st.data())
def test_an_untouched_trail_is_never_reported_and_a_change_always_is_very_often(
    local_keys: KeyStore, todo: list[str], events: int, data: st.DataObject
) -> None:
    report_what_was_changed(local_keys, todo, events, data)


@settings(max_examples=60)
@given(todo=steps, events=st.integers(1, 5), data=st.data())
def test_an_untouched_trail_is_never_reported_and_a_change_always_is(
    local_keys: KeyStore, todo: list[str], events: int, data: st.DataObject
) -> None:
    """Given what a verification before it said: without that, an open end can be cut where no record changed."""
    report_what_was_changed(local_keys, todo, events, data)


# Reading.


def test_the_history_of_a_token_is_read_in_pages_by_token_and_by_reference(
    vault: tv.Vault, store: TokenStore
) -> None:
    info = issue(vault, domain=LIMITED)
    issue(vault, MASTERCARD)
    vault.detokenize(info.token, use("a"))
    vault.suspend(info.token, by=tv.Actor.REQUESTOR)
    events = vault.history(info.token)
    assert [(e.action, e.outcome, e.revision, e.requestor, e.transaction_id, e.codes) for e in events] == [
        (Action.ISSUE, Outcome.DONE, 1, SHOP, None, ()),
        (Action.DETOKENIZE, Outcome.DONE, 2, SHOP, "tx-a", ()),
        (Action.SUSPEND, Outcome.DONE, 3, SHOP, None, ("REQUESTOR",)),
    ]
    assert {event.reference for event in events} == {info.reference}
    assert events[0].time == datetime.fromtimestamp(NOW_MS / 1_000, UTC)
    assert vault.history(info.reference) == events
    assert [vault.history(info.reference, after=n, limit=1) for n in range(4)] == [[e] for e in events] + [[]]
    assert vault.history(info.token, limit=1_000) == events
    for wrong in (0, 1_001, True):
        with pytest.raises(tv.InvalidInputError):
            vault.history(info.token, limit=wrong)
    with pytest.raises(tv.InvalidInputError):
        vault.history(info.token, after=-1)
    for unknown in ("9999130000000003", "0" * 32):
        with pytest.raises(tv.TokenNotFoundError):
            vault.history(unknown)
    planted = rows_of(store)[1]._replace(number=1_000)
    store.append([planted])
    assert vault.history(info.token) == events, "what the vault did not write is left out"


def test_the_export_has_every_event_as_a_line_of_json(keys: KeyStore, store: TokenStore) -> None:
    with vaults.open_vault(keys, store) as vault:
        info = issue(vault, domain=LIMITED)
        vault.detokenize(info.token, use("a"))
    lines = [json.loads(line) for line in tv.export_audit(store, keys=keys)]
    assert [(line["stream"], line["number"]) for line in lines] == [
        (row.stream.hex(), row.number) for row in rows_of(store)
    ]
    assert lines[2] == {
        "schema_version": 1, "item": 0,
        "stream": lines[0]["stream"], "number": 3, "time": "2026-05-28T20:26:40.000Z", "action": "DETOKENIZE",
        "outcome": "DONE", "requestor": SHOP, "reference": info.reference, "transaction_id": "tx-a", "codes": [],
        "revision": 2, "genuine": True, "operator": None, "kind": "PURCHASE", "amount": None, "currency": None,
        "retry": False, "score": None, "locked_until": None,
    }  # fmt: skip
    assert lines[3]["checkpoint"]["closes"] is True
    assert len(lines[3]["checkpoint"]["signature"]) == 128
    store.append([SealedEvent(b"\xff" * 16, 1, b"", b"nonsense", bytes(16))])
    without = list(tv.export_audit(store))
    assert json.loads(without[0])["genuine"] is None
    assert json.loads(without[-1]) == {
        "schema_version": 1, "stream": "ff" * 16, "number": 1, "item": 0, "genuine": False,
    }  # fmt: skip
    assert all(line.isascii() and "\n" not in line and info.token not in line for line in without)


@pytest.mark.nightly
def test_a_hundred_thousand_events_untouched_verify_and_one_edited_is_named(
    local_keys: KeyStore, tmp_path: Path
) -> None:
    from benchmarks import audit

    with closing(audit.trail(local_keys, tmp_path / "vault.db", 100_000)) as store:
        report = tv.verify_audit(store, keys=local_keys)
        assert report.findings == ()
        assert report.events > 100_000
        stream = sorted(store.streams())[0]
        row = store.events(stream=stream, after=50_000, limit=1)[0]
        audit.edit(tmp_path / "vault.db", row)
        found = tv.verify_audit(store, keys=local_keys).findings
        assert (tv.FindingKind.EDITED, stream.hex(), row.number) in [
            (f.kind, f.stream, f.number) for f in found
        ]
