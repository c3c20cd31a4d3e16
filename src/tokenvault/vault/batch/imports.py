"""Importing tokens with given values, from another vault or a vendor: a chunk is read, checked, and written at once.

A token that is there already is the row's own where its card, requestor and program are the row's: so an import that
ended early is done again from the start, or from any row. Where it is another card's, the row fails.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypedDict

import attrs
import numpy as np

from tokenvault.audit.batch_event import NO_NAME, Kind
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Action, Outcome
from tokenvault.errors import ConflictError, InvalidInputError, PermissionDeniedError, TokenVaultError
from tokenvault.model import checks
from tokenvault.model.domain import Domain
from tokenvault.model.pan import Card, CardExpiry, Pan, read_pan
from tokenvault.model.programs import Making, TokenProgram
from tokenvault.records.card_columns import CardColumns
from tokenvault.records.portable import read_state
from tokenvault.records.record import TokenRecord
from tokenvault.stores.new_records import split
from tokenvault.stores.port import REFERENCE_BYTES
from tokenvault.vault import arguments, issue, orders
from tokenvault.vault.batch.existing_tokens import find_existing
from tokenvault.vault.batch.read import read
from tokenvault.vault.batch.results import TokenInfoResults
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.orders import Order, Terms

WRITES_MAX: Final = 4
"""How often a chunk is written without the tokens that are there already: others import beside it."""

IMPORTED: Final = "IMPORTED"
TAKEN: Final = "TOKEN_TAKEN"


class TokenToImport(TypedDict, total=False):
    """A token of `import_tokens`, with its value and its card; each is as of `issue`. `token` and `pan` are required.

    `requestor`, `program` and `domain` are, unset, those of all rows. `reference` and `state` come from another vault
    of this library: the token keeps its reference; and by its state its status, counters, times, token expiry,
    assurance and PAR, whatever else a row names of those.
    """

    token: str
    pan: str | Pan
    expiry: str | CardExpiry | None
    requestor: str | None
    program: str | None
    domain: Domain | None
    token_expiry: str | CardExpiry | None
    assurance: str | None
    par: str | None
    customer: str | None
    metadata: Mapping[str, str] | None
    reference: str | None
    state: str | None


@attrs.frozen
class Importing:
    """What all rows of an import have in common, and which of their requestors may have tokens of which programs.

    Attributes:
        requestor, program, domain: of rows that name none.
        active: whether tokens without a state are active.
        operator: the person behind the import.
    """

    requestor: str | None
    program: str | None
    domain: Domain
    active: bool
    operator: str | None
    _permitted: dict[tuple[str, str, bool], TokenProgram | TokenVaultError] = attrs.field(
        factory=dict, init=False
    )

    async def permitted(self, core: Core, terms: Terms, *, issued_before: bool) -> TokenProgram:
        """The program of a row. Raises PermissionDeniedError, which is noted once for all rows, InvalidInputError."""
        key = terms.requestor, terms.program, issued_before
        found = self._permitted.get(key)
        if found is None:
            try:
                found = await orders.importable_program(core, terms, issued_before=issued_before)
            except (InvalidInputError, PermissionDeniedError) as error:
                found = error
            self._permitted[key] = found
        if isinstance(found, TokenVaultError):
            raise found
        return found


class _Row(NamedTuple):
    """A row that was read: what to write for it, without fingerprint and seal."""

    order: Order
    program: TokenProgram
    record: TokenRecord
    domain: Domain
    has_state: bool

    @property
    def scope(self) -> tuple[str, str]:
        return self.record.requestor, self.record.program


async def import_chunk(core: Core, common: Importing, items: Sequence[object]) -> TokenInfoResults:
    """Write the tokens of a chunk; of each row its TokenInfo or an error."""
    results, rows = TokenInfoResults(len(items)), dict[int, _Row]()
    notes, now_ms = BatchEventBuilder(len(items), core.trail.ids.kept), core.clock.now_ms()
    seen: set[str | bytes] = set()
    pars: dict[tuple[str, Pan], str] = {}
    for number, item in enumerate(items):
        try:
            row = await _read(core, common, item, now_ms)
            names: set[str | bytes] = {row.record.token, row.record.reference}
            if seen & names:
                raise _taken("a row before has this token or reference")
            par = row.record.par
            if par is not None:
                known = pars.setdefault((row.record.requestor, row.order.card.pan), par)
                if par != known and not row.has_state:
                    raise orders.other_par()
            seen |= names
            rows[number] = row
        except (InvalidInputError, PermissionDeniedError) as error:
            results.fail(number, error)
    new = await _with_keys(core, rows, results)
    for domain in {row.domain.digest: row.domain for row in rows.values()}.values():
        await core.documents.put(domain)
    await _write(core, common, rows, new, results, notes)
    return results


# Reading.


async def _read(core: Core, common: Importing, item: object, now_ms: int) -> _Row:
    """A row as it is to be written. Raises InvalidInputError, PermissionDeniedError."""
    problem = "a row is a TokenToImport: a mapping with some of its keys"
    fields = checks.mapping(problem, item)
    if not fields.keys() <= TokenToImport.__annotations__.keys():
        raise InvalidInputError(problem)
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    token = checks.token(given.get("token"))
    domain = given.get("domain")
    terms = Terms(
        requestor=checks.requestor_id("requestor", given.get("requestor", common.requestor)),
        program=checks.text("program", given.get("program", common.program)),
        domain=common.domain if domain is None else arguments.own_domain(domain),
        token_expiry=arguments.optional_expiry(given.get("token_expiry")),
        assurance=checks.assurance("assurance", given["assurance"]) if "assurance" in given else None,
        active=common.active,
        accept_expired=True,
        operator=common.operator,
    )
    program = await common.permitted(core, terms, issued_before="state" in given)
    pan = read_pan(given.get("pan", ""), program.pans)
    core.refuse_token_as_pan(pan)
    if not program.format.matches(token, len(pan), pan.last4):
        raise InvalidInputError(
            "the token is not one of the program's format: its BIN, length, check digit or last four digits differ",
            code="TOKEN_FORMAT_DIFFERS",
        )
    order = Order(
        card=Card(pan, arguments.optional_expiry(given.get("expiry"))),
        terms=terms,
        par=checks.par(given["par"]) if "par" in given else None,
        customer=arguments.optional_text("customer", given.get("customer")),
        metadata=arguments.metadata(given.get("metadata")),
    )
    if order.par is not None and "state" not in given:
        await issue.refuse_other_par(core, order)
    reference = await _reference(core, token, given.get("reference"))
    record = orders.new(order, token, reference, bytes(16), now_ms).record
    if "state" in given:
        record = read_state(given["state"], record)
    orders.refuse_mention(core, order._replace(par=record.par))
    return _Row(order, program, record, terms.domain, "state" in given)


async def _reference(core: Core, token: str, given: object) -> bytes:
    """The reference of a row, given or new. Raises InvalidInputError where another token has it."""
    if given is None:
        return os.urandom(REFERENCE_BYTES)
    reference = arguments.token_or_reference(given) if isinstance(given, str) else b""
    if not isinstance(reference, bytes) or not any(reference):
        raise InvalidInputError("reference is 32 hexadecimal digits")
    other = await core.store.by_reference(reference)
    if other is not None and other.token != token:
        raise _taken("another token has this reference")
    return reference


async def _with_keys(core: Core, rows: dict[int, _Row], results: TokenInfoResults) -> dict[int, Unsealed]:
    """The records of rows, with what the keys make for them. A card that has a convergent token fails."""
    numbers = list(rows)
    cards = CardColumns.of([rows[number].order.card for number in numbers])
    fingerprints = await core.runtime.call(core.keys.pan_fingerprints_many, cards.pans)
    newest = split(fingerprints[0])
    await _refuse_converged(core, rows, cards, fingerprints, results)
    new: dict[int, Unsealed] = {}
    for place, number in enumerate(numbers):
        if results.answered(number):
            row = rows[number]
            record = row.record._replace(pan_fingerprint=newest[place])
            new[number] = await issue.with_properties(core, row.order, Unsealed(record, row.order.card))
    return new


async def _refuse_converged(
    core: Core,
    rows: dict[int, _Row],
    cards: CardColumns,
    fingerprints: Sequence[Any],
    results: TokenInfoResults,
) -> None:
    """Fail the rows whose card has another token already, or in a row before, where a program has one for a card."""
    groups: dict[tuple[str, str], dict[tuple[str, str], tuple[int, int]]] = defaultdict(dict)
    for place, (number, row) in enumerate(rows.items()):
        if row.program.making is not Making.CONVERGENT or row.has_state:
            continue
        customer = row.order.customer or "" if row.program.per_customer else ""
        first = groups[row.scope].setdefault((row.order.card.pan.reveal(), customer), (number, place))
        if first != (number, place):
            results.fail(number, _card_has_another())
    for same in groups.values():
        numbers, places = (np.array(part, np.intp) for part in zip(*same.values(), strict=True))
        order, program, *_ = rows[int(numbers[0])]
        customers = [customer for _, customer in same] if program.per_customer else None
        found = await find_existing(
            core,
            order.terms,
            [column[places] for column in fingerprints],
            cards.take(places).pans,
            customers,
        )
        for card, token in found.items():
            row = rows[int(numbers[card])]
            if token is None:
                other = await _live_token(core, row)
            else:
                other = token.record.token
            if other not in (None, row.record.token):
                results.fail(int(numbers[card]), _card_has_another())


async def _live_token(core: Core, row: _Row) -> str | None:
    """The token that a card has, the row's own before any other: a card update may have merged two cards."""
    pan, customer = row.order.card.pan, row.order.customer or ""
    pan_fingerprints = await core.runtime.call(core.keys.pan_fingerprints, pan)
    live = {
        record.token
        async for record, card in core.of_card(pan_fingerprints, *row.scope)
        if card is not None
        and card.pan == pan
        and not record.source
        and (not row.program.per_customer or record.customer == customer)
    }
    return row.record.token if row.record.token in live else min(live, default=None)


# Writing.


async def _write(
    core: Core,
    common: Importing,
    rows: dict[int, _Row],
    new: dict[int, Unsealed],
    results: TokenInfoResults,
    notes: BatchEventBuilder,
) -> None:
    """Write the records that are not there yet, with one event; answer every row, none without that event."""
    every = np.array(list(new), np.intp)
    for _ in range(WRITES_MAX):
        name = os.urandom(REFERENCE_BYTES)
        batch = {
            number: Unsealed(record._replace(batch=name), card) for number, (record, card) in new.items()
        }
        for number, (record, _) in batch.items():
            notes.note(number, record.reference, 1, _kind(Outcome.DONE, rows[number], common, IMPORTED))
        in_the_way = await _write_once(core, batch, notes, name)
        if not in_the_way:
            for number, unsealed in batch.items():
                results.put(number, unsealed, await core.info(unsealed))
            return
        await _answer_existing(core, common, rows, new, set(in_the_way), results, notes)
    results.fail(every, ConflictError("others keep importing these tokens; nothing was done: retry later"))


async def _write_once(
    core: Core, batch: dict[int, Unsealed], notes: BatchEventBuilder, name: bytes
) -> list[str]:
    event = notes.event(core.clock.now_ms(), Action.ISSUE, name if batch else NO_NAME)
    if event is None:
        return []
    if not batch:
        return await core.trail.note(event)
    return await core.trail.write(
        event,
        lambda: core.keys.seal_all(list(batch.values())),
        lambda events, sealed: core.store.insert(sealed, events),
    )


async def _answer_existing(
    core: Core,
    common: Importing,
    rows: dict[int, _Row],
    new: dict[int, Unsealed],
    existing: set[str],
    results: TokenInfoResults,
    notes: BatchEventBuilder,
) -> None:
    """Answer the rows whose token exists: with it where it is the row's own; otherwise they fail."""
    stored = await read(core, sorted(existing))
    for number in [number for number, (record, _) in new.items() if record.token in existing]:
        record, card = new.pop(number)
        place = stored.places.get(record.token)
        reference = record.reference if place is None else stored.rows[place].reference
        try:
            if place is None or not stored.genuine[place]:
                raise _taken("a record that no vault wrote has this token")
            there = stored.unsealed(place)
            if (
                there.card is None
                or card is None
                or there.card.pan != card.pan
                or not _same(record, there.record)
            ):
                raise _taken("the token exists, of another card, requestor or program")
            notes.note(number, reference, 0, _kind(Outcome.DONE, rows[number], common, IMPORTED))
            results.put(number, there, await core.info(there))
        except TokenVaultError as error:
            notes.note(number, reference, 0, _kind(Outcome.DENIED, rows[number], common, TAKEN))
            results.fail(number, error)


def _same(one: TokenRecord, other: TokenRecord) -> bool:
    return (one.requestor, one.program) == (other.requestor, other.program)


def _kind(outcome: Outcome, row: _Row, common: Importing, code: str) -> Kind:
    return Kind(outcome, row.record.requestor, (code,), common.operator)


def _taken(why: str) -> InvalidInputError:
    return InvalidInputError(f"{why}: the row was not imported", code=TAKEN)


def _card_has_another() -> InvalidInputError:
    return InvalidInputError(
        "the card has another token of this program, which has one for each card",
        code="CARD_HAS_ANOTHER_TOKEN",
    )
