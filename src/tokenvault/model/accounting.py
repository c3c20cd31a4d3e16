"""What an allowed use leaves behind: its entry in the ledger, and the usage that the record is to hold next."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from tokenvault.model.counters import COUNTERS_MAX, Counter, Usage
from tokenvault.model.kinds import KINDS, Kind
from tokenvault.model.ledger import LedgerEntry, UseLedger, Uses
from tokenvault.model.restrictions import Restrictions
from tokenvault.model.transaction import Transaction


class Recorded(NamedTuple):
    """What an allowed transaction leaves behind.

    Attributes:
        usage: what the record is to hold next; the very same where nothing changes.
        entry: what the transaction's event is to tell; None for a retry, whose event is no entry.
    """

    usage: Usage
    entry: LedgerEntry | None


def has_room(
    usage: Usage, restrictions: Restrictions, transaction: Transaction, use_kind: Kind, now_ms: int
) -> bool:
    """Whether a token has room for the counters that a new use or an increment is added to."""
    limits = restrictions.limits_in(usage)
    if len(usage.counters) + len(limits) <= COUNTERS_MAX:
        return True
    counted = {key for key, limit in limits.items() if limit.binds(transaction, use_kind, now_ms)}
    return usage.has_room(counted, limits, now_ms)


def record(
    usage: Usage, restrictions: Restrictions, transaction: Transaction, now_ms: int, uses: Uses
) -> Recorded:
    """What a transaction leaves behind that was allowed.

    Args:
        usage: of the token so far.
        restrictions: by which it was decided.
        transaction: what was allowed.
        now_ms: the time by which it was decided, in milliseconds of the Unix epoch.
        uses: by which it was decided; they name its use ids.
    """
    if uses.before is not None:
        return Recorded(usage, None)
    rule, ledger = KINDS[transaction.kind], uses.ledger
    if rule.follow_up and ledger is not None:
        amount, use_kind = ledger.amount_of(transaction), ledger.use.kind
        # That of its use, but for a dispute.
        currency = transaction.amount.currency if transaction.amount else ledger.use.currency
    else:
        stated = transaction.amount
        amount, currency = (stated.amount, stated.currency) if stated else (0, None)
        use_kind = transaction.kind
    entry = LedgerEntry(
        kind=transaction.kind,
        use_id=uses.use_id,
        original=uses.original_id,
        amount=amount,
        currency=currency,
        content=transaction.content,
        final=transaction.final,
        time_ms=now_ms,
    )
    if rule.live:
        return _counted(usage, restrictions, transaction, entry, use_kind)
    return Recorded(usage if ledger is None else _given_back(usage, restrictions, entry, ledger), entry)


def _counted(
    usage: Usage, restrictions: Restrictions, transaction: Transaction, entry: LedgerEntry, use_kind: Kind
) -> Recorded:
    """The usage after a new use or an increment, and the entry with what it was counted in."""
    if not restrictions.counted:
        return Recorded(usage, entry)
    now_ms, cryptogram = entry.time_ms, transaction.cryptogram_counter
    strong = False
    added: dict[bytes, Counter] = {}
    for key, limit in restrictions.limits_in(usage).items():
        if limit.starts_again(transaction, now_ms):
            strong = True
            number = limit.limit.window(now_ms).number
            usage = usage.changed(key, partial(Counter.started_again, window=number))
    limits = restrictions.limits_in(usage)
    for key, limit in limits.items():
        if limit.binds(transaction, use_kind, now_ms):
            window, value = limit.limit.window(now_ms), limit.adds(transaction)
            before = next((counter for counter in usage.counters if counter.key == key), None)
            added[key] = (
                Counter(key, window.number, value, ends_ms=window.ends_ms)
                if before is None
                else before.added(window, value)
            )
    usage = usage.with_counters(added.values(), limits)
    if strong:
        latest_ms = max(now_ms, usage.authenticated_ms, usage.last_used_ms)
        usage = usage._replace(authenticated_ms=latest_ms)
    if cryptogram is not None and cryptogram > usage.cryptogram_counter:
        usage = usage._replace(cryptogram_counter=cryptogram)
    if KINDS[transaction.kind].counts_use:
        usage = usage.used_at(now_ms)
    return Recorded(usage, entry._replace(counted=tuple(sorted(added)), strong=strong))


def _given_back(usage: Usage, restrictions: Restrictions, entry: LedgerEntry, ledger: UseLedger) -> Usage:
    """The usage after a follow-up that gives back: each part to the windows in which it was counted."""
    given = ledger.after(entry)
    for part, amount in given.money:
        usage = _taken_off(usage, restrictions, part, amount, of_money=True)
    if given.use:
        usage = _taken_off(usage, restrictions, ledger.use, 1, of_money=False)
        usage = usage.unused_at(ledger.use.time_ms)
    return usage


def _taken_off(
    usage: Usage, restrictions: Restrictions, part: LedgerEntry, amount: int, *, of_money: bool
) -> Usage:
    limits = restrictions.limits_in(usage)
    for key in part.counted:
        velocity = limits.get(key)  # none by the key of before: what was counted then is counted no more
        if velocity is None or (velocity.limit.amount is not None) != of_money:
            continue
        number = velocity.limit.window(part.time_ms).number
        usage = usage.changed(key, partial(Counter.given_back, window=number, value=amount))
    return usage
