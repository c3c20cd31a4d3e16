"""The calls of a simulation: each operation stated once, in a table, and callers that make them.

An operation says how it is drawn, how a vault is called, and what it does to one token of `vault_model`. To simulate
another, add a row. Cards go by their last four digits and tokens by "T1", "T2": a schedule names no PAN.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from random import Random
from typing import Any, Final, TypeAlias

import attrs

from tokenvault.errors import (
    ConfigurationError,
    DomainRestrictionError,
    InvalidInputError,
    KeyStoreError,
    TokenNotFoundError,
    TokenStoreError,
)
from tokenvault.model.decision import Decision
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Actor
from tokenvault.model.limits import Limit
from tokenvault.model.money import Money
from tokenvault.model.pan import Card
from tokenvault.records.token_info import TokenInfo
from tokenvault.testing.simulation.tasks import Cancelled, Killed, Task
from tokenvault.testing.simulation.world import SimulatedWorld
from tokenvault.testing.vault_model import HOUR, REQUESTOR, UNKNOWN, Answer, Shown, State, a_use
from tokenvault.vault.awaited import AsyncVault

CARDS: Final = {pan[-4:]: pan for pan in ("4111111111111111", "5555555555554444", "378282246310005")}
ISSUED: Final = ("1111", "4444")
RENEWED: Final = "0005"
"""Takes the place of other cards; no token is issued for it, so that no two cards merge."""

DOMAINS: Final = {
    "no limit": Domain(),
    "1 use": Domain(limits=(Limit(uses=1),)),
    "2 uses an hour": Domain(limits=(Limit(uses=2, per=HOUR),)),
    "EUR 1.50 an hour": Domain(limits=(Limit(amount=Money(150, "EUR"), per=HOUR),)),
}
USES: Final = ("tx-1-50", "tx-2-50", "tx-3-120", "tx-4-0")
_ACTORS: Final = {"issuer": Actor.ISSUER, "cardholder": Actor.CARDHOLDER}

CALLERS_MAX: Final = 3
CALLS_MIN: Final = 3
CALLS_MAX: Final = 6
RETRIES_MAX: Final = 4

Arguments: TypeAlias = Mapping[str, str]
Listed: TypeAlias = tuple[tuple[str, Shown], ...]
"""Tokens by name, and what is shown of each: the answer of a call that finds its tokens."""

World: TypeAlias = Mapping[str, State]
"""The state of each token, by its name."""

Effect: TypeAlias = Callable[[State, Arguments, int], tuple[Answer | None, State]]
"""What a call answers about one token, and the state after it, given its arguments and the time in milliseconds."""


@attrs.frozen(eq=False)
class Operation:
    """A kind of call.

    Attributes:
        name: as the schedule has it.
        weight: how often it is drawn.
        draw: its arguments, given the names of the tokens that callers know.
        call: calls a vault; its arguments are in the names of the simulation, which the second one translates.
        effect: on one token.
        explains: whether a call that changed nothing may answer so in a world, at a time; `_by_its_token` for calls
            about one token.
        decides: whether each answer has its event.
        many: whether it may change several tokens, and answers with a list.
    """

    name: str
    weight: int
    draw: Callable[[Random, Sequence[str]], dict[str, str]]
    call: Callable[[AsyncVault, Mapping[str, str], Arguments], Coroutine[Any, Any, Any]]
    effect: Effect
    explains: Callable[[Call, World, int], bool]
    decides: bool = False
    many: bool = False


@attrs.define(eq=False)
class Call:
    """One call that a caller made.

    Attributes:
        task: that ran it.
        answer: in the names of the simulation; UNKNOWN where the caller has an error that leaves it open.
    """

    operation: Operation
    arguments: Arguments
    caller: int
    task: Task
    answer: Answer | Listed | None = None

    @property
    def answered(self) -> bool:
        """Whether the caller knows what became of it: no error leaves that open, and the vault was not closed."""
        closed = self.answer is ConfigurationError and self.task.process.closing
        return self.answer != UNKNOWN and not closed

    def __str__(self) -> str:
        return f"{self.operation.name}({', '.join(self.arguments.values())})"


def _token(chance: Random, tokens: Sequence[str]) -> dict[str, str]:
    return {"token": chance.choice(tokens)}


def _card(chance: Random, _: Sequence[str]) -> dict[str, str]:
    return {"card": chance.choice(ISSUED)}


def _issue(chance: Random, tokens: Sequence[str]) -> dict[str, str]:
    program, domain = chance.choice(("convergent", "convergent", "limited")), chance.choice(tuple(DOMAINS))
    return {**_card(chance, tokens), "program": program, "domain": domain}


def _use(chance: Random, tokens: Sequence[str]) -> dict[str, str]:
    merchant = "M-2" if chance.random() < 0.05 else "M-1"
    return {**_token(chance, tokens), "id": chance.choice(USES), "merchant": merchant}


def _by(chance: Random, tokens: Sequence[str]) -> dict[str, str]:
    return {**_token(chance, tokens), "by": chance.choice(tuple(_ACTORS))}


def _restrict(chance: Random, tokens: Sequence[str]) -> dict[str, str]:
    return {**_token(chance, tokens), "domain": chance.choice(tuple(DOMAINS))}


def _by_its_token(call: Call, world: World, now_ms: int) -> bool:
    """The answer is what the model gives of the token, which stays as it is."""
    state = world[call.arguments["token"]]
    return call.operation.effect(state, call.arguments, now_ms) == (call.answer, state)


def _of_its_card(call: Call, world: World, now_ms: int) -> bool:
    """The answer has every token of the card, and no other."""
    found = {name: call.operation.effect(state, call.arguments, now_ms)[0] for name, state in world.items()}
    listed = tuple(sorted((name, shown) for name, shown in found.items() if shown is not None))
    return call.answer == listed or (not listed and call.answer is TokenNotFoundError)


def _no_token_of_its_card(call: Call, world: World, _: int) -> bool:
    """There is nothing to change, or it is gone since it was found."""
    live = [state for state in world.values() if state.live and state.pan == call.arguments["card"]]
    return not live and call.answer in ((), TokenNotFoundError)


def _issued_before(call: Call, world: World, _: int) -> bool:
    """There is a token of this card already: as it was asked for, or otherwise, which is refused."""
    wanted = asked(call.arguments)
    live = {
        name: state
        for name, state in world.items()
        if (state.program, state.pan, state.live) == (wanted.program, wanted.pan, True)
    }
    if call.arguments["program"] != "convergent":
        return False
    if call.answer is InvalidInputError:
        return any(state.domain != wanted.domain for state in live.values())
    return any(
        ((name, state.shown),) == call.answer for name, state in live.items() if state.domain == wanted.domain
    )


def asked(arguments: Arguments) -> State:
    """The state of a token that is issued as asked for."""
    return State(arguments["program"], arguments["card"], DOMAINS[arguments["domain"]])


def _renewed(state: State, arguments: Arguments, _: int) -> tuple[Answer | None, State]:
    # A token that has the new card already, by another call, is changed once more.
    if state.live and state.pan == RENEWED:
        return state.renewed(RENEWED, RENEWED)
    return state.renewed(arguments["card"], RENEWED)


OPERATIONS: Final = (
    Operation(
        "issue", 3, _issue,
        lambda vault, _, given: vault.issue(
            CARDS[given["card"]], requestor=REQUESTOR.id, program=given["program"], domain=DOMAINS[given["domain"]]
        ),
        lambda state, given, now_ms: (state.shown, state),
        _issued_before, decides=True,
    ),
    Operation(
        "detokenize", 10, _use,
        lambda vault, tokens, given: vault.detokenize(tokens[given["token"]], a_use(given["id"], given["merchant"])),
        lambda state, given, now_ms: state.detokenized(a_use(given["id"], given["merchant"]), now_ms),
        _by_its_token, decides=True,
    ),
    Operation(
        "check", 1, _use,
        lambda vault, tokens, given: vault.check(tokens[given["token"]], a_use(given["id"], given["merchant"])),
        lambda state, given, now_ms: state.checked(a_use(given["id"], given["merchant"]), now_ms),
        _by_its_token,
    ),
    Operation(
        "suspend", 2, _by,
        lambda vault, tokens, given: vault.suspend(tokens[given["token"]], by=_ACTORS[given["by"]]),
        lambda state, given, now_ms: state.suspended(_ACTORS[given["by"]]),
        _by_its_token, decides=True,
    ),
    Operation(
        "resume", 1, _by,
        lambda vault, tokens, given: vault.resume(tokens[given["token"]], by=_ACTORS[given["by"]]),
        lambda state, given, now_ms: state.resumed(_ACTORS[given["by"]]),
        _by_its_token, decides=True,
    ),
    Operation(
        "delete", 1, _token,
        lambda vault, tokens, given: vault.delete(tokens[given["token"]]),
        lambda state, given, now_ms: state.deleted(),
        _by_its_token, decides=True,
    ),
    Operation(
        "update_domain", 2, _restrict,
        lambda vault, tokens, given: vault.update_domain(tokens[given["token"]], DOMAINS[given["domain"]]),
        lambda state, given, now_ms: state.restricted(DOMAINS[given["domain"]]),
        _by_its_token, decides=True,
    ),
    Operation(
        "update_card", 1, _card,
        lambda vault, tokens, given: vault.update_card(CARDS[given["card"]], new_pan=CARDS[RENEWED]),
        _renewed, _no_token_of_its_card, many=True,
    ),
    Operation(
        "tokens_of", 1, _card,
        lambda vault, tokens, given: vault.tokens_of(CARDS[given["card"]]),
        lambda state, given, now_ms: state.listed(CARDS[given["card"]][-4:]),
        _of_its_card,
    ),
    Operation(
        "get", 1, _token,
        lambda vault, tokens, given: vault.get(tokens[given["token"]]),
        lambda state, given, now_ms: state.looked_at(),
        _by_its_token,
    ),
    Operation(
        "close", 1, lambda chance, tokens: {},
        lambda vault, tokens, given: vault.close(),
        lambda state, given, now_ms: (None, state),
        lambda call, world, now_ms: call.answer is None,
    ),
)  # fmt: skip
"""Every operation that callers draw from."""

_RETRIED: Final = 0.6


class Callers:
    """Several callers of the vaults of a world, each of which makes one call after the other.

    Attributes:
        calls: all that were made, in the order in which they began.
        tokens: by the names of the simulation.
        names: the other way round.
    """

    def __init__(self, world: SimulatedWorld, operations: Sequence[Operation] = OPERATIONS) -> None:
        self.world = world
        self.calls: list[Call] = []
        self.tokens: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self._operations = {operation.name: operation for operation in operations}
        self._weights = [operation.weight for operation in operations]
        self._of_task: dict[Task, Call] = {}
        self._known: list[str] = []
        self._retries = RETRIES_MAX
        self._left = world.random.randint(CALLS_MIN, CALLS_MAX)

    def begin(self) -> None:
        """Issue a token or two without a fault, and let the callers begin."""
        chance = self.world.random
        for _ in range(chance.choice((1, 1, 2))):
            self._make(0, self._operations["issue"], _issue(chance, ()))
            self.world.run_calmly()
        for caller in range(chance.randint(2, CALLERS_MAX)):
            self._next(caller + 1)

    def call_of(self, task: Task | None) -> Call | None:
        """The call that a task runs."""
        return None if task is None else self._of_task.get(task)

    def name(self, token: str) -> str:
        """The name of a token."""
        if token not in self.names:
            self.names[token] = name = f"T{len(self.names) + 1}"
            self.tokens[name] = token
        return self.names[token]

    def _next(self, caller: int) -> None:
        if not self._left:
            return
        self._left -= 1
        chance = self.world.random
        (operation,) = chance.choices(list(self._operations.values()), self._weights)
        self._make(caller, operation, operation.draw(chance, self._known))

    def _make(self, caller: int, operation: Operation, arguments: Arguments) -> None:
        process = self.world.random.choice(self.world.processes)
        if operation.name == "close":
            process.closing = True
            self.world.follow(process)
        coroutine = operation.call(process.vault, self.tokens, arguments)
        shown = f"caller {caller} at {process.name}, {operation.name}({', '.join(arguments.values())})"
        task = self.world.start(shown, process, coroutine, self._ended)
        self._of_task[task] = call = Call(operation, arguments, caller, task)
        self.calls.append(call)

    def _ended(self, task: Task) -> None:
        call = self._of_task[task]
        call.answer = self._answer(task)
        if call.operation.name == "issue" and isinstance(task.value, TokenInfo):
            name = self.name(task.value.token)
            if name not in self._known:
                self._known.append(name)
        if not call.caller:
            return
        retried = call.answer == UNKNOWN and call.operation.name != "close" and self._retries
        if retried and self.world.random.random() < _RETRIED:
            self._retries -= 1
            self._make(call.caller, call.operation, call.arguments)
        else:
            self._next(call.caller)

    def _answer(self, task: Task) -> Answer | Listed | None:
        error, value = task.error, task.value
        if isinstance(error, DomainRestrictionError):
            return frozenset(violation.code for violation in error.violations)
        if isinstance(error, TokenStoreError | KeyStoreError | Killed | Cancelled):
            return UNKNOWN
        if error is not None:
            return type(error)  # type: ignore[return-value] # an error that no model gives is a finding
        if isinstance(value, Card):
            last4 = value.pan.last4
            return last4 if value.pan.reveal() == CARDS[last4] else "the card of another token"
        if isinstance(value, Decision):
            return frozenset(violation.code for violation in value.violations)
        if isinstance(value, TokenInfo):
            listed = ((self.name(value.token), Shown.of(value)),)
            return listed if self._of_task[task].operation.name == "issue" else listed[0][1]
        if isinstance(value, list):
            return tuple(sorted((self.name(info.token), Shown.of(info)) for info in value))
        return None
