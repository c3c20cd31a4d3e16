"""Using a token: is it allowed, and if so, the card behind it."""

from __future__ import annotations

from typing import Final, NamedTuple

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import DomainRestrictionError, IntegrityError, InvalidInputError, TokenVaultError
from tokenvault.model.decision import Decision, Restrictions, decide
from tokenvault.model.pan import Card
from tokenvault.model.programs import Permission
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import effective_expiry
from tokenvault.vault.core import ONLY_DELETED, Core, Unsealed, safe_id

CONTAINS_PAN_CODE: Final = "CARD_NUMBER_IN_TRANSACTION"
CONTAINS_PAN: Final = "a field of the transaction holds the card number: use ids that do not"


async def check(core: Core, token: str, transaction: Transaction) -> Decision:
    """Decide on a use. Nothing is counted, and no event is left but for a missing permission."""
    await core.permit(transaction.requestor, Permission.DETOKENIZE, Action.DETOKENIZE, transaction.id)
    unsealed = await core.read(token, None)
    restrictions = await core.documents.restrictions(unsealed.record)
    return decision_on(unsealed, restrictions, transaction, core.clock.now_ms())


def decision_on(
    unsealed: Unsealed, restrictions: Restrictions, transaction: Transaction, now_ms: int
) -> Decision:
    """Decide on a use. Raises InvalidInputError where it is allowed, but its transaction holds the card number."""
    record, card = unsealed
    decision = decide(record, effective_expiry(record, card), restrictions, transaction, now_ms)
    if decision.allowed and card is not None and transaction.contains_pan(card.pan):
        raise InvalidInputError(CONTAINS_PAN, code=CONTAINS_PAN_CODE)
    return decision


async def detokenize(core: Core, token: str, transaction: Transaction) -> Card:
    """Decide on a use, record it, and only then hand out the card."""
    await core.permit(transaction.requestor, Permission.DETOKENIZE, Action.DETOKENIZE, transaction.id)
    conflicts = 0
    while True:
        unsealed = await core.read(token, Action.DETOKENIZE, transaction.requestor, transaction.id)
        record, card = unsealed
        restrictions = await core.documents.restrictions(record)
        now_ms = core.clock.now_ms()
        event, counts, refusal = judge(unsealed, restrictions, transaction, now_ms)
        if not counts:
            # What is handed out was decided on this revision: a change that was acknowledged since must hold.
            fence = () if refusal is not None else ((token, record.revision),)
            if not await core.trail.note(event, fence):
                break
            conflicts = await core.conflict(conflicts)
            continue
        usage = record.usage.after(transaction, restrictions.velocity_counters, now_ms)
        if not await core.replace(Unsealed(record.used(usage, now_ms), card), event):
            break
        conflicts = await core.conflict(conflicts)
    if refusal is not None:
        raise refusal
    if card is None:  # no use of a deleted token is allowed
        raise IntegrityError(ONLY_DELETED)
    return card


class Judgment(NamedTuple):
    """What comes of a use: its event, whether the record has to count it, and why the card is not handed out."""

    event: Event
    counts: bool
    refusal: TokenVaultError | None


def judge(unsealed: Unsealed, restrictions: Restrictions, transaction: Transaction, now_ms: int) -> Judgment:
    """Decide on a use to be made."""
    record, card = unsealed
    decision = decide(record, effective_expiry(record, card), restrictions, transaction, now_ms)
    refusal: TokenVaultError | None = None
    codes: tuple[str, ...] = ()
    if card is None or not decision.allowed:
        refusal = DomainRestrictionError(decision.violations)
        codes = tuple(violation.code for violation in decision.violations)
    elif transaction.contains_pan(card.pan):
        # Only a caller that would get the card learns that it stands in the transaction: others could test guesses.
        refusal, codes = InvalidInputError(CONTAINS_PAN, code=CONTAINS_PAN_CODE), (CONTAINS_PAN_CODE,)
    counts = refusal is None and restrictions.counted and not record.usage.remembers(transaction)
    # The card number stands in no field of a use that is allowed.
    masked = None if refusal is None or card is None else card.pan
    event = Event(
        time_ms=now_ms,
        action=Action.DETOKENIZE,
        outcome=Outcome.DONE if refusal is None else Outcome.DENIED,
        requestor=transaction.requestor,
        reference=record.reference,
        transaction_id=safe_id(transaction.id, masked),
        codes=codes,
        revision=record.revision + 1 if counts else 0,
    )
    return Judgment(event, counts, refusal)
