"""Issuing many tokens: a chunk of cards is prepared, then written at once, with one event.

Each card is answered as `issue` answers it. Columns do what is usual; what is not (a card with several tokens or with
deleted ones, a convergent candidate that is another card's, a space so full that draws collide again and again) is
left to single calls, card by card, after the rest of its chunk.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

import attrs
import numpy as np

from tokenvault.audit.batch_event import NO_NAME, Kind
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Action, Outcome
from tokenvault.columns.arrays import Words
from tokenvault.errors import InvalidInputError, TokenVaultError
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.model.programs import Making, TokenProgram
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.keyring import KeyRing
from tokenvault.records.record import STATUS_CODES
from tokenvault.records.sealing_columns import NewRecords
from tokenvault.records.token_info import info_of
from tokenvault.stores.new_records import Bytes, RecordBatch, split
from tokenvault.stores.port import LAST4_KEY_BYTES, REFERENCE_BYTES
from tokenvault.vault import issue, orders
from tokenvault.vault.batch.cards import NOTHING, Own, in_token_bins, read_cards
from tokenvault.vault.batch.draw import DRAWS_MAX, LAST4, NONE, among, draw, make, repeated
from tokenvault.vault.batch.existing_tokens import find_existing
from tokenvault.vault.batch.results import Rows, TokenInfoResults, bins_of, token_texts
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.orders import Order, Terms

WRITES_MAX: Final = 3
"""How often convergent tokens are written without those in the way, before all are left to single calls."""


@attrs.define
class _Chunk:
    """A chunk of cards on its way to tokens.

    Attributes:
        cards: a row each; without a card where none could be read.
        results: what came of each. A row has a reference from the start, and its token once that is drawn.
        own: what tokens have of their own, by row; of others nothing.
        now_ms: milliseconds of the Unix epoch.
        name: of the batch, by which the records that are written lead to its event, 16 bytes.
        keys: the vault's when the chunk began.
        pan_fingerprints: of the cards, under the newest key or under each, newest first; set before any is written.
    """

    core: Core
    terms: Terms
    program: TokenProgram
    cards: CardColumns
    results: TokenInfoResults
    own: Mapping[int, Own]
    now_ms: int
    name: bytes
    keys: KeyRing
    pan_fingerprints: Sequence[Bytes] = ()

    def order(self, row: int) -> Order:
        """The order of one card."""
        own, terms = self.own.get(row, NOTHING), self.terms
        return Order(
            card=self.cards.card(row),
            terms=terms._replace(
                domain=own.domain or terms.domain,
                token_expiry=own.token_expiry or terms.token_expiry,
                assurance=own.assurance or terms.assurance,
            ),
            par=own.par,
            customer=own.customer,
            metadata=dict(own.metadata) or None,
            idempotency_key=own.idempotency_key,
        )

    def customer(self, row: int) -> str:
        """Whom a token is for; empty where that is not said."""
        return self.own.get(row, NOTHING).customer or ""

    def rows(self) -> Rows:
        """The cards that were not refused so far."""
        return np.flatnonzero(~self.results.failed)

    def example(self, row: int) -> Unsealed:
        """A new record as those of all cards with the same properties: these differ in token, reference and card."""
        record, card = orders.new(self.order(row), "", b"", b"", self.now_ms)
        return Unsealed(record._replace(batch=self.name), card)

    def references(self, rows: Rows) -> Bytes:
        """The references of rows, shape (rows, 16)."""
        chosen: Bytes = self.results.issued["reference"][rows].view(np.uint8)
        return chosen.reshape(-1, REFERENCE_BYTES)


async def issue_chunk(
    core: Core, terms: Terms, program: TokenProgram, items: Sequence[object]
) -> TokenInfoResults:
    """Issue a token for each card of a chunk: a PAN, or a pair of PAN and expiry."""
    cards, unreadable, own = read_cards(items, program.pans)
    chunk = _Chunk(
        core=core,
        terms=terms,
        program=program,
        cards=cards,
        results=TokenInfoResults(len(items)),
        own=own,
        now_ms=core.clock.now_ms(),
        name=os.urandom(REFERENCE_BYTES),
        keys=core.keys,
    )
    for row, error in unreadable.items():
        chunk.results.fail(row, error)
    _refuse(chunk)
    await _put_domains(chunk)
    # A PAR has to be compared with those of all tokens of its card.
    named = [
        row for row, each in own.items() if (each.idempotency_key or each.par) and chunk.results.answered(row)
    ]
    rows = np.setdiff1d(chunk.rows(), np.array(named, np.intp))
    if len(rows):
        references = os.urandom(len(items) * REFERENCE_BYTES)
        chunk.results.issued["reference"] = np.frombuffer(references, f"V{REFERENCE_BYTES}")
        convergent = chunk.program.making is Making.CONVERGENT
        await (_issue_convergent if convergent else _issue_random)(chunk, rows)
    await _issue_singly(chunk, named)
    return chunk.results


async def _put_domains(chunk: _Chunk) -> None:
    """Keep the domains that tokens have of their own in the database, before the tokens."""
    own = {row: each.domain for row, each in chunk.own.items() if chunk.results.answered(row)}
    for domain in dict.fromkeys(domain for domain in own.values() if domain is not None):
        await chunk.core.documents.put(domain)


def _refuse(chunk: _Chunk) -> None:
    """Refuse the cards that `issue` refuses, for the same reason first."""
    core, terms, cards, results = chunk.core, chunk.terms, chunk.cards, chunk.results
    suspect = in_token_bins(cards.pans, core.parties.known.by_name.values())
    suspect[list(chunk.own)] = True
    suspect &= ~results.failed
    if terms.domain._could_contain_pan:
        suspect |= ~results.failed
    for row in np.flatnonzero(suspect).tolist():
        order = chunk.order(row)
        try:
            core.refuse_token_as_pan(order.card.pan)
            orders.refuse_mention(core, order)
            orders.refuse_expired(order, chunk.program, chunk.now_ms)
        except InvalidInputError as error:
            results.fail(row, error)
    rows = chunk.rows()
    for month in np.unique(cards.months[rows]).tolist():
        same = rows[cards.months[rows] == month]
        try:  # the rest of an order is alike for all
            orders.refuse_expired(Order(chunk.cards.card(int(same[0])), terms), chunk.program, chunk.now_ms)
        except InvalidInputError as error:
            results.fail(same, error)


# Random tokens.


async def _issue_random(chunk: _Chunk, rows: Rows) -> None:
    """Draw a token for each card, and write them."""
    core = chunk.core
    newest = await core.runtime.call(chunk.keys.pan_fingerprint_many, chunk.cards.pans)
    chunk.pan_fingerprints = (newest,)
    written = await _write_random(chunk, rows)
    _answer_new(chunk, written)
    await _issue_singly(chunk, np.setdiff1d(rows, written).tolist())


async def _write_random(chunk: _Chunk, rows: Rows) -> Rows:
    """Draw tokens and write them, those that exist already with other digits. Returns the rows that were written."""
    token_format, pans = chunk.program.format, chunk.cards.pans
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
    rows_of_cards: dict[tuple[bytes, str], list[int]] = defaultdict(list)
    names, per_customer = split(chunk.pan_fingerprints[0]), chunk.program.per_customer
    for row in rows:
        rows_of_cards[names[row], chunk.customer(row) if per_customer else ""].append(row)
    firsts = np.array([same[0] for same in rows_of_cards.values()])
    pan_fingerprints = [column[firsts] for column in chunk.pan_fingerprints]
    customers = [customer for _, customer in rows_of_cards] if per_customer else None
    existing = await find_existing(
        chunk.core, chunk.terms, pan_fingerprints, chunk.cards.take(firsts).pans, customers
    )
    again: dict[int, Unsealed] = {}
    requestor = await chunk.core.parties.requestor(chunk.terms.requestor)
    fresh: list[int] = []
    singly: list[int] = []
    waiting: list[int] = []
    for card, same in enumerate(rows_of_cards.values()):
        token = existing.get(card)
        renewed = token is not None and any(orders.renews(requestor, chunk.order(row), token) for row in same)
        if token is not None and not renewed:
            again.update(dict.fromkeys(await _as_ordered(chunk, same, token), token))
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


async def _as_ordered(chunk: _Chunk, rows: Sequence[int], token: Unsealed) -> list[int]:
    """Answer rows whose card has a token already. Returns those that order it as it is; the others fail."""
    found = []
    info = await chunk.core.info(token)
    for row in rows:
        try:
            orders.refuse_different(chunk.order(row), token)
        except InvalidInputError as error:
            chunk.results.fail(row, error)
        else:
            chunk.results.put(row, token, info)
            found.append(row)
    return found


async def _candidates(chunk: _Chunk, rows: Rows) -> Rows:
    """Give cards their first candidates. Returns the rows whose candidate is no earlier row's."""
    if not len(rows):
        return rows
    core, terms, tokens = chunk.core, chunk.terms, chunk.results.issued
    numbers = await core.runtime.call(
        chunk.keys.convergent_choices,
        chunk.pan_fingerprints[0][rows],
        terms.requestor,
        terms.program,
        [chunk.customer(row) if chunk.program.per_customer else "" for row in rows.tolist()],
        0,
    )
    number_of = dict(zip(rows.tolist(), numbers, strict=True))

    def choose(same: Rows, below: int) -> Words:
        return np.array([number_of[row] % below for row in same.tolist()], np.uint64)

    make(chunk.program.format, chunk.cards.pans, tokens, rows, choose)
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
    keys, terms, listed = chunk.keys, chunk.terms, rows.tolist()
    references = chunk.references(rows)

    def seal() -> RecordBatch:
        bodies: dict[Own, bytes] = {}
        each = []
        for row, reference in zip(listed, split(references), strict=True):
            own = chunk.own.get(row, NOTHING)
            if own.metadata:  # sealed for this token alone
                metadata = keys.seal_metadata(dict(own.metadata), reference)
                each.append(chunk.example(row).record._replace(metadata=metadata).body())
                continue
            alike = own._replace(customer=None)
            if alike not in bodies:
                bodies[alike] = chunk.example(row).record.body()
            each.append(bodies[alike])
        new = NewRecords(
            tokens=token_texts(chunk.results.issued[rows]).tolist(),
            references=references,
            pan_fingerprints=chunk.pan_fingerprints[0][rows],
            requestor=terms.requestor,
            program=terms.program,
            bodies=each,
            customers=[chunk.customer(row) for row in listed],
            last4_keys=_last4_keys(chunk, rows),
            cards=chunk.cards.take(rows),
            status=STATUS_CODES[TokenStatus.ACTIVE if terms.active else TokenStatus.INACTIVE],
            created_ms=chunk.now_ms,
        )
        return keys.seal_new(new)

    return await chunk.core.runtime.call(seal)


def _last4_keys(chunk: _Chunk, rows: Rows) -> Bytes:
    """By what the last four digits of cards find tokens, shape (rows, 16); (rows, 0) where they do not."""
    if not chunk.core.finds_last4:
        return np.zeros((len(rows), 0), np.uint8)
    known = lru_cache(maxsize=None)(lambda last4: chunk.keys.last4_keys(f"{last4:04}")[0])
    keys = [known(last4) for last4 in (chunk.cards.pans.values[rows] % LAST4).tolist()]
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, LAST4_KEY_BYTES)


async def _write(
    chunk: _Chunk, rows: Rows, records: RecordBatch | None, again: Mapping[int, Unsealed]
) -> list[str]:
    """Write the records of rows' new tokens and the event of these and of tokens issued again, all or none.

    Returns the tokens that exist already: then none.
    """
    core = chunk.core
    done = Kind(Outcome.DONE, chunk.terms.requestor, operator=chunk.terms.operator)
    notes = BatchEventBuilder(len(chunk.cards.months), core.trail.ids.kept)
    notes.note_many(rows, chunk.references(rows), 1, done)
    for row, token in again.items():
        notes.note(row, token.record.reference, 0, done)
    event = notes.event(chunk.now_ms, Action.ISSUE, chunk.name if len(rows) else NO_NAME)
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
    issued, cards = chunk.results.issued, chunk.cards
    issued["last4"][rows] = cards.pans.values[rows] % LAST4
    issued["bin"][rows] = bins_of(cards.take(rows).pans)
    issued["card_month"][rows] = cards.months[rows]
    issued["created_ms"][rows] = issued["updated_ms"][rows] = chunk.now_ms
    issued["revision"][rows] = 1
    alike: dict[Own, list[int]] = defaultdict(list)
    for row in rows.tolist():
        alike[chunk.own.get(row, NOTHING)].append(row)
    for own, same in alike.items():
        expiry = own.token_expiry or chunk.terms.token_expiry
        issued["expiry_month"][same] = cards.months[same] if expiry is None else expiry.month_number
        chunk.results.put_common(np.array(same), info_of(*chunk.example(same[0]), dict(own.metadata)))


async def _issue_singly(chunk: _Chunk, rows: Iterable[int]) -> None:
    """Issue tokens by single calls, one after the other, each with an event of its own."""
    for row in rows:
        try:
            token = await issue.issue(chunk.core, chunk.order(row))
            chunk.results.put(row, token, await chunk.core.info(token))
        except TokenVaultError as error:
            chunk.results.fail(row, error)
