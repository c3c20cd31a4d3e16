"""What an adapter or a database answers out of shape is refused as that: no row is taken for what it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tokenvault as tv
from tests.vaults import all_records, issue, open_vault, use
from tokenvault.audit.event import Action, Outcome
from tokenvault.errors import IntegrityError
from tokenvault.keys import KeyStore
from tokenvault.records import sealing
from tokenvault.records.keyring import KeyRing
from tokenvault.stores import answers
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import (
    MALFORMED_EVENT,
    PAGE_MAX,
    USE_EVENTS_MAX,
    EventPage,
    FoundUse,
    SealedRecord,
    TokenGroup,
    digest_of,
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


class Answering(Forwarding):
    """A store that answers one read with what it is given."""

    answer: object = None
    asked = 0

    def __init__(self, store: MemoryTokenStore, method: str) -> None:
        self.store, self.method = store, method
        self.write_limits = store.write_limits

    def _forward(self, name: str, *args: Any, **named: Any) -> Any:
        if name == self.method and self.answer is not None:
            self.asked += 1
            if isinstance(self.answer, IntegrityError):
                raise self.answer
            return self.answer
        return getattr(self.store, name)(*args, **named)


@pytest.fixture
def store(local_keys: KeyStore) -> MemoryTokenStore:
    made = MemoryTokenStore()
    tv.provision(local_keys, made)
    return made


@pytest.mark.parametrize("method", ["get", "by_reference"])
def test_another_token_s_genuine_record_is_no_answer_and_is_told(
    local_keys: KeyStore, store: MemoryTokenStore, method: str
) -> None:
    answering = Answering(store, method)
    with open_vault(local_keys, answering) as vault:
        token, other = issue(vault), issue(vault)
        name = token.token if method == "get" else token.reference
        rows = store.get([other.token])
        answering.answer = rows if method == "get" else rows[0]
        calls: tuple[Callable[[], object], ...] = (lambda: vault.get(name), lambda: vault.delete(name))
        for call in calls:
            with pytest.raises(IntegrityError, match="answered with another token's record") as refused:
                call()
            assert refused.value.code == "INTEGRITY"
        answering.answer = None
        assert vault.get(other.token) == other
        last = vault.history(other.reference)[-1]  # as the row claims it
        assert (last.action, last.outcome) == (Action.DELETE, Outcome.TAMPERED)


@pytest.mark.parametrize("status", [tv.TokenStatus.ACTIVE, tv.TokenStatus.DELETED])
def test_a_record_without_a_card_is_a_tombstone_and_no_other_is(
    local_keys: KeyStore, store: MemoryTokenStore, status: tv.TokenStatus
) -> None:
    """Also where the vault's own key sealed it."""
    ring = KeyRing(local_keys)
    with open_vault(local_keys, store) as vault:
        token = issue(vault).token
        (row,) = store.get([token])
        record, card = ring.unseal(row)
        changed = record._replace(status=status, revision=record.revision + 1)
        assert (
            store.replace([ring.seal(changed, None if status is tv.TokenStatus.ACTIVE else card)], []) == []
        )
        for call in (lambda: vault.get(token), lambda: vault.detokenize(token, use())):
            with pytest.raises(
                IntegrityError, match="only the record of a deleted token has no card"
            ) as refused:
                call()
            assert refused.value.code == "INTEGRITY"
        told = list(tv.export_audit(store, keys=local_keys))
        assert '"action": "DETOKENIZE"' in told[-1]
        assert '"outcome": "TAMPERED"' in told[-1]


@pytest.mark.parametrize(("code", "reads"), [("TOO_MANY_EVENTS", 2), ("INTEGRITY", 1)])
def test_too_many_events_are_read_in_parts_down_to_one_use_and_what_else_is_unsound_is_not(
    local_keys: KeyStore, store: MemoryTokenStore, code: str, reads: int
) -> None:
    answering = Answering(store, "uses")
    with open_vault(local_keys, answering) as vault:
        tokens = [issue(vault, domain=tv.Domain(limits=[tv.Limit(uses=9)])).token for _ in range(2)]
        answering.answer, answering.asked = IntegrityError("unsound", code=code), 0
        results = vault.detokenize_many([(token, use(token)) for token in tokens])
        assert [error.code for error in results.errors.values()] == [code, code]
        assert answering.asked == reads


def test_a_domain_that_this_release_can_not_read_allows_nothing(
    local_keys: KeyStore, store: MemoryTokenStore
) -> None:
    """As a newer one wrote it: its restrictions are not those that are known here."""
    ring, document = KeyRing(local_keys), b'{"a restriction to come":1}'
    with open_vault(local_keys, store) as vault:
        token = issue(vault).token
        record, card = ring.unseal(store.get([token])[0])
        store.put_domain(digest_of(document), document)
        changed = record._replace(domain=digest_of(document), revision=record.revision + 1)
        assert store.replace([ring.seal(changed, card)], []) == []
        for call in (lambda: vault.domain(token), lambda: vault.detokenize(token, use())):
            with pytest.raises(IntegrityError, match="by a newer version") as refused:
                call()
            assert refused.value.code == "WRITTEN_BY_NEWER_VERSION"
            assert refused.value.__suppress_context__
