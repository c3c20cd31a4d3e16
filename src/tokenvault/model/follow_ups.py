"""What the ledger says against a transaction: an id that came before, an original that does not bear it."""

from __future__ import annotations

from typing import Final

from tokenvault.errors import Violation
from tokenvault.model.kinds import KINDS, Kind, Original
from tokenvault.model.ledger import FOLLOW_UPS_MAX, LedgerEntry, UseLedger, Uses
from tokenvault.model.money import MINOR_UNITS_MAX
from tokenvault.model.restrictions import Restrictions
from tokenvault.model.transaction import Transaction


def _of_transaction(code: str, message: str, response_code: str = "12") -> Violation:
    return Violation("transaction", code, message, response_code)


def _of_original(code: str, message: str, response_code: str = "12") -> Violation:
    return Violation("original", code, message, response_code)


_REUSED: Final = _of_transaction(
    "TRANSACTION_ID_REUSED",
    "this transaction id was used before with other content; a new use needs a new id",
    "94",
)
_REVERSED: Final = _of_transaction(
    "TRANSACTION_REVERSED", "this transaction was given back; another attempt needs a new id", "94"
)
_REQUIRED: Final = _of_original(
    "ORIGINAL_REQUIRED", "name the transaction that this one follows up; no domain lets it name none"
)
_UNKNOWN: Final = _of_original(
    "ORIGINAL_UNKNOWN", "this requestor has made no such use of this token; a refused one is none"
)
_FOLLOWS_UP: Final = _of_original(
    "ORIGINAL_NOT_A_USE", "the original is itself a follow-up: name the use that both belong to"
)
_FOLLOWED_UP: Final = _of_original(
    "FOLLOW_UPS_EXCEEDED", f"a use has at most {FOLLOW_UPS_MAX} follow-ups", "65"
)
_CURRENCY: Final = _of_original(
    "CURRENCY_DIFFERS",
    "a follow-up is in the currency of its use, and names no amount if that named none",
    "13",
)
_CLOSED: Final = _of_original(
    "ORIGINAL_CLOSED", "nothing of the use is open: it was captured, refunded or given back, or took no money"
)
_EXCEEDED: Final = {
    Kind.INCREMENT: _of_original("INCREMENT_EXCEEDS", "no use is of more than an amount can say", "13"),
    Kind.CAPTURE: _of_original(
        "CAPTURE_EXCEEDS", "captures are at most what was authorised less what was given back", "13"
    ),
    Kind.REVERSAL: _of_original("REVERSAL_EXCEEDS", "a reversal is at most what is not captured", "13"),
    Kind.REFUND: _of_original(
        "REFUND_EXCEEDS", "refunds are at most what was captured less what was refunded", "13"
    ),
}


def is_retry(transaction: Transaction, before: LedgerEntry | None) -> bool:
    """Whether a transaction is the one that was allowed before under its id."""
    return before is not None and before.content == transaction.content


def id_violations(transaction: Transaction, uses: Uses) -> list[Violation]:
    """What is against a transaction's own id."""
    before = uses.before
    if before is None:
        return []
    if not is_retry(transaction, before):
        return [_REUSED]
    # An increment goes the way of its use: nothing that was given back is handed out again uncounted.
    raised = uses.ledger if transaction.kind is Kind.INCREMENT else None
    return [_REVERSED] if uses.reversed or (raised is not None and raised.void) else []


def original_violations(
    transaction: Transaction, uses: Uses, ledger: UseLedger | None, restrictions: Restrictions
) -> list[Violation]:
    """What is against a transaction's original, the first thing that is."""
    rule = KINDS[transaction.kind]
    if transaction.original is None:
        named = not rule.follow_up or restrictions.follow_ups_without_original
        return [] if named else [_REQUIRED]
    if ledger is None:
        follows_up = any(entry.use_id == uses.original_id for entry in uses.original)
        return [_FOLLOWS_UP if follows_up else _UNKNOWN]
    if not rule.follow_up:  # a payment that rests on another: on none that was given back as a whole
        return [_CLOSED] if ledger.void else []
    if ledger.follow_ups >= FOLLOW_UPS_MAX:
        return [_FOLLOWED_UP]
    if transaction.kind is Kind.DISPUTE:
        return []
    if not (ledger.open if rule.original is Original.OPEN else KINDS[ledger.use.kind].counts_money):
        return [_CLOSED]
    if transaction.amount is not None and transaction.amount.currency != ledger.use.currency:
        return [_CURRENCY]
    return [_EXCEEDED[transaction.kind]] if _exceeds(transaction, ledger) else []


def _exceeds(transaction: Transaction, ledger: UseLedger) -> bool:
    amount = ledger.amount_of(transaction)
    if transaction.kind is Kind.INCREMENT:
        return ledger.authorised + amount > MINOR_UNITS_MAX
    if transaction.kind is Kind.REFUND:
        # All of nothing is nothing to refund; but of a use of no amount, which nobody can measure, it is once.
        measured = ledger.use.amount > 0 or ledger.paid_back
        nothing = amount == 0 and measured and ledger.refundable == 0
        return ledger.reversed or nothing or amount > ledger.refundable
    return amount > ledger.uncaptured
