"""Looking for tokens, on every store and both faces, against a model that looks at each: filters, pages, counts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests.faces import provision
from tests.strategies import NOW_MS
from tests.vault_workers import card_number
from tests.vaults import ISSUER_ONLY, SHOP, STRANGER, issue, open_vault
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.testing.clock import ManualClock
from tokenvault.vault import core
from tokenvault.vault import search as searching

Status = tv.TokenStatus
TOKENS = 36
PROGRAMS = ("one-time", "card-on-file")
CUSTOMERS = ("customer-1", "customer-2", "")
CARDS = tuple(card_number(number) for number in (1, 2, 3))
FILTERS: dict[str, Sequence[Any]] = {
    "requestor": (None, SHOP, ISSUER_ONLY, STRANGER),
    "program": (None, *PROGRAMS, "online"),
    "status": (None, Status.ACTIVE, Status.SUSPENDED, Status.INACTIVE, Status.DELETED),
    "customer": (None, "customer-1", "customer-2", "customer"),
    "last4": (None, *{card[-4:] for card in CARDS}, "0000"),
}


def filled(vault: tv.Vault, clock: ManualClock) -> list[tv.TokenInfo]:
    """Tokens of all kinds, some issued in one millisecond; as they are, in the order of issue."""
    source = random.Random(5)
    for number in range(TOKENS):
        clock.advance(number % 3)
        token = issue(
            vault,
            source.choice(CARDS),
            requestor=source.choice((SHOP, ISSUER_ONLY)),
            program="one-time",
            customer=source.choice(CUSTOMERS) or None,
            active=number % 5 != 0,
        ).token
        if number % 4 == 1 and number % 5:
            vault.suspend(token, by=tv.Actor.ISSUER)
        if number % 7 == 1:
            vault.delete(token)
    for requestor, card in product((SHOP, ISSUER_ONLY), CARDS):
        issue(vault, card, requestor=requestor, program="card-on-file", customer="customer-1")
    infos = vault.search(limit=1_000)
    assert len(infos) == TOKENS + 6
    return [vault.get(info.token) for info in infos]


def expected(infos: Sequence[tv.TokenInfo], wanted: dict[str, Any], owners: dict[str, str]) -> list[str]:
    """The tokens that have all that is wanted, in the order that is promised."""
    by_token = wanted["customer"] is not None or wanted["last4"] is not None

    def fits(info: tv.TokenInfo) -> bool:
        return all(
            value is None or value == (owners[info.token] if name == "requestor" else getattr(info, name))
            for name, value in wanted.items()
        )

    found = [info for info in infos if fits(info)]
    found.sort(key=lambda info: info.token if by_token else (info.created, info.token))
    return [info.token for info in found]


def pages(vault: tv.Vault, limit: int, **wanted: Any) -> list[str]:
    """All pages, one after the other, by token; and an empty one behind the last."""
    found: list[str] = []
    while page := vault.search(after=found[-1] if found else "", limit=limit, **wanted):
        assert len(page) <= limit
        found += [info.token for info in page]
    return found


def every_filter() -> list[dict[str, Any]]:
    return [dict(zip(FILTERS, values, strict=True)) for values in product(*FILTERS.values())]


@pytest.fixture(scope="module")
def scene(local_keys: KeyStore) -> Iterator[tuple[tv.Vault, list[tv.TokenInfo], dict[str, str]]]:
    """A vault over a store in memory, its tokens, and whom each was issued to."""
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store, find_by_last4=True)
        clock = ManualClock(NOW_MS)
        with open_vault(local_keys, store, clock) as vault:
            infos = filled(vault, clock)
            yield vault, infos, {info.token: info.requestor for info in infos}


Scene = tuple[tv.Vault, list[tv.TokenInfo], dict[str, str]]


@given(data=st.data())
def test_any_filters_find_what_a_look_at_each_token_does_in_pages_of_any_size(
    scene: Scene, data: st.DataObject
) -> None:
    vault, infos, owners = scene
    wanted = {name: data.draw(st.sampled_from(values), name) for name, values in FILTERS.items()}
    limit = data.draw(st.integers(1, 12), "limit")
    assert pages(vault, limit, **wanted) == expected(infos, wanted, owners)


def test_on_every_store_filters_find_what_a_look_at_each_token_does(
    local_vault: tv.Vault, clock: ManualClock
) -> None:
    infos = filled(local_vault, clock)
    owners = {info.token: info.requestor for info in infos}
    for wanted in random.Random(3).sample(every_filter(), 60):
        found = local_vault.search(limit=1_000, **wanted)
        assert [info.token for info in found] == expected(infos, wanted, owners), wanted
        by_token = {info.token: info for info in infos}
        assert all(info == by_token[info.token] for info in found)
    for wanted in ({}, {"customer": "customer-1"}, {"last4": CARDS[0][-4:]}, {"status": Status.SUSPENDED}):
        model = {**dict.fromkeys(FILTERS), **wanted}
        assert pages(local_vault, 5, **wanted) == expected(infos, model, owners)


def test_a_count_is_the_number_of_tokens_that_a_search_finds(
    local_vault: tv.Vault, clock: ManualClock
) -> None:
    infos = filled(local_vault, clock)
    owners = {info.token: info.requestor for info in infos}
    names = ("requestor", "program", "status")
    for values in product(*(FILTERS[name] for name in names)):
        wanted = dict(zip(names, values, strict=True))
        model = {**dict.fromkeys(FILTERS), **wanted}
        assert local_vault.count(**wanted) == len(expected(infos, model, owners)), wanted


def test_pages_visit_once_what_was_there_while_tokens_come_and_go(quick: tv.Vault) -> None:
    before = {issue(quick, customer="customer-1").token for _ in range(20)}
    filters: list[dict[str, Any]] = [{}, {"customer": "customer-1"}, {"last4": "1111"}]
    for wanted in filters:
        found: list[str] = []
        while page := quick.search(after=found[-1] if found else "", limit=3, **wanted):
            found += [info.token for info in page]
            issue(quick, customer="customer-2") if len(found) < 15 else None
            quick.suspend(page[-1].token, by=tv.Actor.ISSUER)
        assert len(found) == len(set(found))
        assert before <= set(found)


@pytest.fixture
def quick(local_keys: KeyStore, clock: ManualClock) -> Iterator[tv.Vault]:
    """A vault over an empty store in memory."""
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store, find_by_last4=True)
        with open_vault(local_keys, store, clock) as vault:
            yield vault


def test_last_digits_are_those_that_the_card_has_now(local_vault: tv.Vault) -> None:
    """Of a new card the new ones; of a deleted token none."""
    changed, deleted = issue(local_vault, CARDS[0]).token, issue(local_vault, CARDS[0]).token
    local_vault.update_card(changed, new_pan=CARDS[1])
    local_vault.delete(deleted)
    assert local_vault.search(last4=CARDS[0][-4:]) == []
    assert [info.token for info in local_vault.search(last4=CARDS[1][-4:])] == [changed]


def test_without_their_index_last_digits_find_nothing_but_an_error(
    local_keys: KeyStore, tmp_path: Path
) -> None:
    with closing(tv.open_token_store(f"sqlite:///{tmp_path}/plain.db")) as store:
        provision(local_keys, store)
        with open_vault(local_keys, store) as vault:
            token = issue(vault, CARDS[0], customer="customer-1").token
            filters: list[dict[str, Any]] = [{}, {"customer": "customer-1"}, {"requestor": SHOP}]
            for more in filters:
                with pytest.raises(tv.ConfigurationError) as refused:
                    vault.search(last4=CARDS[0][-4:], **more)
                assert refused.value.code == "LAST4_NOT_INDEXED"
            assert [info.token for info in vault.search(customer="customer-1")] == [token]


def test_a_page_goes_on_only_after_a_token_that_there_is(local_vault: tv.Vault) -> None:
    token = issue(local_vault, customer="customer-1").token
    with pytest.raises(tv.TokenNotFoundError, match="go on after"):
        local_vault.search(after="9999130000000007")
    assert local_vault.search(after=token) == []
    assert local_vault.search(after=token, customer="customer-1") == []


@pytest.mark.parametrize("more", [{}, {"customer": "customer-1"}, {"program": "one-time"}])
def test_whether_there_is_a_token_of_others_is_not_told_by_going_on_after_it(
    local_vault: tv.Vault, more: dict[str, Any]
) -> None:
    issue(local_vault, customer="customer-1", requestor=ISSUER_ONLY)
    theirs = issue(local_vault, customer="customer-1").token
    answers = []
    for after in (theirs, f"{theirs[:-2]}{(int(theirs[-2]) + 1) % 10}{theirs[-1]}"):
        try:
            answers.append(str(local_vault.search(requestor=ISSUER_ONLY, after=after, **more)))
        except tv.TokenNotFoundError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]
    assert local_vault.search(requestor=SHOP, after=theirs, **more) == []


WRONG: dict[str, Sequence[Any]] = {
    "requestor": ("", 4, b"4", "\n"),
    "customer": ("", 4, "x" * 65, "\x00"),
    "program": ("", 4, ["one-time"]),
    "status": ("active", 1, Status),
    "last4": ("", "123", "12345", "12a4", 1234, "١٢٣٤"),
    "after": (4, None, b"9"),
    "limit": (0, -1, 1_001, "5", 2.0, True, None),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_another_form_are_refused(local_vault: tv.Vault, name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(tv.InvalidInputError):
            local_vault.search(**{name: value})
        if name in ("requestor", "program", "status"):
            with pytest.raises(tv.InvalidInputError):
                local_vault.count(**{name: value})


@pytest.mark.parametrize("limit", [1, 7, 1_000])
@pytest.mark.parametrize("by", ["customer", "last4"])
def test_whether_too_many_tokens_are_looked_through_does_not_hang_on_a_small_page(
    quick: tv.Vault, monkeypatch: pytest.MonkeyPatch, limit: int, by: str
) -> None:
    monkeypatch.setattr(searching, "PAGES_MAX", 2)
    found = quick.issue_many(
        [tv.CardToIssue(pan=CARDS[0], customer="customer-1")] * 150, requestor=SHOP, program="one-time"
    )
    assert not found.failed
    wanted: dict[str, Any] = {"customer": "customer-1"} if by == "customer" else {"last4": CARDS[0][-4:]}
    assert quick.search(status=Status.SUSPENDED, limit=limit, **wanted) == []


def test_a_search_through_too_many_tokens_ends_with_an_error(
    quick: tv.Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "PAGES_MAX", 1)
    quick.issue_many(
        [tv.CardToIssue(pan=CARDS[0], customer="customer-1")] * 101, requestor=SHOP, program="one-time"
    )
    calls: tuple[Callable[[], object], ...] = (
        lambda: quick.search(customer="customer-1", status=Status.SUSPENDED),
        lambda: quick.search(last4=CARDS[0][-4:], status=Status.SUSPENDED),
    )
    for call in calls:
        with pytest.raises(tv.TokenStoreError) as refused:
            call()
        assert refused.value.code == "TOO_MANY_TOKENS"
    assert len(quick.search(customer="customer-1")) == 100


def test_a_changed_record_is_not_shown_as_found(local_keys: KeyStore) -> None:
    """Whose columns were moved to another customer or requestor in the database is an error, not a result."""
    for column, value in (("customer", "customer-2"), ("requestor", ISSUER_ONLY)):
        wanted: dict[str, Any] = {column: value}
        with closing(MemoryTokenStore()) as store:
            tv.provision(local_keys, store, find_by_last4=True)
            with open_vault(local_keys, store, ManualClock(NOW_MS)) as vault:
                token = issue(vault, customer="customer-1").token
                changed = store._records[token]._replace(**wanted)
                store.replace([changed._replace(revision=changed.revision + 1)], [])
                with pytest.raises(tv.IntegrityError):
                    vault.search(**wanted)


def test_a_card_has_so_many_tokens_that_one_call_reads_and_one_requestor_s_are_told_all_the_same(
    quick: tv.Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "CARD_PAGE", 2)
    monkeypatch.setattr(core, "CARD_PAGES_MAX", 2)
    card = card_number(77)
    tokens = {issue(quick, card).token for _ in range(3)}
    assert {info.token for info in quick.tokens_of(card)} == tokens
    issue(quick, card, requestor=ISSUER_ONLY)
    with pytest.raises(tv.TokenStoreError, match="this card has 4 tokens or more") as refused:
        quick.tokens_of(card)
    assert refused.value.code == "TOO_MANY_TOKENS"
    assert card not in str(refused.value)
    assert {info.token for info in quick.tokens_of(card, requestor=SHOP)} == tokens
