"""What the faces call for batches: arguments of any type in, chunk after chunk through the flows.

Items are taken from their iterable chunk by chunk. A chunk that fails as a whole (the database or the key store is
away) gives each of its items that error, as single calls would, and the next chunk is tried; after two such chunks
in a row the rest is not tried any more.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from tokenvault.audit.batch_event import ITEMS_MAX
from tokenvault.errors import InvalidInputError, TokenVaultError
from tokenvault.model import checks
from tokenvault.model.decision import Decision
from tokenvault.model.domain import NO_RESTRICTION, Domain
from tokenvault.model.pan import Card, CardExpiry, read_expiry
from tokenvault.records.token_info import TokenInfo
from tokenvault.vault import issue
from tokenvault.vault.batch import issue as issue_many
from tokenvault.vault.batch import use as use_many
from tokenvault.vault.batch.outcomes import BatchResult, Chunk, Failed, IssueBatchResult
from tokenvault.vault.core import Core

T = TypeVar("T")

CHUNK_ITEMS: Final = ITEMS_MAX
FAILED_CHUNKS_MAX: Final = 2


async def issue_all(
    core: Core,
    cards: Iterable[object],
    requestor: str,
    program: str,
    domain: Domain | None,
    token_expiry: str | CardExpiry | None,
    assurance: str | None,
    active: bool,
) -> IssueBatchResult[TokenInfo]:
    """Check what all cards have in common, and issue a token for each."""
    if type(active) is not bool:
        raise InvalidInputError("active is True or False")
    checks.requestor_id("requestor", requestor)
    checks.text("program", program)
    own = NO_RESTRICTION if domain is None else checks.instance("domain", domain, Domain)
    expiry = None if token_expiry is None else read_expiry(token_expiry)
    if assurance is not None:
        checks.assurance("assurance", assurance)
    items = _iterator("cards", cards)
    terms = issue_many.Terms(
        requestor=requestor,
        program=await issue.permitted_program(core, requestor, program),
        domain=own,
        token_expiry=expiry,
        assurance=assurance,
        active=active,
    )
    if expiry is not None and expiry.passed(core.clock.now_ms()):
        raise issue.expired("the token")
    await core.documents.put(own)
    return IssueBatchResult(
        await _chunks("cards", items, lambda chunk: issue_many.issue_many(core, terms, chunk))
    )


async def detokenize_all(core: Core, uses: Iterable[object]) -> BatchResult[Card]:
    """The card behind each token, for pairs of token and transaction."""
    items = _iterator("uses", uses)
    return BatchResult(await _chunks("uses", items, lambda chunk: use_many.detokenize_many(core, chunk)))


async def check_all(core: Core, uses: Iterable[object]) -> BatchResult[Decision]:
    """The decision on each use, for pairs of token and transaction."""
    items = _iterator("uses", uses)
    return BatchResult(await _chunks("uses", items, lambda chunk: use_many.check_many(core, chunk)))


class _Done(Generic[T]):
    """The chunks that are done.

    Attributes:
        refusal: the error of two chunks in a row: no more are tried.
    """

    def __init__(self) -> None:
        self.chunks: list[Chunk[T]] = []
        self.refusal: TokenVaultError | None = None
        self._failures = 0

    def add(self, size: int, outcome: Chunk[T] | TokenVaultError) -> None:
        """Note what came of the next chunk, of so many items."""
        if isinstance(outcome, TokenVaultError):
            self._failures += 1
            if self._failures >= FAILED_CHUNKS_MAX:
                self.refusal = outcome
            outcome = Failed(size, outcome)
        else:
            self._failures = 0
        self.chunks.append(outcome)


async def _chunks(
    name: str, items: Iterator[object], work: Callable[[list[object]], Coroutine[Any, Any, Chunk[T]]]
) -> list[Chunk[T]]:
    done: _Done[T] = _Done()
    while chunk := _next(name, items, CHUNK_ITEMS):
        done.add(len(chunk), await _attempt(partial(work, chunk)) if done.refusal is None else done.refusal)
    return done.chunks


async def _attempt(work: Callable[[], Coroutine[Any, Any, T]]) -> T | TokenVaultError:
    try:
        return await work()
    except TokenVaultError as error:
        return error


def _iterator(name: str, items: Iterable[object]) -> Iterator[object]:
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidInputError(f"{name} is an iterable, such as a list")
    return iter(items)


def _next(name: str, items: Iterator[object], count: int) -> list[object]:
    try:
        return list(islice(items, count))
    except Exception:  # noqa: BLE001 # the caller's own iterator failed, with whatever it holds
        failed = True
    if failed:
        raise InvalidInputError(f"the iterable of {name} failed; what it gave in whole chunks before is done")
    return []
