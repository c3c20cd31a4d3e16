"""The limits of a convergent program hold for a card, whatever becomes of its tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from hypothesis import given

import tokenvault as tv
from tests.faces import open_face
from tests.strategies import NOW_MS, counters, usages
from tests.vaults import SHOP, VISA, use
from tokenvault.keys import KeyStore
from tokenvault.model.counters import UNUSED, USED_UP, Counter, Usage
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock

SECONDS = 30
ONCE = tv.TokenProgram(
    "once",
    format=tv.TokenFormat(bin="999912"),
    making=tv.Making.CONVERGENT,
    domain=tv.Domain(limits=[tv.Limit(uses=1)]),
)
CUSTOMERS = tv.TokenProgram(
    "once-per-customer",
    format=tv.TokenFormat(bin="999917"),
    making=tv.Making.CONVERGENT,
    per_customer=True,
    domain=tv.Domain(limits=[tv.Limit(uses=1)]),
)
REQUESTOR = tv.TokenRequestor(SHOP, programs={"once", "once-per-customer"})


@pytest.fixture
def memory(local_keys: KeyStore) -> Iterator[TokenStore]:
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store)
        yield store


def opened(keys: KeyStore, store: TokenStore) -> tv.Vault:
    return open_face(
        keys, store, programs=[ONCE, CUSTOMERS], requestors=[REQUESTOR], clock=ManualClock(NOW_MS)
    )


@pytest.fixture
def vault(local_keys: KeyStore, memory: TokenStore) -> Iterator[tv.Vault]:
    with opened(local_keys, memory) as vault:
        yield vault


def issue(vault: tv.Vault, pan: str = VISA, **arguments: Any) -> str:
    return vault.issue(pan, **{"requestor": SHOP, "program": "once", **arguments}).token


def used(vault: tv.Vault, token: str) -> bool:
    """Whether a use is allowed that no other use is a retry of."""
    with suppress(tv.DomainRestrictionError):
        vault.detokenize(token, use(f"{token}-{len(vault.history(token))}"))
        return True
    return False


class Held(Forwarding):
    """A store whose first write of a thread waits until it is let go."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self.write_limits = store.write_limits
        self.waiting: dict[str, tuple[threading.Event, threading.Event]] = {}

    def _forward(self, name: str, *args: Any, **named: Any) -> Any:
        if name == "insert":
            came, go = self.waiting.pop(threading.current_thread().name, (None, None))
            if came is not None and go is not None:
                came.set()
                assert go.wait(SECONDS)
        return getattr(self._store, name)(*args, **named)


class Late:
    """A call of another process that stands still before it writes."""

    def __init__(self, store: Held, name: str, call: Callable[[], str]) -> None:
        self._came, self._go = store.waiting[name] = threading.Event(), threading.Event()
        self._found: list[str] = []
        self._thread = threading.Thread(name=name, target=lambda: self._found.append(call()), daemon=True)
        self._thread.start()
        assert self._came.wait(SECONDS)

    def end(self) -> str:
        self._go.set()
        self._thread.join(SECONDS)
        return self._found[0]


def test_issues_that_stood_still_while_tokens_were_used_and_deleted_take_over_what_was_used(
    local_keys: KeyStore, memory: TokenStore
) -> None:
    store = Held(memory)
    with opened(local_keys, store) as vault:
        late = [Late(store, f"late-{number}", lambda: issue(vault)) for number in range(3)]
        uses = []
        for token in (lambda: issue(vault), *(each.end for each in late)):
            name = token()
            uses.append(used(vault, name))
            vault.delete(name)
        assert uses == [True, False, False, False]
        assert not used(vault, issue(vault))


# Counters of two tokens.


@given(one=counters(), other=counters())
def test_a_counter_of_two_has_used_of_each_window_what_either_has_and_gives_no_window_twice(
    one: Counter, other: Counter
) -> None:
    other = other._replace(key=one.key)
    merged = one.merged(other)
    assert (merged.window, merged.key) == (max(one.window, other.window), one.key)
    assert merged.previous_window < merged.window
    for window in {one.window, one.previous_window, other.window, other.previous_window} - {-1}:
        before = [each.used(window) for each in (one, other) if window >= each.previous_window]
        assert merged.used(window) == (max(before) if window >= merged.previous_window else USED_UP)


@given(one=usages, other=usages)
def test_a_usage_of_two_is_neither_s_less(one: Usage, other: Usage) -> None:
    merged = one.merged(other)
    assert one.merged(UNUSED) == UNUSED.merged(one)
    assert [each.key for each in merged.counters] == sorted(
        {each.key for each in (*one.counters, *other.counters)}
    )
    assert merged.cryptogram_counter == max(one.cryptogram_counter, other.cryptogram_counter)
    assert merged.authenticated_ms == max(one.authenticated_ms, other.authenticated_ms)
    assert merged.last_used_ms == max(one.last_used_ms, other.last_used_ms)
    assert merged.used_before_ms <= merged.last_used_ms
