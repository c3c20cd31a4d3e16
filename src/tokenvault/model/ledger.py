"""The ledger of a use: what was authorised, captured, given back and paid back, summed over the events of the use.

Pure: entries are what the trail's events say of uses that were allowed; the vault reads and writes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import attrs

from tokenvault.model.kinds import KINDS, Kind
from tokenvault.model.transaction import Transaction

FOLLOW_UPS_MAX: Final = 500
"""Follow-ups that one use may have."""

USE_ID_BYTES: Final = 16


class LedgerEntry(NamedTuple):
    """An allowed transaction that was no retry, as its event tells of it.

    Attributes:
        kind: what it did.
        use_id: its own use id, 16 bytes.
        original: the use id of its original, if it named one.
        amount: minor units; a follow-up without an amount has here what it was of.
        currency: ISO 4217; None: without an amount.
        content: `Transaction.content`, 16 bytes.
        final: of a capture, whether it was the last.
        time_ms: when, in milliseconds of the Unix epoch: the time by which it was decided and counted.
        counted: keys of the velocity counters that it was added to, sorted.
        strong: whether it started counters again by its strong authentication.
    """

    kind: Kind
    use_id: bytes
    original: bytes | None
    amount: int
    currency: str | None
    content: bytes
    final: bool
    time_ms: int
    counted: tuple[bytes, ...] = ()
    strong: bool = False


class Part(NamedTuple):
    """A part of what a use has authorised: its own, or an increment's.

    Attributes:
        entry: which.
        left: minor units that are not given back.
    """

    entry: LedgerEntry
    left: int


@attrs.define
class _Sums:
    parts: list[Part]
    captured: int = 0
    told: bool = False
    refunded: int = 0
    paid_back: bool = False
    open: bool = True
    reversed: bool = False

    @property
    def authorised(self) -> int:
        return sum(part.left for part in self.parts)

    def give_back(self, amount: int) -> list[Part]:
        """Take an amount off the latest parts first; what was taken off each."""
        given = []
        for place in reversed(range(len(self.parts))):
            entry, left = self.parts[place]
            taken = min(left, amount)
            amount -= taken
            self.parts[place] = Part(entry, left - taken)
            if taken:
                given.append(Part(entry, taken))
        return given

    def add(self, entry: LedgerEntry) -> list[Part]:
        """Take in a follow-up; what it gives back of each part."""
        given: list[Part] = []
        if entry.kind is Kind.INCREMENT:
            self.parts.append(Part(entry, entry.amount))
        elif entry.kind is Kind.CAPTURE:
            self.told = True
            self.captured += entry.amount
            if entry.final or not self.authorised:  # what is of no amount has no parts: one capture takes it
                given = self.give_back(self.authorised - self.captured)
                self.open = False
        elif entry.kind is Kind.REVERSAL:
            given = self.give_back(entry.amount)
            self.reversed = not self.authorised
            self.open = self.open and not self.reversed and self.authorised > self.captured
        elif entry.kind is Kind.REFUND:
            if not self.told:  # who pays back has captured: all of it, as nothing else was told
                self.told, self.captured, self.open = True, self.authorised, False
            self.refunded += entry.amount
            self.paid_back = True
        return given


@attrs.frozen
class UseLedger:
    """What became of one use.

    Attributes:
        use: the use.
        authorised: minor units that it and its increments authorised and that were not given back.
        captured: minor units of them that were captured; all of them where it is refunded and none was told.
        refundable: minor units that were captured (authorised, where no capture was told) and not refunded.
        open: whether it can be incremented, captured and reversed.
        reversed: whether all of it was given back.
        paid_back: whether anything of it was refunded.
        follow_ups: how many it has.
    """

    use: LedgerEntry
    authorised: int
    captured: int
    refundable: int
    open: bool
    reversed: bool
    paid_back: bool
    follow_ups: int
    _entries: tuple[LedgerEntry, ...] = attrs.field(repr=False)

    @staticmethod
    def of(entries: Iterable[LedgerEntry], use_id: bytes) -> UseLedger | None:
        """The ledger of a use, of entries in the order in which they were written; None: no such use."""
        listed = list(entries)
        uses = [entry for entry in listed if entry.use_id == use_id and not KINDS[entry.kind].follow_up]
        if not uses:
            return None
        use = uses[0]
        follow_ups = tuple(
            entry for entry in listed if entry.original == use_id and KINDS[entry.kind].follow_up
        )
        sums = _summed(use, follow_ups)
        base = sums.captured if sums.told else sums.authorised
        return UseLedger(
            use=use,
            authorised=sums.authorised,
            captured=sums.captured,
            refundable=base - sums.refunded,
            open=sums.open,
            reversed=sums.reversed,
            paid_back=sums.paid_back,
            follow_ups=len(follow_ups),
            entries=follow_ups,
        )

    @property
    def void(self) -> bool:
        """Whether nothing of it is left: it was given back as a whole, or its last capture was of nothing."""
        return self.reversed or (self.use.amount > 0 and not self.authorised)

    @property
    def uncaptured(self) -> int:
        """Minor units that can still be captured or given back."""
        return self.authorised - self.captured

    def amount_of(self, transaction: Transaction) -> int:
        """The minor units that a follow-up is of: its amount, or else all that there is."""
        if transaction.amount is not None:
            return transaction.amount.amount
        whole = {
            Kind.CAPTURE: self.uncaptured,
            Kind.REVERSAL: self.uncaptured,
            Kind.REFUND: self.refundable,
        }
        return whole.get(transaction.kind, 0)

    def after(self, entry: LedgerEntry) -> FollowedUp:
        """What one more follow-up gives back."""
        sums = _summed(self.use, self._entries)
        before = sums.reversed
        given = sums.add(entry)
        return FollowedUp(tuple(given), sums.reversed and not before)


class FollowedUp(NamedTuple):
    """What a follow-up gives back.

    Attributes:
        money: by parts, `left` being what is given back of each.
        use: whether the use itself is given back.
    """

    money: tuple[Part, ...]
    use: bool


def _summed(use: LedgerEntry, follow_ups: Iterable[LedgerEntry]) -> _Sums:
    sums = _Sums([Part(use, use.amount)], open=KINDS[use.kind].counts_money)
    for entry in follow_ups:
        sums.add(entry)
    return sums


class Uses(NamedTuple):
    """What the ledger has on a transaction, each in the order in which it was written.

    Attributes:
        use_id: the transaction's own use id, 16 bytes.
        original_id: the use id of its original, if it names one.
        own: the entries under its own use id: itself, if it comes again, and its follow-ups.
        original: the entries under its original's: that use, and its follow-ups.
    """

    use_id: bytes = bytes(USE_ID_BYTES)
    original_id: bytes | None = None
    own: tuple[LedgerEntry, ...] = ()
    original: tuple[LedgerEntry, ...] = ()

    @staticmethod
    def of(entries: Iterable[LedgerEntry], use_id: bytes, original_id: bytes | None = None) -> Uses:
        """Sort the entries that bear on a transaction, given in the order in which they were written."""
        listed = list(entries)
        return Uses(
            use_id, original_id, _under(listed, use_id), _under(listed, original_id) if original_id else ()
        )

    @property
    def before(self) -> LedgerEntry | None:
        """The entry of the transaction itself, if it was allowed before."""
        return next((entry for entry in self.own if entry.use_id == self.use_id), None)

    @property
    def ledger(self) -> UseLedger | None:
        """The ledger of its original, if that is a use of this token by this requestor."""
        return None if self.original_id is None else UseLedger.of(self.original, self.original_id)

    @property
    def reversed(self) -> bool:
        """Whether the transaction itself was given back as a whole."""
        ledger = UseLedger.of(self.own, self.use_id)
        return ledger is not None and ledger.void


def _under(entries: Iterable[LedgerEntry], use_id: bytes) -> tuple[LedgerEntry, ...]:
    return tuple(entry for entry in entries if use_id in (entry.use_id, entry.original))


NO_USES: Final = Uses()
