"""Issuing many tokens: a chunk of cards is prepared, then written at once, with one event.

Each card is answered as `issue` answers it. Columns do what is usual; what is not (a card with several tokens or with
deleted ones, a convergent candidate that is another card's, a space so full that draws collide again and again) is
left to single calls, card by card, after the rest of its chunk.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from tokenvault.audit.batch_event import BatchEventBuilder, Kind
from tokenvault.audit.event import Action, Outcome
from tokenvault.columns.arrays import Words
from tokenvault.errors import InvalidInputError, TokenVaultError
from tokenvault.model.pan import CardExpiry
from tokenvault.model.programs import Making
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.keyring import KeyRing
from tokenvault.records.token_info import info_of
from tokenvault.stores.new_records import Bytes, RecordBatch, split
from tokenvault.stores.port import REFERENCE_BYTES
from tokenvault.vault import issue
from tokenvault.vault.batch.cards import in_token_bins, read_cards
from tokenvault.vault.batch.draw import DRAWS_MAX, LAST4, NONE, among, draw, make, repeated
from tokenvault.vault.batch.existing_tokens import find_existing
from tokenvault.vault.batch.results import Rows, TokenInfoResults, token_texts
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.issue import Order, Terms

WRITES_MAX: Final = 3
"""How often convergent tokens are written without those in the way, before all are left to single calls."""


@attrs.define
class _Chunk:
    """A chunk of cards on its way to tokens.

    Attributes:
        cards: a row each; without a card where none could be read.
        results: what came of each. A row has a reference from the start, and its token once that is drawn.
        now_ms: milliseconds of the Unix epoch.
        keys: the vault's when the chunk began.
        pan_fingerprints: of the cards, under the newest key or under each, newest first; set before any is written.
    """

    core: Core
    terms: Terms
    cards: CardColumns
    results: TokenInfoResults
    now_ms: int
    keys: KeyRing
    pan_fingerprints: Sequence[Bytes] = ()

    def order(self, row: int) -> Order:
        """The order of one card."""
        return Order(self.cards.card(row), self.terms)

    def rows(self) -> Rows:
        """The cards that were not refused so far."""
        return np.flatnonzero(~self.results.failed)

    def example(self, row: int) -> Unsealed:
        """A new record as those of all cards: they differ in token, reference, PAN fingerprint and card only."""
        return issue.new(self.order(row), "", b"", b"", self.now_ms)

    def references(self, rows: Rows) -> Bytes:
        """The references of rows, shape (rows, 16)."""
        chosen: Bytes = self.results.issued["reference"][rows].view(np.uint8)
        return chosen.reshape(-1, REFERENCE_BYTES)


async def issue_chunk(core: Core, terms: Terms, items: Sequence[object]) -> TokenInfoResults:
    """Issue a token for each card of a chunk: a PAN, or a pair of PAN and expiry."""
    cards, unreadable = read_cards(items)
    chunk = _Chunk(core, terms, cards, TokenInfoResults(len(items)), core.clock.now_ms(), core.keys)
    for row, error in unreadable.items():
        chunk.results.fail(row, error)
    _refuse(chunk)
    rows = chunk.rows()
    if len(rows):
        references = os.urandom(len(items) * REFERENCE_BYTES)
        chunk.results.issued["reference"] = np.frombuffer(references, f"V{REFERENCE_BYTES}")
        convergent = core.programs[terms.program].making is Making.CONVERGENT
        await (_issue_convergent if convergent else _issue_random)(chunk, rows)
    return chunk.results


def _refuse(chunk: _Chunk) -> None:
    """Refuse the cards that `issue` refuses, for the same reason first."""
    core, terms, cards, results = chunk.core, chunk.terms, chunk.cards, chunk.results
    suspect = in_token_bins(cards.pans, core.programs.values())
    if terms.domain._could_contain_pan:
        suspect |= ~results.failed
    for row in np.flatnonzero(suspect).tolist():
        order = chunk.order(row)
        try:
            core.refuse_token_as_pan(order.card.pan)
            issue.refuse_mention(order)
        except InvalidInputError as error:
            results.fail(row, error)
    rows = chunk.rows()
    for month in np.unique(cards.months[rows]).tolist():
        if month and CardExpiry.from_month_number(month).passed(chunk.now_ms):
            results.fail(rows[cards.months[rows] == month], issue.expired("the card"))
    if terms.token_expiry is not None and terms.token_expiry.passed(chunk.now_ms):
        results.fail(chunk.rows(), issue.expired("the token"))


# Random tokens.


async def _issue_random(chunk: _Chunk, rows: Rows) -> None:
    """Draw a token for each card, and write them."""
    core = chunk.core
    newest = await core.runtime.call(core.keys.pan_fingerprint_many, chunk.cards.pans)
    chunk.pan_fingerprints = (newest,)
    written = await _write_random(chunk, rows)
    _answer_new(chunk, written)
    await _issue_singly(chunk, np.setdiff1d(rows, written).tolist())


async def _write_random(chunk: _Chunk, rows: Rows) -> Rows:
    """Draw tokens and write them, those that exist already with other digits. Returns the rows that were written."""
    token_format, pans = chunk.core.programs[chunk.terms.program].format, chunk.cards.pans
    tokens = chunk.results.issued
    rows = np.setdiff1d(rows, draw(token_format, pans, tokens, rows, rows))
    rows = rows[np.argsort(tokens["token"][rows])]  # as databases write them, where all are equally long
    records = await _seal(chunk, rows)
    for _ in range(DRAWS_MAX):
        in_the_way = await _write(chunk, rows, records, {})
        if not in_the_way:
            return rows
        taken, former = among(tokens[rows], in_the_way), tokens["token"][rows]
        unwritten = draw(token_format, pans, tokens, rows, rows[taken])
        changed = np.flatnonzero(taken | (tokens["token"][rows] != former))
        records = records.with_rows(changed, await _seal(chunk, rows[changed]))
        kept = np.flatnonzero(~np.isin(rows, unwritten))
        rows, records = rows[kept], records.take(kept)
    return NONE


# Convergent tokens.


async def _issue_convergent(chunk: _Chunk, rows: Rows) -> None:
    """Issue the token that each card has already, or a new one.

    Of cards that stand in the chunk more than once, the first gets a token, and the others find it in a next round.
    """
    core = chunk.core
    chunk.pan_fingerprints = await core.runtime.call(chunk.keys.pan_fingerprints_many, chunk.cards.pans)
    waiting: list[int] = rows.tolist()
    while waiting:
        waiting = await _issue_round(chunk, waiting)


async def _issue_round(chunk: _Chunk, rows: Sequence[int]) -> list[int]:
    """Issue convergent tokens, but for rows whose card gets a new one by an earlier row: those are returned."""
    await chunk.core.key_versions.settle()
    rows_of_cards: dict[bytes, list[int]] = defaultdict(list)
    names = split(chunk.pan_fingerprints[0])
    for row in rows:
        rows_of_cards[names[row]].append(row)
    firsts = np.array([same[0] for same in rows_of_cards.values()])
    pan_fingerprints = [column[firsts] for column in chunk.pan_fingerprints]
    existing = await find_existing(chunk.core, chunk.terms, pan_fingerprints, chunk.cards.take(firsts).pans)
    again: dict[int, Unsealed] = {}
    fresh: list[int] = []
    singly: list[int] = []
    waiting: list[int] = []
    for card, same in enumerate(rows_of_cards.values()):
        token = existing.get(card)
        if token is not None:
            again.update(dict.fromkeys(_as_ordered(chunk, same, token), token))
        elif card in existing:
            singly += same
        else:
            fresh.append(same[0])
            waiting += same[1:]
    candidates = await _candidates(chunk, np.array(fresh, np.intp))
    written = await _write_convergent(chunk, candidates, again)
    _answer_new(chunk, written)
    await _issue_singly(chunk, sorted({*singly, *fresh}.difference(written.tolist())))
    return sorted(waiting)


def _as_ordered(chunk: _Chunk, rows: Sequence[int], token: Unsealed) -> list[int]:
    """Answer rows whose card has a token already. Returns those that order it as it is; the others fail."""
    found = []
    for row in rows:
        try:
            issue.refuse_different(chunk.order(row), token)
        except InvalidInputError as error:
            chunk.results.fail(row, error)
        else:
            chunk.results.put(row, token)
            found.append(row)
    return found


async def _candidates(chunk: _Chunk, rows: Rows) -> Rows:
    """Give cards their first candidates. Returns the rows whose candidate is no earlier row's."""
    if not len(rows):
        return rows
    core, terms, tokens = chunk.core, chunk.terms, chunk.results.issued
    numbers = await core.runtime.call(
        chunk.keys.convergent_choices, chunk.pan_fingerprints[0][rows], terms.requestor, terms.program, 0
    )
    number_of = dict(zip(rows.tolist(), numbers, strict=True))

    def choose(same: Rows, below: int) -> Words:
        return np.array([number_of[row] % below for row in same.tolist()], np.uint64)

    make(core.programs[terms.program].format, chunk.cards.pans, tokens, rows, choose)
    return np.setdiff1d(rows, repeated(tokens, rows))


async def _write_convergent(chunk: _Chunk, rows: Rows, again: Mapping[int, Unsealed]) -> Rows:
    """Write candidates, and the event of all; returns the rows that were written: other tokens exist already."""
    if len(rows) and await chunk.core.rekeyed(chunk.keys):
        rows = NONE  # single calls derive them anew
    records = await _seal(chunk, rows) if len(rows) else None
    for _ in range(WRITES_MAX):
        in_the_way = await _write(chunk, rows, records, again)
        if records is None or not in_the_way:
            return rows
        free = np.flatnonzero(~among(chunk.results.issued[rows], in_the_way))
        rows, records = rows[free], records.take(free)
    await _write(chunk, NONE, None, again)
    return NONE


# Random and convergent tokens.


async def _seal(chunk: _Chunk, rows: Rows) -> RecordBatch:
    """The records of new tokens."""
    return await chunk.core.runtime.call(
        chunk.core.keys.seal_many,
        token_texts(chunk.results.issued[rows]).tolist(),
        chunk.references(rows),
        chunk.pan_fingerprints[0][rows],
        chunk.cards.take(rows),
        chunk.example(int(rows[0])).record,
    )


async def _write(
    chunk: _Chunk, rows: Rows, records: RecordBatch | None, again: Mapping[int, Unsealed]
) -> list[str]:
    """Write the records of rows' new tokens and the event of these and of tokens issued again, all or none.

    Returns the tokens that exist already: then none.
    """
    core = chunk.core
    done = Kind(Outcome.DONE, chunk.terms.requestor)
    notes = BatchEventBuilder(len(chunk.cards.months))
    notes.note_many(rows, chunk.references(rows), 1, done)
    for row, token in again.items():
        notes.note(row, token.record.reference, 0, done)
    event = notes.event(chunk.now_ms, Action.ISSUE)
    if event is None:
        return []
    if records is None:
        await core.trail.note(event)
        return []
    return await core.trail.write(
        event, lambda: records, lambda events, sealed: core.store.insert(sealed, events)
    )


def _answer_new(chunk: _Chunk, rows: Rows) -> None:
    """Set the results of cards whose new tokens were written."""
    if not len(rows):
        return
    issued, cards, expiry = chunk.results.issued, chunk.cards, chunk.terms.token_expiry
    issued["last4"][rows] = cards.pans.values[rows] % LAST4
    issued["expiry_month"][rows] = cards.months[rows] if expiry is None else expiry.month_number
    issued["created_ms"][rows] = issued["updated_ms"][rows] = chunk.now_ms
    issued["revision"][rows] = 1
    chunk.results.put_common(rows, info_of(*chunk.example(int(rows[0]))))


async def _issue_singly(chunk: _Chunk, rows: Iterable[int]) -> None:
    """Issue tokens by single calls, one after the other, each with an event of its own."""
    for row in rows:
        try:
            chunk.results.put(row, await issue.issue(chunk.core, chunk.order(row)))
        except TokenVaultError as error:
            chunk.results.fail(row, error)
