"""A vault is killed, and someone edits the open end of its stream: before the next vault opens, and after."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

import tokenvault as tv
from tests import vaults
from tests.vaults import issue, use
from tokenvault import FindingKind, Grade
from tokenvault.audit import open_ends
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.sqlite.store import SqliteTokenStore

ONCE = tv.Domain(limits=(tv.Limit(uses=1),))


class Killed:
    """A database whose only vault was killed after a single-use token was used."""

    def __init__(self, keys: KeyStore, path: Path, *, later_events: int) -> None:
        self.keys, self.path = keys, path
        self.store = SqliteTokenStore(str(path))
        tv.provision(keys, self.store)
        vault = self.open()
        self.token = issue(vault, domain=ONCE).token
        self.unused = self._run("SELECT * FROM tokens WHERE token = ?", self.token)[0]
        vault.detokenize(self.token, use(1))
        ((self.use,),) = self._run("SELECT max(number) FROM events")
        for _ in range(later_events):
            issue(vault)
        vault._core = None  # killed: nothing closes its stream
        vault._unclosed.clear()

    def open(self) -> tv.Vault:
        return tv.Vault(self.keys, self.store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS)

    def next_vault(self) -> None:
        with self.open() as vault:
            issue(vault)

    def roll_back(self) -> None:
        """Take the event of the use away, and put the unused record back."""
        self._run(
            "DELETE FROM events WHERE number = ? AND stream = (SELECT min(stream) FROM events)",
            self.use,
        )
        self._run("DELETE FROM tokens WHERE token = ?", self.token)
        self._run(f"INSERT INTO tokens VALUES ({', '.join('?' * len(self.unused))})", *self.unused)

    def verify(self) -> tv.AuditReport:
        return tv.verify_audit(self.store, keys=self.keys)

    def _run(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as shell:
            return shell.execute(sql, values).fetchall()


@pytest.mark.parametrize("before_the_next_opens", [True, False])
def test_an_event_taken_from_within_an_open_tail_is_named(
    local_keys: KeyStore, tmp_path: Path, before_the_next_opens: bool
) -> None:
    killed = Killed(local_keys, tmp_path / "vault.db", later_events=2)
    if not before_the_next_opens:
        killed.next_vault()
    killed.roll_back()
    if before_the_next_opens:
        killed.next_vault()
    found = [(each.kind, each.grade, each.number) for each in killed.verify().open_findings]
    assert found == [(FindingKind.GAP, Grade.OPEN, killed.use)]


def test_the_next_vault_closes_the_end_of_a_killed_one(local_keys: KeyStore, tmp_path: Path) -> None:
    killed = Killed(local_keys, tmp_path / "vault.db", later_events=0)
    killed.next_vault()
    assert killed.verify().findings == ()
    killed.roll_back()
    report = killed.verify()
    assert not report.intact
    assert [(each.kind, each.number) for each in report.findings] == [(FindingKind.TRUNCATED, killed.use)]


@pytest.mark.parametrize("events", [0, 1, 2, 3, 7, 8, 9, 30])
def test_the_last_event_is_found_whatever_the_length_of_the_tail(
    local_keys: KeyStore, tmp_path: Path, events: int
) -> None:
    killed = Killed(local_keys, tmp_path / "vault.db", later_events=events)
    killed.next_vault()
    killed._run(
        "DELETE FROM events WHERE (stream, number) IN"
        " (SELECT stream, max(number) FROM events GROUP BY stream ORDER BY stream LIMIT 1)"
    )
    kinds = {each.kind for each in killed.verify().findings}
    assert FindingKind.TRUNCATED in kinds


class Crash:
    """A database whose vaults were killed all at once, each after a use of a token that no limit counts."""

    def __init__(self, keys: KeyStore, vaults_killed: int) -> None:
        self.keys, self.store = keys, MemoryTokenStore()
        tv.provision(keys, self.store)
        killed = [self.open() for _ in range(vaults_killed)]
        tokens = [issue(vault).token for vault in killed]
        for vault, token in zip(killed, tokens, strict=True):
            for number in range(3):
                vault.detokenize(token, use(number))
        self.running = killed

    def open(self, *, events: int = 1_000) -> tv.Vault:
        policy = tv.CheckpointPolicy(events=events, seconds=86_400)
        return tv.Vault(
            self.keys,
            self.store,
            programs=vaults.PROGRAMS,
            requestors=vaults.REQUESTORS,
            checkpoints=policy,
        )

    def ends(self) -> dict[bytes, int]:
        numbers: dict[bytes, int] = {}
        for stream, number in self.store._events:
            numbers[stream] = max(number, numbers.get(stream, 0))
        return numbers

    def unseen(self, ends: dict[bytes, int]) -> int:
        """How many of these last events can be taken away without a finding."""
        count = 0
        for place in ends.items():
            kept = dict(self.store._events)
            del self.store._events[place]
            report = tv.verify_audit(self.store, keys=self.keys)
            count += report.intact and not report.open_findings
            self.store._events = kept
        return count


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(("killed", "closing"), [(3, 1), (40, 1), (70, 2), (100, 3)])
def test_vaults_that_close_in_turn_name_the_ends_of_all_that_were_killed(
    local_keys: KeyStore, killed: int, closing: int
) -> None:
    crash = Crash(local_keys, killed)
    ends = crash.ends()
    some = dict(list(ends.items())[:: max(1, killed // 20)])
    assert crash.unseen(dict(list(some.items())[:2])) == 2  # until the next vault
    for _ in range(closing):
        with crash.open() as vault:
            issue(vault)
    assert tv.verify_audit(crash.store, keys=local_keys).findings == ()
    assert crash.unseen(some) == 0


@pytest.mark.usefixtures("untraced")
def test_a_vault_that_goes_on_names_the_ends_of_all_that_were_killed(local_keys: KeyStore) -> None:
    crash = Crash(local_keys, 60)
    ends = crash.ends()
    with crash.open(events=1) as vault:
        for _ in range(4):
            issue(vault)
        assert crash.unseen(dict(list(ends.items())[::5])) == 0


def test_the_end_of_a_stream_that_went_on_after_it_was_named_is_named_again(local_keys: KeyStore) -> None:
    crash = Crash(local_keys, 2)
    first, second = crash.running
    with crash.open() as vault:
        issue(vault)
    issue(first)
    issue(second)
    ends = {stream: number for stream, number in crash.ends().items() if number == 6}
    assert len(ends) == 2
    with crash.open() as vault:
        issue(vault)
    assert crash.unseen(ends) == 0


@pytest.mark.usefixtures("untraced")
def test_a_named_end_costs_one_read_and_a_closed_stream_none(local_keys: KeyStore) -> None:
    crash = Crash(local_keys, 5)
    with crash.open() as vault:
        issue(vault)
    with mock.patch.object(crash.store, "events", wraps=crash.store.events) as ask:
        vault = crash.open()
        issue(vault)
        assert ask.call_count == 5
        for _ in range(5):
            issue(vault)
        assert ask.call_count == 5
        vault.close()
    assert ask.call_count == 5 + 3 * 5


def test_a_checkpoint_looks_for_as_many_ends_as_it_names_and_the_next_one_for_the_others(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_ends, "OPEN_ENDS_MAX", 2)
    crash = Crash(local_keys, 5)
    ends = crash.ends()
    with mock.patch.object(crash.store, "events", wraps=crash.store.events) as ask:
        vault = crash.open()
        issue(vault)
        assert {each.kwargs["stream"] for each in ask.call_args_list} == set(sorted(ends)[:2])
        assert crash.unseen(ends) == 3
        vault.close()
    assert crash.unseen(ends) == 1
    with crash.open() as vault:
        issue(vault)
    assert crash.unseen(ends) == 0


def test_until_the_next_vault_what_no_checkpoint_covers_is_counted_by_stream(
    local_keys: KeyStore, tmp_path: Path
) -> None:
    killed = Killed(local_keys, tmp_path / "vault.db", later_events=2)
    assert list(killed.verify().uncovered.values()) == [5]
