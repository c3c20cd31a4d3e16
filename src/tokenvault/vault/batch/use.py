"""Using many tokens: a chunk is read at once, decided on, and written with one event.

Each use is answered as `detokenize` or `check` answers it. Uses by one transaction of tokens with the same decision
key share a decision. Where limits count, a token comes more than once, or the ledger has something on a use, each is
decided on by itself, after those before it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import attrs
import numpy as np

from tokenvault.audit.batch_event import Kind
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.guard_note import FailureKind
from tokenvault.errors import (
    ConfigurationError,
    IntegrityError,
    InvalidInputError,
    PermissionDeniedError,
    TokenVaultError,
)
from tokenvault.model.kinds import KINDS
from tokenvault.model.ledger import LedgerEntry
from tokenvault.model.programs import Permission
from tokenvault.model.restrictions import Restrictions
from tokenvault.model.transaction import Transaction
from tokenvault.records.sealing import CHANGED
from tokenvault.stores.new_records import split
from tokenvault.stores.port import Fence, SealedEvent
from tokenvault.vault import use
from tokenvault.vault.batch.asked import Name, Use, uses_of
from tokenvault.vault.batch.read import StoredTokens, read
from tokenvault.vault.batch.results import CardResults, DecisionResults, Rows
from tokenvault.vault.core import Core, Unsealed, denial_code, failed, not_found
from tokenvault.vault.refusals import Refusals
from tokenvault.vault.risk import CHUNK_DEADLINES, RiskDesk
from tokenvault.vault.uses import UseNames, events_of, genuine_events

ATTEMPTS_MAX: Final = 8
"""How often a chunk starts over because others changed its records first."""

PATIENT_ATTEMPTS: Final = 3
"""After so many, the tokens that others keep changing are left to single calls."""

COUNTED_BYTES_FREE: Final = 2_000
COUNTED_BYTES_EACH: Final = 50
"""What the sets of counters of a chunk's event take, and more for each use; others are left to single calls."""

R = TypeVar("R", CardResults, DecisionResults)


@attrs.frozen
class _Chunk(Generic[R]):
    """A chunk of uses, by their row, and what came of each; `notes` is what the event is to say of it.

    Attributes:
        names: of each transaction, by the id of the object.
        events: what the ledger has on the uses, with its row, by the token's reference.
        repeated: tokens that come more than once.
        refusals: what the guard counts of it.
        desk: asks the risk control, if there is one: about each use by itself.
    """

    core: Core
    uses: dict[int, Use]
    stored: StoredTokens
    results: R
    notes: BatchEventBuilder
    now_ms: int
    names: dict[int, UseNames]
    events: Mapping[bytes, list[tuple[SealedEvent, Event]]]
    repeated: frozenset[int]
    refusals: Refusals
    desk: RiskDesk | None

    @property
    def action(self) -> Action:
        """What the items are."""
        return Action.DETOKENIZE if isinstance(self.results, CardResults) else Action.CHECK

    def place(self, row: int) -> int:
        """Where the record of a use's token stands in `stored`."""
        name, _ = self.uses[row]
        return self.stored.places[name]

    def names_of(self, transaction: Transaction) -> UseNames:
        """By what the ledger knows a transaction."""
        return self.names[id(transaction)]

    def stands_alone(self, row: int) -> bool:
        """Whether a use needs nothing but its token and transaction to be decided on, where no limit counts."""
        place, (_, transaction) = self.place(row), self.uses[row]
        return (
            transaction.original is None
            and KINDS[transaction.kind].live
            and place not in self.repeated
            and self.stored.references[place].tobytes() not in self.events
        )


@attrs.frozen
class _Group:
    """Uses by one transaction of tokens with the same decision key: one decision answers them all.

    `token` is a record and card like theirs; the card is their own where the transaction could contain its number.
    """

    rows: Rows
    transaction: Transaction
    token: Unsealed
    restrictions: Restrictions

    def case(self, chunk: _Chunk[Any], unsealed: Unsealed, later: Sequence[LedgerEntry] = ()) -> use.Case:
        """What a use is decided by, of a token as it is after `later`."""
        names = chunk.names_of(self.transaction)
        events = chunk.events.get(unsealed.record.reference, ())
        uses = names.uses(events, self.transaction, later)
        return use.Case(unsealed, self.restrictions, names, uses, self.transaction, chunk.now_ms)

    def parts(self, chunk: _Chunk[Any]) -> list[_Group]:
        """The uses by themselves, each with its own token, where a risk control is asked about each."""
        if chunk.desk is None:
            return [self]
        return [
            attrs.evolve(self, rows=np.array([row]), token=chunk.stored.unsealed(chunk.place(row)))
            for row in self.rows.tolist()
        ]


@attrs.define
class _Used:
    """What the uses of a chunk have made of a token so far.

    Attributes:
        unsealed: its record as it is, and its card.
        written: whether the record has to be written.
        entries: what they add to the ledger.
    """

    unsealed: Unsealed
    written: bool = False
    entries: list[LedgerEntry] = attrs.Factory(list)


async def detokenize_chunk(core: Core, items: Sequence[object]) -> CardResults:
    """The cards behind tokens, for pairs of token and transaction; the uses are recorded first."""
    contended: set[Name] = set()  # tokens that others keep changing
    refusals, desk = Refusals(core), core.risk_desk(CHUNK_DEADLINES)
    for attempt in range(ATTEMPTS_MAX + 1):
        results = CardResults(len(items))
        uses = uses_of(items, results)
        if attempt == ATTEMPTS_MAX:
            contended.update(name for name, _ in uses.values())
        left = {row: use for row, use in uses.items() if use[0] not in contended}
        chunk = await _read(core, left, results, refusals, desk)
        changed_by_others = await _detokenize(chunk, contended)
        if not changed_by_others:
            break
        if attempt >= PATIENT_ATTEMPTS:
            others = set(changed_by_others)
            places = chunk.stored.places
            contended.update(name for name in places if chunk.stored.rows[places[name]].token in others)
        await core.conflict(attempt)
    await refusals.settle()
    for row, (name, transaction) in uses.items():
        if name in contended:
            try:
                results.cards.put_card(row, await use.detokenize(core, name, transaction))
            except TokenVaultError as error:
                results.fail(row, error)
    return results


async def check_chunk(core: Core, items: Sequence[object]) -> DecisionResults:
    """The decisions on uses, for pairs of token and transaction; nothing is counted."""
    results = DecisionResults(len(items))
    refusals = Refusals(core)
    desk = core.risk_desk(CHUNK_DEADLINES)
    chunk = await _read(core, uses_of(items, results), results, refusals, desk)
    for group in await _groups(chunk):
        for part in group.parts(chunk):
            await _check(chunk, part)
    await _write(chunk, {})
    await refusals.settle()
    return results


async def _check(chunk: _Chunk[DecisionResults], group: _Group) -> None:
    """Decide on uses that one decision answers, and note them where they are not allowed."""
    case = group.case(chunk, group.token)
    codes: tuple[str, ...]
    try:
        decision = await use.with_risk(case, use.decision_on(case), chunk.desk)
    except InvalidInputError as error:
        chunk.results.fail(group.rows, error)
        codes = (use.CONTAINS_PAN_CODE,)
    else:
        chunk.results.put(group.rows, decision)
        codes = use.codes_of(decision)
    if not codes:
        return
    event = use.refused_check(chunk.core, case, codes)
    kind = Kind(event.outcome, event.requestor, event.codes)
    places = np.array([chunk.place(row) for row in group.rows.tolist()])
    references = chunk.stored.references[places]
    chunk.notes.note_many(group.rows, references, 0, kind, event.transaction_id)
    if codes != (use.CONTAINS_PAN_CODE,):
        _count(chunk, places, case, event.codes)


def _count(chunk: _Chunk[R], places: Rows, case: use.Case, codes: tuple[str, ...]) -> None:
    """Count uses that were refused, of tokens with the same decision key."""
    for reference in split(chunk.stored.references[places]):
        chunk.refusals.add(case.unsealed.record._replace(reference=reference), case.transaction, codes)


async def _read(
    core: Core, uses: dict[int, Use], results: R, refusals: Refusals, desk: RiskDesk | None
) -> _Chunk[R]:
    stored = await read(core, list(dict.fromkeys(name for name, _ in uses.values())))
    names = {}
    for _, transaction in uses.values():
        if id(transaction) not in names:
            names[id(transaction)] = UseNames.of(core.keys, transaction)
    pairs = {
        (stored.references[stored.places[name]].tobytes(), use_id)
        for name, transaction in uses.values()
        if name in stored.places
        for use_id in names[id(transaction)].every
    }
    rows = await events_of(core.store, sorted(pairs)) if pairs else []
    events = defaultdict(list)
    for row, event in await genuine_events(core, rows, {reference for reference, _ in pairs}):
        events[event.reference].append((row, event))
    times = Counter(stored.places[name] for name, _ in uses.values() if name in stored.places)
    return _Chunk(
        core=core,
        uses=uses,
        stored=stored,
        results=results,
        notes=BatchEventBuilder(len(results), core.trail.ids.kept),
        now_ms=core.clock.now_ms(),
        names=names,
        events=events,
        repeated=frozenset(place for place, count in times.items() if count > 1),
        refusals=refusals,
        desk=desk,
    )


async def _groups(chunk: _Chunk[R]) -> list[_Group]:
    """Group the uses that can be decided on; the others fail."""
    by_decision_key = await _by_decision_key(chunk)
    return [group for rows in by_decision_key.values() for group in await _by_transaction(chunk, rows)]


async def _by_decision_key(chunk: _Chunk[R]) -> dict[Hashable, list[int]]:
    """Group uses that their requestor may make, of tokens whose records are there and genuine; the others fail."""
    core, stored = chunk.core, chunk.stored
    denials = await _denials(chunk)
    found: dict[Hashable, list[int]] = defaultdict(list)
    for row, (name, transaction) in chunk.uses.items():
        denial, place = denials[transaction.requestor], stored.places.get(name)
        if denial is None and place is None and name not in stored.unreadable:
            tally = chunk.refusals.tally
            denial = tally.miss(transaction.requestor, core.keys.failure(*failed(name)))
            # Those that follow are answered as calls one after the other would be.
            denials[transaction.requestor] = await core.denial(transaction.requestor, Permission.DETOKENIZE)
        if denial is not None:
            _refuse(chunk, row, denial, Outcome.DENIED, codes=(denial_code(denial),))
        elif name in stored.unreadable:
            chunk.results.fail(row, stored.unreadable[name])
        elif place is None:
            _refuse(chunk, row, not_found(name), Outcome.NOT_FOUND)
        elif stored.genuine[place]:
            found[stored.decision_keys[place]].append(row)
        else:
            await _reject(chunk, row)
    return found


async def _denials(chunk: _Chunk[R]) -> dict[str, PermissionDeniedError | None]:
    """Why requestors may not use tokens, as all processes know it where any token is not there."""
    core, stored = chunk.core, chunk.stored
    requestors = {transaction.requestor for _, transaction in chunk.uses.values()}
    miss = {
        transaction.requestor
        for name, transaction in chunk.uses.values()
        if name not in stored.places and name not in stored.unreadable
    }
    for requestor in sorted(requestors):
        if await core.parties.requestor(requestor) is not None:
            await core.guards.refresh(requestor)
        if requestor in miss and await core.denial(requestor, Permission.DETOKENIZE) is None:
            await core.guards.settle(requestor, FailureKind.MISS)
    return {requestor: await core.denial(requestor, Permission.DETOKENIZE) for requestor in requestors}


async def _by_transaction(chunk: _Chunk[R], rows: list[int]) -> list[_Group]:
    """Group uses of tokens with the same decision key; where they can not be decided on, they fail."""
    try:
        token = chunk.stored.unsealed(chunk.place(rows[0]))
    except IntegrityError:
        for row in rows:
            await _reject(chunk, row)
        return []
    by_transaction: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        by_transaction[id(chunk.uses[row][1])].append(row)
    groups = []
    for same in by_transaction.values():
        _, transaction = chunk.uses[same[0]]
        try:
            restrictions = await chunk.core.documents.restrictions(
                chunk.core.parties, token.record, transaction.requestor
            )
        except (ConfigurationError, IntegrityError) as error:
            chunk.results.fail(np.array(same), error)
            continue
        alike = []
        for row in same:
            # A card number in a transaction has to be compared with each card.
            if chunk.stands_alone(row) and not transaction._could_contain_pan:
                alike.append(row)
            else:
                own = chunk.stored.unsealed(chunk.place(row))
                groups.append(_Group(np.array([row]), transaction, own, restrictions))
        if alike:
            groups.append(_Group(np.array(alike), transaction, token, restrictions))
    return groups


async def _reject(chunk: _Chunk[R], row: int) -> None:
    """Refuse a use of a token whose record is not what a vault wrote."""
    stored = chunk.stored.rows[chunk.place(row)]
    failure = IntegrityError(CHANGED)
    try:
        await chunk.core.open(stored)
    except IntegrityError as error:
        failure = error
    _refuse(chunk, row, failure, Outcome.TAMPERED, reference=stored.reference)  # as the row claims it


def _refuse(
    chunk: _Chunk[R],
    row: int,
    error: TokenVaultError,
    outcome: Outcome,
    *,
    codes: tuple[str, ...] = (),
    reference: bytes = b"",
) -> None:
    """Answer a use by an error, and note it."""
    _, transaction = chunk.uses[row]
    chunk.results.fail(row, error)
    chunk.notes.note(row, reference, 0, Kind(outcome, transaction.requestor, codes), transaction.id)


async def _detokenize(chunk: _Chunk[CardResults], contended: set[Name]) -> list[str]:
    """Answer uses and record them; returns the tokens whose records others changed meanwhile: then none is.

    Uses for which the event has no room are left to single calls, and `contended` gets their tokens.
    """
    one_by_one: dict[int, _Group] = {}
    for group in await _groups(chunk):
        first = int(group.rows[0])
        if group.restrictions.counted or chunk.desk is not None or not chunk.stands_alone(first):
            one_by_one.update(dict.fromkeys(group.rows.tolist(), group))
        else:
            _answer(chunk, group)
    used: dict[str, _Used] = {}
    room = COUNTED_BYTES_FREE + COUNTED_BYTES_EACH * len(chunk.results)
    for row in sorted(one_by_one):
        name, _ = chunk.uses[row]
        if name in contended or chunk.notes.counted_bytes + chunk.refusals.tally.size > room:
            contended.add(name)
        else:
            await _use_one(chunk, row, one_by_one[row], used)
    written = {token: each.unsealed for token, each in used.items() if each.written}
    return await _write(chunk, written, _fence(chunk, written))


def _fence(chunk: _Chunk[CardResults], written: Mapping[str, Unsealed]) -> Fence:
    """The tokens whose cards are handed out and whose records are not written, with what was decided on."""
    rows, failed = chunk.stored.rows, chunk.results.failed  # made of all rows each time that it is asked for
    places = {chunk.place(row) for row in chunk.uses if not failed[row]}
    answered = {rows[place].token: rows[place].revision for place in places}
    return [(token, answered[token]) for token in sorted(answered.keys() - written.keys())]


def _answer(chunk: _Chunk[CardResults], group: _Group) -> None:
    """Answer uses that do not count."""
    case = group.case(chunk, group.token)
    judgment = use.judge(case)
    event = judgment.event(case, chunk.core.trail.ids)
    kind = Kind(event.outcome, event.requestor, event.codes)
    places = np.array([chunk.place(row) for row in group.rows.tolist()])
    references = chunk.stored.references[places]
    chunk.notes.note_many(group.rows, references, 0, kind, event.transaction_id, event.use)
    if judgment.refusal is None:
        chunk.results.cards.put(group.rows, chunk.stored.cards.take(places))
    else:
        chunk.results.fail(group.rows, judgment.refusal)
        _count(chunk, places, case, judgment.codes)


async def _use_one(chunk: _Chunk[CardResults], row: int, group: _Group, used: dict[str, _Used]) -> None:
    """Answer a use after those before it.

    The token's record as it is to be written goes into `used`: one revision, however many uses it counts.
    """
    place = chunk.place(row)
    stored = chunk.stored.rows[place]
    before = used.setdefault(stored.token, _Used(chunk.stored.unsealed(place)))
    case = group.case(chunk, before.unsealed, before.entries)
    judgment = await use.judged(case, chunk.desk)
    revision = 0
    if judgment.changed is not None:
        revision = stored.revision + 1
        before.unsealed = Unsealed(judgment.changed._replace(revision=revision), before.unsealed.card)
        before.written = True
    if judgment.entry is not None:
        before.entries.append(judgment.entry)
    event = judgment.event(case, chunk.core.trail.ids)
    kind = Kind(event.outcome, event.requestor, event.codes)
    chunk.notes.note(row, event.reference, revision, kind, event.transaction_id, event.use)
    if judgment.refusal is not None:
        chunk.results.fail(row, judgment.refusal)
        chunk.refusals.add(before.unsealed.record, group.transaction, judgment.codes)
    elif before.unsealed.card is not None:
        chunk.results.cards.put_card(row, before.unsealed.card)


async def _write(chunk: _Chunk[R], written: dict[str, Unsealed], fence: Fence = ()) -> list[str]:
    """Write the event, with the records of tokens that were used; returns those that others changed first."""
    core, failures = chunk.core, chunk.refusals.tally.failures
    event = chunk.notes.event(chunk.now_ms, chunk.action, failures=failures)
    if event is None:
        return []
    if not written:
        return await core.trail.note(event, fence)
    return await core.trail.write(
        event,
        lambda: core.keys.seal_all(list(written.values())),
        lambda events, rows: core.store.replace(rows, events, fence),
    )
