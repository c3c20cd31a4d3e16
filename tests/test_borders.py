"""The borders of every argument of the model: the last value that is accepted, and the first that is refused."""

from __future__ import annotations

import hashlib
import inspect
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import count
from types import MappingProxyType
from typing import Any

import attrs
import pytest

import tokenvault as tv
from tests.pure_token import OWNER
from tokenvault.errors import InvalidInputError, UnchangeableError
from tokenvault.model import checks, counters, domain_document, iso, ledger
from tokenvault.model.authentication import Authentication, Factor, Strength
from tokenvault.model.control import Control, Term, shown
from tokenvault.model.decision import Decision
from tokenvault.model.domain import Domain
from tokenvault.model.dual_control import RevealPolicy, RevealRequest
from tokenvault.model.kinds import KindRule
from tokenvault.model.limits import Limit
from tokenvault.model.listing import AllBut, in_categories
from tokenvault.model.money import Money
from tokenvault.model.pan import CardExpiry, Pan, PanRule
from tokenvault.model.programs import Making, TokenProgram, TokenRequestor
from tokenvault.model.remaining import Remaining
from tokenvault.model.token_format import TokenFormat
from tokenvault.model.transaction import Transaction

SECOND = timedelta(seconds=1)
TEN_YEARS = timedelta(days=3_660)
YEAR = timedelta(days=366)
WIDE = TokenFormat(bin="9", length=19)
NEWEST = datetime(2199, 12, 31, 23, 59, 59, tzinfo=UTC)
OLDEST = datetime(2000, 1, 1, tzinfo=UTC)
ATTEMPT = {"id": "t", "requestor": OWNER}


def program(**fields: Any) -> TokenProgram:
    return TokenProgram(**{"name": "p", "format": WIDE, "accept_density": True, **fields})


def transaction(**fields: Any) -> Transaction:
    return Transaction(**{**ATTEMPT, **fields})


def texts(most: int) -> tuple[list[Any], list[Any]]:
    """Texts of printable ASCII characters, without a blank at either end."""
    return ["!", "~", "x" * most, "a" + " " * (most - 2) + "b"], [
        "",
        " x",
        "x ",
        "x" * (most + 1),
        "\x1f",
        "\x7f",
        "é",
        5,
    ]


def whole(low: int, high: int) -> tuple[list[Any], list[Any]]:
    return [low, high], [low - 1, high + 1, float(low), True, str(low)]


def spans(most: timedelta) -> tuple[list[Any], list[Any]]:
    return [SECOND, most], [timedelta(0), most + SECOND, SECOND + timedelta(microseconds=1), 1]


def sets(of: Callable[[int], Any]) -> tuple[list[Any], list[Any]]:
    every = list(map(of, range(10_001)))
    return [every[:1], every[:-1], tuple(every[:2])], [[], every, "text", b"bytes", 5]


class Unsaid(tzinfo):
    """A time zone that does not say how far it is from UTC."""

    def utcoffset(self, _at: datetime | None) -> None:
        return None

    dst = utcoffset
    tzname = utcoffset


INSTANTS = (
    [OLDEST, NEWEST],
    [OLDEST - SECOND, NEWEST + SECOND, *(NEWEST.replace(tzinfo=zone) for zone in (None, Unsaid())), 5],
)
BORDERS: dict[str, tuple[Callable[[Any], object], tuple[list[Any], list[Any]]]] = {
    "transaction id": (lambda value: transaction(id=value), texts(64)),
    "original": (lambda value: transaction(original=value, kind=tv.Kind.CAPTURE), texts(64)),
    "merchant": (lambda value: transaction(merchant=value), ([], ["x" * 257, " x", "x\x7f", 5])),
    "device": (lambda value: transaction(device=value), (["x", "x" * 256, "x  "], ["x" * 257, " x", "\x1f", 5])),
    "reference": (lambda value: transaction(reference=value), texts(256)),
    "agent": (lambda value: transaction(agent=value), texts(256)),
    "requestor": (lambda value: transaction(requestor=value), (["0" * 11], ["0" * 10, "0" * 12, "0" * 10 + "a", 5])),
    "category": (lambda value: transaction(merchant_category=value), (["0000", "9999"], ["000", "00000", "000a", 5])),
    "country": (lambda value: transaction(country=value), (["FR", "XK"], ["fr", "FRA", "ZZ", 5, ["FR"]])),
    "cryptogram": (lambda value: transaction(cryptogram_counter=value), whole(0, 2**32 - 1)),
    "amount": (lambda value: Money(value, "EUR"), whole(0, 10**15)),
    "currency": (lambda value: Money(1, value), (["EUR"], ["eur", "EU", "ZZZ", 5, ["EUR"]])),
    "method": (lambda value: Authentication(factors=set(Factor), at=OLDEST, method=value), texts(64)),
    "factors": (
        lambda value: Authentication(factors=value, at=OLDEST),
        ([{Factor.POSSESSION}, list(Factor)], [set(), {"possession"}, 5]),
    ),
    "authenticated": (lambda value: Authentication(factors=set(Factor), at=value), INSTANTS),
    "limit of uses": (lambda value: Limit(uses=value), whole(1, 10**9)),
    "limit of money": (lambda value: Limit(amount=value), ([Money(1, "EUR")], [Money(0, "EUR"), 5])),
    "limit's window": (lambda value: Limit(uses=1, per=value), spans(TEN_YEARS)),
    "limit's merchants": (lambda value: Limit(uses=1, merchants=value), sets(str)),
    "limits": (
        lambda value: Domain(limits=value),
        (
            [[Limit(uses=count) for count in range(1, 17)], ()],
            [[Limit(uses=count) for count in range(1, 18)], {Limit(uses=1)}, (5,), 5],
        ),
    ),
    "merchants": (lambda value: Domain(merchants=value), sets(str)),
    "a merchant of a list": (lambda value: Domain(merchants=[value]), (["x" * 256], ["x" * 257, "", 5])),
    "a requestor of a list": (lambda value: Domain(requestors=[value]), (["0" * 11], ["0" * 10, "0" * 12])),
    "an assurance": (lambda value: Domain(assurances=[value]), (["0A"], ["0", "0AB", "0a"])),
    "all but": (AllBut, sets(str)),
    "interval": (lambda value: Domain(min_interval=value), spans(TEN_YEARS)),
    "strong age": (lambda value: Domain(strong_max_age=value), spans(YEAR)),
    "strong factors": (lambda value: Domain(strong_factors=value), whole(1, 3)),
    "valid from": (lambda value: Domain(valid_from=value), INSTANTS),
    "valid until": (lambda value: Domain(valid_until=value), INSTANTS),
    "bin": (lambda value: TokenFormat(bin=value, length=19), (["0", "9" * 12], ["", "9" * 13, "٩", 5])),
    "bin of short PANs": (lambda value: TokenFormat(bin=value), (["9" * 12], ["9" * 13])),
    "bin beside four digits": (lambda value: TokenFormat(bin=value, keep_last4=True), (["9" * 8], ["9" * 9])),
    "token length": (lambda value: TokenFormat(bin="9", length=value), whole(13, 19)),
    "program's name": (lambda value: program(name=value), texts(64)),
    "expected tokens": (lambda value: program(expected_tokens=value), whole(1, 10**15)),
    "refusals": (lambda value: program(suspend_after_refusals=value), whole(1, 100)),
    "lengths of PANs": (lambda value: PanRule(lengths=value), ([(12, 12), (19, 19)], [(11, 12), (12, 20), (14, 13)])),
    "requestor's id": (TokenRequestor, (["0" * 11], ["0" * 10, "0" * 12, 5])),
    "requestor's programs": (
        lambda value: TokenRequestor(OWNER, programs=value),
        ([[], set(), (), frozenset(), {"x" * 64}], [{"x" * 65}, {""}, "p", "", 5, None]),
    ),
    "expiry": (
        lambda value: CardExpiry(*value),
        ([(2000, 1), (2099, 12)], [(1999, 12), (2100, 1), (2000, 0), (2000, 13)]),
    ),
    "minutes": (lambda value: RevealPolicy(purposes={"p"}, minutes=value), whole(1, 1_440)),
    "reveals a day": (lambda value: RevealPolicy(purposes={"p"}, per_person_and_day=value), whole(1, 10_000)),
    "purpose": (lambda value: RevealPolicy(purposes={value}), texts(64)),
    "par": (checks.par, (["0" * 29, "Z" * 29], ["0" * 28, "0" * 30, "a" * 29, 5])),
}  # fmt: skip


@pytest.mark.parametrize("name", BORDERS)
def test_the_last_value_is_accepted_and_the_first_beyond_it_refused(name: str) -> None:
    made, (accepted, refused) = BORDERS[name]
    for value in accepted:
        made(value)
    for value in refused:
        with pytest.raises(InvalidInputError):
            made(value)


def test_a_span_is_bounded_in_words_that_say_how_long_it_may_be() -> None:
    with pytest.raises(InvalidInputError, match="min_interval is whole seconds, from 1 second to 3660 days"):
        Domain(min_interval=timedelta(0))
    with pytest.raises(InvalidInputError, match="1 to 64 printable"):
        transaction(id="")
    with pytest.raises(InvalidInputError, match="1 to 256 printable"):
        transaction(agent="")


def test_an_instant_is_kept_to_the_millisecond_below_it() -> None:
    kept = checks.instant("x", datetime(2026, 1, 1, 12, 0, 0, 123_999, tzinfo=UTC))
    assert kept == datetime(2026, 1, 1, 12, 0, 0, 123_000, tzinfo=UTC)
    assert checks.utc(checks.milliseconds(kept)) == kept


def test_the_values_of_a_list_are_shown_up_to_five() -> None:
    assert shown(["e", "b", "a", "d", "c"]) == "a, b, c, d, e"
    assert shown(["e", "b", "a", "d", "c", "f", "g"]) == "a, b, c, d, e and 2 more"
    assert shown(AllBut({"b", "a"})) == "all but a, b"


def test_an_authentication_is_strong_up_to_its_age_and_from_no_further_ahead_than_clocks_differ() -> None:
    at = Authentication(factors=[Factor.POSSESSION, Factor.KNOWLEDGE], at=OLDEST)
    for strength, latest_ms in ((Strength(2, SECOND), 1_000), (Strength(2), 10**12)):
        expected = {-30_001: False, -30_000: True, 0: True, latest_ms: True}
        assert {age: strength.met_by(at, at.at_ms + age) for age in expected} == expected
    assert not Strength(2, SECOND).met_by(at, at.at_ms + 1_001)
    assert not Strength(3).met_by(at, at.at_ms)
    assert Strength(1).met_by(at, at.at_ms)
    assert str(Strength(1)) == (
        "an authentication of the cardholder with 1 factor of possession, knowledge, inherence"
    )
    assert str(Strength(2, SECOND)).endswith(
        "with 2 different factors of possession, knowledge, inherence, no older than 0:00:01"
    )


@pytest.mark.parametrize(
    "kind",
    [
        Authentication, Control, Domain, KindRule, Limit, PanRule, RevealPolicy, RevealRequest, Term, TokenFormat,
        Transaction,
    ],
)  # fmt: skip
def test_what_has_many_fields_takes_them_by_name_alone(kind: type) -> None:
    names = [field.name for field in attrs.fields(kind) if field.init]
    given = inspect.signature(kind).parameters
    assert [given[name].kind for name in names] == [inspect.Parameter.KEYWORD_ONLY] * len(names)


@pytest.mark.parametrize("kind", [TokenProgram, TokenRequestor])
def test_a_party_takes_its_name_first_and_all_else_by_name(kind: type) -> None:
    first, *others = [field.name for field in attrs.fields(kind) if field.init]
    given = inspect.signature(kind).parameters
    assert given[first].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert {given[name].kind for name in others} == {inspect.Parameter.KEYWORD_ONLY}


PUBLIC = [Authentication(factors=set(Factor), at=OLDEST), Domain(), Limit(uses=1), PanRule(), WIDE, transaction(),
          RevealPolicy(purposes={"p"}), AllBut({"a"}), Money(1, "EUR"), CardExpiry(2030, 1), program(),
          TokenRequestor(OWNER), Decision(),
          Remaining(limit=Limit(uses=1), used=0, left=1, resets_at=None),
          RevealRequest(id="i", reference="r", purpose="p", requested_by="o", requested=OLDEST,
                        expires=NEWEST)]  # fmt: skip


@pytest.mark.parametrize("value", PUBLIC, ids=lambda value: type(value).__name__)
def test_a_value_does_not_change_and_equals_its_like(value: Any) -> None:
    name = attrs.fields(type(value))[0].name
    with pytest.raises(UnchangeableError) as refused:
        setattr(value, name, None)
    assert refused.value.__traceback__ is not None
    assert "_refuse_change" not in [frame.name for frame in traceback.extract_tb(refused.value.__traceback__)]
    again = attrs.evolve(value)
    assert again == value
    assert hash(again) == hash(value)


def test_defaults_are_those_that_the_documents_name() -> None:
    """Each in one place, by what it does for whoever leaves it out."""
    plain = TokenProgram("p", format=TokenFormat(bin="999912"))
    assert (plain.making, plain.expected_tokens, plain.per_customer, plain.accept_density) == (
        Making.RANDOM, 100_000, False, False,
    )  # fmt: skip
    assert (plain.expiry_zone, plain.suspend_after_refusals) == (None, None)
    assert (plain.format.length, plain.format.keep_last4, plain.format.luhn) == (None, False, True)
    requestor = TokenRequestor(OWNER)
    assert (requestor.programs, requestor.permissions, requestor.disabled) == (
        frozenset(), frozenset(tv.Permission), False,
    )  # fmt: skip
    assert (PanRule().lengths, PanRule().luhn) == ((13, 19), True)
    policy = RevealPolicy(purposes={"p"})
    assert (policy.minutes, policy.per_person_and_day) == (15, 10)
    assert (Domain().strong_factors, Domain().strong_max_age) == (2, None)
    use = transaction()
    assert (use.kind, use.final) == (tv.Kind.PURCHASE, True)
    limit = Limit(uses=1)
    assert (limit.zone, limit.since_authentication, limit.without_authentication) == ("UTC", False, False)


def test_room_is_counted_at_the_usual_length_or_the_nearest_that_the_program_takes() -> None:
    """A format of eight digits has 10**(length - 9) tokens that pass the Luhn check."""
    form = TokenFormat(bin="99991234")
    for lengths, room in (((13, 19), 10**7), ((12, 15), 10**6), ((17, 19), 10**8), ((13, 13), 10**4)):
        fits: dict[str, Any] = {"format": form, "pans": PanRule(lengths=lengths)}
        program(**fits, expected_tokens=room // 2)
        program(**fits, expected_tokens=room // 1_000, accept_density=False)
        for wrong in (
            {"expected_tokens": room // 2 + 1},
            {"expected_tokens": room // 1_000 + 1, "accept_density": False},
        ):
            with pytest.raises(InvalidInputError, match=f"has {room} tokens"):
                program(**fits, **wrong)


def test_a_code_is_added_to_its_own_list_or_none_of_them_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iso, "_added", frozenset())  # what is accepted stays so in this process
    wrong: list[Any] = [["XYZ", "xyz"], ["XY"], ["XYZA"], "XYZ", [5], iter(["XYZ"]), None]
    for currencies in wrong:
        with pytest.raises(InvalidInputError, match="three capital letters"):
            iso.add_codes(currencies=currencies, countries=["ZZ"])
    for countries in (["ZZ", "zz"], ["Z"], ["ZZZ"], "ZZ"):
        with pytest.raises(InvalidInputError, match="two capital letters"):
            iso.add_codes(currencies=["XYZ"], countries=countries)
    by_position: Any = iso.add_codes
    with pytest.raises(InvalidInputError, match="add_codes takes at most 0 arguments by position"):
        by_position(["XYZ"])
    assert not iso.is_currency("XYZ")
    assert not iso.is_country("ZZ")
    iso.add_codes(currencies=["XYZ"])
    iso.add_codes(countries={"ZZ"})
    assert iso.is_currency("XYZ")
    assert iso.is_country("ZZ")
    assert not iso.is_country("XYZ")
    assert not iso.is_currency("ZZ")
    assert not iso.is_currency("ZZZ")


@pytest.mark.parametrize(
    ("listed", "allowed", "refused"),
    [
        ({"3000-3999", "5411"}, ["3000", "3500", "3999", "5411"], ["2999", "4000", "5410", "5412", None]),
        (AllBut({"3000-3999", "5411"}), ["2999", "4000", "5410"], ["3000", "3999", "5411", None]),
        ({"0000-0001"}, ["0000", "0001"], ["0002", None]),
    ],
)
def test_a_range_of_merchant_categories_has_both_its_ends(
    listed: Any, allowed: list[str], refused: list[str | None]
) -> None:
    listing = Domain(merchant_categories=listed).merchant_categories
    assert listing is not None
    assert [in_categories(listing, category) for category in allowed] == [True] * len(allowed)
    assert [in_categories(listing, category) for category in refused] == [False] * len(refused)


STORED_WORDS = {
    tv.Kind: "purchase cash transfer verification increment capture reversal refund dispute",
    tv.Channel: "ecommerce contactless chip magstripe qr_consumer qr_merchant atm transfer mail_telephone"
    " merchant_initiated agent",
    tv.Period: "day week month year",
    tv.CryptogramRule: "required",
    tv.Making: "random convergent",
    tv.Permission: "issue detokenize manage",
    tv.Actor: "issuer requestor cardholder vault grantor",
    Factor: "possession knowledge inherence",
}


@pytest.mark.parametrize("kind", STORED_WORDS, ids=lambda kind: kind.__name__)
def test_the_words_of_stored_documents_stay(kind: Any) -> None:
    assert [member.value for member in kind] == STORED_WORDS[kind].split()
    assert [member.name.lower() for member in kind] == STORED_WORDS[kind].split()


def test_sizes_of_what_is_stored_stay() -> None:
    """Records, events and counters are read by them; another value reads nothing that was written before."""
    assert (ledger.USE_ID_BYTES, ledger.FOLLOW_UPS_MAX, len(ledger.NO_USES.use_id)) == (16, 500, 16)
    assert (counters.KEY_BYTES, counters.COUNTERS_MAX, counters.NO_WINDOW, counters.NONE) == (16, 64, -1, -1)
    assert counters.CLOCK_AHEAD_MS_MAX == 86_400_000
    assert len(transaction().content) == 16
    assert domain_document.DOCUMENT_BYTES_MAX == 2**22


def test_a_transaction_s_content_is_what_its_events_are_told_by() -> None:
    """Fixed: a retry is found among the events of an older version."""
    plain = transaction()
    told: dict[str, Any] = {
        "kind": tv.Kind.CAPTURE, "original": "o", "final": False, "merchant": "M  ", "merchant_category": "5411",
        "channel": tv.Channel.CHIP, "country": "FR", "device": "D ", "amount": Money(5, "EUR"), "reference": "R",
        "agent": "A", "token_expiry": "2030-01", "cryptogram_counter": 7,
        "authentication": Authentication(factors=list(Factor)[:2], at=OLDEST, method="m"),
    }  # fmt: skip
    full = transaction(**told)
    spelled = {
        plain: ["40012345678", "purchase", *[""] * 13],
        full: [
            "40012345678", "capture", "part", "o", "M", "5411", "chip", "FR", "D", "5 EUR", "R", "A", "2030-01",
            "knowledge+possession 946684800000 m", "7",
        ],
    }  # fmt: skip
    for each, fields in spelled.items():
        assert each.content == hashlib.sha256("\x1f".join(fields).encode()).digest()[:16]


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: transaction(id=""), "a transaction's id is 1 to 64 printable"),
    (lambda: transaction(requestor="4"), "a transaction's requestor is a token requestor id: 11 digits"),
    (lambda: transaction(original=""), "a transaction's original is 1 to 64"),
    (lambda: transaction(merchant=""), "a merchant is 1 to 256"),
    (lambda: transaction(merchant_category=""), "a merchant category is 4 digits"),
    (lambda: transaction(channel="chip"), "a channel is a Channel"),
    (lambda: transaction(device=""), "a device is 1 to 256"),
    (lambda: transaction(amount=5), "a transaction's amount is a Money"),
    (lambda: transaction(reference=""), "a reference is 1 to 256"),
    (lambda: transaction(agent=""), "an agent is 1 to 256"),
    (lambda: transaction(token_expiry=5), "a transaction's token_expiry is a CardExpiry"),
    (lambda: transaction(authentication=5), "a transaction's authentication is an Authentication"),
    (lambda: transaction(cryptogram_counter=-1), "a cryptogram counter is a whole number from 0 to 4294967295"),
    (lambda: transaction(kind="purchase"), "a transaction's kind is a Kind"),
    (lambda: transaction(final=1), "final is True or False"),
    (lambda: checks.par("a" * 29), "par is 29 uppercase letters and digits"),
    (lambda: checks.token("4"), "the token is 13 to 19 digits"),
    (lambda: Domain(requestors={"4"}), "a requestor is a token requestor id"),
    (lambda: Domain(assurances={"4"}), "an assurance method is 2 uppercase"),
    (lambda: Domain(limits=[5]), "each of limits is a Limit"),  # type: ignore[list-item] # that is the point
    (lambda: Limit(uses=0), "a limit of uses is a whole number from 1 to 1000000000"),
    (lambda: Limit(amount=5), "a limit's amount is a Money"),  # type: ignore[arg-type] # likewise
    (lambda: Limit(uses=1, per=5), "a limit's window that is no Period is a timedelta"),  # type: ignore[arg-type] # likewise
    (lambda: Limit(uses=1, requestors={"4"}), "a requestor is a token requestor id"),
    (lambda: Limit(uses=1, kinds={"cash"}), "a kind is a Kind"),  # type: ignore[arg-type] # likewise
    (lambda: Limit(uses=1, merchants=set()), "a limit's merchants has 1 to 10000 values"),
    (lambda: Limit(uses=1, since_authentication=1), "since_authentication is True"),  # type: ignore[arg-type] # likewise
    (lambda: Limit(uses=1, without_authentication=1), "without_authentication is True"),  # type: ignore[arg-type] # likewise
    (lambda: Money(-1, "EUR"), "an amount in minor units is a whole number from 0 to 1000000000000000"),
    (lambda: Authentication(factors=[], at=OLDEST), "an authentication's factors has 1 to 10000"),
    (lambda: Authentication(factors=[5], at=OLDEST), "an authentication's factors is a Factor"),  # type: ignore[list-item] # likewise
    (lambda: Authentication(factors=set(Factor), at=5), "an authentication's time: a datetime"),  # type: ignore[arg-type] # likewise
    (lambda: Authentication(factors=set(Factor), at=OLDEST, method=""), "an authentication's method is 1"),
    (lambda: TokenFormat(bin="9", length=5), "the token length is a whole number from 13 to 19"),
    (lambda: program(name=""), "a program's name is 1 to 64"),
    (lambda: program(format=5), "a program's format is a TokenFormat"),
    (lambda: program(making="random"), "a program's making is a Making"),
    (lambda: program(domain=5), "a program's domain is a Domain"),
    (lambda: program(pans=5), "a program's pans is a PanRule"),
    (lambda: program(expected_tokens=0), "expected_tokens is a whole number from 1 to 1000000000000000"),
    (lambda: program(per_customer=1), "per_customer is True or False"),
    (lambda: program(accept_density=1), "accept_density is True or False"),
    (lambda: program(suspend_after_refusals=0), "suspend_after_refusals is a whole number from 1 to 100"),
    (lambda: TokenRequestor("4"), "a requestor's id is a token requestor id"),
    (lambda: TokenRequestor(OWNER, domain=5), "a requestor's domain is a Domain"),  # type: ignore[arg-type] # likewise
    (lambda: TokenRequestor(OWNER, disabled=1), "disabled is True or False"),  # type: ignore[arg-type] # likewise
    (lambda: TokenRequestor(OWNER, programs={""}), "a program's name is 1 to 64"),
    (lambda: TokenRequestor(OWNER, programs=5), "a requestor's programs is a list or set of values"),  # type: ignore[arg-type] # likewise
    (lambda: TokenRequestor(OWNER, permissions=set()), "a requestor's permissions has 1 to 10000"),
    (lambda: TokenRequestor(OWNER, permissions={"issue"}), "a permission is a Permission"),  # type: ignore[arg-type] # likewise
    (lambda: Pan.parse("4111111111111111", rule=5), "rule is a PanRule"),  # type: ignore[arg-type] # likewise
    (lambda: AllBut(5), "AllBut is a list or set of values"),  # type: ignore[arg-type] # likewise
    (lambda: Domain.from_json('{"limits":[{"uses":0}]}'), "limits: 1: uses: uses is a whole number"),
    (lambda: Domain.from_json('{"max_amount":{"amount":-1,"currency":"EUR"}}'), "max_amount: an amount is"),
    (lambda: Domain.from_json('{"valid_from":-1}'), "valid_from: an instant in ms is a whole number from 0"),
    (
        lambda: Domain.from_json('{"valid_from":10000000000001}'),
        "valid_from: an instant in ms is a whole number from 0 to 10000000000000",
    ),
    (lambda: Domain.from_json('{"min_interval":0}'), "min_interval: a span in seconds is a whole number from 1"),
    (lambda: Domain.from_json('{"kinds":["sale"]}'), "kinds: in a domain's document, one of: capture, cash"),
    (lambda: Domain.from_json('{"kinds":[[]]}'), "kinds: in a domain's document, one of: capture, cash"),
    (lambda: Domain.from_json('{"merchants":5}'), "merchants: in a domain's document, a list"),
    (lambda: Domain.from_json('{"more":5}'), "in a domain's document, an object of: agents, assurances"),
    (lambda: Domain.from_json('{"min_interval":NaN}'), "in a domain's document, an object of: agents, assurances"),
    (
        lambda: Domain.from_json('{"limits":[{"per":"day","per_seconds":1}]}'),
        "limits: 1: in a domain's document, a limit has per or per_seconds",
    ),
    (lambda: checks.blocking_store("store", object()), "store is a token store without coroutines"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_refusal_names_the_argument_and_what_it_accepts(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        call()
    assert str(refused.value).startswith(message)


def test_a_store_with_coroutines_is_not_taken_for_one_without() -> None:
    class WithCoroutines:
        """As far as the check looks."""

        async def check_schema(self) -> None: ...

    class Without:
        def check_schema(self) -> None: ...

    checks.blocking_store("store", Without())
    with pytest.raises(InvalidInputError, match="store is a token store without coroutines"):
        checks.blocking_store("store", WithCoroutines())


@pytest.mark.parametrize("value", [{"a": 1}, MappingProxyType({"a": 1}), Counter("a")])
def test_any_mapping_is_read_as_a_dict(value: Any) -> None:
    found = checks.mapping("a mapping", value)
    assert type(found) is dict
    assert found == {"a": 1}


class Failing(dict[str, int]):
    """A mapping that can not be read."""

    def keys(self) -> Any:
        raise RuntimeError("4111111111111111")

    __iter__ = keys


@pytest.mark.parametrize("value", [[("a", 1)], "", None, 5, Failing(a=1)])
def test_what_is_no_mapping_or_fails_is_refused_in_the_words_of_who_asked(value: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^a mapping of columns$"):
        checks.mapping("a mapping of columns", value)


def test_of_an_endless_iterable_no_more_is_read_than_shows_that_it_is_too_long() -> None:
    numbers = count()
    with pytest.raises(InvalidInputError, match="merchants has 1 to 10000 values"):
        Domain(merchants=map(str, numbers))
    assert next(numbers) == 10_001


def test_an_iterator_of_the_caller_that_fails_is_refused_without_what_it_holds() -> None:
    def failing() -> Any:
        yield "a"
        raise RuntimeError("4111111111111111")

    with pytest.raises(InvalidInputError, match="the iterable of merchants failed") as refused:
        Domain(merchants=failing())
    assert "4111" not in "".join(traceback.format_exception(refused.value))
    assert refused.value.__cause__ is None


def test_a_signal_s_handler_ends_the_reading_of_the_caller_s_iterator_as_it_is() -> None:
    class StoppedError(Exception):
        """What the host's handler raises."""

    def stop(*_: object) -> None:
        raise StoppedError

    def interrupted() -> Any:
        yield "a"
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(StoppedError):
            Domain(merchants=interrupted())
    finally:
        signal.signal(signal.SIGUSR1, before)
