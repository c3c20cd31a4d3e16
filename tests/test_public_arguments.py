"""A card number in any argument of any public call: no error, repr, frame or log shows it; none asks for a report."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import json
import logging
import pprint
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, is_typeddict

import attrs
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.vaults import ACQUIRER, SHOP, VISA, issue, use
from tokenvault import maintenance, observers
from tokenvault.audit.position import Position
from tokenvault.errors import ArgumentsError, UnchangeableError
from tokenvault.keys import KeyStore
from tokenvault.model.words import Words
from tokenvault.stores import schema_sql, schema_status, upgrade_schema
from tokenvault.stores.port import TokenStore

PUBLIC_KEY = (
    ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
)
TESTS = str(Path(__file__).parent)
NEEDLES = (VISA, VISA[:12], VISA[-12:])
ANY: Any = tv  # for calls that are wrong on purpose
PROTOCOLS = {
    tv.AsyncTokenStore,
    tv.Clock,
    tv.Directory,
    tv.KeyStore,
    tv.RiskControl,
    tv.TokenStore,
}
"""What a caller writes a class for: it has no constructor."""


def failing() -> Iterator[Any]:
    """Gives nothing, and fails with a card number."""
    yield from ()
    raise ValueError(VISA)


WRONG: dict[str, Callable[[], Any]] = {
    "text": lambda: VISA,
    "grouped": lambda: "4111 1111 1111 1111",
    "bytes": VISA.encode,
    "number": lambda: int(VISA),
    "float": lambda: float(VISA),
    "list": lambda: [VISA],
    "pair": lambda: (VISA, VISA),
    "dictionary": lambda: {VISA: VISA},
    "generator": failing,
    "class": lambda: type(f"A{VISA}", (), {}),
}


def told(error: BaseException) -> Iterator[str]:
    """All that anything could print of an error: its chain, and the locals of every frame but the tests' own."""
    current: BaseException | None = error
    while current is not None:
        yield f"{current!s} {current!r} {current.args!r} {vars(current)!r}"
        for frame, _ in traceback.walk_tb(current.__traceback__):
            if not frame.f_code.co_filename.startswith(TESTS):
                yield repr(frame.f_locals)
        assert current.__cause__ is None
        current = current.__context__


def assert_silent(name: str, text: str) -> None:
    assert not any(needle in text for needle in NEEDLES), f"{name}: {text}"


def assert_no_defect(name: str, text: str) -> None:
    assert "please report" not in text, f"{name}: {text}"


def check_call(name: str, call: Callable[[], object]) -> None:
    """A call that takes a card number somewhere: what it gives or raises does not show it."""
    try:
        given = call()
        if inspect.iscoroutine(given):
            given.close()
        if isinstance(given, Iterator):
            next(given, None)
    except tv.TokenVaultError as error:
        for text in told(error):
            assert_silent(name, text)
        assert_no_defect(name, str(error))
        logging.getLogger("test").exception("failed")
        return
    if not isinstance(given, str):
        assert_silent(name, repr(given))
        assert_silent(name, pprint.pformat(given))


def arguments_of(call: Callable[..., object]) -> list[inspect.Parameter]:
    """The parameters of a public call, without its object."""
    return [each for each in inspect.signature(call).parameters.values() if each.name not in ("self", "cls")]


def with_each_wrong(
    name: str, call: Callable[..., object], right: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """The call with a card number of each kind in each argument in turn, and with one that it does not have."""
    for each in arguments_of(call):
        for kind, wrong in WRONG.items():
            given = {**right, each.name: wrong()}
            yield f"{name}({each.name}={kind})", partial(call, **given)
    yield f"{name}(misspelt)", partial(call, **right, **{VISA: 1})
    yield f"{name}(by position)", partial(call, *[VISA] * 20)
    yield f"{name}(nothing)", call


def with_each_value(kind: type[Words]) -> Iterator[tuple[str, Callable[[], object]]]:
    """The look-up of a card number of each kind in an enumeration."""
    for name, wrong in WRONG.items():
        yield f"{kind.__name__}({name})", partial(kind, wrong())


class _Allowing:
    def assess(self, request: tv.RiskRequest) -> tv.RiskAnswer:
        return tv.RiskAnswer(tv.RiskDecision.ALLOW)


def public_callables(keys: KeyStore, store: TokenStore) -> dict[Callable[..., object], dict[str, Any]]:
    """Every public function and class, with arguments that are right."""
    right: dict[Any, dict[str, Any]] = {
        tv.AuditLine: {"text": "{}", "at": Position({})},
        tv.Capacity: {"program": "p", "issued": 1, "expected": 2, "space": 10},
        tv.HealthPart: {"name": "database", "ok": True, "milliseconds": 1.0, "message": ""},
        tv.Card: {"pan": tv.Pan.parse("5555555555554444"), "expiry": None},
        tv.CardExpiry: {"year": 2029, "month": 12},
        tv.Money: {"amount": 1, "currency": "EUR"},
        tv.Limit: {"uses": 1},
        tv.TokenFormat: {"bin": "999912"},
        tv.TokenProgram: {"name": "p", "format": tv.TokenFormat(bin="999912")},
        tv.TokenRequestor: {"id": SHOP},
        tv.Guard: {"misses": 5},
        tv.RiskAnswer: {"decision": tv.RiskDecision.ALLOW},
        tv.RiskPolicy: {"control": _Allowing()},
        tv.Transaction: {"id": "t", "requestor": SHOP},
        tv.Vault: {"keys": keys, "store": store},
        tv.AsyncVault: {"keys": keys, "store": store},
        tv.VaultlessTokenizer: {"keys": keys, "program": "p", "requestor": SHOP},
        tv.export_audit: {"store": store},
        tv.verify_audit: {"store": store, "keys": keys},
        tv.audit_public_key: {"keys": keys},
        maintenance.Retention: {},
        tv.open_export: {"lines": [], "private_key": ""},
        tv.RevealPolicy: {"purposes": {"chargeback"}},
        tv.open_key_store: {"uri": "x"},
        tv.open_token_store: {"url": "memory:"},
        tv.open_async_token_store: {"url": "memory:"},
        schema_sql: {"url": "sqlite:///none.db"},
        schema_status: {"url": "sqlite:///none.db"},
        upgrade_schema: {"url": "sqlite:///none.db"},
        tv.provision: {"keys": keys, "store": store},
        tv.provision_async: {"keys": keys, "store": store},
        tv.Pan.parse: {"text": "5555555555554444"},
        tv.CardExpiry.parse: {"text": "2029-12"},
        tv.Domain.from_json: {"document": "{}"},
    }
    for name in tv.__all__:
        value = getattr(tv, name)
        if (
            isinstance(value, ModuleType)
            or is_typeddict(value)
            or _is_error(value)
            or value in {*PROTOCOLS, *right}
        ):
            continue
        right[value] = {}
    return right


def _is_error(value: object) -> bool:
    """An error shows what it was made with: a caller's own text."""
    return isinstance(value, type) and issubclass(value, BaseException)


def test_no_public_constructor_or_function_shows_a_card_number(
    keys: KeyStore, store: TokenStore, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0
    for call, right in public_callables(keys, store).items():
        if isinstance(call, type) and issubclass(call, Words):
            cases = with_each_value(call)
        else:
            cases = with_each_wrong(getattr(call, "__qualname__", "?"), call, right)
        for name, case in cases:
            check_call(name, case)
            calls += 1
    assert calls > 500
    assert_silent("log", caplog.text)


METHODS: dict[str, dict[str, Any]] = {
    "issue": {"pan": VISA, "requestor": SHOP, "program": "one-time"},
    "issue_many": {"cards": [VISA], "requestor": SHOP, "program": "one-time"},
    "check": {"transaction": use()},
    "detokenize": {"transaction": use()},
    "detokenize_many": {"uses": []},
    "check_many": {"uses": []},
    "suspend": {"by": tv.Actor.ISSUER},
    "resume": {"by": tv.Actor.ISSUER},
    "update_domain": {"domain": None},
    "update_card": {
        "pan_or_token_or_reference": VISA,
        "new_pan": VISA,
        "expiry": "2039-12",
        "par": "5" * 29,
    },
    "update_card_many": {"changes": [(VISA, {"expiry": "2039-12"})]},
    "update_token": {"customer": "c"},
    "update_token_many": {"changes": []},
    "update_domain_many": {"changes": []},
    "update_assurance": {"method": "12"},
    "wind_down": {"purge_after": datetime(2100, 1, 1, tzinfo=UTC)},
    "issue_from": {"requestor": SHOP, "program": "one-time"},
    "get_many": {"tokens_or_references": []},
    "delete_many": {"tokens_or_references": []},
    "tokens_of": {"pan": VISA},
    "import_tokens": {"rows": [], "requestor": SHOP, "program": "one-time"},
    "request_export": {"public_key": PUBLIC_KEY, "operator": "alice", "purpose": "chargeback"},
    "export_cards": {"request": 64 * "b", "public_key": PUBLIC_KEY, "operator": "alice", "to": io.StringIO()},
    "request_reveal": {"operator": "alice", "purpose": "chargeback"},
    "approve": {"request": 64 * "b", "operator": "bob"},
    "reveal": {"request": 64 * "b", "operator": "alice"},
}
"""Right arguments of the vault's methods, besides the token."""


def test_no_method_of_a_vault_shows_a_card_number(vault: tv.Vault, caplog: pytest.LogCaptureFixture) -> None:
    token = issue(vault).token
    calls = 0
    for name, method in inspect.getmembers(tv.Vault, inspect.isfunction):
        if name.startswith("_") or name in ("close", "within"):
            continue
        parameters = [each.name for each in arguments_of(method)]
        right = {**METHODS.get(name, {})}
        right |= {each: token for each in parameters if each in ("token", "token_or_reference", "source")}
        for case in parameters:
            for kind, wrong in WRONG.items():
                given = {**right, case: wrong()}
                check_call(f"{name}({case}={kind})", partial(getattr(vault, name), **given))
                calls += 1
        check_call(f"{name}(misspelt)", partial(getattr(vault, name), **{VISA: 1}))
        check_call(f"{name}(nothing)", getattr(vault, name))
    assert calls > 300
    assert_silent("log", caplog.text)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda v: v.issue(VISA, expirey="2029-12", requestor=SHOP, program="one-time"),
            "no argument 'expirey'",
        ),
        (lambda v: v.issue(VISA, requestor=SHOP), "needs program"),
        (lambda v: v.check("9" * 16), "needs transaction"),
        (lambda v: v.check("9" * 16, use(), use()), "at most 2 arguments by position"),
        (lambda v: v.check("9" * 16, token_or_reference="9" * 16, transaction=use()), "twice"),
        (lambda _: ANY.Transaction(idd="x"), "no argument 'idd'"),
        (lambda _: ANY.Transaction("x"), "at most 0 arguments by position"),
        (lambda _: ANY.CardExpiry(2029), "needs month"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    keys: KeyStore, call: Callable[[Any], object], told: str
) -> None:
    """As InvalidInputError, and as the TypeError that Python itself would raise."""
    store = tv.open_token_store("memory:")
    tv.provision(keys, store)
    with vaults.open_vault(keys, store) as vault, pytest.raises(ArgumentsError, match=told) as raised:
        call(vault)
    assert isinstance(raised.value, tv.InvalidInputError)
    assert isinstance(raised.value, TypeError)


@pytest.mark.parametrize("wrong", ["swapped", "a blocking vault on an awaited store"])
def test_parts_of_a_vault_in_each_others_place_are_named(
    keys: KeyStore, store: TokenStore, wrong: str
) -> None:
    swapped = wrong == "swapped"
    parts: list[Any] = [store, keys] if swapped else [keys, tv.open_async_token_store("memory:")]
    with pytest.raises(tv.InvalidInputError, match=r"keys is|store is"):
        tv.Vault(*parts)
    with pytest.raises(tv.InvalidInputError, match=r"keys is|store is"):
        tv.provision(*parts)


class OddClock:
    def __init__(self, now: object) -> None:
        self.now = now

    def now_ms(self) -> Any:
        if isinstance(self.now, Exception):
            raise self.now
        return self.now


@pytest.mark.parametrize(
    "now", [1.8e12, None, -1, 253_402_300_800_000, True, str(NOW_MS), float("nan"), 10**30, ValueError(VISA)]
)
def test_an_odd_clock_is_named(keys: KeyStore, now: object) -> None:
    store = tv.open_token_store("memory:")
    tv.provision(keys, store)
    clock = OddClock(NOW_MS)
    with vaults.open_vault(keys, store, clock) as vault:
        token = issue(vault).token
        clock.now = now
        calls: list[Callable[[], object]] = [
            lambda: issue(vault),
            lambda: vault.check(token, use()),
            lambda: vault.detokenize(token, use()),
            lambda: vault.suspend(token, by=tv.Actor.ISSUER),
            lambda: vault.detokenize(token, tv.Transaction(id="t", requestor="40099999999")),
        ]
        for call in calls:
            with pytest.raises(tv.InvalidInputError, match="clock") as raised:
                call()
            assert raised.value.code == "CLOCK"
            for text in told(raised.value):
                assert_silent("clock", text)
        clock.now = NOW_MS
        assert vault.detokenize(token, use()).pan.reveal() == VISA


def test_the_last_millisecond_that_dates_have_is_a_time(keys: KeyStore) -> None:
    store = tv.open_token_store("memory:")
    tv.provision(keys, store)
    with vaults.open_vault(keys, store, OddClock(253_402_300_799_999)) as vault:
        token = issue(vault, expiry=None).token
        assert vault.history(token)[0].time.year == 9999


@pytest.mark.parametrize("clock", [5, VISA, NOW_MS])
def test_what_is_no_clock_is_refused_at_opening(keys: KeyStore, store: TokenStore, clock: Any) -> None:
    with pytest.raises(tv.InvalidInputError, match="clock is"):
        tv.Vault(keys, store, clock=clock)


def walked(start: object) -> Iterator[object]:
    """What can be reached of a value by attributes, slots, items and the garbage collector's referents."""
    seen: set[int] = set()
    waiting = [start]
    while waiting and len(seen) < 10_000:
        current = waiting.pop()
        if id(current) in seen or isinstance(current, type | ModuleType) or callable(current):
            continue
        seen.add(id(current))
        yield current
        waiting += gc.get_referents(current)
        names = [*getattr(current, "__dict__", {}), *_slots(current)]
        waiting += [getattr(current, name, None) for name in names]


def _slots(value: object) -> list[str]:
    return [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]


@pytest.mark.parametrize("card", [tv.Card(tv.Pan.parse(VISA), tv.CardExpiry(2029, 12)), tv.Pan.parse(VISA)])
def test_no_walk_over_a_card_finds_its_digits(card: Any) -> None:
    found = 0
    for value in walked(card):
        found += 1
        for text in (repr(value), str(value)):
            assert_silent(type(value).__name__, text)
        if isinstance(value, bytes):
            assert VISA.encode() not in value
        if isinstance(value, int):
            assert value != int(VISA)
    assert found > 2
    for shown in (pprint.pformat(card), str(copy.deepcopy(card)), f"{card}", json.dumps(card, default=str)):
        assert_silent("shown", shown)
    if attrs.has(type(card)):
        assert_silent("asdict", str(attrs.asdict(card)) + str(attrs.astuple(card)))


def test_hashes_of_pans_can_not_be_computed_from_their_digits() -> None:
    pan = tv.Pan.parse(VISA)
    assert hash(pan) == hash(tv.Pan.parse("4111 1111 1111 1111"))
    assert hash(pan) not in {hash(VISA), hash((tv.Pan, VISA)), hash(int(VISA))}


def test_changing_what_does_not_change_leaves_no_frame_with_the_value() -> None:
    card = tv.Card(tv.Pan.parse("5555555555554444"), None)
    for value in (card, card.pan, tv.Money(1, "EUR"), tv.Domain(), use(), tv.CheckpointPolicy()):
        with pytest.raises(tv.InvalidInputError, match="does not change") as raised:
            setattr(value, f"a{VISA}", VISA)
        for text in told(raised.value):
            assert_silent(type(value).__name__, text)
    with pytest.raises(attrs.exceptions.FrozenInstanceError) as unchanged:
        card.expiry = None  # type: ignore[misc] # the point
    assert isinstance(unchanged.value, UnchangeableError)


def test_a_generator_that_fails_is_named_and_not_shown(keys: KeyStore, store: TokenStore) -> None:
    calls: list[Callable[[], object]] = [
        lambda: tv.Vault(keys, store, programs=failing()),
        lambda: tv.Vault(keys, store, requestors=failing()),
        lambda: tv.TokenRequestor(SHOP, programs=failing()),
        lambda: tv.Domain(merchants=failing()),
    ]
    for call in calls:
        with pytest.raises(tv.InvalidInputError, match="iterable") as raised:
            call()
        for text in told(raised.value):
            assert_silent("generator", text)


def test_requestors_of_the_suite_are_told_apart() -> None:
    """The suite's own ids are no card numbers: what is looked for is found for no other reason."""
    assert not any(needle in text for needle in NEEDLES for text in (SHOP, ACQUIRER))


def with_floats() -> Iterator[type[Any]]:
    """The public classes whose objects hold a float."""
    for kind in [*vars(tv).values(), *vars(observers).values(), *vars(maintenance).values()]:
        if attrs.has(kind) and any("float" in str(field.type) for field in attrs.fields(kind)):
            yield kind


def test_a_float_is_taken_for_no_card_number() -> None:
    kinds = set(with_floats())
    assert {tv.Capacity, tv.HealthPart, tv.StoredDirectory} <= kinds
    for kind in kinds:
        for field in attrs.fields(kind):
            if "float" in str(field.type):
                assert callable(field.repr), f"{kind}.{field.name}"
    shown = repr(tv.Capacity(program="p", issued=1, expected=2, space=3, per_day=1000 / 3))
    assert "per_day=333.333," in shown
    assert VISA[6:12] not in repr(
        tv.Capacity(program="p", issued=1, expected=2, space=3, per_day=float(VISA))
    )
