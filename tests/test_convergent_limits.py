"""The limits of a convergent program hold for a card, whatever becomes of its tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given

import tokenvault as tv
from tests.faces import open_face
from tests.strategies import NOW_MS, counters, usages
from tests.vault_workers import card_number
from tests.vaults import MASTERCARD, SHOP, VISA, use
from tokenvault.keys import KeyStore
from tokenvault.model.counters import NAME_BYTES, UNUSED, USED_UP, Counter, Usage
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock

SECONDS = 30
DAY_MS = 86_400_000
ONCE = tv.TokenProgram(
    "once",
    format=tv.TokenFormat(bin="999912"),
    making=tv.Making.CONVERGENT,
    domain=tv.Domain(limits=[tv.Limit(uses=1)]),
)
MANY = tv.TokenProgram(
    "many",
    format=tv.TokenFormat(bin="999918"),
    making=tv.Making.CONVERGENT,
    domain=tv.Domain(limits=[tv.Limit(uses=9)]),
)
OTHER = "40055555555"
REQUESTOR = tv.TokenRequestor(SHOP, programs={"once", "many"})


@pytest.fixture
def memory(local_keys: KeyStore) -> Iterator[TokenStore]:
    with closing(MemoryTokenStore()) as store:
        tv.provision(local_keys, store)
        yield store


def opened(keys: KeyStore, store: TokenStore, clock: ManualClock | None = None) -> tv.Vault:
    clock = clock or ManualClock(NOW_MS)
    return open_face(keys, store, programs=[ONCE, MANY], requestors=[REQUESTOR], clock=clock)


@pytest.fixture
def vault(local_keys: KeyStore, memory: TokenStore, clock: ManualClock) -> Iterator[tv.Vault]:
    with opened(local_keys, memory, clock) as vault:
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


def test_no_counter_is_forgotten_where_a_card_s_tokens_have_more_than_one_token_may(vault: tv.Vault) -> None:
    def issued(pan: str, prefix: str) -> str:
        """A token with 49 counters."""
        token = issue(vault, pan, program="many")
        for turn in range(3):
            names = [f"{prefix}-{turn}-{place}" for place in range(16)]
            limits = [tv.Limit(uses=9, merchants={name}) for name in names]
            vault.update_domain(token, tv.Domain(limits=limits), requestor=SHOP)
            vault.detokenize(token, use(f"{prefix}{turn}", channel=tv.Channel.ECOMMERCE))
        return token

    token, other = issued(VISA, "V"), issued(MASTERCARD, "M")
    vault.update_card(other, new_pan=VISA, requestor=SHOP)
    vault.delete(token, requestor=SHOP)
    vault.delete(other, requestor=SHOP)
    for _ in range(2):
        with pytest.raises(tv.LifecycleError):
            issue(vault, program="many")
    assert issue(vault, MASTERCARD, program="many")


def test_counters_of_windows_that_are_over_make_room_and_those_that_last_go_on_counting(
    local_keys: KeyStore, memory: TokenStore
) -> None:
    """At the same border: until the windows are over, no token is issued; then one is, with what still lasts."""
    clock, day = ManualClock(NOW_MS), timedelta(days=1)
    lasting = tv.Limit(uses=3, merchants={"M-1"})
    with opened(local_keys, memory, clock) as vault:

        def issued(pan: str) -> str:
            """A token with 47 counters, all but two of which end with the day."""
            token = issue(vault, pan, program="many")
            for turn in range(3):
                limits = [tv.Limit(uses=9, per=day, merchants={f"{pan[:4]}-{turn}-{n}"}) for n in range(15)]
                vault.update_domain(token, tv.Domain(limits=[lasting, *limits]))
                vault.detokenize(token, use(f"{pan[:4]}{turn}"))
            return token

        token, other = issued(VISA), issued(MASTERCARD)
        vault.update_card(other, new_pan=VISA)
        vault.delete(token)
        vault.delete(other)
        clock.advance(DAY_MS - NOW_MS % DAY_MS - 1)
        with pytest.raises(tv.LifecycleError) as refused:
            issue(vault, program="many")
        assert refused.value.code == "STATUS_NOT_FITTING"
        clock.advance(1)
        again = issue(vault, program="many", domain=tv.Domain(limits=[lasting]))
        assert sorted(left.left for left in vault.remaining(again)) == [0, 6]


OTHERS = [MASTERCARD, "4012888888881881", "5105105105105100"]


def test_a_card_whose_token_was_given_another_card_goes_on_counting(vault: tv.Vault) -> None:
    """However often: what its token counted is not left behind with it."""
    token = issue(vault)
    assert used(vault, token)
    for other in OTHERS:
        vault.update_card(token, new_pan=other, requestor=SHOP)
        token = issue(vault)
        assert vault.get(token).status is tv.TokenStatus.ACTIVE
        assert not used(vault, token)
    assert used(vault, issue(vault, "4539578763621486"))


def test_a_card_whose_token_was_deleted_as_another_card_s_goes_on_counting(vault: tv.Vault) -> None:
    token = issue(vault)
    assert used(vault, token)
    vault.update_card(token, new_pan=MASTERCARD, requestor=SHOP)
    vault.delete(token, requestor=SHOP)
    assert not used(vault, issue(vault))


def test_of_two_tokens_that_one_card_had_none_is_forgotten_in_whatever_order_they_are_deleted(
    vault: tv.Vault, clock: ManualClock
) -> None:
    token, other = issue(vault), issue(vault, MASTERCARD)
    assert used(vault, token)
    vault.update_card(other, new_pan=VISA, requestor=SHOP)
    vault.delete(token, requestor=SHOP)
    clock.advance(1)
    vault.delete(other, requestor=SHOP)
    assert not used(vault, issue(vault))


def test_a_tombstone_of_another_token_hides_none_that_was_given_another_card(vault: tv.Vault) -> None:
    token, other = issue(vault), issue(vault, MASTERCARD)
    assert used(vault, token)
    vault.update_card(token, new_pan=OTHERS[1], requestor=SHOP)
    vault.update_card(other, new_pan=VISA, requestor=SHOP)
    vault.delete(other, requestor=SHOP)
    assert not used(vault, issue(vault))


def test_a_card_counts_for_itself_where_its_candidate_is_another_s_by_chance(
    local_keys: KeyStore, memory: TokenStore
) -> None:
    tiny = tv.TokenProgram(
        "tiny", format=tv.TokenFormat(bin="99991600000", length=13), making=tv.Making.CONVERGENT,
        domain=ONCE.domain, expected_tokens=5, accept_density=True,
    )  # fmt: skip
    requestor = tv.TokenRequestor(SHOP, programs={"tiny"})
    clock = ManualClock(NOW_MS)
    with open_face(local_keys, memory, programs=[tiny], requestors=[requestor], clock=clock) as vault:
        for number in range(9):
            assert used(vault, issue(vault, card_number(number), program="tiny"))


def test_a_card_counts_for_itself_where_its_candidate_is_another_requestor_s(
    local_keys: KeyStore, memory: TokenStore
) -> None:
    """What that one's token counted, and whether it did, is not told to who has the other card."""
    tiny = tv.TokenProgram(
        "tiny", format=tv.TokenFormat(bin="99991600000", length=13), making=tv.Making.CONVERGENT,
        domain=ONCE.domain, expected_tokens=5, accept_density=True,
    )  # fmt: skip
    requestors = [tv.TokenRequestor(each, programs={"tiny"}) for each in (SHOP, OTHER)]

    def open_tiny(store: TokenStore) -> tv.Vault:
        clock = ManualClock(NOW_MS)
        return open_face(local_keys, store, programs=[tiny], requestors=requestors, clock=clock)

    with open_tiny(memory) as vault:
        taken = issue(vault, program="tiny")
        assert used(vault, taken)
        for number in range(100):  # the first candidate of a card is its token in an empty database
            with closing(MemoryTokenStore()) as empty:
                tv.provision(local_keys, empty)
                with open_tiny(empty) as alone:
                    if issue(alone, card_number(number), program="tiny", requestor=OTHER) == taken:
                        break
        else:
            raise AssertionError("of 100 cards none has the token for its first candidate")
        token = issue(vault, card_number(number), program="tiny", requestor=OTHER)
        assert token != taken
        assert vault.detokenize(token, use("other", requestor=OTHER)).pan.reveal() == card_number(number)


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


def test_a_counter_of_two_ends_with_its_latest_window_and_goes_on_under_the_latest_key() -> None:
    name = bytes(range(NAME_BYTES))
    one = Counter(name + b"\0\0\0\1", 5, 7, ends_ms=50)
    other = Counter(name + b"\0\0\0\2", 6, 1, 5, 9, ends_ms=60)
    assert one.merged(other) == other.merged(one) == other
    assert one.merged(one) == one
    assert one._replace(key=other.key).merged(other._replace(key=one.key)) == other
    assert Usage((one,)).merged(Usage((other,))) == Usage((other,))


@given(one=usages, other=usages)
def test_a_usage_of_two_is_neither_s_less(one: Usage, other: Usage) -> None:
    merged = one.merged(other)
    assert one.merged(UNUSED) == UNUSED.merged(one)
    every = [each.key for each in (*one.counters, *other.counters)]
    newest = {
        max(key for key in every if key[:NAME_BYTES] == name) for name in {key[:NAME_BYTES] for key in every}
    }
    assert [each.key for each in merged.counters] == sorted(newest)
    assert merged.cryptogram_counter == max(one.cryptogram_counter, other.cryptogram_counter)
    assert merged.authenticated_ms == max(one.authenticated_ms, other.authenticated_ms)
    assert merged.last_used_ms == max(one.last_used_ms, other.last_used_ms)
    assert merged.used_before_ms <= merged.last_used_ms


def test_the_last_use_of_a_card_s_former_token_is_shown_with_its_next_one(
    vault: tv.Vault, clock: ManualClock
) -> None:
    former = vault.issue(VISA, expiry="2029-12", requestor=SHOP, program="once")
    assert former.last_used is None
    vault.detokenize(former.token, use())
    used = vault.get(former.token).last_used
    assert used is not None
    vault.delete(former.token, requestor=SHOP)
    clock.advance(1_000)
    token = vault.issue(VISA, expiry="2029-12", requestor=SHOP, program="once")
    assert token.last_used == used < token.created
