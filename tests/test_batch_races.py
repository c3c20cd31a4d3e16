"""A chunk beside what others do meanwhile, and among rows that no vault wrote: as single calls, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.test_batches import CountingStore, many, texts
from tests.vaults import MASTERCARD, SHOP, VISA, all_records, batch_events, issue, use
from tokenvault import maintenance
from tokenvault.audit.batch_event import items, parse
from tokenvault.audit.event import Action, Outcome
from tokenvault.keys import KeyStore
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.records.keyring import KeyRing
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import SealedEvent, SealedRecord
from tokenvault.testing.clock import ManualClock
from tokenvault.vault.batch import existing_tokens
from tokenvault.vault.batch import issue as batch_issue
from tokenvault.vault.batch import use as batch_use

AMEX = "378282246310005"
CARDS = (VISA, MASTERCARD, AMEX)


@pytest.fixture
def records(local_keys: KeyStore) -> Iterator[MemoryTokenStore]:
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store)
        yield store


@pytest.fixture
def counting(records: MemoryTokenStore) -> CountingStore:
    return CountingStore(records)


@pytest.fixture
def vault(local_keys: KeyStore, counting: CountingStore) -> Iterator[tv.Vault]:
    opened: Any = counting
    with vaults.open_vault(local_keys, opened, ManualClock(NOW_MS)) as vault:
        yield vault


def converge(vault: tv.Vault, *pans: str) -> tv.IssueBatchResult[tv.TokenInfo]:
    return vault.issue_many([(pan, "2029-12") for pan in pans], requestor=SHOP, program="card-on-file")


def listed(event: SealedEvent) -> list[tuple[Outcome, tuple[str, ...], int]]:
    """What an event says of each item of a chunk."""
    return [(item.outcome, item.codes, item.revision) for item in items(parse(event))]


def codes(results: Any) -> list[str]:
    """The code of each item's error; empty where it has none."""
    return [getattr(each, "code", "") for each in results]


def reseal(keys: KeyStore, records: MemoryTokenStore, token: str, **fields: Any) -> SealedRecord:
    """Write a record that the vault's keys sealed, and that no vault writes so."""
    ring = KeyRing(keys)
    record, card = ring.unseal(records._records[token])
    records._records[token] = ring.seal(record._replace(**fields), card)
    return records._records[token]


# Cards that have tokens already.


def test_a_record_that_no_vault_writes_fails_its_card_and_no_other_that_converges(
    local_keys: KeyStore, records: MemoryTokenStore, vault: tv.Vault
) -> None:
    """As one that was sealed with a card and says that it has none: the card gets no second token beside it."""
    broken, kept = texts(converge(vault, "5105105105105100", MASTERCARD))
    vault.update_card(broken, new_pan=VISA)  # which would get another candidate
    reseal(local_keys, records, broken, status=TokenStatus.DELETED)
    with pytest.raises(tv.IntegrityError) as alone:
        issue(vault, VISA, program="card-on-file")
    first, second, third = converge(vault, VISA, MASTERCARD, AMEX)
    assert isinstance(first, tv.IntegrityError)
    assert (first.code, str(first)) == (alone.value.code, str(alone.value))
    assert isinstance(second, tv.TokenInfo)
    assert second.token == kept
    assert isinstance(third, tv.TokenInfo)
    assert len(all_records(records)) == 3


@pytest.mark.parametrize("pages", [1, 2, 3])
def test_tokens_of_a_chunk_are_looked_up_page_by_page_and_card_by_card_where_they_are_too_many(
    vault: tv.Vault, counting: CountingStore, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    """Five tokens on pages of two: the answers are the same, and so is the number of events where they fit."""
    monkeypatch.setattr(existing_tokens, "PAGE_MAX", 2)
    monkeypatch.setattr(existing_tokens, "PAGES_MAX", pages)
    cards = [pan for pan, _ in many(5)]
    tokens = texts(converge(vault, *cards))
    counting.calls.clear()
    again = converge(vault, *cards, *cards)
    assert texts(again) == tokens * 2
    if pages == 3:  # by the PAN fingerprints, and by those of tokens that were deleted
        assert counting.calls == ["find"] * 3 + ["find"] + ["append"]
        assert len(batch_events(counting)) == 2
    else:
        assert counting.calls[:pages] == ["find"] * pages
        assert counting.calls.count("append") == 10, "single calls, each with its event"


# What the database answers.


class Answering(CountingStore):
    """A store that answers `get` and `by_reference` as it is told."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.answers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        method = super().__getattr__(name)
        if name not in self.answers:
            return method

        def answered(*args: Any, **kwargs: Any) -> Any:
            return self.answers[name](method(*args, **kwargs), *args)

        return answered


@pytest.mark.parametrize("wrong", ["another's", "one too many", "one twice"])
def test_a_chunk_for_which_the_database_answers_with_the_records_of_others_hands_out_no_card(
    local_keys: KeyStore, records: MemoryTokenStore, wrong: str
) -> None:
    store: Any = Answering(records)
    with vaults.open_vault(local_keys, store) as vault:
        other, *asked = [issue(vault, pan).token for pan in (VISA, MASTERCARD, AMEX)]
        (others,) = records.get([other])
        answers: dict[str, Any] = {
            "another's": lambda rows, _: [others, *rows[1:]],
            "one too many": lambda rows, _: [*rows, others],
            "one twice": lambda rows, _: [*rows, rows[0]],
        }
        store.answers["get"] = answers[wrong]
        found = vault.detokenize_many([(token, use(n)) for n, token in enumerate(asked)])
        got = vault.get_many(asked)
        deleted = vault.delete_many(asked)
        store.answers.clear()
        for results in (found, got, deleted):
            assert codes(results) == ["INTEGRITY"] * 2
            assert {str(each) for each in results} == {"the database answered with another token's record"}
        assert {vault.get(token).revision for token in (other, *asked)} == {1}
        assert codes(vault.detokenize_many([(token, use()) for token in asked])) == ["", ""]


def test_a_reference_for_which_the_database_answers_with_another_record_hands_out_no_card(
    local_keys: KeyStore, records: MemoryTokenStore
) -> None:
    store: Any = Answering(records)
    with vaults.open_vault(local_keys, store) as vault:
        other, asked = issue(vault, VISA), issue(vault, MASTERCARD)
        (others,) = records.get([other.token])
        store.answers["by_reference"] = lambda row, _: others
        found = vault.detokenize_many([(asked.reference, use(1))])
        store.answers.clear()
        assert codes(found) == ["INTEGRITY"]
        assert str(found[0]) == "the database answered with another token's record"
        assert codes(vault.detokenize_many([(asked.reference, use(1)), (other.reference, use(1))])) == [
            "",
            "",
        ]


def test_a_reference_whose_row_the_store_refuses_fails_alone(
    records: MemoryTokenStore, vault: tv.Vault
) -> None:
    broken, kept = issue(vault, VISA), issue(vault, MASTERCARD)
    records._records[broken.token] = records._records[broken.token]._replace(seal=b"short")
    uses = [(name, use(n)) for n, name in enumerate((broken.reference, kept.reference, kept.token))]
    for results in (vault.detokenize_many(uses), vault.check_many(uses)):
        assert codes(results) == ["INTEGRITY", "", ""]
        assert type(results[0]) is tv.IntegrityError
    assert [card.pan.reveal() for card in vault.detokenize_many(uses) if isinstance(card, tv.Card)] == [
        MASTERCARD
    ] * 2


# Uses.


def test_records_that_no_vault_writes_are_refused_as_tampered_use_by_use(
    local_keys: KeyStore, records: MemoryTokenStore, vault: tv.Vault
) -> None:
    """Two that are decided on together; the use of a third one is allowed."""
    tokens = [issue(vault, pan).token for pan in CARDS]
    for token in tokens[:2]:
        reseal(local_keys, records, token, status=TokenStatus.DELETED)
    with pytest.raises(tv.IntegrityError) as alone:
        vault.get(tokens[0])
    uses = [(token, use(n)) for n, token in enumerate(tokens)]
    for results in (vault.check_many(uses), vault.detokenize_many(uses)):
        assert codes(results) == ["INTEGRITY", "INTEGRITY", ""]
        assert [str(each) for each in results][:2] == [str(alone.value)] * 2
    noted = [
        [(item.outcome, item.reference, item.transaction_id) for item in items(parse(event))]
        for event in batch_events(records)
    ]
    references = [records._records[token].reference for token in tokens]
    refused = [(Outcome.TAMPERED, references[n], f"tx-{n}") for n in range(2)]
    assert noted == [refused, [*refused, (Outcome.DONE, references[2], "tx-2")]]


def test_a_chunk_of_which_others_change_another_token_before_each_write_counts_each_use_once(
    local_keys: KeyStore, records: MemoryTokenStore, vault: tv.Vault, counting: CountingStore
) -> None:
    """After the last try of the chunk all of it goes to single calls: none is answered and not written."""
    twice = tv.Domain(limits=(tv.Limit(uses=2),))
    times = batch_use.ATTEMPTS_MAX + 1
    cards = [pan for pan, _ in many(times + 1)]
    tokens = [issue(vault, pan, domain=twice).token for pan in cards]
    turns = count()
    with vaults.open_vault(local_keys, records) as other:

        def change(name: str) -> None:
            if name == "replace" and (turn := next(turns)) < times:
                other.detokenize(tokens[turn], use(f"other-{turn}"))

        counting.before = change
        found = vault.detokenize_many([(token, use(n)) for n, token in enumerate(tokens)])
        counting.before = lambda _: None
        assert [card.pan.reveal() for card in found if isinstance(card, tv.Card)] == cards
        left = [[each.left for each in other.remaining(token)] for token in tokens]
        assert left == [[0]] * times + [[1]]
        for n, token in enumerate(tokens):
            ids = sorted(str(event.transaction_id) for event in other.history(token) if event.revision > 1)
            assert ids == sorted([f"tx-{n}", *([f"tx-other-{n}"] if n < times else [])])
    # The tries of the chunk, then a single call for each token.
    assert next(turns) == batch_use.ATTEMPTS_MAX + len(tokens)
    assert not [event for event in batch_events(records) if parse(event).action is Action.DETOKENIZE]


def test_uses_for_whose_counters_an_event_has_no_room_are_recorded_by_single_calls(
    records: MemoryTokenStore, vault: tv.Vault
) -> None:
    """Twelve tokens with sixteen limits each, none with those of another: the event names each counter."""
    cards = [pan for pan, _ in many(12)]
    tokens = [
        issue(
            vault,
            pan,
            domain=tv.Domain(
                limits=tuple(tv.Limit(uses=1, merchants={f"{n}-{limit}"}) for limit in range(16))
            ),
        ).token
        for n, pan in enumerate(cards)
    ]
    found = vault.detokenize_many([(token, use(n)) for n, token in enumerate(tokens)])
    assert [card.pan.reveal() for card in found if isinstance(card, tv.Card)] == cards
    assert {left.left for token in tokens for left in vault.remaining(token)} == {0}
    (event,) = [event for event in batch_events(records) if parse(event).action is Action.DETOKENIZE]
    # 1 byte and 16 keys of 16 bytes for each use, after the 1 byte of uses without counters.
    assert 1 + 10 * 257 < batch_use.COUNTED_BYTES_FREE + batch_use.COUNTED_BYTES_EACH * 12 < 1 + 11 * 257
    assert listed(event) == [(Outcome.DONE, (), 2)] * 11


# Issuing.


def test_convergent_tokens_that_others_issue_before_each_write_are_the_same_in_the_end(
    local_keys: KeyStore, records: MemoryTokenStore, vault: tv.Vault, counting: CountingStore
) -> None:
    """After so many tries the cards are issued singly, and the tokens that were there already are noted once."""
    times = batch_issue.WRITES_MAX
    old, *cards = [pan for pan, _ in many(times + 3)]
    before = issue(vault, old, program="card-on-file")
    turns, theirs = count(), dict[str, str]()
    with vaults.open_vault(local_keys, records, ManualClock(NOW_MS)) as other:

        def meddle(name: str) -> None:
            if name == "insert" and (turn := next(turns)) < times:
                theirs[cards[turn]] = issue(other, cards[turn], program="card-on-file").token

        counting.before = meddle
        issued = texts(converge(vault, old, *cards))
        counting.before = lambda _: None
        assert issued[0] == before.token
        assert dict(zip(cards, issued[1:], strict=True)) | theirs == dict(zip(cards, issued[1:], strict=True))
        assert [other.detokenize(token, use()).pan.reveal() for token in issued] == [old, *cards]
    assert {row.token for row in all_records(records)} == set(issued)
    (event,) = batch_events(records)
    assert [(item.outcome, item.reference.hex(), item.revision) for item in items(parse(event))] == [
        (Outcome.DONE, before.reference, 0)
    ]
    # The first card, the tries of the chunk, and the cards that no other issued.
    assert counting.calls.count("insert") == 1 + times + (len(cards) - times)
    vault.close()
    assert tv.verify_audit(records, keys=local_keys).intact


def test_a_fingerprint_key_that_changes_in_a_chunk_of_convergent_cards_is_the_one_they_are_derived_with(
    own_keys: KeyStore,
) -> None:
    """As every other vault derives them: written under the key before, a card could get two tokens."""
    store: Any = CountingStore(MemoryTokenStore())
    tv.provision(own_keys, store, key_delay=timedelta(milliseconds=100))
    maintenance.add_key_version(own_keys, store, tv.KeyPurpose.FINGERPRINT)
    finds = count()
    with vaults.open_vault(own_keys, store, ManualClock(NOW_MS)) as vault:
        core = vault._core
        assert core is not None

        def change(name: str) -> None:
            if name == "find" and next(finds) == 0:
                assert core.keys.fingerprint_versions[0] == 1
                maintenance.make_primary(own_keys, store, tv.KeyPurpose.FINGERPRINT, 2)
                core.key_versions._read_again_at = 0.0

        store.before = change
        issued = texts(converge(vault, *CARDS))
        store.before = lambda _: None
        ring, program = core.keys, vaults.CONVERGENT
        assert ring.fingerprint_versions[0] == 2
        for pan, token in zip(map(tv.Pan.parse, CARDS), issued, strict=True):
            fingerprint = ring.pan_fingerprint(pan)
            chosen = ring.convergent_choice(fingerprint, SHOP, program.name, "", 0)
            choice = chosen % program.format.choices(len(pan))
            assert token == program.format.make(choice, len(pan), pan.last4)
            assert store.get([token])[0].pan_fingerprint == fingerprint
        assert texts(converge(vault, *CARDS)) == issued


def test_a_domain_that_a_card_of_a_batch_comes_with_holds_for_its_token_in_every_vault(
    local_keys: KeyStore, records: MemoryTokenStore, vault: tv.Vault
) -> None:
    """Of two cards with domains of their own, and one with that of all; a card that is refused leaves no document."""
    shops = [tv.Domain(merchants={name}) for name in ("M-1", "M-2", "M-3", "M-4")]
    cards: list[Any] = [
        {"pan": VISA, "domain": shops[0]},
        {"pan": MASTERCARD, "domain": shops[1]},
        {"pan": AMEX},
        {"pan": VISA, "expiry": "2020-01", "domain": shops[3]},
    ]
    issued = vault.issue_many(cards, requestor=SHOP, program="one-time", domain=shops[2])
    assert codes(issued) == ["", "", "", "CARD_EXPIRED"]
    tokens = texts(issued)[:3]
    assert {domain.digest for domain in shops[:3]} == set(records._domains)
    with vaults.open_vault(local_keys, records, ManualClock(NOW_MS)) as other:
        assert [other.domain(token) for token in tokens] == shops[:3]
        for n, token in enumerate(tokens):
            allowed = [bool(other.check(token, use(merchant=f"M-{m + 1}"))) for m in range(3)]
            assert allowed == [m == n for m in range(3)]
