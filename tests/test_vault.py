"""What both faces of the vault promise, with keys in the module and in the process, on every store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

import tokenvault as tv
from tests import faces, vaults
from tests.strategies import DAY_MS, NOW_MS
from tests.test_pan import PUBLISHED
from tests.vaults import (
    ACQUIRER,
    AMEX,
    ISSUER_ONLY,
    MASTERCARD,
    SHOP,
    STRANGER,
    VISA,
    batch_events,
    issue,
    use,
)
from tokenvault import maintenance
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.keys import KeyStore
from tokenvault.model import checks
from tokenvault.model.pan import luhn_check_digit, luhn_valid
from tokenvault.records.keyring import KeyRing
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock


def events(store: TokenStore) -> list[Event]:
    """All but checkpoints."""
    rows = [Event.parse(row) for stream in store.streams() for row in store.events(stream=stream)]
    return [event for event in rows if event.action is not Action.CHECKPOINT]


def codes(refused: pytest.ExceptionInfo[tv.DomainRestrictionError]) -> set[str]:
    return {violation.code for violation in refused.value.violations}


# Issue and detokenize


def test_a_token_leads_back_to_its_card(vault: tv.Vault) -> None:
    for pan in PUBLISHED:
        issued = issue(vault, pan)
        assert issued.token != pan
        assert issued.token.startswith("999913")
        assert len(issued.token) == len(pan)
        assert luhn_valid(issued.token)
        assert issued.last4 == pan[-4:]
        card = vault.detokenize(issued.token, use())
        assert card.pan.reveal() == pan
        assert card.expiry == tv.CardExpiry(2029, 12)


def test_a_random_program_gives_a_new_token_each_time(vault: tv.Vault) -> None:
    tokens = {issue(vault).token for _ in range(20)}
    assert len(tokens) == 20
    assert {info.token for info in vault.tokens_of(VISA)} == tokens


def test_a_convergent_program_gives_the_same_token_to_the_same_card_and_requestor(vault: tv.Vault) -> None:
    first = issue(vault, program="card-on-file")
    assert issue(vault, "4111 1111 1111 1111", program="card-on-file") == first
    assert first.token.endswith("1111")
    other = issue(vault, program="card-on-file", requestor=ISSUER_ONLY)
    assert other.token != first.token
    assert issue(vault, MASTERCARD, program="card-on-file").token != first.token


def test_a_convergent_token_is_not_issued_again_as_another(vault: tv.Vault) -> None:
    """Refused, not ignored: update_domain and update_card change one."""
    first = issue(vault, program="card-on-file")
    others: list[dict[str, Any]] = [
        {"domain": tv.Domain(merchants={"M"})}, {"expiry": "2029-11"}, {"active": False}, {"par": "P" * 29},
        {"assurance": "22"}, {"token_expiry": "2028-01"},
    ]  # fmt: skip
    for arguments in others:
        with pytest.raises(tv.InvalidInputError, match="has a token here already"):
            issue(vault, program="card-on-file", **arguments)
        assert vault.get(first.token) == first


@pytest.mark.unmeasured
def test_a_deleted_convergent_token_is_never_issued_again(vault: tv.Vault) -> None:
    seen = set()
    for _ in range(70):
        info = issue(vault, program="card-on-file")
        assert info.token not in seen
        seen.add(info.token)
        vault.delete(info.token)
    assert vault.tokens_of(VISA) == []


def test_tokens_outlive_the_key_versions_that_made_them(fresh_keys: KeyStore, custody: tv.Custody) -> None:
    keys, store = fresh_keys, tv.open_token_store("memory:")
    tv.provision(keys, store, key_delay=timedelta(milliseconds=100))
    with vaults.open_vault(keys, store) as vault:
        before = issue(vault, program="card-on-file")
    for purpose in (tv.KeyPurpose.FINGERPRINT, tv.KeyPurpose.SEAL, tv.KeyPurpose.AUDIT):
        name = maintenance.add_key_version(keys, store, purpose, custody)
        maintenance.make_primary(keys, store, name.purpose, name.version)
    with vaults.open_vault(keys, store) as vault:
        assert issue(vault, program="card-on-file") == before
        assert [info.token for info in vault.tokens_of(VISA)] == [before.token]
        assert vault.detokenize(before.token, use()).pan.reveal() == VISA
        moved = vault.suspend(before.token, by=tv.Actor.ISSUER)
    (row,) = store.get([moved.token])
    assert row.key_version == 2, "a change seals anew, under the newest key"


def test_a_token_of_a_luhn_invalid_program_fails_the_luhn_check(vault: tv.Vault) -> None:
    assert not any(luhn_valid(issue(vault, program="online").token) for _ in range(20))


def test_what_is_issued_says_what_was_asked_for(vault: tv.Vault) -> None:
    info = issue(vault, AMEX, par="Q" * 29, assurance="22", token_expiry="2028-02", active=False)
    assert (info.par, info.assurance, info.token_expiry) == ("Q" * 29, "22", tv.CardExpiry(2028, 2))
    assert (info.program, info.requestor, info.revision) == ("one-time", SHOP, 1)
    assert info.status is tv.TokenStatus.INACTIVE
    assert vault.get(info.token) == vault.get(info.reference) == info
    assert info.token not in repr(info)


@pytest.mark.parametrize("program", ["tiny", "tiny-convergent"])
def test_a_full_program_says_so(vault: tv.Vault, program: str) -> None:
    """Every token that there is goes out once, then the error names the program and its fill."""
    pans = [payload + luhn_check_digit(payload) for payload in (f"41111111111{n:04}" for n in range(11))]
    tokens = {issue(vault, pan, program=program).token for pan in pans[:10]}
    assert len(tokens) == 10
    with pytest.raises(
        tv.TokenSpaceExhaustedError, match=rf"program {program}: .* taken.* 10 tokens|of 10 tokens"
    ):
        issue(vault, pans[10], program=program)


def test_an_order_that_can_not_be_is_refused_and_leaves_nothing(vault: tv.Vault, store: TokenStore) -> None:
    orders: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"pan": "4111111111111112"}, tv.InvalidInputError),
        ({"pan": "411111111111111a"}, tv.InvalidInputError),
        ({"pan": "\uff14111111111111111"}, tv.InvalidInputError),
        ({"pan": "411111111111"}, tv.InvalidInputError),
        ({"pan": "41111111111111111111"}, tv.InvalidInputError),
        ({"pan": "9999130000000003"}, tv.InvalidInputError),
        ({"expiry": "2029-13"}, tv.InvalidInputError),
        ({"expiry": "2020-01"}, tv.InvalidInputError),
        ({"token_expiry": "2020-01"}, tv.InvalidInputError),
        ({"program": "unknown"}, tv.InvalidInputError),
        ({"requestor": "1"}, tv.InvalidInputError),
        ({"requestor": STRANGER}, tv.PermissionDeniedError),
        ({"requestor": ACQUIRER}, tv.PermissionDeniedError),
        ({"requestor": ISSUER_ONLY, "program": "online"}, tv.PermissionDeniedError),
        ({"domain": "{}"}, tv.InvalidInputError),
        ({"par": "short"}, tv.InvalidInputError),
        ({"assurance": "x"}, tv.InvalidInputError),
        ({"active": 1}, tv.InvalidInputError),
        ({"domain": tv.Domain(merchants={VISA})}, tv.InvalidInputError),
        ({"par": "A" * 13 + VISA}, tv.InvalidInputError),
    ]
    for arguments, error in orders:
        with pytest.raises(error):
            issue(vault, **arguments)
        assert store.scan() == [], arguments


def test_an_unknown_program_is_answered_with_those_that_the_requestor_has(vault: tv.Vault) -> None:
    with pytest.raises(tv.InvalidInputError, match=r"tokens of: card-on-file, one-time$"):
        issue(vault, requestor=ISSUER_ONLY, program="unknown")


def test_the_token_of_one_vault_is_not_a_pan_for_it(vault: tv.Vault) -> None:
    with pytest.raises(tv.InvalidInputError, match="a token already"):
        issue(vault, issue(vault).token)


# Uses


def test_a_use_outside_the_domain_gives_every_reason_and_no_card(vault: tv.Vault) -> None:
    domain = tv.Domain(merchants={"M-1"}, currencies={"EUR"}, max_amount=tv.Money(100, "EUR"))
    token = issue(vault, program="online", domain=domain).token
    transaction = use(merchant="M-2", amount=tv.Money(200, "USD"), channel=tv.Channel.ATM)
    decision = vault.check(token, transaction)
    with pytest.raises(tv.DomainRestrictionError) as refused:
        vault.detokenize(token, transaction)
    expected = {"CHANNEL_NOT_ALLOWED", "MERCHANT_NOT_ALLOWED", "CURRENCY_NOT_ALLOWED", "AMOUNT_TOO_HIGH"}
    assert codes(refused) == expected
    assert decision.violations == refused.value.violations
    good = use(merchant="M-1", amount=tv.Money(100, "EUR"), channel=tv.Channel.ECOMMERCE)
    assert vault.check(token, good).allowed
    assert vault.detokenize(token, good).pan.reveal() == VISA


def test_the_requestor_s_own_domain_holds_for_each_of_its_tokens(keys: KeyStore, store: TokenStore) -> None:
    shop = tv.TokenRequestor(SHOP, programs={"one-time"}, domain=tv.Domain(countries={"FR"}))
    with faces.open_face(
        keys, store, programs=[vaults.RANDOM], requestors=[shop], clock=ManualClock(NOW_MS)
    ) as vault:
        token = issue(vault).token
        assert not vault.check(token, use(country="DE")).allowed
        assert vault.check(token, use(country="FR")).allowed


def test_another_requestor_uses_a_token_only_where_its_domain_says_so(vault: tv.Vault) -> None:
    closed, open_ = issue(vault).token, issue(vault, domain=tv.Domain(requestors={ACQUIRER})).token
    transaction = use(requestor=ACQUIRER)
    assert vault.detokenize(open_, transaction).pan.reveal() == VISA
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(closed, transaction)
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(open_, use())


def test_a_requestor_without_permission_gets_nothing(vault: tv.Vault, store: TokenStore) -> None:
    for requestor in (STRANGER, ISSUER_ONLY):
        token = issue(vault, domain=tv.Domain(requestors={requestor})).token
        for call in (vault.check, vault.detokenize):
            with pytest.raises(tv.PermissionDeniedError):
                call(token, use(requestor=requestor))
        assert events(store)[-1].codes == ("PERMISSION_DENIED",)


def test_a_single_use_token_is_used_once_and_a_retry_gets_the_same_answer(vault: tv.Vault) -> None:
    token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=1),))).token
    for _ in range(3):
        assert vault.detokenize(token, use(1)).pan.reveal() == VISA
    assert vault.get(token).revision == 2
    with pytest.raises(tv.DomainRestrictionError) as refused:
        vault.detokenize(token, use(2))
    assert codes(refused) == {"USES_EXCEEDED"}
    with pytest.raises(tv.DomainRestrictionError) as refused:
        vault.detokenize(token, use(1, merchant="M"))
    assert "TRANSACTION_ID_REUSED" in codes(refused)


def test_a_check_counts_nothing(vault: tv.Vault, store: TokenStore) -> None:
    token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=1),))).token
    before = store.get([token]), events(store)
    assert all(vault.check(token, use(number)).allowed for number in range(5))
    assert (store.get([token]), events(store)) == before


def test_a_limit_per_window_opens_again_with_the_next(vault: tv.Vault, clock: ManualClock) -> None:
    limit = tv.Limit(amount=tv.Money(100, "EUR"), per=timedelta(days=1))
    token = issue(vault, domain=tv.Domain(limits=(limit,))).token
    for day in range(3):
        vault.detokenize(token, use(f"{day}-a", amount=tv.Money(60, "EUR")))
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use(f"{day}-b", amount=tv.Money(41, "EUR")))
        vault.detokenize(token, use(f"{day}-c", amount=tv.Money(40, "EUR")))
        clock.advance(DAY_MS)


def test_a_token_is_used_from_the_first_instant_that_its_domain_gives(
    vault: tv.Vault, clock: ManualClock
) -> None:
    start = datetime.fromtimestamp(NOW_MS / 1000, UTC) + timedelta(minutes=1)
    token = issue(vault, domain=tv.Domain(valid_from=start)).token
    clock.advance(59_999)
    with pytest.raises(tv.DomainRestrictionError, match="retry then") as refused:
        vault.detokenize(token, use())
    assert [(each.code, each.response_code) for each in refused.value.violations] == [("NOT_YET_VALID", "57")]
    clock.advance(1)
    assert vault.detokenize(token, use()).pan.reveal() == VISA


def test_a_token_expires_with_its_card_or_before(vault: tv.Vault, clock: ManualClock) -> None:
    follows, earlier = issue(vault, expiry="2026-07"), issue(vault, token_expiry="2026-06")
    clock.advance(40 * DAY_MS)  # into July
    assert vault.detokenize(follows.token, use()).pan.reveal() == VISA
    with pytest.raises(tv.DomainRestrictionError) as refused:
        vault.detokenize(earlier.token, use())
    assert codes(refused) == {"TOKEN_EXPIRED"}
    assert refused.value.response_code == "54"
    clock.advance(31 * DAY_MS)
    assert not vault.check(follows.token, use()).allowed


def test_a_token_that_does_not_exist_is_not_found(vault: tv.Vault) -> None:
    calls: list[Callable[[str], object]] = [
        lambda token: vault.check(token, use()),
        lambda token: vault.detokenize(token, use()),
        vault.get,
        vault.activate,
        vault.delete,
        lambda token: vault.suspend(token, by=tv.Actor.ISSUER),
        lambda token: vault.update_domain(token, None),
    ]
    for call in calls:
        for token in ("9999130000000003", VISA):
            with pytest.raises(tv.TokenNotFoundError):
                call(token)
    with pytest.raises(tv.TokenNotFoundError):
        vault.get("0" * 32)


def test_a_transaction_that_names_the_card_is_refused(vault: tv.Vault, store: TokenStore) -> None:
    token = issue(vault).token
    for transaction in (use(merchant=VISA), tv.Transaction(id="4111 1111 1111 1111", requestor=SHOP)):
        for call in (vault.check, vault.detokenize):
            with pytest.raises(tv.InvalidInputError, match="holds the card number"):
                call(token, transaction)
    assert not any(VISA in repr(event) or "1111 1111" in repr(event) for event in events(store))


def test_a_refused_use_does_not_tell_whether_the_card_was_guessed(vault: tv.Vault, store: TokenStore) -> None:
    """Else whoever may not use a token could find out its card by trying."""
    for field in ("merchant", "device", "id"):
        token, answers = issue(vault).token, []
        for guess in (VISA, MASTERCARD):
            fields: dict[str, Any] = {"id": "tx", "requestor": ACQUIRER, field: guess}
            transaction = tv.Transaction(**fields)
            answers.append(vault.check(token, transaction).violations)
            with pytest.raises(tv.DomainRestrictionError) as refused:
                vault.detokenize(token, transaction)
            answers.append(refused.value.violations)
        assert len(set(answers)) == 1, field
    assert not any(VISA in repr(event) or MASTERCARD in repr(event) for event in events(store))


def test_a_requestor_can_not_try_card_numbers_by_a_domain(vault: tv.Vault, store: TokenStore) -> None:
    token = issue(vault).token
    domain = tv.Domain(merchants={VISA, "M-1"})
    for requestor in (STRANGER, ACQUIRER, ISSUER_ONLY):
        with pytest.raises(tv.PermissionDeniedError):
            vault.update_domain(token, domain, requestor=requestor)
    assert store.get_domain(domain.digest) is None
    with pytest.raises(tv.InvalidInputError, match="holds the card number"):
        vault.update_domain(token, tv.Domain(merchants={"4111 1111 1111 1111"}))


def test_a_cryptogram_counter_never_falls_whatever_the_domain_was_in_between(vault: tv.Vault) -> None:
    """The highest that was seen counts: a use that needed no cryptogram opens no way to replay older ones."""
    counted = (tv.Limit(uses=10),)
    strict = tv.Domain(cryptogram=tv.CryptogramRule.REQUIRED, limits=counted)
    token = issue(vault, domain=strict).token
    vault.detokenize(token, use(1, cryptogram_counter=9))
    vault.update_domain(token, tv.Domain(limits=counted))
    vault.detokenize(token, use(2, cryptogram_counter=3))
    vault.update_domain(token, strict)
    with pytest.raises(tv.DomainRestrictionError) as refused:
        vault.detokenize(token, use(3, cryptogram_counter=5))
    assert codes(refused) == {"CRYPTOGRAM_REQUIRED"}


# Life


def test_suspensions_add_up_and_each_actor_lifts_its_own(vault: tv.Vault) -> None:
    token = issue(vault).token
    vault.suspend(token, by=tv.Actor.ISSUER)
    info = vault.suspend(token, by=tv.Actor.CARDHOLDER)
    assert info.suspended_by == {tv.Actor.ISSUER, tv.Actor.CARDHOLDER}
    with pytest.raises(tv.LifecycleError):
        vault.resume(token, by=tv.Actor.VAULT)
    assert vault.resume(token, by=tv.Actor.ISSUER).status is tv.TokenStatus.SUSPENDED
    with pytest.raises(tv.DomainRestrictionError) as refused:
        vault.detokenize(token, use())
    assert codes(refused) == {"TOKEN_SUSPENDED"}
    assert vault.resume(token, by=tv.Actor.CARDHOLDER).status is tv.TokenStatus.ACTIVE
    assert vault.detokenize(token, use()).pan.reveal() == VISA


def test_a_suspended_token_gives_no_card_even_to_a_retry(vault: tv.Vault) -> None:
    token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=5),))).token
    vault.detokenize(token, use(1))
    vault.suspend(token, by=tv.Actor.ISSUER)
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(token, use(1))


def test_an_inactive_token_works_once_it_is_activated(vault: tv.Vault) -> None:
    token = issue(vault, active=False).token
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(token, use())
    vault.activate(token)
    assert vault.detokenize(token, use()).pan.reveal() == VISA
    with pytest.raises(tv.LifecycleError):
        vault.activate(token)


def test_a_deleted_token_is_a_tombstone_without_card(vault: tv.Vault) -> None:
    token = issue(vault).token
    info = vault.delete(token)
    assert (info.status, info.last4) == (tv.TokenStatus.DELETED, None)
    with pytest.raises(tv.DomainRestrictionError) as refused:
        vault.detokenize(token, use())
    assert codes(refused) == {"TOKEN_DELETED"}
    assert refused.value.response_code == "14"
    changes: list[Callable[[], object]] = [
        lambda: vault.activate(token),
        lambda: vault.update_domain(token, None),
        lambda: vault.suspend(token, by=tv.Actor.ISSUER),
        lambda: vault.resume(token, by=tv.Actor.ISSUER),
    ]
    for change in changes:
        with pytest.raises(tv.LifecycleError):
            change()
    assert vault.get(token) == info


@pytest.mark.parametrize("many", [False, True])
def test_a_deletion_whose_answer_was_lost_is_asked_for_again(
    vault: tv.Vault, clock: ManualClock, many: bool
) -> None:
    """It has the same answer, leaves an event, and changes nothing: retention goes by the deletion."""

    def delete(*names: str, by: str | None) -> list[object]:
        return (
            list(vault.delete_many(names, requestor=by)) if many else [vault.delete(names[-1], requestor=by)]
        )

    token, other = issue(vault).token, issue(vault).token
    first = delete(token, token, by=SHOP)
    assert first[0] == first[-1]
    for by in (SHOP, None):
        clock.advance(DAY_MS)
        assert delete(token, by=by) == first[-1:]
        assert vault.get(token) == first[0]
    deletions = [event for event in vault.history(token) if event.action.name == "DELETE"]
    assert [(event.outcome.name, bool(event.revision)) for event in deletions] == [
        ("DONE", each == 0) for each in range(4 if many else 3)
    ]
    with pytest.raises(tv.PermissionDeniedError):
        vault.delete(token, requestor=ACQUIRER)
    assert isinstance(delete(other, by=None)[0], tv.TokenInfo)


@pytest.mark.parametrize("by", [None, SHOP])
def test_until_when_a_token_winds_down_is_corrected(
    vault: tv.Vault, clock: ManualClock, by: str | None
) -> None:
    """Later and earlier, an event each; by whom it may be wound down at all; its suspension stays."""
    token = issue(vault).token
    first = checks.utc(NOW_MS + 30 * DAY_MS)
    assert vault.get(token).purge_after is None
    vault.suspend(token, by=tv.Actor.CARDHOLDER)
    moves = [first, first + timedelta(days=9), first - timedelta(days=9), first - timedelta(days=9)]
    for place, purge_after in enumerate(moves):
        info = vault.wind_down(token, purge_after=purge_after, requestor=by)
        assert (info.purge_after, info.status) == (purge_after, tv.TokenStatus.WINDING_DOWN)
        assert info.suspended_by == {tv.Actor.CARDHOLDER}
        assert vault.get(token) == info
        assert [event.action.name for event in vault.history(token)].count("WIND_DOWN") == place + 1
    with pytest.raises(tv.PermissionDeniedError):
        vault.wind_down(token, purge_after=first, requestor=ACQUIRER)
    with pytest.raises(tv.InvalidInputError):
        vault.wind_down(token, purge_after=checks.utc(NOW_MS), requestor=by)
    assert vault.get(token).purge_after == moves[-1]
    assert vault.delete(token).purge_after is None
    with pytest.raises(tv.LifecycleError):
        vault.wind_down(token, purge_after=first, requestor=by)


def test_a_requestor_manages_its_own_tokens_only_and_with_permission(
    keys: KeyStore, store: TokenStore
) -> None:
    other = tv.TokenRequestor(STRANGER, programs={"one-time"})
    requestors = [*vaults.REQUESTORS, other]
    with faces.open_face(
        keys, store, programs=vaults.PROGRAMS, requestors=requestors, clock=ManualClock(NOW_MS)
    ) as vault:
        token, unmanaged = issue(vault).token, issue(vault, requestor=ISSUER_ONLY).token
        assert vault.suspend(token, by=tv.Actor.REQUESTOR, requestor=SHOP).status is tv.TokenStatus.SUSPENDED
        assert vault.resume(token, by=tv.Actor.REQUESTOR).status is tv.TokenStatus.ACTIVE
        vault.suspend(token, by=tv.Actor.ISSUER)
        for refused in (
            lambda: vault.resume(token, by=tv.Actor.ISSUER, requestor=SHOP),
            lambda: vault.suspend(token, by=tv.Actor.VAULT, requestor=SHOP),
            lambda: vault.delete(token, requestor=STRANGER),
            lambda: vault.delete(token, requestor=ACQUIRER),
            lambda: vault.suspend(unmanaged, by=tv.Actor.REQUESTOR),
            lambda: vault.update_domain(token, None, requestor=STRANGER),
            lambda: vault.tokens_of(VISA, requestor=ACQUIRER),
            lambda: vault.update_card(VISA, expiry="2031-01", requestor=ISSUER_ONLY),
        ):
            with pytest.raises(tv.PermissionDeniedError):
                refused()
        assert [info.token for info in vault.tokens_of(VISA, requestor=SHOP)] == [token]


def test_a_new_domain_applies_to_the_next_use_and_keeps_what_was_counted(vault: tv.Vault) -> None:
    token = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=1),))).token
    vault.detokenize(token, use(1))
    vault.update_domain(token, tv.Domain(limits=(tv.Limit(uses=2),), merchants={"M"}))
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(token, use(2))
    vault.detokenize(token, use(2, merchant="M"))
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(token, use(3, merchant="M"))


def test_a_renewed_card_stands_behind_the_same_tokens(vault: tv.Vault, clock: ManualClock) -> None:
    one, two = issue(vault, expiry="2026-07"), issue(vault, program="card-on-file", expiry="2026-07")
    gone = issue(vault, expiry="2026-07")
    vault.delete(gone.token)
    changed = vault.update_card(VISA, new_pan=MASTERCARD, expiry="2030-01")
    assert {info.token for info in changed} == {one.token, two.token}
    clock.advance(400 * DAY_MS)
    for info in (one, two):
        card = vault.detokenize(info.token, use())
        assert (card.pan.reveal(), str(card.expiry)) == (MASTERCARD, "2030-01")
    assert vault.tokens_of(VISA) == []
    assert {info.token for info in vault.tokens_of(MASTERCARD)} == {one.token, two.token}
    assert issue(vault, MASTERCARD, program="card-on-file", expiry="2030-01").token == two.token
    again = issue(vault, VISA, program="card-on-file", expiry="2030-01")
    assert again.token != two.token, "the old number's first candidate belongs to another card now"


def test_merging_two_cards_leaves_each_issue_its_token(vault: tv.Vault) -> None:
    """A card that had a token keeps getting it, whatever tokens of another card join it."""
    for number in range(8):
        payload = f"41111111112{number:04}"
        old = payload + luhn_check_digit(payload)
        joined = issue(vault, old, program="card-on-file").token
        first = issue(vault, MASTERCARD, program="card-on-file").token
        vault.update_card(old, new_pan=MASTERCARD)
        assert issue(vault, MASTERCARD, program="card-on-file").token == first != joined


PARS = "5" + "A" * 28, "5" + "B" * 28


@pytest.mark.parametrize("by", [None, SHOP])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("named", ["token", "card"])
def test_a_par_is_of_the_card_and_goes_with_it(
    vault: tv.Vault, named: str, many: bool, by: str | None
) -> None:
    """A renewed card keeps its PAR; another one has what is said of it, or none; through a chain of cards too."""
    token = issue(vault, par=PARS[0]).token

    def update(**change: Any) -> str | None:
        last4 = vault.get(token).last4
        name = token if named == "token" else VISA if last4 == VISA[-4:] else MASTERCARD
        if many:
            changes: Any = [(name, change)]
            (infos,) = vault.update_card_many(changes, requestor=by)
            assert isinstance(infos, list), infos
        else:
            infos = vault.update_card(name, **change, requestor=by)
        assert [info.token for info in infos] == [token]
        assert infos[0].par == vault.get(token).par
        return infos[0].par

    assert update(expiry="2033-01") == PARS[0]
    assert update(new_pan=MASTERCARD) is None
    assert update(expiry="2034-01") is None
    assert update(new_pan=VISA, par=PARS[0]) == PARS[0]
    assert update(new_pan=MASTERCARD, expiry="2035-01", par=PARS[1]) == PARS[1]
    assert update(new_pan=VISA) is None


@pytest.mark.parametrize("program", ["one-time", "card-on-file"])
def test_a_card_s_own_par_is_taken_after_it_came_to_stand_behind_a_token_of_another(
    vault: tv.Vault, program: str
) -> None:
    token = issue(vault, par=PARS[0], program=program).token
    vault.update_card(token, new_pan=MASTERCARD)
    vault.update_card(token, new_pan=MASTERCARD, par=PARS[1])
    assert issue(vault, MASTERCARD, par=PARS[1], program=program).par == PARS[1]
    vault.update_card(MASTERCARD, new_pan=MASTERCARD)
    assert vault.get(token).par == PARS[1], "the number that stood there is no other card"
    vault.update_card(MASTERCARD, new_pan=MASTERCARD, par=PARS[0])
    assert {info.par for info in vault.tokens_of(MASTERCARD)} == {PARS[0]}, "the host corrects it"


def test_a_batch_of_cards_with_pars_by_their_tokens_takes_one_event(
    vault: tv.Vault, store: TokenStore
) -> None:
    """None of them names a card that another of the batch gives or takes."""
    tokens = [issue(vault).token for _ in range(2)]
    before = len(batch_events(store))
    new = ((MASTERCARD, PARS[0]), (AMEX, PARS[1]))
    changes: Any = [
        (token, {"new_pan": pan, "par": par}) for token, (pan, par) in zip(tokens, new, strict=True)
    ]
    assert [infos[0].par for infos in vault.update_card_many(changes)] == [PARS[0], PARS[1]]  # type: ignore[index] # none failed
    assert len(batch_events(store)) == before + 1


@pytest.mark.parametrize("many", [False, True])
def test_a_par_holds_neither_the_number_so_far_nor_the_new_one(vault: tv.Vault, many: bool) -> None:
    """Of a requestor it holds none at all: which one is refused would tell it the card."""
    token = issue(vault).token

    def code(par: str, by: str | None) -> str:
        changes: Any = [(token, {"new_pan": MASTERCARD, "par": par})]
        if many:
            (error,) = vault.update_card_many(changes, requestor=by)
            assert isinstance(error, tv.InvalidInputError)
            return error.code
        with pytest.raises(tv.InvalidInputError) as caught:
            vault.update_card(token, new_pan=MASTERCARD, par=par, requestor=by)
        return caught.value.code

    for pan in (VISA, MASTERCARD):
        assert code("AB01" + "X" * 9 + pan, None) == "CARD_NUMBER_IN_TEXT"
    for pan in (VISA, MASTERCARD, "4242424242424242"):
        assert code("AB01" + "X" * 9 + pan, SHOP) == "CARD_NUMBER_IN_TEXT"


def test_a_requestor_that_repeats_the_number_learns_nothing_by_the_par(vault: tv.Vault) -> None:
    told = []
    issue(vault, AMEX, par=PARS[0])
    for pan in (VISA, MASTERCARD):
        token = issue(vault, par=PARS[0]).token
        (info,) = vault.update_card(token, new_pan=pan, requestor=SHOP)
        (other,) = vault.update_card(token, new_pan=AMEX, par=PARS[1], requestor=SHOP)
        told.append((info.par, other.par))
    assert told == [(None, PARS[1])] * 2


def test_a_token_that_a_batch_changes_and_whose_card_stays_has_its_par_compared(vault: tv.Vault) -> None:
    one, two = issue(vault, par=PARS[0]).token, issue(vault, MASTERCARD).token
    renewed, moved = vault.update_card_many(
        [(one, {"expiry": "2034-01"}), (two, {"new_pan": VISA, "par": PARS[1]})]
    )
    assert isinstance(moved, tv.InvalidInputError)
    assert (renewed[0].par, moved.code) == (PARS[0], "PAR_DIFFERS")  # type: ignore[index] # it did not fail
    left, moved = vault.update_card_many([(one, {"new_pan": AMEX}), (two, {"new_pan": VISA, "par": PARS[1]})])
    assert (left[0].par, moved[0].par) == (None, PARS[1])  # type: ignore[index] # neither failed


@pytest.mark.parametrize("many", [False, True])
def test_the_host_states_one_par_of_a_card(vault: tv.Vault, many: bool) -> None:
    """Also in one batch, where the card came to its tokens by the items before."""

    def update(*changes: tuple[str, tv.CardChange]) -> list[str]:
        found = []
        results: list[Any] = list(vault.update_card_many(changes)) if many else []
        for name, change in () if many else changes:
            try:
                results.append(vault.update_card(name, **change))
            except tv.InvalidInputError as error:
                results.append(error)
        for each in results:
            found.append(each.code if isinstance(each, tv.TokenVaultError) else each[0].par)
        return found

    one, two, three = (issue(vault).token for _ in range(3))
    moves = [(one, PARS[0]), (two, PARS[1]), (two, PARS[0]), (three, None)]
    changes: list[Any] = [
        (token, {"new_pan": MASTERCARD} if par is None else {"new_pan": MASTERCARD, "par": par})
        for token, par in moves
    ]
    assert update(*changes) == [PARS[0], "PAR_DIFFERS", PARS[0], None]
    away: Any = [(one, {"new_pan": AMEX}), (two, {"new_pan": AMEX})]
    assert update(*away, (three, tv.CardChange(new_pan=MASTERCARD, par=PARS[1])))[-1] == PARS[1]
    with pytest.raises(tv.InvalidInputError):
        vault.update_card(three, par=PARS[0])
    with pytest.raises(tv.InvalidInputError):
        vault.update_card(three, expiry="2033-01", par=PARS[0])


def test_a_card_update_refuses_a_number_that_the_token_s_own_domain_holds(vault: tv.Vault) -> None:
    token = issue(vault, domain=tv.Domain(merchants={MASTERCARD})).token
    with pytest.raises(tv.InvalidInputError, match="holds the card number"):
        vault.update_card(VISA, new_pan=MASTERCARD)
    assert vault.detokenize(token, use(merchant=MASTERCARD)).pan.reveal() == VISA


def test_a_card_update_that_can_not_be_is_refused(vault: tv.Vault) -> None:
    token = issue(vault).token
    refused: list[dict[str, Any]] = [
        {},
        {"new_pan": "1"},
        {"new_pan": token},
        {"expiry": "2020-01"},
        {"expiry": 5},
    ]
    for arguments in refused:
        with pytest.raises(tv.InvalidInputError):
            vault.update_card(VISA, **arguments)
    with pytest.raises(tv.TokenNotFoundError):
        vault.update_card(MASTERCARD, expiry="2030-01")


# Events


def test_every_decision_and_change_leaves_an_event_with_the_revision_it_made(
    vault: tv.Vault, store: TokenStore
) -> None:
    info = issue(vault, domain=tv.Domain(limits=(tv.Limit(uses=1),)))
    vault.detokenize(info.token, use(1))
    vault.detokenize(info.token, use(1))
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(info.token, use(2))
    vault.suspend(info.token, by=tv.Actor.CARDHOLDER)
    with pytest.raises(tv.LifecycleError):
        vault.resume(info.token, by=tv.Actor.ISSUER)
    vault.resume(info.token, by=tv.Actor.CARDHOLDER)
    vault.update_card(VISA, expiry="2031-01")
    vault.update_domain(info.token, None)
    vault.delete(info.token)
    with pytest.raises(tv.TokenNotFoundError):
        vault.detokenize("9999130000000003", use(3))
    told = [(event.action, event.outcome, event.revision, event.codes) for event in events(store)]
    assert told == [
        (Action.ISSUE, Outcome.DONE, 1, ()),
        (Action.DETOKENIZE, Outcome.DONE, 2, ()),
        (Action.DETOKENIZE, Outcome.DONE, 0, ()),
        (Action.DETOKENIZE, Outcome.DENIED, 0, ("USES_EXCEEDED",)),
        (Action.SUSPEND, Outcome.DONE, 3, ("CARDHOLDER",)),
        (Action.RESUME, Outcome.DENIED, 0, ("LIFECYCLE", "ISSUER")),
        (Action.RESUME, Outcome.DONE, 4, ("CARDHOLDER",)),
        (Action.UPDATE_CARD, Outcome.DONE, 5, ()),
        (Action.UPDATE_DOMAIN, Outcome.DONE, 6, ()),
        (Action.DELETE, Outcome.DONE, 7, ()),
        (Action.DETOKENIZE, Outcome.NOT_FOUND, 0, ()),
    ]
    assert [row.number for row in store.events(stream=store.streams()[0])] == list(range(1, 13))


# Opening


def test_provision_is_idempotent_and_a_vault_needs_it(keys: KeyStore, store: TokenStore) -> None:
    before = {purpose: keys.versions(purpose) for purpose in tv.KeyPurpose}
    faces.provision(keys, store)
    assert {purpose: keys.versions(purpose) for purpose in tv.KeyPurpose} == before


def test_a_database_made_under_other_keys_is_refused(
    keys: KeyStore, other_keys: KeyStore, store: TokenStore
) -> None:
    """At open and at provision, before anything is written."""
    with pytest.raises(tv.ConfigurationError):
        faces.open_face(other_keys, store)
    with pytest.raises(tv.ConfigurationError, match="key"):
        faces.provision(other_keys, store)
    assert other_keys.versions(tv.KeyPurpose.SEAL) == (), "no key is made for a database that is another's"
    for purpose in (tv.KeyPurpose.SEAL, tv.KeyPurpose.FINGERPRINT, tv.KeyPurpose.AUDIT):
        other_keys.create(purpose, tv.Custody.IN_PROCESS)
    with pytest.raises(tv.ConfigurationError, match="another seal version 1 key"):
        faces.open_face(other_keys, store)


def test_a_configuration_that_does_not_fit_is_refused(keys: KeyStore, store: TokenStore) -> None:
    configurations: list[tuple[Any, Any, type[Exception]]] = [
        ([vaults.RANDOM, vaults.RANDOM], [], tv.ConfigurationError),
        ([], [tv.TokenRequestor(SHOP), tv.TokenRequestor(SHOP)], tv.ConfigurationError),
        ([], [tv.TokenRequestor(SHOP, programs={"one-time"})], tv.ConfigurationError),
        (["one-time"], [], tv.InvalidInputError),
        ("one-time", [], tv.InvalidInputError),
        (5, [], tv.InvalidInputError),
        ([], [SHOP], tv.InvalidInputError),
    ]
    for programs, requestors, error in configurations:
        with pytest.raises(error):
            faces.open_face(keys, store, programs=programs, requestors=requestors)


def test_a_token_whose_program_is_not_configured_is_refused(keys: KeyStore, store: TokenStore) -> None:
    with vaults.open_vault(keys, store) as vault:
        token = issue(vault).token
    with (
        faces.open_face(keys, store, requestors=[tv.TokenRequestor(SHOP)]) as vault,
        pytest.raises(tv.ConfigurationError, match="program"),
    ):
        vault.detokenize(token, use())


def test_a_closed_vault_refuses_everything_and_leaves_its_parts_open(
    vault: tv.Vault, keys: KeyStore, store: TokenStore
) -> None:
    vault.close()
    vault.close()
    with pytest.raises(tv.ConfigurationError, match="closed"):
        vault.get("9999130000000003")
    assert keys.versions(tv.KeyPurpose.SEAL)
    assert store.scan() == []


def test_token_info_is_what_its_constructor_makes(vault: tv.Vault) -> None:
    """Every field, in order, and nothing else."""
    for info in (
        issue(vault, assurance="A1", domain=tv.Domain(merchants={"M-1"})),
        issue(vault, active=False),
    ):
        fields = [field.name for field in attrs.fields(tv.TokenInfo)]
        made = tv.TokenInfo(**{name: getattr(info, name) for name in fields})
        assert made == info
        assert hash(made) == hash(info)
        assert repr(made) == repr(info)
        assert list(vars(info)) == list(vars(made)) == fields


def test_an_assurance_was_established_by_now_at_the_latest(local_keys: KeyStore, clock: ManualClock) -> None:
    now = datetime.fromtimestamp(NOW_MS / 1_000, UTC)
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    with vaults.open_vault(local_keys, store, clock) as vault:
        token = issue(vault).token
        with pytest.raises(tv.InvalidInputError, match="at lies ahead") as refused:
            vault.update_assurance(token, "12", at=now + timedelta(milliseconds=1))
        assert refused.value.code == "ASSURANCE_AHEAD"
        assert vault.get(token).assurance is None
        assert len(vault.history(token)) == 1
        assert vault.update_assurance(token, "12", at=now, operator="ann").assurance == "12"
        last = vault.history(token)[-1]
        assert (last.action, last.outcome, last.operator) == (Action.UPDATE_ASSURANCE, Outcome.DONE, "ann")
        assert vault.update_assurance(token, "13", at=now - timedelta(days=1)).assurance == "13"
        record, _ = KeyRing(local_keys).unseal(store.get([token])[0])
        assert record.assurance_ms == NOW_MS - DAY_MS
