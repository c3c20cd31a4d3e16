"""`capacity`: what each program has, how often a guess hits, and when it is full at the rate of late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

import tokenvault as tv
from tests.strategies import NOW_MS
from tests.vaults import PROGRAMS, SHOP, VISA, issue, open_vault
from tokenvault.keys import KeyStore
from tokenvault.model import checks
from tokenvault.stores import TokenStore
from tokenvault.stores.port import SealedRecord
from tokenvault.testing import ManualClock
from tokenvault.vault import capacity as module

DAY_MS = 86_400_000


@pytest.fixture
def records(local_keys: KeyStore) -> Iterator[TokenStore]:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        yield store


def of(vault: tv.Vault, program: str = "one-time", **arguments: int) -> tv.Capacity:
    return next(each for each in vault.capacity(**arguments) if each.program == program)


def test_every_program_is_told_in_its_order_also_one_without_tokens(vault: tv.Vault) -> None:
    token = issue(vault).token
    issue(vault)
    vault.delete(token)
    found = vault.capacity()
    assert [each.program for each in found] == [program.name for program in PROGRAMS]
    assert [each.issued for each in found] == [2, 0, 0, 0, 0]
    assert found[0].density == 2 / found[0].space
    assert (found[1].density, found[1].per_day, found[1].expected_at, found[1].full_at) == (0, 0, None, None)


def test_a_rate_of_few_tokens_is_exact_and_gives_the_day_when_it_is_full(
    local_keys: KeyStore, records: TokenStore
) -> None:
    clock = ManualClock(NOW_MS)
    with open_vault(local_keys, records, clock) as vault:
        issue(vault, program="tiny")  # before the recent time
        clock.advance(20 * DAY_MS)
        for _ in range(3):
            issue(vault, program="tiny")
        found = of(vault, "tiny", recent_days=6)
        assert (found.issued, found.per_day) == (4, 0.5)
        now = checks.utc(clock.now_ms())
        assert found.expected_at == now + timedelta(days=(found.expected - 4) / 0.5)
        assert found.full_at == now + timedelta(days=(found.space - 4) / 0.5)
        issue(vault, program="tiny")
        assert of(vault, "tiny").expected_at is None


@pytest.mark.parametrize(
    ("bursts", "recent", "off"),
    [
        ([1_600] * 40, 48_000, 1 / 3),
        ([2_400] + [0] * 10 + [160] * 32, 4_800, 1 / 3),
        ([1_600] + [0] * 31 + [1_600], 1_600, 1),
        ([6_000], 6_000, 0),
        ([6_000] + [0] * 5, 6_000, 0),
    ],
    ids=["steady", "slow after many", "again", "now", "before"],
)
def test_a_rate_of_many_tokens_is_estimated_from_a_bounded_number_of_records(
    local_keys: KeyStore,
    records: TokenStore,
    bursts: list[int],
    recent: int,
    off: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within a third where they come in bursts all the time, twice in one alone; exact where all are recent."""
    clock = ManualClock(NOW_MS)
    read = 0
    with open_vault(local_keys, records, clock) as vault:
        for burst in bursts:
            for _ in range(8):  # over the day
                vault.issue_many([VISA] * (burst // 8), requestor=SHOP, program="one-time")
                clock.advance(DAY_MS // 8)
        listing = records.list_tokens

        def counted(*arguments: Any, **named: Any) -> list[SealedRecord]:
            nonlocal read
            rows = listing(*arguments, **named)
            read += len(rows)
            return rows

        monkeypatch.setattr(records, "list_tokens", counted)
        found = of(vault)
    assert found.issued == sum(bursts)
    assert read <= 3 * module.SAMPLE if off else read == 1
    assert found.per_day == pytest.approx(recent / 30, rel=off)


def test_the_recent_time_is_checked(local_keys: KeyStore, records: TokenStore) -> None:
    with open_vault(local_keys, records) as vault:
        for wrong in (0, module.RECENT_DAYS_MAX + 1, 1.5, "1"):
            with pytest.raises(tv.InvalidInputError):
                vault.capacity(recent_days=wrong)  # type: ignore[arg-type] # the point of the test
