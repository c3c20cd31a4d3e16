"""Answers of the public interface that no other test asks for each time it runs."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.strategies import NOW_MS
from tests.vaults import issue, use
from tokenvault.keys import KeyName, KeyStore
from tokenvault.stores.port import SealedEvent, TokenStore
from tokenvault.testing.clock import ManualClock

FINDINGS_MAX = 10_000
NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC)


def provisioned(keys: KeyStore) -> TokenStore:
    store = tv.open_token_store("memory:")
    tv.provision(keys, store)
    return store


def test_a_token_is_used_from_the_first_instant_that_its_domain_gives(local_keys: KeyStore) -> None:
    store, clock = provisioned(local_keys), ManualClock(NOW_MS)
    with vaults.open_vault(local_keys, store, clock) as vault:
        token = issue(vault, domain=tv.Domain(valid_from=NOW + timedelta(minutes=1))).token
        clock.advance(59_999)
        with pytest.raises(tv.DomainRestrictionError, match="retry then") as refused:
            vault.detokenize(token, use())
        assert [(each.code, each.response_code) for each in refused.value.violations] == [
            ("NOT_YET_VALID", "57")
        ]
        clock.advance(1)
        assert vault.detokenize(token, use()).pan.reveal() == vaults.VISA


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
        with pytest.raises(tv.InvalidInputError, match="valid_from and valid_until"):
            tv.Domain(**{name: instant})


@pytest.mark.parametrize(("purpose", "version"), [("seal", 1), (None, 1)])
def test_a_key_has_a_purpose(purpose: Any, version: int) -> None:
    with pytest.raises(tv.InvalidInputError, match="KeyPurpose"):
        KeyName(purpose, version)


@pytest.mark.parametrize("version", [0, -1, 10_000, True, "1", 1.0, None])
def test_a_key_s_version_is_a_number_from_1_to_9999(version: Any) -> None:
    with pytest.raises(tv.InvalidInputError, match="from 1 to 9999"):
        KeyName(tv.KeyPurpose.SEAL, version)


@pytest.mark.parametrize(
    ("year", "month"), [("2030", 1), (2030, "1"), (True, 1), (2030, 13), (2030, 0), (1999, 12), (2100, 1)]
)
def test_an_expiry_is_a_month_of_this_century(year: Any, month: Any) -> None:
    with pytest.raises(tv.InvalidInputError, match="an expiry is a"):
        tv.CardExpiry(year, month)


def test_an_expiry_is_copied_and_a_pan_is_not_pickled() -> None:
    expiry = tv.CardExpiry(2030, 2)
    assert copy.copy(expiry) == expiry
    pan: Any = tv.Pan.parse(vaults.VISA)
    for refused in (lambda: pickle.dumps(pan), pan.__getstate__):
        with pytest.raises(tv.InvalidInputError, match="a Pan is not pickled"):
            refused()


STREAM, ROOT = "0" * 32, "0" * 64


@pytest.mark.parametrize(
    "streams",
    [
        None,
        [],
        {STREAM: None},
        {STREAM: {"size": 1}},
        {STREAM: {"size": 1, "root": ROOT, "more": 1}},
        {STREAM: {"size": -1, "root": ROOT}},
        {STREAM: {"size": 2**63, "root": ROOT}},
        {STREAM: {"size": True, "root": ROOT}},
        {STREAM: {"size": 1, "root": ROOT[1:]}},
        {STREAM: {"size": 1, "root": None}},
        {STREAM[1:]: {"size": 1, "root": ROOT}},
        {"x" * 32: {"size": 1, "root": ROOT}},
    ],
)
def test_an_anchor_is_one_that_a_report_gave(local_keys: KeyStore, streams: object) -> None:
    store = provisioned(local_keys)
    anchor = json.loads(tv.verify_audit(store, keys=local_keys).anchor())
    for text in (json.dumps({**anchor, "streams": streams}), json.dumps(streams), "[" * 100_000):
        with pytest.raises(tv.InvalidInputError, match="what its anchor"):
            tv.verify_audit(store, keys=local_keys, since=text)


def test_findings_beyond_the_most_that_a_report_holds_are_counted(local_keys: KeyStore) -> None:
    store, more = provisioned(local_keys), 7
    events = [
        SealedEvent(stream=bytes(16), number=number, reference=b"", body=b"no event", mac=bytes(16))
        for number in range(1, FINDINGS_MAX + more + 1)
    ]
    store.append(events[:FINDINGS_MAX])
    store.append(events[FINDINGS_MAX:])
    report = tv.verify_audit(store, keys=local_keys)
    assert not report.intact
    assert len(report.findings) == FINDINGS_MAX
    assert report.findings_omitted >= more
