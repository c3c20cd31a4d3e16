"""What must hold of a simulation: its history, read from what was written, and each property stated once.

The order in which writes reached the store is the order in which they happened, so nothing has to be searched: what a
write did is what its call does to the state before it, and an answer without a write is what some state in its time
gives.

To look for something else, write another function over `History` and add it to `PROPERTIES`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Final, TypeAlias

import attrs

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.verify.verify import verify_audit
from tokenvault.errors import InvalidInputError, KeyStoreError, TokenStoreError
from tokenvault.model.counters import Usage
from tokenvault.records.record import TokenRecord
from tokenvault.stores.port import SealedRecord
from tokenvault.testing.simulation.calls import DOMAINS, RENEWED, Call, Callers, World, asked
from tokenvault.testing.simulation.ports import simulated_keys
from tokenvault.testing.simulation.tasks import Commit
from tokenvault.testing.simulation.world import SimulatedWorld
from tokenvault.testing.vault_model import PROGRAMS, Shown, State, a_use, longest

_DOMAIN_OF: Final = {domain.digest: domain for domain in DOMAINS.values()}


@attrs.frozen(eq=False)
class Written:
    """A commit, read.

    Attributes:
        commit: as the store took it.
        call: that wrote it; None: a vault on its own, as it closes.
        events: that are no checkpoints.
        records: by the names of the simulation.
        before, after: the state of each token.
    """

    commit: Commit
    call: Call | None
    events: list[Event]
    records: dict[str, SealedRecord]
    before: World
    after: World


@attrs.define(eq=False)
class History:
    """All that happened in one world, read: what properties look at.

    Attributes:
        stuck: whether it did not come to an end.
        written: commits, in order.
        worlds: from which step on the tokens were in which states.
        references: of the tokens, by their names.
        closed: streams of vaults that closed in the end, hexadecimal.
        unusable: what is wrong with vaults in the end.
        shown: of each token, in the end.
    """

    world: SimulatedWorld
    callers: Callers
    stuck: bool = False
    written: list[Written] = attrs.field(factory=list)
    worlds: list[tuple[int, World]] = attrs.field(factory=lambda: [(0, {})])
    references: dict[str, bytes] = attrs.field(factory=dict)
    closed: list[str] = attrs.field(factory=list)
    unusable: list[str] = attrs.field(factory=list)
    shown: dict[str, Shown] = attrs.field(factory=dict)

    def during(self, call: Call) -> list[World]:
        """The worlds that a call may have seen."""
        ended = call.task.ended or 0
        return [world for step, world in self.since_it_began(call) if step <= ended]

    def since_it_began(self, call: Call) -> list[tuple[int, World]]:
        """The world in which a call began and those after it, of what is read so far, each with its step."""
        first = max(at for at, (step, _) in enumerate(self.worlds) if step <= call.task.began)
        return self.worlds[first:]

    def times(self, call: Call) -> set[int]:
        """What the clock of its process may have shown a call, in milliseconds."""
        began, ended = call.task.began, call.task.ended or 0
        times = call.task.process.times
        first = max((at for at, (step, _) in enumerate(times) if step <= began), default=0)
        return {now_ms for step, now_ms in times[first:] if step <= ended}

    def by(self, call: Call) -> list[Written]:
        """What a call wrote before its answer."""
        ended = call.task.ended or 0
        return [each for each in self.written if each.call is call and each.commit.step <= ended]


def read(history: History) -> None:
    """Read what was written, and follow it with the model."""
    callers = history.callers
    before: World = {}
    for commit in history.world.commits:
        call = callers.call_of(commit.task)
        rows = map(Event.parse, commit.events)
        events = [event for event in rows if event.action is not Action.CHECKPOINT]
        records = {callers.name(row.token): row for row in commit.records}
        history.references.update((name, row.reference) for name, row in records.items())
        names = {reference: name for name, reference in history.references.items()}
        after = dict(before)
        if call is not None:
            for name, row in records.items():
                now_ms = events[0].time_ms if events else 0
                after[name] = (
                    call.operation.effect(before[name], call.arguments, now_ms)[1]
                    if name in before
                    else takes_over(
                        asked(call.arguments),
                        [world for _, world in history.since_it_began(call)],
                        TokenRecord.parse(row).usage,
                    )
                )
            for event in events if not records else ():
                used = names.get(event.reference)
                if used is not None and call is not None and event.use is not None and _is_new(event):
                    # A use that no limit counts is known from then on, without a change of its record.
                    use = a_use(call.arguments["id"], call.arguments["merchant"])
                    after[used] = before[used].noted(use, event.time_ms)
        history.written.append(Written(commit, call, events, records, before, after))
        if after != before:
            history.worlds.append((commit.step, after))
        before = after


def takes_over(state: State, worlds: Sequence[World], usage: Usage) -> State:
    """A new convergent token, with what former ones of its card had counted by the last of these worlds.

    One that has another card now may be used between the reading of it and the writing of the new record, which tells
    in which of these worlds it was read: but in one in which it had left the card.
    """
    if state.program != "convergent":
        return state
    former = {name: other for name, other in worlds[-1].items() if other.left(state.pan)}

    def read_in(world: World) -> State:
        lines = [
            world[name].counted
            if other.pan != state.pan and name in world and world[name].left(state.pan)
            else other.counted
            for name, other in former.items()
        ]
        return attrs.evolve(state, inherited=longest(chain.from_iterable(lines)), issued_for=state.pan)

    taken = [read_in(world) for world in reversed(worlds)]
    return next((each for each in taken if each.latest_counted_ms == usage.last_used_ms), taken[0])


def _is_new(event: Event) -> bool:
    return event.outcome is Outcome.DONE and event.use is not None and not event.use.retry


Findings: TypeAlias = Iterator[str]
Property: TypeAlias = Callable[[History], Findings]
"""Finds what contradicts it, in words that name no PAN."""


def schedule_ends(history: History) -> Findings:
    """Every call ends."""
    if history.stuck:
        yield "it does not come to an end"


def changes_are_one_step_with_their_events(history: History) -> Findings:
    """A change of a record and the event that states its revision are written in one commit."""
    for each in history.written:
        stated = {(event.reference, event.revision) for event in each.events if event.revision}
        changed = {(row.reference, row.revision) for row in each.commit.records}
        if stated != changed:
            yield f"step {each.commit.step}: {len(changed)} records and {len(stated)} events of changes"


def changes_follow_the_model(history: History) -> Findings:
    """What is written is what the call does to the state before: no update is lost, and no rule passed over."""
    for each in history.written:
        for name, row in each.records.items():
            before, after, record = each.before.get(name), each.after[name], TokenRecord.parse(row)
            stands = State(
                after.program, after.pan, _DOMAIN_OF[record.domain], record.status, record.suspended_by,
                after.used, after.inherited, record.revision, after.issued_for,
            )  # fmt: skip
            if before == after:
                yield f"step {each.commit.step}: {each.call} changes {name}, which forbids it"
            elif stands != after:
                yield f"step {each.commit.step}: {each.call} leaves {name} in another state"


def answers_follow_the_model(history: History) -> Findings:
    """A call that changed something answers what that gives; another one, what the state gave at some time in it."""
    for call in history.callers.calls:
        if not call.answered:
            continue
        own = [each for each in history.by(call) if each.records]
        times = {event.time_ms for each in history.by(call) for event in each.events} or history.times(call)
        if own:
            if call.answer != _answer_of(call, own):
                yield f"{call} answers otherwise than what it wrote"
        elif not any(
            call.operation.explains(call, world, now_ms)
            for world in _worlds_of(history, call)
            for now_ms in times
        ):
            yield f"{call} answers what no state in its time gives"


def _worlds_of(history: History, call: Call) -> Sequence[World]:
    """What a call may have seen; of one about many tokens, those that were there when it looked for them."""
    first, *rest = history.during(call)
    if not call.operation.many:
        return (first, *rest)
    return [{name: state for name, state in world.items() if name in first} for world in (first, *rest)]


def _answer_of(call: Call, own: list[Written]) -> object:
    """What a call answers that wrote something."""
    if call.operation.many:
        return tuple(sorted((name, each.after[name].shown) for each in own for name in each.records))
    (each,) = own[-1:]
    (name,) = each.records
    event, *_ = each.events
    if name not in each.before:
        return ((name, each.after[name].shown),)
    return call.operation.effect(each.before[name], call.arguments, event.time_ms)[0]


def decisions_leave_events_first(history: History) -> Findings:
    """Before a decision or a card is out, its event is written."""
    for call in history.callers.calls:
        if not call.operation.decides or not call.answered:
            continue
        if call.answer is InvalidInputError:  # of another form
            continue
        refused = isinstance(call.answer, frozenset | type)
        told = (
            Outcome.DENIED if refused else Outcome.DONE,
            call.arguments.get("id"),
            history.references.get(call.arguments.get("token", "")),
        )
        if not any(
            (event.outcome, event.transaction_id, event.reference if told[2] else None) == told
            for each in history.by(call)
            for event in each.events
        ):
            yield f"{call} answers, and no event says so"


def events_state_the_time(history: History) -> Findings:
    """An event has a time that the clock of its vault showed during the call."""
    for each in history.written:
        times = {event.time_ms for event in each.events}
        if each.call is not None and not times <= history.times(each.call):
            yield f"step {each.commit.step}: an event of {each.call} has another time"


def limits_hold(history: History) -> Findings:
    """In no window are there more uses, or more money, than a program allows: the events tell, not the model."""
    counted: dict[str, dict[str, int]] = {}
    for each in history.written:
        for name in each.records:
            for event in each.events:
                if event.action is Action.DETOKENIZE:
                    counted.setdefault(name, {}).setdefault(event.transaction_id or "", event.time_ms)
    for name, uses in counted.items():
        for limit in PROGRAMS[history.written[-1].after[name].program].domain.limits:
            spent = Counter[int]()
            for transaction_id, time_ms in uses.items():
                amount = a_use(transaction_id).amount
                spent[limit.window(time_ms).number] += (
                    1 if limit.amount is None or amount is None else amount.amount
                )
            most = limit.uses if limit.amount is None else limit.amount.amount
            if max(spent.values(), default=0) > (most or 0):
                yield f"{name} is used beyond {limit}"


def transactions_count_once(history: History) -> Findings:
    """However often a transaction comes, one event of one token counts it."""
    counted = Counter(
        (event.reference, event.transaction_id)
        for each in history.written
        for event in each.events
        if event.action is Action.DETOKENIZE and event.revision
    )
    for (_, transaction_id), times in counted.items():
        if times > 1:
            yield f"{transaction_id} is counted {times} times"


def cards_converge(history: History) -> Findings:
    """A card never has two live tokens of a convergent program."""
    for each in history.written:
        live = Counter(
            state.pan
            for state in each.after.values()
            if state.live and state.program == "convergent" and state.pan != RENEWED
        )
        for card, tokens in live.items():
            if tokens > 1:
                yield f"step {each.commit.step}: card {card} has {tokens} tokens"


def card_updates_reach_every_token(history: History) -> Findings:
    """No token that had a card before it was updated has it afterwards."""
    for call in history.callers.calls:
        if call.operation.name == "update_card" and call.answered:
            (before, *_), (*_, after) = history.during(call), history.during(call)
            for name, state in before.items():
                if state.pan == after[name].pan == call.arguments["card"] and after[name].live:
                    yield f"{call} passes over {name}"


def errors_come_from_faults(history: History) -> Findings:
    """A call without a fault does not fail, unless a write that was given up took the number of its event."""
    for call in history.callers.calls:
        failed = isinstance(call.task.error, TokenStoreError | KeyStoreError)
        if failed and not call.task.faults and not call.task.process.late:
            yield f"{call} fails without a fault"


def store_holds_what_was_written(history: History) -> Findings:
    """Every acknowledged write is there in the end, and nothing else."""
    store = history.world.store
    rows = {row.token: row for each in history.written for row in each.commit.records}
    written = [row._replace(index_rows=()) for each in history.written for row in each.commit.events]
    found = [row for stream in store.streams() for row in store.events(stream=stream)]
    if {row.token: row for row in store.scan()} != rows:
        yield "the records are not the last ones written"
    if sorted(found) != sorted(written):
        yield "the events are not those written"


def trail_verifies(history: History) -> Findings:
    """The trail is intact, and of a vault that closed in peace complete."""
    report = verify_audit(history.world.store, keys=simulated_keys())
    for finding in report.findings:
        yield f"{finding.kind.value}: {finding.message}"
    for stream in history.closed:
        if report.uncovered.get(stream, 1) > 1:
            yield "a vault closed in peace, and its checkpoint does not commit to all of its events"


def vaults_go_on(history: History) -> Findings:
    """After the faults every vault works, and shows each token as the model has it."""
    yield from history.unusable
    for name, state in history.written[-1].after.items():
        if history.shown[name] != state.shown:
            yield f"{name} is shown in another state"


PROPERTIES: Final[tuple[Property, ...]] = (
    schedule_ends,
    changes_are_one_step_with_their_events,
    changes_follow_the_model,
    decisions_leave_events_first,
    events_state_the_time,
    answers_follow_the_model,
    limits_hold,
    transactions_count_once,
    cards_converge,
    card_updates_reach_every_token,
    errors_come_from_faults,
    store_holds_what_was_written,
    vaults_go_on,
    trail_verifies,
)
"""What must hold of every schedule, in the order in which it is looked at."""
