"""Ids that callers choose: what is kept of them holds no card number and no token, however it is spelled."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests.strategies import DIGITS, NOW_MS, pan_digits
from tests.vaults import ACQUIRER, ISSUER_ONLY, PROGRAMS, REQUESTORS, SHOP, VISA, issue, open_vault, use
from tokenvault.keys import KeyStore
from tokenvault.model.clear_ids import ClearIds, Numbers
from tokenvault.model.pan import Pan, luhn_check_digit, luhn_valid
from tokenvault.model.spellings import spells
from tokenvault.stores import open_token_store
from tokenvault.testing.clock import ManualClock

UNREGISTERED = "49999999999"
LUHN_FREE = tv.TokenFormat(bin="999914", luhn=False)
LUHN_FREE_NUMBERS = Numbers.of([tv.TokenProgram("luhn-free", format=LUHN_FREE)])
IDS = ClearIds(lambda text: hashlib.sha256(text.encode()).digest()[:16], lambda: LUHN_FREE_NUMBERS)

BEGINS = {
    "4": (13, 16, 19), "51": (16,), "55": (16,), "2221": (16,), "2720": (16,), "34": (15,), "37": (15,),
    "36": (14,), "3528": (16, 19),
    "50": (12, 19), "6011": (16, 19), "62": (16, 19), "67": (12, 13, 19), "2200": (16,), "81": (16,),
    "9792": (16,),
}  # fmt: skip
SEPARATORS = " -._/'\"|:;,+*#xX"


@st.composite
def network_cards(draw: st.DrawFn) -> str:
    begin = draw(st.sampled_from(sorted(BEGINS)))
    rest = draw(st.sampled_from(BEGINS[begin])) - len(begin) - 1
    payload = begin + draw(st.text(DIGITS, min_size=rest, max_size=rest))
    return payload + luhn_check_digit(payload)


@st.composite
def luhn_free_tokens(draw: st.DrawFn) -> str:
    token = LUHN_FREE.bin + draw(st.text(DIGITS, min_size=10, max_size=10))
    return token if not luhn_valid(token) else token[:-1] + str((int(token[-1]) + 1) % 10)


def knowing(*programs: tv.TokenProgram) -> ClearIds:
    numbers = Numbers.of(programs)
    return ClearIds(lambda _: bytes(16), lambda: numbers)


def separated(draw: Callable[[st.SearchStrategy[str]], str], digits: str) -> str:
    gaps = st.text(SEPARATORS, max_size=1)
    return digits[0] + "".join(draw(gaps) + digit for digit in digits[1:])


@given(network_cards() | luhn_free_tokens(), st.data())
def test_no_id_is_kept_that_spells_a_number_whatever_stands_between_and_around(
    number: str, data: st.DataObject
) -> None:
    around = st.text(DIGITS + SEPARATORS + "T", max_size=12)
    text = data.draw(around) + separated(data.draw, number) + data.draw(around)
    kept = IDS.kept(text)
    assert not spells(kept, number)
    assert re.fullmatch("digest [g-v]{32} .{4}", kept)
    assert kept.endswith(text[-4:])


@given(pan_digits(min_size=12), st.data())
def test_no_id_is_kept_that_is_a_number_of_any_issuer_between_other_groups(
    number: str, data: st.DataObject
) -> None:
    groups = st.text(DIGITS, max_size=3)
    text = "-".join((data.draw(groups), separated(data.draw, number), data.draw(groups)))
    assert not spells(IDS.kept(text), number)


@given(pan_digits(), st.data())
def test_a_number_that_is_known_is_found_in_any_spelling(number: str, data: st.DataObject) -> None:
    around = st.text(DIGITS + SEPARATORS, max_size=9)
    text = data.draw(around) + separated(data.draw, number) + data.draw(around)
    assert Pan.parse(number).stands_in(text)
    assert not spells(IDS.kept(text, Pan.parse(number)), number)


@pytest.mark.parametrize("between", ["0a71f0c2-1b3d-4e5f-8a9b-0c1d2e3f4a5b", "0" * 31 + "a", "F" * 32])
@pytest.mark.parametrize("sign", ["#", "\u2116"])
def test_an_id_in_hexadecimal_separates_digits_and_may_be_searched_for_some_itself(
    between: str, sign: str
) -> None:
    assert spells(f"{sign} {VISA[:4]} {between} {VISA[4:]}", VISA)
    assert not spells(f"{sign} {VISA[:4]} {between} {VISA[5:]}", VISA)
    assert spells(f"{sign} {'a' * 16}{VISA}", VISA)


@pytest.mark.parametrize("zero", ["\u0660", "\u0966", "\uff10", "\U0001d7ce"])  # Arabic to mathematical bold
def test_a_number_in_digits_of_any_script_is_found(zero: str) -> None:
    text = "".join(chr(ord(zero) + int(digit)) for digit in VISA)
    assert Pan.parse(VISA).stands_in(f"no {text[:4]}.{text[4:]}")
    assert Pan.parse(VISA).stands_in("".join(f"{digit}\u200b" for digit in VISA))


@given(st.uuids())
def test_uuids_stay_readable_but_for_those_with_a_number_in_them(value: uuid.UUID) -> None:
    for text in (str(value), value.hex, f"pay_{value.hex}", f"order:{value}"):
        longest = max(map(len, re.findall("[0-9]+", text.replace("-", ""))))
        if longest < 12:
            assert IDS.kept(text) == text


@pytest.mark.parametrize(
    "text",
    ["tx-1", "order 2026-11-27/000123", "1764211200124", "2026-11-27T10:32Z", "INV-2026-00004711",
     "550e8400-e29b-41d4-a716-446655440000", "01ARZ3NDEKTSV4RRFFQ69G5FAV",
     "4111 1111 1111 1112", "ch_3Nx0aB2eZvKYlo2C"],
)  # fmt: skip
def test_ordinary_ids_stay_readable(text: str) -> None:
    assert IDS.kept(text) == text


def test_a_kept_id_stays_as_it_is_and_tells_ids_apart() -> None:
    kept = [IDS.kept(f"{VISA}-{number:04}") for number in range(50)]
    assert len({*kept}) == 50
    assert [IDS.kept(each) for each in kept] == kept


def test_a_program_that_takes_cards_without_check_digits_keeps_no_number_of_their_length() -> None:
    text = "4111111111111112"
    assert IDS.kept(text) == text
    taking = tv.PanRule(lengths=(16, 16), luhn=False)
    ids = knowing(tv.TokenProgram("any", format=tv.TokenFormat(bin="999914"), pans=taking))
    assert ids.kept(text) != text
    assert ids.kept(text[:-1]) == text[:-1]


PLAIN = ClearIds(lambda _: bytes(16))
"""Knows of no program."""


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("0" * 16, True), ("0" * 12, True), ("0" * 19, True), ("0" * 11, False), ("0" * 15 + "1", False),
        ("0" * 16 + "-1", True), ("1-" + "0" * 16, True), ("12-0000000000000000-21", True),
        ("0" * 8 + "-" + "0" * 8, True),
        ("0" * 19 + "1", True),  # of 20 digits it is not asked what they are
        ("0" * 18 + "1", False), ("1" + "0" * 12, False),
        ("00000" + "4111111111111111"[:13], False), ("98" + "4111111111111111", True),
        ("4111111111111111" + "98", True),
        ("4111111111111112", False), ("0" + "1" + "0" * 13 + "9" + "0", True),  # UATP, between zeros
    ],
)  # fmt: skip
def test_digits_hold_a_card_number_between_ends_of_runs_or_where_one_begins_as_cards_do(
    text: str, held: bool
) -> None:
    assert PLAIN.could_hold_number(text) is held
    assert (PLAIN.kept(text) == text) is not held


def test_a_card_number_that_is_known_is_kept_from_any_id() -> None:
    """Here as the end of a longer number that no card has."""
    number = Pan.parse("0" * 16)
    text = "1" + "0" * 16
    assert PLAIN.kept(text) == text
    assert PLAIN.kept(text, number) != text
    assert PLAIN.kept(text, Pan.parse(VISA)) == text


def follow_on(digits: str, valid: bool) -> str:
    """Digits with one more, so that they pass the Luhn check, or fail it."""
    return next(each for digit in DIGITS if luhn_valid(each := digits + digit) is valid)


def test_a_token_is_found_at_every_length_that_its_format_has() -> None:
    """Each shorter beginning of it is no token: it passes the check that tokens fail."""
    ids = knowing(tv.TokenProgram("p", format=LUHN_FREE))
    begin = follow_on(LUHN_FREE.bin + "0" * 6, valid=True)
    for length in range(13, 20):
        while len(begin) < length:
            begin = follow_on(begin, valid=True)
        token = follow_on(begin[:-1], valid=False)
        assert len(token) == length
        assert ids.could_hold_token(token)
        assert ids.could_hold_token(f"{token[:7]}.{token[7:]}")
        assert not ids.could_hold_token(begin)
    assert not ids.could_hold_token(follow_on(begin, valid=False)), "of 20 digits"
    assert not ids.could_hold_token(LUHN_FREE.bin + "0" * 6)


def test_a_token_of_a_fixed_length_is_found_with_digits_before_and_behind() -> None:
    form = tv.TokenFormat(bin="9999", length=14, luhn=False)
    ids = knowing(tv.TokenProgram("p", format=form))
    token = follow_on("9999000000000", valid=False)
    for text in (token, token + "1", "1" + token, "99" + token + "2"):
        assert ids.could_hold_token(text)
    assert not ids.could_hold_token(follow_on("9999000000000", valid=True))
    assert not ids.could_hold_token(token[:-1])


def test_a_token_is_found_where_its_first_digits_stand_before_it_too() -> None:
    """Also where they overlap with its own."""
    form = tv.TokenFormat(bin="9999", length=14)
    ids = knowing(tv.TokenProgram("p", format=form))
    token = follow_on("9999000000000", valid=True)
    for before in ("9", "99990"):
        text = before + token
        assert not luhn_valid(text[:14])
        assert ids.could_hold_token(text)
        assert not ids.could_hold_token(text[:-1])


def test_one_way_to_read_a_text_that_gives_a_token_is_enough_and_none_gives_none() -> None:
    ids = knowing(tv.TokenProgram("p", format=tv.TokenFormat(bin="9999", length=14)))
    token = follow_on("9999000000000", valid=True)
    for text in (
        f"{token}x0000000000000",
        f"0000000000000x{token}",
        f"x{token[:7]}.{token[7:]}",
        f"{token[:7]}x{token[7:]}",
    ):
        assert ids.could_hold_token(text)
    for text in ("", "x", token[:-1], f"{token[:7]}x{token[8:]}"):
        assert not ids.could_hold_token(text)


# What a vault keeps.

SPELLINGS = {
    "whole": "{}", "behind it a timestamp": "{}1764211200", "groups and a number": "4111 1111 1111 1111 2",
    "hyphen and a timestamp": "{}-1764211200", "dots": "4111.1111.1111.1111", "underscores": "4111_1111_1111_1111",
    "slashes": "4111/1111/1111/1111", "quotes": "4111'1111\"1111'1111", "before it a date": "20261127{}",
    "in the middle": "T-{}-1", "hyphens and a number": "4111-1111-1111-1111-1", "letters": "4111x1111x1111x1111",
}  # fmt: skip


def kept_texts(store: tv.TokenStore) -> list[str]:
    events = [json.loads(line) for line in tv.export_audit(store)]
    return [event[name] or "" for event in events for name in ("transaction_id", "operator")]


def uses_of(vault: tv.Vault, token: str, text: str) -> None:
    """Uses by every kind of caller, of every kind of token, one by one and in a batch."""
    for name in (token, "9999140000000000", "9999130000000000"):
        for requestor in (SHOP, ACQUIRER, ISSUER_ONLY, UNREGISTERED):
            each = use(id=text, requestor=requestor)
            with suppress(tv.TokenVaultError):
                vault.detokenize(name, each)
            with suppress(tv.TokenVaultError):
                vault.check(name, each)
            vault.detokenize_many([(name, each)])
            vault.check_many([(name, each)])
    with suppress(tv.TokenVaultError):
        vault.detokenize(token, use(id="refund", kind=tv.Kind.REFUND, original=text))


def management_of(vault: tv.Vault, token: str, text: str) -> None:
    for requestor in (None, SHOP, ISSUER_ONLY, UNREGISTERED):
        by = {"requestor": requestor, "operator": text}
        for change in (
            lambda by=by: vault.update_domain(token, tv.Domain(), **by),
            lambda by=by: vault.update_token("9999140000000000", customer="c", **by),
            lambda by=by: vault.update_domain_many([(token, tv.Domain())], **by),
            lambda by=by: vault.update_card("5555555555554444", expiry="2031-01", **by),
            lambda by=by: issue(vault, requestor=by["requestor"] or SHOP, operator=text),
            lambda by=by: vault.issue_many(
                [(VISA, "2029-12")], requestor=SHOP, program="one-time", operator=text
            ),
        ):
            with suppress(tv.TokenVaultError):
                change()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_event_keeps_a_card_number(local_keys: KeyStore, spelling: str, tmp_path: Path) -> None:
    text = SPELLINGS[spelling].format(VISA)
    with closing(open_token_store(f"sqlite:///{tmp_path}/vault.db")) as store:
        tv.provision(local_keys, store)
        with open_vault(local_keys, store) as vault:
            token = issue(vault, program="online").token
            other = issue(vault, "5555555555554444").token
            for each in (token, other):
                uses_of(vault, each, text)
                management_of(vault, each, text)
        texts = kept_texts(store)
        assert sum(kept.startswith("digest ") for kept in texts) > 50
        assert not [kept for kept in texts if spells(kept, VISA)]
        assert tv.verify_audit(store, keys=local_keys).intact
    for path in tmp_path.iterdir():
        assert text.encode() not in path.read_bytes()


@pytest.mark.parametrize("shape", ["{}", "{}-1", "2026{}", "a{}z", "{}1764211200"])
def test_no_event_keeps_a_token(local_keys: KeyStore, shape: str) -> None:
    with closing(open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with open_vault(local_keys, store) as vault:
            for program in ("online", "one-time"):
                token = issue(vault, program=program).token
                text = shape.format(token)
                uses_of(vault, token, text)
                management_of(vault, token, text)
                assert not [kept for kept in kept_texts(store) if spells(kept, token)]


def test_a_use_under_an_id_that_is_not_kept_is_recognised_followed_up_and_found(local_keys: KeyStore) -> None:
    with closing(open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        once = tv.Domain(limits=(tv.Limit(uses=1),))
        with open_vault(local_keys, store) as vault:
            token = issue(vault, domain=once).token
            sale = use(id="5555.5555.5555.4444", amount=tv.Money(500, "EUR"))
            vault.detokenize(token, sale)
            vault.detokenize(token, sale)  # a retry
            with pytest.raises(tv.DomainRestrictionError):
                vault.detokenize(token, use(2, amount=tv.Money(500, "EUR")))
            refund = use(3, kind=tv.Kind.REFUND, original=sale.id, amount=tv.Money(500, "EUR"))
            vault.detokenize(token, refund)
            with pytest.raises(tv.DomainRestrictionError):
                vault.detokenize(
                    token, use(4, kind=tv.Kind.REFUND, original=sale.id, amount=tv.Money(1, "EUR"))
                )
            first, again = [event for event in vault.history(token) if event.kind is tv.Kind.PURCHASE][:2]
            assert again.retry
            assert first.transaction_id == again.transaction_id
            assert (first.transaction_id or "").endswith(" 4444")


def test_nothing_that_is_kept_in_clear_beside_a_card_holds_its_number_or_a_token(
    local_keys: KeyStore,
) -> None:
    with closing(open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with open_vault(local_keys, store) as vault:
            token = issue(vault, program="online").token
            for text in ("4111.1111.1111.1111", f"c-20261127{VISA}", "4111x1111x1111x1111x1"):
                for beside in (
                    {"customer": text}, {"metadata": {"note": text}}, {"metadata": {text: "note"}},
                    {"domain": tv.Domain(merchants={text})}, {"domain": tv.Domain(devices=tv.AllBut({text}))},
                    {"domain": tv.Domain(references={text})}, {"domain": tv.Domain(agents={text})},
                ):  # fmt: skip
                    with pytest.raises(tv.InvalidInputError, match="card number") as single:
                        issue(vault, **beside)
                    assert single.value.code == "CARD_NUMBER_IN_TEXT"
                    row: Any = {"pan": VISA, "expiry": "2029-12", **beside}
                    failed = vault.issue_many([row], requestor=SHOP, program="one-time")[0]
                    assert isinstance(failed, tv.InvalidInputError)
                    assert failed.code == "CARD_NUMBER_IN_TEXT"
                for field in ("merchant", "device", "reference", "agent"):
                    with pytest.raises(tv.TokenVaultError) as refused:
                        vault.detokenize(token, use(**{field: text}, channel=tv.Channel.ECOMMERCE))
                    assert refused.value.code == "CARD_NUMBER_IN_TRANSACTION"
            with pytest.raises(tv.InvalidInputError, match="could hold a token"):
                issue(vault, customer=f"c-{token}")
            with pytest.raises(tv.InvalidInputError, match="could hold a token"):
                vault.update_token(token, customer=token)


def test_the_operator_of_a_batch_that_issues_stands_in_its_event(local_keys: KeyStore) -> None:
    with closing(open_token_store("memory:")) as store:
        tv.provision(local_keys, store)
        with tv.Vault(
            local_keys, store, programs=PROGRAMS, requestors=REQUESTORS, clock=ManualClock(NOW_MS)
        ) as vault:
            vault.issue_many([(VISA, "2029-12")], requestor=SHOP, program="one-time", operator="ann")
        assert "ann" in kept_texts(store)
