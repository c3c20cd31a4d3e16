"""Using many tokens: a chunk is read at once, decided on item by item, and written with one event.

Each item is answered as `use` answers it. Items whose records and transactions are alike in all that a decision
looks at share one decision; where limits count, each item sees the uses of those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from tokenvault.audit.batch_event import BatchEventBuilder, Kind
from tokenvault.audit.event import Action, Outcome
from tokenvault.errors import (
    ConfigurationError,
    DomainRestrictionError,
    IntegrityError,
    InvalidInputError,
    PermissionDeniedError,
    TokenNotFoundError,
    TokenVaultError,
)
from tokenvault.model import checks
from tokenvault.model.decision import Decision, Restrictions, decide
from tokenvault.model.programs import Permission
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import effective_expiry
from tokenvault.stores.port import SealedRecord
from tokenvault.vault import use
from tokenvault.vault.batch import read as reading
from tokenvault.vault.batch.read import Read
from tokenvault.vault.batch.results import CardChunk, DecisionChunk
from tokenvault.vault.core import Core, Unsealed, safe_id

Rows: TypeAlias = npt.NDArray[np.intp]

_UNLIKE: Final = "a token record is not one that this library writes"

ATTEMPTS_MAX: Final = 8
"""How often a chunk starts over because others changed its records first."""

PATIENT_ATTEMPTS: Final = 3
"""After so many, the tokens that others keep changing are left to single calls."""


async def detokenize_many(core: Core, items: Sequence[object]) -> CardChunk:
    """The cards behind tokens, for pairs of token and transaction; the uses are recorded first."""
    asked = _asked(items)
    alone: set[str] = set()
    for attempt in range(ATTEMPTS_MAX + 1):
        if attempt == ATTEMPTS_MAX:
            alone.update(asked.tokens)
        chunk = CardChunk.empty(len(items))
        work = _Work(core, asked, alone, chunk)
        await work.decide()
        moved = await work.write()
        if not moved:
            break
        if attempt >= PATIENT_ATTEMPTS:
            alone.update(moved)
        await core.conflict(attempt)
    for row, token in enumerate(asked.tokens if alone else ()):
        transaction = asked.transactions[row]
        if token in alone and transaction is not None and not chunk.failures.at(row):
            failure: TokenVaultError | None = None
            try:
                chunk.put(row, await use.detokenize(core, token, transaction))
            except TokenVaultError as error:
                failure = error
            if failure is not None:
                chunk.failures.add(row, failure)
    return chunk


async def check_many(core: Core, items: Sequence[object]) -> DecisionChunk:
    """Decisions on uses, for pairs of token and transaction; nothing is counted."""
    chunk = DecisionChunk(len(items))
    work = _Work(core, _asked(items), set(), chunk)
    await work.decide()
    await work.write()
    return chunk


class _Asked(NamedTuple):
    """Checked arguments, a row for each item; the errors of those that were refused.

    Attributes:
        tokens: empty where refused; transactions: None there.
    """

    tokens: Sequence[str]
    transactions: Sequence[Transaction | None]
    refused: dict[int, TokenVaultError]


def _asked(items: Sequence[Any]) -> _Asked:
    if set(map(type, items)) == {tuple} and set(map(len, items)) == {2}:
        tokens, transactions = [token for token, _ in items], [transaction for _, transaction in items]
        if checks.are_tokens(tokens) and set(map(type, transactions)) == {Transaction}:
            return _Asked(tokens, transactions, {})
    checked: list[tuple[str, Transaction | None]] = []
    refused: dict[int, TokenVaultError] = {}
    for row, item in enumerate(items):
        try:
            checked.append(_checked(item))
        except InvalidInputError as error:
            checked.append(("", None))
            refused[row] = error
    return _Asked([token for token, _ in checked], [transaction for _, transaction in checked], refused)


def _checked(item: object) -> tuple[str, Transaction]:
    if (type(item) is not tuple and type(item) is not list) or len(item) != 2:
        raise InvalidInputError("each use is a pair of token and transaction")
    token = checks.token(item[0])
    if type(token) is not str:  # it could compare unlike its digits
        raise InvalidInputError("a token is a str of 13 to 19 ASCII digits")
    return token, checks.instance("transaction", item[1], Transaction)


@attrs.frozen
class _Presented:
    """What is looked at once for a transaction that many items may share.

    Attributes:
        transaction: the transaction.
        denied: why its requestor may not use any token.
        id: as an event may hold it, if the card number does not stand in it.
        could_contain_pan: whether a card number could stand in any field.
    """

    transaction: Transaction
    denied: PermissionDeniedError | None
    id: str | None
    could_contain_pan: bool


@attrs.frozen
class _Alike:
    """What items have in common whose records, but for card number and times, and transactions are alike.

    Attributes:
        error: of the items, if any.
        kind: of their part of the event; None where no event is left.
        decision, restrictions: None where there is another error.
        counted: whether uses count: then each item is decided on for itself.
    """

    error: TokenVaultError | None
    kind: Kind | None
    decision: Decision | None = None
    restrictions: Restrictions | None = None
    counted: bool = False


class _Work:
    """One attempt at a chunk.

    Args:
        alone: tokens left to single calls.
        chunk: gets the outcomes. If it is for decisions, nothing is counted, and only denied permissions are noted.
    """

    def __init__(self, core: Core, asked: _Asked, alone: set[str], chunk: CardChunk | DecisionChunk) -> None:
        self._core = core
        self._asked = asked
        self._alone = alone
        self._chunk = chunk
        self._counting = isinstance(chunk, CardChunk)
        self._notes = BatchEventBuilder(len(asked.tokens))
        self._changed: dict[str, Unsealed] = {}
        self._now_ms = 0

    async def decide(self) -> None:
        """Decide on every item."""
        wanted = [token for token in dict.fromkeys(self._asked.tokens) if token and token not in self._alone]
        read = await reading.read(self._core, wanted)
        self._now_ms = self._core.clock.now_ms()
        tokens, transactions, refused = self._asked
        for row, error in refused.items():
            self._chunk.failures.add(row, error)
        known: dict[int, int] = {}
        presented: list[_Presented] = []
        shared = len(set(map(id, transactions))) == 1
        for transaction in transactions[:1] if shared else transactions:
            if transaction is not None and id(transaction) not in known:
                known[id(transaction)] = len(presented)
                presented.append(self._present(transaction))
        count = len(tokens)
        if shared:
            shown_by = np.full(count, len(presented) - 1)
        else:
            shown_by = np.fromiter(map(known.get, map(id, transactions), repeat(-1)), np.int64, count)
        place_of = np.fromiter(map(read.places.get, tokens, repeat(-1)), np.int64, count)
        left = shown_by >= 0
        if any(each.denied for each in presented):
            denied = np.array([each.denied is not None for each in presented])
            for row in np.flatnonzero(left & denied[shown_by]).tolist():
                self._deny(row, presented[shown_by[row]])
                left[row] = False
        if self._alone:
            left &= ~np.fromiter(map(self._alone.__contains__, tokens), np.bool_, count)
        for row in np.flatnonzero(left & (place_of < 0)).tolist():
            self._missing(row, presented[shown_by[row]], read)
        left &= place_of >= 0
        if not read.genuine.all():
            for row in np.flatnonzero(left & ~read.genuine[place_of]).tolist():
                await self._tampered(row, presented[shown_by[row]], read.rows[place_of[row]])
                left[row] = False
        counted: list[tuple[int, _Alike, _Presented]] = []
        rest = np.flatnonzero(left)
        for rows in _grouped(rest, read.alike[place_of[rest]] * len(presented) + shown_by[rest]):
            first = presented[shown_by[rows[0]]]
            alike = await self._alike(read, int(place_of[rows[0]]), first)
            if alike is None:
                for row in rows.tolist():
                    await self._tampered(row, first, read.rows[place_of[row]])
            elif self._counting and alike.counted:
                counted += [(row, alike, first) for row in rows.tolist()]
            else:
                self._settle(rows, place_of[rows], read, alike, first)
        for row, alike, shown in sorted(counted, key=itemgetter(0)):
            self._count(row, read, int(place_of[row]), alike, shown)

    async def write(self) -> list[str]:
        """Write what was decided; the tokens whose records others have changed meanwhile: then nothing is written."""
        event, store = self._notes.event(self._now_ms, Action.DETOKENIZE), self._core.store
        if event is None:
            return []
        if not self._changed:
            return await self._core.write(event, store.append)
        rows = await self._core.runtime.call(self._core.keys.seal_all, list(self._changed.values()))
        return await self._core.write(event, lambda noted: store.replace(rows, noted))

    # What a chunk is read and looked at by.

    def _present(self, transaction: Transaction) -> _Presented:
        masked = safe_id(transaction.id)
        return _Presented(
            transaction,
            self._core.denial(transaction.requestor, Permission.DETOKENIZE),
            masked,
            transaction._could_contain_pan,
        )

    async def _alike(self, read: Read, place: int, presented: _Presented) -> _Alike | None:
        """Decide on items that are alike; None where their rows are none that the library writes."""
        record = read.record(place)
        if record is None:
            return None
        failure: TokenVaultError | None = None
        try:
            restrictions = await self._core.documents.restrictions(record)
        except (ConfigurationError, IntegrityError) as error:
            failure = error
        if failure is not None:
            return _Alike(failure, None)
        transaction = presented.transaction
        expiry = effective_expiry(record, read.card(place))
        decision = decide(record, expiry, restrictions, transaction, self._now_ms)
        if decision.allowed:
            kind, refused = Kind(Outcome.DONE, transaction.requestor), None
        else:
            codes = tuple([violation.code for violation in decision.violations])
            kind = Kind(Outcome.DENIED, transaction.requestor, codes)
            refused = DomainRestrictionError(decision.violations)
        return _Alike(refused, kind, decision, restrictions, restrictions.counted)

    # What comes of items.

    def _deny(self, row: int, presented: _Presented) -> None:
        if presented.denied is not None:
            self._chunk.failures.add(row, presented.denied)
        kind = Kind(Outcome.DENIED, presented.transaction.requestor, ("PERMISSION_DENIED",))
        self._notes.note(row, b"", 0, kind, presented.id)

    def _missing(self, row: int, presented: _Presented, read: Read) -> None:
        unreadable = read.unreadable.get(self._asked.tokens[row])
        self._chunk.failures.add(row, unreadable or TokenNotFoundError("no such token in this vault"))
        if self._counting and unreadable is None:
            kind = Kind(Outcome.NOT_FOUND, presented.transaction.requestor)
            self._notes.note(row, b"", 0, kind, presented.id)

    async def _tampered(self, row: int, presented: _Presented, stored: SealedRecord) -> None:
        failure = IntegrityError(_UNLIKE)
        try:
            await self._core.open(stored)
        except IntegrityError as error:
            failure = error
        self._chunk.failures.add(row, failure)
        if self._counting:  # the reference is noted as the row claims it
            kind = Kind(Outcome.TAMPERED, presented.transaction.requestor)
            self._notes.note(row, stored.reference, 0, kind, presented.id)

    def _settle(self, rows: Rows, places: Rows, read: Read, alike: _Alike, presented: _Presented) -> None:
        """Answer items that are alike; nothing counts."""
        error, kind, name = alike.error, alike.kind, presented.id
        if presented.could_contain_pan and (card := read.card(int(places[0]))) is not None:
            if len(rows) > 1:
                for at in range(len(rows)):
                    self._settle(rows[at : at + 1], places[at : at + 1], read, alike, presented)
                return
            name = safe_id(presented.transaction.id, card.pan)
            if error is None and presented.transaction.contains_pan(card.pan):
                error = InvalidInputError(use.CONTAINS_PAN)
                kind = Kind(Outcome.DENIED, presented.transaction.requestor, (use.CONTAINS_PAN_CODE,))
        if self._counting and kind is not None:
            self._notes.note_many(rows, read.references[places], 0, kind, name)
        if isinstance(self._chunk, DecisionChunk) and alike.decision is not None and error is alike.error:
            self._chunk.put_many(rows, alike.decision)  # what the domains refuse is answered so, and no error
        elif error is not None:
            self._chunk.failures.add_many(rows, error)
        elif isinstance(self._chunk, CardChunk):
            self._chunk.put_many(rows, read.cards.take(places))

    def _count(self, row: int, read: Read, place: int, alike: _Alike, presented: _Presented) -> None:
        """Answer an item whose use counts, after those before it."""
        stored, restrictions = read.rows[place], alike.restrictions
        opened = self._changed.get(stored.token)
        record = read.record(place) if opened is None else opened.record
        card = read.card(place)
        if record is None or restrictions is None:
            raise IntegrityError(_UNLIKE)
        transaction = presented.transaction
        event, counts, refusal = use.judge(Unsealed(record, card), restrictions, transaction, self._now_ms)
        revision = 0
        if counts:
            revision = stored.revision + 1  # one write, however many uses it counts
            usage = record.usage.after(transaction, restrictions.velocity_counters, self._now_ms)
            used = record.used(usage, self._now_ms)._replace(revision=revision)
            self._changed[stored.token] = Unsealed(used, card)
        kind = Kind(event.outcome, event.requestor, event.codes)
        self._notes.note(row, record.reference, revision, kind, event.transaction_id)
        if refusal is not None:
            self._chunk.failures.add(row, refusal)
        elif isinstance(self._chunk, CardChunk) and card is not None:
            self._chunk.put(row, card)


def _grouped(rows: Rows, keys: npt.NDArray[np.int64]) -> list[Rows]:
    """The rows of each key, ascending."""
    order = np.argsort(keys, kind="stable")
    ordered = rows[order]
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    return np.split(ordered, ends) if len(rows) else []
