"""`capacity`: what each program has, how often a guess hits, and when it is full at the rate of late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

import tokenvault as tv
from tests.strategies import NOW_MS
from tests.test_idempotency import Meanwhile
from tests.vaults import PROGRAMS, SHOP, VISA, issue, open_vault
from tokenvault.keys import KeyStore
from tokenvault.model import checks
from tokenvault.model.pan import luhn_valid
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


def test_a_group_whose_last_token_is_deleted_while_it_is_looked_at_has_no_recent_ones(
    local_keys: KeyStore, records: TokenStore
) -> None:
    """It was counted before, and stays counted: a deleted token is never issued again."""
    with open_vault(local_keys, records) as other:
        token = issue(other).token
        with open_vault(local_keys, Meanwhile(records, "list_tokens", lambda: other.delete(token))) as vault:
            found = of(vault)
            assert (found.issued, found.per_day, found.expected_at, found.full_at) == (1, 0, None, None)
            assert (of(vault).issued, of(vault).per_day) == (1, 1 / 30)


def luhn_numbers(prefix: str, length: int, ending: str = "") -> int:
    """How many Luhn-valid numbers of a length begin and end so: by going through all of them."""
    free = length - len(prefix) - len(ending)
    return sum(luhn_valid(f"{prefix}{number:0{free}}{ending}") for number in range(10**free))


@pytest.mark.parametrize("luhn", [True, False])
def test_a_program_of_the_shortest_tokens_is_full_with_the_last_of_them(
    local_keys: KeyStore, records: TokenStore, luhn: bool
) -> None:
    """13 digits, two of them free: ten that pass the Luhn check, and ninety that do not, counted one by one."""
    there_are = luhn_numbers("99991600000", 13)
    space = there_are if luhn else 100 - there_are
    assert space == (10 if luhn else 90)
    program = tv.TokenProgram(
        "full", format=tv.TokenFormat(bin="99991600000", length=13, luhn=luhn),
        expected_tokens=space // 2, accept_density=True,
    )  # fmt: skip
    shop = tv.TokenRequestor(SHOP, programs={"full"})
    with open_vault(
        local_keys, records, ManualClock(NOW_MS), programs=(program,), requestors=(shop,)
    ) as vault:
        tokens = {issue(vault, program="full").token for _ in range(space - 1)}
        (nearly,) = vault.capacity()
        assert (nearly.issued, nearly.space, nearly.density) == (space - 1, space, (space - 1) / space)
        assert nearly.full_at == checks.utc(NOW_MS + int(1 / ((space - 1) / 30) * DAY_MS))
        tokens.add(issue(vault, program="full").token)
        (full,) = vault.capacity()
        assert (full.issued, full.density, full.expected_at, full.full_at) == (space, 1.0, None, None)
        with pytest.raises(tv.TokenSpaceExhaustedError):
            issue(vault, program="full")
    assert len(tokens) == space
    assert {luhn_valid(token) for token in tokens} == {luhn}


@pytest.mark.parametrize(
    ("form", "space"),
    [
        (tv.TokenFormat(bin="999916"), 10**9),  # 16 digits, as most PANs have: 9 free ones and a check digit
        (tv.TokenFormat(bin="999916", length=13), 10**6),
        (tv.TokenFormat(bin="999916", length=13, keep_last4=True), 10**2 * 10**4),
        (tv.TokenFormat(bin="99991600", length=13, keep_last4=True, luhn=False), 9 * 10**4),
        (tv.TokenFormat(bin="9", length=19), 10**17),
        (tv.TokenFormat(bin="9", length=19, luhn=False), 9 * 10**17),
        (tv.TokenFormat(bin="9", length=19, keep_last4=True), 10**13 * 10**4),
        (tv.TokenFormat(bin="999916000000", length=19), 10**6),
    ],
)
def test_the_space_of_a_format_is_exact_at_the_shortest_and_at_the_longest_tokens(
    local_keys: KeyStore, records: TokenStore, form: tv.TokenFormat, space: int
) -> None:
    """A guess hits at most one in a thousand when all that are expected are issued; one token more is refused."""
    most = space // 1_000
    program = tv.TokenProgram("p", format=form, expected_tokens=most)
    shop = tv.TokenRequestor(SHOP, programs={"p"})
    with open_vault(local_keys, records, programs=(program,), requestors=(shop,)) as vault:
        (found,) = vault.capacity()
        assert (found.space, found.density, found.expected) == (space, 0.0, most)
        issue(vault, program="p")
        (found,) = vault.capacity()
        assert found.density == 1 / space
    with pytest.raises(tv.InvalidInputError) as refused:
        tv.TokenProgram("p", format=form, expected_tokens=most + 1)
    assert refused.value.code == "PROGRAM_TOO_DENSE"
    assert f"the format has {space} tokens, but {most + 1} expected" in str(refused.value)


@pytest.mark.parametrize(
    ("bin_digits", "length", "keep_last4"),
    [
        ("999916000000", 13, False),
        ("99991600000", 13, False),
        ("999916000", 13, False),
        ("99991600", 13, True),
        ("9999160", 13, True),
    ],
)
@pytest.mark.parametrize("luhn", [True, False])
def test_the_space_of_the_shortest_formats_is_what_a_count_of_all_numbers_gives(
    bin_digits: str, length: int, keep_last4: bool, luhn: bool
) -> None:
    """Whatever the length of the PAN."""
    form = tv.TokenFormat(bin=bin_digits, length=length, keep_last4=keep_last4, luhn=luhn)
    valid = luhn_numbers(bin_digits, length)
    there_are = valid if luhn else 10 ** (length - len(bin_digits)) - valid
    assert {form.capacity(pan_length) for pan_length in (13, 16, 19)} == {there_are}


def test_the_recent_time_is_checked(local_keys: KeyStore, records: TokenStore) -> None:
    with open_vault(local_keys, records) as vault:
        for wrong in (0, module.RECENT_DAYS_MAX + 1, 1.5, "1"):
            with pytest.raises(tv.InvalidInputError):
                vault.capacity(recent_days=wrong)  # type: ignore[arg-type] # the point of the test
