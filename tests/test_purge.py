"""What a policy lets go: events, uses and tombstones, and a trail that verifies all the same."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.conftest import new_keys
from tests.strategies import NOW_MS
from tests.vault_workers import card_number
from tests.vaults import issue, use
from tokenvault import maintenance
from tokenvault.audit.archive import event_of, line_of
from tokenvault.audit.checkpoint import CROSS_REFERENCES_MAX
from tokenvault.audit.event import Action, Event, is_of_purge
from tokenvault.audit.purge_note import PurgeNote
from tokenvault.audit.verify.report import FindingKind
from tokenvault.keys import KeyStore
from tokenvault.maintenance import Retention, awaited
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import SealedEvent, TokenStore
from tokenvault.testing.clock import ManualClock

DAY = timedelta(days=1) // timedelta(milliseconds=1)
POLICY = Retention(uses=timedelta(days=200), events=timedelta(days=100))
FREELY = Retention(uses=timedelta(days=200), events=timedelta(days=100), archive=False)


@pytest.fixture(scope="module")
def keys(softhsm_folder: Path) -> Iterator[KeyStore]:
    """Keys that sign."""
    with closing(new_keys(softhsm_folder, tv.Custody.IN_PROCESS)) as opened:
        yield opened


@pytest.fixture
def store(keys: KeyStore, url: str) -> Iterator[TokenStore]:
    with closing(tv.open_token_store(url)) as opened:
        tv.provision(keys, opened)
        yield opened


def all_events(store: TokenStore) -> list[SealedEvent]:
    return [row for stream in sorted(store.streams()) for row in store.events(stream=stream)]


def verified(
    store: TokenStore, keys: KeyStore, archive: Path | None = None, since: str | None = None
) -> tv.AuditReport:
    """Both ways of verifying find nothing; the report by the keys."""
    archives = [] if archive is None else [archive]
    public = tv.verify_audit(store, public_key=tv.audit_public_key(keys), since=since, archive=archives)
    assert public.findings == ()
    report = tv.verify_audit(store, keys=keys, since=since, archive=archives)
    assert (report.findings, report.open_findings) == ((), ())
    assert (report.purged, report.archived) == (public.purged, public.archived)
    return report


def work(
    keys: KeyStore, store: TokenStore, clock: ManualClock, *, rounds: int = 3, uses: int = 40
) -> list[str]:
    """Vaults that come and go, a month apart."""
    tokens = []
    for number in range(rounds):
        with vaults.open_vault(keys, store, clock) as vault:
            tokens.append(issue(vault, card_number(number)).token)
            for count in range(uses):
                vault.detokenize(tokens[-1], use(f"{number}-{count}"))
            vault.suspend(tokens[-1], by=tv.Actor.ISSUER)
            vault.resume(tokens[-1], by=tv.Actor.ISSUER)
        clock.advance(30 * DAY)
    return tokens


def test_the_trail_verifies_before_and_after_with_the_archive_and_without(
    keys: KeyStore, store: TokenStore, clock: ManualClock, tmp_path: Path
) -> None:
    tokens = work(keys, store, clock)
    before = verified(store, keys)
    clock.advance(300 * DAY)
    events = all_events(store)
    archive = tmp_path / "archive.jsonl"
    done = maintenance.purge(keys, store, POLICY, archive=archive, operator="ann", page=30, clock=clock)
    assert done.uses == 120
    assert done.events > 120
    after = verified(store, keys, since=before.anchor())
    assert after.purged == done.events
    whole = verified(store, keys, archive, since=before.anchor())
    assert whole.archived == done.events
    left = [row for row in events if row in all_events(store)]
    assert len(left) == len(events) - done.events
    again = maintenance.purge(keys, store, POLICY, archive=archive, clock=clock)
    assert (again.events, again.uses) == (0, 0)
    with vaults.open_vault(keys, store, clock) as vault:
        vault.detokenize(tokens[0], use("0-0"))
        assert vault.get(tokens[0]).status is tv.TokenStatus.ACTIVE
    verified(store, keys, archive)


def test_a_forged_or_copied_event_of_a_purge_counts_for_nothing(keys: KeyStore, clock: ManualClock) -> None:
    """Who can write to the database and has no key can not purge: neither alone nor by what a purge wrote."""
    with closing(MemoryTokenStore()) as store:
        tv.provision(keys, store)
        work(keys, store, clock)
        clock.advance(300 * DAY)
        events = all_events(store)
        maintenance.purge(keys, store, FREELY, page=20, clock=clock)
        genuine = next(row for row in all_events(store) if is_of_purge(row))
        left = [row for row in all_events(store) if row.stream == genuine.reference]
        assert verified(store, keys).purged
        # Its MAC and its place are of another event: more is named than the vault named.
        for row in [row for row in all_events(store) if is_of_purge(row)]:
            del store._events[row.stream, row.number]
        report = tv.verify_audit(store, keys=keys)
        assert FindingKind.REMOVED in {each.kind for each in report.findings}
        event = Event.parse(genuine)
        assert event.purge is not None
        forged = event._replace(purge=PurgeNote((event.purge.runs[0],))).body()
        store._events[genuine.stream, genuine.number] = genuine._replace(body=forged)
        for given in ({"keys": keys}, {"public_key": tv.audit_public_key(keys)}):
            report = tv.verify_audit(store, **given)
            assert FindingKind.REMOVED in {each.kind for each in report.findings}
            assert report.purged == 0
        assert len(events) > len(left)


def test_an_archive_that_was_edited_is_a_finding_and_no_purge_goes_on_with_it(
    keys: KeyStore, store: TokenStore, clock: ManualClock, tmp_path: Path
) -> None:
    work(keys, store, clock)
    clock.advance(300 * DAY)
    archive = tmp_path / "archive.jsonl"
    maintenance.purge(keys, store, POLICY, archive=archive, page=50, clock=clock)
    lines = archive.read_bytes().splitlines(keepends=True)
    row = event_of(lines[7])
    assert line_of(row) == lines[7]
    lines[7] = line_of(row._replace(body=row.body[:-1] + bytes((row.body[-1] ^ 1,))))
    archive.write_bytes(b"".join(lines))
    report = tv.verify_audit(store, keys=keys, archive=archive)
    assert [(each.kind, each.stream) for each in report.findings] == [(FindingKind.EDITED, row.stream.hex())]
    assert 0 < report.archived < report.purged
    with pytest.raises(tv.IntegrityError):
        maintenance.purge(keys, store, POLICY, archive=archive, clock=clock)
    with pytest.raises(tv.IntegrityError):
        maintenance.archive_events(keys, store, archive, clock=clock)
    lines[7] = line_of(row)
    archive.write_bytes(b"".join(lines)[:-9])  # cut off in the middle of its last line
    assert verified_in_part(store, keys, archive)
    assert maintenance.archive_events(keys, store, archive, clock=clock).unreadable == 0


def verified_in_part(store: TokenStore, keys: KeyStore, archive: Path) -> bool:
    report = tv.verify_audit(store, keys=keys, archive=archive)
    return report.intact and 0 < report.archived < report.purged


def test_an_archive_holds_every_event_once_and_goes_on_where_it_was_left(
    keys: KeyStore, store: TokenStore, clock: ManualClock, tmp_path: Path
) -> None:
    archive = tmp_path / "archive.jsonl"
    done = 0
    for _ in range(3):
        work(keys, store, clock, rounds=1)
        done += maintenance.archive_events(keys, store, archive, clock=clock).done
    assert done == len(all_events(store))
    assert maintenance.archive_events(keys, store, archive, clock=clock).done == 0
    lines = archive.read_bytes().splitlines(keepends=True)
    assert sorted(map(event_of, lines[1:])) == sorted(all_events(store))
    assert archive.stat().st_mode & 0o777 == 0o600
    archive.write_bytes(b"".join(lines[:9]) + lines[9][:20])  # as a kill leaves it
    assert maintenance.archive_events(keys, store, archive, clock=clock).done == done - 8
    assert sorted(map(event_of, archive.read_bytes().splitlines(keepends=True)[1:])) == sorted(
        all_events(store)
    )
    clock.advance(300 * DAY)
    before = tv.verify_audit(store, keys=keys).anchor()
    purged = maintenance.purge(keys, store, POLICY, archive=archive, page=30, clock=clock)
    assert verified(store, keys, archive, since=before).archived == purged.events
    assert len(archive.read_bytes().splitlines()) == done + 1  # a purge adds what is not there yet


def test_a_purge_without_an_archive_is_refused_where_the_policy_wants_one(
    keys: KeyStore, store: TokenStore, clock: ManualClock, tmp_path: Path
) -> None:
    work(keys, store, clock, rounds=1)
    clock.advance(300 * DAY)
    before = all_events(store)
    with pytest.raises(tv.InvalidInputError) as refused:
        maintenance.purge(keys, store, POLICY, clock=clock)
    assert refused.value.code == "ARCHIVE_MISSING"
    (tmp_path / "other.jsonl").write_text("not an archive\n")
    for path in (tmp_path, tmp_path / "other.jsonl", tmp_path / "none" / "archive.jsonl"):
        with pytest.raises(tv.InvalidInputError):
            maintenance.purge(keys, store, POLICY, archive=path, clock=clock)
    assert (tmp_path / "other.jsonl").read_text() == "not an archive\n"
    assert all_events(store) == before
    policy: Any = Retention
    for wrong in (
        {"uses": timedelta(days=89)},
        {"events": timedelta(0)},
        {"tombstones": timedelta(days=40_000)},
    ):
        with pytest.raises(tv.InvalidInputError):
            policy(**wrong)


class StopsAt(Forwarding):
    """A store that is gone from some write on: before that is done, or once it is."""

    def __init__(self, store: TokenStore, write: int, *, done: bool) -> None:
        self._store = store
        self.write_limits = store.write_limits
        self.left = write
        self._done = done

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name not in ("append", "prune", "replace"):
            return getattr(self._store, name)(*args, **kwargs)
        self.left -= 1
        if self.left == 0 and self._done:
            getattr(self._store, name)(*args, **kwargs)
        if self.left <= 0:
            raise tv.TokenStoreError("gone")
        return getattr(self._store, name)(*args, **kwargs)


@pytest.mark.parametrize("done", [False, True])
def test_a_purge_that_stops_at_any_write_leaves_a_trail_that_verifies_and_is_gone_on_with(
    keys: KeyStore, clock: ManualClock, tmp_path: Path, done: bool
) -> None:
    with closing(MemoryTokenStore()) as store:
        tv.provision(keys, store)
        work(keys, store, clock, rounds=2, uses=12)
        clock.advance(300 * DAY)
        anchor = verified(store, keys).anchor()
        count = len(all_events(store))
        archive = tmp_path / "archive.jsonl"
        stopped = 0
        for write in range(1, 12):
            broken = StopsAt(store, write, done=done)
            try:
                maintenance.purge(keys, broken, POLICY, archive=archive, page=4, clock=clock)
            except tv.TokenStoreError:
                stopped += 1
            clock.advance(1)
            report = verified(store, keys, archive, since=anchor)
            assert report.archived == report.purged
            assert report.events + report.purged >= count
            assert verified(store, keys, since=anchor).purged == report.purged
        assert stopped > 3
        maintenance.purge(keys, store, POLICY, archive=archive, page=4, clock=clock)
        assert not [row for row in all_events(store) if Event.parse(row).action is Action.DETOKENIZE]
        assert len(archive.read_bytes().splitlines()) == verified(store, keys, archive).purged + 1


def purge_until_killed(address: str, url: str, archive: str, now_ms: int) -> None:
    with closing(tv.open_key_store(address)) as keys, closing(tv.open_token_store(url)) as store:
        maintenance.purge(keys, store, POLICY, archive=archive, page=3, clock=ManualClock(now_ms))


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_purge_is_killed_again_and_again_and_gone_on_with(
    request: pytest.FixtureRequest, softhsm_uri: str, clock: ManualClock, tmp_path: Path, database: str
) -> None:
    url = f"sqlite:///{tmp_path}/v.db"
    if database == "postgres":
        url = str(request.getfixturevalue("postgres_url"))
    archive = tmp_path / "archive.jsonl"
    with closing(tv.open_key_store(softhsm_uri)) as keys, closing(tv.open_token_store(url)) as store:
        tv.provision(keys, store)
        work(keys, store, clock, rounds=3, uses=60)
        clock.advance(300 * DAY)
        anchor = verified(store, keys).anchor()
        killed = purged = 0
        for _ in range(4):
            process = multiprocessing.get_context("spawn").Process(
                target=purge_until_killed, args=(softhsm_uri, url, str(archive), clock.now_ms())
            )
            process.start()
            until = time.monotonic() + 60
            before = sum(map(len, (store.events(stream=stream) for stream in store.streams())))
            while time.monotonic() < until and process.is_alive():
                now = sum(map(len, (store.events(stream=stream) for stream in store.streams())))
                if now < before - 10:
                    break
                time.sleep(0.002)
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            process.join(60)
            clock.advance(1)
            report = verified(store, keys, archive, since=anchor)
            assert report.archived == report.purged >= purged
            purged = report.purged
        assert killed > 0
        maintenance.purge(keys, store, POLICY, archive=archive, clock=clock)
        assert not [row for row in all_events(store) if Event.parse(row).action is Action.DETOKENIZE]
        report = verified(store, keys, archive, since=anchor)
        assert report.archived == report.purged >= purged


class PurgesBefore(Forwarding):
    """A store of short pages, from which a purge takes events out before some page of a verification is read."""

    def __init__(self, store: TokenStore, page: int, purge: Callable[[], object]) -> None:
        self._store = store
        self.write_limits = store.write_limits
        self.left = page
        self._purge = purge

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "events":
            kwargs["limit"] = min(kwargs.get("limit", 7), 7)
            self.left -= 1
            if self.left == 0:
                self._purge()
        return getattr(self._store, name)(*args, **kwargs)


@pytest.mark.parametrize("by_keys", [True, False])
def test_a_purge_between_any_two_pages_of_a_verification_is_no_finding(
    keys: KeyStore, clock: ManualClock, by_keys: bool
) -> None:
    given: Any = {"keys": keys} if by_keys else {"public_key": tv.audit_public_key(keys)}
    began = 0
    for page in range(1, 13):
        with closing(MemoryTokenStore()) as store:
            tv.provision(keys, store)
            own = ManualClock(clock.now_ms())
            often = tv.Domain(limits=(tv.Limit(uses=99),))
            for _ in range(2):
                with vaults.open_vault(keys, store, own) as vault:
                    token = issue(vault, domain=often).token
                    for number in range(12):
                        vault.detokenize(token, use(number))
            anchor = tv.verify_audit(store, **given).anchor()
            own.advance(400 * DAY)
            broken = PurgesBefore(
                store, page, partial(maintenance.purge, keys, store, FREELY, page=9, clock=own)
            )
            report = tv.verify_audit(broken, since=anchor, **given)
            assert (report.findings, report.open_findings) == ((), ())
            began += broken.left <= 0
            after = tv.verify_audit(store, since=anchor, **given)
            for name, entry in report.anchor_entries.items():  # each root was found all the same
                assert after.anchor_entries[name].size > entry.size or after.anchor_entries[name] == entry
    assert began > 6


def test_vaults_go_on_beside_a_purge_and_the_trail_verifies_all_the_time(
    keys: KeyStore, store: TokenStore, clock: ManualClock, tmp_path: Path
) -> None:
    work(keys, store, clock, rounds=3, uses=60)
    clock.advance(300 * DAY)
    anchor = verified(store, keys).anchor()
    stop = threading.Event()
    reports: list[tv.AuditReport] = []
    with vaults.open_vault(keys, store, clock) as vault:

        def use_it(number: int) -> None:
            token = issue(vault, card_number(1_000 + number)).token
            count = 0
            while not stop.is_set():
                vault.detokenize(token, use(f"live-{number}-{count}"))
                count += 1

        def verify() -> None:
            while not stop.is_set():
                reports.append(tv.verify_audit(store, keys=keys, since=anchor))
                reports.append(tv.verify_audit(store, public_key=tv.audit_public_key(keys), since=anchor))

        threads = [threading.Thread(target=use_it, args=(n,)) for n in range(2)]
        threads.append(threading.Thread(target=verify))
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        archive = tmp_path / "archive.jsonl"
        done = maintenance.purge(keys, store, POLICY, archive=archive, page=5, clock=clock)
        time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join()
    assert [report.findings for report in reports] == [()] * len(reports)
    assert len(reports) > 1
    assert done.uses == 180
    assert verified(store, keys, archive, since=anchor).archived == done.events


def test_an_export_of_what_a_purge_left_has_no_gaps_and_goes_on(
    keys: KeyStore, store: TokenStore, clock: ManualClock
) -> None:
    token = work(keys, store, clock)[0]
    before = [json.loads(line) for line in tv.export_audit(store, keys=keys)]
    clock.advance(120 * DAY)
    only_events = Retention(events=timedelta(days=100), archive=False)
    done = maintenance.purge(keys, store, only_events, page=20, clock=clock)
    lines = list(tv.export_audit(store, keys=keys))
    assert done.uses == 0 < done.events
    left = {(each["stream"], each["number"]) for each in map(json.loads, lines)}
    assert {(row.stream.hex(), row.number) for row in all_events(store)} == left
    assert len({(each["stream"], each["number"]) for each in before} - left) == done.events
    streams = json.loads(lines[-1].position)["streams"]
    assert [place[3] for place in streams.values()] == [[]] * len(streams)  # no gaps to look for again
    with vaults.open_vault(keys, store, clock) as vault:
        vault.detokenize(token, use("new"))
    after = [json.loads(line) for line in tv.export_audit(store, keys=keys, after=lines[-1].position)]
    assert [each["transaction_id"] for each in after if each["action"] == "DETOKENIZE"] == ["tx-new"]


def test_a_use_stays_with_all_that_followed_it_until_the_last_is_past_its_time(
    keys: KeyStore, store: TokenStore, clock: ManualClock
) -> None:
    """A refund months later keeps its purchase and the refunds before: nothing is refunded twice."""
    with vaults.open_vault(keys, store, clock) as vault:
        token, other = issue(vault).token, issue(vault).token
        vault.detokenize(token, use("kept", amount=tv.Money(1_000, "EUR")))
        vault.detokenize(other, use("gone", amount=tv.Money(1_000, "EUR")))
        vault.detokenize(token, refund("r1", "kept", 600))
        clock.advance(150 * DAY)
        vault.detokenize(token, refund("r2", "kept", 300))
        clock.advance(100 * DAY)
        done = maintenance.purge(keys, store, FREELY, clock=clock)
        assert done.uses == 1
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, refund("r3", "kept", 200))
        vault.detokenize(token, refund("r1", "kept", 600))
        vault.detokenize(token, refund("r4", "kept", 100))
        vault.detokenize(token, use("kept", amount=tv.Money(1_000, "EUR")))  # a retry
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(other, refund("r5", "gone", 1))
        told = [event.transaction_id for event in vault.history(token) if event.kind is not None]
        assert told == [f"tx-{name}" for name in ("kept", "r1", "r2", "r3", "r1", "r4", "kept")]
        clock.advance(250 * DAY)
        maintenance.purge(keys, store, FREELY, clock=clock)
        assert [event.action for event in vault.history(token) if event.kind is not None] == []
    verified(store, keys)


def refund(name: str, original: str, amount: int) -> tv.Transaction:
    return use(name, kind=tv.Kind.REFUND, original=f"tx-{original}", amount=tv.Money(amount, "EUR"))


def test_limits_count_on_after_the_uses_are_gone(
    keys: KeyStore, store: TokenStore, clock: ManualClock
) -> None:
    with vaults.open_vault(keys, store, clock) as vault:
        token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=2),))).token
        vault.detokenize(token, use("first"))
        clock.advance(250 * DAY)
        assert maintenance.purge(keys, store, FREELY, clock=clock).uses == 1
        vault.detokenize(token, use("second"))
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use("third"))
    verified(store, keys)


def test_tombstones_past_their_time_go_and_those_that_are_needed_stay(
    keys: KeyStore, store: TokenStore, clock: ManualClock
) -> None:
    once = tv.Domain(limits=(tv.Limit(uses=1),))
    with vaults.open_vault(keys, store, clock) as vault:
        plain = issue(vault, card_number(1)).token
        counted = issue(vault, card_number(2), program="card-on-file", domain=once).token
        vault.detokenize(counted, use("c", channel=tv.Channel.ECOMMERCE))
        drawn = issue(vault, card_number(3), domain=once).token
        vault.detokenize(drawn, use("d"))
        source = issue(vault, card_number(4)).token
        child = vault.issue_from(source, requestor=vaults.SHOP, program="one-time").token
        living = issue(vault, card_number(5)).token
        for token in (plain, counted, drawn, source):
            vault.delete(token)
        policy = Retention(tombstones=timedelta(days=100), random_programs=frozenset({"one-time"}))
        assert maintenance.purge(keys, store, policy, clock=clock).tombstones == 0
        clock.advance(101 * DAY)
        before = verified(store, keys).anchor()
        done = maintenance.purge(keys, store, policy, operator="ann", clock=clock)
        assert (done.tombstones, done.unreadable) == (2, 0)
        for token in (plain, drawn):
            with pytest.raises(tv.TokenNotFoundError):
                vault.get(token)
        assert [info.token for info in vault.tokens_from(source)] == [child]
        assert vault.get(counted).status is tv.TokenStatus.DELETED
        assert vault.get(living).status is tv.TokenStatus.ACTIVE
        again = issue(vault, card_number(2), program="card-on-file", domain=once).token
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(again, use("c2", channel=tv.Channel.ECOMMERCE))
        assert maintenance.purge(keys, store, policy, clock=clock).tombstones == 0
    verified(store, keys, since=before)
    clock.advance(400 * DAY)
    maintenance.purge(keys, store, FREELY, clock=clock)
    verified(store, keys, since=before)


def test_a_record_that_somebody_deleted_is_found_after_its_events_are_gone(
    keys: KeyStore, clock: ManualClock
) -> None:
    """What a purge leaves of events tells which records there have to be, and of which revision."""
    with closing(MemoryTokenStore()) as store:
        tv.provision(keys, store)
        with vaults.open_vault(keys, store, clock) as vault:
            often = tv.Domain(limits=(tv.Limit(uses=9),))
            first, second = (issue(vault, card_number(n), domain=often).token for n in (1, 2))
            older = store._records[second]
            vault.detokenize(second, use("x"))
        clock.advance(400 * DAY)
        assert maintenance.purge(keys, store, FREELY, clock=clock).events > 2
        verified(store, keys)
        gone = store._records[first]
        store.prune([], [(first, gone.revision)])  # by nobody who could sign it
        store._records[second] = older
        for given in ({"keys": keys}, {"public_key": tv.audit_public_key(keys)}):
            found = {(each.kind, each.reference) for each in tv.verify_audit(store, **given).findings}
            assert found == {
                (FindingKind.RECORD_REMOVED, gone.reference.hex()),
                (FindingKind.REVISION_FELL, older.reference.hex()),
            }


def test_a_stream_that_a_purge_left_can_not_be_dropped_nor_lose_its_last_checkpoint(
    keys: KeyStore, clock: ManualClock
) -> None:
    with closing(MemoryTokenStore()) as store:
        tv.provision(keys, store)
        work(keys, store, clock, rounds=1)
        clock.advance(400 * DAY)
        (stream,) = store.streams()
        maintenance.purge(keys, store, FREELY, page=20, clock=clock)
        verified(store, keys)
        (last,) = store.events(stream)
        everything = dict(store._events)
        for kept in (False, True):
            store._events = {key: row for key, row in everything.items() if row != last}
            if kept:  # a row of somebody's own keeps the stream in sight
                store._events[stream, 1_000] = last._replace(number=1_000, reference=b"", mac=bytes(16))
            for given in ({"keys": keys}, {"public_key": tv.audit_public_key(keys)}):
                found = tv.verify_audit(store, **given).findings
                assert stream.hex() in [
                    each.stream
                    for each in found
                    if each.kind in (FindingKind.STREAM_DROPPED, FindingKind.TRUNCATED, FindingKind.UNSIGNED)
                ]


def test_both_faces_do_the_same(keys: KeyStore, tmp_path: Path) -> None:
    clock = ManualClock(NOW_MS)
    archive, whole = tmp_path / "archive.jsonl", tmp_path / "whole.jsonl"
    url = f"sqlite:///{tmp_path}/async.db"
    with closing(tv.open_token_store(url)) as store:
        tv.provision(keys, store)
        work(keys, store, clock)
        count = len(all_events(store))
    clock.advance(300 * DAY)

    async def task() -> tuple[maintenance.Archived, maintenance.Purged]:
        awaited_store = tv.open_async_token_store(url)
        archived = await awaited.archive_events(keys, awaited_store, whole, clock=clock)
        done = await awaited.purge(keys, awaited_store, POLICY, archive=archive, page=20, clock=clock)
        await awaited_store.close()
        return archived, done

    archived, done = asyncio.run(task())
    assert archived.done == count
    assert done.events > done.uses > 0
    with closing(tv.open_token_store(url)) as store:
        for file in (archive, whole):
            assert verified(store, keys, file).archived == done.events


def test_batches_that_issue_and_use_tokens_go_whole_and_their_revisions_stay(
    keys: KeyStore, store: TokenStore, clock: ManualClock, tmp_path: Path
) -> None:
    often = tv.Domain(limits=(tv.Limit(uses=9),))
    with vaults.open_vault(keys, store, clock) as vault:
        issued = vault.issue_many(
            [card_number(n) for n in range(30)], requestor=vaults.SHOP, program="one-time", domain=often
        )
        tokens = [each.token for each in issued if isinstance(each, tv.TokenInfo)]
        vault.detokenize_many([(token, use(f"b-{token}")) for token in tokens])
    anchor = verified(store, keys).anchor()
    clock.advance(400 * DAY)
    archive = tmp_path / "archive.jsonl"
    done = maintenance.purge(keys, store, POLICY, archive=archive, clock=clock)
    assert (done.uses, done.events) == (1, 3)
    verified(store, keys, archive, since=anchor)
    with vaults.open_vault(keys, store, clock) as vault:
        for token in tokens[:3]:
            vault.delete(token)
            assert [event.action for event in vault.history(token)] == [Action.DELETE]
        clock.advance(100 * DAY)
        gone = maintenance.purge(
            keys, store, Retention(tombstones=timedelta(days=90), random_programs={"one-time"}), clock=clock
        )
        assert gone.tombstones == 3
    report = verified(store, keys, archive, since=anchor)
    assert report.records == 27


def test_a_stream_that_nothing_else_refers_to_is_missed_by_the_purge_of_it(
    keys: KeyStore, clock: ManualClock
) -> None:
    with closing(MemoryTokenStore()) as store:
        tv.provision(keys, store)
        for _ in range(CROSS_REFERENCES_MAX + 2):
            with vaults.open_vault(keys, store, clock) as vault:
                issue(vault)
            clock.advance(1_000)
        clock.advance(400 * DAY)
        maintenance.purge(keys, store, FREELY, clock=clock)
        verified(store, keys)
        oldest = min(store.streams())
        store._events = {key: row for key, row in store._events.items() if key[0] != oldest}
        for given in ({"keys": keys}, {"public_key": tv.audit_public_key(keys)}):
            found = tv.verify_audit(store, **given).findings
            assert [each.stream for each in found if each.kind is FindingKind.STREAM_DROPPED] == [
                oldest.hex()
            ]
