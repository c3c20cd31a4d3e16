"""Batches answer each item as single calls do, in few steps, and leave whole chunks."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import chain, count, repeat
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import tokenvault as tv
from tests import vaults
from tests.ciphers import CountingCipher
from tests.postgres_server import PostgresServer
from tests.strategies import NOW_MS
from tests.vault_workers import card_number
from tests.vaults import ACQUIRER, ISSUER_ONLY, MASTERCARD, SHOP, STRANGER, VISA, batch_events, issue, use
from tokenvault import maintenance
from tokenvault.audit.batch_event import BATCH, ITEMS_MAX, NO_NAME, USES_MAX, BatchEvent, Kind, items, parse
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import LOCKING, Action, Event, Outcome
from tokenvault.audit.guard_note import Failure, FailureKind, account_row
from tokenvault.audit.use_note import UseNote
from tokenvault.columns.random import uniform
from tokenvault.keys import BlockCipher, KeyName, KeyPurpose, KeyStore
from tokenvault.stores.new_records import RecordBatch
from tokenvault.stores.port import SealedEvent, SealedRecord, TokenStore
from tokenvault.stores.write_limits import EVENT_BODY_BYTES_MAX
from tokenvault.testing.clock import ManualClock
from tokenvault.vault.batch import run as batches
from tokenvault.vault.batch.use import PATIENT_ATTEMPTS

ONLINE = tv.Channel.ECOMMERCE
TWICE = tv.Domain(limits=(tv.Limit(uses=2),))
AMEX, LONG = "378282246310005", "6304000000000000000"


def outcome(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a single call returns or raises."""
    try:
        return call(*arguments, **named)
    except tv.TokenVaultError as error:
        return error


def told(found: Any) -> Any:
    """An outcome as it can be compared between vaults: without what is random or counts writes."""
    if isinstance(found, tv.TokenVaultError):
        violations = getattr(found, "violations", None)
        return type(found), str(found), violations, found.response_code
    if isinstance(found, tv.Card):
        return found.pan.reveal(), found.expiry
    if isinstance(found, tv.TokenInfo):
        return (
            found.program, found.requestor, found.status, found.suspended_by, found.token_expiry, found.last4,
            found.par, found.assurance, found.created, found.updated, found.revision, len(found.token),
        )  # fmt: skip
    return found


def noted(store: TokenStore) -> list[Event]:
    """What all events say of each token, whether listed one by one or together, in order."""
    rows = [row for stream in store.streams() for row in store.events(stream=stream)]
    return [
        item for row in rows if row.reference != row.stream for item in items(parse(row))
    ]  # no checkpoints


def shown(found: Sequence[Event], names: dict[bytes, object]) -> list[Any]:
    """The same, with names in place of random references and without revisions."""
    return sorted(
        (
            str(names.get(item.reference, item.reference)), item.outcome, str(item.requestor), item.codes,
            str(item.transaction_id),
        )
        for item in found
    )  # fmt: skip


def in_chunks(vault: tv.Vault, size: int) -> tv.Vault:
    """The same vault with small chunks, so that there are many."""
    return cast(tv.Vault, Small(vault, size))


class Small:
    """A vault whose batches have chunks of so many items."""

    def __init__(self, vault: tv.Vault, size: int) -> None:
        self._vault = vault
        self._size = size

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._vault, name)

        def call(*arguments: Any, **named: Any) -> Any:
            with (
                mock.patch.object(batches, "CHUNK_ITEMS", self._size),
                mock.patch.object(batches, "CHUNK_USES", self._size),
            ):
                return method(*arguments, **named)

        return call


# The same outcomes as single calls.

CARDS: tuple[Any, ...] = (
    VISA, MASTERCARD, AMEX, LONG, "4111 1111 1111 1111", "4111111111111112", "", "x", 5, None, VISA.encode(),
    "9999130000000009", "9999121234567894", tv.Pan.parse(VISA), (VISA, "2029-12"), (VISA, None),
    (MASTERCARD, "2029-12"),
    (VISA, "2030-01"), (AMEX, "2020-01"), (VISA, "2029-13"), (VISA, 5), [MASTERCARD, tv.CardExpiry(2031, 5)],
    ("4111111111111112", "x"), (VISA,), (VISA, None, None), ("4111-1111-1111-1111", "2029-12"), (LONG, "2049-12"),
    (VISA, []),
)  # fmt: skip


def single_card(item: Any) -> tuple[Any, Any]:
    """What `issue` is called with for an item of a batch."""
    if type(item) in (tuple, list):
        return tuple(item) if len(item) == 2 else (None, None)
    return item, None


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(CARDS), max_size=24),
    st.sampled_from(["one-time", "card-on-file", "online"]),
    st.integers(1, 9),
    st.fixed_dictionaries(
        {},
        optional={
            "domain": st.sampled_from(
                [TWICE, tv.Domain(merchants={f"shop {VISA}"}), tv.Domain(devices={"9" * 20})]
            ),
            "token_expiry": st.just("2028-02"),
            "assurance": st.just("22"),
            "active": st.just(False),
        },
    ),
    st.integers(0, 6),
)
@example([VISA, VISA, (VISA, "2030-01"), (MASTERCARD, "2030-01")] * 3, "card-on-file", 3, {}, 2)
def test_issuing_in_batches_gives_what_single_calls_give(
    local_keys: KeyStore, cards: list[Any], program: str, size: int, terms: dict[str, Any], before: int
) -> None:
    """Results, errors and their messages, and what the audit trail says; also of cards that have tokens already."""
    outcomes, trails = [], []
    for in_batches in (False, True):
        store = tv.open_token_store("memory:")
        tv.provision(local_keys, store)
        with vaults.open_vault(local_keys, store, ManualClock(NOW_MS)) as vault:
            made = [issue(vault, pan, program=program) for pan in (VISA, AMEX, MASTERCARD)[: before % 4]]
            if before > 4:
                vault.delete(made[0].token)
            if in_batches:
                found = list(
                    in_chunks(vault, size).issue_many(iter(cards), requestor=SHOP, program=program, **terms)
                )
            else:
                found = [
                    outcome(vault.issue, pan, expiry=expiry, requestor=SHOP, program=program, **terms)
                    for pan, expiry in map(single_card, cards)
                ]  # fmt: skip
            outcomes.append(found)
            # A card that comes again with a later expiry changes its token.
            newest = {info.token: info for info in found if isinstance(info, tv.TokenInfo)}
            assert all(vault.get(token).revision >= info.revision for token, info in newest.items())
            names: dict[bytes, object] = {}
            for info in [*made, *found]:
                if isinstance(info, tv.TokenInfo):
                    kind = info.token if program == "card-on-file" else info.last4
                    names[bytes.fromhex(info.reference)] = kind
            trails.append(shown(noted(store), names))
    single, batch = [[told(found) for found in each] for each in outcomes]
    assert batch == single
    if program == "card-on-file":
        tokens = [[getattr(info, "token", None) for info in found] for found in outcomes]
        assert tokens[0] == tokens[1]
    assert trails[0] == trails[1]


class Twins:
    """Two vaults with the same tokens in the same states."""

    def __init__(self, keys: KeyStore) -> None:
        self.stores = [tv.open_token_store("memory:") for _ in range(2)]
        self.clocks = [ManualClock(NOW_MS) for _ in range(2)]
        self.vaults = []
        self.tokens: list[list[str]] = []
        for store, clock in zip(self.stores, self.clocks, strict=True):
            tv.provision(keys, store)
            vault = vaults.open_vault(keys, store, clock)
            self.vaults.append(vault)
            self.tokens.append(self.made(vault, store))

    def made(self, vault: tv.Vault, store: TokenStore) -> list[str]:
        plain = [issue(vault, pan) for pan in (VISA, MASTERCARD, VISA)]
        limited = [issue(vault, pan, domain=TWICE) for pan in (VISA, AMEX)]
        spending = tv.Domain(
            requestors={SHOP, ACQUIRER},
            limits=(tv.Limit(amount=tv.Money(100, "EUR")), tv.Limit(uses=3)),
            currencies={"EUR"},
        )
        money = issue(vault, domain=spending)
        once = issue(vault, domain=tv.Domain(cryptogram=tv.CryptogramRule.REQUIRED))
        online = issue(vault, MASTERCARD, program="online")
        expiring = issue(vault, expiry="2026-05")
        suspended = vault.suspend(issue(vault).token, by=tv.Actor.ISSUER)
        deleted = vault.delete(issue(vault).token)
        inactive = issue(vault, active=False)
        tampered = issue(vault, MASTERCARD)
        (row,) = store.get([tampered.token])
        store.replace([row._replace(revision=2, body=row.body[:-1] + b"\7")], [])
        lost = issue(vault, domain=tv.Domain(merchants={"lost"}))
        infos = [
            *plain,
            *limited,
            money,
            once,
            online,
            expiring,
            suspended,
            deleted,
            inactive,
            tampered,
            lost,
        ]
        return [info.token for info in infos]


PRESENTED: tuple[Any, ...] = (
    *(use(n) for n in range(3)),
    *(use(n, merchant="M") for n in range(2)),
    use(1, channel=ONLINE),
    use(4, requestor=ACQUIRER),
    use(5, requestor=ISSUER_ONLY),
    use(f"order {VISA}", requestor=STRANGER),
    use(f"order-{VISA}"),
    use("4111-1111-1111-1111"),
    use(VISA + "0"),
    use(6, merchant=VISA),
    use(7, device="1234567890123456789"),
    *(use(f"eur-{n}", amount=tv.Money(40, "EUR")) for n in range(4)),
    *(use(f"usd-{n}", amount=tv.Money(n, "USD")) for n in range(2)),
    *(use(f"c-{n}", cryptogram_counter=n) for n in range(3)),
)
ODD: tuple[Any, ...] = (
    "9" * 16, "", VISA, 5, None, "4111 1111 1111 1111",
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.integers(0, 13) | st.sampled_from(ODD),
            st.sampled_from(PRESENTED) | st.sampled_from([None, "tx"]),
        ),
        max_size=24,
    ),
    st.integers(1, 9),
    st.integers(0, 40),
)
def test_uses_in_batches_get_what_single_calls_get(
    local_keys: KeyStore, wanted: list[tuple[Any, Any]], size: int, days: int
) -> None:
    """Cards, decisions, errors and their messages, what is counted, and what the audit trail says."""
    twins = Twins(local_keys)
    for clock in twins.clocks:
        clock.advance(days * 86_400_000)
    asked = [
        [
            (tokens[token] if type(token) is int and token < len(tokens) else token, used)
            for token, used in wanted
        ]
        for tokens in twins.tokens
    ]
    single, batch = twins.vaults[0], in_chunks(twins.vaults[1], size)
    decisions = [outcome(single.check, t, u) for t, u in asked[0]]
    assert [told(one) for one in batch.check_many(iter(asked[1]))] == [told(one) for one in decisions]
    cards = [outcome(single.detokenize, t, u) for t, u in asked[0]]
    assert [told(one) for one in batch.detokenize_many(iter(asked[1]))] == [told(one) for one in cards]
    trails = []
    for tokens, store in zip(twins.tokens, twins.stores, strict=True):
        names: dict[bytes, object] = {
            row.reference: n for n, t in enumerate(tokens) for row in store.get([t])
        }
        trails.append(shown(noted(store), names))
    assert trails[0] == trails[1]
    for first, second in zip(*twins.tokens, strict=True):
        states = [
            outcome(v.check, t, use("after")) for v, t in zip(twins.vaults, (first, second), strict=True)
        ]
        assert told(states[0]) == told(states[1])
    for vault in twins.vaults:
        vault.close()


# Every store, both custodies.


def memory_store(keys: KeyStore) -> TokenStore:
    """A store in memory, provisioned."""
    store = tv.open_token_store("memory:")
    tv.provision(keys, store)
    return store


def many(number: int) -> list[tuple[str, str]]:
    """So many cards, all different."""
    return [(card_number(n), "2029-12") for n in range(number)]


def texts(outcomes: tv.IssueBatchResult[tv.TokenInfo]) -> list[str]:
    """The tokens of a batch without errors."""
    return [token.decode() for token in outcomes.tokens.tolist()]


@pytest.mark.parametrize("program", ["one-time", "card-on-file", "online"])
def test_a_batch_of_tokens_leads_back_to_its_cards(vault: tv.Vault, program: str) -> None:
    """Single calls read what a batch wrote, and a batch what single calls wrote."""
    cards = [*many(40), ("5555555555554444", "2029-12"), (AMEX, None), (LONG, "2030-01")]
    small = in_chunks(vault, 16)
    issued = small.issue_many(cards, requestor=SHOP, program=program)
    singles = [issue(vault, pan, expiry=expiry, program=program) for pan, expiry in cards[:20]]
    assert not issued.failed
    assert not issued.errors
    assert (texts(issued)[:20] == [info.token for info in singles]) == (program == "card-on-file")
    transaction = use(channel=ONLINE)
    for (pan, expiry), info in zip(cards, issued, strict=True):
        assert isinstance(info, tv.TokenInfo)
        assert vault.get(info.token) == vault.get(info.reference) == info
        assert vault.detokenize(info.token, transaction).pan.reveal() == pan
        assert expiry is None or str(info.token_expiry) == expiry
    tokens = [*texts(issued), *(info.token for info in singles)]
    found = small.detokenize_many(zip(tokens, repeat(transaction), strict=False))
    assert [card.pan.reveal() for card in found] == [pan for pan, _ in [*cards, *cards[:20]]]  # type: ignore[union-attr] # none failed
    assert all(small.check_many(zip(tokens, repeat(transaction), strict=False)))


def test_a_convergent_batch_issued_again_gives_the_same_tokens(vault: tv.Vault) -> None:
    """Whatever it is divided into, and whether batches or single calls came first."""
    cards = many(30)
    first = [issue(vault, pan, program="card-on-file").token for pan, _ in cards[:7]]
    issued = in_chunks(vault, 11).issue_many(cards + cards[:5], requestor=SHOP, program="card-on-file")
    again = in_chunks(vault, 4).issue_many(reversed(cards), requestor=SHOP, program="card-on-file")
    assert texts(issued)[:7] == first
    assert texts(issued)[30:] == first[:5]
    assert texts(again)[::-1] == texts(issued)[:30]
    assert list(issued)[:30] == [vault.get(token) for token in texts(issued)[:30]]


class CountingStore:
    """Counts the calls of a store, by name, does something before each, and shows rows as another left them."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        self.edit: Callable[[SealedRecord], SealedRecord] | None = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in ("run", "write_limits"):  # of a store on a loop; what is no method
            return method

        def counted(*args: object, **kwargs: object) -> Any:
            self.calls.append(name)
            self.before(name)
            found = method(*args, **kwargs)
            return [self.edit(row) for row in found] if self.edit and name in ("get", "find") else found

        return counted


def test_a_chunk_is_one_write_and_one_event(keys: KeyStore, store: TokenStore) -> None:
    """And one look-up for a chunk that is read; the event lists every reference."""
    counting = CountingStore(store)
    opened: Any = counting
    with vaults.open_vault(keys, opened) as vault:
        small = in_chunks(vault, 10)
        issue(vault, domain=TWICE)
        issue(vault, program="card-on-file", domain=TWICE)  # the domain is kept
        counting.calls.clear()
        issued = small.issue_many(many(30), requestor=SHOP, program="one-time", domain=TWICE)
        assert counting.calls == ["insert"] * 3
        counting.calls.clear()
        small.issue_many(many(30), requestor=SHOP, program="card-on-file", domain=TWICE)
        assert counting.calls == ["find", "find", "insert"] * 3  # cards, and cards whose token was deleted
        counting.calls.clear()
        small.issue_many(many(30), requestor=SHOP, program="card-on-file", domain=TWICE)
        assert counting.calls == ["find", "find", "append"] * 3
        counting.calls.clear()
        assert not small.detokenize_many(zip(texts(issued), map(use, count()), strict=False)).failed
        assert counting.calls == ["get", "uses", "replace"] * 3
        counting.calls.clear()
        assert not small.detokenize_many(zip(texts(issued), map(use, count()), strict=False)).failed
        assert counting.calls == ["get", "uses", "append"] * 3  # the same ones again: nothing counts
        counting.calls.clear()
        assert not small.check_many(zip(texts(issued), repeat(use(99)), strict=False)).failed
        assert counting.calls == ["get", "uses"] * 3
    events = [parse(row) for row in batch_events(store)]
    assert [event.action for event in events] == [Action.ISSUE] * 9 + [Action.DETOKENIZE] * 6
    listed = [item.reference.hex() for event in events[:3] for item in items(event)]
    assert listed == [info.reference for info in issued]  # type: ignore[union-attr] # none failed
    used = [
        (item.reference.hex(), item.revision, item.transaction_id)
        for event in events[9:12]
        for item in items(event)
    ]
    assert used == [(reference, 2, f"tx-{number}") for number, reference in enumerate(listed)]


class CountingKeys:
    """A key store whose ciphers count their calls, by purpose."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self.ciphers: dict[KeyPurpose, CountingCipher] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keys, name)

    def cipher(self, key: KeyName) -> BlockCipher:
        return self.ciphers.setdefault(key.purpose, CountingCipher(self._keys.cipher(key)))


def test_a_chunk_of_any_size_costs_few_module_calls(local_keys: KeyStore) -> None:
    """Three for the seals of a chunk, whether written or read."""
    counting: Any = CountingKeys(local_keys)
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    with vaults.open_vault(counting, store) as vault:
        seals = counting.ciphers[KeyPurpose.SEAL]
        for size in (1, 10, 1_000):
            seals.reset()
            issued = vault.issue_many(many(size), requestor=SHOP, program="one-time", domain=TWICE)
            assert seals.calls == 3
            uses = [(token, use(n)) for n, token in enumerate(texts(issued))]
            seals.reset()
            assert not vault.detokenize_many(uses).failed
            assert seals.calls == 6  # three to open, three to seal what was counted
            for purpose in (KeyPurpose.FINGERPRINT, KeyPurpose.AUDIT):
                assert counting.ciphers[purpose].calls <= 20


# What goes wrong.


def test_one_tampered_record_spoils_no_other(vault: tv.Vault, store: TokenStore) -> None:
    """It gets IntegrityError, the others their cards, and the event says which one it was."""
    issued = texts(vault.issue_many(many(9), requestor=SHOP, program="one-time"))
    rows = {row.token: row for row in store.get(issued)}
    moved, changed = rows[issued[3]], rows[issued[5]]
    store.replace([changed._replace(revision=2)], [])
    store.replace([moved._replace(revision=2, seal=changed.seal)], [])
    found = vault.detokenize_many(zip(issued, repeat(use()), strict=False))
    assert list(found.errors) == [3, 5]
    assert all(type(error) is tv.IntegrityError for error in found.errors.values())
    assert [found[n].pan.reveal() for n in (0, 4, 8)] == [card_number(n) for n in (0, 4, 8)]  # type: ignore[union-attr] # cards
    (event,) = [parse(row) for row in batch_events(store)][1:]
    tampered = [item.reference for item in items(event) if item.outcome is Outcome.TAMPERED]
    assert tampered == [moved.reference, changed.reference]
    assert [type(error) for error in vault.check_many(zip(issued, repeat(use()), strict=False)).errors.values()] == [
        tv.IntegrityError, tv.IntegrityError
    ]  # fmt: skip


def test_a_row_that_the_store_itself_refuses_spoils_no_other(local_keys: KeyStore) -> None:
    """As where a column was cut short."""
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        issued = texts(vault.issue_many(many(9), requestor=SHOP, program="one-time"))
        records: dict[str, SealedRecord] = store._records  # type: ignore[attr-defined] # beside the port
        records[issued[4]] = records[issued[4]]._replace(seal=b"short")
        found = vault.detokenize_many(zip(issued, repeat(use()), strict=False))
        assert list(found.errors) == [4]
        assert type(found[4]) is tv.IntegrityError


def test_a_program_that_runs_full_in_a_batch_gives_out_every_token(local_keys: KeyStore) -> None:
    """And says so for the cards that get none."""
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        for program, cards in (("tiny", many(25)), ("tiny-convergent", many(40))):
            found = in_chunks(vault, 15).issue_many(cards, requestor=SHOP, program=program)
            given = [info.token for info in found if isinstance(info, tv.TokenInfo)]
            assert len(set(given)) == len(given) == 10
            assert all(type(error) is tv.TokenSpaceExhaustedError for error in found.errors.values())
            assert len(found.errors) == len(cards) - 10
            # A card that comes again with a later expiry changes its token.
            newest = {info.token: info for info in found if isinstance(info, tv.TokenInfo)}
            assert all(vault.get(token).revision >= info.revision for token, info in newest.items())


def test_tokens_in_the_way_are_drawn_again(vault: tv.Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that draws tokens that exist, or one twice, writes them with others."""
    first = vault.issue_many(many(50), requestor=SHOP, program="one-time")
    taken = [int(token[6:-1]) for token in texts(first)]
    draws: Iterator[list[int]] = chain([[*taken[:25], *range(20), *[7] * 5], [*range(5)]], repeat([]))

    def drawn(number: int, below: int) -> Any:
        planned = next(draws)
        return np.array(planned, np.uint64) if len(planned) == number else uniform(number, below)

    monkeypatch.setattr("tokenvault.vault.batch.draw.uniform", drawn)
    second = vault.issue_many(many(50), requestor=SHOP, program="one-time")
    assert not second.failed
    assert len({*texts(first), *texts(second)}) == 100
    for number, token in enumerate(texts(second)):
        assert vault.detokenize(token, use()).pan.reveal() == card_number(number)


def test_a_record_in_the_way_that_the_store_refuses_fails_no_card(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is drawn again as any that exists: the record itself is not read."""
    store = memory_store(local_keys)
    with vaults.open_vault(local_keys, store) as vault:
        first = vault.issue_many(many(5), requestor=SHOP, program="one-time")
        records: dict[str, SealedRecord] = store._records  # type: ignore[attr-defined] # beside the port
        spoiled = texts(first)[2]
        records[spoiled] = records[spoiled]._replace(seal=b"short")
        draws = chain([[int(spoiled[6:-1]), *range(4)]], repeat([]))

        def drawn(number: int, below: int) -> Any:
            planned = next(draws)
            return np.array(planned, np.uint64) if len(planned) == number else uniform(number, below)

        monkeypatch.setattr("tokenvault.vault.batch.draw.uniform", drawn)
        second = vault.issue_many(many(5), requestor=SHOP, program="one-time")
        assert not second.failed
        assert len({*texts(first), *texts(second)}) == 10


def test_records_under_two_versions_of_the_seal_key_are_read_together(fresh_keys: KeyStore) -> None:
    store = memory_store(fresh_keys)
    with vaults.open_vault(fresh_keys, store) as vault:
        before = issue(vault, VISA, program="card-on-file").token
    maintenance.add_key_version(fresh_keys, store, tv.KeyPurpose.SEAL)
    maintenance.make_primary(fresh_keys, store, tv.KeyPurpose.SEAL, 2, force=True)
    with vaults.open_vault(fresh_keys, store) as vault:
        after = issue(vault, MASTERCARD, program="card-on-file").token
        assert {row.key_version for row in store.get([before, after])} == {1, 2}
        assert tokens(converged(vault)) == [before, after]
        cards = vault.detokenize_many([(before, use(1)), (after, use(2))])
        assert [card.pan.reveal() for card in cards if isinstance(card, tv.Card)] == [VISA, MASTERCARD]


def converged(vault: tv.Vault) -> list[tv.TokenInfo | tv.TokenVaultError]:
    """The tokens of two cards that have one each, or will."""
    cards = [(VISA, "2029-12"), (MASTERCARD, "2029-12")]
    return list(vault.issue_many(cards, requestor=SHOP, program="card-on-file"))


def tokens(outcomes: list[tv.TokenInfo | tv.TokenVaultError]) -> list[str]:
    return [each.token for each in outcomes if isinstance(each, tv.TokenInfo)]


def test_a_record_under_a_key_that_is_not_there_fails_alone(local_keys: KeyStore) -> None:
    store: Any = CountingStore(memory_store(local_keys))
    with vaults.open_vault(local_keys, store) as vault:
        lost, kept = tokens(converged(vault))
        store.edit = lambda row: row._replace(key_version=9) if row.token == lost else row
        for first, second in (
            converged(vault),
            list(vault.detokenize_many([(lost, use(1)), (kept, use(2))])),
        ):
            assert isinstance(first, tv.IntegrityError)
            assert isinstance(second, tv.TokenInfo | tv.Card)


def test_a_look_up_of_many_cards_that_meets_a_broken_row_is_made_one_by_one(local_keys: KeyStore) -> None:
    """Which row it is only a single look-up tells, so the other card gets its token."""
    store: Any = CountingStore(memory_store(local_keys))
    with vaults.open_vault(local_keys, store) as vault:
        broken, kept = tokens(converged(vault))

        def read(row: SealedRecord) -> SealedRecord:
            if row.token == broken:
                raise tv.IntegrityError("a row of the database is none that this library writes")
            return row

        store.edit = read
        first, second = converged(vault)
    assert isinstance(first, tv.IntegrityError)
    assert isinstance(second, tv.TokenInfo)
    assert second.token == kept


def test_a_card_whose_convergent_token_was_deleted_gets_another_in_a_batch_too(local_keys: KeyStore) -> None:
    with vaults.open_vault(local_keys, memory_store(local_keys)) as vault:
        gone, kept = tokens(converged(vault))
        vault.delete(gone)
        another, same = tokens(converged(vault))
        assert same == kept
        assert another not in (gone, kept)
        assert tokens(converged(vault)) == [another, kept]


def test_a_card_that_comes_again_with_another_expiry_is_answered_as_by_single_calls(
    local_keys: KeyStore,
) -> None:
    """A later one renews its token, and an earlier one is refused."""
    cards = [(VISA, "2029-12"), (VISA, "2030-12"), (VISA, "2029-12")]
    with vaults.open_vault(local_keys, memory_store(local_keys)) as vault:
        first, second, third = vault.issue_many(cards, requestor=SHOP, program="card-on-file")
    with vaults.open_vault(local_keys, memory_store(local_keys)) as vault:
        alone = [outcome(issue, vault, pan, program="card-on-file", expiry=expiry) for pan, expiry in cards]
    assert isinstance(first, tv.TokenInfo)
    assert isinstance(second, tv.TokenInfo)
    assert second.token == first.token
    assert [str(each.card_expiry) for each in (first, second)] == ["2029-12", "2030-12"]
    assert [type(each) for each in alone] == [tv.TokenInfo, tv.TokenInfo, tv.InvalidInputError]
    assert (type(third), str(third)) == (type(alone[2]), str(alone[2]))


def test_a_card_that_stands_in_a_chunk_often_gets_one_token(local_keys: KeyStore) -> None:
    """The rest find it in a second round: two rounds of reads and a write, however often it stands there."""
    counting = CountingStore(memory_store(local_keys))
    opened: Any = counting
    with vaults.open_vault(local_keys, opened) as vault:
        issue(vault)
        counting.calls.clear()
        found = vault.issue_many(many(20) * 50, requestor=SHOP, program="card-on-file")
        assert counting.calls == ["find", "find", "insert", "find", "find", "append"]
    assert len(set(texts(found))) == 20
    assert texts(found) == texts(found)[:20] * 50


def test_uses_of_others_in_between_are_seen(keys: KeyStore, store: TokenStore) -> None:
    """A batch whose records change under it decides anew; limits stay exact."""
    counting = CountingStore(store)
    opened: Any = counting
    with vaults.open_vault(keys, opened) as vault, vaults.open_vault(keys, store) as other:
        issued = texts(vault.issue_many(many(6), requestor=SHOP, program="one-time", domain=TWICE))
        rounds = count()

        def meddle(name: str) -> None:
            turn = next(rounds) if name == "replace" else 99
            if turn < 2:
                other.detokenize(issued[turn], use(f"other-{turn}"))

        counting.before = meddle
        found = vault.detokenize_many(
            [(token, use(f"{n}-{i}")) for i in range(2) for n, token in enumerate(issued)]
        )
        counting.before = lambda _: None
    assert sorted(found.errors) == [6, 7]
    assert all(type(error) is tv.DomainRestrictionError for error in found.errors.values())


@pytest.mark.parametrize("suspended", [False, True])
def test_a_token_that_others_change_before_each_write_is_used_by_a_single_call(
    keys: KeyStore, store: TokenStore, suspended: bool
) -> None:
    """After so many tries of its chunk. The other tokens are not held up, whatever the single call's answer is."""
    counting, changes = CountingStore(store), iter(range(PATIENT_ATTEMPTS + 1))
    opened: Any = counting
    often = tv.Domain(limits=(tv.Limit(uses=1_000),))
    with vaults.open_vault(keys, opened) as vault, vaults.open_vault(keys, store) as other:
        contended, *alone = texts(vault.issue_many(many(4), requestor=SHOP, program="one-time", domain=often))

        def change(name: str) -> None:
            number = next(changes, None) if name == "replace" else None
            if number == PATIENT_ATTEMPTS and suspended:
                other.suspend(contended, by=tv.Actor.ISSUER)
            elif number is not None:
                other.detokenize(contended, use(f"other-{number}"))

        counting.before = change
        first, *rest = vault.detokenize_many([(token, use(1)) for token in (contended, *alone)])
        counting.before = lambda _: None
    assert next(changes, None) is None
    # The tries of the chunk, the rest of it, and the single call, which is refused before it writes or writes too.
    assert counting.calls.count("replace") == PATIENT_ATTEMPTS + 1 + 1 + (not suspended)
    assert [card.pan.reveal() for card in rest if isinstance(card, tv.Card)] == [
        pan for pan, _ in many(4)[1:]
    ]
    if suspended:
        assert isinstance(first, tv.DomainRestrictionError)
        assert [violation.code for violation in first.violations] == ["TOKEN_SUSPENDED"]
    else:
        assert isinstance(first, tv.Card)
        assert first.pan.reveal() == card_number(0)


@pytest.mark.parametrize("broken", ["insert", "append", "get"])
def test_a_database_that_is_away_is_the_error_of_its_items(
    keys: KeyStore, store: TokenStore, broken: str
) -> None:
    """Chunks before and after stand; after two chunks in a row the rest is not tried."""
    counting = CountingStore(store)
    opened: Any = counting
    with vaults.open_vault(keys, opened) as vault:
        small = in_chunks(vault, 5)
        issued = texts(vault.issue_many(many(30), requestor=SHOP, program="one-time"))

        def batch() -> Any:
            if broken == "insert":
                return small.issue_many(many(30), requestor=SHOP, program="one-time")
            return small.detokenize_many(zip(issued, repeat(use()), strict=False))

        for away, failed in (
            ({1}, range(5, 10)),
            ({1, 3}, chain(range(5, 10), range(15, 20))),
            ({2, 3}, range(10, 30)),
        ):
            turns = count()

            def fail(name: str, away: set[int] = away, turns: Iterator[int] = turns) -> None:
                if name == broken and next(turns) in away:
                    raise tv.TokenStoreError("the database is away")

            counting.before = fail
            found = batch()
            assert len(found) == 30
            assert list(found.errors) == list(failed)
            assert all(type(error) is tv.TokenStoreError for error in found.errors.values())


def test_a_chunk_that_fails_leaves_the_others_whole(local_keys: KeyStore) -> None:
    """One event a chunk, in the order of its cards; the audit trail has no gap."""
    counting = CountingStore(memory_store(local_keys))
    opened: Any = counting
    for away, failed, tried in (
        ({1}, range(5, 10), 6),
        ({1, 3}, chain(range(5, 10), range(15, 20)), 6),
        ({2, 3}, range(10, 30), 4),
        ({5}, range(25, 30), 6),
    ):
        turns = count()

        def fail(name: str, away: set[int] = away, turns: Iterator[int] = turns) -> None:
            if name == "insert" and next(turns) in away:
                raise tv.TokenStoreError("the database is away")

        before = batch_events(counting._store)
        with vaults.open_vault(local_keys, opened) as vault:
            counting.before = fail
            found = in_chunks(vault, 5).issue_many(many(30), requestor=SHOP, program="one-time")
            counting.before = lambda _: None
            issued = [info for info in found if isinstance(info, tv.TokenInfo)]
            assert all(vault.get(info.token) == info for info in issued)
        assert list(found.errors) == list(failed)
        assert all(type(error) is tv.TokenStoreError for error in found.errors.values())
        assert next(turns) == tried
        assert [info.last4 for info in issued] == [
            pan[-4:] for row, (pan, _) in enumerate(many(30)) if row not in found.errors
        ]
        events = [row for row in batch_events(counting._store) if row not in before]
        assert len(events) == 6 - len(found.errors) // 5
        listed = [item.reference.hex() for row in events for item in items(parse(row))]
        assert listed == [info.reference for info in issued]
    assert tv.verify_audit(counting._store, keys=local_keys).intact


def test_a_key_store_that_is_away_fails_the_chunk_that_asked_it(local_keys: KeyStore) -> None:
    """And the one before or after only where something of theirs fails, too: then the rest is not tried."""
    counting = CountingStore(memory_store(local_keys))
    opened: Any = counting
    with vaults.open_vault(local_keys, opened) as vault:
        seal_new = vault._core.keys.seal_new  # type: ignore[union-attr] # it is open
        turns, inserts = count(), count()

        def failing(*arguments: Any) -> Any:
            if next(turns) in (1, 4):
                raise tv.KeyStoreError("the module is away")
            return seal_new(*arguments)

        def fail(name: str) -> None:
            if name == "insert" and next(inserts) == 2:  # of the fourth chunk: one before was never written
                raise tv.TokenStoreError("the database is away")

        with mock.patch("tokenvault.records.keyring.KeyRing.seal_new", side_effect=failing):
            counting.before = fail
            found = in_chunks(vault, 5).issue_many(many(40), requestor=SHOP, program="one-time")
            counting.before = lambda _: None
    kinds = [type(found.errors.get(row)) for row in range(0, 40, 5)]
    none = type(None)
    assert kinds == [none, tv.KeyStoreError, none, tv.TokenStoreError, *[tv.KeyStoreError] * 4]
    assert len(found.errors) == 30


def test_what_all_cards_have_in_common_is_refused_at_once(vault: tv.Vault, store: TokenStore) -> None:
    """Also where there is no card, and nothing is taken from the iterator."""

    def never() -> Iterator[str]:
        raise AssertionError("asked for")
        yield ""

    for terms, error in (
        ({"requestor": STRANGER}, tv.PermissionDeniedError),
        ({"requestor": ACQUIRER}, tv.PermissionDeniedError),
        ({"requestor": "x"}, tv.InvalidInputError),
        ({"program": "none"}, tv.InvalidInputError),
        ({"program": "online", "requestor": ISSUER_ONLY}, tv.PermissionDeniedError),
        ({"domain": "x"}, tv.InvalidInputError),
        ({"token_expiry": "2020-01"}, tv.InvalidInputError),
        ({"active": 1}, tv.InvalidInputError),
        ({"assurance": "x"}, tv.InvalidInputError),
    ):
        arguments: dict[str, Any] = {"requestor": SHOP, "program": "one-time", **terms}
        for cards in (iter(()), never()):
            with pytest.raises(error):
                vault.issue_many(cards, **arguments)
    for wrong in ("4111111111111111", b"x", 5, None):
        with pytest.raises(tv.InvalidInputError):
            vault.issue_many(wrong, requestor=SHOP, program="one-time")  # type: ignore[arg-type] # the point
        with pytest.raises(tv.InvalidInputError):
            vault.detokenize_many(wrong)  # type: ignore[arg-type] # the point
    assert len(vault.issue_many([], requestor=SHOP, program="one-time")) == 0
    assert batch_events(store) == []


def test_an_iterator_that_fails_ends_the_batch_between_chunks(vault: tv.Vault) -> None:
    """Whole chunks stand, and what the iterator raised with does not get out."""

    def cards() -> Iterator[str]:
        yield from (pan for pan, _ in many(12))
        raise RuntimeError(VISA)

    with pytest.raises(tv.InvalidInputError, match="the iterable of cards failed") as raised:
        in_chunks(vault, 5).issue_many(cards(), requestor=SHOP, program="card-on-file")
    assert VISA not in str(raised.value)
    assert [len(vault.tokens_of(pan)) for pan, _ in many(12)] == [1] * 10 + [0] * 2


def test_an_interrupted_iterator_leaves_whole_chunks(local_keys: KeyStore) -> None:
    """The interrupt itself gets out, and the chunks before it stand."""
    store = memory_store(local_keys)

    def cards() -> Iterator[tuple[str, str]]:
        yield from many(12)
        raise KeyboardInterrupt

    with vaults.open_vault(local_keys, store) as vault, pytest.raises(KeyboardInterrupt):
        in_chunks(vault, 5).issue_many(cards(), requestor=SHOP, program="one-time")
    assert [len(list(items(parse(row)))) for row in batch_events(store)] == [5, 5]


def test_batches_into_postgres_are_whole_and_their_tokens_in_no_log(
    local_keys: KeyStore, postgres_server: PostgresServer
) -> None:
    """Batch after batch, into a program so small that nearly every chunk draws tokens that exist."""
    tiny = tv.TokenProgram(
        "tiny", format=tv.TokenFormat(bin="99991234", length=13), expected_tokens=5_000, accept_density=True
    )
    requestor = tv.TokenRequestor(SHOP, programs={"tiny"})
    with closing(tv.open_token_store(postgres_server.new_url())) as store:
        tv.provision(local_keys, store)
        with tv.Vault(local_keys, store, programs=[tiny], requestors=[requestor]) as vault:
            small = in_chunks(vault, 300)
            found = [
                small.issue_many(many(size), requestor=SHOP, program="tiny")
                for size in (1_500, 1_500, 3_000, 2_000)  # the last few by single calls
            ]
            assert not any(each.failed for each in found)
            tokens = [token for each in found for token in texts(each)]
            assert len(set(tokens)) == 8_000
            assert [info.last4 for info in found[1]] == [pan[-4:] for pan, _ in many(1_500)]  # type: ignore[union-attr] # none failed
            assert tv.verify_audit(store, keys=local_keys).intact
    log = postgres_server.log()
    assert not any(token in log for token in tokens)


# What is returned.


def test_outcomes_are_a_sequence(vault: tv.Vault) -> None:
    cards: list[Any] = [*many(7), "x", *many(3)]
    found = in_chunks(vault, 4).issue_many(cards, requestor=SHOP, program="card-on-file")
    assert len(found) == 11
    assert isinstance(found, Sequence)
    assert found[-1] == found[2] == list(found)[10]
    assert found[1:7:3] == [found[1], found[4]]
    assert [type(one) for one in found[5:9]] == [
        tv.TokenInfo,
        tv.TokenInfo,
        tv.InvalidInputError,
        tv.TokenInfo,
    ]
    assert list(found.errors) == [7]
    assert found.failed
    assert found.tokens[7] == b""
    for index in (11, -12):
        with pytest.raises(IndexError):
            found[index]
    assert repr(found) == "<IssueBatchResult of 11, 1 with an error>"
    assert found[7] is not found[7], "an error is raised by one caller only"


def test_outcomes_show_no_card_number(vault: tv.Vault) -> None:
    """Neither in their repr nor pickled or copied."""
    issued = vault.issue_many([VISA, "4111111111111112"], requestor=SHOP, program="one-time")
    found = vault.detokenize_many(zip(texts(issued)[:1], repeat(use()), strict=False))
    for outcomes in (issued, found):
        assert VISA not in repr(outcomes)
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(tv.InvalidInputError):
                attempt(outcomes)
    assert VISA not in repr(
        [slot for chunk in found._chunks for slot in (chunk, getattr(chunk, "cards", None))]
    )


def test_outcomes_of_many_items_are_small(local_keys: KeyStore) -> None:
    """Columns, not objects: below 100 bytes an item."""
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store) as vault:
        issued = vault.issue_many(many(1_000), requestor=SHOP, program="one-time")
        found = vault.detokenize_many(zip(texts(issued), repeat(use()), strict=False))
        for outcomes in (issued, found):
            gc.collect()
            columns = [column for chunk in outcomes._chunks for column in referents(chunk)]
            assert 0 < sum(column.nbytes for column in columns) < 100 * 1_000
            assert len(outcomes) == 1_000


def referents(thing: object, depth: int = 4) -> list[Any]:
    """The arrays that something holds."""
    if isinstance(thing, np.ndarray):
        return [thing]
    below = gc.get_referents(thing) if depth and not isinstance(thing, type) else []
    return [array for each in below for array in referents(each, depth - 1)]


# Records and events of a chunk.


_sixteen = st.binary(min_size=16, max_size=16).filter(any)
use_notes = st.builds(
    UseNote,
    kind=st.sampled_from(tv.Kind),
    content=st.binary(min_size=16, max_size=16),
    use_id=_sixteen,
    original=st.just(b"") | _sixteen,
    amount=st.integers(0, 2**63),
    currency=st.sampled_from(["", "EUR"]),
    final=st.booleans(),
    strong=st.booleans(),
    retry=st.booleans(),
    counted=st.lists(_sixteen, max_size=3, unique=True).map(sorted).map(tuple),
    score=st.none() | st.integers(0, 999),
)


_failures = st.builds(Failure, st.sampled_from(FailureKind), _sixteen, st.binary(min_size=8, max_size=8))


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.binary(min_size=16, max_size=16) | st.just(b""),
            st.integers(0, 2**63 - 1) | st.just(0),
            st.sampled_from(Outcome),
            st.sampled_from([None, SHOP, ACQUIRER]),
            st.lists(st.sampled_from(["TOKEN_EXPIRED", "A", "B"]), max_size=3, unique=True).map(tuple),
            st.sampled_from([None, "tx-1", "tx-2", "x" * 64]),
            st.sampled_from([None, "o" * 64]),
            st.none() | use_notes,
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 2**63),
    st.sampled_from([action for action in Action if action not in LOCKING]),
    st.lists(_failures, max_size=3).map(tuple),
)
def test_a_batch_event_reads_back(
    listed: list[tuple[Any, ...]], time_ms: int, action: Action, failures: tuple[Failure, ...]
) -> None:
    """Item by item; and no other bytes read as an event than those that an event is written as."""

    builder = BatchEventBuilder(len(listed) + 2, str)
    uses = action is Action.DETOKENIZE
    for row, (reference, revision, outcome, requestor, codes, name, operator, note) in enumerate(listed, 1):
        kind = Kind(outcome, requestor, codes, operator)
        builder.note(row, reference, revision, kind, name, note if uses else None)
    issues = action is Action.ISSUE and any(revision for _, revision, *_ in listed)
    event = builder.event(time_ms, action, b"n" * 16 if issues else NO_NAME, failures)
    assert event is not None
    sealed = SealedEvent(bytes(16), 1, BATCH, event.body(), bytes(16))
    read = parse(sealed)
    assert isinstance(read, BatchEvent)
    assert read.failures == failures
    named = set(read.index_rows())
    assert issues or all(account_row(each.account, time_ms) in named for each in failures)
    assert (read.time_ms, read.action) == (time_ms, action)
    expected = [
        Event(
            time_ms=time_ms,
            action=action,
            outcome=outcome,
            requestor=requestor,
            reference=reference if reference != BATCH else b"",
            transaction_id=name,
            codes=codes,
            revision=revision,
            operator=operator,
            use=note if uses else None,
        )
        for reference, revision, outcome, requestor, codes, name, operator, note in listed
    ]
    assert list(items(read)) == expected
    assert list(read.index_rows()) == list(event.index_rows())
    if not issues:  # as single events are found
        singles = {row for single in expected for row in single.index_rows()}
        counted = {account_row(failure.account, time_ms) for failure in failures}
        assert set(event.index_rows()) == singles | counted
    for changed in (sealed.body[:-1], sealed.body + b"\0", sealed.body[:29] + b"\xff\xff" + sealed.body[31:]):
        with pytest.raises(tv.IntegrityError):
            parse(sealed._replace(body=changed))
    with pytest.raises(tv.IntegrityError):
        parse(sealed._replace(reference=b"r" * 16))


@given(st.binary(max_size=120))
def test_any_bytes_are_an_event_or_refused(body: bytes) -> None:
    row = SealedEvent(bytes(16), 1, BATCH, b"\2" + body, bytes(16))
    with contextlib.suppress(tv.IntegrityError):
        assert parse(row).body() == row.body


@pytest.mark.parametrize(("action", "most"), [(Action.UPDATE_CARD, ITEMS_MAX), (Action.DETOKENIZE, USES_MAX)])
def test_the_largest_event_of_a_chunk_fits(action: Action, most: int) -> None:
    """Every item with a kind, a revision, the longest transaction id and, of uses, a note of its own."""
    codes = [f"CODE_{n:020}" for n in range(24)]
    builder = BatchEventBuilder(most, str)
    for row in range(most):
        chosen = tuple(codes[n] for n in range(12) if row >> n & 1) + tuple(codes[12:])
        name = row.to_bytes(16)
        note = UseNote(
            tv.Kind.REFUND, name, b"u" * 16, b"o" * 16, row, "EUR", counted=(name,) if row % 2 else ()
        )
        noted = note if action is Action.DETOKENIZE else None
        builder.note(row, b"r" * 16, row, Kind(Outcome.DENIED, f"{row:011}", chosen), f"{row:064}", noted)
    event = builder.event(NOW_MS, action)
    assert event is not None
    assert len(event.body()) <= EVENT_BODY_BYTES_MAX
    assert len(list(event.items())) == most


def test_record_batches_are_sequences_of_records() -> None:
    """Whole, sliced, by index, merged; and one of another shape is refused."""
    column = np.arange(48, dtype=np.uint8).reshape(3, 16)
    seals = np.arange(135, dtype=np.uint8).reshape(3, 45)
    tokens = [b"9" * 13, b"8" * 19, b"7" * 16]
    common: dict[str, Any] = {
        "requestor": SHOP,
        "program": "one-time",
        "revision": 1,
        "key_version": 3,
        "status": 2,
        "created_ms": 9,
    }
    batch = RecordBatch(
        tokens=tokens,
        references=column,
        pan_fingerprints=column[::-1],
        bodies=[b"1", b"22", b""],
        seals=seals,
        customers=["", "c", ""],
        last4_keys=column,
        **common,
    )
    listed = list(batch)
    assert [batch[n] for n in range(3)] == listed == batch[:]
    assert batch[-1] == listed[2]
    assert listed[1].pan_fingerprint == column[1].tobytes()
    assert list(batch.take(np.array([2, 0]))) == [listed[2], listed[0]]
    other = RecordBatch(
        tokens=[b"6" * 14],
        references=column[:1],
        pan_fingerprints=column[:1],
        bodies=[b"x"],
        seals=seals[2:],
        customers=["d"],
        last4_keys=column[:1],
        **common,
    )
    assert list(batch.with_rows(np.array([1]), other)) == [listed[0], other[0], listed[2]]
    for wrong in (
        {"tokens": [b"9" * 13, b"x" * 13, b"7" * 16]},
        {"tokens": [b"9" * 13, b"9" * 13 + b"\n" + b"9" * 13, b"7" * 16]},
        {"tokens": tokens[:2]},
        {"references": column[:, :15]},
        {"seals": seals.astype(np.int8)},
        {"bodies": [b""]},
        {"customers": [""]},
        {"last4_keys": column[:, :8]},
    ):
        arguments: dict[str, Any] = {
            "tokens": tokens,
            "references": column,
            "pan_fingerprints": column,
            "bodies": [b""] * 3,
            "seals": seals,
            "customers": [""] * 3,
            "last4_keys": column[:, :0],
            **common,
            **wrong,
        }
        with pytest.raises(tv.InvalidInputError):
            RecordBatch(**arguments)


@settings(max_examples=50)
@given(st.integers(1, 2**64 - 1))
def test_random_numbers_lie_below_their_bound(below: int) -> None:
    found = uniform(50, below)
    assert found.dtype == np.uint64
    assert len(found) == 50
    assert all(int(number) < below for number in found)


def test_random_numbers_are_uniform() -> None:
    """Chi-squared of 30,000 draws over 3 classes: above 27.6 in one of a million runs."""
    counts = np.bincount(uniform(30_000, 3).astype(np.int64), minlength=3)
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 27.6


def test_the_trail_of_batches_is_verified_exported_and_read(keys: KeyStore, store: TokenStore) -> None:
    """Nothing is found where nothing was done; a record put back shows; a token's history has its batches."""
    with vaults.open_vault(keys, store) as vault:
        issued = texts(vault.issue_many(many(20), requestor=SHOP, program="one-time", domain=TWICE))
        vault.detokenize(issued[3], use("single"))
        (before,) = store.get(issued[3:4])
        vault.detokenize_many([(token, use(n)) for n, token in enumerate([*issued, issued[3]])])
        told = vault.history(issued[3])
        assert [(event.action, event.outcome, event.revision) for event in told] == [
            (Action.ISSUE, Outcome.DONE, 1), (Action.DETOKENIZE, Outcome.DONE, 2),
            (Action.DETOKENIZE, Outcome.DONE, 3), (Action.DETOKENIZE, Outcome.DENIED, 0),
        ]  # fmt: skip
        assert [event.transaction_id for event in told] == [None, "tx-single", "tx-3", "tx-20"]
        assert vault.history(issued[3], after=1, limit=2) == told[1:3]
        assert len(vault.history(vault.get(issued[5]).reference)) == 2
    blocking = store if not hasattr(store, "store") else None
    if blocking is None:  # verifying takes the blocking store
        return
    report = tv.verify_audit(store, keys=keys)
    assert report.findings == ()
    assert report.records == 20
    lines = list(tv.export_audit(store, keys=keys))
    assert sum('"action": "ISSUE"' in line and '"genuine": true' in line for line in lines) == 20
    assert sum('"action": "DETOKENIZE"' in line for line in lines) == 22
    (now,) = store.get(issued[3:4])
    store.replace([before._replace(revision=now.revision + 1)], [])
    assert [finding.kind for finding in tv.verify_audit(store, keys=keys).findings] != []
