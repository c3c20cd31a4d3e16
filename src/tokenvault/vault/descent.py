"""Tokens from tokens: what was issued from a token, directly or not.

All stand for one card, by whose number they are found. A source that is deleted has no card any more: the events of
the tokens that came from it lead to one that still has.
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
from tokenvault.vault.issue import SOURCES_MAX

_PAGE: Final = 64
_PAGES_MAX: Final = 10_000
"""Of events, looked through for a token that still has a card."""


async def descendants(core: Core, source: Unsealed) -> list[Unsealed]:
    """The tokens that came from a token and are not deleted, by token. Raises IntegrityError, KeyStoreError."""
    card = source.card or await _card_of_descendant(core, source.record)
    if card is None:
        return []
    found_by = await core.runtime.call(core.keys.pan_fingerprints, card.pan)
    deleted_by = core.keys.tombstone_fingerprints(card.pan)
    of_card = [unsealed async for unsealed in core.of_card((*found_by, *deleted_by), None)]
    by_reference = {unsealed.record.reference: unsealed.record for unsealed in of_card}

    def comes_from_it(record: TokenRecord) -> bool:
        for _ in range(SOURCES_MAX):
            if record.source == source.record.reference:
                return True
            if record.source not in by_reference:
                return False
            record = by_reference[record.source]
        return False

    return [each for each in of_card if each.card is not None and comes_from_it(each.record)]


async def _card_of_descendant(core: Core, record: TokenRecord) -> Card | None:
    """The card of the first token found that came from a deleted one and has it still."""
    seen = {record.reference}
    waiting = [record.reference]
    while waiting:
        async for reference in _issued_from(core, waiting.pop()):
            row = None if reference in seen else await core.store.by_reference(reference)
            if row is None:
                continue
            found = await core.open(row, reference)
            if found.card is not None:
                return found.card
            seen.add(reference)
            waiting.append(reference)
    return None


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
