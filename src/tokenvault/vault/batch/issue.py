"""Issuing many tokens: a chunk is read, sealed and written at once, with one event.

Each card is answered as `issue` answers it. What is unusual (a card with several tokens or deleted ones, a convergent
candidate that is taken, a space so full that draws collide again and again) is left to single calls, card by card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import attrs
import numpy as np

from tokenvault.audit.batch_event import BatchEventBuilder, Kind
from tokenvault.audit.event import Action, Outcome
from tokenvault.errors import InvalidInputError, TokenVaultError
from tokenvault.model.domain import Domain
from tokenvault.model.pan import CardExpiry
from tokenvault.model.pan_columns import PanColumns
from tokenvault.model.programs import Making, TokenProgram
from tokenvault.records.record_columns import CardColumns
from tokenvault.records.token_info import TokenInfo
from tokenvault.stores.new_records import RecordBatch, split
from tokenvault.vault import issue
from tokenvault.vault.batch import existing_tokens as standing
from tokenvault.vault.batch.cards import read_cards, tokens_among
from tokenvault.vault.batch.draw import DRAWS_MAX, LAST4, Mask, New, Rows, draw, repeated, token_lengths
from tokenvault.vault.batch.results import InfoChunk, card_at
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.issue import Order

WRITES_MAX: Final = 3
"""How often a chunk is written, where tokens turn out to exist, before the rest is left to single calls."""

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Terms:
    """What all cards of a batch have in common; attributes as in `issue.Order`."""

    requestor: str
    program: TokenProgram
    domain: Domain
    token_expiry: CardExpiry | None
    assurance: str | None
    active: bool

    def order(self, cards: CardColumns, row: int) -> Order:
        """The order of one card."""
        return Order(
            card=card_at(cards, row),
            requestor=self.requestor,
            program=self.program.name,
            domain=self.domain,
            token_expiry=self.token_expiry,
            assurance=self.assurance,
            par=None,
            active=self.active,
        )


async def issue_many(core: Core, terms: Terms, items: Sequence[object]) -> InfoChunk:
    """Issue tokens for a chunk of cards."""
    work = Issuing(core, terms, items)
    await work.prepare()
    return await work.finish()


class Issuing:
    """A chunk of cards on its way to tokens: each a PAN, or a pair of PAN and expiry.

    `prepare` asks the key store, and `finish` writes.

    Args:
        core, terms, items: what to issue.

    Attributes:
        chunk: the outcomes.
    """

    def __init__(self, core: Core, terms: Terms, items: Sequence[object]) -> None:
        self._core = core
        self._terms = terms
        self._ready: tuple[New, RecordBatch] | None = None
        self._now_ms = core.clock.now_ms()
        self.chunk = InfoChunk(len(items))
        self._cards, refused = read_cards(items)
        for row, error in refused.items():
            self._fail(row, error)
        self._alone: set[int] = set()
        self._again: dict[
            int, Unsealed | int
        ] = {}  # by row: the token that stands, or the row that gets it first
        self._firsts: dict[int, list[int]] = {}  # the rows of one card, by the first of them

    async def prepare(self) -> None:
        """Refuse what `issue` refuses; draw random tokens and seal them."""
        self._refuse()
        rows = np.flatnonzero(self._cards.pans.lengths)
        if rows.size and self._terms.program.making is Making.RANDOM:
            await self._prepare(rows)

    async def _prepare(self, rows: Rows) -> None:
        pans, token_format = self._cards.take(rows).pans, self._terms.program.format
        pan_fingerprints = await self._core.runtime.call(self._core.keys.account_many, pans)
        fresh = New.of(rows, token_lengths(token_format, pans), pan_fingerprints)
        stuck = draw(token_format, self._cards, fresh, np.ones(len(rows), np.bool_))
        self._leave(fresh.rows[stuck])
        fresh = fresh.take(~stuck)
        fresh = fresh.take(np.argsort(fresh.numbers))  # as databases write them, where all are equally long
        if len(fresh.rows):
            self._ready = fresh, await self._sealed(fresh)

    async def finish(self) -> InfoChunk:
        """Write what is prepared, or the cards' convergent tokens. Returns the outcomes."""
        rows = np.flatnonzero(self._cards.pans.lengths)
        if self._ready is not None:
            fresh, batch = self._ready
            self._ready = None
            await self._write(fresh, np.zeros(len(fresh.rows), np.bool_), batch)
        elif rows.size and self._terms.program.making is Making.CONVERGENT:
            await self._write(*await self._converge(rows, self._cards.take(rows).pans), None)
        for row in sorted(self._alone):
            await self._single(row)
        return self.chunk

    def _fail(self, row: int, error: TokenVaultError) -> None:
        self.chunk.failures.add(row, error)
        self._cards.pans.values[row] = self._cards.pans.lengths[row] = 0

    def _refuse(self) -> None:
        """Refuse what `issue` refuses."""
        pans, terms = self._cards.pans, self._terms
        for row in np.flatnonzero(tokens_among(pans, self._core.programs.values())).tolist():
            refused = _raised(self._core.refuse_token_as_pan, card_at(self._cards, row).pan)
            if refused is not None:
                self._fail(row, refused)
        if terms.domain.could_contain_pan:
            for row in np.flatnonzero(pans.lengths).tolist():
                refused = _raised(issue.refuse_mention, terms.order(self._cards, row))
                if refused is not None:
                    self._fail(row, refused)
        passed = [
            month
            for month in np.unique(self._cards.months).tolist()
            if month and CardExpiry.from_month_number(month).passed(self._now_ms)
        ]
        if passed:
            for row in np.flatnonzero(np.isin(self._cards.months, passed) & (pans.lengths > 0)).tolist():
                self._fail(row, issue.expired("the card"))
        if terms.token_expiry is not None and terms.token_expiry.passed(self._now_ms):
            for row in np.flatnonzero(pans.lengths).tolist():
                self._fail(row, issue.expired("the token"))

    # Which tokens.

    async def _drawn_again(self, fresh: New, drawing: Mask) -> Mask:
        """Draw for some rows until the database has none of the tokens. Returns which are still without one."""
        for _ in range(DRAWS_MAX):
            before = fresh.numbers.copy()
            stuck = draw(self._terms.program.format, self._cards, fresh, drawing)
            asked = (drawing | (fresh.numbers != before)) & ~stuck
            drawing = stuck
            drawing[asked] = await self._taken(fresh.take(asked))
            if not drawing.any():
                break
        return drawing

    async def _taken(self, fresh: New) -> Mask:
        """Which tokens the database has."""
        tokens = [token.decode("ascii") for token in fresh.tokens]
        rows = await self._core.store.get(tokens) if tokens else ()
        there = {row.token for row in rows}
        return np.array([token in there for token in tokens], np.bool_)

    async def _converge(self, rows: Rows, pans: PanColumns) -> tuple[New, Mask]:
        """The first candidates of cards that have no token yet; those that have one are noted in `_again`."""
        core, terms = self._core, self._terms
        pan_fingerprints = await core.runtime.call(core.keys.accounts_many, pans)
        names = np.ascontiguousarray(pan_fingerprints[0]).view("V16").reshape(-1)
        _, firsts, first_of = np.unique(names, return_index=True, return_inverse=True)
        for row, first in zip(rows.tolist(), rows[firsts[first_of.reshape(-1)]].tolist(), strict=True):
            self._firsts.setdefault(first, []).append(row)
        firsts.sort()
        found = await standing.look_up(
            core,
            terms.requestor,
            terms.program.name,
            [column[firsts] for column in pan_fingerprints],
            PanColumns(pans.values[firsts], pans.lengths[firsts]),
        )
        free: Mask = np.ones(len(firsts), np.bool_)
        for at in found.unusual:
            free[at] = False
            self._alone.update(self._firsts[int(rows[firsts[at]])])
        for at, opened in found.tokens.items():
            free[at] = False
            for row in self._firsts[int(rows[firsts[at]])]:
                self._stand(row, opened)
        firsts = firsts[free]
        chosen = PanColumns(pans.values[firsts], pans.lengths[firsts])
        fresh = New.of(rows[firsts], token_lengths(terms.program.format, chosen), pan_fingerprints[0][firsts])
        drawn = await core.runtime.call(
            core.keys.convergent_choices, fresh.pan_fingerprints, terms.requestor, terms.program.name, 0
        )
        for length in np.unique(chosen.lengths).tolist():
            places = np.flatnonzero(chosen.lengths == length)
            ways = terms.program.format.choices(length)
            choices = np.array([drawn[place] % ways for place in places.tolist()], np.uint64)
            last4 = chosen.values[places] % LAST4
            fresh.numbers[places] = terms.program.format.make_many(choices, length, last4)
        for first in fresh.rows.tolist():
            for row in self._firsts[first][1:]:
                self._again[row] = first
        return fresh, repeated(fresh)

    def _stand(self, row: int, opened: Unsealed) -> None:
        refused = issue.different(self._terms.order(self._cards, row), opened)
        if refused is None:
            self._again[row] = opened
        else:
            self._fail(row, refused)

    # Writing.

    async def _write(self, fresh: New, stuck: Mask, batch: RecordBatch | None) -> None:
        """Write new tokens and their event, all or none; where tokens are in the way, without or with others.

        With their records, where they are sealed already.
        """
        drawn = batch is not None
        changed = np.full(len(fresh.rows), not drawn, np.bool_)
        for attempt in range(WRITES_MAX + 1):
            if attempt == WRITES_MAX:
                stuck[:] = True
            if stuck.any():
                self._leave(fresh.rows[stuck])
                fresh, changed = fresh.take(~stuck), changed[~stuck]
                batch = None if batch is None else batch.take(np.flatnonzero(~stuck))
            if len(fresh.rows) and (batch is None or changed.any()):
                sealed = await self._sealed(fresh if batch is None else fresh.take(changed))
                batch = sealed if batch is None else batch.with_rows(np.flatnonzero(changed), sealed)
            in_the_way = await self._insert(fresh, batch)
            if not in_the_way:
                break
            taken = set(in_the_way)
            changed = np.array([token.decode("ascii") in taken for token in fresh.tokens], np.bool_)
            if drawn:
                before = fresh.numbers.copy()
                stuck = await self._drawn_again(fresh, changed)
                changed = fresh.numbers != before
            else:
                stuck = changed
        self._answer(fresh)

    def _leave(self, rows: Rows) -> None:
        """Leave cards to single calls, wherever they stand in the chunk."""
        for first in rows.tolist():
            for row in self._firsts.get(first, (first,)):
                self._again.pop(row, None)
                self._alone.add(row)

    async def _sealed(self, fresh: New) -> RecordBatch:
        """Records of new tokens."""
        cards, tokens = self._cards.take(fresh.rows), fresh.tokens
        like = issue.new(self._terms.order(cards, 0), tokens[0].decode("ascii"), b"", b"", self._now_ms)
        return await self._core.runtime.call(
            self._core.keys.seal_many, tokens, fresh.references, fresh.pan_fingerprints, cards, like.record
        )

    async def _insert(self, fresh: New, batch: RecordBatch | None) -> list[str]:
        events = BatchEventBuilder(len(self.chunk.failures))
        done = Kind(Outcome.DONE, self._terms.requestor)
        events.note_many(fresh.rows, fresh.references, 1, done)
        named = dict(zip(fresh.rows.tolist(), split(fresh.references), strict=True)) if self._again else {}
        for row, source in self._again.items():
            if isinstance(source, Unsealed):
                events.note(row, source.record.reference, 0, done)
            elif not self._differs(row, source):
                events.note(row, named[source], 0, done)
        event, store = events.event(self._now_ms, Action.ISSUE), self._core.store
        if event is None:
            return []
        if batch is None or not len(batch):
            return await self._core.write(event, store.append)
        return await self._core.write(event, lambda noted: store.insert(batch, noted))

    def _differs(self, row: int, first: int) -> bool:
        """Whether a card stands in the chunk before with another expiry: all else is the same in a batch."""
        month = self._cards.months[row]
        return bool(month and month != self._cards.months[first])

    # Answers.

    def _answer(self, fresh: New) -> None:
        """Set the outcomes of what was written."""
        chunk, cards, terms = self.chunk, self._cards, self._terms
        rows = fresh.rows
        if len(rows):
            chunk.numbers[rows], chunk.lengths[rows] = fresh.numbers, fresh.lengths
            chunk.references[rows] = fresh.references
            chunk.last4[rows] = cards.pans.values[rows] % LAST4
            month = terms.token_expiry.month_number if terms.token_expiry else 0
            chunk.months[rows] = month or cards.months[rows]
            chunk.created_ms[rows] = chunk.updated_ms[rows] = self._now_ms
            chunk.revisions[rows] = 1
            chunk.common(rows, TokenInfo.of(*self._opened(fresh, 0)))
        places = {row: place for place, row in enumerate(rows.tolist())} if self._again else {}
        for row, source in self._again.items():
            if isinstance(source, Unsealed):
                chunk.put(row, TokenInfo.of(*source))
            elif self._differs(row, source):
                refused = issue.different(terms.order(cards, row), self._opened(fresh, places[source]))
                if refused is not None:
                    self._fail(row, refused)
            else:
                chunk.copy(row, source)

    def _opened(self, fresh: New, place: int) -> Unsealed:
        one = fresh.take(np.arange(len(fresh.rows)) == place)
        order = self._terms.order(self._cards, int(one.rows[0]))
        token, reference, pan_fingerprint = (
            one.tokens[0],
            one.references.tobytes(),
            one.pan_fingerprints.tobytes(),
        )
        return issue.new(order, token.decode("ascii"), reference, pan_fingerprint, self._now_ms)

    async def _single(self, row: int) -> None:
        failure: TokenVaultError | None = None
        try:
            self.chunk.put(row, await issue.issue(self._core, self._terms.order(self._cards, row)))
        except TokenVaultError as error:
            failure = error
        if failure is not None:
            self._fail(row, failure)


def _raised(refuse: Callable[[T], None], value: T) -> InvalidInputError | None:
    try:
        refuse(value)
    except InvalidInputError as error:
        return error
    return None
