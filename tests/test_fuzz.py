"""Whatever is passed to a public call, of any type: an answer, or an error of the library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokenvault as tv
from tests import faces, vaults
from tests.faces import open_on_a_loop
from tests.postgres_server import PostgresServer
from tests.strategies import domains, pan_digits, transactions
from tests.vaults import SHOP, VISA, issue
from tokenvault import maintenance
from tokenvault.crypto import ff1
from tokenvault.keys import FileKeyStore, KeyStore, LocalBlockCipher
from tokenvault.stores import ThreadedTokenStore, schema_sql, schema_status, upgrade_schema
from tokenvault.stores.port import TokenStore

CIPHER = LocalBlockCipher(bytes(32))


class Hostile(str):
    """A text whose methods fail."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __hash__(self) -> int:
        return 1

    def encode(self, *_args: object) -> bytes:
        raise RuntimeError


def test_a_text_of_a_class_of_its_own_is_taken_for_the_text(local_keys: KeyStore) -> None:
    """Such as numpy.str_: nothing calls a method of it, or keeps it."""
    with closing(tv.open_token_store("memory:")) as store:
        faces.provision(local_keys, store)
        vault = vaults.open_vault(local_keys, store)
        token = vault.issue(
            Hostile("4111 1111 1111 1111"),
            expiry=Hostile("2029-12"),
            requestor=Hostile(SHOP),
            program=Hostile("card-on-file"),
            customer=Hostile("C-1"),
            metadata={Hostile("order"): Hostile("A")},
            domain=tv.Domain(
                merchants=[Hostile("M-1")],
                merchant_categories=[Hostile("5411")],
                countries=[Hostile("FR")],
                limits=(
                    tv.Limit(
                        per=tv.Period.MONTH,
                        zone=Hostile("Europe/Paris"),
                        amount=tv.Money(900, Hostile("EUR")),
                    ),
                ),
            ),
        )
        transaction = tv.Transaction(
            id=Hostile("tx-1"),
            requestor=Hostile(SHOP),
            merchant=Hostile("M-1"),
            merchant_category=Hostile("5411"),
            country=Hostile("FR"),
            device=Hostile("D-1"),
            reference=Hostile("R-1"),
            agent=Hostile("A-1"),
            amount=tv.Money(900, Hostile("EUR")),
        )
        assert vault.detokenize(Hostile(token.token), transaction).pan == tv.Pan.parse(VISA)
        refund = tv.Transaction(
            id=Hostile("tx-2"), requestor=Hostile(SHOP), kind=tv.Kind.REFUND, original=Hostile("tx-1")
        )
        assert vault.detokenize(Hostile(token.token), refund).pan == tv.Pan.parse(VISA)
        assert vault.get(Hostile(token.reference)).customer == "C-1"
        assert [each.token for each in vault.search(requestor=Hostile(SHOP), after=Hostile(""))] == [
            token.token
        ]
        vaultless = tv.VaultlessTokenizer(local_keys, program=Hostile("p"), requestor=Hostile(SHOP))
        assert vaultless.detokenize(Hostile(vaultless.tokenize(Hostile(VISA)))) == tv.Pan.parse(VISA)


def broken() -> Iterator[int]:
    yield 1
    raise RuntimeError


PLAUSIBLE: Final = [
    VISA, "4111 1111 1111 1111", "2029-12", "2029-13", SHOP, "one-time", "card-on-file", "M-1", "EUR", "EUX",
    "FR", "5411", "22", "P" * 29, "9999130000000003", "0" * 32, "memory:", "sqlite:///", "pkcs11:token=x",
    "file:/nowhere/keys.json", tv.Actor.ISSUER, tv.Channel.ATM, tv.Money(1, "EUR"), tv.Limit(uses=1),
    timedelta(days=1), datetime(2026, 1, 1, tzinfo=UTC), datetime.max, tv.Making.RANDOM,
    tv.TokenFormat(bin="999912"), tv.Pan.parse(VISA), tv.CardExpiry(2029, 12), Hostile("4111111111111111"),
    {"one-time"}, {VISA}, ("a",), 10, 16, 1, 0, -1, 10**30, 2.5, float("nan"), True, "", "\ud800", "\x00",
    "١٢٣", b"", bytes(16), [1, 2, 3, 4, 5, 6, 7], CIPHER,
]  # fmt: skip
plausible = st.sampled_from(PLAUSIBLE)
hostile = st.sampled_from([Hostile(each) for each in PLAUSIBLE if type(each) is str])
anything = st.one_of(
    plausible,
    pan_digits(),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.lists(plausible, max_size=3),
    st.sets(st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.builds(object),
    st.builds(broken),
    domains,
    transactions,
    st.just(int),
    st.functions(),
)


def awaited(call: Callable[..., Coroutine[Any, Any, object]]) -> Callable[..., object]:
    return lambda *arguments, **named: asyncio.run(call(*arguments, **named))


async def opened(keys: KeyStore, store: Any, **parts: Any) -> None:
    async with tv.AsyncVault(keys, store, **parts):
        pass


def calls(
    vault: tv.Vault, keys: KeyStore, store: TokenStore
) -> dict[str, tuple[Callable[..., object], int, list[str]]]:
    """Public calls: how many arguments stand first, and which have names."""
    vaultless = tv.VaultlessTokenizer(keys, program="fuzz", requestor=SHOP)
    controls = ["requestors", "merchants", "merchant_categories", "channels", "countries", "currencies",
                "devices", "kinds", "references", "agents", "assurances", "valid_from", "valid_until", "min_amount",
                "max_amount", "min_interval", "limits", "cryptogram", "strong_above", "strong_factors",
                "strong_max_age",
                "follow_ups_without_original"]  # fmt: skip
    common = ["requestor", "program", "domain", "token_expiry", "assurance", "active", "operator"]
    orders = [*common, "expiry", "par", "customer", "metadata", "idempotency_key", "accept_expired"]
    by = ["requestor", "operator"]
    return {
        "issue": (vault.issue, 1, orders),
        "check": (vault.check, 2, []),
        "detokenize": (vault.detokenize, 2, []),
        "issue_many": (vault.issue_many, 1, [*common, "accept_expired"]),
        "issue_from": (vault.issue_from, 1, [*common, "customer", "metadata", "idempotency_key"]),
        "wind_down": (vault.wind_down, 1, ["purge_after", *by]),
        "update_token": (vault.update_token, 1, ["token_expiry", "customer", "metadata", *by]),
        "update_assurance": (vault.update_assurance, 2, ["at", "operator"]),
        "tokens_from": (vault.tokens_from, 1, ["requestor"]),
        "domain": (vault.domain, 1, []),
        "remaining": (vault.remaining, 1, []),
        "search": (vault.search, 0, ["requestor", "customer", "program", "status", "last4", "after", "limit"]),
        "count": (vault.count, 0, ["program", "requestor", "status"]),
        "get_many": (vault.get_many, 1, []),
        "delete_many": (vault.delete_many, 1, by),
        "update_domain_many": (vault.update_domain_many, 1, by),
        "update_token_many": (vault.update_token_many, 1, by),
        "update_card_many": (vault.update_card_many, 1, by),
        "import_cards": (lambda *parts, **named: list(tv.import_cards(*parts, **named)), 2,
                         ["requestor", "program", "domain", "columns", "after_line", "import_id", "operator"]),
        "check_many": (vault.check_many, 1, []),
        "detokenize_many": (vault.detokenize_many, 1, []),
        "activate": (vault.activate, 1, []),
        "suspend": (vault.suspend, 1, ["by", "requestor"]),
        "resume": (vault.resume, 1, ["by", "requestor"]),
        "delete": (vault.delete, 1, ["requestor"]),
        "update_domain": (vault.update_domain, 2, ["requestor"]),
        "update_card": (vault.update_card, 1, ["new_pan", "expiry", "par", "requestor"]),
        "tokens_of": (vault.tokens_of, 1, ["requestor"]),
        "acknowledge": (vault.acknowledge, 1, ["operator", "reason"]),
        "request_reveal": (vault.request_reveal, 1, ["operator", "purpose"]),
        "approve": (vault.approve, 1, ["operator"]),
        "reveal": (vault.reveal, 1, ["operator"]),
        "request_export": (vault.request_export, 0, ["public_key", "operator", "purpose", "program", "requestor"]),
        "export_cards": (vault.export_cards, 1, ["public_key", "operator", "to"]),
        "import_tokens": (vault.import_tokens, 1, ["requestor", "program", "domain", "active", "operator"]),
        "release": (vault.release, 1, ["operator"]),
        "put_program": (vault.put_program, 1, ["operator"]),
        "put_requestor": (vault.put_requestor, 1, ["operator"]),
        "disable_requestor": (vault.disable_requestor, 1, ["operator"]),
        "programs": (vault.programs, 0, []),
        "requestor": (vault.requestor, 1, []),
        "get": (vault.get, 1, []),
        "history": (vault.history, 1, ["after", "limit"]),
        "capacity": (vault.capacity, 0, ["recent_days"]),
        "health": (vault.health, 0, ["within_ms"]),
        "retention": (maintenance.Retention, 0, ["tombstones", "uses", "events", "random_programs", "archive"]),
        "export_audit": (lambda **named: list(tv.export_audit(store, **named)), 0, ["after", "shape", "stop"]),
        "CheckpointPolicy": (tv.CheckpointPolicy, 0, ["events", "seconds"]),
        "Pan.parse": (tv.Pan.parse, 1, []),
        "CardExpiry": (tv.CardExpiry, 2, []),
        "CardExpiry.parse": (tv.CardExpiry.parse, 1, []),
        "Money": (tv.Money, 2, []),
        "Limit": (tv.Limit, 0, ["uses", "amount", "per", "zone", "since_authentication", "channels", "merchants",
                                "requestors", "kinds"]),
        "Domain": (tv.Domain, 0, controls),
        "Domain.from_json": (tv.Domain.from_json, 1, []),
        "Transaction": (tv.Transaction, 0, ["id", "requestor", "merchant", "merchant_category", "channel", "country",
                                            "device", "amount", "cryptogram_counter", "kind", "original", "final",
                                            "reference", "agent", "token_expiry", "authentication"]),
        "TokenFormat": (tv.TokenFormat, 0, ["bin", "length", "keep_last4", "luhn"]),
        "TokenProgram": (tv.TokenProgram, 1, ["format", "making", "domain", "expected_tokens", "pans",
                                                    "per_customer", "expiry_zone"]),
        "TokenRequestor": (tv.TokenRequestor, 1, ["programs", "permissions", "domain"]),
        "Vault": (lambda **parts: faces.open_face(keys, store, **parts), 0, ["programs", "requestors"]),
        "provision": (lambda **parts: tv.provision(keys, store, **parts), 0, ["custody", "find_by_last4"]),
        "open_key_store": (tv.open_key_store, 1, []),
        "open_token_store": (tv.open_token_store, 1, []),
        "schema_sql": (schema_sql, 1, ["since"]),
        "schema_status": (schema_status, 1, []),
        "upgrade_schema": (upgrade_schema, 1, ["report"]),
        "open_async_token_store": (tv.open_async_token_store, 1, []),
        "AsyncVault": (
            awaited(lambda **parts: opened(keys, ThreadedTokenStore(tv.open_token_store("memory:")), **parts)), 0,
            ["programs", "requestors"],
        ),
        "AsyncVault over": (awaited(lambda over: opened(keys, over)), 1, []),
        "provision_async": (awaited(lambda over, custody: tv.provision_async(keys, over, custody=custody)), 2, []),
        "ff1.encrypt": (ff1.encrypt, 2, ["radix", "tweak"]),
        "ff1.decrypt": (ff1.decrypt, 2, ["radix", "tweak"]),
        "LocalBlockCipher": (LocalBlockCipher, 1, []),
        "encrypt_blocks": (CIPHER.encrypt_blocks, 1, []),
        "VaultlessTokenizer": (
            lambda **parts: tv.VaultlessTokenizer(keys, **parts), 0,
            ["program", "requestor", "keep_first", "keep_last4", "key_version"],
        ),
        "tokenize": (vaultless.tokenize, 1, []),
        "vaultless.detokenize": (vaultless.detokenize, 1, []),
        "FileKeyStore": (FileKeyStore, 1, []),
    }  # fmt: skip


def fuzz(
    keys: KeyStore,
    data: st.DataObject,
    url: str = "memory:",
    only: frozenset[str] = frozenset(),
    argument: st.SearchStrategy[Any] = anything,
) -> None:
    # A new one each time, so that no example builds on another; on a loop for the face with coroutines.
    store = data.draw(st.sampled_from([tv.open_token_store] * 3 + [open_on_a_loop]))(url)
    with closing(store):
        faces.provision(keys, store)
        try_one_call(keys, store, data, only, argument)


def fuzz_texts(keys: KeyStore, data: st.DataObject) -> None:
    """With texts of a class whose methods fail, wherever one is taken: in half of the calls for every argument."""
    fuzz(keys, data, argument=data.draw(st.sampled_from([hostile, hostile | plausible])))


def try_one_call(
    keys: KeyStore,
    store: TokenStore,
    data: st.DataObject,
    only: frozenset[str],
    argument: st.SearchStrategy[Any],
) -> None:
    vault = vaults.open_vault(keys, store)
    issued = issue(vault)
    argument = argument | st.sampled_from([issued.token, Hostile(issued.token), Hostile(issued.reference)])
    table = calls(vault, keys, store)
    name = data.draw(st.sampled_from(sorted(only or table)))
    function, positional, named = table[name]
    arguments: list[Any] = [data.draw(argument) for _ in range(positional)]
    keywords = {key: data.draw(argument) for key in named if key in REQUIRED or data.draw(st.booleans())}
    try:
        result = function(*arguments, **keywords)
    except tv.TokenVaultError as error:
        assert type(error) is not tv.TokenVaultError, f"{name}: {error}"  # noqa: PT017 # any but the one for defects
        return
    close = getattr(result, "close", None)
    ending = None if close is None else close()
    if asyncio.iscoroutine(ending):
        asyncio.run(ending)


# Without these the call is not a call at all: Python itself refuses it.
REQUIRED = {"requestor", "program", "by", "purge_after", "bin", "format", "radix", "tweak", "operator", "purpose",
            "public_key", "to", "reason"}  # fmt: skip


@pytest.mark.unmeasured
@settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_argument_is_answered_or_refused(local_keys: KeyStore, data: st.DataObject) -> None:
    fuzz(local_keys, data)


@pytest.mark.unmeasured
@settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_a_text_of_a_class_whose_methods_fail_is_answered_or_refused(
    local_keys: KeyStore, data: st.DataObject
) -> None:
    fuzz_texts(local_keys, data)


@pytest.mark.nightly
@settings(
    max_examples=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_of_20_000_texts_of_a_class_whose_methods_fail_is_answered_or_refused(
    local_keys: KeyStore, data: st.DataObject
) -> None:
    fuzz_texts(local_keys, data)


USES_THE_STORE = frozenset(
    {"issue", "issue_from", "wind_down", "update_token", "update_assurance", "tokens_from", "domain", "remaining",
     "search", "count", "get_many", "delete_many", "update_domain_many", "update_token_many", "update_card_many",
     "check", "detokenize", "issue_many", "check_many", "detokenize_many", "activate", "suspend",
     "resume", "delete", "update_domain", "update_card", "tokens_of", "get", "history", "Vault",
     "provision", "capacity", "health", "export_audit", "acknowledge", "request_reveal", "approve", "reveal",
     "request_export", "export_cards", "import_tokens", "release", "put_program", "put_requestor",
     "disable_requestor", "programs", "requestor"}
)  # fmt: skip


def test_every_method_of_the_vault_is_fuzzed() -> None:
    public = {name for name in dir(tv.Vault) if not name.startswith("_")}
    assert public - {"close", "within"} <= USES_THE_STORE


@pytest.mark.unmeasured
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_argument_is_answered_or_refused_over_postgresql(
    local_keys: KeyStore, postgres_server: PostgresServer, data: st.DataObject
) -> None:
    fuzz(local_keys, data, postgres_server.new_url(), USES_THE_STORE)


@pytest.mark.nightly
@settings(
    max_examples=3_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_of_3_000_arguments_is_answered_or_refused_over_postgresql(
    local_keys: KeyStore, postgres_server: PostgresServer, data: st.DataObject
) -> None:
    fuzz(local_keys, data, postgres_server.new_url(), USES_THE_STORE)


@pytest.mark.nightly
@settings(
    max_examples=100_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_of_100_000_arguments_is_answered_or_refused(local_keys: KeyStore, data: st.DataObject) -> None:
    fuzz(local_keys, data)
