"""Dual control: no person alone gets a card number out, no approval serves twice, and every attempt is an event."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.vaults import MASTERCARD, VISA, all_events, issue
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.keys import KeyStore
from tokenvault.model import dual_control
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.index_rows import IndexRow
from tokenvault.stores.port import SealedEvent, TokenStore
from tokenvault.testing.clock import ManualClock

MINUTE_MS = 60_000
LIFE_MS = 15 * MINUTE_MS
DAY_MS = 86_400_000


@pytest.fixture
def vault(keys: KeyStore, store: TokenStore, clock: ManualClock) -> tv.Vault:
    return vaults.open_vault(keys, store, clock)


def asked(vault: tv.Vault, token: str, operator: str = "alice") -> tv.RevealRequest:
    return vault.request_reveal(token, operator=operator, purpose="chargeback")


def approved(vault: tv.Vault, token: str) -> str:
    return vault.approve(asked(vault, token), operator="bob").id


def steps(vault: tv.Vault, token: str) -> list[str]:
    """What the trail says of a token under dual control."""
    shown = [event for event in vault.history(token) if event.action in DUAL_CONTROL]
    return [f"{event.action.name} {event.outcome.name} {event.operator} {event.codes}" for event in shown]


DUAL_CONTROL = {Action.REQUEST_REVEAL, Action.APPROVE_REVEAL, Action.REVEAL}


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(tv.TokenVaultError) as refused:
        call()
    return refused.value.code


def test_two_persons_get_one_card_number_and_three_events(vault: tv.Vault) -> None:
    token = issue(vault)
    request = asked(vault, token.reference)
    assert (request.requested_by, request.purpose, request.approved_by) == ("alice", "chargeback", None)
    assert (request.expires - request.requested).total_seconds() == 900
    done = vault.approve(request.id, operator="bob")
    assert (done.approved_by, done.reference, done.id) == ("bob", token.reference, request.id)
    card = vault.reveal(request, operator="alice")
    assert (card.pan.reveal(), str(card.expiry)) == (VISA, "2029-12")
    assert steps(vault, token.token) == [
        "REQUEST_REVEAL DONE alice ('chargeback',)",
        "APPROVE_REVEAL DONE bob ('chargeback',)",
        "REVEAL DONE alice ('chargeback',)",
    ]
    assert {event.transaction_id for event in vault.history(token.token)[1:]} == {request.id[32:]}


@pytest.mark.parametrize(
    "same",
    ["alice", "ALICE", "Alice ", " alice", "a lice", "al  ice", "\N{FULLWIDTH LATIN SMALL LETTER A}lice"],
)
def test_one_person_under_any_spelling_approves_nothing_of_their_own(vault: tv.Vault, same: str) -> None:
    token = issue(vault).token
    request = asked(vault, token)
    assert refusal(lambda: vault.approve(request, operator=same)) == "SAME_PERSON"
    assert refusal(lambda: vault.reveal(request, operator="alice")) == "REQUEST_NOT_APPROVED"
    assert [step.split()[1] for step in steps(vault, token)] == ["DONE", "DENIED", "DENIED"]


@pytest.mark.parametrize(
    "name", ["\N{CYRILLIC SMALL LETTER A}lice", "ali\u200bce", "", " ", "b" * 65, None, 7]
)
def test_a_name_that_could_pass_for_another_is_no_operator(vault: tv.Vault, name: str) -> None:
    request = asked(vault, issue(vault).token)
    assert refusal(lambda: vault.approve(request, operator=name)) == "INVALID_INPUT"


def test_each_attempt_of_a_name_that_is_refused_is_an_event_without_it(
    vault: tv.Vault, store: TokenStore
) -> None:
    token, number = issue(vault).token, "0" * 12
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    request = asked(vault, token)
    export = vault.request_export(public_key=pem, operator="alice", purpose="chargeback")
    calls: tuple[Callable[[str], object], ...] = (
        lambda name: asked(vault, token, name),
        lambda name: vault.approve(request, operator=name),
        lambda name: vault.reveal(request, operator=name),
        lambda name: vault.request_export(public_key=pem, operator=name, purpose="chargeback"),
        lambda name: vault.approve(export, operator=name),
        lambda name: vault.export_cards(export, public_key=pem, operator=name, to=io.StringIO()),
    )
    for call in calls:
        assert refusal(partial(call, "\N{CYRILLIC SMALL LETTER A}lice")) == "INVALID_INPUT"
        assert refusal(partial(call, number)) == "OPERATOR_COULD_BE_CARD"
    vault.close()
    (stream,) = store.streams()
    events = map(Event.parse, all_events(store, stream))
    denied = [event for event in events if event.outcome is Outcome.DENIED]
    actions = ("REQUEST_REVEAL", "APPROVE_REVEAL", "REVEAL", "REQUEST_EXPORT", "APPROVE_EXPORT", "EXPORT")
    assert [(event.action.name, event.codes, event.operator) for event in denied] == [
        (action, (code,), None) for action in actions for code in ("INVALID_INPUT", "OPERATOR_COULD_BE_CARD")
    ]


@pytest.mark.parametrize("name", [VISA, "4111-1111-1111-1111", f"staff {VISA}", "0" * 12])
def test_an_operator_whose_name_could_be_a_card_number_is_refused(vault: tv.Vault, name: str) -> None:
    """An event holds no such name as it is, so that two persons could look like one, or one like two."""
    token = issue(vault).token
    assert refusal(lambda: asked(vault, token, name)) == "OPERATOR_COULD_BE_CARD"


def test_an_approval_is_good_for_one_time_one_token_and_who_asked(vault: tv.Vault) -> None:
    first, second = issue(vault), issue(vault, MASTERCARD)
    request = approved(vault, first.token)
    elsewhere = dual_control.letters(bytes.fromhex(second.reference)) + request[32:]
    assert refusal(lambda: vault.reveal(elsewhere, operator="alice")) == "REQUEST_UNKNOWN"
    assert refusal(lambda: vault.reveal(request[:32] + 32 * "b", operator="alice")) == "REQUEST_UNKNOWN"
    assert refusal(lambda: vault.reveal(64 * "b", operator="alice")) == "TOKEN_NOT_FOUND"
    assert refusal(lambda: vault.reveal(request, operator="bob")) == "NOT_WHO_ASKED"
    assert refusal(lambda: vault.reveal(request, operator="carol")) == "NOT_WHO_ASKED"
    assert refusal(lambda: vault.approve(request, operator="carol")) == "REQUEST_APPROVED"
    assert vault.reveal(request, operator="Alice").pan.reveal() == VISA
    assert refusal(lambda: vault.reveal(request, operator="alice")) == "REQUEST_USED"
    assert refusal(lambda: vault.approve(request, operator="carol")) == "REQUEST_USED"
    assert len(steps(vault, first.token)) == 2 + 1 + 6
    assert steps(vault, second.token) == ["REVEAL DENIED alice ('REQUEST_UNKNOWN',)"]


@pytest.mark.parametrize("moved", [LIFE_MS, LIFE_MS + DAY_MS, -2 * MINUTE_MS])
def test_a_late_approval_gives_nothing_and_a_clock_set_back_no_more_time(
    vault: tv.Vault, clock: ManualClock, moved: int
) -> None:
    token = issue(vault).token
    waiting, ready = asked(vault, token), approved(vault, token)
    clock.advance(moved)
    assert refusal(lambda: vault.approve(waiting, operator="bob")) == "REQUEST_LATE"
    assert refusal(lambda: vault.reveal(ready, operator="alice")) == "REQUEST_LATE"
    clock.advance(-moved + LIFE_MS - 1)
    assert vault.reveal(ready, operator="alice").pan.reveal() == VISA


def test_a_person_makes_as_many_requests_a_day_as_the_policy_says(
    vault: tv.Vault, clock: ManualClock
) -> None:
    token = issue(vault).token
    for _ in range(5):
        asked(vault, token)
    for again in ("alice", "ALICE"):
        assert refusal(partial(asked, vault, token, again)) == "REQUESTS_EXCEEDED"
    assert asked(vault, token, "carol").requested_by == "carol"
    clock.advance(DAY_MS)
    assert asked(vault, token).requested_by == "alice"
    assert [step.split()[1] for step in steps(vault, token)].count("DENIED") == 2


def test_requests_of_one_person_at_once_do_not_exceed_the_day(vault: tv.Vault) -> None:
    token = issue(vault).token

    def one(_number: int) -> str:
        try:
            return asked(vault, token).purpose
        except tv.PermissionDeniedError as refused:
            return refused.code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(24)))
    assert sorted(answers) == [*["REQUESTS_EXCEEDED"] * 19, *["chargeback"] * 5]


def test_named_values_that_are_taken_away_give_a_person_no_further_request(
    keys: KeyStore, tmp_path: Path
) -> None:
    """The events of the day are counted too: to take those away breaks the trail."""
    store = tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")
    tv.provision(keys, store)
    with closing(store), vaults.open_vault(keys, store) as vault:
        token = issue(vault).token
        for _ in range(5):
            asked(vault, token)
        with closing(sqlite3.connect(tmp_path / "vault.db")) as database, database:
            assert database.execute("DELETE FROM meta WHERE name LIKE 'requested/%'").rowcount == 5
        assert refusal(lambda: asked(vault, token)) == "REQUESTS_EXCEEDED"


@pytest.mark.parametrize("purpose", ["curiosity", "", "Chargeback", VISA, None, ["chargeback"]])
def test_a_purpose_is_one_that_the_policy_lists(vault: tv.Vault, store: TokenStore, purpose: str) -> None:
    token = issue(vault).token
    assert (
        refusal(lambda: vault.request_reveal(token, operator="alice", purpose=purpose))
        == "PURPOSE_NOT_ALLOWED"
    )
    last = Event.parse([row for stream in store.streams() for row in all_events(store, stream)][-1])
    assert (last.action, last.outcome, last.codes) == (
        Action.REQUEST_REVEAL, Outcome.DENIED, ("PURPOSE_NOT_ALLOWED",)
    )  # fmt: skip


def test_a_purpose_that_is_struck_off_and_a_vault_without_policy_give_nothing(
    keys: KeyStore, store: TokenStore, vault: tv.Vault
) -> None:
    token = issue(vault).token
    request = approved(vault, token)
    other = tv.RevealPolicy(purposes={"fraud inquiry"})
    with vaults.open_vault(keys, store, reveal=other) as stricter:
        assert refusal(lambda: stricter.reveal(request, operator="alice")) == "PURPOSE_NOT_ALLOWED"
    with vaults.open_vault(keys, store, reveal=None) as without:
        for call in (
            lambda: asked(without, token),
            lambda: without.approve(request, operator="bob"),
            lambda: without.reveal(request, operator="alice"),
        ):
            assert refusal(call) == "REVEAL_NOT_CONFIGURED"
    assert vault.reveal(request, operator="alice").pan.reveal() == VISA


def test_a_token_that_is_not_there_or_deleted_gives_nothing(vault: tv.Vault, store: TokenStore) -> None:
    token = issue(vault)
    request = approved(vault, token.token)
    vault.delete(token.token)
    assert refusal(lambda: vault.reveal(request, operator="alice")) == "STATUS_NOT_FITTING"
    assert refusal(lambda: asked(vault, token.reference)) == "STATUS_NOT_FITTING"
    assert refusal(lambda: asked(vault, "9" * 16)) == "TOKEN_NOT_FOUND"
    rows = [Event.parse(row) for stream in store.streams() for row in all_events(store, stream)]
    assert [(event.outcome, event.operator) for event in rows[-3:]] == [
        (Outcome.DENIED, "alice"), (Outcome.DENIED, "alice"), (Outcome.NOT_FOUND, "alice")
    ]  # fmt: skip


def test_suspended_and_expired_tokens_are_revealed_too(vault: tv.Vault, clock: ManualClock) -> None:
    """A dispute comes late: what a token may pay for has no bearing on it."""
    token = issue(vault).token
    vault.suspend(token, by=tv.Actor.ISSUER)
    clock.advance(10 * 365 * DAY_MS)
    assert vault.reveal(approved(vault, token), operator="alice").pan.reveal() == VISA


class Between(Forwarding):
    """A store that does something else just before the first call of one method."""

    def __init__(self, store: TokenStore, method: str, other: Callable[[], object]) -> None:
        self.write_limits = store.write_limits
        self._store, self._method, self._waiting = store, method, [other]

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == self._method and self._waiting:
            self._waiting.pop()()
        return getattr(self._store, name)(*args, **kwargs)


def memory(keys: KeyStore) -> TokenStore:
    store = tv.open_token_store("memory:")
    tv.provision(keys, store)
    return store


def test_a_deletion_that_was_acknowledged_holds_for_a_reveal_under_way(keys: KeyStore) -> None:
    store = memory(keys)
    with vaults.open_vault(keys, store) as vault:
        token = issue(vault).token
        request = approved(vault, token)
        with vaults.open_vault(keys, Between(store, "append", lambda: vault.delete(token))) as other:
            assert refusal(lambda: other.reveal(request, operator="alice")) == "STATUS_NOT_FITTING"


def test_no_card_number_leaves_before_its_event_is_written(keys: KeyStore) -> None:
    def fail() -> None:
        raise tv.TokenStoreError("the database is away")

    store = memory(keys)
    with vaults.open_vault(keys, store) as vault:
        token = issue(vault).token
        request = approved(vault, token)
        with vaults.open_vault(keys, Between(store, "append", fail)) as other:
            assert refusal(lambda: other.reveal(request, operator="alice")) == "STORE_FAILED"
        assert refusal(lambda: vault.reveal(request, operator="alice")) == "REQUEST_USED"


# Who writes to the database.


def test_a_named_value_that_is_taken_away_makes_no_request_fresh_again(
    keys: KeyStore, tmp_path: Path
) -> None:
    store = tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")
    tv.provision(keys, store)
    with closing(store), vaults.open_vault(keys, store) as vault:
        request = approved(vault, issue(vault).token)
        vault.reveal(request, operator="alice")
        with closing(sqlite3.connect(tmp_path / "vault.db")) as database, database:
            assert database.execute("DELETE FROM meta WHERE name LIKE 'used/%'").rowcount == 1
        assert refusal(lambda: vault.reveal(request, operator="alice")) == "REQUEST_USED"


def forged(request: str, action: Action, operator: str, mac: bytes) -> SealedEvent:
    """An event of a request that no vault wrote, with the rows of the index that would lead to it."""
    reference, number = dual_control.request_id(request)
    event = Event(
        time_ms=NOW_MS, action=action, outcome=Outcome.DONE, reference=reference,
        transaction_id=request[32:], operator=operator, codes=("chargeback",),
    )  # fmt: skip
    return SealedEvent(bytes(15) + b"x", 1, reference, event.body(), mac, (IndexRow(reference, number),))


def test_an_approval_that_no_vault_wrote_gives_nothing(vault: tv.Vault, store: TokenStore) -> None:
    token = issue(vault).token
    request = asked(vault, token).id
    store.append([forged(request, Action.APPROVE_REVEAL, "bob", bytes(16))])
    assert refusal(lambda: vault.reveal(request, operator="alice")) == "EVENT_NOT_GENUINE"
    assert steps(vault, token)[-1] == "REVEAL TAMPERED alice ()"


def test_an_approval_of_another_request_is_none_of_this_one(keys: KeyStore, tmp_path: Path) -> None:
    """Nor a copy of it: neither its own row, nor a row of the index that leads to it."""
    store = tv.open_token_store(f"sqlite:///{tmp_path}/vault.db")
    tv.provision(keys, store)
    with closing(store), vaults.open_vault(keys, store) as vault:
        token = issue(vault).token
        other = approved(vault, token)
        request = asked(vault, token).id
        reference, number = dual_control.request_id(request)
        with closing(sqlite3.connect(tmp_path / "vault.db")) as database, database:
            added = database.execute(
                "INSERT INTO event_index (reference, use_id, stream, number)"
                " SELECT reference, ?, stream, number FROM event_index WHERE use_id = ? AND reference = ?",
                (number, dual_control.request_id(other)[1], reference),
            )
            assert added.rowcount == 2
        assert refusal(lambda: vault.reveal(request, operator="alice")) == "REQUEST_NOT_APPROVED"
        found = next(
            row for row in all_events(store, store.streams()[0]) if Event.parse(row).operator == "bob"
        )
        store.append([found._replace(stream=bytes(16), index_rows=(IndexRow(reference, number),))])
        assert refusal(lambda: vault.reveal(request, operator="alice")) == "EVENT_NOT_GENUINE"
        assert not tv.verify_audit(store, keys=keys).intact


def test_the_trail_of_reveals_verifies(vault: tv.Vault, store: TokenStore, keys: KeyStore) -> None:
    token = issue(vault).token
    request = approved(vault, token)
    vault.reveal(request, operator="alice")
    refusal(lambda: vault.reveal(request, operator="alice"))
    vault.close()
    assert tv.verify_audit(store, keys=keys).intact


@pytest.mark.parametrize(
    "wrong",
    [{"purposes": []}, {"purposes": {VISA}}, {"purposes": {""}}, {"minutes": 0}, {"minutes": 1_441},
     {"minutes": True}, {"per_person_and_day": 0}, {"per_person_and_day": 10_001}],
)  # fmt: skip
def test_a_policy_has_bounds(wrong: dict[str, object]) -> None:
    with pytest.raises(tv.InvalidInputError):
        tv.RevealPolicy(**{"purposes": {"chargeback"}, **wrong})  # type: ignore[arg-type] # the point


def test_letters_are_read_as_they_are_written_and_nothing_else_is() -> None:
    value = bytes(range(32))
    assert dual_control.from_letters(dual_control.letters(value)) == value
    for text in ("q", "ab\u0661a", "AB", "00", "abc", " ab"):
        assert dual_control.from_letters(text) == b""
