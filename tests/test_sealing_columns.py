"""Columns of seals, fingerprints and token digits: those of single calls, byte for byte."""

from __future__ import annotations

from random import Random
from unittest.mock import patch

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ciphers import CountingCipher
from tests.strategies import pan_digits, records
from tokenvault.crypto.cmac import Cmac
from tokenvault.keys import LocalBlockCipher
from tokenvault.model.pan import Card, CardExpiry, Pan
from tokenvault.model.pan_columns import parse_pans
from tokenvault.model.token_format import TokenFormat
from tokenvault.records import sealing, sealing_columns
from tokenvault.records.keyring import pan_fingerprints_of
from tokenvault.records.record import TokenRecord

LOCAL = LocalBlockCipher(bytes(range(32)))
EXPIRIES = st.none() | st.builds(CardExpiry, st.integers(2000, 2099), st.integers(1, 12))
CARDS = st.none() | st.builds(Card, pan_digits().map(Pan.parse), EXPIRIES)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(records(), CARDS), max_size=5), st.booleans(), st.randoms())
def test_seals_are_those_of_single_records_with_the_same_nonces(
    pairs: list[tuple[TokenRecord, Card | None]], generic: bool, random: Random
) -> None:
    nonces = random.randbytes(13 * len(pairs))
    cipher = CountingCipher(LOCAL) if generic else LOCAL
    with patch("os.urandom", lambda count: nonces[:count]):
        rows = sealing_columns.seal_many(
            [record for record, _ in pairs], [card for _, card in pairs], cipher, 3
        )
    for i, (record, card) in enumerate(pairs):
        with patch("os.urandom", lambda count, i=i: nonces[13 * i : 13 * i + count]):
            assert rows[i] == sealing.seal(record, card, LOCAL, 3)
        assert sealing.unseal(rows[i], LOCAL) == card


@given(records(), CARDS)
def test_nonces_are_drawn_anew_for_each_record_in_three_calls(record: TokenRecord, card: Card | None) -> None:
    cipher = CountingCipher(LOCAL)
    rows = sealing_columns.seal_many([record] * 20, [card] * 20, cipher, 1)
    assert len({row.seal[:13] for row in rows}) == 20
    assert cipher.calls == 3


@given(st.lists(st.one_of(pan_digits(), st.just("no PAN")), max_size=12))
def test_fingerprints_are_those_of_single_pans(pans: list[str]) -> None:
    columns, errors = parse_pans(pans)
    pan_fingerprints = pan_fingerprints_of(columns, CountingCipher(LOCAL))
    assert [row.tobytes() for row in pan_fingerprints] == [
        bytes(16) if row in errors else Cmac(LOCAL).tag(pan.encode()) for row, pan in enumerate(pans)
    ]


@given(st.data(), st.integers(13, 19), st.booleans(), st.booleans())
def test_tokens_of_choices_are_those_of_single_choices(
    data: st.DataObject, length: int, keep_last4: bool, luhn: bool
) -> None:
    form = TokenFormat(
        bin=data.draw(st.text("0123456789", min_size=1, max_size=8)), keep_last4=keep_last4, luhn=luhn
    )
    choice = st.integers(0, form.choices(length) - 1)
    pairs = data.draw(st.lists(st.tuples(choice, st.integers(0, 9_999)), max_size=9))
    choices, last4 = np.array(pairs, np.uint64).reshape(-1, 2).T
    assert form.make_many(choices, length, last4).tolist() == [
        int(form.make(choice, length, f"{last:04}")) for choice, last in pairs
    ]
