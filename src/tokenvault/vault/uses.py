"""What the ledger has on a transaction: the events of its own use and of its original's, read and written."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Final, NamedTuple

from tokenvault.audit.batch_event import items, parse
from tokenvault.audit.event import Event, Outcome
from tokenvault.audit.use_note import NO_CONTENT, UseNote
from tokenvault.errors import IntegrityError
from tokenvault.model.kinds import KINDS
from tokenvault.model.ledger import LedgerEntry, Uses
from tokenvault.model.transaction import Transaction
from tokenvault.records.keyring import KeyRing
from tokenvault.stores.port import AsyncTokenStore, SealedEvent
from tokenvault.vault.core import Core

_NOT_GENUINE: Final = "an audit event of this use is not one that a vault wrote: verify the trail"


class UseNames(NamedTuple):
    """By what a transaction and its original are found, and its content recognised; under each key, newest first.

    Attributes:
        own: use ids of the transaction.
        original: use ids of its original; empty where it names none.
        contents: keyed digests of its content.
    """

    own: tuple[bytes, ...]
    original: tuple[bytes, ...]
    contents: tuple[bytes, ...]

    @staticmethod
    def of(keys: KeyRing, transaction: Transaction) -> UseNames:
        """The names of a transaction. No call of the key store."""
        requestor, original = transaction.requestor, transaction.original
        return UseNames(
            own=keys.use_ids(requestor, transaction.id),
            original=() if original is None else keys.use_ids(requestor, original),
            contents=keys.contents(transaction.content),
        )

    @property
    def every(self) -> tuple[bytes, ...]:
        """All use ids."""
        return self.own + self.original

    def uses(
        self,
        events: Sequence[tuple[SealedEvent, Event]],
        transaction: Transaction,
        later: Sequence[LedgerEntry] = (),
    ) -> Uses:
        """What the ledger has on a transaction and its original: events, each with its row, and later entries."""
        original = self.original[0] if self.original else None
        if not events and not later:
            return Uses(self.own[0], original)
        ordered = sorted(
            (event.revision, event.time_ms, row.stream, row.number, position, event.use)
            for position, (row, event) in enumerate(events)
            if event.use is not None and event.outcome is Outcome.DONE and not event.use.retry
        )
        # Keys rotate: what was written under an older one is known by the newest one's name here.
        ids = dict.fromkeys(self.own, self.own[0]) | dict.fromkeys(self.original, original or b"")
        contents = dict.fromkeys(self.contents, transaction.content)
        entries = [_entry(use, time_ms, ids, contents) for _, time_ms, *_, use in ordered]
        # Two that came at once under one id, and that no limit counts, were both allowed: each is a retry of itself.
        # All others stay in their order, also where they are alike: a capture goes before the refunds of it.
        entries.sort(key=lambda entry: entry.use_id == self.own[0] and entry.content != transaction.content)
        return Uses.of([*entries, *later], self.own[0], original)

    def note(self, transaction: Transaction, entry: LedgerEntry | None, *, allowed: bool) -> UseNote:
        """What the event of a transaction notes; `entry` is what it adds to the ledger, None for a retry."""
        amount, follows_up = transaction.amount, KINDS[transaction.kind].follow_up
        stated = (0, "") if amount is None else (amount.amount, amount.currency)
        return UseNote(
            kind=transaction.kind,
            content=self.contents[0] if allowed else NO_CONTENT,
            use_id=self.own[0],
            # Of a use that rests on another one, none: no bound holds for how many do, and who decides on that
            # one, or on its follow-ups, would read them all.
            original=self.original[0] if self.original and follows_up else b"",
            amount=stated[0] if entry is None else entry.amount,
            currency=stated[1] if entry is None else entry.currency or "",
            final=transaction.final,
            strong=entry is not None and entry.strong,
            retry=allowed and entry is None,
            counted=() if entry is None else entry.counted,
        )


def _entry(
    use: UseNote, time_ms: int, ids: Mapping[bytes, bytes], contents: Mapping[bytes, bytes]
) -> LedgerEntry:
    return LedgerEntry(
        kind=use.kind,
        use_id=ids.get(use.use_id, use.use_id),
        original=ids.get(use.original, use.original) or None,
        amount=use.amount,
        currency=use.currency or None,
        content=contents.get(use.content, use.content),
        final=use.final,
        time_ms=time_ms,
        counted=use.counted,
        strong=use.strong,
    )


async def events_of(store: AsyncTokenStore, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
    """The events of many uses, as `TokenStore.uses` finds them: in parts, where they are more than one answer holds.

    Raises IntegrityError where those of one use id alone are too many.
    """
    try:
        return await store.uses(pairs)
    except IntegrityError as error:
        if error.code != "TOO_MANY_EVENTS" or len(pairs) < 2:
            raise
    half = len(pairs) // 2
    parts = [await events_of(store, part) for part in (pairs[:half], pairs[half:])]
    return list({(row.stream, row.number): row for part in parts for row in part}.values())


async def genuine_events(
    core: Core, rows: Sequence[SealedEvent], references: Container[bytes]
) -> list[tuple[SealedEvent, Event]]:
    """What events say of the tokens of references, each with its row.

    Raises IntegrityError where one is not what a vault wrote: nothing is decided by half a ledger.
    """
    if not rows:
        return []
    if len(await core.runtime.call(core.keys.audit.genuine, rows)) < len(rows):
        raise IntegrityError(_NOT_GENUINE, code="EVENT_NOT_GENUINE")
    return [(row, event) for row in rows for event in items(parse(row), references)]
