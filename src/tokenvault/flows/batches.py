"""What the faces call for batches: arguments of any type in, chunk after chunk through the flows.

Items are taken from their iterable chunk by chunk. A chunk that fails as a whole (the database or the key store is
away) gives each of its items that error, as single calls would, and the next chunk is tried; after two such chunks
in a row the rest is not tried any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

from tokenvault import checks
from tokenvault.batch_events import ITEMS_MAX
from tokenvault.decision import Decision
from tokenvault.domain import NO_RESTRICTION, Domain
from tokenvault.errors import InvalidInputError, TokenVaultError
from tokenvault.flows import issue, issue_many, use_many
from tokenvault.flows.core import Core
from tokenvault.outcomes import Chunk, Failed, IssueOutcomes, Outcomes
from tokenvault.pan import Card, CardExpiry
from tokenvault.token_info import TokenInfo

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
) -> IssueOutcomes[TokenInfo]:
    """Check what all cards have in common, and issue a token for each."""
    if type(active) is not bool:
        raise InvalidInputError("active is True or False")
    checks.requestor_id("requestor", requestor)
    checks.text("program", program)
    own = NO_RESTRICTION if domain is None else checks.instance("domain", domain, Domain)
    expiry = None if token_expiry is None else CardExpiry.parse(token_expiry)
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
    return IssueOutcomes(
        await _chunks("cards", items, lambda chunk: issue_many.issue_many(core, terms, chunk))
    )


async def detokenize_all(core: Core, uses: Iterable[object]) -> Outcomes[Card]:
    """The card behind each token, for pairs of token and transaction."""
    items = _iterator("uses", uses)
    return Outcomes(await _chunks("uses", items, lambda chunk: use_many.detokenize_many(core, chunk)))


async def check_all(core: Core, uses: Iterable[object]) -> Outcomes[Decision]:
    """The decision on each use, for pairs of token and transaction."""
    items = _iterator("uses", uses)
    return Outcomes(await _chunks("uses", items, lambda chunk: use_many.check_many(core, chunk)))


async def _chunks(
    name: str,
    items: Iterator[object],
    work: Callable[[list[object]], Awaitable[Chunk[T]]],
) -> list[Chunk[T]]:
    done: list[Chunk[T]] = []
    failure: TokenVaultError | None = None
    failures = 0
    while chunk := _next(name, items, CHUNK_ITEMS):
        if failures < FAILED_CHUNKS_MAX:
            failed: TokenVaultError | None = None
            try:
                done.append(await work(chunk))
            except TokenVaultError as error:
                failed = error
            if failed is None:
                failures = 0
                continue
            failure, failures = failed, failures + 1
        if failure is not None:
            done.append(Failed(len(chunk), failure))
    return done


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
