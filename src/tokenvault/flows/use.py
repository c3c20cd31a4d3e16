"""Using a token: is it allowed, and if so, the card behind it."""

from __future__ import annotations

from typing import Final, NamedTuple

from tokenvault.decision import Decision, Restrictions, TokenState, decide
from tokenvault.errors import DomainRestrictionError, InvalidInputError
from tokenvault.events import Action, Event, Outcome
from tokenvault.flows.core import Core, Opened, safe_id
from tokenvault.pan import Card
from tokenvault.programs import Permission
from tokenvault.token_info import effective_expiry
from tokenvault.transaction import Transaction
from tokenvault.usage import Seen

MENTIONED_CODE: Final = "CARD_NUMBER_IN_TRANSACTION"
MENTIONED: Final = "a field of the transaction holds the card number: use ids that do not"


async def check(core: Core, token: str, transaction: Transaction) -> Decision:
    """Decide on a use. Nothing is counted, and no event is left but for a missing permission."""
    await core.permit(transaction.requestor, Permission.DETOKENIZE, Action.DETOKENIZE, transaction.id)
    opened = await core.read(token, None)
    decision = decide_on(
        opened, await core.documents.restrictions(opened.record), transaction, core.clock.now_ms()
    )
    if decision.allowed and opened.card is not None and transaction.mentions(opened.card.pan):
        raise InvalidInputError(MENTIONED)
    return decision


async def detokenize(core: Core, token: str, transaction: Transaction) -> Card:
    """Decide on a use, record it, and only then hand out the card."""
    requestor = transaction.requestor
    await core.permit(requestor, Permission.DETOKENIZE, Action.DETOKENIZE, transaction.id)
    conflicts = 0
    while True:
        opened = await core.read(token, Action.DETOKENIZE, requestor, transaction.id)
        record, card = opened.record, opened.card
        restrictions = await core.documents.restrictions(record)
        now_ms = core.clock.now_ms()
        decision, mentioned, counts, event = judge(opened, restrictions, transaction, now_ms)
        if not counts:
            await core.note(event)
            if mentioned:
                raise InvalidInputError(MENTIONED)
            if card is None or not decision.allowed:
                raise DomainRestrictionError(decision.violations)
            return card
        used = record.used(record.usage.after(transaction, restrictions.meters, now_ms), now_ms)
        if await core.replace(Opened(used, card), event) and card is not None:
            return card
        conflicts = await core.conflict(conflicts)


class Judged(NamedTuple):
    """What is to come of a use.

    Attributes:
        decision: by the domains.
        mentioned: whether the use, though allowed, is refused because the card number stands in it.
        counts: whether the record has to count it.
        event: what the audit trail is to say.
    """

    decision: Decision
    mentioned: bool
    counts: bool
    event: Event


def judge(opened: Opened, restrictions: Restrictions, transaction: Transaction, now_ms: int) -> Judged:
    """Decide on a use to be made."""
    record, card = opened.record, opened.card
    decision = decide_on(opened, restrictions, transaction, now_ms)
    # Only who is handed the card may learn that it stands in the transaction: else this would answer guesses.
    mentioned = decision.allowed and card is not None and transaction.mentions(card.pan)
    done = decision.allowed and not mentioned  # so the card number stands in no field
    counts = done and restrictions.counted and record.usage.seen(transaction) is Seen.NEW
    codes: tuple[str, ...] = ()
    if not done:
        refusals = [violation.code for violation in decision.violations]
        codes = (MENTIONED_CODE,) if mentioned else tuple(refusals)
    event = Event(
        time_ms=now_ms,
        action=Action.DETOKENIZE,
        outcome=Outcome.DONE if done else Outcome.DENIED,
        requestor=transaction.requestor,
        reference=record.reference,
        transaction_id=safe_id(transaction.id, None if done or card is None else card.pan),
        codes=codes,
        revision=record.revision + 1 if counts else 0,
    )
    return Judged(decision, mentioned, counts, event)


def decide_on(opened: Opened, restrictions: Restrictions, transaction: Transaction, now_ms: int) -> Decision:
    """Decide on a use, by the domains alone."""
    record = opened.record
    state = TokenState(
        record.requestor,
        record.status,
        effective_expiry(record, opened.card),
        record.assurance,
        record.usage,
    )
    return decide(state, restrictions, transaction, now_ms)
