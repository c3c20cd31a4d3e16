"""A whole vault under faults: a Hypothesis state machine that runs it over your store and your keys.

    class MyVault(FaultyVaultMachine):
        def open_store(self):
            return MyTokenStore(...)            # over a fresh database, each time
        def open_keys(self):
            return KEYS                         # a key store that may make the keys that it lacks

    TestMyVault = MyVault.TestCase

Several vaults share the store. Before any of their calls to it, and before any call to the key store, a fault may
come: the call fails, or it happens and its answer is lost. An error is one of the library's, and TokenStoreError or
KeyStoreError only where a fault had come. What else holds after every step, the invariants at the end say.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain, product
from typing import Any, Final, TypeVar

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
from tokenvault.model.decision import Decision
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor
from tokenvault.model.limits import Limit
from tokenvault.model.money import Money
from tokenvault.model.pan import Card
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import TokenInfo
from tokenvault.stores.port import METHODS, TokenStore
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
    Step,
    a_use,
    longest,
    refused,
)
from tokenvault.vault.blocking import Vault, provision

T = TypeVar("T")

VAULTS: Final = 3
_START_MS: Final = 1_780_000_000_000
_HOUR_MS: Final = 3_600_000
_PANS: Final = ("4111111111111111", "5555555555554444", "378282246310005")
_STATES_MAX: Final = 64
_USES: Final = ("tx-0-of-0", "tx-1-of-50", "tx-2-of-50", "tx-3-of-50", "tx-4-of-100", "tx-5-of-120")
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

# Calls that may fail.
_STORE: Final = frozenset(METHODS)
_WRITES: Final = frozenset({"insert", "replace", "append"})
_KEYS: Final = frozenset({"versions", "cipher", "signer", "encrypt_blocks"})


@attrs.frozen
class _Turn:
    """Which vault is called, about which token, and what comes between it and its store and keys.

    Attributes:
        vault: index of the vault.
        place: where the token stands among those that were issued, in a wide range.
        faults: gives the schedule that one call of the vault meets.
    """

    vault: int
    place: int = 0
    faults: Callable[[], FaultSchedule] = FaultSchedule


def _schedules(
    faults: st.SearchStrategy[list[Fault | None]], calls: frozenset[str] | None
) -> st.SearchStrategy[Callable[[], FaultSchedule]]:
    return faults.map(lambda drawn: functools.partial(FaultSchedule, drawn, calls=calls))


_some = st.lists(st.sampled_from([None, None, FAIL, LOSE]), max_size=5)
_turns = st.builds(
    _Turn,
    vault=st.integers(0, VAULTS - 1),
    place=st.integers(0, 10**6),
    faults=st.one_of(
        st.just(FaultSchedule),
        _schedules(_some, _STORE),
        _schedules(_some, _WRITES),
        _schedules(st.sampled_from([0, 1, 2, 3, 5, 8]).map(lambda made: [*[None] * made, FAIL]), _KEYS),
        _schedules(_some, None),
    ),
)
_pans = st.sampled_from(_PANS)
_domains = st.sampled_from(_DOMAINS)
_uses = st.builds(a_use, st.sampled_from(_USES), st.sampled_from(["M-1", "M-1", "M-1", "M-2"]))


class FaultyVaultMachine(RuleBasedStateMachine):
    """Calls several vaults under faults, and checks their answers against a model.

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
        self.faults = FaultSchedule()
        self.vaults = [self._open() for _ in range(VAULTS)]
        self.witness = self._over(self.keys, self.store)  # meets no fault
        self.tokens: dict[str, ModelToken] = {}

    def _over(self, keys: KeyStore, store: TokenStore) -> Vault:
        return Vault(keys, store, programs=PROGRAMS.values(), requestors=[REQUESTOR], clock=self.clock)

    def _open(self) -> Vault:
        def plan(call: str) -> Fault | None:
            return self.faults(call)

        return self._over(FaultyKeyStore(self.keys, plan), FaultyTokenStore(self.store, plan))

    def teardown(self) -> None:
        self.store.close()

    def _under(self, turn: _Turn, call: Callable[[Vault], T]) -> T | Answer:
        """What a vault answers, or what its error says; UNKNOWN where a fault met it."""
        self.faults = turn.faults()
        try:
            return call(self.vaults[turn.vault])
        except DomainRestrictionError as refusal:
            return _codes(refusal)
        except TokenStoreError:
            assert self._failed() & _STORE, "the store met no fault"
            return UNKNOWN
        except KeyStoreError:
            assert self._failed() - _STORE, "the key store met no fault"
            return UNKNOWN
        except TokenVaultError as error:
            return type(error)
        finally:
            self.faults = FaultSchedule()

    def _failed(self) -> set[str]:
        return {call for call, fault in self.faults.made if fault.failure}

    def _learn(
        self,
        turn: _Turn,
        method: Callable[..., TokenInfo | Card | Decision],
        step: Callable[..., tuple[Answer, State]],
        **given: Any,
    ) -> Answer:
        """Call a method of a vault about a token, and keep the states whose step gives the same answer."""
        token = self._pick(turn)
        answer = self._under(turn, lambda vault: method(vault, token.token, **given))
        if isinstance(answer, TokenInfo):
            answer = Shown.of(answer)
        elif isinstance(answer, Card):
            answer = answer.pan.reveal()
        elif isinstance(answer, Decision):
            answer = _codes(answer)
        token.learn(functools.partial(step, **given), answer)
        if len(token.states) > _STATES_MAX:
            self._resolve(token)
        return answer

    def _resolve(self, token: ModelToken) -> None:
        token.learn(State.looked_at, Shown.of(self.witness.get(token.token)))

    def _pick(self, turn: _Turn) -> ModelToken:
        """A token, more often than not one of the latest."""
        tokens, place = list(self.tokens.values()), turn.place
        return tokens[-3:][place // 3 % min(3, len(tokens))] if place % 3 else tokens[place % len(tokens)]

    # Issue

    @initialize()
    def begin(self) -> None:
        self.issue(_Turn(0), _PANS[0], "limited", _DOMAINS[0])

    @rule(turn=_turns, pan=_pans, program=st.sampled_from(sorted(PROGRAMS)), domain=_domains)
    def issue(self, turn: _Turn, pan: str, program: str, domain: Domain) -> None:
        answer = self._under(
            turn, lambda vault: vault.issue(pan, requestor=REQUESTOR.id, program=program, domain=domain)
        )

        def stands(state: State) -> bool:
            return program == "convergent" and state.program == program and state.live and state.pan == pan

        def same(state: State) -> bool:
            return stands(state) and state.domain == domain

        others = list(self.tokens.values())
        if answer == UNKNOWN:
            for row in self.store.scan():  # at most one, whose answer was lost
                if row.token not in self.tokens:
                    assert len(self.tokens) == len(others), "one call issued two tokens"
                    self._issued(self.witness.get(row.token), State(program, pan, domain))
        elif answer is InvalidInputError:
            assert any(stands(state) and not same(state) for token in others for state in token.states)
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
        """A convergent token takes over, of each counter, the most that a former one of its card had counted."""
        former = [
            {other.counted if other.left(state.pan) else () for other in token.states}
            for token in self.tokens.values()
            if state.program == "convergent"
        ]
        states = {
            attrs.evolve(state, inherited=longest(chain.from_iterable(each)), issued_for=state.pan)
            for each in product(*former)
        }
        self.tokens[info.token] = ModelToken(info.token, info.reference, states)

    # Use

    @rule(turn=_turns, transaction=_uses)
    def check(self, turn: _Turn, transaction: Transaction) -> None:
        step = functools.partial(State.checked, now_ms=self.clock.now_ms())
        self._learn(turn, Vault.check, step, transaction=transaction)

    @rule(turn=_turns, transaction=_uses)
    def detokenize(self, turn: _Turn, transaction: Transaction) -> None:
        step = functools.partial(State.detokenized, now_ms=self.clock.now_ms())
        card = self._learn(turn, Vault.detokenize, step, transaction=transaction)
        if card == UNKNOWN:
            self._pick(turn).lost[transaction.id] += 1
        elif isinstance(card, str):
            self._pick(turn).given[transaction.id] += 1

    @rule(turn=_turns, transaction=_uses)
    def detokenize_until_answered(self, turn: _Turn, transaction: Transaction) -> None:
        """A caller whose answer was lost retries the transaction, with another vault."""
        self.detokenize(turn, transaction)
        self.detokenize(_Turn((turn.vault + 1) % VAULTS, turn.place), transaction)

    # Life

    @rule(turn=_turns, by=st.sampled_from([Actor.ISSUER, Actor.CARDHOLDER]))
    def suspend(self, turn: _Turn, by: Actor) -> None:
        self._learn(turn, Vault.suspend, State.suspended, by=by)

    @rule(turn=_turns)
    def resume(self, turn: _Turn) -> None:
        for by in self._pick(turn).suspenders() or [Actor.ISSUER]:
            self._learn(turn, Vault.resume, State.resumed, by=by)

    @precondition(lambda self: len(self.tokens) > 2)
    @rule(turn=_turns)
    def delete(self, turn: _Turn) -> None:
        self._learn(turn, Vault.delete, State.deleted)

    @rule(turn=_turns, domain=_domains)
    def update_domain(self, turn: _Turn, domain: Domain) -> None:
        self._learn(turn, Vault.update_domain, State.restricted, domain=domain)

    @rule(turn=_turns, by_reference=st.booleans())
    def get(self, turn: _Turn, by_reference: bool) -> None:
        def get(vault: Vault, token: str) -> TokenInfo:
            return vault.get(self.tokens[token].reference if by_reference else token)

        self._learn(turn, get, State.looked_at)

    @rule(turn=_turns, pan=_pans, new_pan=_pans)
    def update_card(self, turn: _Turn, pan: str, new_pan: str) -> None:
        answer = self._under(turn, lambda vault: vault.update_card(pan, new_pan=new_pan))
        self._learn_all(answer, functools.partial(State.renewed, pan=pan, new_pan=new_pan))

    @rule(turn=_turns, pan=_pans)
    def tokens_of(self, turn: _Turn, pan: str) -> None:
        answer = self._under(turn, lambda vault: vault.tokens_of(pan))
        self._learn_all(answer, functools.partial(State.listed, pan=pan))

    def _learn_all(self, answer: list[TokenInfo] | Answer, step: Step) -> None:
        """Learn from a call about all tokens of a card; its answer has none of other cards."""
        if isinstance(answer, list):
            named = {info.token: Shown.of(info) for info in answer}
            assert named.keys() <= self.tokens.keys()
        else:
            assert answer in (UNKNOWN, TokenNotFoundError)
            named = {}
        for token in self.tokens.values():
            token.learn(step, UNKNOWN if answer == UNKNOWN else named.get(token.token))

    @rule(milliseconds=st.sampled_from([1_000, _HOUR_MS // 2, _HOUR_MS]))
    def time_passes(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds)

    @rule(turn=_turns)
    def open_again(self, turn: _Turn) -> None:
        """A vault that opens is another instance from then on; one that does not leaves the former."""
        opened = self._under(turn, lambda _: self._open())
        if isinstance(opened, Vault):
            self.vaults[turn.vault] = opened
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
            page = self.store.events_about(bytes.fromhex(token.reference))
            events = [Event.parse(row) for row in page.events]
            done = [event for event in events if event.outcome is Outcome.DONE]
            uses = [event for event in done if event.action is Action.DETOKENIZE]
            noted = [event.transaction_id or "" for event in uses]
            for name in {*noted, *token.given}:
                given = token.given[name]
                assert given <= noted.count(name) <= given + token.lost[name], name
            assert any(event.action is Action.ISSUE for event in done), "a record without its event"
            (program,) = {state.program for state in token.states}
            in_time = sorted(uses, key=lambda event: event.time_ms)  # the store gives them by stream
            assert not refused(program, [(event.transaction_id or "", event.time_ms) for event in in_time])

    @invariant()
    def the_events_of_each_vault_count_without_hole(self) -> None:
        for stream in self.store.streams():
            numbers = [row.number for row in self.store.events(stream=stream)]
            assert numbers == list(range(1, len(numbers) + 1))


def _codes(refusal: DomainRestrictionError | Decision) -> frozenset[str]:
    return frozenset(violation.code for violation in refusal.violations)
