"""What an adapter or a database answers out of shape is refused as that: no row is taken for what it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tokenvault as tv
from tests.vaults import all_records, issue, open_vault
from tokenvault.errors import IntegrityError
from tokenvault.keys import KeyStore
from tokenvault.records import sealing
from tokenvault.records.keyring import KeyRing
from tokenvault.stores import answers
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import (
    MALFORMED_EVENT,
    PAGE_MAX,
    USE_EVENTS_MAX,
    EventPage,
    FoundUse,
    SealedRecord,
    TokenGroup,
)


@pytest.fixture(scope="module")
def row(local_keys: KeyStore) -> SealedRecord:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    with open_vault(local_keys, store) as vault:
        issue(vault, metadata={"a": "b"})
    return all_records(store)[0]


GROUP = TokenGroup("40012345678", "one-time", 1)
UNSOUND: dict[str, Callable[[SealedRecord], object]] = {
    "another record": lambda row: answers.sound_use("9" * 16, FoundUse(row, [])),
    "too many events of a use": lambda row: answers.sound_use(
        row.token, FoundUse(row, [MALFORMED_EVENT] * (USE_EVENTS_MAX + 1))
    ),
    "too many events of uses": lambda _: answers.sound_uses([MALFORMED_EVENT] * (PAGE_MAX + 1)),
    "a group without a requestor": lambda _: answers.sound_groups([GROUP._replace(requestor="4")]),
    "a group of no status": lambda _: answers.sound_groups([GROUP._replace(status=0)]),
    "a count below nothing": lambda _: answers.sound_count(-1),
    "a count that is true": lambda _: answers.sound_count(True),
    "a cursor that leads back": lambda _: answers.sound_page_about(b"\xff" * 48, EventPage([], b"\x00" * 48)),
    "a document of another digest": lambda _: answers.sound_document(b"d" * 32, b"{}"),
    "a value that is text": lambda _: answers.sound_value("text"),  # type: ignore[arg-type] # wrong on purpose
    "a stream that is text": lambda _: answers.sound_streams(["text"]),  # type: ignore[list-item] # likewise
}


@pytest.mark.parametrize("case", UNSOUND)
def test_an_answer_out_of_shape_is_refused(row: SealedRecord, case: str) -> None:
    with pytest.raises(IntegrityError):
        UNSOUND[case](row)


def test_sound_answers_pass_as_they_are(row: SealedRecord) -> None:
    found = FoundUse(row, [])
    assert answers.sound_use(row.token, found) is found
    assert answers.sound_use(row.reference, found) is found
    assert answers.sound_groups([GROUP]) == [GROUP]
    assert answers.sound_count(0) == 0
    assert answers.sound_value_if_any(None) is None
    assert answers.sound_document(b"d" * 32, None) is None


WRONG: tuple[dict[str, Any], ...] = (
    {"seal": b""},
    {"seal": b"s" * 44},
    {"reference": b"r" * 15},
    {"pan_fingerprint": b"f" * 17},
    {"last4_key": b"l"},
    {"revision": -1},
    {"revision": 2**64},
    {"key_version": 2**16},
    {"token": "4" * 300},
    {"body": b""},
)


@pytest.mark.parametrize("wrong", WRONG, ids="-".join)
def test_a_row_of_another_shape_is_not_unsealed(
    local_keys: KeyStore, row: SealedRecord, wrong: dict[str, Any]
) -> None:
    ring = KeyRing(local_keys)
    assert ring.unseal(row)[1] is not None
    with pytest.raises(IntegrityError):
        ring.unseal(row._replace(**wrong))


def test_metadata_of_another_shape_is_not_unsealed(local_keys: KeyStore, row: SealedRecord) -> None:
    ring = KeyRing(local_keys)
    record, _ = ring.unseal(row)
    assert ring.metadata(record) == {"a": "b"}
    for cut in (record.metadata[:1], record.metadata[:-1], record.metadata + b"x"):
        with pytest.raises(IntegrityError):
            ring.metadata(record._replace(metadata=cut))
    assert sealing.key_versions(row) == (1, 1)
    assert sealing.seal_metadata({}, record.reference, sealing_cipher(local_keys), 1) == b""


def sealing_cipher(keys: KeyStore) -> tv.keys.BlockCipher:
    return keys.cipher(tv.keys.KeyName(tv.keys.KeyPurpose.SEAL, 1))
