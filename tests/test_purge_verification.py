"""What verification makes of a purge: where one happens meanwhile, and where somebody edits what it named or left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import pytest

import tokenvault as tv
from tests import vaults
from tests.conftest import new_keys
from tests.test_purge import DAY, FREELY, PurgesBefore, StopsAt
from tests.vaults import issue, use
from tokenvault import maintenance
from tokenvault.audit.purge_note import PurgeNote, Run
from tokenvault.audit.verify.purged import Purges
from tokenvault.audit.verify.report import FindingKind
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import SealedEvent, TokenStore
from tokenvault.testing.clock import ManualClock

STREAM = b"s" * 16


@pytest.fixture(scope="module")
def keys(softhsm_folder: Path) -> Iterator[KeyStore]:
    """Keys that sign."""
    with closing(new_keys(softhsm_folder, tv.Custody.IN_PROCESS)) as opened:
        yield opened


@attrs.frozen
class Trail:
    """A stream of 15 events past their time, of which the third and the last stay at a purge."""

    keys: KeyStore
    store: MemoryTokenStore
    clock: ManualClock

    @classmethod
    def made(cls, keys: KeyStore, clock: ManualClock) -> Trail:
        store = MemoryTokenStore()
        tv.provision(keys, store)
        with vaults.open_vault(keys, store, clock) as vault:
            token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=99),))).token
            vault.issue_from(token, requestor=vaults.SHOP, program="one-time")
            for number in range(11):
                vault.detokenize(token, use(number))
        clock.advance(400 * DAY)
        assert len(store.events(stream=min(store.streams()))) == 15
        return cls(keys, store, clock)

    def purge(self, store: TokenStore | None = None, page: int = 5) -> None:
        maintenance.purge(self.keys, store or self.store, FREELY, page=page, clock=self.clock)

    def given(self, by_keys: bool) -> dict[str, Any]:
        return {"keys": self.keys} if by_keys else {"public_key": tv.audit_public_key(self.keys)}

    def found(self, by_keys: bool) -> list[tuple[FindingKind, str | None, int | None, int | None]]:
        report = tv.verify_audit(self.store, **self.given(by_keys))
        return [(each.kind, each.stream, each.number, each.last) for each in report.findings]


@pytest.fixture
def trail(keys: KeyStore, clock: ManualClock) -> Trail:
    return Trail.made(keys, clock)


@pytest.mark.parametrize("by_keys", [True, False])
def test_a_purge_between_any_two_pages_keeps_no_root_from_being_found(
    keys: KeyStore, clock: ManualClock, by_keys: bool
) -> None:
    """Though parts of what one of its steps took out were read, and others were not."""
    rebuilt = 0
    for page in range(1, 6):
        trail = Trail.made(keys, ManualClock(clock.now_ms()))
        before = tv.verify_audit(trail.store, **trail.given(by_keys))
        broken = PurgesBefore(trail.store, page, trail.purge)
        report = tv.verify_audit(broken, **trail.given(by_keys))
        assert (report.findings, report.open_findings) == ((), ())
        (stream,) = before.anchor_entries
        assert report.anchor_entries[stream] == before.anchor_entries[stream]
        rebuilt += broken.left <= 0 and 0 < report.purged < 13
    assert rebuilt > 0


@pytest.mark.parametrize("number", [4, 5, 6])
def test_an_event_that_a_purge_named_and_is_there_still_is_what_it_was_then(
    trail: Trail, number: int
) -> None:
    """The purge was killed before it deleted them; without keys, the hashes that it noted tell."""
    with pytest.raises(tv.TokenStoreError):
        trail.purge(StopsAt(trail.store, 3, done=False))
    stream = min(trail.store.streams())
    assert len(trail.store.events(stream=stream)) == 15
    assert trail.found(by_keys=False) == []
    row = trail.store._events[stream, number]
    trail.store._events[stream, number] = row._replace(mac=bytes(16))
    assert trail.found(by_keys=False) == []
    trail.store._events[stream, number] = row._replace(body=row.body[:-1] + bytes([row.body[-1] ^ 1]))
    assert trail.found(by_keys=False) == [(FindingKind.EDITED, stream.hex(), 4, 6)]


@pytest.mark.parametrize("by_keys", [True, False])
def test_where_the_last_checkpoint_is_gone_what_a_purge_took_out_before_it_counts_as_purged(
    trail: Trail, by_keys: bool
) -> None:
    trail.purge()
    stream = min(trail.store.streams())
    assert [row.number for row in trail.store.events(stream=stream)] == [3, 15]
    purged = tv.verify_audit(trail.store, **trail.given(by_keys)).purged
    del trail.store._events[stream, 15]
    report = tv.verify_audit(trail.store, **trail.given(by_keys))
    lost = [(FindingKind.TRUNCATED, stream.hex(), 15, None)]
    unsigned = [] if by_keys else [(FindingKind.UNSIGNED, stream.hex(), None, None)]
    assert trail.found(by_keys) == 2 * lost + unsigned
    assert report.purged == purged == 13


def removed(store: MemoryTokenStore, row: SealedEvent) -> None:
    del store._events[row[:2]]


def malformed(store: MemoryTokenStore, row: SealedEvent) -> None:
    store._events[row[:2]] = row._replace(mac=bytes(15))


def edited(store: MemoryTokenStore, row: SealedEvent) -> None:
    store._events[row[:2]] = row._replace(body=row.body[:-1] + bytes([row.body[-1] ^ 1]))


@pytest.mark.parametrize("edit", [removed, malformed, edited])
def test_without_keys_a_purge_counts_only_if_every_event_before_its_own_is_there(
    trail: Trail, edit: Callable[[MemoryTokenStore, SealedEvent], None]
) -> None:
    trail.purge()
    own = max(trail.store.streams())
    first = trail.store.events(stream=own)[0]
    assert tv.verify_audit(trail.store, **trail.given(False)).purged == 13
    edit(trail.store, first)
    report = tv.verify_audit(trail.store, **trail.given(False))
    assert report.purged == 0
    gone = {
        (f.number, f.last) for f in report.findings if f.kind is FindingKind.REMOVED and f.stream != own.hex()
    }
    assert gone >= {(1, 2), (4, 14)}


# How a stream is read whose events are gone in part: to the first that is missing.

ROOTS = (b"r" * 32,)


def run(first: int, last: int, *, roots: bool = True) -> Run:
    return Run(first, last, ROOTS if roots else ())


@pytest.mark.parametrize(
    ("rows", "runs", "walked"),
    [
        ([1, 2, 5], [run(3, 4)], [1, 2, (3, 4), 5]),
        ([4], [run(1, 1), run(2, 3)], [(1, 1), (2, 3), 4]),
        ([1, 2, 3, 4, 5], [run(2, 3)], [1, (2, 3), 4, 5]),
        ([1, 2, 5], [run(4, 4)], [1, 2]),
        ([1, 2, 4], [], [1, 2]),
        ([2, 3], [], []),
        ([1, 5], [run(3, 4)], [1]),
        ([1, 2, 5], [run(3, 4, roots=False)], [1, 2]),
        ([1, 2, -3, 4], [], [1, 2]),
        ([-1, 2, 3], [], []),
        ([1, 2], [run(3, 4), run(5, 6)], [1, 2, (3, 4), (5, 6)]),
        ([1, 2], [run(3, 4), run(6, 7)], [1, 2, (3, 4)]),
        ([1, 2], [run(4, 5)], [1, 2]),
        ([1, 2], [run(3, 4, roots=False)], [1, 2]),
        ([1, 2], [run(3, 4), run(5, 6, roots=False), run(7, 7)], [1, 2, (3, 4)]),
        ([], [run(1, 3)], [(1, 3)]),
        ([], [], []),
    ],
)
def test_a_stream_is_walked_to_the_first_number_of_which_there_is_neither_an_event_nor_a_hash(
    local_keys: KeyStore, rows: list[int], runs: list[Run], walked: list[object]
) -> None:
    found = [item[:2] if isinstance(item, Run) else item.number for item in walking(local_keys, rows, runs)]
    assert found == walked


def walking(
    keys: KeyStore, rows: list[int], runs: list[Run], store: MemoryTokenStore | None = None
) -> Iterator[Run | SealedEvent]:
    """A walk through rows of these numbers, where those below 0 are malformed, and runs."""
    store = store or MemoryTokenStore()
    for number in rows:
        at = abs(number)
        store._events[STREAM, at] = SealedEvent(STREAM, at, b"", b"", bytes(16 if number > 0 else 15))
    purged = Purges(store, TrustedKeys(keys, None), lambda _: {}).of(STREAM)
    for each in runs:
        purged.add(PurgeNote((each,)))
    return purged.walk()


@pytest.mark.parametrize(("rows", "behind"), [([1, 2, 4], 0), ([2, 3], 0), ([1, 2, -3, 4], 2)])
def test_nothing_is_read_behind_the_first_number_that_is_missing(
    local_keys: KeyStore, rows: list[int], behind: int
) -> None:
    store = MemoryTokenStore()
    with mock.patch.object(store, "events", wraps=store.events) as ask:
        list(walking(local_keys, rows, [], store))
    assert max(each.kwargs["after"] for each in ask.call_args_list) == behind
