"""What a policy lets go: events, uses and tombstones, and a trail that verifies all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

import tokenvault as tv
from tests import vaults
from tests.conftest import new_keys
from tests.strategies import NOW_MS
from tests.vault_workers import card_number
from tests.vaults import issue, use
from tokenvault import maintenance
from tokenvault.keys import KeyStore
from tokenvault.maintenance import Retention
from tokenvault.stores.port import SealedEvent, TokenStore
from tokenvault.testing.clock import ManualClock

DAY = timedelta(days=1) // timedelta(milliseconds=1)
POLICY = Retention(uses=timedelta(days=200), events=timedelta(days=100))


@pytest.fixture(scope="module")
def keys(softhsm_folder: Path) -> Iterator[KeyStore]:
    """Keys that sign."""
    with closing(new_keys(softhsm_folder, tv.Custody.IN_PROCESS)) as opened:
        yield opened


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/vault.db"


@pytest.fixture
def store(keys: KeyStore, url: str) -> Iterator[TokenStore]:
    with closing(tv.open_token_store(url)) as opened:
        tv.provision(keys, opened)
        yield opened


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_MS)


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
