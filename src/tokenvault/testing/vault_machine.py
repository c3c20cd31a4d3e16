"""A whole vault under faults: a Hypothesis state machine that runs it over your store and your keys.

    class MyVault(FaultyVaultMachine):
        def open_store(self):
            return MyTokenStore(...)            # over a fresh database, each time
        def open_keys(self):
            return KEYS                         # a key store that may make the keys that it lacks

    TestMyVault = MyVault.TestCase

Several vaults share the store. Before any of their calls to it, and before any call to the key store, a fault may
come: the call fails, or it happens and its answer is lost. After every step:

- every error was one of the library's, and TokenStoreError or KeyStoreError only where a fault had come;
- every card handed out has an event with its transaction's id, and no limit of the program was exceeded;
- every token is in a state that the model allows, and nothing is there that nobody asked for;
- the events of each vault count from 1 without hole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, TypeVar

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import (
    DomainRestrictionError,
    InvalidInputError,
    KeyStoreError,
    TokenNotFoundError,
    TokenStoreError,
    TokenVaultError,
)
from tokenvault.keys.port import KeyStore
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor
from tokenvault.model.limits import Limit
from tokenvault.model.money import Money
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import TokenInfo
from tokenvault.stores.port import TokenStore
from tokenvault.testing.clock import ManualClock
from tokenvault.testing.faults import FAIL, LOSE, Fault, FaultSchedule, FaultyKeyStore, FaultyTokenStore
from tokenvault.testing.vault_model import (
    HOUR,
    PROGRAMS,
    REQUESTOR,
    UNKNOWN,
    Answer,
    ModelToken,
    Shown,
    State,
    amount_of,
    exceeded,
    use_id,
)
from tokenvault.vault.blocking import Vault, provision

T = TypeVar("T")

VAULTS: Final = 3
_START_MS: Final = 1_780_000_000_000
_HOUR_MS: Final = 3_600_000
_PANS: Final = ("4111111111111111", "5555555555554444", "378282246310005")
_STATES_MAX: Final = 64
_AMOUNTS: Final = (0, 50, 50, 50, 100, 120)
_DOMAINS: Final = tuple(
    Domain(limits=limits)
    for limits in (
        (),
        (Limit(uses=1),),
        (Limit(uses=2, per=HOUR),),
        (Limit(amount=Money(150, "EUR"), per=HOUR),),
        (Limit(uses=4), Limit(amount=Money(250, "EUR"))),
    )
)


@attrs.frozen
class _Faults:
    """What comes between a vault and its store, the writes among it, and its keys during one step."""

    store: list[Fault | None] = attrs.field(factory=list)
    writes: list[Fault | None] = attrs.field(factory=list)
    keys: list[Fault | None] = attrs.field(factory=list)


_some = st.lists(st.sampled_from([None, None, FAIL, LOSE]), max_size=5)
_faults = st.one_of(
    st.just(_Faults()),
    st.builds(_Faults, store=_some),
    st.builds(_Faults, writes=_some),
    st.builds(_Faults, keys=st.sampled_from([0, 1, 2, 3, 5, 8]).map(lambda made: [*[None] * made, FAIL])),
    st.builds(_Faults, store=_some, writes=_some, keys=_some),
)
_vaults = st.integers(0, VAULTS - 1)
_places = st.integers(0, 10**6)
_pans = st.sampled_from(_PANS)
_domains = st.sampled_from(_DOMAINS)
_actors = st.sampled_from([Actor.ISSUER, Actor.CARDHOLDER])
_transactions = st.builds(
    Transaction,
    id=st.sampled_from([use_id(number, amount) for number, amount in enumerate(_AMOUNTS)]),
    requestor=st.just(REQUESTOR.id),
    merchant=st.sampled_from(["M-1", "M-1", "M-1", "M-2"]),  # the same id with another content is refused
).map(lambda use: attrs.evolve(use, amount=Money(amount_of(use.id), "EUR")))


class FaultyVaultMachine(RuleBasedStateMachine):
    """Asks several vaults under faults, and a model what they may answer.

    A subclass gives `open_store` and `open_keys`.
    """

    def open_store(self) -> TokenStore:
        """A store over a fresh database; it is closed in the end."""
        raise TypeError("a subclass overrides open_store")

    def open_keys(self) -> KeyStore:
        """A key store; not closed in the end, so it may be the same each time."""
        raise TypeError("a subclass overrides open_keys")

    def __init__(self) -> None:
        super().__init__()
        self.store = self.open_store()
        self.keys = self.open_keys()
        provision(self.keys, self.store)
        self.clock = ManualClock(_START_MS)
        self.store_faults, self.key_faults = FaultSchedule(), FaultSchedule()
        self.write_faults = FaultSchedule(calls={"insert", "replace", "append"})
        self.vaults = [self._open() for _ in range(VAULTS)]
        self.witness = self._over(self.keys, self.store)  # meets no fault
        self.tokens: dict[str, ModelToken] = {}

    def _over(self, keys: KeyStore, store: TokenStore) -> Vault:
        return Vault(keys, store, programs=PROGRAMS.values(), requestors=[REQUESTOR], clock=self.clock)

    def _open(self) -> Vault:
        return self._over(
            FaultyKeyStore(self.keys, self.key_faults), FaultyTokenStore(self.store, self._store_plan)
        )

    def _store_plan(self, call: str) -> Fault | None:
        return self.store_faults(call) or self.write_faults(call)

    def _set(self, faults: _Faults) -> None:
        self.store_faults.set(faults.store)
        self.write_faults.set(faults.writes)
        self.key_faults.set(faults.keys)

    def teardown(self) -> None:
        self.store.close()

    def _under(self, faults: _Faults, call: Callable[[], T]) -> T | Answer:
        """What a call answers, or what its error says; UNKNOWN where a fault met it."""
        self._set(faults)
        try:
            return call()
        except DomainRestrictionError as refused:
            return frozenset(violation.code for violation in refused.violations)
        except TokenStoreError:
            assert self.store_faults.failures + self.write_faults.failures, "the store met no fault"
            return UNKNOWN
        except KeyStoreError:
            assert self.key_faults.failures, "the key store met no fault"
            return UNKNOWN
        except TokenVaultError as error:
            return type(error)
        finally:
            self._set(_Faults())

    def _shown(self, faults: _Faults, call: Callable[[], TokenInfo]) -> Answer:
        answer = self._under(faults, call)
        return Shown.of(answer) if isinstance(answer, TokenInfo) else answer

    def _pick(self, place: int) -> ModelToken:
        """A token, more often than not one of the latest."""
        tokens = list(self.tokens.values())
        return tokens[-3:][place // 3 % min(3, len(tokens))] if place % 3 else tokens[place % len(tokens)]

    def _any(self) -> bool:
        return bool(self.tokens)

    def _learn(
        self, token: ModelToken, step: Callable[[State], tuple[Answer, State]], answer: Answer
    ) -> None:
        token.learn(step, answer)
        if len(token.states) > _STATES_MAX:
            self._resolve(token)

    def _resolve(self, token: ModelToken) -> None:
        shown = Shown.of(self.witness.get(token.token))
        token.learn(State.looked_at, shown)

    # Issue

    @initialize()
    def begin(self) -> None:
        self.issue(0, _PANS[0], "limited", _DOMAINS[0], _Faults())

    @rule(
        vault=_vaults, pan=_pans, program=st.sampled_from(sorted(PROGRAMS)), domain=_domains, faults=_faults
    )
    def issue(self, vault: int, pan: str, program: str, domain: Domain, faults: _Faults) -> None:
        answer = self._under(
            faults,
            lambda: self.vaults[vault].issue(pan, requestor=REQUESTOR.id, program=program, domain=domain),
        )

        def stands(state: State) -> bool:
            return program == "convergent" and state.program == program and state.live and state.pan == pan

        def same(state: State) -> bool:
            return stands(state) and state.domain == domain

        others = list(self.tokens.values())
        if answer == UNKNOWN:
            for row in self.store.scan():  # at most one, which nobody was told of
                if row.token not in self.tokens:
                    assert len(self.tokens) == len(others), "one call issued two tokens"
                    self._issued(self.witness.get(row.token), State(program, pan, domain))
        elif answer is InvalidInputError:
            assert any(token.may(lambda state: stands(state) and not same(state)) for token in others)
        else:
            assert isinstance(answer, TokenInfo), answer
            if answer.token in self.tokens:
                self.tokens[answer.token].keep(
                    lambda state: same(state) and state.revision == answer.revision
                )
            else:
                assert answer.revision == 1
                for token in others:
                    token.keep(lambda state: not stands(state))
                self._issued(answer, State(program, pan, domain))

    def _issued(self, info: TokenInfo, state: State) -> None:
        self.tokens[info.token] = ModelToken(info.token, info.reference, {state})

    # Use

    @precondition(_any)
    @rule(vault=_vaults, place=_places, transaction=_transactions, faults=_faults)
    def detokenize(self, vault: int, place: int, transaction: Transaction, faults: _Faults) -> None:
        self._detokenize(vault, self._pick(place), transaction, faults)

    @precondition(_any)
    @rule(vault=_vaults, place=_places, transaction=_transactions, faults=_faults)
    def detokenize_until_answered(
        self, vault: int, place: int, transaction: Transaction, faults: _Faults
    ) -> None:
        """A caller whose answer was lost presents the transaction again, to another vault."""
        token = self._pick(place)
        self._detokenize(vault, token, transaction, faults)
        self._detokenize((vault + 1) % VAULTS, token, transaction, _Faults())

    def _detokenize(self, vault: int, token: ModelToken, transaction: Transaction, faults: _Faults) -> None:
        def digits() -> str:
            return self.vaults[vault].detokenize(token.token, transaction).pan.reveal()

        card = self._under(faults, digits)
        now_ms = self.clock.now_ms()
        self._learn(token, lambda state: state.detokenized(transaction, now_ms), card)
        if card == UNKNOWN:
            token.lost[transaction.id] += 1
        elif isinstance(card, str):
            token.given[transaction.id] += 1

    @precondition(_any)
    @rule(vault=_vaults, place=_places, transaction=_transactions, faults=_faults)
    def check(self, vault: int, place: int, transaction: Transaction, faults: _Faults) -> None:
        token = self._pick(place)

        def codes() -> frozenset[str]:
            decision = self.vaults[vault].check(token.token, transaction)
            return frozenset(violation.code for violation in decision.violations)

        now_ms = self.clock.now_ms()
        self._learn(token, lambda state: state.checked(transaction, now_ms), self._under(faults, codes))

    # Life

    @precondition(_any)
    @rule(vault=_vaults, place=_places, by=_actors, faults=_faults)
    def suspend(self, vault: int, place: int, by: Actor, faults: _Faults) -> None:
        token = self._pick(place)
        answer = self._shown(faults, lambda: self.vaults[vault].suspend(token.token, by=by))
        self._learn(token, lambda state: state.suspended(by), answer)

    @precondition(_any)
    @rule(vault=_vaults, place=_places, faults=_faults)
    def resume(self, vault: int, place: int, faults: _Faults) -> None:
        token = self._pick(place)
        for by in token.suspenders() or [Actor.ISSUER]:
            answer = self._shown(faults, functools.partial(self.vaults[vault].resume, token.token, by=by))
            self._learn(token, functools.partial(State.resumed, by=by), answer)

    @precondition(lambda self: len(self.tokens) > 2)
    @rule(vault=_vaults, place=_places, faults=_faults)
    def delete(self, vault: int, place: int, faults: _Faults) -> None:
        token = self._pick(place)
        self._learn(token, State.deleted, self._shown(faults, lambda: self.vaults[vault].delete(token.token)))

    @precondition(_any)
    @rule(vault=_vaults, place=_places, domain=_domains, faults=_faults)
    def update_domain(self, vault: int, place: int, domain: Domain, faults: _Faults) -> None:
        token = self._pick(place)
        answer = self._shown(faults, lambda: self.vaults[vault].update_domain(token.token, domain))
        self._learn(token, lambda state: state.restricted(domain), answer)

    @rule(vault=_vaults, pan=_pans, new_pan=_pans, faults=_faults)
    def update_card(self, vault: int, pan: str, new_pan: str, faults: _Faults) -> None:
        answer = self._under(faults, lambda: self.vaults[vault].update_card(pan, new_pan=new_pan))
        self._learn_all(answer, lambda state: state.renewed(pan, new_pan))

    @rule(vault=_vaults, pan=_pans, faults=_faults)
    def tokens_of(self, vault: int, pan: str, faults: _Faults) -> None:
        answer = self._under(faults, lambda: self.vaults[vault].tokens_of(pan))
        self._learn_all(answer, lambda state: state.listed(pan))

    def _learn_all(
        self, answer: list[TokenInfo] | Answer, step: Callable[[State], tuple[Answer | None, State]]
    ) -> None:
        """From a call about all tokens of a card; those of others are not named."""
        if isinstance(answer, list):
            named = {info.token: Shown.of(info) for info in answer}
            assert named.keys() <= self.tokens.keys()
        else:
            assert answer in (UNKNOWN, TokenNotFoundError)
            named = {}
        for token in self.tokens.values():
            token.learn(step, UNKNOWN if answer == UNKNOWN else named.get(token.token))

    @precondition(_any)
    @rule(vault=_vaults, place=_places, faults=_faults, by_reference=st.booleans())
    def get(self, vault: int, place: int, faults: _Faults, by_reference: bool) -> None:
        token = self._pick(place)
        name = token.reference if by_reference else token.token
        self._learn(token, State.looked_at, self._shown(faults, lambda: self.vaults[vault].get(name)))

    @rule(milliseconds=st.sampled_from([1_000, _HOUR_MS // 2, _HOUR_MS]))
    def time_passes(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds)

    @rule(vault=_vaults, faults=_faults)
    def open_again(self, vault: int, faults: _Faults) -> None:
        """A vault that opens is another instance from then on; one that does not leaves the former."""
        opened = self._under(faults, self._open)
        if isinstance(opened, Vault):
            self.vaults[vault] = opened
        else:
            assert opened == UNKNOWN

    @rule()
    def faults_end(self) -> None:
        """What may have happened is looked at, and every vault writes."""
        for token in self.tokens.values():
            self._resolve(token)
        for vault in self.vaults:
            try:
                vault.detokenize("9999990000000000", Transaction(id="nothing", requestor=REQUESTOR.id))
            except TokenNotFoundError:
                continue
            except TokenStoreError as error:
                raise AssertionError("a write fails without a fault") from error

    # What holds

    @invariant()
    def every_token_is_in_a_state_that_it_may_be_in(self) -> None:
        rows = self.store.scan()
        assert {row.token for row in rows} == set(self.tokens)
        for token in self.tokens.values():
            shown = Shown.of(self.witness.get(token.token))
            assert shown in {state.shown for state in token.states}, "none of its states"

    @invariant()
    def every_card_handed_out_has_its_event_and_no_limit_was_exceeded(self) -> None:
        for token in self.tokens.values():
            events = [Event.parse(row) for row in self.store.events(reference=bytes.fromhex(token.reference))]
            done = [event for event in events if event.outcome is Outcome.DONE]
            uses = [event for event in done if event.action is Action.DETOKENIZE]
            noted = [event.transaction_id or "" for event in uses]
            for name in {*noted, *token.given}:
                given = token.given[name]
                assert given <= noted.count(name) <= given + token.lost[name], name
            assert any(event.action is Action.ISSUE for event in done), "a record without its event"
            (program,) = {state.program for state in token.states}
            assert not exceeded(program, [(event.transaction_id or "", event.time_ms) for event in uses])

    @invariant()
    def the_events_of_each_vault_count_without_hole(self) -> None:
        for stream in self.store.streams():
            numbers = [row.number for row in self.store.events(stream=stream)]
            assert numbers == list(range(1, len(numbers) + 1))
