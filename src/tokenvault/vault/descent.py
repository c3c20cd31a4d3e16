"""Tokens from tokens: what was issued from a token, directly or not.

The event of each names its source, and leads on, also where a token in between is deleted or has another card by now.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from tokenvault.audit.event import Event, source_of
from tokenvault.errors import IntegrityError
from tokenvault.model.pan import Card
from tokenvault.records.record import TokenRecord
from tokenvault.vault.core import Core, Unsealed
from tokenvault.vault.sources import SOURCES_MAX

_PAGE: Final = 64
_PAGES_MAX: Final = 10_000
"""Of the events of one token."""


async def descendants(core: Core, source: Unsealed) -> list[Unsealed]:
    """The tokens that came from a token and are not deleted, by token. Raises IntegrityError, KeyStoreError."""
    found = await _by_events(core, source.record)
    if source.card is not None:  # tokens that were imported have no such events
        found |= await _by_card(core, source.record, source.card)
    living = (unsealed for unsealed in found.values() if unsealed.card is not None)
    return sorted(living, key=lambda unsealed: unsealed.record.token)


async def _by_events(core: Core, source: TokenRecord) -> dict[bytes, Unsealed]:
    """By reference, what the events of issuing lead to, tombstones too, whatever card each has by now."""
    found: dict[bytes, Unsealed] = {}
    waiting = [source.reference]
    while waiting:
        async for reference in _issued_from(core, waiting.pop()):
            row = None if reference in found else await core.store.by_reference(reference)
            if row is not None:
                found[reference] = await core.open(row, reference)
                waiting.append(reference)
    return found


async def _by_card(core: Core, source: TokenRecord, card: Card) -> dict[bytes, Unsealed]:
    """By reference, what the records of the source's card say that it came from it."""
    found_by = await core.runtime.call(core.keys.pan_fingerprints, card.pan)
    deleted_by = core.keys.tombstone_fingerprints(card.pan)
    of_card = [unsealed async for unsealed in core.of_card((*found_by, *deleted_by), None)]
    by_reference = {unsealed.record.reference: unsealed for unsealed in of_card}

    def comes_from_it(record: TokenRecord) -> bool:
        for _ in range(SOURCES_MAX):
            if record.source == source.reference:
                return True
            if record.source not in by_reference:
                return False
            record = by_reference[record.source].record
        return False

    return {reference: each for reference, each in by_reference.items() if comes_from_it(each.record)}


async def _issued_from(core: Core, source: bytes) -> AsyncIterator[bytes]:
    """The references of the tokens that were issued from one, as their genuine events have it."""
    cursor = b""
    for _ in range(_PAGES_MAX):
        page = await core.store.events_about(source, after=cursor, limit=_PAGE)
        for row in await core.runtime.block(core.keys.audit.genuine, page.events):
            with suppress(IntegrityError):  # the event of a batch
                event = Event.parse(row)
                if source_of(event) == source:
                    yield event.reference
        cursor = page.next
        if not cursor:
            return
