"""Issuing many tokens: a chunk of cards is prepared, then written at once, with one event.

Each card is answered as `issue` answers it. Columns do what is usual; what is not (a card with several tokens or with
deleted ones, a convergent candidate that is another card's, a space so full that draws collide again and again) is
left to single calls, card by card, after the rest of its chunk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from tokenvault.audit.batch_event import BatchEventBuilder, Kind
from tokenvault.audit.event import Action, Outcome
from tokenvault.columns.arrays import Words
from tokenvault.errors import InvalidInputError, TokenVaultError
from tokenvault.model.domain import Domain
from tokenvault.model.pan import CardExpiry
from tokenvault.model.programs import Making, TokenProgram
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.token_info import info_of
from tokenvault.stores.new_records import Bytes, RecordBatch, split
from tokenvault.vault import issue
from tokenvault.vault.batch.cards import in_token_bins, read_cards
from tokenvault.vault.batch.draw import DRAWS_MAX, LAST4, NewTokens, draw, make
from tokenvault.vault.batch.existing_tokens import find_existing
from tokenvault.vault.batch.results import ISSUED, Rows, TokenInfoResults
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.issue import Order

WRITES_MAX: Final = 3
"""How often convergent tokens are written without those in the way, before all are left to single calls."""

NONE: Final[Rows] = np.empty(0, np.intp)


@attrs.frozen(kw_only=True)
class Terms:
    """What all cards of a batch have in common; attributes as in `issue.Order`."""

    requestor: str
    program: TokenProgram
    domain: Domain
    token_expiry: CardExpiry | None
    assurance: str | None
    active: bool


@attrs.frozen
class _Chunk:
    """A chunk of cards on its way to tokens.

    Attributes:
        core, terms: the vault, and what to issue.
        cards: a row each; without a card where none could be read.
        results: what came of each.
        now_ms: the time, in milliseconds of the Unix epoch.
    """

    core: Core
    terms: Terms
    cards: CardColumns
    results: TokenInfoResults
    now_ms: int

    def order(self, row: int) -> Order:
        """The order of one card."""
        terms = self.terms
        return Order(
            card=self.cards.card(row),
            requestor=terms.requestor,
            program=terms.program.name,
            domain=terms.domain,
            token_expiry=terms.token_expiry,
            assurance=terms.assurance,
            par=None,
            active=terms.active,
        )

    def rows(self) -> Rows:
        """The cards that were not refused so far."""
        return np.flatnonzero(~self.results.failed)

    def blank_tokens(self, rows: Rows, pan_fingerprints: Bytes) -> NewTokens:
        """Tokens for cards, with fresh references and no digits yet."""
        pan_lengths = self.cards.pans.lengths[rows]
        return NewTokens.blank(rows, self.terms.program.format.length, pan_lengths, pan_fingerprints)

    def example(self, row: int) -> Unsealed:
        """A new record as those of all cards: they differ in token, reference, PAN fingerprint and card only."""
        return issue.new(self.order(row), "", b"", b"", self.now_ms)


async def issue_chunk(core: Core, terms: Terms, items: Sequence[object]) -> TokenInfoResults:
    """Issue a token for each card of a chunk: a PAN, or a pair of PAN and expiry."""
    cards, unreadable = read_cards(items)
    chunk = _Chunk(core, terms, cards, TokenInfoResults(len(items)), core.clock.now_ms())
    for row, error in unreadable.items():
        chunk.results.fail(row, error)
    _refuse(chunk)
    rows = chunk.rows()
    if len(rows):
        steps = _issue_random if terms.program.making is Making.RANDOM else _issue_convergent
        await steps(chunk, rows)
    return chunk.results


def _refuse(chunk: _Chunk) -> None:
    """Refuse the cards that `issue` refuses, for the same reason first."""
    core, terms, cards, results = chunk.core, chunk.terms, chunk.cards, chunk.results
    bins = in_token_bins(cards.pans, core.programs.values())
    for row in np.flatnonzero(bins).tolist():
        _fail_if_refused(chunk, row, lambda order: core.refuse_token_as_pan(order.card.pan))
    if terms.domain._could_contain_pan:
        for row in chunk.rows().tolist():
            _fail_if_refused(chunk, row, issue.refuse_mention)
    rows = chunk.rows()
    for month in np.unique(cards.months[rows]).tolist():
        if month and CardExpiry.from_month_number(month).passed(chunk.now_ms):
            results.fail(rows[cards.months[rows] == month], issue.expired("the card"))
    if terms.token_expiry is not None and terms.token_expiry.passed(chunk.now_ms):
        results.fail(chunk.rows(), issue.expired("the token"))


def _fail_if_refused(chunk: _Chunk, row: int, refuse: Callable[[Order], None]) -> None:
    try:
        refuse(chunk.order(row))
    except InvalidInputError as error:
        chunk.results.fail(row, error)


# Random tokens.


async def _issue_random(chunk: _Chunk, rows: Rows) -> None:
    """Draw a token for each card, and write them."""
    pan_fingerprints = await chunk.core.runtime.call(
        chunk.core.keys.pan_fingerprint_many, chunk.cards.take(rows).pans
    )
    written = await _write_random(chunk, chunk.blank_tokens(rows, pan_fingerprints))
    _answer_new(chunk, written)
    await _issue_singly(chunk, np.setdiff1d(rows, written.rows).tolist())


async def _write_random(chunk: _Chunk, new: NewTokens) -> NewTokens:
    """Draw tokens and write them, those that exist already with other digits. Returns those that were written."""
    token_format = chunk.terms.program.format
    repeated = draw(token_format, chunk.cards.take(new.rows).pans, new, np.ones(len(new), np.bool_))
    new = new.take(~repeated)
    new = new.take(np.argsort(new.numbers))  # as databases write them, where all are equally long
    records = await _seal(chunk, new)
    for _ in range(DRAWS_MAX):
        in_the_way = await _write(chunk, new, records, {})
        if not in_the_way:
            return new
        taken, former = new.among(in_the_way), new.numbers.copy()
        repeated = draw(token_format, chunk.cards.take(new.rows).pans, new, taken)
        changed = np.flatnonzero(taken | (new.numbers != former))
        records = records.with_rows(changed, await _seal(chunk, new.take(changed)))
        new, records = new.take(~repeated), records.take(np.flatnonzero(~repeated))
    return new.take(NONE)


# Convergent tokens.


async def _issue_convergent(chunk: _Chunk, rows: Rows) -> None:
    """Issue the token that each card has already, or a new one.

    Of cards that stand in the chunk more than once, the first gets a token, and the others find it in a next round.
    """
    keys = chunk.core.keys
    pan_fingerprints = await chunk.core.runtime.call(keys.pan_fingerprints_many, chunk.cards.pans)
    waiting: list[int] = rows.tolist()
    while waiting:
        waiting = await _issue_round(chunk, waiting, pan_fingerprints)


async def _issue_round(chunk: _Chunk, rows: Sequence[int], pan_fingerprints: Sequence[Bytes]) -> list[int]:
    """Issue convergent tokens, but for rows whose card gets a new one by an earlier row: those are returned."""
    rows_of_cards: dict[bytes, list[int]] = defaultdict(list)
    names = split(pan_fingerprints[0])
    for row in rows:
        rows_of_cards[names[row]].append(row)
    firsts = np.array([same[0] for same in rows_of_cards.values()])
    existing = await find_existing(
        chunk.core,
        chunk.terms.requestor,
        chunk.terms.program.name,
        [column[firsts] for column in pan_fingerprints],
        chunk.cards.take(firsts).pans,
    )
    again: dict[int, Unsealed] = {}
    fresh: list[int] = []
    singly: list[int] = []
    waiting: list[int] = []
    for card, same in enumerate(rows_of_cards.values()):
        if card in existing.unusual:
            singly += same
        elif card in existing.tokens:
            again.update(dict.fromkeys(same, existing.tokens[card]))
        else:
            fresh.append(same[0])
            waiting += same[1:]
    candidates = await _candidates(chunk, np.array(fresh, np.intp), pan_fingerprints[0])
    written = await _write_convergent(chunk, candidates, _as_ordered(chunk, again))
    _answer_new(chunk, written)
    await _issue_singly(chunk, sorted({*singly, *fresh}.difference(written.rows.tolist())))
    return sorted(waiting)


def _as_ordered(chunk: _Chunk, again: Mapping[int, Unsealed]) -> dict[int, Unsealed]:
    """Answer cards that have a token already. Returns those whose token is as ordered; the others fail."""
    found = {}
    for row, token in again.items():
        refused = issue.different(chunk.order(row), token)
        if refused is None:
            found[row] = token
            chunk.results.put(row, info_of(*token))
        else:
            chunk.results.fail(row, refused)
    return found


async def _candidates(chunk: _Chunk, rows: Rows, pan_fingerprints: Bytes) -> NewTokens:
    """The first candidates of cards, but for those that two of them share."""
    core, terms = chunk.core, chunk.terms
    new = chunk.blank_tokens(rows, pan_fingerprints[rows])
    if len(new):
        choices = await core.runtime.call(
            core.keys.convergent_choices, new.pan_fingerprints, terms.requestor, terms.program.name, 0
        )

        def choose(places: Rows, below: int) -> Words:
            return np.array([choices[place] % below for place in places.tolist()], np.uint64)

        make(terms.program.format, chunk.cards.take(rows).pans, new, np.ones(len(new), np.bool_), choose)
    return new.take(~new.repeated())


async def _write_convergent(chunk: _Chunk, new: NewTokens, again: Mapping[int, Unsealed]) -> NewTokens:
    """Write candidates, and the event of all; returns those that were written: others exist already."""
    if len(new):
        records = await _seal(chunk, new)
        for _ in range(WRITES_MAX):
            in_the_way = await _write(chunk, new, records, again)
            if not in_the_way:
                return new
            free = ~new.among(in_the_way)
            new, records = new.take(free), records.take(np.flatnonzero(free))
    none = new.take(NONE)
    await _write(chunk, none, None, again)
    return none


# Both.


async def _seal(chunk: _Chunk, new: NewTokens) -> RecordBatch:
    """The records of new tokens."""
    like = chunk.example(int(new.rows[0])).record
    return await chunk.core.runtime.call(
        chunk.core.keys.seal_many,
        new.tokens,
        new.references,
        new.pan_fingerprints,
        chunk.cards.take(new.rows),
        like,
    )


async def _write(
    chunk: _Chunk, new: NewTokens, records: RecordBatch | None, again: Mapping[int, Unsealed]
) -> list[str]:
    """Write new records and the chunk's event, all or none. Returns the tokens that exist already: then it was none.

    Args:
        chunk: the chunk.
        new: the tokens that are written.
        records: theirs; None where there are none.
        again: the tokens that are issued again, by row.
    """
    core = chunk.core
    done = Kind(Outcome.DONE, chunk.terms.requestor)
    events = BatchEventBuilder(len(chunk.cards.months))
    events.note_many(new.rows, new.references, 1, done)
    for row, token in again.items():
        events.note(row, token.record.reference, 0, done)
    event = events.event(chunk.now_ms, Action.ISSUE)
    if event is None:
        return []
    if records is None:
        return await core.write(event, core.store.append)
    return await core.write(event, lambda noted: core.store.insert(records, noted))


def _answer_new(chunk: _Chunk, written: NewTokens) -> None:
    """Set the results of cards whose new tokens were written."""
    if not len(written):
        return
    rows, cards, terms = written.rows, chunk.cards.take(written.rows), chunk.terms
    issued = np.zeros(len(written), ISSUED)
    issued["token"], issued["length"] = written.numbers, written.lengths
    issued["reference"] = written.references.view("V16").reshape(-1)
    issued["last4"] = cards.pans.values % LAST4
    issued["expiry_month"] = terms.token_expiry.month_number if terms.token_expiry else cards.months
    issued["created_ms"] = issued["updated_ms"] = chunk.now_ms
    issued["revision"] = 1
    chunk.results.issued[rows] = issued
    chunk.results.put_common(rows, info_of(*chunk.example(int(rows[0]))))


async def _issue_singly(chunk: _Chunk, rows: Iterable[int]) -> None:
    """Issue tokens by single calls, one after the other, each with an event of its own."""
    for row in rows:
        try:
            chunk.results.put(row, await issue.issue(chunk.core, chunk.order(row)))
        except TokenVaultError as error:
            chunk.results.fail(row, error)
