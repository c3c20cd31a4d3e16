"""Using many tokens: a chunk is read at once, decided on, and written with one event.

Each use is answered as `detokenize` or `check` answers it. Uses by one transaction of tokens that are alike to a
decision share one; where limits count, each use is decided on by itself, after those before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

import attrs
import numpy as np

from tokenvault.audit.batch_event import BatchEventBuilder, Kind
from tokenvault.audit.event import Action, Outcome
from tokenvault.errors import (
    ConfigurationError,
    IntegrityError,
    InvalidInputError,
    PermissionDeniedError,
    TokenNotFoundError,
    TokenVaultError,
)
from tokenvault.model import checks
from tokenvault.model.decision import Restrictions, decide
from tokenvault.model.programs import Permission
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import effective_expiry
from tokenvault.vault import use
from tokenvault.vault.batch.read import StoredTokens, read
from tokenvault.vault.batch.results import CardResults, ChunkResults, DecisionResults, Rows
from tokenvault.vault.core import Core, Unsealed, safe_id

ATTEMPTS_MAX: Final = 8
"""How often a chunk starts over because others changed its records first."""

PATIENT_ATTEMPTS: Final = 3
"""After so many, the tokens that others keep changing are left to single calls."""

R = TypeVar("R", CardResults, DecisionResults)

Use: TypeAlias = tuple[str, Transaction]
"""A use that is asked for: a token and its transaction."""


@attrs.frozen
class _Chunk(Generic[R]):
    """A chunk of uses.

    Attributes:
        core: the vault.
        uses: by their row in the chunk.
        stored: the records of their tokens.
        results: what came of each.
        notes: the event, in which checks note only that a permission is missing.
        now_ms: the time, in milliseconds of the Unix epoch.
    """

    core: Core
    uses: dict[int, Use]
    stored: StoredTokens
    results: R
    notes: BatchEventBuilder
    now_ms: int


@attrs.frozen
class _Group:
    """Uses by one transaction of tokens that are alike to a decision: the same one answers them all.

    Attributes:
        rows: of the uses; places: of their tokens' records.
        transaction: of all of them.
        token: the first one's record and card.
        restrictions: of all of them.
    """

    rows: Rows
    places: Rows
    transaction: Transaction
    token: Unsealed
    restrictions: Restrictions


async def detokenize_chunk(core: Core, items: Sequence[object]) -> CardResults:
    """The cards behind tokens, for pairs of token and transaction; the uses are recorded first."""
    contended: set[str] = set()  # tokens that others keep changing
    for attempt in range(ATTEMPTS_MAX + 1):
        results = CardResults(len(items))
        uses = _uses(items, results)
        if attempt == ATTEMPTS_MAX:
            contended.update(token for token, _ in uses.values())
        chunk = await _read(core, {row: use for row, use in uses.items() if use[0] not in contended}, results)
        changed_by_others = await _detokenize(chunk)
        if not changed_by_others:
            break
        if attempt >= PATIENT_ATTEMPTS:
            contended.update(changed_by_others)
        await core.conflict(attempt)
    for row, (token, transaction) in uses.items():
        if token in contended:
            try:
                results.cards.put_card(row, await use.detokenize(core, token, transaction))
            except TokenVaultError as error:
                results.fail(row, error)
    return results


async def check_chunk(core: Core, items: Sequence[object]) -> DecisionResults:
    """Decisions on uses, for pairs of token and transaction; nothing is counted."""
    results = DecisionResults(len(items))
    chunk = await _read(core, _uses(items, results), results)
    for group in await _groups(chunk):
        record, card = group.token
        expiry = effective_expiry(record, card)
        decision = decide(record, expiry, group.restrictions, group.transaction, chunk.now_ms)
        if decision.allowed and card is not None and group.transaction.contains_pan(card.pan):
            results.fail(group.rows, InvalidInputError(use.CONTAINS_PAN))
        else:
            results.put(group.rows, decision)
    await _write(chunk, {})
    return results


def _uses(items: Sequence[Any], results: ChunkResults[Any]) -> dict[int, Use]:
    """The uses by their row; what is none fails."""
    found = {}
    for row, item in enumerate(items):
        try:
            found[row] = _use(item)
        except InvalidInputError as error:
            results.fail(row, error)
    return found


def _use(item: object) -> Use:
    if (type(item) is not tuple and type(item) is not list) or len(item) != 2:
        raise InvalidInputError("each use is a pair of token and transaction")
    token = checks.token(item[0])
    if type(token) is not str:  # it could compare unlike its digits
        raise InvalidInputError("a token is a str of 13 to 19 ASCII digits")
    return token, checks.instance("transaction", item[1], Transaction)


async def _read(core: Core, uses: dict[int, Use], results: R) -> _Chunk[R]:
    stored = await read(core, list(dict.fromkeys(token for token, _ in uses.values())))
    notes = BatchEventBuilder(len(results.failed))
    return _Chunk(core, uses, stored, results, notes, core.clock.now_ms())


async def _groups(chunk: _Chunk[R]) -> list[_Group]:
    """Group the uses that can be decided on; the others fail."""
    by_transaction: dict[int, list[int]] = defaultdict(list)
    for row, (_, transaction) in chunk.uses.items():
        by_transaction[id(transaction)].append(row)
    groups: list[_Group] = []
    for rows in by_transaction.values():
        _, transaction = chunk.uses[rows[0]]
        denial = chunk.core.denial(transaction.requestor, Permission.DETOKENIZE)
        if denial is not None:
            _deny(chunk, rows, transaction, denial)
            continue
        by_decision_key: dict[int, list[int]] = defaultdict(list)
        for row in await _genuine(chunk, rows):
            place = chunk.stored.places[chunk.uses[row][0]]
            by_decision_key[chunk.stored.decision_keys[place]].append(row)
        alike: Iterable[list[int]] = by_decision_key.values()
        if transaction._could_contain_pan:  # whose card number that is, is asked of each card
            alike = [[row] for same in alike for row in same]
        for same in alike:
            group = await _group(chunk, same, transaction)
            if group is not None:
                groups.append(group)
    return groups


def _deny(chunk: _Chunk[R], rows: list[int], transaction: Transaction, denial: PermissionDeniedError) -> None:
    kind = Kind(Outcome.DENIED, transaction.requestor, ("PERMISSION_DENIED",))
    for row in rows:
        chunk.results.fail(row, denial)
        chunk.notes.note(row, b"", 0, kind, safe_id(transaction.id))


async def _genuine(chunk: _Chunk[R], rows: list[int]) -> list[int]:
    """The uses of tokens whose records are there and genuine; the others fail."""
    found = []
    for row in rows:
        token, _ = chunk.uses[row]
        place = chunk.stored.places.get(token)
        if place is None:
            _miss(chunk, row)
        elif chunk.stored.genuine[place]:
            found.append(row)
        else:
            await _reject(chunk, row)
    return found


def _miss(chunk: _Chunk[R], row: int) -> None:
    """Answer a use of a token that is not there, or whose record the store refuses."""
    token, transaction = chunk.uses[row]
    unreadable = chunk.stored.unreadable.get(token)
    chunk.results.fail(row, unreadable or TokenNotFoundError("no such token in this vault"))
    if unreadable is None and isinstance(chunk.results, CardResults):
        kind = Kind(Outcome.NOT_FOUND, transaction.requestor)
        chunk.notes.note(row, b"", 0, kind, safe_id(transaction.id))


async def _reject(chunk: _Chunk[R], row: int) -> None:
    """Answer a use of a token whose record is not what a vault wrote."""
    token, transaction = chunk.uses[row]
    stored = chunk.stored.rows[chunk.stored.places[token]]
    failure = IntegrityError("a token record is not one that this library writes")
    try:
        await chunk.core.open(stored)
    except IntegrityError as error:
        failure = error
    chunk.results.fail(row, failure)
    if isinstance(chunk.results, CardResults):  # the reference is noted as the row claims it
        kind = Kind(Outcome.TAMPERED, transaction.requestor)
        chunk.notes.note(row, stored.reference, 0, kind, safe_id(transaction.id))


async def _group(chunk: _Chunk[R], rows: list[int], transaction: Transaction) -> _Group | None:
    """A group of uses; None where their tokens can not be decided on: then they fail."""
    places = [chunk.stored.places[chunk.uses[row][0]] for row in rows]
    try:
        token = chunk.stored.unsealed(places[0])
    except IntegrityError:
        for row in rows:
            await _reject(chunk, row)
        return None
    try:
        restrictions = await chunk.core.documents.restrictions(token.record)
    except (ConfigurationError, IntegrityError) as error:
        chunk.results.fail(np.array(rows), error)
        return None
    return _Group(np.array(rows), np.array(places), transaction, token, restrictions)


async def _detokenize(chunk: _Chunk[CardResults]) -> list[str]:
    """Answer uses and record them; returns the tokens whose records others changed meanwhile: then none is."""
    counted: dict[int, Restrictions] = {}
    for group in await _groups(chunk):
        if group.restrictions.counted:
            counted.update(dict.fromkeys(group.rows.tolist(), group.restrictions))
        else:
            _answer(chunk, group)
    used: dict[str, Unsealed] = {}
    for row in sorted(counted):
        _count(chunk, row, counted[row], used)
    return await _write(chunk, used)


def _answer(chunk: _Chunk[CardResults], group: _Group) -> None:
    """Answer uses that do not count."""
    event, _, refusal = use.judge(group.token, group.restrictions, group.transaction, chunk.now_ms)
    kind = Kind(event.outcome, event.requestor, event.codes)
    chunk.notes.note_many(group.rows, chunk.stored.references[group.places], 0, kind, event.transaction_id)
    if refusal is None:
        chunk.results.cards.put(group.rows, chunk.stored.cards.take(group.places))
    else:
        chunk.results.fail(group.rows, refusal)


def _count(
    chunk: _Chunk[CardResults], row: int, restrictions: Restrictions, used: dict[str, Unsealed]
) -> None:
    """Answer a use that counts, after those before it.

    The token's record as it is to be written goes into `used`: one revision, however many uses it counts.
    """
    token, transaction = chunk.uses[row]
    place = chunk.stored.places[token]
    current = used[token] if token in used else chunk.stored.unsealed(place)
    event, counts, refusal = use.judge(current, restrictions, transaction, chunk.now_ms)
    record, card = current
    revision = 0
    if counts:
        revision = chunk.stored.rows[place].revision + 1
        usage = record.usage.after(transaction, restrictions.velocity_counters, chunk.now_ms)
        used[token] = Unsealed(record.used(usage, chunk.now_ms)._replace(revision=revision), card)
    kind = Kind(event.outcome, event.requestor, event.codes)
    chunk.notes.note(row, record.reference, revision, kind, event.transaction_id)
    if refusal is not None:
        chunk.results.fail(row, refusal)
    elif card is not None:
        chunk.results.cards.put_card(row, card)


async def _write(chunk: _Chunk[R], used: dict[str, Unsealed]) -> list[str]:
    """Write the event, with the records of tokens that were used; returns those that others changed first."""
    core, event = chunk.core, chunk.notes.event(chunk.now_ms, Action.DETOKENIZE)
    if event is None:
        return []
    if not used:
        return await core.write(event, core.store.append)
    rows = await core.runtime.call(core.keys.seal_all, list(used.values()))
    return await core.write(event, lambda noted: core.store.replace(rows, noted))
