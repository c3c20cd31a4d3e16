"""Deterministic simulation: no schedule breaks a vault, a seed replays exactly, and planted defects are found."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import attrs
import pytest

import tokenvault as tv
from tokenvault.audit.event import Event, Outcome
from tokenvault.audit.journal import Entry, Journal
from tokenvault.audit.trail import Trail
from tokenvault.errors import Violation
from tokenvault.model import accounting, decision
from tokenvault.model.counters import Counter, Usage
from tokenvault.model.decision import Restrictions
from tokenvault.model.ledger import Uses
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.periods import Window
from tokenvault.records.record import TokenRecord
from tokenvault.records.token_info import info_of
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import SealedEvent, SealedRecord
from tokenvault.testing.simulation.calls import CARDS, OPERATIONS
from tokenvault.testing.simulation.properties import PROPERTIES, takes_over
from tokenvault.testing.simulation.simulate import PropertyViolatedError, simulate
from tokenvault.testing.simulation.world import SimulatedWorld
from tokenvault.testing.vault_model import State, Use, a_use
from tokenvault.vault import issue, manage
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.documents import Documents
from tokenvault.vault.parties import Parties

SEEDS = 20_000
PARTS = 4
NIGHTLY_SEEDS = 1_000_000
CHUNK = 5_000


# To measure these takes twice as long as they do; the tests below run the same lines.
@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_breaks_a_property(part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        simulate(seed)


def simulate_a_chunk(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulate(seed)


@pytest.mark.nightly
def test_no_schedule_of_a_million_breaks_a_property() -> None:
    """Seeds after those of every day; the chunks are spread over processes."""
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(simulate_a_chunk, range(SEEDS, SEEDS + NIGHTLY_SEEDS, CHUNK)):
            pass


def used_at(*times_ms: int) -> tuple[Use, ...]:
    return tuple(Use(a_use(f"tx-{time_ms}-50"), time_ms, frozenset({("", 0)})) for time_ms in times_ms)


@pytest.mark.parametrize(
    ("ends_as", "written_ms", "taken"),
    [
        (
            {"status": TokenStatus.DELETED},
            1,
            (1, 2),
        ),  # a deleted one counts no more: it is taken as it stands
        ({"pan": "moved"}, 1, (1,)),
        ({"pan": "moved"}, 2, (1, 2)),
        ({"pan": "moved"}, -1, (1, 2)),  # it had counted before it left the card: nothing is no answer
        ({"pan": "moved", "status": TokenStatus.DELETED}, 1, (1,)),
    ],
)
def test_a_new_token_takes_over_what_a_former_one_had_counted_when_it_was_read(
    ends_as: dict[str, Any], written_ms: int, taken: tuple[int, ...]
) -> None:
    live = State("convergent", "card", tv.Domain(), issued_for="card")
    left = attrs.evolve(live, used=used_at(1), pan=ends_as.get("pan", "card"))
    ended = attrs.evolve(left, used=used_at(1, 2), **ends_as)
    worlds = [{}, {"T1": live}, {"T1": left}, {"T1": ended}]
    new = takes_over(State("convergent", "card", tv.Domain()), worlds, Usage(last_used_ms=written_ms))
    assert new.inherited == (used_at(*taken),)
    assert new.issued_for == "card"


def test_schedules_in_which_a_write_is_given_up_too_early_are_among_them_and_hold_all_properties() -> None:
    """Such a write may take the number of the checkpoint that closes, and `Vault.close` raises then, as it may."""
    late = [
        any(process.late for process in simulate(seed).world.processes) for seed in range(200_000, 200_100)
    ]
    assert 1 < sum(late) < 50


# Replay.

TOLD = """
from tokenvault.testing.simulation.simulate import simulate
for seed in range(200):
    history = simulate(seed)
    print(history.world.schedule(), sorted(history.world.store.scan()), history.world.commits[-1].events)
"""


def test_a_seed_gives_the_same_in_every_process() -> None:
    """Byte for byte: schedule, tokens, references, nonces, seals and MACs; whatever the order of sets."""
    told = [
        subprocess.run(
            [sys.executable, "-c", TOLD],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert told[0] == told[1]
    assert len(told[0]) > 10_000


def test_other_seeds_give_other_schedules() -> None:
    assert len({simulate(seed).world.schedule() for seed in range(50)}) == 50


def test_time_and_chance_come_from_the_seed_in_this_thread_alone() -> None:
    def drawn() -> tuple[object, ...]:
        return (
            os.urandom(8), secrets.token_hex(8), secrets.randbelow(10**9), secrets.choice(range(10**9)), uuid.uuid4(),
            time.time(), time.time_ns(), time.monotonic(),
        )  # fmt: skip

    def drawn_in(seed: int) -> tuple[object, ...]:
        with SimulatedWorld(seed, programs=(), requestors=()):
            return drawn()

    real = os.urandom, time.time, time.monotonic
    assert drawn_in(1) == drawn_in(1)
    assert not set(drawn_in(1)[:5]) & set(drawn_in(2)[:5])
    elsewhere: list[tuple[object, ...]] = []
    for _ in range(2):
        with SimulatedWorld(1, programs=(), requestors=()):
            thread = threading.Thread(target=lambda: elsewhere.append(drawn()))
            thread.start()
            thread.join()
    assert not set(elsewhere[0]) & set(elsewhere[1])
    assert (os.urandom, time.time, time.monotonic) == real


def test_schedules_meet_every_fault_every_operation_and_every_refusal() -> None:
    """What no schedule reaches, no schedule proves."""
    histories = [simulate(seed) for seed in range(600)]
    tasks = [task for history in histories for task in history.world.tasks]
    calls = [call for history in histories for call in history.callers.calls]
    assert {fault.name for task in tasks for fault in task.faults} == {
        "FAIL",
        "LOSE",
        "LATE",
        "KILL",
        "CANCEL",
    }
    for operation in OPERATIONS:
        made = [call for call in calls if call.operation is operation]
        assert any(call.answered for call in made), operation.name
        assert operation.name == "check" or any(not call.answered for call in made), operation.name
    codes = {code for call in calls if isinstance(call.answer, frozenset) for code in call.answer}
    assert codes == {
        "TOKEN_SUSPENDED", "TOKEN_DELETED", "USES_EXCEEDED", "AMOUNT_EXCEEDED", "TRANSACTION_ID_REUSED",
    }  # fmt: skip
    errors = {call.answer for call in calls if isinstance(call.answer, type)}
    assert {tv.LifecycleError, tv.InvalidInputError, tv.TokenNotFoundError} <= errors


# Planted defects.


class StoreWithoutFence(MemoryTokenStore):
    """Replaces a record whatever its revision is by now."""

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Sequence[tuple[str, int]]
    ) -> list[str]:
        with self._mutex:
            self._write_all(records, events)
        return []


class StoreThatForgets(MemoryTokenStore):
    """Acknowledges a write of an event alone, and does not make it."""

    def _append(self, events: Sequence[SealedEvent], fence: Sequence[tuple[str, int]]) -> list[str]:
        return []


def a_lost_conflict(patch: pytest.MonkeyPatch) -> None:
    """Another change came first, and the vault goes on as if it had written."""
    replace = Core.replace

    async def ignoring(core: Core, changed: Unsealed, event: Event) -> list[str]:
        await replace(core, changed, event)
        return []

    patch.setattr(Core, "replace", ignoring)


def an_event_in_a_second_step(patch: pytest.MonkeyPatch) -> None:
    async def replace(core: Core, changed: Unsealed, event: Event) -> list[str]:
        async def write(events: tuple[SealedEvent, ...], row: SealedRecord) -> list[str]:
            moved = await core.store.replace((row,), ())
            if not moved:
                await core.store.append(events)
            return moved

        return await core.trail.write(event, lambda: core.keys.seal(*changed), write)

    patch.setattr(Core, "replace", replace)


def a_retry_that_counts_twice(patch: pytest.MonkeyPatch) -> None:
    record = accounting.record

    def again(
        usage: Usage, restrictions: Restrictions, transaction: tv.Transaction, now_ms: int, uses: Uses
    ) -> accounting.Recorded:
        return record(usage, restrictions, transaction, now_ms, uses._replace(own=()))

    patch.setattr(accounting, "record", again)


def a_retry_that_is_not_recognised(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Uses, "before", property(lambda uses: None))


def a_number_reused_after_a_doubtful_write(patch: pytest.MonkeyPatch) -> None:
    async def settle(trail: Trail, entry: Entry) -> None:
        trail.journal.withdraw(entry)

    patch.setattr(Trail, "_settle_one", settle)


def a_doubtful_write_taken_as_written(patch: pytest.MonkeyPatch) -> None:
    async def settle(trail: Trail, entry: Entry) -> None:
        trail.journal.written(entry)

    patch.setattr(Trail, "_settle_one", settle)


def a_card_without_its_event(patch: pytest.MonkeyPatch) -> None:
    """Where an event can not be written, the flow goes on."""
    write = Trail.write

    async def failing_open(trail: Trail, *args: Any) -> list[str]:
        try:
            return await write(trail, *args)
        except tv.TokenStoreError:
            return []

    patch.setattr(Trail, "write", failing_open)


def a_change_that_does_not_read_again(patch: pytest.MonkeyPatch) -> None:
    """After a conflict, what was made of the record at first is written over what others wrote since."""

    async def change(core: Core, name: Any, action: Any, alter: Any, by: Any) -> Any:
        codes = () if by.actor is None else (by.actor.name,)
        first = await core.read(name, action)
        reference, now_ms = first.record.reference, core.clock.now_ms()
        try:
            altered = await alter(first)
        except tv.LifecycleError:
            await core.deny(action, None, "LIFECYCLE", *codes, reference=reference)
            raise
        revision = first.record.revision
        while True:
            revision += 1
            changed = Unsealed(altered.record._replace(revision=revision, updated_ms=now_ms), altered.card)
            event = Event(now_ms, action, Outcome.DONE, None, reference, None, codes, revision)
            if not await core.replace(changed, event):
                return info_of(*changed)

    patch.setattr(manage, "_change", change)


def a_window_given_twice_by_a_clock_set_back(patch: pytest.MonkeyPatch) -> None:
    def used(counter: Counter, window: int) -> int:
        return counter.value if window == counter.window else 0

    def added(counter: Counter, window: Window, value: int) -> Counter:
        before = counter.value if window.number == counter.window else 0
        return Counter(counter.key, window.number, before + value, ends_ms=window.ends_ms)

    patch.setattr(Counter, "used", used)
    patch.setattr(Counter, "added", added)


def a_convergent_candidate_not_looked_at_again(patch: pytest.MonkeyPatch) -> None:
    """Another vault came first with the card, and this one takes the next candidate."""
    patch.setattr(issue, "_converges", lambda order, program, there, pan_fingerprints: False)


def a_checkpoint_that_commits_to_missing_events(patch: pytest.MonkeyPatch) -> None:
    """An event is in the tree once it is sealed, before it is written."""
    seal = Journal.seal

    def settled(journal: Journal, entry: Entry, *args: Any) -> tuple[SealedEvent, ...]:
        rows = seal(journal, entry, *args)
        journal.written(entry)
        return rows

    patch.setattr(Journal, "seal", settled)


def a_close_that_does_not_look_at_doubtful_writes(patch: pytest.MonkeyPatch) -> None:
    close = Trail.close

    async def hasty(trail: Trail, time_ms: int) -> None:
        for entry in trail.journal.doubts():
            trail.journal.written(entry)
        await close(trail, time_ms)

    patch.setattr(Trail, "close", hasty)


def a_domain_kept_for_good(patch: pytest.MonkeyPatch) -> None:
    """The restrictions of a token are read once, and an update of its domain is not seen."""
    restrictions = Documents.restrictions

    async def first(documents: Documents, parties: Parties, record: TokenRecord, acting: str) -> Restrictions:
        read = await restrictions(documents, parties, record, acting)
        kept = documents._restrictions.get((record.program, record.requestor, record.domain, acting))
        assert kept is not None
        first = documents._restrictions.setdefault((record.token, "", b"", acting), kept)
        return first.restrictions if first is not kept else read

    patch.setattr(Documents, "restrictions", first)


def a_suspension_that_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    violations = decision._token_violations

    def others(*args: Any, **kwargs: Any) -> list[Violation]:
        return [found for found in violations(*args, **kwargs) if found.code != "TOKEN_SUSPENDED"]

    patch.setattr(decision, "_token_violations", others)


def a_lost_answer_taken_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    """A write whose answer is lost counts as not made, and is made again under another number."""
    write = Trail.write

    async def again(trail: Trail, event: Any, seal: Any, change: Any) -> list[str]:
        try:
            return await write(trail, event, seal, change)
        except tv.TokenStoreError:
            await write(trail, event, seal, change)
            return []

    patch.setattr(Trail, "write", again)


DEFECTS = (
    a_lost_conflict,
    an_event_in_a_second_step,
    a_retry_that_counts_twice,
    a_retry_that_is_not_recognised,
    a_number_reused_after_a_doubtful_write,
    a_doubtful_write_taken_as_written,
    a_card_without_its_event,
    a_change_that_does_not_read_again,
    a_window_given_twice_by_a_clock_set_back,
    a_convergent_candidate_not_looked_at_again,
    a_checkpoint_that_commits_to_missing_events,
    a_close_that_does_not_look_at_doubtful_writes,
    a_domain_kept_for_good,
    a_suspension_that_is_not_looked_at,
    a_lost_answer_taken_for_a_refusal,
)


def first_violation(**arguments: Any) -> tuple[int, str]:
    """The first seed of those of every day that violates a property, and what it tells."""
    for seed in range(SEEDS):
        try:
            simulate(seed, **arguments)
        except PropertyViolatedError as error:
            return seed, str(error)
    pytest.fail("no schedule finds it")


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_planted_defect_is_found(
    defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    seed, told = first_violation()
    with pytest.raises(PropertyViolatedError) as again:
        simulate(seed)
    assert str(again.value) == told
    monkeypatch.undo()
    simulate(seed)


@pytest.mark.parametrize("store", [StoreWithoutFence, StoreThatForgets])
def test_a_wrong_store_is_found(store: type[MemoryTokenStore]) -> None:
    first_violation(store=store)


def test_a_violation_tells_seed_property_and_schedule_and_no_pan(monkeypatch: pytest.MonkeyPatch) -> None:
    a_retry_that_counts_twice(monkeypatch)
    seed, told = first_violation()
    first, *schedule, last = told.splitlines()
    assert first.startswith(f"seed {seed}: ")
    assert any(holds.__name__.replace("_", " ") in first for holds in PROPERTIES)
    assert last == f"replay it by simulate({seed})"
    assert any("detokenize(T1, tx-" in line for line in schedule)
    assert all(" vault " in line for line in schedule)
    for pan in CARDS.values():
        assert pan not in told
