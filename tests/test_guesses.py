"""Asks that could be guesses leave events, and the right to manage tokens confirms no card number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

import tokenvault as tv
from tests.faces import open_face
from tests.strategies import NOW_MS
from tests.vaults import (
    ACQUIRER,
    AMEX,
    MASTERCARD,
    PROGRAMS,
    REQUESTORS,
    SHOP,
    STRANGER,
    VISA,
    all_events,
    issue,
    use,
)
from tokenvault.audit.export import AuditEvent, audit_events
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.testing.clock import ManualClock

MANAGER, ISSUER, USER = "40000000002", "40000000003", "40000000004"
HOLDERS = {
    MANAGER: {tv.Permission.MANAGE},
    ISSUER: {tv.Permission.MANAGE, tv.Permission.ISSUE},
    USER: {tv.Permission.MANAGE, tv.Permission.DETOKENIZE},
}


class Desk:
    """A vault whose events are looked at."""

    def __init__(self, keys: KeyStore, **parts: Any) -> None:
        self.store = MemoryTokenStore()
        tv.provision(keys, self.store)
        names = {program.name for program in PROGRAMS}
        owners = [
            tv.TokenRequestor(name, permissions=rights, programs=names) for name, rights in HOLDERS.items()
        ]
        self.clock = ManualClock(NOW_MS)
        self.vault = open_face(
            keys, self.store, programs=PROGRAMS, requestors=(*REQUESTORS, *owners), clock=self.clock, **parts
        )

    def events(self) -> list[AuditEvent]:
        rows = [row for stream in self.store.streams() for row in all_events(self.store, stream)]
        events = [event for row in rows for event in audit_events(row)]
        return [event for event in events if event.action.name != "CHECKPOINT"]

    def left_by(self, ask: Callable[[], object]) -> list[tuple[str, str, str | None, tuple[str, ...]]]:
        """What the events say that a call left."""
        before = len(self.events())
        with suppress(tv.TokenVaultError):
            ask()
        return [
            (event.action.name, event.outcome.name, event.requestor, event.codes)
            for event in self.events()[before:]
        ]


@pytest.fixture
def desk(local_keys: KeyStore) -> Iterator[Desk]:
    made = Desk(local_keys)
    with closing(made.vault):
        yield made


@pytest.mark.parametrize("many", [False, True], ids=["singly", "in a batch"])
def test_a_requestor_keeps_no_card_number_as_customer_and_learns_nothing_of_its_token_s(
    desk: Desk, many: bool
) -> None:
    """Its own and others' are refused alike; ids that could hold none are kept, and one that stands may stay."""
    token = issue(desk.vault, customer=MASTERCARD).token

    def code(customer: str, requestor: str | None = None) -> str:
        try:
            if many:
                (result,) = desk.vault.update_token_many(
                    [(token, {"customer": customer})], requestor=requestor
                )
                if isinstance(result, tv.TokenVaultError):
                    raise result
            else:
                desk.vault.update_token(token, customer=customer, requestor=requestor)
        except tv.InvalidInputError as refused:
            return str(refused)
        return desk.vault.get(token).customer or ""

    assert code(MASTERCARD, requestor=SHOP) == MASTERCARD
    refusals = {code(f"{prefix}{pan}", requestor=SHOP) for prefix in ("", "c-") for pan in (VISA, AMEX)}
    assert len(refusals) == 1
    assert "could hold a card number" in refusals.pop()
    for honest in ("customer-17", "0001234567", "6f9619ff-8b86-d011-b42d-00c04fc964ff"):
        assert code(honest, requestor=SHOP) == honest
    assert code(MASTERCARD) == MASTERCARD, "the host answers for what it writes"
    assert "holds the card number" in code(VISA)


def test_a_check_that_fails_leaves_an_event_and_one_that_is_allowed_none(desk: Desk) -> None:
    vault, only = desk.vault, tv.Domain(merchants={"M"})
    token = issue(vault, domain=only).token
    assert desk.left_by(lambda: vault.check(token, use(merchant="M"))) == []
    assert desk.left_by(lambda: vault.check_many([(token, use(merchant="M"))])) == []
    outcomes = {
        "refused": (token, use(merchant="N"), ("CHECK", "DENIED", SHOP, ("MERCHANT_NOT_ALLOWED",))),
        "unknown": ("9999130000000009", use(), ("CHECK", "NOT_FOUND", SHOP, ())),
        "others": (token, use(merchant="M", requestor=ACQUIRER),
                   ("CHECK", "DENIED", ACQUIRER, ("REQUESTOR_NOT_ALLOWED",))),
        "no right": (token, use(requestor=STRANGER), ("CHECK", "DENIED", STRANGER, ("PERMISSION_DENIED",))),
        "number": (token, use(merchant="M", id=VISA), ("CHECK", "DENIED", SHOP, ("CARD_NUMBER_IN_TRANSACTION",))),
    }  # fmt: skip
    for name, (number, each, left) in outcomes.items():
        assert desk.left_by(partial(vault.check, number, each)) == [left], name
        assert desk.left_by(partial(vault.check_many, [(number, each)] * 2)) == [left] * 2, name
    assert len([event for event in vault.history(token) if event.action.name == "CHECK"]) == 9


def test_a_check_that_meets_a_changed_record_leaves_an_event(desk: Desk) -> None:
    token = issue(desk.vault).token
    (row,) = desk.store.get([token])
    desk.store._records[token] = row._replace(revision=7)
    left = ("CHECK", "TAMPERED", SHOP, ())
    assert desk.left_by(lambda: desk.vault.check(token, use())) == [left]
    assert desk.left_by(lambda: desk.vault.check_many([(token, use())])) == [left]


@pytest.mark.parametrize("name", [VISA, MASTERCARD])
def test_with_manage_alone_a_card_number_is_neither_confirmed_nor_denied(desk: Desk, name: str) -> None:
    issue(desk.vault, requestor=SHOP)
    refused = ("DENIED", MANAGER, ("CARD_NUMBER_NOT_ALLOWED",))
    asks: dict[str, Callable[[], object]] = {
        "LOOK_UP": lambda: desk.vault.tokens_of(name, requestor=MANAGER),
        "UPDATE_CARD": lambda: desk.vault.update_card(name, expiry="2031-01", requestor=MANAGER),
    }
    for action, ask in asks.items():
        with pytest.raises(tv.PermissionDeniedError) as raised:
            ask()
        assert raised.value.code == "CARD_NUMBER_NOT_ALLOWED"
        assert desk.left_by(ask) == [(action, *refused)]
    changes = [(name, tv.CardChange(expiry="2031-01"))]
    assert desk.left_by(lambda: desk.vault.update_card_many(changes, requestor=MANAGER)) == [
        ("UPDATE_CARD", *refused)
    ]
    (failed,) = desk.vault.update_card_many(changes, requestor=MANAGER)
    assert isinstance(failed, tv.PermissionDeniedError)
    assert failed.code == "CARD_NUMBER_NOT_ALLOWED"


@pytest.mark.parametrize("requestor", [None, ISSUER, USER, SHOP])
def test_each_question_by_a_card_number_leaves_an_event_whatever_the_answer(
    desk: Desk, requestor: str | None
) -> None:
    vault = desk.vault
    issue(vault)
    right = vault.tokens_of(VISA, requestor=requestor)
    assert len(right) == (requestor in (None, SHOP))
    outcome = "DONE" if right else "NOT_FOUND"
    left = [] if requestor is None else [("LOOK_UP", outcome, requestor, ())]
    assert desk.left_by(lambda: vault.tokens_of(VISA, requestor=requestor)) == left
    for _ in range(3):
        assert desk.left_by(lambda: vault.tokens_of(MASTERCARD, requestor=requestor)) == [
            ("LOOK_UP", "NOT_FOUND", requestor, ())
        ]
        assert desk.left_by(lambda: vault.update_card(MASTERCARD, expiry="2031-01", requestor=requestor)) == [
            ("UPDATE_CARD", "NOT_FOUND", requestor, ())
        ]


def test_each_token_found_by_a_card_number_has_that_in_its_history(desk: Desk) -> None:
    tokens = [issue(desk.vault).token for _ in range(3)]
    desk.vault.tokens_of(VISA, requestor=SHOP)
    for token in tokens:
        assert [event.action.name for event in desk.vault.history(token)] == ["ISSUE", "LOOK_UP"]


def test_a_change_of_card_that_is_not_acceptable_leaves_an_event(desk: Desk) -> None:
    token = issue(desk.vault, customer=f"c-{MASTERCARD}").token
    left = [("UPDATE_CARD", "DENIED", SHOP, ("CARD_NUMBER_IN_TEXT",))]
    for name in (token, VISA):
        assert desk.left_by(partial(desk.vault.update_card, name, new_pan=MASTERCARD, requestor=SHOP)) == left
        changes = [(name, tv.CardChange(new_pan=MASTERCARD))]
        assert desk.left_by(partial(desk.vault.update_card_many, changes, requestor=SHOP)) == left


GUESSES = (VISA, MASTERCARD, "4012888888881881")
"""The first is right."""


def managed_token(desk: Desk) -> str:
    """A token that MANAGER manages, and whose card it has never seen."""
    source = issue(desk.vault)
    return desk.vault.issue_from(source.token, requestor=MANAGER, program="one-time", assurance="12").token


def guess_alone(vault: tv.Vault, token: str, pan: str) -> object:
    return vault.update_card(token, new_pan=pan, requestor=MANAGER)[0]


def guess_in_a_batch(vault: tv.Vault, token: str, pan: str) -> object:
    changes = [(token, tv.CardChange(new_pan=pan))]
    (got,) = vault.update_card_many(changes, requestor=MANAGER)
    return got[0] if isinstance(got, list) else got


def answered(ask: Callable[[], object]) -> tuple[object, ...]:
    """All of an answer that could tell a right number from a wrong one, but the number's own digits."""
    try:
        got = ask()
    except tv.TokenVaultError as error:
        got = error
    if isinstance(got, tv.TokenVaultError):
        return type(got), got.code, str(got)
    assert isinstance(got, tv.TokenInfo)
    return got.status, got.suspended_by, got.assurance, got.revision, got.card_expiry


@pytest.mark.parametrize("state", ["active", "suspended", "winding down", "in its domain"])
@pytest.mark.parametrize("guess", [guess_alone, guess_in_a_batch])
def test_a_card_number_put_behind_ones_token_is_answered_alike_whether_it_is_there_or_not(
    desk: Desk, guess: Callable[[tv.Vault, str, str], object], state: str
) -> None:
    vault, answers = desk.vault, []
    for pan in GUESSES:
        token = managed_token(desk)
        if state == "suspended":
            vault.suspend(token, by=tv.Actor.REQUESTOR, requestor=MANAGER)
        elif state == "winding down":
            vault.wind_down(token, purge_after=datetime(2030, 1, 1, tzinfo=UTC), requestor=MANAGER)
        elif state == "in its domain":
            vault.update_domain(token, tv.Domain(merchants=GUESSES), requestor=MANAGER)
        left = len(desk.events())
        answers.append(
            (
                answered(partial(guess, vault, token, pan)),
                [(each.action, each.outcome, each.codes) for each in desk.events()[left:]],
            )
        )
        assert not {digits for digits in GUESSES if digits in str(answers[-1])}
    assert len(set(map(str, answers))) == 1


@pytest.mark.parametrize("guess", [guess_alone, guess_in_a_batch])
def test_card_numbers_that_can_not_be_behind_a_token_are_counted_each_once(
    local_keys: KeyStore, guess: Callable[[tv.Vault, str, str], object]
) -> None:
    desk = Desk(local_keys, guard=tv.Guard(refusals=2))
    with closing(desk.vault):
        token = managed_token(desk)
        desk.vault.update_domain(token, tv.Domain(merchants=GUESSES), requestor=MANAGER)
        for pan in (VISA, VISA, MASTERCARD):
            assert answered(partial(guess, desk.vault, token, pan))[1] == "CARD_NUMBER_IN_TEXT"
        with pytest.raises(tv.RequestorLockedOutError):
            desk.vault.update_token(token, customer="c", requestor=MANAGER)


PARS = "5" + "A" * 28, "5" + "B" * 28


def order_alone(vault: tv.Vault, pan: str, **more: str) -> object:
    return issue(vault, pan, requestor=ISSUER, **more)


def order_in_a_batch(vault: tv.Vault, pan: str, **more: str) -> object:
    given: Any = {"pan": pan, **more}
    (got,) = vault.issue_many([given], requestor=ISSUER, program="one-time")
    return got


def order_by_import(vault: tv.Vault, pan: str, **more: str) -> object:
    row = tv.TokenToImport(token="9999130000000009", pan=pan, par=more["par"])
    (got,) = vault.import_tokens([row], requestor=ISSUER, program="one-time")
    return got


@pytest.mark.parametrize("order", [order_alone, order_in_a_batch])
def test_no_answer_tells_that_others_have_a_card(desk: Desk, order: Callable[..., object]) -> None:
    issue(desk.vault, VISA, par=PARS[0])
    issue(desk.vault, AMEX, requestor=ISSUER, idempotency_key="k")
    left = [("ISSUE", "DENIED", ISSUER, ("IDEMPOTENCY_CONFLICT",))]
    for pan in (VISA, MASTERCARD):
        asked = partial(order, desk.vault, pan, par=PARS[1], idempotency_key="k")
        assert desk.left_by(asked) == left
        assert desk.left_by(partial(order, desk.vault, pan, par=PARS[1])) == [("ISSUE", "DONE", ISSUER, ())]


@pytest.mark.parametrize("order", [order_alone, order_in_a_batch, order_by_import])
def test_a_card_has_one_par_with_each_requestor(desk: Desk, order: Callable[..., object]) -> None:
    issue(desk.vault, VISA, requestor=ISSUER, par=PARS[0])
    left = [("ISSUE", "DENIED", ISSUER, ("PAR_DIFFERS",))]
    assert desk.left_by(partial(order, desk.vault, VISA, par=PARS[1])) == left
    assert issue(desk.vault, VISA, par=PARS[1]).par == PARS[1]


@pytest.mark.parametrize("order", [order_alone, order_in_a_batch])
@pytest.mark.parametrize("by", ["par", "idempotency_key"])
def test_orders_that_do_not_fit_ones_tokens_are_counted_each_once(
    local_keys: KeyStore, order: Callable[..., object], by: str
) -> None:
    desk = Desk(local_keys, guard=tv.Guard(refusals=2))
    with closing(desk.vault):
        for pan in (VISA, MASTERCARD):
            issue(desk.vault, pan, requestor=ISSUER, par=PARS[0])
        issue(desk.vault, AMEX, requestor=ISSUER, idempotency_key="k")
        other = {"par": PARS[1]} if by == "par" else {"idempotency_key": "k"}
        for pan in (VISA, VISA, MASTERCARD):
            assert desk.left_by(partial(order, desk.vault, pan, **other))[0][1] == "DENIED"
        with pytest.raises(tv.RequestorLockedOutError):
            issue(desk.vault, AMEX, requestor=ISSUER)
