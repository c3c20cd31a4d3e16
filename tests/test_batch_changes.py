"""Changes of many tokens at once: each is what the single call does, and one that fails hides no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tokenvault as tv
from tests.strategies import NOW_MS
from tests.vaults import ACQUIRER, MASTERCARD, SHOP, VISA, batch_events, issue, open_vault
from tokenvault.audit.batch_event import items, parse
from tokenvault.audit.event import Action, Outcome
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.testing import FAIL, FaultSchedule, FaultyTokenStore
from tokenvault.testing.clock import ManualClock
from tokenvault.vault.batch import change as batch_change

ANY: Any = None  # for arguments that are wrong on purpose
DOMAIN = tv.Domain(merchants={"M-7"})
NEW_CARD = "4242424242424242"


class Kind(NamedTuple):
    """A change, by the batch and by the single call; `wrong` are items that are no change at all."""

    many: Callable[[tv.Vault, Sequence[Any], Any], tv.BatchResult[Any]]
    one: Callable[[tv.Vault, Any, Any], object]
    item: Callable[[Any], Any]
    wrong: Sequence[Any]


KINDS = {
    "domain": Kind(
        lambda vault, items, by: vault.update_domain_many(items, requestor=by),
        lambda vault, name, by: vault.update_domain(name, DOMAIN, requestor=by),
        lambda name: (name, DOMAIN),
        ("4", None, ("9" * 16,), ("9" * 16, "no domain"), (5, DOMAIN)),
    ),
    "token": Kind(
        lambda vault, items, by: vault.update_token_many(items, requestor=by),
        lambda vault, name, by: vault.update_token(
            name, token_expiry="2032-01", customer="customer-9", metadata={"a": "b"}, requestor=by
        ),
        lambda name: (name, {"token_expiry": "2032-01", "customer": "customer-9", "metadata": {"a": "b"}}),
        (None, ("9" * 16, None), ("9" * 16, {"unknown": 1}), ("9" * 16, {}), ("9" * 16, {"customer": 5})),
    ),
    "card": Kind(
        lambda vault, items, by: vault.update_card_many(items, requestor=by),
        lambda vault, name, by: vault.update_card(name, new_pan=NEW_CARD, expiry="2033-03", requestor=by),
        lambda name: (name, {"new_pan": NEW_CARD, "expiry": "2033-03"}),
        (None, (5, {"expiry": "2033-03"}), (VISA, {}), (VISA, {"new_pan": "4111111111111112"}), (VISA, 7)),
    ),
    "delete": Kind(
        lambda vault, items, by: vault.delete_many(items, requestor=by),
        lambda vault, name, by: vault.delete(name, requestor=by),
        lambda name: name,
        (None, 5, b"9" * 16, "", "not a token"),
    ),
}


class Scene:
    """A vault with tokens of two requestors, one deleted and one changed in the database."""

    def __init__(self, keys: KeyStore) -> None:
        self.store = MemoryTokenStore()
        tv.provision(keys, self.store)
        self.vault = open_vault(keys, self.store, ManualClock(NOW_MS))
        self.names: dict[str, Any] = {
            "of the shop": issue(self.vault).token,
            "by reference": issue(self.vault, MASTERCARD).reference,
            "deleted": issue(self.vault).token,
            "tampered": issue(self.vault).token,
            "nowhere": "9999130000000007",
            "no reference": "0" * 32,
        }
        self.vault.delete(self.names["deleted"])
        row = self.store._records[self.names["tampered"]]
        self.genuine = row
        self.store._records[row.token] = row._replace(body=row.body[:-1] + bytes((row.body[-1] ^ 1,)))

    def close(self) -> None:
        with suppress(tv.TokenVaultError):
            self.vault.close()
        self.store.close()


@pytest.fixture
def pair(local_keys: KeyStore) -> Iterator[tuple[Scene, Scene]]:
    scenes = Scene(local_keys), Scene(local_keys)
    yield scenes
    for scene in scenes:
        scene.close()


def outcome(call: Callable[[], Any]) -> tuple[str, ...]:
    try:
        return shown(call())
    except tv.TokenVaultError as error:
        return shown(error)


def shown(value: Any) -> tuple[str, ...]:
    """What of an answer does not depend on random numbers."""
    if isinstance(value, tv.IntegrityError):  # a batch does not tell which part is wrong
        return (type(value).__name__, value.code)
    if isinstance(value, tv.TokenVaultError):
        return (type(value).__name__, value.code, str(value))
    infos = value if isinstance(value, list) else [value]
    return tuple(
        f"{each.status} {each.last4} {each.card_expiry} {each.token_expiry} {each.customer} {each.revision}"
        for each in infos
    )


@pytest.mark.parametrize("by", [None, SHOP, ACQUIRER])
@pytest.mark.parametrize("kind", KINDS)
def test_each_change_of_a_batch_is_what_the_single_call_does(
    pair: tuple[Scene, Scene], kind: str, by: str | None
) -> None:
    first, second = pair
    change = KINDS[kind]
    names = list(first.names)

    one_by_one = [outcome(partial(change.one, second.vault, second.names[name], by)) for name in names]
    items = [change.item(first.names[name]) for name in names]
    if by == ACQUIRER:  # it lacks the permission: the batch is refused as a whole
        with pytest.raises(tv.PermissionDeniedError):
            change.many(first.vault, items, by)
        assert {each[0] for each in one_by_one} == {"PermissionDeniedError"}
        return
    at_once = [shown(each) for each in change.many(first.vault, items, by)]
    assert dict(zip(names, at_once, strict=True)) == dict(zip(names, one_by_one, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_items_that_are_no_change_fail_alone(pair: tuple[Scene, Scene], kind: str) -> None:
    scene, change = pair[0], KINDS[kind]
    good = change.item(scene.names["of the shop"])
    result = change.many(scene.vault, [*change.wrong, good], None)
    assert sorted(result.errors) == list(range(len(change.wrong)))
    assert all(isinstance(error, tv.InvalidInputError) for error in result.errors.values())
    assert not isinstance(result[len(change.wrong)], tv.TokenVaultError)
    many: Any = change.many
    for wrong in ("a text", 5, None):
        with pytest.raises(tv.InvalidInputError):
            many(scene.vault, wrong, None)


def test_a_token_that_comes_twice_sees_its_first_change(pair: tuple[Scene, Scene]) -> None:
    scene = pair[0]
    token = scene.names["of the shop"]
    twice = scene.vault.update_token_many(
        [(token, {"customer": "a"}), (token, {"token_expiry": "2035-05"}), (token, {"customer": "b"})]
    )
    assert [
        (each.customer, str(each.token_expiry or "")) for each in twice if isinstance(each, tv.TokenInfo)
    ] == [
        ("a", "2029-12"),
        ("a", "2035-05"),
        ("b", "2035-05"),
    ]
    info = scene.vault.get(token)
    assert (info.customer, str(info.token_expiry), info.revision) == ("b", "2035-05", 2)


def test_cards_are_changed_by_their_number_with_all_their_tokens(pair: tuple[Scene, Scene]) -> None:
    scene = pair[0]
    scene.store._records[scene.genuine.token] = scene.genuine
    more = [scene.genuine.token, issue(scene.vault, program="card-on-file").token, issue(scene.vault).token]
    changed = scene.vault.update_card_many(
        [
            (VISA, {"expiry": "2034-01"}),
            ("5105105105105100", {"expiry": "2034-01"}),
            (MASTERCARD, {"expiry": "2034-02"}),
        ]
    )
    assert isinstance(changed[0], list)
    assert {info.token for info in changed[0]} == {scene.names["of the shop"], *more}
    assert isinstance(changed[1], tv.TokenNotFoundError)
    assert changed[1].code == "CARD_HAS_NO_TOKEN"
    assert isinstance(changed[2], list)
    assert [str(info.card_expiry) for info in changed[2]] == ["2034-02"]


RENEWED = (VISA, MASTERCARD, "4242424242424242", "5105105105105100")
"""Cards that are renewed into one another."""

PLACES = st.integers(0, len(RENEWED) - 1)


def renewals(vault: tv.Vault, tokens: list[str], steps: list[tuple[bool, int, int | None]]) -> list[Any]:
    """Changes of a card each, by its number or by a token of it, with another number or only another expiry."""
    return [
        (
            RENEWED[place] if by_number else tokens[place],
            {"expiry": f"2035-{number % 12 + 1:02}"} | ({} if new is None else {"new_pan": RENEWED[new]}),
        )
        for number, (by_number, place, new) in enumerate(steps)
    ]


@settings(max_examples=40, deadline=None)
@example([(True, 0, 1), (True, 1, 2)])
@example([(True, 0, 1), (True, 0, 2)])
@example([(False, 0, 1), (True, 0, 2), (True, 1, 3)])
@given(st.lists(st.tuples(st.booleans(), PLACES, PLACES | st.none()), max_size=8))
def test_cards_that_are_renewed_into_one_another_end_as_by_single_calls(
    local_keys: KeyStore, steps: list[tuple[bool, int, int | None]]
) -> None:
    told: list[list[Any]] = []
    for many in (False, True):
        store = MemoryTokenStore()
        tv.provision(local_keys, store)
        with open_vault(local_keys, store, ManualClock(NOW_MS)) as vault:
            tokens = [issue(vault, card).token for card in (*RENEWED[:3], VISA)]
            changes = renewals(vault, tokens, steps)
            results: list[Any] = list(vault.update_card_many(changes)) if many else []
            for name, change in () if many else changes:
                try:
                    results.append(vault.update_card(name, **change))
                except tv.TokenVaultError as error:
                    results.append(error)
            ends = [(info.last4, str(info.card_expiry)) for info in map(vault.get, tokens)]
            told.append(
                [
                    each.code
                    if isinstance(each, tv.TokenVaultError)
                    else sorted(
                        (tokens.index(info.token), info.last4, str(info.card_expiry)) for info in each
                    )
                    for each in results
                ]
                + ends
            )
    assert told[0] == told[1]


def test_a_card_with_a_token_that_was_tampered_with_fails_alone(pair: tuple[Scene, Scene]) -> None:
    """With what the single call says of it; the other cards of its chunk are changed."""
    scene = pair[0]
    with pytest.raises(tv.IntegrityError) as alone:
        scene.vault.update_card(VISA, expiry="2034-01")
    first, second = scene.vault.update_card_many(
        [(VISA, {"expiry": "2034-01"}), (MASTERCARD, {"expiry": "2034-02"})]
    )
    assert isinstance(first, tv.IntegrityError)
    assert (first.code, str(first)) == (alone.value.code, str(alone.value))
    assert isinstance(second, list)
    assert [str(info.card_expiry) for info in second] == ["2034-02"]
    assert str(scene.vault.get(scene.names["of the shop"]).card_expiry) == "2029-12"


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("by", [None, SHOP])
def test_a_card_that_one_of_its_tokens_can_not_have_is_put_behind_none_of_them(
    local_keys: KeyStore, place: str, by: str | None
) -> None:
    """Singly and in a batch alike: the answer, what the tokens lead to, and what is noted."""
    told: list[object] = []
    for many in (False, True):
        store = MemoryTokenStore()
        tv.provision(local_keys, store)
        with open_vault(local_keys, store, ManualClock(NOW_MS)) as vault:
            while True:  # until the one that refuses comes first by its token, or last
                spoiled = issue(vault, VISA, domain=tv.Domain(merchants={f"M-{NEW_CARD}"}))
                free = issue(vault, VISA)
                if (spoiled.token < free.token) == (place == "first"):
                    break
                vault.delete(spoiled.token)
                vault.delete(free.token)
            answer: object
            try:
                if many:
                    (answer,) = vault.update_card_many([(VISA, {"new_pan": NEW_CARD})], requestor=by)
                else:
                    answer = vault.update_card(VISA, new_pan=NEW_CARD, requestor=by)
            except tv.InvalidInputError as error:
                answer = error
            assert isinstance(answer, tv.InvalidInputError)
            assert [info.last4 for info in map(vault.get, (spoiled.token, free.token))] == [VISA[-4:]] * 2
            noted = [
                [
                    (event.action, event.outcome, event.codes, event.requestor)
                    for event in vault.history(name)[1:]
                ]
                for name in (spoiled.token, free.token)
            ]
            assert noted == [[(Action.UPDATE_CARD, Outcome.DENIED, ("CARD_NUMBER_IN_TEXT",), by)], []]
            told.append((answer.code, str(answer), noted))
    assert told[0] == told[1]


def test_a_round_that_fails_costs_those_before_it_nothing(
    pair: tuple[Scene, Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = pair[0]
    scene.store._records[scene.genuine.token] = scene.genuine
    writes = scene.store.replace

    def fail_later(*parts: Any) -> list[str]:
        monkeypatch.setattr(scene.store, "replace", broken)
        return writes(*parts)

    def broken(*_: Any) -> list[str]:
        raise tv.TokenStoreError("the disk is full")

    monkeypatch.setattr(scene.store, "replace", fail_later)
    changed = scene.vault.update_card_many(
        [
            (MASTERCARD, {"new_pan": RENEWED[2]}),
            (RENEWED[2], {"new_pan": RENEWED[3]}),
            (MASTERCARD, {"expiry": "2034-01"}),
        ]
    )
    monkeypatch.undo()
    assert [getattr(each, "code", "") for each in changed] == ["", "STORE_FAILED", "STORE_FAILED"]
    assert scene.vault.get(scene.names["by reference"]).last4 == RENEWED[2][-4:]


def test_get_many_is_what_get_gives(pair: tuple[Scene, Scene]) -> None:
    scene = pair[0]
    names = [*scene.names.values(), 5, "no token", b"9" * 16]
    many: Any = scene.vault.get_many
    got = [shown(each) for each in many(names)]
    assert got[: len(scene.names)] == [
        outcome(partial(scene.vault.get, name)) for name in scene.names.values()
    ]
    assert {each[0] for each in got[len(scene.names) :]} == {"InvalidInputError"}


def test_changes_of_one_token_at_once_by_batches_are_all_made(local_keys: KeyStore) -> None:
    scene = Scene(local_keys)
    token = scene.names["of the shop"]
    before = scene.vault.get(token).revision

    def work(number: int) -> None:
        for step in range(10):
            done = scene.vault.update_token_many([(token, {"customer": f"c-{number}-{step}"})])
            assert not done.failed

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scene.vault.get(token).revision == before + 40
    scene.close()


def test_a_chunk_that_others_keep_changing_fails_as_a_whole_and_writes_nothing(
    pair: tuple[Scene, Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = pair[0]
    token = scene.names["of the shop"]
    replace = MemoryTokenStore._replace
    monkeypatch.setattr(batch_change, "ATTEMPTS_MAX", 3)
    monkeypatch.setattr(
        MemoryTokenStore, "_replace", lambda _store, records, *_: [row.token for row in records]
    )
    done = scene.vault.update_token_many([(token, {"customer": "a"}), (5, {})])  # type: ignore[list-item] # the second is wrong
    assert isinstance(done[0], tv.ConflictError)
    monkeypatch.setattr(MemoryTokenStore, "_replace", replace)
    assert scene.vault.get(token).customer is None


# Rows that no vault wrote, requestors that are locked out, chunks that are too large.


def test_a_row_that_the_store_refuses_fails_its_item_as_tampered_and_no_other(
    pair: tuple[Scene, Scene],
) -> None:
    """Found by its token or by its reference; as where a column was cut short."""
    scene = pair[0]
    first, second = scene.names["of the shop"], issue(scene.vault, MASTERCARD)
    kept = scene.names["by reference"]
    for token in (first, second.token):
        scene.store._records[token] = scene.store._records[token]._replace(seal=b"short")
    names = [first, kept, second.reference]
    deleted = scene.vault.delete_many(names, operator="ann")
    got = scene.vault.get_many(names)
    for results in (deleted, got):
        assert [getattr(each, "code", "") for each in results] == ["INTEGRITY", "", "INTEGRITY"]
        assert [type(each) for each in results] == [tv.IntegrityError, tv.TokenInfo, tv.IntegrityError]
        assert "columns of other types or lengths" in str(results[0])
    events = [parse(row) for row in batch_events(scene.store)]
    assert len(events) == 1, "looking at tokens is not noted"
    noted = [(item.outcome, item.reference.hex(), item.revision, item.operator) for item in items(events[0])]
    assert noted == [
        (Outcome.TAMPERED, "", 0, "ann"),
        (Outcome.DONE, kept, 2, "ann"),
        (Outcome.TAMPERED, "", 0, "ann"),
    ]


def test_a_requestor_that_guesses_in_a_chunk_changes_nothing_more_in_it(local_keys: KeyStore) -> None:
    """Each further item is refused and noted as one of a requestor that is locked out, also of a token of its own."""
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    with open_vault(local_keys, store, ManualClock(NOW_MS), guard=tv.Guard(misses=2)) as vault:
        own, before = issue(vault), issue(vault)
        names = [before.token, *(f"{9999990000000000 + number}" for number in range(3)), own.token]
        changed = vault.delete_many(names, requestor=SHOP, operator="ann")
        assert [getattr(each, "code", "") for each in changed] == [
            "", "TOKEN_NOT_FOUND", "TOKEN_NOT_FOUND", "REQUESTOR_LOCKED_OUT", "REQUESTOR_LOCKED_OUT",
        ]  # fmt: skip
        assert vault.get(own.token) == own
        (event,) = [parse(row) for row in batch_events(store)]
        assert [(item.outcome, item.codes, item.reference, item.operator) for item in items(event)] == [
            (Outcome.DONE, (), bytes.fromhex(before.reference), "ann"),
            (Outcome.NOT_FOUND, (), b"", "ann"),
            (Outcome.NOT_FOUND, (), b"", "ann"),
            (Outcome.DENIED, ("REQUESTOR_LOCKED_OUT",), b"", "ann"),
            (Outcome.DENIED, ("REQUESTOR_LOCKED_OUT",), b"", "ann"),
        ]


def test_a_requestor_that_guesses_cards_in_a_chunk_learns_of_no_card_more_in_it(
    local_keys: KeyStore,
) -> None:
    """Neither that one has tokens, nor that one of these can not have the new card."""
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    with open_vault(local_keys, store, ManualClock(NOW_MS), guard=tv.Guard(misses=2)) as vault:
        spoiled = issue(vault, VISA, domain=tv.Domain(merchants={f"M-{NEW_CARD}"}))
        cards = ("5105105105105100", "4012888888881881", VISA, "5105105105105100", MASTERCARD)
        changed = vault.update_card_many([(card, {"new_pan": NEW_CARD}) for card in cards], requestor=SHOP)
        assert [getattr(each, "code", "") for each in changed] == [
            "CARD_HAS_NO_TOKEN", "CARD_HAS_NO_TOKEN", *["REQUESTOR_LOCKED_OUT"] * 3,
        ]  # fmt: skip
        assert vault.get(spoiled.token) == spoiled


def test_a_card_with_more_tokens_than_an_event_lists_fails_alone_and_none_of_these_is_changed(
    pair: tuple[Scene, Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The border: as many tokens as an event lists are changed, with those of the items before."""
    scene = pair[0]
    scene.store._records[scene.genuine.token] = scene.genuine
    have = len(scene.vault.tokens_of(VISA))
    monkeypatch.setattr(batch_change, "ITEMS_MAX", have)
    both: list[Any] = [(VISA, {"expiry": "2034-01"}), (MASTERCARD, {"expiry": "2034-01"})]
    changed, refused = scene.vault.update_card_many(both)
    assert isinstance(refused, tv.InvalidInputError)
    assert (refused.code, "change this one by itself" in str(refused)) == ("INVALID_INPUT", True)
    assert {str(info.card_expiry) for info in scene.vault.tokens_of(MASTERCARD)} == {"2029-12"}
    assert isinstance(changed, list)
    assert [str(info.card_expiry) for info in changed] == ["2034-01"] * have


def test_a_card_with_too_many_tokens_to_read_fails_alone(
    pair: tuple[Scene, Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = pair[0]
    scene.store._records[scene.genuine.token] = scene.genuine
    monkeypatch.setattr("tokenvault.vault.core.CARD_PAGE", 1)
    monkeypatch.setattr("tokenvault.vault.core.CARD_PAGES_MAX", 1)
    token = issue(scene.vault, MASTERCARD).token
    changes: list[Any] = [(VISA, {"expiry": "2034-01"}), (token, {"expiry": "2034-01"})]
    refused, changed = scene.vault.update_card_many(changes)
    assert isinstance(refused, tv.TokenStoreError)
    assert refused.code == "TOO_MANY_TOKENS"
    assert isinstance(changed, list)


def test_a_database_that_fails_while_the_tokens_of_a_card_are_read_fails_every_item(
    local_keys: KeyStore,
) -> None:
    store, schedule = MemoryTokenStore(), FaultSchedule()
    tv.provision(local_keys, store)
    with open_vault(local_keys, FaultyTokenStore(store, schedule)) as vault:
        token = issue(vault, MASTERCARD).token
        schedule.set([FAIL] * 100)
        changes: list[Any] = [(VISA, {"expiry": "2034-01"}), (token, {"expiry": "2034-01"})]
        assert [each.code for each in vault.update_card_many(changes)] == ["STORE_FAILED"] * 2  # type: ignore[union-attr] # each is an error
        schedule.set([])
        assert str(vault.get(token).card_expiry) != "2034-01"


def test_a_token_that_only_looks_like_a_str_is_refused_item_by_item(pair: tuple[Scene, Scene]) -> None:
    """It could compare unlike its digits, so that the look-up and the answer mean two tokens."""

    class Sly(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash("9" * 16)

    scene = pair[0]
    token = scene.names["of the shop"]
    used = tv.Transaction(id="tx-1", requestor=SHOP)
    uses = [(Sly(token), used), (token, used)]
    for first, second in (
        scene.vault.detokenize_many(uses),
        scene.vault.check_many(uses),
        scene.vault.get_many([Sly(token), token]),
        scene.vault.delete_many([Sly(token), token]),
    ):
        assert isinstance(first, tv.InvalidInputError)
        assert (first.code, str(first)) == ("INVALID_INPUT", "a token is a str of 13 to 19 ASCII digits")
        assert not isinstance(second, tv.TokenVaultError)
