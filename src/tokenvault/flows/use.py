"""Using a token: is it allowed, and if so, the card behind it."""

from __future__ import annotations

from typing import Final

from tokenvault.decision import Decision, Restrictions, TokenState, decide
from tokenvault.errors import DomainRestrictionError, InvalidInputError
from tokenvault.events import Action, Event, Outcome
from tokenvault.flows.core import Core, Opened
from tokenvault.pan import Card
from tokenvault.programs import Permission
from tokenvault.token_info import effective_expiry
from tokenvault.transaction import Transaction
from tokenvault.usage import Seen

_MENTIONED: Final = "a field of the transaction holds the card number: use ids that do not"


async def check(core: Core, token: str, transaction: Transaction) -> Decision:
    """Decide on a use. Nothing is counted, and no event is left but for a missing permission."""
    await core.permit(transaction.requestor, Permission.DETOKENIZE, Action.DETOKENIZE, transaction.id)
    opened = await core.read(token, None)
    if _mentions_card(transaction, opened):
        raise InvalidInputError(_MENTIONED)
    return _decision(opened, await core.restrictions(opened.record), transaction, core.clock.now_ms())


async def detokenize(core: Core, token: str, transaction: Transaction) -> Card:
    """Decide on a use, record it, and only then hand out the card."""
    requestor = transaction.requestor
    await core.permit(requestor, Permission.DETOKENIZE, Action.DETOKENIZE, transaction.id)
    conflicts = 0
    while True:
        opened = await core.read(token, Action.DETOKENIZE, requestor, transaction.id)
        reference, revision = opened.record.reference, opened.record.revision
        if _mentions_card(transaction, opened):
            await core.deny(Action.DETOKENIZE, requestor, "CARD_NUMBER_IN_TRANSACTION", reference=reference)
            raise InvalidInputError(_MENTIONED)
        restrictions = await core.restrictions(opened.record)
        now_ms = core.clock.now_ms()
        decision = _decision(opened, restrictions, transaction, now_ms)
        usage = opened.record.usage
        counts = decision.allowed and restrictions.counted and usage.seen(transaction) is Seen.NEW
        event = Event(
            time_ms=now_ms,
            action=Action.DETOKENIZE,
            outcome=Outcome.DONE if decision.allowed else Outcome.DENIED,
            requestor=requestor,
            reference=reference,
            transaction_id=transaction.id,
            codes=tuple([violation.code for violation in decision.violations]),
            revision=revision + 1 if counts else revision,
        )
        if not counts:
            await core.note(event)
            if not decision.allowed or opened.card is None:
                raise DomainRestrictionError(decision.violations)
            return opened.card
        used = opened.record.used(usage.after(transaction, restrictions.meters, now_ms), now_ms)
        if opened.card is not None and await core.replace(Opened(used, opened.card), event):
            return opened.card
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


def _mentions_card(transaction: Transaction, opened: Opened) -> bool:
    return opened.card is not None and transaction.mentions(opened.card.pan.reveal())
