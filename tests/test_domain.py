"""Domains and transactions as data."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import subprocess
import sys
import traceback
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import any_limits, any_transactions, controls, domains
from tokenvault.errors import InvalidInputError
from tokenvault.model import domain_document
from tokenvault.model.controls import CONTROLS, CryptogramRule
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.domain_document import DOCUMENT_BYTES_MAX
from tokenvault.model.limits import Limit
from tokenvault.model.listing import AllBut
from tokenvault.model.money import Money
from tokenvault.model.pan import Pan, PanRule
from tokenvault.model.periods import Period
from tokenvault.model.transaction import Channel, Transaction
from tokenvault.model.velocity import VelocityLimit

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(object()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(domains)
def test_a_domain_reads_back_from_its_document(domain: Domain) -> None:
    assert Domain.from_json(domain.to_json()) == domain
    assert Domain.from_json(json.dumps(json.loads(domain.to_json()), indent=3)) == domain


def test_every_field_of_a_domain_is_a_control_of_the_table() -> None:
    fields = {field.name for field in attrs.fields(Domain) if field.init}
    assert fields == set(CONTROLS) == set(controls)


@given(domains)
def test_a_domain_can_be_copied_and_pickled(domain: Domain) -> None:
    for other in (copy.deepcopy(domain), pickle.loads(pickle.dumps(domain))):  # noqa: S301 # of our own making
        assert (other, other.document) == (domain, domain.document)


@given(domains, domains)
def test_equal_domains_have_equal_documents_and_others_do_not(one: Domain, other: Domain) -> None:
    assert (one == other) == (one.document == other.document)
    assert one.digest == hashlib.sha256(one.document).digest()


@given(domains)
def test_a_document_is_canonical(domain: Domain) -> None:
    """ASCII, sorted names, no spaces, nothing unset."""
    document = domain.to_json()
    assert document == json.dumps(json.loads(document), sort_keys=True, separators=(",", ":"))
    assert document.isascii()
    assert "null" not in document


def test_a_document_stays_as_it_is() -> None:
    """Records carry its SHA-256: another byte here would orphan every domain stored so far."""
    domain = Domain(
        requestors={"40087654321", "40012345678"}, merchants={"M-1001"}, channels={Channel.ATM},
        valid_from=datetime(2026, 1, 1, tzinfo=UTC), max_amount=Money(250_00, "EUR"),
        limits=(Limit(uses=10, per=timedelta(days=1)), Limit(amount=Money(1000_00, "EUR"))),
        cryptogram=CryptogramRule.REQUIRED, assurances={"10"},
    )  # fmt: skip
    assert domain.to_json() == (
        '{"assurances":["10"],"channels":["atm"],"cryptogram":"required","limits":[{"uses":10,"per_seconds":86400},'
        '{"amount":{"amount":100000,"currency":"EUR"}}],"max_amount":{"amount":25000,"currency":"EUR"},'
        '"merchants":["M-1001"],"requestors":["40012345678","40087654321"],'
        '"valid_from":1767225600000}'
    ).replace('"uses":10,"per_seconds":86400', '"per_seconds":86400,"uses":10')
    assert NO_RESTRICTION.to_json() == "{}"


@given(st.sampled_from(sorted(controls)), anything)
def test_a_control_of_another_form_is_refused_with_the_library_s_error(name: str, value: Any) -> None:
    try:
        Domain(**{name: value})
    except InvalidInputError as error:
        refused: InvalidInputError | None = error
    else:
        refused = None
    assert refused is None or refused.__context__ is None


@given(anything)
def test_any_json_is_a_domain_or_refused(value: Any) -> None:
    try:
        text = json.dumps({"merchants": value, "limits": value})
    except (TypeError, ValueError):
        text = value
    try:
        Domain.from_json(text)
    except InvalidInputError:
        return
    assert isinstance(text, str | bytes)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"merchant":["M"]}', '{"merchants":[]}', '{"merchants":"M"}', '{"merchants":null}',
     '{"merchants":["M"],"merchants":["N"]}', '{"limits":[{"uses":0}]}', '{"limits":[{"uses":1.0}]}',
     '{"limits":[{"uses":true}]}', '{"limits":[{}]}', '{"limits":[{"uses":1,"each":2}]}',
     '{"max_amount":{"amount":NaN,"currency":"EUR"}}', '{"max_amount":{"amount":1,"currency":"EUX"}}',
     '{"channels":["telepathy"]}', '{"valid_from":-1}', '{"valid_from":1e3}', '{"cryptogram":"maybe"}',
     '{"min_assurance":"10"}', '{"assurances":["1"]}', "[" * 100_000,
     '{"merchants":[' + '"M",' * 10_000 + '"M"]}', "\ud800", b"\xff\xfe"],
)  # fmt: skip
def test_a_document_of_another_form_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidInputError):
        Domain.from_json(text)


def test_a_refused_document_is_in_no_frame_of_its_error() -> None:
    with pytest.raises(InvalidInputError) as refused:
        Domain.from_json('{"merchants":5}')
    assert "from_json" not in [frame.name for frame in traceback.extract_tb(refused.tb)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"merchants": set()}, {"merchants": "M-1"}, {"merchants": {""}}, {"merchants": {" M"}}, {"merchants": {"é"}},
        {"requestors": {"1234"}}, {"merchant_categories": {"541"}}, {"channels": {"ecommerce"}},
        {"countries": {"ZZ"}}, {"countries": {"fr"}}, {"currencies": {"EUX"}}, {"currencies": {"XAU"}},
        {"valid_from": datetime(2026, 1, 1)}, {"valid_from": "2026-01-01"},
        {"valid_from": datetime(2026, 1, 2, tzinfo=UTC), "valid_until": datetime(2026, 1, 1, tzinfo=UTC)},
        {"valid_from": datetime(2026, 1, 2, tzinfo=UTC), "valid_until": datetime(2026, 1, 2, tzinfo=UTC)},
        {"valid_until": datetime.max.replace(tzinfo=UTC)}, {"max_amount": 100}, {"limits": Limit(uses=1)},
        {"limits": tuple(Limit(uses=uses) for uses in range(1, 18))}, {"cryptogram": True}, {"assurances": {"1"}},
    ],
)  # fmt: skip
def test_a_control_that_means_nothing_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Domain(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"uses": 0}, {"uses": -1}, {"uses": 1.0}, {"uses": True}, {"uses": 1, "amount": Money(1, "EUR")},
        {"amount": Money(0, "EUR")}, {"amount": 5}, {"uses": 1, "per": timedelta(0)},
        {"uses": 1, "per": timedelta(seconds=0.5)}, {"uses": 1, "per": timedelta(days=-1)}, {"uses": 1, "per": 60},
        {"uses": 1, "per": timedelta(days=36_600)},
    ],
)  # fmt: skip
def test_a_limit_that_counts_nothing_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Limit(**arguments)


@pytest.mark.parametrize(
    ("amount", "currency"), [(-1, "EUR"), (1.5, "EUR"), (True, "EUR"), (1, "eur"), (1, ""), (10**16, "EUR")]
)
def test_money_of_another_form_is_refused(amount: Any, currency: str) -> None:
    with pytest.raises(InvalidInputError):
        Money(amount, currency)


@given(any_limits())
def test_a_limit_says_what_it_allows(limit: Limit) -> None:
    assert str(limit.uses or (limit.amount and limit.amount.amount)) in str(limit)


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (Limit(uses=5), "5 uses in a token's life"),
        (Limit(uses=5, per=timedelta(seconds=59)), "5 uses per 59 seconds"),
        (Limit(uses=5, per=timedelta(seconds=61)), "5 uses per 61 seconds"),
        (Limit(uses=5, per=timedelta(minutes=1)), "5 uses per minute"),
        (Limit(uses=5, per=timedelta(hours=36)), "5 uses per 36 hours"),
        (Limit(uses=5, per=timedelta(days=1)), "5 uses per day"),
        (Limit(uses=5, per=timedelta(days=30)), "5 uses per 30 days"),
        (Limit(uses=5, per=Period.DAY), "5 uses per calendar day"),
        (Limit(uses=5, per=Period.WEEK, zone="Asia/Shanghai"), "5 uses per calendar week of Asia/Shanghai"),
        (
            Limit(amount=Money(5, "EUR"), since_authentication=True),
            f"{Money(5, 'EUR')} since the last strong authentication",
        ),
        (
            Limit(uses=5, per=Period.DAY, since_authentication=True),
            "5 uses per calendar day since the last strong authentication",
        ),
        (
            Limit(uses=5, per=timedelta(days=1), since_authentication=True),
            "5 uses per day since the last strong authentication",
        ),
        (
            Limit(uses=5, without_authentication=True, channels={Channel.ATM}, merchants={"M"}),
            "5 uses in a token's life without strong authentication, of its channels and merchants",
        ),
    ],
)
def test_a_limit_tells_people_its_window_and_its_scope(limit: Limit, text: str) -> None:
    assert str(limit) == text


@pytest.mark.parametrize(
    "arguments",
    [{}, {"id": ""}, {"id": None}, {"id": "x" * 65}, {"id": "x", "requestor": "1"}, {"id": "\ud800"},
     {"id": "x\n"}, {"id": 5}],
)  # fmt: skip
def test_a_transaction_needs_an_id_and_a_requestor(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Transaction(**{"requestor": "40012345678", **arguments})


@given(st.sampled_from([field.name for field in attrs.fields(Transaction) if field.init]), anything)
def test_a_transaction_field_of_another_form_is_refused(name: str, value: Any) -> None:
    try:
        Transaction(**{"id": "tx", "requestor": "40012345678", name: value})
    except InvalidInputError as error:
        refused: InvalidInputError | None = error
    else:
        refused = None
    assert refused is None or refused.__context__ is None


@given(any_transactions, any_transactions)
def test_a_content_digest_tells_transactions_apart(one: Transaction, other: Transaction) -> None:
    """By every field but the id."""
    assert len(one.content) == 16
    assert (one.content == other.content) == (attrs.evolve(one, id="x") == attrs.evolve(other, id="x"))


@given(st.datetimes(datetime(2000, 1, 2), datetime(2199, 12, 30), timezones=st.just(UTC)))
def test_an_instant_is_kept_to_the_millisecond_before_it(instant: datetime) -> None:
    """So that `datetime.now(UTC) + timedelta(hours=2)` will do, and reads the same from its document."""
    domain = Domain(valid_until=instant)
    assert domain.valid_until is not None
    assert timedelta(0) <= instant - domain.valid_until < timedelta(milliseconds=1)
    assert Domain.from_json(domain.to_json()) == domain


@pytest.mark.parametrize(
    "instant",
    [
        datetime(2030, 1, 1),  # without a time zone, on purpose
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=12))),
        datetime(1999, 12, 31, tzinfo=UTC),
        datetime(2200, 1, 1, tzinfo=UTC),
        "2030-01-01",
    ],
)
def test_a_domain_is_valid_from_an_instant_of_these_centuries(instant: Any) -> None:
    for name in ("valid_from", "valid_until"):
        with pytest.raises(InvalidInputError, match="valid_from and valid_until"):
            Domain(**{name: instant})


def test_all_but_allows_what_is_said_and_not_listed() -> None:
    others = AllBut({"M-1", "M-2"})
    assert "M-3" in others
    assert "M-1" not in others
    assert None not in others
    assert AllBut(["M-1"]) == AllBut({"M-1"})
    assert Domain(merchants=others).to_json() == '{"merchants":{"all_but":["M-1","M-2"]}}'
    wrong: list[Any] = [set(), "M-1", None, [[]], {""}]
    for values in wrong:
        with pytest.raises(InvalidInputError):
            Domain(merchants=AllBut(values))


def test_a_list_has_up_to_10_000_values_and_merchants_up_to_256_characters() -> None:
    names = [f"{number:0256}" for number in range(10_000)]
    domain = Domain(merchants=names)
    assert Domain.from_json(domain.to_json()) == domain
    for wrong in ([*names, "one more"], ["x" * 257]):
        with pytest.raises(InvalidInputError):
            Domain(merchants=wrong)
    with pytest.raises(InvalidInputError, match="at most 4194304 bytes"):
        Domain(merchants=names, references=names)


def test_a_document_has_up_to_4_mebibytes() -> None:
    padded = "{" + " " * (DOCUMENT_BYTES_MAX - 2) + "}"
    assert Domain.from_json(padded) == NO_RESTRICTION
    with pytest.raises(InvalidInputError, match="is JSON of at most 4194304 bytes"):
        Domain.from_json(padded + " ")
    names = [f"{number:0256}" for number in range(10_000)]
    other = Domain(merchants=names, references=names[:6_000])
    free = DOCUMENT_BYTES_MAX - len(other.document)
    more = [f"x{number:0255}" for number in range(free // 259)]
    fitting = {*names[:6_000], *more, "y" * (free % 259 - 3)}
    assert len(Domain(merchants=names, references=fitting).document) == DOCUMENT_BYTES_MAX
    with pytest.raises(InvalidInputError, match="at most 4194304 bytes"):
        Domain(merchants=names, references={*fitting, "z"})


@pytest.mark.parametrize(
    "text",
    ['{"limits":[{"uses":1}]}', '{"limits":[{"uses":1000000000}]}', '{"limits":[{"per_seconds":1,"uses":2}]}',
     '{"limits":[{"per_seconds":316224000,"uses":2}]}', '{"valid_from":946684800000}',
     '{"valid_until":7258118399999}',
     '{"max_amount":{"amount":0,"currency":"EUR"}}', '{"max_amount":{"amount":1000000000000000,"currency":"EUR"}}',
     '{"strong_factors":1}', '{"strong_factors":3}', '{"strong_max_age":31622400}', '{"min_interval":1}'],
)  # fmt: skip
def test_the_last_values_of_a_document_are_read(text: str) -> None:
    assert Domain.from_json(text).to_json() == text


def test_what_is_none_of_its_objects_is_told_what_they_hold_and_no_more() -> None:
    for text in ("[]", "5", '{"max_amount":[]}', '{"max_amount":5}'):
        with pytest.raises(InvalidInputError, match=r"an object of: [a-z_, ]*[a-z]$"):
            Domain.from_json(text)
    with pytest.raises(InvalidInputError, match=r"an object of: amount, currency; there is one 'amont'$"):
        Domain.from_json('{"max_amount":{"amont":1,"currency":"EUR"}}')


def test_the_texts_of_a_document_are_its_values_without_their_names() -> None:
    given = Domain(
        merchants=AllBut({"M-1", "M-2"}), limits=[Limit(uses=5, per=Period.DAY)], max_amount=Money(7, "EUR")
    )
    assert sorted(domain_document.texts(given.document)) == ["5", "7", "EUR", "M-1", "M-2", "day"]


@pytest.mark.parametrize(
    "text",
    ['{"merchants":{}}', '{"merchants":{"all_but":[]}}', '{"merchants":{"all_but":"M"}}', '{"kinds":["sale"]}',
     '{"merchant_categories":["3999-3000"]}', '{"merchant_categories":["3000-3000"]}',
     '{"merchant_categories":["30-40"]}',
     '{"strong_factors":4}', '{"strong_factors":true}', '{"strong_max_age":0}', '{"min_interval":1.5}',
     '{"follow_ups_without_original":false}', '{"follow_ups_without_original":1}',
     '{"min_amount":{"amount":2,"currency":"EUR"},"max_amount":{"amount":1,"currency":"EUR"}}',
     '{"min_amount":{"amount":1,"currency":"EUR"},"max_amount":{"amount":1,"currency":"USD"}}',
     '{"limits":[{"uses":1,"per":"fortnight"}]}', '{"limits":[{"uses":1,"per":"day","per_seconds":1}]}',
     '{"limits":[{"uses":1,"per":"day","zone":"Mars"}]}', '{"limits":[{"uses":1,"zone":5}]}',
     '{"limits":[{"uses":1,"since_authentication":false}]}', '{"limits":[{"uses":1,"channels":["x"]}]}',
     '{"limits":[{"uses":1,"since_authentication":true,"without_authentication":true}]}',
     '{"limits":[{"uses":1,"merchants":[]}]}', '{"limits":[{"uses":1,"merchants":null}]}'],
)  # fmt: skip
def test_a_document_with_a_control_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Domain.from_json(text)


def test_a_document_with_every_control_stays_as_it_is() -> None:
    """Records carry its SHA-256, and counters are named by what a limit counts."""
    text = (
        '{"agents":["agent-1"],"assurances":["10","11"],"channels":["ecommerce"],"countries":["FR","XK"],'
        '"cryptogram":"required","currencies":["EUR"],"devices":["phone"],"follow_ups_without_original":true,'
        '"kinds":{"all_but":["cash"]},"limits":[{"per":"month","uses":2,"zone":"Europe/Paris"},{"amount":{"amount":1,'
        '"currency":"EUR"},"channels":["ecommerce"],"kinds":["purchase"],"merchants":{"all_but":["M-1"]},'
        '"per_seconds":86400,"requestors":["40012345678"]},{"since_authentication":true,"uses":5},'
        '{"uses":5,"without_authentication":true}],"max_amount":{"amount":9,"currency":"EUR"},'
        '"merchant_categories":["3000-3999","5411"],"merchants":["M-1"],"min_amount":{"amount":1,"currency":"EUR"},'
        '"min_interval":60,"references":["order-1"],"requestors":["40012345678"],'
        '"strong_above":{"amount":5,"currency":"EUR"},"strong_factors":3,"strong_max_age":300,'
        '"valid_from":1767225600000,"valid_until":1798761600000}'
    )
    domain = Domain.from_json(text)
    assert domain.to_json() == text
    assert set(json.loads(text)) == set(CONTROLS)
    keys = [check.key.hex() for _, check in domain._checks if isinstance(check, VelocityLimit)]
    assert keys == [
        digest_of('{"counts":"uses","per":"month","zone":"Europe/Paris"}'),
        digest_of(
            '{"channels":["ecommerce"],"counts":"EUR","kinds":["purchase"],"merchants":{"all_but":["M-1"]},'
            '"per_seconds":86400,"requestors":["40012345678"]}'
        ),
        # Of this one the digest is shorter: what follows says how often it was started again.
        digest_of('{"counts":"uses","since_authentication":true,"strong_factors":3,"strong_max_age":300}')[
            :24
        ]
        + "00000000",
        digest_of('{"counts":"uses","strong_factors":3,"strong_max_age":300,"without_authentication":true}'),
    ]


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def test_a_code_of_tomorrow_needs_no_release() -> None:
    """And a slip of the pen is refused until then. In a process of its own: what is accepted stays so."""
    script = """
from tokenvault import Domain, InvalidInputError, Money, add_codes
for call in (lambda: Money(1, "XYZ"), lambda: Domain(countries={"ZZ"}), lambda: add_codes(currencies=["XYZ", "x"]),
             lambda: add_codes(countries=["XYZ"]), lambda: Money(1, "XYZ")):
    try:
        call()
    except InvalidInputError:
        continue
    raise SystemExit("accepted")
add_codes(currencies=["XYZ"], countries=["ZZ"])
print(Domain(countries={"ZZ"}, max_amount=Money(1, "XYZ")).to_json())
try:
    Domain(countries={"XYZ"})
except InvalidInputError:
    print("refused")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        '{"countries":["ZZ"],"max_amount":{"amount":1,"currency":"XYZ"}}', "refused"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["merchants", "references", "devices", "agents"])
def test_a_card_number_is_looked_for_wherever_one_could_stand(name: str) -> None:
    pan = Pan.parse("4111111111111111")
    given: dict[str, Any] = {name: {"a", "order 4111-1111-1111-1111", "b"}, "countries": {"FR"}}
    assert Domain(**given).contains_pan(pan)
    assert Domain(**given)._could_contain_pan
    assert not Domain(**{name: {"a", "b"}})._could_contain_pan  # type: ignore[arg-type] # each is a list of texts
    use = Transaction(id="t", requestor="40012345678", **{name[:-1]: "4111 1111 1111 1111"})  # type: ignore[arg-type] # likewise
    assert use.contains_pan(pan)
    assert use._could_contain_pan
    assert not Transaction(id="t", requestor="40012345678")._could_contain_pan
    assert not Transaction(id="a-long-id-without-digits", requestor="40012345678")._could_contain_pan


def test_a_card_number_of_twelve_digits_is_found_where_it_is_the_whole_of_a_field() -> None:
    pan = Pan.parse("412345678901", PanRule(lengths=(12, 19), luhn=False))
    assert Transaction(id="412345678901", requestor="40012345678").contains_pan(pan)
    assert not Transaction(id="412345678902", requestor="40012345678").contains_pan(pan)
