"""Vaultless tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokenvault as tv
from tests.strategies import pan_digits
from tests.vaults import AMEX, SHOP, VISA
from tokenvault.keys import KeyStore
from tokenvault.model.pan import luhn_valid

SHAPES = [(0, True), (0, False), (6, False), (3, True)]


def tokenizer(keys: KeyStore, **arguments: Any) -> tv.VaultlessTokenizer:
    return tv.VaultlessTokenizer(keys, **{"program": "pipeline", "requestor": SHOP, **arguments})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(digits=pan_digits(), shape=st.sampled_from(SHAPES))
def test_a_token_leads_back_to_its_pan_and_keeps_what_it_should(
    local_keys: KeyStore, digits: str, shape: tuple[int, bool]
) -> None:
    first, last4 = shape
    vaultless = tokenizer(local_keys, keep_first=first, keep_last4=last4)
    token = vaultless.tokenize(digits)
    assert vaultless.detokenize(token).reveal() == digits
    assert vaultless.tokenize(digits) == token
    assert len(token) == len(digits)
    assert token[:first] == digits[:first]
    assert token.endswith(digits[-4:]) or not last4
    assert luhn_valid(token) or last4


def test_both_custodies_work_on_real_softhsm(keys: KeyStore) -> None:
    vaultless = tokenizer(keys)
    for pan in (VISA, AMEX):
        assert vaultless.detokenize(vaultless.tokenize(pan)).reveal() == pan


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pan_digits(16, 16))
def test_program_requestor_and_what_is_kept_change_the_token(local_keys: KeyStore, digits: str) -> None:
    tokens = [
        tokenizer(local_keys, **arguments).tokenize(digits)
        for arguments in ({}, {"program": "other"}, {"requestor": "40000000001"}, {"keep_last4": False})
    ]
    # Each pair may meet by chance, one time in 10**12; all of them at once does not happen.
    assert len(set(tokens)) > 1


@pytest.mark.parametrize(("pan", "first"), [(VISA, 8), (AMEX, 6), ("4222222222222", 4)])
def test_a_domain_under_a_million_is_refused(local_keys: KeyStore, pan: str, first: int) -> None:
    with pytest.raises(tv.InvalidInputError, match="FF1 needs 6"):
        tokenizer(local_keys, keep_first=first).tokenize(pan)
    with pytest.raises(tv.InvalidInputError, match="FF1 needs 6"):
        tokenizer(local_keys, keep_first=first).detokenize(pan)


@pytest.mark.parametrize(
    "arguments",
    [
        {"program": ""}, {"requestor": "1"}, {"keep_first": 9}, {"keep_first": -1}, {"keep_first": True},
        {"keep_last4": 1}, {"key_version": "1"},
    ],
)  # fmt: skip
def test_a_tokenizer_of_another_form_is_refused(local_keys: KeyStore, arguments: dict[str, Any]) -> None:
    with pytest.raises((tv.InvalidInputError, tv.ConfigurationError)):
        tokenizer(local_keys, **arguments)


def test_a_token_of_another_requestor_mostly_shows_by_its_check_digit(local_keys: KeyStore) -> None:
    mine, other = tokenizer(local_keys), tokenizer(local_keys, requestor="40000000001")
    token = mine.tokenize(VISA)
    refused = 0
    for number in range(100):
        candidate = f"{token[:9]}{(int(token[9:12]) + number) % 1000:03}{token[12:]}"
        try:
            other.detokenize(candidate)
        except tv.InvalidInputError:
            refused += 1
    assert refused > 70


def test_an_old_key_version_still_reads(fresh_keys: KeyStore, custody: tv.Custody) -> None:
    token = tokenizer(fresh_keys).tokenize(VISA)
    fresh_keys.create(tv.KeyPurpose.FPE, custody)
    assert tokenizer(fresh_keys).tokenize(VISA) != token
    assert tokenizer(fresh_keys, key_version=1).detokenize(token).reveal() == VISA
    with pytest.raises(tv.ConfigurationError):
        tokenizer(fresh_keys, key_version=3)
