"""Changing many tokens: a chunk is read at once, changed, and written with one event.

Each item is answered as the single call answers it: one that names a card by its number, after others that gave a
token that card or took it away, is looked for once those are written. Tokens that others change at the same time are
read again; where they keep doing so, the items fail, and nothing of them is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias, TypedDict, TypeVar

import attrs
import numpy as np

from tokenvault.audit.batch_event import ITEMS_MAX, Kind
from tokenvault.audit.batch_event_builder import BatchEventBuilder
from tokenvault.audit.event import Action, Outcome
from tokenvault.errors import (
    ConfigurationError,
    ConflictError,
    IntegrityError,
    InvalidInputError,
    LifecycleError,
    PermissionDeniedError,
    RequestorLockedOutError,
    TokenNotFoundError,
    TokenStoreError,
    TokenVaultError,
)
from tokenvault.model import checks
from tokenvault.model.domain import Domain
from tokenvault.model.lifecycle import Change
from tokenvault.model.pan import CardExpiry, Pan
from tokenvault.records.sealing import CHANGED
from tokenvault.records.token_info import TokenInfo
from tokenvault.vault import arguments, manage
from tokenvault.vault.alterations import (
    Alteration,
    NewCard,
    card_change,
    domain_change,
    property_change,
    refuse_other_par,
    status_change,
)
from tokenvault.vault.batch.read import StoredTokens, read
from tokenvault.vault.batch.results import ObjectResults
from tokenvault.vault.core import Core, Unsealed, failed, not_found
from tokenvault.vault.guard import Tally
from tokenvault.vault.manage import By

ATTEMPTS_MAX: Final = 32
"""How often a chunk starts over because others changed its records first."""

CARDS_MAX: Final = 1_000
"""Items of a chunk that name a card: each may have several tokens."""

_OF_ONE_CARD: Final = (
    ConfigurationError,
    IntegrityError,
    InvalidInputError,
    PermissionDeniedError,
    TokenNotFoundError,
)
"""What fails one item that names a card, and not its chunk."""

T = TypeVar("T")
Name: TypeAlias = str | bytes


class TokenChange(TypedDict, total=False):
    """What `update_token_many` changes of a token; each is as of `update_token`, and unset, it stays."""

    token_expiry: str | CardExpiry | None
    customer: str | None
    metadata: Mapping[str, str] | None


class CardChange(TypedDict, total=False):
    """What `update_card_many` changes of a card; each is as of `update_card`, and unset, it stays."""

    new_pan: str | Pan | None
    expiry: str | CardExpiry | None
    par: str | None


class Wanted(NamedTuple):
    """What an item wants: the tokens that it names, or the card that they stand for, and what becomes of each."""

    name: Name | Pan
    alter: Alteration
    new: NewCard = NewCard(None, None)


Reader: TypeAlias = Callable[[Core, By, object], Wanted]
"""Reads an item. Raises InvalidInputError where it is not acceptable."""


class _Step(NamedTuple):
    """One token of one item, which names it, or its card."""

    item: int
    name: Name
    alter: Alteration
    new: NewCard
    by_token: bool


@attrs.frozen
class _Chunk:
    core: Core
    action: Action
    by: By
    stored: StoredTokens
    notes: BatchEventBuilder
    now_ms: int
    tally: Tally
    found: dict[int, list[TokenInfo]] = attrs.Factory(dict)
    failed: dict[int, TokenVaultError] = attrs.Factory(dict)
    changed: dict[str, Unsealed] = attrs.Factory(dict)


# Items.


def to_delete(core: Core, _by: By, item: object) -> Wanted:
    """A token to delete."""
    return Wanted(_name(item), status_change(core, Change.DELETE))


def domain_to_update(core: Core, by: By, item: object) -> Wanted:
    """A pair of token and domain."""
    name, domain = _pair(item, "domain")
    if domain is not None and not isinstance(domain, Domain):
        raise InvalidInputError("domain is a Domain")
    return Wanted(_name(name), domain_change(core, arguments.own_domain(domain), by_host=by.host))


def token_to_update(core: Core, by: By, item: object) -> Wanted:
    """A pair of token and TokenChange."""
    name, given = _pair(item, "TokenChange")
    change = _given(given, TokenChange)
    properties = arguments.properties(
        change.get("token_expiry"), change.get("customer"), change.get("metadata")
    )
    manage.refuse_properties(core, properties)
    return Wanted(_name(name), property_change(core, properties, by_host=by.host))


def card_to_update(core: Core, by: By, item: object) -> Wanted:
    """A pair of PAN, token or reference, and CardChange."""
    name, given = _pair(item, "CardChange")
    change = _given(given, CardChange)
    new = arguments.new_card(core, change.get("new_pan"), change.get("expiry"), change.get("par"))
    manage.refuse_new_card(core, new, by)
    if not isinstance(name, str | Pan):
        raise InvalidInputError("a card is named by its PAN, or by the token or reference of a token")
    wanted = arguments.pan_or_name(core, name)
    fingerprint = b"" if new.pan is None else core.keys.pan_fingerprint(new.pan)
    card = wanted if isinstance(wanted, Pan) else None
    return Wanted(wanted, card_change(core, card, new, fingerprint, by_host=by.host), new)


def _name(item: object) -> Name:
    if type(item) is not str:  # it could compare unlike its digits
        raise InvalidInputError("a token is a str of 13 to 19 ASCII digits")
    return arguments.token_or_reference(item)


def _pair(item: object, what: str) -> tuple[object, object]:
    if (type(item) is not tuple and type(item) is not list) or len(item) != 2:
        raise InvalidInputError(f"each item is a pair of token and {what}")
    return item[0], item[1]


def _given(value: object, kind: type[T]) -> T:
    names = kind.__annotations__
    problem = f"a change is a {kind.__name__}: {', '.join(names)}"
    fields = checks.mapping(problem, value)
    if not fields.keys() <= names.keys():
        raise InvalidInputError(problem)
    return fields  # type: ignore[return-value] # its values are checked where they are used


# Chunks.


async def change_chunk(
    core: Core, action: Action, by: By, reader: Reader, items: Sequence[object]
) -> ObjectResults[list[TokenInfo]]:
    """Change the tokens of items; of each, the tokens that changed."""
    results = ObjectResults[list[TokenInfo]](len(items))
    wanted = await core.runtime.call(_read_items, core, by, reader, items, results)
    rounds = _rounds(wanted)
    for place, each in enumerate(rounds):
        try:
            await _change_round(core, action, by, each, results)
        except TokenVaultError as error:
            if not place:
                raise
            left = [item for later in rounds[place:] for item in later]
            results.fail(np.array(left, np.intp), error)
            break
    return results


def _rounds(wanted: dict[int, Wanted]) -> list[dict[int, Wanted]]:
    """The items in order, cut before each that names a card which those before it may have given or taken.

    One with a PAR names the new card too: its PAR is compared with that of the tokens which have that.
    """
    rounds: list[dict[int, Wanted]] = [{}]
    moved, any_card = set[Pan](), False
    for item, each in wanted.items():
        card = each.name if isinstance(each.name, Pan) else None
        named = {card, each.new.pan if each.new.par is not None else None}
        if (card is not None and any_card) or not moved.isdisjoint(named):
            rounds.append({})
            moved, any_card = set(), False
        rounds[-1][item] = each
        if each.new.pan is not None:
            moved.add(each.new.pan)
            any_card |= card is None  # nobody knows here which one that token had
            moved |= set() if card is None else {card}
    return rounds


async def _change_round(
    core: Core,
    action: Action,
    by: By,
    wanted: dict[int, Wanted],
    results: ObjectResults[list[TokenInfo]],
) -> None:
    """Change the tokens of items that do not depend on each other's writes."""
    steps = await _steps(core, action, by, wanted, results)
    tally = Tally(core.guards)
    for attempt in range(ATTEMPTS_MAX):
        chunk = await _change(core, action, by, steps, tally)
        if not await _write(chunk):
            break
        await core.conflict(attempt)
    else:
        error = ConflictError("others keep changing these tokens; nothing was done: retry later")
        results.fail(np.array(sorted({step.item for step in steps}), np.intp), error)
        return
    await tally.settle()
    for item in {step.item for step in steps}:
        if item in chunk.found:
            results.put(item, chunk.found[item])
        else:  # none of its tokens changed
            results.fail(item, chunk.failed[item])


async def get_chunk(core: Core, items: Sequence[object]) -> ObjectResults[TokenInfo]:
    """The properties of tokens."""
    results = ObjectResults[TokenInfo](len(items))
    names: dict[int, Name] = {}
    for row, item in enumerate(items):
        try:
            names[row] = _name(item)
        except InvalidInputError as error:
            results.fail(row, error)
    stored = await read(core, list(dict.fromkeys(names.values())))
    for row, name in names.items():
        try:
            results.put(row, await core.info(_unsealed(stored, name)))
        except TokenVaultError as error:
            results.fail(row, error)
    return results


def _read_items(
    core: Core, by: By, reader: Reader, items: Sequence[object], results: ObjectResults[list[TokenInfo]]
) -> dict[int, Wanted]:
    wanted = {}
    for row, item in enumerate(items):
        try:
            wanted[row] = reader(core, by, item)
        except InvalidInputError as error:
            results.fail(row, error)
    return wanted


async def _steps(
    core: Core, action: Action, by: By, wanted: dict[int, Wanted], results: ObjectResults[list[TokenInfo]]
) -> list[_Step]:
    """The tokens of each item; an item fails whose card has none, or one that can not have the new card."""
    steps: list[_Step] = []
    for item, (name, alter, new) in wanted.items():
        names: list[Name] = []
        if not isinstance(name, Pan):
            names.append(name)
        else:
            try:
                names += await _tokens_of(core, action, by, name, new)
            except _OF_ONE_CARD as error:
                results.fail(item, error)
            except TokenStoreError as error:
                if error.code != "TOO_MANY_TOKENS":
                    raise
                results.fail(item, error)
        if len(steps) + len(names) > ITEMS_MAX:
            results.fail(item, _too_many())
            continue
        by_token = not isinstance(name, Pan)
        steps += [_Step(item, each, alter, new, by_token) for each in names]
    return steps


def _too_many() -> InvalidInputError:
    return InvalidInputError("the cards of a chunk have too many tokens: change this one by itself")


async def _tokens_of(core: Core, action: Action, by: By, pan: Pan, new: NewCard) -> list[str]:
    """The tokens of a card, each of which can have the new one. Raises what the single call does."""
    denied = await core.denial_by_card(by.requestor) or _locked_out(core, by)
    if denied is not None:
        await core.deny(action, by.requestor, denied.code, operator=by.operator)
        raise denied
    return [record.token for record in await manage.tokens_to_renew(core, pan, new, by)]


def _locked_out(core: Core, by: By) -> RequestorLockedOutError | None:
    return None if by.requestor is None else core.guards.locked_out(by.requestor)


async def _change(core: Core, action: Action, by: By, steps: list[_Step], tally: Tally) -> _Chunk:
    """What becomes of the tokens, as they are stored now."""
    stored = await read(core, list(dict.fromkeys(step.name for step in steps)))
    notes = BatchEventBuilder(len(steps), core.trail.ids.kept)
    chunk = _Chunk(core, action, by, stored, notes, core.clock.now_ms(), tally)
    for row, step in enumerate(steps):
        try:
            await _change_one(chunk, row, step)
        except TokenVaultError as error:
            chunk.failed[step.item] = error
    return chunk


async def _change_one(chunk: _Chunk, row: int, step: _Step) -> None:
    """Change one token, after those before it, and note it. Raises what the single call does."""
    core, by, note = chunk.core, chunk.by, chunk.notes.note
    if (locked_out := _locked_out(core, by)) is not None:
        note(row, b"", 0, Kind(Outcome.DENIED, by.requestor, (locked_out.code,), by.operator))
        raise locked_out
    try:
        stored = _unsealed(chunk.stored, step.name)
    except TokenNotFoundError:
        if by.requestor is not None:
            chunk.tally.miss(by.requestor, core.keys.failure(*failed(step.name)))
        note(row, b"", 0, Kind(Outcome.NOT_FOUND, by.requestor, operator=by.operator))
        raise
    except IntegrityError:
        note(row, b"", 0, Kind(Outcome.TAMPERED, by.requestor, operator=by.operator))
        raise
    before = chunk.changed.get(stored.record.token, stored)
    reference = before.record.reference
    if by.requestor is not None and not await manage.may_manage(
        core, before.record, chunk.action, by.requestor
    ):
        codes = (manage.NOT_ITS_TOKEN,)
        chunk.tally.refusal(by.requestor, core.keys.failure(*failed(step.name)))
        note(row, reference, 0, Kind(Outcome.DENIED, by.requestor, codes, by.operator))
        raise manage.not_its_token()
    try:
        if step.by_token and chunk.by.host:
            await refuse_other_par(
                core, before.record.requestor, step.new, before.record.token, chunk.changed
            )
        altered = await step.alter(before)
    except (LifecycleError, InvalidInputError) as error:
        codes = (manage.LIFECYCLE_CODE if isinstance(error, LifecycleError) else error.code,)
        manage.refused_card(core, chunk.tally, by.requestor, before.record, step.new)
        note(row, reference, 0, Kind(Outcome.DENIED, by.requestor, codes, by.operator))
        raise
    stands = altered is before
    revision = 0 if stands else stored.record.revision + 1
    changed = altered if stands else altered.at(chunk.now_ms, revision)
    info = await manage.told(core, changed, by.requestor)
    if not stands:
        chunk.changed[changed.record.token] = changed
    chunk.found.setdefault(step.item, []).append(info)
    note(row, reference, revision, Kind(Outcome.DONE, by.requestor, operator=by.operator))


def _unsealed(stored: StoredTokens, name: Name) -> Unsealed:
    """A record that was read. Raises TokenNotFoundError, IntegrityError."""
    if name in stored.unreadable:
        raise stored.unreadable[name]
    place = stored.places.get(name)
    if place is None:
        raise not_found(name)
    if not stored.genuine[place]:
        raise IntegrityError(CHANGED)
    return stored.unsealed(place)


async def _write(chunk: _Chunk) -> list[str]:
    """Write the records and the event of a chunk; returns the tokens that others changed first: then nothing is."""
    core, event = chunk.core, chunk.notes.event(chunk.now_ms, chunk.action, failures=chunk.tally.failures)
    if event is None:
        return []
    if not chunk.changed:
        return await core.trail.note(event)
    return await core.trail.write(
        event,
        lambda: core.keys.seal_all(list(chunk.changed.values())),
        lambda events, rows: core.store.replace(rows, events),
    )
