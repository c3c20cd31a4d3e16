"""What differs in one small thing only: a field of a retry, a number in a domain, a document, a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from datetime import timedelta
from typing import Any

import pytest

import tokenvault as tv
from tests import faces, vaults
from tests.strategies import NOW_MS
from tests.test_idempotency import Meanwhile
from tests.vaults import MASTERCARD, SHOP, VISA, issue, use
from tokenvault import maintenance
from tokenvault.audit.event import Action, Outcome
from tokenvault.keys import KeyStore
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.testing.clock import ManualClock

DAY_MS = 86_400_000
CRYPTOGRAM = tv.Domain(cryptogram=tv.CryptogramRule.REQUIRED)


@pytest.fixture
def records(local_keys: KeyStore) -> Iterator[MemoryTokenStore]:
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store)
        yield store


def refused_with(vault: tv.Vault, token: str, transaction: tv.Transaction) -> set[str]:
    return {each.code for each in vault.check(token, transaction).violations}


FIELDS: dict[str, tuple[Any, Any]] = {
    "channel": (tv.Channel.ECOMMERCE, tv.Channel.ATM),
    "merchant_category": ("5411", "5412"),
    "reference": ("order-1", "order-2"),
    "agent": ("agent-1", "agent-2"),
    "merchant": ("M-1", "M-2"),
    "device": ("phone", "tablet"),
    "country": ("DE", "FR"),
    "amount": (tv.Money(5, "EUR"), tv.Money(6, "EUR")),
    "cryptogram_counter": (5, 6),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_retry_that_differs_in_one_field_is_another_use(
    local_keys: KeyStore, records: MemoryTokenStore, name: str
) -> None:
    first = {field: values[0] for field, values in FIELDS.items()}
    with vaults.open_vault(local_keys, records) as vault:
        token = issue(vault).token
        vault.detokenize(token, use(**first))
        assert refused_with(vault, token, use(**first)) == set()
        for value in (FIELDS[name][1], None):
            assert refused_with(vault, token, use(**{**first, name: value})) == {"TRANSACTION_ID_REUSED"}


@pytest.mark.parametrize("whose", ["the token's", "the requestor's"])
def test_a_cryptogram_that_one_of_two_documents_asks_for_counts(
    local_keys: KeyStore, records: MemoryTokenStore, whose: str
) -> None:
    own, given = (CRYPTOGRAM, tv.Domain()) if whose == "the requestor's" else (tv.Domain(), CRYPTOGRAM)
    requestor = tv.TokenRequestor(SHOP, programs={"one-time"}, domain=own)
    with vaults.open_vault(local_keys, records, requestors=(requestor,)) as vault:
        token = issue(vault, domain=given).token
        vault.detokenize(token, use(1, cryptogram_counter=5))
        assert refused_with(vault, token, use(2, cryptogram_counter=5)) == {"CRYPTOGRAM_REQUIRED"}
        assert refused_with(vault, token, use(2, cryptogram_counter=6)) == set()


def test_a_limit_that_is_taken_away_and_put_back_has_not_begun_anew(
    local_keys: KeyStore, records: MemoryTokenStore
) -> None:
    clock = ManualClock(NOW_MS)
    limited = tv.Domain(limits=(tv.Limit(uses=1, per=timedelta(days=1)),))
    with vaults.open_vault(local_keys, records, clock) as vault:
        token = issue(vault, domain=limited).token
        vault.detokenize(token, use(1))
        vault.update_domain(token, None)
        vault.detokenize(token, use(2))
        vault.update_domain(token, limited)
        assert refused_with(vault, token, use(3)) == {"USES_EXCEEDED"}
        clock.advance(DAY_MS)
        assert refused_with(vault, token, use(3)) == set()


def test_the_owner_gets_one_answer_for_a_right_and_a_wrong_guess_of_the_card(
    local_keys: KeyStore, records: MemoryTokenStore
) -> None:
    with vaults.open_vault(local_keys, records) as vault:
        token = issue(vault, VISA).token
        told: list[tuple[str, str] | None] = []
        for guess in (VISA, MASTERCARD):
            try:
                vault.update_domain(token, tv.Domain(merchants={guess}), requestor=SHOP)
            except tv.TokenVaultError as error:
                told.append((error.code, str(error)))
            else:
                told.append(None)
        assert told[0] == told[1]


def test_a_par_that_holds_the_new_number_refuses_a_change_of_the_card(
    local_keys: KeyStore, records: MemoryTokenStore
) -> None:
    with vaults.open_vault(local_keys, records) as vault:
        token = issue(vault, VISA).token
        for by in (None, SHOP):
            with pytest.raises(tv.InvalidInputError) as refused:
                vault.update_card(VISA, new_pan=MASTERCARD, par="A" * 13 + MASTERCARD, requestor=by)
            assert refused.value.code == "CARD_NUMBER_IN_TEXT"
        assert vault.detokenize(token, use()).pan.reveal() == VISA


PER_CUSTOMER = tv.TokenProgram(
    "per-customer", format=tv.TokenFormat(bin="999919"), making=tv.Making.CONVERGENT, per_customer=True
)


def test_a_token_that_converges_on_its_customer_keeps_it_and_the_refusal_is_noted(
    local_keys: KeyStore, records: MemoryTokenStore
) -> None:
    """Singly and in a batch; of another program, and to the same customer, the change is made."""
    shop = tv.TokenRequestor(SHOP, programs={"per-customer", "one-time"})
    with vaults.open_vault(
        local_keys, records, programs=(vaults.RANDOM, PER_CUSTOMER), requestors=(shop,)
    ) as vault:
        fixed = issue(vault, program="per-customer", customer="c-1").token
        free = issue(vault, customer="c-1").token
        for customer in ("c-2", ""):
            with pytest.raises(tv.LifecycleError) as refused:
                vault.update_token(fixed, customer=customer)
            assert refused.value.code == "CUSTOMER_FIXED"
        one, same, other = vault.update_token_many(
            [(fixed, {"customer": "c-2"}), (fixed, {"customer": "c-1"}), (free, {"customer": "c-2"})]
        )
        assert isinstance(one, tv.LifecycleError)
        assert one.code == "CUSTOMER_FIXED"
        assert [each.customer for each in (same, other) if isinstance(each, tv.TokenInfo)] == ["c-1", "c-2"]
        assert (vault.get(fixed).customer, vault.get(free).customer) == ("c-1", "c-2")
        noted = [(event.outcome, event.codes, event.revision) for event in vault.history(fixed)[1:]]
        assert noted == [(Outcome.DENIED, ("LIFECYCLE",), 0)] * 3 + [(Outcome.DONE, (), 2)]
        again = issue(vault, program="per-customer", customer="c-2").token
        assert again != fixed


def test_a_token_of_a_program_that_this_vault_does_not_have_keeps_its_card_and_its_customer(
    local_keys: KeyStore, records: MemoryTokenStore
) -> None:
    """What the program takes for a PAN, and whether it converges on customers, nobody knows here."""
    with vaults.open_vault(local_keys, records) as vault:
        before, other = issue(vault, program="online", customer="c-1"), issue(vault).token
        token = before.reference
    shop = tv.TokenRequestor(SHOP, programs={"one-time"})
    with vaults.open_vault(local_keys, records, programs=(vaults.RANDOM,), requestors=(shop,)) as vault:
        calls: tuple[Callable[[], object], ...] = (
            lambda: vault.update_token(token, customer="c-2"),
            lambda: vault.update_card(token, new_pan=MASTERCARD),
            lambda: vault.update_card(VISA, new_pan=MASTERCARD),
        )
        for call in calls:
            with pytest.raises(tv.ConfigurationError) as refused:
                call()
            assert refused.value.code == "PROGRAM_OR_REQUESTOR_MISSING"
        first, second = vault.update_token_many([(token, {"customer": "c"}), (other, {"customer": "c"})])
        assert isinstance(first, tv.ConfigurationError)
        assert first.code == "PROGRAM_OR_REQUESTOR_MISSING"
        assert isinstance(second, tv.TokenInfo)
        assert vault.get(token) == before
        assert [info.last4 for info in (vault.get(token), vault.get(other))] == [VISA[-4:]] * 2
        assert vault.update_token(token, token_expiry="2031-01").customer == "c-1"


def test_a_renewal_of_a_card_leaves_a_token_that_was_given_another_card_meanwhile(
    local_keys: KeyStore, records: MemoryTokenStore
) -> None:
    """It is none of the tokens that the renewal tells of, and the trail says that it was left."""
    with vaults.open_vault(local_keys, records) as other:
        token, kept = sorted(issue(other, VISA).token for _ in range(2))
        moved = Meanwhile(records, "get", lambda: other.update_card(token, new_pan="378282246310005"))
        with vaults.open_vault(local_keys, moved) as vault:
            changed = vault.update_card(VISA, new_pan=MASTERCARD)
        assert [info.token for info in changed] == [kept]
        assert [other.detokenize(each, use()).pan.reveal() for each in (token, kept)] == [
            "378282246310005", MASTERCARD
        ]  # fmt: skip
        noted = {
            (event.outcome, event.codes)
            for event in other.history(token)
            if event.action is Action.UPDATE_CARD
        }
        assert noted == {(Outcome.DONE, ()), (Outcome.DENIED, ("LIFECYCLE",))}


@pytest.mark.parametrize("gone", ["program", "document"])
def test_one_token_of_a_batch_fails_alone_where_its_program_or_its_document_is_gone(
    local_keys: KeyStore, records: MemoryTokenStore, gone: str
) -> None:
    domain = tv.Domain(merchants={"M-1"})
    with vaults.open_vault(local_keys, records) as vault:
        tokens = [issue(vault).token, issue(vault, program="online", domain=domain).token, issue(vault).token]
    if gone == "document":
        del records._domains[domain.digest]
    programs = (vaults.RANDOM,) if gone == "program" else vaults.PROGRAMS
    shop = tv.TokenRequestor(SHOP, programs={program.name for program in programs})
    with faces.open_face(
        local_keys, records, clock=ManualClock(NOW_MS), programs=programs, requestors=(shop,)
    ) as vault:
        presented = use(merchant="M-1", channel=tv.Channel.ECOMMERCE)
        first, second, third = vault.detokenize_many([(token, presented) for token in tokens])
        assert isinstance(second, tv.ConfigurationError if gone == "program" else tv.IntegrityError)
        for card in (first, third):
            assert isinstance(card, tv.Card)


def test_after_a_rotation_the_convergent_token_of_a_new_card_comes_of_the_newest_key(
    fresh_keys: KeyStore,
) -> None:
    """Under one key and in one domain of its own, a card has the same first candidate in any database."""
    tokens = []
    for _ in range(2):
        with closing(MemoryTokenStore()) as store:
            tv.provision(fresh_keys, store, key_delay=timedelta(milliseconds=100))
            with vaults.open_vault(fresh_keys, store) as vault:
                tokens.append(issue(vault, MASTERCARD, program="card-on-file").token)
    assert tokens[0] == tokens[1]
    with closing(MemoryTokenStore()) as store:
        tv.provision(fresh_keys, store, key_delay=timedelta(milliseconds=100))
        with vaults.open_vault(fresh_keys, store) as vault:
            before = issue(vault, VISA, program="card-on-file").token
        name = maintenance.add_key_version(fresh_keys, store, tv.KeyPurpose.FINGERPRINT)
        maintenance.make_primary(fresh_keys, store, name.purpose, name.version)
        with vaults.open_vault(fresh_keys, store) as vault:
            assert issue(vault, VISA, program="card-on-file").token == before
            assert issue(vault, MASTERCARD, program="card-on-file").token != tokens[0]


@pytest.mark.parametrize("meanwhile", ["delete", "suspend"])
@pytest.mark.parametrize("change", ["update_card", "suspend"])
def test_a_change_that_meets_another_one_before_it_writes_keeps_both(
    local_keys: KeyStore, records: MemoryTokenStore, meanwhile: str, change: str
) -> None:
    """A token that was deleted stays so, and the change says that it found none, or none to change."""
    with vaults.open_vault(local_keys, records) as other:
        token = issue(other, VISA).token
        works: dict[str, Callable[[], object]] = {
            "delete": lambda: other.delete(token),
            "suspend": lambda: other.suspend(token, by=tv.Actor.ISSUER),
        }
        with vaults.open_vault(local_keys, Meanwhile(records, "replace", works[meanwhile])) as vault:
            calls: dict[str, Callable[[], object]] = {
                "update_card": lambda: vault.update_card(VISA, new_pan=MASTERCARD),
                "suspend": lambda: vault.suspend(token, by=tv.Actor.CARDHOLDER),
            }
            with nullcontext() if meanwhile == "suspend" else suppress(tv.TokenVaultError):
                calls[change]()
        after = other.get(token)
        if meanwhile == "delete":
            assert after.status is tv.TokenStatus.DELETED
            assert other.tokens_of(MASTERCARD) == []
        else:
            both = {tv.Actor.ISSUER, *([tv.Actor.CARDHOLDER] if change == "suspend" else [])}
            assert after.suspended_by == both
            for actor in both:
                other.resume(token, by=actor)
            card = other.detokenize(token, use()).pan.reveal()
            assert card == (MASTERCARD if change == "update_card" else VISA)
    assert tv.verify_audit(records, keys=local_keys).intact
