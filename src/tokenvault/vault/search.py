"""Looking for tokens: by requestor, program, status, customer, last four digits of the card; always by an index."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from tokenvault.errors import ConfigurationError, TokenNotFoundError, TokenStoreError
from tokenvault.model.lifecycle import TokenStatus
from tokenvault.records.record import STATUS_CODES
from tokenvault.records.token_info import TokenInfo
from tokenvault.stores.port import SealedRecord, TokenGroup
from tokenvault.vault.core import Core

SEARCH_MAX: Final = 1_000
"""The most tokens of a page."""

SEARCH_DEFAULT: Final = 100

PAGES_MAX: Final = 1_000
"""Pages of one customer's, or of one card's last four digits', that are looked through for one page of results."""

_FIRST: Final = (-1, "")


class Wanted(NamedTuple):
    """What tokens are looked for by; what is None does not matter."""

    requestor: str | None
    customer: str | None
    program: str | None
    status: TokenStatus | None
    last4: str | None

    def includes(self, group: TokenGroup | SealedRecord) -> bool:
        """Whether requestor, program and status are those looked for."""
        return (
            self.requestor in (None, group.requestor)
            and self.program in (None, group.program)
            and (self.status is None or STATUS_CODES[self.status] == group.status)
        )


async def search(core: Core, wanted: Wanted, *, after: str, limit: int) -> list[TokenInfo]:
    """A page of the tokens that have all that is wanted."""
    if wanted.last4 is not None and not core.finds_last4:
        raise ConfigurationError(
            "tokens are not found by their last four digits here: provision with find_by_last4=True",
            code="LAST4_NOT_INDEXED",
        )
    if wanted.customer is not None or wanted.last4 is not None:
        rows = await _by_key(core, wanted, after, limit)
    else:
        rows = await _listed(core, wanted, after, limit)
    return [await core.info(await core.open(row)) for row in rows]


async def count(core: Core, wanted: Wanted) -> int:
    """How many tokens have what is wanted."""
    groups = [group for group in await core.store.groups() if wanted.includes(group)]
    return sum([await core.store.count(*group) for group in groups])


async def _listed(core: Core, wanted: Wanted, after: str, limit: int) -> list[SealedRecord]:
    """A page in the order of issue: the first of those of each group."""
    place = _FIRST
    if after:
        found = await core.store.get([after])
        # Whether there is a token of others is not told to who looks for the tokens of a requestor.
        if not found or wanted.requestor not in (None, found[0].requestor):
            raise TokenNotFoundError("there is no token to go on after: take the last one of the page before")
        place = found[0].created_ms, after
    rows: list[SealedRecord] = []
    for group in await core.store.groups():
        if wanted.includes(group):
            rows += await core.store.list_tokens(*group, after=place, limit=limit)
            rows = sorted(rows, key=lambda row: (row.created_ms, row.token))[:limit]
    return rows


async def _by_key(core: Core, wanted: Wanted, after: str, limit: int) -> list[SealedRecord]:
    """A page by token, of a customer or of last four digits: few have them, and are looked through."""
    last4_keys = () if wanted.last4 is None else core.keys.last4_keys(wanted.last4)
    page = _pages(core, wanted, last4_keys)
    rows: list[SealedRecord] = []
    size = max(limit, SEARCH_DEFAULT)  # whether too many are looked through does not hang on a small limit
    for _ in range(PAGES_MAX):
        found = await page(after, size)
        rows += [
            row
            for row in found
            if wanted.includes(row) and (wanted.last4 is None or row.last4_key in last4_keys)
        ]
        if len(found) < size or len(rows) >= limit:
            return rows[:limit]
        after = found[-1].token
    raise TokenStoreError(
        "too many tokens have this customer or these last four digits: narrow it down", code="TOO_MANY_TOKENS"
    )


def _pages(
    core: Core, wanted: Wanted, last4_keys: tuple[bytes, ...]
) -> Callable[[str, int], Coroutine[Any, Any, list[SealedRecord]]]:
    customer, store = wanted.customer, core.store
    if customer is not None:
        return lambda after, limit: store.find_customer(customer, after=after, limit=limit)
    return lambda after, limit: store.find_last4(last4_keys, after=after, limit=limit)
