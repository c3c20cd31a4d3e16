"""What others do between a read and a write of one call: it starts over, gives up in time, or undoes what it did."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

import tokenvault as tv
from tests import vaults
from tests.test_observers import Notes
from tests.vaults import MASTERCARD, SHOP, VISA, all_records, issue
from tokenvault import maintenance
from tokenvault.audit.event import Action
from tokenvault.keys import KeyPurpose, KeyStore
from tokenvault.observers import ConflictMet
from tokenvault.records.keyring import KeyRing
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.testing.clock import ManualClock
from tokenvault.vault import core

DELAY = timedelta(milliseconds=100)


class Between(Forwarding):
    """A store in which something happens just before a method is called, once for each thing in its list.

    Attributes:
        happens: by the method, what happens.
        lost: a method whose calls are answered as if another one had come first each time.
        calls: how often each method was called.
    """

    def __init__(self, store: MemoryTokenStore) -> None:
        self.store = store
        self.write_limits = store.write_limits
        self.happens: dict[str, list[Callable[[], object]]] = {}
        self.lost = ""
        self.calls: dict[str, int] = {}

    def _forward(self, name: str, *args: Any, **named: Any) -> Any:
        self.calls[name] = self.calls.get(name, 0) + 1
        if waiting := self.happens.get(name):
            waiting.pop(0)()
        if name == self.lost:
            return [record.token for record in args[0]]
        return getattr(self.store, name)(*args, **named)


@pytest.fixture
def between(local_keys: KeyStore) -> Between:
    store = MemoryTokenStore()
    tv.provision(local_keys, store)
    return Between(store)


def test_a_change_that_others_are_always_before_gives_up_after_so_many_tries_and_does_nothing(
    local_keys: KeyStore, between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "CONFLICTS_MAX", 3)
    watcher = Notes()
    with vaults.open_vault(local_keys, between, observer=watcher) as vault:
        token = issue(vault)
        between.lost, before = "replace", all_records(between.store)
        with pytest.raises(tv.ConflictError, match="nothing was done: retry later") as lost:
            vault.suspend(token.token, by=tv.Actor.ISSUER)
        assert lost.value.code == "CONFLICT"
        assert between.calls["replace"] == 4
        assert all_records(between.store) == before
        assert [event.action for event in vault.history(token.token)] == [Action.ISSUE]
    met = [event.attempts for event in watcher.told if isinstance(event, ConflictMet)]
    assert met == [1, 2, 3]


# A token whose source is suspended while it is issued: it is deleted again.


@pytest.mark.parametrize("meanwhile", ["deleted", "updated"])
def test_a_token_that_is_taken_back_is_deleted_once_whatever_others_do_to_it(
    local_keys: KeyStore, between: Between, meanwhile: str
) -> None:
    with (
        vaults.open_vault(local_keys, between.store) as other,
        vaults.open_vault(local_keys, between) as vault,
    ):
        source = issue(vault)

        def given() -> str:
            (token,) = {row.token for row in all_records(between.store)} - {source.token}
            return token

        between.happens["insert"] = [lambda: other.suspend(source.token, by=tv.Actor.ISSUER)]
        if meanwhile == "deleted":
            # It is deleted by another just before it is read to be deleted; what is read first is the source.
            between.happens["get"] = [lambda: None, lambda: other.delete(given())]
        else:
            between.happens["replace"] = [lambda: other.update_token(given(), customer="c-1")]
        with pytest.raises(tv.LifecycleError) as refused:
            vault.issue_from(source.token, requestor=SHOP, program="one-time")
        assert refused.value.code == "SOURCE_NOT_ACTIVE"
        assert other.get(given()).status is tv.TokenStatus.DELETED
        told = Counter((event.action, event.codes) for event in other.history(given()))
        assert (
            told
            == {
                "deleted": {(Action.ISSUE, ()): 1, (Action.DELETE, ()): 1},
                "updated": {
                    (Action.ISSUE, ()): 1,
                    (Action.UPDATE_TOKEN, ()): 1,
                    (Action.DELETE, ("SOURCE_NOT_ACTIVE",)): 1,
                },
            }[meanwhile]
        )
        of_source = Counter((event.action, event.codes) for event in other.history(source.reference))
        assert of_source[Action.ISSUE, ("SOURCE_NOT_ACTIVE",)] == 1
    assert tv.verify_audit(between.store, keys=local_keys).intact


# A key that rotates while a token is issued.


@pytest.fixture
def rotating(own_keys: KeyStore) -> Iterator[Between]:
    with closing(MemoryTokenStore()) as store:
        tv.provision(own_keys, store, key_delay=DELAY)
        yield Between(store)


@pytest.mark.parametrize(
    ("program", "key", "read"),
    [("one-time", "k", "by_reference"), ("card-on-file", None, "find"), ("card-on-file", "k", "find")],
)
def test_a_token_that_is_issued_while_its_key_rotates_comes_of_the_new_key_once(
    own_keys: KeyStore, rotating: Between, program: str, key: str | None, read: str
) -> None:
    def rotate() -> None:
        name = maintenance.add_key_version(own_keys, rotating.store, KeyPurpose.FINGERPRINT)
        maintenance.make_primary(own_keys, rotating.store, name.purpose, name.version)
        time.sleep(DELAY.total_seconds())

    with vaults.open_vault(own_keys, rotating) as vault:
        rotating.happens[read] = [rotate]
        token = issue(vault, program=program, idempotency_key=key).token
        assert rotating.happens[read] == []
        (row,) = all_records(rotating.store)
        newest, former = KeyRing(own_keys).pan_fingerprints(tv.Pan.parse(VISA))
        assert (row.token, row.pan_fingerprint) == (token, newest) != (token, former)
        assert issue(vault, program=program, idempotency_key=key).token == token
    assert len(all_records(rotating.store)) == 1


def test_a_card_that_an_update_gave_two_tokens_keeps_its_own_though_an_earlier_one_was_deleted(
    local_keys: KeyStore, between: Between, clock: ManualClock
) -> None:
    with vaults.open_vault(local_keys, between, clock) as vault:
        other = issue(vault, MASTERCARD, program="card-on-file").token
        clock.advance(1)  # so that the other one is the older
        deleted = issue(vault, program="card-on-file").token
        vault.delete(deleted)
        own = issue(vault, program="card-on-file").token
        vault.update_card(other, new_pan=VISA)
        assert {info.token for info in vault.tokens_of(VISA)} == {own, other}
        assert issue(vault, program="card-on-file").token == own
