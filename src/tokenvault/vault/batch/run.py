"""What the faces call for batches: arguments are checked, and items worked on chunk after chunk.

Items are taken from their iterable chunk by chunk, each as large as the store takes in one write. A chunk that fails
as a whole (the database or the key store is away) gives each of its items that error, as single calls would, and the
next chunk is tried; after two such chunks in a row the rest is not tried any more.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar

import numpy as np

from tokenvault.audit.batch_event import ITEMS_MAX
from tokenvault.errors import InvalidInputError, TokenVaultError, is_of_signal_handler
from tokenvault.model.decision import Decision
from tokenvault.model.pan import Card
from tokenvault.records.token_info import TokenInfo
from tokenvault.vault import issue
from tokenvault.vault.batch.issue import issue_chunk
from tokenvault.vault.batch.results import (
    BatchResult,
    CardResults,
    ChunkResults,
    DecisionResults,
    IssueBatchResult,
    TokenInfoResults,
)
from tokenvault.vault.batch.use import check_chunk, detokenize_chunk
from tokenvault.vault.core import Core
from tokenvault.vault.issue import Terms

C = TypeVar("C", bound=ChunkResults[Any])

CHUNK_ITEMS: Final = ITEMS_MAX
ROWS_OF_AN_ISSUE: Final = 1
"""A record, or a row of the index for a token that is there already."""

ROWS_OF_A_USE: Final = 3
"""A record, and rows of the index for its use and for the one that it follows."""

FAILED_CHUNKS_MAX: Final = 2


async def issue_all(core: Core, cards: Iterable[object], terms: Terms) -> IssueBatchResult[TokenInfo]:
    """Check what all cards have in common, and issue a token for each."""
    await issue.permitted_program(core, terms)
    if terms.token_expiry is not None and terms.token_expiry.passed(core.clock.now_ms()):
        raise issue.expired("the token")
    await core.documents.put(terms.domain)
    return IssueBatchResult(
        await _chunks(
            core,
            "cards",
            cards,
            TokenInfoResults,
            partial(issue_chunk, core, terms),
            core.store.write_limits.items(ROWS_OF_AN_ISSUE, CHUNK_ITEMS),
        )
    )


async def detokenize_all(core: Core, uses: Iterable[object]) -> BatchResult[Card]:
    """The card behind each token, for pairs of token and transaction."""
    size = core.store.write_limits.items(ROWS_OF_A_USE, CHUNK_ITEMS)
    return BatchResult(await _chunks(core, "uses", uses, CardResults, partial(detokenize_chunk, core), size))


async def check_all(core: Core, uses: Iterable[object]) -> BatchResult[Decision]:
    """The decision on each use, for pairs of token and transaction."""
    size = core.store.write_limits.items(ROWS_OF_A_USE, CHUNK_ITEMS)
    return BatchResult(await _chunks(core, "uses", uses, DecisionResults, partial(check_chunk, core), size))


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
    rest = iter(items)
    while chunk := _next(name, rest, size):
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


def _next(name: str, items: Iterator[object], size: int) -> list[object]:
    try:
        return list(islice(items, size))
    except Exception as error:  # the caller's own iterator failed, with whatever it holds
        if is_of_signal_handler(error):
            raise
        raise InvalidInputError(
            f"the iterable of {name} failed; what it gave in whole chunks before is done"
        ) from None
