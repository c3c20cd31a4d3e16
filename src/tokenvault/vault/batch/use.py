"""Using many tokens: a chunk is read at once, decided on, and written with one event.

Each use is answered as `detokenize` or `check` answers it. Uses by one transaction of tokens with the
same decision key share a decision; where limits count, each use is decided on by itself, after those before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

import attrs
import numpy as np

from tokenvault.audit.batch_event import BatchEventBuilder, Kind
from tokenvault.audit.event import Action, Outcome
from tokenvault.errors import (
    ConfigurationError,
    IntegrityError,
    InvalidInputError,
    TokenNotFoundError,
    TokenVaultError,
)
from tokenvault.model import checks
from tokenvault.model.decision import Restrictions
from tokenvault.model.programs import Permission
from tokenvault.model.transaction import Transaction
from tokenvault.stores.port import Fence
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
"""A requested use: a token and its transaction."""


@attrs.frozen
class _Chunk(Generic[R]):
    """A chunk of uses, by their row, and what came of each; `notes` is what the event is to say of it."""

    core: Core
    uses: dict[int, Use]
    stored: StoredTokens
    results: R
    notes: BatchEventBuilder
    now_ms: int

    def place(self, row: int) -> int:
        """Where the record of a use's token stands in `stored`."""
        token, _ = self.uses[row]
        return self.stored.places[token]


@attrs.frozen
class _Group:
    """Uses by one transaction of tokens with the same decision key: one decision answers them all.

    `token` is a record and card like theirs; the card is their own where the transaction could contain its number.
    """

    rows: Rows
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
    """The decisions on uses, for pairs of token and transaction; nothing is counted."""
    results = DecisionResults(len(items))
    chunk = await _read(core, _uses(items, results), results)
    for group in await _groups(chunk):
        try:
            decision = use.decision_on(group.token, group.restrictions, group.transaction, chunk.now_ms)
            results.put(group.rows, decision)
        except InvalidInputError as error:
            results.fail(group.rows, error)
    await _write(chunk, {})
    return results


def _uses(items: Sequence[Any], results: ChunkResults[Any]) -> dict[int, Use]:
    """The uses by their row; an item that is no use fails."""
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
    notes = BatchEventBuilder(len(results))
    return _Chunk(core, uses, stored, results, notes, core.clock.now_ms())


async def _groups(chunk: _Chunk[R]) -> list[_Group]:
    """Group the uses that can be decided on; the others fail."""
    by_decision_key = await _by_decision_key(chunk)
    return [group for rows in by_decision_key.values() for group in await _by_transaction(chunk, rows)]


async def _by_decision_key(chunk: _Chunk[R]) -> dict[Hashable, list[int]]:
    """Group uses that their requestor may make, of tokens whose records are there and genuine; the others fail."""
    requestors = {transaction.requestor for _, transaction in chunk.uses.values()}
    denials = {requestor: chunk.core.denial(requestor, Permission.DETOKENIZE) for requestor in requestors}
    found: dict[Hashable, list[int]] = defaultdict(list)
    for row, (token, transaction) in chunk.uses.items():
        denial, place = denials[transaction.requestor], chunk.stored.places.get(token)
        if denial is not None:
            _refuse(chunk, row, denial, Outcome.DENIED, codes=("PERMISSION_DENIED",))
        elif token in chunk.stored.unreadable:
            chunk.results.fail(row, chunk.stored.unreadable[token])
        elif place is None:
            _refuse(chunk, row, TokenNotFoundError("no such token in this vault"), Outcome.NOT_FOUND)
        elif chunk.stored.genuine[place]:
            found[chunk.stored.decision_keys[place]].append(row)
        else:
            await _reject(chunk, row)
    return found


async def _by_transaction(chunk: _Chunk[R], rows: list[int]) -> list[_Group]:
    """Group uses of tokens with the same decision key; where they can not be decided on, they fail."""
    try:
        token = chunk.stored.unsealed(chunk.place(rows[0]))
    except IntegrityError:
        for row in rows:
            await _reject(chunk, row)
        return []
    try:
        restrictions = await chunk.core.documents.restrictions(token.record)
    except (ConfigurationError, IntegrityError) as error:
        chunk.results.fail(np.array(rows), error)
        return []
    by_transaction: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        by_transaction[id(chunk.uses[row][1])].append(row)
    groups = []
    for same in by_transaction.values():
        _, transaction = chunk.uses[same[0]]
        if transaction._could_contain_pan:  # whose card number that is, each card has to be compared with
            for row in same:
                own = token._replace(card=chunk.stored.card(chunk.place(row)))
                groups.append(_Group(np.array([row]), transaction, own, restrictions))
        else:
            groups.append(_Group(np.array(same), transaction, token, restrictions))
    return groups


async def _reject(chunk: _Chunk[R], row: int) -> None:
    """Refuse a use of a token whose record is not what a vault wrote."""
    stored = chunk.stored.rows[chunk.place(row)]
    failure = IntegrityError("a token record is not one that this library writes")
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
    """Answer a use by an error, and note it; for checks, note only a missing permission."""
    _, transaction = chunk.uses[row]
    chunk.results.fail(row, error)
    if outcome is Outcome.DENIED or isinstance(chunk.results, CardResults):
        kind = Kind(outcome, transaction.requestor, codes)
        chunk.notes.note(row, reference, 0, kind, safe_id(transaction.id))


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
    return await _write(chunk, used, _fence(chunk, used))


def _fence(chunk: _Chunk[CardResults], used: Mapping[str, Unsealed]) -> Fence:
    """The tokens whose cards are handed out and whose records are not written, with what was decided on."""
    failed = chunk.results.failed  # made of all rows each time that it is asked for
    answered = {token for row, (token, _) in chunk.uses.items() if not failed[row]}
    rows, places = chunk.stored.rows, chunk.stored.places
    return [(token, rows[places[token]].revision) for token in sorted(answered - used.keys())]


def _answer(chunk: _Chunk[CardResults], group: _Group) -> None:
    """Answer uses that do not count."""
    event, _, refusal = use.judge(group.token, group.restrictions, group.transaction, chunk.now_ms)
    kind = Kind(event.outcome, event.requestor, event.codes)
    places = np.array([chunk.place(row) for row in group.rows.tolist()])
    chunk.notes.note_many(group.rows, chunk.stored.references[places], 0, kind, event.transaction_id)
    if refusal is None:
        chunk.results.cards.put(group.rows, chunk.stored.cards.take(places))
    else:
        chunk.results.fail(group.rows, refusal)


def _count(
    chunk: _Chunk[CardResults], row: int, restrictions: Restrictions, used: dict[str, Unsealed]
) -> None:
    """Answer a use that counts, after those before it.

    The token's record as it is to be written goes into `used`: one revision, however many uses it counts.
    """
    token, transaction = chunk.uses[row]
    place = chunk.place(row)
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


async def _write(chunk: _Chunk[R], used: dict[str, Unsealed], fence: Fence = ()) -> list[str]:
    """Write the event, with the records of tokens that were used; returns those that others changed first."""
    core, event = chunk.core, chunk.notes.event(chunk.now_ms, Action.DETOKENIZE)
    if event is None:
        return []
    if not used:
        return await core.trail.note(event, fence)
    return await core.trail.write(
        event,
        lambda: core.keys.seal_all(list(used.values())),
        lambda events, rows: core.store.replace(rows, events, fence),
    )
