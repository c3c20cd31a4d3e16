"""Using a token: is it allowed, and if so, the card behind it."""

from __future__ import annotations

from typing import Final

from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.errors import DomainRestrictionError, InvalidInputError, TokenVaultError
from tokenvault.model.decision import Decision, Restrictions, decide
from tokenvault.model.pan import Card
from tokenvault.model.programs import Permission
from tokenvault.model.transaction import Transaction
from tokenvault.records.token_info import effective_expiry
from tokenvault.vault.core import Core, Unsealed, safe_id

CONTAINS_PAN_CODE: Final = "CARD_NUMBER_IN_TRANSACTION"
CONTAINS_PAN: Final = "a field of the transaction holds the card number: use ids that do not"

# Python 3.11 looks a member of an enum up through its metaclass: as slow as a call.
_MAY_DETOKENIZE: Final = Permission.DETOKENIZE
_DETOKENIZE: Final = Action.DETOKENIZE
_DONE: Final = Outcome.DONE


async def check(core: Core, token: str, transaction: Transaction) -> Decision:
    """Decide on a use. Nothing is counted, and no event is left but for a missing permission."""
    if core.denial(transaction.requestor, _MAY_DETOKENIZE) is not None:
        await core.permit(transaction.requestor, _MAY_DETOKENIZE, _DETOKENIZE, transaction.id)
    opened = await core.read(token, None)
    restrictions = core.documents.known(opened.record) or await core.documents.restrictions(opened.record)
    decision = decide(
        opened.record, effective_expiry(*opened), restrictions, transaction, core.clock.now_ms()
    )
    if decision.allowed and opened.card is not None and transaction.contains_pan(opened.card.pan):
        raise InvalidInputError(CONTAINS_PAN)
    return decision


async def detokenize(core: Core, token: str, transaction: Transaction) -> Card:
    """Decide on a use, record it, and only then hand out the card."""
    requestor = transaction.requestor
    if core.denial(requestor, _MAY_DETOKENIZE) is not None:
        await core.permit(requestor, _MAY_DETOKENIZE, _DETOKENIZE, transaction.id)
    conflicts = 0
    while True:
        opened = await core.read(token, _DETOKENIZE, requestor, transaction.id)
        record, card = opened
        restrictions = core.documents.known(record) or await core.documents.restrictions(record)
        now_ms = core.clock.now_ms()
        event, counts, refusal = judge(opened, restrictions, transaction, now_ms)
        if counts:
            used = record.used(
                record.usage.after(transaction, restrictions.velocity_counters, now_ms), now_ms
            )
            if not await core.replace(used, card, event) and card is not None:
                return card
            conflicts = await core.conflict(conflicts)
            continue
        await core.note(event)
        if refusal is None and card is not None:
            return card
        raise refusal or DomainRestrictionError(())


def judge(
    opened: Unsealed, restrictions: Restrictions, transaction: Transaction, now_ms: int
) -> tuple[Event, bool, TokenVaultError | None]:
    """Decide on a use to be made.

    Returns:
        What the audit trail is to say, whether the record has to count the use, and why the card stays, if it does.
    """
    record, card = opened
    decision = decide(record, effective_expiry(record, card), restrictions, transaction, now_ms)
    refusal: TokenVaultError | None = None
    codes: tuple[str, ...] = ()
    if not decision.allowed or card is None:
        refusal = DomainRestrictionError(decision.violations)
        codes = tuple([violation.code for violation in decision.violations])
    elif transaction.contains_pan(card.pan):
        # Only who would be handed the card learns that it stands in the transaction: else this would answer guesses.
        refusal, codes = InvalidInputError(CONTAINS_PAN), (CONTAINS_PAN_CODE,)
    counts = refusal is None and restrictions.counted and not record.usage.remembers(transaction)
    event = Event(
        now_ms,
        _DETOKENIZE,
        _DONE if refusal is None else Outcome.DENIED,
        transaction.requestor,
        record.reference,
        # The card number stands in no field of a use that is allowed.
        safe_id(transaction.id, None if refusal is None or card is None else card.pan),
        codes,
        record.revision + 1 if counts else 0,
    )
    return event, counts, refusal
