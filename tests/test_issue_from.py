"""A token for the card behind a token: who may have one, from which source, and how far a chain goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

import tokenvault as tv
from tests.vaults import (
    ACQUIRER,
    CONVERGENT,
    ISSUER_ONLY,
    REQUESTORS,
    SHOP,
    STRANGER,
    VISA,
    issue,
    open_vault,
    use,
)
from tokenvault.audit.event import Action
from tokenvault.keys import KeyStore
from tokenvault.model.pan import luhn_check_digit
from tokenvault.records.keyring import KeyRing
from tokenvault.records.portable import state_of
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import SealedEvent, SealedRecord
from tokenvault.testing.clock import ManualClock
from tokenvault.vault.sources import SOURCES_MAX

MANAGER = "40000000002"
YEAR_MS = 366 * 86_400_000


@pytest.fixture
def vault(local_keys: KeyStore, clock: ManualClock) -> Iterator[tv.Vault]:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        manager = tv.TokenRequestor(MANAGER, permissions={tv.Permission.MANAGE})
        with open_vault(local_keys, store, clock, requestors=(*REQUESTORS, manager)) as opened:
            yield opened


def grant(vault: tv.Vault, source: str, **arguments: Any) -> tv.TokenInfo:
    return vault.issue_from(source, **{"requestor": SHOP, "program": "one-time", **arguments})


def refused(vault: tv.Vault, source: tv.TokenInfo, code: str, **arguments: Any) -> None:
    """By the token and by the reference; each leaves an event about the source."""
    for name in (source.token, source.reference):
        before = len(vault.history(source.reference))
        with pytest.raises(tv.TokenVaultError) as caught:
            grant(vault, name, **arguments)
        assert caught.value.code == code
        told = vault.history(source.reference)[before:]
        assert [(event.action, event.codes) for event in told] == [(Action.ISSUE, (code,))]


def test_a_chain_has_so_many_tokens_and_no_more(vault: tv.Vault) -> None:
    last = issue(vault)
    for _ in range(SOURCES_MAX):
        last = grant(vault, last.token)
    refused(vault, last, "SOURCES_EXCEEDED")
    assert vault.detokenize(last.token, use()).pan.last4 == "1111"


@pytest.mark.parametrize("change", ["suspended", "inactive", "winding down", "deleted"])
def test_a_source_that_is_not_active_gives_no_token(vault: tv.Vault, change: str) -> None:
    source = issue(vault, active=change != "inactive")
    if change == "suspended":
        vault.suspend(source.token, by=tv.Actor.ISSUER)
    elif change == "winding down":
        vault.wind_down(source.token, purge_after=datetime(2030, 1, 1, tzinfo=UTC))
    elif change == "deleted":
        vault.delete(source.token)
    refused(vault, source, "SOURCE_NOT_ACTIVE")


def test_a_source_that_has_expired_gives_no_token(vault: tv.Vault, clock: ManualClock) -> None:
    source = issue(vault, expiry="2026-12")
    assert grant(vault, source.token).status is tv.TokenStatus.ACTIVE
    clock.advance(YEAR_MS)
    refused(vault, source, "SOURCE_EXPIRED")


def test_whom_the_vault_does_not_know_gets_no_token(vault: tv.Vault) -> None:
    for source in (issue(vault).token, "9999130000000003"):
        with pytest.raises(tv.PermissionDeniedError) as caught:
            grant(vault, source, requestor=STRANGER)
        assert caught.value.code == "REQUESTOR_UNKNOWN"


def test_a_token_from_a_token_has_properties_of_its_own(vault: tv.Vault) -> None:
    source = issue(vault, customer="c-1", metadata={"a": "b"})
    given = grant(vault, source.token, requestor=ACQUIRER, customer="c-2", metadata={"c": "d"})
    assert (given.requestor, given.customer, given.metadata) == (ACQUIRER, "c-2", {"c": "d"})
    assert grant(vault, source.token).customer is None
    assert vault.get(source.token) == source


def test_one_idempotency_key_gives_one_token_though_the_source_is_renewed_meanwhile(vault: tv.Vault) -> None:
    source, other = issue(vault), issue(vault)
    first = grant(vault, source.token, idempotency_key="k")
    vault.update_card(source.token, expiry="2031-01")
    assert grant(vault, source.reference, idempotency_key="k").token == first.token
    with pytest.raises(tv.InvalidInputError) as conflict:
        grant(vault, other.token, idempotency_key="k")
    assert conflict.value.code == "IDEMPOTENCY_CONFLICT"


def test_nobody_gets_a_token_from_one_of_others(vault: tv.Vault) -> None:
    with pytest.raises(tv.TokenNotFoundError):
        grant(vault, "9999130000000003")
    with pytest.raises(tv.TokenNotFoundError):
        grant(vault, "0" * 32)


GUESSES = ("4111111111111111", "4012888888881881")
"""The first is the card number of every source here."""


@pytest.mark.parametrize("expiry", ["2020-01", None])
@pytest.mark.parametrize("place", ["merchants", "metadata", "customer", "spelled customer"])
def test_a_card_number_beside_a_token_from_a_token_is_answered_alike_whether_it_is_right_or_not(
    vault: tv.Vault, place: str, expiry: str | None
) -> None:
    source, answers = issue(vault), []
    for pan in GUESSES:
        said: dict[str, dict[str, Any]] = {
            "merchants": {"domain": tv.Domain(merchants={pan})},
            "metadata": {"metadata": {"a": pan}},
            "customer": {"customer": pan},
            "spelled customer": {"customer": " ".join(f"c{digit}" for digit in pan)},
        }
        before = len(vault.history(source.reference))
        try:
            got = grant(vault, source.token, **said[place], token_expiry=expiry).status.name
        except tv.InvalidInputError as error:
            got = f"{error.code} {error}"
        left = [event.codes for event in vault.history(source.reference)[before:]]
        answers.append((got, left))
    assert answers[0] == answers[1]
    assert (answers[0][1] == [("CARD_NUMBER_IN_TEXT",)]) is ("customer" in place)


def test_customers_that_could_hold_a_number_are_counted_each_once(
    local_keys: KeyStore, clock: ManualClock
) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with open_vault(local_keys, store, clock, guard=tv.Guard(refusals=2)) as vault:
            source = issue(vault)
            for pan in (GUESSES[0], *GUESSES):
                with pytest.raises(tv.InvalidInputError):
                    grant(vault, source.token, customer=pan)
            with pytest.raises(tv.RequestorLockedOutError):
                grant(vault, source.token)


CHANGES: dict[str, Callable[[tv.Vault, str], object]] = {
    "suspended": lambda vault, source: vault.suspend(source, by=tv.Actor.ISSUER),
    "winding down": lambda vault, source: vault.wind_down(
        source, purge_after=datetime(2030, 1, 1, tzinfo=UTC)
    ),
    "deleted": lambda vault, source: vault.delete(source),
    "given another card": lambda vault, source: vault.update_card(source, new_pan=GUESSES[1]),
}


class SlowInsert(MemoryTokenStore):
    """A store in which something happens before a token is inserted."""

    meanwhile: Callable[[], object] | None = None

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        return super()._insert(records, events, document)


@pytest.mark.parametrize("program", ["one-time", "card-on-file"])
@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("change", [*CHANGES, "used"])
def test_a_change_of_the_source_that_returned_holds_for_a_token_that_was_decided_before(
    local_keys: KeyStore, clock: ManualClock, change: str, key: str | None, program: str
) -> None:
    with closing(SlowInsert()) as store:
        tv.provision(local_keys, store)
        with open_vault(local_keys, store, clock) as vault:
            source = issue(vault)
            if change == "used":
                store.meanwhile = lambda: vault.detokenize(source.token, use())
                given = grant(vault, source.token, program=program, idempotency_key=key)
                assert given.status is tv.TokenStatus.ACTIVE
                return
            store.meanwhile = lambda: CHANGES[change](vault, source.token)
            with pytest.raises(tv.TokenVaultError) as caught:
                grant(vault, source.token, program=program, idempotency_key=key)
            code = "SOURCE_CHANGED" if change == "given another card" else "SOURCE_NOT_ACTIVE"
            assert caught.value.code == code
            left = vault.search(program=program)
            assert [each.status for each in left if each.token != source.token] == [tv.TokenStatus.DELETED]
            assert vault.tokens_from(source.token) == []
            assert vault.history(source.reference)[-1].codes == (code,)


@pytest.mark.parametrize("first", ["issue", "issue_many", "import_tokens"])
def test_nobody_learns_by_giving_a_token_whether_the_other_has_the_card(vault: tv.Vault, first: str) -> None:
    """Nor what it made of the token that it was given; and what was given is in nobody's way."""
    answers = []
    for pan in GUESSES:
        source = issue(vault, pan)
        if pan == GUESSES[0]:
            held = issue(vault, pan, program="card-on-file", customer="c-1")
        given = grant(vault, source.token, program="card-on-file", customer="c-2")
        vault.update_token(given.token, customer="c-3", requestor=SHOP)
        before = len(vault.history(source.reference))
        with pytest.raises(tv.InvalidInputError) as caught:
            grant(vault, source.token, program="card-on-file", customer="c-2")
        told = vault.history(source.reference)[before:]
        mine = [event.codes for event in vault.history(given.reference)][-1]
        answers.append((str(caught.value), caught.value.code, told, mine))
        again = grant(vault, source.token, program="card-on-file", customer="c-3")
        assert again.token == given.token
    assert answers[0] == answers[1]
    assert answers[0][0].endswith("with other properties")
    assert answers[0][3] == ("TOKEN_EXISTS_WITH_OTHER_PROPERTIES",)
    own: list[Any] = []
    for pan in GUESSES:
        if first == "issue":
            own.append(issue(vault, pan, program="card-on-file", customer="c-1"))
        elif first == "import_tokens":
            token = held.token if pan == GUESSES[0] else CONVERGENT.format.make(12_345, 16, pan[-4:])
            row = tv.TokenToImport(token=token, pan=pan, customer="c-1")
            own += vault.import_tokens([row], requestor=SHOP, program="card-on-file")
        else:
            cards: Any = [{"pan": pan, "expiry": "2029-12", "customer": "c-1"}]
            own += vault.issue_many(cards, requestor=SHOP, program="card-on-file")
    assert own[0].token == held.token
    assert {each.customer for each in own} == {"c-1"}
    assert vault.detokenize(own[1].token, use()).pan.last4 == GUESSES[1][-4:]


def test_each_source_gives_one_convergent_token_to_each_requestor(vault: tv.Vault) -> None:
    sources = [issue(vault) for _ in range(3)]
    first = [grant(vault, each.token, program="card-on-file").token for each in sources]
    assert [grant(vault, each.reference, program="card-on-file").token for each in sources] == first
    assert len(set(first)) == 3
    vault.delete(first[0])
    second = [grant(vault, each.token, program="card-on-file").token for each in sources]
    assert second[0] not in first
    assert second[1:] == first[1:]


def test_sources_that_are_not_there_are_counted_for_whom_the_token_would_be(
    local_keys: KeyStore, clock: ManualClock
) -> None:
    with closing(tv.open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with open_vault(local_keys, store, clock, guard=tv.Guard(misses=3)) as vault:
            source = issue(vault, requestor=ISSUER_ONLY)
            missing = [f"99991300000000{number:02}" for number in range(20, 26)]
            answers = []
            for guess in (missing[0], *missing):
                with pytest.raises(tv.TokenVaultError) as caught:
                    grant(vault, guess)
                answers.append(caught.value.code)
            assert answers == ["TOKEN_NOT_FOUND"] * 4 + ["REQUESTOR_LOCKED_OUT"] * 3
            for right in (source.token, source.reference):
                with pytest.raises(tv.RequestorLockedOutError):
                    grant(vault, right)
            assert grant(vault, source.token, requestor=ACQUIRER).requestor == ACQUIRER


def test_who_gave_a_token_and_who_has_it_do_not_lift_each_others_suspension(vault: tv.Vault) -> None:
    giver, holder = SHOP, MANAGER
    by = tv.Actor.REQUESTOR
    token = grant(vault, issue(vault, requestor=giver).token, requestor=holder).token
    names = {giver: tv.Actor.GRANTOR, holder: tv.Actor.REQUESTOR}
    for one, other in ((giver, holder), (holder, giver)):
        assert vault.suspend(token, by=by, requestor=one).suspended_by == {names[one]}
        with pytest.raises(tv.LifecycleError) as caught:
            vault.resume(token, by=by, requestor=other)
        assert caught.value.code == "SUSPENDED_BY_OTHERS"
        assert vault.suspend(token, by=by, requestor=other).suspended_by == set(names.values())
        assert vault.resume(token, by=by, requestor=other).suspended_by == {names[one]}
        assert vault.resume(token, by=by, requestor=one).status is tv.TokenStatus.ACTIVE
    codes = [event.codes for event in vault.history(token) if event.action is Action.RESUME]
    assert ("LIFECYCLE", "REQUESTOR") in codes
    assert ("GRANTOR",) in codes
    with pytest.raises(tv.PermissionDeniedError):
        vault.suspend(token, by=tv.Actor.GRANTOR, requestor=giver)
    vault.suspend(token, by=tv.Actor.GRANTOR)
    assert vault.resume(token, by=by, requestor=giver).status is tv.TokenStatus.ACTIVE


@pytest.mark.parametrize("program", ["one-time", "card-on-file"])
def test_a_grantors_idempotency_keys_are_its_own(vault: tv.Vault, program: str) -> None:
    """Neither the receiver's orders nor another grantor's come in their way."""
    sources = [issue(vault, requestor=giver) for giver in (SHOP, ISSUER_ONLY)]
    given = [grant(vault, each.token, program=program, idempotency_key="k").token for each in sources]
    own = issue(vault, GUESSES[1], program=program, idempotency_key="k").token
    assert len({*given, own}) == 3
    assert [grant(vault, each.token, program=program, idempotency_key="k").token for each in sources] == given
    assert issue(vault, GUESSES[1], program=program, idempotency_key="k").token == own


def test_a_grantor_sees_nothing_that_the_holder_put_into_the_token(vault: tv.Vault) -> None:
    source = issue(vault)
    given = grant(vault, source.token, requestor=MANAGER, customer="c-1", metadata={"a": "b"}).token
    own = grant(vault, source.token, customer="c-2", metadata={"c": "d"})

    def seen() -> tv.TokenInfo:
        (found,) = [each for each in vault.tokens_from(source.token, requestor=SHOP) if each.token == given]
        assert (found.customer, found.metadata) == (None, {})
        assert own in vault.tokens_from(source.token, requestor=SHOP)
        assert vault.get(given) in vault.tokens_from(source.token)
        return found

    assert (seen().bin, seen().last4, str(seen().card_expiry)) == (source.bin, source.last4, "2029-12")
    vault.update_card(given, expiry="2031-01", requestor=MANAGER)
    assert str(seen().card_expiry) == str(seen().token_expiry) == "2029-12"
    vault.update_card(given, new_pan=GUESSES[1], requestor=MANAGER)
    vault.activate(given)
    assert (seen().bin, seen().last4, seen().card_expiry, seen().token_expiry) == (None,) * 4


ENDS: dict[str, Callable[[tv.Vault, str], Any]] = {
    "suspend": lambda vault, token: vault.suspend(token, by=tv.Actor.REQUESTOR, requestor=SHOP),
    "delete": lambda vault, token: vault.delete(token, requestor=SHOP),
    "delete_many": lambda vault, token: vault.delete_many([token], requestor=SHOP)[0],
}


@pytest.mark.parametrize("end", ENDS)
def test_a_grantor_that_ends_a_token_sees_nothing_that_its_holder_put_into_it(
    vault: tv.Vault, end: str
) -> None:
    source = issue(vault)
    given = grant(vault, source.token, requestor=MANAGER, customer="c-1", metadata={"a": "b"}).token
    got = ENDS[end](vault, given)
    assert (got.token, got.customer, got.metadata, got.last4) == (given, None, {}, None)
    assert vault.get(given).customer == "c-1"


# Chains that no vault issues, and an import may bring.


def chained(
    vault: tv.Vault, keys: KeyStore, store: MemoryTokenStore, sources: Sequence[int | None]
) -> list[str]:
    """Tokens of a requestor that manages its own, each from the token of a place, or one that is nowhere: None."""
    (template,) = store.get([issue(vault).token])
    record, _ = KeyRing(keys).unseal(template)
    references = [bytes([number + 1]) * 16 for number in range(len(sources))]
    rows: list[Any] = []
    for number, source in enumerate(sources):
        of_source = b"nowhere" + bytes(9) if source is None else references[source] if source >= 0 else b""
        payload = f"999913{number:09}"
        state = state_of(record._replace(source=of_source))
        rows.append(
            {
                "token": payload + luhn_check_digit(payload),
                "pan": VISA,
                "requestor": MANAGER if of_source else SHOP,
                "program": "one-time",
                "reference": references[number].hex(),
                "state": state,
            }
        )
    results = vault.import_tokens(rows, operator="ann")
    assert not results.errors
    return [row["token"] for row in rows]


@pytest.fixture
def memory(local_keys: KeyStore) -> Iterator[MemoryTokenStore]:
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store)
        yield store


@pytest.fixture
def importing(local_keys: KeyStore, memory: MemoryTokenStore, clock: ManualClock) -> Iterator[tv.Vault]:
    manager = tv.TokenRequestor(MANAGER, permissions={tv.Permission.MANAGE})
    with open_vault(local_keys, memory, clock, requestors=(*REQUESTORS, manager)) as opened:
        yield opened


def not_its(vault: tv.Vault, token: str) -> None:
    with pytest.raises(tv.PermissionDeniedError) as refused:
        vault.delete(token, requestor=SHOP)
    assert refused.value.code == "NOT_ITS_TOKEN"
    last = vault.history(token)[-1]
    assert (last.action, last.codes) == (Action.DELETE, ("NOT_ITS_TOKEN",))
    assert vault.get(token).status is tv.TokenStatus.ACTIVE


def test_a_source_s_holder_sees_and_ends_what_came_from_it_in_so_many_steps_and_no_more(
    local_keys: KeyStore, memory: MemoryTokenStore, importing: tv.Vault
) -> None:
    tokens = chained(importing, local_keys, memory, range(-1, SOURCES_MAX + 1))
    first, within, beyond = tokens[0], tokens[1:-1], tokens[-1]
    assert len(within) == SOURCES_MAX
    assert [info.token for info in importing.tokens_from(first, requestor=SHOP)] == within
    not_its(importing, beyond)
    assert importing.delete(within[-1], requestor=SHOP).status is tv.TokenStatus.DELETED


def test_tokens_that_are_each_other_s_source_are_nobody_else_s(
    local_keys: KeyStore, memory: MemoryTokenStore, importing: tv.Vault
) -> None:
    source, one, other = chained(importing, local_keys, memory, [-1, 2, 1])
    assert importing.tokens_from(source, requestor=SHOP) == []
    assert {info.token for info in importing.tokens_from(one)} == {one, other}
    not_its(importing, one)


def test_a_token_whose_source_is_nowhere_is_no_other_requestor_s_to_end(
    local_keys: KeyStore, memory: MemoryTokenStore, importing: tv.Vault
) -> None:
    (token,) = chained(importing, local_keys, memory, [None])
    not_its(importing, token)
    assert importing.delete(token, requestor=MANAGER).status is tv.TokenStatus.DELETED
