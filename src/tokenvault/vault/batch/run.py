"""What the faces call for batches: arguments are checked, and items worked on chunk after chunk.

Items are taken from their iterable chunk by chunk, each as large as the store takes in one write. A chunk that fails
as a whole (the database or the key store is away) gives each of its items that error, as single calls would, and the
next chunk is tried; after two such chunks in a row the rest is not tried any more.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar

import numpy as np

from tokenvault.audit.batch_event import ITEMS_MAX, USES_MAX
from tokenvault.audit.event import Action
from tokenvault.errors import InvalidInputError, TokenVaultError, given
from tokenvault.model.decision import Decision
from tokenvault.model.pan import Card
from tokenvault.model.programs import Permission
from tokenvault.records.layout import NEW_BODY_BYTES_MAX
from tokenvault.records.token_info import TokenInfo
from tokenvault.vault import orders
from tokenvault.vault.batch.change import CARDS_MAX, Reader, card_to_update, change_chunk, get_chunk
from tokenvault.vault.batch.imports import Importing, import_chunk
from tokenvault.vault.batch.issue import issue_chunk
from tokenvault.vault.batch.results import (
    BatchResult,
    CardResults,
    ChunkResults,
    DecisionResults,
    IssueBatchResult,
    ObjectResults,
    TokenInfoResults,
)
from tokenvault.vault.batch.use import check_chunk, detokenize_chunk
from tokenvault.vault.core import Core
from tokenvault.vault.manage import By
from tokenvault.vault.orders import Terms

C = TypeVar("C", bound=ChunkResults[Any])

CHUNK_ITEMS: Final = ITEMS_MAX
CHUNK_USES: Final = USES_MAX
ROWS_OF_AN_ISSUE: Final = 1
"""A record, or a row of the index for a token that is there already."""

ROWS_OF_AN_IMPORT: Final = 2
"""A record, and a row of the index for a token that is there already."""

ROWS_OF_A_CHANGE: Final = 2
"""A record, and a row of the index."""

ROWS_OF_A_USE: Final = 3
"""A record, and rows of the index for its use and for the one that it follows."""

EVENT_BYTES_OF_A_USE: Final = 256
"""What a batch's event needs at most for a use: as of other items, and its note, with COUNTED_BYTES_EACH."""

FAILED_CHUNKS_MAX: Final = 2


async def issue_all(core: Core, cards: Iterable[object], terms: Terms) -> IssueBatchResult[TokenInfo]:
    """Check what all cards have in common, and issue a token for each."""
    program = await orders.permitted_program(core, terms, terms.requestor)
    if terms.token_expiry is not None and terms.token_expiry.passed(core.clock.now_ms(), program.expiry_zone):
        raise orders.expired("the token")
    await core.documents.put(terms.domain)
    return IssueBatchResult(
        await _chunks(
            core,
            "cards",
            cards,
            TokenInfoResults,
            partial(issue_chunk, core, terms, program),
            core.store.write_limits.items(ROWS_OF_AN_ISSUE, CHUNK_ITEMS, body_bytes_each=NEW_BODY_BYTES_MAX),
        )
    )


async def import_all(core: Core, rows: Iterable[object], common: Importing) -> IssueBatchResult[TokenInfo]:
    """Import the token of each row."""
    size = core.store.write_limits.items(ROWS_OF_AN_IMPORT, CHUNK_ITEMS)
    work = partial(import_chunk, core, common)
    return IssueBatchResult(await _chunks(core, "rows", rows, TokenInfoResults, work, size))


async def detokenize_all(core: Core, uses: Iterable[object]) -> BatchResult[Card]:
    """The card behind each token, for pairs of token and transaction."""
    size = core.store.write_limits.items(ROWS_OF_A_USE, CHUNK_USES, EVENT_BYTES_OF_A_USE)
    return BatchResult(await _chunks(core, "uses", uses, CardResults, partial(detokenize_chunk, core), size))


async def check_all(core: Core, uses: Iterable[object]) -> BatchResult[Decision]:
    """The decision on each use, for pairs of token and transaction."""
    size = core.store.write_limits.items(ROWS_OF_A_USE, CHUNK_USES, EVENT_BYTES_OF_A_USE)
    return BatchResult(await _chunks(core, "uses", uses, DecisionResults, partial(check_chunk, core), size))


async def get_all(core: Core, names: Iterable[object]) -> BatchResult[TokenInfo]:
    """The properties of each token."""
    size = core.store.write_limits.items(ROWS_OF_A_USE, CHUNK_ITEMS)
    results = await _chunks(core, "tokens", names, ObjectResults[TokenInfo], partial(get_chunk, core), size)
    return BatchResult(results)


async def change_all(
    core: Core, action: Action, by: By, reader: Reader, items: Iterable[object], name: str
) -> BatchResult[TokenInfo]:
    """Change the token of each item. Raises PermissionDeniedError, once that is noted."""
    changed = await _changes(core, action, by, reader, items, name, CHUNK_ITEMS)
    return BatchResult([chunk.first() for chunk in changed])


async def update_cards(core: Core, by: By, changes: Iterable[object]) -> BatchResult[list[TokenInfo]]:
    """Change the tokens of each card. Raises PermissionDeniedError, once that is noted."""
    changed = await _changes(core, Action.UPDATE_CARD, by, card_to_update, changes, "changes", CARDS_MAX)
    return BatchResult(changed)


async def _changes(
    core: Core, action: Action, by: By, reader: Reader, items: Iterable[object], name: str, most: int
) -> list[ObjectResults[list[TokenInfo]]]:
    if by.requestor is not None:
        await core.permit(by.requestor, Permission.MANAGE, action)
    size = core.store.write_limits.items(ROWS_OF_A_CHANGE, most)
    work = partial(change_chunk, core, action, by, reader)
    return await _chunks(core, name, items, ObjectResults[list[TokenInfo]], work, size)


async def _chunks(
    core: Core,
    name: str,
    items: Iterable[object],
    kind: type[C],
    work: Callable[[list[object]], Coroutine[Any, Any, C]],
    size: int,
) -> list[C]:
    """Work on chunk after chunk, of so many items. Returns what came of each: where it failed, that error for all."""
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidInputError(f"{name} is an iterable, such as a list")
    done: list[C] = []
    failures: list[TokenVaultError] = []  # of the latest chunks, one after the other
    failed_so = f"the iterable of {name} failed; what it gave in whole chunks before is done"
    rest = given(failed_so, items)
    while chunk := list(islice(rest, size)):
        if len(failures) < FAILED_CHUNKS_MAX:
            try:
                if core.key_versions.stale:
                    await core.key_versions.refresh()
                done.append(await work(chunk))
                failures.clear()
                continue
            except TokenVaultError as error:
                failures.append(error)
        failed = kind(len(chunk))
        failed.fail(np.arange(len(chunk)), failures[-1])
        done.append(failed)
    return done
