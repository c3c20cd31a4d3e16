"""Using a token: is it allowed, and if so, the card behind it."""

from __future__ import annotations

from typing import Final

from tokenvault.decision import Decision, Restrictions, TokenState, decide
from tokenvault.errors import DomainRestrictionError, InvalidInputError
from tokenvault.events import Action, Event, Outcome
from tokenvault.flows.core import Core, Opened, safe_id
from tokenvault.pan import Card
from tokenvault.programs import Permission
from tokenvault.token_info import effective_expiry
from tokenvault.transaction import Transaction
from tokenvault.usage import Seen

_MENTIONED_CODE: Final = "CARD_NUMBER_IN_TRANSACTION"
_MENTIONED: Final = "a field of the transaction holds the card number: use ids that do not"


async def check(core: Core, token: str, transaction: Transaction) -> Decision:
    """Decide on a use. Nothing is counted, and no event is left but for a missing permission."""
    await core.permit(transaction.requestor, Permission.DETOKENIZE, Action.DETOKENIZE, transaction.id)
    opened = await core.read(token, None)
    decision = _decision(opened, await core.restrictions(opened.record), transaction, core.clock.now_ms())
    if decision.allowed and opened.card is not None and transaction.mentions(opened.card.pan):
        raise InvalidInputError(_MENTIONED)
    return decision


async def detokenize(core: Core, token: str, transaction: Transaction) -> Card:
    """Decide on a use, record it, and only then hand out the card."""
    requestor = transaction.requestor
    await core.permit(requestor, Permission.DETOKENIZE, Action.DETOKENIZE, transaction.id)
    conflicts = 0
    while True:
        opened = await core.read(token, Action.DETOKENIZE, requestor, transaction.id)
        record, card = opened.record, opened.card
        restrictions = await core.restrictions(record)
        now_ms = core.clock.now_ms()
        decision = _decision(opened, restrictions, transaction, now_ms)
        # Only who is handed the card may learn that it stands in the transaction: else this would answer guesses.
        mentioned = decision.allowed and card is not None and transaction.mentions(card.pan)
        done = decision.allowed and not mentioned
        counts = done and restrictions.counted and record.usage.seen(transaction) is Seen.NEW
        codes = (
            (_MENTIONED_CODE,) if mentioned else tuple([violation.code for violation in decision.violations])
        )
        event = Event(
            time_ms=now_ms,
            action=Action.DETOKENIZE,
            outcome=Outcome.DONE if done else Outcome.DENIED,
            requestor=requestor,
            reference=record.reference,
            transaction_id=safe_id(transaction.id, None if card is None or done else card.pan),
            codes=codes,
            revision=record.revision + 1 if counts else 0,
        )
        if not counts:
            await core.note(event)
            if mentioned:
                raise InvalidInputError(_MENTIONED)
            if card is None or not decision.allowed:
                raise DomainRestrictionError(decision.violations)
            return card
        used = record.used(record.usage.after(transaction, restrictions.meters, now_ms), now_ms)
        if await core.replace(Opened(used, card), event) and card is not None:
            return card
        conflicts = await core.conflict(conflicts)


def _decision(opened: Opened, restrictions: Restrictions, transaction: Transaction, now_ms: int) -> Decision:
    record = opened.record
    state = TokenState(
        record.requestor,
        record.status,
        effective_expiry(record, opened.card),
        record.assurance,
        record.usage,
    )
    return decide(state, restrictions, transaction, now_ms)
