"""A vault inside a transaction of the host's own: what it changes is there once the host commits, or never was.

Its events are a stream of their own, which the transaction takes along: where that is rolled back, nothing is missing
from any other. A savepoint may take back the newest of them at any time, so none counts as written before the end.

What must not be taken back is written outside, by the vault that this one belongs to: what was refused or looked for,
and that a card number was handed out (PCI DSS 4.0.1, 10.2.1.1).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import attrs

from tokenvault.audit.batch_event import BatchEvent
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.journal import Entry, Journal
from tokenvault.audit.trail import Change, Trail
from tokenvault.errors import ConfigurationError
from tokenvault.model.domain import Domain
from tokenvault.runtime import Runtime
from tokenvault.stores.port import AsyncTokenStore, Fence
from tokenvault.stores.turns import in_turn
from tokenvault.vault.core import Core
from tokenvault.vault.documents import Documents

T = TypeVar("T")

WITHIN: Final = "WITHIN"
"""The code of the event, outside, of what was done inside."""

_CHANGES: Final = frozenset(
    {
        Action.ISSUE,
        Action.DETOKENIZE,
        Action.ACTIVATE,
        Action.SUSPEND,
        Action.RESUME,
        Action.DELETE,
        Action.UPDATE_CARD,
        Action.UPDATE_DOMAIN,
        Action.UPDATE_TOKEN,
        Action.UPDATE_ASSURANCE,
        Action.WIND_DOWN,
    }
)
"""What is done inside, call by call."""


_SEEN: Final = frozenset({Action.DETOKENIZE, Action.ISSUE, Action.UPDATE_CARD})
"""What hands out a card number, or may tell whether one is known: its event stands outside too."""


@attrs.frozen
class InnerTrail(Trail):
    """The trail of a vault inside a transaction.

    Attributes:
        outer: of the vault that it belongs to.
        touched: the references of tokens whose rows the transaction may have locked.
        turn: to write, one caller at a time.
    """

    outer: Trail
    touched: set[bytes]
    turn: list[None] = attrs.Factory(lambda: [None])

    async def note(self, event: Event | BatchEvent, fence: Fence = ()) -> list[str]:
        """As in Trail: an allowed use inside, anything else outside."""
        if event.action is not Action.DETOKENIZE or (
            isinstance(event, Event) and event.outcome is not Outcome.DONE
        ):
            return await self.outer.note(event, fence)
        return await super().note(event, fence)

    async def write(self, event: Event | BatchEvent, seal: Callable[[], T], change: Change[T]) -> list[str]:
        """As in Trail. Raises ConfigurationError for what is not done inside a transaction."""
        if event.action not in _CHANGES or (
            isinstance(event, BatchEvent) and event.action is not Action.ISSUE
        ):
            raise ConfigurationError(
                "inside a transaction of the host, tokens are issued, used and managed by single calls, and by"
                " issue_many",
                code="NOT_IN_TRANSACTION",
            )
        if isinstance(event, Event):
            self.touched.add(event.reference)
        # Or another's number would be taken for one that was taken back.
        in_the_way = await in_turn(self.turn, partial(super().write, event, seal, change))
        if isinstance(event, Event) and event.action in _SEEN and not in_the_way:
            await self.outer.note(event._replace(use=None, revision=0, codes=(*event.codes, WITHIN)))
        return in_the_way

    async def close(self, time_ms: int) -> None:
        """As in Trail."""
        await self._settle(self.journal.doubts())
        for entry in self.journal.doubts():
            self.journal.written(entry)
        await super().close(time_ms)

    def _done(self, entry: Entry) -> None:
        """Leave it open whether an entry stays: a savepoint may take it back."""

    async def _settle(self, doubts: list[Entry]) -> None:
        """Free the numbers of what was taken back: from the newest entry on, until one is still there."""
        for entry in reversed(doubts):
            if entry.rows and await self._found_instead(entry) is None:
                return
            self.journal.withdraw(entry)


class InnerDocuments(Documents):
    """Domain documents, of which those that were written inside are written again: a savepoint may take them back."""

    def __init__(self, store: AsyncTokenStore, outer: Documents) -> None:
        super().__init__(store)
        self._outer: Final = outer

    def unwritten(self, domain: Domain) -> bytes | None:
        """As in Documents."""
        return self._outer.unwritten(domain)


async def inner_core(
    outer: Core,
    store: Any,
    connection: object,
    wrapped: Callable[[Any], AsyncTokenStore],
    _: AsyncTokenStore,
    runtime: Runtime,
) -> Core:
    """The core of a vault inside a transaction.

    Args:
        outer: the core of the vault that it belongs to.
        store: that vault's, as it was given.
        connection: the host's.
        wrapped: gives a store as the flows take it.
        runtime: the runtime of the vault inside.

    Raises:
        ConfigurationError: the store has no transactions of a host; or the connection is to another database, has no
            transaction, or one that is not durable or only reads.
        InvalidInputError: it is no connection that the store knows.
        TokenStoreError: the database can not be reached.
    """
    if not hasattr(type(store), "within"):
        raise ConfigurationError(
            "this token store has no part in a transaction of the host: those in PostgreSQL have",
            code="NO_TRANSACTION",
        )
    found = store.within(connection)
    inside = wrapped(await found if inspect.isawaitable(found) else found)
    name = outer.key_versions.stored.name
    if await inside.get_meta(name) != await outer.store.get_meta(name):
        raise ConfigurationError(
            "the connection is to another database than this vault's", code="NO_TRANSACTION"
        )
    touched: set[bytes] = set()
    journal = Journal(outer.trail.journal.keys)
    trail = InnerTrail(inside, runtime, journal, outer.trail.ids, outer.trail, touched)
    return attrs.evolve(
        outer,
        store=inside,
        runtime=runtime,
        trail=trail,
        documents=InnerDocuments(inside, outer.documents),
        registry=None,
        reveal=None,
        outer=outer,
        touched=touched,
    )
